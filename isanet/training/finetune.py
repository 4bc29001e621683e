"""finetune(): train a model on a dataset; resumable to the bit, and the same on any number of processes.

accelerate does what depends on the machine: device, processes, mixed precision, gradient scaling, trackers. Here is
what a step consists of, what is kept, and what is said.

All that is random in a step (order, crops, colors, dropped channels) is drawn from the seed and the step's number. So
a run that goes on needs no state of any random generator, and the number of workers does not matter.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import isanet
from isanet._files import atomic_write
from isanet._processes import Processes, leave_signals
from isanet.datasets.base import SegmentationDataset
from isanet.errors import CacheError, CheckpointError, DatasetError, IsanetError
from isanet.evaluation.evaluate import evaluate, match_classes, weights_digest
from isanet.evaluation.report import Report
from isanet.inference.segmenter import Segmenter
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet
from isanet.training.augment import augmentation
from isanet.training.batches import Batches, Samples, collate, seed_of
from isanet.training.preflight import check_loss, check_memory, count_classes, free_memory, table
from isanet.training.recipe import (
    Recipe,
    freeze,
    keep_statistics,
    loss_weight,
    optimizer_and_schedule,
    segmentation_loss,
)
from isanet.training.sync_norm import synchronized
from isanet.viz.charts import to_png, training_chart
from isanet.viz.sheet import Preview, draw_sheet
from isanet.weights import hub

SAVE_EVERY = 60.0
"""Seconds between two writings of what is needed to go on; up to ten times as many where writing takes long."""

NUM_PREVIEWS = 6
"""Images on the sheet of overlays."""

STATE = "last.pt"
COLUMNS = ("step", "epoch", "loss", "lr", "images_per_second", "miou")

log = logging.getLogger("isanet")


@dataclass(frozen=True)
class Run:
    """What a training made.

    Attributes:
        output: The folder: the model (`isanet.from_pretrained(output)`), history.csv, curves.png, overlays.png, and the
            report on the validation data in `evaluated`.
        model: The best model by mIoU on the validation data, the last one without such data; in evaluation mode.
        history: For each step: step (from 1), epoch (how often each image was seen by then), loss, lr (of the first
            group of parameters), images_per_second, and miou, a fraction, or None where the step was not validated.
        report: What `isanet.evaluate` says of the model; None without validation data.
    """

    output: Path
    model: ISANet
    history: list[dict[str, float | None]]
    report: Report | None

    @property
    def best(self) -> float | None:
        """The largest mIoU of the history, a fraction; None without validation."""
        return max((row["miou"] for row in self.history if row["miou"] is not None), default=None)


def finetune(
    model: ISANet | str | os.PathLike[str],
    train: SegmentationDataset,
    val: SegmentationDataset | None = None,
    recipe: Recipe | None = None,
    output: str | os.PathLike[str] = "finetuned",
    *,
    overwrite: bool = False,
    workers: int | None = None,
    device: str = "auto",
    trackers: Sequence[Any] = (),
    progress: bool | None = None,
) -> Run:
    """Train a model further, and keep the best one by mIoU on the validation data.

    Before the first step every mask is read, the shares of the classes are logged, and memory and disk are looked at.
    An interrupted run (Ctrl-C, SIGTERM, kill, power) goes on when it is called again with the same arguments but for
    `overwrite`, and then ends with the same weights as one that was never interrupted: bit for bit where the device's
    operations are deterministic, as on the CPU. Under `torchrun` or `accelerate launch` the processes share each batch,
    with the same losses as one process has, to rounding (with batch norm synchronized, and but for dropout).

    Args:
        model: An ISANet, which is left as it is; its classes must be those of the data. Or anything that
            `isanet.from_pretrained` takes; it is given the data's classes then, see there.
        train: Images with masks. Its own `transforms`, if it has any, take the place of the recipe's augmentation,
            and must give (3, h, w) floating point, normalized, and (h, w) integers, all of one size.
        val: Images with masks that are not in `train`, of the same classes; validated whole, in float32. None: there
            is no best, only a last model.
        recipe: How to train; upstream's for PASCAL VOC if left out.
        output: Folder for the model and all else, see `Run`, on a disk that all processes see. `last.pt` in it is what
            a run goes on from; it may be deleted afterwards.
        overwrite: Start anew, also where the folder holds an earlier run.
        workers: Processes that read and augment, 0 for none but this one. By default as for `isanet.evaluate`.
        device: "auto" for what accelerate finds, or "cpu".
        trackers: Of accelerate: names ("tensorboard", "wandb", ...) or objects.
        progress: Show a bar; None shows it on a terminal.

    Returns:
        What was made; the model is in evaluation mode, on the CPU.

    Raises:
        ValueError: Model, data and recipe do not go together, a step does not fit into memory, or the folder holds
            something else.
        DatasetError: A mask cannot be used; the message names it.
        ImageError: The same, of an image.
        CacheError: The folder cannot be written; what was written before is as it was.
        IsanetError: The loss is not finite, or accelerate is not installed. What was saved last is kept, see `last.pt`.
    """
    recipe = Recipe() if recipe is None else recipe
    folder = Path(output)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    # The caller's random numbers are not used up
    with (
        _accelerator(recipe, folder, device, trackers) as accelerator,
        _quiet(accelerator),
        torch.random.fork_rng(gpus),
    ):
        processes = Processes()
        try:
            plan = processes.run_on_all(
                lambda: _plan(model, train, val, recipe, folder, workers, progress, accelerator, processes)
            )
            if len(set(processes.gather(plan.fingerprint))) > 1:
                raise ValueError(
                    "the processes were given different models or data: call torch.manual_seed before building the "
                    "model, and open the same data in each"
                )
            training = processes.run_on_all(lambda: _Training(plan, accelerator, processes))
            going_on = processes.run_on_first(lambda: not overwrite and (folder / STATE).exists())
            processes.run_on_all(training.go_on if going_on else lambda: training.begin(overwrite=overwrite))
            training.run()
            if val is None:
                processes.run_on_all(lambda: training.keep(None))
            return processes.run_on_all(training.finish)
        finally:
            processes.close()


# --- before the first step ----------------------------------------------------------------------------------


@contextmanager
def _accelerator(recipe: Recipe, folder: Path, device: str, trackers: Sequence[Any]) -> Iterator[Any]:
    """An Accelerator, which leaves nothing behind that was not there before."""
    if device not in ("auto", "cpu"):
        raise ValueError(f"device must be 'auto' or 'cpu', got {device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs")
    try:
        from accelerate import Accelerator  # type: ignore[import-untyped]
        from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]
    except ImportError as error:
        raise IsanetError("training needs accelerate, which is not installed: pip install 'isanet[train]'") from error

    precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[recipe.precision]
    fresh, grouped, accelerator = not PartialState._shared_state, torch.distributed.is_initialized(), None
    cpu = device == "cpu" or not torch.accelerator.is_available()  # else processes on CPUs would not know each other
    try:
        accelerator = Accelerator(
            cpu=cpu, mixed_precision=precision, log_with=list(trackers) or None, project_dir=folder
        )
        kind = str(accelerator.distributed_type.value)
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ValueError(f"training by {kind} is not supported: each process needs the whole model")
        missing = [name for name in trackers if isinstance(name, str) and name not in map(str, accelerator.log_with)]
        if missing and "all" not in trackers:
            raise ValueError(f"the tracker {missing[0]} is not installed, or unknown to accelerate")
        if recipe.precision == "float16" and accelerator.device.type == "cpu":
            raise ValueError("float16 needs a GPU; take precision='bfloat16' or 'float32'")
        yield accelerator
        if fresh and not grouped and torch.distributed.is_initialized():  # after an error the others may not come
            torch.distributed.destroy_process_group()
    finally:
        try:
            for tracker in [] if accelerator is None else accelerator.trackers:
                tracker.finish()
        finally:
            if fresh:  # it is one for the process: another call may want another precision
                AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _quiet(accelerator: Any) -> Iterator[None]:
    """The first process speaks for all."""
    if accelerator.is_main_process:
        yield
        return
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class _Plan(NamedTuple):
    model: ISANet
    train: SegmentationDataset
    val: SegmentationDataset | None
    recipe: Recipe
    folder: Path
    workers: int
    progress: bool | None
    batches: Batches
    shared: int
    """Images that are in both datasets."""
    fingerprint: str


def _plan(
    model: ISANet | str | os.PathLike[str],
    train: SegmentationDataset,
    val: SegmentationDataset | None,
    recipe: Recipe,
    folder: Path,
    workers: int | None,
    progress: bool | None,
    accelerator: Any,
    processes: Processes,
) -> _Plan:
    """Everything that can be known to be wrong before images are read; nothing is written."""
    for dataset in (train, val):
        if dataset is not None and not isinstance(dataset, SegmentationDataset):
            raise ValueError(f"expected a dataset of isanet.datasets, got {type(dataset).__name__}")
        if dataset is not None and not dataset.has_masks:
            raise DatasetError(f"the truth of {dataset} is not published, so nothing can be learned from it")
    batches = Batches(len(train), recipe, processes.rank, processes.world_size)
    torch.manual_seed(seed_of("model", recipe.seed))  # new classifiers are drawn at random
    start = _start_model(model, train)
    if val is not None:
        match_classes(start, val.label_space, None)
    if not start.preprocessing:
        raise ValueError(
            "the model does not say how its images are prepared; build it with preprocessing={'short_edge': ..., "
            "'long_edge': ..., 'mean': ..., 'std': ...}"
        )
    check_loss(start, recipe)
    if recipe.freeze_backbone:
        freeze(start, "backbone")
    if recipe.freeze_batch_norm:
        keep_statistics(start)
        for module in start.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)
    part = batches.total // batches.steps // processes.world_size // recipe.accumulate
    if part == 1 and not recipe.freeze_batch_norm and not (recipe.sync_batch_norm and processes.world_size > 1):
        log.warning(
            "batch norm will learn from a single image at a time, which often ends badly; take a larger batch_size, "
            "fewer parts (accumulate), or freeze_batch_norm=True"
        )
    free = free_memory(accelerator.device)
    if free is not None and train.transforms is None:  # else nobody knows the size of what comes
        beside = (
            int(os.environ.get("LOCAL_WORLD_SIZE", processes.world_size)) if accelerator.device.type == "cpu" else 1
        )
        images = -(-batches.total // batches.steps // processes.world_size)
        check_memory(start, recipe, max(images, recipe.accumulate), free // beside)
    shared = 0 if val is None else len(_places(train) & _places(val))
    if shared:
        log.warning("%d images are in the training and in the validation data: a figure of them tells little", shared)
    fingerprint = {
        "recipe": json.loads(recipe.to_json()),
        "model": start.config,
        "weights": weights_digest(start),
        "train": train.fingerprint(range(len(train))),
        "val": None if val is None else val.fingerprint(range(len(val))),
    }
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    number = processes.loader_workers(accelerator.device) if workers is None else workers
    text = json.dumps(fingerprint, sort_keys=True)
    return _Plan(start, train, val, recipe, folder, number, progress, batches, shared, text)


def _places(dataset: SegmentationDataset) -> set[str]:
    """Where the images are, or what they are called where they have no files."""
    try:
        return {str(dataset.image_path(index).resolve()) for index in range(len(dataset))}
    except DatasetError:
        return set(dataset.keys)


def _start_model(model: ISANet | str | os.PathLike[str], train: SegmentationDataset) -> ISANet:
    """A model of its own for the training, with the classes of the data."""
    if not isinstance(model, str | os.PathLike):
        match_classes(model, train.label_space, None)
        return deepcopy(model)
    from isanet.zoo.pretrained import from_pretrained

    start = from_pretrained(model)
    origin = start.provenance.get("name") or (Path(model).name if Path(model).exists() else os.fspath(model))
    if start.classes != train.classes:
        kept = [name for name in train.classes if name in start.classes]
        start = from_pretrained(model, classes=list(train.classes))
        log.info(
            "%s has other classes: its classifiers are drawn anew%s",
            os.fspath(model),
            f", but for {', '.join(kept)}" if kept else "",
        )
    start.palette = train.palette
    start.label_space = train.label_space.name if train.label_space.name in LABEL_SPACES else None
    start.config |= {"palette": [list(color) for color in train.palette], "label_space": start.label_space}
    start.provenance["started_from"] = origin
    return start


# --- training -----------------------------------------------------------------------------------------------


class _Stop:
    """Ctrl-C and SIGTERM, kept until a step is whole; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():  # nobody else is asked
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self.before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.signal = number
        log.warning("stopping after this step, and its validation; again to stop at once")

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


class _Step(NamedTuple):
    loss: float
    stop: bool


class _Training:
    """A training that is under way, as one of its processes sees it."""

    def __init__(self, plan: _Plan, accelerator: Any, processes: Processes) -> None:
        model, recipe = plan.model, plan.recipe
        self.train, self.val, self.recipe, self.folder = plan.train, plan.val, recipe, plan.folder
        self.accelerator, self.processes, self.batches = accelerator, processes, plan.batches
        self.fingerprint, self.workers, self.shared = plan.fingerprint, plan.workers, plan.shared
        self.origin = dict(model.provenance)
        self.first = processes.rank == 0
        self.progress = plan.progress if self.first else False
        self.step, self.saved_step, self.best, self.miou = 0, 0, -math.inf, math.nan
        self.history: list[tuple[float, ...]] = []

        if recipe.sync_batch_norm and processes.world_size > 1:
            model = synchronized(model, accelerator.device)  # type: ignore[assignment]
        self.model = model.to(accelerator.device).to(memory_format=torch.channels_last)
        self.average: ISANet | None = None
        if recipe.ema is not None:
            self.average = deepcopy(self.model).eval().requires_grad_(False)
        optimizer, self.schedule = optimizer_and_schedule(self.model, recipe, steps=plan.batches.steps)
        self.network, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.saved, self.pause = time.monotonic(), SAVE_EVERY
        self.held: Any = None

    @property
    def candidate(self) -> ISANet:
        """What is validated and kept: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average

    # --- beginning and going on

    def begin(self, *, overwrite: bool) -> None:
        """In the first process: check the data, and make sure that the folder can be written."""
        if not self.first:
            return
        left = [
            path for path in self.folder.glob(".isanet-*.part") if not path.is_symlink()
        ]  # by a process that was killed
        if not overwrite and self.folder.exists() and set(self.folder.iterdir()) - set(left):
            raise ValueError(f"{self.folder} holds something else; use another folder, or overwrite=True (--force)")
        names = [("training", self.train)] + ([] if self.val is None else [("validation", self.val)])
        shares = [(name, count_classes(data, workers=self.workers, progress=self.progress)) for name, data in names]
        log.info("shares of the classes, and images that have them:\n%s", table(self.model.classes, shares))
        absent = [name for name, number in zip(self.model.classes, shares[0][1].pixels, strict=True) if not number]
        if absent:
            log.warning("no training mask has %s, so that nothing is learned about it", ", ".join(absent))
        for path in left:
            path.unlink()
        self._check_disk()
        self._save()  # now, because a disk that is full or read-only is better known at once
        self._write("recipe.json", (self.recipe.to_json() + "\n").encode())

    def _check_disk(self) -> None:
        """The first state is small, because the optimizer has none yet."""
        weights = sum(value.numel() * value.element_size() for value in self.model.state_dict().values())
        states = 2 + (self.recipe.optimizer == "adamw") + (self.average is not None)
        needed = (2 * states + 2) * weights  # old and new, of the state and of the model
        place = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise CacheError(
                f"{self.folder} will need about {needed >> 20:,} MiB, and {free >> 20:,} are free; make room, or use a "
                "folder on another disk"
            )

    def go_on(self) -> None:
        """Take up an earlier run."""
        path = self.folder / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            same = state["run"] == self.fingerprint
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be read ({str(error).partition(chr(10))[0]}); overwrite=True (--force) starts anew"
            ) from error
        if not same:
            before, now = json.loads(state["run"]), json.loads(self.fingerprint)
            differing = ", ".join(name for name in now if now[name] != before.get(name))
            raise ValueError(
                f"{self.folder} holds a run with another {differing}; repeat the call as it was, use another folder, "
                "or start anew with overwrite=True (--force)"
            )
        self.step, self.best, self.history = state["step"], state["best"], list(state["history"])
        self.saved_step = self.step
        if self.first:
            for part in self.folder.glob(".isanet-*.part"):  # by a process that was killed
                part.unlink()
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        log.info("going on after step %d of %d", self.step, self.batches.steps)

    def _save(self) -> None:
        """Write what is needed to go on, in the first process."""
        self.saved = started = time.monotonic()
        if not self.first or not _is_finite(
            self.model
        ):  # then the next loss says it, and the state before is worth more
            return
        scaler = self.accelerator.scaler
        state = {
            "run": self.fingerprint,
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        self._write(STATE, stream.getbuffer())
        self._write("history.csv", _table_of(self.history))
        if self.history:
            self._write("curves.png", to_png(training_chart(self.history, self.folder.resolve().name)))
        self.saved, self.saved_step = time.monotonic(), self.step
        self.pause = max(SAVE_EVERY, min(30 * (self.saved - started), 10 * SAVE_EVERY))

    def _write(self, name: str, data: bytes | memoryview) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / name) as file:
                file.write(data)
        except OSError as error:
            raise CacheError(
                f"cannot write {self.folder / name} ({len(data):,} bytes): {error.strerror}; earlier files are as they "
                "were, and the same call, without overwrite=True (--force), goes on from them"
            ) from error

    # --- steps

    def run(self) -> None:
        """Take all steps that are left."""
        self.accelerator.init_trackers("isanet", config=_plain(self.recipe)) if self.accelerator.log_with else None
        self.batches.start = self.step
        transforms = self.train.transforms or augmentation(self.recipe, self.model.preprocessing)
        loader: Any = DataLoader(
            Samples(self.train, transforms, self.recipe.seed),
            batch_sampler=self.batches,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=leave_signals,
        )
        log.info(
            "training on %s in %s: %d steps of %d images, %d classes",
            self.accelerator.device, self.recipe.precision, self.batches.steps,
            self.batches.seen(1), len(self.model.classes),
        )  # fmt: skip
        bar = tqdm(
            total=self.batches.steps,
            initial=self.step,
            unit="step",
            disable=None if self.progress is None else not self.progress,
        )
        with _Stop() as stop, bar:
            self.model.train()
            before = time.monotonic()
            for batch in loader:
                if isinstance(batch, Exception):
                    raise batch
                taken = self._take(batch, stop)
                if not math.isfinite(taken.loss):
                    self._not_finite(taken.loss)
                now = time.monotonic()
                num_images = self.batches.seen(self.step + 1) - self.batches.seen(self.step)
                rate = num_images / max(now - before, 1e-9)
                lr = self.optimizer.param_groups[0]["lr"]
                self._update()
                miou = self._validate() if self.val is not None and self._epoch_ends() else None
                epoch = self.batches.seen(self.step) / len(self.train)
                self.history.append((self.step, epoch, taken.loss, lr, rate, math.nan if miou is None else miou))
                self._show(bar)
                if taken.stop or time.monotonic() - self.saved > self.pause:
                    self._save()
                before = now if miou is None else time.monotonic()
                if taken.stop:
                    self._leave(stop)
        if self.saved_step < self.step:
            self._save()

    def _take(self, batch: tuple[Tensor, Tensor], stop: _Stop) -> _Step:
        """Forward and backward of one step, in parts; the loss of all processes, and whether one of them is to stop."""
        recipe, device, world = self.recipe, self.accelerator.device, self.processes.world_size
        torch.manual_seed(seed_of("step", recipe.seed, self.step, self.processes.rank))
        images = batch[0].to(device, non_blocking=True, memory_format=torch.channels_last)
        masks = batch[1].to(device, non_blocking=True)
        parts = list(zip(images.tensor_split(recipe.accumulate), masks.tensor_split(recipe.accumulate), strict=True))
        classes = len(self.model.classes)
        weights = torch.stack([loss_weight(mask, classes, recipe.class_weights) for _, mask in parts])
        total = weights.sum()
        if world > 1:
            total = self.accelerator.reduce(total)
        weights = weights / torch.where(total > 0, total, 1)
        loss = torch.zeros((), device=device)
        for number, ((part, mask), weight) in enumerate(zip(parts, weights, strict=True), 1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                with self.accelerator.autocast():
                    logits, aux = self.network(part, aux=True)
                own = weight * segmentation_loss(
                    logits,
                    aux,
                    mask,
                    aux_weight=recipe.aux_weight,
                    class_weights=recipe.class_weights,
                    label_smoothing=recipe.label_smoothing,
                    ohem=recipe.ohem,
                )
                # Several processes' gradients are averaged, not summed; and whoever launched this may have set a number
                # of parts for accelerate, which divides by it
                self.accelerator.backward(world * self.accelerator.gradient_accumulation_steps * own)
            loss += own.detach()
            # Kept until there are others: glibc would give all memory back to the kernel, and get it anew at each step
            self.held = (logits, aux, own) if device.type == "cpu" else None
        if world == 1:
            return _Step(loss.item(), stop.signal is not None)
        both = self.accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop.signal is not None))]))
        return _Step(both[0].item(), both[1].item() > 0)

    def _update(self) -> None:
        recipe = self.recipe
        if recipe.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:  # float16's scale was too large
            self.schedule.step()
        self.step += 1
        if self.average is not None and recipe.ema is not None:
            update_average(self.average, self.model, recipe.ema, self.step)

    def _not_finite(self, loss: float) -> None:
        hint = {
            "float16": "float16 overflows easily: try precision='bfloat16' or 'float32'",
            "bfloat16": "try a lower lr, clip_grad_norm=1.0, or precision='float32'",
            "float32": "try a lower lr, or clip_grad_norm=1.0",
        }[self.recipe.precision]
        best = f", and {self.folder} the best model so far" if self.best > -math.inf else ""
        raise IsanetError(
            f"the loss of step {self.step + 1} is {loss}: training has diverged. {self.folder / STATE} has the state "
            f"after step {self.saved_step}{best}; {hint}"
        )

    def _epoch_ends(self) -> bool:
        """Whether the step that was just taken is followed by a validation."""
        if self.step == self.batches.steps:
            return True
        every = len(self.train) * self.recipe.validate_every
        return self.batches.seen(self.step) // every > self.batches.seen(self.step - 1) // every

    def _validate(self) -> float:
        """The mIoU of the candidate, which is kept if it is the best so far."""
        assert self.val is not None
        if self.processes.world_size > 1:  # batch norms that are not synchronized differ
            for buffer in self.candidate.buffers():
                torch.distributed.broadcast(buffer, 0)
        with _only_warnings():
            report = evaluate(self.candidate, self.val, workers=self.workers, device=self.accelerator.device,
                              progress=False)  # fmt: skip
        miou = report.miou
        worth = -math.inf if math.isnan(miou) else miou
        if worth > self.best or (self.step == self.batches.steps and self.best == -math.inf):
            self.best = worth
            self.processes.run_on_all(lambda: self.keep(report))
        self.miou = miou
        return miou

    def keep(self, report: Report | None) -> None:
        """Write the model folder, in the first process."""
        if not self.first:
            return
        keys = ("started_from", "name", "source", "backbone_source")
        origin = next((self.origin[key] for key in keys if key in self.origin), None)
        provenance = {
            "source": "isanet finetune",
            "isanet_version": isanet.__version__,
            **({"started_from": origin} if origin else {}),
            **({"started_from_sha256": self.origin["source_sha256"]} if "source_sha256" in self.origin else {}),
            "trained_on": f"{_name(self.train)}, {len(self.train)} images",
            "step": f"{self.step} of {self.batches.steps}",
            "recipe": self.recipe.to_json(),
            **({} if report is None else {"measured": _measured(report, self.shared)}),
        }  # fmt: skip
        kept = self.candidate
        hub.save_pretrained(self.folder, kept.state_dict(), kept.config, provenance, new_card=True)

    def _show(self, bar: Any) -> None:
        row = self.history[-1]
        values = {"train/loss": row[2], "train/lr": row[3]}
        if not math.isnan(row[5]):
            values["val/miou"] = row[5]
        self.accelerator.log(values, step=self.step)
        if not bar.disable:
            recent = self.history[-20:]
            shown = f"loss {sum(r[2] for r in recent) / len(recent):.3f}, lr {row[3]:.2g}"
            shown += f", {len(recent) / sum(1 / r[4] for r in recent):.1f} images/s"
            if not math.isnan(self.miou):
                shown += f", mIoU {100 * self.miou:.2f}"
            bar.set_postfix_str(shown, refresh=False)
        bar.update()

    def _leave(self, stop: _Stop) -> None:
        if self.step == self.batches.steps:
            return
        log.warning(
            "stopped after step %d of %d; the same call, without overwrite=True (--force), goes on from there (%s)",
            self.step, self.batches.steps, self.folder / STATE,
        )  # fmt: skip
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []
        number = stop.signal or signal.SIGINT  # another process may have been asked
        stop.__exit__()
        signal.raise_signal(number)
        raise KeyboardInterrupt  # for a handler that does nothing

    # --- the end

    def finish(self) -> Run:
        """Measure the model that is kept, and draw what it does."""
        from isanet.zoo.pretrained import from_pretrained

        model = from_pretrained(self.folder)
        report = None
        if self.val is not None:
            with _only_warnings():
                report = evaluate(model, self.val, output=self.folder / "evaluated", overwrite=True,
                                  workers=self.workers, device=self.accelerator.device, progress=False)  # fmt: skip
            if self.first:
                with _only_warnings():
                    image = _overlays(model, self.val, self.accelerator.device)
                stream = io.BytesIO()
                image.save(stream, format="PNG")
                self._write("overlays.png", stream.getvalue())
        history = [
            dict(zip(COLUMNS, (*row[:5], None if math.isnan(row[5]) else row[5]), strict=True)) for row in self.history
        ]
        return Run(self.folder, model.cpu(), history, report)


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves a running average of weights and statistics towards a model.

    In the first steps it moves faster, by `min(decay, (1 + step) / (10 + step))`: it would stay near its start else.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - decay)
            else:
                old.copy_(new)


def _overlays(model: ISANet, val: SegmentationDataset, device: torch.device) -> Any:
    """Some images of a dataset: as they are, as they should be labeled, and as they are."""
    segmenter = Segmenter(model, device=device, precision="float32")
    number = min(NUM_PREVIEWS, len(val))
    rows = []
    for index in (i * len(val) // number for i in range(number)):
        image, mask = val.read(index)
        assert mask is not None
        rows.append(Preview(val.keys[index], image, segmenter(image).labels, mask))
    return draw_sheet(rows, model.classes, model.palette)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Without what is logged at each validation anew."""

    def grave(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    log.addFilter(grave)
    try:
        yield
    finally:
        log.removeFilter(grave)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """What every tracker takes."""
    return {
        name: value if isinstance(value, int | float | str) else str(value) for name, value in asdict(recipe).items()
    }


def _table_of(history: Sequence[tuple[float, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step, epoch, loss, lr, rate, miou in history:
        shown = "" if math.isnan(miou) else f"{miou:.6f}"
        writer.writerow((int(step), f"{epoch:.4f}", f"{loss:.8g}", f"{lr:.8g}", f"{rate:.2f}", shown))
    return text.getvalue().encode()


def _name(dataset: SegmentationDataset) -> str:
    return f"{dataset.name} {dataset.split or ''}".rstrip()


def _is_finite(model: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in model.state_dict().values() if value.is_floating_point())


def _measured(report: Report, shared: int) -> str:
    where = f"{report.dataset} {report.split}".rstrip()
    text = f"mIoU {100 * report.miou:.2f} % on {where}, {report.samples} images ({report.protocol_text})"
    return text + (f", of which {shared} are in the training data too" if shared else "")
