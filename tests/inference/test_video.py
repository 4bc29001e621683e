"""Videos: read, segmented and written. The expected is what was encoded, and what a Segmenter says of each image."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

import isanet
from isanet.inference import video
from isanet.inference.decoding import upright
from isanet.inference.segmentation import Segmentation
from isanet.inference.video import frames, video_info, write_video
from isanet.labels import custom_space
from tests.helpers.color_model import ColorModel
from tests.helpers.videos import BLACK, BLUE, GREEN, RED, corners, make_video, quarters

SPACE = custom_space(("black", "red", "green", "blue"), (BLACK, RED, GREEN, BLUE), "colors")


@pytest.fixture(scope="module")
def segmenter() -> isanet.Segmenter:
    model: Any = ColorModel(SPACE, short_edge=64)
    return isanet.Segmenter(model, "cpu", precision="float32", runtime="torch")


def streams(path: Path) -> dict[str, Any]:
    """Of each type of stream: codec, start and number of packets' bytes, in seconds and whole."""
    with av.open(str(path)) as container:
        found: dict[str, Any] = {}
        for packet in container.demux():
            if packet.dts is not None:
                found.setdefault(packet.stream.type, []).append((float(packet.pts * packet.time_base), bytes(packet)))
        return {kind: sorted(packets) for kind, packets in found.items()}


def times(path: Path) -> list[float]:
    return [frame.time for frame in frames(path)]


def test_frames_have_their_colors_times_and_order(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [np.full((64, 64, 3), 25 * i, np.uint8) for i in range(10)])
    found = list(frames(path))
    assert [frame.time for frame in found] == pytest.approx([i / 30 for i in range(10)], abs=1e-9)
    assert all(abs(int(frame.image.mean()) - 25 * i) <= 2 for i, frame in enumerate(found))
    assert {frame.path for frame in found} == {path}
    assert video_info(path).num_frames == 10


def test_every_start_and_end_choose_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", [quarters()] * 90, start=Fraction(7))
    assert [round(frame.time * 30) for frame in frames(path, every=10, start=1, end=2)] == [30, 40, 50]
    with pytest.raises(isanet.ImageError, match=r"a.mkv ends at 3.0 s, before start"):
        list(frames(path, start=60))


@pytest.mark.parametrize("suffix", [".mts", ".mpg", ".avi", ".flv", ".wmv"])
def test_a_start_between_keyframes_loses_no_frame(tmp_path: Path, suffix: str) -> None:
    codec = {".avi": "mpeg4", ".mpg": "mpeg2video", ".wmv": "wmv2"}.get(suffix, "libx264")
    path = make_video(tmp_path / f"a{suffix}", [np.full((64, 64, 3), 2 * i, np.uint8) for i in range(60)], codec=codec)
    for start in (0.5, 1.1):
        assert [frame.time for frame in frames(path, start=start)] == [time for time in times(path) if time >= start]


def test_joined_recordings_go_on_and_stay_in_step(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    one = make_video(tmp_path / "one.mts", [quarters()] * 60, sound="aac").read_bytes()
    (tmp_path / "a.mts").write_bytes(one * 3)
    before, found = times(tmp_path / "one.mts"), times(tmp_path / "a.mts")
    assert len(found) == 180
    for part in (found[:60], found[60:120], found[120:]):
        assert np.subtract(part, part[0]) == pytest.approx(np.subtract(before, before[0]), abs=1e-4)
    assert [0 < later - end < 0.15 for end, later in ((found[59], found[60]), (found[119], found[120]))] == [True, True]
    write_video(segmenter.stream(tmp_path / "a.mts"), tmp_path / "o.mp4")
    both = streams(tmp_path / "o.mp4")
    per_part = len(streams(tmp_path / "one.mts")["audio"])
    assert len(both["audio"]) == 3 * per_part
    steps = [both["audio"][i * per_part][0] - both["video"][i * 60][0] for i in range(3)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.002)
    assert [frame.time for frame in frames(tmp_path / "a.mts", start=3)] == [time for time in found if time >= 3]


@pytest.mark.parametrize(("arguments", "match"), [({"every": 0}, "every must"), ({"start": 2, "end": 1}, "start must")])
def test_wrong_choices_are_named(tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frames(tmp_path / "a.mp4", **arguments)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_and_mirrored_videos_are_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = make_video(tmp_path / "a.mp4", [quarters()] * 2, rotation=(degrees, mirrored))
    shown = np.rot90(quarters(), degrees // 90)  # counterclockwise; then it is mirrored: so does ffmpeg
    assert corners(next(frames(path)).image) == corners(shown[:, ::-1] if mirrored else shown)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_with_exif_are_upright(tmp_path: Path, orientation: int) -> None:
    """As of cameras that record JPEGs; PyAV cannot name that kind of a frame's data."""
    stored = Image.fromarray(quarters())
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream: Any = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = *stored.size, "yuvj420p"
        packet = av.Packet((tmp_path / "a.jpg").read_bytes())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
        out.mux(packet)
    (frame,) = frames(tmp_path / "a.mov")
    with Image.open(tmp_path / "a.jpg") as image:
        assert corners(frame.image) == corners(np.asarray(ImageOps.exif_transpose(image)))


def test_display_matrices_that_are_no_quarter_turn_change_nothing() -> None:
    image = quarters()
    slanted = np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], np.int32)
    assert upright(image, slanted) is image
    assert upright(image, np.zeros(9, np.int32)) is image


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".mp4", "libx265", "yuv420p10le"), (".mkv", "ffv1", "yuv444p12le"), (".mov", "libx264", "yuv422p10le"),
        (".webm", "libvpx-vp9", "yuv420p"), (".avi", "mpeg4", "yuv420p"), (".mkv", "libx264", "yuv444p"),
    ],
)  # fmt: skip
def test_pixel_formats_and_codecs_become_8_bit_rgb(tmp_path: Path, suffix: str, codec: str, pixels: str) -> None:
    path = make_video(tmp_path / f"a{suffix}", [quarters()] * 3, codec=codec, pixels=pixels)
    found = list(frames(path))
    assert len(found) == 3
    assert found[0].image.dtype == np.uint8
    assert corners(found[0].image) == [RED, GREEN, BLUE, BLACK]


def test_the_color_matrix_that_is_named_is_used(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    """An overlay is written as BT.709, and says so; by the other matrix, red is off by 20 levels."""
    image = np.full((64, 64, 3), RED, np.uint8)
    write_video(segmenter.stream([image] * 2), tmp_path / "o.mp4", alpha=0, legend=False)
    assert np.abs(next(frames(tmp_path / "o.mp4")).image.astype(int) - RED).max() <= 3


def test_a_stream_of_a_video_is_that_of_its_frames(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    path = make_video(tmp_path / "a.mp4", [quarters()] * 5)
    results = list(segmenter.stream(path, batch_size=2))
    for result, frame in zip(results, frames(path), strict=True):
        assert (result.path, result.time) == (path, frame.time)
        np.testing.assert_array_equal(result.labels, segmenter(frame.image).labels)
    assert [result.time is None for result in segmenter.stream([quarters()])] == [True]
    for images in (path, [quarters(), path]):
        with pytest.raises(ValueError, match=r"a.mp4 is a video: segmenter.stream"):
            segmenter(images)


def test_a_broken_video_ends_neither_the_results_before_it_nor_the_videos_after_it(
    tmp_path: Path, segmenter: isanet.Segmenter
) -> None:
    good, bad = make_video(tmp_path / "a.mp4", [quarters()] * 5), tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:500])
    failed: list[Any] = []
    results = segmenter.stream([good, bad, good], batch_size=3, on_error=lambda *each: failed.append(each))
    assert len(list(results)) == 10
    assert [(source, type(error)) for source, error in failed] == [(bad, isanet.ImageError)]
    stream = segmenter.stream([quarters(), quarters(), bad], batch_size=4)
    assert [next(stream).time for _ in range(2)] == [None, None]
    with pytest.raises(isanet.ImageError, match=r"bad\.mp4"):
        next(stream)


def test_a_segmenter_has_its_limit_for_frames_too(tmp_path: Path) -> None:
    model: Any = ColorModel(SPACE, short_edge=64)
    small = isanet.Segmenter(model, "cpu", precision="float32", runtime="torch", max_pixels=1000)
    with pytest.raises(isanet.ImageError, match=r"a.mp4 is 128x64"):
        next(small.stream(make_video(tmp_path / "a.mp4", [quarters()] * 5)))


def new_threads(before: set[threading.Thread]) -> set[str]:
    """Names of the threads that began since, without their numbers."""
    return {thread.name.rpartition("_")[0] for thread in set(threading.enumerate()) - before}


def test_decoding_and_encoding_have_threads_of_their_own(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    before = set(threading.enumerate())
    path = make_video(tmp_path / "a.mp4", [quarters()] * 20)
    seen: set[str] = set()

    def watched() -> Iterator[Segmentation]:
        for result in segmenter.stream(path):
            seen.update(new_threads(before))
            yield result

    write_video(watched(), tmp_path / "o.mp4")
    assert {"isanet-decode", "isanet-encode", "isanet-read"} <= seen
    assert not new_threads(before) & {"isanet-decode", "isanet-encode"}


def test_a_stream_that_is_left_ends_its_decoding(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    stream: Any = frames(make_video(tmp_path / "a.mp4", [quarters()] * 20))
    next(stream)
    assert "isanet-decode" in new_threads(before)
    stream.close()
    assert "isanet-decode" not in new_threads(before)


# --- writing


def test_overlays_and_labels_are_those_of_the_results(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    path = make_video(tmp_path / "a.mp4", [np.roll(quarters(256, 320), 16 * i, 1) for i in range(6)])
    overlay, labels, folder = tmp_path / "o.mp4", tmp_path / "l.mkv", tmp_path / "pngs"
    assert write_video(segmenter.stream(path), overlay, labels) == 6
    assert write_video(segmenter.stream(path), labels=folder) == 6
    results = list(segmenter.stream(path))
    with av.open(str(labels)) as container:
        grays = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    for number, (result, gray, shown) in enumerate(zip(results, grays, frames(overlay), strict=True)):
        np.testing.assert_array_equal(gray, result.labels)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{number:06}.png")), result.labels)
        expected = np.asarray(result.overlay(legend="fixed"))
        assert shown.image.shape == (*(side + side % 2 for side in expected.shape[:2]), 3)
        error = np.abs(shown.image[: len(expected), : expected.shape[1]].astype(int) - expected)
        assert error.mean() < 4  # H.264, with colors at half the resolution
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mp4", "l.mkv", "o.mp4", "pngs"]


def test_times_of_a_variable_rate_are_kept(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    ticks = [0, 1001, 3003, 3500, 9000, 9100, 20000]
    given = [Fraction(tick, 30000) for tick in ticks]
    path = make_video(tmp_path / "a.mp4", [quarters()] * 7, times=given, time_base=Fraction(1, 30000))
    write_video(segmenter.stream(path), tmp_path / "o.mp4", tmp_path / "l.mkv")
    assert [time * 30000 for time in times(tmp_path / "o.mp4")] == pytest.approx(ticks, abs=1e-6)
    assert times(tmp_path / "l.mkv") == pytest.approx(list(map(float, given)), abs=0.00051)  # Matroska: milliseconds


@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "output", "copied"),
    [
        (".mp4", "aac", 44100, ".mp4", True), (".mkv", "libmp3lame", 44100, ".mp4", True),
        (".mov", "pcm_s16le", 44100, ".mp4", False), (".mov", "pcm_s16le", 192000, ".mp4", False),
        (".mkv", "flac", 44100, ".mp4", True), (".mkv", "flac", 44100, ".mov", False),
        (".mov", "pcm_s16le", 44100, ".mkv", True), (".wmv", "wmav2", 44100, ".mkv", False),
    ],
)  # fmt: skip
def test_sound_is_kept(
    tmp_path: Path, segmenter: isanet.Segmenter, suffix: str, codec: str, rate: int, output: str, copied: bool
) -> None:
    path = make_video(tmp_path / f"a{suffix}", [quarters()] * 30, sound=codec, sound_rate=rate)
    write_video(segmenter.stream(path), tmp_path / f"o{output}")
    before, after = streams(path)["audio"], streams(tmp_path / f"o{output}")["audio"]
    if copied:
        assert [data for _, data in after] == [data for _, data in before]
        assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=0.001)
    assert after[-1][0] == pytest.approx(before[-1][0], abs=0.06)  # a block of AAC is 23 ms


def test_joined_recordings_may_differ_in_their_sound(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    """The second has another rate and 0.5 s, the third a sound where the file began without."""
    for name, rates in (("a.mpg", (44100, 48000)), ("b.mts", (0, 44100))):
        data = b""
        for rate in rates:
            part = make_video(
                tmp_path / f"part{name[1:]}",
                [quarters()] * 15,
                codec="mpeg2video",
                sound="mp2" if rate else "",
                sound_rate=rate,
            )
            data += part.read_bytes()
        (tmp_path / name).write_bytes(data)
        assert write_video(segmenter.stream(tmp_path / name), tmp_path / "o.mp4") == 30
        found = streams(tmp_path / "o.mp4")
        assert 0.95 < found["video"][-1][0] < 1.15
        assert name == "b.mts" or 0.9 < found["audio"][-1][0] < 1.15


def test_damaged_sound_ends_no_video(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    generator = np.random.default_rng(20)
    for suffix, codec, sound in ((".mpg", "mpeg2video", "mp2"), (".mts", "libx264", "aac"), (".flv", "flv", "mp3")):
        data = make_video(tmp_path / f"a{suffix}", [quarters()] * 15, codec=codec, sound=sound).read_bytes()
        for _ in range(30):
            bad = bytearray(data)
            for place in generator.integers(len(bad) // 4, len(bad), 40):
                bad[place] = generator.integers(256)
            (tmp_path / f"bad{suffix}").write_bytes(bad)
            stream = segmenter.stream(frames(tmp_path / f"bad{suffix}", every=5, max_pixels=1 << 20))
            with suppress(isanet.ImageError):
                write_video(stream, tmp_path / "o.mp4", legend=False)


def test_a_part_of_a_video_begins_at_zero_with_its_sound(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    path = make_video(tmp_path / "a.mkv", [quarters()] * 90, sound="aac")
    results = segmenter.stream(frames(path, start=1, end=2, every=5))
    assert write_video(results, tmp_path / "o.mp4", start=1) == 6
    assert times(tmp_path / "o.mp4") == pytest.approx([i / 6 for i in range(6)], abs=0.001)
    sound = [time for time, _ in streams(tmp_path / "o.mp4")["audio"]]
    assert 0 <= sound[0] < 0.03
    assert 0.95 < sound[-1] < 1.0  # 6 frames, each of 1/6 s


def test_pixels_that_are_not_square_stay_so_also_turned(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    for name, rotation, expected in (("a.mp4", None, Fraction(4, 3)), ("b.mp4", (90.0, False), Fraction(3, 4))):
        path = make_video(tmp_path / name, [quarters()] * 2, aspect=Fraction(4, 3), rotation=rotation)
        write_video(segmenter.stream(path), tmp_path / f"o{name}")
        assert video_info(tmp_path / f"o{name}").pixel_aspect == expected


def test_any_iterable_of_arrays_becomes_a_video(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    arrays = (np.roll(quarters(65, 129), i, 1) for i in range(4))  # odd sizes
    write_video(segmenter.stream(arrays), tmp_path / "o.mkv", tmp_path / "l.mkv", fps=12.5)
    assert times(tmp_path / "o.mkv") == pytest.approx([0, 0.08, 0.16, 0.24])
    assert next(frames(tmp_path / "l.mkv")).image.shape == (65, 129, 3)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), isanet.ImageError("frame 12 is damaged"), SystemExit(143)])
def test_what_ends_early_is_a_playable_part_under_another_name(
    tmp_path: Path, segmenter: isanet.Segmenter, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video(tmp_path / "a.mp4", [quarters()] * 30, sound="aac")
    (tmp_path / "o.mp4").write_bytes(b"earlier")

    def interrupted() -> Iterator[Segmentation]:
        for number, result in enumerate(segmenter.stream(path)):
            if number == 12:
                raise error
            yield result

    with caplog.at_level(logging.WARNING, "isanet"), pytest.raises(type(error)):
        write_video(interrupted(), tmp_path / "o.mp4", tmp_path / "l.mkv")
    assert f"{tmp_path / 'o_part.mp4'} is a part, which can be played: its first 0.4 s" in caplog.text
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mp4", "l_part.mkv", "o.mp4", "o_part.mp4"]
    assert (tmp_path / "o.mp4").read_bytes() == b"earlier"
    assert times(tmp_path / "o_part.mp4") == pytest.approx([i / 30 for i in range(12)], abs=1e-6)
    assert len(list(frames(tmp_path / "l_part.mkv"))) == 12
    assert streams(tmp_path / "o_part.mp4")["audio"][-1][0] == pytest.approx(0.4, abs=0.03)


def test_nothing_is_left_where_nothing_was_segmented(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(600))
    with pytest.raises(isanet.ImageError, match=r"a.mp4 cannot be read as a video: it looks like an MP4 whose index"):
        write_video(segmenter.stream(tmp_path / "a.mp4"), tmp_path / "o.mp4", tmp_path / "l.mkv")
    with pytest.raises(ValueError, match="no results"):
        write_video([], tmp_path / "o.mp4")
    with pytest.raises(isanet.OutputError, match=r"o.gif must end in .mp4 or .mov or .mkv"):
        write_video(segmenter.stream([quarters()]), tmp_path / "o.gif")
    with pytest.raises(isanet.OutputError, match="cannot write"):
        write_video(segmenter.stream([quarters()]), tmp_path / "absent" / "o.mp4")
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_has_the_frames_of_one_video_and_its_first_when_it_is_whole(
    tmp_path: Path, segmenter: isanet.Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> Iterator[Segmentation]:
        yield from segmenter.stream([quarters()] * 3)
        raise KeyboardInterrupt

    folder = tmp_path / "labels"
    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(), labels=folder)
    assert "labels_part is a part: its first 0.1 s" in caplog.text
    assert not folder.exists()
    assert sorted(each.name for each in (tmp_path / "labels_part").iterdir()) == [f"{i:06}.png" for i in range(3)]
    write_video(segmenter.stream([quarters()] * 5), labels=folder)
    (folder / "notes.txt").write_text("kept")
    write_video(segmenter.stream([quarters()] * 2), labels=folder)
    assert sorted(each.name for each in folder.iterdir()) == ["000000.png", "000001.png", "notes.txt"]
    with pytest.raises(ValueError, match="no results"):
        write_video([], labels=tmp_path / "none")
    assert [each.name for each in tmp_path.iterdir()] == ["labels"]
    (tmp_path / "labels_part").symlink_to(folder)
    with pytest.raises(isanet.OutputError, match="labels_part is no folder"):
        write_video(segmenter.stream([quarters()]), labels=folder)


def test_a_file_that_is_named_as_a_part_would_be_stays(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    path = make_video(tmp_path / "a_part.mp4", [quarters()] * 3)
    data = path.read_bytes()
    write_video(segmenter.stream(path), tmp_path / "a.mp4")
    assert path.read_bytes() == data


def test_two_videos_are_not_written_into_one(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    paths = [make_video(tmp_path / name, [quarters()] * 3) for name in ("a.mp4", "b.mp4")]
    with pytest.raises(isanet.ImageError, match=r"b.mp4 is another video than .*a.mp4"):
        write_video(segmenter.stream(paths), tmp_path / "o.mp4")
    with pytest.raises(ValueError, match="are both"):
        write_video(segmenter.stream(paths[0]), tmp_path / "o.mkv", tmp_path / "o.mkv")


@pytest.mark.parametrize("fps", [0, -1, 1e-4, 1e9, float("inf"), float("nan")])
def test_rates_that_no_video_has_are_refused(tmp_path: Path, segmenter: isanet.Segmenter, fps: float) -> None:
    with pytest.raises(ValueError, match="fps must be in"):
        write_video(segmenter.stream([quarters()]), tmp_path / "o.mp4", fps=fps)


def test_sides_beyond_h264_are_named(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    image = np.zeros((8, 17000, 3), np.uint8)
    with pytest.raises(isanet.OutputError, match=r"it would be 17000x\d+, and H.264 has at most 16,384"):
        write_video(segmenter.stream([image]), tmp_path / "o.mp4")
    assert write_video(segmenter.stream([image]), labels=tmp_path / "l.mkv") == 1


def test_files_are_finished_however_often_one_interrupts(
    tmp_path: Path, segmenter: isanet.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while frames are encoded, and then again and again while one waits for that."""
    results, add, encoding = list(segmenter.stream([quarters()] * 3)), video._Writer.add, threading.Event()

    def slow(self: Any, result: Segmentation) -> None:
        encoding.set()
        threading.Event().wait(0.1)
        add(self, result)

    def waited(futures: Any) -> None:
        threading.Event().wait(0.02)
        raise KeyboardInterrupt

    def interrupted() -> Iterator[Segmentation]:
        yield from results
        encoding.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(video._Writer, "add", slow)
    monkeypatch.setattr(video, "wait", waited)
    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(), tmp_path / "o.mp4")
    assert len(times(tmp_path / "o_part.mp4")) == 3


def test_results_are_closed_after_an_error_of_writing(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    closed = threading.Event()

    def results() -> Iterator[Segmentation]:
        try:
            yield from segmenter.stream([quarters(), quarters(64, 64), *[quarters()] * 20])
        finally:
            closed.set()

    with pytest.raises(isanet.ImageError) as held:
        write_video(results(), tmp_path / "o.mp4")
    assert closed.is_set(), held


def test_frames_of_another_size_are_refused(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    with pytest.raises(isanet.ImageError, match=r"frame 3 is 64x64, those before it are 128x64"):
        write_video(segmenter.stream([quarters(), quarters(), quarters(64, 64)]), tmp_path / "o.mp4")
    assert len(list(frames(tmp_path / "o_part.mp4"))) == 2


# --- untrusted files


def test_a_cut_or_damaged_video_gives_what_can_be_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 64, 128, 3), np.uint8)
    data = make_video(tmp_path / "a.mkv", list(noise)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING, "isanet"):
        found = list(frames(tmp_path / "cut.mkv"))
    assert 100 < len(found) < 200
    assert "cut.mkv ends at" in caplog.text
    assert "of 10.0 s: the file is cut short" in caplog.text


def test_damaged_files_give_frames_or_named_errors(tmp_path: Path) -> None:
    """A hundred files with changed, absent and repeated bytes, of each container."""
    generator = np.random.default_rng(19)
    for suffix in (".mp4", ".mkv", ".avi"):
        data = make_video(
            tmp_path / f"a{suffix}", [quarters()] * 8, sound="aac" if suffix != ".avi" else ""
        ).read_bytes()
        refused = []
        for _ in range(35):
            bad = bytearray(data)
            for place in generator.integers(0, len(bad), generator.integers(1, 40)):
                bad[place] = generator.integers(256)
            if generator.random() < 0.3:
                del bad[generator.integers(len(bad)) :]
            (tmp_path / f"bad{suffix}").write_bytes(bad)
            try:
                list(frames(tmp_path / f"bad{suffix}", max_pixels=1 << 20))
            except isanet.ImageError as error:
                refused.append(str(error))
        assert refused, suffix
        assert not any("\n" in message for message in refused)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.mp4", b"#EXTM3U\n#EXTINF:1,\nvideo.ts\n", "looks like text"),
        ("a.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "looks like text"),
        ("a.mp4", b"", "an empty file"),
        ("a.mp4", b"<!doctype html><html>", "web page"),
    ],
)
def test_playlists_and_other_files_are_refused(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(isanet.ImageError, match=match):
        list(frames(tmp_path / name))


def test_a_playlist_with_a_video_is_not_followed(tmp_path: Path) -> None:
    make_video(tmp_path / "secret.ts", [quarters()] * 30)
    for text in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.ts\n",
    ):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(isanet.ImageError, match="cannot be read as a video"):
            list(frames(tmp_path / "list.mp4"))


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_pipes_are_refused_and_absent_files_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (video_info, frames):
        with pytest.raises(isanet.ImageError, match=r"pipe.mp4 is not a regular file"):
            list(read(str(tmp_path / "pipe.mp4")))
        with pytest.raises(isanet.ImageError, match=r"absent.mp4 cannot be read as a video: No such file"):
            list(read(str(tmp_path / "absent.mp4")))


def test_large_frames_and_sounds_alone_are_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [quarters()] * 2)
    with pytest.raises(isanet.ImageError, match=r"a.mp4 .*128"):
        list(frames(path, max_pixels=1000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream: Any = out.add_stream("aac", rate=44100)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate = 44100
        out.mux([*stream.encode(part), *stream.encode(None)])
    with pytest.raises(isanet.ImageError, match=r"sound.mp4 has no video in it"):
        list(frames(tmp_path / "sound.mp4"))


def test_frames_larger_than_the_header_says_get_no_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = make_video(tmp_path / "small.mts", [quarters()] * 40).read_bytes()
    large = make_video(tmp_path / "large.mts", [quarters(1024, 1024)] * 2).read_bytes()
    (tmp_path / "a.mts").write_bytes(small + large)
    with caplog.at_level(logging.WARNING, "isanet"):
        found = list(frames(tmp_path / "a.mts", max_pixels=64 * 128))
    assert {frame.image.shape for frame in found} == {(64, 128, 3)}
    assert "damaged part" in caplog.text


def test_memory_is_flat_over_many_frames(tmp_path: Path, segmenter: isanet.Segmenter) -> None:
    """Written and read: after the first 200 frames, 1,500 more take no more than 30 MB; kept, they would take 1 GB."""
    image = quarters(256, 320)

    def watched() -> Iterator[Segmentation]:
        for number, result in enumerate(segmenter.stream(image for _ in range(1700))):
            if number in (200, 1699):
                resident.append(psutil.Process().memory_info().rss)
            yield result

    resident: list[int] = []
    write_video(watched(), tmp_path / "o.mp4", tmp_path / "l.mkv")
    assert resident[1] - resident[0] < 30e6
