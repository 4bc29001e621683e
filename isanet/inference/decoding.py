"""Reading videos, by PyAV: see `isanet.inference.video`.

Files are opened by FFmpeg's readers of common containers alone, from the disk: playlists, which may name other files
and addresses, are not read.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isanet._files import given_path, looks_like
from isanet._text import duration, plural
from isanet.errors import ImageError
from isanet.images.reading import MAX_PIXELS, RGBImage, check_size
from isanet.inference.runtimes.packages import check_installed

FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg"
"""Containers that are read, by FFmpeg's names."""

AHEAD = 2
"""Frames that are decoded before they are asked for."""

UNSPECIFIED, BT601, BT709 = 2, 5, 1
"""Color matrices, by their numbers in ISO/IEC 23091-2; `Colorspace` of PyAV has the last two."""

UNINDEXED = {"mpegts", "mpeg"}
"""Those without an index of keyframes."""

MAX_BACK = Fraction(1, 4)
"""Seconds by which timestamps go back where one recording ends and the next begins, as in joined files."""

HD = 720
"""Height from which players take BT.709 for a video that does not say; below it is BT.601."""

log = logging.getLogger("isanet")


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video, as `isanet.Segmenter.stream` takes it.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        path: Of the video.
        time: When it is shown, in seconds from the start of the file.
    """

    image: RGBImage
    path: Path
    time: float


class VideoInfo(NamedTuple):
    """What a video's header says.

    Attributes:
        duration: Seconds; None: it does not say.
        num_frames: About how many frames it has; None: it does not say.
        time_base: Unit of its timestamps, in seconds.
        rate: Mean number of frames per second.
        pixel_aspect: Width of a pixel divided by its height, as stored.
        size: (width, height) in pixels, as stored.
    """

    duration: float | None
    num_frames: int | None
    time_base: Fraction
    rate: Fraction
    pixel_aspect: Fraction
    size: tuple[int, int]


def frames(
    path: str | os.PathLike[str],
    *,
    every: int = 1,
    start: float = 0,
    end: float = math.inf,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Frame]:
    """The frames of a video, decoded in a thread of its own, at most `AHEAD` of what is asked for.

    Rotation and mirroring are applied, 10-bit and other pixel formats become 8-bit RGB by the video's own color matrix
    (HDR is not tone-mapped). Damaged parts are left out, with a warning in the log.

    >>> from isanet.inference.video import frames
    >>> first = next(frames("drive.mp4", start=2))
    >>> first.image.shape, first.time >= 2
    ((256, 512, 3), True)

    Args:
        path: Of the video.
        every: Take the first frame and then each `every`-th.
        start: Seconds; earlier frames are left out.
        end: Seconds; frames from there on are left out.
        max_pixels: Larger frames are refused.

    Raises:
        ImageError: The file cannot be read, is no video, has no frame that can be decoded, or none from `start` on.
        ValueError: `every` is below 1, `start` is negative, `end` is not above `start`, or PyAV is not installed.
    """
    check_installed("av", "video")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if not 0 <= start < end:
        raise ValueError(f"start must be at least 0 and below end, got start={start:g}, end={end:g}")
    return _read_ahead(_decoded(given_path(path, ImageError), every, start, end, max_pixels))


def _read_ahead(items: Generator[Frame]) -> Iterator[Frame]:
    """The items of a generator, which runs in a thread of its own."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isanet-decode")
    waiting: deque[Future[Frame | None]] = deque(pool.submit(next, items, None) for _ in range(AHEAD))
    try:
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """What the header of a video says, without decoding a frame.

    Raises:
        ImageError: The file cannot be read, or is no video.
        ValueError: PyAV is not installed.
    """
    check_installed("av", "video")
    with opened(given_path(path, ImageError)) as container:
        stream = container.streams.video[0]
        seconds = None if container.duration is None else container.duration / 1e6
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        count = stream.frames or (None if seconds is None else round(seconds * rate))
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return VideoInfo(seconds, count, stream.time_base or 1 / rate, rate, aspect, (stream.width, stream.height))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open container with at least one video stream; PyAV's errors become errors that name the file.

    Raises:
        ImageError: The file cannot be read, or is no video.
    """
    import av

    if path.exists() and not path.is_file():
        raise ImageError(f"{path} is not a regular file; save the video to one first")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise ImageError(f"{path} cannot be read as a video: {_why_unreadable(path, error)}") from error
    with container:
        stream = next(iter(container.streams.video), None)
        # A cover image of a song is a video stream, too
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise ImageError(f"{path} has no video in it; it was opened as {container.format.long_name}")
        if stream.codec_context is None:
            raise ImageError(f"{path} has a video whose codec is unknown here; convert it to H.264")
        yield container


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as cause:
        return f"{cause.strerror}; check the path"
    look = looks_like(start)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") and "video" in look:
        look = "an MP4 whose index is missing, as of a copy or a recording that was cut short"
    return f"it looks like {look} ({getattr(error, 'strerror', None) or error}); fetch or export it again"


def start_time(container: Any) -> Fraction:
    """What the timestamps of a file start at, in seconds."""
    return Fraction(container.start_time or 0, 1_000_000)


def seek(container: Any, time: Fraction) -> None:
    """Goes to the keyframe at or before a time in seconds; where there is no index of them, reading is from the start.

    There, a seek would end between two keyframes, and timestamps begin anew where recordings were joined.
    """
    if container.format.name not in UNINDEXED:
        container.seek(math.floor((time + start_time(container)) * 1_000_000))


def joined(container: Any) -> Iterator[Any]:
    """The packets of a file's video and sounds; where recordings were joined, timestamps go on, not anew from zero.

    The stream that first goes back says by how much all are moved, so that sound stays in step.
    """
    shifts, begun, ends = [Fraction(0)], dict[int, int](), dict[int, Fraction]()
    with suppress(IndexError):  # PyAV's, at the end of a file in which further streams have begun
        for packet in container.demux([container.streams.video[0], *container.streams.audio]):
            if packet.dts is not None and container.format.name in UNINDEXED:
                index, time = packet.stream_index, packet.dts * packet.time_base
                number = begun.get(index, 0)
                if index in ends and time + shifts[number] < ends[index] - MAX_BACK:
                    number = begun[index] = number + 1
                    if number == len(shifts):
                        shifts.append(max(ends.values()) - time)
                ends[index] = time + shifts[number] + (packet.duration or 0) * packet.time_base
                if number:
                    shift = round(shifts[number] / packet.time_base)
                    packet.dts += shift
                    packet.pts = None if packet.pts is None else packet.pts + shift
            yield packet


def _decoded(path: Path, every: int, start: float, end: float, max_pixels: int) -> Generator[Frame]:
    import av

    with opened(path) as container:
        stream = container.streams.video[0]
        check_size(stream.width, stream.height, str(path), max_pixels)
        stream.thread_type = "AUTO"
        # Of frames larger than the header says, before there is memory for them; with room for edges that are cut off
        stream.codec_context.options = {"max_pixels": str(min(2 * max_pixels + (1 << 16), (1 << 31) - 1))}
        zero = start_time(container)
        number, damaged, time = 0, 0, None
        step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        try:
            if start > 0:
                seek(container, Fraction(start))
            packets = joined(container)
            while (packet := next(packets, None)) is not None:
                if packet.stream is not stream:
                    continue
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    damaged += 1
                    continue
                for frame in decoded:
                    stamp = None if frame.pts is None else frame.pts * (frame.time_base or stream.time_base) - zero
                    time = stamp if stamp is not None else step + (time if time is not None else -step)
                    if time < start - 1e-9:
                        continue
                    if time >= end:
                        return
                    number += 1
                    if (number - 1) % every == 0:
                        check_size(frame.width, frame.height, str(path), max_pixels)
                        yield Frame(_rgb(frame), path, float(time))
        except av.FFmpegError as error:
            raise ImageError(
                f"{path} cannot be decoded beyond {_clock(time)}: {error.strerror}; the file is damaged or cut short"
            ) from error
        finally:
            if damaged:
                log.warning("%s: %s could not be decoded: left out", path, plural(damaged, "damaged part"))
        if not number:
            reason = "has no frame that can be decoded" if time is None else f"ends at {_clock(time)}, before start"
            raise ImageError(f"{path} {reason}; play it to see what is in it")
        length = None if stream.duration is None else stream.duration * stream.time_base
        if length is None and container.duration is not None:
            length = Fraction(container.duration, 1_000_000)
        if length is not None and time is not None and time + step < length - max(1, length / 50):
            log.warning("%s ends at %s of %s: the file is cut short", path, _clock(time), _clock(length))


def _clock(seconds: float | Fraction | None) -> str:
    return duration(float(seconds or 0))


def _rgb(frame: Any) -> RGBImage:
    """A decoded frame as RGB, upright."""
    if frame.colorspace == UNSPECIFIED:
        frame.colorspace = BT709 if frame.height >= HD else BT601
    image: RGBImage = frame.to_ndarray(format="rgb24")
    try:
        sides = list(frame.side_data)
    except ValueError:  # of a type that PyAV does not know, such as EXIF
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    for side in sides:
        if side.type.name == "DISPLAYMATRIX":
            image = upright(image, np.frombuffer(bytes(side), np.int32))
    return np.ascontiguousarray(image)


def upright(image: NDArray[Any], matrix: NDArray[np.int32]) -> NDArray[Any]:
    """An image as a display matrix of FFmpeg shows it: quarter turns and mirroring; other matrices change nothing.

    Column x and row y of the image go to column a x + c y and row b x + d y, for (a, b, _, c, d, ...) of the matrix.
    """
    a, b, _, c, d = matrix[:5]
    if (a or d) and not (b or c):
        across, down = a, d
    elif (b or c) and not (a or d):
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        return image
    return image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
