"""Segmenter: images in, label maps out."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from isanet import protocols
from isanet._text import listed, shortened
from isanet.errors import ImageError, IsanetError
from isanet.images.reading import MAX_PIXELS, RGBImage, Source, ValueRange, check_range
from isanet.inference.decoding import Frame
from isanet.inference.fast.network import FastISANet
from isanet.inference.fast.optimize import PRECISIONS, optimize, why_not_optimizable
from isanet.inference.network import EagerNetwork, ModelState, loaded_model
from isanet.inference.predict import (
    Prediction,
    Prepared,
    is_out_of_memory,
    not_enough_memory,
    not_finite,
    predict,
    prepare,
)
from isanet.inference.runtimes import choice
from isanet.inference.runtimes.exported import ExportedModel, is_exported, read_exported
from isanet.inference.runtimes.network import RuntimeNetwork
from isanet.inference.segmentation import Segmentation
from isanet.inference.showing import Segmentations
from isanet.inference.sources import Failed, name_of, read_source, several, sources
from isanet.labels import named_classes
from isanet.model import ISANet
from isanet.protocols import Protocol
from isanet.weights.url import is_address

MAX_CALIBRATION_IMAGES = 8
"""Images that int8 is calibrated on."""

log = logging.getLogger("isanet")

_ran_in: set[int] = set()  # the process in which networks ran; in a forked one, also that of its parent


class Segmenter:
    """Runs a model on images; every label map has the size of its image. Threads may share one.

    The network that runs is an inference-optimized copy of the model, made when it is first needed, and again when the
    model's weights have changed. A model that is passed as an object is moved to the device and put into evaluation
    mode in place; its weights are not changed. Models that cannot be optimized, because their layers were changed, run
    as they are, in half precision by `torch.autocast`.

    >>> segmenter = isanet.Segmenter("isanet_nano_toystreets", "cpu")
    >>> result = segmenter("street.jpg")
    >>> result.labels.shape, "car" in result.areas()
    ((128, 256), True)

    Args:
        model: An ISANet, anything `isanet.from_pretrained` takes, or a file (.onnx, .xml) that `isanet.export` wrote.
        device: "auto" (CUDA if there is one, else MPS, else the CPU) or a device as torch names it ("cuda:1").
        precision: "float32", "bfloat16", "float16", "int8" (on the CPU), or "auto": bfloat16 where the device computes
            in it natively (on CPUs, if the model can be optimized), float16 on other CUDA devices, else float32.
            On photographs, bfloat16 gave the labels of float32 at 99.6 % of the pixels, int8 at 98.8 %.
        runtime: "torch", "openvino" (on the CPU, in any precision; int8 is its alone), "onnxruntime" (in float32), or
            "auto": what was measured to be the fastest of those that are installed, if the model can be optimized; see
            `isanet.inference.runtimes.choice`. Their labels are torch's, but for rounding. For onnxruntime, `device`
            may be whatever its build has: "cuda:1", "tensorrt", "directml", "coreml".
        protocol: How an image goes through the network: a name in `isanet.protocols.PROTOCOLS`, your own `Protocol`,
            or "auto": the one that the model is meant for, by which its figure was measured.
        max_pixels: Larger images are refused, before they are decoded.
        value_range: The values of images of more than 8 bits that become black and white, such as (0, 4095), see
            `isanet.images.reading.read_image`.
        calibration: For int8, a few images like those to come, as a list or a folder; the first eight tell the range
            of every map in the network.
        compile: Compile the network with `torch.compile`. It takes a minute at the first image, and again at the
            first of another size.
        max_memory: Bytes that the maps in the network may take, beyond weights, image and labels; by default 4 GiB.
            What needs more goes through in bands of rows, by torch, with the same labels; what needs more still (beyond
            40 megapixels in float32), and of an exported file, in overlapping windows. Models that cannot be optimized
            have no limit. An image so wide that a single row of labels would need more is refused.
        **options: Of `isanet.from_pretrained`, where that loads the model: `classes`, `preprocessing`, `weights`, ...

    Attributes:
        model: The model; of an exported file an `isanet.inference.runtimes.exported.ExportedModel`.
        device: `torch.device` in use; the CPU for other runtimes, which move images by themselves.
        precision: Name of the precision in use.
        runtime: Name of the runtime in use.
        protocol: The `Protocol` in use.
        protocol_reason: Why it is in use: "the model's own" or "as asked".
        max_pixels: As given.
        value_range: As given.
        max_memory: As given; may be set at any time.

    Raises:
        ValueError: An unknown or absent device or runtime, an unknown precision or protocol, a model without
            preprocessing; int8 without calibration, on another device than the CPU, or of a model that cannot be
            optimized; an argument that an exported file cannot have.
        CheckpointError: An exported file is damaged, or not one of `isanet.export`.
        ImageError: An image for calibration cannot be read.
    """

    def __init__(
        self,
        model: ISANet | str | os.PathLike[str],
        device: str | torch.device = "auto",
        *,
        precision: str = "auto",
        runtime: str = "auto",
        protocol: str | Protocol = "auto",
        max_pixels: int = MAX_PIXELS,
        value_range: ValueRange | None = None,
        calibration: Iterable[Source] | str | os.PathLike[str] = (),
        compile: bool = False,
        max_memory: int = 4 << 30,
        **options: Any,
    ) -> None:
        if precision not in ("auto", *PRECISIONS, "int8"):
            raise ValueError(f"unknown precision {precision!r}; valid are auto, {', '.join(PRECISIONS)}, int8")
        runtime = choice.checked_runtime(runtime, precision, compile=compile)
        protocols.protocol(protocol)  # an unknown one is an error before the model is loaded
        check_range(value_range)
        self.max_pixels, self.value_range, self.max_memory = max_pixels, value_range, max_memory
        self.model: ISANet | ExportedModel
        if is_exported(model):
            if wrong := [*options, *["compile"] * compile, *["calibration"] * bool(calibration)]:
                raise ValueError(f"{listed(wrong)}: not for an exported file; export the model so instead")
            self.model = read_exported(model)
            runtime = choice.exported_runtime(self.model, runtime, precision, device)
            self.device = choice.image_device(device, runtime)
        else:
            self.device = choice.image_device(device, runtime)
            self.model = loaded_model(model, options, self.device)
        self.protocol = protocols.protocol(protocol, self.model.protocol)
        self.protocol_reason = "the model's own" if protocol == "auto" else "as asked"
        self.precision = choice.auto_precision(self.device, runtime, self.model) if precision == "auto" else precision
        self._wanted, self._compile = (runtime, device), compile
        self.runtime = choice.choose_runtime(runtime, self.precision, self.device, self.model, compile=compile)
        self._calibration = [
            tensor[None]
            for source in (islice(sources(calibration), MAX_CALIBRATION_IMAGES) if precision == "int8" else ())
            for tensor in self._read(source).prepared.tensors
        ]
        self._lock = Lock()  # around what makes the network
        self._state: ModelState
        self._network: EagerNetwork | FastISANet | RuntimeNetwork | None = None
        if precision == "int8" or compile or runtime not in ("auto", "torch"):
            self.network()  # errors are better now than at the first image
        log.info(
            "segmenting on %s (%s) in %s (%s)%s%s",
            self.device,
            "the best available" if device == "auto" else "as asked",
            self.precision,
            "the default for this device" if precision == "auto" else "as asked",
            "" if self.runtime == "torch" else f" by {self.runtime}",
            ""
            if protocol == "auto" and self.protocol.name == "whole"
            else f" by protocol {self.protocol.name}: {self.protocol.text} ({self.protocol_reason})",
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the model's classes; labels are indices into them."""
        return self.model.classes

    def __repr__(self) -> str:
        name = shortened(self.model.provenance.get("name", "ISANet"))
        return f"Segmenter({name}: {named_classes(self.classes)}; {self.device}, {self.precision}, {self.runtime})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the network that runs, which a copy makes again of the same model."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_lock", "_state")}
        return {**kept, "_network": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Counterpart of `__getstate__`."""
        self.__dict__.update(state, _lock=Lock())

    def network(self) -> EagerNetwork | FastISANet | RuntimeNetwork:
        """The network that runs, made of the model's weights as they are now.

        A change in place by way of `tensor.data` is the one that cannot be noticed: make a new Segmenter after it.

        >>> isanet.Segmenter(model, "cpu", runtime="torch").network().device
        device(type='cpu')
        """
        if _ran_in and os.getpid() not in _ran_in and self.device.type == "cpu":
            # OpenMP's threads did not come along, and its first parallel region would wait for them for ever
            torch.set_num_threads(1)
            log.warning("this process was forked after a network had run: it computes in one thread; spawn it instead")
        _ran_in.add(os.getpid())
        with self._lock:
            if isinstance(self._network, RuntimeNetwork) and not self._network.is_usable():
                self._network = None
            model = self.model
            if (
                self._network is None
                or self._network.logits_resize != model.logits_resize
                or (not isinstance(model, ExportedModel) and self._state.changed())
            ):
                self._network = None  # not two of them in memory
                if not isinstance(model, ExportedModel):
                    self._state = ModelState(model.eval())
                self._network = self._make_network()
            if not isinstance(model, ExportedModel) and self._state.in_training():  # it may have been trained meanwhile
                model.eval()
            self._network.max_memory = self.max_memory
            return self._network

    def _make_network(self) -> EagerNetwork | FastISANet | RuntimeNetwork:
        model, device, precision = self.model, self._wanted[1], self.precision
        if isinstance(model, ExportedModel):
            return choice.exported_network(model, self.runtime, precision, device=device, max_memory=self.max_memory)
        wanted = self._wanted[0]  # the model may have changed since
        self.runtime = choice.choose_runtime(wanted, precision, self.device, model, compile=self._compile)
        if self.runtime != "torch":
            try:
                return choice.runtime_network(
                    model, self.runtime, precision, device=device, images=self._calibration, max_memory=self.max_memory
                )
            except IsanetError as error:
                if wanted != "auto":
                    raise
                log.warning("%s", error)
                self.runtime = "torch"
        if why_not_optimizable(model):
            return EagerNetwork(model, PRECISIONS[precision])
        return optimize(model, precision, compile=self._compile, max_memory=self.max_memory)

    def predict(self, prepared: Sequence[Prepared], **options: Any) -> list[Prediction | None]:
        """`isanet.inference.predict.predict` with the network and protocol of this segmenter.

        >>> from isanet.inference.predict import prepare
        >>> prepared = prepare(result.image, model.preprocessing, segmenter.protocol)
        >>> segmenter.predict([prepared])[0][0].shape
        torch.Size([128, 256])
        """
        return predict(self.network(), prepared, self.protocol, **options)

    @overload
    def __call__(
        self, image: list[Any] | tuple[Any, ...] | Generator[Any], *, confidence: bool = ...
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self, image: bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any], *, confidence: bool = ...
    ) -> Segmentation: ...

    @overload  # a path is an image, a folder or a pattern: only the disk knows
    def __call__(self, image: str | os.PathLike[str], *, confidence: bool = ...) -> Any: ...

    def __call__(
        self, image: Source | list[Any] | tuple[Any, ...] | Iterator[Any], *, confidence: bool = False
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or several.

        Args:
            image: A path, an address (https), the bytes of a file, an open binary file, a PIL image, or a uint8 RGB
                array (H, W, 3), see `isanet.images.reading.read_image`; a folder, whose images are taken by name (not
                those of folders in it), or a glob pattern; or a list, tuple or iterator of all these.
            confidence: Keep `confidence` too.

        Returns:
            One Segmentation; for what may be several, a list of them in the same order, which a notebook shows.

        Raises:
            ImageError: An image cannot be read, a folder has none, or nothing matches a pattern.
            DownloadError, IntegrityError: An image cannot be fetched from its address.
            IsanetError: The network gave logits that are not finite, or there is not enough memory for an image.
        """
        source: Any = image
        if (images := several(source)) is not None:
            return Segmentations(self.stream(images, confidence=confidence))
        (result,) = self._segment([self._read(source)], confidence)
        if isinstance(result, IsanetError):
            raise result
        return result

    def stream(
        self,
        images: Iterable[Source | Frame] | str | os.PathLike[str],
        *,
        batch_size: int = 1,
        confidence: bool = False,
        on_error: Callable[[Source, IsanetError], None] | None = None,
    ) -> Iterator[Segmentation]:
        """Segment any number of images, one by one, in order and in constant memory.

        Images are read and prepared by one thread, at most a batch ahead of the model. It ends when the iterator is
        closed or exhausted.

        >>> for result in segmenter.stream("streets/images", batch_size=2):
        ...     result.save(f"{result.path.stem}.png")
        >>> result
        Segmentation(128x64: ...)
        >>> [round(result.time, 2) for result in segmenter.stream("drive.mp4")][:3]
        [0.0, 0.1, 0.2]

        Args:
            images: What a call takes, any other iterable of images, or a video (.mp4, .mov, .mkv, ..., with the extra
                `video`), whose frames are decoded in a thread of their own; `isanet.inference.video.frames` takes some.
            batch_size: Of so many consecutive images, those with one size after preprocessing go through the model
                together; others by themselves. Labels do not depend on it, up to rounding.
            confidence: Keep `confidence` too.
            on_error: Called with the source and the error of each image that fails; that image is then skipped.
                By default the error is raised, after the results of the images before it.

        Returns:
            An iterator of Segmentation.

        Raises:
            ValueError: `batch_size` is below 1.
            ImageError: An image cannot be read, a folder has none, or nothing matches a pattern.
            DownloadError, IntegrityError: An image cannot be fetched from its address.
            IsanetError: The network gave logits that are not finite, or there is not enough memory for an image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._stream(sources(images), batch_size, confidence, on_error)

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
        """Each source with its image, or with the error of reading it, in order; `depth` more are read meanwhile."""
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
                waiting.append((source.source if isinstance(source, Failed) else source, pool.submit(self._read, own)))
                if len(waiting) > depth:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, source: Source | Frame | Failed) -> _Read:
        name = name_of(source)
        try:
            image = read_source(source, max_pixels=self.max_pixels, value_range=self.value_range)
            if (row := 12 * len(self.model.classes) * image.shape[1]) > self.max_memory:
                raise ImageError(
                    f"{name} is {image.shape[1]} pixels wide: the labels of a single row take {row:,} "
                    f"bytes, more than max_memory, {self.max_memory:,}; cut it into parts"
                )
            prepared = prepare(image, self.model.preprocessing, self.protocol)
            if isinstance(source, Frame):
                return _Read(name, source.path, image, prepared, source.time)
            path = Path(source) if isinstance(source, str | os.PathLike) and not is_address(source) else None
            return _Read(name, path, image, prepared)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise not_enough_memory(name) from error
            raise

    def _segment(self, reads: Sequence[_Read], confidence: bool) -> list[Segmentation | IsanetError]:
        """The result of each image, or its error; where there is too little memory for several at once, one by one."""
        try:
            return self._segment_together(reads, confidence)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(reads) == 1:
                return [not_enough_memory(reads[0].name)]
        return [
            result for read in reads for result in self._segment([read], confidence)
        ]  # the error's tensors are freed

    @torch.inference_mode()
    def _segment_together(self, reads: Sequence[_Read], confidence: bool) -> list[Segmentation | IsanetError]:
        predictions = self.predict([read.prepared for read in reads], confidence=confidence)
        return [
            not_finite(read.name, self.precision) if prediction is None else self._result(read, *prediction)
            for read, prediction in zip(reads, predictions, strict=True)
        ]

    def _result(self, read: _Read, labels: Tensor, probabilities: Tensor | None) -> Segmentation:
        return Segmentation(
            labels=labels.cpu().numpy(),
            classes=self.model.classes,
            palette=self.model.palette,
            image=read.image,
            path=read.path,
            label_space=self.model.label_space,
            confidence=None if probabilities is None else probabilities.cpu().numpy(),
            time=read.time,
        )


@dataclass(frozen=True, eq=False)
class _Read:
    """An image that was read, and what was made of it for the network."""

    name: str  # for messages
    path: Path | None
    image: RGBImage
    prepared: Prepared
    time: float | None = None  # of a frame
