"""The self-test: a good model passes in every precision, and every fault that it can find is really provoked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isanet
from isanet.cli import main
from isanet.inference.fast.network import FastISANet
from isanet.inference.runtimes import choice
from isanet.inference.segmenter import Segmenter
from isanet.tools import selftest
from isanet.weights import cache
from isanet.weights.manifest import model_info
from isanet.zoo import pretrained as zoo
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.precisions import PRECISIONS

MODEL = "isanet_nano_toystreets"


def run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(MODEL, device="cpu", precision="float32")


def compared(segmenter: Segmenter) -> selftest.Outcome:
    answer = selftest.recorded_answer(model_info(MODEL))
    assert answer is not None
    return selftest.compare(segmenter, MODEL, answer)


# --- a good model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_packaged_model_is_good(precision: str, home: Path) -> None:
    found = selftest.selftest(MODEL, device="cpu", precision=precision)
    assert not found.fault
    assert not found.first
    # A third or half of the tolerance, which leaves room for other models and machines
    assert 1 - found.agreement <= (1 - found.tolerance.labels) / 3
    assert found.difference <= found.tolerance.confidence / 2
    assert not home.exists()


def test_the_packaged_answer_is_of_the_packaged_model(segmenter: Segmenter) -> None:
    answer = selftest.recorded_answer(model_info(MODEL))
    assert answer is not None
    assert answer.facts["source_sha256"] == model_info(MODEL).sha256
    result = segmenter(selftest.street(), confidence=True)
    assert result.confidence is not None
    recorded = answer.confidence >= selftest.MIN_CONFIDENCE
    assert recorded.mean() > 0.5
    assert np.array_equal(result.labels[::2, ::2][recorded], answer.labels[recorded])
    assert np.allclose(result.confidence[::2, ::2], answer.confidence, atol=1e-3)
    assert len(np.unique(answer.labels)) >= 8  # an image with one class would find little


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("selftest", MODEL, "--device", "cpu", "--precision", "float32") == 0
    out = capsys.readouterr().out
    assert f"{MODEL}: good on cpu in float32" in out
    assert "at least 99.9%" in out


# --- faults -------------------------------------------------------------------------------------------------


def swap_red_and_blue(model: isanet.ISANet) -> None:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 3
    first.weight.copy_(first.weight.flip(1))


def randomize_classifier(model: isanet.ISANet) -> None:
    torch.manual_seed(0)
    model.classifier.weight.normal_(std=0.01)
    assert model.classifier.bias is not None
    model.classifier.bias.zero_()


def other_classifier_of_the_same_size(model: isanet.ISANet) -> None:
    model.classifier.weight.copy_(model.classifier.weight.roll(1, 0))


def other_resize(model: isanet.ISANet) -> None:
    model.preprocessing = {**model.preprocessing, "short_edge": 300}


def other_mean(model: isanet.ISANet) -> None:
    model.preprocessing = {**model.preprocessing, "mean": [123.675, 116.28, 103.53]}


def unit_range(model: isanet.ISANet) -> None:
    model.preprocessing = {**model.preprocessing, "std": [255.0, 255.0, 255.0]}


def damage(model: isanet.ISANet) -> None:
    model.fuse.conv.weight[0].fill_(100)


def one_nan(model: isanet.ISANet) -> None:
    model.classifier.weight[0, 0] = float("nan")


def lost_attention(model: isanet.ISANet) -> None:
    for attention in (model.long_range, model.short_range):
        for parameter in attention.parameters():
            parameter.zero_()


IN_MEMORY = "the model in memory is not what is in its file"
FAULTS: dict[str, tuple[Callable[[isanet.ISANet], None], str]] = {
    "blue-green-red weights": (swap_red_and_blue, "red and blue are swapped"),
    "a random classifier": (randomize_classifier, f"{IN_MEMORY}: classifier.weight, classifier.bias differ"),
    "classes in another order": (other_classifier_of_the_same_size, f"{IN_MEMORY}: classifier.weight differ"),
    "another resize": (other_resize, "images are 300x400 for the network, where 320x427 was recorded"),
    "another mean": (other_mean, "prepared in another way"),
    "another range": (unit_range, "prepared in another way"),
    "damaged weights": (damage, f"{IN_MEMORY}: fuse."),
    "a NaN": (one_nan, f"{IN_MEMORY}: classifier.weight differ"),
    "no attention": (lost_attention, f"{IN_MEMORY}: long_range."),
}


@pytest.mark.parametrize("fault", FAULTS)
@torch.no_grad()
def test_faults_are_found_and_named(segmenter: Segmenter, fault: str) -> None:
    change, cause = FAULTS[fault]
    change(segmenter.model)
    found = compared(segmenter)
    assert found.fault
    assert cause in found.fault
    if fault == "a NaN":
        assert "not finite" in found.fault
    elif "prepared" not in cause and "resized" not in cause:
        assert found.agreement < selftest.TOLERANCES["int8"].labels  # so it is found in every precision


@torch.no_grad()
def test_a_fault_in_preprocessing_is_found_even_if_no_label_changes(segmenter: Segmenter) -> None:
    mean = list(segmenter.model.preprocessing["mean"])
    segmenter.model.preprocessing = {**segmenter.model.preprocessing, "mean": [mean[0] + 0.01, *mean[1:]]}
    found = compared(segmenter)
    assert found.agreement > 0.999
    assert "the input differs" in found.fault


def test_images_that_come_in_with_red_and_blue_swapped(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = isanet.inference.predict.prepare
    for module in ("predict", "segmenter"):
        monkeypatch.setattr(f"isanet.inference.{module}.prepare", lambda image, *rest: prepare(image[..., ::-1], *rest))
    assert "red and blue are swapped before the network" in compared(segmenter).fault


def test_a_device_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitated by a network that is wrong in half precision and right on the CPU in float32."""
    monkeypatch.setattr(choice, "FASTEST", {})  # it is torch's network that is changed
    right = FastISANet.coarse_logits

    def wrong(self: FastISANet, images: torch.Tensor) -> torch.Tensor:
        logits = right(self, images)
        return logits.roll(3, -1) if self.dtype == torch.bfloat16 else logits

    monkeypatch.setattr(FastISANet, "coarse_logits", wrong)
    found = selftest.selftest(MODEL, device="cpu", precision="bfloat16")
    assert "cpu in bfloat16: on the CPU in float32 the same model agrees" in found.fault


def test_a_file_that_no_longer_gives_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change in the conversion or in a library."""
    monkeypatch.setattr(choice, "FASTEST", {})  # it is torch's network that is changed
    before = FastISANet.coarse_logits
    monkeypatch.setattr(FastISANet, "coarse_logits", lambda self, images: before(self, images).flip(-1))
    found = selftest.selftest(MODEL, device="cpu", precision="float32")
    assert "the verified file itself gives another answer" in found.fault
    assert torch.__version__ in found.fault


def test_the_command_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load = zoo.from_pretrained

    def untrained(name: str) -> isanet.ISANet:
        model = load(name)
        with torch.no_grad():
            swap_red_and_blue(model)
        return model

    monkeypatch.setattr(selftest, "from_pretrained", untrained)
    assert run("selftest", MODEL, "--device", "cpu", "--precision", "float32") == 1
    out = capsys.readouterr().out
    assert f"{MODEL}: FAILED on cpu in float32" in out
    assert "likely cause: red and blue are swapped" in out


# --- models without a recorded answer ------------------------------------------------------------------------


def test_the_first_run_records_and_says_so(tiny: FileServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("selftest", tiny_zoo.NAME, "--device", "cpu", "--precision", "float32") == 0
    said = capsys.readouterr()
    assert "recorded on cpu in float32; there was nothing to compare with yet" in said.out
    assert "no answer was recorded yet" in said.err
    path = home / f"{tiny_zoo.NAME}.selftest"
    before = path.read_bytes()
    assert run("selftest", tiny_zoo.NAME, "--device", "cpu", "--precision", "float32") == 0
    assert f"{tiny_zoo.NAME}: good" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_later_fault_is_found_by_the_recorded_answer(tiny: FileServer) -> None:
    selftest.selftest(tiny_zoo.NAME, device="cpu")
    answer = selftest.recorded_answer(model_info(tiny_zoo.NAME))
    assert answer is not None
    segmenter = Segmenter(tiny_zoo.NAME, device="cpu", precision="float32")
    assert not selftest.compare(segmenter, tiny_zoo.NAME, answer).fault
    with torch.no_grad():
        randomize_classifier(segmenter.model)
    assert "classifier.weight" in selftest.compare(segmenter, tiny_zoo.NAME, answer).fault


def test_the_answer_is_kept_as_long_as_the_hash_of_the_released_file(tiny: FileServer, home: Path) -> None:
    selftest.selftest(tiny_zoo.NAME, device="cpu")
    path = cache.selftest_path(tiny_zoo.NAME)
    cache.clear(tiny_zoo.NAME)
    assert path.exists()
    assert not selftest.selftest(tiny_zoo.NAME, device="cpu").first  # the same file, fetched again
    cache.clear(tiny_zoo.NAME, forget=True)
    assert not path.exists()


@pytest.mark.parametrize("damage", ["empty", "html", "another file's"])
def test_an_unusable_answer_is_recorded_again(tiny: FileServer, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    assert selftest.selftest(tiny_zoo.NAME, device="cpu").first
    path = cache.selftest_path(tiny_zoo.NAME)
    good = path.read_bytes()
    record = cache.read_record(tiny_zoo.NAME)
    assert record is not None
    other = good.replace(record.source_sha256.encode(), b"f" * 64)
    path.write_bytes({"empty": b"", "html": b"<html>" * 20}.get(damage, other))
    assert selftest.selftest(tiny_zoo.NAME, device="cpu").first
    assert "ignoring the recorded answer" in caplog.text
    assert path.read_bytes() == good


def test_a_package_without_its_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "packaged_path", lambda name: tmp_path / f"{name}.safetensors")
    with pytest.raises(isanet.IntegrityError, match="install isanet again"):
        selftest.selftest(MODEL, device="cpu")
    assert not list(tmp_path.iterdir())
    selftest.record(MODEL)
    assert not selftest.selftest(MODEL, device="cpu").fault


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("no_such_model",), 1, "no model"),
        ((MODEL, "--device", "gpu"), 1, "device"),
        ((MODEL, "--precision", "half"), 2, "invalid choice"),
        ((), 2, "NAME"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            run("selftest", *arguments)
    else:
        assert run("selftest", *arguments) == code
    assert message in capsys.readouterr().err


def test_float32_on_an_accelerator_has_the_tolerance_of_tf32(segmenter: Segmenter) -> None:
    assert selftest.tolerance_of(segmenter) == selftest.TOLERANCES["float32"]
    segmenter.device = torch.device("cuda")
    assert selftest.tolerance_of(segmenter) == selftest.TOLERANCES["float16"]


def test_a_cache_that_cannot_be_written_is_no_fault(
    tiny: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise isanet.CacheError("cannot write to the cache folder")

    isanet.from_pretrained(tiny_zoo.NAME)
    monkeypatch.setattr(selftest, "_write", refused)
    found = selftest.selftest(tiny_zoo.NAME, device="cpu", precision="float32")
    assert not found.fault
    assert "the answer was not kept: cannot write" in caplog.text


def test_one_model_that_cannot_be_loaded_does_not_stop_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    assert run("selftest", "isanet_r50_voc", MODEL, "--device", "cpu", "--precision", "float32") == 1
    out = capsys.readouterr().out
    assert "isanet_r50_voc: FAILED: " in out
    assert f"{MODEL}: good" in out
