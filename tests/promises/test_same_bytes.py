"""What is hashed is what is parsed, whatever happens to the file at any moment of loading it.

Either the one content or the other, or an error; never tensors that do not belong to the hash in the provenance.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import pytest
import torch

import isanet
from isanet.errors import CheckpointFormatError, IsanetError
from isanet.weights import cache, checkpoint
from isanet.weights import hub as model_folders
from isanet.zoo import pretrained, released
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.hub_server import HubServer

LOADING = {
    *("read_file", "read_open_file", "read_checkpoint", "read_safetensors"),
    *("read_cached", "read_record", "_read_record", "_load_cached"),
}
"""The functions that stand between a path and its tensors."""


def content(value: float) -> bytes:
    """A model file in which every tensor has the same single value."""
    model = isanet.ISANet(**tiny_zoo.ARCHITECTURE, preprocessing=pretrained.imagenet_preprocessing())
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.constant_(tensor.detach(), value)
    return model_folders.serialized(model.state_dict(), model.config, model.provenance)


CONTENTS = {value: content(value) for value in (1.0, 2.0)}
HASHES = {sha256(data).hexdigest(): value for value, data in CONTENTS.items()}


def one_value(tensors: Any) -> float | None:
    """The one value that all tensors have; None if they have several."""
    values = torch.cat([tensor.flatten().double() for tensor in tensors.values()]).unique()
    return values.item() if len(values) == 1 else None


# --- at every line of the code that loads ------------------------------------------------------------------------


class AtLine:
    """Calls `act` before the `number`-th line of the functions in `LOADING`, each counted when first reached."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.number, self.act = number, act
        self.met: set[tuple[CodeType, int]] = set()
        self.done = False

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_name not in LOADING or "isanet" not in frame.f_code.co_filename:
            return None
        if event == "line" and not self.done:
            self.met.add((frame.f_code, frame.f_lineno))
            if len(self.met) > self.number:
                self.done = True
                self.act()
        return self.trace

    def __enter__(self) -> Self:
        self.earlier = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.earlier)


def overwritten(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(data)


def replaced(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, (0, 0))  # a later change is seen even within one tick of the file system's clock
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: replaced(path, CONTENTS[2.0]),
    "overwritten": lambda path: overwritten(path, CONTENTS[2.0]),
    "truncated": lambda path: os.truncate(path, 5000),
    "removed": lambda path: path.unlink(missing_ok=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_at_any_line_is_the_old_or_the_new_one_or_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.safetensors"
    ends: set[object] = set()
    for number in count():
        replaced(path, CONTENTS[1.0])
        with AtLine(number, lambda: CHANGES[change](path)) as at_line:
            try:
                file = pretrained.read_file(path)
                tensors = checkpoint.read_checkpoint(file)[0]
            except IsanetError as error:
                ends.add(type(error))
            else:
                assert one_value(tensors) == HASHES[file.sha256], f"line {number}"
                ends.add(HASHES[file.sha256])
        if not at_line.done:
            break
    assert number > 20
    expected: dict[str, set[object]] = {"replaced": {1.0, 2.0}, "overwritten": {1.0, 2.0, CheckpointFormatError}}
    assert ends == expected.get(change, {1.0, CheckpointFormatError})


@pytest.mark.parametrize("change", CHANGES)
def test_a_cached_file_changed_at_any_line_is_never_loaded(
    tiny: FileServer, home: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = isanet.from_pretrained(tiny_zoo.NAME).state_dict()
    path = cache.cached_file(tiny_zoo.NAME)
    assert path is not None
    data = path.read_bytes()
    weights = isanet.model_info(tiny_zoo.NAME)
    network = released.meta_network(weights)
    monkeypatch.setattr(released, "meta_network", lambda _: network)  # the same each time, and slow to make
    refused = 0
    for number in count():
        replaced(path, data)
        with AtLine(number, lambda: CHANGES[change](path)) as at_line:
            cached = released.read_cached(weights)
        refused += cached is None
        if cached is not None:
            loaded = cached.network.state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in good.items())
        if not at_line.done:
            break
    assert number > 30
    assert 0 < refused < number


# --- a writer that never rests -----------------------------------------------------------------------------------

WRITER = """
import itertools, os, sys
path, *contents = sys.argv[1:]
contents = [open(each, "rb").read() for each in contents]
print("ready", flush=True)
for turn in itertools.count():
    data = contents[turn // 4 % 2]
    match turn % 4:
        case 0:
            with open(path + ".new", "wb") as file:
                file.write(data)
            os.replace(path + ".new", path)
        case 1 | 3:
            with open(path, "r+b") as file:
                for start in range(0, len(data), 65536):
                    file.write(data[start : start + 65536])
                file.truncate()
        case 2:
            os.truncate(path, turn * 7919 % len(data))
"""


@contextmanager
def writer(path: Path, *contents: bytes) -> Iterator[None]:
    """Another process that replaces, overwrites and truncates a file while the body runs."""
    files = []
    for number, data in enumerate(contents):
        files.append(path.parent / f"content{number}")
        files[-1].write_bytes(data)
    command = [sys.executable, "-c", WRITER, str(path), *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_a_path_that_another_process_writes_to(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENTS[1.0])
    ends: set[object] = set()
    stop = time.monotonic() + 4
    with writer(path, *CONTENTS.values()):
        while time.monotonic() < stop:
            try:
                file = pretrained.read_file(path)
                tensors = checkpoint.read_checkpoint(file)[0]
            except IsanetError as error:
                ends.add(type(error))
                continue
            assert sha256(file.data.data).hexdigest() == file.sha256
            if file.sha256 in HASHES:  # else it was read between two writes, and nobody knows that hash
                assert one_value(tensors) == HASHES[file.sha256]
                ends.add(HASHES[file.sha256])
    assert CheckpointFormatError in ends
    assert ends & set(CONTENTS)


def test_a_hub_cache_that_another_process_writes_to(hub: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    model = isanet.ISANet(**tiny_zoo.ARCHITECTURE, preprocessing=pretrained.imagenet_preprocessing())
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
    model.save_pretrained(tmp_path / "model")
    hub.add_repo("org/written", {each.name: each.read_bytes() for each in (tmp_path / "model").iterdir()})
    assert one_value(isanet.from_pretrained("org/written").state_dict()) == 1
    stored = Path(hf_hub_download("org/written", "model.safetensors")).resolve()
    good = stored.read_bytes()
    ends: set[object] = set()
    stop = time.monotonic() + 4
    with writer(stored, good, CONTENTS[2.0]):
        while time.monotonic() < stop:
            try:
                ends.add(one_value(isanet.from_pretrained("org/written").state_dict()))
            except IsanetError as error:
                ends.add(type(error))
    assert ends <= {1.0, isanet.IntegrityError, CheckpointFormatError}
    assert ends & {isanet.IntegrityError, CheckpointFormatError}


# --- what is no file ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
@pytest.mark.parametrize("place", ["path", "model.safetensors", "config.json"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENTS[1.0])
    source = folder / "pipe" if place == "path" else folder
    os.mkfifo(folder / "pipe" if place == "path" else folder / place.replace("model.s", "m.s"))
    if place == "model.safetensors":
        (folder / "m.safetensors").replace(folder / place)
    errors: list[BaseException] = []

    def load() -> None:
        try:
            isanet.from_pretrained(source)
        except IsanetError as error:
            errors.append(error)

    thread = threading.Thread(target=load, daemon=True)  # opening a pipe waits for its writer, here for ever
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [CheckpointFormatError]
    assert "not a regular file" in str(errors[0])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices in the file system")
def test_a_device_is_refused() -> None:
    with pytest.raises(CheckpointFormatError, match="not a regular file"):
        isanet.from_pretrained(Path("/dev/zero"))
