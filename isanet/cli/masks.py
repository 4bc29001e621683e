"""Masks from the exports of labelling tools: import-masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from isanet.cli.options import DATA, AddCommand, add_reading_options, dataset_options


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    text = "write a plain folder of images and masks from the export of a labelling tool, or any dataset"
    importing = add_command("import-masks", _import_masks, text)
    importing.add_argument("source", metavar="SOURCE", help=DATA)
    importing.add_argument("dest", type=Path, metavar="DEST", help="folder to write; it must not exist, or be empty")
    hold_out = "share of the images for val.txt, if SOURCE has no such split; default: 0.2"
    importing.add_argument("--hold-out", type=float, default=0.2, metavar="SHARE", help=hold_out)
    add_reading_options(importing)


def _import_masks(options: argparse.Namespace) -> int:
    from isanet.datasets import import_masks

    found = import_masks(options.source, options.dest, hold_out=options.hold_out, **dataset_options(options))
    print(found)
    print(f"\n{options.dest} holds images, masks, classes.txt, lists of the splits, and overlays.png")
    return 0
