"""For maintainers: publish."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from isanet._text import aligned, clean
from isanet.cli.options import DEVICE, AddCommand, positive_int
from isanet.cli.printing import error_text, megabytes
from isanet.errors import IsanetError
from isanet.weights import manifest
from isanet.weights.manifest import Weights, list_models, model_info

if TYPE_CHECKING:
    from isanet.datasets.base import SegmentationDataset


def add_commands(add_command: AddCommand) -> None:
    """Adds the command of this file."""
    text = "for maintainers: check models, push them to the Hugging Face Hub and pin them in the manifest"
    publish = add_command("publish", _publish, text)
    publish.add_argument("names", nargs="+", metavar="NAME", help="models of the zoo, or glob patterns")
    text = "repository to push to; {name} stands for the model's name, as in org/{name}"
    publish.add_argument("--repo", required=True, metavar="ORG/{name}", help=text)
    text = "datasets to measure models on: layout (voc, ade20k, cityscapes, context59), '=' and folder"
    publish.add_argument("--data", nargs="+", default=[], metavar="LAYOUT=DIR", help=text)
    text = "a trial on N images of each dataset: nothing is pushed or written"
    publish.add_argument("--limit", type=positive_int, metavar="N", help=text)
    publish.add_argument("--dry-run", action="store_true", help="all checks, but push and write nothing")
    publish.add_argument("--force", action="store_true", help="replace other models in the repositories")
    publish.add_argument("--device", default="auto", help=DEVICE)


def _publish(options: argparse.Namespace) -> int:
    from isanet.tools.publish import Published, publish
    from isanet.weights import hub
    from isanet.zoo.publish import pin

    models = _models(options.names)
    if not models:
        return 0
    if len(models) > 1 and "{name}" not in options.repo:
        options.wrong_call(f"{len(models)} models need a --repo with {{name}} in it, such as org/{{name}}")
    datasets = _datasets(options.data)
    trial = options.dry_run or options.limit is not None
    token = None if trial else hub.valid_token()
    if not trial:
        pin({}, manifest.manifest_path())  # whether it can be written, before hours of work
    done, failed = dict[str, Published](), list[str]()
    for weights in models:
        try:
            done[weights.name] = publish(
                weights,
                options.repo.replace("{name}", weights.name),
                datasets=datasets,
                limit=options.limit,
                token=token,
                overwrite=options.force,
                device=options.device,
                progress=False if options.quiet else None,
                say=lambda line, name=weights.name: print(f"{name}: {clean(line)}", flush=True),  # type: ignore[misc]
            )
        except (IsanetError, ValueError, OSError, RuntimeError) as error:
            failed.append(weights.name)
            print(f"{weights.name}: FAILED: {error_text(error)}", flush=True)
    if done:
        rows = [("NAME", "SHA256", "DOWNLOAD", "mIoU", "PUBLISHED", "ADDRESS")]
        for name, each in done.items():
            measured = "-" if each.miou is None else f"{100 * each.miou:.2f}"
            published = f"{100 * model_info(name).metrics['miou']:.2f}"
            rows.append((name, each.sha256[:8], megabytes(each.size), measured, published, each.address))
        print("", *aligned(rows, left=6), sep="\n")
    if failed:
        print(f"\n{len(failed)} of {len(models)} failed: {', '.join(failed)}; the same call goes on with them")
    return 1 if failed else 0


def _models(patterns: Iterable[str]) -> list[Weights]:
    """The models of these names and patterns, each once; those in the package need no publishing."""
    found = dict[str, Weights]()
    for pattern in patterns:
        names = list_models(pattern) or [pattern]
        found |= {name: model_info(name) for name in names}  # an unknown name is an error
    for name in [name for name, weights in found.items() if weights.packaged]:
        del found[name]
        print(f"{name}: is in the package; there is nothing to publish")
    return list(found.values())


def _datasets(pairs: Iterable[str]) -> dict[str, SegmentationDataset]:
    """The validation splits of datasets in folders given as LAYOUT=DIR, by the datasets' names."""
    from isanet.datasets import open_dataset
    from isanet.datasets.official import OfficialDataset
    from isanet.datasets.opening import DATASETS

    layouts = [layout for layout, kind in DATASETS.items() if issubclass(kind, OfficialDataset)]
    found: dict[str, SegmentationDataset] = {}
    for pair in pairs:
        layout, _, root = pair.partition("=")
        if layout not in layouts or not root:
            raise ValueError(f"--data takes LAYOUT=DIR with a layout of {', '.join(layouts)}, got {pair!r}")
        dataset = open_dataset(root, "val", layout=layout)
        found[dataset.name] = dataset
    return found
