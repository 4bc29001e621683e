from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isanet
from isanet import labels
from isanet.backbone import ResNet
from isanet.config import ISANetConfig
from isanet.protocols import PROTOCOLS
from isanet.weights import convert, manifest
from isanet.weights.manifest import Weights, load_backbones, load_manifest, manifest_path
from isanet.zoo import builders
from isanet.zoo.networks import meta_network

RELEASES = "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_isanet"

# What upstream publishes of each model, and what its tensors add up to. Name: stem, label space, dataset,
# training split, short edge, crop, batch, epochs, mIoU in percent, tensors, bytes of tensors.
FACTS: dict[str, tuple[Any, ...]] = {
    "isanet_r50_voc": (
        *("isanet_resnet50os8_voc", "voc21", "PASCAL VOC 2012"),
        *("trainaug", 512, (512, 512), 16, 60, 76.99, 414, 177_320_008),
    ),
    "isanet_r101_voc": (
        *("isanet_resnet101os8_voc", "voc21", "PASCAL VOC 2012"),
        *("trainaug", 512, (512, 512), 16, 60, 78.60, 720, 253_497_824),
    ),
    "isanet_r50_ade20k": (
        *("isanet_resnet50os8_ade20k", "ade20k150", "ADE20K"),
        *("train", 512, (512, 512), 16, 130, 42.60, 414, 177_849_424),
    ),
    "isanet_r101_ade20k": (
        *("isanet_resnet101os8_ade20k", "ade20k150", "ADE20K"),
        *("train", 512, (512, 512), 16, 130, 44.08, 720, 254_027_240),
    ),
    "isanet_r50_cityscapes": (
        *("isanet_resnet50os8_cityscapes", "cityscapes19", "Cityscapes"),
        *("train", 1024, (512, 1024), 8, 220, 79.34, 414, 177_311_800),
    ),
    "isanet_r101_cityscapes": (
        *("isanet_resnet101os8_cityscapes", "cityscapes19", "Cityscapes"),
        *("train", 1024, (512, 1024), 8, 220, 80.58, 720, 253_489_616),
    ),
}

WITH_CODE = "Baidu, with the code s757"

Entry = dict[str, Any]
Change = Callable[[Entry], object]


# --- the package's own manifest -----------------------------------------------------------------------------


RELEASED = [name for name, weights in load_manifest().items() if not weights.packaged]
"""All but our own; see test_packaged.py."""

# Backbone, dataset, family: models, mean mIoU in percent
COUNTS = {
    ("r50", "voc", "sssegmentation"): (1, 76.99),
    ("r101", "voc", "sssegmentation"): (1, 78.60),
    ("r50", "voc", "mmsegmentation"): (2, 76.49),
    ("r101", "voc", "mmsegmentation"): (2, 78.29),
    ("r50", "voc", "paddleseg"): (1, 79.69),
    ("r101", "voc", "paddleseg"): (1, 79.57),
    ("r50", "ade20k", "sssegmentation"): (1, 42.60),
    ("r101", "ade20k", "sssegmentation"): (1, 44.08),
    ("r50", "ade20k", "mmsegmentation"): (2, 41.855),
    ("r101", "ade20k", "mmsegmentation"): (2, 43.655),
    ("r18", "ade20k", "bpkd"): (6, 34.2),
    ("r50", "cityscapes", "sssegmentation"): (1, 79.34),
    ("r101", "cityscapes", "sssegmentation"): (1, 80.58),
    ("r50", "cityscapes", "mmsegmentation"): (4, 78.79),
    ("r101", "cityscapes", "mmsegmentation"): (4, 80.0475),
    ("r50", "cityscapes", "paddleseg"): (1, 79.03),
    ("r101", "cityscapes", "paddleseg"): (1, 80.10),
    ("r101", "cityscapes", "openseg"): (1, 79.55),
    ("r18", "cityscapes", "bpkd"): (6, 75.0867),
    ("r18", "context59", "bpkd"): (6, 46.055),
    ("r101", "context59", "bpkd"): (1, 53.41),
}
IN_NAMES = {"sssegmentation": "", "mmsegmentation": ".mmseg", "paddleseg": ".paddleseg", "openseg": ".openseg"}
IN_NAMES |= {"bpkd": ".bpkd"}
DATASETS = {"voc21": "voc", "ade20k150": "ade20k", "cityscapes19": "cityscapes", "context59": "context59"}


def kind(weights: Weights) -> tuple[str, str, str]:
    """Backbone and dataset as names have them, and the family."""
    backbone = weights.architecture["backbone"].replace("resnet", "r")
    return backbone, DATASETS[weights.label_space], weights.family


def test_every_published_isanet_is_there_with_its_figure() -> None:
    found: dict[tuple[str, str, str], list[float]] = {}
    for name in RELEASED:
        weights = isanet.model_info(name)
        found.setdefault(kind(weights), []).append(weights.metrics["miou"])
    assert {key: (len(each), pytest.approx(100 * sum(each) / len(each), abs=1e-4)) for key, each in found.items()} == (
        COUNTS
    )
    assert len(RELEASED) == 46


@pytest.mark.parametrize("name", RELEASED)
def test_a_name_says_what_tells_a_model_from_the_others(name: str) -> None:
    weights = isanet.model_info(name)
    siblings = [other for each in RELEASED if kind(other := isanet.model_info(each)) == kind(weights)]
    features = {
        "crop": "{}x{}".format(*weights.recipe["crop"]),
        "iterations": f"{weights.recipe.get('iterations', 0) // 1000}k",
        "distillation": weights.recipe.get("distillation"),
    }
    telling = [text for key, text in features.items() if len({str(other.recipe.get(key)) for other in siblings}) > 1]
    backbone, dataset, family = kind(weights)
    assert name == "_".join([f"isanet_{backbone}_{dataset}{IN_NAMES[family]}", *telling])


def test_entry_points_of_torch_hub_are_different_identifiers() -> None:
    names = {name.replace(".", "_") for name in load_manifest()}
    assert len(names) == len(load_manifest())
    assert all(name.isidentifier() for name in names)
    assert names == set(builders.__all__) == {builder.__name__ for builder in builders.BUILDERS.values()}


@pytest.mark.parametrize("name", RELEASED)
def test_the_network_of_an_entry_has_its_tensors(name: str) -> None:
    """As its file has them: without the counters of batch norms where the framework has none."""
    weights = isanet.model_info(name)
    network = meta_network(weights)
    assert isinstance(network, isanet.ISANet)
    counters = weights.layout not in ("paddleseg", "openseg")
    state = [value for key, value in network.state_dict().items() if counters or "num_batches_tracked" not in key]
    assert weights.tensors == len(state)
    assert weights.payload == sum(value.numel() * value.element_size() for value in state)
    assert weights.parameters == sum(value.numel() for value in network.parameters())
    assert network.config.get("protocol", "whole") == weights.metrics["protocol"]
    assert network.preprocessing == weights.preprocessing
    space = labels.LABEL_SPACES[weights.label_space]
    assert (network.classes, network.label_space) == (space.classes, space.name)
    assert len(space) == weights.architecture["num_classes"]


@pytest.mark.parametrize("name", RELEASED)
def test_an_entry_agrees_with_its_family(name: str) -> None:
    weights = isanet.model_info(name)
    mean, std = weights.preprocessing["mean"], weights.preprocessing["std"]
    framework = PROTOCOLS[weights.metrics["protocol"]].framework
    files = "".join(weights.file_names)
    match weights.family:
        case "sssegmentation" | "mmsegmentation" | "bpkd":
            assert (mean, std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
            assert framework == ("sssegmentation" if weights.family == "sssegmentation" else "mmsegmentation")
        case "paddleseg":
            assert (mean, std, framework) == ([127.5] * 3, [127.5] * 3, "sssegmentation")
            assert weights.preprocessing["pad_color"] == [127.5] * 3
            assert weights.preprocessing["pad_to"] == ([512, 512] if "voc" in name else [1025, 2049])
            assert set(weights.metrics["others"]) == {"flip", "paddleseg-multiscale-flip"}
            assert len(weights.urls) == 2
            assert files == f"{weights.urls[0].split('/')[-2]}.pdparams"
        case "openseg":
            assert (weights.preprocessing["channels"], mean) == ("BGR", [102.9801, 115.9465, 122.7717])
            assert weights.urls == ()
            assert weights.pages[0]["url"] == "https://drive.google.com/open?id=1Sf9YFjo9dpirojzLev8CfHAc99U6cBwH"
    if weights.family == "mmsegmentation":
        slides = "769x769" in name
        assert weights.metrics["protocol"] == ("mmseg-slide-769" if slides else "mmseg-whole")
        assert (weights.architecture.get("logits_resize") == "corners") == slides
        assert weights.preprocessing["long_edge"] == (2049 if slides else 2048)
        assert files.endswith(f"-{weights.sha256_prefix}.pth")
        assert len(weights.metrics["others"]) == 1
    else:
        assert weights.sha256_prefix is None
    assert weights.commercial == (weights.family != "bpkd")
    assert (weights.family == "bpkd") == ("academic use" in weights.license) == ("macc" in weights.metrics)
    assert weights.metrics["dataset"].split()[-1] in weights.license
    assert ("non-commercial" in weights.license) == (weights.label_space in ("ade20k150", "cityscapes19"))


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_those_that_upstream_published(name: str) -> None:
    stem, space, dataset, split, short_edge, crop, batch, epochs, miou, tensors, payload = FACTS[name]
    weights = isanet.model_info(name)
    assert weights.name == name
    assert weights.urls == (f"{RELEASES}/{stem}_train.pth", f"{RELEASES}/{stem}.pth")
    assert weights.file_names == (f"{stem}_train.pth", f"{stem}.pth")
    assert weights.log_urls == (f"{RELEASES}/{stem}_train.log", f"{RELEASES}/{stem}.log")
    assert weights.layout == "sssegmentation"
    assert weights.label_space == space
    assert weights.architecture["backbone"] == stem.split("_")[1].removesuffix("os8")
    assert (weights.tensors, weights.payload) == (tensors, payload)
    assert weights.pages == ({"url": "https://pan.baidu.com/s/1gD-NJJWOtaHCtB0qHE79rA", "note": WITH_CODE},)
    assert weights.metrics == {
        "dataset": dataset,
        "split": "val",
        "miou": pytest.approx(miou / 100, abs=1e-9),
        "protocol": "whole",
    }
    assert weights.preprocessing == {
        "short_edge": short_edge,
        "long_edge": 2048,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }
    assert weights.recipe == {
        "train_split": split,
        "crop": list(crop),
        "batch_size": batch,
        "epochs": epochs,
        "optimizer": "SGD",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "poly",
        "power": 0.9,
        "aux_weight": 0.4,
        "ignore_index": 255,
        "dropout": 0.1,
        "sync_batch_norm": 8,
        "backbone_weights": f"{weights.architecture['backbone']}_v1c",
    }
    assert weights.paper == "https://arxiv.org/abs/1907.12273"
    assert "Apache-2.0" in weights.license
    assert dataset in weights.license
    assert "non-commercial" in weights.license or dataset != "Cityscapes"


def test_the_text_is_laid_out_as_pinning_writes_it() -> None:
    """So that a pinned hash shows as two changed lines."""
    text = manifest_path().read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=1) + "\n" == text


# --- strictness ---------------------------------------------------------------------------------------------


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def document() -> dict[str, Any]:
    """A manifest of one entry, called `m`."""
    entry = json.loads(manifest_path().read_text(encoding="utf-8"))["weights"]["isanet_r50_voc"]
    return {"schema": 2, "weights": {"m": entry}, "backbones": {}}


def refused(path: Path, text: str | bytes) -> str:
    with pytest.raises(isanet.ManifestError) as caught:
        load_manifest(written(path / "weights.json", text))
    assert str(path / "weights.json") in str(caught.value)
    return str(caught.value)


GOOD = json.dumps(document())


def test_the_valid_document_is_accepted(tmp_path: Path) -> None:
    assert list(load_manifest(written(tmp_path / "weights.json", GOOD))) == ["m"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "not JSON"),
        (GOOD[:-1], "line 1"),
        (GOOD + "x", "Extra data"),
        ("<html></html>", "not JSON"),
        (b"\xff\xfe" + GOOD.encode("utf-16-le"), "utf-8"),
        (GOOD.replace("val", "v\xe4l").encode("latin-1"), "utf-8"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "BOM"),
        ("[" * 100_000, "deeply"),
        ('{"schema": 2, "weights": {"m": ' + '{"a": ' * 100_000, "deeply"),
        (GOOD.replace('"label_space": "voc21"', '"label_space": ' + "[" * 900 + "]" * 900), ""),
        ("[]", "schema"),
        ("null", "schema"),
        ('"weights"', "schema"),
        ("{}", "schema"),
        ('{"schema": 2}', "weights"),
        ('{"schema": 2, "weights": {}}', "backbones"),
        ('{"schema": 2, "weights": {}, "backbones": {}, "more": 1}', "more"),
        ('{"schema": 2, "weights": [], "backbones": {}}', "weights: "),
        ('{"schema": 2, "weights": {}, "backbones": []}', "backbones: "),
        ('{"schema": 2, "weights": {"m": []}, "backbones": {}}', "m: "),
        ('{"schema": 2, "weights": {"m": null}, "backbones": {}}', "m: "),
        ('{"schema": 2, "weights": {}, "backbones": {"b": null}}', "b: "),
        ('{"schema": 3, "weights": {}, "more": 1}', "another version of isanet may read it"),
        ('{"schema": true, "weights": {}}', "schema: "),
        ('{"schema": 2.0, "weights": {}}', "schema: "),
        ('{"schema": "1", "weights": {}}', "schema: "),
        ('{"schema": null, "weights": {}}', "schema: "),
        (GOOD.replace('{"schema": 2', '{"schema": 2, "schema": 2'), "'schema' appears twice"),
        ('{"schema": 2, "weights": {"m": {}, "m": {}}}', "'m' appears twice"),
        (GOOD.replace('"sha256": null', '"sha256": null, "sha256": null'), "'sha256' appears twice"),
        (GOOD.replace('"split": "val"', '"split": "val", "split": "test"'), "'split' appears twice"),
    ],
)
def test_a_malformed_document_is_refused(tmp_path: Path, text: str | bytes, place: str) -> None:
    assert place in refused(tmp_path, text)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(isanet.ManifestError, match="cannot read the manifest") as caught:
            load_manifest(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", list(document()["weights"]["m"]))
def test_all_fields_are_required_and_no_others_allowed(tmp_path: Path, field: str) -> None:
    broken = document()
    value = broken["weights"]["m"].pop(field)
    assert f"m: missing field {field!r}" in refused(tmp_path, json.dumps(broken))
    broken["weights"]["m"] |= {field: value, f"{field}s2": value}
    assert f"m: unknown field '{field}s2'" in refused(tmp_path, json.dumps(broken))


@pytest.mark.parametrize(
    "name",
    [
        *("", "../m", "a/b", "/etc/passwd", "a\\b", ".hidden", "_m", "C:m", "M", "m.2", "m-1", "m\n", "m\0", "é"),
        *("m*", "m" * 101, "m.", "m..a", "m.a.b", "m._a"),
    ],
)
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    broken = {"schema": 2, "weights": {name: document()["weights"]["m"]}, "backbones": {}}
    assert repr(name) in refused(tmp_path, json.dumps(broken))
    broken = {"schema": 2, "weights": {}, "backbones": {name: backbone_document()["backbones"]["b"]}}
    assert repr(name) in refused(tmp_path, json.dumps(broken))


BAD_ADDRESSES = [
    "http://host/f.pth",
    "ftp://host/f.pth",
    "file:///etc/passwd",
    "//host/f.pth",
    "host/f.pth",
    "https:///f.pth",
    "https://host",
    "https://host/",
    "https://host/folder/",
    "https://user@host/f.pth",
    "https://user:password@host/f.pth",
    "https://:password@host/f.pth",
    "https://@host/f.pth",
    "https://host/f.pth?token=1",
    "https://host/f.pth?",
    "https://host/?f.pth",
    "https://host/f.pth#part",
    "https://host:port/f.pth",
    "https://host:123456/f.pth",
    "https://[host/f.pth",
    "https://host/.f.pth",
    "https://host/..",
    "https://host/-f.pth",
    "https://host/a%2Ff.pth",
    "https://host/..%2F..%2Fetc%2Fpasswd",
    "https://host/a%5Cf.pth",
    "https://host/a\\f.pth",
    "https://host\\other/f.pth",
    "https://host/f%00.pth",
    "https://host/f\0.pth",
    "https://host/f.pth\n",
    "https://host/f .pth",
    "https://host/f.pth\r\nX: y",
    "",
    None,
    1,
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_addresses_are_plain_https(tmp_path: Path, address: object) -> None:
    good = "https://host/f.pth"
    for field, value in (("urls", [good, address]), ("paper", address)):
        broken = document()
        broken["weights"]["m"][field] = value
        assert f"m.{field}: expected " in refused(tmp_path, json.dumps(broken))


BAD_PAGES = ["http://host/f", "https://", "https://host", "//host/f", "https://a@host/f", "https://host/f#x"]
BAD_PAGES += ["https://host/a b", "https://host/f\n", "https://host/\\f", "https://host/?a{b}", 'https://host/?"', ""]


@pytest.mark.parametrize("address", [*BAD_PAGES, None, 1])
def test_pages_and_logs_may_have_a_query_and_nothing_odder(tmp_path: Path, address: object) -> None:
    good = "https://host/open?id=1-_&b=2"
    for field, value in (("log_urls", [good, address]), ("pages", [{"url": address, "note": "n"}])):
        broken = document()
        broken["weights"]["m"][field] = value
        assert f"m.{field}: expected " in refused(tmp_path, json.dumps(broken))
    fine = document()
    fine["weights"]["m"] |= {"log_urls": [good], "pages": [{"url": good, "note": "n"}]}
    weights = load_manifest(written(tmp_path / "weights.json", json.dumps(fine)))["m"]
    assert (weights.log_urls, weights.pages) == ((good,), ({"url": good, "note": "n"},))


@pytest.mark.parametrize(
    "address", ["https://host/f.pth", "https://a-b.example:8443/x/~y/v0.5%20b/f-1_2.tar.pth", "https://10.0.0.1/f"]
)
def test_other_addresses_are_accepted(tmp_path: Path, address: str) -> None:
    fine = document()
    fine["weights"]["m"] |= {"urls": [address, address], "log_urls": []}
    weights = load_manifest(written(tmp_path / "weights.json", json.dumps(fine)))["m"]
    assert weights.urls == (address, address)
    assert weights.file_names == (address.rpartition("/")[2],)


INFINITY, NAN = float("inf"), float("nan")
BAD_VALUES: list[tuple[str, list[object]]] = [
    ("architecture", [None, [], "x", {}, {"backbone": "resnet50"}, {"backbone": 1, "num_classes": 21}]),
    ("architecture", [{"backbone": "resnet50", "num_classes": n} for n in (True, 0, -1, 21.0, "21", None)]),
    ("architecture", [{"backbone": "resnet50", "num_classes": 21, "width": NAN}]),
    ("label_space", [None, "", " ", 1, ["voc21"]]),
    ("layout", [None, "", 1, {}]),
    ("packaged", [None, 0, 1, "true", []]),
    ("license", [None, "", "\n", 1]),
    ("urls", [None, "https://host/f.pth", [], {}, [["https://host/f.pth"]]]),
    ("log_urls", [None, "https://host/f.log", {}]),
    ("pages", [None, {}, ["https://host/f"], [{"url": "https://host/f"}], [{"url": "https://host/f", "note": ""}]]),
    ("pages", [[{"url": "https://host/f", "note": "n", "more": 1}], [{"url": "http://host/f", "note": "n"}]]),
    ("file_name", ["", "f", ".pth", "a/f.pth", "../f.pth", "f.json", "f.pth\n", "-f.pth", 1, ["f.pth"]]),
    ("family", [None, "", "MMSegmentation", "a b", 1]),
    ("commercial", [None, 0, "yes"]),
    ("notes", [None, 1, ["x"]]),
    ("sha256_prefix", ["", "2cccc1a", "2cccc1adf", "2CCCC1AD", 1]),
    ("sha256", ["0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", " " + "0" * 63, "", 0, False, ["0" * 64]]),
    ("sha256", ["sha256:" + "0" * 64, "٠" * 64]),
    *[(field, [0, -1, True, 1.0, "1", [1]]) for field in ("size", "tensors", "payload", "parameters")],
    *[(field, [None]) for field in ("tensors", "payload", "parameters")],
    ("hub", [{}, [], "org/m", 1, True, {"repo": "org/m"}]),
    ("recipe", [None, [], "x", 1, {"lr": NAN}, {"lr": {"deep": [1.0, -INFINITY]}}]),
    ("paper", [["https://host/f"]]),
]
BAD_PARTS: list[tuple[str, str, list[object]]] = [
    ("metrics", "miou", [1.0001, 76.99, -0.1, NAN, INFINITY, 1, True, None, "0.5", [0.5]]),
    *[("metrics", part, [None, "", 1, ["val"]]) for part in ("dataset", "split", "protocol")],
    ("metrics", "protocol", ["whole image, single scale, no flip", "wholesale"]),
    ("metrics", "macc", [1, None, 80.36, "0.8", NAN]),
    ("metrics", "others", [None, [], {"wholesale": 0.5}, {"flip": 50.0}, {"flip": 1}]),
    ("metrics", "subsets", [None, [], {"sun": 50.0}, {"sun": 1}]),
    *[("preprocessing", part, [0, -512, True, 512.0, None, "512"]) for part in ("short_edge", "long_edge")],
    *[
        (
            "preprocessing",
            part,
            [None, 1.0, [], [1.0] * 2, [1.0] * 4, [1.0, "1", 1.0], [1.0, True, 1.0], [1.0, NAN, 1.0]],
        )
        for part in ("mean", "std")
    ],
    ("preprocessing", "std", [[1.0, 0.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, INFINITY]]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD_VALUES for value in values])
def test_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    broken = document()
    broken["weights"]["m"][field] = value
    assert f"m.{field}: expected " in refused(tmp_path, json.dumps(broken))


@pytest.mark.parametrize(
    ("field", "part", "value"), [(field, part, value) for field, part, values in BAD_PARTS for value in values]
)
def test_a_part_of_the_wrong_kind_is_refused(tmp_path: Path, field: str, part: str, value: object) -> None:
    broken = document()
    broken["weights"]["m"][field][part] = value
    assert f"m.{field}: expected " in refused(tmp_path, json.dumps(broken))


@pytest.mark.parametrize("field", ["metrics", "preprocessing"])
def test_all_parts_are_required_and_no_others_allowed(tmp_path: Path, field: str) -> None:
    whole = document()["weights"]["m"][field]
    assert len(whole) == 4
    for changed in [{k: v for k, v in whole.items() if k != gone} for gone in whole] + [{**whole, "more": 1}]:
        broken = document()
        broken["weights"]["m"][field] = changed
        assert f"m.{field}: expected " in refused(tmp_path, json.dumps(broken))


def test_a_number_beyond_floats_is_refused(tmp_path: Path) -> None:
    assert "m.recipe: expected " in refused(tmp_path, GOOD.replace('"lr": 0.01', '"lr": 1e999'))


def test_pinned_values_are_read(tmp_path: Path) -> None:
    pinned = document()
    pinned["weights"]["m"] |= {"sha256": "0123456789abcdef" * 4, "size": 7}
    weights = load_manifest(written(tmp_path / "weights.json", json.dumps(pinned)))["m"]
    assert (weights.sha256, weights.size) == ("0123456789abcdef" * 4, 7)


HUB = {"repo": "org/m.v-1_x", "revision": "0123456789" * 4, "sha256": "ab" * 32, "size": 9}


def test_a_place_on_the_hub_goes_with_the_hash_of_the_released_file(tmp_path: Path) -> None:
    pinned = document()
    pinned["weights"]["m"] |= {"sha256": "0123456789abcdef" * 4, "size": 7, "hub": HUB}
    assert load_manifest(written(tmp_path / "weights.json", json.dumps(pinned)))["m"].hub == HUB
    for change in ({"sha256": None}, {"size": None}, KNOWN):
        broken = document()
        broken["weights"]["m"] |= pinned["weights"]["m"] | change
        assert "m.hub: expected " in refused(tmp_path, json.dumps(broken))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(
            ("repo", value)
            for value in ("m", "org/", "/m", "org/../m", "org/..", "org/m/x", "org/m?", "org/m\n", "é/m")
        ),
        *(("revision", value) for value in ("main", "0" * 39, "A" * 40, "0" * 41, None)),
        *(("sha256", value) for value in ("0" * 63, None, "G" * 64)),
        *(("size", value) for value in (0, True, None, "9")),
        ("more", 1),
    ],
)
def test_a_place_on_the_hub_is_one_commit_of_one_repository(tmp_path: Path, part: str, value: object) -> None:
    broken = document()
    broken["weights"]["m"] |= {"sha256": "0" * 64, "size": 7, "hub": HUB | {part: value}}
    assert "m.hub: expected " in refused(tmp_path, json.dumps(broken))


# --- packaged models and backbones ---------------------------------------------------------------------------

KNOWN = {"layout": "isanet", "packaged": True, "urls": [], "sha256": "0" * 64, "size": 7}


def test_a_packaged_entry_is_read(tmp_path: Path) -> None:
    packaged = document()
    packaged["weights"]["m"] |= KNOWN
    weights = load_manifest(written(tmp_path / "weights.json", json.dumps(packaged)))["m"]
    assert weights.packaged
    assert weights.file_names == ()


@pytest.mark.parametrize(
    "change",
    [{"sha256": None}, {"size": None}, {"urls": ["https://host/f.pth"]}, {"layout": "sssegmentation"}],
)
def test_a_packaged_model_has_hash_and_size(tmp_path: Path, change: Entry) -> None:
    broken = document()
    broken["weights"]["m"] |= KNOWN | change
    assert "m.packaged: expected " in refused(tmp_path, json.dumps(broken))


def backbone_document() -> dict[str, Any]:
    """A manifest of one backbone, called `b`."""
    entry = json.loads(manifest_path().read_text(encoding="utf-8"))["backbones"]["resnet50_v1c"]
    return {"schema": 2, "weights": {}, "backbones": {"b": entry}}


@pytest.mark.parametrize(("backbone", "digits"), [("resnet50", "2cccc1ad"), ("resnet101", "e67eebb6")])
def test_the_backbones_are_those_of_the_published_training(backbone: str, digits: str) -> None:
    entry = load_backbones()[f"{backbone}_v1c"]
    file_name = f"{backbone}_v1c-{digits}.pth"
    assert entry.urls == (f"https://download.openmmlab.com/pretrain/third_party/{file_name}",)
    assert (entry.file_names, entry.sha256_prefix, entry.backbone) == ((file_name,), digits, backbone)
    with torch.device("meta"):
        state = ResNet(ISANetConfig(num_classes=1, backbone=backbone)).state_dict()
    assert entry.tensors == len(state)
    assert entry.payload == sum(value.numel() * value.element_size() for value in state.values())
    assert entry.layout in convert.BACKBONE_LAYOUTS
    recipes = [isanet.model_info(name).recipe["backbone_weights"] for name in FACTS]
    assert set(recipes) == set(load_backbones())


@pytest.mark.parametrize("field", list(backbone_document()["backbones"]["b"]))
def test_all_fields_of_a_backbone_are_required_and_no_others_allowed(tmp_path: Path, field: str) -> None:
    broken = backbone_document()
    value = broken["backbones"]["b"].pop(field)
    assert f"b: missing field {field!r}" in refused(tmp_path, json.dumps(broken))
    broken["backbones"]["b"] |= {field: value, f"{field}s2": value}
    assert f"b: unknown field '{field}s2'" in refused(tmp_path, json.dumps(broken))


ELSEWHERE = "https://host/resnet50_v1c-2cccc1ad.pth"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("backbone", value) for value in (None, "", 1)],
        *[("layout", value) for value in (None, "")],
        *[("sha256_prefix", value) for value in (None, "", "2cccc1a", "2cccc1adf", "2CCCC1AD", 1)],
        ("sha256", "0" * 63),
        *[("urls", value) for value in (None, [None], ["http://host/resnet50_v1c-2cccc1ad.pth"])],
        *[("size", value) for value in (0, "1")],
        *[(name, value) for name in ("tensors", "payload") for value in (0, None, 1.0)],
        ("license", ""),
        # what fits by itself, and not the rest
        ("urls", []),
        ("urls", [ELSEWHERE, "https://host/resnet50_v1c.pth"]),
        ("sha256_prefix", "2cccc1ae"),
        ("sha256", "0" * 64),
    ],
)
def test_a_wrong_backbone_is_refused(tmp_path: Path, field: str, value: object) -> None:
    broken = backbone_document()
    broken["backbones"]["b"][field] = value
    place = "b.urls" if field == "sha256_prefix" and value == "2cccc1ae" else f"b.{field}"
    assert f"{place}: expected " in refused(tmp_path, json.dumps(broken))


def test_a_backbone_cannot_have_the_name_of_a_model(tmp_path: Path) -> None:
    broken = document()
    broken["backbones"]["m"] = backbone_document()["backbones"]["b"]
    assert "'m' is the name of a model and of a backbone" in refused(tmp_path, json.dumps(broken))


def test_a_pinned_backbone_is_read(tmp_path: Path) -> None:
    pinned = backbone_document()
    pinned["backbones"]["b"] |= {"sha256": "2cccc1ad" * 8, "size": 7, "urls": [ELSEWHERE, ELSEWHERE]}
    backbone = load_backbones(written(tmp_path / "weights.json", json.dumps(pinned)))["b"]
    assert (backbone.known_digits, backbone.size) == ("2cccc1ad" * 8, 7)
    assert load_backbones()["resnet50_v1c"].known_digits == "2cccc1ad"


# --- asking -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", list(load_manifest())),
        ("*_cityscapes", ["isanet_r50_cityscapes", "isanet_r101_cityscapes"]),
        ("isanet_r50_voc*", [*(f"isanet_r50_voc{end}" for end in ("", ".mmseg_20k", ".mmseg_40k", ".paddleseg"))]),
        ("*.openseg", ["isanet_r101_cityscapes.openseg"]),
        ("isanet_r50_vo?", ["isanet_r50_voc"]),
        ("isanet_r101_[av]??.mmseg*", ["isanet_r101_voc.mmseg_20k", "isanet_r101_voc.mmseg_40k"]),
        ("isanet_r50_voc", ["isanet_r50_voc"]),
        ("voc", []),
        ("*VOC", []),
        ("", []),
    ],
)
def test_list_models_filters_by_pattern(pattern: str, expected: list[str]) -> None:
    assert isanet.list_models(pattern) == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("isanet_r50_vok", "did you mean isanet_r50_voc"),
        ("isanet_r101_cityscape", "did you mean isanet_r101_cityscapes"),
        ("isanet_r50_voc_mmseg_20k", "did you mean isanet_r50_voc.mmseg_20k"),
        ("qqq", "`isanet list` shows all"),
        ("", "`isanet list` shows all"),
    ],
)
def test_an_unknown_name_lists_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        isanet.model_info(name)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert not isinstance(caught.value, isanet.ManifestError)


def test_weights_are_frozen_and_not_shared() -> None:
    weights = isanet.model_info("isanet_r50_voc")
    with pytest.raises(FrozenInstanceError):
        weights.sha256 = "0" * 64  # type: ignore[misc]
    assert replace(weights, size=1).size == 1
    weights.architecture["num_classes"] = 2  # type: ignore[index]
    assert isanet.model_info("isanet_r50_voc").architecture["num_classes"] == 21


def test_reading_imports_nothing_heavy() -> None:
    code = (
        "import sys, isanet; isanet.list_models(); isanet.model_info('isanet_r50_voc');"
        "print([m for m in ('torch', 'numpy', 'requests', 'PIL', 'huggingface_hub', 'tqdm') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_manifest_is_parsed_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    parse = manifest._parse
    monkeypatch.setattr(manifest, "_parse", lambda document: parsed.append(document) or parse(document))
    path = tmp_path / "weights.json"
    for text in (GOOD, GOOD + "\n", GOOD):
        path.write_text(text)
        assert manifest.load_manifest(path) == manifest.load_manifest(path)
        assert manifest.load_backbones(path) == manifest.load_backbones(path)
    assert len(parsed) == 2
