"""What an evaluation has counted: image by image and in total, saved while it runs, gathered from all processes.

Each process saves its counts as `progress-<rank>.json` in the folder of the report. A later run of the same evaluation,
by any number of processes, takes them up: the first process adds all files into its own and removes the others. An
image is in the total and in the list of images, or in neither: while one is partially counted, nothing is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet._files import keep_existing, output_errors, write_output
from isanet._processes import Processes
from isanet.errors import OutputError
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix


@dataclass(frozen=True, order=True)
class ImageCounts:
    """One image: its index in the dataset, mIoU and pixel accuracy (NaN if all is ignored), ignored pixels."""

    index: int
    miou: float
    pixel_accuracy: float
    ignored: int


class Counts:
    """What has been counted so far.

    Attributes:
        matrix: Pixels of all images.
        boundary: Boundary F-scores of all images; None if not asked for.
        images: Each counted image.
        seconds: Time spent counting, over all runs.
        partial: An image is partially counted: Ctrl-C came in the middle of it.
    """

    partial = False

    def __init__(self, num_classes: int, device: torch.device, *, boundary: bool) -> None:
        self.matrix = ConfusionMatrix(num_classes, device=device)
        self.boundary = BoundaryScore(num_classes) if boundary else None
        self.images: list[ImageCounts] = []
        self.seconds = 0.0

    def add(self, index: int, prediction: Tensor, ground_truth: Tensor) -> None:
        """Count one image: (H, W) class indices, the prediction on the device of the matrix."""
        matrix = ConfusionMatrix(self.matrix.num_classes, device=self.matrix.matrix.device)
        matrix.update(prediction, ground_truth)
        ignored = ground_truth.numel() - int(matrix.matrix.sum())
        image = ImageCounts(index, matrix.miou(), matrix.pixel_accuracy(), ignored)
        self.partial = True
        self.matrix.merge(matrix)
        if self.boundary is not None:
            self.boundary.update(prediction, ground_truth)
        self.images.append(image)
        self.partial = False

    def to_json(self) -> dict[str, Any]:
        """Everything as values that Python's `json` writes and reads, NaN included."""
        boundary = self.boundary
        return {
            "images": [astuple(image) for image in self.images],
            "confusion": self.matrix.matrix.tolist(),
            "seconds": self.seconds,
            **({} if boundary is None else {"boundary": [boundary.total.tolist(), boundary.count.tolist()]}),
        }

    def add_json(self, document: Mapping[str, Any]) -> None:
        """Add the result of `to_json`."""
        images = [
            ImageCounts(int(index), float(miou), float(pixel_accuracy), int(ignored))
            for index, miou, pixel_accuracy, ignored in document["images"]
        ]
        confusion = torch.tensor(document["confusion"], dtype=torch.int64).reshape(self.matrix.matrix.shape)
        self.matrix.matrix += confusion.to(self.matrix.matrix.device)
        if self.boundary is not None:
            total, count = document["boundary"]
            self.boundary.total += torch.tensor(total, dtype=self.boundary.total.dtype)
            self.boundary.count += torch.tensor(count, dtype=self.boundary.count.dtype)
        self.images += images
        self.seconds = max(self.seconds, float(document["seconds"]))

    def gathered(self, processes: Processes) -> Counts:
        """The sum of the counts of all processes, in each of them; images in the order of the dataset."""
        total = Counts(self.matrix.num_classes, self.matrix.matrix.device, boundary=self.boundary is not None)
        for part in processes.gather(self.to_json()):
            total.add_json(part)
        total.images.sort()
        return total


class Progress:
    """The counts of one process as a file in the folder of the report.

    Args:
        folder: Of the report.
        rank: Of the process.
        run: What identifies the evaluation, as JSON values: counts are taken up only by an identical one.
    """

    def __init__(self, folder: Path, rank: int, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / f"progress-{rank}.json"
        self.run = run

    def resume(self, counts: Counts, *, overwrite: bool) -> bool:
        """In the first process: add what an interrupted run counted, and return whether there was one.

        With `overwrite`, a finished report and earlier counts are discarded instead.

        Raises:
            OutputError: The folder has a report, or counts of another or an unreadable run, which were kept; or it
                cannot be written.
        """
        finished = self.folder / "report.json"
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                finished.unlink(missing_ok=True)
                self.clear()
        keep_existing(finished, overwrite=False)
        files = sorted(self.folder.glob("progress-*.json"), key=lambda path: -path.stat().st_size)
        done: set[int] = set()
        for path in files:
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                same = document.pop("run") == self.run
                indices = {int(image[0]) for image in document["images"]}
                if same and not indices & done:  # else its counts were already added to another file
                    counts.add_json(document)
                    done |= indices
            except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
                raise OutputError(
                    f"{path} cannot be read ({error}) and was kept; --force (overwrite=True) counts from the start"
                ) from error
            if not same:
                raise OutputError(
                    f"{path} has the counts of another run (another model, dataset, file or argument) and was kept; "
                    "use another folder, or --force (overwrite=True)"
                )
        self.save(counts)  # even without counts: a folder that cannot be written is reported before the first image
        for path in files:
            if path != self.path:
                path.unlink()
        return bool(files)

    def save(self, counts: Counts) -> None:
        """Write the counts, or an OutputError; skipped while an image is partially counted."""
        if not counts.partial:
            write_output(self.path, json.dumps({"run": self.run, **counts.to_json()}))

    def clear(self) -> None:
        """Remove the files of all processes."""
        for path in self.folder.glob("progress-*.json"):
            path.unlink()
