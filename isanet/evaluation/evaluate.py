"""evaluate(): measure a model on a dataset, resumable and with any number of processes; label_maps() for servers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from isanet._processes import Processes, checked_workers
from isanet._progress import progress_bar
from isanet.datasets.base import SegmentationDataset
from isanet.datasets.wrapped import as_dataset
from isanet.evaluation.matching import match_classes
from isanet.evaluation.report import Report
from isanet.evaluation.run import EvaluationRun, create_folders, exact_float32, reference
from isanet.inference.segmenter import Segmenter
from isanet.labels import Groups
from isanet.model import ISANet, unwrapped
from isanet.protocols import Protocol
from isanet.protocols import protocol as find_protocol

log = logging.getLogger("isanet")


def evaluate(
    model: ISANet | str | os.PathLike[str],
    dataset: SegmentationDataset | Dataset[Any],
    *,
    protocol: str | Protocol = "auto",
    mapping: Groups | None = None,
    limit: int | None = None,
    boundary: bool = False,
    allow_absent: bool = False,
    output: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 1,
    workers: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    runtime: str | None = None,
    progress: bool | None = None,
) -> Report:
    """Measure a model on a dataset: one confusion matrix over all pixels of all images that are not ignored.

    Worker processes read and prepare images ahead of the model; memory does not grow with the dataset. Under `torchrun`
    (any initialized group of `torch.distributed`) each process takes its share of the images, none is taken twice, and
    all return the same report; process 0 writes the files.

    >>> val = isanet.datasets.Folder("streets")
    >>> isanet.evaluate(model, val, progress=False)
    Report(isanet_nano_toystreets on streets: mIoU ... %, 4 images)

    Args:
        model: An ISANet, which is moved to the device, or anything `isanet.Segmenter` takes.
        dataset: One of `isanet.datasets`, with masks; a `torch.utils.data.Subset` of one; or any map-style dataset of
            pairs (PIL image, PIL mask) that has `classes`, see `isanet.datasets.Wrapped`.
        protocol: As for `isanet.Segmenter`: by default the one that the model is meant for, by which its published
            figure was measured.
        mapping: For a model and a dataset with different classes: which are merged, such as
            `{"vehicle": ["car", "bus"], "fountain": None}`, applied to both sides; None ignores a class. Classes are
            then matched by name: each of the dataset's must be one of the model's; the model's others cannot be
            predicted (they are left out of the argmax). `{}` matches by name alone.
        limit: Evaluate at most this many images, spread evenly over the dataset.
        boundary: Measure the boundary F-score too.
        allow_absent: Measure also if only one of the classes, or none, occurs in all masks of the dataset. Otherwise
            that is an error before the first image: nearly always the masks are read by the wrong arguments.
        output: Folder for the report, its images and its page. Progress is saved there: the same call resumes an
            interrupted run.
        predictions: Folder for the label maps, `<key>.png`, in the form that the server of the model's dataset takes
            (see `Segmentation.save`; for a split without masks see `label_maps`).
        overwrite: Start over: replace a finished report, predictions and saved progress.
        batch_size: Number of images of equal size that go through the network together. With 1, every label is the same
            on any number of processes; with more, where two logits differ only by rounding, it may not be.
        workers: Number of processes that read and prepare images; 0: this process does. By default one per core, or one
            per four if the model runs on the CPU, at most 8, divided among the processes of a group. Where the system
            does not fork processes (Windows, macOS, Linux from Python 3.14), a script needs `if __name__ ==
            "__main__":` for them; without it, the default is 0.
        device: As for `isanet.Segmenter`.
        precision: As for `isanet.Segmenter`, except int8; float32 by default, as published figures are.
        runtime: As for `isanet.Segmenter`, but torch by default, by which the published figures were checked; of an
            exported file the one that reads it.
        progress: Show a bar with the running mIoU; None: only on a terminal.

    Returns:
        The report; `report.miou` is a fraction in 0..1.

    Raises:
        ValueError: Model and dataset differ in their classes and no mapping says how they match, or an argument is
            wrong.
        DatasetError: The dataset has no masks, or only one class occurs in them; or a mask is invalid, then what was
            counted before is kept in `output`.
        ImageError: An image cannot be read; what was counted before is kept in `output`.
        OutputError: `output` has a report or another run, or a label map exists, and was kept; or one of the folders
            cannot be written.
        IsanetError: The network gave values that are not finite, or another process failed.
    """
    dataset = as_dataset(dataset)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got batch_size={batch_size} and limit={limit}")
    workers = checked_workers(workers)
    find_protocol(protocol)  # an unknown one is an error before the model is loaded
    modules = () if isinstance(model, str | os.PathLike) else unwrapped(model).modules()
    modes = [(module, module.training) for module in modules]
    processes = Processes()
    try:
        run = processes.run_on_all(
            lambda: EvaluationRun(
                model, dataset, processes, protocol=protocol, mapping=mapping, limit=limit, boundary=boundary,
                output=output, predictions=predictions, device=device, precision=precision, runtime=runtime,
            )
        )  # fmt: skip
        done, replace = processes.run_on_first(lambda: run.start(overwrite=overwrite, allow_absent=allow_absent))
        if done:
            log.info("resuming: %d of %d images are already counted", len(done), len(run.indices))
        left = [index for index in run.indices if index not in done][processes.rank :: processes.world_size]
        readers = processes.loader_workers(run.segmenter.device) if workers is None else workers
        show_bar = progress if processes.rank == 0 else False
        with exact_float32(run.segmenter):
            processes.run_on_all(
                lambda: run.count(left, overwrite=replace, batch_size=batch_size, workers=readers, show_bar=show_bar)
            )
            run.counts = run.counts.gathered(processes)
            report = run.report()
            if run.progress is not None and processes.rank == 0:
                report.save(run.progress.folder, run.worst_images(report))
                run.progress.clear()
        return report
    finally:
        processes.close()
        for module, training in modes:  # module by module: some may have been frozen
            module.training = training


def label_maps(
    model: ISANet | str | os.PathLike[str],
    dataset: SegmentationDataset,
    folder: str | os.PathLike[str],
    *,
    protocol: str | Protocol = "auto",
    overwrite: bool = False,
    batch_size: int = 1,
    device: str | torch.device = "auto",
    precision: str = "float32",
    runtime: str | None = None,
    progress: bool | None = None,
) -> None:
    """Write the label maps of a dataset, with or without masks, in the form that its evaluation server takes.

    `<key>.png` in `folder`, see `Segmentation.save`; the other arguments are those of `evaluate`.

    Raises:
        ValueError: The model and the dataset have different classes, or an argument is wrong.
        ImageError: An image cannot be read.
        OutputError: A file exists and `overwrite` is not set, or cannot be written.
        IsanetError: The network gave values that are not finite.
    """
    segmenter = Segmenter(
        model, device=device, precision=precision, runtime=reference(model, runtime), protocol=protocol
    )
    match_classes(segmenter.model, dataset.label_space, None)
    create_folders(Path(folder), dataset.keys, overwrite=overwrite)
    paths = [dataset.image_path(index) for index in range(len(dataset))]
    with progress_bar(total=len(paths), unit="image", show=progress) as bar, exact_float32(segmenter):
        for key, result in zip(dataset.keys, segmenter.stream(paths, batch_size=batch_size), strict=True):
            result.for_server().save(Path(folder) / f"{key}.png")
            bar.update()
