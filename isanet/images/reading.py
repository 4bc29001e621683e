"""Read images: files, their bytes, PIL images and arrays become 8-bit RGB arrays.

Which images are read, and how each kind becomes 8-bit RGB, is written at `read_image`.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from isanet._files import HEIF_BRANDS, given_path, looks_like
from isanet.errors import ImageError
from isanet.images.blocks import MAX_TAG_BYTES, check_gif, check_jpeg, check_tags, exif_orientation

RGBImage = NDArray[np.uint8]
"""(H, W, 3), red, green, blue, 0..255."""

ValueRange = tuple[float, float]
"""The values that become 0 and 255."""

MAX_PIXELS = 178_956_970
"""Default limit of an image's pixels: where Pillow itself refuses, at twice its MAX_IMAGE_PIXELS (512 MiB as RGB).

A file of a few kB can declare an image of any size; this limit keeps it from being decoded.
"""

MAX_TILE = 1 << 22
"""Pixels that a tile of a TIFF may have beyond four times those of the image; a decoder makes room for whole tiles."""

# Only common raster formats. Others are never tried: Pillow's EPS reader, for one, starts an interpreter. MPO, the
# stereo JPEG of cameras and phones, is detected by the JPEG reader.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

AVIF_SUFFIXES, HEIC_SUFFIXES = {".avif"}, {".heic", ".heif", ".hif"}

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
    | (AVIF_SUFFIXES if features.check("avif") else set())
    | (HEIC_SUFFIXES if find_spec("pillow_heif") else set())
)
"""Lower-case suffixes by which images are found in a folder. Reading goes by content, not by suffix."""

log = logging.getLogger("isanet")

_warned = set[int]()  # the ranges that were warned of in this process

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]
"""What `read_image` reads."""


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS, value_range: ValueRange | None = None) -> RGBImage:
    """Read an image as 8-bit RGB, upright.

    * The EXIF orientation is applied, or else that of XMP (files and PIL images that carry one; a damaged block counts
      as none); in HEIC and AVIF, that of the container.
    * Files: JPEG (MPO too), PNG, BMP, GIF, TIFF, WebP, PPM, AVIF, and HEIC with the extra `heic`; the first frame or
      page of several.
    * Gray (L, 1-bit) is replicated; a palette (P) is looked up; alpha is dropped, not blended, as upstream's
      reader does.
    * More than 8 bits (PIL modes I;16, I and F, arrays of other types than uint8): `value_range` says which values
      become black and white; between them the scale is linear, and others are clipped. Without it, 16-bit images
      keep the high byte (value // 256), as Pillow and OpenCV do, with a warning where all values are below 16384, as
      those of cameras with 10, 12 or 14 bits are; mode I counts as 16-bit if its values fit; all else is refused.
      Colors of 16 bits are the exception: Pillow reads their high bytes, so they cannot be scaled.
    * CMYK, YCbCr, HSV and LAB: Pillow's conversion.
    * Arrays: (H, W, 3), red first; uint8, or other numbers with a `value_range`. No check can tell red-green-blue
      from OpenCV's blue-green-red: for the latter pass `array[..., ::-1]`.

    Args:
        source: A path, the bytes of a file, an open binary file (read from its start, and left open), a PIL image (not
            modified), or an array (H, W, 3). Addresses are fetched by `isanet.Segmenter` alone.
        max_pixels: Images of more pixels (height x width) are refused before they are decoded.
        value_range: The values that become 0 and 255, such as (0, 4095) for 12 bits; without effect on 8-bit images.

    Returns:
        (H, W, 3) uint8, C-contiguous, H and W >= 1; always a copy, never a view of `source`.

    Raises:
        ImageError: The source is not one of the above; the message says what was found and what to do.
        ValueError: `value_range` is no pair of numbers of which the second is larger.
    """
    check_range(value_range)
    if isinstance(source, np.ndarray):
        if value_range is not None and source.dtype != np.uint8:
            check_size(source.shape[1], source.shape[0], "the array", max_pixels) if source.ndim == 3 else None
            source = _scaled(source, value_range)
        return check_array(source, max_pixels).copy(order="C")
    if isinstance(source, Image.Image):
        return _pixels(source, "the PIL image", max_pixels, value_range)
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if is_open_file(source):
        return read_open_file(source, "the image data", max_pixels, value_range)
    if not isinstance(source, str | os.PathLike):
        hint = ""
        tensor: Any = source
        if hasattr(tensor, "permute"):  # torch itself is not imported here
            hint = (
                f" ({tuple(tensor.shape)}, {tensor.dtype}): if it is (3, H, W), pass "
                "tensor.permute(1, 2, 0).cpu().numpy(), and if it is not uint8, its value_range, such as (0, 1)"
            )
        raise ImageError(
            "expected a path, bytes, an open file, a PIL image or a uint8 array (H, W, 3), got "
            f"{type(source).__module__}.{type(source).__qualname__}{hint}"
        )
    if str(source)[:8].lower().startswith(("https://", "http://")):
        raise ImageError("addresses are read by isanet.Segmenter alone; download the image and pass its path")
    path = given_path(source, ImageError)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image; pass a file in it")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path} is not a regular file; save the image to one first")
        with path.open("rb") as stream:
            return _pixels(open_header(stream, path, max_pixels), str(path), max_pixels, value_range)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"there is not enough memory to read {path}; make it smaller, or lower max_pixels") from error
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; check the path (working folder: {Path.cwd()})") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error}; check the path and its permissions") from error


def is_open_file(source: object) -> TypeGuard[BinaryIO]:
    """Whether it reads and seeks, as files do, and is no path."""
    return hasattr(source, "read") and hasattr(source, "seek") and not isinstance(source, os.PathLike)


def read_open_file(stream: BinaryIO, name: str, max_pixels: int, value_range: ValueRange | None) -> RGBImage:
    """The image in an open file, see `read_image`; messages call it `name`."""
    try:
        if not isinstance(stream.read(0), bytes):
            raise ImageError("the image file was opened as text; open it with mode 'rb'")
        stream.seek(0)
        return _pixels(open_header(stream, name, max_pixels), name, max_pixels, value_range)
    except MemoryError as error:
        raise ImageError(f"there is not enough memory to read {name}; make it smaller, or lower max_pixels") from error
    except (OSError, ValueError) as error:  # ValueError: it is closed
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} cannot be read: {error}; pass an open file that can seek, or its bytes") from error


def check_array(array: NDArray[Any], max_pixels: int | None) -> RGBImage:
    """Return the array itself if it is a uint8 RGB image (H, W, 3) of at most `max_pixels` pixels (None: any number).

    Raises:
        ImageError: It is not; the message gives the expression that converts it.
    """
    fixes = []
    match array.shape:
        case (_, _):
            fixes.append("for a gray image pass np.stack([array] * 3, axis=-1)")
        case (_, _, _, _):
            fixes.append("for a batch pass list(array)")
        case (_, _, 3):
            pass
        case (3, _, _):
            fixes.append("for (3, H, W) pass array.transpose(1, 2, 0)")
        case (_, _, 4):
            fixes.append("to drop alpha pass array[..., :3]")
        case (_, _, 1):
            fixes.append("for a gray image pass np.repeat(array, 3, axis=2)")
    if array.dtype != np.uint8:
        low, high = (array.min(), array.max()) if array.size and array.dtype.kind in "biuf" else (0, 1)
        fixes.append(
            f"its values are {low:g} to {high:g}: say which are black and white, to isanet.Segmenter or "
            f"isanet.images.read_image, by value_range=(0, {_likely_white(float(high))})"
        )
    if array.shape[2:] != (3,) or array.dtype != np.uint8:
        found = f"got {array.dtype} of shape {array.shape}"
        raise ImageError("; ".join([f"expected a uint8 RGB array of shape (H, W, 3), {found}", *fixes]))
    if array.size == 0:
        raise ImageError(f"the array is empty: its shape is {array.shape}; an image has at least one pixel")
    if max_pixels is not None:
        check_size(array.shape[1], array.shape[0], "the array", max_pixels)
    return array


def check_range(value_range: ValueRange | None) -> None:
    """Refuse what is no range of values.

    Raises:
        ValueError: It is not None and no pair of finite numbers of which the second is larger.
    """
    if value_range is None:
        return
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise ValueError(f"value_range must be two numbers, black and white, such as (0, 4095); got {value_range!r}")


def _scaled(values: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Values in 8 bits, row by row, so that only a row is held in floating point."""
    if values.dtype.kind not in "biuf":
        raise ImageError(f"holds values of type {values.dtype}, which are no numbers with an order")
    low, high = value_range
    result = np.empty(values.shape, np.uint8)
    for row, scaled in zip(values, result, strict=True):
        share = (row.astype(np.float64) - low) * (255 / (high - low))
        scaled[...] = np.nan_to_num(share, nan=0.0).clip(0, 255).round()
    return result


def _likely_white(brightest: float) -> int:
    """The end of the range that an image of this brightest value probably has: 1, or that of 8, 10, 12, 14, 16 bits."""
    ends = (1, 255, 1023, 4095, 16383, 65535)
    return next((end for end in ends if brightest <= end), math.ceil(brightest) if math.isfinite(brightest) else 1)


def _warn_of_darkness(name: str, brightest: int) -> None:
    """Warn of a 16-bit image that comes out nearly black; once for images of one range, not for each of a folder."""
    white = _likely_white(brightest)
    if white not in _warned:
        _warned.add(white)
        log.warning(
            "the brightest value of %s is %s of 65,535, so it comes out %s; if all such images have the range 0 to "
            "%d, pass value_range=(0, %d) (--value-range 0,%d)",
            name, f"{brightest:,}", "black" if brightest < 256 else "dark", white, white, white,
        )  # fmt: skip


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse images without pixels or with too many.

    Raises:
        ImageError: The size is not allowed; the message starts with `name`.
    """
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, {width * height:,} pixels, more than the limit of {max_pixels:,}; nothing "
            "was decoded: make it smaller, or raise max_pixels if you trust it"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width}x{height} pixels")


def max_file_bytes(max_pixels: int) -> int:
    """The most bytes that the file of an image may have: 16 bits of red, green, blue and alpha, and tags."""
    return 8 * max_pixels + MAX_TAG_BYTES


def open_header(stream: BinaryIO, path: Path | str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Like `Image.open(stream, formats=FORMATS)`, which warns of large images or refuses them by a limit of its own.

    A `path` of type str is a name for messages alone: readers map a file that they know the path of.

    What Pillow does not bound itself is bounded here, before a decoder takes memory for it: the whole file, by the size
    of the largest image uncompressed; tags and comments, see `isanet.images.blocks`; the tiles of a TIFF, which libtiff
    takes as they are.

    Raises:
        ImageError: It is not an image of a known format, its header is damaged, or the file, its tags or its tiles are
            too large for an image.
    """
    start, size = stream.read(64), stream.seek(0, os.SEEK_END)
    if not start:
        raise ImageError(f"{path} is empty (0 bytes); fetch or export it again")
    if size > (limit := max_file_bytes(max_pixels)):
        raise ImageError(
            f"{path} has {size:,} bytes, more than the {limit:,} that an image of {max_pixels:,} pixels takes at most; "
            "nothing was decoded: export it again, or raise max_pixels if you trust it"
        )
    Image.init()
    heif = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    for name in [_heif_format(start, path)] if heif else FORMATS:
        factory, accept = (_heic_reader(), None) if name == "HEIC" else Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(start[:16]) is not True):
            continue
        try:
            if name == "TIFF":
                check_tags(stream, size)
            elif name in _CHECKS:
                _CHECKS[name](stream)
            stream.seek(0)
            image = factory(stream, "" if isinstance(path, str) else str(path))
            if name == "TIFF":
                _check_tiles(image)
            return image
        except MemoryError:
            raise
        except Exception as error:  # readers raise nearly anything on damaged headers
            raise ImageError(
                f"{path} starts like {name}, but its header cannot be read ({_describe(error)}); the file is cut "
                "short, damaged, or something else: fetch or export it again"
            ) from error
    raise ImageError(
        f"{path} is not an image in a known format: it looks like {looks_like(start)}; "
        f"convert it to one of {', '.join(FORMATS)}"
    )


_CHECKS = {"JPEG": check_jpeg, "GIF": check_gif}


def _heif_format(start: bytes, path: Path | str) -> str:
    """AVIF or HEIC, by the brands at the start of the file; a container of many brands is read as AVIF."""
    name = "AVIF" if b"avif" in start or b"avis" in start else "HEIC"
    if not (features.check("avif") if name == "AVIF" else find_spec("pillow_heif")):
        fix = "install a wheel of Pillow" if name == "AVIF" else "pip install 'isanet[heic]'"
        raise ImageError(f"{path} is {name}, which cannot be read here: {fix}, or convert it to JPEG or PNG")
    return name


def _heic_reader() -> Callable[[BinaryIO, str], Image.Image]:
    from pillow_heif import HeifImageFile  # not registered, so that Image.open of others is as it was

    return HeifImageFile


def _check_tiles(image: Image.Image) -> None:
    width, height = (getattr(image, "tag_v2", {}).get(tag, 1) for tag in (322, 323))
    if width * height > 4 * image.width * image.height + MAX_TILE:
        raise ValueError(f"{image.width}x{image.height} pixels in tiles of {width}x{height}")


def _pixels(image: Image.Image, name: str, max_pixels: int, value_range: ValueRange | None) -> RGBImage:
    """Decode, convert to RGB by the rule of the mode, apply the EXIF orientation."""
    check_size(*image.size, name, max_pixels)
    try:
        image.load()
        rgb = _to_rgb(image, name, value_range)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        if isinstance(error, ImageError):
            raise ImageError(f"{name} {error}") from None
        if getattr(image, "fp", image) is None or "closed" in str(error):  # the image, or the file it was opened from
            raise ImageError(
                f"{name} was not read before its file was closed; pass its path, or call its load() before"
            ) from error
        raise ImageError(
            f"{name} cannot be decoded ({_describe(error)}); the file is cut short or damaged: fetch or export it again"
        ) from error
    orientation = exif_orientation(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb, dtype=np.uint8, order="C")


def _to_rgb(image: Image.Image, name: str, value_range: ValueRange | None) -> Image.Image:
    """Convert by mode, see `read_image`; the messages of its errors lack the image's name."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        values = np.asarray(image)
        if value_range is not None:
            return Image.fromarray(_scaled(values, value_range)).convert("RGB")
        low, high = values.min(), values.max()
        if mode == "F" or low < 0 or high > 65535:
            kind = "floating-point values" if mode == "F" else "32-bit integers"
            raise ImageError(
                f"holds {kind} from {low:g} to {high:g}; say which of them are black and white: value_range="
                f"({min(0, low):g}, {_likely_white(float(high))})"
            )
        if 0 < high < 1 << 14:
            _warn_of_darkness(name, int(high))
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if mode == "La":  # premultiplied alpha has no direct conversion
        image = image.convert("LA")
    elif mode in ("RGBa", "P", "PA"):  # converted directly, a palette with transparency would warn
        image = image.convert("RGBA")
    return image.convert("RGB")


def _describe(error: Exception) -> str:
    """The type and the message of another library's error."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
