"""Mask files: pictures whose pixels are class values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from isanet.errors import DatasetError, ImageError
from isanet.labels import IGNORED
from isanet.preprocess import MAX_PIXELS, check_size, open_header

Mask = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int32]
"""(H, W) values as they are in the file."""

Colour = tuple[int, int, int]
Colours = Sequence[Colour]

VALUE_MODES = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes of pictures that hold values; `COLOUR_MODES` are read by their colours, others not at all."""

COLOUR_MODES = ("RGB", "RGBA")


class JpegMaskError(DatasetError):
    """The mask is a JPEG, which alters labels at every edge."""


def open_mask(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded picture, in the mode that the file has.

    Raises:
        DatasetError: It is missing, no picture, damaged, too large, or a JPEG, which changes labels at every edge.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            image = open_header(stream, path)
            if image.format in ("JPEG", "MPO"):
                raise JpegMaskError(f"the mask {path} is a JPEG, which alters labels; export the masks as PNG")
            check_size(*image.size, str(path), max_pixels)
            image.load()
            return image
    except (ImageError, FileNotFoundError) as error:
        message = str(error) if isinstance(error, ImageError) else f"there is no mask {path}"
        raise DatasetError(message) from error
    except DatasetError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatasetError(f"the mask {path} cannot be read ({reason}); fetch or export it again") from error


def read_mask(path: str | os.PathLike[str], *, colours: Colours | None = None, max_pixels: int = MAX_PIXELS) -> Mask:
    """Read the values of a mask.

    A palette picture (mode P) is read as indices, never by its colours; grey pictures of 1, 8, 16 and 32 bits by value.

    Args:
        path: PNG, TIFF, BMP, GIF, WebP or PGM.
        colours: For a mask painted in colours: the colour of each class. The values are then positions in this list,
            and `IGNORED` where the colour is none of them and black or white.
        max_pixels: Larger masks are refused before they are decoded.

    Returns:
        (H, W): uint8, or uint16 or int32 where the file holds such.

    Raises:
        DatasetError: The file cannot be read (see `open_mask`), it is in colours and `colours` is not given, or holds
            a colour that is none of them.
    """
    image = open_mask(path, max_pixels=max_pixels)
    if image.mode in VALUE_MODES:
        if colours is not None:
            raise DatasetError(f"the mask {path} holds values, not colours (mode {image.mode}); leave out colours")
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    if image.mode not in COLOUR_MODES:
        raise DatasetError(
            f"the mask {path} has mode {image.mode}; expected one channel of class values: export it as 8-bit PNG"
        )
    pixels = np.asarray(image.convert("RGB"))
    if colours is None:
        grey = bool((pixels[..., :1] == pixels).all())
        raise DatasetError(
            f"the mask {path} is in colours (mode {image.mode}), and which colour is which class is not known; "
            + ("all its channels are equal: save one of them" if grey else "pass colours, one for each class")
        )
    return _by_colour(packed(pixels), colours, path)


def packed(colours: ArrayLike) -> NDArray[np.int32]:
    """Colours (..., 3) as 24 bits each, red highest."""
    red, green, blue = np.moveaxis(np.asarray(colours, np.int32), -1, 0)
    codes: NDArray[np.int32] = (red << 16) | (green << 8) | blue
    return codes


def unpacked(code: int) -> Colour:
    """The colour of 24 bits."""
    return code >> 16, code >> 8 & 255, code & 255


def _by_colour(codes: NDArray[np.int32], colours: Colours, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Positions of packed colours in the list."""
    wanted = packed(colours)
    present, where = np.unique(codes, return_inverse=True)
    table = np.full(len(present), IGNORED, np.uint8)
    for index, code in enumerate(present):
        (matches,) = np.nonzero(wanted == code)
        if len(matches):
            table[index] = matches[0]
        elif code not in (0, 0xFFFFFF):
            count = int((where == index).sum())
            raise DatasetError(
                f"the mask {path} has the colour #{code:06x} in {count:,} pixels, which is the colour of no class; "
                "known are " + ", ".join(f"#{known:06x}" for known in wanted)
            )
    return table[where.reshape(codes.shape)]
