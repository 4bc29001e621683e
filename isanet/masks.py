"""Mask files: pictures whose pixels are class values."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image

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
        DatasetError: It is missing, no regular file, no picture, damaged, too large, or a JPEG, which changes labels at
            every edge; or its pixels are not read as they are in the file: grey of 2 or 4 bits, a PGM with another
            maximum than 255 or 65535, values counted from white (PBM, TIFF's MinIsWhite), colours of 16 bits, colours
            with transparency, an EXIF orientation.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"the mask {path} is not a regular file; expected a picture")
        with path.open("rb") as stream:
            image = open_header(stream, path)
            if image.format in ("JPEG", "MPO"):
                raise JpegMaskError(f"the mask {path} is a JPEG, which alters labels; export the masks as PNG")
            check_size(*image.size, str(path), max_pixels)
            wrong = _altered(image)  # of a TIFF, Pillow applies the orientation when it loads it, and drops the tag
            image.load()
            wrong = wrong or _turned_or_blended(image)
            if wrong:
                raise DatasetError(f"the mask {path} {wrong}")
            return image
    except (ImageError, FileNotFoundError) as error:
        message = str(error) if isinstance(error, ImageError) else f"there is no mask {path}"
        raise DatasetError(message) from error
    except DatasetError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatasetError(f"the mask {path} cannot be read ({reason}); fetch or export it again") from error


def _altered(image: Image.Image) -> str:
    """What is wrong with a picture whose values are changed when they are loaded; empty if they are not."""
    tags = getattr(image, "tag_v2", {})
    tiles: Sequence[Any] = getattr(image, "tile", ())
    codec, _, _, arguments = tiles[0] if tiles else ("", None, 0, "")
    stored = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    if stored == "1;I" or tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        name = "MinIsWhite" if tags else "PBM"
        return f"counts its values from white ({name}), and readers turn them round; save it as 8-bit PNG"
    if stored.startswith(("L;2", "L;4")):
        return f"holds grey of {stored[2]} bits, which readers scale to 0..255; save it as 8-bit PNG"
    if codec.startswith("ppm") and arguments[-1] not in ((255,) if image.mode == "RGB" else (255, 65535)):
        return f"has the maximum {arguments[-1]}, from which readers scale its values; save it as 8-bit PNG"
    if image.mode in COLOUR_MODES and ";16" in stored:
        return "has colours of 16 bits, of which readers keep 8; save it as 8-bit PNG"
    return _turned(tags.get(ExifTags.Base.Orientation, 1))


def _turned(orientation: object) -> str:
    if orientation not in range(2, 9):
        return ""
    return f"has an EXIF orientation ({orientation}), which some programs apply and others do not; save it upright"


def _turned_or_blended(image: Image.Image) -> str:
    """The same, of what is known after loading."""
    coloured = image.mode in COLOUR_MODES and image.has_transparency_data
    if coloured and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "has transparent pixels, whose class is not known; save it without alpha"
    try:
        return _turned(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block counts as none, as in images
        return ""


def read_mask(path: str | os.PathLike[str], *, colours: Colours | None = None, max_pixels: int = MAX_PIXELS) -> Mask:
    """Read the values of a mask.

    A palette picture (mode P) is read as indices, never by its colours; grey pictures of 8, 16 and 32 bits by value,
    those of 1 bit as 0 and 1.

    Args:
        path: PNG, TIFF, BMP, GIF, WebP or PGM.
        colours: For a mask painted in colours: the colour of each class, no more than 255. The values are then
            positions in this list, the first of equal ones, and `IGNORED` where the colour is none of them and black or
            white.
        max_pixels: Larger masks are refused before they are decoded.

    Returns:
        (H, W): uint8, or uint16 or int32 where the file holds such.

    Raises:
        DatasetError: The file cannot be read (see `open_mask`), it is in colours and `colours` is not given, holds
            a colour that is none of them, or they are not as above.
    """
    listed = None if colours is None else checked_colours(colours)
    image = open_mask(path, max_pixels=max_pixels)
    if image.mode in VALUE_MODES:
        if listed is not None:
            raise DatasetError(f"the mask {path} holds values, not colours (mode {image.mode}); leave out colours")
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    if image.mode not in COLOUR_MODES:
        raise DatasetError(
            f"the mask {path} has mode {image.mode}; expected one channel of class values: export it as 8-bit PNG"
        )
    pixels = np.asarray(image.convert("RGB"))
    if listed is None:
        grey = bool((pixels[..., :1] == pixels).all())
        raise DatasetError(
            f"the mask {path} is in colours (mode {image.mode}), and which colour is which class is not known; "
            + ("all its channels are equal: save one of them" if grey else "pass colours, one for each class")
        )
    return _by_colour(packed(pixels), listed, path)


def checked_colours(colours: Iterable[Iterable[int]]) -> tuple[Colour, ...]:
    """Colours as plain numbers.

    Raises:
        DatasetError: They are not up to 255 colours of three whole numbers from 0 to 255.
    """
    try:
        listed = tuple((operator.index(r), operator.index(g), operator.index(b)) for r, g, b in colours)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"colours must be three whole numbers each (red, green, blue), got {colours!r}") from error
    if len(listed) > IGNORED or not all(0 <= channel <= 255 for colour in listed for channel in colour):
        raise DatasetError(f"colours must be no more than {IGNORED}, of numbers from 0 to 255, got {listed}")
    return listed


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
    wanted = packed([*colours, (0, 0, 0), (255, 255, 255)])
    known, first = np.unique(wanted, return_index=True)
    nearest = np.searchsorted(known, codes).clip(max=len(known) - 1)
    stray = codes[known[nearest] != codes]
    if stray.size:
        raise DatasetError(
            f"the mask {path} has the colour #{stray[0]:06x} in {int((stray == stray[0]).sum()):,} pixels, which is "
            "the colour of no class; known are " + ", ".join(f"#{code:06x}" for code in wanted[:-2])
        )
    positions: NDArray[np.uint8] = np.where(first < len(colours), first, IGNORED).astype(np.uint8)[nearest]
    return positions
