"""Segmenting images: segment."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet._text import clean
from isanet.cli.options import MODEL, AddCommand, add_inference_options, add_output_options
from isanet.cli.printing import error_text
from isanet.errors import ImageError, IsanetError, OutputError
from isanet.inference.outputs import SUFFIXES, find_images, plan_outputs, write_outputs
from isanet.labels import official_name

if TYPE_CHECKING:
    from isanet.images.reading import RGBImage
    from isanet.inference.segmentation import Segmentation
    from isanet.inference.segmenter import Segmenter

MAX_PENDING_WRITES = 4
"""Most images whose outputs are being written or wait for a thread that writes them."""


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    segment = add_command("segment", _segment, "segment images")
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or glob patterns")
    segment.add_argument("--model", required=True, help=MODEL)
    add_output_options(segment, "segmented", force="replace existing outputs")
    segment.add_argument("--overlay", action="store_true", help="image with colored classes and a legend (default)")
    segment.add_argument("--labels", action="store_true", help="class indices, as a palette PNG")
    segment.add_argument("--areas", action="store_true", help="share of each class, as JSON")
    ids = "official ids as NAME.png, as the benchmark's evaluation server expects them"
    segment.add_argument("--ids", action="store_true", help=ids)
    add_inference_options(segment, precision="auto", int8=True)


def _segment(options: argparse.Namespace) -> int:
    images = find_images(options.images)
    kinds = [kind for kind in SUFFIXES if getattr(options, kind)] or ["overlay"]
    plan, failures = plan_outputs(images, options.output, kinds, overwrite=options.force)
    for path, reason in failures.items():
        print(clean(f"isanet: {path}: {reason}"), file=sys.stderr)
    if plan:
        segmenter = _segmenter(options, plan)
        failures |= _segment_all(segmenter, plan, options.batch_size)
    if failures:
        print(f"isanet: {len(failures)} of {len(images)} images were not segmented", file=sys.stderr)
    return 1 if failures else 0


def _segmenter(options: argparse.Namespace, images: Iterable[Path]) -> Segmenter:
    """The segmenter, and the folder for its outputs, which is made before a model is fetched in vain."""
    from isanet.inference.segmenter import Segmenter

    made = not options.output.exists()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {options.output}: {error.strerror}; use another --output") from error
    segmenter = Segmenter(
        options.model,
        device=options.device,
        precision=options.precision,
        protocol=options.protocol,
        calibration=_readable(images) if options.precision == "int8" else (),
    )
    if options.ids and official_name(segmenter.model.label_space) is None:
        if made:
            options.output.rmdir()
        raise ValueError(f"{options.model} has its own classes, without official ids; use --labels")
    return segmenter


def _readable(paths: Iterable[Path]) -> Iterator[RGBImage]:
    """The images that can be read; the others are reported when their turn comes."""
    from isanet.images.reading import read_image

    for path in paths:
        with suppress(ImageError):
            yield read_image(path)


def _segment_all(segmenter: Segmenter, plan: Mapping[Path, Mapping[str, Path]], batch_size: int) -> dict[Path, str]:
    """Segments images while the outputs of earlier ones are written; gives the failures."""
    from tqdm import tqdm

    # None: no bar unless standard error is a terminal
    with (
        tqdm(total=len(plan), unit="image", disable=None if len(plan) > 1 else True) as bar,
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="isanet-write") as threads,
    ):
        reporter = _Reporter(plan, bar)
        try:
            for result in segmenter.stream(list(plan), batch_size=batch_size, on_error=reporter.add_failure):
                assert result.path is not None
                reporter.add(result.path, threads.submit(_write, result, plan[result.path]))
        finally:  # after an error or Ctrl-C too: what was segmented before is written and reported
            reporter.finish()
    return reporter.failures


class _Reporter:
    """Reports one line for each image, in the order in which images are added, whichever is written first."""

    def __init__(self, plan: Mapping[Path, Mapping[str, Path]], bar: Any) -> None:
        self.failures: dict[Path, str] = {}
        self._plan, self._bar = plan, bar
        self._pending: deque[tuple[Path, Future[str]]] = deque()

    def add(self, path: Path, future: Future[str]) -> None:
        """Adds an image whose summary is the future's result; waits while too many are pending."""
        self._pending.append((path, future))
        while self._pending and (len(self._pending) > MAX_PENDING_WRITES or self._pending[0][1].done()):
            self._report_first()

    def add_failure(self, source: object, error: IsanetError) -> None:
        """Adds an image that could not be segmented."""
        future: Future[str] = Future()
        future.set_exception(error)
        self.add(Path(str(source)), future)

    def finish(self) -> None:
        """Waits for all pending images."""
        while self._pending:
            self._report_first()

    def _report_first(self) -> None:
        from tqdm import tqdm

        path, future = self._pending.popleft()
        try:
            line = f"{path} -> {', '.join(map(str, self._plan[path].values()))}: {future.result()}"
            tqdm.write(clean(line), file=sys.stdout)
        except IsanetError as error:
            self.failures[path] = error_text(error)
            tqdm.write(f"isanet: {self.failures[path]}", file=sys.stderr)
        self._bar.update()


def _write(result: Segmentation, outputs: Mapping[str, Path]) -> str:
    """Writes the outputs of one image; gives its largest classes in words."""
    write_outputs(result, outputs)
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(result.areas().items())[:4])
