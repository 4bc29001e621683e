"""The area of each class in every image of a folder, as CSV; images are streamed in order.

python examples/areas.py FOLDER isanet_r50_voc > areas.csv
"""

import csv
import sys

import isanet


def main(folder: str, model: str) -> None:
    """Write one row per image: its path, and the fraction of its pixels in each class of the model."""
    segmenter = isanet.Segmenter(model)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["image", *segmenter.model.classes])
    for result in segmenter.stream(folder, batch_size=4):
        areas = result.areas()
        table.writerow([result.path, *(f"{areas.get(name, 0):.4f}" for name in result.classes)])


if __name__ == "__main__":
    main(*sys.argv[1:])
