"""Segmenter: pictures in, label maps out. Segmentation: one label map, with what can be shown and saved of it."""

from __future__ import annotations

import io
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.errors import IsanetError
from isanet.files import written_whole
from isanet.legend import shortened, with_legend
from isanet.preprocess import MAX_PIXELS, RGBImage, pictures_in, preprocess, read_image

if TYPE_CHECKING:
    from isanet.model import ISANet

Source = str | os.PathLike[str] | Image.Image | NDArray[Any]
"""What `isanet.preprocess.read_image` reads."""

log = logging.getLogger("isanet")

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Bytes of full-size logits made at a time. On a processor what fits its cache is several times faster than all at once;
# on an accelerator fewer, larger steps are.
_BAND_BYTES = {"cpu": 8 << 20}
_BAND_BYTES_ELSEWHERE = 256 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The label map of one picture.

    Attributes:
        labels: (H, W) indices into `classes`, at the picture's own size; uint8, or int32 for more than 256 classes.
        classes: The K names.
        palette: K colours, (red, green, blue) of 0..255.
        image: (H, W, 3) uint8 RGB, the picture as read: upright, alpha dropped.
        path: Where the picture was read from; None if it was not a file.
        label_space: Name of the known label space of the classes, or None.
        confidence: (H, W) float32 in 0..1, the softmax probability of the label; None unless asked for.
    """

    labels: NDArray[np.uint8] | NDArray[np.int32]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: RGBImage
    path: Path | None = None
    label_space: str | None = None
    confidence: NDArray[np.float32] | None = None

    def areas(self) -> dict[str, float]:
        """Fractions of the picture by class: only classes that occur, largest first, sum 1."""
        return {self.classes[index]: share for index, share in self._shares()}

    def colored(self) -> Image.Image:
        """The label map in the palette's colours: mode P, labels as indices, or RGB for more than 256 classes."""
        if len(self.classes) > 256:
            return Image.fromarray(np.array(self.palette, np.uint8)[self.labels])
        picture = Image.fromarray(self.labels)
        picture.putpalette([value for colour in self.palette for value in colour])
        return picture

    def overlay(self, alpha: float = 0.5, legend: bool = True) -> Image.Image:
        """The picture with the classes' colours over it.

        Args:
            alpha: Weight of the colours, 0 (the picture alone) to 1 (the colours alone).
            legend: Add a panel that names the classes present and their areas, largest first; below the picture or to
                its right, whichever suits its shape. Pictures below 240 pixels are enlarged for it by a whole factor.

        Returns:
            Mode RGB. Without a legend, exactly of the picture's size.

        Raises:
            ValueError: `alpha` is not in 0..1.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in 0..1, got {alpha}")
        blend = Image.blend(Image.fromarray(self.image), self.colored().convert("RGB"), alpha)
        if not legend:
            return blend
        factor = math.ceil(240 / max(blend.size))
        if factor > 1:
            blend = blend.resize((blend.width * factor, blend.height * factor), Image.Resampling.NEAREST)
        entries = [
            (self.palette[index], shortened(self.classes[index]), f"{share:.1%}" if share >= 0.001 else "<0.1%")
            for index, share in self._shares()
        ]
        return with_legend(blend, entries)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as a PNG of class indices.

        The palette is the model's; above 256 classes it is 16-bit grey, without one. The file appears whole. An
        existing one is replaced, except the picture itself.

        Args:
            path: Ends in .png; its folder exists.

        Raises:
            ValueError: The name does not end in .png, or it is the file that the picture was read from.
            FileNotFoundError: The folder does not exist.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(
                f"labels are saved as .png only, got {path.name!r}: lossy formats change labels, others lose the "
                "palette; for a picture to look at, use overlay().save(...)"
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot save {path.name}: the folder {path.parent} does not exist; create it first"
            )
        if self.path is not None and path.exists() and self.path.exists() and path.samefile(self.path):
            raise ValueError(f"{path} is the picture that was segmented; save the labels under another name")
        indices = self.colored() if len(self.classes) <= 256 else Image.fromarray(self.labels.astype(np.uint16))
        with written_whole(path) as temporary:
            indices.save(temporary, format="PNG")

    def _shares(self) -> list[tuple[int, float]]:
        """(class index, fraction) of the classes that occur, largest first."""
        flat = self.labels.reshape(-1)
        counts = np.zeros(len(self.classes), np.int64)
        for start in range(0, flat.size, 1 << 22):  # bincount makes an int64 copy: of a part at a time
            counts += np.bincount(flat[start : start + (1 << 22)], minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [(int(index), int(counts[index]) / flat.size) for index in order if counts[index]]

    def _repr_png_(self) -> bytes:
        """What notebooks show: the overlay, of at most 1600 pixels a side."""
        picture = self.overlay()
        picture.thumbnail((1600, 1600))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        areas = [f"{name} {share:.2f}" for name, share in self.areas().items()]
        height, width = self.labels.shape
        return f"Segmentation({width}x{height}: {', '.join(areas[:3])}{', …' if len(areas) > 3 else ''})"


class Segmenter:
    """Runs a model on pictures; every label map has the size of its picture.

    A model that is passed as an object is moved to the device and put into evaluation mode in place; its weights keep
    their precision. Half precision is applied by `torch.autocast`, step by step.

    Args:
        model: An ISANet, or anything `isanet.from_pretrained` takes.
        device: "auto" (CUDA if there is one, else MPS, else the CPU) or a device as torch names it ("cuda:1").
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on CUDA (float16 where the card has no
            bfloat16), float32 elsewhere.
        max_pixels: Larger pictures are refused, before they are decoded.

    Attributes:
        model: The model.
        device: `torch.device` in use.
        precision: Name of the precision in use.
        max_pixels: As given.

    Raises:
        ValueError: An unknown or absent device, an unknown precision, a model without preprocessing.
    """

    def __init__(
        self,
        model: ISANet | str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = _device(device)
        if precision not in ("auto", *_PRECISIONS):
            raise ValueError(f"unknown precision {precision!r}; valid are auto, {', '.join(_PRECISIONS)}")
        self.precision = _auto_precision(self.device) if precision == "auto" else precision
        self.max_pixels = max_pixels
        if isinstance(model, str | os.PathLike):
            from isanet.zoo import from_pretrained

            model = from_pretrained(model)
        if not model.preprocessing:
            raise ValueError(
                "the model does not say how its pictures are prepared; build it with preprocessing={'short_edge': ..., "
                "'long_edge': ..., 'mean': ..., 'std': ...}, the values it was trained with"
            )
        self.model: ISANet = model.to(self.device).eval()
        log.info(
            "segmenting on %s (%s) in %s (%s)",
            self.device,
            "the best available" if device == "auto" else "as asked",
            self.precision,
            "the default for this device" if precision == "auto" else "as asked",
        )

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], *, confidence: bool = ...) -> list[Segmentation]: ...

    @overload
    def __call__(self, image: Image.Image | NDArray[Any], *, confidence: bool = ...) -> Segmentation: ...

    @overload  # a path is a picture or a folder: only the disk knows
    def __call__(self, image: str | os.PathLike[str], *, confidence: bool = ...) -> Any: ...

    def __call__(
        self, image: Source | list[Any] | tuple[Any, ...], *, confidence: bool = False
    ) -> Segmentation | list[Segmentation]:
        """Segment one picture, or several.

        Args:
            image: A path, a PIL image, or a uint8 RGB array (H, W, 3) (see `isanet.preprocess.read_image`); a list or
                tuple of these; or a folder, whose pictures are taken by name (not those of folders in it).
            confidence: Keep `confidence` too.

        Returns:
            One Segmentation; for a list, tuple or folder, a list of them in the same order.

        Raises:
            ImageError: A picture cannot be read, or a folder has none.
            IsanetError: The network gave values that are not finite.
        """
        if isinstance(image, list | tuple) or _is_folder(image):
            return list(self.stream(image, confidence=confidence))
        (result,) = self._segment([self._read(image)], confidence)
        if isinstance(result, IsanetError):
            raise result
        return result

    def stream(
        self,
        images: Iterable[Source] | str | os.PathLike[str],
        *,
        batch_size: int = 1,
        confidence: bool = False,
        on_error: Callable[[Source, IsanetError], None] | None = None,
    ) -> Iterator[Segmentation]:
        """Segment any number of pictures, one by one, in order and in flat memory.

        Pictures are read and prepared by one thread, at most a batch ahead of the model. Close the iterator, or use it
        up, to end that thread.

        Args:
            images: Any iterable of what a call takes for one picture, or a folder.
            batch_size: Of so many consecutive pictures, those with one size after preprocessing go through the model
                together; others by themselves. Labels do not depend on it, but for rounding.
            confidence: Keep `confidence` too.
            on_error: Called with the source and the error of each picture that fails; that picture is then skipped.
                By default the error is raised, after the results of the pictures before it.

        Returns:
            An iterator of Segmentation.

        Raises:
            ValueError: `batch_size` is below 1.
            ImageError: A picture cannot be read, or a folder has none.
            IsanetError: The network gave values that are not finite.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(images, str | os.PathLike):
            sources: Iterable[Source] = pictures_in(Path(images)) if _is_folder(images) else [images]
        elif isinstance(images, Image.Image | np.ndarray):
            sources = [images]
        else:
            sources = images
        return self._stream(sources, batch_size, confidence, on_error)

    def _stream(
        self,
        sources: Iterable[Source],
        batch_size: int,
        confidence: bool,
        on_error: Callable[[Source, IsanetError], None] | None,
    ) -> Iterator[Segmentation]:
        with closing(self._read_ahead(sources, batch_size)) as ahead:
            while batch := list(islice(ahead, batch_size)):
                reads = [read for _, read in batch if isinstance(read, _Read)]
                results = iter(self._segment(reads, confidence))
                for source, read in batch:
                    result = next(results) if isinstance(read, _Read) else read
                    if isinstance(result, Segmentation):
                        yield result
                    elif on_error is None:
                        raise result
                    else:
                        on_error(source, result)

    def _read_ahead(
        self, sources: Iterable[Source], depth: int
    ) -> Generator[tuple[Source, _Read | IsanetError], None, None]:
        """What was read of each source, or why not, in order; `depth` more are being read meanwhile."""
        waiting: deque[tuple[Source, Future[_Read]]] = deque()

        def first() -> tuple[Source, _Read | IsanetError]:
            source, future = waiting.popleft()
            try:
                return source, future.result()
            except IsanetError as error:
                return source, error

        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="isanet-read")
        try:
            for source in sources:
                # Copied before the next is asked for: loops over a camera fill one buffer again and again.
                own = source.copy() if isinstance(source, np.ndarray) else source
                waiting.append((source, pool.submit(self._read, own)))
                if len(waiting) > depth:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, source: Source) -> _Read:
        image = read_image(source, max_pixels=self.max_pixels)
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        return _Read(path, image, preprocess(image, **self.model.preprocessing))

    @torch.inference_mode()
    def _segment(self, reads: Sequence[_Read], confidence: bool) -> list[Segmentation | IsanetError]:
        """Pictures of one preprocessed size together, others apart; results in order."""
        groups: dict[torch.Size, list[int]] = {}
        for index, read in enumerate(reads):
            groups.setdefault(read.tensor.shape, []).append(index)
        self.model.eval()  # it may have been trained on in between
        results: dict[int, Segmentation | IsanetError] = {}
        dtype = _PRECISIONS[self.precision]
        for indices in groups.values():
            batch = torch.stack([reads[index].tensor for index in indices])
            # A model may have been made half or double, and a stand-in may have no weights at all
            batch = batch.to(self.device, next((p.dtype for p in self.model.parameters()), batch.dtype))
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                coarse_NKHW = self.model.coarse_logits(batch)
            for index, logits_KHW in zip(indices, coarse_NKHW.float(), strict=True):
                results[index] = self._finish(reads[index], logits_KHW, confidence)
        return [results[index] for index in range(len(reads))]

    def _finish(self, read: _Read, logits_KHW: Tensor, confidence: bool) -> Segmentation | IsanetError:
        if not bool(torch.isfinite(logits_KHW).all()):
            return IsanetError(
                f"the network gave values that are not finite for {read.path or 'this picture'}, computing in "
                f"{self.precision}; no labels were made: "
                + (
                    "its weights are damaged or not trained (isanet verify)"
                    if self.precision == "float32"
                    else "use precision='float32'"
                )
            )
        labels, probabilities = label_map(
            logits_KHW, read.image.shape[:2], align_corners=self.model.align_corners, confidence=confidence
        )
        return Segmentation(
            labels=labels,
            classes=self.model.classes,
            palette=self.model.palette,
            image=read.image,
            path=read.path,
            label_space=self.model.label_space,
            confidence=probabilities,
        )


@dataclass(frozen=True, eq=False)
class _Read:
    """A picture, and the network input made of it."""

    path: Path | None
    image: RGBImage
    tensor: Tensor


def label_map(
    logits_KHW: Tensor, size: tuple[int, int], *, align_corners: bool, confidence: bool = False, band_bytes: int = 0
) -> tuple[NDArray[np.uint8] | NDArray[np.int32], NDArray[np.float32] | None]:
    """Coarse logits -> label of every pixel: one bilinear resize straight to `size`, then argmax.

    All K planes at full size may be far larger than the picture (150 classes at 4000x3000: 7 GB), so bands of rows are
    resized and reduced one after the other.

    Args:
        logits_KHW: (K, h, w) float32, finite, on any device.
        size: (height, width) of the picture.
        align_corners: As in `torch.nn.functional.interpolate`.
        confidence: Also give the softmax probability of the label.
        band_bytes: Size of a band of logits; 0: what suits the device.

    Returns:
        (height, width) labels, uint8 (int32 for K > 256), and the same of float32 probabilities, or None.
    """
    dtype = torch.uint8 if logits_KHW.shape[0] <= 256 else torch.int32
    labels = torch.empty(size, dtype=dtype, device=logits_KHW.device)
    probabilities = torch.empty(size, device=logits_KHW.device) if confidence else None
    for rows, band_KHW in resized_bands(logits_KHW, size, align_corners=align_corners, band_bytes=band_bytes):
        highest, label = band_KHW.max(dim=0)
        labels[rows] = label.to(dtype)
        if probabilities is not None:
            probabilities[rows] = (highest - band_KHW.logsumexp(dim=0)).exp().clamp(max=1)
    return labels.cpu().numpy(), None if probabilities is None else probabilities.cpu().numpy()


def resized_bands(
    logits_KHW: Tensor, size: tuple[int, int], *, align_corners: bool, band_bytes: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """`F.interpolate(logits, size, mode="bilinear", align_corners=...)`, a band of rows at a time.

    Yields:
        The rows, and (K, rows, width) of the result: equal to the whole but for the last bits of float32.
    """
    K, H = logits_KHW.shape[:2]
    height, width = size
    # Positions as torch computes them (aten/src/ATen/native/UpSample.h), in float32 too: columns are left to
    # F.interpolate, rows are blended here.
    y = torch.arange(height, dtype=torch.float32)
    y = y * ((H - 1) / max(height - 1, 1)) if align_corners else ((y + 0.5) * (H / height) - 0.5).clamp(min=0)
    upper = y.long().clamp(max=H - 1)
    lower = (upper + 1).clamp(max=H - 1)
    share = (y - upper).to(logits_KHW.device)[:, None]
    band_bytes = band_bytes or _BAND_BYTES.get(logits_KHW.device.type, _BAND_BYTES_ELSEWHERE)
    step = max(1, band_bytes // (4 * K * width))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        first, last = int(upper[rows][0]), int(lower[rows][-1])
        wide = F.interpolate(
            logits_KHW[None, :, first : last + 1],
            size=(last + 1 - first, width),
            mode="bilinear",
            align_corners=align_corners,
        )[0]
        above, below = (wide.index_select(1, (index[rows] - first).to(wide.device)) for index in (upper, lower))
        yield rows, torch.lerp(above, below, share[rows])


def _device(wanted: str | torch.device) -> torch.device:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except Exception as error:  # each backend has its own way to say that it is not there
        there = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {wanted!r} cannot be used ({reason}); valid here are {', '.join(there)}") from error
    return device


def _auto_precision(device: torch.device) -> str:
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _is_folder(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, str | os.PathLike) and Path(source).is_dir()
