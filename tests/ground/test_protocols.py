"""Protocols by name, in words, and those that make no sense."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from isanet.protocols import PROTOCOLS, Protocol, protocol
from isanet.weights import manifest


def test_published_figures_name_their_protocol() -> None:
    seen: dict[str, set[str]] = {}
    for weights in manifest.load_manifest().values():
        seen.setdefault(weights.family, set()).add(weights.metrics["protocol"])
    assert seen == {
        "sssegmentation": {"whole"},
        "mmsegmentation": {"mmseg-whole", "mmseg-slide-769"},
        "paddleseg": {"whole"},
        "openseg": {"whole"},
        "bpkd": {"mmseg-whole"},
        "isanet": {"whole"},
    }
    assert PROTOCOLS["whole"] == Protocol("whole", None, None, (1.0,), False, "sssegmentation")


def test_protocols_in_words() -> None:
    assert PROTOCOLS["whole"].text == "whole image, single scale, no flip"
    assert (
        PROTOCOLS["mmseg-slide-769-multiscale-flip"].text
        == "windows of 769x769 at stride 513x513, scales 0.5, 0.75, 1, 1.25, 1.5, 1.75, flip, as mmsegmentation"
    )
    assert PROTOCOLS["paddleseg-multiscale-flip"].text == "whole image, scales 0.75, 1, 1.25, flip, as paddleseg"
    assert PROTOCOLS["flip"].text == "whole image, single scale, flip"
    assert Protocol("half", scales=(0.5,)).text == "whole image, scale 0.5, no flip"
    assert len({known.text for known in PROTOCOLS.values()}) == len(PROTOCOLS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (0, 5), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5, 5.0), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5,), "stride": (1, 1)}, "window must be two positive"),
        ({"window": (5, 5), "stride": (0, 1)}, "stride must be two positive"),
        ({"window": (5, 5), "stride": (5, 6)}, "gaps"),
        ({"window": (5, 5)}, "together"),
        ({"stride": (5, 5)}, "together"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, 0.0)}, "positive"),
        ({"scales": (-1.0,)}, "positive"),
        ({"scales": (float("nan"),)}, "positive"),
        ({"scales": (float("inf"),)}, "positive"),
        ({"framework": "detectron"}, "sssegmentation, mmsegmentation"),
    ],
)
def test_protocols_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PROTOCOLS["whole"], **changes)


def test_protocols_do_not_need_torch() -> None:
    command = "import isanet.protocols, isanet.weights.manifest, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_protocols_are_found_by_name() -> None:
    for name, known in PROTOCOLS.items():
        assert protocol(name) is known is protocol(known) is protocol("auto", name) is protocol(known, "whole")
        assert known.name == name
    assert protocol("auto") is PROTOCOLS["whole"]
    with pytest.raises(ValueError, match=r"'slide'.*whole, flip, slide-512"):
        protocol("slide")
