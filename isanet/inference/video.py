"""Videos: frames in, and videos of overlays and labels out; by PyAV, the extra `video`.

Decoding runs in a thread of its own, and so do drawing and encoding, while the network runs in the caller's: each at
most a few frames ahead or behind, so that memory does not grow with the length of a video.

>>> from isanet.inference.video import frames, write_video
>>> results = segmenter.stream(frames("drive.mp4", every=5, end=60))  # or segmenter.stream("drive.mp4")
>>> write_video(results, "drive_overlay.mp4")
6

Times are in seconds from the start of a file, which is zero for its sound too.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet._files import given_path, output_errors, sync_and_close, temporary_file
from isanet._text import duration
from isanet.errors import ImageError, OutputError
from isanet.inference.decoding import BT709, Frame, VideoInfo, frames, joined, opened, seek, start_time, video_info
from isanet.inference.runtimes.packages import check_installed
from isanet.inference.segmentation import Segmentation
from isanet.viz.overlay import MIN_SIDE

__all__ = ["Frame", "VideoInfo", "frames", "video_info", "write_video"]

CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""FFmpeg's names of the containers that overlays are written to, by suffix."""

COPIED = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    "mov": {"aac", "mp3", "ac3", "eac3", "alac"},
}  # fmt: skip
"""Codecs of sound that players take in a container (in Matroska whatever it can hold); others are encoded again."""

MAX_SIDE = 16384
"""Pixels that a side of an H.264 video may have."""

MAX_PENDING = 2
"""Results that wait for being drawn and encoded."""

LIMITED_RANGE, YUV = 1, "yuv420p"
"""What every player and browser shows."""

log = logging.getLogger("isanet")


def write_video(
    results: Iterable[Segmentation],
    overlay: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    *,
    start: float = 0,
    fps: float = 25,
    alpha: float = 0.5,
    legend: bool = True,
) -> int:
    """Write results as videos; drawing and encoding run in a thread of their own.

    Frames keep their times, and an overlay the sound of the video that the results are of: as it is where the container
    can hold it, else as AAC. If `results` end by an error or Ctrl-C, what was written until then is finished as a
    playable file under the name `NAME_part.mp4`, and the error goes on.

    >>> from isanet.inference.video import write_video
    >>> write_video(segmenter.stream("drive.mp4"), "drive_overlay.mp4", "drive_labels.mkv")
    30

    Args:
        results: Of `isanet.Segmenter.stream`, all of one size and of one video.
        overlay: An H.264 video of overlays: .mp4, .mov or .mkv. An existing file is replaced.
        labels: A lossless video (FFV1) whose gray levels are the labels, with times in whole milliseconds: .mkv; or a
            folder for 000000.png, 000001.png, ..., as `Segmentation.save` writes them, instead of those that it has.
        start: Time in `results` that becomes zero in the files.
        fps: Frames per second of results that are not of a video, as of an iterable of arrays.
        alpha: As for `Segmentation.overlay`.
        legend: Add a panel with all classes to the overlay.

    Returns:
        The number of frames.

    Raises:
        ImageError: A result has another size, or is of another video, than those before it.
        OutputError: A file cannot be written, or its suffix is another one.
        ValueError: Nothing is asked for, `fps` is not in 0.01..1000, there are no results, or PyAV is not installed.
    """
    check_installed("av", "video")
    if overlay is None and labels is None:
        raise ValueError("give a file for the overlay, the labels, or both")
    if overlay is not None and labels is not None and Path(overlay) == Path(labels):
        raise ValueError(f"overlay and labels are both {overlay}; give each a file of its own")
    if not 0.01 <= fps <= 1000:
        raise ValueError(f"fps must be in 0.01..1000, got {fps:g}")
    with ExitStack() as stack:
        writer = _Writer(stack, Fraction(start), 1 / Fraction(fps).limit_denominator(1001), alpha, legend)
        if overlay is not None:
            writer.overlay = stack.enter_context(_output(given_path(overlay, OutputError), CONTAINERS, writer))
        if labels is not None and Path(labels).suffix:
            writer.labels = stack.enter_context(_output(given_path(labels, OutputError), {".mkv": "matroska"}, writer))
        elif labels is not None:
            writer.folder = stack.enter_context(_folder(given_path(labels, OutputError), writer))
        error, unfinished = _write_all(results, writer)
        if not writer.count:
            raise error or ValueError("there are no results to write")
        if unfinished is not None:
            raise error or unfinished from None
        writer.is_part = error is not None
    if error is not None:
        error.add_note("a part is kept")
        raise error
    return writer.count


def _write_all(results: Iterable[Segmentation], writer: _Writer) -> tuple[BaseException | None, BaseException | None]:
    """Write results in a thread, until they or an error end; returns the error, and that of finishing the files.

    The thread has ended then, however often Ctrl-C was pressed: files are not closed under its hands.
    """
    error: BaseException | None = None
    pending: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isanet-encode")
    try:
        for result in results:
            pending.append(pool.submit(writer.add, result))
            if len(pending) > MAX_PENDING:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    except BaseException as raised:
        error = raised
    if error is not None and isinstance(results, Generator):  # else open as long as the error is held
        with suppress(Exception):
            results.close()
    finished = pool.submit(writer.finish)
    while not finished.done():
        try:
            wait([finished])
        except BaseException as raised:
            error = error or raised
    pool.shutdown()
    return error, finished.exception()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.stem}_part{path.suffix}")


@contextmanager
def _output(path: Path, suffixes: dict[str, str], writer: _Writer) -> Iterator[_VideoFile]:
    """A video file to be; if it is a part, it appears under another name."""
    import av

    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{path.name} must end in {' or '.join(suffixes)}")
    with output_errors(path), temporary_file(path.parent) as file:
        video = _VideoFile(av.open(file, "w", format=suffixes[path.suffix.lower()]), path)
        try:
            yield video
        finally:
            with video.errors():
                video.container.close()
        sync_and_close(file)
        Path(file.name).replace(_part(path) if writer.is_part else path)
        writer.tell(path)


@contextmanager
def _folder(path: Path, writer: _Writer) -> Iterator[Path]:
    """A folder of numbered PNGs to be, first under the name of a part; at its own, the first PNG appears last."""
    part = _part(path)
    with output_errors(path):
        if part.is_symlink() or (path.exists() and not path.is_dir()):
            raise OutputError(f"{part if part.is_symlink() else path} is no folder; remove it, or use another name")
        part.mkdir(parents=True, exist_ok=True)
        for old in _numbered(part):
            old.unlink()
        try:
            yield part
            if not writer.is_part:
                path.mkdir(exist_ok=True)
                for old in _numbered(path):
                    old.unlink()
                for new in reversed(_numbered(part)):
                    new.replace(path / new.name)
            writer.tell(path)
        finally:
            with suppress(OSError):  # it is not empty
                part.rmdir()


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if path.stem.isdecimal())


class _VideoFile:
    """A video that is being written."""

    def __init__(self, container: Any, path: Path) -> None:
        self.container, self.path = container, path
        self._stream: Any = None
        self._last = -1

    def begin(self, info: VideoInfo, size: tuple[int, int], codec: str, pixels: str, **options: str) -> None:
        """Adds the stream of images of (height, width) `size`."""
        if pixels == YUV and max(size) > MAX_SIDE:
            raise OutputError(
                f"cannot write {self.path}: it would be {size[1]}x{size[0]}, and H.264 has at most {MAX_SIDE:,} pixels "
                "a side; write the labels alone"
            )
        self._stream = stream = self.container.add_stream(codec, rate=info.rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = self.time_base = info.time_base
        stream.codec_context.sample_aspect_ratio = info.pixel_aspect
        if pixels == YUV:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED_RANGE

    def add(self, image: NDArray[Any], pixels: str, time: Fraction, length: Fraction) -> None:
        """Encodes an image that is shown from `time` on, for `length` seconds if it is the last."""
        import av

        frame = av.VideoFrame.from_ndarray(image, pixels)
        if pixels != self._stream.pix_fmt:
            frame = frame.reformat(format=YUV, dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
        self._last = frame.pts = max(round(time / self.time_base), self._last + 1)
        frame.time_base, frame.duration = self.time_base, max(1, round(length / self.time_base))
        with self.errors():
            self.container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encodes what the encoder still holds."""
        with self.errors():
            self.container.mux(self._stream.encode(None))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Around what may fail while writing."""
        import av

        try:
            with output_errors(self.path):
                yield
        except av.FFmpegError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error


class _Writer:
    """Draws and encodes results, one after the other."""

    def __init__(self, stack: ExitStack, start: Fraction, step: Fraction, alpha: float, legend: bool) -> None:
        self.overlay: _VideoFile | None = None
        self.labels: _VideoFile | None = None
        self.folder: Path | None = None
        self.count, self.end, self.is_part = 0, Fraction(0), False
        self._stack, self._start, self._step, self._alpha, self._legend = stack, start, step, alpha, legend
        self._time = Fraction(0)
        self._size: tuple[int, ...] = ()
        self._path: Path | None = None  # of the video
        self._canvas: Image.Image | None = None
        self._sound: _Sound | None = None

    def add(self, result: Segmentation) -> None:
        """Writes the next result."""
        time = self.count * self._step if result.time is None else Fraction(result.time) - self._start
        image = None if self.overlay is None else self._drawn(result)
        if not self.count:
            self._begin(result, image)
        elif self._size != result.labels.shape:
            was, now = (f"{shape[1]}x{shape[0]}" for shape in (self._size, result.labels.shape))
            name = "" if result.path is None else f"{result.path}: "
            raise ImageError(
                f"{name}frame {self.count + 1} is {now}, those before it are {was}: a video has one size; split it"
            )
        elif result.time is not None and result.path != self._path:
            raise ImageError(f"{result.path} is another video than {self._path}; write each to a file of its own")
        elif time > self._time:
            self._step = time - self._time
        if self.overlay is not None and image is not None:
            if self._sound is not None:
                self._sound.until(time)
            self.overlay.add(image, "rgb24", time, self._step)
        if self.labels is not None:
            gray = result.labels if result.labels.dtype == np.uint8 else result.labels.astype(np.uint16)
            self.labels.add(gray, "gray" if gray.itemsize == 1 else "gray16le", time, self._step)
        if self.folder is not None:
            result.save(self.folder / f"{self.count:06}.png")
        self.count, self._time, self.end = self.count + 1, time, time + self._step

    def finish(self) -> None:
        """Writes the sound of the last frame, and what the encoders hold."""
        if not self.count:
            return
        if self._sound is not None:
            self._sound.until(self.end)
            self._sound.finish()
        for file in (self.overlay, self.labels):
            if file is not None:
                file.finish()

    def tell(self, path: Path) -> None:
        """Says where a part is."""
        if self.is_part:
            plays = ", which can be played" if path.suffix else ""
            log.warning("%s is a part%s: its first %s", _part(path), plays, duration(float(self.end)))

    def _begin(self, result: Segmentation, image: NDArray[np.uint8] | None) -> None:
        self._size = height, width = result.labels.shape
        of_video = result.time is not None and result.path is not None
        info = VideoInfo(None, None, self._step, 1 / self._step, Fraction(1), (width, height))
        if of_video and result.path is not None:
            self._path, info = result.path, video_info(result.path)
            self._step = 1 / info.rate
            if info.size != (width, height):  # turned by a quarter
                info = info._replace(pixel_aspect=1 / info.pixel_aspect)
        if self.overlay is not None and image is not None:
            self.overlay.begin(info, image.shape[:2], "libx264", YUV, crf="20", preset="veryfast")
            if of_video and result.path is not None:
                self._sound = self._stack.enter_context(_sound(result.path, self.overlay, self._start))
        if self.labels is not None:
            pixels = "gray" if result.labels.dtype == np.uint8 else "gray16le"
            self.labels.begin(info, (height, width), "ffv1", pixels)

    def _drawn(self, result: Segmentation) -> NDArray[np.uint8]:
        """The overlay, with a last row and column repeated where H.264 needs even sizes."""
        if not self._legend:
            canvas = result.overlay(self._alpha, legend=False)
        elif self._canvas is None or max(result.labels.shape) < MIN_SIDE:  # small images are enlarged for the legend
            canvas = self._canvas = result.overlay(self._alpha, legend="fixed")
        else:
            canvas = self._canvas
            canvas.paste(result.overlay(self._alpha, legend=False), (0, 0))
        return np.pad(np.asarray(canvas), ((0, canvas.height % 2), (0, canvas.width % 2), (0, 0)), "edge")


@contextmanager
def _sound(path: Path, output: _VideoFile, start: Fraction) -> Iterator[_Sound | None]:
    """The sound of a video, to be copied; None if it has none."""
    with opened(path) as container:
        yield _Sound(container, output, start) if container.streams.audio else None


class _Sound:
    """Copies the sound of a video as far as its images are, so that neither waits in memory for the other."""

    def __init__(self, source: Any, output: _VideoFile, start: Fraction) -> None:
        import av

        self._output, self._start = output, start
        self._zero = start_time(source) + start
        self._streams: dict[int, Any] = {}
        self._resamplers: dict[tuple[Any, ...], Any] = {}
        for stream in source.streams.audio:
            if stream.codec_context is None or not stream.codec_context.sample_rate:  # unknown here, or damaged
                continue
            codec, rate = stream.codec_context.codec.canonical_name, stream.codec_context.sample_rate
            if codec in COPIED.get(output.container.format.name, output.container.supported_codecs):
                self._streams[stream.index] = output.container.add_stream_from_template(stream)
            else:
                rate = min(av.Codec("aac", "w").audio_rates or [44100], key=lambda known: abs(known - rate))
                self._streams[stream.index] = output.container.add_stream("aac", rate=rate)
        if start > 0:
            with suppress(av.FFmpegError):
                seek(source, start)
        self._packets = joined(source)
        self._next: Any = None

    def until(self, end: Fraction) -> None:
        """Copies what begins before `end`, in seconds of the output."""
        import av

        while (packet := self._following()) is not None:
            self._next = None
            stream = self._streams.get(packet.stream_index)
            if stream is None or packet.dts is None:  # of the images, or an empty one at the end
                continue
            time = packet.dts * packet.time_base - self._zero
            if time >= end:
                self._next = packet
                return
            if self._start and time < 0:
                continue
            shift = round(self._zero / packet.time_base)
            decoded: list[Any] = []
            if stream.codec_context.is_encoder:
                with suppress(av.FFmpegError):  # damaged
                    decoded = packet.decode()
            refused = av.error.ArgumentError, av.error.InvalidDataError, av.error.PatchWelcomeError
            with self._output.errors(), suppress(*refused):  # damaged
                if stream.codec_context.is_encoder:
                    for frame in decoded:
                        if frame.pts is not None:
                            frame.pts -= round(self._zero / frame.time_base)
                        for alike in self._alike(stream, frame):
                            self._output.container.mux(stream.encode(alike))
                else:
                    packet.dts -= shift
                    if packet.pts is not None:
                        packet.pts -= shift
                    packet.stream = stream
                    self._output.container.mux(packet)

    def _following(self) -> Any:
        import av

        with suppress(av.FFmpegError):  # of a damaged file, as its images say
            return self._next or next(self._packets, None)
        return None

    def _alike(self, stream: Any, frame: Any) -> list[Any]:
        """A frame of sound as the encoder takes it: where recordings were joined, rate and channels may change."""
        import av

        context, key = stream.codec_context, (stream.index, frame.format.name, frame.layout.name, frame.sample_rate)
        if key not in self._resamplers:
            self._resamplers[key] = av.AudioResampler(context.format, context.layout, context.sample_rate)
        resampled: list[Any] = self._resamplers[key].resample(frame)
        return resampled

    def finish(self) -> None:
        """Encodes what encoders still hold."""
        with self._output.errors():
            for stream in self._streams.values():
                if stream.codec_context.is_encoder:
                    self._output.container.mux(stream.encode(None))
