"""Choosing a model of the zoo: list and recommend."""

from __future__ import annotations

import argparse
import json
import re

from isanet._text import aligned, plural
from isanet.cli.options import AddCommand, positive_int
from isanet.weights import cache
from isanet.weights.choosing import SORTS, by_dataset, by_hand, recommend, select
from isanet.weights.manifest import Weights, model_info


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    listing = add_command("list", _list, "list the models of the zoo")
    listing.add_argument("pattern", nargs="?", default="*", help="filter by glob pattern, such as '*cityscapes*'")
    _add_filters(listing)
    listing.add_argument("--family", metavar="NAME", help="such as sssegmentation, mmseg, paddleseg, openseg, bpkd")
    listing.add_argument("--sort", choices=SORTS, help="best first within a dataset; default: in the manifest's order")
    listing.add_argument("--json", action="store_true", help="all metadata, as JSON")

    text = "recommend models: the best, and cheaper ones that are worth a look"
    recommending = add_command("recommend", _recommend, text)
    _add_filters(recommending)
    text = "most parameters, such as 40M"
    recommending.add_argument("--max-parameters", type=_amount, metavar="N", help=text)
    text = "most billions of multiply-adds for one typical image of the dataset"
    recommending.add_argument("--max-gmacs", type=float, metavar="N", help=text)
    text = "most models of a dataset; default: 3"
    recommending.add_argument("--count", type=positive_int, default=3, metavar="N", help=text)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="NAME", help="voc, ade20k, cityscapes, context59 or toystreets")
    parser.add_argument("--backbone", metavar="NAME", help="such as resnet50 or r50")
    text = "commercial: only weights that may be used commercially; their datasets have terms of their own"
    parser.add_argument("--license", "--licence", choices=("commercial",), help=text)


def _amount(text: str) -> float:
    """`40M`, `40e6`, `40000000`."""
    number = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([kmg]?)", text.lower())
    if not number or number[1].count(".") > 1 or number[1].startswith((".", "e")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 40M or 40000000")
    return float(number[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[number[2]]


def _list(options: argparse.Namespace) -> int:
    filters = {name: getattr(options, name) for name in ("dataset", "backbone", "family", "license")}
    models = select(options.pattern, **filters)
    if options.sort:
        models.sort(key=SORTS[options.sort])
    groups = by_dataset(models)
    if options.json:
        print(json.dumps({each.name: vars(each) for group in groups.values() for each in group}, indent=1))
        return 0
    rows = [_row(weights) for group in groups.values() for weights in group]
    head, *lines = aligned([("NAME", "mIoU", "PARAMETERS", "GMACS", "LICENSE", "CACHED"), *rows])
    for dataset, group in groups.items():
        metrics = group[0].metrics
        print(f"{metrics['dataset']} {metrics['split']}: {plural(len(group), 'model')} (--dataset {dataset})")
        print(head, *lines[: len(group)], "", sep="\n")
        del lines[: len(group)]
    print("mIoU in percent, each by the model's own protocol. GMACS: billions of multiply-adds for one typical")
    print("image of the dataset. LICENSE: that of the weights; the datasets have terms of their own.")
    return 0


def _row(weights: Weights) -> tuple[str, ...]:
    cached = "packaged" if weights.packaged else "yes" if cache.cached_file(weights.name) else "no"
    return (
        weights.name,
        f"{100 * weights.metrics['miou']:.2f}",
        f"{weights.parameters / 1e6:.1f} M",
        f"{weights.gmacs:,.1f}",
        "" if weights.commercial else "academic",
        "by hand" if cached == "no" and by_hand(weights) else cached,
    )


def _recommend(options: argparse.Namespace) -> int:
    found = recommend(
        options.dataset,
        max_parameters=options.max_parameters,
        max_gmacs=options.max_gmacs,
        commercial=options.license is not None,
        backbone=options.backbone,
        count=options.count,
    )
    for recommendation in found:
        weights = model_info(recommendation.name)
        print(f"{weights.name}  ({weights.parameters / 1e6:.1f} M parameters, {weights.gmacs:,.1f} G multiply-adds)")
        print(f"    {recommendation.reason}")
    return 0
