"""Which image becomes which files, and what is never overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.errors import ImageError, OutputError
from isanet.inference.outputs import coco_file, find_images, plan_outputs, write_outputs
from isanet.inference.segmentation import Segmentation
from isanet.labels import label_space


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three images in `images`."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for i in range(3):
        Image.new("RGB", (4, 3)).save(f"images/{i}.png")
    return tmp_path


def plan(*images: str, folder: str = "out", kinds: tuple[str, ...] = ("overlay",), overwrite: bool = False) -> Any:
    return plan_outputs(find_images(images), Path(folder), kinds, overwrite=overwrite)


# --- images


def test_files_folders_and_patterns_are_taken_once_each_in_order(work: Path) -> None:
    found = find_images(["images/1.png", "images", "images/[12].png", str(work / "images" / "*.png")])
    assert found == [Path(f"images/{i}.png") for i in (1, 0, 2)] + [work / "images" / f"{i}.png" for i in range(3)]


def test_patterns_match_files_alone_and_names_may_look_like_patterns(work: Path) -> None:
    Path("images/folder.png").mkdir()
    Path("images/a[1].png").write_bytes(b"")
    assert Path("images/folder.png") not in find_images(["images/*.png"])
    assert find_images(["images/a[1].png"]) == [Path("images/a[1].png")]


def test_what_has_no_images_is_an_error(work: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        find_images(["images", "empty"])
    with pytest.raises(ImageError, match=r"no file matches '\*\.jpeg'"):
        find_images(["*.jpeg"])
    assert find_images(["missing.png"]) == [Path("missing.png")]  # for the plan to report


# --- the plan


def test_each_kind_has_its_file(work: Path) -> None:
    outputs, failures = plan("images", kinds=("overlay", "labels", "areas", "ids"))
    assert not failures
    assert list(outputs) == [Path(f"images/{i}.png") for i in range(3)]
    assert outputs[Path("images/1.png")] == {
        "overlay": Path("out/1_overlay.png"),
        "labels": Path("out/1_labels.png"),
        "areas": Path("out/1_areas.json"),
        "ids": Path("out/1.png"),
    }
    assert not Path("out").exists()


def test_existing_files_are_kept_unless_told_otherwise(work: Path) -> None:
    Path("out").mkdir()
    Path("out/1_overlay.png").write_text("mine")
    Path("out/2_overlay.png").symlink_to("nowhere")
    outputs, failures = plan("images")
    assert list(outputs) == [Path("images/0.png")]
    assert failures == {
        Path(f"images/{i}.png"): f"out/{i}_overlay.png exists and was kept; --force (overwrite=True) replaces it"
        for i in (1, 2)
    }
    outputs, failures = plan("images", overwrite=True)
    assert (len(outputs), failures) == (3, {})


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(work: Path, overwrite: bool) -> None:
    outputs, failures = plan("images", folder="images", kinds=("ids",), overwrite=overwrite)
    assert not outputs
    assert all("is already taken by images/" in reason for reason in failures.values())
    Path("link").symlink_to("images")
    outputs, failures = plan("images", folder="link", kinds=("overlay", "ids"), overwrite=overwrite)
    assert (outputs, len(failures)) == ({}, 3)


def test_two_images_of_one_name_do_not_share_an_output(work: Path) -> None:
    Path("other").mkdir()
    Image.new("RGB", (4, 3)).save("other/0.jpg")
    outputs, failures = plan("images/0.png", "other/0.jpg", overwrite=True)
    assert list(outputs) == [Path("images/0.png")]
    assert failures[Path("other/0.jpg")].startswith("its output out/0_overlay.png is already taken by images/0.png")


def test_what_was_left_out_claims_nothing(work: Path) -> None:
    outputs, failures = plan("missing/0.png", "images/0.png")
    assert failures == {Path("missing/0.png"): "there is no such file"}
    assert list(outputs) == [Path("images/0.png")]


def test_a_folder_in_the_way_is_named(work: Path) -> None:
    Path("out/1_overlay.png").mkdir(parents=True)
    outputs, failures = plan("images", overwrite=True)
    assert len(outputs) == 2
    assert "out/1_overlay.png is a folder" in failures[Path("images/1.png")]


def test_names_of_outputs_are_printable_and_short_enough(work: Path) -> None:
    names = ["a\nb", "\x1b[2J", "\u202egnp.exe", "x" * 251, "ä" * 125, "=cmd"]
    for name in names:
        Path(f"images/{name}.png").write_bytes(b"")
    outputs, failures = plan(*(f"images/{name}.png" for name in names), kinds=("overlay", "ids"))
    assert not failures
    assert [files["ids"].stem for files in outputs.values()] == [
        "a_b", "_[2J", "_gnp.exe", "x" * 240, "ä" * 120, "=cmd"
    ]  # fmt: skip
    assert all(len(os.fsencode(files["overlay"].name)) <= 255 for files in outputs.values())


def test_names_of_masks_fit_beside_long_names_of_images(work: Path) -> None:
    for name in ("x" * 251, "ä" * 125):
        Path(f"images/{name}.png").write_bytes(b"")
        outputs, failures = plan(f"images/{name}.png", kinds=("mask:" + "ö" * 99, "mask:a b"))
        assert not failures
        (files,) = outputs.values()
        assert [file.name.partition("_mask_")[2] for file in files.values()] == [32 * "ö" + ".png", "a b.png"]
        assert all(len(os.fsencode(file.name)) <= 255 for file in files.values())


@pytest.mark.parametrize(
    "name", ["Screenshot at 3.14\u202fPM", "写真\u30001", "می\u200cخواهم", "👩\u200d🚀", "cafe\u0301", "a\u00a0b"]
)
def test_outputs_keep_the_letters_and_spaces_of_every_script(work: Path, name: str) -> None:
    Path(f"images/{name}.png").write_bytes(b"")
    outputs, _ = plan(f"images/{name}.png", kinds=("ids",))
    assert [files["ids"].stem for files in outputs.values()] == [name]


def test_links_in_a_circle_are_the_failure_of_that_image(work: Path) -> None:
    Path("images/circle.png").symlink_to("circle.png")
    outputs, failures = plan("images/circle.png", "images/0.png")
    assert list(outputs) == [Path("images/0.png")]
    assert failures == {Path("images/circle.png"): "there is no such file"}


@pytest.mark.parametrize("long", ["y" * 5000, "z" * 300 + ".png"])
def test_a_name_too_long_is_the_failure_of_that_image(work: Path, long: str) -> None:
    outputs, failures = plan(long, "images/0.png")
    assert list(outputs) == [Path("images/0.png")]
    assert failures == {Path(long): "there is no such file"}
    assert not plan("images/0.png", folder=long).failures  # for making the folder to report


# --- writing


def result(**changes: Any) -> Segmentation:
    space = label_space("cityscapes19")
    image = np.full((2, 2, 3), 9, np.uint8)
    values = {"labels": np.array([[0, 1], [0, 18]], np.uint8), "image": image, "label_space": space.name}
    return Segmentation(**{"classes": space.classes, "palette": space.palette, **values, **changes})


def test_each_kind_is_written(tmp_path: Path) -> None:
    outputs = {kind: tmp_path / f"{kind}.png" for kind in ("overlay", "labels", "areas", "ids")}
    write_outputs(result(), outputs)
    with Image.open(outputs["labels"]) as labels, Image.open(outputs["ids"]) as ids:
        assert np.asarray(labels).tolist() == [[0, 1], [0, 18]]
        assert np.asarray(ids).tolist() == [[7, 8], [7, 33]]
    with Image.open(outputs["overlay"]) as overlay:
        np.testing.assert_array_equal(np.asarray(overlay), np.asarray(result().overlay()))
    assert json.loads(outputs["areas"].read_text()) == {"road": 0.5, "sidewalk": 0.25, "bicycle": 0.25}


@pytest.mark.parametrize("kind", ["overlay", "labels", "areas", "ids"])
def test_what_cannot_be_written_is_an_output_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_outputs(result(path=Path("a.jpg")), {kind: tmp_path / "missing" / "a.png"})


@pytest.mark.parametrize(("height", "width"), [(1_000_000, 1), (1, 1_000_000), (4000, 4), (1, 1), (20, 20_000)])
def test_an_output_costs_memory_in_proportion_to_its_image(tmp_path: Path, height: int, width: int) -> None:
    """At most 40 bytes a pixel, and 100 MB for the legend; a legend as tall as the image took 3.7 GB."""
    code = f"""
import pathlib, resource
import numpy as np
from isanet.inference.outputs import write_outputs
from isanet.inference.segmentation import Segmentation
from isanet.viz.sheet import Preview, draw_sheet
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
image, labels = np.zeros(({height}, {width}, 3), np.uint8), np.zeros(({height}, {width}), np.uint8)
result = Segmentation(labels, ("road",), ((128, 64, 128),), image)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_outputs(result, {{kind: pathlib.Path(kind + ".png") for kind in ("overlay", "labels", "areas", "ids")}})
draw_sheet([Preview("name", image, labels, labels)], result.classes, result.palette)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert 1024 * int(child.stdout) < 40 * height * width + 100e6


def test_the_plan_does_not_need_torch() -> None:
    command = "import isanet.inference.outputs, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_a_coco_file_holds_no_more_than_the_list_of_its_images(tmp_path: Path) -> None:
    """60 noisy images take over 2 MB in the file, and less than 0.3 MB while it is written."""
    images = [tmp_path / "deep" / f"{number}.png" for number in range(60)]
    noise = np.random.default_rng(0).integers(0, 19, (120, 160)).astype(np.uint8)
    with coco_file(tmp_path / "all.json", images) as file:
        file.add(file.part(1, result(path=images[0], labels=noise)))
        tracemalloc.start()
        for number, path in enumerate(images[1:], 2):
            file.add(file.part(number, result(path=path, labels=noise)))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 3e5
    document = json.loads((tmp_path / "all.json").read_text())
    assert (tmp_path / "all.json").stat().st_size > 2e6
    assert [image["file_name"] for image in document["images"]] == [path.name for path in images]
    assert len({annotation["id"] for annotation in document["annotations"]}) == 60 * 19
