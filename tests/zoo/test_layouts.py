"""Released files of every layout: fetched, converted, cached; what the manifest counts is what is in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import isanet
from isanet.weights import convert
from isanet.weights.layouts import NOT_SHOWN
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.file_server import FileServer

Write = Callable[[Path, dict[str, Tensor]], Any]


def paddle(protocol: int) -> Write:
    return lambda path, state: stand_in.paddle_file(path, {name: v.numpy() for name, v in state.items()}, protocol)


def change_entry(folder: Path, **changes: Any) -> None:
    """Change what the manifest says of the tiny model."""
    document = json.loads((folder / "weights.json").read_text())
    document["weights"][tiny_zoo.NAME] |= changes
    (folder / "weights.json").write_text(json.dumps(document))


def wrapped(path: Path, state: dict[str, Tensor]) -> None:
    """As MMRazor leaves it: a student, its teacher, and what connects them."""
    teacher = tiny_zoo.upstream_state("mmsegmentation", width=16)
    both = {f"architecture.model.{name}": value for name, value in state.items()}
    both |= {f"distiller.teacher.{name}": value for name, value in teacher.items()}
    torch.save({"meta": {}, "state_dict": both | {"distiller.connectors.loss.weight": torch.ones(3)}}, path)


FILES: dict[str, tuple[str, Write]] = {
    "model.pth": ("sssegmentation", lambda path, state: torch.save({"epoch": 60, "model": state}, path)),
    "mmseg.pth": ("mmsegmentation", lambda path, state: torch.save({"meta": {}, "state_dict": state}, path)),
    "wrapped.pth": ("mmsegmentation", wrapped),
    "model.pdparams": ("paddleseg", paddle(2)),
    "later.pdparams": ("paddleseg", paddle(4)),
    "openseg.pth": ("openseg", stand_in.openseg_file),
    "torch.pth": ("openseg_torch", stand_in.openseg_file),
}


@pytest.mark.parametrize("name", FILES)
def test_a_released_file_of_every_layout_becomes_a_model(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    layout, write = FILES[name]
    state = tiny_zoo.upstream_state(layout)
    write(tmp_path / name, state)
    tiny.files[f"/{name}"] = (tmp_path / name).read_bytes()
    implied = {
        key: value for key, value in NOT_SHOWN.get(layout, {}).items() if key not in ("preprocessing", "protocol")
    }
    architecture = {**tiny_zoo.ARCHITECTURE, **tiny_zoo.LAYOUT_ARCHITECTURE[layout], **implied}
    counts = {"tensors": len(state), "payload": sum(value.nbytes for value in state.values())}
    has_counters = any(key.endswith("num_batches_tracked") for key in state)
    assert has_counters == (layout not in ("paddleseg", "openseg"))

    urls = [f"https://127.0.0.1:1/{name}"]
    change_entry(tmp_path, layout=layout, architecture=architecture, urls=urls, **counts)
    model = isanet.from_pretrained(tiny_zoo.NAME)
    expected = isanet.ISANet(**architecture).eval()
    expected.load_state_dict(convert.convert(state, layout))
    assert torch.equal(tiny_zoo.logits(model), tiny_zoo.logits(expected))
    assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(tiny_zoo.NAME)), tiny_zoo.logits(model))  # cached
    assert len(tiny.requests) == 1
    assert model.provenance["layout"] == layout

    monkeypatch.setenv("ISANET_HOME", str(tmp_path / "other"))
    change_entry(tmp_path, tensors=len(state) + 1)
    with pytest.raises(isanet.MirrorsExhaustedError, match=f"has {len(state)} tensors of {counts['payload']:,} bytes"):
        isanet.from_pretrained(tiny_zoo.NAME)


def test_a_file_in_another_layout_than_the_manifest_says_is_refused(tiny: FileServer, tmp_path: Path) -> None:
    """With torch's batch norm, an openseg checkpoint has other activations and scales: only its names tell."""
    name, state = "openseg.pth", tiny_zoo.upstream_state("openseg_torch")
    tiny.files[f"/{name}"] = stand_in.openseg_file(tmp_path / name, state).read_bytes()
    change_entry(tmp_path, layout="openseg", urls=[f"https://127.0.0.1:1/{name}"])
    with pytest.raises(isanet.MirrorsExhaustedError, match="has openseg_torch's layout, expected openseg's"):
        isanet.from_pretrained(tiny_zoo.NAME)
