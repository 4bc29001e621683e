"""The training state: what a run resumes from, in one safetensors file.

Tensors are named by what they belong to: `model.*`, `average.*` (the moving average of the weights), `optimizer.N.*`
(N: the number of the parameter), and `history`, (steps, 6) float64. All else is JSON in the file's metadata. It is read
by the package's own reader, so that nothing in the file is ever run, and every number comes back bit-exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from isanet.errors import CheckpointError
from isanet.evaluation.report import Report
from isanet.weights import checkpoint

STATE_FILE = "training_state.safetensors"


class HistoryRow(NamedTuple):
    """One step of a training run; `miou` is NaN where the step was not followed by a validation."""

    step: int
    epoch: float
    loss: float
    lr: float
    images_per_second: float
    miou: float


@dataclass(frozen=True)
class TrainingState:
    """Everything that a run resumes from.

    Attributes:
        run: Fingerprint of the run, see `isanet.training.plan`.
        step: Number of steps taken.
        history: One row per step.
        kept_step: The step whose model is in the output folder; None if there is none yet.
        report: The validation of that model; None without validation data.
        model: State dict, as all that follow.
        average: Moving average of the weights; None without one.
        optimizer: Optimizer.
        schedule: Learning rate schedule, plain values.
        scaler: Gradient scaler, plain values; None without one.
    """

    run: dict[str, Any]
    step: int
    history: list[HistoryRow]
    kept_step: int | None
    report: Report | None
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None

    def to_bytes(self) -> bytes:
        """The contents of the file."""
        tensors = {f"model.{name}": value for name, value in self.model.items()}
        tensors |= {f"average.{name}": value for name, value in (self.average or {}).items()}
        for number, values in self.optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(HistoryRow._fields))
        report = None
        if self.report is not None:
            report = self.report.to_json() | {"confusion": None}
            tensors["report.confusion"] = self.report.confusion  # too long for metadata with many classes
        values = {
            "run": self.run,
            "step": self.step,
            "kept_step": self.kept_step,
            "report": report,
            "param_groups": self.optimizer["param_groups"],
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        return checkpoint.serialize(tensors, {"training_state": json.dumps(values)})


def read_state(path: Path) -> TrainingState:
    """Read what `TrainingState.to_bytes` gave.

    Raises:
        CheckpointError: The file is not a training state, or is damaged.
    """
    try:
        tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(path))
        document = json.loads(metadata["training_state"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "report": {}}
        history = tensors.pop("history")
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        optimizer_state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, rest = name.partition(".")
            optimizer_state.setdefault(int(number), {})[rest] = tensor
        report = document["report"]
        if report is not None:
            report = Report.from_json(report | {"confusion": parts["report"]["confusion"].tolist()})
        return TrainingState(
            run=dict(document["run"]),
            step=int(document["step"]),
            history=[HistoryRow(int(step), *values) for step, *values in history.tolist()],
            kept_step=document["kept_step"],
            report=report,
            model=parts["model"],
            average=parts["average"] or None,
            optimizer={"state": optimizer_state, "param_groups": document["param_groups"]},
            schedule=document["schedule"],
            scaler=document["scaler"],
        )
    except (CheckpointError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({str(error).partition(chr(10))[0]}); "
            "overwrite=True (--force) discards it and starts over"
        ) from error


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state dict; its tensors get the memory layout of their parameters.

    The layout does not survive safetensors, and the last bits of a sum may depend on it.

    Raises:
        ValueError: The state is not that of an optimizer with these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(0 <= number < len(parameters) for number in state["state"]):
        raise ValueError("the optimizer has other parameters")
    laid_out = {
        number: {
            name: torch.empty_like(parameters[number], requires_grad=False).copy_(value)
            if value.shape == parameters[number].shape
            else value.clone()
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": state["param_groups"]})
