"""A stand-in of full size for every released model, in its publisher's file format and names."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from isanet.weights.manifest import Weights, manifest_path
from tests.helpers import stand_in

SPACES = {"voc21": "voc", "ade20k150": "ade20k", "cityscapes19": "cityscapes", "context59": "pascal_context_59"}


def listing(weights: Weights) -> str:
    """The listing in tests/data of the tensors that a model's file has; models of one network share it."""
    backbone = weights.architecture["backbone"].replace("resnet", "r")
    found = sorted(stand_in.DATA.glob(f"{weights.family}_{backbone}_{SPACES[weights.label_space]}*.keys.json"))
    return found[0].name.removesuffix(".keys.json")  # of openseg's two, InPlaceABN's


def is_wrapped(weights: Weights) -> bool:
    """Whether the names in a file are expected to be those of mmrazor: of BPKD's without distillation."""
    return weights.name.endswith(("bpkd_plain", "r101_context59.bpkd"))


def write(weights: Weights, folder: Path) -> Path:
    """Write a model's stand-in into a folder, under the name that a mirror or the cache has for it."""
    path, name = folder / weights.file_names[0], listing(weights)
    if weights.family == "paddleseg":
        return stand_in.paddle_file(path, stand_in.arrays(name))
    state = stand_in.state_dict(name)
    if weights.family == "openseg":
        return stand_in.openseg_file(path, state)
    if weights.family == "sssegmentation":
        torch.save({"epoch": 60, "model": state, "optimizer": stand_in.sgd_state(state)}, path)
    elif is_wrapped(weights):
        torch.save({"state_dict": {f"architecture.model.{name}": value for name, value in state.items()}}, path)
    else:
        torch.save({"meta": {}, "state_dict": state}, path)
    return path


def manifest_for_stand_ins(path: Path) -> Path:
    """The manifest without the published digits of hashes, which a stand-in does not have."""
    document = json.loads(manifest_path().read_text(encoding="utf-8"))
    for entry in document["weights"].values():
        if not entry["packaged"]:
            entry["sha256_prefix"] = None
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
