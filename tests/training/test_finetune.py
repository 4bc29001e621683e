"""Training: what it makes, that it goes on to the bit, and that nothing is lost when something goes wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import isanet
from isanet.datasets import Folder, SegmentationDataset, open_train_and_val
from isanet.errors import CheckpointError, DatasetError, IsanetError, OutputError
from isanet.labels import IGNORED
from isanet.model import ISANet
from isanet.training import Recipe, loop, plan, preflight
from isanet.training.finetune import finetune
from isanet.training.optim import freeze, update_average
from isanet.training.state import STATE_FILE, read_state
from tests.helpers.disk import full_at
from tests.helpers.hub_server import HubServer

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {"backbone": "resnet14", "width": 8, "head_channels": 16, "key_channels": 8, "aux_channels": 8}
PREPROCESSING = {"short_edge": 32, "long_edge": 512, "mean": [127.5] * 3, "std": [127.5] * 3}
CLASSES = ("grass", "rust", "sea")
COLORS = ((60, 160, 70), (170, 80, 50), (50, 90, 180))

RECIPE = Recipe(lr=0.02, epochs=2, batch_size=3, crop=(32, 32), scale_range=(0.8, 1.25), max_class_share=1.0)


def tiny(**arguments: Any) -> ISANet:
    torch.manual_seed(0)
    return ISANet(**TINY, classes=CLASSES, palette=COLORS, preprocessing=PREPROCESSING, **arguments)


def write_data(root: Path, count: int = 7, val: int = 3) -> Path:
    """Images of three noisy colors in bands, and their masks; a border is ignored."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            mask = np.repeat(rng.integers(0, 3, (5, 1)), 8, axis=0).repeat(48, axis=1).astype(np.uint8)
            pixels = np.array(COLORS)[mask] + rng.normal(0, 25, (*mask.shape, 3))
            mask[0] = IGNORED
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def sets(data: Path) -> tuple[Folder, Folder]:
    return Folder(data, "train"), Folder(data, "val")


def go(model: Any, sets: tuple[Folder, Folder], output: Path, recipe: Recipe = RECIPE, **arguments: Any) -> Any:
    return finetune(model, *sets, recipe, output, **{"device": "cpu", "workers": 0, "progress": False, **arguments})


def rows(output: Path) -> list[dict[str, str]]:
    """The history without times, which differ."""
    with (output / "history.csv").open(newline="") as file:
        return [{name: row[name] for name in row if name != "images_per_second"} for row in csv.DictReader(file)]


def same_bytes(*folders: Path) -> bool:
    return len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1


# --- what it makes


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's, of httpx
def test_what_it_makes_is_taken_by_all_that_takes_a_model(
    sets: tuple[Folder, Folder], tmp_path: Path, hub: HubServer
) -> None:
    output = tmp_path / "runs" / "mine"
    recipe = replace(RECIPE, epochs=20, lr=0.2, photometric=0.0)
    run = go(tiny(), sets, output, recipe)
    assert run.report is not None
    assert run.report.miou == run.best == max(row["miou"] for row in run.history if row["miou"] is not None)
    assert run.best > 0.35  # it began with one class everywhere, which is 0.13

    loaded = isanet.from_pretrained(output)
    assert loaded.classes == CLASSES
    assert loaded.palette == COLORS
    assert isanet.evaluate(loaded, sets[1], progress=False).miou == run.best
    result = isanet.Segmenter(output, device="cpu")(sets[1].image_path(0))
    assert set(result.areas()) <= set(CLASSES)

    figure = f"mIoU {100 * run.best:.2f} % on data val, 3 images"
    assert figure in (output / "README.md").read_text()
    loaded.push_to_hub("tester/mine", token=hub.token)
    fetched = isanet.from_pretrained("tester/mine")
    assert figure in fetched.provenance["measured"]
    assert Recipe.from_json(fetched.provenance["recipe"]) == recipe
    assert Recipe.from_json((output / "recipe.json").read_text()) == recipe


def test_the_history_says_every_step(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = go(tiny(), sets, tmp_path / "run")
    written = rows(tmp_path / "run")
    assert [int(row["step"]) for row in written] == [1, 2, 3, 4, 5]  # 14 images in steps of at most 3
    assert [row["miou"] != "" for row in written] == [False, False, True, False, True]  # as epochs end
    assert float(written[0]["lr"]) == 0.02
    assert float(written[-1]["epoch"]) == 2.0
    assert [float(row["loss"]) for row in written] == pytest.approx([row["loss"] for row in run.history], rel=1e-6)
    assert all(row["images_per_second"] > 0 for row in run.history)


def test_images_show_how_it_went(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    go(tiny(), sets, tmp_path / "run")
    for name in ("curves.png", "overlays.png"):
        with Image.open(tmp_path / "run" / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    assert (tmp_path / "run" / "evaluated" / "index.html").is_file()


def test_without_validation_data_the_last_model_is_kept(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = finetune(tiny(), sets[0], None, RECIPE, tmp_path / "run", device="cpu", workers=0, progress=False)
    assert (run.report, run.best) == (None, None)
    last = read_state(tmp_path / "run" / STATE_FILE).model
    kept = isanet.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(last[name], value) for name, value in kept.items())
    assert "Measured" not in (tmp_path / "run" / "README.md").read_text()


def test_the_model_that_was_given_stays_as_it_is(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    go(model, sets, tmp_path / "run", replace(RECIPE, freeze_backbone=True))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_given_by_its_place_gets_the_classes_of_the_data(
    sets: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    other = ISANet(**TINY, classes=["sea", "snow"], preprocessing=PREPROCESSING)
    other.save_pretrained(tmp_path / "other")
    with caplog.at_level(logging.INFO, "isanet"):
        run = go(str(tmp_path / "other"), sets, tmp_path / "run", replace(RECIPE, lr=1e-12))
    assert run.model.classes == CLASSES
    assert run.model.palette == sets[0].palette
    assert "randomly initialized, except for sea" in caplog.text
    row = run.model.classifier.weight[CLASSES.index("sea")]
    torch.testing.assert_close(row, other.classifier.weight[0], atol=1e-8, rtol=0)  # the rate is next to nothing
    assert run.model.provenance["started_from"] == "other"
    start = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert run.model.provenance["started_from_sha256"] == hashlib.sha256(start).hexdigest()


def test_classes_that_differ_are_an_error(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    other = ISANet(**TINY, classes=["sea", "snow", "sand"], preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match="snow"):
        go(other, sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_transforms_of_the_data_take_the_place_of_the_recipes(data: Path, tmp_path: Path) -> None:
    sizes = []

    def gray(image: Any, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(image.size)
        return torch.rand(3, 24, 40), torch.from_numpy(np.array(mask)[:24, :40])

    own = (Folder(data, "train", transforms=gray), Folder(data, "val"))
    go(tiny(), own, tmp_path / "run")
    assert sizes == [(48, 40)] * 14


def test_it_validates_and_keeps_the_average_where_there_is_one(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    run = go(tiny(), sets, tmp_path / "run", replace(RECIPE, ema=0.5, epochs=1))
    state = read_state(tmp_path / "run" / STATE_FILE)
    kept = run.model.state_dict()
    assert state.average is not None
    assert all(torch.equal(state.average[name], value) for name, value in kept.items())
    assert not torch.equal(state.model["classifier.weight"], kept["classifier.weight"])


def test_the_average_moves_by_its_decay() -> None:
    average, model = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(2.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    update_average(average, model, decay=0.9, step=10_000)
    assert average.weight.item() == pytest.approx(1.2)
    assert average.running_mean.item() == pytest.approx(0.2)  # type: ignore[union-attr]
    assert average.num_batches_tracked.item() == 7  # type: ignore[union-attr]
    fast = nn.BatchNorm2d(1)
    update_average(fast, model, decay=0.9, step=1)  # (1 + 1) / (10 + 1) of what was
    assert fast.weight.item() == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)


# --- what is frozen


def test_a_frozen_backbone_does_not_change_by_a_bit(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny()
    run = go(model, sets, tmp_path / "run", replace(RECIPE, freeze_backbone=True, ema=0.9, weight_decay=0.1))
    before, after = model.state_dict(), run.model.state_dict()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert not [name for name in changed if name.startswith("backbone.")]
    assert "classifier.weight" in changed
    assert "reduce.bn.running_mean" in changed


def test_frozen_batch_norms_do_not_change_by_a_bit(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    model = tiny()
    run = go(model, sets, tmp_path / "run", replace(RECIPE, freeze_batch_norm=True))
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    before, after = model.state_dict(), run.model.state_dict()
    for name, value in before.items():
        inside = name.rpartition(".")[0] in norms
        assert torch.equal(value, after[name]) == inside, name


# --- the same whatever the machine


def test_workers_make_no_difference(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    for workers in (0, 2):
        go(tiny(), sets, tmp_path / str(workers), workers=workers)
    assert same_bytes(tmp_path / "0", tmp_path / "2")


def test_the_seed_makes_a_difference(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    for seed in (0, 1):
        go(tiny(), sets, tmp_path / str(seed), replace(RECIPE, seed=seed))
    assert not same_bytes(tmp_path / "0", tmp_path / "1")


def test_nobodys_random_numbers_are_used_up(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = tiny(dropout=0.5)
    torch.manual_seed(5)
    go(model, sets, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [{}, {"class_weights": (1.0, 5.0, 0.2)}], ids=["plain", "class weights"])
def test_parts_of_a_batch_add_up_to_it(sets: tuple[Folder, Folder], tmp_path: Path, changes: dict[str, Any]) -> None:
    """Without batch norm's own statistics, which are those of a part; float32, so only to rounding."""
    recipe = replace(RECIPE, batch_size=4, epochs=4, freeze_batch_norm=True, lr=0.001, **changes)
    losses = {}
    for parts in (1, 2, 4):
        recipe = replace(recipe, accumulate=parts)
        run = go(tiny(dropout=0.0), sets, tmp_path / str(parts), recipe)
        losses[parts] = [row["loss"] for row in run.history]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    assert losses[4] == pytest.approx(losses[1], rel=1e-5)


SCRIPT = """
import json, logging, os, sys
from pathlib import Path
import torch
from isanet.training import loop, plan
from isanet.training.finetune import finetune
from isanet.datasets import Folder
from tests.training.test_finetune import RECIPE, tiny
from isanet.training import Recipe
root, output, recipe, save_every = sys.argv[1:5]
logging.basicConfig(level=logging.WARNING)
loop.SAVE_EVERY = float(save_every)
second = os.environ.get("RANK") == "1"
if sys.argv[7] == "an error in one" and second:
    plan.check_loss = None
sets = Folder(root, "train"), Folder(root, "val")
model = tiny(dropout=float(sys.argv[5]), gradient_checkpointing=True)
if sys.argv[7] == "another model in one" and second:
    torch.nn.init.normal_(model.classifier.weight)
run = finetune(model, *sets, Recipe.from_json(recipe), output, device="cpu",
               workers=int(sys.argv[6]), progress=False)
print("done", run.best)
"""


@pytest.fixture
def start(tmp_path: Path, data: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a training in processes of their own."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def begin(
        output: Path,
        recipe: Recipe = RECIPE,
        *,
        processes: int = 1,
        save_every: float = 0,
        dropout: float = 0.1,
        limit: int | None = None,
        workers: int = 0,
        trap: str = "",
    ) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        arguments = [str(data), str(output), recipe.to_json(), str(save_every), str(dropout), str(workers), trap]
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), str(tmp_path / "script.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )

    return begin


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    shown, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors
    return shown + errors


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(FileNotFoundError):
            if len((output / "history.csv").read_text().splitlines()) > step:
                return
        time.sleep(0.005)
    raise AssertionError(f"no step {step}: {process.communicate()}")


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9}, {"class_weights": (1.0, 5.0, 0.2), "accumulate": 2, "batch_size": 6, "epochs": 3}],
    ids=["uneven batches", "weights and parts"],
)
def test_two_processes_equal_one(start: Callable[..., Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    """14 images in 5 steps are batches of 3 and 2, so shares of 2, 1 and 1, 1. float32, so only to rounding."""
    recipe = replace(RECIPE, clip_grad_norm=1.0, **changes)
    if "accumulate" in changes:  # then batch norm sees parts, which are others on several processes
        recipe = replace(recipe, freeze_batch_norm=True)
    for processes in (1, 2):
        finished(start(tmp_path / str(processes), recipe, processes=processes, dropout=0.0))
    one, two = rows(tmp_path / "1"), rows(tmp_path / "2")
    assert len(one) == len(two) == (4 if "accumulate" in changes else 5)
    for name in ("step", "epoch", "lr"):
        assert [row[name] for row in one] == [row[name] for row in two]
    losses = [[float(row["loss"]) for row in history] for history in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    states = [isanet.from_pretrained(tmp_path / name).state_dict() for name in "12"]
    for name, value in states[0].items():  # AdamW would not do here: it divides rounding by rounding
        torch.testing.assert_close(states[1][name].double(), value.double(), rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("trap", "message"),
    [
        ("an error in one", "process 1 of 2: 'NoneType' object is not callable"),
        ("another model in one", "different models or data"),
    ],
)
def test_what_is_wrong_in_one_process_ends_all(
    start: Callable[..., Any], tmp_path: Path, trap: str, message: str
) -> None:
    process = start(tmp_path / "run", processes=2, trap=trap)
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in shown + errors
    assert not (tmp_path / "run").exists()


NORM_SCRIPT = """
import sys
import torch
from torch import distributed, nn
from isanet.training.sync_norm import synchronized
distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(0)
x = torch.randn(5, 3, 4, 6, dtype=torch.float64) * 3 + 1
weight = torch.randn(5, 3, 4, 6, dtype=torch.float64)
plain = nn.Sequential(nn.BatchNorm2d(3)).double()
nn.init.normal_(plain[0].weight); nn.init.normal_(plain[0].bias)
whole = x.clone().requires_grad_()
expected = plain(whole)
(expected * weight).sum().backward()
torch.manual_seed(0); torch.randn(5, 3, 4, 6, dtype=torch.float64); torch.randn(5, 3, 4, 6, dtype=torch.float64)
own = nn.Sequential(nn.BatchNorm2d(3)).double()
nn.init.normal_(own[0].weight); nn.init.normal_(own[0].bias)
own = synchronized(own, torch.device("cpu"))
share = slice(0, 3) if rank == 0 else slice(3, 5)
part = x[share].clone().requires_grad_()
result = own(part)
(result * weight[share]).sum().backward()
for parameter in own.parameters():
    distributed.all_reduce(parameter.grad)
pairs = [(result, expected[share]), (part.grad, whole.grad[share]), (own[0].running_mean, plain[0].running_mean),
         (own[0].running_var, plain[0].running_var), (own[0].weight.grad, plain[0].weight.grad),
         (own[0].bias.grad, plain[0].bias.grad)]
for one, other in pairs:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
assert list(own.state_dict()) == list(plain.state_dict())
assert own[0].num_batches_tracked == plain[0].num_batches_tracked
own.eval(), plain.eval()
torch.testing.assert_close(own(part), plain(part), rtol=1e-12, atol=1e-12)
distributed.destroy_process_group()
print("equal")
"""


def test_synchronized_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "norm.py").write_text(NORM_SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(tmp_path / "norm.py"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.count("equal") == 2, done.stderr


# --- going on


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    start: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    recipe = replace(RECIPE, epochs=8, ema=0.9, optimizer="adamw", lr=0.002)
    finished(start(tmp_path / "whole", recipe))
    for step in (1, 7):  # both in the middle of an epoch
        process = start(tmp_path / "killed", recipe)
        wait_for_step(process, tmp_path / "killed", step)
        process.send_signal(number)
        process.communicate(timeout=100)
        assert process.returncode == -number
    assert finished(start(tmp_path / "killed", recipe)).startswith("done")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert same_bytes(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".isanet-*")) or number == signal.SIGKILL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_is_obeyed_after_the_step(
    start: Callable[..., Any], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    recipe = replace(RECIPE, epochs=300, validate_every=300)
    process = start(tmp_path / "run", recipe, save_every=0.5, workers=1)
    wait_for_step(process, tmp_path / "run", 1)
    os.killpg(process.pid, number)  # as terminals and batch systems do: to the process that reads, too
    shown = finished(process, code)
    assert "resumes there" in shown
    state = read_state(tmp_path / "run" / STATE_FILE)
    assert 0 < state.step == len(rows(tmp_path / "run")) < 700
    assert f"stopped after step {state.step} of 700" in shown


def test_a_finished_run_is_not_trained_again(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    first = go(tiny(), sets, tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = go(tiny(), sets, tmp_path / "run")
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
def test_it_goes_on_only_with_the_same(
    sets: tuple[Folder, Folder], tmp_path: Path, what: str, change: Callable[..., Any]
) -> None:
    go(tiny(), sets, tmp_path / "run", RECIPE)
    model, train, val, recipe = change(tiny(), *sets)
    with pytest.raises(OutputError, match=f"a run with another {what}"):
        go(model, (train, val), tmp_path / "run", recipe)
    go(model, (train, val), tmp_path / "run", recipe, overwrite=True)


def _shifted(model: ISANet) -> ISANet:
    with torch.no_grad():
        model.classifier.weight[0, 0] += 0.01
    return model


def test_a_folder_with_something_else_in_it_is_left_alone(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("all my work")
    with pytest.raises(OutputError, match="holds something else"):
        go(tiny(), sets, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "contents", [b"", b"nonsense", pickle.dumps(Evil()), None], ids=["empty", "text", "evil", "evil zip"]
)
def test_a_state_that_is_none_is_never_run(
    sets: tuple[Folder, Folder], tmp_path: Path, contents: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    if contents is None:
        torch.save({"run": Evil()}, tmp_path / "run" / STATE_FILE)
    else:
        (tmp_path / "run" / STATE_FILE).write_bytes(contents)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} cannot be read"):
        go(tiny(), sets, tmp_path / "run")
    assert not (tmp_path / "executed").exists()


# --- what goes wrong


def test_a_wrong_mask_is_said_before_the_first_step(data: Path, tmp_path: Path) -> None:
    path = data / "masks" / "train" / "5.png"
    mask = np.array(Image.open(path))
    mask[3, 4] = 77
    Image.fromarray(mask).save(path)
    with pytest.raises(DatasetError, match=r"5\.png.*77"):
        go(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run", workers=1)
    assert not (tmp_path / "run").exists()


def test_a_mask_that_becomes_wrong_later_loses_nothing(data: Path, tmp_path: Path) -> None:
    class Spoiled(Folder):
        reads = 0

        def read(self, index: Any) -> Any:
            self.reads += 1
            if self.reads > 17:
                raise DatasetError("the disk was taken away")
            return super().read(index)

    with pytest.raises(DatasetError, match="taken away"):
        go(tiny(), (Spoiled(data, "train"), Folder(data, "val")), tmp_path / "run")
    go(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")
    go(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "never stopped")
    assert same_bytes(tmp_path / "run", tmp_path / "never stopped")


def test_what_a_killed_process_left_is_no_hindrance(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".isanet-0123.part").write_bytes(b"half a state")
    go(tiny(), sets, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".isanet-*"))


def test_images_in_both_sets_are_said(
    sets: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = go(tiny(), (sets[0], sets[0]), tmp_path / "run", replace(RECIPE, epochs=1))
    assert "7 images are in both the training and the validation data" in caplog.text
    assert "of which 7 are in the training data too" in run.model.provenance["measured"]


def test_masks_without_anything_to_learn_are_an_error(data: Path, tmp_path: Path) -> None:
    for path in (data / "masks" / "train").iterdir():
        Image.new("L", (48, 40), IGNORED).save(path)
    with pytest.raises(DatasetError, match=r"all pixels .* are ignored"):
        go(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")


def test_shares_are_shown_and_absent_classes_said(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = np.zeros(3)
    for path in (data / "masks" / "train").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        Image.fromarray(mask).save(path)
        expected += [(mask == index).mean() for index in range(3)]
    with caplog.at_level(logging.INFO, "isanet"):
        go(tiny(), (Folder(data, "train"), Folder(data, "val")), tmp_path / "run")
    lines = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line.split()[-1].isdigit()}
    assert float(lines["grass"][0]) == pytest.approx(100 * expected[0] / 7, abs=0.006)
    assert "no training mask has sea" in caplog.text


def test_a_loss_that_is_not_finite_is_said_at_once(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(IsanetError, match=r"step (\d+) is (nan|inf).*has the state after step 0.*lower lr"):
        go(tiny(), sets, tmp_path / "run", replace(RECIPE, lr=1e18, epochs=20))
    state = read_state(tmp_path / "run" / STATE_FILE)
    assert all(value.isfinite().all() for value in state.model.values() if value.is_floating_point())


def test_a_loss_that_is_not_finite_once_loses_nothing(
    data: Path, sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of nothing but NaN: by then it has been through batch norm."""
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
        go(tiny(), sets, tmp_path / "run")
    monkeypatch.setattr(loop, "augmentation", augmentation)
    go(tiny(), sets, tmp_path / "run")
    go(tiny(), sets, tmp_path / "never broken")
    assert same_bytes(tmp_path / "run", tmp_path / "never broken")


def test_a_full_disk_is_said_and_what_is_there_stays(start: Callable[..., Any], tmp_path: Path) -> None:
    """A limit to the size of files, which stands for the disk's."""
    shown = finished(start(tmp_path / "run", limit=600_000), 1)
    assert "cannot write" in shown
    assert STATE_FILE in shown
    assert not list((tmp_path / "run").iterdir())  # known before the first step
    finished(start(tmp_path / "run"))


def test_a_disk_that_will_not_do_is_said_before_the_first_step(
    sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 3_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="will need about 4 MiB, and 2 are free"):
        go(tiny(), sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_in_between_loses_nothing(
    sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tiny(), sets, tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    full_at(monkeypatch, file=9)
    with pytest.raises(OutputError, match="No space left"):
        go(tiny(), sets, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".isanet-*"))
    go(tiny(), sets, tmp_path / "run")
    assert same_bytes(tmp_path / "run", tmp_path / "whole")


def test_a_batch_that_cannot_fit_is_said(
    sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, batch_size=8, epochs=8, crop=(256, 256))
    needed = preflight.step_memory(tiny(), recipe, 8)
    monkeypatch.setattr(plan, "free_memory", lambda device: needed * 2 // 3)
    with pytest.raises(ValueError, match=r"needs about .*accumulate=2"):
        go(tiny(), sets, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("frozen", [False, True])
def test_what_a_step_needs_is_foreseen(frozen: bool) -> None:
    """Against what autograd really keeps on the processor."""
    model = tiny().train()
    if frozen:
        freeze(model, "backbone")
    recipe = replace(RECIPE, crop=(96, 128))
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images, masks = torch.randn(3, 3, 96, 128), torch.randint(0, 3, (3, 96, 128))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        isanet.training.segmentation_loss(*model(images, aux=True), masks)
    real = sum(kept.values())
    foreseen = preflight.step_memory(model, recipe, 3)
    states = 12 * sum(parameter.numel() for parameter in model.parameters())
    assert 0.7 * real < foreseen < 1.4 * (real + states)


def test_a_batch_of_one_with_training_batch_norm_is_said(
    sets: tuple[Folder, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go(tiny(), sets, tmp_path / "run", replace(RECIPE, batch_size=1, epochs=1))
    assert "a single image at a time" in caplog.text
    caplog.clear()
    go(tiny(), sets, tmp_path / "frozen", replace(RECIPE, batch_size=1, epochs=1, freeze_batch_norm=True))
    assert "a single image at a time" not in caplog.text


def test_steps_with_fewer_images_than_parts_are_an_error(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        go(tiny(), sets, tmp_path / "run", replace(RECIPE, batch_size=8, accumulate=8, epochs=1))


@pytest.mark.filterwarnings("ignore:.*no supported trackers:UserWarning")  # accelerate's, before our error
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:1"}, "device must be"),
        ({"workers": -1}, "workers must be"),
        ({"recipe": replace(RECIPE, precision="float16")}, "float16 needs a GPU"),
        ({"trackers": ["nonsense"]}, "nonsense"),
        ({"trackers": ["comet_ml"]}, "comet_ml is not installed"),
        ({"recipe": replace(RECIPE, class_weights=(1.0, 2.0))}, "class_weights must be 3 numbers"),
    ],
)
def test_wrong_calls_are_errors(
    sets: tuple[Folder, Folder], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        go(tiny(), sets, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_only_datasets_of_the_package_are_taken(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"isanet\.datasets"):
        finetune(tiny(), list(sets[0]), sets[1], RECIPE, tmp_path / "run")  # type: ignore[arg-type]


def test_without_accelerate_the_extra_is_named(
    sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(IsanetError, match=r"isanet\[train\]"):
        go(tiny(), sets, tmp_path / "run")


# --- what accelerate brings


def test_mixed_precision_is_near_single(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        run = go(tiny(dropout=0.0), sets, tmp_path / precision, replace(RECIPE, precision=precision, lr=0.001))
        losses.append([row["loss"] for row in run.history])
        assert all(value.dtype == torch.float32 for value in run.model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)  # 8 bits of mantissa


def test_what_was_launched_with_parts_trains_as_the_recipe_says(
    sets: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tiny(), sets, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    go(tiny(), sets, tmp_path / "launched")
    assert same_bytes(tmp_path / "plain", tmp_path / "launched")


def test_an_error_leaves_nothing_behind(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        go(tiny(), sets, tmp_path / "run", trackers=["nonsense"])
    go(tiny(), sets, tmp_path / "run", replace(RECIPE, precision="bfloat16"))


def test_trackers_are_told(sets: tuple[Folder, Folder], tmp_path: Path) -> None:
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

    run = go(tiny(), sets, tmp_path / "run", trackers=[Recorder()])
    assert Recorder.config["lr"] == 0.02
    assert [values["train/loss"] for _, values in Recorder.values] == [row["loss"] for row in run.history]
    assert [step for step, values in Recorder.values if "val/miou" in values] == [3, 5]
    assert Recorder.finished


# --- the command


def command(*arguments: object) -> int:
    from isanet.cli import main

    return main(["--quiet", *map(str, arguments)])


def test_the_command_trains_on_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny().save_pretrained(tmp_path / "start")
    settings = ["epochs=2", "batch_size=3", "crop=[32,32]", "optimizer=adamw", "lr=0.001"]
    call = ("finetune", data, "--model", tmp_path / "start", "--output", tmp_path / "run", "--device", "cpu")
    assert command(*call, "--set", *settings[:2], "--set", *settings[2:]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown
    assert "curves.png" in shown
    recipe = Recipe.from_json((tmp_path / "run" / "recipe.json").read_text())
    assert recipe == replace(Recipe(), epochs=2, batch_size=3, crop=(32, 32), optimizer="adamw", lr=0.001)
    assert "7 images" in isanet.from_pretrained(tmp_path / "run").provenance["trained_on"]

    assert command(*call, "--set", "epochs=3") == 1
    assert "another recipe" in capsys.readouterr().err
    assert command(*call, "--recipe", tmp_path / "run" / "recipe.json", "--set", "seed=3", "--force") == 0


def test_the_command_holds_images_out_where_there_is_no_split(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", count=10, val=1)
    for kind in ("images", "masks"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        for split in ("train", "val"):
            for path in (root / kind / split).iterdir():
                path.unlink()
            (root / kind / split).rmdir()
    tiny().save_pretrained(tmp_path / "start")
    call = ("finetune", root, "--model", tmp_path / "start", "--output", tmp_path / "run", "--device", "cpu")
    assert command(*call, "--set", "epochs=1", "crop=[32,32]", "batch_size=4", "--hold-out", "0.3") == 0
    provenance = isanet.from_pretrained(tmp_path / "run").provenance
    assert "7 images" in provenance["trained_on"]
    assert "3 held out, 3 images" in provenance["measured"]


def test_a_split_without_masks_is_no_hindrance(data: Path) -> None:
    (data / "images" / "test").mkdir()
    Image.new("RGB", (48, 40)).save(data / "images" / "test" / "a.png")
    train, val = open_train_and_val(data)
    assert (len(train), train.split, len(val), val.split) == (7, "train", 3, "val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--set", "epochs"], "FIELD=VALUE"),
        (["--set", "epochs=0"], "epochs must be"),
        (["--recipe", "isanet_r50_vok"], "did you mean isanet_r50_voc"),
    ],
)
def test_wrong_recipes_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command("finetune", data, "--model", tmp_path, "--output", tmp_path / "run", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- data


def test_the_published_recipe_is_taken_by_name(sets: tuple[Folder, Folder]) -> None:
    from isanet.cli.finetune import _recipe

    assert _recipe("isanet_r50_ade20k", ["lr=0.5"]) == replace(Recipe.published("isanet_r50_ade20k"), lr=0.5)


def test_held_out_images_are_none_of_the_rest(sets: tuple[Folder, Folder]) -> None:
    whole: SegmentationDataset = sets[0]
    assert isinstance(whole, Folder)
    rest, held = whole.held_out(0.3, seed=1)
    assert sorted(rest.keys + held.keys) == whole.keys
    assert len(held) == 2
    assert [held.read(0)[0].tobytes()] == [whole.read(whole.keys.index(held.keys[0]))[0].tobytes()]
    assert whole.held_out(0.3, seed=2)[1].keys != held.keys or whole.held_out(0.3, seed=3)[1].keys != held.keys
    assert rest.fingerprint(range(5)) != held.fingerprint(range(2))
    with pytest.raises(DatasetError, match="cannot be held out"):
        held.held_out(1.0)


def test_settings_are_written_as_json(tmp_path: Path) -> None:
    from isanet.cli.finetune import _recipe

    assert _recipe(None, ["ohem=null", "ema=0.9", "freeze_backbone=true", "precision=bfloat16"]) == Recipe(
        ema=0.9, freeze_backbone=True, precision="bfloat16"
    )
    (tmp_path / "recipe.json").write_text(json.dumps({"lr": 0.5}))
    assert _recipe(str(tmp_path / "recipe.json"), []).lr == 0.5
