"""Small videos of every kind that tests need, made by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def quarters(height: int = 64, width: int = 128) -> NDArray[np.uint8]:
    """Red, green / blue, black."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2] = BLUE
    return image


def corners(image: NDArray[Any]) -> list[tuple[int, ...]]:
    """The colors of the four quarters, in reading order, where lossy codecs keep them within 8 levels."""
    height, width = image.shape[:2]
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    near = {tuple(color): color for color in (RED, GREEN, BLUE, BLACK)}
    return [
        next((color for color in near if np.abs(image[place].astype(int) - color).max() <= 8), tuple(image[place]))
        for place in places
    ]


def make_video(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    *,
    rate: int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: tuple[float, bool] | None = None,
    times: Sequence[Fraction] | None = None,
    time_base: Fraction | None = None,
    sound: str = "",
    sound_rate: int = 44100,
    aspect: Fraction | None = None,
    start: Fraction = Fraction(0),
) -> Path:
    """Encode images.

    Args:
        path: The container goes by its suffix.
        images: (H, W, 3) uint8 RGB, of one size.
        rate: Frames per second.
        codec: FFmpeg's name.
        pixels: FFmpeg's name of a pixel format.
        rotation: Degrees counterclockwise by which players turn it, and whether it is mirrored before.
        times: Of the images; default: by `rate`.
        time_base: Unit of the times.
        sound: Codec of a tone of 440 Hz as long as the images; none by default.
        sound_rate: Its samples per second.
        aspect: Width of a pixel divided by its height.
        start: What the timestamps start at.
    """
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        tone: Any = out.add_stream(sound, rate=sound_rate) if sound else None
        if tone is not None:
            tone.bit_rate = 64000
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            if times is not None or start:
                time = start + (Fraction(number, rate) if times is None else times[number])
                frame.time_base = time_base or Fraction(1, 90000)
                frame.pts = round(time / frame.time_base)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if tone is not None:
            samples = np.sin(2 * np.pi * 440 * np.arange(sound_rate * len(images) // rate) / sound_rate)
            format = tone.codec_context.format or av.AudioFormat("s16")
            kind = "fltp" if "flt" in format.name else "s16"
            data = samples.astype(np.float32) * 0.3 if kind == "fltp" else (samples * 10000).astype(np.int16)
            for first in range(0, len(data), 1024):
                part = av.AudioFrame.from_ndarray(data[None, first : first + 1024], kind, "mono")
                part.sample_rate, part.pts, part.time_base = sound_rate, first, Fraction(1, sound_rate)
                out.mux(tone.encode(part))
            out.mux(tone.encode(None))
    return path
