"""A released checkpoint: from the package, the cache, a file put there by hand, or an address."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet.model import ISANet
from isanet.weights import cache, convert, manifest
from isanet.weights.cache import Record
from isanet.zoo import released
from isanet.zoo.networks import fill, meta_model
from isanet.zoo.plan import ConvertFile, Fetch, LoadCached, LoadPackaged, Step, plan
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.wrong_files import STATE, WRONG_FILES

RECORD = Record(
    file=f"{tiny_zoo.NAME}-00000000.safetensors",
    file_sha256="0" * 64,
    source="https://example.com/tiny.pth",
    source_sha256="1" * 64,
    source_size=1,
    layout="sssegmentation",
    converter=cache.CONVERTER_VERSION,
    date="2026-01-01T00:00:00+00:00",
)
OLDER = replace(RECORD, converter=cache.CONVERTER_VERSION - 1)
FIRST, SECOND = tiny_zoo.FILE_NAME, "isanet_tiny.pth"
KNOWN = RECORD.source_sha256
EVERYTHING = {RECORD.file, FIRST, SECOND}


@pytest.mark.parametrize(
    ("record", "present", "force", "expected"),
    [
        (None, set(), False, [Fetch(("urls",), None)]),
        (None, EVERYTHING, False, [ConvertFile(FIRST, None), ConvertFile(SECOND, None), Fetch(("urls",), None)]),
        (RECORD, {RECORD.file}, False, [LoadCached(RECORD), Fetch(("urls",), KNOWN)]),
        (RECORD, {RECORD.file, SECOND}, False, [LoadCached(RECORD), ConvertFile(SECOND, KNOWN), Fetch((), KNOWN)]),
        (RECORD, set(), False, [Fetch((), KNOWN)]),
        (OLDER, EVERYTHING, False, [ConvertFile(FIRST, KNOWN), ConvertFile(SECOND, KNOWN), Fetch((), KNOWN)]),
        (RECORD, EVERYTHING, True, [Fetch((), KNOWN)]),
    ],
)
def test_what_is_to_be_done(
    tiny: FileServer, record: Record | None, present: set[str], force: bool, expected: list[Step]
) -> None:
    weights = isanet.model_info(tiny_zoo.NAME)
    *local, fetch = expected
    assert isinstance(fetch, Fetch)
    steps = plan(weights, record, present, force=force)
    assert steps == [*local, replace(fetch, urls=weights.urls)]


def test_a_hash_in_the_manifest_comes_before_a_recorded_one(tiny: FileServer) -> None:
    weights = replace(isanet.model_info(tiny_zoo.NAME), sha256="2" * 64)
    steps = plan(weights, OLDER, {FIRST})
    assert steps == [ConvertFile(FIRST, "2" * 64), Fetch(weights.urls, "2" * 64)]


@pytest.mark.parametrize("force", [False, True])
def test_a_packaged_model_needs_no_cache(force: bool) -> None:
    weights = isanet.model_info("isanet_nano_toystreets")
    assert plan(weights, None, set(), force=force) == [LoadPackaged()]


def counting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """The positional arguments of each call of a function from now on."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


SOURCES: dict[str, Callable[[Path], str | Path]] = {
    "a cached model": lambda folder: tiny_zoo.NAME,
    "a packaged model": lambda folder: "isanet_nano_toystreets",
    "a folder": lambda folder: folder / "saved",
    "a file": lambda folder: folder / "saved" / "model.safetensors",
    "a bare file": lambda folder: tiny_zoo.upstream_file(folder),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_loading_builds_the_network_once_and_parses_the_manifest_at_most_once(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind != "a packaged model":
        request.getfixturevalue("tiny")
        isanet.from_pretrained(tiny_zoo.NAME).save_pretrained(tmp_path / "saved")
    source = SOURCES[kind](tmp_path)
    manifest.parse_manifest.cache_clear()
    built, parsed = counting(monkeypatch, ISANet, "__init__"), counting(monkeypatch, json, "loads")
    reads_manifest = not isinstance(source, Path) or kind == "a bare file"
    for times in (1, 2):
        isanet.from_pretrained(source)
        assert len(built) == times
        texts = [text.decode() if isinstance(text, bytes) else text for (text,) in parsed]
        assert sum('"backbones"' in text for text in texts) == int(reads_manifest)


def test_a_cached_model_is_built_once_and_nothing_is_randomly_initialized(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    isanet.from_pretrained(tiny_zoo.NAME)
    built = []
    initialize = ISANet._initialize

    def counted(model: ISANet) -> None:
        built.append(model.classifier.weight.is_meta)
        initialize(model)

    monkeypatch.setattr(ISANet, "_initialize", counted)
    random = torch.get_rng_state()
    isanet.from_pretrained(tiny_zoo.NAME)
    assert built == [True]
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_refused_and_nothing_is_cached(
    tiny: FileServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_FILES[case]
    tiny.files[f"/{tiny_zoo.FILE_NAME}"] = data
    with pytest.raises(isanet.MirrorsExhaustedError, match=message):
        isanet.from_pretrained(tiny_zoo.NAME)
    assert {path.name for path in home.iterdir()} <= {f"{tiny_zoo.NAME}.lock"}
    assert not Path("was_run").exists()
    # A good copy under the second name heals it
    tiny.files["/isanet_tiny.pth"] = tiny_zoo.saved({"model": STATE})
    assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(tiny_zoo.NAME)), tiny_zoo.expected_logits())


@pytest.mark.parametrize("environment", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}])
@pytest.mark.parametrize(
    "contents",
    [
        {"epoch": 60, "model": STATE, "optimizer": stand_in.sgd_state(STATE)},
        {
            "cur_epoch": 60,
            "cur_iter": 1,
            "model": STATE,
            "optimizer": {},
            "model_ema": STATE,
            "grad_scaler": {"scale": 1.0},
        },
        {"model": STATE},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
        STATE,
    ],
    ids=["2021", "2023", "weights", "module", "bare"],
)
def test_upstreams_layouts(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, contents: object, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for zipped in (True, False):
        tiny.files[f"/{tiny_zoo.FILE_NAME}"] = tiny_zoo.saved(contents, _use_new_zipfile_serialization=zipped)
        network, _ = released.load(isanet.model_info(tiny_zoo.NAME), force=True) if zipped else forgotten()
        state = network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in convert.convert(STATE, "sssegmentation").items())


def forgotten() -> released.Loaded:
    cache.clear(tiny_zoo.NAME, forget=True)
    return released.load(isanet.model_info(tiny_zoo.NAME))


def test_a_filled_network_is_as_load_state_dict_would_leave_it() -> None:
    config = {"num_classes": 2, "backbone": "resnet26", "width": 16}
    expected = isanet.ISANet(**config).eval()
    filled = fill(meta_model(config), state := expected.state_dict())
    assert [*filled.state_dict()] == [*state]
    assert not filled.training
    for kind in ("named_parameters", "named_buffers"):
        mine, others = (dict(getattr(each, kind)()) for each in (filled, expected))
        assert list(mine) == list(others)
        for name, tensor in mine.items():
            assert type(tensor) is type(others[name])
            assert tensor.requires_grad == others[name].requires_grad
            assert tensor.is_leaf
            assert tensor.data_ptr() == others[name].data_ptr()  # taken over, not copied
