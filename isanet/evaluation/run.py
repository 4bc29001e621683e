"""One evaluation under way: images read ahead by worker processes, predicted, counted, and saved as it goes.

`isanet.evaluate` makes an `EvaluationRun` in each process of a group, and each counts its share of the images. Every
`SAVE_EVERY` seconds, and whatever ends it, a run saves what it has counted (see `isanet.evaluation.counting`), so that
the same call resumes it. The result does not depend on where it was interrupted, nor on the number of processes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from isanet._files import keep_existing, output_errors
from isanet._processes import Processes, read_ahead
from isanet._progress import progress_bar
from isanet._text import listed
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.wrong_arguments import read_until_two_classes
from isanet.errors import DatasetError, IsanetError, OutputError
from isanet.evaluation.counting import Counts, Progress
from isanet.evaluation.matching import Match, match_classes, published_entry, published_figure, why_incomparable
from isanet.evaluation.page import ImageScore, WorstImage
from isanet.evaluation.report import REPORT_FILES, Report
from isanet.images.masks import open_mask
from isanet.images.reading import RGBImage
from isanet.inference.predict import Prepared, not_finite, prepare
from isanet.inference.runtimes.exported import ExportedModel, is_exported
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.labels import Groups
from isanet.model import ISANet
from isanet.protocols import Protocol
from isanet.weights.manifest import load_manifest

NUM_WORST = 8
"""How many images the report shows: those with the lowest mIoU."""

SAVE_EVERY = 10.0
"""Seconds between two writings of what has been counted."""

log = logging.getLogger("isanet")


class EvaluationRun:
    """An evaluation, as one of its processes sees it; the arguments are those of `isanet.evaluate`.

    Everything that can be known to be wrong before the first image is an error here; nothing is written.
    """

    def __init__(
        self,
        model: ISANet | str | os.PathLike[str],
        dataset: SegmentationDataset,
        processes: Processes,
        *,
        protocol: str | Protocol,
        mapping: Groups | None,
        limit: int | None,
        boundary: bool,
        output: str | os.PathLike[str] | None,
        predictions: str | os.PathLike[str] | None,
        device: str | torch.device,
        precision: str,
        runtime: str | None,
    ) -> None:
        if not dataset.has_masks:
            raise DatasetError(
                f"{dataset} has no masks to compare with; only its label maps can be written (predictions)"
            )
        if device == "auto" and processes.world_size > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', processes.rank % torch.cuda.device_count())}"
        self.dataset, self.mapping = dataset, mapping
        num_images = len(dataset) if limit is None else min(limit, len(dataset))
        self.indices = [i * len(dataset) // num_images for i in range(num_images)]
        self.segmenter = Segmenter(
            model, device=device, precision=precision, runtime=reference(model, runtime), protocol=protocol
        )
        self.name = (
            os.fspath(model) if isinstance(model, str | os.PathLike) else self.segmenter.model.provenance.get("name")
        )
        self.match = match_classes(self.segmenter.model, dataset.label_space, mapping)
        if predictions is not None and self.match.keep is not None:
            raise ValueError(
                "label maps for a server are of all classes of the model, and the mapping leaves some out; write them "
                "in a separate call, without a mapping"
            )
        self.counts = Counts(len(self.match.space), self.segmenter.device, boundary=boundary)
        self.label_map_folder = None if predictions is None else Path(predictions)
        self.progress = None if output is None else Progress(Path(output), processes.rank, self._fingerprint())

    def _fingerprint(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed, as JSON values."""
        run = {
            "model": self.segmenter.model.config,
            "weights": weights_digest(self.segmenter.model),
            "dataset": self.dataset.fingerprint(self.indices),
            "classes": self.match.space.classes,
            "mapping": self.mapping,
            "protocol": asdict(self.segmenter.protocol),
            "precision": self.segmenter.precision,
            "runtime": self.segmenter.runtime,
            "boundary": self.counts.boundary is not None,
            "predictions": None if self.label_map_folder is None else str(self.label_map_folder.resolve()),
        }
        result: dict[str, Any] = json.loads(json.dumps(run, default=list))
        return result

    def start(self, *, overwrite: bool, allow_absent: bool) -> tuple[set[int], bool]:
        """In the first process: start or resume.

        A new run first looks for a second class in the masks, those of `limit` first.
        All outputs are looked at before anything is saved: saved progress lets the same call resume.

        Returns:
            The indices of the images that are already counted, and whether files of others may be replaced.
        """
        resumes = self.progress is not None and not overwrite and self.progress.saved
        if not (allow_absent or resumes):
            read_until_two_classes(self.dataset, dict.fromkeys([*self.indices, *range(len(self.dataset))]))
        folder, keys = self.label_map_folder, [self.dataset.keys[index] for index in self.indices]
        outputs = [] if folder is None else [folder / f"{key}.png" for key in keys]
        if self.progress is not None:
            pages = [self.progress.folder / name for name in REPORT_FILES]
            overwrite = self.progress.resume(self.counts, [*pages, *outputs], {*self.indices}, overwrite=overwrite)
        else:
            for path in outputs:
                keep_existing(path, overwrite=overwrite)
        if folder is not None:
            create_folders(folder, keys, overwrite=True)
        return {image.index for image in self.counts.images}, overwrite

    def count(
        self, indices: list[int], *, overwrite: bool, batch_size: int, workers: int, show_bar: bool | None
    ) -> None:
        """Predict and count images; whatever ends it, what was counted is saved."""
        self.overwrite = overwrite
        if self.progress is not None:
            self.progress.overwrite = overwrite
        prepared = PreparedImages(self.dataset, self.match, self.segmenter)
        known = len(self.counts.images)
        try:
            with (
                read_ahead(prepared, workers=workers, batch_size=None, sampler=indices) as images,
                progress_bar(total=len(indices) + known, initial=known, unit="image", show=show_bar) as bar,
            ):
                self._count(_predicted(images, batch_size, self.segmenter, self.match.keep), bar)
            if self.progress is not None:
                self.progress.save(self.counts)
        except BaseException:
            self._save_interrupted()
            raise

    def _count(self, predicted: Iterable[tuple[PreparedImage, Tensor]], bar: Any) -> None:
        started = last_shown = last_saved = time.monotonic()
        earlier = self.counts.seconds
        for image, prediction in predicted:
            if self.label_map_folder is not None:
                self._save_label_map(prediction, self.label_map_folder / f"{image.key}.png")
            self.counts.add(image.index, self.match.compared_prediction(prediction), image.ground_truth)
            now = time.monotonic()
            self.counts.seconds = earlier + now - started
            bar.update()
            if not bar.disable and now - last_shown > 0.5:
                bar.set_postfix_str(f"mIoU {100 * self.counts.matrix.miou():.2f}")
                last_shown = now
            if self.progress is not None and now - last_saved > SAVE_EVERY:
                self.progress.save(self.counts)
                last_saved = now

    def _save_label_map(self, prediction: Tensor, path: Path) -> None:
        labels, model = prediction.cpu().numpy(), self.segmenter.model
        no_image = np.zeros((*labels.shape, 3), np.uint8)
        result = Segmentation(labels, model.classes, model.palette, no_image, label_space=model.label_space)
        result = result.for_server()
        if not self.overwrite and os.path.lexists(path):  # written before a kill, or by somebody else
            try:
                same = np.array_equal(np.asarray(open_mask(path)), result.labels)
            except DatasetError:
                same = False
            if not same:
                raise OutputError(
                    f"{path} exists, is not what this evaluation writes, and was kept; move it away and repeat the call"
                )
            return
        result.save(path)

    def _save_interrupted(self) -> None:
        """Save after an error or Ctrl-C; a failure to save is logged and does not hide it."""
        if self.progress is None:
            return
        try:
            self.progress.save(self.counts)
        except OutputError as error:
            log.warning("%s", error)
        else:
            log.warning(
                "%d images are counted and saved in %s; the same call resumes from there, without --force",
                len(self.counts.images),
                self.progress.folder,
            )

    # --- the report

    def report(self) -> Report:
        """The report on the counts of all processes."""
        segmenter, dataset, match, counts = self.segmenter, self.dataset, self.match, self.counts
        model, protocol, device = segmenter.model, segmenter.protocol, str(segmenter.device)
        entry = published_entry(self.name, model)
        published = None if entry is None else published_figure(entry, protocol.name)
        incomparable = published and why_incomparable(published, segmenter, dataset, len(counts.images), self.mapping)
        scored = [image for image in counts.images if not math.isnan(image.miou)]
        worst = sorted(scored, key=lambda image: (image.miou, image.index))[:NUM_WORST]
        notes = []
        if match.keep is not None:
            left_out = [name for index, name in enumerate(model.classes) if index not in match.keep]
            notes.append(
                f"{len(left_out)} of the model's classes are none of the dataset's and were left out of the argmax: "
                f"{listed(left_out)}"
            )
        if entry is None and self.name in load_manifest():
            notes.append(
                f"the weights are not the released ones of {self.name}, or cannot be compared with them here, so no "
                "published figure is shown"
            )
        boundary = None
        if counts.boundary is not None:
            boundary = dict(zip(match.space.classes, counts.boundary.per_class().tolist(), strict=True))
        return Report(
            confusion=counts.matrix.matrix.cpu(),
            classes=match.space.classes,
            palette=match.space.palette,
            dataset=dataset.name,
            split=dataset.split or "",
            num_images=len(counts.images),
            dataset_size=len(dataset),
            label_space=match.space.name,
            model=self.name or model.config["backbone"],
            protocol=protocol.name,
            protocol_text=protocol.text,
            protocol_reason=segmenter.protocol_reason,
            precision=segmenter.precision,
            device=device if segmenter.runtime == "torch" else f"{device}, {segmenter.runtime}",
            seconds=counts.seconds,
            ignored_pixels=sum(image.ignored for image in counts.images),
            worst=tuple(ImageScore(dataset.keys[image.index], image.miou, image.pixel_accuracy) for image in worst),
            published=published,
            incomparable=tuple(incomparable or ()),
            notes=tuple(notes),
            boundary=boundary,
        )

    def worst_images(self, report: Report) -> Iterator[WorstImage]:
        """The images of `report.worst`, one at a time and predicted again: keeping them would need memory for all."""
        images = PreparedImages(self.dataset, self.match, self.segmenter)
        for score in report.worst:
            pixels, image = images.read(self.dataset.keys.index(score.key))
            ((_, prediction),) = _predicted([image], 1, self.segmenter, self.match.keep)
            compared = self.match.compared_prediction(prediction).cpu().numpy()
            yield WorstImage(score, pixels, compared, image.ground_truth.numpy())


def reference(model: ISANet | str | os.PathLike[str], runtime: str | None) -> str:
    """The runtime of an evaluation: torch if left out, of an exported file what `isanet.Segmenter` takes."""
    return runtime or ("auto" if is_exported(model) else "torch")


def weights_digest(model: ISANet | ExportedModel) -> str:
    """SHA-256 of all tensors of a model, or of an exported file."""
    if isinstance(model, ExportedModel):
        return model.sha256
    digest = sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def exact_float32(segmenter: Segmenter) -> Iterator[None]:
    """On CUDA, compute float32 without TF32, whose mantissa has 10 bits and which convolutions use by default.

    Upstream disables TF32 for its evaluation too.
    """
    backends: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    if segmenter.device.type != "cuda" or segmenter.precision != "float32":
        yield
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


# --- images and label maps


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image, `prepared` for the network, and its `ground_truth`, (H, W) in the compared classes."""

    index: int
    key: str
    prepared: Prepared
    ground_truth: Tensor


class PreparedImages(Dataset[PreparedImage | IsanetError]):
    """Reads and prepares images. An error is returned, not raised: a worker process would bury its message."""

    def __init__(self, dataset: SegmentationDataset, match: Match, segmenter: Segmenter) -> None:
        self.dataset = dataset
        self.match = match
        # Not the segmenter: worker processes get a copy
        self.preprocessing: Mapping[str, Any] = segmenter.model.preprocessing
        self.protocol = segmenter.protocol

    def __getitem__(self, index: int) -> PreparedImage | IsanetError:
        try:
            return self.read(index)[1]
        except IsanetError as error:
            return error

    def read(self, index: int) -> tuple[RGBImage, PreparedImage]:
        """The image as it is, and prepared."""
        image, mask = self.dataset.read(index)
        assert mask is not None
        ground_truth = torch.from_numpy(self.match.compared_mask(mask))
        prepared = prepare(image, self.preprocessing, self.protocol)
        return image, PreparedImage(index, self.dataset.keys[index], prepared, ground_truth)


def _predicted(
    images: Iterable[PreparedImage | IsanetError], batch_size: int, segmenter: Segmenter, keep: tuple[int, ...] | None
) -> Iterator[tuple[PreparedImage, Tensor]]:
    """Each image and its prediction, (H, W) class indices of the model, on its device."""
    for batch in _batches(images, batch_size):
        predictions = segmenter.predict([image.prepared for image in batch], keep=keep)
        for image, prediction in zip(batch, predictions, strict=True):
            if prediction is None:
                raise not_finite(image.key, segmenter.precision)
            yield image, prediction[0]


def _batches(images: Iterable[PreparedImage | IsanetError], batch_size: int) -> Iterator[list[PreparedImage]]:
    """Batches of images of equal sizes; at most two batches of images wait for others of their size."""
    waiting: dict[tuple[torch.Size, ...], list[PreparedImage]] = {}
    for image in images:
        if isinstance(image, IsanetError):
            raise image
        group = waiting.setdefault(image.prepared.shapes, [])
        group.append(image)
        if len(group) == batch_size:
            yield waiting.pop(image.prepared.shapes)
        elif sum(map(len, waiting.values())) >= 2 * batch_size:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


def create_folders(folder: Path, keys: Iterable[str], *, overwrite: bool) -> None:
    """The folders of the label maps, `<key>.png`; an OutputError if one exists and `overwrite` is not set."""
    for key in keys:
        path = folder / f"{key}.png"
        keep_existing(path, overwrite=overwrite)
        with output_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
