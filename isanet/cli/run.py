"""The `isanet` command.

Answers go to standard output; what happens on the way goes to standard error. torch is imported only by the
commands that need it, so that `isanet list` answers at once.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet._version import __version__
from isanet.errors import CacheError, DownloadError, ImageError, IsanetError
from isanet.inference.outputs import SUFFIXES, find_images, plan_outputs, write_outputs
from isanet.labels import LABEL_SPACES, OFFICIAL_SPACES, custom_space, label_space, official_name
from isanet.protocols import PROTOCOLS
from isanet.weights import cache
from isanet.weights.manifest import (
    Released,
    Weights,
    list_models,
    load_backbones,
    load_manifest,
    load_released,
    manifest_path,
    model_info,
    packaged_path,
    unknown_model,
)

if TYPE_CHECKING:
    from isanet.images.reading import RGBImage
    from isanet.inference.segmentation import Segmentation
    from isanet.training.recipe import Recipe

SETTINGS = ("ISANET_HOME", "ISANET_OFFLINE", "ISANET_MIRROR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "REQUESTS_CA_BUNDLE")
SECRET_SETTINGS = ("HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""May hold passwords: shown as set or not."""

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
"""As in isanet.inference.fast.optimize, which would import torch."""

MAX_PENDING_WRITES = 4
"""Most images whose outputs wait for the threads that write them, or are being written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, 1 for a failure, 2 for a wrong call, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    level = logging.DEBUG if options.debug else logging.WARNING if options.quiet else logging.INFO
    logger, handler = logging.getLogger("isanet"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("isanet: %(message)s"))
    logger.addHandler(handler)
    earlier_level = logger.level
    logger.setLevel(level)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text at all
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("isanet: stopped; files that were not complete are gone", file=sys.stderr)
        return 130
    except (IsanetError, ValueError, OSError, MemoryError, RuntimeError) as error:
        if options.debug:
            raise
        smaller = "--set accumulate=2" if options.command == "finetune" else "--batch-size 1"
        hint = f"; try {smaller}, or --device cpu" if "out of memory" in str(error) else ""
        print(f"isanet: error: {_one_line(error)}{hint}", file=sys.stderr)
        return 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(earlier_level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="isanet", description="Pretrained ISANet segmentation models.")
    parser.add_argument("--version", action="version", version=f"isanet {__version__}")
    anywhere = argparse.ArgumentParser(add_help=False)  # before the command or after it
    for each, default in ((parser, False), (anywhere, argparse.SUPPRESS)):
        each.add_argument(
            "--debug", action="store_true", default=default, help="show tracebacks and all that is logged"
        )
        each.add_argument("--quiet", action="store_true", default=default, help="show only warnings and errors")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[anywhere])
        added.set_defaults(run=run)
        return added

    def running(added: argparse.ArgumentParser, precision: str, *, calibrated: bool = False) -> None:
        """How a model runs; `calibrated`: in int8 too, which needs images."""
        added.add_argument("--protocol", default="whole", choices=PROTOCOLS, metavar="NAME", help=", ".join(PROTOCOLS))
        added.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
        precisions = ("auto", *PRECISIONS[: 4 if calibrated else 3])
        added.add_argument("--precision", default=precision, choices=precisions, help=f"default: {precision}")
        added.add_argument("--batch-size", type=_positive, default=1, metavar="N")

    def reading(added: argparse.ArgumentParser) -> None:
        """How a dataset is read."""
        added.add_argument(
            "--workers", type=_not_negative, metavar="N", help="processes that read; default: by cores and device"
        )
        layouts = ("auto", "voc", "ade20k", "cityscapes", "folder")
        added.add_argument("--layout", default="auto", choices=layouts, help="default: by what is in DATA")
        added.add_argument("--sbd", metavar="DIR", help="SBD, for VOC's split trainaug")
        own = added.add_argument_group("a folder of images and masks")
        own.add_argument("--classes", type=_names, help="names with commas between, or a label space")
        own.add_argument("--ids", type=_ids, help="values of the classes in the masks: 1-150, 0,255 or official")
        own.add_argument(
            "--ignore", type=_ignore, metavar="VALUES", help="values to ignore, rest or none; default: 255"
        )
        own.add_argument("--colors", type=_colors, help="of the classes: #ff0000,#00ff00 or a label space")

    listing = command("list", _list, "list the models of the zoo")
    listing.add_argument("pattern", nargs="?", default="*", help="only names that fit, such as '*cityscapes*'")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    form.add_argument("--markdown", action="store_true", help="the table of the README")

    info = command("info", _info, "say everything about one model, its classes included")
    info.add_argument("name")

    download = command("download", _download, "fetch, verify and convert models into the cache")
    download.add_argument("names", nargs="*", metavar="NAME", help="models, or backbones such as resnet50_v1c")
    download.add_argument("--all", action="store_true", help="every model of the zoo")
    download.add_argument("--keep", action="store_true", help="leave the released file in the cache too")
    download.add_argument("--force", action="store_true", help="fetch again what is cached")

    verify = command("verify", _verify, "compare models with what was recorded and say where they came from")
    verify.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="also a model's folder or file; default: all that are cached or packaged",
    )
    verify.add_argument("--pin", action="store_true", help="write the measured hashes and sizes into the manifest")
    verify.add_argument("--manifest", type=Path, metavar="FILE", help="the weights.json that --pin writes to")

    pack = command("pack", _pack, "pack models into an archive for a machine without a network")
    pack.add_argument("names", nargs="+", metavar="NAME", help="models, or backbones such as resnet50_v1c")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip")
    pack.add_argument("--force", action="store_true", help="replace an existing archive")

    install = command("install", _install, "put the models of an archive into the cache, without a network")
    install.add_argument("archive", type=Path, metavar="FILE.zip", help="what isanet pack wrote")
    install.add_argument("--force", action="store_true", help="replace models that are recorded with another hash")

    selftest = command("selftest", _selftest, "run a drawn street through models and compare with what was recorded")
    selftest.add_argument("names", nargs="+", metavar="NAME", help="models of the zoo")
    selftest.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    selftest.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS), help="default: auto")

    segment = command("segment", _segment, "label every pixel of images")
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    segment.add_argument("--model", required=True, help="a name in the zoo, org/name, a folder or a file")
    segment.add_argument("--output", type=Path, default=Path("segmented"), metavar="DIR", help="default: segmented")
    segment.add_argument("--overlay", action="store_true", help="image, classes in color and legend (default)")
    segment.add_argument("--labels", action="store_true", help="class indices as a palette PNG")
    segment.add_argument("--areas", action="store_true", help="share of each class, as JSON")
    segment.add_argument(
        "--ids", action="store_true", help="official ids as NAME.png, as the server of the model's benchmark takes them"
    )
    segment.add_argument("--force", action="store_true", help="replace existing outputs")
    running(segment, precision="auto", calibrated=True)

    demo = command("demo", _demo, "draw a street, segment it with the model in the package, and score it")
    demo.add_argument("--seed", type=_not_negative, help="which street; default: a new one each time")
    demo.add_argument("--output", type=Path, metavar="FILE.png", help="default: demo_SEED.png")
    demo.add_argument("--force", action="store_true", help="replace an existing image")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")

    evaluate = command("evaluate", _evaluate, "measure a model on a dataset")
    evaluate.add_argument("root", metavar="DATA", help="folder with VOC, ADE20K, Cityscapes, or images and masks")
    evaluate.add_argument("--model", required=True, help="a name in the zoo, org/name, a folder or a file")
    evaluate.add_argument("--split", help="default: val; of a folder of one's own, all of it")
    evaluate.add_argument("--output", type=Path, default=Path("evaluated"), metavar="DIR", help="default: evaluated")
    evaluate.add_argument("--force", action="store_true", help="replace an earlier report and start anew")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="only N images, spread over the dataset")
    evaluate.add_argument("--boundary", action="store_true", help="the boundary F-score too")
    evaluate.add_argument("--predictions", metavar="DIR", help="write label maps as the benchmark's server takes them")
    evaluate.add_argument("--mapping", type=Path, metavar="FILE", help='JSON such as {"vehicle": ["car", "bus"]}')
    running(evaluate, precision="float32")
    reading(evaluate)

    finetune = command("finetune", _finetune, "train a model on images and masks of one's own, or a benchmark's")
    finetune.add_argument("root", metavar="DATA", help="folder with VOC, ADE20K, Cityscapes, or images and masks")
    begin = finetune.add_mutually_exclusive_group(required=True)
    begin.add_argument("--model", help="to start from: a name in the zoo, org/name, a folder or a file")
    begin.add_argument("--backbone", help="to start from: resnet50 or resnet101, trained on ImageNet")
    finetune.add_argument("--output", type=Path, default=Path("finetuned"), metavar="DIR", help="default: finetuned")
    finetune.add_argument("--recipe", metavar="NAME|FILE", help="of a model of the zoo, or a recipe.json")
    finetune.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="of the recipe: epochs=20 lr=0.001 crop=[256,256]",
    )
    finetune.add_argument("--split", help="to train on; default: train, or all of a folder that has no such split")
    finetune.add_argument("--val-data", metavar="DIR", help="to validate on; default: in DATA")
    finetune.add_argument("--val-split", help="default: val, or images held out of a folder that has no such split")
    finetune.add_argument("--hold-out", type=float, default=0.2, metavar="SHARE", help="of the images; default: 0.2")
    finetune.add_argument("--force", action="store_true", help="start anew where an earlier run is")
    finetune.add_argument("--device", default="auto", choices=("auto", "cpu"))
    finetune.add_argument(
        "--tracker", action="append", default=[], help="such as tensorboard or wandb; may be repeated"
    )
    reading(finetune)

    check = command("check-masks", _check_masks, "say what the masks in a folder hold, and how to read them")
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--images", type=Path, metavar="DIR", help="compare sizes with these images")
    check.add_argument("--classes", type=_classes, help="names with commas between, a label space, or a number")
    check.add_argument("--output", type=Path, metavar="FILE.png", help="an image of the histogram")
    check.add_argument("--force", action="store_true", help="replace an existing image")
    check.add_argument("--json", action="store_true", help="all that was found, as JSON")

    bench = command("benchmark", _benchmark, "measure speed, memory and labels of each precision on this machine")
    bench.add_argument("model", metavar="MODEL", help="a name in the zoo, org/name, a folder or a file")
    bench.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="files, folders or patterns; default: drawn streets"
    )
    bench.add_argument("--sizes", nargs="+", type=_size, default=[(512, 512), (1024, 2048)], metavar="HEIGHTxWIDTH")
    bench.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, metavar="NAME", help="default: those that the device has"
    )
    bench.add_argument("--compile", action="store_true", help="compiled too: that takes minutes")
    bench.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    bench.add_argument("--repeats", type=_positive, default=3, metavar="N")
    bench.add_argument("--json", action="store_true", help="all that was measured, as JSON")

    convert = command("convert", _convert, "convert a checkpoint to a model folder, or to one .safetensors file")
    convert.add_argument("source", type=Path, metavar="IN")
    convert.add_argument("target", type=Path, metavar="OUT")
    convert.add_argument("--force", action="store_true", help="replace an existing OUT")

    manage = command("cache", _cache, "show or clear the cache")
    actions = manage.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("path", help="the folder")
    actions.add_parser("list", help="the models and backbones in it")
    clear = actions.add_parser("clear", help="delete models and backbones")
    clear.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    clear.add_argument("--forget", action="store_true", help="also forget their hashes: trust the next download anew")

    command("doctor", _doctor, "check cache, settings, versions and which addresses answer")
    return parser


def _list(options: argparse.Namespace) -> int:
    names = list_models(options.pattern)
    manifest = load_manifest()
    if options.json:
        print(json.dumps({name: vars(manifest[name]) for name in names}, indent=1))
        return 0
    if not names:
        raise ValueError(f"no model fits {options.pattern!r}; `isanet list` shows all")
    rows = [("NAME", "DATASET", "mIoU", "PARAMETERS", "DOWNLOAD", "CACHED")]
    for name in names:
        weights = manifest[name]
        dataset = f"{weights.metrics['dataset']} {weights.metrics['split']}"
        miou, parameters = f"{100 * weights.metrics['miou']:.2f}", f"{weights.parameters / 1e6:.1f} M"
        cached = "-" if weights.packaged else "yes" if cache.cached_file(name) else "no"
        rows.append((name, dataset, miou, parameters, _download_size(weights), cached))
    if options.markdown:
        print("| name | dataset | mIoU | parameters | download |\n|---|---|---|---|---|")
        for row in rows[1:]:
            print(f"| `{row[0]}` | {' | '.join(row[1:5])} |")
        return 0
    _print_table(rows)
    return 0


def _info(options: argparse.Namespace) -> int:
    weights = model_info(options.name)
    record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
    metrics = weights.metrics
    facts = [
        ("name", weights.name),
        ("architecture", _pairs(weights.architecture)),
        (
            "published mIoU",
            f"{100 * metrics['miou']:.2f} on {metrics['dataset']} {metrics['split']}, protocol "
            f"{metrics['protocol']} ({PROTOCOLS[metrics['protocol']].text})",
        ),
        ("parameters", f"{weights.parameters:,}"),
        ("download", _download_size(weights)),
        *(("address", url) for url in weights.urls),
        *(("training log", url) for url in weights.log_urls),
        *([("file", packaged_path(weights.name))] if weights.packaged else []),
        ("sha256", weights.sha256 or "not published; recorded at the first download"),
        ("preprocessing", _pairs(weights.preprocessing)),
        ("recipe", _pairs(weights.recipe)),
        ("license", weights.license),
        ("paper", weights.paper),
        ("cached", "not needed" if weights.packaged else str(path) if path else "no"),
        *((("recorded sha256", record.source_sha256), ("fetched from", record.source)) if record else ()),
    ]
    for key, value in facts:
        print(f"{key:<16} {value}")
    space = LABEL_SPACES[weights.label_space]
    print(f"\nLabel space {space.name}:")
    rows = [("INDEX", "NAME", "OFFICIAL ID", "COLOR")]
    entries = zip(space.classes, space.official_ids, space.palette, strict=True)
    rows += [
        (str(i), name, str(official), "#" + bytes(color).hex()) for i, (name, official, color) in enumerate(entries)
    ]
    _print_table(rows)
    return 0


def _download(options: argparse.Namespace) -> int:
    from isanet.zoo import released

    if bool(options.names) == options.all:
        raise ValueError("name the models, or say --all; `isanet list` shows them")
    for weights in _chosen(options.names, list_models()):
        if weights.packaged:
            print(f"{weights.name} is in the package: {packaged_path(weights.name)}; there is nothing to do")
            continue
        released.load_cached(weights, keep=options.keep, force=options.force)
        print(f"{weights.name} is ready: {cache.cached_file(weights.name)}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from isanet.zoo import released

    known = {weights.name for weights in load_released().values()}
    places = [name for name in dict.fromkeys(options.names) if name not in known and os.path.lexists(name)]
    if places and options.pin:
        raise ValueError(f"--pin is for models of the zoo, not for {places[0]}")
    failed = sum(not _explain(Path(place)) for place in places)
    options.names = [name for name in options.names if name not in places]
    if places and not options.names:
        return 1 if failed else 0
    there = [
        weights.name for weights in load_released().values() if weights.packaged or cache.cached_file(weights.name)
    ]
    if not options.names and not there:
        raise CacheError(f"nothing is cached in {cache.home()}")
    records = {}
    for weights in _chosen(options.names, there):
        try:
            record = released.verify(weights)
        except IsanetError as error:
            failed += 1
            print(f"{weights.name}: FAILED: {_one_line(error)}")
            continue
        if record is None:
            print(f"{weights.name}: good. In the package, {weights.size:,} bytes,")
            print(f"  sha256 {weights.sha256} (as the manifest says)")
            continue
        records[weights.name] = record
        trust = "as the manifest says" if weights.sha256 else "trusted on first use; not pinned in the manifest"
        print(f"{weights.name}: good. From {record.source} on {record.date}, {record.source_size:,} bytes,")
        print(f"  sha256 {record.source_sha256} ({trust})")
    if options.pin and not failed:
        target = options.manifest or manifest_path()
        released.pin(records, target)
        print(f"pinned {', '.join(records) or 'nothing'} in {target}")
    return 1 if failed else 0


def _explain(path: Path) -> bool:
    """Print where a model's folder or file came from; gives whether it is good."""
    from isanet.zoo.origin import origin

    try:
        found = origin(path)
    except (IsanetError, ValueError) as error:
        print(f"{path}: FAILED: {_one_line(error)}")
        return False
    print(f"{path}: good. {found.size:,} bytes,")
    print(f"  sha256 {found.sha256}")
    print(f"  {'it says of itself:' if found.said else 'it does not say where it came from'}")
    for key, value in found.said.items():
        print(f"    {key} {value}")
    for line in found.compared or ["there is nothing here to compare it with"]:
        print(f"  {line}")
    return True


def _pack(options: argparse.Namespace) -> int:
    from isanet.zoo import archive as airgap

    records = airgap.pack(options.names, options.output, overwrite=options.force)
    with options.output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{options.output}: {', '.join(records)}; {options.output.stat().st_size:,} bytes,")
    print(f"  sha256 {digest}")
    print(f"On the other machine: isanet install {options.output.name}")
    return 0


def _install(options: argparse.Namespace) -> int:
    from isanet.zoo import archive as airgap

    for name, new in airgap.install(options.archive, force=options.force).items():
        print(f"{name} is ready: {cache.cached_file(name)}" if new else f"{name} was there already, and was kept")
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from isanet.tools.selftest import selftest

    failed = 0
    for name in dict.fromkeys(options.names):
        try:
            found = selftest(name, device=options.device, precision=options.precision)
        except IsanetError as error:
            failed += 1
            print(f"{name}: FAILED: {_one_line(error)}")
            continue
        where = f"on {found.device} in {found.precision}"
        if found.fault:
            failed += 1
            print(f"{name}: FAILED {where}: {' '.join(found.fault.split())}")
        elif found.first and (found.device, found.precision) == ("cpu", "float32"):
            print(f"{name}: recorded {where}; there was nothing to compare with yet")
        else:
            print(f"{name}: good {where}")
        if found.agreement == found.agreement:  # not NaN: the network gave labels
            print(
                f"  {found.agreement:.2%} of the pixels that it was sure of have the recorded label "
                f"(at least {found.tolerance.labels:.1%}),"
            )
            print(f"  the confidence differs by {found.difference:.4f} (at most {found.tolerance.confidence:.4f})")
    return 1 if failed else 0


def _segment(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    images = find_images(options.images)
    kinds = [kind for kind in SUFFIXES if getattr(options, kind)] or ["overlay"]
    plan, failures = plan_outputs(images, options.output, kinds, overwrite=options.force)
    for path, reason in failures.items():
        print(f"isanet: {path}: {reason}", file=sys.stderr)
    if plan:
        from isanet.inference.segmenter import Segmenter

        made = not options.output.exists()
        options.output.mkdir(parents=True, exist_ok=True)  # before a model is fetched in vain
        segmenter = Segmenter(
            options.model,
            device=options.device,
            precision=options.precision,
            protocol=options.protocol,
            calibration=_readable(plan) if options.precision == "int8" else (),
        )
        if options.ids and official_name(segmenter.model.label_space) is None:
            if made:
                options.output.rmdir()
            raise ValueError(f"{options.model} has classes of its own, without official ids; use --labels")

        waiting: deque[tuple[Path, Future[str]]] = deque()  # what nothing has been said of yet, in order

        def say() -> None:
            path, future = waiting.popleft()
            try:
                line = f"{path} -> {', '.join(map(str, plan[path].values()))}: {future.result()}"
                tqdm.write(line, file=sys.stdout)
            except IsanetError as error:
                failures[path] = _one_line(error)
                tqdm.write(f"isanet: {failures[path]}", file=sys.stderr)
            bar.update()

        def add(path: Path, future: Future[str]) -> None:
            waiting.append((path, future))
            while waiting and (len(waiting) > MAX_PENDING_WRITES or waiting[0][1].done()):
                say()

        def failed(source: object, error: IsanetError) -> None:
            future: Future[str] = Future()
            future.set_exception(error)
            add(Path(str(source)), future)

        # None: no bar unless standard error is a terminal
        with (
            tqdm(total=len(plan), unit="image", disable=None if len(plan) > 1 else True) as bar,
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="isanet-write") as writers,
        ):
            try:
                for result in segmenter.stream(list(plan), batch_size=options.batch_size, on_error=failed):
                    assert result.path is not None
                    add(result.path, writers.submit(_write, result, plan[result.path]))
            finally:  # of an error or Ctrl-C too: what was segmented before it is written, and said
                while waiting:
                    say()
    if failures:
        print(f"isanet: {len(failures)} of {len(images)} images were not segmented", file=sys.stderr)
    return 1 if failures else 0


def _readable(paths: Iterable[Path]) -> Iterator[RGBImage]:
    """Images that can be read: of the others is told when their turn comes."""
    from isanet.images.reading import read_image

    for path in paths:
        with suppress(ImageError):
            yield read_image(path)


def _write(result: Segmentation, outputs: Mapping[str, Path]) -> str:
    """Write the outputs of one image; gives its largest classes in words."""
    write_outputs(result, outputs)
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(result.areas().items())[:4])


def _benchmark(options: argparse.Namespace) -> int:
    import numpy as np

    from isanet import from_pretrained
    from isanet.images.reading import read_image
    from isanet.inference.fast.optimize import has_bfloat16
    from isanet.inference.segmenter import Segmenter
    from isanet.tools.benchmark import benchmark, machine, table

    if options.images:
        images = [read_image(path) for path in find_images(options.images)]
    else:
        from isanet.datasets.toystreets import ToyStreets

        streets = ToyStreets(2, split="test")
        images = [np.asarray(streets[index][0]) for index in range(2)]
    model = from_pretrained(options.model)
    device = Segmenter(model, device=options.device, precision="float32").device
    half = ["bfloat16"] if has_bfloat16(device) else ["float16"] if device.type != "cpu" else []
    precisions = options.precisions or ["float32", *half, *(["int8"] if device.type == "cpu" else [])]
    rows = benchmark(
        model,
        images,
        sizes=options.sizes,
        precisions=precisions,
        compile=options.compile,
        device=options.device,
        repeats=options.repeats,
    )
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [row._asdict() for row in rows]}, indent=1))
        return 0
    print(f"{options.model} on {device} ({machine()}), {len(images)} images, {options.repeats} times each")
    _print_table(table(rows))
    print('SPEED: against "plain", as loaded, all logits at full size. LABELS: pixels with the same label as there.')
    return 0


def _demo(options: argparse.Namespace) -> int:
    from isanet.tools.demo import demo, write_demo

    seed = secrets.randbelow(100_000) if options.seed is None else options.seed
    output = options.output or Path(f"demo_{seed}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"the image is a PNG; give --output a name that ends in .png, got {output}")
    if os.path.lexists(output) and not options.force:
        raise CacheError(f"{output} exists and was kept; --force replaces it")
    shown = demo(seed, device=options.device)
    write_demo(shown, output)
    iou = dict(zip(shown.result.classes, shown.matrix.iou().tolist(), strict=True))
    rows = [(name, f"{area:.1%}", "" if iou[name] != iou[name] else f"{iou[name]:.1%}")
            for name, area in shown.result.areas().items()]  # fmt: skip
    _print_table([("CLASS", "AREA", "IOU"), *rows])
    print(f"\nmIoU {shown.matrix.miou():.1%}, pixel accuracy {shown.matrix.pixel_accuracy():.1%}, of a street that the "
          f"model has never seen (seed {seed})")  # fmt: skip
    print(f"{output} shows it")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from isanet import datasets
    from isanet.evaluation.evaluate import evaluate, label_maps

    dataset = datasets.open_dataset(options.root, options.split, **_reading(options))
    mapping = None if options.mapping is None else _mapping(options.mapping)
    running = {"protocol": options.protocol, "device": options.device, "precision": options.precision}
    running |= {"batch_size": options.batch_size, "overwrite": options.force}
    running["progress"] = False if options.quiet else None
    if not dataset.has_masks and options.predictions is not None:
        label_maps(options.model, dataset, options.predictions, **running)
        print(f"{len(dataset)} label maps are in {options.predictions}; the truth of {dataset} is not published")
        return 0
    several = torch.distributed.is_torchelastic_launched()
    if several:
        torch.distributed.init_process_group("gloo")  # the model's device is another matter: only counts are sent
    try:
        first = not several or torch.distributed.get_rank() == 0
        if not first:
            logging.getLogger("isanet").setLevel(logging.ERROR)  # the first process speaks for all
        report = evaluate(
            options.model,
            dataset,
            mapping=mapping,
            limit=options.limit,
            boundary=options.boundary,
            output=options.output,
            predictions=options.predictions,
            workers=options.workers,
            **running,
        )
    finally:
        if several:
            torch.distributed.destroy_process_group()
    if first:
        print(report)
        print(f"\n{options.output / 'index.html'} shows it, with images")
    return 0


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """How a dataset is read, as `open_dataset` takes it."""
    given = {name: getattr(options, name) for name in ("sbd", "classes", "ids", "ignore", "colors")}
    return {"layout": options.layout, **{name: value for name, value in given.items() if value is not None}}


def _finetune(options: argparse.Namespace) -> int:
    from isanet import datasets
    from isanet.model import ISANet
    from isanet.training.finetune import finetune
    from isanet.zoo.pretrained import from_backbone

    recipe = _recipe(options.recipe, options.set)
    train, val = datasets.open_train_and_val(
        options.root,
        options.val_data,
        split=options.split,
        val_split=options.val_split,
        hold_out=options.hold_out,
        seed=recipe.seed,
        **_reading(options),
    )
    progress = False if options.quiet else None
    model: ISANet | str = options.model
    if options.backbone is not None:
        import torch

        torch.manual_seed(recipe.seed)  # the same head when the run goes on
        model = from_backbone(options.backbone, classes=train.classes, palette=train.palette, progress=progress)
    run = finetune(
        model,
        train,
        val,
        recipe,
        options.output,
        overwrite=options.force,
        workers=options.workers,
        device=options.device,
        trackers=options.tracker,
        progress=progress,
    )
    if os.environ.get("RANK", "0") == "0":
        print(run.report)
        print(f"\n{options.output} holds the model, curves.png, overlays.png and history.csv")
    return 0


def _recipe(source: str | None, settings: Sequence[str]) -> Recipe:
    """The recipe of a model, a file or upstream, with some fields changed."""
    from isanet.training.recipe import Recipe

    if source is None:
        recipe = Recipe()
    elif source in list_models():
        recipe = Recipe.published(source)
    else:
        try:
            recipe = Recipe.from_json(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"--recipe {source}: no such file, and {unknown_model(source)}") from error
    fields = json.loads(recipe.to_json())
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, such as lr=0.001; got {setting!r}")
        try:
            fields[field] = json.loads(text)
        except ValueError:
            fields[field] = text  # a word needs no quotation marks
    return Recipe.from_json(json.dumps(fields))


def _mapping(path: Path) -> dict[str, list[str] | None]:
    """Which classes are one, from a file; what is wrong with its names `evaluate` says."""

    def unique(pairs: list[tuple[str, list[str] | None]]) -> dict[str, list[str] | None]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        mapping = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
        if not isinstance(mapping, dict):
            raise ValueError("expected an object")
    except ValueError as error:
        raise ValueError(f'{path} is no mapping such as {{"vehicle": ["car", "bus"]}}: {error}') from error
    return mapping


def _check_masks(options: argparse.Namespace) -> int:
    from isanet.datasets.mask_check import check_masks

    classes = options.classes
    if isinstance(classes, str):
        classes = label_space(classes)
    elif isinstance(classes, list):
        classes = custom_space(classes)
    if options.output is not None and options.output.suffix.lower() != ".png":
        raise ValueError("the image of the histogram is a PNG; give --output a name that ends in .png")
    if options.output is not None and os.path.lexists(options.output) and not options.force:
        raise CacheError(f"{options.output} exists and was kept; --force replaces it")
    progress = False if options.quiet else None
    found = check_masks(options.folder, images=options.images, classes=classes, progress=progress)
    print(json.dumps(found.to_json(), indent=1) if options.json else found)
    if options.output is not None:
        found.save_histogram(options.output)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from isanet.zoo import pretrained as zoo

    target: Path = options.target
    if target.suffix in (".pth", ".pt"):
        raise ValueError(f"OUT is a folder, or a file that ends in .safetensors; got {target}")
    single = target.suffix == ".safetensors"
    for output in [target] if single else [target / "model.safetensors", target / "config.json"]:
        if output.resolve() in (options.source.resolve(), (options.source / output.name).resolve()):
            raise ValueError(f"{output} is the input")
        if os.path.lexists(output) and not options.force:
            raise CacheError(f"{output} exists and was kept; --force replaces it")
    model = zoo.convert_file(options.source, options.target)
    print(f"{options.target}: {model.config['backbone']}, {len(model.classes)} classes")
    return 0


def _cache(options: argparse.Namespace) -> int:
    if options.action == "path":
        print(cache.home())
    elif options.action == "list":
        rows = [("NAME", "SIZE", "DATE", "SOURCE")]
        for weights in load_released().values():
            record, path = cache.read_record(weights.name), cache.cached_file(weights.name)
            if record and path:
                rows.append((weights.name, _megabytes(path.stat().st_size), record.date[:10], record.source))
        if len(rows) > 1:
            _print_table(rows)
        else:
            print(f"nothing is cached in {cache.home()}")
    else:
        if not cache.home().is_dir():
            print(f"nothing is cached in {cache.home()}")
            return 0
        chosen = _chosen(options.names, [weights.name for weights in load_released().values()])
        freed = sum(cache.clear(weights.name, forget=options.forget) for weights in chosen if not weights.packaged)
        kept = "" if options.forget else "; hashes are kept, so a later download must still match (--forget drops them)"
        print(f"freed {_megabytes(freed)}{kept}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from isanet.weights import download
    from isanet.zoo import released

    print(f"isanet {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    for package in (
        "torch",
        "torchvision",
        "huggingface_hub",
        "safetensors",
        "requests",
        "pillow",
        "numpy",
        "matplotlib",
    ):
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} is not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    print(f"devices: {', '.join([*devices, 'cpu'])}, {torch.get_num_threads()} threads")

    folder = cache.home()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = "writable" if os.access(existing, os.W_OK) else "NOT writable: set ISANET_HOME to another folder"
    print(f"cache: {folder} ({writable}, {_megabytes(shutil.disk_usage(existing).free)} free)")
    cached = [weights.name for weights in load_released().values() if cache.cached_file(weights.name)]
    print(f"  cached: {', '.join(cached) or 'nothing'}")
    healthy = True
    for weights in load_manifest().values():
        if weights.packaged:
            try:
                released.verify(weights)
            except IsanetError as error:
                healthy = False
                print(f"  in the package: {weights.name}, FAILED: {_one_line(error)}")
            else:
                print(f"  in the package: {weights.name}, good")
    print("settings:")
    for name in SETTINGS:
        value = os.environ.get(name, "")
        print(f"  {name}={download.redacted(value) if '://' in value else value}")
    for name in SECRET_SETTINGS:
        print(f"  {name} is {'set' if os.environ.get(name) or os.environ.get(name.lower()) else 'not set'}")

    if download.offline():
        print("addresses: not asked, because ISANET_OFFLINE or HF_HUB_OFFLINE is set")
        return 0 if healthy else 1
    print("addresses:")
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    first = next((weights.urls for weights in load_manifest().values() if not weights.packaged), ())
    reached = 0
    for url in [*download.addresses(first), hub]:
        try:
            answer = download.probe(url)
        except DownloadError as error:
            answer = f"FAILED: {_one_line(error)}"
        else:
            reached += 1
        print(f"  {download.redacted(url)}: {answer}")
    return 0 if reached and healthy else 1


def _chosen(names: Iterable[str], default: list[str]) -> list[Released]:
    backbones = load_backbones()
    return [backbones.get(name) or model_info(name) for name in list(dict.fromkeys(names)) or default]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _classes(text: str) -> list[str] | str | int:
    """A number, or what `_names` takes."""
    return int(text) if text.isdecimal() else _names(text)


def _names(text: str) -> list[str] | str:
    """A label space's name, or names with commas between."""
    return text if text in LABEL_SPACES or text in OFFICIAL_SPACES else [name.strip() for name in text.split(",")]


def _ids(text: str) -> list[int] | str:
    """`1-150`, `0,255`, both mixed, or `official`."""
    if text == "official":
        return text
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        more = range(int(first), int(last if dash else first) + 1)
        if not more:
            raise argparse.ArgumentTypeError(f"{part} is an empty range")
        values += more
    return values


def _ignore(text: str) -> list[int] | str:
    if text == "none":
        return []
    return text if text == "rest" else [int(value) for value in text.split(",")]


def _colors(text: str) -> list[tuple[int, int, int]]:
    """A label space's palette, or `#rrggbb` with commas between."""
    if text in LABEL_SPACES or text in OFFICIAL_SPACES:
        return list(label_space(text).palette)
    colors = []
    for part in text.split(","):
        red, green, blue = bytes.fromhex(part.strip().removeprefix("#"))
        colors.append((red, green, blue))
    return colors


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return _positive(height), _positive(width)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _download_size(weights: Weights) -> str:
    if weights.packaged:
        return "none: in the package"
    if weights.size is not None:
        return _megabytes(weights.size)
    return f"{_megabytes(weights.payload)} or more"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _pairs(values: object) -> str:
    assert isinstance(values, dict)
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _one_line(error: BaseException) -> str:
    from isanet._text import clean  # a stranger's text may be in it, and goes to a terminal

    return clean(str(error)) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
