"""Every family of published ISANets computes what its own framework does, with stand-in weights.

The manifest says which network each entry is and how its images are prepared; the references are outputs of each
family's own source, in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import isanet
from isanet.inference.network import EagerNetwork
from isanet.inference.predict import Prepared, logits_maps
from isanet.protocols import Protocol
from isanet.weights import convert
from isanet.zoo.networks import model_config
from tests.helpers import stand_in

# Listing of the weights and size of the image -> entry of the manifest
REFERENCES = {
    ("mmsegmentation_r50_ade20k_512x512", 65, 97): "isanet_r50_ade20k.mmseg_80k",
    ("bpkd_r18_pascal_context_59", 77, 101): "isanet_r18_context59.bpkd_plain",
    ("paddleseg_r50_voc12aug_512x512", 101, 117): "isanet_r50_voc.paddleseg",
    ("paddleseg_r50_cityscapes_769x769", 97, 129): "isanet_r50_cityscapes.paddleseg",
    ("openseg_r101_cityscapes_inplace_abn", 101, 117): "isanet_r101_cityscapes.openseg",
    ("openseg_r101_cityscapes_torchsyncbn", 77, 203): "isanet_r101_cityscapes.openseg",
}


def stand_in_model(listing: str, name: str) -> isanet.ISANet:
    """The network of an entry of the manifest in float64, with stand-in weights."""
    upstream = stand_in.state_dict(listing)
    layout = convert.detect_layout(upstream)
    plain = {"leaky_slope": 0.0} if layout == "openseg_torch" else {}  # torch's batch norm has a ReLU behind it
    with torch.device("meta"):
        model = isanet.ISANet(**{**model_config(isanet.model_info(name)), **plain})
    model.load_state_dict(convert.convert(upstream, layout), assign=True)
    return model.double().eval()


def relative(given: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest absolute value."""
    assert given.shape == expected.shape
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("reference", "name"), REFERENCES.items(), ids=[key[0] for key in REFERENCES])
@torch.inference_mode()
def test_networks_equal_those_of_their_frameworks(reference: tuple[str, int, int], name: str) -> None:
    listing, height, width = reference
    expected = load_file(stand_in.DATA / f"{listing}_{height}x{width}.safetensors")
    model, image = stand_in_model(listing, name), stand_in.image(height, width).double()
    logits, aux_logits = model.coarse_logits(image, aux=True)
    # The references are stored in float32 (measured: 5e-8). InPlaceABN's scales are stored in float32 after conversion
    # too (4e-7), and PaddleSeg resizes by ratios in float32 (2e-7)
    assert relative(logits, expected["logits"]) <= 1e-6
    assert relative(aux_logits, expected["aux_logits"]) <= 1e-6
    assert relative(model.resize(logits, (height, width))[..., ::7, ::7], expected["full"]) <= 1e-6
    for number, stage in enumerate(model.features(image).stages[2:], start=3):
        assert relative(stage.mean((0, 2, 3)), expected[f"stage{number}_mean"].flatten()) <= 1e-6
    if "slide" in expected:
        how = Protocol("slide-65", (65, 65), (43, 43), framework="mmsegmentation")
        (maps,) = logits_maps(EagerNetwork(model), [Prepared((height, width), tuple(image), ())], how, batch_size=4)
        assert maps is not None
        assert relative(maps[0].rows(0, height)[None, :, ::7, ::7], expected["slide"]) <= 1e-6


@pytest.mark.parametrize(
    ("listing", "name", "files"),
    [
        ("paddleseg_r50_voc12aug_512x512", "isanet_r50_voc.paddleseg", "paddleseg_voc"),
        ("openseg_r101_cityscapes_inplace_abn", "isanet_r101_cityscapes.openseg", "openseg_cityscapes"),
    ],
)
def test_label_maps_equal_those_of_their_frameworks(listing: str, name: str, files: str) -> None:
    """Padded, and in BGR; by the protocol that the model is meant for."""
    model = stand_in_model(listing, name)
    bias = load_file(stand_in.DATA / f"image_187x250.{files}.safetensors")["classifier_bias"]
    model.classifier.bias = torch.nn.Parameter(bias.double())
    result = isanet.Segmenter(model, device="cpu", precision="float32")(stand_in.DATA / "image_187x250.png")
    expected = np.asarray(Image.open(stand_in.DATA / f"image_187x250.{files}_labels.png"))
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(result.labels, expected)
