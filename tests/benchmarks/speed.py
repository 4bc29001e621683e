"""Speed, memory and labels of a full-size network in every precision: `python -m tests.benchmarks.speed [--compile]`.

`isanet benchmark` with stand-in weights in the shape of a released model, on photographs.
"""

from __future__ import annotations

import argparse

from skimage import data

import isanet
from isanet._text import aligned
from isanet.cli.options import image_size
from isanet.tools.benchmark import benchmark, machine, table
from isanet.weights.convert import convert
from isanet.zoo.networks import model_config
from tests.helpers import stand_in


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isanet_r50_voc")
    parser.add_argument("--sizes", nargs="+", type=image_size, default=[(512, 512), (1024, 2048)])
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    weights = isanet.model_info(options.model)
    model = isanet.ISANet(**model_config(weights))
    listing = f"sssegmentation_{options.model.removeprefix('isanet_')}"
    model.load_state_dict(convert(stand_in.state_dict(listing), "sssegmentation"))
    rows = benchmark(
        model.eval(),
        [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()][: options.images],
        sizes=options.sizes,
        precisions=options.precisions,
        compile=options.compile,
        repeats=options.repeats,
    )
    print(f"{options.model}, stand-in weights; {machine()}; {options.images} photographs, {options.repeats} times each")
    print(*aligned(table(rows), left=2), sep="\n")


if __name__ == "__main__":
    main()
