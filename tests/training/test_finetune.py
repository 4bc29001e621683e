"""The results of a training run, its reproducibility, and accelerate."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import isanet
from isanet.datasets import Folder
from isanet.errors import IsanetError
from isanet.model import ISANet
from isanet.training import Recipe, loop
from isanet.training.finetune import finetune
from isanet.training.state import STATE_FILE, read_state
from tests.helpers.hub_server import HubServer
from tests.helpers.training import CLASSES, COLORS, RECIPE, finished, history_of, same_bytes, tiny, train


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's, of httpx
def test_a_trained_model_is_loaded_used_and_published(
    splits: tuple[Folder, Folder], tmp_path: Path, hub: HubServer
) -> None:
    output = tmp_path / "runs" / "mine"
    recipe = replace(RECIPE, epochs=20, optimizer="adamw", lr=0.02, photometric=0.0)  # SGD gave 0.18 to 0.56
    run = train(tiny(), splits, output, recipe)
    assert run.report is not None
    assert run.report.miou == run.best == max(row["miou"] for row in run.history if row["miou"] is not None)
    assert run.best > 0.35  # the untrained model predicts one class everywhere, which is 0.13

    loaded = isanet.from_pretrained(output)
    assert loaded.classes == CLASSES
    assert loaded.palette == COLORS
    assert isanet.evaluate(loaded, splits[1], progress=False).miou == run.best
    result = isanet.Segmenter(output, device="cpu")(splits[1].image_path(0))
    assert set(result.areas()) <= set(CLASSES)

    figure = f"mIoU {100 * run.best:.2f} % on data val, 3 images"
    assert figure in (output / "README.md").read_text()
    loaded.push_to_hub("tester/mine", token=hub.token)
    fetched = isanet.from_pretrained("tester/mine")
    assert figure in fetched.provenance["measured"]
    assert Recipe.from_json(fetched.provenance["recipe"]) == recipe
    assert Recipe.from_json((output / "recipe.json").read_text()) == recipe


def test_a_trained_model_keeps_its_protocol_and_its_input(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    padding = {"pad_to": [48, 64], "pad_color": [0, 128, 255], "channels": "BGR"}
    model = tiny(protocol="flip", logits_resize="asymmetric")
    model.preprocessing = model.config["preprocessing"] = {"mean": [127.5] * 3, "std": [127.5] * 3, **padding}
    run = train(model, splits, tmp_path / "run")
    assert run.report is not None
    assert (run.report.protocol, run.report.protocol_reason) == ("flip", "the model's own")
    loaded = isanet.from_pretrained(tmp_path / "run")
    assert (loaded.protocol, loaded.logits_resize, loaded.preprocessing) == ("flip", "asymmetric", model.preprocessing)
    assert isanet.evaluate(loaded, splits[1], progress=False).miou == run.best


def test_the_history_has_every_step(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = train(tiny(), splits, tmp_path / "run")
    written = history_of(tmp_path / "run")
    assert [int(row["step"]) for row in written] == [1, 2, 3, 4, 5]  # 14 images in steps of at most 3
    assert [row["miou"] != "" for row in written] == [False, False, True, False, True]  # as epochs end
    assert float(written[0]["lr"]) == 0.02
    assert float(written[-1]["epoch"]) == 2.0
    assert [float(row["loss"]) for row in written] == pytest.approx([row["loss"] for row in run.history], rel=1e-6)
    assert all(row["images_per_second"] > 0 for row in run.history)


def test_curves_overlays_and_a_report_are_written(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    train(tiny(), splits, tmp_path / "run")
    for name in ("curves.png", "overlays.png"):
        with Image.open(tmp_path / "run" / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    assert (tmp_path / "run" / "evaluated" / "index.html").is_file()


def test_without_validation_data_the_last_model_is_kept(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = finetune(tiny(), splits[0], None, RECIPE, tmp_path / "run", device="cpu", workers=0, progress=False)
    assert (run.report, run.best) == (None, None)
    last = read_state(tmp_path / "run" / STATE_FILE).model
    kept = isanet.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(last[name], value) for name, value in kept.items())
    assert "Measured" not in (tmp_path / "run" / "README.md").read_text()


def test_the_given_model_is_not_changed(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, splits, tmp_path / "run", replace(RECIPE, freeze_backbone=True))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- frozen parts


def compiled_part(model: ISANet) -> ISANet:
    model.backbone = torch.compile(model.backbone, backend="eager")  # type: ignore[assignment]
    return model


WRAPPED: list[Callable[[ISANet], Any]] = [nn.DataParallel, compiled_part, lambda model: model.double()]


def test_a_wrapped_model_is_trained_as_itself(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    recipe, sets = replace(RECIPE, epochs=1), (splits[0], None)
    train(tiny(), sets, tmp_path / "plain", recipe)  # type: ignore[arg-type]
    train(nn.DataParallel(compiled_part(tiny().double())), sets, tmp_path / "wrapped", recipe)  # type: ignore[arg-type]
    assert same_bytes(tmp_path / "plain", tmp_path / "wrapped")


def test_a_wrapped_model_is_measured_and_saved_as_itself(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    expected = isanet.evaluate(tiny(), splits[1], device="cpu", workers=0, progress=False).miou
    for wrap in (*WRAPPED, AveragedModel, lambda model: torch.compile(model, backend="eager")):
        model = wrap(tiny())
        ISANet.save_pretrained(model, tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        assert saved.keys() == tiny().state_dict().keys()
        assert all(torch.equal(value, saved[name].to(value.dtype)) for name, value in tiny().state_dict().items())
        assert isanet.evaluate(model, splits[1], device="cpu", workers=0, progress=False).miou == expected


def test_a_frozen_backbone_is_bit_exactly_unchanged(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny()
    run = train(model, splits, tmp_path / "run", replace(RECIPE, freeze_backbone=True, ema=0.9, weight_decay=0.1))
    before, after = model.state_dict(), run.model.state_dict()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert not [name for name in changed if name.startswith("backbone.")]
    assert "classifier.weight" in changed
    assert "reduce.bn.running_mean" in changed


def test_frozen_batch_norms_are_bit_exactly_unchanged(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny()
    run = train(model, splits, tmp_path / "run", replace(RECIPE, freeze_batch_norm=True))
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    before, after = model.state_dict(), run.model.state_dict()
    for name, value in before.items():
        inside = name.rpartition(".")[0] in norms
        assert torch.equal(value, after[name]) == inside, name


# --- the same on any machine


def test_workers_make_no_difference(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    for workers in (0, 2):
        train(tiny(), splits, tmp_path / str(workers), workers=workers)
    assert same_bytes(tmp_path / "0", tmp_path / "2")


def test_the_seed_makes_a_difference(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny(), splits, tmp_path / str(seed), replace(RECIPE, seed=seed))
    assert not same_bytes(tmp_path / "0", tmp_path / "1")


def test_the_callers_random_generator_is_not_advanced(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = tiny(dropout=0.5)
    torch.manual_seed(5)
    train(model, splits, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [{}, {"class_weights": (1.0, 5.0, 0.2)}], ids=["plain", "class weights"])
def test_gradient_accumulation_equals_the_whole_batch(
    splits: tuple[Folder, Folder], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Up to rounding, in float32; batch norm is frozen, because it would see only a part of the batch."""
    recipe = replace(RECIPE, batch_size=4, epochs=4, freeze_batch_norm=True, lr=0.001, **changes)
    losses = {}
    for parts in (1, 2, 4):
        recipe = replace(recipe, accumulate=parts)
        run = train(tiny(dropout=0.0), splits, tmp_path / str(parts), recipe)
        losses[parts] = [row["loss"] for row in run.history]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    assert losses[4] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9}, {"class_weights": (1.0, 5.0, 0.2), "accumulate": 2, "batch_size": 6, "epochs": 3}],
    ids=["uneven batches", "weights and parts"],
)
def test_two_processes_equal_one(
    splits: tuple[Folder, Folder], launch: Callable[..., Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Up to rounding, in float32. 14 images in 5 steps are batches of 3 and 2: shares of 2 and 1, or 1 and 1."""
    recipe = replace(RECIPE, clip_grad_norm=1.0, **changes)
    if "accumulate" in changes:  # batch norm would see other parts of the batch in several processes
        recipe = replace(recipe, freeze_batch_norm=True)
    train(tiny(dropout=0.0, gradient_checkpointing=True), splits, tmp_path / "1", recipe)
    finished(launch(tmp_path / "2", recipe, processes=2, dropout=0.0))
    one, two = history_of(tmp_path / "1"), history_of(tmp_path / "2")
    assert len(one) == len(two) == (4 if "accumulate" in changes else 5)
    for name in ("step", "epoch", "lr"):
        assert [row[name] for row in one] == [row[name] for row in two]
    losses = [[float(row["loss"]) for row in history] for history in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    states = [isanet.from_pretrained(tmp_path / name).state_dict() for name in "12"]
    for name, value in states[0].items():  # not with AdamW, which divides rounding errors by rounding errors
        torch.testing.assert_close(states[1][name].double(), value.double(), rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("trap", "message"),
    [
        ("an error in one", "process 1 of 2: 'NoneType' object is not callable"),
        ("another model in one", "different models or data"),
    ],
)
def test_a_failure_in_one_process_ends_all(launch: Callable[..., Any], tmp_path: Path, trap: str, message: str) -> None:
    process = launch(tmp_path / "run", processes=2, trap=trap)
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in shown + errors
    assert not (tmp_path / "run").exists()


# --- accelerate


def test_mixed_precision_is_close_to_float32(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isanet.training.plan.has_bfloat16", lambda device: True)
    losses = []
    for precision in ("float32", "bfloat16"):
        run = train(tiny(dropout=0.0), splits, tmp_path / precision, replace(RECIPE, precision=precision, lr=0.001))
        losses.append([row["loss"] for row in run.history])
        assert all(value.dtype == torch.float32 for value in run.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)  # bfloat16 has 8 bits of mantissa


def test_where_bfloat16_is_emulated_float32_is_taken(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("isanet.training.plan.has_bfloat16", lambda device: False)
    with caplog.at_level(logging.INFO, "isanet"):
        train(tiny(), splits, tmp_path / "asked", replace(RECIPE, precision="bfloat16"))
    assert "training in float32: cpu computes bfloat16 by way of it, which is slower" in caplog.text
    assert Recipe.from_json((tmp_path / "asked" / "recipe.json").read_text()).precision == "float32"
    train(tiny(), splits, tmp_path / "float32", replace(RECIPE, precision="float32"))
    weights = (load_file(tmp_path / name / "model.safetensors") for name in ("asked", "float32"))
    assert all(torch.equal(one, other) for one, other in zip(*(each.values() for each in weights), strict=True))


def test_a_run_goes_on_in_the_precision_of_another_processor(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, native = replace(RECIPE, precision="bfloat16"), True
    monkeypatch.setattr("isanet.training.plan.has_bfloat16", lambda device: native)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "SAVE_EVERY", 0.0)
        broken.setattr(loop.Training, "_validation_is_due", lambda training: training.step == 2 and 1 // 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny(), splits, tmp_path / "run", recipe)
    native = False
    run = train(tiny(), splits, tmp_path / "run", recipe)
    assert "the steps so far were in bfloat16, those to come are in float32" in caplog.text
    assert len(run.history) == 5
    state = read_state(tmp_path / "run" / STATE_FILE)
    assert (state.run["recipe"]["precision"], state.run["precision"]) == ("bfloat16", "float32")


def test_the_recipe_overrides_the_launchers_gradient_accumulation(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(), splits, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(tiny(), splits, tmp_path / "launched")
    assert same_bytes(tmp_path / "plain", tmp_path / "launched")


def test_an_error_leaves_no_state_behind(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        train(tiny(), splits, tmp_path / "run", trackers=["nonsense"])
    train(tiny(), splits, tmp_path / "run", replace(RECIPE, precision="bfloat16"))


def test_trackers_get_recipe_and_metrics(splits: tuple[Folder, Folder], tmp_path: Path) -> None:
    from accelerate.tracking import GeneralTracker

    class Recorder(GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory = "recorder", False
        config: ClassVar[dict[str, Any]] = {}
        values: ClassVar[list[tuple[int, dict[str, float]]]] = []
        finished = False

        @property
        def tracker(self) -> Any:
            return self

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.config.update(values)

        def log(self, values: dict[str, float], step: int | None, **_: Any) -> None:
            self.values.append((step or 0, values))

        def finish(self) -> None:
            Recorder.finished = True

    run = train(tiny(), splits, tmp_path / "run", trackers=[Recorder()])
    assert Recorder.config["lr"] == 0.02
    assert [values["train/loss"] for _, values in Recorder.values] == [row["loss"] for row in run.history]
    assert [step for step, values in Recorder.values if "val/miou" in values] == [3, 5]
    assert Recorder.finished


def test_without_accelerate_the_extra_is_named(
    splits: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(IsanetError, match=r"isanet\[train\]"):
        train(tiny(), splits, tmp_path / "run")


def test_a_resumed_run_completes_the_files_that_lag_behind_its_state(
    splits: tuple[Folder, Folder], tmp_path: Path
) -> None:
    train(tiny(), splits, tmp_path / "run")
    history = (tmp_path / "run" / "history.csv").read_bytes()
    (tmp_path / "run" / "history.csv").write_bytes(history[:100])
    (tmp_path / "run" / "recipe.json").unlink()
    train(tiny(), splits, tmp_path / "run")
    assert (tmp_path / "run" / "history.csv").read_bytes() == history
    assert Recipe.from_json((tmp_path / "run" / "recipe.json").read_text()) == RECIPE
