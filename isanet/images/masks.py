"""Read masks: image files whose pixels are class values, exactly as they are stored.

Where a decoder would change the stored values (scaled gray, inverted black and white, JPEG), the mask is refused.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image

from isanet._files import given_path
from isanet.errors import DatasetError, ImageError
from isanet.images.blocks import exif_orientation
from isanet.images.reading import MAX_PIXELS, check_size, open_header
from isanet.labels import IGNORED

Mask = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int32]
"""(H, W) values as stored in the file."""

Color = tuple[int, int, int]
Colors = Sequence[Color]

VALUE_MODES = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of masks that hold values; those of `COLOR_MODES` are read by color, all others are refused."""

COLOR_MODES = ("RGB", "RGBA")


def open_mask(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open and decode a mask in the mode that the file has.

    Raises:
        DatasetError: The file is missing, not a regular file, not an image, damaged, too large, or a JPEG; or its
            values are not certain: gray of 2 or 4 bits, a PGM with another maximum than 255 or 65535, inverted values
            (PBM, TIFF's MinIsWhite), 16-bit colors, transparent colors, an EXIF orientation.
    """
    path = given_path(path, DatasetError)
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"the mask {path} is not a regular file; expected an image")
        with path.open("rb") as stream:
            image = open_header(stream, path, max_pixels)
            if image.format in ("JPEG", "MPO"):
                raise DatasetError(f"the mask {path} is a JPEG, which alters labels; export the masks as PNG")
            check_size(*image.size, str(path), max_pixels)
            wrong = _altered(image)  # before loading: Pillow then turns a TIFF upright and drops the orientation
            image.load()
            if wrong := wrong or _turned(exif_orientation(image)) or _transparent(image):
                raise DatasetError(f"the mask {path} {wrong}")
            return image
    except DatasetError:
        raise
    except ImageError as error:
        raise DatasetError(str(error)) from error
    except FileNotFoundError as error:
        raise DatasetError(f"there is no mask {path}") from error
    except Exception as error:  # decoders raise nearly anything on damaged data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatasetError(f"the mask {path} cannot be read ({reason}); fetch or export it again") from error


def _altered(image: Image.Image) -> str:
    """Why decoding an image would change its stored values; empty if it would not."""
    tags = getattr(image, "tag_v2", {})
    tiles: Sequence[Any] = getattr(image, "tile", ())
    codec, _, _, arguments = tiles[0] if tiles else ("", None, 0, "")
    stored = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    if stored == "1;I" or tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        name = "MinIsWhite" if tags else "PBM"
        return f"counts its values from white ({name}), and readers invert them; save it as 8-bit PNG"
    if stored.startswith(("L;2", "L;4")):
        return f"holds gray of {stored[2]} bits, which readers scale to 0..255; save it as 8-bit PNG"
    if codec.startswith("ppm") and arguments[-1] not in ((255,) if image.mode == "RGB" else (255, 65535)):
        return f"has the maximum {arguments[-1]}, from which readers scale its values; save it as 8-bit PNG"
    if image.mode in COLOR_MODES and ";16" in stored:
        return "has colors of 16 bits, of which readers keep 8; save it as 8-bit PNG"
    return _turned(tags.get(ExifTags.Base.Orientation, 1))


def _turned(orientation: object) -> str:
    """Why a mask with this EXIF orientation is refused; empty if it is upright."""
    if orientation not in range(2, 9):
        return ""
    return f"has an EXIF orientation ({orientation}), which some programs apply and others do not; save it upright"


def _transparent(image: Image.Image) -> str:
    """Why a decoded mask with transparent pixels is refused; empty if it has none."""
    may_be = image.mode in COLOR_MODES and image.has_transparency_data
    if not may_be or image.convert("RGBA").getchannel("A").getextrema() == (255, 255):
        return ""
    return "has transparent pixels, whose class is not known; save it without alpha"


def read_mask(
    path: str | os.PathLike[str],
    *,
    colors: Colors | None = None,
    palette: Colors | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Mask:
    """Read the values of a mask.

    A palette image (mode P) is read as indices, never by its colors; gray images of 8, 16 and 32 bits by value,
    1-bit images as 0 and 1.

    Args:
        path: PNG, TIFF, BMP, GIF, WebP or PGM.
        colors: For an RGB mask: the color of each class, at most 255 colors. The values are then positions in this
            list (the first of equal colors), and `IGNORED` for black and white if they are not listed.
        palette: As `colors`, but only if the mask is RGB; a mask of values is read by value.
        max_pixels: Larger masks are refused before they are decoded.

    Returns:
        (H, W) uint8, or uint16 or int32 if the file has such values.

    Raises:
        DatasetError: The file cannot be read (see `open_mask`), it is RGB but `colors` is not given, it has a color
            that is not listed, or `colors` is not as described.
    """
    colors = None if colors is None else checked_colors(colors)
    image = open_mask(path, max_pixels=max_pixels)
    if colors is None and palette is not None and image.mode in COLOR_MODES:
        colors = checked_colors(palette)
    if image.mode in VALUE_MODES:
        if colors is not None:
            raise DatasetError(f"the mask {path} holds values, not colors (mode {image.mode}); leave out colors=")
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    if image.mode not in COLOR_MODES:
        raise DatasetError(
            f"the mask {path} has mode {image.mode}; expected one channel of class values: export it as 8-bit PNG"
        )
    pixels = np.asarray(image.convert("RGB"))
    if colors is None:
        gray = bool((pixels[..., :1] == pixels).all())
        raise DatasetError(
            f"the mask {path} is in colors (mode {image.mode}), and which color is which class is not known; "
            + ("all its channels are equal: save one of them" if gray else "pass colors=, one for each class")
        )
    return _by_color(packed(pixels), colors, path)


def checked_colors(colors: Iterable[Iterable[int]]) -> tuple[Color, ...]:
    """Colors as tuples of int.

    Raises:
        DatasetError: They are not at most 255 colors of three integers from 0 to 255.
    """
    try:
        listed = tuple((operator.index(r), operator.index(g), operator.index(b)) for r, g, b in colors)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"colors must be three whole numbers each (red, green, blue), got {colors!r}") from error
    if len(listed) > IGNORED or not all(0 <= channel <= 255 for color in listed for channel in color):
        raise DatasetError(f"colors must be no more than {IGNORED}, of numbers from 0 to 255, got {listed}")
    return listed


def packed(colors: ArrayLike) -> NDArray[np.int32]:
    """Colors (..., 3) as (...) integers of 24 bits, red highest."""
    red, green, blue = np.moveaxis(np.asarray(colors, np.int32), -1, 0)
    codes: NDArray[np.int32] = (red << 16) | (green << 8) | blue
    return codes


def unpacked(code: int) -> Color:
    """The inverse of `packed` for one color."""
    return code >> 16, code >> 8 & 255, code & 255


def _by_color(codes: NDArray[np.int32], colors: Colors, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Positions of packed colors in `colors`, see `read_mask`."""
    wanted = packed([*colors, (0, 0, 0), (255, 255, 255)])
    known, first = np.unique(wanted, return_index=True)
    nearest = np.searchsorted(known, codes).clip(max=len(known) - 1)
    stray = codes[known[nearest] != codes]
    if stray.size:
        raise DatasetError(
            f"the mask {path} has the color #{stray[0]:06x} in {int((stray == stray[0]).sum()):,} pixels, which is "
            "the color of no class; known are " + ", ".join(f"#{code:06x}" for code in wanted[:-2])
        )
    positions: NDArray[np.uint8] = np.where(first < len(colors), first, IGNORED).astype(np.uint8)[nearest]
    return positions
