"""evaluate(): one figure for a model on a dataset; resumable, and the same on any number of processes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from isanet._processes import Processes, leave_signals
from isanet.config import are_numbered
from isanet.datasets.base import SegmentationDataset
from isanet.errors import CacheError, DatasetError, IsanetError
from isanet.evaluation.counting import Count, Store
from isanet.evaluation.report import Report, Sample
from isanet.images.reading import RGBImage
from isanet.inference.predict import not_finite, prepare
from isanet.inference.segmentation import Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.labels import (
    IGNORED,
    LABEL_SPACES,
    Groups,
    LabelSpace,
    check_groups,
    custom_space,
    merged,
)
from isanet.model import ISANet
from isanet.protocols import Protocol
from isanet.protocols import protocol as find_protocol
from isanet.weights.manifest import Weights, load_manifest
from isanet.zoo.released import read_cached

NUM_WORST = 8
"""How many images the report's page shows: those with the lowest mIoU."""

SAVE_EVERY = 10.0
"""Seconds between two writings of what has been counted."""

log = logging.getLogger("isanet")


def evaluate(
    model: ISANet | str | os.PathLike[str],
    dataset: SegmentationDataset,
    *,
    protocol: str | Protocol = "whole",
    mapping: Groups | None = None,
    limit: int | None = None,
    boundary: bool = False,
    output: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 1,
    workers: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    progress: bool | None = None,
) -> Report:
    """Measure a model on a dataset: one confusion matrix over all pixels of all images that are not ignored.

    Images are read and prepared by worker processes, ahead of the model; memory does not grow with the dataset.
    Under `torchrun` (any initialized group of `torch.distributed`) each process takes its share of the images, none
    is taken twice, and all return the same report; process 0 writes the files.

    Args:
        model: An ISANet, which is moved to the device, or anything `isanet.from_pretrained` takes.
        dataset: One of `isanet.datasets`, with masks.
        protocol: How an image becomes labels: a name in `isanet.protocols.PROTOCOLS`, or a Protocol.
        mapping: For a model and a dataset of different classes: which are one, such as
            `{"vehicle": ["car", "bus"], "fountain": None}`, applied to both sides; None ignores a class. Classes are
            then matched by name: each of the dataset must be one of the model's; the model's others cannot be
            predicted (they are left out of the argmax). `{}` matches by name alone.
        limit: Only so many images, spread evenly over the dataset.
        boundary: Measure the boundary F-score too.
        output: Folder for the report, its images and its page. What has been counted is kept there meanwhile: an
            interrupted run goes on where it was when it is called again.
        predictions: Folder for the label maps, `<key>.png`, in the form that the server of the model's dataset takes
            (see `Segmentation.save`; for a split without masks see `label_maps`).
        overwrite: Start anew: replace a finished report, predictions, and what was counted.
        batch_size: Images of one size that go through the network together. With 1, every label is the same on any
            number of processes; with more, where two logits are equal but for rounding, it may not be.
        workers: Processes that read and prepare images, 0 for none but this one. By default one for each core, or for
            each four where the model needs the cores itself, at most 8, shared out among the processes of a group.
            Where the system starts processes by spawning, a script needs `if __name__ == "__main__":` for it.
        device: As for `isanet.Segmenter`.
        precision: As for `isanet.Segmenter`, but int8; float32 by default, because published figures are.
        progress: Show a bar with the running mIoU; None shows it on a terminal.

    Returns:
        The report; `report.miou` is a fraction.

    Raises:
        ValueError: Model and dataset differ in their classes and no mapping says how they match, or an argument is
            wrong, or `output` holds something else.
        DatasetError: An image's mask is not what the dataset promises; what was counted before is kept in `output`.
        ImageError: The same, of an image.
        CacheError: `output` or `predictions` cannot be written.
        IsanetError: The network gave values that are not finite.
    """
    if not isinstance(dataset, SegmentationDataset):
        raise ValueError(f"expected a dataset of isanet.datasets, got {type(dataset).__name__}; for a part, see limit")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got batch_size={batch_size} and limit={limit}")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    how = find_protocol(protocol)
    number = len(dataset) if limit is None else min(limit, len(dataset))
    places = [i * len(dataset) // number for i in range(number)]
    modes = [] if isinstance(model, str | os.PathLike) else [(part, part.training) for part in model.modules()]
    processes = Processes()
    try:
        run = processes.run_on_all(
            lambda: _plan(
                model, dataset, how, mapping, places, boundary, output, predictions, device, precision, processes
            )
        )
        done = processes.run_on_first(lambda: run.begin(overwrite=overwrite))
        if done:
            log.info("going on where an earlier run stopped: %d of %d images are counted", len(done), number)
        todo = [place for place in places if place not in done][processes.rank :: processes.world_size]
        with _exact_float32(run.segmenter):
            shown = progress if processes.rank == 0 else False  # the bar of the first speaks for all
            readers = processes.loader_workers(run.segmenter.device) if workers is None else workers
            processes.run_on_all(lambda: run.count_all(todo, batch_size, readers, shown))
            run.count.gather(processes)
            report = _report(run)
            if run.store is not None and processes.rank == 0:
                report.save(run.store.folder, _worst_images(report, run))
                run.store.clear()
        return report
    finally:
        processes.close()
        for part, training in modes:  # one by one: some parts may have been frozen
            part.training = training


def label_maps(
    model: ISANet | str | os.PathLike[str],
    dataset: SegmentationDataset,
    folder: str | os.PathLike[str],
    *,
    protocol: str | Protocol = "whole",
    overwrite: bool = False,
    batch_size: int = 1,
    device: str | torch.device = "auto",
    precision: str = "float32",
    progress: bool | None = None,
) -> None:
    """Write the label maps of a dataset, with or without masks, in the form that its evaluation server takes.

    Args:
        model: As for `evaluate`.
        dataset: Such as `isanet.datasets.Cityscapes(root, "test")`, of the model's label space.
        folder: For the files `<key>.png`; see `Segmentation.save`.
        protocol: As for `evaluate`.
        overwrite: Replace existing files.
        batch_size: As for `evaluate`.
        device: As for `evaluate`.
        precision: As for `evaluate`.
        progress: Show a bar; None shows it on a terminal.

    Raises:
        ValueError: The model has other classes than the dataset, or a file exists and `overwrite` is not set.
        ImageError: An image cannot be read.
        CacheError: A file cannot be written.
    """
    segmenter = Segmenter(model, device=device, precision=precision, protocol=protocol)
    match_classes(segmenter.model, dataset.label_space, None)
    predictions = _Predictions(Path(folder))
    predictions.begin(dataset.keys, overwrite=overwrite)
    paths = [dataset.image_path(place) for place in range(len(dataset))]
    bar = tqdm(total=len(paths), unit="image", disable=None if progress is None else not progress)
    with bar, _exact_float32(segmenter):
        for key, result in zip(dataset.keys, segmenter.stream(paths, batch_size=batch_size), strict=True):
            predictions.write(key, result)
            bar.update()


# --- classes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """How the classes of a model and of a dataset meet.

    Attributes:
        space: The K classes that are compared.
        truth: (256,) uint8, index in `space` or `IGNORED` by value of the masks; None where it is the identity.
        prediction: (model's classes,) uint8, index in `space`; None where it is the identity.
        keep: Classes of the model that can be predicted; None: all.
    """

    space: LabelSpace
    truth: NDArray[np.uint8] | None = None
    prediction: Tensor | None = None
    keep: tuple[int, ...] | None = None

    def to_space(self, labels: Tensor) -> Tensor:
        """Labels of the model -> indices in `space`, on the same device."""
        return labels if self.prediction is None else self.prediction.to(labels.device)[labels.long()]


def match_classes(model: ISANet, space: LabelSpace, mapping: Groups | None) -> Match:
    """Find out how the classes of a model and of a dataset meet; see `evaluate`.

    Raises:
        ValueError: They do not; the message names both.
    """
    own = custom_space(model.classes, model.palette, model.label_space or "the model's own")
    if mapping is None:
        if own.classes == space.classes:
            return Match(space)
        hint = 'say how they match by a mapping such as {"vehicle": ["car", "bus"]}, or {} to match them by name'
        if are_numbered(own.classes):
            hint = "the model's classes have no names; give them by from_pretrained(..., classes=[...])"
        raise ValueError(f"the model's label space is {own}, the dataset's is {space}; {hint}")
    check_groups(mapping, own, space)
    merged_own, own_table = merged(own, mapping)
    merged_space, truth_table = merged(space, mapping)
    if missing := [name for name in merged_space.classes if name not in merged_own.classes]:
        raise ValueError(
            f"{len(missing)} of the dataset's classes are none of the model's: {', '.join(missing[:10])}"
            f"{', …' if len(missing) > 10 else ''} (the model's label space is {own}, the dataset's is {space}); "
            "name their counterparts in the mapping, or map them to None to ignore them"
        )
    index = {name: position for position, name in enumerate(merged_space.classes)}
    prediction = tuple(None if new is None else index.get(merged_own.classes[new]) for new in own_table)
    truth = np.full(256, IGNORED, np.uint8)
    truth[: len(truth_table)] = [IGNORED if new is None else new for new in truth_table]
    keep = tuple(old for old, new in enumerate(prediction) if new is not None)
    lookup = torch.tensor([new or 0 for new in prediction], dtype=torch.uint8)  # what is not kept is never predicted
    return Match(merged_space, truth, lookup, None if len(keep) == len(own) else keep)


# --- one run ------------------------------------------------------------------------------------------------


def weights_digest(model: ISANet) -> str:
    """A hash of all tensors of a model."""
    digest = sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    match: Match,
    mapping: Groups | None,
    places: list[int],
    boundary: bool,
    predictions: Path | None,
) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    run = {
        "model": segmenter.model.config,
        "weights": weights_digest(segmenter.model),
        "dataset": dataset.fingerprint(places),
        "classes": match.space.classes,
        "mapping": mapping,
        "protocol": asdict(segmenter.protocol),
        "precision": segmenter.precision,
        "boundary": boundary,
        "predictions": None if predictions is None else str(predictions.resolve()),
    }
    result: dict[str, Any] = json.loads(json.dumps(run, default=list))
    return result


@dataclass(frozen=True)
class _Run:
    """An evaluation that is under way, as one of its processes sees it."""

    segmenter: Segmenter
    name: str | None
    dataset: SegmentationDataset
    keys: list[str]
    match: Match
    mapping: Groups | None
    count: Count
    store: Store | None
    predictions: _Predictions | None

    def begin(self, *, overwrite: bool) -> set[int]:
        """In the first process: take up what was counted before, and give the places of those images."""
        going_on = self.store is not None and self.store.load(self.count, overwrite=overwrite)
        if self.predictions is not None:
            self.predictions.begin(self.keys, overwrite=overwrite or going_on)
        return {row.place for row in self.count.rows}

    def count_all(self, places: list[int], batch_size: int, workers: int, progress: bool | None) -> None:
        """Label and count images; what was counted is in the store whatever happens."""
        samples = _Samples(self.dataset, self.match.truth, self.segmenter)
        loader: Any = DataLoader(
            samples,
            batch_size=None,
            sampler=places,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=leave_signals,
        )
        known = len(self.count.rows)
        bar = tqdm(
            total=len(places) + known, initial=known, unit="image", disable=None if progress is None else not progress
        )
        started = last_shown = last_saved = time.monotonic()
        earlier = self.count.seconds
        try:
            with bar:
                for sample, labels in _labeled(loader, batch_size, self.segmenter, self.keys, self.match.keep):
                    if self.predictions is not None:
                        self.predictions.write(self.keys[sample.place], _segmentation(self.segmenter.model, labels))
                    self.count.add(sample.place, self.match.to_space(labels), sample.truth)
                    now = time.monotonic()
                    self.count.seconds = earlier + now - started
                    bar.update()
                    if not bar.disable and now - last_shown > 0.5:
                        bar.set_postfix_str(f"mIoU {100 * self.count.matrix.miou():.2f}")
                        last_shown = now
                    if self.store is not None and now - last_saved > SAVE_EVERY:
                        self.store.save(self.count)
                        last_saved = now
            if self.store is not None:
                self.store.save(self.count)
        except BaseException:
            if self.store is not None:
                try:
                    self.store.save(self.count)
                except CacheError as another:
                    log.warning("%s", another)
                else:
                    log.warning(
                        "%d images are counted and kept in %s; the same call goes on from there, without --force",
                        len(self.count.rows),
                        self.store.folder,
                    )
            raise


def _plan(
    model: ISANet | str | os.PathLike[str],
    dataset: SegmentationDataset,
    protocol: Protocol,
    mapping: Groups | None,
    places: list[int],
    boundary: bool,
    output: str | os.PathLike[str] | None,
    predictions: str | os.PathLike[str] | None,
    device: str | torch.device,
    precision: str,
    processes: Processes,
) -> _Run:
    """Everything that can be known to be wrong before the first image; nothing is written."""
    if not dataset.has_masks:
        raise DatasetError(f"{dataset} has no masks to compare with; only its label maps can be written (predictions)")
    if device == "auto" and processes.world_size > 1 and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', processes.rank % torch.cuda.device_count())}"
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else model.provenance.get("name")
    segmenter = Segmenter(model, device=device, precision=precision, protocol=protocol)
    match = match_classes(segmenter.model, dataset.label_space, mapping)
    if predictions is not None and match.keep is not None:
        raise ValueError(
            "label maps for a server are of all classes of the model, and the mapping leaves some out; write them in a "
            "call of their own, without a mapping"
        )
    folder = None if predictions is None else Path(predictions)
    store = None
    if output is not None:
        run = _fingerprint(segmenter, dataset, match, mapping, places, boundary, folder)
        store = Store(Path(output), processes.rank, run)
    return _Run(
        segmenter,
        name,
        dataset,
        dataset.keys,
        match,
        mapping,
        Count.none(len(match.space), segmenter.device, boundary=boundary),
        store,
        None if folder is None else _Predictions(folder),
    )


@contextmanager
def _exact_float32(segmenter: Segmenter) -> Iterator[None]:
    """On CUDA, float32 as it is: by default its convolutions are computed in TF32, with a mantissa of 10 bits.

    Upstream turns that off for its evaluation too.
    """
    convolution: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009  torch's own annotations do not know it
    backends: tuple[Any, ...] = (convolution, torch.backends.cuda.matmul)
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


# --- images -----------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """One image, ready for the network."""

    place: int
    tensors: tuple[Tensor, ...]
    truth: Tensor


class _Samples(Dataset[_Sample | IsanetError]):
    """Reads and prepares images; an error is a value, because raised in a worker it would lose its message."""

    def __init__(self, dataset: SegmentationDataset, truth: NDArray[np.uint8] | None, segmenter: Segmenter) -> None:
        self.dataset = dataset
        self.truth = truth
        self.preprocessing: Mapping[str, Any] = segmenter.model.preprocessing  # and not the model: workers get a copy
        self.protocol = segmenter.protocol

    def __getitem__(self, index: int) -> _Sample | IsanetError:
        try:
            return self.read(index)[1]
        except IsanetError as error:
            return error

    def read(self, place: int) -> tuple[RGBImage, _Sample]:
        """The image, and what goes through the network."""
        image, mask = self.dataset.read(place)
        assert mask is not None
        truth = mask if self.truth is None else self.truth[mask]
        return image, _Sample(place, prepare(image, self.preprocessing, self.protocol), torch.from_numpy(truth))


def _as_it_is(sample: Any) -> Any:
    return sample


def _labeled(
    loader: Iterable[_Sample | IsanetError],
    batch_size: int,
    segmenter: Segmenter,
    keys: Sequence[str],
    keep: tuple[int, ...] | None,
) -> Iterator[tuple[_Sample, Tensor]]:
    """Every image with its labels in the model's classes, on the model's device."""
    for batch in _batches(loader, batch_size):
        predictions = segmenter.predict(
            [sample.tensors for sample in batch],
            [(sample.truth.shape[0], sample.truth.shape[1]) for sample in batch],
            keep=keep,
        )
        for sample, prediction in zip(batch, predictions, strict=True):
            if prediction is None:
                raise not_finite(keys[sample.place], segmenter.precision)
            yield sample, prediction[0]


def _batches(loader: Iterable[_Sample | IsanetError], batch_size: int) -> Iterator[list[_Sample]]:
    """Samples of equal sizes together; of odd ones at most two batches wait for more of their kind."""
    waiting: dict[tuple[torch.Size, ...], list[_Sample]] = {}
    for sample in loader:
        if isinstance(sample, IsanetError):
            raise sample
        shapes = tuple(tensor.shape for tensor in sample.tensors)
        group = waiting.setdefault(shapes, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(shapes)
        elif sum(map(len, waiting.values())) >= 2 * batch_size:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


class _Predictions:
    """Label maps as files that the benchmark's server takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, keys: Iterable[str], *, overwrite: bool) -> None:
        """Make the folders, and make sure that nothing is replaced unasked."""
        for key in keys:
            path = self.folder / f"{key}.png"
            if not overwrite and path.exists():
                raise ValueError(f"{path} exists and was kept; use another folder, or overwrite it (--force)")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CacheError(f"cannot write to the folder {path.parent}: {error.strerror}") from error

    def write(self, key: str, result: Segmentation) -> None:
        """Write the label map of one image."""
        try:
            result.for_server().save(self.folder / f"{key}.png")
        except OSError as error:
            raise CacheError(f"cannot write {self.folder / f'{key}.png'}: {error.strerror}") from error


def _segmentation(model: ISANet, labels: Tensor) -> Segmentation:
    values = labels.cpu().numpy()
    nothing = np.zeros((*values.shape, 3), np.uint8)
    return Segmentation(values, model.classes, model.palette, nothing, label_space=model.label_space)


# --- the report ---------------------------------------------------------------------------------------------


def _report(run: _Run) -> Report:
    segmenter, dataset, match, count = run.segmenter, run.dataset, run.match, run.count
    model, protocol = segmenter.model, segmenter.protocol
    released = load_manifest().get(run.name or "")
    if released is not None and LABEL_SPACES[released.label_space].classes != model.classes:
        released = None
    notes = []
    if match.keep is not None:
        left_out = [name for index, name in enumerate(model.classes) if index not in match.keep]
        notes.append(
            f"{len(left_out)} of the model's classes are none of the dataset's and were left out of the argmax: "
            f"{', '.join(left_out[:10])}{', …' if len(left_out) > 10 else ''}"
        )
    lowest = sorted((row for row in count.rows if row.miou == row.miou), key=lambda row: (row.miou, row.place))[
        :NUM_WORST
    ]
    return Report(
        confusion=count.matrix.matrix.cpu(),
        classes=match.space.classes,
        palette=match.space.palette,
        dataset=dataset.name,
        split=dataset.split or "",
        samples=len(count.rows),
        total=len(dataset),
        label_space=match.space.name,
        model=run.name or model.config["backbone"],
        protocol=protocol.name,
        protocol_text=protocol.text,
        precision=segmenter.precision,
        device=str(segmenter.device),
        seconds=count.seconds,
        ignored=sum(row.ignored for row in count.rows),
        worst=tuple(Sample(run.keys[row.place], row.miou, row.pixel_accuracy) for row in lowest),
        published=None if released is None else dict(released.metrics),
        incomparable=() if released is None else tuple(_differences(run, released)),
        notes=tuple(notes),
        boundary=None
        if count.boundary is None
        else dict(zip(match.space.classes, count.boundary.per_class().tolist(), strict=True)),
    )


def _differences(run: _Run, released: Weights) -> Iterator[str]:
    """Why a measured figure and the published one are not of the same thing."""
    dataset, samples, published = run.dataset, len(run.count.rows), released.metrics
    if not _has_weights_of(run.segmenter.model, released):
        yield "the weights are not the released ones: trained further, or not to be compared with them here"
    if (dataset.name, dataset.split) != (published["dataset"], published["split"]):
        yield f"published on {published['dataset']} {published['split']}, measured on {dataset.name} {dataset.split}"
    elif samples < len(dataset):
        yield f"{samples} of {len(dataset)} images"
    elif dataset.official_size is None:
        yield f"{dataset} is not the official dataset"
    elif dataset.official_size != samples:
        yield f"{samples} images, where the official split has {dataset.official_size}"
    if run.segmenter.protocol.name != published["protocol"]:
        yield f"published by the protocol {published['protocol']!r}, measured by {run.segmenter.protocol.name!r}"
    if run.segmenter.precision != "float32":
        yield f"computed in {run.segmenter.precision}"
    if run.mapping:
        yield "classes were merged or ignored"


def _has_weights_of(model: ISANet, released: Weights) -> bool:
    """Whether a model, which may have been trained since it was loaded, is the released one, as it is cached."""
    cached = read_cached(released)
    if cached is None:
        return False
    own = model.state_dict()
    return all(torch.equal(own[name].cpu().to(value.dtype), value) for name, value in cached.network.state_dict().items())


def _worst_images(
    report: Report, run: _Run
) -> Iterator[tuple[Sample, RGBImage, NDArray[np.integer[Any]], NDArray[np.uint8]]]:
    """The images of `report.worst`, one at a time, labeled once more: keeping them all would cost memory."""
    samples = _Samples(run.dataset, run.match.truth, run.segmenter)
    for worst in report.worst:
        image, sample = samples.read(run.keys.index(worst.key))
        ((_, labels),) = _labeled([sample], 1, run.segmenter, run.keys, run.match.keep)
        yield worst, image, run.match.to_space(labels).cpu().numpy(), sample.truth.numpy()
