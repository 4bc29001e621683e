"""Results to look at: in a notebook's cells, as a sheet, in the system's viewer."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isanet
from isanet.inference.segmentation import SHOWN, Segmentation
from isanet.inference.showing import MAX_SHOWN, Segmentations, _sheet
from isanet.viz.sheet import WIDTH

ROOT = Path(__file__).parents[2]
PALETTE = ((10, 20, 30), (200, 0, 0), (0, 200, 0))


def result_of(label: int = 1, size: tuple[int, int] = (60, 80), path: str | None = None) -> Segmentation:
    labels = np.full(size, label, np.uint8)
    image = np.full((*size, 3), 100, np.uint8)
    return Segmentation(labels, ("background", "red", "green"), PALETTE, image, None if path is None else Path(path))


def drawn(png: bytes | None) -> Image.Image:
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def colors(image: Image.Image) -> set[object]:
    return {color for _, color in image.getcolors(1 << 24) or ()}


# --- one result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3000, 4000), (4000, 3000), (50, 60), (20, 4000), (4000, 20), (1, 1)])
def test_one_result_shows_itself_in_bounded_size(size: tuple[int, int]) -> None:
    image = drawn(result_of(size=size)._repr_png_())
    assert max(image.size) <= 2 * SHOWN
    assert (150, 50, 50) in colors(image)


def test_what_a_notebook_shows_has_the_legend_of_the_whole_result() -> None:
    labels = np.ones((2048, 2048), np.uint8)
    labels[::2, ::2] = 2  # of which a smaller label map may have none
    result = replace(result_of(), labels=labels, image=np.zeros((2048, 2048, 3), np.uint8))
    assert {PALETTE[1], PALETTE[2]} <= colors(drawn(result._repr_png_()))


def test_more_than_256_classes_and_none_painted() -> None:
    classes, palette = tuple(map(str, range(300))), ((0, 0, 0),) * 299 + ((0, 0, 200),)
    many = replace(result_of(), labels=np.full((60, 80), 299, np.int32), classes=classes, palette=palette)
    assert (50, 50, 150) in colors(drawn(many._repr_png_()))
    assert {(50, 50, 150), (0, 0, 200)} <= colors(_sheet([many], 1))
    assert (100, 100, 100) in colors(drawn(result_of(0)._repr_png_())) & colors(_sheet([result_of(0)], 1))


# --- several ------------------------------------------------------------------------------------------------


def test_several_images_give_a_list_that_shows_itself(tmp_path: Path) -> None:
    image = isanet.datasets.ToyStreets(1, size=(64, 128))[0][0]
    image.save(tmp_path / "one.png")
    results = isanet.Segmenter("isanet_nano_toystreets", "cpu")([image, tmp_path / "one.png", image])
    assert isinstance(results, Segmentations)
    assert drawn(results._repr_png_()).width == WIDTH


def test_it_is_a_list() -> None:
    first, second = result_of(1), result_of(2)
    results = Segmentations([first, second])
    assert isinstance(results, list)
    assert results == [first, second]
    assert isinstance(results[:1], Segmentations)
    assert results[:1] == [first]
    assert results[-1] is second
    (again, _) = copy = pickle.loads(pickle.dumps(results))
    assert isinstance(copy, Segmentations)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert repr(results) == f"[{first!r}, {second!r}]"
    assert Segmentations()._repr_png_() is None


def test_a_sheet_has_one_legend_and_the_background_as_the_image_has_it() -> None:
    image = drawn(Segmentations([result_of(0), result_of(1)])._repr_png_())
    assert {(100, 100, 100), (150, 50, 50), PALETTE[1]} <= colors(image)
    assert not {PALETTE[0], PALETTE[2]} & colors(image)  # not painted; does not occur
    assert image.tobytes() != drawn(Segmentations([result_of(0), result_of(1, path="a/b.jpg")])._repr_png_()).tobytes()


def test_results_of_different_models_share_a_legend() -> None:
    other = replace(
        result_of(1), classes=("background", "blue", "green"), palette=(PALETTE[0], (0, 0, 250), PALETTE[2])
    )
    assert {PALETTE[1], (0, 0, 250)} <= colors(_sheet([result_of(1), other], 2))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12, 13, MAX_SHOWN, MAX_SHOWN + 1, 400])
def test_any_number_of_results_gives_a_bounded_sheet(count: int) -> None:
    image = drawn(Segmentations([result_of(1 + number % 2) for number in range(count)])._repr_png_())
    assert image.width == WIDTH
    assert image.height < 2.5 * WIDTH


def test_only_the_first_are_drawn_and_the_others_counted() -> None:
    many = [result_of() for _ in range(MAX_SHOWN + 1)]
    whole = _sheet(many[:-1], MAX_SHOWN)
    one_more, hundred, unknown = _sheet(many, MAX_SHOWN + 1), _sheet(many, 100), _sheet(many, None)
    assert one_more.height == hundred.height == unknown.height > whole.height  # a line says so
    assert len({image.tobytes() for image in (one_more, hundred, unknown)}) == 3
    tiles = whole.height - 60
    assert one_more.crop((0, one_more.height - tiles, WIDTH, one_more.height)).tobytes() == (
        whole.crop((0, whole.height - tiles, WIDTH, whole.height)).tobytes()
    )


# --- show ---------------------------------------------------------------------------------------------------

VIEWER = """#!/bin/sh
/bin/cp "$1" {folder}/part && /bin/mv {folder}/part {folder}/shown.png
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the viewer of other systems is not a program on PATH")
def test_outside_notebooks_the_viewer_opens(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "xdg-open"
    program.parent.mkdir()
    program.write_text(VIEWER.format(folder=shlex.quote(str(tmp_path))))
    program.chmod(0o755)
    script = "import isanet; from PIL import Image; isanet.show([Image.new('RGB', (40, 30), 'red')])"
    settings = {"PATH": str(program.parent), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "DISPLAY": ":0"}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **settings}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for _ in range(300):  # it is not waited for
        if (tmp_path / "shown.png").exists():
            break
        time.sleep(0.1)
    with Image.open(tmp_path / "shown.png") as image:
        assert image.width == WIDTH
        assert image.getpixel((100, 100)) == (255, 0, 0)


@pytest.fixture
def viewed(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """What the viewer is given."""
    images: list[Image.Image] = []
    monkeypatch.setattr("isanet.inference.showing._has_viewer", lambda: True)
    monkeypatch.setattr("PIL.ImageShow.show", lambda image: images.append(image) or True)
    return images


def test_one_result_is_viewed_in_its_own_size_and_an_image_as_it_is(viewed: list[Image.Image]) -> None:
    result, image = result_of(size=(3000, 4000)), Image.new("L", (20, 30))
    isanet.show(result)
    isanet.show(image)
    isanet.show((result, image, Image.new("RGBA", (3, 5000), "red")))
    assert viewed[0].tobytes() == result.overlay().tobytes()
    assert viewed[1] is image
    assert viewed[2].width == WIDTH


@pytest.mark.parametrize("display", ["", ":0"])
def test_without_a_screen_or_viewer_the_next_step_is_said(
    display: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(isanet.OutputError, match=r"no screen or no image viewer.*result\.overlay\(\)\.save\("):
        isanet.show(result_of())


def test_no_more_results_are_taken_than_shown(viewed: list[Image.Image]) -> None:
    taken = []

    def results() -> Iterator[Segmentation]:
        for number in range(1000):
            taken.append(number)
            yield result_of()

    isanet.show(results())
    assert len(viewed) == 1
    assert len(taken) == MAX_SHOWN + 1


@pytest.mark.parametrize("wrong", [[], iter(()), 5, "photo.jpg", [1], None, [result_of(), "x"]])
def test_what_cannot_be_shown_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"got (no results|5|'p'|1|None|'x')") as caught:
        isanet.show(wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
