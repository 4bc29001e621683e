"""Exported files, as `isanet.export` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import openvino

import isanet
from isanet.config import config_json
from isanet.inference.fast.optimize import optimize
from isanet.inference.runtimes.graph import network_file
from isanet.inference.runtimes.openvino import core
from tests.helpers.published import network

PREPROCESSING = {"short_edge": 48, "long_edge": 96, "mean": [120, 110, 100], "std": [60, 50, 55]}


def model(kind: str = "sssegmentation", **changes: object) -> isanet.ISANet:
    """A small network of a published kind in float32, with preprocessing."""
    made = network(kind, **{"preprocessing": PREPROCESSING, **changes}).float()
    made.provenance["name"] = f"small {kind}"
    return made


def metadata(made: isanet.ISANet, **changes: str) -> dict[str, str]:
    texts = {"config": config_json(made.config), "provenance": json.dumps(made.provenance)}
    return {**texts, "precision": "float32", "whole": "false", **changes}


def onnx_model(made: isanet.ISANet, **changes: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(b"".join(network_file(optimize(made), metadata(made, **changes))))


def export(made: isanet.ISANet, path: Path, **changes: str) -> Path:
    """Write an .onnx, or an .xml with its .bin; `changes` are of the metadata."""
    graph = onnx_model(made, **changes).SerializeToString()
    if path.suffix == ".onnx":
        path.write_bytes(graph)
        return path
    ir = core().read_model(graph)
    for key, text in metadata(made, **changes).items():
        ir.set_rt_info(text, ["isanet", key])
    openvino.save_model(ir, path, compress_to_fp16=changes.get("precision") == "float16")
    return path
