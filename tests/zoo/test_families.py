"""What further families of the zoo need: names with a dot, files that only a person can fetch, licenses."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet.weights import cache
from isanet.zoo import released
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer
from tests.helpers.tiny_zoo import FILE_NAME

PLAIN, DOTTED = tiny_zoo.NAME, f"{tiny_zoo.NAME}.mmseg_20k"
FILE, OTHER_FILE = tiny_zoo.upstream_state(), tiny_zoo.upstream_state("mmsegmentation")


def entry(folder: Path, **changes: Any) -> dict[str, Any]:
    """The tiny model's entry, from the manifest that is there, with changes."""
    return {**json.loads((folder / "weights.json").read_text())["weights"][PLAIN], **changes}


def mmsegmentation(folder: Path) -> dict[str, Any]:
    """The entry of a model in mmsegmentation's layout."""
    return entry(
        folder,
        architecture={**tiny_zoo.ARCHITECTURE, "value_bias": True, "fusion_kernel": 1},
        layout="mmsegmentation",
        family="mmsegmentation",
        urls=["https://127.0.0.1:1/mmseg.pth"],
        metrics={"dataset": "PASCAL VOC 2012", "split": "val", "miou": 0.5, "protocol": "mmseg-whole"},
        tensors=len(OTHER_FILE),
        payload=sum(value.nbytes for value in OTHER_FILE.values()),
    )


def zoo_of(monkeypatch: pytest.MonkeyPatch, folder: Path, **entries: dict[str, Any]) -> None:
    """A zoo of these entries, by name."""
    path = folder / "weights.json"
    path.write_text(json.dumps({"schema": 2, "weights": entries, "backbones": {}}))
    monkeypatch.setattr("isanet.weights.manifest.manifest_path", lambda: path)


# --- names with a dot ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Two models, of which one's name is the other's up to the dot."""
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path), DOTTED: mmsegmentation(tmp_path)})
    tiny.files["/mmseg.pth"] = tiny_zoo.saved({"meta": {}, "state_dict": OTHER_FILE})
    return tiny


def test_models_whose_names_start_alike_are_apart(
    pair: FileServer, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, dotted = isanet.from_pretrained(PLAIN), isanet.from_pretrained(DOTTED)
    assert (plain.config["value_bias"], dotted.config["value_bias"]) == (False, True)
    assert dotted.config["protocol"] == "mmseg-whole"
    assert sorted(path.name for path in home.iterdir() if path.suffix == ".json") == [f"{PLAIN}.json", f"{DOTTED}.json"]
    files = {name: cache.cached_file(name) for name in (PLAIN, DOTTED)}
    assert files[DOTTED] is not None
    assert files[DOTTED].name.startswith(f"{DOTTED}-")
    for command in (["verify"], ["cache", "list"], ["list"]):
        assert run(*command) == 0
        out = capsys.readouterr().out
        assert PLAIN in out.replace(DOTTED, "")
        assert DOTTED in out
    assert run("pack", PLAIN, DOTTED, "-o", str(tmp_path / "both.zip")) == 0
    assert run("cache", "clear", PLAIN, "--forget") == 0
    assert (cache.cached_file(PLAIN), cache.cached_file(DOTTED)) == (None, files[DOTTED])
    monkeypatch.setenv("ISANET_HOME", str(tmp_path / "new"))
    assert run("install", str(tmp_path / "both.zip")) == 0
    assert run("verify", PLAIN, DOTTED) == 0
    assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(DOTTED)), tiny_zoo.logits(dotted))
    assert run("selftest", DOTTED, "--device", "cpu", "--precision", "float32") == 0


def test_another_converter_of_a_model_is_not_another_model(
    pair: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isanet.from_pretrained(DOTTED)
    assert cache.read_record(PLAIN) is None
    monkeypatch.setattr(cache, "CONVERTER_VERSION", 2)
    isanet.from_pretrained(DOTTED)
    assert cache.record_path(DOTTED).name == f"{DOTTED}.2.json"
    cache.clear(PLAIN, forget=True)
    assert len(list(home.glob(f"{DOTTED}*.safetensors"))) == 2
    cache.clear(DOTTED, forget=True)
    assert {path.name for path in home.iterdir()} <= {f"{PLAIN}.lock", f"{DOTTED}.lock"}


@pytest.mark.parametrize("name", [f"{DOTTED}x", DOTTED.replace(".", "_"), f"{PLAIN}.mmseg_80k"])
def test_a_wrong_name_with_a_dot_is_no_missing_file(pair: FileServer, name: str) -> None:
    with pytest.raises(ValueError, match=f"no model '{name}' in the zoo; did you mean {DOTTED}"):
        isanet.from_pretrained(name)


@pytest.mark.parametrize("name", [f"{PLAIN}.pth", f"{PLAIN}.pdparams", "street.jpg"])
def test_a_name_that_ends_like_a_file_is_one(pair: FileServer, name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no file or folder '{name}'"):
        isanet.from_pretrained(name)


# --- files that only a person can fetch ---------------------------------------------------------------------

PAGE = "https://drive.google.com/open?id=1-x"
WARNING_PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: FileServer) -> FileServer:
    """A model without an address, and the server of a mirror that is not set."""
    changes = {"urls": [], "file_name": FILE_NAME, "pages": [{"url": PAGE, "note": "Google Drive"}]}
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, **changes), DOTTED: mmsegmentation(tmp_path)})
    monkeypatch.delenv("ISANET_MIRROR")
    return tiny


def test_a_file_without_an_address_is_asked_for_and_then_converted(by_hand: FileServer, home: Path) -> None:
    with pytest.raises(isanet.DownloadError) as caught:
        isanet.from_pretrained(PLAIN)
    wanted = f"open {PAGE} (Google Drive) in a browser and put the file as {FILE_NAME} into {home}"
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    (home / FILE_NAME).write_bytes(tiny_zoo.saved({"model": FILE}))
    model = isanet.from_pretrained(PLAIN)
    assert torch.equal(tiny_zoo.logits(model), tiny_zoo.expected_logits())
    assert model.provenance["source"] == f"{FILE_NAME}, put into the cache by hand"
    assert run("download", PLAIN, "--force") == 0  # converted again
    (home / FILE_NAME).unlink()
    assert run("download", PLAIN) == 0
    with pytest.raises(isanet.DownloadError, match="only a person"):
        released.load(isanet.model_info(PLAIN), force=True)
    assert by_hand.requests == []


def test_offline_the_page_is_named_too(by_hand: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    with pytest.raises(isanet.OfflineError, match="only a person") as caught:
        isanet.from_pretrained(PLAIN)
    assert PAGE in str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (WARNING_PAGE, isanet.CheckpointFormatError, "Google Drive's warning page, not the file"),
        (tiny_zoo.saved({"model": OTHER_FILE}), isanet.CheckpointError, "mmsegmentation"),
        (tiny_zoo.saved({"model": FILE})[:-100], isanet.CheckpointFormatError, FILE_NAME),
    ],
)
def test_a_wrong_file_put_there_by_hand_is_the_error(
    by_hand: FileServer, home: Path, content: bytes, kind: type[Exception], words: str
) -> None:
    home.mkdir()
    (home / FILE_NAME).write_bytes(content)
    with pytest.raises(kind) as caught:
        isanet.from_pretrained(PLAIN)
    assert words in str(caught.value)
    assert FILE_NAME in str(caught.value)
    assert (home / FILE_NAME).read_bytes() == content


def test_a_mirror_has_it_under_its_name_here(by_hand: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_MIRROR", by_hand.url)
    assert isanet.from_pretrained(PLAIN).provenance["source"] == f"{by_hand.url}/{FILE_NAME}"
    cache.clear(PLAIN, forget=True)
    del by_hand.files[f"/{FILE_NAME}"]
    with pytest.raises(isanet.NetworkError, match="404") as caught:
        isanet.from_pretrained(PLAIN)
    assert PAGE in str(caught.value)


def test_all_that_can_be_fetched_is_fetched_before_a_person_is_asked(
    by_hand: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand.files["/mmseg.pth"] = tiny_zoo.saved({"state_dict": OTHER_FILE})
    monkeypatch.setenv("ISANET_MIRROR", by_hand.url)
    del by_hand.files[f"/{FILE_NAME}"]
    assert run("download", "--all") == 1
    out, err = capsys.readouterr()
    assert f"{DOTTED} is ready" in out
    assert PAGE in err


def test_files_of_one_name_are_told_apart(
    tiny: FileServer, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PaddleSeg's, which are all called model.pdparams."""
    first, second = entry(tmp_path), mmsegmentation(tmp_path)
    for which, model in (("a", first), ("b", second)):
        model |= {"urls": [f"https://127.0.0.1:1/{which}/model.pdparams"], "file_name": f"{which}.pdparams"}
    zoo_of(monkeypatch, tmp_path, **{PLAIN: first, DOTTED: second})
    tiny.files |= {"/a.pdparams": tiny_zoo.saved({"model": FILE}), "/b.pdparams": tiny_zoo.saved(OTHER_FILE)}
    assert run("download", "--all", "--keep") == 0
    assert {path.name for path in home.glob("*.pdparams")} == {"a.pdparams", "b.pdparams"}
    first["file_name"] = second["file_name"] = None
    zoo_of(monkeypatch, tmp_path, **{PLAIN: first, DOTTED: second})
    with pytest.raises(isanet.ManifestError, match=f"{DOTTED}.file_name: expected one that is not {PLAIN}'s too"):
        isanet.list_models()


def test_where_all_addresses_failed_the_page_is_named(
    tiny: FileServer, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"url": "https://pan.baidu.com/s/1x", "note": "Baidu, with the code abc"}
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, pages=[page])})
    tiny.files.clear()
    with pytest.raises(isanet.MirrorsExhaustedError) as caught:
        isanet.from_pretrained(PLAIN)
    wanted = f"open {page['url']} ({page['note']}) in a browser and put the file as {FILE_NAME} into {home}"
    assert wanted in str(caught.value).splitlines()[0]


def test_published_digits_of_a_hash_are_compared(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(data, bytes)
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, sha256_prefix="0" * 8)})
    with pytest.raises(isanet.MirrorsExhaustedError, match="expected 00000000"):
        isanet.from_pretrained(PLAIN)
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, sha256_prefix=sha256(data).hexdigest()[:8])})
    isanet.from_pretrained(PLAIN)
    assert "nobody has published its hash beyond 8 digits" in caplog.text
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, sha256_prefix="0" * 8, sha256="1" * 64)})
    with pytest.raises(isanet.ManifestError, match="sha256: expected one that starts with 00000000"):
        isanet.list_models()


# --- licenses -----------------------------------------------------------------------------------------------


def test_a_license_against_commercial_use_is_said_once(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    license = "for academic use"
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, commercial=False, license=license)})

    def said() -> int:
        found = [record for record in caplog.records if license in record.getMessage()]
        caplog.clear()
        assert all(record.levelno == logging.WARNING and PLAIN in record.getMessage() for record in found)
        return len(found)

    isanet.from_pretrained(PLAIN)
    assert said() == 1
    isanet.from_pretrained(PLAIN)
    assert said() == 0
    assert run("pack", PLAIN, "-o", str(tmp_path / "one.zip")) == 0
    cache.clear(PLAIN, forget=True)
    assert run("install", str(tmp_path / "one.zip")) == 0
    assert said() == 1


@pytest.mark.parametrize(
    ("license", "tag"),
    [("Apache-2.0 (x)", "apache-2.0"), ("MIT (x)", "mit"), ("2-clause BSD for academic use", "other")],
)
def test_a_model_card_has_the_license_of_the_weights(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, license: str, tag: str
) -> None:
    zoo_of(monkeypatch, tmp_path, **{PLAIN: entry(tmp_path, license=license)})
    isanet.from_pretrained(PLAIN).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"\nlicense: {tag}\n" in card
    assert f"License: {license}." in card


def test_a_free_license_is_not_commented_on(tiny: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    isanet.from_pretrained(PLAIN)
    assert "commercial" not in caplog.text
