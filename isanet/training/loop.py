"""The training loop: start or resume, take steps, validate, save, stop, finish.

What is saved, and when: the training state (`training_state.safetensors`) every minute or so and at the end, the model
folder whenever a validation is the best so far. All that is random in a step (order, crops, colors, dropped channels)
is drawn from the seed and the step's number, so a resumed run needs no state of any random generator.
"""

from __future__ import annotations

import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isanet._files import atomic_write
from isanet._processes import DeferredSignals, Processes, read_ahead
from isanet._progress import progress_bar
from isanet._text import listed, shortened
from isanet.datasets.wrong_arguments import require_two_classes
from isanet.errors import CheckpointError, IsanetError, OutputError
from isanet.evaluation.evaluate import evaluate
from isanet.evaluation.report import Report
from isanet.inference.segmenter import Segmenter
from isanet.model import ISANet
from isanet.training.augment import augmentation
from isanet.training.batches import Samples, collate, seed_of
from isanet.training.few import FEW, findings
from isanet.training.loss import loss_weight, segmentation_loss
from isanet.training.optim import optimizer_and_schedule, update_average
from isanet.training.outputs import (
    history_csv,
    overlays,
    provenance,
    step_text,
    tracker_config,
    training_accuracy,
    worst_images,
)
from isanet.training.plan import Plan
from isanet.training.preflight import class_table, count_classes
from isanet.training.progress import bar_text, log_duration, log_step
from isanet.training.state import STATE_FILE, HistoryRow, TrainingState, check_alike, load_optimizer, read_state
from isanet.training.sync_norm import synchronized
from isanet.viz.charts import to_png, training_chart
from isanet.weights import checkpoint, hub
from isanet.zoo.networks import fill, meta_model
from isanet.zoo.pretrained import from_pretrained

SAVE_EVERY = 60.0
"""Seconds between two writings of the training state; up to ten times as many where writing takes long."""

log = logging.getLogger("isanet")


class Training:
    """A training run that is under way, as one of its processes sees it: `start` or `resume`, `run`, `finish`."""

    def __init__(self, plan: Plan, accelerator: Any, processes: Processes) -> None:
        self.plan, self.accelerator, self.processes = plan, accelerator, processes
        self.first = processes.rank == 0
        self.device: torch.device = accelerator.device
        model, recipe = plan.model, plan.recipe
        if recipe.sync_batch_norm and processes.world_size > 1:
            model = synchronized(model, self.device)  # type: ignore[assignment]
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.average: ISANet | None = None
        if recipe.ema is not None:
            self.average = deepcopy(self.model).eval().requires_grad_(False)
        optimizer, self.schedule = optimizer_and_schedule(self.model, recipe, steps=plan.batches.steps)
        self.network, self.optimizer = accelerator.prepare(self.model, optimizer)

        self.step = 0
        self.history: list[HistoryRow] = []
        self.kept: ISANet | None = None  # what `keep` wrote in this process's life, on the CPU
        self.kept_step: int | None = None
        self.report: Report | None = None  # its validation
        self.saved_step, self.saved_at, self.save_pause = 0, time.monotonic(), SAVE_EVERY
        self.held: Any = None

    @property
    def candidate(self) -> ISANet:
        """The model to validate and keep: the moving average of the weights, if there is one."""
        return self.model if self.average is None else self.average

    @property
    def best(self) -> float:
        """The mIoU of the kept model; minus infinity without one, or where it is NaN."""
        return -math.inf if self.report is None or math.isnan(self.report.miou) else self.report.miou

    # --- starting, resuming, saving

    def start(self, *, overwrite: bool, allow_absent: bool) -> None:
        """In the first process: check the data, and make sure that the folder can be written."""
        if not self.first:
            return
        plan = self.plan
        leftovers = _leftovers(plan.folder)
        if not overwrite and plan.folder.exists() and set(plan.folder.iterdir()) - set(leftovers):
            raise OutputError(
                f"{plan.folder} holds something else, which was kept; use another folder, or overwrite=True (--force)"
            )
        counted = plan.shares
        if counted is None:
            counted = count_classes(plan.train, workers=plan.workers, progress=plan.progress)
        shares = {"training": counted}
        if plan.val is not None:
            shares["validation"] = count_classes(plan.val, workers=plan.workers, progress=plan.progress)
        for data, (pixels, _) in zip((plan.train, plan.val), shares.values(), strict=False):
            if data is not None and not allow_absent:
                require_two_classes(data, pixels.numpy())
        log.info("pixels of each class, and images with it:\n%s", class_table(self.model.classes, shares))
        pixels = shares["training"][0]
        if absent := [name for index, name in enumerate(self.model.classes) if not pixels[index]]:
            log.warning("no training mask has %s, so the model cannot learn it", listed(absent))
        for path in leftovers:
            path.unlink(missing_ok=True)
        self._check_disk()
        self.save()  # now, because it is better to know at once that a disk is full or read-only

    def _check_disk(self) -> None:
        """Make sure there is room; the first state is small, because the optimizer has none yet."""
        folder = self.plan.folder.absolute()
        weights = sum(value.numel() * value.element_size() for value in self.model.state_dict().values())
        states = 2 + (self.plan.recipe.optimizer == "adamw") + (self.average is not None)
        needed = (2 * states + 2) * weights  # old and new, of the state and of the model
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        if free < needed:
            raise OutputError(
                f"{self.plan.folder} will need about {needed >> 20:,} MiB, and {free >> 20:,} are free; make room, or "
                "use a folder on another disk"
            )

    def _earlier_fields(self, run: dict[str, Any]) -> str:
        """The fields of an earlier recipe that differ; on another machine some are chosen otherwise."""
        recipe, now = run.get("recipe"), self.plan.fingerprint["recipe"]
        if not isinstance(recipe, dict) or recipe.keys() != now.keys():
            return ""
        fields = [f"{name}={shortened(str(recipe[name]))}" for name in now if recipe[name] != now[name]]
        return f", with {' '.join(fields)}" if fields else ""

    def resume(self) -> None:
        """Load the state of an earlier run, if it is that of the same run."""
        folder, path = self.plan.folder, self.plan.folder / STATE_FILE
        state = read_state(path)
        now = self.plan.fingerprint
        if differing := [name for name in now if now[name] != state.run.get(name)]:
            raise OutputError(
                f"{folder} holds a run with another {', '.join(differing)}, which was kept; repeat the call as it was"
                f"{self._earlier_fields(state.run)}, use another folder, or start over with overwrite=True (--force)"
            )
        try:
            if state.step > self.plan.batches.steps or type(state.kept_step) not in (int, type(None)):
                raise ValueError(f"it is of step {state.step} of {self.plan.batches.steps}")
            self.model.load_state_dict(checkpoint.fit_state_dict(state.model, self.model.state_dict()))
            if self.average is not None:
                fitting = checkpoint.fit_state_dict(state.average or {}, self.average.state_dict())
                self.average.load_state_dict(fitting)
            load_optimizer(self.optimizer, state.optimizer)
            check_alike(state.schedule, self.schedule.state_dict())
            self.schedule.load_state_dict(state.schedule)
            if self.accelerator.scaler is not None:
                check_alike(state.scaler, self.accelerator.scaler.state_dict())
                self.accelerator.scaler.load_state_dict(state.scaler)
        except (CheckpointError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {error}; overwrite=True (--force) starts over") from error
        if (before := state.run.get("precision")) != self.plan.recipe.precision:
            log.warning("the steps so far were in %s, those to come are in %s", before, self.plan.recipe.precision)
        self.step, self.history = state.step, state.history
        self.saved_step, self.kept_step, self.report = state.step, state.kept_step, state.report
        if self.first:
            for leftover in _leftovers(folder):
                leftover.unlink(missing_ok=True)
            self._write_records()  # the run may have been killed between its state and these
        log.info("resuming after step %d of %d", self.step, self.plan.batches.steps)

    def save(self) -> None:
        """Write the training state, in the first process."""
        self.saved_at = started = time.monotonic()
        if not self.first:
            return
        model = self.model.state_dict()
        if not all(value.isfinite().all() for value in model.values()):
            return  # the next loss will be an error, and the old state is better
        scaler = self.accelerator.scaler
        state = TrainingState(
            run=self.plan.fingerprint | {"precision": self.plan.recipe.precision},
            history=self.history,
            kept_step=self.kept_step,
            report=self.report,
            model=model,
            average=None if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
        )
        self._write(STATE_FILE, state.to_bytes())
        self._write_records()
        self.saved_at, self.saved_step = time.monotonic(), self.step
        self.save_pause = max(SAVE_EVERY, min(30 * (self.saved_at - started), 10 * SAVE_EVERY))

    def _write_records(self) -> None:
        self._write("recipe.json", (self.plan.recipe.to_json() + "\n").encode())
        self._write("history.csv", history_csv(self.history))
        if self.history:
            self._write("curves.png", to_png(training_chart(self.history, self.plan.folder.resolve().name)))

    def _write(self, name: str, data: bytes) -> None:
        path = self.plan.folder / name
        try:
            self.plan.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(data)
        except OSError as error:
            raise OutputError(
                f"cannot write {path} ({len(data):,} bytes): {error.strerror}; earlier files are unchanged, and the "
                "same call, without overwrite=True (--force), resumes from them"
            ) from error

    # --- steps

    def run(self) -> None:
        """Take all remaining steps."""
        plan, device = self.plan, self.device
        if self.accelerator.log_with:
            self.accelerator.init_trackers("isanet", config=tracker_config(plan.recipe))
        plan.batches.start = self.step
        transforms = plan.train.transforms or augmentation(plan.recipe, self.model.preprocessing)
        samples = Samples(plan.train, transforms, plan.recipe.seed)
        log.info(
            "training on %s in %s: %d steps of %d images, %d classes",
            device, plan.recipe.precision, plan.batches.steps, plan.batches.seen(1), len(self.model.classes),
        )  # fmt: skip
        with (
            DeferredSignals() as signals,
            progress_bar(total=plan.batches.steps, initial=self.step, unit="step", show=plan.progress) as bar,
            read_ahead(
                samples,
                workers=plan.workers,
                batch_sampler=plan.batches,
                collate_fn=collate,
                pin_memory=device.type == "cuda",
            ) as batches,
        ):
            self.model.train()
            before, started = time.monotonic(), self.step
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                loss, stop = self.train_step(*batch, stop=signals.received is not None)
                now = time.monotonic()
                lr = self.optimizer.param_groups[0]["lr"]
                self._update()
                num_images = plan.batches.seen(self.step) - plan.batches.seen(self.step - 1)
                validated = self._validation_is_due()
                miou = self.validate() if validated else math.nan
                epoch = plan.batches.seen(self.step) / len(plan.train)
                rate = num_images / max(now - before, 1e-9)
                self.history.append(HistoryRow(self.step, epoch, loss, lr, rate, miou))
                self._show(bar)
                if self.step == started + 3:
                    log_duration(self.plan, self.history)
                if stop or time.monotonic() - self.saved_at > self.save_pause:
                    self.save()
                before = time.monotonic() if validated else now
                if stop and self.step < plan.batches.steps:
                    self.stop(signals)
        if self.saved_step < self.step:
            self.save()

    def train_step(self, images: Tensor, masks: Tensor, *, stop: bool) -> tuple[float, bool]:
        """Forward and backward pass on this process's share of a batch; `stop`: whether the process was asked to stop.

        Returns:
            The loss over all processes, and whether any of them was asked to stop.
        """
        recipe, device, world_size = self.plan.recipe, self.device, self.processes.world_size
        torch.manual_seed(seed_of("step", recipe.seed, self.step, self.processes.rank))
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        masks = masks.to(device, non_blocking=True)
        parts = list(zip(images.tensor_split(recipe.accumulate), masks.tensor_split(recipe.accumulate), strict=True))
        num_classes, class_weights = len(self.model.classes), recipe.class_weights
        assert not isinstance(class_weights, str)  # the plan has made numbers of them
        weights = torch.stack([loss_weight(mask, num_classes, class_weights) for _, mask in parts])
        total = weights.sum()
        if world_size > 1:
            total = self.accelerator.reduce(total)
        weights = weights / torch.where(total > 0, total, 1)
        loss = torch.zeros((), device=device)
        for number, ((part, mask), weight) in enumerate(zip(parts, weights, strict=True), 1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                with self.accelerator.autocast():
                    logits, aux = self.network(part, aux=True)
                part_loss = weight * segmentation_loss(
                    logits, aux, mask,
                    aux_weight=recipe.aux_weight, class_weights=class_weights,
                    label_smoothing=recipe.label_smoothing, ohem=recipe.ohem,
                )  # fmt: skip
                # Gradients of several processes are averaged, not summed; and accelerate divides by its own number of
                # accumulation steps, which its launcher may have set
                self.accelerator.backward(world_size * self.accelerator.gradient_accumulation_steps * part_loss)
            loss += part_loss.detach()
            # Kept until the next ones exist: otherwise glibc returns all memory to the kernel at each step
            self.held = (logits, aux, part_loss) if device.type == "cpu" else None
        if world_size > 1:
            loss, stopping = self.accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop))]))
            stop = stopping.item() > 0
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(value)
        return value, stop

    def _diverged(self, loss: float) -> IsanetError:
        hint = {
            "float16": "float16 overflows easily: try precision='bfloat16' or 'float32'",
            "bfloat16": "try a lower lr, clip_grad_norm=1.0, or precision='float32'",
            "float32": "try a lower lr, or clip_grad_norm=1.0",
        }[self.plan.recipe.precision]
        folder = self.plan.folder
        best = f", and {folder} the best model so far" if self.best > -math.inf else ""
        return IsanetError(
            f"the loss of step {self.step + 1} is {loss}: training has diverged. {folder / STATE_FILE} has the state "
            f"after step {self.saved_step}{best}; {hint}"
        )

    def _update(self) -> None:
        """The optimizer's part of a step."""
        recipe = self.plan.recipe
        if recipe.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), recipe.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:  # because float16's scale was too large
            self.schedule.step()
        self.step += 1
        if self.average is not None and recipe.ema is not None:
            update_average(self.average, self.model, recipe.ema, self.step)

    def _show(self, bar: Any) -> None:
        """Update the progress bar and the trackers."""
        row = self.history[-1]
        values = {"train/loss": row.loss, "train/lr": row.lr}
        if not math.isnan(row.miou):
            values["val/miou"] = row.miou
        self.accelerator.log(values, step=self.step)
        if bar.disable:
            log_step(self.plan, self.history, self.best)
        else:
            bar.set_postfix_str(bar_text(self.history, self.best), refresh=False)
        bar.update()

    def stop(self, signals: DeferredSignals) -> None:
        """End as the signal asks, after the state was saved."""
        log.warning(
            "stopped after step %d of %d; the same call, without overwrite=True (--force), resumes there (%s)",
            self.step, self.plan.batches.steps, self.plan.folder / STATE_FILE,
        )  # fmt: skip
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []
        number = signals.received or signal.SIGINT  # another process may have been asked
        signals.restore()
        signal.raise_signal(number)
        raise KeyboardInterrupt  # for a handler that does nothing

    # --- validation and the kept model

    def _validation_is_due(self) -> bool:
        if self.plan.val is None:
            return False
        seen, every = self.plan.batches.seen, len(self.plan.train) * self.plan.recipe.validate_every
        return self.step == self.plan.batches.steps or seen(self.step) // every > seen(self.step - 1) // every

    def validate(self) -> float:
        """The mIoU of the candidate, which is kept if it is the best so far."""
        if self.processes.world_size > 1:  # batch norms that are not synchronized differ
            for buffer in self.candidate.buffers():
                torch.distributed.broadcast(buffer, 0)
        report = self._evaluate(self.candidate)
        is_last = self.step == self.plan.batches.steps
        if report.miou > self.best or (is_last and self.best == -math.inf):
            self.processes.run_on_all(lambda: self.keep(report))
        return report.miou

    def _evaluate(self, model: ISANet) -> Report:
        assert self.plan.val is not None
        with log_from(logging.WARNING):  # each validation would log the same again
            running: dict[str, Any] = {"workers": self.plan.workers, "device": self.device, "progress": False}
            return evaluate(model, self.plan.val, allow_absent=True, **running)  # `start` has looked

    def keep(self, report: Report | None) -> None:
        """Keep the candidate: a copy in memory, and, in the first process, as the model folder."""
        plan = self.plan
        state = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.candidate.state_dict().items()
        }
        kept = fill(meta_model(self.candidate.config), state)
        kept.provenance = provenance(plan, self.step, report)
        if self.first:
            hub.save_pretrained(plan.folder, kept.state_dict(), kept.config, kept.provenance, new_card=True)
        self.kept, self.kept_step, self.report = kept, self.step, report

    def finish(self) -> tuple[ISANet, Report | None, tuple[str, ...]]:
        """Write the report and the overlays of the kept model; returns it, on the CPU, its report, and `findings`."""
        plan = self.plan
        if plan.val is None:
            self.keep(None)
        model, report = self.kept, self.report
        if model is None:  # kept before this run was resumed
            model = from_pretrained(plan.folder)
            if plan.val is not None and model.provenance.get("step") != step_text(plan, self.kept_step):
                report = self._evaluate(model)  # kept after the state was saved, by a process that was killed
        found: tuple[str, ...] = ()
        if self.first:
            with log_from(logging.WARNING):
                segmenter = Segmenter(model, device=self.device, precision="float32")
                accuracy = training_accuracy(segmenter, plan.train) if len(plan.train) < FEW else {}
            found = findings(report, self.history, plan.recipe, accuracy)
        if self.first and plan.val is not None and report is not None:
            with log_from(logging.WARNING):
                self._write("overlays.png", overlays(segmenter, plan.val))
                report.save(plan.folder / "evaluated", worst_images(segmenter, plan.val, report))
        return model.cpu(), report, found


def _leftovers(folder: Path) -> list[Path]:
    """Temporary files of processes that were killed."""
    return [path for path in folder.glob(".isanet-*.part") if not path.is_symlink()]


@contextmanager
def log_from(level: int) -> Iterator[None]:
    """Log nothing below this level."""
    before = log.level
    log.setLevel(max(level, log.getEffectiveLevel()))
    try:
        yield
    finally:
        log.setLevel(before)
