"""Trying and checking isanet on this machine: demo, selftest, benchmark, doctor."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import shlex
import shutil
import sys
from pathlib import Path

from isanet._files import atomic_write, keep_existing, output_errors
from isanet._text import aligned, clean
from isanet._version import __version__
from isanet.cli.options import DEVICE, MODEL, PRECISIONS, AddCommand, image_size, non_negative_int, positive_int
from isanet.cli.printing import error_text, megabytes
from isanet.errors import DownloadError, IsanetError
from isanet.weights import cache
from isanet.weights.manifest import load_manifest, load_released
from isanet.weights.url import redacted

PACKAGES = ("torch", "torchvision", "huggingface_hub", "safetensors", "requests", "pillow", "numpy", "matplotlib")
"""Those whose versions `isanet doctor` tells."""

SETTINGS = ("ISANET_HOME", "ISANET_OFFLINE", "ISANET_MIRROR", "HF_ENDPOINT", "HF_HUB_OFFLINE", "REQUESTS_CA_BUNDLE")

ADDRESSES = ("ISANET_MIRROR", "HF_ENDPOINT")
"""Shown without what may be a password, also if they are malformed."""

SECRET_SETTINGS = ("HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
"""May hold passwords: shown as set or not."""

NEXT_STEPS = {
    "isanet segment photo.jpg --model isanet_r50_voc": "your own photograph; downloads the model once",
    "isanet demo --dataset streets": "twenty images with masks, to fine-tune on",
    "isanet finetune streets --model isanet_nano_toystreets": "minutes on a CPU",
    "isanet serve": "models on a page in the browser",
}
"""Commands that `isanet demo` ends with."""


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    demo = add_command("demo", _demo, "draw a street, segment it with the packaged model and score the result")
    demo.add_argument("--seed", type=non_negative_int, help="seed of the street; default: random")
    demo.add_argument("--output", type=Path, metavar="FILE.png", help="image to write; default: demo_SEED.png")
    demo.add_argument("--force", action="store_true", help="replace an existing image")
    dataset = "write twenty drawn images with masks to this folder instead, to try training on"
    demo.add_argument("--dataset", type=Path, metavar="DIR", help=dataset)
    demo.add_argument("--device", default="auto", help=DEVICE)

    selftest = add_command("selftest", _selftest, "run models on a drawn street and compare with the recorded answers")
    selftest.add_argument("names", nargs="+", metavar="NAME", help="models of the zoo")
    selftest.add_argument("--device", default="auto", help=DEVICE)
    selftest.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS), help="default: auto")

    text = "measure speed, memory and label agreement of each precision on this machine"
    benchmark = add_command("benchmark", _benchmark, text)
    benchmark.add_argument("model", metavar="MODEL", help=MODEL)
    images = "files, folders or glob patterns; default: drawn streets"
    benchmark.add_argument("--images", nargs="+", metavar="IMAGE", help=images)
    sizes, default = "image sizes; default: 512x512 1024x2048", [(512, 512), (1024, 2048)]
    benchmark.add_argument("--sizes", nargs="+", type=image_size, default=default, metavar="HEIGHTxWIDTH", help=sizes)
    precisions = f"{', '.join(PRECISIONS)}; default: those that suit the device"
    benchmark.add_argument("--precisions", nargs="+", choices=PRECISIONS, metavar="NAME", help=precisions)
    benchmark.add_argument("--compile", action="store_true", help="also measure compiled networks; takes minutes")
    benchmark.add_argument("--device", default="auto", help=DEVICE)
    repeats = "timed runs per image; default: 3"
    benchmark.add_argument("--repeats", type=positive_int, default=3, metavar="N", help=repeats)
    benchmark.add_argument("--json", action="store_true", help="all measurements, as JSON")

    add_command("doctor", _doctor, "check versions, cache, settings and network access")


def _demo(options: argparse.Namespace) -> int:
    from isanet.tools.demo import MODEL as PACKAGED
    from isanet.tools.demo import demo, write_dataset
    from isanet.viz.sheet import sheet_png

    if options.dataset is not None:
        write_dataset(options.dataset)
        folder = shlex.quote(str(options.dataset))
        print(
            f"{options.dataset} has images/, masks/ and classes.txt. What to do with it, and with your own like it:\n"
        )
        print(f"  isanet check-masks {folder}")
        print(f"  isanet finetune {folder} --model {PACKAGED} --output my_model")
        print(f"  isanet segment {folder}/images --model my_model")
        return 0
    seed = secrets.randbelow(100_000) if options.seed is None else options.seed
    output = options.output or Path(f"demo_{seed}.png")
    if output.suffix.lower() != ".png":
        raise ValueError(f"the image is a PNG; give --output a name that ends in .png, got {output}")
    keep_existing(output, overwrite=options.force)
    found = demo(seed, device=options.device)
    with output_errors(output), atomic_write(output) as file:
        file.write(sheet_png(found.overview))
    iou = dict(zip(found.result.classes, found.matrix.iou().tolist(), strict=True))
    rows = [(name, f"{area:.1%}", f"{iou[name]:.1%}") for name, area in found.result.areas().items()]
    print(*aligned([("CLASS", "AREA", "IOU"), *rows]), sep="\n")
    miou, accuracy = found.matrix.miou(), found.matrix.pixel_accuracy()
    print(f"\nmIoU {miou:.1%}, pixel accuracy {accuracy:.1%}, on a street that the model has")
    print(f"never seen (seed {seed}); image: {output}")
    if not options.quiet:
        print("\nWhere to go next:\n")
        for command, text in NEXT_STEPS.items():
            print(f"  {command:{max(map(len, NEXT_STEPS))}}  # {text}")
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from isanet.tools.selftest import selftest

    failed = 0
    for name in dict.fromkeys(options.names):
        try:
            found = selftest(name, device=options.device, precision=options.precision)
        except IsanetError as error:
            failed += 1
            print(f"{name}: FAILED: {error_text(error)}")
            continue
        where = f"on {found.device} in {found.precision}"
        if found.fault:
            failed += 1
            print(f"{name}: FAILED {where}: {clean(found.fault)}")
        elif found.first and (found.device, found.precision) == ("cpu", "float32"):
            print(f"{name}: recorded {where}; there was nothing to compare with yet")
        else:
            print(f"{name}: good {where}")
        if not math.isnan(found.agreement):  # the network gave labels
            least, most = found.tolerance
            print(f"  {found.agreement:.2%} of the confident pixels have the recorded label (at least {least:.1%}),")
            print(f"  the confidence differs by {found.difference:.4f} (at most {most:.4f})")
    return 1 if failed else 0


def _benchmark(options: argparse.Namespace) -> int:
    from isanet import from_pretrained
    from isanet.images.reading import read_image
    from isanet.inference.outputs import find_images
    from isanet.inference.runtimes.choice import find_device
    from isanet.tools.benchmark import benchmark, drawn_images, machine, table

    images = [read_image(path) for path in find_images(options.images)] if options.images else drawn_images()
    model = from_pretrained(options.model)
    device = find_device(options.device)
    measured = benchmark(
        model,
        images,
        sizes=options.sizes,
        precisions=options.precisions,
        compile=options.compile,
        device=options.device,
        repeats=options.repeats,
        progress=False if options.quiet else None,
    )
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [each._asdict() for each in measured]}, indent=1))
        return 0
    print(f"{options.model} on {device} ({machine()}), {len(images)} images, {options.repeats} times each")
    print(*aligned(table(measured), left=2), sep="\n")
    print("baseline: the network as loaded, eager float32, all logits at full size; SPEED and LABELS compare with it")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from isanet.weights import download

    _print_versions()
    healthy = _check_models()
    print("settings:")
    for name in SETTINGS:
        value = os.environ.get(name, "")
        print(f"  {name}={clean(redacted(value) if name in ADDRESSES else value)}")
    for name in SECRET_SETTINGS:
        print(f"  {name} is {'set' if os.environ.get(name) or os.environ.get(name.lower()) else 'not set'}")
    if variable := download.offline():
        print(f"addresses: not asked, because {variable} is set")
        return 0 if healthy else 1
    return 0 if _check_addresses() and healthy else 1


def _print_versions() -> None:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    print(f"isanet {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    for package in PACKAGES:
        try:
            print(f"  {package} {version(package)}")
        except PackageNotFoundError:
            print(f"  {package} is not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    print(f"devices: {', '.join([*devices, 'cpu'])}, {torch.get_num_threads()} threads")


def _check_models() -> bool:
    """Prints the state of the cache and of the packaged models; whether the latter are good."""
    from isanet.zoo import released

    folder = cache.home()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = "writable" if os.access(existing, os.W_OK) else "NOT writable: set ISANET_HOME to another folder"
    print(f"cache: {folder} ({writable}, {megabytes(shutil.disk_usage(existing).free)} free)")
    cached = [name for name in load_released() if cache.cached_file(name)]
    print(f"  cached: {', '.join(cached) or 'nothing'}")
    good = True
    for weights in load_manifest().values():
        if weights.packaged:
            answer = "good"
            try:
                released.verify(weights)
            except IsanetError as error:
                good, answer = False, f"FAILED: {error_text(error)}"
            print(f"  in the package: {weights.name}, {answer}")
    return good


def _check_addresses() -> bool:
    """Prints how the addresses of one model and the Hub answer; whether any does."""
    from isanet.weights import download, http

    print("addresses:")
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    urls = next((weights.urls for weights in load_manifest().values() if not weights.packaged), ())
    reached = False
    for url in [*download.addresses(urls), hub]:
        try:
            answer = http.probe(url)
            reached = True
        except DownloadError as error:
            answer = f"FAILED: {error_text(error)}"
        print(f"  {clean(redacted(url))}: {clean(answer)}")
    return reached
