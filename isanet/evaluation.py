"""evaluate(): one figure for a model on a data set; resumable, and the same on any number of processes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from isanet.errors import CacheError, DatasetError, IsanetError
from isanet.files import written_whole
from isanet.inference import not_finite, predict, prepare
from isanet.labels import (
    IGNORED,
    LABEL_SPACES,
    Groups,
    LabelSpace,
    check_groups,
    custom_space,
    merged,
    official_name,
)
from isanet.manifest import load_manifest
from isanet.metrics import BoundaryScore, ConfusionMatrix
from isanet.model import ISANet, numbered_classes
from isanet.preprocess import RGBImage
from isanet.protocols import Protocol
from isanet.protocols import protocol as find_protocol
from isanet.report import Report, Sample
from isanet.segmenter import Segmentation, Segmenter

if TYPE_CHECKING:
    from isanet.datasets import SegmentationDataset

WORST = 8
"""How many pictures the report's page shows: those with the lowest mIoU."""

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
    """Measure a model on a data set: one confusion matrix over all pixels of all pictures that are not ignored.

    Pictures are read and prepared by worker processes, ahead of the model; memory does not grow with the data set.
    Under `torchrun` (any initialised group of `torch.distributed`) each process takes its share of the pictures, none
    is taken twice, and all return the same report; process 0 writes the files.

    Args:
        model: An ISANet, or anything `isanet.from_pretrained` takes.
        dataset: One of `isanet.datasets`, with masks.
        protocol: How a picture becomes labels: a name in `isanet.protocols.PROTOCOLS`, or a Protocol.
        mapping: For a model and a data set of different classes: which are one, such as
            `{"vehicle": ["car", "bus"], "fountain": None}`, applied to both sides; None ignores a class. Classes are
            then matched by name: each of the data set must be one of the model's; the model's others cannot be
            predicted (they are left out of the argmax). `{}` matches by name alone.
        limit: Only so many pictures, spread evenly over the data set.
        boundary: Measure the boundary F-score too.
        output: Folder for the report, its pictures and its page. What has been counted is kept there meanwhile: an
            interrupted run goes on where it was when it is called again.
        predictions: Folder for the label maps, `<key>.png`, in the form that the server of the model's data set takes
            (see `Segmentation.save`).
        overwrite: Replace a finished report, predictions, and what another run has counted.
        batch_size: Pictures of one size that go through the network together. With 1, every label is the same on any
            number of processes; with more, where two logits are equal but for rounding, it may not be.
        workers: Processes that read and prepare pictures, 0 for none but this one. By default one for each core, or for
            each four where the model needs the cores itself, at most 8, shared out among the processes of a group.
        device: As for `isanet.Segmenter`.
        precision: As for `isanet.Segmenter`; float32 by default, because published figures are.
        progress: Show a bar with the running mIoU; None shows it on a terminal.

    Returns:
        The report; `report.miou` is a fraction.

    Raises:
        ValueError: Model and data set differ in their classes and no mapping says how they match, or an argument is
            wrong, or `output` holds something else.
        DatasetError: A picture's mask is not what the data set promises; what was counted before is kept in `output`.
        ImageError: The same, of a picture.
        CacheError: `output` or `predictions` cannot be written.
        IsanetError: The network gave values that are not finite.
    """
    how = find_protocol(protocol)
    if batch_size < 1 or (limit is not None and limit < 1) or (workers is not None and workers < 0):
        raise ValueError(
            f"batch_size and limit must be at least 1, and workers at least 0; got {batch_size}, {limit}, {workers}"
        )
    if not dataset.has_masks:
        raise DatasetError(f"{dataset.name} {dataset.split} has no masks to compare with; `isanet segment` labels it")
    rank, world = _rank_and_world()
    if device == "auto" and world > 1 and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank % torch.cuda.device_count())}"
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else model.provenance.get("name")
    segmenter = Segmenter(model, device=device, precision=precision, protocol=how)
    match = match_classes(segmenter.model, dataset.label_space, mapping)
    number = len(dataset) if limit is None else min(limit, len(dataset))
    wanted = [i * len(dataset) // number for i in range(number)]
    keys = dataset.keys

    count = Count.none(len(match.space), segmenter.device, boundary=boundary)
    run = {} if output is None else _fingerprint(segmenter, dataset, match, mapping, wanted, boundary)
    store = None if output is None else _Store(Path(output), rank, run)
    exported = None if predictions is None else _Predictions(Path(predictions), segmenter.model)

    def begin() -> set[int]:
        found = set() if store is None else store.load(count, overwrite=overwrite)
        if exported is not None:
            exported.prepare(
                [keys[place] for place in wanted if place not in found], overwrite=overwrite or bool(found)
            )
        return found

    done = _agreed(begin, rank, world)
    if done:
        log.info("going on where an earlier run stopped: %d of %d pictures are counted", len(done), number)
    todo = [place for place in wanted if place not in done][rank::world]
    loader = _loader(
        _Samples(dataset, match.truth, segmenter.model.preprocessing, how),
        todo,
        _workers(workers, world, len(todo), segmenter.device),
    )

    failure: Exception | None = None
    started = last_shown = last_saved = time.monotonic()
    earlier = count.seconds
    hidden = True if rank else None if progress is None else not progress  # None: hidden unless on a terminal
    with tqdm(total=len(todo) + len(count.rows), initial=len(count.rows), unit="picture", disable=hidden) as bar:
        try:
            for sample, labels in _labelled(loader, batch_size, segmenter, keys, match.keep):
                if exported is not None:
                    exported.write(keys[sample.place], labels)
                count.add(sample.place, match.to_space(labels), sample.truth)
                now = time.monotonic()
                count.seconds = earlier + now - started
                bar.update()
                if not bar.disable and now - last_shown > 0.5:
                    bar.set_postfix_str(f"mIoU {100 * count.matrix.miou():.2f}")
                    last_shown = now
                if store is not None and now - last_saved > SAVE_EVERY:
                    store.save(count)
                    last_saved = now
        except BaseException as error:
            if store is not None and store.save(count):
                log.warning(
                    "%d pictures are counted and kept in %s; the same call goes on from there", len(count.rows), output
                )
            if not isinstance(error, Exception):  # Ctrl-C, which reaches every process
                raise
            failure = error
    if store is not None and failure is None:
        store.save(count)
    _raise_together(failure, world)
    count.gather(world)

    report = _report(count, segmenter, dataset, match, how, name, mapping)
    if store is not None and rank == 0:
        report.save(store.folder, _worst_pictures(report, segmenter, dataset, match))
        store.clear()
    return report


# --- classes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """How the classes of a model and of a data set meet.

    Attributes:
        space: The K classes that are compared.
        truth: (256,) uint8, index in `space`, or `IGNORED`, for each value of the data set's masks.
        prediction: The same for each class of the model, or None where it is the identity.
        keep: Classes of the model that can be predicted; None: all.
    """

    space: LabelSpace
    truth: NDArray[np.uint8]
    prediction: tuple[int, ...] | None = None
    keep: tuple[int, ...] | None = None

    def to_space(self, labels: Tensor) -> Tensor:
        """Labels of the model -> indices in `space`, on the same device."""
        if self.prediction is None:
            return labels
        return torch.tensor(self.prediction, dtype=torch.uint8, device=labels.device)[labels.long()]


def match_classes(model: ISANet, space: LabelSpace, mapping: Groups | None) -> Match:
    """Find out how the classes of a model and of a data set meet; see `evaluate`.

    Raises:
        ValueError: They do not; the message names both.
    """
    own = custom_space(model.classes, model.palette, model.label_space or "the model's own")
    identity = np.arange(256, dtype=np.uint8)
    if mapping is None:
        if own.classes == space.classes:
            return Match(space, identity)
        hint = 'say how they match by a mapping such as {"vehicle": ["car", "bus"]}, or {} to match them by name'
        if list(own.classes) == numbered_classes(len(own)):
            hint = "the model's classes have no names; give them by from_pretrained(..., classes=[...])"
        raise ValueError(f"the model's label space is {own}, the data set's is {space}; {hint}")
    check_groups(mapping, own, space)
    merged_own, own_table = merged(own, mapping)
    merged_space, truth_table = merged(space, mapping)
    if missing := [name for name in merged_space.classes if name not in merged_own.classes]:
        raise ValueError(
            f"{len(missing)} of the data set's classes are none of the model's: {', '.join(missing[:10])}"
            f"{', …' if len(missing) > 10 else ''} (the model's label space is {own}, the data set's is {space}); "
            "name their counterparts in the mapping, or map them to None to ignore them"
        )
    index = {name: position for position, name in enumerate(merged_space.classes)}
    prediction = tuple(IGNORED if new == IGNORED else index.get(merged_own.classes[new], IGNORED) for new in own_table)
    truth = np.full(256, IGNORED, np.uint8)
    truth[: len(truth_table)] = truth_table
    keep = tuple(old for old, new in enumerate(prediction) if new != IGNORED)
    return Match(merged_space, truth, prediction, None if len(keep) == len(own) else keep)


# --- counting -----------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One picture: its place in the data set, mIoU and pixel accuracy (NaN if all is ignored), pixels ignored."""

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
    whole: bool = True  # not if Ctrl-C came in the middle of a picture

    @classmethod
    def none(cls, num_classes: int, device: torch.device, *, boundary: bool) -> Count:
        """Nothing yet."""
        return cls(ConfusionMatrix(num_classes, device=device), BoundaryScore(num_classes) if boundary else None)

    def add(self, place: int, prediction: Tensor, truth: Tensor) -> None:
        """Count one picture: (H, W) labels on the device, and the truth."""
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

    def gather(self, world: int) -> None:
        """Make it the count of all processes, on each of them."""
        if world > 1:
            parts: list[dict[str, Any] | None] = [None] * world
            distributed.all_gather_object(parts, self.to_json())
            self.matrix.matrix.zero_()
            if self.boundary is not None:
                self.boundary.total.zero_()
                self.boundary.count.zero_()
            self.rows = []
            for part in parts:
                assert part is not None
                self.add_json(part)
        self.rows.sort()


class _Store:
    """What has been counted, as a file of each process in the folder of the report."""

    def __init__(self, folder: Path, rank: int, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / f"progress-{rank}.json"
        self.run = run

    def load(self, count: Count, *, overwrite: bool) -> set[int]:
        """Add what an interrupted run has counted, gather it in one file, and give the indices of its pictures."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        if (self.folder / "report.json").exists() and not overwrite:
            raise ValueError(
                f"{self.folder} has a report already, which is kept; use another folder, or overwrite it (--force)"
            )
        files = sorted(self.folder.glob("progress-*.json"), key=lambda path: -path.stat().st_size)
        if overwrite:
            files = self.clear()
        done: set[int] = set()
        for path in files:
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                same = document.pop("run") == self.run
                indices = {int(row[0]) for row in document["rows"]}
                if same and not indices & done:  # not if it was gathered into another before
                    count.add_json(document)
                    done |= indices
            except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
                raise ValueError(f"{path} cannot be read ({error}); overwrite it (--force) to count anew") from error
            if not same:
                raise ValueError(
                    f"{self.folder} holds what another run has counted (another model, data set or argument), which is "
                    "kept; use another folder, or overwrite it (--force)"
                )
        if len(files) > 1:
            self.save(count)
            for path in files:
                if path != self.path:
                    path.unlink()
        return done

    def save(self, count: Count) -> bool:
        """Write it, if it has whole pictures only: half a one is not worth more than what was written before."""
        if not count.whole or not count.rows:
            return False
        try:
            with written_whole(self.path) as temporary:
                temporary.write_text(json.dumps({"run": self.run, **count.to_json()}), encoding="utf-8")
        except OSError as error:
            raise CacheError(
                f"cannot write {self.path}: {error.strerror}; what was written before is as it was"
            ) from error
        return True

    def clear(self) -> list[Path]:
        for path in self.folder.glob("progress-*.json"):
            path.unlink()
        return []


def _fingerprint(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    match: Match,
    mapping: Groups | None,
    wanted: list[int],
    boundary: bool,
) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    weights = sha256()
    for tensor in segmenter.model.state_dict().values():
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    names = dataset.keys
    keys = sha256("\n".join(names[place] for place in wanted).encode())
    run = {
        "model": segmenter.model.config,
        "weights": weights.hexdigest(),
        "dataset": [dataset.name, dataset.split, str(dataset.root), keys.hexdigest()],
        "classes": match.space.classes,
        "mapping": mapping,
        "protocol": asdict(segmenter.protocol),
        "precision": segmenter.precision,
        "boundary": boundary,
    }
    result: dict[str, Any] = json.loads(json.dumps(run, default=list))
    return result


# --- processes ----------------------------------------------------------------------------------------------


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _agreed(load: Callable[[], set[int]], rank: int, world: int) -> set[int]:
    """What process 0 has loaded, or its error, on every process."""
    if world == 1:
        return load()
    answer: list[Any] = [None]
    if rank == 0:
        try:
            answer = [load()]
        except Exception as error:
            answer = [error]
    distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return set(answer[0])


def _raise_together(failure: Exception | None, world: int) -> None:
    """If one process failed, all of them do: none waits for what never comes."""
    failures: list[Exception | None] = [failure] * world
    if world > 1:
        distributed.all_gather_object(failures, failure)
    for each in (failure, *failures):
        if each is not None:
            raise each


# --- pictures -----------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """One picture, ready for the network."""

    place: int
    tensors: tuple[Tensor, ...]
    truth: Tensor


class _Samples(Dataset[_Sample | IsanetError]):
    """Reads and prepares pictures; an error is a value, because raised in a worker it would lose its message."""

    def __init__(
        self,
        dataset: SegmentationDataset,
        truth: NDArray[np.uint8],
        preprocessing: Mapping[str, Any],
        protocol: Protocol,
    ) -> None:
        self.dataset = dataset
        self.truth = truth
        self.preprocessing = preprocessing
        self.protocol = protocol

    def __getitem__(self, index: int) -> _Sample | IsanetError:
        try:
            image, mask = self.dataset.read(index)
            assert mask is not None
            tensors = prepare(image, self.preprocessing, self.protocol)
            return _Sample(index, tensors, torch.from_numpy(self.truth[mask]))
        except IsanetError as error:
            return error


def _loader(samples: _Samples, indices: list[int], workers: int) -> Iterable[_Sample | IsanetError]:
    return DataLoader(samples, batch_size=None, sampler=indices, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(sample: Any) -> Any:
    return sample


def _workers(wanted: int | None, world: int, number: int, device: torch.device) -> int:
    """Enough to keep the model busy, not so many that they take its cores."""
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))
        wanted = max(1, min(own // 4 if device.type == "cpu" else own, 8))
    return min(wanted, number)


def _labelled(
    loader: Iterable[_Sample | IsanetError],
    batch_size: int,
    segmenter: Segmenter,
    keys: Sequence[str],
    keep: tuple[int, ...] | None,
) -> Iterator[tuple[_Sample, Tensor]]:
    """Every picture with its labels in the model's classes, on the model's device."""
    precision: torch.dtype = getattr(torch, segmenter.precision)
    for batch in _batches(loader, batch_size):
        predictions = predict(
            segmenter.model,
            [sample.tensors for sample in batch],
            [(sample.truth.shape[0], sample.truth.shape[1]) for sample in batch],
            segmenter.protocol,
            precision=precision,
            keep=keep,
        )
        for sample, prediction in zip(batch, predictions, strict=True):
            if prediction is None:
                raise not_finite(keys[sample.place], precision)
            yield sample, prediction[0]


def _batches(loader: Iterable[_Sample | IsanetError], batch_size: int) -> Iterator[list[_Sample]]:
    """Samples of equal sizes together; of odd ones at most four batches wait for more of their kind."""
    waiting: dict[tuple[torch.Size, ...], list[_Sample]] = {}
    for sample in loader:
        if isinstance(sample, IsanetError):
            raise sample
        shapes = tuple(tensor.shape for tensor in sample.tensors)
        group = waiting.setdefault(shapes, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(shapes)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


class _Predictions:
    """Label maps as files that the benchmark's server takes."""

    def __init__(self, folder: Path, model: ISANet) -> None:
        self.folder = folder
        self.model = model

    def prepare(self, keys: Iterable[str], *, overwrite: bool) -> None:
        for key in keys:
            path = self.folder / f"{key}.png"
            if not overwrite and path.exists():
                raise ValueError(f"{path} exists and was kept; use another folder, or overwrite it (--force)")
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, labels: Tensor) -> None:
        result = _segmentation(self.model, labels)
        official = official_name(self.model.label_space)
        try:
            (result if official is None else result.to(official)).save(self.folder / f"{key}.png")
        except OSError as error:
            raise CacheError(f"cannot write {self.folder / f'{key}.png'}: {error.strerror}") from error


def _segmentation(model: ISANet, labels: Tensor) -> Segmentation:
    values = labels.cpu().numpy()
    nothing = np.zeros((*values.shape, 3), np.uint8)
    return Segmentation(values, model.classes, model.palette, nothing, label_space=model.label_space)


# --- the report ---------------------------------------------------------------------------------------------


def _report(
    count: Count,
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    match: Match,
    protocol: Protocol,
    name: str | None,
    mapping: Groups | None,
) -> Report:
    model = segmenter.model
    released = load_manifest().get(name or "")
    known = released is not None and LABEL_SPACES[released.label_space].classes == model.classes
    published = dict(released.metrics) if released is not None and known else None
    notes = []
    if match.keep is not None:
        left_out = [name for index, name in enumerate(model.classes) if index not in match.keep]
        notes.append(
            f"{len(left_out)} of the model's classes are none of the data set's and were left out of the argmax: "
            f"{', '.join(left_out[:10])}{', …' if len(left_out) > 10 else ''}"
        )
    names = dataset.keys
    lowest = sorted((row for row in count.rows if row.miou == row.miou), key=lambda row: (row.miou, row.place))[:WORST]
    return Report(
        confusion=count.matrix.matrix.cpu(),
        classes=match.space.classes,
        palette=match.space.palette,
        dataset=dataset.name,
        split=dataset.split or "",
        samples=len(count.rows),
        total=len(dataset),
        label_space=match.space.name,
        model=name or model.config["backbone"],
        protocol=protocol.name,
        protocol_text=protocol.text,
        precision=segmenter.precision,
        device=str(segmenter.device),
        seconds=count.seconds,
        ignored=sum(row.ignored for row in count.rows),
        worst=tuple(Sample(names[row.place], row.miou, row.pixel_accuracy) for row in lowest),
        published=published,
        incomparable=()
        if published is None
        else tuple(_differences(published, dataset, len(count.rows), protocol, segmenter.precision, mapping)),
        notes=tuple(notes),
        boundary=None
        if count.boundary is None
        else dict(zip(match.space.classes, count.boundary.per_class().tolist(), strict=True)),
    )


def _differences(
    published: Mapping[str, Any],
    dataset: SegmentationDataset,
    samples: int,
    protocol: Protocol,
    precision: str,
    mapping: Groups | None,
) -> Iterator[str]:
    """Why a measured figure and the published one are not of the same thing."""
    if (dataset.name, dataset.split) != (published["dataset"], published["split"]):
        yield f"published on {published['dataset']} {published['split']}, measured on {dataset.name} {dataset.split}"
    elif samples < len(dataset):
        yield f"{samples} of {len(dataset)} pictures"
    elif dataset.official_size not in (None, samples):
        yield f"{samples} pictures, where the official split has {dataset.official_size}"
    if protocol.name != published["protocol"]:
        yield f"published by the protocol {published['protocol']!r}, measured by {protocol.name!r}"
    if precision != "float32":
        yield f"computed in {precision}"
    if mapping:
        yield "classes were merged or ignored"


def _worst_pictures(
    report: Report, segmenter: Segmenter, dataset: SegmentationDataset, match: Match
) -> Iterator[tuple[Sample, RGBImage, NDArray[Any], NDArray[np.uint8]]]:
    """The pictures of `report.worst`, one at a time, labelled once more: keeping them all would cost memory."""
    keys = dataset.keys
    places = [keys.index(worst.key) for worst in report.worst]
    samples = _Samples(dataset, match.truth, segmenter.model.preprocessing, segmenter.protocol)
    labelled = _labelled(map(samples.__getitem__, places), 1, segmenter, keys, match.keep)
    for worst, (sample, labels) in zip(report.worst, labelled, strict=True):
        image, _ = dataset.read(sample.place)
        yield worst, image, match.to_space(labels).cpu().numpy(), sample.truth.numpy()
