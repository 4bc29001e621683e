"""What a training run says while it goes on: the text of its bar, or lines where there is none; and its duration."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from isanet._text import duration
from isanet.training.plan import Plan
from isanet.training.state import HistoryRow

RECENT = 20
"""Steps that are averaged over."""

WORTH_TELLING = 20.0
"""Seconds that a training must take at least for its duration to be told in advance."""

log = logging.getLogger("isanet")


def bar_text(history: Sequence[HistoryRow], best: float) -> str:
    """Loss, learning rate, speed and the best mIoU, for behind a progress bar; `best`: minus infinity for none."""
    recent = history[-RECENT:]
    text = f"loss {sum(row.loss for row in recent) / len(recent):.3f}, lr {recent[-1].lr:.2g}"
    text += f", {len(recent) / sum(1 / row.images_per_second for row in recent):.1f} images/s"
    return text + (f", best mIoU {100 * best:.2f}" if best > -math.inf else "")


def log_step(plan: Plan, history: Sequence[HistoryRow], best: float) -> None:
    """Where there is no bar, log each validation; without validation data each twentieth of the steps."""
    row, steps = history[-1], plan.batches.steps
    is_twentieth = 20 * row.step // steps > 20 * (row.step - 1) // steps
    if math.isnan(row.miou) if plan.val is not None else not is_twentieth:
        return
    miou = "" if math.isnan(row.miou) else f", mIoU {100 * row.miou:.2f}, best {100 * best:.2f}"
    log.info(
        "epoch %.0f of %d, step %d of %d: loss %.3f%s, %s left",
        row.epoch, plan.recipe.epochs, row.step, steps, row.loss, miou, duration(_seconds_left(plan, history)),
    )  # fmt: skip


def log_duration(plan: Plan, history: Sequence[HistoryRow]) -> None:
    """Log after some steps, of which the first was slower than the others, how long the training will take."""
    left = plan.batches.steps - history[-1].step
    if left and (seconds := _seconds_left(plan, history, 2)) > WORTH_TELLING:
        log.info(
            "about %.1f s a step, %s for the other %d, and the validations; epochs=... for fewer",
            seconds / left, duration(seconds), left,
        )  # fmt: skip


def _seconds_left(plan: Plan, history: Sequence[HistoryRow], steps: int = RECENT) -> float:
    """For what is left, if all of it takes as long as the last steps did; without validations."""
    per_image = [1 / row.images_per_second for row in history[-steps:]]
    return sum(per_image) / len(per_image) * (plan.batches.total - plan.batches.seen(history[-1].step))
