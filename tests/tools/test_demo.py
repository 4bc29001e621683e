"""The demonstration, and the published mIoU of the packaged model."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet.cli import main
from isanet.datasets import ToyStreets
from isanet.evaluation.metrics import ConfusionMatrix
from isanet.tools.demo import MODEL, demo


def test_a_scene_is_segmented_and_scored() -> None:
    found = demo(7, device="cpu")
    image, ground_truth = ToyStreets(count=1, seed=7, size=(512, 1024), split="test").read(0)
    result = isanet.Segmenter(MODEL, device="cpu")(image)
    np.testing.assert_array_equal(found.result.labels, result.labels)
    matrix = ConfusionMatrix(len(result.classes))
    matrix.update(torch.from_numpy(result.labels), torch.from_numpy(ground_truth))
    assert found.matrix.miou() == matrix.miou()
    assert found.overview.width == 1600


def test_the_command_needs_neither_network_nor_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert main(["demo", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["demo_7.png"]
    assert not home.exists()
    with Image.open("demo_7.png") as image:
        assert image.format == "PNG"
    areas = demo(7, device="cpu").result.areas()
    lines = {line.rsplit(maxsplit=2)[0]: line.rsplit(maxsplit=2)[1] for line in out.splitlines() if "%  " in line}
    assert lines == {name: f"{share:.1%}" for name, share in areas.items()}
    assert f"mIoU {demo(7, device='cpu').matrix.miou():.1%}" in out


def test_what_comes_next_is_said_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert main(["demo", "--seed", "1"]) == 0
    result, _, rest = capsys.readouterr().out.partition("\nWhere to go next:\n\n")
    assert "mIoU" in result
    lines = rest.splitlines()
    assert len(lines) == 4
    assert len({line.index("  # ") for line in lines}) == 1
    segment, dataset, finetune, serve = (shlex.split(line, comments=True) for line in lines)
    main(dataset[1:])
    shown = capsys.readouterr().out
    assert "finetune streets" in shown
    short = ["--set", "epochs=1", "crop=[64,64]", "--output", "tuned"]
    assert main([*finetune[1:], *short]) == 0
    assert Path("tuned/model.safetensors").is_file()
    with pytest.raises(SystemExit, match="0"):
        main([*serve[1:], "--help"])
    shutil.copy("streets/images/street_01.png", segment[2])
    assert main([*segment[1:4], "tuned"]) == 0  # the printed model is not here without a network
    assert Path("segmented/photo_overlay.png").is_file()


def test_quiet_prints_no_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--seed", "1", "--quiet"]) == 0
    assert "isanet " not in capsys.readouterr().out


def test_the_image_of_the_readme_is_that_of_its_seed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = root / "examples" / "demo.png"
    assert path.stat().st_size < 300_000
    assert main(["demo", "--quiet", "--seed", "38", "--device", "cpu", "--output", str(tmp_path / "new.png")]) == 0
    new, stored = (np.asarray(Image.open(name).convert("RGB")).astype(int) for name in (tmp_path / "new.png", path))
    assert new.shape == stored.shape == (976, 1600, 3)
    assert abs(new - stored).mean() < 2  # precisions differ between machines


def test_each_call_draws_another_street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quiet"]) == main(["demo", "--quiet"]) == 0
    assert len(list(tmp_path.glob("demo_*.png"))) == 2


def test_an_earlier_image_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.png"
    path.write_text("mine")
    assert main(["demo", "--seed", "1", "--output", str(path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main(["demo", "--seed", "1", "--output", str(path), "--force"]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("output", ["scene.jpg", "no/such/folder/scene.png"])
def test_an_image_that_cannot_be_written_is_one_line(
    tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--quiet", "--seed", "1", "--output", str(tmp_path / output)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_published_miou_of_the_packaged_model_is_reproduced() -> None:
    """On the scenes of the published evaluation, none of which training saw; rounding differs between machines."""
    published = isanet.model_info(MODEL).metrics
    assert (published["dataset"], published["split"]) == ("ToyStreets", "test")
    report = isanet.evaluate(MODEL, ToyStreets(count=200, split="test"), workers=1, device="cpu")
    assert report.miou == pytest.approx(published["miou"], abs=0.005)


def test_the_weights_fit_into_the_package() -> None:
    weights = isanet.model_info(MODEL)
    assert weights.size is not None
    assert weights.size <= 3_000_000


def test_a_dataset_to_try_training_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my streets"
    assert main(["demo", "--dataset", str(folder)]) == 0
    shown = capsys.readouterr().out
    for command in ("check-masks", "finetune", "segment"):
        assert f"isanet {command} '{folder}" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my streets"]
    data = isanet.datasets.open_dataset(folder)
    assert data.classes == ("ground", "structure", "vegetation", "sky", "traffic")
    assert len(set(data.palette)) == 5
    assert len(data) == 20
    image, mask = data.read(19)
    assert image.shape == (240, 320, 3)
    scene, labels = ToyStreets(count=20, seed=20, size=(240, 320)).read(19)
    np.testing.assert_array_equal(image, scene)
    names = np.array(ToyStreets().classes)[labels]
    assert set(names[mask == 4]) <= {"person", "car"}
    assert set(names[mask == 3]) == {"sky"}

    before = (folder / "classes.txt").read_bytes()
    assert main(["demo", "--dataset", str(folder)]) == 1
    assert "exists and was kept" in capsys.readouterr().err
    assert (folder / "classes.txt").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "--dataset", str(tmp_path / "file")]) == 1
    assert main(["check-masks", str(folder)]) == 0
