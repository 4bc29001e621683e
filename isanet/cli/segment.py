"""Segmenting images: segment."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet._files import output_errors
from isanet._progress import progress_bar
from isanet._text import MAX_LINE, plural, shortened
from isanet.cli.options import RUNNABLE, VALUE_RANGE, AddCommand, add_inference_options, add_output_options, value_range
from isanet.cli.printing import error_text, in_options
from isanet.cli.video import add_video_options, check_video_options, segment_videos, video_kinds
from isanet.errors import DownloadError, ImageError, IntegrityError, IsanetError, OutputError
from isanet.inference.outputs import (
    SUFFIXES,
    CommonFile,
    claim,
    coco_file,
    csv_file,
    find_images,
    in_shard,
    is_video,
    listed_images,
    missing_outputs,
    plan_outputs,
    shown,
    without_earlier,
    write_outputs,
)
from isanet.labels import custom_space, official_name

if TYPE_CHECKING:
    from isanet.images.reading import RGBImage
    from isanet.inference.segmentation import Segmentation
    from isanet.inference.segmenter import Segmenter

LEGENDS: dict[str, bool | str] = {"areas": True, "fixed": "fixed", "none": False}
"""Legends of overlays, as `Segmentation.overlay` takes them."""

MAX_PENDING_WRITES = 4
"""Most images whose outputs are being written or wait for a thread that writes them."""

MAX_PENDING_PIXELS = 1 << 26
"""Most pixels of these images together; a larger image is written before the next is segmented."""

CALIBRATION_STEP = 30
"""Of a video, each so many-th frame is for int8's calibration."""

_Written = tuple[str, list[Any]]
"""Of one image: its largest classes in words, and its parts of the common files."""


@dataclass
class _Outcome:
    """Of the images of a plan: how many were segmented, were done or taken by another process, and what failed."""

    num_done: int = 0
    num_kept: int = 0
    num_left: int = 0
    failures: dict[Path | str, str] = field(default_factory=dict)


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    segment = add_command("segment", _segment, "segment images and videos")
    segment.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files (videos too), folders, patterns or addresses (https)"
    )
    listed = "more images: a text file with a path or address a line, or - for standard input"
    segment.add_argument("--from", dest="lists", action="append", default=[], metavar="FILE", help=listed)
    recursive = "take all folders in a folder too; the outputs are in folders of the same names"
    segment.add_argument("--recursive", action="store_true", help=recursive)
    shard = "only the I-th of N parts of the images, which depend on their names alone: 3/100"
    segment.add_argument("--shard", type=_shard, metavar="I/N", help=shard)
    segment.add_argument("--model", required=True, help=RUNNABLE)
    add_output_options(segment, "segmented", force="replace existing outputs")
    segment.add_argument("--overlay", action="store_true", help="image with colored classes and a legend (default)")
    legend = (
        "of overlays: areas of the classes present, fixed (all classes: overlays of one size), none; default: areas"
    )
    segment.add_argument("--legend", default="areas", choices=LEGENDS, help=legend)
    segment.add_argument("--labels", action="store_true", help="class indices, as a palette PNG")
    segment.add_argument("--areas", action="store_true", help="share of each class, as JSON")
    ids = "official ids as NAME.png, as the benchmark's evaluation server expects them"
    segment.add_argument("--ids", action="store_true", help=ids)
    segment.add_argument("--value-range", type=value_range, metavar="BLACK,WHITE", help=VALUE_RANGE)
    mask = "the pixels of a class, as a black-and-white PNG; repeatable"
    segment.add_argument("--mask", action="append", default=[], metavar="CLASS", help=mask)
    coco = "one COCO file for all images: a run-length encoded annotation for each class in an image"
    segment.add_argument("--coco", type=Path, metavar="FILE.json", help=coco)
    table = "one table for all images: a row for each, with the share of each class, 0 to 1"
    segment.add_argument("--csv", type=Path, metavar="FILE.csv", help=table)
    errors = "append each failure, as a line of JSON"
    segment.add_argument("--errors", type=Path, metavar="FILE.jsonl", help=errors)
    add_video_options(segment)
    add_inference_options(segment, precision="auto", runtime="auto", int8=True)


def _shard(text: str) -> tuple[int, int]:
    """`3/100`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 3/100")
    if not 1 <= int(number) <= int(count):
        raise argparse.ArgumentTypeError(f"{text} is not one of the parts 1/{count} to {count}/{count}")
    return int(number), int(count)


def _segment(options: argparse.Namespace) -> int:
    arguments = options.images + [line for source in options.lists for line in listed_images(source)]
    if not (arguments or options.lists):
        options.wrong_call("no images: name files, folders, patterns or addresses, or give a list by --from")
    images = find_images(arguments, recursive=options.recursive, output=options.output)
    files = [path for path in (options.coco, options.csv) if path is not None]
    kinds = [kind for kind in SUFFIXES if getattr(options, kind)]
    kinds += dict.fromkeys(f"mask:{name}" for name in options.mask)
    if not kinds and not files:
        kinds = ["overlay"]
    if not options.force:
        images = without_earlier(images, options.output, kinds)
    if options.shard is not None:
        images = {image: place for image, place in images.items() if in_shard(image, place, *options.shard)}
    videos = {image: place for image, place in images.items() if is_video(image)}
    if videos:
        check_video_options(options)
    stills = {image: place for image, place in images.items() if image not in videos}
    plan, kept, failures = plan_outputs(stills, options.output, kinds, overwrite=options.force, files=files)
    video_plan = plan_outputs(videos, options.output, video_kinds(options), overwrite=options.force)
    kept += video_plan.kept
    failures |= video_plan.failures
    report = _failures_file(options.errors)
    for image, reason in failures.items():
        print(shortened(f"isanet: {shown(image)}: {in_options(reason)}", MAX_LINE), file=sys.stderr)
        report(image, reason)
    outcome = _Outcome()
    if plan or video_plan.outputs:
        segmenter = _segmenter(options, {**plan, **video_plan.outputs})
    if plan:
        with ExitStack() as stack:
            common = []
            if options.coco is not None:
                common.append(stack.enter_context(coco_file(options.coco, plan)))
            if options.csv is not None:
                common.append(stack.enter_context(csv_file(options.csv, segmenter.model.classes)))
            claims = not (options.force or files)
            write = partial(_write, legend=LEGENDS[options.legend])
            outcome = _segment_all(segmenter, plan, common, options.batch_size, write, report, claims=claims)
        failures |= outcome.failures
        for path in files:
            print(shortened(f"{path}: {plural(outcome.num_done, 'image')}", MAX_LINE))
    if video_plan.outputs:
        num_done, num_kept, num_left, failed = segment_videos(options, segmenter, video_plan.outputs)
        outcome.num_done, outcome.num_kept = outcome.num_done + num_done, outcome.num_kept + num_kept
        outcome.num_left += num_left
        failures |= failed
        for video, reason in failed.items():
            report(video, reason)
    if failures or not (options.quiet or outcome.num_done == len(images) == 1):
        print(f"isanet: {_summary(outcome, len(kept), len(failures))}", file=sys.stderr)
    return 1 if failures else 0


def _failures_file(path: Path | None) -> Callable[[Path | str, str], None]:
    """Appends a failure to a file; one that is made at once, so that a wrong name is known before the first image.

    Raises:
        OutputError: The file cannot be written, or has another ending than .jsonl and may be something else.
    """
    if path is None:
        return lambda image, reason: None
    if path.suffix.lower() != ".jsonl":
        raise OutputError(f"failures are appended to a file of JSON lines; give --errors a name in .jsonl, got {path}")

    def append(line: str) -> None:
        with output_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line)

    append("")
    return lambda image, reason: append(json.dumps({"image": shown(image), "error": reason}) + "\n")


def _summary(outcome: _Outcome, num_kept: int, num_failed: int) -> str:
    """`39 segmented, 1 kept, 1 failed`, without what is none."""
    kept = num_kept + outcome.num_kept
    parts = [f"{outcome.num_done:,} segmented"] if outcome.num_done or not (kept or num_failed) else []
    parts += [f"{kept:,} kept (their outputs exist; --force replaces them)"] if kept else []
    parts += [f"{outcome.num_left:,} left to another process"] if outcome.num_left else []
    return ", ".join(parts + ([f"{num_failed:,} failed"] if num_failed else []))


def _segmenter(options: argparse.Namespace, plan: Mapping[Path | str, Mapping[str, Path]]) -> Segmenter:
    """The segmenter, and the folder for its outputs, which is made before a model is fetched in vain."""
    from isanet.inference.segmenter import Segmenter

    needed = any(plan.values())
    made = needed and not os.path.lexists(options.output)  # False also for names too long
    try:
        if needed:
            options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {options.output}: {error.strerror}; use another --output") from error
    segmenter = Segmenter(
        options.model,
        device=options.device,
        precision=options.precision,
        runtime=options.runtime,
        protocol=options.protocol,
        value_range=options.value_range,
        calibration=_readable(plan, options.value_range) if options.precision == "int8" else (),
    )
    model = segmenter.model
    try:
        if options.ids and official_name(model.label_space) is None:
            raise ValueError(f"{options.model} has its own classes, without official ids; use --labels")
        for name in options.mask:
            custom_space(model.classes, model.palette, model.label_space or "custom").index(name)
    except ValueError:
        if made:
            options.output.rmdir()
        raise
    return segmenter


def _readable(images: Iterable[Path | str], value_range: tuple[float, float] | None) -> Iterator[RGBImage]:
    """The images that can be read; the others are reported when their turn comes."""
    from isanet.images.reading import MAX_PIXELS
    from isanet.inference.decoding import frames
    from isanet.inference.sources import read_source

    for image in images:
        with suppress(ImageError, DownloadError, IntegrityError):
            if is_video(image):
                yield from (frame.image for frame in frames(image, every=CALIBRATION_STEP))
                continue
            yield read_source(image, max_pixels=MAX_PIXELS, value_range=value_range)


def _segment_all(
    segmenter: Segmenter,
    plan: Mapping[Path | str, Mapping[str, Path]],
    common: Sequence[CommonFile],
    batch_size: int,
    write: Callable[[Segmentation, Mapping[str, Path]], str],
    report: Callable[[Path | str, str], None],
    *,
    claims: bool,
) -> _Outcome:
    """Segments images while the outputs of earlier ones are written.

    One line is printed for each image, in the order of the images, whichever is written first. With `claims`, an image
    that another process is at, or has done since, is left out.
    """
    outcome = _Outcome()
    started: deque[Path | str] = deque()  # results and failures come in this order
    held: dict[Path | str, ExitStack] = {}
    pending: deque[tuple[Path | str, Future[_Written], int]] = deque()  # with the image's pixels
    numbers = {image: number for number, image in enumerate(plan, 1)}

    def images() -> Iterator[Path | str]:
        """Those that this process has claimed, each when its turn comes."""
        for image, outputs in plan.items():
            with ExitStack() as stack:
                free = not claims or stack.enter_context(claim(outputs))
                if not free or (claims and not missing_outputs(outputs)):
                    outcome.num_left += not free
                    outcome.num_kept += free
                    bar.update()
                    continue
                held[image] = stack.pop_all()
            started.append(image)
            yield image

    def finish(result: Segmentation, image: Path | str) -> _Written:
        try:
            parts = [file.part(numbers[image], image, result) for file in common]
        except MemoryError as error:
            raise OutputError(
                f"there is not enough memory for the outputs of {shown(image)}; make it smaller"
            ) from error
        return write(result, plan[image]), parts

    def report_first() -> None:
        image, future, _ = pending.popleft()
        try:
            line, parts = future.result()
        except IsanetError as error:
            outcome.failures[image] = error_text(error)
            bar.write(f"isanet: {outcome.failures[image]}", file=sys.stderr)
            report(image, outcome.failures[image])
        else:
            outcome.num_done += 1
            for file, part in zip(common, parts, strict=True):
                file.add(part)
            outputs = f" -> {', '.join(map(str, plan[image].values()))}" if plan[image] else ""
            bar.write(shortened(f"{shown(image)}{outputs}: {line}", MAX_LINE), file=sys.stdout)
        finally:
            held.pop(image).close()
        bar.update()

    def add(image: Path | str, future: Future[_Written], pixels: int) -> None:
        pending.append((image, future, pixels))
        while pending and (
            len(pending) > MAX_PENDING_WRITES
            or sum(pixels for *_, pixels in pending) > MAX_PENDING_PIXELS
            or pending[0][1].done()
        ):
            report_first()

    def add_failure(_: object, error: IsanetError) -> None:
        future: Future[_Written] = Future()
        future.set_exception(error)
        add(started.popleft(), future, 0)

    with (
        progress_bar(total=len(plan), unit="image", show=None if len(plan) > 1 else False) as bar,
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="isanet-write") as threads,
    ):
        try:
            for result in segmenter.stream(images(), batch_size=batch_size, on_error=add_failure):
                image = started.popleft()
                add(image, threads.submit(finish, result, image), result.labels.size)
        finally:  # after an error or Ctrl-C too: what was segmented before is written and reported
            while pending:
                report_first()
            for stack in held.values():
                stack.close()
    return outcome


def _write(result: Segmentation, outputs: Mapping[str, Path], legend: bool | str) -> str:
    """Writes the outputs of one image; returns its largest classes in words."""
    write_outputs(result, outputs, legend)
    return ", ".join(f"{shortened(name)} {100 * share:.0f} %" for name, share in list(result.areas().items())[:4])
