"""The training state: what a run resumes from, in one safetensors file.

Tensors are named by what they belong to: `model.*`, `average.*` (the moving average of the weights), `optimizer.N.*`
(N: the number of the parameter), and `history`, (steps, 6) float64. All else is JSON in the file's metadata. It is read
by the package's own reader, so that nothing in the file is ever run, and every number comes back bit-exactly.
"""

from __future__ import annotations

import json
import math
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


_PLAIN_FIELDS = ("run", "kept_step", "schedule", "scaler")


@dataclass(frozen=True)
class TrainingState:
    """What a run resumes from; `average`, `scaler`, `kept_step` and `report` are None where there is none."""

    run: dict[str, Any]  # its fingerprint, see `isanet.training.plan`
    history: list[HistoryRow]
    kept_step: int | None  # the step whose model is in the output folder
    report: Report | None  # the validation of that model
    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.history)

    def to_bytes(self) -> bytes:
        """The contents of the file."""
        tensors = {f"model.{name}": value for name, value in self.model.items()}
        tensors |= {f"average.{name}": value for name, value in (self.average or {}).items()}
        for number, values in self.optimizer["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items() if value is not None}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(HistoryRow._fields))
        document = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        document |= {"param_groups": self.optimizer["param_groups"], "report": None}
        if self.report is not None:
            document["report"] = self.report.to_json() | {"confusion": None}
            tensors["report.confusion"] = self.report.confusion  # too long for metadata with many classes
        return checkpoint.serialize(tensors, {"training_state": json.dumps(document)})


def read_state(path: Path) -> TrainingState:
    """Read what `TrainingState.to_bytes` returned.

    Raises:
        CheckpointError: The file is not a training state, or is damaged.
    """
    try:
        tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(path))
        document = json.loads(metadata["training_state"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "report": {}}
        history = tensors.pop("history")
        if not history[:, :5].isfinite().all() or (history[:, 4] <= 0).any():
            raise ValueError("the history has impossible values")
        if [row[0] for row in history.tolist()] != list(range(1, len(history) + 1)):
            raise ValueError("the history leaves out steps")
        if not isinstance(document["run"], dict):
            raise ValueError("it does not say of which run it is")
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
            **{name: document[name] for name in _PLAIN_FIELDS},
            history=[HistoryRow(int(step), *values) for step, *values in history.tolist()],
            report=report,
            model=parts["model"],
            average=parts["average"] or None,
            optimizer={"state": optimizer_state, "param_groups": document["param_groups"]},
        )
    except (
        CheckpointError, OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError, OverflowError
    ) as error:  # fmt: skip
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
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if not all(0 <= number < count for number in state["state"]):
        raise ValueError("the optimizer has other parameters")
    check_alike(state["param_groups"], optimizer.state_dict()["param_groups"])
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():  # copied in any case, because an optimizer writes into them
            if value.shape not in (parameter.shape, ()) or not value.isfinite().all():
                raise ValueError(f"the optimizer's {name} has impossible values, or another shape than its parameter")
            like = parameter if value.shape == parameter.shape else value
            values[name] = torch.empty_like(like, requires_grad=False).copy_(value)


def check_alike(value: object, example: object) -> None:
    """Check that plain values from a file have the form of an example: types, keys and lengths; numbers are finite.

    Raises:
        ValueError: They have not.
    """
    if isinstance(example, dict) and isinstance(value, dict) and value.keys() == example.keys():
        pairs = [(value[key], example[key]) for key in example]
    elif isinstance(example, list | tuple) and isinstance(value, list | tuple) and len(value) == len(example):
        pairs = list(zip(value, example, strict=True))
    else:
        numbers = all(type(each) in (int, float) for each in (value, example))
        alike = math.isfinite(value) if numbers else type(value) is type(example)  # type: ignore[arg-type]
        if not alike or isinstance(value, dict | list):
            raise ValueError(f"{str(value)[:80]!r} stands where a value such as {str(example)[:80]!r} belongs")
        return
    for pair in pairs:
        check_alike(*pair)
