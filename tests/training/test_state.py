"""The training state."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isanet.datasets import Folder
from isanet.errors import CheckpointError
from isanet.training.state import STATE_FILE, TrainingState, load_optimizer, read_state
from isanet.weights.checkpoint import serialize
from tests.helpers.training import RECIPE, tiny, train


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "contents", [b"", b"nonsense", pickle.dumps(Evil()), None], ids=["empty", "text", "evil", "evil zip"]
)
def test_an_untrusted_state_is_never_executed(
    splits: tuple[Folder, Folder], tmp_path: Path, contents: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    if contents is None:
        torch.save({"run": Evil()}, tmp_path / "run" / STATE_FILE)
    else:
        (tmp_path / "run" / STATE_FILE).write_bytes(contents)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} cannot be read"):
        train(tiny(), splits, tmp_path / "run")
    assert not (tmp_path / "executed").exists()


def state_after_a_run(splits: tuple[Folder, Folder], folder: Path, **changes: Any) -> TrainingState:
    train(tiny(), splits, folder, replace(RECIPE, **changes))
    return read_state(folder / STATE_FILE)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_state_is_read_back_bit_exactly(splits: tuple[Folder, Folder], tmp_path: Path, optimizer: str) -> None:
    state = state_after_a_run(splits, tmp_path / "run", optimizer=optimizer, lr=1e-3, ema=0.9)
    (tmp_path / "again").write_bytes(state.to_bytes())
    again = read_state(tmp_path / "again")
    for name in ("run", "step", "kept_step", "schedule", "scaler"):
        assert getattr(again, name) == getattr(state, name)
    assert repr(again.history) == repr(state.history)  # with NaN
    assert len(again.history) == again.step == 5
    assert again.report is not None
    assert state.report is not None
    assert again.report.to_json() == state.report.to_json()
    assert again.average is not None
    assert state.average is not None
    pairs = [(again.model, state.model), (again.average, state.average)]
    pairs += [(again.optimizer["state"][number], values) for number, values in state.optimizer["state"].items()]
    for one, other in pairs:
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.optimizer["param_groups"] == state.optimizer["param_groups"]


def test_an_optimizers_tensors_get_the_layout_of_their_parameters() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.1, momentum=0.9)
    convolution(torch.randn(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    flat = {number: {"momentum_buffer": v["momentum_buffer"].contiguous()} for number, v in state["state"].items()}
    load_optimizer(optimizer, {**state, "state": flat})
    buffer = optimizer.state[convolution.weight]["momentum_buffer"]
    assert buffer.stride() == convolution.weight.stride()
    assert torch.equal(buffer, flat[0]["momentum_buffer"])
    with pytest.raises(ValueError, match="other parameters"):
        load_optimizer(optimizer, {**state, "state": {7: flat[0]}})


@pytest.mark.parametrize("change", ["truncated", "a model", "another optimizer"])
def test_a_damaged_state_is_an_error(splits: tuple[Folder, Folder], tmp_path: Path, change: str) -> None:
    state = state_after_a_run(splits, tmp_path / "run")
    path = tmp_path / "run" / STATE_FILE
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "a model":
        path.write_bytes((tmp_path / "run" / "model.safetensors").read_bytes())
    else:
        path.write_bytes(replace(state, optimizer={"state": {}, "param_groups": []}).to_bytes())
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE}.*overwrite=True"):
        train(tiny(), splits, tmp_path / "run")


@pytest.mark.parametrize(
    "change", ["schedule", "lr", "momentum", "history", "steps", "run", "nested", "pipe", "folder"]
)
def test_a_state_with_impossible_values_is_an_error(splits: tuple[Folder, Folder], tmp_path: Path, change: str) -> None:
    state = state_after_a_run(splits, tmp_path / "run")
    path = tmp_path / "run" / STATE_FILE
    groups, moments = state.optimizer["param_groups"], state.optimizer["state"]
    changes: dict[str, dict[str, Any]] = {
        "schedule": {"schedule": {**state.schedule, "step": "no method"}},
        "lr": {"optimizer": {"state": moments, "param_groups": [{**group, "lr": "much"} for group in groups]}},
        "momentum": {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(7)}}, "param_groups": groups}},
        "history": {"history": [row._replace(images_per_second=0.0) for row in state.history]},
        "steps": {"history": [row._replace(step=row.step + 1) for row in state.history]},
        "run": {"run": []},
    }
    path.write_bytes(replace(state, **changes.get(change, {})).to_bytes())
    if change == "nested":
        path.write_bytes(serialize(state.model, {"training_state": "[" * 100_000}))
    if change in ("pipe", "folder"):
        path.unlink()
        (os.mkfifo if change == "pipe" else os.mkdir)(path)
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE}.*overwrite=True"):
        train(tiny(), splits, tmp_path / "run")
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()} == before
