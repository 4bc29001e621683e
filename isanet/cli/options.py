"""Arguments that several commands share, and the types that arguments are parsed into."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isanet.labels import LABEL_SPACES, OFFICIAL_SPACES, label_space
from isanet.protocols import PROTOCOLS

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
"""As in isanet.inference.fast.optimize, which would import torch."""

RUNTIMES = ("torch", "openvino", "onnxruntime")
"""As in isanet.inference.runtimes.choice, which would import torch."""

EXPORTS = ("cvat", "roboflow", "supervisely", "label-studio", "labelme", "via", "coco")
LAYOUTS = ("auto", "voc", "ade20k", "cityscapes", "context59", "folder", *EXPORTS)
"""As in `isanet.datasets.open_dataset`."""

MODEL = "name in the zoo, org/name on the Hugging Face Hub, folder or file"
RUNNABLE = f"{MODEL}, .onnx or .xml of isanet export too"
DATA = "folder with VOC, ADE20K, Cityscapes or Pascal Context, your own images and masks, or a labelling tool's export"
VALUE_RANGE = "values of images of more than 8 bits that become black and white, such as 0,4095"
DEVICE = "auto, cpu, cuda, cuda:1 or mps; default: auto"

Run = Callable[[argparse.Namespace], int]
"""Runs a command with its options; returns the exit code."""


AddCommand = Callable[[str, Run, str], argparse.ArgumentParser]
"""Adds a command: its name, the function that runs it, its one-line help; returns its parser."""


def add_output_options(parser: argparse.ArgumentParser, folder: str, *, force: str) -> None:
    """Adds the folder to write to, with this default, and `--force` with its help text."""
    text = f"folder to write to; default: {folder}"
    parser.add_argument("--output", type=Path, default=Path(folder), metavar="DIR", help=text)
    parser.add_argument("--force", action="store_true", help=force)


def add_allow_absent(parser: argparse.ArgumentParser) -> None:
    """Adds `--allow-absent`."""
    parser.add_argument("--allow-absent", action="store_true", help="go on if only one class occurs in all masks")


def add_inference_options(
    parser: argparse.ArgumentParser, precision: str, *, runtime: str | None, int8: bool = False
) -> None:
    """Adds how a model is run: protocol, device, precision and runtime with these defaults, batch size."""
    protocols = f"how an image goes through the network: auto (what the model is meant for), {', '.join(PROTOCOLS)}"
    choices = ("auto", *PROTOCOLS)
    parser.add_argument(
        "--protocol", default="auto", choices=choices, metavar="NAME", help=f"{protocols}; default: auto"
    )
    add_device_options(parser, precision, runtime=runtime, int8=int8)
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per batch; default: 1")


def add_device_options(
    parser: argparse.ArgumentParser, precision: str, *, runtime: str | None, int8: bool = False
) -> None:
    """Adds what a model is run on: device, precision and runtime with these defaults."""
    parser.add_argument("--device", default="auto", help=DEVICE)
    precisions = ("auto", *PRECISIONS[: 4 if int8 else 3])
    parser.add_argument("--precision", default=precision, choices=precisions, help=f"default: {precision}")
    chosen = "the fastest installed" if runtime else "torch, the reference; of an exported file what reads it"
    parser.add_argument("--runtime", default=runtime, choices=("auto", *RUNTIMES), help=f"default: {chosen}")


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a dataset is read, and by how many processes."""
    workers = "data loading processes; default: by cores and device"
    parser.add_argument("--workers", type=non_negative_int, metavar="N", help=workers)
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isanet.datasets.open_dataset`."""
    parser.add_argument("--layout", default="auto", choices=LAYOUTS, help="dataset layout; default: detected")
    parser.add_argument("--sbd", metavar="DIR", help="folder with SBD, for VOC's trainaug split")
    add = parser.add_argument_group("your own images and masks").add_argument
    add("--classes", type=class_names, metavar="NAMES", help="comma-separated class names, or a label space")
    add("--images", metavar="NAME", help="name of the folder of images in DATA; default: found, such as images or imgs")
    add("--masks", metavar="NAME", help="name of the folder of masks in DATA; default: found, such as masks or labels")
    add("--mask-suffix", metavar="TEXT", help="what masks in the images' folder have behind the images' names: _mask")
    add("--ids", type=mask_values, metavar="VALUES", help="mask values of the classes: 1-150, 0,255 or official")
    add("--ignore", type=ignored_values, metavar="VALUES", help="mask values to ignore, or rest, or none; default: 255")
    unlabeled = "what is not annotated in an export of a labelling tool; default: background"
    add("--unlabeled", choices=("background", "ignored"), help=unlabeled)
    add("--value-range", type=value_range, metavar="BLACK,WHITE", help=VALUE_RANGE)
    add("--colors", type=colors, help="mask colors of the classes: #ff0000,#00ff00 or a label space")


def dataset_options(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `isanet.datasets.open_dataset` for what `add_reading_options` added."""
    names = ("layout", "sbd", "classes", "images", "masks", "mask_suffix", "ids", "ignore", "unlabeled", "colors",
             "value_range")  # fmt: skip
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def positive_int(text: str) -> int:
    """`1`, `2`, ..."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def non_negative_int(text: str) -> int:
    """`0`, `1`, ..."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def image_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH`."""
    height, _, width = text.partition("x")
    return positive_int(height), positive_int(width)


def class_names(text: str) -> list[str] | str:
    """The name of a label space, or comma-separated names of classes."""
    return text if text in LABEL_SPACES or text in OFFICIAL_SPACES else [name.strip() for name in text.split(",")]


def class_names_or_number(text: str) -> list[str] | str | int:
    """The number of classes, or what `class_names` takes."""
    return int(text) if text.isdecimal() else class_names(text)


def mask_values(text: str) -> list[int] | str:
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


def value_range(text: str) -> tuple[float, float]:
    """`0,4095`."""
    black, white = map(float, text.split(","))
    return black, white


def ignored_values(text: str) -> list[int] | str:
    """`0,255`, `none` or `rest`."""
    if text == "none":
        return []
    return text if text == "rest" else [int(value) for value in text.split(",")]


def colors(text: str) -> list[tuple[int, int, int]]:
    """The palette of a label space, or comma-separated `#rrggbb`."""
    if text in LABEL_SPACES or text in OFFICIAL_SPACES:
        return list(label_space(text).palette)
    colors = []
    for part in text.split(","):
        red, green, blue = bytes.fromhex(part.strip().removeprefix("#"))
        colors.append((red, green, blue))
    return colors
