"""Writing a model as a file for other runtimes, compared with the model before anyone sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet import protocols
from isanet._files import keep_existing, output_errors
from isanet._text import percent, shortened
from isanet.errors import IsanetError, OutputError
from isanet.exporting import torch_export
from isanet.exporting.whole import whole_file
from isanet.images.preprocess import preprocess
from isanet.images.reading import MAX_PIXELS, RGBImage, Source
from isanet.inference.fast.optimize import optimize, why_not_optimizable
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import predict, prepare
from isanet.inference.runtimes import packages
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.openvino import core
from isanet.inference.segmenter import MAX_CALIBRATION_IMAGES
from isanet.inference.sources import read_source, sources
from isanet.model import ISANet, resize_logits, unwrapped
from isanet.toystreets import draw_scene
from isanet.weights import hub
from isanet.weights.manifest import load_manifest

FORMATS = {".onnx": ("float32",), ".xml": ("float32", "float16", "int8"), ".pt2": ("float32",)}
"""The precisions of each kind of file, by its suffix."""

MIN_AGREEMENT = {"float32": 0.995, "float16": 0.99, "int8": 0.9}
"""Share of the labels that a file must have in common with the model. Rounding changes less than a pixel in a thousand,
and two of them in a network that was never trained. Logits that are resized in another way change 17, a wrong order of
channels most of them."""

SIZES = ((1, 1), (65, 97), (129, 160))
"""Heights and widths of the drawn images that a file is tried on."""

Run = Callable[[NDArray[Any]], NDArray[Any]]
"""Runs a file: its input goes in, its output comes out."""


class Exported(NamedTuple):
    """A file that was written.

    Attributes:
        path: What was asked for.
        files: It, and of OpenVINO also the .bin beside it that has the weights.
        precision: Of the weights.
        agreement: Share of the pixels with the label that the model itself gives in float32.
        images: What they were compared on: drawn images, or for int8 the first ones for calibration.
    """

    path: Path
    files: tuple[Path, ...]
    precision: str
    agreement: float
    images: str


def export(
    model: ISANet | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    whole: bool = False,
    calibration: Iterable[Source] | str | os.PathLike[str] = (),
    overwrite: bool = False,
) -> Exported:
    """Write a model as a file for other runtimes: the network with batch norm folded in, without the auxiliary head.

    * `.onnx`: normalized "images" (N, 3, H, W) float32 -> "logits" (N, K, h, w), coarse (an eighth, rounded up).
    * `.xml`: the same as OpenVINO's IR; the weights are in the .bin beside it.
    * `.pt2`: a `torch.export` program: images -> logits (N, K, H, W), at the size of the images.

    With `whole`, .onnx and .xml do the whole job by the model's own protocol: "image" (H, W, 3) uint8 RGB -> "labels"
    (H, W) uint8 (int32 for more than 256 classes). All sizes are free, from one pixel up.

    The file tells its classes, palette, preprocessing, protocol, license and origin: in the metadata of .onnx, under
    `isanet` in the runtime info of .xml, as extra files in .pt2. It is compared with the model before it replaces
    anything.

    >>> exported = isanet.export(model, "street.onnx", overwrite=True)
    >>> exported.agreement > 0.999, isanet.Segmenter("street.onnx")("street.jpg").labels.shape
    (True, (128, 256))

    Args:
        model: An ISANet as it was built, or anything that `isanet.from_pretrained` takes.
        path: Ends in .onnx, .xml or .pt2.
        precision: Of the weights. .xml takes "float16", half the size and computed in float32 on CPUs, and "int8": NNCF
            quantizes weights and maps, see `isanet.inference.runtimes.quantize`.
        whole: See above.
        calibration: For int8, a few images like those to come, as a list or a folder; the first eight tell the range
            of every map in the network.
        overwrite: Replace an existing file.

    Raises:
        ValueError: Another suffix, a precision that the format does not have, a network that was changed after it was
            built or whose weights are not finite; int8 without calibration; `whole` of a .pt2, of a model without
            preprocessing, or of a protocol with several scales or flips; a library that the format needs is not
            installed.
        OutputError: Something is at `path`, or at that of the weights of an .xml, or it cannot be written.
        ImageError: An image for calibration cannot be read.
        IsanetError: The file disagrees with the model, and is removed.
    """
    path = Path(path)
    if path.suffix == ".ts":
        raise ValueError("torch has deprecated TorchScript; write a .pt2 file, which torch.export.load opens")
    if path.suffix not in FORMATS:
        raise ValueError(f"the path must end in {', '.join(FORMATS)}, got {path.name!r}")
    if precision not in FORMATS[path.suffix]:
        raise ValueError(f"a {path.suffix} file is written in {' or '.join(FORMATS[path.suffix])}, not {precision!r}")
    if whole and path.suffix == ".pt2":
        raise ValueError("the whole job is written as .onnx or .xml; a .pt2 file has the network alone")
    targets = [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]  # the weights first
    for target in targets:
        keep_existing(target, overwrite=overwrite)
        if target.is_dir():
            raise OutputError(f"{target} is a folder; use another name")
    needed = (*packages.NEEDED["openvino"], *["nncf"] * (precision == "int8")) if path.suffix == ".xml" else ()
    for package in needed:
        packages.check_installed(package, "openvino")
    if path.suffix == ".onnx":
        packages.check_installed("onnx", "onnxruntime")
    if isinstance(model, str | os.PathLike):
        from isanet.zoo.pretrained import from_pretrained

        model = from_pretrained(model)
    network: ISANet = unwrapped(model)
    if reason := why_not_optimizable(network):
        raise ValueError(f"this network cannot be exported: {reason}")
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise ValueError("the model has weights that are not finite: they are damaged or not trained")
    if (whole or precision == "int8") and not network.preprocessing:
        raise ValueError("the model does not say how its images are prepared (preprocessing), as whole and int8 need")
    with output_errors(path), TemporaryDirectory(prefix=".isanet-", dir=path.parent) as folder, _evaluating(network):
        some = islice(sources(calibration), MAX_CALIBRATION_IMAGES if precision == "int8" else 0)
        images = [read_source(source, max_pixels=MAX_PIXELS, value_range=None) for source in some]
        try:
            run = _write(network, Path(folder, path.name), precision, whole, images)
            agreement = _agreement(network, run, whole, images[:2])
        except (IsanetError, ValueError, OSError, MemoryError):
            raise
        except Exception as error:  # of torch, onnx or a runtime
            raise IsanetError(f"{path.name} cannot be written, or not be run: {shortened(str(error), 300)}") from error
        if agreement < MIN_AGREEMENT[precision]:
            advice = "calibrate with images like those to come" if images else "please report this"
            raise IsanetError(
                f"the file gave {percent(agreement)} of the model's own labels, less than "
                f"{percent(MIN_AGREEMENT[precision])}, and was removed: {advice}"
            )
        for target in targets:
            Path(folder, target.name).replace(target)
    tried = "the first images for calibration" if images else "drawn images"
    return Exported(path, tuple(targets[::-1]), precision, agreement, tried)


@contextmanager
def _evaluating(model: ISANet) -> Iterator[None]:
    """The model in evaluation mode, without gradients; each of its modules is then in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module in training:
            module.training = True


def _write(model: ISANet, path: Path, precision: str, whole: bool, images: Sequence[RGBImage]) -> Run:
    """Write the file into an empty folder, and open it."""
    metadata = _metadata(model, precision, whole)
    if path.suffix == ".pt2":
        torch_export.write(model, path, metadata)  # on the CPU, in float32
        program = torch.export.load(path).module()
        return lambda array: program(torch.from_numpy(array)).numpy()
    fast = optimize(model)
    protocol = protocols.protocol(model.protocol)
    file = path.with_suffix(".onnx")
    with file.open("wb") as stream:
        stream.writelines(whole_file(fast, protocol, metadata) if whole else network_file(fast, metadata))
    del fast
    if path.suffix == ".onnx":
        return _opened_onnx(path)
    openvino = packages.load("openvino")
    ir = core().read_model(file)
    if precision == "int8":
        from isanet.inference.runtimes.quantize import quantized

        tensors = (torch.from_numpy(image) if whole else _tensor(model, image) for image in images)
        ir = quantized(ir, tensors)
    for key, value in metadata.items():
        ir.set_rt_info(value, ["isanet", key])
    try:
        openvino.save_model(ir, path, compress_to_fp16=precision == "float16")
    except RuntimeError as error:
        raise OutputError(f"cannot write {path.name}: {shortened(str(error), 200)}; is the disk full?") from error
    del ir
    return _opened_openvino(path)


def _opened_onnx(path: Path) -> Run:
    """Run by ONNX Runtime, or else by OpenVINO."""
    if packages.why_absent("onnxruntime"):
        return _opened_openvino(path)
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def _opened_openvino(path: Path) -> Run:
    packages.check_installed("openvino", "openvino")
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda array: compiled(array)[0]


def _metadata(model: ISANet, precision: str, whole: bool) -> dict[str, str]:
    """What a file says of itself: text, JSON where it is more than a word."""
    config, name = model.config, model.provenance.get("name", "")
    document = {
        "config": config,
        "provenance": model.provenance,
        **{key: config[key] for key in ("classes", "palette", "preprocessing", "protocol")},
        "precision": precision,
        "whole": "true" if whole else "false",
    }
    if name in load_manifest() and hub.is_released(model.state_dict(), config, name):
        document["license"] = load_manifest()[name].license
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in document.items()}


def _agreement(model: ISANet, run: Run, whole: bool, images: Sequence[RGBImage]) -> float:
    """Share of the pixels that get the model's own label: of images for calibration, else of drawn ones."""
    is_drawn = not images
    if is_drawn:
        street = draw_scene(0, (128, 256))[0]
        images = [np.asarray(street.resize(size[::-1])) for size in (SIZES[1:2] if whole else SIZES)]
    same = []
    for image in images:
        if whole:
            prepared = prepare(image, model.preprocessing or {}, model.protocol)
            (prediction,) = predict(EagerNetwork(model), [prepared], model.protocol)
            assert prediction is not None
            expected, labels = prediction[0].cpu(), torch.from_numpy(run(image))
        else:
            tensor = _tensor(model, image, resize=not is_drawn)
            expected = model(tensor.to(model.classifier.weight)).argmax(1).cpu()
            logits = torch.from_numpy(run(tensor.numpy()))
            labels = resize_logits(logits, (tensor.shape[2], tensor.shape[3]), model.logits_resize).argmax(1)
        same.append((labels == expected).flatten())
    return float(torch.cat(same).double().mean())


def _tensor(model: ISANet, image: RGBImage, *, resize: bool = True) -> Tensor:
    """What the network sees of an image: (1, 3, h, w)."""
    preprocessing = model.preprocessing or {"mean": [127.5] * 3, "std": [60.0] * 3}
    sizing = () if resize else ("short_edge", "long_edge", "pad_to", "pad_color")
    return preprocess(image, **{key: value for key, value in preprocessing.items() if key not in sizing})[None]
