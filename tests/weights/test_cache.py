"""The cache: records, locks, files that appear whole, and what a damaged, foreign, busy or read-only one does."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from torch import Tensor

import isanet
from isanet.config import config_json
from isanet.weights import cache, checkpoint, convert
from isanet.weights.cache import Record
from isanet.zoo import released
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.processes import EIGHT, output, python
from tests.helpers.tiny_zoo import FILE_NAME, NAME

ROOT = Path(__file__).parents[2]
VICTIM = b"a file of the user"

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, umask and symbolic links")


def record(name: str = NAME, digits: str = "01234567", **changes: Any) -> Record:
    values = {
        "file": f"{name}-{digits}.safetensors",
        "file_sha256": "a" * 64,
        "source": "https://host/f.pth",
        "source_sha256": "b" * 64,
        "source_size": 7,
        "layout": "sssegmentation",
        "converter": 1,
        "date": "2025-01-01T00:00:00+00:00",
    }
    return Record(**{**values, **changes})


def names(folder: Path) -> set[str]:
    """Everything in a folder that is not a lock."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} if folder.is_dir() else set()


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


# --- where it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ISANET_HOME": "/a/b", "TORCH_HOME": "/t", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"ISANET_HOME": "~/mine"}, "/user/mine"),
        ({"ISANET_HOME": "", "TORCH_HOME": "/t"}, "/t/hub/isanet"),
        ({"TORCH_HOME": "/t", "XDG_CACHE_HOME": "/x"}, "/t/hub/isanet"),
        ({"TORCH_HOME": "~/t"}, "/user/t/hub/isanet"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/torch/hub/isanet"),
        ({"XDG_CACHE_HOME": "~/x"}, "/user/x/torch/hub/isanet"),
        ({}, "/user/.cache/torch/hub/isanet"),
        ({"TORCH_HOME": ""}, "hub/isanet"),
        ({"XDG_CACHE_HOME": ""}, "torch/hub/isanet"),
    ],
)
def test_home_is_the_same_with_and_without_torch(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: str
) -> None:
    for name in ("ISANET_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/user")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert cache.home() == Path(expected)
    if not settings.get("ISANET_HOME"):
        assert cache.home() == Path(torch.hub.get_dir()) / "isanet"
    monkeypatch.delitem(sys.modules, "torch.hub")
    assert cache.home() == Path(expected)


def test_home_follows_torch_hub_set_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISANET_HOME")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    torch.hub.set_dir(tmp_path / "chosen")
    assert cache.home() == tmp_path / "chosen" / "isanet"


def test_asking_creates_no_folder(home: Path) -> None:
    assert cache.read_record(NAME) is None
    assert cache.cached_file(NAME) is None
    cache.sweep()
    assert not home.exists()


# --- records ------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.mkdir()
    cache.write_record(NAME, record())
    assert cache.read_record(NAME) == record()
    assert cache.cached_file(NAME) is None, "its file is not there"
    (home / record().file).write_bytes(b"x")
    assert cache.cached_file(NAME) == home / record().file
    assert not caplog.records


GOOD = json.dumps(asdict(record()))
DAMAGED: list[str | bytes] = [
    *("", "{}", "[]", "null", "1", '"text"', GOOD[:-1], GOOD + "x", b"\xff\xfe", b"\0" * 300, "[" * 100_000),
    *(
        json.dumps({k: v for k, v in asdict(record()).items() if k != field.name})
        for field in fields(Record)
        if field.default is MISSING
    ),
    *(
        json.dumps({**asdict(record()), field.name: value})
        for field in fields(Record)
        for value in (None, True, 1.5, [], 7 if field.type == "str" else "7")
    ),
    *(
        json.dumps({**asdict(record()), field: value})
        for field in ("file_sha256", "source_sha256")
        for value in ("", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n")
    ),
    *(json.dumps({**asdict(record()), "file_blake3": value}) for value in ("a" * 63, "A" * 64, "a" * 64 + "\n")),
    *(
        json.dumps({**asdict(record()), "file": value})
        for value in (
            *("", "..", "../../etc/passwd", "/etc/passwd", f"../{NAME}-01234567.safetensors", f"x/{record().file}"),
            *(f"{NAME}.json", f"{NAME}-0123456.safetensors", f"{NAME}-0123456G.safetensors", f"{record().file}\n"),
            *("isanet_tiny_voc2-01234567.safetensors", f"{NAME}-../a.safetensors", f"{NAME}-01234567.pth"),
        )
    ),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_is_ignored_and_logged(
    home: Path, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    home.mkdir()
    (home / record().file).write_bytes(b"x")
    (home / f"{NAME}.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cache.cached_file(NAME) is None
    assert [(entry.levelno, entry.name) for entry in caplog.records] == [(logging.WARNING, "isanet")]
    assert str(home / f"{NAME}.json") in caplog.text


def test_a_folder_in_the_place_of_a_record_is_ignored(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / f"{NAME}.json").mkdir(parents=True)
    assert cache.read_record(NAME) is None
    assert "damaged" in caplog.text


OTHERS = (
    *("isanet_tiny_voc2-01234567.safetensors", "isanet_tiny_voc_b-01234567.safetensors", f"{NAME}.pth"),
    *(f"{NAME}-012345678.safetensors", f"{NAME}-mine.safetensors", f"{NAME}-b-01234567.safetensors"),
    *("isanet_tiny-01234567.safetensors", "isanet_tiny_voc2.json", FILE_NAME, f"my-{NAME}-01234567.safetensors"),
)
"""Files that are not converted files of the model, though some look like it."""


def test_a_new_record_removes_the_old_files_of_that_model_only(home: Path) -> None:
    home.mkdir()
    for name in (*OTHERS, record(digits="00000000").file, record(digits="ffffffff").file, record().file):
        (home / name).write_bytes(b"x")
    cache.write_record(NAME, record())
    assert names(home) == {*OTHERS, record().file, f"{NAME}.json"}


def test_a_file_that_cannot_be_removed_does_not_undo_the_record(home: Path) -> None:
    (home / record(digits="00000000").file).mkdir(parents=True)
    cache.write_record(NAME, record())
    assert cache.read_record(NAME) == record()


@pytest.mark.parametrize("forget", [False, True])
def test_clear_keeps_the_hash_unless_told_to_forget(home: Path, forget: bool) -> None:
    home.mkdir()
    for name in (*OTHERS, record().file, record(digits="00000000").file):
        (home / name).write_bytes(b"12345")
    cache.write_record("isanet_tiny_voc2", record("isanet_tiny_voc2"))
    (home / record().file).write_bytes(b"12345")
    (home / f"{NAME}.json").write_text(GOOD)
    assert cache.clear(NAME, forget=forget) == 10
    assert cache.read_record(NAME) == (None if forget else record())
    assert names(home) == {*OTHERS, *(() if forget else [f"{NAME}.json"])}
    assert cache.clear(NAME, forget=forget) == 0


@posix
def test_clear_removes_links_and_never_what_they_point_to(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    (home / record().file).symlink_to(victim)
    (home / record(digits="00000000").file).symlink_to(tmp_path / "nowhere")
    (home / f"{NAME}.json").symlink_to(victim)
    cache.clear(NAME, forget=True)
    assert names(home) == set()
    assert victim.read_bytes() == VICTIM


# --- temporary files and locks


def test_sweeping_removes_what_killed_processes_left(home: Path) -> None:
    home.mkdir()
    for name, age in ((".isanet-old.part", 3700), (".isanet-young.part", 3500), ("isanet.part", 9999), ("a.pth", 9999)):
        (home / name).write_bytes(b"x")
        os.utime(home / name, (time.time() - age,) * 2)
    (home / ".isanet-folder.part").mkdir()
    os.utime(home / ".isanet-folder.part", (0, 0))
    cache.sweep()
    assert names(home) == {".isanet-young.part", "isanet.part", "a.pth", ".isanet-folder.part"}


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_of_this_machine_that_is_wrong_sweeps_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    home.mkdir()
    (home / ".isanet-running.part").write_bytes(b"x")
    (home / ".isanet-old.part").write_bytes(b"x")
    os.utime(home / ".isanet-old.part", (0, 0))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    cache.sweep()
    assert names(home) == {".isanet-running.part"}


# --- locks --------------------------------------------------------------------------------------------------

HOLD = f"from isanet.weights import cache\nwith cache.lock({NAME!r}):\n    print('held', flush=True)\n    input()\n"


def test_a_lock_excludes_another_process_and_ends_with_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_TIMEOUT", 0.2)
    with python(HOLD) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(isanet.CacheError, match="another process") as caught, cache.lock(NAME):
            pass
        assert str(home / f"{NAME}.lock") in str(caught.value)
        with cache.lock("isanet_other"):
            pass
        holder.kill()
        holder.wait()
        monkeypatch.setattr(cache, "LOCK_TIMEOUT", 10)
        started = time.monotonic()
        with cache.lock(NAME):
            assert time.monotonic() - started < 5
    with cache.lock(NAME):
        pass


def test_a_lock_is_freed_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_TIMEOUT", 0.2)
    with pytest.raises(KeyError), cache.lock(NAME):
        raise KeyError
    with cache.lock(NAME):
        pass


@posix
@pytest.mark.parametrize(("folder", "shared"), [(0o2775, 0o664), (0o2777, 0o666), (0o755, 0o644), (0o700, 0o600)])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_may_write_to_the_folder_may_lock_in_it(home: Path, folder: int, shared: int, umask: int) -> None:
    home.mkdir()
    home.chmod(folder)
    before = os.umask(umask)
    try:
        with cache.lock(NAME):
            assert (home / f"{NAME}.lock").stat().st_mode & 0o777 == shared
    finally:
        os.umask(before)


@posix
@pytest.mark.parametrize(("parent", "made"), [(0o2775, 0o2775), (0o775, 0o755), (0o1777, 0o755)])
def test_a_cache_made_in_the_folder_of_a_group_is_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: int, made: int
) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(parent)
    monkeypatch.setenv("ISANET_HOME", str(tmp_path / "group" / "deep" / "cache"))
    before = os.umask(0o022)
    try:
        with cache.lock(NAME):
            pass
    finally:
        os.umask(before)
    for folder in (tmp_path / "group" / "deep", tmp_path / "group" / "deep" / "cache"):
        assert folder.stat().st_mode & 0o7777 == made


WITHOUT_LOCKS = """
import errno, fcntl, os, sys
def flock(*_):
    raise OSError(getattr(errno, os.environ["ERRNO"]), "imitated")
fcntl.flock = flock
"""


@posix
@pytest.mark.parametrize("missing", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_without_locks_two_processes_end_with_one_good_file(
    tiny: FileServer, home: Path, tmp_path: Path, good: dict[str, Tensor], missing: str
) -> None:
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    (tmp_path / "upstream.pth").write_bytes(upstream)
    settings = {"MANIFEST": str(tmp_path / "weights.json"), "UPSTREAM": str(tmp_path / "upstream.pth"), "NAME": NAME}
    both = EIGHT.replace("range(8)", "range(2)").replace("[0] * 8", "[0] * 2")
    lines = output(python(WITHOUT_LOCKS + both, ERRNO=missing, **settings)).splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert names(home) == {f"{NAME}.json", the_file(home).name}
    released.verify(isanet.model_info(NAME))


@pytest.mark.parametrize("obstacle", ["home", "parent"])
def test_a_file_where_the_folder_should_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    (tmp_path / "plain").write_bytes(VICTIM)
    folder = tmp_path / "plain" / ("" if obstacle == "home" else "deep/er")
    monkeypatch.setenv("ISANET_HOME", str(folder))
    with pytest.raises(isanet.CacheError, match="ISANET_HOME") as caught, cache.lock(NAME):
        pass
    assert str(folder) in str(caught.value)


# --- a whole model: fetched once, verified at every load ----------------------------------------------------


@pytest.fixture
def good() -> dict[str, Tensor]:
    """The tensors of the tiny model, under our names."""
    return convert.convert(tiny_zoo.upstream_state(), "sssegmentation")


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on a connection fails the test."""

    def refuse(*_: object) -> None:
        pytest.fail("a socket was opened")

    def forbid() -> None:
        for name in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, refuse)

    return forbid


def other_version() -> bytes:
    """The same network upstream, trained again."""
    state = tiny_zoo.upstream_state()
    return tiny_zoo.saved({"model": {**state, "decoder.1.bias": state["decoder.1.bias"] + 1}})


def gets(server: FileServer) -> list[str]:
    return [path for _, path, _ in server.requests]


def the_file(home: Path) -> Path:
    found = cache.cached_file(NAME)
    assert found is not None
    assert found.parent == home
    return found


def test_a_cached_model_loads_without_a_socket(
    tiny: FileServer,
    home: Path,
    good: dict[str, Tensor],
    no_sockets: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = isanet.from_pretrained(NAME)
    assert names(home) == {f"{NAME}.json", the_file(home).name}, "neither the upstream file nor a .part stays"
    no_sockets()
    for offline in ("0", "1"):
        monkeypatch.setenv("ISANET_OFFLINE", offline)
        again = isanet.from_pretrained(NAME)
        assert same(again.state_dict(), good)
        assert same(first.state_dict(), good)
        assert again.provenance == first.provenance
    assert gets(tiny) == [f"/{FILE_NAME}"]


def test_the_converted_file_says_where_it_came_from(tiny: FileServer, home: Path) -> None:
    model = isanet.from_pretrained(NAME)
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    with safe_open(the_file(home), "pt") as file:
        metadata = file.metadata()
    expected = {
        "name": NAME,
        "source": f"{tiny.url}/{FILE_NAME}",
        "source_sha256": sha256(upstream).hexdigest(),
        "layout": "sssegmentation",
        "converter_version": str(cache.CONVERTER_VERSION),
        "isanet_version": isanet.__version__,
    }
    assert metadata.items() >= expected.items()
    assert model.provenance == expected
    assert metadata["config"] == config_json(model.config)
    written = cache.read_record(NAME)
    assert written is not None
    data = the_file(home).read_bytes()
    assert written.file == f"{NAME}-{sha256(data).hexdigest()[:8]}.safetensors"
    assert written.file_sha256 == sha256(data).hexdigest()
    assert written.file_blake3 == blake3(data).hexdigest()
    assert (written.source, written.source_sha256) == (expected["source"], expected["source_sha256"])
    assert (written.source_size, written.layout) == (len(upstream), "sssegmentation")
    assert written.converter == cache.CONVERTER_VERSION
    assert released.verify(isanet.model_info(NAME)) == written


@pytest.mark.parametrize("keep", [False, True])
def test_the_upstream_file_stays_only_if_asked(tiny: FileServer, home: Path, keep: bool) -> None:
    released.load(isanet.model_info(NAME), keep=keep)
    kept = home / FILE_NAME
    assert kept.exists() == keep
    assert not list(home.glob("*.part"))
    if keep:
        assert kept.read_bytes() == tiny.files[f"/{FILE_NAME}"]
        assert kept.stat().st_mode == (home / f"{NAME}.json").stat().st_mode


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"source_sha256") + 20] ^= 1
    path.write_bytes(data)


def flip_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def another_model(path: Path) -> None:
    """A well-formed file of other tensors under the right name."""
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({**state, "classifier.bias": state["classifier.bias"] + 1}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def record_of_other(path: Path) -> None:
    """The record is what was changed: it names another hash."""
    target = path.parent / f"{NAME}.json"
    target.write_text(target.read_text().replace(blake3(path.read_bytes()).hexdigest(), "0" * 64))


def older_record_of_other(path: Path) -> None:
    """The same of a record without BLAKE3's hash."""
    target = path.parent / f"{NAME}.json"
    target.write_text(json.dumps({**json.loads(target.read_text()), "file_sha256": "0" * 64, "file_blake3": ""}))


DAMAGES = [
    *(flip_header, flip_value, truncate, another_model, Path.unlink, a_folder, record_of_other, older_record_of_other),
    *(lambda path: path.write_bytes(b""), lambda path: path.write_bytes(bytes(path.stat().st_size))),
    *(
        lambda path: (path.parent / f"{NAME}.json").write_text("{"),
        lambda path: (path.parent / f"{NAME}.json").unlink(),
    ),
]


def test_a_record_of_an_earlier_version_is_enough(
    tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isanet.from_pretrained(NAME)
    path = home / f"{NAME}.json"
    record = json.loads(path.read_text())
    del record["file_blake3"]
    path.write_text(json.dumps(record))
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    isanet.from_pretrained(NAME)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_never_loaded(
    tiny: FileServer,
    home: Path,
    good: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
) -> None:
    isanet.from_pretrained(NAME)
    damage(the_file(home))
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    with pytest.raises(isanet.OfflineError) as caught:
        isanet.from_pretrained(NAME)
    assert str(home) in str(caught.value)
    assert FILE_NAME in str(caught.value)
    with pytest.raises((isanet.CacheError, isanet.IntegrityError)):
        released.verify(isanet.model_info(NAME))
    monkeypatch.setenv("ISANET_OFFLINE", "0")
    if damage is a_folder:
        next(path for path in home.iterdir() if path.is_dir()).rmdir()
    assert same(isanet.from_pretrained(NAME).state_dict(), good)
    assert gets(tiny) == [f"/{FILE_NAME}"] * 2
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert same(isanet.from_pretrained(NAME).state_dict(), good)


def test_damage_is_logged(tiny: FileServer, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    isanet.from_pretrained(NAME)
    flip_value(the_file(home))
    isanet.from_pretrained(NAME)
    assert "it was changed or damaged" in caplog.text


def test_offline_a_model_that_was_never_cached_is_an_error(
    tiny: FileServer, home: Path, no_sockets: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_sockets()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(isanet.OfflineError) as caught:
        isanet.from_pretrained(NAME)
    for hint in (str(home), FILE_NAME, f"https://127.0.0.1:1/{FILE_NAME}"):
        assert hint in str(caught.value)
    assert names(home) == set()


@pytest.mark.parametrize("file_name", [FILE_NAME, "isanet_tiny.pth"])
@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_file_put_there_by_hand_is_used(
    tiny: FileServer,
    home: Path,
    good: dict[str, Tensor],
    no_sockets: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    file_name: str,
    offline: str,
) -> None:
    home.mkdir()
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    (home / file_name).write_bytes(upstream)
    no_sockets()
    monkeypatch.setenv("ISANET_OFFLINE", offline)
    model = isanet.from_pretrained(NAME)
    assert same(model.state_dict(), good)
    assert model.provenance["source"] == f"{file_name}, put into the cache by hand"  # no path of this machine
    assert (home / file_name).read_bytes() == upstream


def test_a_damaged_file_put_there_by_hand_is_not_recorded(
    tiny: FileServer, home: Path, good: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of a weight is another: all shapes fit, all values are finite, and no hash was published."""
    home.mkdir()
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    damaged = bytearray(upstream)
    damaged[upstream.index(good["classifier.weight"].numpy().tobytes())] ^= 1
    (home / FILE_NAME).write_bytes(damaged)
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    with pytest.raises(isanet.CheckpointFormatError, match="damaged: its CRC"):
        isanet.from_pretrained(NAME)
    assert cache.read_record(NAME) is None
    monkeypatch.setenv("ISANET_OFFLINE", "0")
    assert same(isanet.from_pretrained(NAME).state_dict(), good)


@pytest.mark.parametrize("content", [b"", b"<html>log in</html>", b"PK\x03\x04 truncated"])
def test_a_bad_file_put_there_by_hand_is_skipped_only_online(
    tiny: FileServer, home: Path, good: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    home.mkdir()
    (home / FILE_NAME).write_bytes(content)
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    with pytest.raises(isanet.IsanetError, match=FILE_NAME):
        isanet.from_pretrained(NAME)
    monkeypatch.setenv("ISANET_OFFLINE", "0")
    assert same(isanet.from_pretrained(NAME).state_dict(), good)
    assert (home / FILE_NAME).read_bytes() == content, "it is the user's"


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_later_copy_must_match_the_recorded_hash(
    tiny: FileServer, home: Path, good: dict[str, Tensor], by_hand: bool
) -> None:
    isanet.from_pretrained(NAME)
    first = cache.read_record(NAME)
    assert first is not None
    cache.clear(NAME)
    changed = other_version()
    tiny.files[f"/{FILE_NAME}"] = changed
    if by_hand:
        (home / FILE_NAME).write_bytes(changed)
    with pytest.raises(isanet.DownloadError) as caught:
        isanet.from_pretrained(NAME)
    assert "wrong bytes" in str(caught.value)
    assert first.source_sha256 in str(caught.value)
    assert sha256(changed).hexdigest() in str(caught.value)
    assert names(home) - {FILE_NAME} == {f"{NAME}.json"}
    assert cache.read_record(NAME) == first
    cache.clear(NAME, forget=True)
    model = isanet.from_pretrained(NAME)
    assert torch.equal(model.classifier.bias, good["classifier.bias"] + 1)
    assert model.provenance["source_sha256"] == sha256(changed).hexdigest()


def test_forcing_does_not_accept_another_hash(tiny: FileServer, home: Path, good: dict[str, Tensor]) -> None:
    isanet.from_pretrained(NAME)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    tiny.files[f"/{FILE_NAME}"] = other_version()
    with pytest.raises(isanet.DownloadError, match="wrong bytes"):
        released.load(isanet.model_info(NAME), force=True)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert same(isanet.from_pretrained(NAME).state_dict(), good)


def test_a_pinned_hash_overrides_what_is_cached(
    tiny: FileServer, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    isanet.from_pretrained(NAME)
    old = the_file(home)
    changed = other_version()
    pinned = sha256(changed).hexdigest()
    document = json.loads((tmp_path / "weights.json").read_text())
    document["weights"][NAME] |= {"sha256": pinned, "size": len(changed)}
    (tmp_path / "weights.json").write_text(json.dumps(document))
    with pytest.raises(isanet.IntegrityError, match=pinned):
        released.verify(isanet.model_info(NAME))
    with pytest.raises(isanet.DownloadError, match="expected"):
        isanet.from_pretrained(NAME)
    assert pinned in caplog.text
    assert the_file(home) == old
    tiny.files[f"/{FILE_NAME}"] = changed
    assert isanet.from_pretrained(NAME).provenance["source_sha256"] == pinned
    assert names(home) == {f"{NAME}.json", the_file(home).name}
    assert the_file(home) != old


def test_two_versions_of_the_converter_share_a_cache_without_fetching_in_turns(
    tiny: FileServer, home: Path, good: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cache.CONVERTER_VERSION, cache.CONVERTER_VERSION + 1
    isanet.from_pretrained(NAME)
    files = {path: path.read_bytes() for path in home.glob("*.[js]*")}
    for version in (second, first, second):
        monkeypatch.setattr(cache, "CONVERTER_VERSION", version)
        model = isanet.from_pretrained(NAME)
        assert same(model.state_dict(), good)
        assert model.provenance["converter_version"] == str(version)
        assert released.verify(isanet.model_info(NAME)) == cache.read_record(NAME)
        assert f"-{sha256(the_file(home).read_bytes()).hexdigest()[:8]}." in the_file(home).name
    assert len(gets(tiny)) == 2
    assert len(names(home)) == 4
    assert {path: path.read_bytes() for path in files} == files, "the first version's files are as they were"
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    for version in (first, second):
        monkeypatch.setattr(cache, "CONVERTER_VERSION", version)
        assert same(isanet.from_pretrained(NAME).state_dict(), good)
    monkeypatch.setattr(cache, "CONVERTER_VERSION", second + 1)
    assert cache.cached_file(NAME) is None
    with pytest.raises(isanet.OfflineError, match="another version of isanet converts it"):
        isanet.from_pretrained(NAME)
    assert cache.clear(NAME) > 0
    assert len(names(home)) == 2, "the records"
    cache.clear(NAME, forget=True)
    assert names(home) == set()


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_first_copy_is_logged_and_recorded_once(
    tiny: FileServer, home: Path, caplog: pytest.LogCaptureFixture, by_hand: bool
) -> None:
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    if by_hand:
        home.mkdir()
        (home / FILE_NAME).write_bytes(upstream)
    digest = sha256(upstream).hexdigest()
    for _ in range(2):
        isanet.from_pretrained(NAME)
        cache.clear(NAME)
    (logged,) = [entry.getMessage() for entry in caplog.records if "first copy" in entry.getMessage()]
    assert logged.startswith(f"first copy of {NAME}: ")
    assert digest in logged
    recorded = cache.read_record(NAME)
    assert recorded is not None
    assert recorded.source_sha256 == digest


def test_what_one_version_recorded_binds_the_others(
    tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isanet.from_pretrained(NAME)
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    tiny.files[f"/{FILE_NAME}"] = other_version()
    monkeypatch.setattr(cache, "CONVERTER_VERSION", cache.CONVERTER_VERSION + 1)
    with pytest.raises(isanet.DownloadError, match="wrong bytes") as caught:
        isanet.from_pretrained(NAME)
    assert f"isanet cache clear {NAME} --forget" in str(caught.value)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


@pytest.mark.parametrize("variable", ["ISANET_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("state", ["is not cached", "is cached, but its file is damaged"])
def test_an_offline_error_says_what_is_missing_why_and_what_helps(
    tiny: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, state: str
) -> None:
    if "damaged" in state:
        isanet.from_pretrained(NAME)
        truncate(the_file(home))
    monkeypatch.setenv(variable, "1")
    with pytest.raises(isanet.OfflineError) as caught:
        isanet.from_pretrained(NAME)
    first, *addresses = str(caught.value).splitlines()
    assert first.startswith(
        f"{NAME} {state}, and {variable} is set; unset it, put {FILE_NAME} into {home} by hand, or "
    )
    assert f"`isanet install` an archive that `isanet pack {NAME}` wrote" in first
    assert len(addresses) == 4
    assert all(line.endswith(f".pth: not tried, because {variable} is set") for line in addresses)


@posix
@pytest.mark.parametrize("swap", ["swept", "link", "file"])
def test_what_takes_the_place_of_a_running_download_is_neither_read_nor_changed(
    tiny: FileServer, home: Path, tmp_path: Path, good: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    victim.chmod(0o600)
    read_fetched = released._read_fetched

    def swapped(fetched: Any) -> Any:
        fetched.path.unlink()
        if swap == "link":
            fetched.path.symlink_to(victim)
        elif swap == "file":
            fetched.path.write_bytes(other_version())
        return read_fetched(fetched)

    monkeypatch.setattr(released, "_read_fetched", swapped)
    if swap == "swept":
        with pytest.raises(isanet.CacheError, match="cached, but its released file cannot be kept"):
            released.load(isanet.model_info(NAME), keep=True)
    else:
        released.load(isanet.model_info(NAME), keep=True)
    assert same(isanet.from_pretrained(NAME).state_dict(), good)
    assert (victim.read_bytes(), victim.stat().st_mode & 0o777) == (VICTIM, 0o600)


def test_a_folder_where_the_released_file_should_be_kept_is_named(tiny: FileServer, home: Path) -> None:
    (home / FILE_NAME).mkdir(parents=True)
    with pytest.raises(isanet.CacheError, match=f"is cached, but .*{FILE_NAME}: Is a directory"):
        released.load(isanet.model_info(NAME), keep=True)
    released.verify(isanet.model_info(NAME))
    assert not list(home.glob("*.part"))


@posix
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("planted", ["record", "converted", "kept", "lock"])
def test_a_link_planted_in_the_cache_is_never_written_through(
    tiny: FileServer,
    home: Path,
    tmp_path: Path,
    good: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    planted: str,
    exists: bool,
) -> None:
    isanet.from_pretrained(NAME)
    file, data = the_file(home).name, the_file(home).read_bytes()
    monkeypatch.setattr(checkpoint, "serialize", lambda *_: data)  # so that the name is known before
    for path in home.iterdir():
        path.unlink()
    victim = tmp_path / "victim"
    if exists:
        victim.write_bytes(VICTIM)
    place = home / {"record": f"{NAME}.json", "converted": file, "kept": FILE_NAME, "lock": f"{NAME}.lock"}[planted]
    place.symlink_to(victim)
    if planted == "lock":
        with pytest.raises(isanet.CacheError, match="ISANET_HOME"):
            isanet.from_pretrained(NAME)
        assert names(home) == set()
    else:
        network, _ = released.load(isanet.model_info(NAME), keep=True)
        assert same(network.state_dict(), good)
        assert not place.is_symlink()
        assert names(home) == {f"{NAME}.json", file, FILE_NAME}
    assert (victim.read_bytes() if victim.exists() else None) == (VICTIM if exists else None)
