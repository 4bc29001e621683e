"""Random and damaged exports load or fail by a named error, whatever is changed in them."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isanet.datasets import open_dataset
from isanet.errors import DatasetError, ImageError
from tests.helpers.exports import EXPORTS

FORMATS = ("cvat", "labelme", "coco", "panoptic", "roboflow", "label-studio", "via", "supervisely")
LAYOUT = {"panoptic": "coco"}

ODD = ["..", "/etc/passwd", "a.png", "polygon", "mask", "bitmap", "", "\ud800", "\x00", 10**400, -1, 1 << 62]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@cache
def files_of(name: str) -> dict[str, bytes]:
    """The files of an export by path."""
    with tempfile.TemporaryDirectory() as folder:
        EXPORTS[name][0](Path(folder))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


def read(name: str, changed: dict[str, bytes]) -> None:
    """Opens an export with some files changed, and reads every sample."""
    with tempfile.TemporaryDirectory() as folder:
        for path, data in {**files_of(name), **changed}.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_bytes(data)
        try:
            dataset = open_dataset(folder, layout=LAYOUT.get(name, name), max_pixels=100_000)
            for index in range(len(dataset)):
                dataset.read(index)
        except (DatasetError, ImageError):
            pass


def places(data: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in JSON."""
    found: list[tuple[Any, Any]] = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        found.append((data, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


@pytest.mark.parametrize("name", [each for each in FORMATS if each not in ("cvat", "roboflow")])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(VALUES, min_size=1, max_size=3), st.booleans())
def test_values_of_any_kind_in_the_json(name: str, seed: int, values: list[Any], drop: bool) -> None:
    draw = random.Random(seed)
    path = draw.choice([path for path in files_of(name) if path.endswith(".json")])
    data = json.loads(files_of(name)[path])
    for value in values:
        container, key = draw.choice(places(data) or [([data], 0)])
        if drop and isinstance(container, dict):
            container.pop(key, None)
        elif isinstance(container, dict) or key < len(container):
            container[key] = value
    read(name, {path: json.dumps(data).encode()})


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.binary(max_size=20))
def test_damaged_files(name: str, seed: int, noise: bytes) -> None:
    draw = random.Random(seed)
    path = draw.choice(list(files_of(name)))
    data = files_of(name)[path]
    start = draw.randrange(len(data) + 1)
    kept = data[start + draw.choice([0, len(noise), len(data)]) :]
    read(name, {path: data[:start] + noise + kept})


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(VALUES)
def test_json_of_any_kind_in_the_place_of_a_file(name: str, value: Any) -> None:
    text = next(path for path in files_of(name) if not path.endswith(".png"))
    read(name, {text: json.dumps(value).encode()})
