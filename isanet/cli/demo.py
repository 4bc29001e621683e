"""The demonstration: demo."""

from __future__ import annotations

import argparse
import io
import secrets
from pathlib import Path

from isanet._files import keep_existing, write_output
from isanet._text import aligned
from isanet.cli.options import DEVICE, AddCommand, non_negative_int


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    demo = add_command("demo", _demo, "draw a street, segment it with the packaged model and score the result")
    demo.add_argument("--seed", type=non_negative_int, help="seed of the street; default: random")
    demo.add_argument("--output", type=Path, metavar="FILE.png", help="image to write; default: demo_SEED.png")
    demo.add_argument("--force", action="store_true", help="replace an existing image")
    demo.add_argument("--device", default="auto", help=DEVICE)


def _demo(options: argparse.Namespace) -> int:
    from isanet.tools.demo import demo

    seed = secrets.randbelow(100_000) if options.seed is None else options.seed
    output = options.output or Path(f"demo_{seed}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"the image is a PNG; give --output a name that ends in .png, got {output}")
    keep_existing(output, overwrite=options.force)
    found = demo(seed, device=options.device)
    buffer = io.BytesIO()
    found.overview.save(buffer, format="PNG")
    write_output(output, buffer.getbuffer())
    matrix, classes = found.matrix, found.result.classes
    iou = {name: f"{value:.1%}" for name, value in zip(classes, matrix.iou().tolist(), strict=True)}
    rows = [(name, f"{area:.1%}", iou[name]) for name, area in found.result.areas().items()]
    print(*aligned([("CLASS", "AREA", "IOU"), *rows]), sep="\n")
    print(f"\nmIoU {matrix.miou():.1%}, pixel accuracy {matrix.pixel_accuracy():.1%}, on a street that the model has")
    print(f"never seen (seed {seed}); image: {output}")
    return 0
