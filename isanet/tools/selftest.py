"""The self-test: a drawn street through a model, compared with the answer that was recorded.

It shows in seconds what loading cannot: channels in another order, another resize, a classifier that was never
trained, weights damaged in memory, an accelerator that computes wrongly.

An answer is a small safetensors file of labels and confidences at every second pixel, bound to the sha256 of the
released file and to the image. That of a model in the package travels beside it. For a model that nobody here has
seen, the first run records it on the CPU in float32, in the cache; that run can show nothing but a broken device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import isanet
from isanet._files import atomic_write
from isanet.errors import CacheError, CheckpointFormatError, IntegrityError, IsanetError
from isanet.images.reading import RGBImage
from isanet.inference import predict as inference
from isanet.inference.segmenter import Segmenter
from isanet.model import ISANet
from isanet.toystreets import scene as toystreets
from isanet.weights import cache, checkpoint
from isanet.weights.manifest import Weights, model_info, packaged_path
from isanet.zoo.pretrained import from_pretrained

SCHEMA = "1"
"""Version of an answer's layout."""

SEED, SIZE = 0, (192, 256)
"""The image: `toystreets.scene` promises the same one on every machine. All eleven classes are in it."""

STEP = 2
"""Every so many pixels, down and right, are recorded."""

MIN_CONFIDENCE = 0.6
"""Pixels count whose recorded confidence is at least this: where two classes are nearly equal, rounding decides."""


class Tolerance(NamedTuple):
    """What rounding may change.

    Attributes:
        labels: Smallest share of the sure pixels that keep their label.
        confidence: Largest mean difference of the confidence, over all pixels.
    """

    labels: float
    confidence: float


TOLERANCES = {
    "float32": Tolerance(0.999, 0.001),
    "float16": Tolerance(0.995, 0.005),
    "bfloat16": Tolerance(0.99, 0.02),
    "int8": Tolerance(0.98, 0.05),
}
"""By precision, on the CPU; float32 on an accelerator has that of float16, because convolutions may run in TF32 there,
whose significand has the 10 bits of float16's.

Measured with isanet_nano_toystreets against float64 on drawn streets: no sure pixel changed its label in any precision,
and of all pixels up to 0.03 % did in float16, 0.8 % in bfloat16 and 1.3 % in a simulation of int8; the confidence
differed by 3e-7 in float32, 0.0002 in float16, 0.0045 in bfloat16, 0.0125 in that simulation. An answer's own rounding
to float16 adds 0.0001. The faults that this is for change at least 2 % of the sure pixels (see its tests)."""

log = logging.getLogger("isanet")


class Answer(NamedTuple):
    """What a model said of the image.

    Attributes:
        labels: (H, W) class indices at every `STEP`-th pixel.
        confidence: (H, W) float32 in 0..1, of those labels.
        facts: What it is bound to (`schema`, `source_sha256`, `image`), what the network was given (`input_shape`,
            `input_sha256`), and by what it was made (`isanet`, `torch`).
    """

    labels: NDArray[np.integer]
    confidence: NDArray[np.float32]
    facts: Mapping[str, str]


class Outcome(NamedTuple):
    """What a self-test found.

    Attributes:
        agreement: Share of the sure pixels that have the recorded label; NaN where the network gave no labels.
        sure: Share of the pixels whose recorded confidence is at least `MIN_CONFIDENCE`.
        difference: Mean difference of the confidence, over all pixels; NaN as above.
        tolerance: What was asked for.
        device: Where it ran.
        precision: In which precision.
        fault: What is wrong, and the likely cause; "" where all is good.
        first: Whether the answer was recorded in this run.
    """

    agreement: float
    sure: float
    difference: float
    tolerance: Tolerance
    device: str
    precision: str
    fault: str
    first: bool = False


def selftest(name: str, *, device: str = "auto", precision: str = "auto") -> Outcome:
    """Run the image through a model of the zoo and compare with the recorded answer.

    Args:
        name: A model of the zoo; fetched if it is not cached.
        device: As for `isanet.Segmenter`.
        precision: As for `isanet.Segmenter`.

    Raises:
        ValueError: Unknown name, device or precision.
        IsanetError: The model cannot be loaded, or the answer in the package is not of this model.
    """
    weights = model_info(name)
    segmenter = Segmenter(from_pretrained(name), device=device, precision=precision, calibration=[street()])
    answer = recorded_answer(weights)
    first = answer is None
    if answer is None:
        answer = _made(weights)
        try:
            _write(weights, answer)
        except CacheError as error:  # a cache that cannot be written: other devices can be compared all the same
            log.warning("%s: the answer was not kept: %s", name, error)
        log.warning(
            "%s: no answer was recorded yet, so this machine's CPU gave one in float32 (%s); later runs compare with "
            "it. Whether it is right, only an image of yours shows",
            name,
            answer_path(weights),
        )
    return compare(segmenter, name, answer)._replace(first=first)


def compare(segmenter: Segmenter, name: str, answer: Answer) -> Outcome:
    """Compare what a segmenter, of a model of the zoo, says of the image with an answer."""
    tolerance = tolerance_of(segmenter)
    confidence = answer.confidence
    sure = confidence >= MIN_CONFIDENCE
    agreement = difference = float("nan")
    try:
        now = _segmented(segmenter, street())
    except IsanetError as error:
        fault = str(error)
    else:
        agreement, difference = _agreement(now, answer), float(np.abs(now.confidence - confidence).mean())
        fault = (
            ""
            if _agree(now, answer, tolerance)
            else (
                f"{1 - agreement:.2%} of the pixels have another label, and the confidence differs by {difference:.4f}"
            )
        )
    given = _input_facts(segmenter)
    if fault or any(answer.facts[key] != value for key, value in given.items()):
        fault = f"{fault or 'the input differs'}; likely cause: {_cause(segmenter, name, answer)}"
        if not (weights := model_info(name)).packaged:
            fault += f"; if what computes was changed on purpose, delete {answer_path(weights)} and run again"
    return Outcome(
        agreement, float(sure.mean()), difference, tolerance, str(segmenter.device), segmenter.precision, fault
    )


def tolerance_of(segmenter: Segmenter) -> Tolerance:
    """What rounding may change on a segmenter's device, in its precision."""
    rough = segmenter.precision == "float32" and segmenter.device.type != "cpu"
    return TOLERANCES["float16" if rough else segmenter.precision]


def record(name: str) -> Answer:
    """Record the answer of a model of the zoo, on the CPU in float32; an earlier one is replaced.

    That of a model inside the package is written beside it: for maintainers, when the model or `toystreets` changes.

    Raises:
        CacheError: It cannot be written.
        IsanetError: The model cannot be loaded, or gives values that are not finite.
    """
    weights = model_info(name)
    answer = _made(weights)
    _write(weights, answer)
    return answer


def _made(weights: Weights) -> Answer:
    segmenter = Segmenter(from_pretrained(weights.name), device="cpu", precision="float32")
    answer = _segmented(segmenter, street())
    if (share := float((answer.confidence >= MIN_CONFIDENCE).mean())) < 0.1:
        log.warning("%s is sure of %.1f %% of the image: it looks untrained", weights.name, 100 * share)
    return answer._replace(facts={**_binding(weights), **_input_facts(segmenter), **_makers()})


def _write(weights: Weights, answer: Answer) -> None:
    tensors = {
        "labels": torch.from_numpy(answer.labels.copy()),
        "confidence": torch.from_numpy(answer.confidence).half(),  # a tenth of what float32 is allowed is lost
    }
    path = answer_path(weights)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(checkpoint.serialize(tensors, answer.facts))
    except OSError as error:
        raise cache.unwritable(path.parent, error) from error


def answer_path(weights: Weights) -> Path:
    """Where the answer of a model is."""
    return packaged_path(weights.name).with_suffix(".selftest") if weights.packaged else cache.answer_path(weights.name)


def recorded_answer(weights: Weights) -> Answer | None:
    """The recorded answer of a model; None where there is none of this file and image.

    Raises:
        IntegrityError: The one in the package is missing, damaged, or of another model.
    """
    path = answer_path(weights)
    try:
        tensors, facts = checkpoint.read_safetensors(checkpoint.read_file(path))
        answer = Answer(tensors["labels"].numpy(), tensors["confidence"].float().numpy(), facts)
        shape = tuple(-(-side // STEP) for side in SIZE)
        if answer.labels.shape != shape or answer.confidence.shape != shape or not np.isfinite(answer.confidence).all():
            raise ValueError("labels or confidences are not those of the image")
        if missing := sorted({"input_shape", "input_sha256", "isanet", "torch"} - set(facts)):
            raise ValueError(f"{missing[0]} is not recorded")
        if any(facts.get(key) != value for key, value in _binding(weights).items()):
            raise ValueError("it is of another file or image")
    except FileNotFoundError as error:
        problem: Exception = error
    except (OSError, CheckpointFormatError, ValueError, KeyError) as error:
        problem = error
        if not weights.packaged:
            log.warning("ignoring the recorded answer %s: %s", path, error)
    else:
        return answer
    if weights.packaged:
        raise IntegrityError(
            f"the recorded answer {path}, which travels inside the package, cannot be used ({problem}): install isanet "
            f"again; after changing the model itself, isanet.tools.selftest.record({weights.name!r}) makes a new one"
        ) from problem
    return None


def street() -> RGBImage:
    """(192, 256, 3): the street that models are tested with."""
    return np.asarray(toystreets.scene(SEED, SIZE)[0])


def _segmented(segmenter: Segmenter, image: RGBImage) -> Answer:
    result = segmenter(image, confidence=True)
    assert result.confidence is not None
    return Answer(result.labels[::STEP, ::STEP], result.confidence[::STEP, ::STEP], {})


def _agreement(now: Answer, answer: Answer) -> float:
    sure = answer.confidence >= MIN_CONFIDENCE
    return float((now.labels == answer.labels)[sure].mean()) if sure.any() else 1.0


def _agree(now: Answer, answer: Answer, tolerance: Tolerance) -> bool:
    difference = float(np.abs(now.confidence - answer.confidence).mean())
    return _agreement(now, answer) >= tolerance.labels and difference <= tolerance.confidence


def _binding(weights: Weights) -> dict[str, str]:
    """What an answer must be of."""
    source = weights.sha256 or ""
    if not weights.packaged and (record := cache.read_record(weights.name)) is not None:
        source = record.source_sha256
    return {"schema": SCHEMA, "source_sha256": source, "image": sha256(street().tobytes()).hexdigest()}


def _makers() -> dict[str, str]:
    return {"isanet": isanet.__version__, "torch": torch.__version__}


def _input_facts(segmenter: Segmenter, *, reverse: bool = False) -> dict[str, str]:
    """What the network is given: integers and tables make it, so that it is the same everywhere, to the last bit."""
    image = street()[..., ::-1] if reverse else street()
    (given, *_) = inference.prepare(image, segmenter.model.preprocessing, segmenter.protocol)
    shape = "x".join(map(str, given.shape[1:]))
    return {"input_shape": shape, "input_sha256": sha256(given.numpy().tobytes()).hexdigest()}


def _cause(segmenter: Segmenter, name: str, answer: Answer) -> str:
    """Why a segmenter does not agree, found by trying what would explain it."""
    given = _input_facts(segmenter)
    recorded_shape, recorded_sha256 = answer.facts["input_shape"], answer.facts["input_sha256"]
    if given["input_shape"] != recorded_shape:
        return (
            f"images are resized to {given['input_shape']} for the network, where {recorded_shape} was recorded "
            "(height x width); see short_edge and long_edge"
        )
    if given["input_sha256"] != recorded_sha256:
        if _input_facts(segmenter, reverse=True)["input_sha256"] == recorded_sha256:
            return "red and blue are swapped before the network"
        return "images are prepared in another way: another resize, mean, deviation or order of channels"
    try:
        if _agreement(_segmented(segmenter, street()[..., ::-1]), answer) >= 0.95:
            return "red and blue are swapped: with the image's channels reversed, the model agrees"
    except IsanetError:
        pass  # values that are not finite, whatever the image
    fresh = Segmenter(from_pretrained(name), device="cpu", precision="float32", protocol=segmenter.protocol)
    if not _agree(_segmented(fresh, street()), answer, TOLERANCES["float32"]):
        made, here = (f"isanet {facts['isanet']} and torch {facts['torch']}" for facts in (answer.facts, _makers()))
        return (
            "the verified file itself gives another answer on the CPU in float32; the answer was recorded with "
            f"{made}, and this is {here}"
        )
    if changed := _changed(segmenter.model, fresh.model):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return f"the model in memory is not what is in its file: {', '.join(changed[:3])}{more} differ"
    return f"{segmenter.device} in {segmenter.precision}: on the CPU in float32 the same model agrees"


def _changed(model: ISANet, fresh: ISANet) -> list[str]:
    """The tensors whose values are not those of another model; none where the two do not have the same tensors."""
    state, expected = model.state_dict(), fresh.state_dict()
    if state.keys() != expected.keys():
        return []
    return [name for name, value in expected.items() if not _same(state[name], value)]


def _same(value: Tensor, expected: Tensor) -> bool:
    return value.shape == expected.shape and torch.equal(value.cpu().to(expected.dtype), expected)
