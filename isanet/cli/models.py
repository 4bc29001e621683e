"""The zoo, its cache and archives: info, download, verify, convert, cache, pack, install."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isanet._files import given_path, keep_existing
from isanet._text import aligned, clean
from isanet.cli.options import AddCommand, class_names, image_size
from isanet.cli.printing import error_text, megabytes
from isanet.errors import CacheError, CheckpointFormatError, IsanetError, OutputError
from isanet.labels import LABEL_SPACES
from isanet.protocols import PROTOCOLS
from isanet.weights import cache
from isanet.weights.choosing import by_hand
from isanet.weights.manifest import (
    Released,
    Weights,
    list_models,
    load_backbones,
    load_released,
    manifest_path,
    model_info,
    packaged_path,
)
from isanet.zoo.plan import hub_address


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    info = add_command("info", _info, "show a model's metadata and classes")
    info.add_argument("name", metavar="NAME", help="a model of the zoo")
    text = "also count the multiply-adds of a forward pass of this size, and the parameters, by part of the network"
    info.add_argument("--flops", type=image_size, metavar="HEIGHTxWIDTH", help=text)

    download = add_command("download", _download, "download, verify and convert models into the cache")
    download.add_argument("names", nargs="*", metavar="NAME", help="models, or backbones such as resnet50_v1c")
    download.add_argument("--all", action="store_true", help="all models of the zoo")
    download.add_argument("--keep", action="store_true", help="also keep the released file in the cache")
    download.add_argument("--force", action="store_true", help="download again even if cached")

    verify = add_command("verify", _verify, "check models against recorded hashes and show where they came from")
    names = "models, model folders or files; default: all cached and packaged models"
    verify.add_argument("names", nargs="*", metavar="NAME", help=names)
    verify.add_argument("--pin", action="store_true", help="write the measured hashes and sizes to the manifest")
    verify.add_argument("--manifest", type=Path, metavar="FILE", help="the weights.json that --pin writes to")

    convert = add_command("convert", _convert, "convert a checkpoint to a model folder or a single .safetensors file")
    convert.add_argument("source", type=Path, metavar="IN", help="checkpoint or model folder")
    convert.add_argument("target", type=Path, metavar="OUT", help="folder, or file name that ends in .safetensors")
    classes = convert.add_mutually_exclusive_group()
    classes.add_argument("--classes", type=class_names, metavar="NAMES", help="comma-separated names of the classes")
    classes.add_argument("--label-space", choices=LABEL_SPACES, help="known names and colors of the classes")
    text = 'how images are prepared: as for a model of the zoo, or {"short_edge": ..., "long_edge": ..., ...}'
    convert.add_argument("--preprocessing", metavar="NAME|JSON", help=text)
    text = "of a checkpoint with an average of the weights, take that"
    convert.add_argument("--weights", choices=("ema",), help=text)
    convert.add_argument("--force", action="store_true", help="replace an existing OUT")

    manage = add_command("cache", _cache, "show or clear the cache")
    actions = manage.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("path", help="print the cache folder")
    actions.add_parser("list", help="list cached models and backbones")
    text = "delete cached models and backbones"
    clear = actions.add_parser("clear", help=text, description=text.capitalize() + ".")
    clear.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    forget = "also forget their hashes, so that the next download is trusted on first use"
    clear.add_argument("--forget", action="store_true", help=forget)

    pack = add_command("pack", _pack, "pack models into an archive for a machine without network access")
    pack.add_argument("names", nargs="+", metavar="NAME", help="models, or backbones such as resnet50_v1c")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="archive to write")
    pack.add_argument("--force", action="store_true", help="replace an existing archive")

    text = "install the models of an archive into the cache, without network access"
    install = add_command("install", _install, text)
    install.add_argument("archive", type=Path, metavar="FILE.zip", help="archive written by isanet pack")
    install.add_argument("--force", action="store_true", help="replace models that are recorded with other hashes")


def _info(options: argparse.Namespace) -> int:
    weights = model_info(options.name)
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    metrics = weights.metrics
    figures = {metrics["protocol"]: metrics["miou"], **metrics.get("others", {})}
    data = f"on {metrics['dataset']} {metrics['split']}"
    part_published = f"{weights.sha256_prefix}...: no more is" if weights.sha256_prefix else "not"
    facts = [
        ("name", weights.name),
        ("family", weights.family),
        ("architecture", _pairs(weights.architecture)),
        *(("published mIoU", f"{100 * miou:.2f} {data}, {_protocol(name)}") for name, miou in figures.items()),
        *((f"  {part}", f"{100 * miou:.2f}") for part, miou in metrics.get("subsets", {}).items()),
        *([("published mAcc", f"{100 * metrics['macc']:.2f}")] if "macc" in metrics else []),
        ("parameters", f"{weights.parameters:,}"),
        ("multiply-adds", f"{weights.gmacs:,.1f} G for one typical image of the dataset"),
        ("download", _download_size(weights)),
        *([("address", hub_address(weights))] if weights.hub else []),
        *(("address", url) for url in weights.urls),
        *(("page", f"{page['url']} ({page['note']}; only a person can open it)") for page in weights.pages),
        *(("training log", url) for url in weights.log_urls),
        *([("file", packaged_path(weights.name))] if weights.packaged else [("file name", weights.file_names[0])]),
        ("sha256", weights.sha256 or f"{part_published} published; recorded at the first download"),
        ("preprocessing", _pairs(weights.preprocessing)),
        ("recipe", _pairs(weights.recipe)),
        ("license", weights.license),
        ("commercial use", "allowed by the license of the weights" if weights.commercial else "not allowed"),
        *([("notes", weights.notes)] if weights.notes else []),
        ("paper", weights.paper),
        ("cached", "not needed" if weights.packaged else str(path) if path else "no"),
        *((("recorded sha256", record.source_sha256), ("fetched from", record.source)) if record else ()),
    ]
    for key, value in facts:
        print(f"{key:<16} {value}")
    space = LABEL_SPACES[weights.label_space]
    print(f"\nLabel space {space.name}:")
    rows = [("INDEX", "NAME", "OFFICIAL ID", "COLOR")]
    for i, name in enumerate(space.classes):
        rows.append((str(i), name, str(space.official_ids[i]), "#" + bytes(space.palette[i]).hex()))
    print(*aligned(rows, left=2), sep="\n")
    if options.flops:
        from isanet.tools.flops import forward_cost
        from isanet.zoo.networks import model_config

        costs = forward_cost(model_config(weights), *options.flops)
        print(f"\nOne network input of {options.flops[0]} x {options.flops[1]} pixels:")
        table = [("PART", "MULTIPLY-ADDS", "PARAMETERS")]
        table += [(part, f"{cost.multiply_adds / 1e9:,.3f} G", f"{cost.parameters:,}") for part, cost in costs.items()]
        print(*aligned(table, left=1), sep="\n")
        print("Counted: convolutions and attention's matrix products. A multiply-add is two FLOPs.")
    return 0


def _download(options: argparse.Namespace) -> int:
    from isanet.zoo import released

    if bool(options.names) == options.all:
        raise ValueError("name the models, or pass --all; `isanet list` shows them")
    # What only a person can fetch is last, because that is an error
    for weights in sorted(_released(options.names, list_models()), key=by_hand):
        if weights.packaged:
            print(f"{weights.name} is in the package: {packaged_path(weights.name)}; nothing to download")
            continue
        released.load(weights, keep=options.keep, force=options.force)
        print(f"{weights.name} is ready: {cache.cached_file(weights.name)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from isanet.zoo import publish, released

    if options.manifest is not None and not options.pin:
        options.wrong_call("--manifest is where --pin writes; pass --pin too")
    known = load_released()
    files = [name for name in dict.fromkeys(options.names) if name not in known and os.path.lexists(name)]
    names = [name for name in options.names if name not in files]
    if files and options.pin:
        raise ValueError(f"--pin is for models of the zoo, not for {files[0]}")
    failed = sum(not _verify_file(Path(file)) for file in files)
    if files and not names:
        return 1 if failed else 0
    present = [name for name, weights in known.items() if weights.packaged or cache.cached_file(name)]
    if not names and not present:
        raise CacheError(f"nothing is cached in {cache.home()}; `isanet download NAME` fetches a model")
    records = {}
    for weights in _released(names, present):
        try:
            record = released.verify(weights)
        except IsanetError as error:
            failed += 1
            print(f"{weights.name}: FAILED: {error_text(error)}")
            continue
        if record is None:
            print(f"{weights.name}: good. In the package, {weights.size:,} bytes,")
            print(f"  sha256 {weights.sha256} (as in the manifest)")
            continue
        records[weights.name] = record
        trust = "as in the manifest" if weights.sha256 else "trusted on first use; not pinned in the manifest"
        print(f"{weights.name}: good. From {record.source} on {record.date}, {record.source_size:,} bytes,")
        print(f"  sha256 {record.source_sha256} ({trust})")
    if options.pin and not failed:
        target = options.manifest or manifest_path()
        publish.pin(records, target)
        print(f"pinned {', '.join(records) or 'nothing'} in {target}")
    return 1 if failed else 0


def _verify_file(path: Path) -> bool:
    """Prints where a model's folder or file came from; returns whether it is good."""
    from isanet.zoo.origin import origin

    try:
        found = origin(path)
    except (IsanetError, ValueError) as error:
        print(f"{clean(str(path))}: FAILED: {error_text(error)}")
        return False
    print(f"{clean(str(path))}: good. {found.size:,} bytes,")
    print(f"  sha256 {found.sha256}")
    print(f"  {'its metadata:' if found.claims else 'it does not say where it came from'}")
    for key, value in found.claims.items():
        print(f"    {key} {value}")
    for line in found.findings or ["there is nothing here to compare it with"]:
        print(f"  {line}")
    return True


def _convert(options: argparse.Namespace) -> int:
    from isanet.zoo.pretrained import convert_file

    source, target = given_path(options.source, CheckpointFormatError), given_path(options.target, OutputError)
    if target.suffix in (".pth", ".pt"):
        raise ValueError(f"OUT is a folder, or a file that ends in .safetensors; got {target}")
    single = target.suffix == ".safetensors"
    for output in [target] if single else [target / "model.safetensors", target / "config.json"]:
        if output.resolve() in (source.resolve(), (source / output.name).resolve()):
            raise ValueError(f"{output} is the input; use another OUT")
        keep_existing(output, overwrite=options.force)
    space, classes = options.label_space, options.classes
    if isinstance(classes, str):  # the name of a label space
        space, classes = classes, None
    wanted = {"classes": classes, "preprocessing": _preprocessing(options.preprocessing), "weights": options.weights}
    model = convert_file(source, target, label_space=space, **wanted)
    print(f"{target}: {model.config['backbone']}, {len(model.classes)} classes")
    return 0


def _preprocessing(text: str | None) -> dict[str, Any] | None:
    """That of a model of the zoo, or as JSON."""
    if text is None or not text.lstrip().startswith("{"):
        return None if text is None else dict(model_info(text).preprocessing)
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise ValueError(f"--preprocessing is neither a model of the zoo nor JSON: {error}") from error


def _cache(options: argparse.Namespace) -> int:
    if options.action == "path":
        print(cache.home())
    elif options.action == "list":
        rows = [("NAME", "SIZE", "DATE", "SOURCE")]
        for name in load_released():
            record, path = cache.read_record(name), cache.cached_file(name)
            if record and path:
                rows.append((name, megabytes(path.stat().st_size), record.date[:10], record.source))
        if len(rows) > 1:
            print(*aligned(rows, left=4), sep="\n")
        else:
            print(f"nothing is cached in {cache.home()}")
    elif not cache.home().is_dir():
        print(f"nothing is cached in {cache.home()}")
    else:
        chosen = _released(options.names, load_released())
        freed = sum(cache.clear(weights.name, forget=options.forget) for weights in chosen if not weights.packaged)
        kept = "" if options.forget else "; hashes are kept, so a later download must still match (--forget drops them)"
        print(f"freed {megabytes(freed)}{kept}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from isanet.zoo import archive

    packed = archive.pack(options.names, options.output, overwrite=options.force)
    print(f"{options.output}: {', '.join(packed.names)}; {packed.size:,} bytes,")
    print(f"  sha256 {packed.sha256}")
    print(f"On the other machine: isanet install {options.output.name}")
    return 0


def _install(options: argparse.Namespace) -> int:
    from isanet.zoo import archive

    for name, new in archive.install(options.archive, force=options.force).items():
        print(f"{name} is ready: {cache.cached_file(name)}" if new else f"{name} was there already, and was kept")
    return 0


def _released(names: Iterable[str], default: Iterable[str]) -> list[Released]:
    """The models and backbones of these names, each once; of `default` where there are none."""
    backbones = load_backbones()
    return [backbones.get(name) or model_info(name) for name in list(dict.fromkeys(names)) or default]


def _download_size(weights: Weights) -> str:
    if weights.packaged:
        return "none: in the package"
    if weights.size is not None:
        return megabytes(weights.size)
    return f"{megabytes(weights.payload)} or more"


def _protocol(name: str) -> str:
    return f"{name} ({PROTOCOLS[name].text})"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
