"""export."""

from __future__ import annotations

import argparse

from isanet._text import percent
from isanet.cli.options import MODEL, AddCommand
from isanet.cli.printing import megabytes


def add_commands(add_command: AddCommand) -> None:
    """Adds the command of this file."""
    export = add_command("export", _export, "write a model as a file for ONNX Runtime, OpenVINO or torch.export")
    export.add_argument("model", metavar="NAME", help=MODEL)
    export.add_argument("target", metavar="OUT", help="file to write: .onnx, .xml (OpenVINO) or .pt2 (torch.export)")
    text = "of the weights; .xml also takes float16 and int8; default: float32"
    export.add_argument("--precision", choices=("float32", "float16", "int8"), default="float32", help=text)
    text = "the whole job: an RGB image goes in, the label of every pixel comes out"
    export.add_argument("--whole", action="store_true", help=text)
    text = "folder with a few images like those to come, for int8; the first eight are used"
    export.add_argument("--calibration", metavar="DIR", default=(), help=text)
    export.add_argument("--force", action="store_true", help="replace an existing OUT")


def _export(options: argparse.Namespace) -> int:
    from isanet.exporting.write import export

    exported = export(
        options.model,
        options.target,
        precision=options.precision,
        whole=options.whole,
        calibration=options.calibration,
        overwrite=options.force,
    )
    size = sum(file.stat().st_size for file in exported.files)
    print(f"{' and '.join(map(str, exported.files))}: {megabytes(size)}")
    print(f"{percent(exported.agreement)} of the labels are the model's own, on {exported.images}")
    return 0
