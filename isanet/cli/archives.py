"""Archives for machines without network access: pack, install."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from isanet.cli.options import AddCommand
from isanet.weights import cache


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    pack = add_command("pack", _pack, "pack models into an archive for a machine without network access")
    pack.add_argument("names", nargs="+", metavar="NAME", help="models, or backbones such as resnet50_v1c")
    pack.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="archive to write")
    pack.add_argument("--force", action="store_true", help="replace an existing archive")

    text = "install the models of an archive into the cache, without network access"
    install = add_command("install", _install, text)
    install.add_argument("archive", type=Path, metavar="FILE.zip", help="archive written by isanet pack")
    install.add_argument("--force", action="store_true", help="replace models that are recorded with other hashes")


def _pack(options: argparse.Namespace) -> int:
    from isanet.zoo import archive

    records = archive.pack(options.names, options.output, overwrite=options.force)
    with options.output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{options.output}: {', '.join(records)}; {options.output.stat().st_size:,} bytes,")
    print(f"  sha256 {digest}")
    print(f"On the other machine: isanet install {options.output.name}")
    return 0


def _install(options: argparse.Namespace) -> int:
    from isanet.zoo import archive

    for name, new in archive.install(options.archive, force=options.force).items():
        print(f"{name} is ready: {cache.cached_file(name)}" if new else f"{name} was there already, and was kept")
    return 0
