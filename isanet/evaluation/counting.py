"""What an evaluation has counted: image by image and in total, saved while it runs, gathered from all processes.

Each process saves its counts as `progress-<rank>.json` in the folder of the report. A later run of the same evaluation,
by any number of processes, takes them up: the first process adds all files into its own and removes the others. An
image is in the total and in the list of images, or in neither: while one is partially counted, nothing is saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet._files import keep_existing, output_errors, write_output
from isanet._processes import Processes
from isanet.errors import CheckpointError, OutputError
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.weights.checkpoint import read_file

MAX_PROGRESS_BYTES = 1 << 28
"""Largest file of counts that is read: a million images of 255 classes need a third of it."""


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
        if (confusion < 0).any():
            raise ValueError("negative counts")
        self.matrix.matrix += confusion.to(self.matrix.matrix.device)
        if self.boundary is not None:
            total, count = document["boundary"]
            for own, values in ((self.boundary.total, total), (self.boundary.count, count)):
                own += torch.tensor(values, dtype=own.dtype).reshape(own.shape)
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

    Attributes:
        overwrite: Whether the run began with the permission to replace what it did not write.
    """

    overwrite = False

    def __init__(self, folder: Path, rank: int, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / f"progress-{rank}.json"
        self.run = run

    def resume(self, counts: Counts, outputs: Iterable[Path], known: Set[int], *, overwrite: bool) -> bool:
        """In the first process: add what an interrupted run counted, and return whether files may be replaced.

        With `overwrite`, a finished report and earlier counts are discarded instead. An interrupted run that began so
        keeps that permission.

        Args:
            counts: Get what was counted.
            outputs: What the evaluation will write; where none was interrupted, nothing of it may exist.
            known: Indices of the images to evaluate.
            overwrite: Start over.

        Raises:
            OutputError: The folder has a report, or counts of another or an unreadable run, or an output exists. All
                is kept then, and nothing was written. Or the folder cannot be written.
        """
        finished, done = self.folder / "report.json", set[int]()
        with output_errors(self.folder):
            files = sorted(self.folder.glob("progress-*.json"), key=lambda path: -path.lstat().st_size)
        self.overwrite = overwrite
        for path in () if overwrite else files:
            try:
                document = json.loads(read_file(path, MAX_PROGRESS_BYTES).data.tobytes())
                same = document.pop("run") == self.run
                indices = {int(image[0]) for image in document["images"]}
                if same and not indices <= known:
                    raise ValueError("it counts an image that is none of the dataset's")
                if same and not indices & done:  # else its counts were already added to another file
                    counts.add_json(document)
                    done |= indices
                self.overwrite |= document["overwrite"] is True
            except (
                CheckpointError, OSError, ValueError, LookupError, TypeError,
                RuntimeError, AttributeError, OverflowError,
            ) as error:  # fmt: skip
                raise OutputError(
                    f"{path} cannot be read ({error}) and was kept; --force (overwrite=True) counts from the start"
                ) from error
            if not same:
                raise OutputError(
                    f"{path} has the counts of another run (another model, dataset, file or argument) and was kept; "
                    "use another folder, or --force (overwrite=True)"
                )
        for path in (finished, *(() if files else outputs)):
            keep_existing(path, overwrite=self.overwrite)
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.save(counts)  # even without counts: a folder that cannot be written is reported before the first image
            for path in files:
                if path != self.path:
                    path.unlink(missing_ok=True)
            finished.unlink(missing_ok=True)
        return self.overwrite

    @property
    def saved(self) -> bool:
        """Whether a run was interrupted."""
        with output_errors(self.folder):
            return any(self.folder.glob("progress-*.json"))

    def save(self, counts: Counts) -> None:
        """Write the counts, or an OutputError; skipped while an image is partially counted."""
        if not counts.partial:
            write_output(self.path, json.dumps({"run": self.run, "overwrite": self.overwrite, **counts.to_json()}))

    def clear(self) -> None:
        """Remove the files of all processes."""
        with output_errors(self.folder):
            for path in self.folder.glob("progress-*.json"):
                path.unlink(missing_ok=True)
