"""info, download, verify, convert, cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import isanet
from isanet.weights import cache
from tests.helpers import tiny_zoo
from tests.helpers.commands import run
from tests.helpers.file_server import FileServer


def test_info(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny_zoo.NAME) == 0
    out = capsys.readouterr().out
    for words in (
        "76.99 on PASCAL VOC 2012 val",
        "224.5 G for",
        "not published",
        "Apache-2.0",
        "Label space voc21",
        "15     person",
    ):
        assert words in out
    assert run("info", "isanet_tiny_vox") == 1
    assert (
        capsys.readouterr().err
        == "isanet: error: no model 'isanet_tiny_vox' in the zoo; did you mean isanet_tiny_voc?\n"
    )


@pytest.mark.parametrize(
    ("name", "lines"),
    {
        "isanet_r50_voc.paddleseg": [
            "family paddleseg",
            "published mIoU 79.69 on PASCAL VOC 2012 val, whole (whole image, single scale, no flip)",
            "published mIoU 79.93 on PASCAL VOC 2012 val, flip (",
            "published mIoU 80.54 on PASCAL VOC 2012 val, paddleseg-multiscale-flip (",
            "file name isanet_resnet50_os8_voc12aug_512x512_40k.pdparams",
            "training log https://paddlepaddle.org.cn/paddle/visualdl/service/app?id=",
            "notes The number of GPUs",
        ],
        "isanet_r101_cityscapes.openseg": [
            "page https://drive.google.com/open?id=1Sf9YFjo9dpirojzLev8CfHAc99U6cBwH (Google Drive; only a person",
            "commercial use allowed by the license of the weights",
        ],
        "isanet_r18_cityscapes.bpkd_cwd": [
            "published mAcc 82.64",
            "license 2-clause BSD for academic use",
            "commercial use not allowed",
        ],
        "isanet_r50_voc.mmseg_20k": ["sha256 79d59b80...: no more is published"],
    }.items(),
)
def test_info_says_what_differs_between_families(
    capsys: pytest.CaptureFixture[str], name: str, lines: list[str]
) -> None:
    assert run("info", name) == 0
    found = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for wanted in lines:
        assert any(line.startswith(wanted) for line in found), wanted


def test_info_counts_multiply_adds(tiny: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tiny_zoo.NAME, "--flops", "64x128") == 0
    table = capsys.readouterr().out.partition("\nOne network input of 64 x 128 pixels:\n")[2].splitlines()
    assert table[0].split() == ["PART", "MULTIPLY-ADDS", "PARAMETERS"]
    total = table[-2].split()
    assert total[0] == "total"
    parameters = sum(parameter.numel() for parameter in isanet.from_pretrained(tiny_zoo.NAME).parameters())
    assert total[-1] == f"{parameters:,}"
    assert table[-1].startswith("Counted: convolutions and attention's matrix products.")
    with pytest.raises(SystemExit):
        run("info", tiny_zoo.NAME, "--flops", "64")
    assert "--flops" in capsys.readouterr().err
    assert run("info", tiny_zoo.NAME, "--flops", "99999999x99999999") == 1
    assert "an input has from 1 to" in capsys.readouterr().err


def test_download_verify_and_clear(tiny: FileServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("download", tiny_zoo.NAME, "--keep") == 0
    assert "is ready" in capsys.readouterr().out
    assert (home / tiny_zoo.FILE_NAME).exists()
    assert run("download", "--all") == 0  # cached: nothing is asked
    assert [path for _, path, _ in tiny.requests] == [f"/{tiny_zoo.FILE_NAME}"]
    capsys.readouterr()
    assert run("verify", tiny_zoo.NAME) == 0
    out = capsys.readouterr().out
    assert "good" in out
    assert f"{tiny.url}/{tiny_zoo.FILE_NAME}" in out
    assert "trusted on first use" in out
    assert run("cache", "path") == 0
    assert capsys.readouterr().out == f"{home}\n"
    assert run("cache", "list") == 0
    assert tiny_zoo.NAME in capsys.readouterr().out
    file = cache.cached_file(tiny_zoo.NAME)
    assert file is not None
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run("verify") == 1
    assert "FAILED" in capsys.readouterr().out
    assert run("cache", "clear", tiny_zoo.NAME) == 0
    assert "freed" in capsys.readouterr().out
    assert run("verify", tiny_zoo.NAME) == 1
    assert "not cached" in capsys.readouterr().out


def test_verify_pins_into_a_manifest(tiny: FileServer, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    shutil.copy(tmp_path / "weights.json", copy)
    assert run("download", tiny_zoo.NAME) == 0
    assert run("verify", tiny_zoo.NAME, "--pin", "--manifest", str(copy)) == 0
    pinned = json.loads(copy.read_text())["weights"][tiny_zoo.NAME]
    data = tiny.files[f"/{tiny_zoo.FILE_NAME}"]
    assert isinstance(data, bytes)
    assert pinned["size"] == len(data)
    assert len(pinned["sha256"]) == 64


def test_convert(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("up.pth").write_bytes(tiny_zoo.saved(tiny_zoo.upstream_state()))
    assert run("convert", "up.pth", "folder") == 0
    assert run("convert", "up.pth", "one.safetensors") == 0
    assert sorted(path.name for path in Path("folder").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before = Path("one.safetensors").read_bytes()
    assert run("convert", "up.pth", "one.safetensors") == 1
    assert "--force" in capsys.readouterr().err
    assert run("convert", "one.safetensors", "one.safetensors", "--force") == 1
    assert Path("one.safetensors").read_bytes() == before
    assert run("convert", "folder", "folder", "--force") == 1
    assert run("convert", "folder/model.safetensors", "folder", "--force") == 1
    Path("project").mkdir()
    Path("project/config.json").write_text("mine")
    assert run("convert", "up.pth", "project") == 1
    assert [path.name for path in Path("project").iterdir()] == ["config.json"]
    assert Path("project/config.json").read_text() == "mine"
    assert run("convert", "folder", "again", "--force") == 0
    assert isanet.from_pretrained("again").classes == isanet.from_pretrained("one.safetensors").classes


# --- verify, of folders and files ---------------------------------------------------------------------------


def verified(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run("verify", *arguments) == code
    return capsys.readouterr().out


def test_verify_shows_and_compares_the_metadata_of_a_file(
    tiny: FileServer, work: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.save_pretrained("same")
    assert f"it is byte for byte the cached file of {tiny_zoo.NAME}" in verified(capsys, "same")
    model.provenance["isanet_version"] = "0.0.1"
    model.save_pretrained("mine")
    record = cache.read_record(tiny_zoo.NAME)
    assert record is not None
    for place in ("mine", "mine/model.safetensors"):
        out = verified(capsys, place)
        assert f"{place}: good" in out
        assert f"source {tiny.url}/{tiny_zoo.FILE_NAME}" in out
        assert f"source_sha256 {record.source_sha256}" in out
        assert f"is the one that was recorded here on {record.date}" in out
        assert f"all its tensors are those of {tiny_zoo.NAME}" in out
    with torch.no_grad():
        model.classifier.weight += 1
    model.save_pretrained("changed")
    assert f"1 tensor of {len(model.state_dict())} are not those of" in verified(capsys, "changed")
    # A model of the zoo and a file in one call: the cached file itself
    out = verified(capsys, tiny_zoo.NAME, str(cache.cached_file(tiny_zoo.NAME)))
    assert f"{tiny_zoo.NAME}: good. From {tiny.url}" in out
    assert f"byte for byte the cached file of {tiny_zoo.NAME}" in out
    shutil.rmtree(home)
    assert "no hash of the released file" in verified(capsys, "mine")


def test_verify_notices_another_order_of_attention_and_other_blocks(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("mine")
    config = json.loads(Path("mine/config.json").read_text())
    assert "attention_order" not in config  # as published: earlier versions read it too
    changes = {"attention_order": ["short_range", "long_range"], "block_size": 4, "gradient_checkpointing": True}
    Path("mine/config.json").write_text(json.dumps(config | changes))
    out = verified(capsys, "mine")
    assert f"its configuration is not that of {tiny_zoo.NAME}: attention_order, block_size\n" in out


def test_verify_compares_configurations_too(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.save_pretrained("reordered")
    config = json.loads(Path("reordered/config.json").read_text())
    config |= {"classes": config["classes"][::-1], "label_space": None}
    Path("reordered/config.json").write_text(json.dumps(config))
    assert run("verify", "reordered") == 0
    assert f"its configuration is not that of {tiny_zoo.NAME}: classes" in capsys.readouterr().out
    larger = isanet.ISANet(**{**model.config, "backbone": "resnet26"})
    larger.load_state_dict(model.state_dict(), strict=False)
    larger.provenance = model.provenance
    larger.save_pretrained("larger")
    assert run("verify", "larger") == 0
    out = capsys.readouterr().out
    assert "all its tensors" not in out
    assert "backbone" in out


def test_verify_recognizes_a_released_file_by_its_hash(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.files[f"/{tiny_zoo.FILE_NAME}"]
    assert isinstance(data, bytes)
    Path("up.pth").write_bytes(data)
    out = verified(capsys, "up.pth")
    assert "does not say where it came from" in out
    assert "nothing here to compare it with" in out
    isanet.from_pretrained(tiny_zoo.NAME)
    assert f"byte for byte the released file of {tiny_zoo.NAME} that was recorded on" in verified(capsys, "up.pth")


def test_verify_fails_for_a_file_that_claims_another_hash(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.provenance["source_sha256"] = "e" * 64
    model.save_pretrained("forged")
    out = verified(capsys, "forged", code=1)
    assert "forged: FAILED" in out
    assert "e" * 64 in out


def test_verify_cleans_untrusted_metadata(tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = isanet.from_pretrained(tiny_zoo.NAME)
    model.provenance = {"source": "\x1b[2J" + "x" * 9999, "a\nb": "c"}
    model.save_pretrained("untrusted")
    out = verified(capsys, "untrusted")
    assert all(line.isprintable() and len(line) < 500 for line in out.splitlines())
    assert "a b c" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images/0.png",), "not a checkpoint"),
        (("images",), "cannot read"),
        (("images", "--pin"), "--pin is for"),
    ],
)
def test_verify_refuses_what_is_not_a_model(
    tiny: FileServer, work: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("verify", *arguments) == 1
    said = capsys.readouterr()
    assert message in said.out + said.err


def test_every_converted_file_records_its_source(tiny: FileServer, work: Path) -> None:
    """In the cache, in a folder, a single file; for fine-tuned models see tests/training."""
    from isanet.weights import checkpoint

    data = tiny_zoo.saved(tiny_zoo.upstream_state())
    Path("up.pth").write_bytes(data)
    assert run("convert", "up.pth", "one.safetensors") == 0
    assert run("convert", "up.pth", "folder") == 0
    isanet.from_pretrained(tiny_zoo.NAME).save_pretrained("saved")
    cached = cache.cached_file(tiny_zoo.NAME)
    assert cached is not None
    for path in (Path("one.safetensors"), Path("folder/model.safetensors"), Path("saved/model.safetensors"), cached):
        metadata = checkpoint.read_safetensors(checkpoint.read_file(path))[1]
        assert {"source", "source_sha256", "layout", "converter_version"} <= set(metadata), path
    assert metadata["source"] == f"{tiny.url}/{tiny_zoo.FILE_NAME}"


def test_a_manifest_without_pinning_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("verify", "--manifest", "mine.json")
    assert "--pin" in capsys.readouterr().err
