"""The self-test: runs a model on a drawn street and compares the result with the recorded answer.

It finds in seconds what loading cannot: channels in another order, another resize, an untrained classifier, weights
damaged in memory, an accelerator that computes wrongly.

An answer is a small safetensors file of labels and confidences at every second pixel, bound to the sha256 of the
released file and to the image. A packaged model has its answer beside it. For any other model the first run records
the answer in the cache, on the CPU in float32; that run can find nothing but a broken device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from isanet._files import atomic_write, write_output
from isanet._text import listed
from isanet._version import __version__
from isanet.errors import CacheError, IntegrityError, IsanetError
from isanet.images.reading import RGBImage
from isanet.inference import predict
from isanet.inference.segmenter import Segmenter
from isanet.model import ISANet
from isanet.toystreets import draw_scene
from isanet.weights import cache, checkpoint
from isanet.weights.manifest import Weights, model_info, packaged_path
from isanet.zoo.pretrained import from_pretrained

SCHEMA = "1"
"""Version of the layout of an answer."""

SEED, SIZE = 23, (192, 256)
"""Of the image, which `draw_scene` draws the same on every machine. All eleven classes are in it, and a network without
attention gives 9 % of its pixels other labels."""

STEP = 2
"""Distance in pixels, down and right, between recorded pixels."""

MIN_CONFIDENCE = 0.6
"""Least recorded confidence of the pixels that count: where two classes are nearly equal, rounding decides."""


class Tolerance(NamedTuple):
    """What rounding may change.

    Attributes:
        labels: Least share of the confident pixels that must keep their label.
        confidence: Largest mean difference of the confidence, over all pixels.
    """

    labels: float
    confidence: float

    def allows(self, agreement: float, difference: float) -> bool:
        """Whether a share of equal labels and a mean difference of the confidence are within the tolerance."""
        return agreement >= self.labels and difference <= self.confidence


TOLERANCES = {
    "float32": Tolerance(0.999, 0.001),
    "float16": Tolerance(0.995, 0.005),
    "bfloat16": Tolerance(0.99, 0.02),
    "int8": Tolerance(0.98, 0.05),
}
"""By precision, on the CPU. float32 on an accelerator has the tolerance of float16: convolutions may run in TF32 there,
whose significand has as many bits (10).

Measured with isanet_nano_toystreets on the image: no confident pixel changed its label; the confidence differed by
0.0001 in float32 (the answer is rounded to float16), 0.0005 in float16, 0.0036 in bfloat16 (0.0071 by OpenVINO), 0.0052
in int8. The faults in the tests change at least 2 % of the confident pixels."""

VERSIONS = {"isanet": __version__, "torch": torch.__version__}

log = logging.getLogger("isanet")


class Answer(NamedTuple):
    """The result of a model on the image.

    Attributes:
        labels: (H, W) class indices at every `STEP`-th pixel.
        confidence: (H, W) float32 in 0..1, of those labels.
        facts: What it is bound to (`schema`, `source_sha256`, `image`), the network's input (`input_shape`,
            `input_sha256`), and the versions that made it (`isanet`, `torch`).
    """

    labels: NDArray[np.integer]
    confidence: NDArray[np.float32]
    facts: Mapping[str, str]


class Outcome(NamedTuple):
    """What a self-test found.

    Attributes:
        agreement: Share of the confident pixels that have the recorded label; NaN where the network gave no labels.
        difference: Mean difference of the confidence, over all pixels; NaN as above.
        tolerance: What was allowed.
        device: The device that it ran on.
        precision: The precision that it ran in.
        fault: What is wrong, and the likely cause; "" if nothing is.
        first: Whether the answer was recorded in this run.
    """

    agreement: float
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
        IntegrityError: The answer in the package is missing, damaged, or of another model.
        IsanetError: The model cannot be loaded, or returns values that are not finite when an answer is first recorded.
    """
    weights = model_info(name)
    segmenter = Segmenter(from_pretrained(name), device=device, precision=precision, calibration=[street()])
    recorded = recorded_answer(weights)
    answer = recorded or _compute_answer(weights)
    if recorded is None:
        try:
            _write(weights, answer)
        except CacheError as error:  # other devices can still be compared in this run
            log.warning("%s: the answer was not kept: %s", name, error)
        log.warning(
            "%s: no answer was recorded yet, so one was computed on this machine's CPU in float32 (%s); later runs "
            "compare with it. Segment an image of your own to see whether it is right",
            name,
            answer_path(weights),
        )
    return compare(segmenter, name, answer)._replace(first=recorded is None)


def compare(segmenter: Segmenter, name: str, answer: Answer) -> Outcome:
    """Compare the result of a segmenter, of the model `name` of the zoo, with an answer."""
    tolerance = tolerance_of(segmenter)
    agreement = difference = float("nan")
    fault = ""
    try:
        agreement, difference = _differences(_segment(segmenter, street()), answer)
    except IsanetError as error:
        fault = str(error)
    else:
        if not tolerance.allows(agreement, difference):
            fault = f"{1 - agreement:.2%} of the pixels have another label, the confidence differs by {difference:.4f}"
    if fault or not _input_facts(segmenter).items() <= answer.facts.items():
        fault = f"{fault or 'the input differs'}; likely cause: {_cause(segmenter, name, answer, agreement)}"
        if not (weights := model_info(name)).packaged:
            fault += f"; if the computation was changed on purpose, delete {answer_path(weights)} and run again"
    return Outcome(agreement, difference, tolerance, str(segmenter.device), segmenter.precision, fault)


def tolerance_of(segmenter: Segmenter) -> Tolerance:
    """What rounding may change on a segmenter's device, in its precision."""
    tf32 = segmenter.precision == "float32" and segmenter.device.type != "cpu"
    return TOLERANCES["float16" if tf32 else segmenter.precision]


def record(name: str) -> Answer:
    """Record the answer of a model of the zoo, on the CPU in float32; an earlier one is replaced.

    The answer of a packaged model is written beside it: for maintainers, when the model or `toystreets` changes.

    Raises:
        CacheError: The answer cannot be written to the cache.
        OutputError: The answer cannot be written beside a packaged model.
        IsanetError: The model cannot be loaded, or returns values that are not finite.
    """
    weights = model_info(name)
    answer = _compute_answer(weights)
    _write(weights, answer)
    return answer


def _compute_answer(weights: Weights) -> Answer:
    segmenter = Segmenter(from_pretrained(weights.name), device="cpu", precision="float32")
    answer = _segment(segmenter, street())
    if (share := float((answer.confidence >= MIN_CONFIDENCE).mean())) < 0.1:
        log.warning("%s is confident at %.1f %% of the pixels: it looks untrained", weights.name, 100 * share)
    return answer._replace(facts={**_binding(weights), **_input_facts(segmenter), **VERSIONS})


def _write(weights: Weights, answer: Answer) -> None:
    tensors = {
        "labels": torch.from_numpy(answer.labels.copy()),
        "confidence": torch.from_numpy(answer.confidence).half(),  # a tenth of what float32 is allowed is lost
    }
    path, data = answer_path(weights), checkpoint.serialize(tensors, answer.facts)
    if weights.packaged:
        write_output(path, data)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise cache.write_error(path.parent, error) from error


def answer_path(weights: Weights) -> Path:
    """Where the answer of a model is recorded: in the package or in the cache."""
    if weights.packaged:
        return packaged_path(weights.name).with_suffix(".selftest")
    return cache.selftest_path(weights.name)


def recorded_answer(weights: Weights) -> Answer | None:
    """The recorded answer of a model; None if there is none for its released file and the image.

    Raises:
        IntegrityError: The one in the package is missing, damaged, or of another model.
    """
    path = answer_path(weights)
    try:
        tensors, facts = checkpoint.read_safetensors(checkpoint.read_file(path))
        answer = Answer(tensors["labels"].numpy(), tensors["confidence"].float().numpy(), facts)
        shape = tuple(-(-side // STEP) for side in SIZE)
        if answer.labels.shape != shape or answer.confidence.shape != shape or not np.isfinite(answer.confidence).all():
            raise ValueError("labels or confidences do not fit the image")
        if missing := sorted({"input_shape", "input_sha256", "isanet", "torch"} - set(facts)):
            raise ValueError(f"{missing[0]} is not recorded")
        if not _binding(weights).items() <= facts.items():
            raise ValueError("it was made with another file or image")
    except (OSError, ValueError, KeyError) as error:
        if weights.packaged:
            raise IntegrityError(
                f"the recorded answer {path} in the package cannot be used ({error}): install isanet again; after "
                f"changing the model itself, isanet.tools.selftest.record({weights.name!r}) records a new one"
            ) from error
        if not isinstance(error, FileNotFoundError):
            log.warning("ignoring the recorded answer %s: %s", path, error)
        return None
    return answer


def street() -> RGBImage:
    """The street that models are tested with: (192, 256, 3) uint8 RGB."""
    return np.asarray(draw_scene(SEED, SIZE)[0])


def _segment(segmenter: Segmenter, image: RGBImage) -> Answer:
    result = segmenter(image, confidence=True)
    assert result.confidence is not None
    return Answer(result.labels[::STEP, ::STEP], result.confidence[::STEP, ::STEP], {})


def _differences(now: Answer, answer: Answer) -> tuple[float, float]:
    """(share of the confident pixels with equal labels, mean difference of the confidence over all pixels)."""
    confident = answer.confidence >= MIN_CONFIDENCE
    agreement = float((now.labels == answer.labels)[confident].mean()) if confident.any() else 1.0
    return agreement, float(np.abs(now.confidence - answer.confidence).mean())


def _binding(weights: Weights) -> dict[str, str]:
    """What an answer must have been made with."""
    source = weights.sha256 or ""
    if not weights.packaged and (record := cache.read_record(weights.name)) is not None:
        source = record.source_sha256
    return {"schema": SCHEMA, "source_sha256": source, "image": sha256(street().tobytes()).hexdigest()}


def _input_facts(segmenter: Segmenter) -> dict[str, str]:
    """The network's input, which is bit-exactly the same on every machine."""
    tensor = predict.prepare(street(), segmenter.model.preprocessing, segmenter.protocol).tensors[0]
    shape = "x".join(map(str, tensor.shape[1:]))
    return {"input_shape": shape, "input_sha256": sha256(tensor.numpy().tobytes()).hexdigest()}


def _cause(segmenter: Segmenter, name: str, answer: Answer, agreement: float) -> str:
    """Why a segmenter does not agree: the first of the usual causes that explains it."""
    given = _input_facts(segmenter)
    if given["input_shape"] != answer.facts["input_shape"]:
        return (
            f"images are {given['input_shape']} for the network, where {answer.facts['input_shape']} was recorded "
            "(height x width); see short_edge, long_edge and pad_to"
        )
    with suppress(IsanetError):  # values that are not finite, whatever the image
        swapped, _ = _differences(_segment(segmenter, street()[..., ::-1]), answer)
        if swapped >= 0.95 and not swapped <= agreement:
            return "red and blue are swapped before the network or in its weights: with a swapped image it agrees"
    if given["input_sha256"] != answer.facts["input_sha256"]:
        return "images are prepared in another way: another resize, mean, deviation or order of channels"
    fresh = Segmenter(from_pretrained(name), device="cpu", precision="float32", protocol=segmenter.protocol)
    if not TOLERANCES["float32"].allows(*_differences(_segment(fresh, street()), answer)):
        made, here = (f"isanet {facts['isanet']} and torch {facts['torch']}" for facts in (answer.facts, VERSIONS))
        return (
            "the verified file itself gives another answer on the CPU in float32; the answer was recorded with "
            f"{made}, and this is {here}"
        )
    assert isinstance(segmenter.model, ISANet)
    assert isinstance(fresh.model, ISANet)
    state, stored = segmenter.model.state_dict(), fresh.model.state_dict()
    changed = [
        key
        for key, value in stored.items()
        if key in state and not torch.equal(state[key].cpu().to(value.dtype), value)
    ]
    if changed:
        return f"the model in memory is not what is in its file: {listed(changed, 3)} differ"
    return f"{segmenter.device} in {segmenter.precision}: on the CPU in float32 the same model agrees"
