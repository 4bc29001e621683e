"""`isanet benchmark`: every variant is measured, and what is measured is what is named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet.cli import main
from isanet.tools.benchmark import benchmark, table

NANO = "isanet_nano_toystreets"


def image(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_every_variant_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = isanet.from_pretrained(NANO)
    before = dict(model.preprocessing)
    seen: list[tuple[int, ...]] = []
    clock = [0]  # in place of the machine's, which may be busy

    def perf_counter() -> float:
        clock.append(clock[-1] + 1)
        return clock[-1]

    coarse_logits = isanet.ISANet.coarse_logits

    def slow(self: isanet.ISANet, images: torch.Tensor, **options: Any) -> Any:
        seen.append(tuple(images.shape))
        clock.append(clock[-1] + 10)
        return coarse_logits(self, images, **options)

    monkeypatch.setattr(isanet.ISANet, "coarse_logits", slow)
    monkeypatch.setattr(time, "perf_counter", perf_counter)
    sizes = [(64, 128), (96, 64)]
    rows = benchmark(
        model,
        [image(), image(1)],
        sizes=sizes,
        precisions=["float32", "bfloat16"],
        device="cpu",
        repeats=2,
        progress=False,
    )
    assert [(row.size, row.variant) for row in rows] == [
        (size, variant) for size in sizes for variant in ("baseline", "float32", "bfloat16")
    ]
    assert set(seen) == {(1, 3, 64, 128), (1, 3, 96, 64)}  # images are not resized again
    for row in rows:
        assert len(row.seconds) == 4
        assert row.seconds == tuple(sorted(row.seconds))
        assert row.agreement > 0.9
        assert (row.median >= 10) == (row.variant == "baseline")  # the slow one is timed under its own name
    assert [row.agreement for row in rows if row.variant == "baseline"] == [1, 1]
    assert model.preprocessing == before
    lines = table(rows)
    assert len({len(line) for line in lines}) == 1
    assert [line[5] for line in lines[1:] if line[1] == "baseline"] == ["1.00x", "1.00x"]
    assert float(lines[2][5].rstrip("x")) > 1


def test_a_model_that_pads_is_measured_at_the_sizes_that_are_named() -> None:
    model = isanet.from_pretrained(NANO)
    model.protocol, model.logits_resize = "mmseg-multiscale-flip", "asymmetric"
    model.preprocessing = {
        **{name: model.preprocessing[name] for name in ("mean", "std")}, "pad_to": [999, 999], "pad_color": [0, 0, 0]
    }  # fmt: skip
    seen: set[tuple[int, ...]] = set()
    model.backbone.register_forward_pre_hook(lambda _module, inputs: seen.add(tuple(inputs[0].shape)))
    options: dict[str, Any] = {"precisions": ["float32"], "device": "cpu", "repeats": 1, "progress": False}
    _, row = benchmark(model, [image()], sizes=[(64, 128)], **options)
    assert seen == {(1, 3, 64, 128)}
    assert row.agreement == 1  # whole, as the baseline
    assert model.preprocessing["pad_to"] == [999, 999]


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one image"):
        benchmark(isanet.from_pretrained(NANO), [])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    call = ["benchmark", NANO, "--device", "cpu", "--sizes", "64x64", "--repeats", "1", "--images", str(tmp_path)]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "64x64" in out
    assert "int8" in out
    assert main([*call, "--precisions", "float32", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in report["rows"]] == ["baseline", "float32"]


def test_segment_in_int8(tmp_path: Path) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    call = ["segment", str(tmp_path / "a.png"), "--model", NANO, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*call, "--precision", "int8"]) == 0
    assert (tmp_path / "out/a_overlay.png").exists()
