"""Every runtime in every precision: `python -m tests.benchmarks.runtimes [--model NAME] [--sizes 512x512 ...]`.

A process for each way, with stand-in weights in the shape of a released model (or the packaged model), is given the
same photographs; the ways take turns, image by image, so that a slow minute of the machine is everyone's. What is timed
is `Segmenter.predict`: the network and the labels, not reading and preparing. The baseline is the eager network in
float32 with logits at full size and argmax. Memory is what the process's peak grew by since the model was loaded: maps,
and the copy of the weights that the way makes.

`ONEDNN_MAX_CPU_ISA=AVX2` keeps torch, and OpenVINO, from the newer instructions; ONNX Runtime heeds nothing of the
kind, so its row is then left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from isanet._text import aligned
from isanet.cli.options import image_size

BASELINE = "eager float32"
PAUSE = 0.3
"""Seconds between turns, in which the threads of the last one stop to wait for work."""


def ways(precisions: list[str]) -> list[dict[str, Any]]:
    """Options of `Segmenter` for each way, the baseline (none) first."""
    found: list[dict[str, Any]] = [{}]
    for precision in precisions:
        for runtime in ("torch", "openvino", "onnxruntime"):
            if (runtime == "onnxruntime" and precision != "float32") or (runtime == "torch" and precision == "int8"):
                continue
            if runtime == "onnxruntime" and "ONEDNN_MAX_CPU_ISA" in os.environ:
                continue
            found.append({"runtime": runtime, "precision": precision})
            if runtime == "torch":
                found.append({"runtime": runtime, "precision": precision, "compile": True})
    return found


def name_of(way: dict[str, Any]) -> str:
    return " ".join([way["runtime"], way["precision"], *["compiled"] * ("compile" in way)]) if way else BASELINE


def work(model_name: str, size: tuple[int, int], images: int, way: dict[str, Any], folder: Path) -> None:
    """The process of one way: for each line that comes in, an image goes through, and its seconds go out."""
    import torch
    from PIL import Image, ImageOps
    from skimage import data

    import isanet
    from isanet.inference.predict import prepare
    from isanet.tools.benchmark import _peak, _start_of_peak
    from isanet.weights.convert import convert
    from isanet.zoo.networks import model_config
    from tests.helpers import stand_in

    if model_name == "isanet_nano_toystreets":
        model = isanet.from_pretrained(model_name)
    else:
        model = isanet.ISANet(**model_config(isanet.model_info(model_name)))
        state = stand_in.state_dict(f"sssegmentation_{model_name.removeprefix('isanet_')}")
        model.load_state_dict(convert(state, "sssegmentation"))
    model.eval()
    sizing = {"short_edge", "long_edge", "pad_to", "pad_color"}
    model.preprocessing = {key: value for key, value in (model.preprocessing or {}).items() if key not in sizing}
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    photographs = [np.asarray(ImageOps.fit(Image.fromarray(each), size[::-1])) for each in sources]
    inputs = [prepare(each, model.preprocessing) for each in photographs[:images]]
    options = {**way, "calibration": photographs[images:] or photographs} if way.get("precision") == "int8" else way
    before, started = _start_of_peak(torch.device("cpu")), time.perf_counter()
    segmenter = isanet.Segmenter(model, "cpu", **({"precision": "float32", "runtime": "torch"} | options))

    @torch.inference_mode()
    def labels(index: int) -> Any:
        if way:
            (prediction,) = segmenter.predict([inputs[index]])
            return prediction[0].numpy()  # type: ignore[index]
        return model(inputs[index].tensors[0][None]).argmax(1)[0].to(torch.uint8).numpy()

    labels(0)
    startup = time.perf_counter() - started
    np.save(folder / f"{name_of(way)}.npy", np.stack([labels(index) for index in range(images)]))
    peak = 0 if before is None else _peak(torch.device("cpu")) - before
    print(json.dumps({"startup": startup, "memory": peak}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        labels(int(line))
        print(time.perf_counter() - started, flush=True)


def measure(options: argparse.Namespace, size: tuple[int, int]) -> list[tuple[str, ...]]:
    """A row for each way, in one size."""
    rows = []
    with TemporaryDirectory() as folder:
        processes = []
        for way in ways(options.precisions):
            call = [sys.executable, "-m", "tests.benchmarks.runtimes", "--work", folder, json.dumps(way), *sys.argv[1:]]
            call += ["--sizes", "x".join(map(str, size))]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = subprocess.Popen(call, **pipes)  # type: ignore[call-overload]
            facts = process.stdout.readline()
            if facts:  # one after the other: loading all at once would swap
                processes.append((name_of(way), process, json.loads(facts), []))
            else:
                print(f"{name_of(way)}: could not run", file=sys.stderr)
        for _ in range(options.repeats):
            for index in range(options.images):
                for _, process, _, seconds in processes:
                    time.sleep(PAUSE)
                    print(index, file=process.stdin, flush=True)
                    seconds.append(float(process.stdout.readline()))
        expected = np.load(Path(folder, f"{BASELINE}.npy"))
        baseline = statistics.median(processes[0][3])
        for name, process, facts, seconds in processes:
            process.communicate()
            same = (np.load(Path(folder, f"{name}.npy")) == expected).mean(axis=(1, 2))
            median = statistics.median(seconds)
            times = (f"{value:.3f}" for value in (median, min(seconds), max(seconds)))
            rows.append(
                (
                    "{}x{}".format(*size),
                    name,
                    *times,
                    f"{baseline / median:.2f}x",
                    f"{facts['startup']:.1f}",
                    f"{facts['memory'] / 2**20:,.0f}",
                    f"{same.mean():.2%}",
                    f"{same.min():.2%}",
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isanet_r50_voc")
    parser.add_argument("--sizes", nargs="+", type=image_size, default=[(512, 512), (1024, 2048)])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=2, help="of four photographs; the others calibrate int8")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        folder, way = options.work
        work(options.model, options.sizes[0], options.images, json.loads(way), Path(folder))
        return
    from isanet.tools.benchmark import machine

    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "all instructions")
    print(f"{options.model}; {machine()}, {isa}; {options.images} photographs, {options.repeats} times each")
    head = ("SIZE", "WAY", "MEDIAN s", "MIN", "MAX", "SPEED", "STARTUP s", "MEMORY MiB", "LABELS", "WORST")
    for size in options.sizes:
        print(*aligned([head, *measure(options, size)], left=2), sep="\n", flush=True)


if __name__ == "__main__":
    main()
