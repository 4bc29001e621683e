"""Evaluating a model on a dataset: evaluate."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from isanet._text import clean
from isanet.cli.options import (
    DATA,
    RUNNABLE,
    AddCommand,
    add_allow_absent,
    add_dataset_options,
    add_inference_options,
    add_output_options,
    dataset_options,
    positive_int,
)


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    evaluate = add_command("evaluate", _evaluate, "evaluate a model on a dataset")
    evaluate.add_argument("root", metavar="DATA", help=DATA)
    evaluate.add_argument("--model", required=True, help=RUNNABLE)
    evaluate.add_argument("--split", help="split to evaluate; default: val, or all of your own folder")
    add_output_options(evaluate, "evaluated", force="discard the earlier report and start over")
    evaluate.add_argument("--limit", type=positive_int, metavar="N", help="only N images, spread over the dataset")
    evaluate.add_argument("--boundary", action="store_true", help="also compute the boundary F-score")
    predictions = "also write label maps, as the benchmark's evaluation server expects them"
    evaluate.add_argument("--predictions", metavar="DIR", help=predictions)
    mapping = 'JSON file of classes to merge, such as {"vehicle": ["car", "bus"]}'
    evaluate.add_argument("--mapping", type=Path, metavar="FILE", help=mapping)
    add_allow_absent(evaluate)
    add_inference_options(evaluate, precision="float32", runtime=None)
    add_dataset_options(evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from isanet import datasets
    from isanet.evaluation.evaluate import evaluate, label_maps

    dataset = datasets.open_dataset(options.root, options.split, **dataset_options(options))
    mapping = None if options.mapping is None else _read_mapping(options.mapping)
    shared = ("protocol", "device", "precision", "runtime", "batch_size")
    running: dict[str, Any] = {name: getattr(options, name) for name in shared}
    running |= {"overwrite": options.force, "progress": False if options.quiet else None}
    if not dataset.has_masks and options.predictions is not None:
        if given := [name for name in ("limit", "mapping", "boundary") if getattr(options, name)]:
            options.wrong_call(f"{dataset} has no masks: its label maps are written without --{given[0]}")
        label_maps(options.model, dataset, options.predictions, **running)
        text = f"{len(dataset)} label maps are in {options.predictions}; the ground truth of {dataset} is not published"
        print(clean(text))
        return 0
    distributed = torch.distributed.is_torchelastic_launched()
    if distributed:
        torch.distributed.init_process_group("gloo")  # whatever the model's device: only counts are sent
    try:
        first = not distributed or torch.distributed.get_rank() == 0
        if not first:
            logging.getLogger("isanet").setLevel(logging.ERROR)  # the first process reports for all
        report = evaluate(
            options.model,
            dataset,
            mapping=mapping,
            limit=options.limit,
            boundary=options.boundary,
            allow_absent=options.allow_absent,
            output=options.output,
            predictions=options.predictions,
            workers=options.workers,
            **running,
        )
    finally:
        if distributed:
            torch.distributed.destroy_process_group()
    if first:
        print(report)
        print(f"\nReport with images: {options.output / 'index.html'}")
    return 0


def _read_mapping(path: Path) -> dict[str, list[str] | None]:
    """Which classes are merged, from a JSON file; `evaluate` checks the names."""
    from isanet.weights.checkpoint import unique_keys

    try:
        mapping: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
        if not isinstance(mapping, dict):
            raise ValueError("expected an object")
    except ValueError as error:
        raise ValueError(f'{path} is no mapping such as {{"vehicle": ["car", "bus"]}}: {error}') from error
    return mapping
