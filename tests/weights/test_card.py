"""What the card of a released model says; cards of untrusted texts are in test_hub.py."""

from __future__ import annotations

import re

import pytest

import isanet
from isanet.config import ISANetConfig
from isanet.weights.card import model_card
from isanet.zoo.networks import model_config


@pytest.mark.parametrize("name", isanet.list_models())
def test_a_card_says_whose_a_model_is_and_what_its_license_allows(name: str) -> None:
    weights = isanet.model_info(name)
    facts = {"name": name, "source": "https://host/f.pth", "source_sha256": "ab" * 32}
    card = model_card(ISANetConfig(**model_config(weights)).to_dict(), facts, f"org/{name}", verified=True)
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    lines = dict(line.partition(": ")[::2] for line in front.splitlines())
    assert lines["license"] == {"openseg": "mit", "bpkd": "other"}.get(weights.family, "apache-2.0")
    assert ("license_name" in lines) == (lines["license"] == "other") == (weights.family == "bpkd")
    assert re.fullmatch("[a-z0-9-]+", lines.get("license_name", "x"))
    assert ("**Not for commercial use.**" in body) != weights.commercial
    for words in (
        f"`{name}`, published by {weights.family}, trained on {weights.metrics['dataset']}",
        f"{100 * weights.metrics['miou']:.2f} %",
        f"License: {weights.license}.",
        f"from `https://host/f.pth`, of sha256 `{'ab' * 32}`",
        f'Segmenter("org/{name}")',
    ):
        assert words in body
    assert not re.search(
        r"published by|[Cc]ommercial", model_card(ISANetConfig(**model_config(weights)).to_dict(), facts)
    )


@pytest.mark.parametrize(("start", "free"), [("isanet_r18_ade20k.bpkd_cwd", False), ("isanet_r50_voc", True)])
def test_the_card_of_a_trained_model_says_what_the_license_of_its_start_forbids(start: str, free: bool) -> None:
    card = model_card(ISANetConfig(num_classes=2).to_dict(), {"started_from": start, "trained_on": "pets"})
    assert f"from `{start}` on pets" in card
    assert ("not for commercial use" in card) is not free
    assert (isanet.model_info(start).license in card) is not free
