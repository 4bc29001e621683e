"""Training on your own images and masks: finetune, check-masks."""

from __future__ import annotations

import argparse
import json
import os
from ast import literal_eval
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet._files import keep_existing
from isanet.cli.options import (
    DATA,
    MODEL,
    AddCommand,
    add_allow_absent,
    add_dataset_options,
    add_output_options,
    class_names_or_number,
    dataset_options,
)
from isanet.cli.printing import in_options
from isanet.labels import custom_space, label_space
from isanet.weights.manifest import list_models, unknown_model

if TYPE_CHECKING:
    from isanet.training.recipe import Recipe


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    finetune = add_command("finetune", _finetune, "fine-tune a model on your own images and masks, or on a benchmark")
    finetune.add_argument("root", metavar="DATA", help=DATA)
    start = finetune.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", help=f"model to start from: {MODEL}")
    start.add_argument("--backbone", help="ImageNet backbone to start from: resnet50 or resnet101")
    add_output_options(finetune, "finetuned", force="discard the earlier run and start over")
    finetune.add_argument("--recipe", metavar="NAME|FILE", help="recipe of a model of the zoo, or a recipe.json")
    fields = "override recipe fields: epochs=20 lr=0.001 crop=[256,256]"
    finetune.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=fields)
    finetune.add_argument("--split", help="training split; default: train, or all of a folder without that split")
    finetune.add_argument("--val-data", metavar="DIR", help="validation dataset; default: DATA")
    val_split = "validation split; default: val, or images held out of a folder without that split"
    finetune.add_argument("--val-split", help=val_split)
    hold_out = "share of the images to hold out; default: 0.2"
    finetune.add_argument("--hold-out", type=float, default=0.2, metavar="SHARE", help=hold_out)
    finetune.add_argument("--device", default="auto", help="auto (the GPU, if there is one) or cpu; default: auto")
    tracker = "experiment tracker such as tensorboard or wandb; may be repeated"
    finetune.add_argument("--tracker", action="append", default=[], help=tracker)
    add_allow_absent(finetune)
    add_dataset_options(finetune)

    check = add_command("check-masks", _check_masks, "check a folder of masks and suggest how to read it")
    check.add_argument("folder", type=Path, metavar="DIR", help="folder of masks, or what a labelling tool exported")
    check.add_argument("--images", type=Path, metavar="DIR", help="images to compare sizes with")
    classes = "comma-separated names, a label space, or a number"
    check.add_argument("--classes", type=class_names_or_number, help=classes)
    check.add_argument("--output", type=Path, metavar="FILE.png", help="write a histogram of the values")
    check.add_argument("--force", action="store_true", help="replace an existing histogram")
    add_allow_absent(check)
    check.add_argument("--json", action="store_true", help="all findings, as JSON")


def _finetune(options: argparse.Namespace) -> int:
    from isanet import datasets
    from isanet.model import ISANet
    from isanet.training.finetune import finetune
    from isanet.training.recipe import Recipe
    from isanet.zoo.pretrained import from_backbone

    recipe = _recipe(options.recipe, options.set)
    seed = Recipe.of(recipe).seed if isinstance(recipe, dict) else recipe.seed
    train, val = datasets.open_train_and_val(
        options.root,
        options.val_data,
        split=options.split,
        val_split=options.val_split,
        hold_out=options.hold_out,
        seed=seed,
        **dataset_options(options),
    )
    progress = False if options.quiet else None
    model: ISANet | str = options.model
    if options.backbone is not None:
        import torch

        torch.manual_seed(seed)  # the same head when the run is resumed
        model = from_backbone(options.backbone, classes=train.classes, palette=train.palette, progress=progress)
    run = finetune(
        model,
        train,
        val,
        recipe,
        options.output,
        overwrite=options.force,
        allow_absent=options.allow_absent,
        workers=options.workers,
        device=options.device,
        trackers=options.tracker,
        progress=progress,
    )
    if os.environ.get("RANK", "0") == "0":
        print(run.report)
        print("".join(f"\n* {in_options(finding)}" for finding in run.findings))
        print(f"\n{options.output} holds the model, curves.png, overlays.png and history.csv")
    return 0


def _recipe(source: str | None, settings: Sequence[str]) -> Recipe | dict[str, Any]:
    """The recipe of a model or a file with some fields overridden; without a source these fields alone."""
    from isanet.training.recipe import Recipe

    recipe = None
    if source is None:
        pass
    elif source in list_models():
        recipe = Recipe.published(source)
    else:
        try:
            recipe = Recipe.from_json(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"--recipe {source}: no such file, and {unknown_model(source)}") from error
    fields: dict[str, Any] = {} if recipe is None else json.loads(recipe.to_json())
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, such as lr=0.001; got {setting!r}")
        fields[field] = text  # a word needs no quotation marks
        for read in (literal_eval, json.loads):  # None as in Python and in messages, null as in a recipe.json
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                fields[field] = read(text)
    checked = Recipe.of(fields)
    return fields if recipe is None else checked


def _check_masks(options: argparse.Namespace) -> int:
    from isanet.datasets.folder import read_classes
    from isanet.datasets.importing import survey
    from isanet.datasets.mask_check import check_masks
    from isanet.datasets.opening import export_layouts, folder_options, open_parts
    from isanet.datasets.wrong_arguments import require_two_classes

    folder, images = options.folder, options.images
    if images is None and folder.is_dir():
        names = {"images": "images", "masks": "masks", **folder_options(folder, {})}
        if all((folder / name).is_dir() for name in names.values()):
            if options.classes is None and (folder / "classes.txt").is_file():
                options.classes = read_classes(folder / "classes.txt")[0]
            folder, images = folder / names["masks"], folder / names["images"]
        elif "mask_suffix" in names or export_layouts(folder):
            if options.output is not None or options.classes is not None:
                options.wrong_call(f"the masks in {folder} are read without --output and --classes")
            parts = open_parts(folder)
            found = survey(parts)
            print(json.dumps(asdict(found), indent=1) if options.json else found)
            if not options.allow_absent:
                require_two_classes(next(iter(parts.values())), found.pixels)
            return 0
    classes = options.classes
    if isinstance(classes, str):
        classes = label_space(classes)
    elif isinstance(classes, list):
        classes = custom_space(classes)
    if options.output is not None:
        if options.output.suffix.lower() != ".png":
            raise ValueError(f"the histogram is a PNG; give --output a name that ends in .png, got {options.output}")
        keep_existing(options.output, overwrite=options.force)
    progress = False if options.quiet else None
    check = check_masks(folder, images=images, classes=classes, progress=progress)
    print(json.dumps(check.to_json(), indent=1) if options.json else check)
    if options.output is not None:
        check.save_histogram(options.output)
    return 1 if check.one_class and not options.allow_absent else 0
