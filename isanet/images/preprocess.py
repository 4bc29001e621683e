"""Image <-> tensor, equal to upstream's test pipeline: read, resize as OpenCV does, normalize.

Which images are read, and how each kind becomes 8-bit RGB, is written at `read_image`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from isanet.errors import ImageError

RGBImage = NDArray[np.uint8]
"""(H, W, 3), red, green, blue, 0..255."""

MAX_PIXELS = 178_956_970
"""The largest image read unless told otherwise: where Pillow itself refuses (twice its MAX_IMAGE_PIXELS).

It is 512 MiB as RGB. A file of a few kB can declare an image of any size; this is what keeps it from being decoded.
"""

# Common raster formats alone. Others are never tried: Pillow's EPS reader, for one, starts an interpreter. MPO, the
# stereo JPEG of cameras and phones, is found by the JPEG reader.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
)
"""Suffixes (lower case) by which images are found in a folder; reading goes by content."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: str | os.PathLike[str] | Image.Image | NDArray[Any], *, max_pixels: int = MAX_PIXELS
) -> RGBImage:
    """Read an image as 8-bit RGB, upright.

    * The EXIF orientation is applied (files and PIL images that carry one; a damaged EXIF block counts as none).
    * Files: JPEG (MPO too), PNG, BMP, GIF, TIFF, WebP, PPM; the first frame or page of several.
    * Gray (L, 1-bit) is replicated; a palette (P) is looked up; alpha is dropped, not blended, as upstream's
      reader does.
    * 16 bits per channel: the high byte is kept (value // 256), as Pillow and OpenCV do for 16-bit RGB. Mode I
      (32-bit integers) is taken as 16-bit if all values are 0..65535, and refused otherwise.
    * CMYK, YCbCr, HSV and LAB: Pillow's conversion. Floating point (F) is refused: its range is unknown.
    * Arrays: uint8 (H, W, 3), red first, nothing else. No check can tell red-green-blue from OpenCV's
      blue-green-red: for the latter pass `array[..., ::-1]`.

    Args:
        source: A path, a PIL image (left as it is), or a uint8 array (H, W, 3).
        max_pixels: Images of more pixels (height x width) are refused before they are decoded.

    Returns:
        (H, W, 3) uint8, C-contiguous, H and W >= 1; always memory of its own, never a view of `source`.

    Raises:
        ImageError: The source is not one of the above; the message says what was found and what to do.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source, max_pixels).copy(order="C")
    if isinstance(source, Image.Image):
        return _pixels(source, "the PIL image", max_pixels)
    if not isinstance(source, str | os.PathLike):
        hint = ""
        if isinstance(source, torch.Tensor):
            hint = (
                f" ({tuple(source.shape)}, {source.dtype}): if it is (3, H, W) with values 0..255, pass "
                "tensor.permute(1, 2, 0).byte().cpu().numpy()"
            )
        raise ImageError(
            f"expected a path, a PIL image or a uint8 array (H, W, 3), got {type(source).__module__}."
            f"{type(source).__qualname__}{hint}"
        )
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image; pass a file in it")
        if path.exists() and not path.is_file():
            raise ImageError(f"{path} is not a regular file; save the image to one first")
        with path.open("rb") as stream:
            return _pixels(open_header(stream, path), str(path), max_pixels)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; check the path (working folder: {Path.cwd()})") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path} cannot be opened: {error}; check the path and its permissions") from error


def images_in(folder: Path) -> list[Path]:
    """The images of a folder by their suffixes, sorted; not hidden ones, and not those of folders in it.

    Raises:
        ImageError: There are none.
    """
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ImageError(f"no images in the folder {folder}: none of its files ends in {', '.join(sorted(SUFFIXES))}")
    return paths


def target_size(height: int, width: int, *, short_edge: int, long_edge: int) -> tuple[int, int]:
    """Size to which upstream's test pipeline resizes an image.

    The largest scale at which the shorter side is at most `short_edge` and the longer at most `long_edge`, with the
    rounding of mmcv's `rescale_size` (`int(x + 0.5)`), which upstream uses.

    Args:
        height: Of the image, in pixels, >= 1.
        width: Of the image, in pixels, >= 1.
        short_edge: 512 for VOC and ADE20K, 1024 for Cityscapes.
        long_edge: 2048.

    Returns:
        (height, width), each at least 1: for extreme aspects, where the rule itself would give 0.

    Raises:
        ValueError: A size is below 1.
    """
    if min(height, width, short_edge, long_edge) < 1:
        raise ValueError(f"sizes must be at least 1, got {height}x{width} with edges {short_edge} and {long_edge}")
    scale = min(long_edge / max(height, width), short_edge / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def preprocess(
    image: RGBImage, *, short_edge: int, long_edge: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Image -> network input, as upstream's test pipeline computes it (`Resize`, `Normalize`).

    Args:
        image: (H, W, 3) uint8 RGB.
        short_edge: See `target_size`.
        long_edge: See `target_size`.
        mean: Of red, green, blue, on the scale 0..255.
        std: Of red, green, blue, on the scale 0..255, positive.

    Returns:
        (3, h, w) float32, C-contiguous, `(resized - mean) / std`, with (h, w) = `target_size(H, W, ...)`.

    Raises:
        ImageError: `image` is not a uint8 array (H, W, 3).
        ValueError: `mean` or `std` is not three values, or `std` not positive, or an edge is below 1.
    """
    _checked_array(image, None)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean and std must be three values each, std positive; got {mean} and {std}")
    height, width = target_size(*image.shape[:2], short_edge=short_edge, long_edge=long_edge)
    pixels = _resize(image, height, width)
    # There are only 256 levels: a table for each channel, made in upstream's order of rounding (mmcv.imnormalize
    # subtracts, keeps float32, then multiplies by the float64 reciprocal).
    levels = np.arange(256, dtype=np.float32)
    result = np.empty((3, height, width), np.float32)
    for channel in range(3):
        table = ((levels - np.float32(mean[channel])).astype(np.float64) * (1 / std[channel])).astype(np.float32)
        result[channel] = table[pixels[..., channel]]
    return torch.from_numpy(result)


def _resize(image: RGBImage, height: int, width: int) -> RGBImage:
    """`cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`, to the bit, without OpenCV.

    Bilinear without antialiasing, half-pixel centers. OpenCV computes uint8 in fixed point
    (modules/imgproc/src/resize.cpp, HResizeLinear and VResizeLinear): weights of 11 bits, and products that lose their
    lowest bits on the way. The exact bilinear value, rounded to the nearest level (what
    `torch.nn.functional.interpolate` would give), differs from it by one level in about one pixel of eight. Builds of
    OpenCV that put another vendor's kernel in place of that code may in turn differ from this by one level.
    """
    if image.shape[:2] == (height, width):
        return image
    top, bottom, weight_top, weight_bottom = _taps(image.shape[0], height)
    left, right, weight_left, weight_right = _taps(image.shape[1], width)
    # Horizontally, OpenCV gives all weight to the pixel at the border; vertically it reads that row twice.
    weight_right[(left == right) | (right == 0)] = 0
    weight_left = np.where(weight_right == 0, 2048, weight_left)[:, None]
    weight_right = weight_right[:, None]

    def rows(y: NDArray[np.int64], weight: NDArray[np.int32]) -> NDArray[np.int32]:
        picked = image[y]  # only the rows that count: memory goes with the result, not with the image
        row = (picked[:, left] * weight_left + picked[:, right] * weight_right) >> 4
        row *= weight[:, None, None]
        row >>= 16
        return row

    return ((rows(top, weight_top) + rows(bottom, weight_bottom) + 2) >> 2).astype(np.uint8)


def _taps(size: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """For each of `target` positions: the two source positions and their weights, which sum to 2048."""
    position = ((np.arange(target) + 0.5) * (size / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    weights = [np.rint(part * np.float32(2048)).astype(np.int32) for part in (np.float32(1) - share, share)]
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), weights[0], weights[1]


def _checked_array(array: NDArray[Any], max_pixels: int | None) -> RGBImage:
    """The array itself, if it is a uint8 RGB image."""
    fix = ""
    if array.ndim == 2:
        fix = "for a gray image pass np.stack([array] * 3, axis=-1)"
    elif array.ndim == 4:
        fix = "for a batch pass list(array)"
    elif array.ndim == 3 and array.shape[2] != 3:
        if array.shape[0] == 3:
            fix = "for (3, H, W) pass array.transpose(1, 2, 0)"
        elif array.shape[2] == 4:
            fix = "to drop alpha pass array[..., :3]"
        elif array.shape[2] == 1:
            fix = "for a gray image pass np.repeat(array, 3, axis=2)"
    if array.dtype != np.uint8:
        scale = "(array * 255).round()" if array.dtype.kind == "f" else "array"
        fix += ("; " if fix else "") + f"for uint8 pass {scale}.astype(np.uint8), after making sure of its range"
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(
            f"expected a uint8 RGB array of shape (H, W, 3), got {array.dtype} of shape {array.shape}"
            + (f"; {fix}" if fix else "")
        )
    if array.size == 0:
        raise ImageError(f"the array is empty: its shape is {array.shape}; an image has at least one pixel")
    if max_pixels is not None:
        check_size(array.shape[1], array.shape[0], "the array", max_pixels)
    return array


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse, by an ImageError, an image of no pixel or of too many."""
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, {width * height:,} pixels, more than the limit of {max_pixels:,}; nothing "
            "was decoded: make it smaller, or raise max_pixels if you trust it"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} is empty: {width}x{height} pixels")


def open_header(stream: BinaryIO, path: Path) -> Image.Image:
    """What `Image.open(stream, formats=FORMATS)` gives, headers read, nothing decoded.

    Not by that function: it warns of, or refuses, large images by a limit of its own before the size can be asked
    for, and silencing a warning is not safe with several threads.
    """
    start = stream.read(16)
    if not start:
        raise ImageError(f"{path} is empty (0 bytes); fetch or export it again")
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(start) is not True):
            continue
        stream.seek(0)
        try:
            return factory(stream, str(path))
        except Exception as error:  # readers raise nearly anything on damaged headers
            raise ImageError(
                f"{path} starts like {name}, but its header cannot be read ({_said(error)}); the file is cut short, "
                "damaged, or something else: fetch or export it again"
            ) from error
    raise ImageError(
        f"{path} is not an image in a known format: it looks like {_looks_like(start)}; "
        f"convert it to one of {', '.join(FORMATS)}"
    )


def _looks_like(start: bytes) -> str:
    """What the first 16 bytes of a file that is no image of ours suggest."""
    if start.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "PostScript (EPS)"
    if start.startswith(b"%PDF"):
        return "PDF"
    if start[4:8] == b"ftyp":
        return (
            "HEIC or AVIF" if start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis") else "a video (MP4)"
        )
    if start.startswith(b"version https://"):
        return "a Git LFS pointer: the content was not fetched (git lfs pull)"
    if start.lstrip().startswith(b"<"):
        return "HTML, SVG or XML"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return f"text ({start.decode('ascii')!r})"
    return f"unknown data ({start[:8].hex(' ')})"


def _pixels(image: Image.Image, name: str, max_pixels: int) -> RGBImage:
    """Decode, convert by the rule of each mode, turn upright."""
    check_size(*image.size, name, max_pixels)
    try:
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:  # decoders raise nearly anything on damaged data
        if isinstance(error, ImageError):
            raise ImageError(f"{name} {error}") from None
        raise ImageError(
            f"{name} cannot be decoded ({_said(error)}); the file is cut short or damaged: fetch or export it again"
        ) from error
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block; OpenCV passes over it too
        orientation = 1
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb, dtype=np.uint8, order="C")


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "F":
        raise ImageError(
            "holds floating-point values (mode F), whose range is unknown; scale it to 0..255 and save it as 8-bit"
        )
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"holds 32-bit integers {values.min()}..{values.max()}, outside 0..65535; scale it "
                "to 0..255 and save it as 8-bit"
            )
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if mode == "La":  # premultiplied alpha has no direct way
        image = image.convert("LA")
    elif mode in ("RGBa", "P", "PA"):  # a palette with transparency would warn on the direct way
        image = image.convert("RGBA")
    return image.convert("RGB")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
