"""Time and memory of loading a cached model, and of start-up: `python -m tests.benchmarks.loading [REPEATS]`.

Stand-in checkpoints of full size are written as torch.save writes them (upstream's weights, no optimizer), and cached.
Then, in turn and each time in a new process: upstream's code (a randomly initialized network, torch.load,
load_state_dict) and ours, hash check included. Times begin after imports. Peak memory is counted from after `import
torch`, in multiples of the weights; Linux only. The files are in the page cache: no disk is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

NAMES = ("isanet_r50_voc", "isanet_r101_voc")
STARTS = {
    "python -c pass": ["-c", "pass"],
    "isanet list": ["-m", "isanet.cli", "list"],
    "import torch": ["-c", "import torch"],
    "import torch, isanet": ["-c", "import torch, isanet"],
}


def prepare(name: str, file: Path) -> None:
    """Write a checkpoint where the cache looks for one, and convert it."""
    import torch

    from isanet.weights.manifest import model_info
    from isanet.zoo.released import load
    from tests.helpers import stand_in

    torch.save({"model": stand_in.state_dict(name.replace("isanet", "sssegmentation"))}, file)
    load(model_info(name), progress=False)


def upstream(name: str, file: Path) -> None:
    """Load a checkpoint as upstream's own code does, and print time and memory."""
    import torch

    before = peak()
    from isanet.model import ISANet
    from isanet.weights import convert
    from isanet.weights.manifest import model_info
    from isanet.zoo.networks import model_config

    config = model_config(model_info(name))
    touch_memory()
    start = time.perf_counter()
    model = ISANet(**config)
    initialized = time.perf_counter()
    checkpoint = torch.load(file, map_location="cpu")
    read = time.perf_counter()
    state = convert.convert(checkpoint["model"], "sssegmentation")  # upstream's own network needs no other names
    renamed = time.perf_counter()
    model.load_state_dict(state)
    end = time.perf_counter()
    print(
        json.dumps(
            {"time": end - renamed + read - start, "of it initialization": initialized - start, "peak": peak() - before}
        )
    )


def ours(name: str) -> None:
    """Load a cached model, and print time and memory."""
    import torch  # noqa: F401  the peak is counted from here

    before = peak()
    from isanet.weights import cache
    from isanet.zoo.pretrained import from_pretrained

    touch_memory()
    start = time.perf_counter()
    from_pretrained(name)
    seconds, high = time.perf_counter() - start, peak()
    path = cache.cached_file(name)
    assert path is not None
    data, hashing = path.read_bytes(), []
    for _ in range(3):
        start = time.perf_counter()
        blake3(data)
        hashing.append(time.perf_counter() - start)
    print(json.dumps({"time": seconds, "of it hashing": min(hashing), "peak": high - before}))


def touch_memory() -> None:
    """Let the operating system have a gigabyte of free memory that was just in use."""
    subprocess.run([sys.executable, "-c", "import numpy; numpy.ones(1 << 30, numpy.uint8)"], check=True)


def peak() -> int:
    """Peak memory of this process so far, in bytes; getrusage would count its parent process too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def python(*arguments: str) -> tuple[float, str]:
    """Seconds of a new process, and what it printed."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, result.stdout


def row(name: str, values: Sequence[float], unit: str) -> None:
    print(f"  {name:44} {min(values):8.3f} {statistics.median(values):8.3f} {max(values):8.3f} {unit}", flush=True)


def main(repeats: int) -> None:
    from importlib.metadata import version

    from isanet.weights.manifest import model_info

    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores; "
        f"torch {version('torch')}, {repeats} repeats"
    )
    print(f"  {'':44} {'min':>8} {'median':>8} {'max':>8}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ISANET_HOME": folder, "ISANET_OFFLINE": "1"}
        for name in NAMES:
            weights = model_info(name)
            file = str(Path(folder, weights.file_names[0]))
            python("-m", __spec__.name, "prepare", name, file)
            found: dict[str, dict[str, list[float]]] = {"upstream": {}, "from_pretrained": {}}
            for _ in range(repeats):
                for case, call in (("upstream", ("upstream", name, file)), ("from_pretrained", ("ours", name))):
                    for what, value in json.loads(python("-m", __spec__.name, *call)[1]).items():
                        found[case].setdefault(what, []).append(value)
            print(f"{name}: {weights.payload / 2**20:.0f} MiB of weights")
            for case, figures in found.items():
                row(case, figures["time"], "s")
                for what, values in figures.items():
                    if what == "peak":
                        row("  peak of memory", [value / weights.payload for value in values], "x the weights")
                    elif what != "time":
                        row(f"  {what}", values, "s")
            theirs, own = (figures["time"] for figures in found.values())
            print(f"  ours takes {min(own) / min(theirs):.2f} of upstream's time (minima), "
                  f"{statistics.median(own) / statistics.median(theirs):.2f} (medians)")  # fmt: skip
        print("starting")
        starts: dict[str, list[float]] = {start: [] for start in STARTS}
        for _ in range(repeats):
            for start, arguments in STARTS.items():
                starts[start].append(python(*arguments)[0])
        for start, values in starts.items():
            row(start, values, "s")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prepare", name, file]:
            prepare(name, Path(file))
        case ["upstream", name, file]:
            upstream(name, Path(file))
        case ["ours", name]:
            ours(name)
        case arguments:
            main(int(arguments[0]) if arguments else 7)
