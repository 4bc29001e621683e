"""What an evaluation has counted: image by image and in total, saved while it runs, gathered from all processes.

Each process saves its counts as `progress-<rank>.json` in the folder of the report. A later run of the same evaluation,
by any number of processes, takes them up: the first process adds all files into its own and removes the others. An
image is in the total and in the list of images, or in neither: while one is partially counted, nothing is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
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


@dataclass
class Counts:
    """What has been counted so far.

    Attributes:
        matrix: Pixels of all images.
        boundary: Boundary F-scores of all images; None if not asked for.
        images: Each counted image.
        seconds: Time spent counting, over all runs.
        partial: An image is partially counted: Ctrl-C came in the middle of it.
    """

    matrix: ConfusionMatrix
    boundary: BoundaryScore | None
    images: list[ImageCounts] = field(default_factory=list)
    seconds: float = 0.0
    partial: bool = False

    @classmethod
    def empty(cls, num_classes: int, device: torch.device, *, boundary: bool) -> Counts:
        """Counts of no image."""
        return cls(ConfusionMatrix(num_classes, device=device), BoundaryScore(num_classes) if boundary else None)

    def add(self, index: int, prediction: Tensor, ground_truth: Tensor) -> None:
        """Count one image: (H, W) class indices, the prediction on the device of the matrix."""
        matrix = ConfusionMatrix(self.matrix.num_classes, device=self.matrix.matrix.device)
        matrix.update(prediction, ground_truth.to(prediction.device))
        ignored = ground_truth.numel() - int(matrix.matrix.sum())
        image = ImageCounts(index, matrix.miou(), matrix.pixel_accuracy(), ignored)
        self.partial = True
        self.matrix.merge(matrix)
        if self.boundary is not None:
            self.boundary.update(prediction.cpu(), ground_truth)
        self.images.append(image)
        self.partial = False

    def to_json(self) -> dict[str, Any]:
        """Everything as values that Python's `json` writes and reads, NaN included."""
        document: dict[str, Any] = {
            "images": [list(astuple(image)) for image in self.images],
            "confusion": self.matrix.matrix.tolist(),
            "seconds": self.seconds,
        }
        if self.boundary is not None:
            document["boundary"] = [self.boundary.total.tolist(), self.boundary.count.tolist()]
        return document

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

    def gather(self, processes: Processes) -> None:
        """Sum the counts of all processes, in each of them."""
        parts = processes.gather(self.to_json())
        if len(parts) > 1:
            self.matrix.matrix.zero_()
            if self.boundary is not None:
                self.boundary.total.zero_()
                self.boundary.count.zero_()
            self.images = []
            for part in parts:
                self.add_json(part)
        self.images.sort()


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
        """Add what an interrupted run counted, in the first process.

        Args:
            counts: To add to.
            overwrite: Discard a finished report and what was counted before.

        Returns:
            Whether there was such a run.

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
        """Write the counts. Skipped while an image is partially counted.

        Raises:
            OutputError: They cannot be written; those written before are unchanged.
        """
        if not counts.partial:
            write_output(self.path, json.dumps({"run": self.run, **counts.to_json()}))

    def clear(self) -> None:
        """Remove the files of all processes."""
        for path in self.folder.glob("progress-*.json"):
            path.unlink()
