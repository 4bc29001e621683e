"""Which image becomes which files, and what is never overwritten."""

from __future__ import annotations

import io
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
from isanet.inference.outputs import (
    claim,
    coco_file,
    find_images,
    in_shard,
    listed_images,
    plan_outputs,
    without_earlier,
    write_outputs,
)
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
    assert list(found) == [Path(f"images/{i}.png") for i in (1, 0, 2)] + [
        work / "images" / f"{i}.png" for i in range(3)
    ]


def test_patterns_match_files_alone_and_names_may_look_like_patterns(work: Path) -> None:
    Path("images/folder.png").mkdir()
    Path("images/a[1].png").write_bytes(b"")
    assert Path("images/folder.png") not in find_images(["images/*.png"])
    assert list(find_images(["images/a[1].png"])) == [Path("images/a[1].png")]


def test_what_has_no_images_is_an_error(work: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        find_images(["images", "empty"])
    with pytest.raises(ImageError, match=r"no file matches '\*\.jpeg'"):
        find_images(["*.jpeg"])
    assert list(find_images(["missing.png"])) == [Path("missing.png")]  # for the plan to report


# --- the plan


def test_each_kind_has_its_file(work: Path) -> None:
    outputs, _, failures = plan("images", kinds=("overlay", "labels", "areas", "ids"))
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
    outputs, kept, failures = plan("images")
    assert list(outputs) == [Path("images/0.png")]
    assert kept == [Path("images/1.png"), Path("images/2.png")]
    assert failures == {}
    outputs, kept, failures = plan("images", kinds=("overlay", "labels"))
    assert [list(files) for files in outputs.values()] == [["overlay", "labels"], ["labels"], ["labels"]]
    assert kept == []
    outputs, kept, failures = plan("images", overwrite=True)
    assert (len(outputs), kept, failures) == (3, [], {})


def test_files_about_all_images_need_all_of_them(work: Path) -> None:
    Path("out").mkdir()
    table = Path("all.csv")

    def planned(kinds: tuple[str, ...] = ("overlay",)) -> Any:
        return plan_outputs(find_images(["images"]), Path("out"), kinds, overwrite=False, files=[table])

    Path("out/1_overlay.png").write_text("mine")
    outputs, kept, _ = planned()
    assert [len(files) for files in outputs.values()] == [1, 0, 1]
    assert kept == []
    table.write_text("mine")
    with pytest.raises(OutputError, match=r"all\.csv exists and was kept"):
        planned()
    for number in (0, 2):
        Path(f"out/{number}_overlay.png").write_text("mine")
    outputs, kept, _ = planned()
    assert (outputs, len(kept)) == ({}, 3)  # nothing at all is missing
    with pytest.raises(OutputError, match=r"all\.csv exists and was kept"):
        planned(())  # whether it has all images is not known


# --- many images


def tree(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(name)


def test_folders_in_a_folder_are_mirrored(work: Path) -> None:
    tree("shots/a.png", "shots/day/a.png", "shots/day/late/a.png", "shots/.hidden/a.png")
    Path("shots/loop").symlink_to("..")
    found = find_images(["shots"], recursive=True)
    assert {str(image): str(place) for image, place in found.items()} == {
        "shots/a.png": ".", "shots/day/a.png": "day", "shots/day/late/a.png": "day/late"
    }  # fmt: skip
    outputs = plan_outputs(found, Path("out"), ["overlay"], overwrite=False).outputs
    assert outputs[Path("shots/day/late/a.png")] == {"overlay": Path("out/day/late/a_overlay.png")}
    assert list(find_images(["shots"])) == [Path("shots/a.png")]


@pytest.mark.parametrize("absolute", [False, True])
def test_several_folders_keep_equal_names_apart(work: Path, absolute: bool) -> None:
    tree("b1/x/a.png", "b2/x/a.png", "b2/x/deep/a.png")
    start = work if absolute else Path()
    found = find_images([str(start / "b1/x"), str(start / "b2/x"), "images/0.png"], recursive=True)
    assert list(found.values()) == [Path("b1/x"), Path("b2/x"), Path("b2/x/deep"), Path()]
    assert find_images([str(start / "b1/x/")]) == {start / "b1/x/a.png": Path()}


def test_outputs_below_the_images_are_not_taken_for_images(work: Path) -> None:
    tree("a.png", "deep/b.png", "segmented/a_overlay.png", "segmented/deep/b_overlay.png", "segmented2/c.png")
    expected = {"a.png", "deep/b.png", "segmented2/c.png", "images/0.png", "images/1.png", "images/2.png"}
    for argument in (".", str(work), "**/*.png", str(work / "**" / "*.png")):
        found = find_images([argument], recursive=True, output=Path("segmented"))
        assert {Path(os.path.relpath(image)).as_posix() for image in found} == expected
    assert Path("segmented/a_overlay.png") in find_images(["segmented"], recursive=True, output=Path("segmented"))
    assert list(find_images(["segmented/*.png"], output=Path("segmented"))) == [Path("segmented/a_overlay.png")]
    assert list(find_images(["segmented/a_overlay.png"], output=Path("segmented"))) == [Path("segmented/a_overlay.png")]


def test_outputs_of_an_earlier_run_beside_the_images_are_not_taken_for_images(work: Path) -> None:
    tree("images/0_overlay.png", "images/0_labels.png", "images/0_mask_car.png", "images/9_overlay.png")
    found = find_images(["images"])
    kept = without_earlier(found, Path("images"), ["mask:car"])
    assert [path.name for path in kept if isinstance(path, Path)] == ["0.png", "1.png", "2.png", "9_overlay.png"]
    assert without_earlier(found, Path("out"), ["mask:car"]) == found


def test_an_empty_folder_says_what_its_sub_folders_hold(work: Path) -> None:
    tree("shots/day/a.png", "shots/day/late/b.png")
    with pytest.raises(ImageError, match=r"no images in the folder shots: .*its sub-folders hold 2 \(--recursive"):
        find_images(["shots"])
    Path("none/here").mkdir(parents=True)
    for recursive in (False, True):
        with pytest.raises(ImageError, match="no images") as caught:
            find_images(["none"], recursive=recursive)
        assert "sub-folders" not in str(caught.value)


def test_shards_divide_the_images_and_depend_on_names_alone(work: Path) -> None:
    names = {Path(f"photos/{number:03}.jpg"): Path("day") for number in range(300)}
    shards = [{image for image, place in names.items() if in_shard(image, place, part, 7)} for part in range(1, 8)]
    assert sum(map(len, shards)) == len(set.union(*shards)) == 300
    assert min(map(len, shards)) > 20
    for image in shards[2]:
        assert in_shard(Path("elsewhere") / image.name, Path("day"), 3, 7)
    assert {image for image in names if in_shard(image, Path("night"), 3, 7)} != shards[2]
    assert in_shard("https://host/a.jpg", Path(), 1, 1)
    assert in_shard(Path("photos/000.jpg"), Path("day"), 2, 7)  # the same on every machine and in every version


def test_lists_of_images(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_bytes("a.png\r\n\n  b c.png\nä.png".encode())
    assert listed_images("list.txt") == ["a.png", "  b c.png", "ä.png"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x.png\n")))
    assert listed_images("-") == ["x.png"]
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n")  # as programs on Windows write
    assert listed_images("bom.txt") == ["a.png"]
    Path("binary").write_bytes(b"\xff\xfe")
    for name, words in (("binary", "not text in UTF-8"), ("gone", "No such file"), (".", "directory")):
        with pytest.raises(ImageError, match=words):
            listed_images(name)


def test_an_image_is_claimed_by_one_process_at_a_time(work: Path) -> None:
    outputs = {"overlay": Path("out/day/a_overlay.png")}
    other = "from isanet.inference.outputs import claim; from pathlib import Path\n"
    other += "with claim({'overlay': Path('out/day/a_overlay.png')}) as free: print(free)"

    def asked() -> str:
        return subprocess.run([sys.executable, "-c", other], check=True, capture_output=True, text=True).stdout.strip()

    with claim(outputs) as free:
        assert free
        assert asked() == "False"
    assert asked() == "True"
    assert list(Path("out/day").iterdir()) == []


def test_the_claim_of_a_process_that_was_killed_is_free(work: Path) -> None:
    holding = "from isanet.inference.outputs import claim; from pathlib import Path; import sys, time\n"
    holding += "with claim({'overlay': Path('out/a_overlay.png')}): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    assert len(list(Path("out").iterdir())) == 1  # it is left behind, and taken over
    with claim({"overlay": Path("out/a_overlay.png")}) as free:
        assert free
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(work: Path, overwrite: bool) -> None:
    outputs, _, failures = plan("images", folder="images", kinds=("ids",), overwrite=overwrite)
    assert not outputs
    assert all("is already taken by images/" in reason for reason in failures.values())
    Path("link").symlink_to("images")
    outputs, _, failures = plan("images", folder="link", kinds=("overlay", "ids"), overwrite=overwrite)
    assert (outputs, len(failures)) == ({}, 3)


def test_two_images_of_one_name_do_not_share_an_output(work: Path) -> None:
    Path("other").mkdir()
    Image.new("RGB", (4, 3)).save("other/0.jpg")
    outputs, _, failures = plan("images/0.png", "other/0.jpg", overwrite=True)
    assert list(outputs) == [Path("images/0.png")]
    assert failures[Path("other/0.jpg")].startswith("its output out/0_overlay.png is already taken by images/0.png")


def test_an_image_by_two_paths_is_one(work: Path) -> None:
    Path("link").symlink_to("images")
    for kinds in (("overlay",), ("overlay", "areas")):
        outputs, kept, failures = plan("images/0.png", str(work / "images/0.png"), "link/0.png", kinds=kinds)
        assert (list(outputs), kept, failures) == ([Path("images/0.png")], [], {})


def test_what_was_left_out_claims_nothing(work: Path) -> None:
    outputs, _, failures = plan("missing/0.png", "images/0.png")
    assert failures == {Path("missing/0.png"): "there is no such file"}
    assert list(outputs) == [Path("images/0.png")]


def test_a_folder_in_the_way_is_named(work: Path) -> None:
    Path("out/1_overlay.png").mkdir(parents=True)
    outputs, _, failures = plan("images", overwrite=True)
    assert len(outputs) == 2
    assert "out/1_overlay.png is a folder" in failures[Path("images/1.png")]


def test_names_of_outputs_are_printable_and_short_enough(work: Path) -> None:
    names = ["a\nb", "\x1b[2J", "\u202egnp.exe", "x" * 251, "ä" * 125, "=cmd"]
    for name in names:
        Path(f"images/{name}.png").write_bytes(b"")
    outputs, _, failures = plan(*(f"images/{name}.png" for name in names), kinds=("overlay", "ids"))
    assert not failures
    assert [files["ids"].stem for files in outputs.values()] == [
        "a_b", "_[2J", "_gnp.exe", "x" * 240, "ä" * 120, "=cmd"
    ]  # fmt: skip
    assert all(len(os.fsencode(files["overlay"].name)) <= 255 for files in outputs.values())


def test_names_of_masks_fit_beside_long_names_of_images(work: Path) -> None:
    for name in ("x" * 251, "ä" * 125):
        Path(f"images/{name}.png").write_bytes(b"")
        outputs, _, failures = plan(f"images/{name}.png", kinds=("mask:" + "ö" * 99, "mask:a b"))
        assert not failures
        (files,) = outputs.values()
        assert [file.name.partition("_mask_")[2] for file in files.values()] == [32 * "ö" + ".png", "a b.png"]
        assert all(len(os.fsencode(file.name)) <= 255 for file in files.values())


@pytest.mark.parametrize(
    "name", ["Screenshot at 3.14\u202fPM", "写真\u30001", "می\u200cخواهم", "👩\u200d🚀", "cafe\u0301", "a\u00a0b"]
)
def test_outputs_keep_the_letters_and_spaces_of_every_script(work: Path, name: str) -> None:
    Path(f"images/{name}.png").write_bytes(b"")
    outputs, _, _ = plan(f"images/{name}.png", kinds=("ids",))
    assert [files["ids"].stem for files in outputs.values()] == [name]


def test_links_in_a_circle_are_the_failure_of_that_image(work: Path) -> None:
    Path("images/circle.png").symlink_to("circle.png")
    outputs, _, failures = plan("images/circle.png", "images/0.png")
    assert list(outputs) == [Path("images/0.png")]
    assert failures == {Path("images/circle.png"): "there is no such file"}


@pytest.mark.parametrize("long", ["y" * 5000, "z" * 300 + ".png"])
def test_a_name_too_long_is_the_failure_of_that_image(work: Path, long: str) -> None:
    outputs, _, failures = plan(long, "images/0.png")
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
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        write_outputs(result(path=Path("a.jpg")), {kind: tmp_path / "file" / "a.png"})


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
        file.add(file.part(1, images[0], result(path=images[0], labels=noise)))
        tracemalloc.start()
        for number, path in enumerate(images[1:], 2):
            file.add(file.part(number, path, result(path=path, labels=noise)))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 3e5
    document = json.loads((tmp_path / "all.json").read_text())
    assert (tmp_path / "all.json").stat().st_size > 2e6
    assert [image["file_name"] for image in document["images"]] == [path.name for path in images]
    assert len({annotation["id"] for annotation in document["annotations"]}) == 60 * 19
