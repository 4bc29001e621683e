"""What is one image, several or a folder; and images at addresses, which are fetched within bounds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from isanet._files import given_path
from isanet.errors import CacheError, DownloadError, ImageError, IntegrityError, IsanetError
from isanet.images.reading import (
    RGBImage,
    Source,
    ValueRange,
    check_size,
    is_open_file,
    max_file_bytes,
    read_image,
    read_open_file,
)
from isanet.inference.decoding import Frame, frames
from isanet.inference.outputs import find_images, is_video
from isanet.weights.download import fetch
from isanet.weights.partfile import Limits
from isanet.weights.url import is_address, redacted

LIMITS = Limits(window=30, retries=2, deadline=300)
"""Of waiting for an image: five minutes for all of it, and less where nothing comes."""


def sources(images: Iterable[Source | Frame] | str | os.PathLike[str]) -> Iterable[Any]:
    """The image that is passed by itself, or those in any iterable, of which folders and patterns are several."""
    if isinstance(images, str | os.PathLike):
        return _each(images, _found(images))
    if isinstance(images, bytes | bytearray | memoryview | Image.Image | np.ndarray | Frame) or is_open_file(images):
        return [images]
    return (source for image in images for source in _each(image))


def several(images: Any) -> Iterable[Source] | None:
    """The images of a list, tuple or iterator, a folder, or a glob pattern that is no file; None of a single one.

    Raises:
        ValueError: It is a video, or a list with one, whose results would not fit into memory.
    """
    if video := next(filter(is_video, images if isinstance(images, list | tuple) else [images]), None):
        raise ValueError(f"{video} is a video: segmenter.stream(...) gives the result of each frame, one by one")
    if isinstance(images, list | tuple | Iterator):
        return None if is_open_file(images) else images
    found = _found(images)
    return None if found == [images] else found


class Failed(NamedTuple):
    """What took the place of the rest of a source: a folder without images, a video that is damaged from here on."""

    source: Any
    error: IsanetError


def _each(image: Any, found: Iterable[Any] | None = None) -> Iterator[Any]:
    """What is found, and what failed last: an error of one source does not end those after it."""
    try:
        yield from _found(image) if found is None else found
    except IsanetError as error:
        yield Failed(image, error)


def _found(image: Any) -> Iterable[Any]:
    """The images of a folder or a glob pattern, as on the command line, the frames of a video; others as they are."""
    if is_video(image):
        return frames(image)
    if not isinstance(image, str | os.PathLike) or is_address(image):
        return [image]
    path = given_path(image, ImageError)
    return list(find_images([str(path)])) if path.is_dir() or (has_magic(str(path)) and not path.exists()) else [image]


def name_of(source: object) -> str:
    """What a source is called in messages: its path, its address without passwords, or "this image"."""
    if isinstance(source, Frame):
        return f"{source.path}, at {source.time:.2f} s"
    if is_address(source):
        return redacted(source)
    return str(Path(source)) if isinstance(source, str | os.PathLike) else "this image"


def read_source(source: Source | Frame | Failed, *, max_pixels: int, value_range: ValueRange | None) -> RGBImage:
    """`isanet.images.reading.read_image`, for addresses too.

    An image at an address passes through a temporary file, which is removed at once; it is fetched as weights are
    (https alone, without credentials, see `isanet.weights.http`), and is no larger than a file may be.

    Raises:
        ImageError: It is no image, or there is no room for its file.
        DownloadError: It cannot be fetched (NetworkError), or the environment says to stay offline (OfflineError).
        IntegrityError: Too many bytes came, or a web page instead of an image.
    """
    if isinstance(source, Failed):
        raise source.error
    if isinstance(source, Frame):
        check_size(source.image.shape[1], source.image.shape[0], str(source.path), max_pixels)
        return source.image
    if not is_address(source):
        return read_image(source, max_pixels=max_pixels, value_range=value_range)
    name, folder = redacted(source), Path(tempfile.gettempdir())
    try:
        with fetch(source, folder, max_size=max_file_bytes(max_pixels), progress=False, limits=LIMITS) as fetched:
            return read_open_file(fetched.file, name, max_pixels, value_range)
    except (DownloadError, IntegrityError) as error:
        raise type(error)(f"{name}: {error}; check the address, or download the image and pass its path") from error
    except CacheError as error:
        raise ImageError(
            f"{name} cannot be stored in {folder}: free some space there, or set TMPDIR to another folder"
        ) from error
