"""Archives for machines without a network: packed from one cache, installed into another, refused when they lie."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet.cli import run as cli
from isanet.weights import cache, checkpoint
from isanet.weights.manifest import model_info
from isanet.zoo import archive as archives
from isanet.zoo import released
from tests.helpers import tiny_zoo
from tests.helpers.disk import full_at
from tests.helpers.file_server import FileServer
from tests.helpers.tiny_zoo import NAME

ROOT = Path(__file__).parents[2]
MEMBER = f"{NAME}.safetensors"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for locks."""
    return (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"} if folder.exists() else {}
    )


def same(model: isanet.ISANet, other: isanet.ISANet) -> bool:
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@pytest.fixture
def archive(tiny: FileServer, tmp_path: Path, home: Path) -> Path:
    """An archive of the tiny model, whose cache is then out of the way: this is the other machine now."""
    path = tmp_path / "models.zip"
    archives.pack([NAME], path)
    home.rename(tmp_path / "first_home")
    return path


@pytest.fixture
def alone(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where every connection fails the test."""
    monkeypatch.delenv("ISANET_MIRROR")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    return archive


def parts(archive: Path) -> tuple[dict[str, Any], bytes]:
    """The index and the one model of an archive."""
    with zipfile.ZipFile(archive) as file:
        return json.loads(file.read(archives.INDEX)), file.read(MEMBER)


def write(archive: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = 0) -> None:
    with zipfile.ZipFile(archive, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)


def dumped(index: Any) -> bytes:
    return json.dumps(index).encode()


# --- there and back -----------------------------------------------------------------------------------------


def test_a_model_moves_to_a_machine_without_a_network(alone: Path, tmp_path: Path, home: Path) -> None:
    assert archives.install(alone) == {NAME: True}
    there = isanet.from_pretrained(NAME)
    os.environ["ISANET_HOME"] = str(tmp_path / "first_home")
    here, first = isanet.from_pretrained(NAME), cache.read_record(NAME)
    os.environ["ISANET_HOME"] = str(home)
    assert same(there, here)
    assert there.provenance == here.provenance
    record = cache.read_record(NAME)
    assert record is not None
    assert first is not None
    assert record.source == f"{first.source} (by models.zip)"
    assert (record.source_sha256, record.file_sha256, record.date) == (
        first.source_sha256,
        first.file_sha256,
        first.date,
    )
    assert released.verify(model_info(NAME)) == record


def test_the_commands(tiny: FileServer, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "models.zip"
    assert run("pack", NAME, "-o", archive) == 0
    out = capsys.readouterr().out
    assert sha256(archive.read_bytes()).hexdigest() in out
    assert "isanet install models.zip" in out
    asked = len(tiny.requests)
    shutil.rmtree(home)
    os.environ["ISANET_OFFLINE"] = "1"
    try:
        assert run("install", archive) == 0
        assert f"{NAME} is ready: {cache.cached_file(NAME)}" in capsys.readouterr().out
        before = files(home)
        assert run("install", archive) == 0
        assert "was there already" in capsys.readouterr().out
        assert files(home) == before
        assert run("verify", NAME) == 0
        assert f"{tiny.url}/{tiny_zoo.FILE_NAME} (by models.zip)" in capsys.readouterr().out
    finally:
        del os.environ["ISANET_OFFLINE"]
    assert len(tiny.requests) == asked


def test_an_existing_archive_is_kept(archive: Path, tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    before = archive.read_bytes()
    archive.write_bytes(b"mine")
    asked = len(tiny.requests)
    assert run("pack", NAME, "-o", archive) == 1
    assert "was kept; --force" in capsys.readouterr().err
    assert archive.read_bytes() == b"mine"
    assert len(tiny.requests) == asked  # said before anything is fetched
    assert run("pack", NAME, "-o", archive, "--force") == 0
    again, first = parts(archive)[0]["models"][NAME], zipfile.ZipFile(io.BytesIO(before)).read(archives.INDEX)
    assert again["record"]["file_sha256"] == json.loads(first)["models"][NAME]["record"]["file_sha256"]


def test_the_same_cache_gives_the_same_bytes(tiny: FileServer, tmp_path: Path) -> None:
    packed = archives.pack([NAME], tmp_path / "a.zip")
    written = (tmp_path / "a.zip").read_bytes()
    assert packed == ([NAME], sha256(written).hexdigest(), len(written))
    archives.pack([NAME, NAME], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_origin_is_kept_over_several_archives(alone: Path, tmp_path: Path, home: Path) -> None:
    archives.install(alone)
    first = cache.read_record(NAME)
    archives.pack([NAME], tmp_path / "second.zip")
    shutil.rmtree(home)
    archives.install(tmp_path / "second.zip")
    second = cache.read_record(NAME)
    assert first is not None
    assert second is not None
    assert second.source == first.source.replace("models.zip", "second.zip")


def test_a_backbone_too(tiny: FileServer, tmp_path: Path, home: Path) -> None:
    data = tiny_zoo.saved(tiny_zoo.backbone_state())
    tiny_zoo.publish_backbone(tmp_path / "weights.json", tiny.files, data)
    archives.pack([NAME, "resnet14_v1c"], tmp_path / "both.zip")
    expected = isanet.from_backbone("resnet14", num_classes=2).backbone.state_dict()
    shutil.rmtree(home)
    tiny.files.clear()
    assert archives.install(tmp_path / "both.zip") == {NAME: True, "resnet14_v1c": True}
    state = isanet.from_backbone("resnet14", num_classes=2).backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_packaged_models_need_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", "isanet_nano_toystreets", "-o", tmp_path / "x.zip") == 1
    error = capsys.readouterr().err
    assert "isanet_nano_toystreets is left out: it is packaged" in error
    assert "nothing to put into the archive" in error
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("case", ["unknown model", "no such folder", "a folder"])
def test_what_cannot_be_packed_leaves_nothing(tiny: FileServer, tmp_path: Path, case: str) -> None:
    (tmp_path / "out").mkdir()
    name = "isanet_tiny_vox" if case == "unknown model" else NAME
    target = {"no such folder": tmp_path / "no" / "x.zip", "a folder": tmp_path / "out"}.get(case, tmp_path / "x.zip")
    with pytest.raises(ValueError if case == "unknown model" else isanet.OutputError):
        archives.pack([name], target, overwrite=True)
    assert not list((tmp_path / "out").iterdir())
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".zip", ".part")]


def test_a_damaged_cache_is_fetched_again_before_it_is_packed(tiny: FileServer, tmp_path: Path, home: Path) -> None:
    isanet.from_pretrained(NAME)
    path = cache.cached_file(NAME)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    archives.pack([NAME], tmp_path / "x.zip")
    shutil.rmtree(home)
    archives.install(tmp_path / "x.zip")


# --- trust --------------------------------------------------------------------------------------------------


def test_another_hash_than_the_recorded_one_is_a_conflict(
    alone: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives.install(alone)
    record = cache.read_record(NAME)
    assert record is not None
    path = home / f"{NAME}.json"
    path.write_text(path.read_text().replace(record.source_sha256, "a" * 64))
    (home / record.file).unlink()  # the record outlives its file
    before = files(home)
    assert run("install", alone) == 1
    error = capsys.readouterr().err
    assert "a" * 64 in error
    assert record.source_sha256 in error
    assert "--force" in error
    assert files(home) == before
    assert run("install", alone, "--force") == 0
    assert cache.read_record(NAME) == record


def test_another_conversion_of_the_same_file_is_a_conflict_unless_the_one_here_is_good(
    alone: Path, home: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first_home"
    shutil.copytree(first, home)
    index, data = parts(alone)
    tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(_as_file(tmp_path, data)))
    data = checkpoint.serialize(tensors, {**metadata, "isanet_version": "9"})
    rebuild(alone, index, data)
    before = files(home)
    assert archives.install(alone) == {NAME: False}
    assert files(home) == before
    mine = cache.cached_file(NAME)
    assert mine is not None
    mine.unlink()
    with pytest.raises(isanet.IntegrityError, match="converted file"):
        archives.install(alone)
    assert archives.install(alone, force=True) == {NAME: True}


def test_a_damaged_file_here_is_mended_by_the_same_one(alone: Path, home: Path) -> None:
    archives.install(alone)
    path = cache.cached_file(NAME)
    assert path is not None
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert archives.install(alone) == {NAME: True}
    assert path.read_bytes() == good


def test_a_pinned_hash_must_match(alone: Path, tmp_path: Path, home: Path) -> None:
    manifest = tmp_path / "weights.json"
    document = json.loads(manifest.read_text())
    document["weights"][NAME]["sha256"] = "c" * 64
    manifest.write_text(json.dumps(document))
    with pytest.raises(isanet.IntegrityError, match="c" * 64):
        archives.install(alone)
    assert not files(home)


# --- hostile archives ---------------------------------------------------------------------------------------


def _as_file(folder: Path, data: bytes) -> Path:
    path = folder / "member.safetensors"
    path.write_bytes(data)
    return path


def rebuild(archive: Path, index: dict[str, Any], data: bytes) -> None:
    """An archive whose index tells the truth about other bytes."""
    model = index["models"][NAME]
    digest = sha256(data).hexdigest()
    model["size"] = len(data)
    model["record"] |= {"file_sha256": digest, "file": f"{NAME}-{digest[:8]}.safetensors"}
    write(archive, [(MEMBER, data), (archives.INDEX, dumped(index))])


def entry(name: str, mode: int = stat.S_IFREG | 0o644, **values: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    for key, value in values.items():
        setattr(made, key, value)
    return made


def with_metadata(**changes: str | None) -> Callable[[Path], None]:
    def change(archive: Path) -> None:
        index, data = parts(archive)
        tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(_as_file(archive.parent, data)))
        metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
        rebuild(archive, index, checkpoint.serialize(tensors, metadata))

    return change


def with_tensors(change_tensors: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def change(archive: Path) -> None:
        index, data = parts(archive)
        tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(_as_file(archive.parent, data)))
        tensors = {name: value.clone() for name, value in tensors.items()}
        change_tensors(tensors)
        rebuild(archive, index, checkpoint.serialize(tensors, metadata))

    return change


def with_index(change_index: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(archive: Path) -> None:
        index, data = parts(archive)
        change_index(index)
        write(archive, [(MEMBER, data), (archives.INDEX, dumped(index))])

    return change


def with_record(**changes: Any) -> Callable[[Path], None]:
    return with_index(lambda index: index["models"][NAME]["record"].update(changes))


def with_more(*more: tuple[str | zipfile.ZipInfo, bytes]) -> Callable[[Path], None]:
    def change(archive: Path) -> None:
        index, data = parts(archive)
        write(archive, [(MEMBER, data), (archives.INDEX, dumped(index)), *more])

    return change


def raw_index(text: bytes) -> Callable[[Path], None]:
    return lambda archive: write(archive, [(MEMBER, parts(archive)[1]), (archives.INDEX, text)])


def patched(change_bytes: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda archive: archive.write_bytes(change_bytes(archive.read_bytes()))


def twice(archive: Path) -> None:
    index, data = parts(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(archive, [(MEMBER, data), (MEMBER, data), (archives.INDEX, dumped(index))])


def deflated(archive: Path) -> None:
    index, _ = parts(archive)
    index["models"][NAME]["size"] = 1 << 26
    write(archive, [(MEMBER, bytes(1 << 26)), (archives.INDEX, dumped(index))], zipfile.ZIP_DEFLATED)


def a_second_directory(archive: Path) -> None:
    """Another archive before this one: readers that search for a directory may take either."""
    data = archive.read_bytes()
    archive.write_bytes(data + data)


def a_hidden_directory(archive: Path) -> None:
    """A locator of zip64's directory before the end, which the module zipfile follows."""
    data = archive.read_bytes()
    end = bytearray(data[-22:])
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 1)
    length = int.from_bytes(end[12:16], "little") + len(locator)
    end[12:16] = length.to_bytes(4, "little")
    archive.write_bytes(data[:-22] + locator + bytes(end))


def two_names(data: bytes) -> bytes:
    """The local header has another name than the directory."""
    return data.replace(MEMBER.encode(), MEMBER.upper().encode(), 1)


def large(index: dict[str, Any]) -> None:
    index["models"][NAME]["size"] += 1


def swap_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def encrypted(data: bytes) -> bytes:
    start = data.rindex(b"PK\x01\x02")
    return data[: start + 8] + b"\x01" + data[start + 9 :]


def lying_size(archive: Path) -> None:
    """A file far larger than the model, declared as such: refused before it is read."""
    index, data = parts(archive)
    data += bytes(2 * model_info(NAME).payload + (9 << 20))
    rebuild(archive, index, data)


LINK = stat.S_IFLNK | 0o777
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "truncated or broken"),
    "html": (lambda path: path.write_bytes(b"<html>" * 9), "truncated or broken"),
    "truncated": (patched(lambda data: data[:-1]), "truncated or broken"),
    "truncated at the start": (patched(lambda data: data[1:]), "not lie where"),
    "something before": (patched(lambda data: b"#!/bin/sh\n" + data), "not lie where"),
    "something after": (patched(lambda data: data + b"\0"), "truncated or broken"),
    "a comment": (patched(lambda data: data[:-2] + b"\x01\0x"), "truncated or broken"),
    "two directories": (a_second_directory, "not lie where"),
    "a hidden directory": (a_hidden_directory, "directory is broken"),
    "two names": (patched(two_names), "another name before its data"),
    "a flipped bit": (patched(swap_bit), "sha256"),
    "a member twice": (twice, "twice"),
    "a compressed bomb": (deflated, "compressed"),
    "encrypted": (patched(encrypted), "encrypted"),
    "a folder": (with_more((entry("folder/", stat.S_IFDIR | 0o755), b"")), "a folder, a link"),
    "a link": (with_more((entry("link", LINK), b"/etc/passwd")), "a folder, a link"),
    "a link as the model": (
        lambda path: write(path, [(entry(MEMBER, LINK), b"/etc/passwd"), (archives.INDEX, dumped(parts(path)[0]))]),
        "a folder, a link",
    ),
    "an absolute name": (with_more(("/tmp/evil", b"")), "not in the index"),
    "a name that climbs": (with_more(("../evil", b"")), "'../evil' is not in the index"),
    "a name with escapes": (with_more(("\x1b[2Jevil", b"")), "evil' is not in the index"),
    "an unexpected entry": (with_more(("isanet_tiny_voc.json", b"{}")), "not in the index"),
    "extra fields": (with_more((entry("x", extra=b"\x01\x00\x00\x00"), b"")), "not as"),
    "no index": (lambda path: write(path, [(MEMBER, parts(path)[1])]), "no index"),
    "a large index": (raw_index(b" " * (archives.MAX_INDEX_BYTES + 1)), "too large"),
    "an index that is no JSON": (raw_index(b"{"), "not usable"),
    "an index that is a list": (raw_index(b"[]"), "not usable"),
    "a deep index": (raw_index(b"[" * 100_000), "not usable"),
    "a key twice": (raw_index(b'{"schema": 1, "schema": 1, "models": {}}'), "twice"),
    "a newer index": (raw_index(b'{"schema": 2, "models": {}}'), "a newer isanet"),
    "an empty index": (raw_index(b'{"schema": 1, "models": {}}'), "and a model"),
    "models that are a list": (raw_index(b'{"schema": 1, "models": [1]}'), "not usable"),
    "a path as a model": (with_index(lambda i: i["models"].update({"../evil": i["models"][NAME]})), "'../evil' is no"),
    "an unknown model": (with_index(lambda i: i["models"].update(other=i["models"][NAME])), "'other' is no model"),
    "an unknown key": (with_index(lambda i: i["models"][NAME].update(run="x")), "exactly the keys"),
    "another size": (with_index(large), "no file of the size"),
    "a larger file than the manifest allows": (lying_size, "at most"),
    "a record without a hash": (with_record(file_sha256="x"), "not a SHA-256 digest"),
    "a record that names a path": (with_record(file="../../evil.safetensors"), "not a file name that isanet writes"),
    "a record with escapes": (with_record(source="\x1b[2J"), "not printable"),
    "a long record": (with_record(source="x" * 9999), "too long"),
    "no date": (with_record(date="yesterday"), "yesterday"),
    "another layout": (with_record(layout="mmsegmentation"), "layout"),
    "another converter": (with_record(converter=99), "version 99"),
    "another hash of the file": (with_record(file_sha256="d" * 64), "d" * 64),
    "another origin": (with_record(source="https://elsewhere/x.pth"), "another origin"),
    "another hash of the origin": (with_record(source_sha256="d" * 64), "another origin"),
    "metadata of another model": (with_metadata(name="isanet_r50_voc"), "another origin"),
    "no metadata": (with_metadata(source=None), "another origin"),
    "a missing tensor": (with_tensors(lambda t: t.pop("classifier.bias")), "classifier.bias is missing"),
    "an extra tensor": (with_tensors(lambda t: t.update(more=torch.zeros(1))), "more is not part"),
    "another shape": (with_tensors(lambda t: t.update({"classifier.bias": torch.zeros(3)})), "shape"),
    "not finite": (with_tensors(lambda t: t["classifier.bias"].fill_(float("nan"))), "not finite"),
    "a pickle": (lambda path: rebuild(path, parts(path)[0], tiny_zoo.saved({"a": 1})), "safetensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_whole(alone: Path, home: Path, case: str) -> None:
    change, message = HOSTILE[case]
    change(alone)
    around = {path for path in alone.parent.rglob("*") if path != home}
    with pytest.raises(isanet.IsanetError) as caught:
        archives.install(alone)
    assert message in str(caught.value)
    assert "nothing was installed" in str(caught.value)
    assert str(alone) in str(caught.value)
    assert str(caught.value).isprintable()
    assert not files(home)
    assert {path for path in alone.parent.rglob("*") if path != home and home not in path.parents} == around


def test_one_bad_model_keeps_the_others_out(tiny: FileServer, tmp_path: Path, home: Path) -> None:
    data = tiny_zoo.saved(tiny_zoo.backbone_state())
    tiny_zoo.publish_backbone(tmp_path / "weights.json", tiny.files, data)
    archive = tmp_path / "both.zip"
    archives.pack([NAME, "resnet14_v1c"], archive)
    shutil.rmtree(home)
    whole = archive.read_bytes()
    start = whole.index(b"resnet14_v1c.safetensors") + 1_000_000
    archive.write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    with pytest.raises(isanet.IntegrityError, match="resnet14_v1c"):
        archives.install(archive)
    assert not files(home)


@pytest.mark.parametrize("case", ["missing", "a folder", "a pipe"])
def test_what_is_not_a_regular_file_is_refused_at_once(tiny: FileServer, tmp_path: Path, home: Path, case: str) -> None:
    path = tmp_path / "x.zip"
    if case == "a folder":
        path.mkdir()
    elif case == "a pipe":
        os.mkfifo(path)
    with pytest.raises(isanet.CheckpointError, match="no file"):
        archives.install(path)
    assert not home.exists()


def test_a_swap_between_check_and_writing_is_noticed(alone: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = cache.lock

    def swap_then_lock(name: str) -> Any:
        data = bytearray(alone.read_bytes())
        data[200_000] ^= 1
        alone.write_bytes(data)
        return locked(name)

    monkeypatch.setattr(cache, "lock", swap_then_lock)
    with pytest.raises(isanet.IntegrityError, match="changed while it was read"):
        archives.install(alone)
    assert not files(home)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(alone: Path, home: Path) -> None:
    home.mkdir(mode=0o500)
    with pytest.raises(isanet.CacheError, match="ISANET_HOME"):
        archives.install(alone)


def test_a_full_disk_leaves_what_was(alone: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "mine").write_bytes(b"mine")
    full_at(monkeypatch, file=1)
    with pytest.raises(isanet.CacheError, match="bytes needed"):
        archives.install(alone)
    monkeypatch.undo()
    assert {path.name for path in home.iterdir() if path.suffix != ".lock"} == {"mine"}


def test_a_link_planted_in_the_cache_is_not_followed(alone: Path, home: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    home.mkdir()
    record = parts(alone)[0]["models"][NAME]["record"]
    (home / record["file"]).symlink_to(victim)
    (home / f"{NAME}.json").symlink_to(victim)
    archives.install(alone, force=True)
    assert victim.read_bytes() == b"mine"
    assert not (home / record["file"]).is_symlink()
    isanet.from_pretrained(NAME)


def test_two_processes_install_at_once(alone: Path, home: Path) -> None:
    code = (
        "import isanet.weights.manifest, pathlib, sys\n"
        f"isanet.weights.manifest.manifest_path = lambda: pathlib.Path({str(alone.parent / 'weights.json')!r})\n"
        "from isanet.cli.run import main\n"
        f"sys.exit(main(['install', {str(alone)!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=120)[0] for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert "is ready" in said[0]
    assert "was there already" in said[1]
    isanet.from_pretrained(NAME)


def test_the_cache_is_no_place_for_an_archive(tiny: FileServer, home: Path) -> None:
    isanet.from_pretrained(NAME)
    before = files(home)
    with pytest.raises(ValueError, match="write the archive elsewhere"):
        archives.pack([NAME], home / f"{NAME}.json", overwrite=True)
    assert files(home) == before


def test_a_record_that_cannot_be_read_is_not_replaced_unasked(alone: Path, home: Path) -> None:
    archives.install(alone)
    path = cache.record_path(NAME)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(isanet.IntegrityError, match="cannot be read, so nothing can be compared"):
        archives.install(alone)
    assert archives.install(alone, force=True) == {NAME: True}
    assert cache.read_record(NAME) is not None


def test_an_older_conversion_is_replaced(alone: Path) -> None:
    archives.install(alone)
    record = cache.read_record(NAME)
    assert record is not None
    path = cache.record_path(NAME)
    path.write_text(path.read_text().replace(f'"converter": {record.converter}', '"converter": 0'))
    assert archives.install(alone) == {NAME: True}
    assert cache.read_record(NAME) == record


def test_untrusted_text_does_not_reach_the_terminal(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, data = parts(alone)
    tensors, metadata = checkpoint.read_safetensors(checkpoint.read_file(_file(alone, data)))
    for state, texts, reason in (
        ({**tensors, "\x1b[2Jevil\u202e": torch.zeros(1)}, metadata, "is not part of the model"),
        (tensors, {**metadata, "evil": "x"}, "not as isanet writes it"),
        (tensors, {**metadata, "isanet_version": "\x1b[31m"}, "not as isanet writes it"),
    ):
        changed = checkpoint.serialize(state, {key: text for key, text in texts.items() if key != "format"})
        model = index["models"][NAME]
        model["size"], model["record"]["file_sha256"] = len(changed), sha256(changed).hexdigest()
        model["record"]["file"] = f"{NAME}-{sha256(changed).hexdigest()[:8]}.safetensors"
        write(alone, [(MEMBER, changed), (archives.INDEX, json.dumps(index).encode())])
        assert run("install", alone) == 1
        error = capsys.readouterr().err
        assert "nothing was installed" in error
        assert reason in error
        assert all(line.isprintable() for line in error.splitlines())


def _file(archive: Path, data: bytes) -> Path:
    path = archive.with_name("member.safetensors")
    path.write_bytes(data)
    return path
