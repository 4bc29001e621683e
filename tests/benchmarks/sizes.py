"""How time and memory of a network grow with the image: `python -m tests.benchmarks.sizes [--precision bfloat16]`.

The network is `isanet_r50_voc` with stand-in weights, on one thread, one image at a time: `coarse_logits`, which is
all but resizing. The baseline is the loaded network (eager float32); with `--precision` it is the inference-optimized
copy, with a gigabyte for its maps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import isanet
from isanet.inference.fast.optimize import PRECISIONS, optimize
from isanet.weights.convert import convert, infer_architecture
from tests.benchmarks.cost import cost
from tests.helpers import stand_in

SIZES = ((1024, 1024), (1024, 2048), (2048, 2048), (2048, 4096))
"""1, 2, 4 and 8 megapixels."""

Network = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    height: int
    width: int
    seconds: list[float]
    bytes: int


def eager() -> Network:
    """The loaded network: the baseline."""
    state = convert(stand_in.state_dict("sssegmentation_r50_voc"), "sssegmentation")
    model = isanet.ISANet(**infer_architecture(state))
    model.load_state_dict(state)
    return torch.inference_mode()(model.eval().coarse_logits)


def fast(precision: str) -> Network:
    """The inference-optimized copy."""
    model = isanet.ISANet(num_classes=21)
    state = convert(stand_in.state_dict("sssegmentation_r50_voc"), "sssegmentation")
    model.load_state_dict(state)
    network = optimize(model.eval(), precision, max_memory=1 << 30)
    return torch.inference_mode()(network.coarse_logits)


def ready(build: Callable[[], Network], height: int, width: int) -> Callable[[], Tensor]:
    run, image = build(), stand_in.image(height, width)
    run(stand_in.image(128, 128))
    return partial(run, image)


def measure(build: Callable[[], Network], rounds: int) -> list[Row]:
    """Seconds and bytes beyond weights and image, for each size in turn; see `tests.benchmarks.cost`.

    Args:
        build: A module-level function, called in other processes. It returns the network: (1, 3, H, W), normalized,
            float32 -> logits.
        rounds: How often each size is measured.
    """
    measured: dict[tuple[int, int], list[tuple[float, int]]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            measured[size].append(cost(ready, build, *size))
    return [
        Row(*size, [costs[0] for costs in found], max(costs[1] for costs in found)) for size, found in measured.items()
    ]


def show(rows: list[Row]) -> None:
    print(f"{'image':>10} {'min s':>8} {'median s':>9} {'ratio':>6} {'peak MB':>8} {'ratio':>6}")
    for row in rows:
        print(
            f"{f'{row.height}x{row.width}':>10} {min(row.seconds):8.2f} {statistics.median(row.seconds):9.2f} "
            f"{min(row.seconds) / min(rows[0].seconds):6.2f} {row.bytes / 1e6:8.0f} {row.bytes / rows[0].bytes:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="baseline", choices=("baseline", *PRECISIONS))
    options = parser.parse_args()
    machine = f"torch {torch.__version__}, one thread, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{options.precision}; {machine}; {options.rounds} rounds")
    show(measure(eager if options.precision == "baseline" else partial(fast, options.precision), options.rounds))


if __name__ == "__main__":
    main()
