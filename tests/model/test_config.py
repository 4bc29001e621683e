"""The arguments of a network are declared, checked and documented once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest
import torch

from isanet.config import ISANetConfig, config_json
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet


def test_what_is_left_out_is_derived() -> None:
    config = ISANetConfig(num_classes=3)
    assert config.classes == ["class 0", "class 1", "class 2"]
    assert config.palette == [[0, 0, 0], [127, 127, 127], [255, 255, 255]]
    assert ISANetConfig(classes=("road", "car")).num_classes == 2


def test_config_is_its_own_json() -> None:
    preprocessing = {"short_edge": 5, "long_edge": 9, "mean": [0.0] * 3, "std": [1.0] * 3}
    values = ISANetConfig(classes=["road"], palette=[(1, 2, 3)], preprocessing=preprocessing).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert ISANetConfig(**values).to_dict() == values
    names = [field.name for field in dataclasses.fields(ISANetConfig)]
    assert list(values) == names
    with torch.device("meta"):
        assert ISANet(**values).config == values


@pytest.mark.parametrize("order", [["short_range", "long_range"], ["long_range"], ["short_range"]])
def test_another_order_of_attention_is_written_and_the_published_one_is_not(order: list[str]) -> None:
    values = ISANetConfig(num_classes=2, attention_order=tuple(order)).to_dict()
    assert values["attention_order"] == order
    assert ISANetConfig(**json.loads(config_json(values))).to_dict() == values
    default = ISANetConfig(num_classes=2, attention_order=["long_range", "short_range"]).to_dict()
    assert "attention_order" not in json.loads(config_json(default))


@pytest.mark.parametrize(
    "order", [[], "long_range", ["long_range"] * 2, ["dense"], [1, "short_range"], [["a"]], None, 3]
)
def test_a_wrong_order_of_attention_is_refused(order: object) -> None:
    with pytest.raises(ValueError, match="attention_order must be a list of long_range and short_range, or of one"):
        ISANetConfig(num_classes=2, attention_order=order)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("stem_channels", [4, 4, 12]),
        ("maxpool_ceil", True),
        ("full_dilation", True),
        ("average_pool_shortcut", True),
        ("leaky_slope", 0.01),
        ("logits_resize", "asymmetric"),
        ("protocol", "flip"),
        ("backbone", "resnet18"),
        ("value_bias", True),
    ],
)
def test_a_file_has_what_is_not_the_default(argument: str, value: object) -> None:
    values = ISANetConfig(num_classes=2, width=8, **{argument: value}).to_dict()  # type: ignore[arg-type]
    written = json.loads(config_json(values))
    assert written == {name: values[name] for name in ("num_classes", "width", "classes", "palette", argument)}
    assert ISANetConfig(**written).to_dict() == values


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("stem_channels", [[4, 4], [4, 4, 8, 8], [4, 4, 8.0], "448"], "three stem_channels"),
        ("stem_channels", [[4, 4, 0], [-4, 4, 8]], "all channel counts and block_size positive"),
        ("maxpool_ceil", [1, None, "true"], "flags must be true or false"),
        ("full_dilation", [1, None, "true"], "flags must be true or false"),
        ("average_pool_shortcut", [1, None, "true"], "flags must be true or false"),
        ("leaky_slope", [-0.01, 1, float("nan"), "0.01", None, True, [0]], r"leaky_slope must be from 0 \(ReLU\)"),
        ("logits_resize", ["bilinear", True, None, ["corners"]], "must be half_pixel, corners, asymmetric, got"),
        ("protocol", ["whole-image"], "protocol must be whole, "),
        ("protocol", [[], 3], "protocol and label_space must be texts"),
    ],
)
def test_wrong_values_are_named(argument: str, values: list[object], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            ISANetConfig(num_classes=2, **{argument: value})  # type: ignore[arg-type]


def test_help_shows_the_arguments() -> None:
    parameters = inspect.signature(ISANet).parameters.values()
    assert [parameter.name for parameter in parameters] == [field.name for field in dataclasses.fields(ISANetConfig)]
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    documented = inspect.getdoc(ISANetConfig) or ""
    assert all(f"\n    {parameter.name}: " in documented for parameter in parameters)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="num_clases"):
        ISANet(num_clases=3)
    with pytest.raises(TypeError):
        ISANet(3)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["voc21", "cityscapes-ids", "no such space"])
def test_a_false_label_space_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"label_space '{name}' is not that of the classes"):
        ISANetConfig(classes=LABEL_SPACES["cityscapes19"].classes, label_space=name)
    assert ISANetConfig(classes=LABEL_SPACES["voc21"].classes, label_space="voc21").label_space == "voc21"


def test_config_does_not_need_torch() -> None:
    command = "import isanet.config, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_the_scales_of_a_protocol_count_in_the_bound_on_pixels() -> None:
    values = {"num_classes": 2, "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "pad_color": [0, 0, 0]}}
    values["preprocessing"] |= {"pad_to": [1025, 2049]}
    assert ISANetConfig(**values, protocol="mmseg-multiscale-flip")  # type: ignore[arg-type]
    values["preprocessing"] |= {"pad_to": [2048, 4096]}
    assert ISANetConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="72,876,032 pixels at the scales of mmseg-multiscale-flip, which is more than"
    ):
        ISANetConfig(**values, protocol="mmseg-multiscale-flip")  # type: ignore[arg-type]
