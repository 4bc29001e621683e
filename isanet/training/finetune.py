"""finetune(): train a model on a dataset; resumes bit-exactly, and gives the same on any number of processes.

The arguments become a plan (`plan.py`), and the plan is run (`loop.py`). accelerate does what depends on the machine:
device, processes, mixed precision, gradient scaling, trackers.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from isanet._processes import Processes
from isanet._text import clean, percent_number, plural
from isanet.datasets.base import SegmentationDataset
from isanet.errors import IsanetError
from isanet.evaluation.report import Report
from isanet.model import ISANet
from isanet.training.loop import Training, log_from
from isanet.training.plan import computed_precision, plan_training
from isanet.training.recipe import Recipe
from isanet.training.state import STATE_FILE


@dataclass(frozen=True, repr=False)
class Run:
    """The result of a training run.

    >>> run.best == max(row["miou"] for row in run.history)
    True
    >>> segmenter = isanet.Segmenter(run.model)

    Attributes:
        output: The output folder: the model (`isanet.from_pretrained(output)`), history.csv, curves.png, overlays.png,
            and the report on the validation data in `evaluated`.
        model: The best model by validation mIoU, or the last one without validation data; in evaluation mode, on the
            CPU.
        history: For each step: step (from 1), epoch (how often each image was seen by then), loss, lr (of the first
            parameter group), images_per_second, and miou, a fraction, or None where the step was not validated.
        report: The model's report on the validation data; None without validation data.
        findings: What the result says about the data and the next try, one sentence each.
    """

    output: Path
    model: ISANet
    history: list[dict[str, float | None]]
    report: Report | None
    findings: tuple[str, ...] = ()

    @property
    def best(self) -> float | None:
        """The largest mIoU of the history, a fraction; None without validation."""
        return max((row["miou"] for row in self.history if row["miou"] is not None), default=None)

    def __repr__(self) -> str:
        best = "not validated" if self.best is None else f"best mIoU {percent_number(self.best)} %"
        return f"Run({clean(str(self.output))}: {plural(len(self.history), 'step')}, {best})"


def finetune(
    model: ISANet | str | os.PathLike[str],
    train: SegmentationDataset | Dataset[Any],
    val: SegmentationDataset | Dataset[Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] = "finetuned",
    *,
    overwrite: bool = False,
    allow_absent: bool = False,
    workers: int | None = None,
    device: str = "auto",
    trackers: Sequence[Any] = (),
    progress: bool | None = None,
) -> Run:
    """Train a model further, and keep the best one by mIoU on the validation data.

    Before the first step every mask is read, the pixels of each class are logged, and memory and disk are checked.
    An interrupted run (Ctrl-C, SIGTERM, kill, power failure) resumes when it is called again with the same arguments,
    without `overwrite`. It then ends with the same weights as an uninterrupted one: bit-exactly where the device's
    operations are deterministic, as on the CPU. Under `torchrun` or `accelerate launch` the processes share each batch,
    with the same losses as a single process up to rounding (with batch norm synchronized, and without dropout).

    >>> train, val = isanet.datasets.Folder("streets").held_out(0.25)
    >>> isanet.finetune(model, train, val, {"epochs": 1, "crop": (64, 64)}, "runs/streets", progress=False)
    Run(runs/streets: 1 step, best mIoU ... %)

    Args:
        model: An ISANet, which is not changed; its classes must be those of the data. Or anything that
            `isanet.from_pretrained` takes; it then gets the data's classes, see there.
        train: Images with masks: a dataset of `isanet.datasets`, a `torch.utils.data.Subset` of one, or any map-style
            dataset of pairs (PIL image, PIL mask) that has `classes` (`isanet.datasets.Wrapped`). Its own `transforms`,
            if it has any, replace the recipe's augmentation, and must return (3, h, w) floating point, normalized, and
            (h, w) integers, all of one size.
        val: Images with masks that are not in `train`, with the same classes; validated on whole images, in float32.
            None: the last model is kept.
        recipe: How to train. Or only some fields of a recipe, or None: with fewer than 300 training images the others
            are chosen by data, memory and processor, and each choice is logged with its reason; with more they are
            upstream's for PASCAL VOC.
        output: Folder for the model and everything else, see `Run`, on a disk that all processes see. A run resumes
            from `training_state.safetensors` in it, which may be deleted afterwards.
        overwrite: Discard an earlier run in the folder and start over.
        allow_absent: Train also if only one of the classes occurs in all training or all validation masks. Otherwise
            that is an error before the first step: nearly always the masks are read by the wrong arguments.
        workers: Processes that read and augment, 0 for none but this one. The default is that of `isanet.evaluate`.
        device: "auto" for what accelerate finds, or "cpu".
        trackers: accelerate's: names ("tensorboard", "wandb", ...) or objects.
        progress: Show a progress bar; None shows it on a terminal.

    Returns:
        The run; its model is in evaluation mode, on the CPU.

    Raises:
        ValueError: Model, data and recipe do not go together, or a step does not fit into memory.
        DatasetError: A mask cannot be used, the message names it; or only one class occurs.
        ImageError: An image cannot be used; the message names it.
        OutputError: The folder holds something else or another run, which was kept, or it cannot be written; earlier
            files are unchanged.
        CheckpointError: The model or the training state cannot be used.
        IsanetError: The loss is not finite, or accelerate is not installed. What was saved last is kept.
    """
    given = recipe if isinstance(recipe, Recipe) else Recipe.of(recipe or {})
    folder = Path(output)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with (
        _accelerator(given, folder, device, trackers) as accelerator,
        log_from(logging.DEBUG if accelerator.is_main_process else logging.ERROR),  # the first speaks for all
        torch.random.fork_rng(gpus),  # the caller's random generators stay as they are
    ):
        processes = Processes()
        try:
            plan = processes.run_on_all(
                lambda: plan_training(
                    model,
                    train,
                    val,
                    recipe,
                    folder,
                    workers=workers,
                    progress=progress,
                    device=accelerator.device,
                    processes=processes,
                )
            )
            if any(other != plan.fingerprint for other in processes.gather(plan.fingerprint)):
                raise ValueError(
                    "the processes were given different models or data: call torch.manual_seed before building the "
                    "model, and open the same data in each"
                )
            training = processes.run_on_all(lambda: Training(plan, accelerator, processes))
            resumes = processes.run_on_first(lambda: not overwrite and (folder / STATE_FILE).exists())
            processes.run_on_all(
                training.resume if resumes else lambda: training.start(overwrite=overwrite, allow_absent=allow_absent)
            )
            training.run()
            kept, report, found = processes.run_on_all(training.finish)
        finally:
            processes.close()
    history = [
        {name: None if math.isnan(value) else value for name, value in row._asdict().items()}
        for row in training.history
    ]
    return Run(folder, kept, history, report, found)


@contextmanager
def _accelerator(recipe: Recipe, folder: Path, device: str, trackers: Sequence[Any]) -> Iterator[Any]:
    """An Accelerator that leaves no state behind."""
    if device not in ("auto", "cpu"):
        raise ValueError(
            f"device must be 'auto' (the GPU, if there is one) or 'cpu', got {device!r}; CUDA_VISIBLE_DEVICES chooses "
            "among GPUs"
        )
    try:
        from accelerate import Accelerator  # type: ignore[import-untyped]
        from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]
    except ImportError as error:
        raise IsanetError("training needs accelerate, which is not installed: pip install 'isanet[train]'") from error

    fresh, grouped, accelerator = not PartialState._shared_state, torch.distributed.is_initialized(), None
    cpu = device == "cpu" or not torch.accelerator.is_available()  # else processes on CPUs would not find each other
    try:
        precision = computed_precision(recipe.precision, PartialState(cpu=cpu).device)
        name = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
        accelerator = Accelerator(cpu=cpu, mixed_precision=name, log_with=list(trackers) or None, project_dir=folder)
        kind = str(accelerator.distributed_type.value)
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ValueError(f"training by {kind} is not supported: each process needs the whole model")
        missing = [name for name in trackers if isinstance(name, str) and name not in map(str, accelerator.log_with)]
        if missing and "all" not in trackers:
            raise ValueError(f"the tracker {missing[0]} is not installed, or unknown to accelerate")
        if recipe.precision == "float16" and accelerator.device.type == "cpu":
            raise ValueError("float16 needs a GPU; use precision='bfloat16' or 'float32'")
        yield accelerator
        if fresh and not grouped and torch.distributed.is_initialized():  # not after an error: others may not come
            torch.distributed.destroy_process_group()
    finally:
        try:
            for tracker in [] if accelerator is None else accelerator.trackers:
                tracker.finish()
        finally:
            if fresh:  # it is global to the process: another call may want another precision
                AcceleratorState._reset_state(reset_partial_state=True)
