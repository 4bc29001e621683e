"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isanet._files import atomic_write, atomic_write_all, looks_like, output_stream
from isanet.errors import OutputError
from tests.helpers.disk import full_at

posix = pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
VICTIM = b"precious"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("existing", [None, b"old"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError(28, "No space left on device"), None])
def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, existing: bytes | None, failure: type[BaseException] | BaseException | None
) -> None:
    target = tmp_path / "target"
    if existing is not None:
        target.write_bytes(existing)

    def write() -> None:
        with atomic_write(target) as file:
            assert Path(file.name).parent == tmp_path
            file.write(b"new, but")
            assert (target.read_bytes() if target.exists() else None) == existing
            if failure is not None:
                raise failure

    if failure is None:
        write()
        assert target.read_bytes() == b"new, but"
    else:
        with pytest.raises(failure if isinstance(failure, type) else type(failure)):
            write()
        assert (target.read_bytes() if target.exists() else None) == existing
    assert names(tmp_path) == ({"target"} if target.exists() else set())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "target").write_bytes(b"old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError), atomic_write(tmp_path / "target") as file:
        file.write(b"new")
    assert names(tmp_path) == {"target"}
    assert (tmp_path / "target").read_bytes() == b"old"


def test_data_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda path, target: steps.append("replace") or replace(path, target))
    with atomic_write(tmp_path / "target") as file:
        file.write(b"new")
    assert steps == ["fsync", "replace"]


def test_a_vanished_temporary_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "target") as file:
        Path(file.name).unlink()
    assert names(tmp_path) == set()


@posix
@pytest.mark.parametrize("planted", ["target", "temporary", "dangling"])
def test_a_planted_link_is_replaced_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    victim, target = tmp_path / "victim", tmp_path / "target"
    if planted != "dangling":
        victim.write_bytes(VICTIM)
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    if planted == "temporary":
        (tmp_path / f".isanet-{'0' * 16}.part").symlink_to(victim)
        with pytest.raises(FileExistsError), atomic_write(target):
            pass
        assert not target.exists()
    else:
        target.symlink_to(victim)
        with atomic_write(target) as file:
            file.write(b"new")
        assert target.read_bytes() == b"new"
        assert not target.is_symlink()
    assert (victim.read_bytes() if victim.exists() else None) == (None if planted == "dangling" else VICTIM)


@posix
@pytest.mark.parametrize("swap", ["link", "file"])
def test_what_is_put_in_the_place_of_the_temporary_file_is_not_taken(tmp_path: Path, swap: str) -> None:
    """By another user of a folder that a group shares."""
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.write_bytes(VICTIM)
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_write(target) as file:
            Path(file.name).unlink()
            if swap == "link":
                Path(file.name).symlink_to(victim)
            else:
                Path(file.name).write_bytes(b"another")
            file.write(b"new")

    with pytest.raises(OSError, match="something else was put"):
        write()
    assert names(tmp_path) == {"victim", "target"}
    assert not target.is_symlink()
    assert (victim.read_bytes(), target.read_bytes()) == (VICTIM, b"old")


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_the_users_umask_holds(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "target") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("failing", [1, 2])
def test_several_files_are_all_written_before_the_first_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old")
    with monkeypatch.context() as patch:
        full_at(patch, file=failing)
        with pytest.raises(OSError):
            atomic_write_all([(tmp_path / "a", b"new"), (tmp_path / "b", b"new")])
    assert names(tmp_path) == {"a", "b"}
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}
    atomic_write_all([(tmp_path / "a", b"new"), (tmp_path / "b", b"new")])
    assert names(tmp_path) == {"a", "b"}
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"new"}


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \n<!doctype HTML>", "web page"),
        (b"<head>", "web page"),
        (b"<svg xmlns=''>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x80\x04\x95", "pickle"),
        (b"PK\x03\x04", "zip"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (bytes(100), "zeros"),
        (b"some text", "text"),
        (b"\x93\x94\x95", "unknown data (93 94 95)"),
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>", "Google Drive's warning page"),
        (b"<html><head><title>Google Drive - Quota exceeded</title>" + b" " * 9999, "not the file behind it"),
        (b'<html><head><base href="https://accounts.google.com/v3/">', "Google's page for signing in"),
        ("<!DOCTYPE html><title>\u767e\u5ea6\u7f51\u76d8-\u94fe\u63a5</title>".encode(), "Baidu's page"),
        (b'<html><head><link href="//pan.baidu.com/box">', "Baidu's page"),
        (b"Google Drive is text here", "text"),
    ],
)
def test_what_a_file_looks_like(start: bytes, words: str) -> None:
    assert words in looks_like(start)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, BrokenPipeError(32, "Broken pipe")])
def test_a_stream_leaves_the_errors_of_others_as_they_are(
    tmp_path: Path, failure: type[BaseException] | BaseException
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def broken() -> None:
        with output_stream(target) as write:
            write(b"half")
            raise failure

    kind = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(kind, check=lambda error: type(error) is kind):
        broken()
    assert (target.read_bytes(), names(tmp_path)) == (b"old", {"target"})


def test_a_stream_that_cannot_be_written_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    with pytest.raises(OutputError, match="nowhere"), output_stream(tmp_path / "nowhere" / "a"):
        pass
    full_at(monkeypatch, 1)
    with pytest.raises(OutputError, match="target: No space left"), output_stream(target) as write:
        write(b"a")
    assert not names(tmp_path)
    with output_stream(target) as write:
        write(b"a")
        assert names(tmp_path) != {"target"}
        write(b"b")
    assert (target.read_bytes(), names(tmp_path)) == (b"ab", {"target"})
