from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import isanet
from isanet.weights.choosing import SORTS, by_dataset, by_hand, dataset_name, select
from isanet.weights.manifest import load_manifest, manifest_path

DATASETS = {
    "voc": ("PASCAL VOC 2012", "val", "voc21"),
    "ade20k": ("ADE20K", "val", "ade20k150"),
    "cityscapes": ("Cityscapes", "val", "cityscapes19"),
    "context59": ("Pascal Context", "val", "context59"),
    "toystreets": ("ToyStreets", "test", "toystreets"),
}

# Name: family, backbone, mIoU in percent, millions of parameters, billions of multiply-adds, and what else is special
SMALL: dict[str, tuple[Any, ...]] = {
    "isanet_r50_voc.mmseg_a": ("mmsegmentation", "resnet50", 70.0, 40, 100.0),
    "isanet_r101_voc.mmseg_b": ("mmsegmentation", "resnet101", 80.0, 60, 200.0),
    "isanet_r101_voc.openseg": ("openseg", "resnet101", 80.0, 60, 150.0, "by hand"),
    "isanet_r101_voc.mmseg_d": ("mmsegmentation", "resnet101", 79.5, 60, 161.0),  # not clearly less
    "isanet_r101_voc.mmseg_e": ("mmsegmentation", "resnet101", 79.0, 50, 160.0),
    "isanet_r50_voc.mmseg_f": ("mmsegmentation", "resnet50", 69.0, 40, 120.0),  # worse in both
    "isanet_r18_voc.bpkd": ("bpkd", "resnet18", 60.0, 12, 20.0, "academic"),
    "isanet_r50_cityscapes": ("sssegmentation", "resnet50", 75.0, 44, 900.0),
    "isanet_r50_cityscapes.mmseg": ("mmsegmentation", "resnet50", 76.0, 40, 2000.0, "windows"),
    "isanet_r26_toystreets": ("isanet", "resnet26", 86.0, 1, 2.0),
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of models with round figures."""
    entry = json.loads(manifest_path().read_text(encoding="utf-8"))["weights"]["isanet_r50_voc"]
    document: dict[str, Any] = {"schema": 2, "weights": {}, "backbones": {}}
    for number, (name, (family, backbone, miou, parameters, gmacs, *special)) in enumerate(SMALL.items()):
        dataset, split, label_space = DATASETS[name.partition(".")[0].rpartition("_")[2]]
        protocol = "mmseg-slide-769" if "windows" in special else "whole"
        document["weights"][name] = entry | {
            "family": family,
            "architecture": {"backbone": backbone, "num_classes": 2},
            "label_space": label_space,
            "urls": [] if "by hand" in special else [f"https://127.0.0.1:1/{number}.pth"],
            "pages": [{"url": "https://127.0.0.1:1/page", "note": "there"}],
            "file_name": f"{number}.pth",
            "parameters": parameters * 10**6,
            "gmacs": gmacs,
            "commercial": "academic" not in special,
            "metrics": {"dataset": dataset, "split": split, "miou": miou / 100, "protocol": protocol},
        }
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(document))
    monkeypatch.setattr("isanet.weights.manifest.manifest_path", lambda: path)


def names(**wanted: Any) -> list[str]:
    return [weights.name for weights in select(**wanted)]


# --- filters


@pytest.mark.parametrize(
    ("wanted", "prefixes", "suffixes"),
    [
        ({"dataset": "voc", "family": "bpkd"}, ["isanet_r18_voc"], ["bpkd"]),
        ({"dataset": "cityscapes", "backbone": "r50"}, ["isanet_r50_cityscapes"], ["", "mmseg"]),
        ({"family": "openseg"}, ["isanet_r101_voc"], ["openseg"]),
        ({"license": "academic"}, ["isanet_r18_voc"], ["bpkd"]),
        ({"pattern": "*_e"}, ["isanet_r101_voc"], ["mmseg_e"]),
        ({"pattern": "*_[ab]", "backbone": "resnet50"}, ["isanet_r50_voc"], ["mmseg_a"]),
    ],
)
def test_each_filter(small: None, wanted: dict[str, str], prefixes: list[str], suffixes: list[str]) -> None:
    found = names(**wanted)
    assert {name.partition(".")[0] for name in found} == set(prefixes)
    assert [name.partition(".")[2] for name in found] == suffixes


def test_without_filters_all_models_in_the_order_of_the_manifest(small: None) -> None:
    assert names() == names(dataset=None, license=None) == list(SMALL)


SPELLINGS = {
    "dataset": {
        "voc": ("voc", "VOC", "pascal-voc", "PASCAL VOC 2012", "voc2012", "voc12aug", "Pascal_VOC"),
        "ade20k": ("ade", "ADE20K", "ade-20k", "ade20k150"),
        "cityscapes": ("cityscapes", "CityScapes", "city", "cityscape", "cityscapes19"),
        "context59": ("context", "context59", "pascal-context", "Pascal Context 59"),
        "toystreets": ("toystreets", "toy streets", "ToyStreets"),
    },
    "backbone": {
        "resnet18": ("resnet18", "r18", "ResNet-18", "18", 18),
        "resnet50": ("r50", "R50-D8", "resnet50_v1c"),
        "resnet101": ("r101", "101"),
    },
    "family": {
        "mmsegmentation": ("mmseg", "MMSegmentation"),
        "sssegmentation": ("ssseg",),
        "openseg": ("openseg", "openseg.pytorch"),
        "paddleseg": ("paddle", "PaddleSeg"),
    },
    "license": {"commercial": ("commercial",), "academic": ("academic",)},
}


@pytest.mark.parametrize(("fact", "value"), [(fact, value) for fact in SPELLINGS for value in SPELLINGS[fact]])
def test_a_value_has_many_spellings(fact: str, value: str) -> None:
    expected = names(**{fact: value})
    assert expected
    for text in SPELLINGS[fact][value]:
        assert names(**{fact: text}) == expected, text


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"dataset": "kitti"}, "dataset='kitti' is none of voc, ade20k, cityscapes, context59, toystreets"),
        ({"dataset": "pascal"}, "dataset='pascal' may be voc or context59"),
        ({"dataset": "x"}, "dataset='x' is none of voc"),  # although ConteXt has one
        ({"dataset": ""}, "dataset='' is none of voc"),
        ({"family": "seg"}, "family='seg' may be sssegmentation or mmsegmentation or paddleseg or openseg"),
        ({"backbone": "resnet34"}, "backbone='resnet34' is none of resnet50, resnet101, resnet18, resnet26"),
        ({"license": "MIT"}, "license='MIT' is none of commercial, academic"),
        ({"pattern": "resnet*", "dataset": "voc"}, "no model matches 'resnet*'; `isanet list` shows all"),
        (
            {"dataset": "context59", "license": "commercial"},
            "no model has dataset context59 and license commercial; change dataset to voc or ade20k or cityscapes or "
            "toystreets, or leave out license",
        ),
        (
            {"dataset": "voc", "family": "openseg"},
            "change dataset to cityscapes, or change family to sssegmentation or mmsegmentation or paddleseg",
        ),
        (
            {"pattern": "*paddle*", "dataset": "ade20k"},
            "no model that matches '*paddle*' has dataset ade20k; change dataset to voc or cityscapes",
        ),
        ({"dataset": "toystreets", "family": "bpkd", "backbone": "r101"}, "no model has dataset toystreets and"),
    ],
)
def test_filters_that_leave_nothing_say_what_there_is(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        select(**wanted)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_advice_is_only_given_where_one_change_helps() -> None:
    wanted = {"dataset": "toystreets", "family": "openseg", "backbone": "r18"}
    with pytest.raises(ValueError, match="backbone resnet18; `isanet list` shows all"):
        select(**wanted)


def test_orders_begin_with_the_best(small: None) -> None:
    models = select(dataset="voc")
    for name, values in {
        "miou": [weights.metrics["miou"] for weights in sorted(models, key=SORTS["miou"])][::-1],
        "parameters": [weights.parameters for weights in sorted(models, key=SORTS["parameters"])],
        "speed": [weights.gmacs for weights in sorted(models, key=SORTS["speed"])],
    }.items():
        assert values == sorted(values), name
        assert len(set(values)) > 1, name


def test_groups_are_datasets_in_the_order_of_the_manifest(small: None) -> None:
    groups = by_dataset(select())
    assert {dataset: len(group) for dataset, group in groups.items()} == {"voc": 7, "cityscapes": 2, "toystreets": 1}


def test_the_short_name_of_a_dataset_stands_for_one_dataset() -> None:
    facts = {(dataset_name(weights), *map(weights.metrics.get, ("dataset", "split")), weights.label_space)
             for weights in load_manifest().values()}  # fmt: skip
    assert facts == {(name, *values) for name, values in DATASETS.items()}


def test_what_must_be_downloaded_by_hand() -> None:
    assert [weights.name for weights in load_manifest().values() if by_hand(weights)] == [
        "isanet_r101_cityscapes.openseg"
    ]


# --- recommendations


def recommended(*arguments: Any, **options: Any) -> dict[str, str]:
    return {choice.name: choice.reason for choice in isanet.recommend(*arguments, **options)}


def test_the_best_and_cheaper_ones_each_with_its_reason(small: None) -> None:
    assert recommended("voc", count=9) == {
        "isanet_r101_voc.mmseg_b": "best mIoU (80.00) of 7 for PASCAL VOC 2012",
        "isanet_r101_voc.openseg": "mIoU 80.00: 0.00 points less, 75 % of the multiply-adds; to be downloaded by hand",
        "isanet_r50_voc.mmseg_a": "mIoU 70.00: 10.00 points less, 50 % of the multiply-adds",
        "isanet_r18_voc.bpkd": "mIoU 60.00: 20.00 points less, 10 % of the multiply-adds; academic use only",
    }
    assert list(recommended("voc")) == list(recommended("voc", count=9))[:3]
    assert list(recommended("voc", count=1)) == ["isanet_r101_voc.mmseg_b"]
    assert recommended("toystreets") == {"isanet_r26_toystreets": "the only one, mIoU 86.00, for ToyStreets"}


def test_a_best_one_that_is_also_the_cheapest_stands_alone(small: None) -> None:
    reason = "best mIoU (70.00) of 2 and fewest multiply-adds for PASCAL VOC 2012 (resnet50)"
    assert recommended("voc", backbone="r50") == {"isanet_r50_voc.mmseg_a": reason}


def test_windows_are_named(small: None) -> None:
    assert recommended("cityscapes") == {
        "isanet_r50_cityscapes.mmseg": "best mIoU (76.00) of 2 for Cityscapes; measured in windows of 769x769",
        "isanet_r50_cityscapes": "mIoU 75.00: 1.00 points less, 45 % of the multiply-adds",
    }


def test_without_a_dataset_some_of_each(small: None) -> None:
    found = list(recommended(count=1))
    assert found == ["isanet_r101_voc.mmseg_b", "isanet_r50_cityscapes.mmseg", "isanet_r26_toystreets"]
    assert list(recommended(max_gmacs=100)) == [
        *("isanet_r50_voc.mmseg_a", "isanet_r18_voc.bpkd", "isanet_r26_toystreets")
    ]


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({"max_parameters": 50e6}, "isanet_r101_voc.mmseg_e", "79.00) of 4 for PASCAL VOC 2012 (at most 50,000,000 p"),
        ({"max_parameters": 49_999_999}, "isanet_r50_voc.mmseg_a", "(70.00) of 3 for"),
        ({"max_gmacs": 150.0}, "isanet_r101_voc.openseg", "(at most 150 G multiply-adds); to be downloaded by hand"),
        ({"max_gmacs": 149.9, "commercial": True}, "isanet_r50_voc.mmseg_a", "commercial use allowed, at most 149.9 G"),
        ({"max_gmacs": 20}, "isanet_r18_voc.bpkd", "the only one, mIoU 60.00, for PASCAL VOC 2012 (at most 20 G"),
    ],
)
def test_limits(small: None, options: dict[str, Any], name: str, words: str) -> None:
    found = recommended("pascal-voc", **options)
    assert next(iter(found)) == name
    assert words in found[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "voc", "max_parameters": 5e6},
            "no model for PASCAL VOC 2012 is that small (at most 5,000,000 parameters); the nearest is "
            "isanet_r18_voc.bpkd with 12,000,000 parameters and 20.0 G multiply-adds",
        ),
        ({"dataset": "voc", "max_gmacs": 50, "commercial": True}, "isanet_r50_voc.mmseg_a with 40,000,000 parameters"),
        # Of two limits, the one that is missed most counts: 40 of 30 million and 100 of 90
        ({"dataset": "voc", "commercial": True, "max_gmacs": 90, "max_parameters": 30e6}, "isanet_r50_voc.mmseg_a"),
        ({"max_gmacs": 1}, "no model is that small (at most 1 G multiply-adds); the nearest is isanet_r26_toystreets"),
        ({"dataset": "toystreets", "backbone": "r18"}, "change dataset to voc, or change backbone to resnet26"),
        ({"max_gmacs": 0}, "max_gmacs=0 is not a number above 0"),
        ({"max_gmacs": math.nan}, "max_gmacs=nan is not a number above 0"),
        ({"max_parameters": "40M"}, "max_parameters='40M' is not a number above 0"),
        ({"count": 0}, "count=0 is not a whole number of at least 1"),
        ({"count": 1.0}, "count=1.0 is not a whole number of at least 1"),
    ],
)
def test_what_cannot_be_recommended(small: None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        isanet.recommend(**options)
    assert message in str(caught.value)


def test_the_real_zoo() -> None:
    assert list(recommended("cityscapes", commercial=True)) == [
        *("isanet_r101_cityscapes.mmseg_769x769_80k", "isanet_r101_cityscapes", "isanet_r50_cityscapes")
    ]
    assert list(recommended("voc")) == ["isanet_r50_voc.paddleseg"]
    assert list(recommended("ade20k")) == ["isanet_r101_ade20k", "isanet_r50_ade20k", "isanet_r18_ade20k.bpkd_bpkd"]
    assert list(recommended("context59")) == ["isanet_r101_context59.bpkd", "isanet_r18_context59.bpkd_bpkd"]


def test_no_recommendation_is_worse_than_another_model_in_both() -> None:
    manifest = load_manifest()
    for dataset, group in by_dataset(manifest.values()).items():
        chosen = [manifest[name] for name in recommended(dataset, count=99)]
        for weights in chosen:
            assert not [
                other for other in group
                if other.gmacs < weights.gmacs and other.metrics["miou"] >= weights.metrics["miou"]
            ], weights.name  # fmt: skip
        costs = [weights.gmacs for weights in chosen]
        assert all(next_cost <= 0.8 * cost for cost, next_cost in pairwise(costs))
        assert max(group, key=lambda weights: weights.metrics["miou"]).name == chosen[0].name


def test_a_reason_is_one_short_line() -> None:
    for choice in isanet.recommend(count=99, max_parameters=99e6, max_gmacs=9999):
        assert choice.reason.isprintable()
        assert len(choice.reason) < 160
    with pytest.raises(AttributeError):
        choice.name = "another"  # type: ignore[misc]
