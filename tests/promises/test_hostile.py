"""What may go wrong, and what then happens: the promises of data/HOSTILE.md, each provoked for real.

`TABLE` has the sentences of that document in its order, and below each how it is provoked (see provocations.py), what
comes of it, and what the message names. After every call the same is checked: earlier files are as they were; a call
that failed left no new file, one that succeeded no partial file; and it ended in time. What is promised in the last
paragraph is provoked where it is kept: `ELSEWHERE` names the tests.
"""

from __future__ import annotations

import ast
import email.utils
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet.model import ISANet
from isanet.weights import cache, convert
from tests.helpers import hostile, replicas, tiny_zoo
from tests.helpers.file_server import FileServer, cut, html, redirect, reset, serving, status
from tests.helpers.hostile import archive, integers, tensor
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_zoo import FILE_NAME, NAME
from tests.promises.provocations import (
    ADDRESS,
    BIAS,
    BOUND,
    CLASSES,
    OTHER_ADDRESS,
    VARIANCE,
    Provocation,
    World,
    all_wrong,
    answers,
    asked_to_wait,
    changed_object,
    command,
    damaged,
    eight_at_once,
    empty_set,
    endless,
    evaluated,
    existing_output,
    flip,
    flipped,
    full_disk,
    huge_png,
    in_colors,
    input_as_output,
    interrupted,
    killed,
    kinds,
    limited_files,
    listed,
    locked,
    manifest_with,
    never_better,
    next_address,
    noise,
    not_resumed,
    offline_and_cached,
    offline_and_not,
    one_bad_among_many,
    opened,
    outputs_whole,
    own_folder,
    planted,
    read_only_cache,
    released_with,
    resumed,
    saved_as,
    segmented,
    stitched,
    swapped_after_hashing,
    token_to_another_host,
    untrusted,
    with_tensors,
    zeros_unpacked,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, users and limits as POSIX has them")

DOCUMENT = Path(__file__).parents[1] / "data" / "HOSTILE.md"


@dataclass(frozen=True)
class Row:
    provoke: Provocation
    error: type[BaseException] | None = None
    says: tuple[str, ...] = ()  # {url}, {tmp} and {home} are those of the world


def row(provoke: Provocation, error: type[BaseException] | None = None, *says: str) -> Row:
    assert (error is None) == (not says), "an error must name the place"
    return Row(provoke, error, says)


# --- the table ----------------------------------------------------------------------------------------------

TABLE: dict[str, dict[str, Row]] = {
    # Network
    "Body cut short or reset: resume, then `NetworkError`.": {
        "cut, then reset": row(resumed),
        "cut at every try": row(
            answers(*[cut(1000)] * 9), isanet.NetworkError, "{url}", "gave up after 3 attempts", "ISANET_MIRROR"
        ),
        "reset at every try": row(answers(*[reset(1000)] * 9), isanet.NetworkError, "{url}", "3 attempts", "{home}"),
    },
    "Resume only against the same object (`If-Range`); a 200, a wrong range, a 416 or a changed object starts again "
    "from zero, and the whole file is hashed either way.": {
        "a 200": row(not_resumed(serving(ranges=False))),
        "a wrong range": row(not_resumed(serving(shift=7))),
        "another length": row(not_resumed(serving(grow=7))),
        "a 416": row(not_resumed(status(416))),
        "a changed object": row(changed_object),
        "other bytes under the old tag": row(stitched, isanet.IntegrityError, "{url}", "wrong bytes", "expected"),
    },
    "Wrong bytes of the right size, HTML with status 200 (a parked domain, a captive portal): `IntegrityError`, next "
    "address.": {
        "a flipped bit": row(flipped, isanet.IntegrityError, "{url}", "wrong bytes", "expected", "ISANET_MIRROR"),
        "HTML": row(answers(html()), isanet.IntegrityError, "{url}", "an HTML page", "{home}"),
        "HTML in disguise": row(
            answers(html("application/octet-stream")), isanet.IntegrityError, "{url}", "an HTML page", "{home}"
        ),
        "next address": row(next_address(html())),
    },
    "More bytes than expected: stop, never fill the disk.": {
        "without end": row(endless, isanet.IntegrityError, "{url}", "sends more than the", "stopped"),
        "announced": row(
            answers(serving(announce=10**12, limit=0)), isanet.IntegrityError, "{url}", "announces", "allowed"
        ),
    },
    "403, 404, 410: next address; all exhausted: `MirrorsExhaustedError` listing each cause.": {
        **{str(code): row(next_address(status(code))) for code in (403, 404, 410)},
        "all exhausted": row(
            all_wrong(status(403), status(410)), isanet.MirrorsExhaustedError,
            "{url}: answered 403", f"{OTHER_ADDRESS}: answered 410", "ISANET_MIRROR", "{home}",
        ),
    },
    "429 and 5xx: backoff that obeys `Retry-After` (seconds or date, garbage or huge ignored), under one deadline.": {
        "seconds": row(asked_to_wait("2", 1.9, BOUND)),
        "a date": row(asked_to_wait(lambda: email.utils.formatdate(time.time() + 3, usegmt=True), 1, BOUND)),
        "garbage": row(asked_to_wait("soon", 0, BOUND)),
        "huge": row(asked_to_wait("999999999", 0, BOUND)),
        "5xx, then well": row(answers(status(500), status(503))),
        "5xx at every try": row(answers(*[status(502)] * 9), isanet.NetworkError, "{url}", "answered 502", "{home}"),
        "one deadline": row(never_better, isanet.MirrorsExhaustedError, "{url}", "deadline of 1 s", "{home}"),
    },
    "A server that accepts and stays silent, or trickles: bounded `NetworkError`.": {
        "silent": row(answers(*["silent"] * 9, read=0.5), isanet.NetworkError, "{url}", "timed out", "3 attempts"),
        "trickles": row(answers(*["trickle"] * 9), isanet.NetworkError, "{url}", "slower than", "3 attempts"),
        "trickles headers": row(
            answers(*["trickling headers"] * 9), isanet.NetworkError, "{url}", "slower than", "3 attempts"
        ),
    },
    "Redirect to plain http or file: refused; the token never follows to another host.": {
        "to http": row(answers(redirect("http://127.0.0.1:1/x.pth")), isanet.NetworkError, "{url}", "refused", "https"),
        "to file": row(answers(redirect("file:///etc/passwd")), isanet.NetworkError, "{url}", "refused", "https"),
        "the token": row(token_to_another_host),
    },
    "Bad certificate: refused, never downgraded.": {
        "self-signed": row(untrusted, isanet.NetworkError, "{url}", "certificate", "REQUESTS_CA_BUNDLE"),
    },
    "Offline: cached models load without a socket, others give `OfflineError` with the address and the folder to put "
    "the file in.": {
        "cached": row(offline_and_cached),
        "not cached": row(offline_and_not, isanet.OfflineError, "{url}", "{home}", "by hand"),
    },
    # Files
    "Disk full: `CacheError` with needed and free, partial file removed.": {
        "seen before the body": row(
            full_disk("256k"), isanet.CacheError, "{tmp}/disk", "bytes needed", "free", "ISANET_HOME"
        ),
        "in the middle of the body": row(
            full_disk("256k", serving(framing="chunked")),
            isanet.CacheError, "{tmp}/disk", "bytes needed", "free", "ISANET_HOME",
        ),
        "while the converted file is written": row(
            full_disk("1200k"), isanet.CacheError, "{tmp}/disk", "bytes needed", "free", "ISANET_HOME"
        ),
        "a limit on the size of files": row(
            limited_files(100_000), isanet.CacheError, "{home}", "bytes needed", "free", "ISANET_HOME"
        ),
    },
    "Read-only cache: cached models load; otherwise the message names `ISANET_HOME`.": {
        "cached": row(read_only_cache("full", lambda: isanet.from_pretrained(NAME))),
        "not cached": row(
            read_only_cache("empty", lambda: isanet.from_pretrained(NAME)), isanet.CacheError, "empty", "ISANET_HOME"
        ),
        "no folder": row(
            read_only_cache("empty/deeper", lambda: isanet.from_pretrained(NAME)),
            isanet.CacheError, "empty/deeper", "ISANET_HOME",
        ),
        "cleared": row(read_only_cache("full", lambda: cache.clear(NAME)), isanet.CacheError, "full", "ISANET_HOME"),
    },
    "Eight processes asking at once: one verified file.": {"eight": row(eight_at_once)},
    "Killed at any moment: the next run succeeds.": {"while downloading": row(killed)},
    "A stale lock never blocks for ever.": {
        "of a killed process": row(locked(alive=False)),
        "of a process that does nothing": row(
            locked(alive=True), isanet.CacheError, f"{{home}}/{NAME}.lock", "another process", "check whether"
        ),
    },
    "A flipped bit or a truncated cached file: noticed at load, fetched again when online.": {
        "a flipped bit": row(damaged(flip)),
        "truncated": row(damaged(lambda data: data[:1000])),
        "empty": row(damaged(lambda _: b"")),
        "a flipped bit, offline": row(damaged(flip, offline=True), isanet.OfflineError, "{url}", "{home}"),
    },
    "A link planted where a file will be written is never followed.": {
        "the record": row(planted(f"{NAME}.json")),
        "the converted file": row(planted("{converted}")),
        "the kept file": row(planted(FILE_NAME)),
        "the lock": row(planted(f"{NAME}.lock"), isanet.CacheError, "{home}", "ISANET_HOME"),
    },
    "The bytes that were hashed are the bytes that are parsed.": {"swapped in between": row(swapped_after_hashing)},
    # Checkpoints
    "Empty, HTML, a Git LFS pointer, random bytes, a truncated or lying archive: `CheckpointFormatError` saying what "
    "it looks like.": {
        case: row(opened(data), isanet.CheckpointFormatError, "{tmp}/given.pth", *words)
        for case, data, *words in (
            ("empty", b"", "an empty file"),
            ("HTML", b"<!DOCTYPE html><title>Log in</title>", "web page"),
            ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
            ("random bytes", noise(5000).tobytes(), "(5,000 bytes) is not a checkpoint: it looks like unknown data"),
            ("a truncated archive", archive(tensor())[:-1], "truncated or broken"),
            ("a lying archive", archive(tensor(), {"data/0": hostile.FOUR_FLOATS * 2}), "but has 32"),
        )
    },
    "A pickle whose weights name anything beyond plain tensors and containers: `UnsafeCheckpointError` naming it; what "
    "lies beside them is never built, called or imported; no environment variable, no fallback runs it.": {
        "in an archive": row(
            opened(archive(hostile.SYSTEM)), isanet.UnsafeCheckpointError, "{tmp}/given.pth", "os.system", "torch.save"
        ),
        "in an older file": row(
            opened(hostile.legacy(hostile.SYSTEM)), isanet.UnsafeCheckpointError, "{tmp}/given.pth", "os.system"
        ),
    },
    "Expansion bombs: refused before they are allocated.": {
        "compressed": row(
            opened(zeros_unpacked(1 << 30)), isanet.CheckpointFormatError, "{tmp}/given.pth", "compressed"
        ),
        "a tensor beyond its storage": row(
            opened(archive(tensor(size=integers(1 << 40), stride=integers(0)))),
            isanet.CheckpointFormatError, "{tmp}/given.pth", "beyond its storage",
        ),
    },
    "Missing, extra or wrongly shaped tensors, NaN, a negative variance: `CheckpointMismatchError` with the first "
    "differences; the model is untouched.": {
        case: row(released_with(change), isanet.CheckpointMismatchError, *words)
        for case, change, *words in (
            ("missing", {BIAS: None}, "{url}", "classifier.bias is missing", "ISANET_MIRROR"),
            ("extra", {"decoder.9.bias": torch.ones(3)}, "{url}", "decoder.9.bias"),
            ("wrong shape", {BIAS: torch.ones(20)}, "{url}", "shape (20,), expected (21,)"),
            ("NaN", {BIAS: torch.full((21,), torch.nan)}, "{url}", "classifier.bias has values that are"),
            ("a negative variance", {VARIANCE: torch.full((4,), -1.0)}, "{url}", "negative variance"),
        )
    }
    | {
        f"{case}, in a file": row(opened(with_tensors(change)), isanet.CheckpointMismatchError, "{tmp}/given.pth", text)
        for case, change, text in (
            ("missing", {BIAS: None}, "classifier.bias is missing"),
            ("NaN", {BIAS: torch.full((21,), torch.nan)}, "not finite"),
        )
    },
    # Images
    "Not an image, an unexpected format, truncated, larger than a stated limit of pixels: `ImageError` before "
    "decoding.": {
        "not an image": row(
            segmented(lambda world: world.file("a.jpg", b"<html>")), isanet.ImageError, "{tmp}/a.jpg"
        ),
        "an unexpected format": row(
            segmented(saved_as(Image.fromarray(noise(8, 8, 3)), "a.ico")), isanet.ImageError, "{tmp}/a.ico"
        ),
        "truncated": row(
            segmented(lambda world: world.file("b.png", world.image().read_bytes()[:900])),
            isanet.ImageError, "{tmp}/b.png", "truncated",
        ),
        "larger than the limit": row(
            segmented(World.image, max_pixels=24 * 32 - 1), isanet.ImageError, "{tmp}/image.png", "767", "raise"
        ),
        "larger than any limit": row(
            segmented(lambda world: world.file("c.png", huge_png())), isanet.ImageError, "{tmp}/c.png", "3,600,000,000"
        ),
    },
    "Any size from 1x1 and any aspect works, labels at the input's size.": {
        f"{height}x{width}": row(segmented(partial(World.image, size=(height, width)), (height, width)))
        for height, width in ((1, 1), (1, 300), (300, 1), (3, 5), (117, 101))
    },
    "L, P, RGBA, 16-bit, CMYK and rotated (EXIF) images convert by a documented rule.": {
        case: row(provocation) for case, provocation in kinds().items()
    },
    "Arrays with a wrong shape, dtype or order: `ImageError`, never a silently wrong mask.": {
        case: row(segmented(lambda _, array=array: array), isanet.ImageError, *words)
        for case, array, *words in (
            ("two dimensions", noise(4, 5), "(4, 5)", "np.stack"),
            ("channels first", noise(3, 4, 5), "(3, 4, 5)", "transpose(1, 2, 0)"),
            ("four channels", noise(4, 5, 4), "(4, 5, 4)", "[..., :3]"),
            ("fractions", noise(4, 5, 3) / np.float32(255), "float32", "value_range=(0, 1)"),
            ("int64", noise(4, 5, 3).astype(np.int64), "int64", "value_range=(0, 255)"),
            ("a tensor", torch.zeros(3, 4, 5), "torch", "permute(1, 2, 0)"),
        )
    },
    # Masks and datasets
    "Palette images are indices; an RGB mask is refused unless colors are given.": {
        "palette": row(own_folder(write=partial(replicas.save, palette=True))),
        "RGB": row(own_folder(write=in_colors), isanet.DatasetError, "{tmp}/mine/masks/pic 0.0.png", "pass colors"),
        "RGB with colors": row(
            own_folder(
                write=in_colors,
                colors=[*isanet.labels.custom_space(CLASSES, name="mine").palette, replicas.BORDER],
                ids=range(4), ignore=4,
            )
        ),
    },
    "A label outside the space, a size that differs from its image, a missing partner, an empty set: `DatasetError` "
    "naming the file and the value.": {
        "a label outside": row(
            own_folder("stray value"), isanet.DatasetError, "{tmp}/mine/masks/pic 0.0.png", "200 (3 pixels)"
        ),
        "another size": row(
            own_folder("small mask"), isanet.DatasetError, "{tmp}/mine/masks/pic 0.0.png", "53x37", "53x36"
        ),
        "no mask": row(own_folder("missing mask"), isanet.DatasetError, "{tmp}/mine", "pic 0.0"),
        "no image": row(own_folder("missing image"), isanet.DatasetError, "{tmp}/mine", "pic 0.0"),
        "nothing": row(empty_set, isanet.DatasetError, "{tmp}/mine"),
    },
    "Evaluation never drops a sample silently.": {
        "a good set": row(evaluated(lambda _: None)),
        "a bad image": row(
            evaluated(replicas.TRAPS["truncated image"]), isanet.ImageError, "{tmp}/voc/VOCdevkit/VOC2012/JPEGImages"
        ),
        "a bad mask": row(
            evaluated(replicas.TRAPS["stray value"]), isanet.DatasetError, "{tmp}/voc/VOCdevkit/VOC2012", "200"
        ),
    },
    "Split lists may have blank lines, CRLF, a BOM; paths in them stay inside the root.": {
        "blank lines": row(listed("blank lines")),
        "CRLF": row(listed("CRLF")),
        "a BOM": row(listed("byte order mark")),
        "a path that leads out": row(listed("line leads out"), isanet.DatasetError, "val.txt", "../../secret"),
        "an absolute path": row(listed("line is absolute"), isanet.DatasetError, "val.txt", "/etc/passwd"),
    },
    # Manifest
    "Broken JSON, duplicate keys, an unknown field, a newer schema, a hash that is not 64 hex digits, an address that "
    "is not https, a name that is a path: `ManifestError` with the place.": {
        case: row(manifest_with(old, new), isanet.ManifestError, "{tmp}/weights.json", *words)
        for case, old, new, *words in (
            ("broken JSON", "}", "", "line 1"),
            ("a key twice", '"sha256": null', '"sha256": null, "sha256": null', "'sha256' appears twice"),
            ("an unknown field", '"sha256": null', '"sha256": null, "md5": null', NAME, "unknown field 'md5'"),
            ("a newer schema", '"schema": 2', '"schema": 3', "schema", "another version of isanet"),
            ("half a hash", '"sha256": null', f'"sha256": "{"a" * 32}"', NAME, "sha256"),
            ("plain http", '"https://', '"http://', NAME, "urls"),
            ("a path", f'"{NAME}": ', '"../../etc/passwd": ', "../../etc/passwd"),
        )
    },
    # Command line
    "One line and exit code 1, or 2 for a wrong call; unknown model: the nearest names.": {
        "an error": row(command("info", "nothing", code=1, line="isanet: error: no model 'nothing'")),
        "a wrong call": row(command("segment", "images", code=2, line="--model")),
        "unknown model": row(command("info", "isanet_tiny_vox", code=1, line=f"did you mean {NAME}?")),
        "unknown command": row(command("nonsense", code=2, line="invalid choice")),
    },
    "An existing output is kept without `--force`; the input is never overwritten; outputs appear whole.": {
        "an existing output": row(existing_output),
        "the input": row(input_as_output),
        "whole": row(outputs_whole),
    },
    "One bad image among a thousand: the others are done, a summary, exit code 1.": {
        "one among a hundred": row(one_bad_among_many)
    },
    "Ctrl-C leaves no half file.": {"in the middle": row(interrupted)},
}  # fmt: skip

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "Every text of a stranger (class names, file names, server phrases, addresses, metadata) is cleaned wherever "
    "it reaches a terminal, a log, an HTML page, a model card (escaped, never markup) or a CSV, and cut to a "
    "line's length.": (
        "cli/test_segment.py::test_class_names_of_an_untrusted_model_are_cleaned",
        "cli/test_printing.py::test_lines_are_cut",
        "evaluation/test_page.py::test_names_and_keys_are_escaped",
        "weights/test_hub.py::test_no_untrusted_text_becomes_markup",
        "inference/test_outputs.py::test_names_of_outputs_are_printable_and_short_enough",
        "ground/test_text.py::test_cleaned_text_is_one_printable_line",
        "ground/test_text.py::test_traces_of_cpp_are_cut",
        "weights/test_download.py::test_a_garbled_answer_is_one_short_line",
    ),
    "Errors of the Hub's client, of proxies and of the standard library's HTTP arrive as `DownloadError`.": (
        "weights/test_hub.py::test_whatever_the_hub_does_is_one_line_and_leaves_no_part",
        "weights/test_download.py::test_a_malformed_proxy_is_named_without_its_password",
    ),
    "Secrets are redacted also in addresses that are malformed.": (
        "weights/test_download.py::test_an_unsafe_mirror_is_refused",
        "weights/test_hub.py::test_malformed_proxies_and_endpoints_are_one_line_without_their_passwords",
        "weights/test_hub.py::test_a_malformed_token_is_not_shown",
        "cli/test_check.py::test_doctor_shows_no_password_of_a_malformed_address",
    ),
    "An output costs memory in proportion to its image: legends and sheets of extreme shapes are bounded, and "
    "what one image cannot have (memory, disk, a bad header) is that image's failure, not the run's.": (
        "inference/test_outputs.py::test_an_output_costs_memory_in_proportion_to_its_image",
        "viz/test_sheet.py::test_any_size_of_image_gives_a_bounded_sheet",
        "viz/test_sheet.py::test_previews_are_taken_one_at_a_time",
        "cli/test_segment.py::test_a_large_image_is_written_before_the_next_is_segmented",
        "cli/test_segment.py::test_what_one_image_cannot_have_does_not_stop_the_others",
        "inference/test_segmenter.py::test_an_image_that_takes_more_memory_than_there_is_fails_alone",
        "inference/test_segmenter.py::test_reading_without_memory_is_the_failure_of_that_image",
    ),
    "The size of an encoded file, of its tiles and of its ancillary chunks is bounded before a decoder sees them.": (
        "images/test_reading.py::test_tiles_of_a_tiff_are_bounded_by_its_image",
        "images/test_reading.py::test_tags_of_a_tiff_are_bounded_by_its_file",
        "images/test_reading.py::test_a_file_larger_than_the_largest_image_is_refused",
        "images/test_reading.py::test_a_small_file_takes_little_memory",
    ),
    "A second call never overwrites what the first refused to.": (
        "cli/test_outputs.py::test_a_second_call_refuses_as_the_first",
        "cli/test_evaluate.py::test_a_second_call_never_overwrites_what_the_first_refused_to",
        "evaluation/test_run.py::test_a_resumed_run_replaces_only_what_it_wrote",
    ),
    "Resume state is safetensors and JSON, read by the project's own reader.": (
        "training/test_state.py::test_an_untrusted_state_is_never_executed",
        "training/test_state.py::test_a_damaged_state_is_an_error",
        "training/test_state.py::test_a_state_with_impossible_values_is_an_error",
        "evaluation/test_run.py::test_counts_that_are_no_counts_are_kept_and_named",
    ),
    "Files are written through the descriptor that was opened, never reopened by name.": (
        "ground/test_files.py::test_what_is_put_in_the_place_of_the_temporary_file_is_not_taken",
        "weights/test_cache.py::test_what_takes_the_place_of_a_running_download_is_neither_read_nor_changed",
    ),
    "Locks work for a group that shares a cache, on file systems without `flock`, and with clocks that disagree; "
    "two versions of the package share one cache without fetching in turns.": (
        "weights/test_cache.py::test_who_may_write_to_the_folder_may_lock_in_it",
        "weights/test_cache.py::test_a_cache_made_in_the_folder_of_a_group_is_the_groups",
        "weights/test_cache.py::test_without_locks_two_processes_end_with_one_good_file",
        "weights/test_cache.py::test_a_clock_of_this_machine_that_is_wrong_sweeps_nothing",
        "weights/test_cache.py::test_two_versions_of_the_converter_share_a_cache_without_fetching_in_turns",
    ),
    "CRCs of archives are checked; an unpinned body is never resumed on a date alone.": (
        "weights/test_cache.py::test_a_damaged_file_put_there_by_hand_is_not_recorded",
        "weights/test_checkpoint.py::test_a_flipped_bit_is_noticed_by_the_checksum",
        "weights/test_download.py::test_an_unpinned_body_is_never_stitched_to_one_with_the_same_date",
        "weights/test_download.py::test_only_a_strong_validator_allows_a_resume_and_a_date_only_where_the_hash_is_known",
    ),
    "Loopback addresses are never sent to a proxy.": (
        "weights/test_download.py::test_loopback_is_never_sent_to_a_proxy",
        "weights/test_hub.py::test_no_loopback_address_of_a_hub_is_asked_through_a_proxy",
    ),
    "Closed standard streams are no traceback.": ("cli/test_run.py::test_closed_standard_streams_are_no_traceback",),
}


# --- the tests ----------------------------------------------------------------------------------------------


def sentences(document: str) -> list[str]:
    """The sentences of all paragraphs that begin with a bold word."""
    paragraphs = re.findall(r"^\*\*[^*]+\.\*\* (.+?)(?:\n\n|\Z)", document, re.MULTILINE | re.DOTALL)
    return [each for text in paragraphs for each in re.split(r"(?<=\.) (?=[A-Z0-9])", " ".join(text.split()))]


def test_the_table_has_the_sentences_of_the_document() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document.count("\n**") == 8
    assert [*TABLE, *ELSEWHERE] == sentences(document)
    assert all(TABLE.values())


@pytest.mark.parametrize("test", [test for tests in ELSEWHERE.values() for test in tests])
def test_what_is_promised_is_provoked_elsewhere(test: str) -> None:
    path, _, name = test.partition("::")
    module = ast.parse((Path(__file__).parents[1] / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="session")
def released() -> bytes:
    return tiny_zoo.saved({"epoch": 60, "model": tiny_zoo.upstream_state()})


@pytest.fixture
def world(
    tmp_path: Path,
    home: Path,
    hub: HubServer,
    certificate: tuple[Path, Path],
    released: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[World]:
    """A zoo of one small model at one address, which is https and trusted; and files from earlier."""
    with ExitStack() as undo:
        server = undo.enter_context(FileServer(tls=certificate))
        server.files[ADDRESS] = released
        small = {"short_edge": 32, "long_edge": 64, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
        manifest = tiny_zoo.manifest_of_one(tmp_path / "weights.json", urls=[server.url + ADDRESS], preprocessing=small)
        monkeypatch.setattr("isanet.weights.manifest.manifest_path", lambda: manifest)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        monkeypatch.chdir(tmp_path)
        home.mkdir()
        (home / "isanet_earlier_voc.json").write_text("{}")
        (home / "isanet_earlier_voc-01234567.safetensors").write_bytes(b"earlier")
        (tmp_path / "earlier.png").write_bytes(b"earlier")
        made = World(tmp_path, home, server, hub, monkeypatch, undo, capsys, released)
        made.patience()
        yield made


ROWS = [
    pytest.param(entry, id=f"{re.split('[:;,.(]', sentence)[0]}-{case}".replace(" ", "_"))
    for sentence, cases in TABLE.items()
    for case, entry in cases.items()
]


@pytest.mark.filterwarnings("ignore:.*TORCH_FORCE")  # torch warns of these variables
@pytest.mark.parametrize("entry", ROWS)
def test_what_is_promised(world: World, entry: Row) -> None:
    call = entry.provoke(world)
    before = world.files()
    started = time.monotonic()
    if entry.error is None:
        result = call()
        if isinstance(result, ISANet):
            good = convert.convert(tiny_zoo.upstream_state(), "sssegmentation")
            assert result.state_dict().keys() == good.keys()
            assert all(torch.equal(value, good[key]) for key, value in result.state_dict().items())
    else:
        with pytest.raises(entry.error) as caught:
            call()
        assert type(caught.value) is entry.error
        for words in entry.says:
            assert words.format(url=world.url, tmp=world.tmp, home=world.home) in str(caught.value)
    assert time.monotonic() - started < BOUND
    after = world.files()
    if entry.error is not None:
        assert after == before, "a call that failed changed something"
    earlier = {path: data for path, data in before.items() if "earlier" in path.name or path.name == "diary.txt"}
    assert earlier
    assert earlier.items() <= after.items()
    assert not [path for path in after if path.suffix == ".part"]
