"""Every released model on its way from an address to labels: `python -m tests.benchmarks.zoo [PATTERN]`.

For each, a stand-in of full size in its publisher's format is served on loopback. One new process downloads, verifies,
converts and caches it; another, offline, loads it and segments a photograph by its own protocol in float32. Printed are
the seconds of both, and the most memory that each took beyond its imports, in multiples of the released file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.loading import peak

ROOT = Path(__file__).parents[2]


def use(manifest: str) -> None:
    """Let isanet read another manifest."""
    from isanet.weights import manifest as module

    module.manifest_path = lambda: Path(manifest)


def get(name: str, manifest: str) -> None:
    """Fetch and convert a model; print seconds and bytes."""
    import torch  # noqa: F401

    from isanet.weights.manifest import model_info
    from isanet.zoo import released

    use(manifest)
    before, start = peak(), time.perf_counter()
    released.load(model_info(name), progress=False)
    print(json.dumps([time.perf_counter() - start, peak() - before]))


def segment(name: str, manifest: str) -> None:
    """Load a cached model and segment a photograph; print seconds, bytes and what was found."""
    import isanet
    import isanet.inference.segmenter
    import isanet.zoo.pretrained

    use(manifest)
    before, start = peak(), time.perf_counter()
    segmenter = isanet.Segmenter(name, device="cpu", precision="float32")
    loaded = time.perf_counter()
    result = segmenter(ROOT / "examples" / "chelsea.jpg")
    seconds = time.perf_counter() - loaded
    found = f"{segmenter.protocol.name}, {len(result.areas())} classes"
    print(json.dumps([loaded - start, seconds, peak() - before, found]))


def main() -> None:
    """Take every model that matches, one after the other."""
    import torch

    import isanet
    from tests.helpers import families
    from tests.helpers.file_server import FileServer

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'model':44} {'MB':>5} {'get s':>6} {'x file':>6} {'load s':>6} {'image s':>7} {'x file':>6}  by, found")
    with tempfile.TemporaryDirectory() as folder, FileServer() as server:
        manifest = str(families.manifest_for_stand_ins(Path(folder) / "weights.json"))
        environment = {**os.environ, "ISANET_HOME": f"{folder}/cache", "ISANET_MIRROR": server.url}
        before, path = None, Path()
        for name in isanet.list_models(*sys.argv[1:]):
            weights = isanet.model_info(name)
            if weights.packaged:
                continue
            (Path(folder) / "cache").mkdir(exist_ok=True)
            network = families.listing(weights), families.is_wrapped(weights)
            if network == before:  # writing a file takes longer than all the rest
                path = path.rename(Path(folder) / weights.file_names[0])
            else:
                if before:
                    path.unlink(missing_ok=True)
                path = families.write(weights, Path(folder) / "cache" if not weights.urls else Path(folder))
            before = network
            server.files = {f"/{path.name}": path}
            size = path.stat().st_size

            def run(what: str, name: str = name, **more: str) -> list[Any]:
                command = [sys.executable, "-m", "tests.benchmarks.zoo", what, name, manifest]
                done = subprocess.run(
                    command, cwd=ROOT, env={**environment, **more}, stdout=subprocess.PIPE, check=True
                )
                result: list[Any] = json.loads(done.stdout)
                return result

            got, memory = run("get")
            loaded, seconds, used, found = run("segment", ISANET_OFFLINE="1")
            print(
                f"{name:44} {size / 1e6:5.0f} {got:6.1f} {memory / size:6.2f} {loaded:6.2f} {seconds:7.2f} "
                f"{used / size:6.2f}  {found}",
                flush=True,
            )
            for file in (Path(folder) / "cache").iterdir():
                file.unlink()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        {"get": get, "segment": segment}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
