"""The training loop: it validates and keeps, resumes bit-exactly, and loses nothing when something goes wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import isanet
from isanet.datasets import Folder
from isanet.errors import DatasetError, IsanetError, OutputError
from isanet.model import ISANet
from isanet.training import Recipe, loop
from isanet.training.state import STATE_FILE, read_state
from tests.helpers.disk import full_at
from tests.helpers.training import RECIPE, finished, history_of, same_bytes, tiny, train, wait_for_step


def test_the_datasets_transforms_replace_the_recipes(data: Path, tmp_path: Path) -> None:
    sizes = []

    def gray(image: Any, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(image.size)
        return torch.rand(3, 24, 40), torch.from_numpy(np.array(mask)[:24, :40])

    own = (Folder(data, "train", transforms=gray), Folder(data, "val"))
    train(tiny(), own, tmp_path / "run")
    assert sizes == [(48, 40)] * 14


def test_the_average_is_validated_and_kept(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = train(tiny(), splits, tmp_path / "run", replace(RECIPE, ema=0.5, epochs=1))
    state = read_state(tmp_path / "run" / STATE_FILE)
    kept = run.model.state_dict()
    assert state.average is not None
    assert all(torch.equal(state.average[name], value) for name, value in kept.items())
    assert not torch.equal(state.model["classifier.weight"], kept["classifier.weight"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The validations and loads of models in the loop, in order."""
    seen: list[str] = []

    def counted(name: str) -> None:
        original = getattr(loop, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(loop, name, call)

    counted("evaluate")
    counted("from_pretrained")
    return seen


BEST_EARLY = replace(RECIPE, epochs=6, optimizer="adamw", lr=0.002, ema=0.9)
"""A recipe whose best model is that of step 3 of 14."""


def figures(report: isanet.Report | None) -> dict[str, Any]:
    assert report is not None
    return {name: value for name, value in report.to_json().items() if name != "seconds"}


def test_the_kept_model_is_neither_reloaded_nor_validated_again(
    splits: tuple[Folder, Folder], tmp_path: Path, calls: list[str]
) -> None:
    run = train(tiny(), splits, tmp_path / "run", BEST_EARLY)
    assert calls == ["evaluate"] * 6
    assert run.model.provenance["step"] == "3 of 14"
    kept = isanet.from_pretrained(tmp_path / "run")
    assert kept.provenance == run.model.provenance
    assert kept.config == run.model.config
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in kept.state_dict().items())
    assert figures(isanet.evaluate(kept, splits[1], progress=False)) == figures(run.report)
    assert figures(isanet.Report.load(tmp_path / "run" / "evaluated")) == figures(run.report)


def test_a_finished_run_is_loaded_and_not_validated_again(
    splits: tuple[Folder, Folder], tmp_path: Path, calls: list[str]
) -> None:
    run = train(tiny(), splits, tmp_path / "run", BEST_EARLY)
    calls.clear()
    again = train(tiny(), splits, tmp_path / "run", BEST_EARLY)
    assert calls == ["from_pretrained"]
    assert figures(again.report) == figures(run.report)
    assert again.model.provenance == run.model.provenance


def test_a_model_that_was_kept_after_the_last_state_is_validated_once_more(
    splits: tuple[Folder, Folder], tmp_path: Path, calls: list[str]
) -> None:
    run = train(tiny(), splits, tmp_path / "run", BEST_EARLY)
    path = tmp_path / "run" / STATE_FILE
    path.write_bytes(replace(read_state(path), kept_step=1, report=None).to_bytes())
    calls.clear()
    again = train(tiny(), splits, tmp_path / "run", BEST_EARLY)
    assert calls == ["from_pretrained", "evaluate"]
    assert figures(again.report) == figures(run.report)


# --- resuming


def test_a_killed_run_resumes_bit_exactly(launch: Callable[..., Any], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=8, ema=0.9, optimizer="adamw", lr=0.002)
    finished(launch(tmp_path / "whole", recipe))
    for step, number in ((1, signal.SIGKILL), (7, signal.SIGINT)):  # both in the middle of an epoch
        process = launch(tmp_path / "killed", recipe)
        wait_for_step(process, tmp_path / "killed", step)
        process.send_signal(number)
        finished(process, -number)
    assert not list((tmp_path / "killed").glob(".isanet-*"))
    assert finished(launch(tmp_path / "killed", recipe)).startswith("done")
    assert history_of(tmp_path / "killed") == history_of(tmp_path / "whole")
    assert same_bytes(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed_after_the_step(launch: Callable[..., Any], tmp_path: Path, number: signal.Signals) -> None:
    recipe = replace(RECIPE, epochs=300, validate_every=300)
    process = launch(tmp_path / "run", recipe, save_every=0.5, workers=1)
    wait_for_step(process, tmp_path / "run", 1)
    os.killpg(process.pid, number)  # as terminals and batch systems do: to the loader worker, too
    shown = finished(process, -number)
    assert "resumes there" in shown
    state = read_state(tmp_path / "run" / STATE_FILE)
    assert 0 < state.step == len(history_of(tmp_path / "run")) < 700
    assert f"stopped after step {state.step} of 700" in shown


def test_a_finished_run_is_not_trained_again(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    first = train(tiny(), splits, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = train(tiny(), splits, tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    assert (again.best, again.history) == (first.best, first.history)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("recipe", lambda model, train, val: (model, train, val, replace(RECIPE, lr=0.1))),
        ("weights", lambda model, train, val: (_shifted(model), train, val, RECIPE)),
        ("train", lambda model, train, val: (model, val, val, RECIPE)),
        ("val", lambda model, train, val: (model, train, train, RECIPE)),
    ],
)
def test_a_run_resumes_only_with_the_same_arguments(
    splits: tuple[Folder, Folder], tmp_path: Path, what: str, change: Callable[..., Any]
) -> None:
    train(tiny(), splits, tmp_path / "run", RECIPE)
    model, train_data, val_data, recipe = change(tiny(), *splits)
    with pytest.raises(OutputError, match=f"a run with another {what}"):
        train(model, (train_data, val_data), tmp_path / "run", recipe)
    train(model, (train_data, val_data), tmp_path / "run", recipe, overwrite=True)


def test_a_run_that_another_machine_chose_otherwise_says_what_resumes_it(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"epochs": 1, "crop": (32, 32), "batch_size": 4}
    first = isanet.finetune(tiny(), *splits, given, tmp_path / "run", workers=0, progress=False)
    monkeypatch.setattr("isanet.training.plan.total_memory", lambda device: 1)
    with pytest.raises(OutputError, match=r"repeat the call as it was, with accumulate=1, use another folder"):
        isanet.finetune(tiny(), *splits, given, tmp_path / "run", workers=0, progress=False)
    given["accumulate"] = 1
    again = isanet.finetune(tiny(), *splits, given, tmp_path / "run", workers=0, progress=False)
    assert again.history == first.history


def _shifted(model: ISANet) -> ISANet:
    with torch.no_grad():
        model.classifier.weight[0, 0] += 0.01
    return model


def test_a_folder_with_something_else_in_it_is_left_alone(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("all my work")
    with pytest.raises(OutputError, match="holds something else"):
        train(tiny(), splits, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_leftovers_of_a_killed_process_are_removed(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".isanet-0123.part").write_bytes(b"half a state")
    train(tiny(), splits, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".isanet-*"))


# --- failures


def test_a_mask_that_breaks_later_loses_nothing(data: Path, tmp_path: Path) -> None:
    class Spoiled(Folder):
        reads = 0

        def read(self, index: Any) -> Any:
            self.reads += 1
            if self.reads > 17:
                raise DatasetError("the disk was taken away")
            return super().read(index)

    with pytest.raises(DatasetError, match="taken away"):
        train(tiny(), (Spoiled(data, "train"), Folder(data, "val")), tmp_path / "run")
    train(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")
    train(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "never stopped")
    assert same_bytes(tmp_path / "run", tmp_path / "never stopped")


def test_a_loss_that_is_not_finite_is_an_error_at_once(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(IsanetError, match=r"step (\d+) is (nan|inf).*has the state after step 0.*lower lr"):
        train(tiny(), splits, tmp_path / "run", replace(RECIPE, lr=1e18, epochs=20))
    state = read_state(tmp_path / "run" / STATE_FILE)
    assert all(value.isfinite().all() for value in state.model.values() if value.is_floating_point())


def test_a_loss_that_is_not_finite_once_loses_nothing(
    data: Path, splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image is all NaN, which has passed through batch norm before the loss is known."""
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    augmentation = loop.augmentation

    def broken(recipe: Recipe, preprocessing: Any) -> Any:
        calls, good = iter(range(100)), augmentation(recipe, preprocessing)

        def augment(*pair: Any) -> Any:
            image, mask = good(*pair)
            return (image * torch.nan if next(calls) == 9 else image), mask

        return augment

    monkeypatch.setattr(loop, "augmentation", broken)
    with pytest.raises(IsanetError, match=r"the loss of step 4 is nan.*the state after step 3"):
        train(tiny(), splits, tmp_path / "run")
    monkeypatch.setattr(loop, "augmentation", augmentation)
    train(tiny(), splits, tmp_path / "run")
    train(tiny(), splits, tmp_path / "never broken")
    assert same_bytes(tmp_path / "run", tmp_path / "never broken")


def test_a_full_disk_is_an_error_and_the_run_starts_later(
    launch: Callable[..., Any], splits: tuple[Folder, Folder], tmp_path: Path
) -> None:
    """A limit on the size of files imitates a full disk."""
    shown = finished(launch(tmp_path / "run", limit=600_000), 1)
    assert "cannot write" in shown
    assert STATE_FILE in shown
    assert not list((tmp_path / "run").iterdir())  # known before the first step
    train(tiny(), splits, tmp_path / "run")


def test_a_disk_that_is_too_small_is_an_error_before_the_first_step(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 3_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="will need about 4 MiB, and 2 are free"):
        train(tiny(), splits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_loses_nothing(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(), splits, tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    full_at(monkeypatch, file=9)
    with pytest.raises(OutputError, match="No space left"):
        train(tiny(), splits, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".isanet-*"))
    train(tiny(), splits, tmp_path / "run")
    assert same_bytes(tmp_path / "run", tmp_path / "whole")
