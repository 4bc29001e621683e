"""A model of each family at full size, from an address to labels; all 46: `python -m tests.benchmarks.zoo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import isanet
from isanet.weights import manifest
from tests.helpers import families, stand_in
from tests.helpers.file_server import FileServer

CLASSIFIERS = {
    "isanet_r50_voc.mmseg_20k": "decode_head.conv_seg.weight",
    "isanet_r50_voc.paddleseg": "head.cls.1.weight",
    "isanet_r101_cityscapes.openseg": "cls_head.weight",
    "isanet_r18_context59.bpkd_plain": "decode_head.conv_seg.weight",
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_from_an_address_to_labels(
    name: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = families.manifest_for_stand_ins(tmp_path / "weights.json")
    monkeypatch.setattr(manifest, "manifest_path", lambda: path)
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("ISANET_HOME", str(cache))
    monkeypatch.setenv("ISANET_MIRROR", server.url)
    weights = isanet.model_info(name)
    if not weights.urls:  # a person fetches it
        with pytest.raises(isanet.DownloadError, match=weights.file_names[0]):
            isanet.from_pretrained(name)
    file = families.write(weights, tmp_path if weights.urls else cache)
    server.files[f"/{file.name}"] = file

    segmenter = isanet.Segmenter(name, device="cpu", precision="float32")
    image = stand_in.DATA / "image_187x250.png"
    result = segmenter(image)
    assert [request for _, request, _ in server.requests] == [f"/{file.name}"]  # of openseg's, the one before
    assert segmenter.protocol.name == weights.metrics["protocol"]
    theirs = CLASSIFIERS[name]
    expected = stand_in.tensor(theirs, stand_in.shapes(families.listing(weights))[theirs])
    assert torch.equal(segmenter.model.classifier.weight, expected)
    assert ("not for commercial use" in caplog.text) is not weights.commercial

    file.unlink()
    monkeypatch.setenv("ISANET_OFFLINE", "1")
    again = isanet.Segmenter(name, device="cpu", precision="float32")
    assert np.array_equal(again(image).labels, result.labels)
    assert again.model.config == segmenter.model.config
