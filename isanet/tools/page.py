"""What the page of `isanet serve` shows and offers for download; without Gradio."""

from __future__ import annotations

import base64
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet._files import output_stream
from isanet._text import csv_line, plural, shortened, without_controls
from isanet.errors import IsanetError
from isanet.inference.outputs import coco_file, csv_file, is_video, write_outputs
from isanet.inference.segmentation import NOT_PAINTED, Segmentation
from isanet.inference.segmenter import Segmenter
from isanet.inference.video import frames, video_info, write_video
from isanet.weights import cache
from isanet.weights.choosing import by_dataset, by_hand
from isanet.weights.manifest import Weights, load_manifest

OWN = "own"
"""Stands for a model that is not in the zoo: a visitor need not know where it is."""

MAX_SHOWN = 1280
"""Longer side in pixels of what a browser is sent to show; files for download have the image's own size."""


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for at once.

    Attributes:
        files: Number of files.
        file_bytes: Size of a file.
        pixels: Pixels of an image.
        seconds: Time after which no further image or frame of a request is begun.
        video_seconds: Length of a video; the rest of it is left out.
        waiting: Requests that wait for their turn; others are told to come back later.
    """

    files: int = 20
    file_bytes: int = 100_000_000
    pixels: int = 50_000_000
    seconds: float = 120
    video_seconds: float = 60
    waiting: int = 20


class Shown(NamedTuple):
    """The answer to one request.

    Attributes:
        value: What serve.js draws, see there.
        files: For download.
    """

    value: dict[str, Any]
    files: list[Path]


def choices(own: str | None = None) -> dict[str, str]:
    """The models to choose from, with what is said of each: those that are here first, then the others by dataset.

    >>> list(choices())[0]
    'isanet_nano_toystreets'

    Args:
        own: A model that is not in the zoo, put first as `OWN`: a folder, a file or org/name.
    """
    here = {} if own is None else {OWN: f"{shortened(Path(own).name, 80)} · your own"}
    absent: dict[str, str] = {}
    for weights in (each for group in by_dataset(load_manifest().values()).values() for each in group):
        is_here = weights.packaged or cache.cached_file(weights.name) is not None
        (here if is_here else absent)[weights.name] = _described(weights, is_here=is_here)
    return {**here, **absent}


def _described(weights: Weights, *, is_here: bool) -> str:
    where = "download by hand" if by_hand(weights) else "to download"
    facts = [
        weights.name,
        f"mIoU {100 * weights.metrics['miou']:.1f}",
        f"{weights.payload / 1e6:,.0f} MB",
        "packaged" if weights.packaged else "cached" if is_here else where,
        *([] if weights.commercial else ["academic use only"]),
    ]
    return " · ".join(facts)


def segment_files(
    segmenter: Segmenter,
    paths: Sequence[Path],
    folder: Path,
    limits: Limits,
    progress: Callable[[int, int | None, str], None] = lambda done, total, unit: None,
) -> Shown:
    """Segment the files of one request, and write what is offered for download.

    A file that cannot be read is named in the answer, and the others are segmented.

    >>> shown = segment_files(segmenter, [Path("street.jpg")], Path("outputs"), Limits())
    >>> [path.name for path in shown.files]
    ['street_labels.png', 'street_overlay.png', 'coco.json', 'areas.csv']

    Args:
        segmenter: Its `max_pixels` is the limit of an image.
        paths: The files, as they were uploaded.
        folder: Where to write; made if it is missing.
        limits: Of the request.
        progress: Called with how many are done, how many there are if that is known, and of what, before each.
    """
    if not paths:
        return failed("choose an image first")
    if len(paths) > limits.files:
        return failed(f"{len(paths)} files are too many at once: at most {limits.files}")
    folder.mkdir(parents=True, exist_ok=True)
    plan = dict(zip(unique_names([path.name for path in paths]), paths, strict=True))
    shown: list[dict[str, Any]] = []
    errors: list[str] = []
    files: list[Path] = []
    common = [folder / "coco.json", folder / "areas.csv"]
    deadline = time.monotonic() + limits.seconds
    with coco_file(common[0], plan) as coco, csv_file(common[1], segmenter.classes) as table:
        for number, (name, path) in enumerate(plan.items()):
            progress(number, len(plan), "files")
            if number and time.monotonic() > deadline:
                errors.append(f"stopped after {limits.seconds:g} s: {number} of {plural(len(plan), 'file')} segmented")
                break
            try:
                if is_video(path):
                    video, made, notes = _segment_video(segmenter, path, folder / name, limits, deadline, progress)
                    shown.append(video)
                    files += made
                    errors += notes
                    continue
                begun = time.monotonic()
                result = segmenter(path, confidence=True)
                seconds = time.monotonic() - begun
                outputs = {kind: folder / f"{name.stem}_{kind}.png" for kind in ("labels", "overlay")}
                write_outputs(result, outputs)
            except (IsanetError, ValueError, MemoryError) as error:
                errors.append(message(error, path, name))
                continue
            for file in (coco, table):
                file.add(file.part(number + 1, name, result))
            files += outputs.values()
            shown.append(view(result, name.name, seconds))
    if any("pixels" in each for each in shown):
        files += common
    if len(shown) > 1:
        files = [_zipped(files, folder / "segmented.zip")]
    model = shortened(segmenter.model.provenance.get("name", "your own model"), 80)
    how = f"{model} on {segmenter.device} in {segmenter.precision} by {segmenter.runtime}"
    return Shown({"images": shown, "errors": errors, "how": how}, files)


def _segment_video(
    segmenter: Segmenter,
    path: Path,
    output: Path,
    limits: Limits,
    deadline: float,
    progress: Callable[[int, int | None, str], None],
) -> tuple[dict[str, Any], list[Path], list[str]]:
    """Segment a video; returns it as serve.js draws it, its files, and what was left out of it."""
    files = [output.with_name(f"{output.stem}_{end}") for end in ("overlay.mp4", "labels.mkv", "areas.csv")]
    info, begun, notes = video_info(path), time.monotonic(), []
    if info.duration is not None and info.duration > limits.video_seconds:
        notes.append(f"{output.name}: only its first {limits.video_seconds:g} s are segmented")
    totals, first = np.zeros(len(segmenter.classes)), list[Segmentation]()
    number = 0

    def results() -> Iterator[Segmentation]:
        nonlocal number
        decoded = frames(path, end=limits.video_seconds, max_pixels=limits.pixels)
        with output_stream(files[2]) as write:
            write(csv_line(["seconds", *segmenter.classes]).encode())
            for number, result in enumerate(segmenter.stream(decoded), 1):
                progress(number - 1, info.num_frames, "frames")
                first.extend([result] * (number == 1))
                areas, at = result.areas(), result.time or 0.0
                shares = [areas.get(name, 0.0) for name in segmenter.classes]
                totals[:] += shares
                write(csv_line([round(at, 6), *shares]).encode())
                yield result
                if time.monotonic() > deadline:
                    notes.append(f"{output.name}: stopped after {limits.seconds:g} s, at {at:.1f} s of it")
                    return

    write_video(results(), *files[:2])
    height, width = first[0].labels.shape
    shown = {
        "name": shortened(output.name, 80),
        "size": [width, height],
        "jpeg": _jpeg(Image.fromarray(first[0].image)),
        "video": str(files[0]),
        "frames": number,
        "classes": _classes(first[0], totals / number),
        "seconds": time.monotonic() - begun,
    }
    return shown, files, notes


def failed(*errors: str) -> Shown:
    """The answer where nothing could be segmented."""
    return Shown({"images": [], "errors": list(errors), "how": ""}, [])


def message(error: Exception, path: Path | None = None, name: Path | None = None) -> str:
    """An error in one line; a file is called by its name alone, not by where the server keeps it."""
    text = str(error) or type(error).__name__
    if path is not None and name is not None:
        text = text.replace(str(path), name.name)
    for advice in ("; pass ", ", or raise max_pixels"):  # for who calls isanet, not for a visitor
        text = text.partition(advice)[0]
    return shortened(text, 500)


def unique_names(names: Sequence[str]) -> list[Path]:
    """Names whose outputs differ, without control characters: `a.png`, `a_2.jpg`."""
    taken: set[str] = set()
    unique = []
    for name in names:
        cleaned = Path(without_controls(Path(name).name, "_") or "image")
        stem, number = cleaned.stem[:80], 1
        while (candidate := stem if number == 1 else f"{stem}_{number}").casefold() in taken:
            number += 1
        taken.add(candidate.casefold())
        unique.append(Path(candidate + cleaned.suffix[:10]))
    return unique


def view(result: Segmentation, name: str, seconds: float) -> dict[str, Any]:
    """One result as serve.js draws it: the image, a class and a confidence for each pixel shown, and the classes.

    Args:
        result: With confidence.
        name: Of the image.
        seconds: How long it took.
    """
    height, width = result.labels.shape
    image = Image.fromarray(result.image)
    image.thumbnail((MAX_SHOWN, MAX_SHOWN))
    rows = (np.arange(image.height) + 0.5) * height // image.height
    columns = (np.arange(image.width) + 0.5) * width // image.width
    nearest = np.ix_(rows.astype(int), columns.astype(int))
    areas = result.areas()
    shares = np.array([areas.get(each, 0.0) for each in result.classes])
    classes = _classes(result, shares)
    rank = np.zeros(len(shares), np.uint16)
    rank[[each["index"] for each in classes]] = np.arange(len(classes))
    confidence = np.ones((height, width), np.float32) if result.confidence is None else result.confidence
    pixels = rank[result.labels[nearest]].astype("<u2").tobytes()
    pixels += (100 * confidence[nearest]).round().astype(np.uint8).tobytes()
    return {
        "name": shortened(name, 80),
        "size": [width, height],
        "shown": [image.width, image.height],
        "jpeg": _jpeg(image),
        "pixels": base64.b64encode(zlib.compress(pixels, 6)).decode(),
        "classes": classes,
        "confidence": float(confidence.mean()),
        "seconds": seconds,
    }


def _classes(result: Segmentation, shares: NDArray[np.float64]) -> list[dict[str, Any]]:
    """The classes that occur, largest first."""
    return [
        {
            "index": int(index),
            "name": shortened(result.classes[index], 60),
            "color": list(result.palette[index]),
            "share": float(shares[index]),
            "painted": result.classes[index].lower() not in NOT_PAINTED,
        }
        for index in np.argsort(-shares, kind="stable")
        if shares[index]
    ]


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((MAX_SHOWN, MAX_SHOWN))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def _zipped(files: Sequence[Path], target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in files:
            archive.write(file, file.name)
            if file.suffix != ".mp4":  # which is played
                file.unlink()
    return target
