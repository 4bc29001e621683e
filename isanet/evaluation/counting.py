"""What an evaluation has counted: added up image by image, kept in a file, gathered from all processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isanet._files import atomic_write
from isanet._processes import Processes
from isanet.errors import CacheError
from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix


class Row(NamedTuple):
    """One image: its place in the dataset, mIoU and pixel accuracy (NaN if all is ignored), pixels ignored."""

    place: int
    miou: float
    pixel_accuracy: float
    ignored: int


@dataclass
class Count:
    """What has been counted so far."""

    matrix: ConfusionMatrix
    boundary: BoundaryScore | None
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    whole: bool = True  # not if Ctrl-C came in the middle of an image

    @classmethod
    def none(cls, num_classes: int, device: torch.device, *, boundary: bool) -> Count:
        """Nothing yet."""
        return cls(ConfusionMatrix(num_classes, device=device), BoundaryScore(num_classes) if boundary else None)

    def add(self, place: int, prediction: Tensor, truth: Tensor) -> None:
        """Count one image: (H, W) labels on the device, and the truth."""
        one = ConfusionMatrix(self.matrix.num_classes, device=self.matrix.matrix.device)
        one.update(prediction, truth.to(prediction.device))
        row = Row(place, one.miou(), one.pixel_accuracy(), truth.numel() - int(one.matrix.sum()))
        self.whole = False
        self.matrix.merge(one)
        if self.boundary is not None:
            self.boundary.update(prediction.cpu(), truth)
        self.rows.append(row)
        self.whole = True

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        document: dict[str, Any] = {
            "rows": [[None if value != value else value for value in row] for row in self.rows],
            "confusion": self.matrix.matrix.tolist(),
            "seconds": self.seconds,
        }
        if self.boundary is not None:
            document["boundary"] = [self.boundary.total.tolist(), self.boundary.count.tolist()]
        return document

    def add_json(self, document: Mapping[str, Any]) -> None:
        """Add what `to_json` gave."""
        nan = float("nan")
        rows = [
            Row(int(place), nan if miou is None else float(miou), nan if right is None else float(right), int(ignored))
            for place, miou, right, ignored in document["rows"]
        ]
        confusion = torch.tensor(document["confusion"], dtype=torch.int64).reshape(self.matrix.matrix.shape)
        self.matrix.matrix += confusion.to(self.matrix.matrix.device)
        if self.boundary is not None:
            total, number = document["boundary"]
            self.boundary.total += torch.tensor(total, dtype=self.boundary.total.dtype)
            self.boundary.count += torch.tensor(number, dtype=self.boundary.count.dtype)
        self.rows += rows
        self.seconds = max(self.seconds, float(document["seconds"]))

    def gather(self, processes: Processes) -> None:
        """Make it the count of all processes, on each of them."""
        parts = processes.gather(self.to_json())
        if len(parts) > 1:
            self.matrix.matrix.zero_()
            if self.boundary is not None:
                self.boundary.total.zero_()
                self.boundary.count.zero_()
            self.rows = []
            for part in parts:
                self.add_json(part)
        self.rows.sort()


class Store:
    """What has been counted, as a file of each process in the folder of the report."""

    def __init__(self, folder: Path, rank: int, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / f"progress-{rank}.json"
        self.run = run

    def load(self, count: Count, *, overwrite: bool) -> bool:
        """Add what an interrupted run has counted, gathered in one file; gives whether there was such a run."""
        finished = self.folder / "report.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                finished.unlink(missing_ok=True)
                self.clear()
        except OSError as error:
            raise CacheError(f"cannot write to the folder {self.folder}: {error.strerror}") from error
        if finished.exists():
            raise ValueError(
                f"{self.folder} has a report already, which is kept; use another folder, or overwrite it (--force)"
            )
        files = sorted(self.folder.glob("progress-*.json"), key=lambda path: -path.stat().st_size)
        done: set[int] = set()
        for path in files:
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                same = document.pop("run") == self.run
                places = {int(row[0]) for row in document["rows"]}
                if same and not places & done:  # not if it was gathered into another before
                    count.add_json(document)
                    done |= places
            except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
                raise ValueError(f"{path} cannot be read ({error}); overwrite it (--force) to count anew") from error
            if not same:
                raise ValueError(
                    f"{self.folder} holds what another run has counted (another model, dataset, file or argument), "
                    "which is kept; use another folder, or overwrite it (--force)"
                )
        self.save(count)  # also if nothing is counted yet: whether it can be written is better known now
        for path in files:
            if path != self.path:
                path.unlink()
        return bool(files)

    def save(self, count: Count) -> None:
        """Write it, if it has whole images only: half a one is not worth more than what was written before."""
        if not count.whole:
            return
        try:
            with atomic_write(self.path) as file:
                file.write(json.dumps({"run": self.run, **count.to_json()}).encode())
        except OSError as error:
            raise CacheError(
                f"cannot write {self.path}: {error.strerror}; what was written before is as it was"
            ) from error

    def clear(self) -> None:
        """Forget what was counted."""
        for path in self.folder.glob("progress-*.json"):
            path.unlink()
