"""Images at addresses are fetched within bounds, and every failure is one named line."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isanet.errors import ImageError, IntegrityError, NetworkError, OfflineError
from isanet.images.reading import read_image
from isanet.inference import sources
from isanet.inference.sources import read_source
from isanet.weights.partfile import Limits
from tests.helpers import file_server
from tests.helpers.file_server import FileServer
from tests.images.test_preprocess import noise
from tests.inference.test_segmenter import halves, make


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Quick limits; gives the folder of temporary files."""
    quick = Limits(connect=1, read=0.3, window=0.5, window_bytes=1000, retries=1, backoff=0, deadline=2)
    monkeypatch.setattr(sources, "LIMITS", quick)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def png(image: np.ndarray) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG")
    return stored.getvalue()


def read(url: str, **options: Any) -> np.ndarray:
    return read_source(url, **{"max_pixels": 10_000, "value_range": None, **options})


def test_addresses_are_images_wherever_paths_are(server: FileServer, limits: Path) -> None:
    server.files["/a.png"] = png(halves())
    url, before = f"{server.url}/a.png?key=secret", set(limits.iterdir())
    segmenter = make()
    expected = segmenter(halves()).labels
    for result in (segmenter(url), *segmenter.stream(url), *segmenter([url, url]), *segmenter.stream(iter([url]))):
        np.testing.assert_array_equal(result.labels, expected)
        assert result.path is None
    assert set(limits.iterdir()) == before
    server.plan["/b.png"] = [file_server.redirect("/a.png")]
    np.testing.assert_array_equal(segmenter(f"{server.url}/b.png").labels, expected)
    assert not any("Authorization" in headers for *_, headers in server.requests)


@pytest.mark.parametrize("wrap", [bytearray, memoryview])
def test_buffers_are_the_bytes_of_a_file(wrap: Any) -> None:
    data, segmenter = wrap(png(halves())), make()
    for result in (segmenter(data), *segmenter.stream(data), *segmenter([data])):
        np.testing.assert_array_equal(result.labels, segmenter(halves()).labels)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (file_server.status(404), NetworkError, "answered 404"),
        ("html", IntegrityError, "an HTML page came instead"),
        ("silent", NetworkError, "gave up after 2 attempts"),
        ("trickle", NetworkError, "slower than|deadline"),
        ("endless", IntegrityError, "more than the"),
        (file_server.status(200, b"x", Content_Encoding="gzip"), NetworkError, "content encoding"),
        (file_server.serving(announce=1 << 40), IntegrityError, "announces .* bytes, more than the .* allowed"),
        (file_server.redirect("http://example.com/x.png?token=secret"), NetworkError, "only https is followed"),
        (file_server.status(200, b"BM damaged"), ImageError, "starts like BMP"),
        (file_server.status(200, b"some text"), ImageError, "looks like text"),
    ],
)
def test_what_cannot_be_fetched_or_read_is_a_named_error(
    fault: Any, kind: type[Exception], message: str, server: FileServer, limits: Path
) -> None:
    server.files["/a.png"] = png(noise(4, 5))
    server.plan["/a.png"] = [fault, fault]
    url = f"{server.url.replace('//', '//user:secret@')}/a.png?key=secret"
    before = set(limits.iterdir())
    with pytest.raises(kind, match=f"^{re.escape(server.url)}/a.png.*({message})") as caught:
        read(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(limits.iterdir()) == before


def test_bounds_of_images_hold_for_addresses(server: FileServer) -> None:
    server.files["/a.png"] = png(noise(20, 30))
    with pytest.raises(ImageError, match=r"/a\.png is 30x20, 600 pixels, more than the limit"):
        read(f"{server.url}/a.png", max_pixels=500)
    with pytest.raises(NetworkError, match=r"^http://example.com/a.png: refused: only https"):
        read("http://example.com/a.png")


def test_offline_no_address_is_read(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"ISANET_OFFLINE is set; .* download the image and pass its path"):
        read(f"{server.url}/a.png")
    assert server.requests == []


def test_a_temporary_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: FileServer
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(ImageError, match=r"cannot be stored in .*file: free some space there, or set TMPDIR"):
        read(f"{server.url}/a.png")


def test_errors_of_addresses_are_of_their_image_alone(server: FileServer) -> None:
    server.files["/a.png"] = png(halves())
    failed: list[Any] = []
    urls = [f"{server.url}/{name}.png" for name in ("a", "missing", "a")]
    results = list(make().stream(urls, on_error=lambda source, error: failed.append((source, type(error)))))
    assert len(results) == 2
    assert failed == [(urls[1], NetworkError)]


def test_reading_alone_says_who_fetches() -> None:
    with pytest.raises(ImageError, match=r"^addresses are read by isanet.Segmenter alone"):
        read_image("https://user:secret@example.com/a.png")


def test_folders_patterns_lists_and_generators_mean_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `isanet segment` takes them, see tests/inference/test_outputs.py."""
    monkeypatch.chdir(tmp_path)
    for name in ("day/a.png", "day/b.png", "day/x[1].png", "night/c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(halves()).save(name)
    segmenter = make()

    def names(images: Any) -> list[list[str]]:
        made = [
            segmenter(images() if callable(images) else images),
            segmenter.stream(images() if callable(images) else images),
        ]
        return [[str(result.path) for result in results] for results in made]

    day = ["day/a.png", "day/b.png", "day/x[1].png"]
    for images in ("day", Path("day"), "day/*.png", Path("day/*.png"), day, tuple(day), lambda: iter(day)):
        assert names(images) == [day, day]
    assert names(["night", "day/[ab].png"]) == [["night/c.png", *day[:2]]] * 2
    assert names(lambda: (path for path in Path().glob("night/*"))) == [["night/c.png"]] * 2
    assert str(segmenter("day/x[1].png").path) == "day/x[1].png"  # a file, not a list: no pattern
    for wrong in ("day/*.jpg", ["day/*.jpg"]):
        with pytest.raises(ImageError, match=r"no file matches 'day/\*\.jpg'"):
            segmenter(wrong)
    with Path("day/a.png").open("rb") as file:
        assert segmenter(file).path is None  # it is an iterator too, of lines


def test_a_folder_is_looked_through_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(halves()).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"")
    segmenter = make()
    for call in (segmenter, segmenter.stream):
        caplog.clear()
        assert len(list(call(str(tmp_path)))) == 1
        assert len([line for line in caplog.messages if "not read" in line]) == 1
