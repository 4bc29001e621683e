"""Segmenting videos, for `isanet segment`."""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from isanet._progress import progress_bar
from isanet._text import MAX_LINE, duration, plural, shortened
from isanet.cli.options import positive_int
from isanet.cli.printing import error_text
from isanet.errors import IsanetError
from isanet.inference.outputs import claim, missing_outputs

if TYPE_CHECKING:
    from isanet.inference.segmentation import Segmentation
    from isanet.inference.segmenter import Segmenter

SECONDS_PER_LINE = 10
"""Between two lines of progress where there is no terminal."""

log = logging.getLogger("isanet")


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `segment` that are about videos alone."""
    add = parser.add_argument_group("videos").add_argument
    add("--every", type=positive_int, default=1, metavar="N", help="each N-th frame; the others are left out")
    add("--start", type=_seconds, default=0.0, metavar="TIME", help="from here on: seconds, or 1:30; default: 0")
    add("--end", type=_seconds, default=math.inf, metavar="TIME", help="up to here; default: the end")
    pngs = "of videos: a lossless video (gray levels are class indices), or a folder of PNGs; default: video"
    add("--labels-as", default="video", choices=("video", "png"), help=pngs)


def _seconds(text: str) -> float:
    """`90`, `1:30`, `0:01:30.5`."""
    if not re.fullmatch(r"(?:\d+:){0,2}\d+(?:\.\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 1:30 or 0:01:30.5")
    return sum(float(part) * 60.0**place for place, part in enumerate(reversed(text.split(":"))))


def check_video_options(options: argparse.Namespace) -> None:
    """Ends the command where options ask for what videos do not have.

    Raises:
        ValueError: PyAV is not installed.
    """
    from isanet.inference.runtimes.packages import check_installed

    check_installed("av", "video")
    for name in ("areas", "ids", "mask", "coco", "csv", "value_range"):
        if getattr(options, name):
            options.wrong_call(
                f"--{name.replace('_', '-')} is for images; a video has --overlay and --labels "
                "(in Python, segmenter.stream(...) gives the result of each frame)"
            )
    if options.start >= options.end:
        options.wrong_call(f"--end {options.end:g} is not after --start {options.start:g}")


def video_kinds(options: argparse.Namespace) -> list[str]:
    """Kinds of outputs of a video, as `isanet.inference.outputs.plan_outputs` takes them."""
    labels = ["labels_video" if options.labels_as == "video" else "labels_pngs"] * options.labels
    return ["overlay_video"] * (options.overlay or not labels) + labels


def segment_videos(
    options: argparse.Namespace, segmenter: Segmenter, plan: Mapping[Path | str, Mapping[str, Path]]
) -> tuple[int, int, int, dict[Path | str, str]]:
    """Segments videos, one after the other.

    Returns:
        How many were segmented, had been by another process meanwhile, or are left to one; and what failed.
    """
    done, kept, left, failures = 0, 0, 0, dict[Path | str, str]()
    for path, outputs in plan.items():
        files = {kind: file.parent if kind == "labels_pngs" else file for kind, file in outputs.items()}
        with claim(files) as free:
            if not free or not (options.force or missing_outputs(outputs)):
                left, kept = left + (not free), kept + free
                continue
            try:
                print(shortened(_segment(options, segmenter, Path(path), outputs), MAX_LINE))
                done += 1
            except IsanetError as error:
                failures[path] = error_text(error)
                print(f"isanet: {failures[path]}", file=sys.stderr)
    return done, kept, left, failures


def _segment(options: argparse.Namespace, segmenter: Segmenter, path: Path, outputs: Mapping[str, Path]) -> str:
    """Segments one video; returns what is said of it."""
    from isanet.inference.video import frames, video_info, write_video

    info = video_info(path)
    count = None
    if info.num_frames is not None and info.duration:
        share = (min(options.end, info.duration) - options.start) / info.duration
        count = max(1, math.ceil(info.num_frames * share / options.every))
    results = segmenter.stream(
        frames(path, every=options.every, start=options.start, end=options.end, max_pixels=segmenter.max_pixels),
        batch_size=options.batch_size,
    )
    begin = monotonic()
    labels = outputs.get("labels_video") or (outputs["labels_pngs"].parent if "labels_pngs" in outputs else None)
    done = write_video(
        _progress(results, path, count),
        outputs.get("overlay_video"),
        labels,
        start=options.start,
        legend=options.legend != "none",
    )
    taken = monotonic() - begin
    written = ", ".join(str(each) for each in (outputs.get("overlay_video"), labels) if each is not None)
    return f"{path} -> {written}: {plural(done, 'frame')} in {duration(taken)}, {done / taken:.1f} frames/s"


def _progress(results: Iterable[Segmentation], path: Path, count: int | None) -> Iterator[Segmentation]:
    """The results, with a bar on a terminal, else a line from time to time: frames per second and the time left."""
    begin = told = monotonic()
    bar = progress_bar(results, show=None, total=count, unit="frame", desc=shortened(path.name, 30))
    for number, result in enumerate(bar, 1):
        yield result
        if bar.disable and (now := monotonic()) - told >= SECONDS_PER_LINE:
            told, rate = now, number / (now - begin)
            left = f" of about {count:,}, {duration(max(0, count - number) / rate)} left" if count else ""
            log.info("%s: %s frames%s, %.1f frames/s", path, f"{number:,}", left, rate)
