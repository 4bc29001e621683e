"""Damaged, foreign and hostile .onnx and .xml files are refused by name, before a runtime sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper

from isanet.errors import CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError
from isanet.inference.runtimes import exported
from isanet.inference.segmenter import Segmenter
from tests.helpers import processes
from tests.helpers.exported import export, metadata, model, onnx_model

Change = Callable[[Any], Any]


def refused(path: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Segmenter(path)
    text = str(caught.value)
    assert path.stem[:8] in text
    assert "\n" not in text
    assert len(text) < 700


# --- both kinds

CONTENTS = {
    "empty": (b"", "an empty file|empty"),
    "text": (b"the model is attached to the other mail\n", "text|not an"),
    "a web page": (b"<!DOCTYPE html><html><title>Log in</title></html>", "web page|entities"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
    "a zip of nothing": (b"PK\x05\x06" + bytes(18), "not an"),
    "zeros": (bytes(4096), "zeros"),
}


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_something_else(kind: str, suffix: str, tmp_path: Path) -> None:
    content, message = CONTENTS[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    path.with_suffix(".bin").write_bytes(b"")
    refused(path, ValueError, message)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    refused(path, ValueError, "there is no file")
    refused(tmp_path / f"{'long' * 100}{suffix}", CheckpointFormatError, "cannot be used")
    path.mkdir()
    refused(path, CheckpointFormatError, "cannot be read|not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(path, CheckpointFormatError, "not a regular file")


METADATA: dict[str, tuple[dict[str, str], type[Exception], str]] = {
    "no json": ({"config": "{"}, CheckpointFormatError, "not those of an ISANet"),
    "no object": ({"config": "[]"}, CheckpointFormatError, "expected an object"),
    "a key twice": ({"config": '{"width": 4, "width": 8}'}, CheckpointFormatError, "appears twice"),
    "nested": ({"config": "[" * 100_000}, CheckpointFormatError, "not those of an ISANet"),
    "unknown": ({"config": '{"num_classes": 5, "colour": 1}'}, CheckpointFormatError, "colour"),
    "wrong": ({"config": '{"num_classes": -1}'}, CheckpointFormatError, "num_classes"),
    "endless": ({"config": json.dumps({"a": "b" * 2_000_000})}, CheckpointFormatError, "none has over"),
    "precision": ({"precision": "int4"}, CheckpointFormatError, "precision"),
    "whole": ({"whole": "true"}, CheckpointFormatError, "does the whole job.*without whole"),
    "provenance": ({"provenance": "7"}, CheckpointFormatError, "expected an object"),
}


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_are_not_isanets(name: str, suffix: str, tmp_path: Path) -> None:
    changes, error, message = METADATA[name]
    refused(export(model(), tmp_path / f"model{suffix}", **changes), error, message)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_metadata_of_another_model(suffix: str, tmp_path: Path) -> None:
    own = json.loads(metadata(model())["config"])
    config = json.dumps({**own, "num_classes": 4, **dict.fromkeys(("classes", "palette"))})
    refused(
        export(model(), tmp_path / f"model{suffix}", config=config), CheckpointMismatchError, "name 4 classes.*has 5"
    )
    config = json.dumps({**own, "width": 4096, "stem_channels": [64, 64, 4096]})
    refused(export(model(), tmp_path / f"wide{suffix}", config=config), CheckpointMismatchError, "it is too small")
    config = json.dumps({**own, "preprocessing": None})
    refused(export(model(), tmp_path / f"other{suffix}", config=config), CheckpointFormatError, "how images are prep")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_weights_that_are_not_finite(suffix: str, tmp_path: Path) -> None:
    made = model()
    made.fuse.conv.weight.data[0, 0, 0, 0] = float("inf")
    refused(export(made, tmp_path / f"model{suffix}"), CheckpointMismatchError, "not finite")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_too_large_a_file_is_not_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(model(), tmp_path / f"model{suffix}")
    with path.open("ab") as file:
        file.truncate(1 << 40)  # takes no room
    refused(path, CheckpointFormatError, "at most")


# --- ONNX


def _external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _named(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _in_a_constant(proto: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("there", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["there"], value=tensor))


def _custom(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Run", ["images"], ["there"], domain="com.example"))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))


def _loop(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    proto.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["there"], body=body))


def _hidden_graph(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))


def _function(proto: onnx.ModelProto) -> None:
    proto.functions.append(helper.make_function("", "Relu", ["x"], ["x"], [], []))


def _gigantic(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 1 << 40


def _negative(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -proto.graph.initializer[0].dims[0]


def _large_number(proto: onnx.ModelProto) -> None:
    name = proto.graph.node[-1].input[0]
    proto.graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [4], [1, 1, 1, 1 << 40]))
    proto.graph.node.append(helper.make_node("Expand", [name, "huge"], ["there"]))


def _large_attribute(proto: onnx.ModelProto) -> None:
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    next(each for each in conv.attribute if each.name == "pads").ints[0] = 1 << 40


def _circle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]


def _many(proto: onnx.ModelProto) -> None:
    for number in range(exported.MAX_NODES):
        proto.graph.node.append(helper.make_node("Relu", ["images"], [f"more{number}"]))


def _three_channels(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def _no_metadata(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


ONNX: dict[str, tuple[Change, type[Exception], str]] = {
    "external data": (_external, UnsafeCheckpointError, "in another file, which is not read"),
    "a name of another file": (_named, UnsafeCheckpointError, "in another file, which is not read"),
    "external data of a constant": (_in_a_constant, UnsafeCheckpointError, "in another file, which is not read"),
    "custom operators": (_custom, UnsafeCheckpointError, r"custom operators, of com\.example"),
    "a loop": (_loop, UnsafeCheckpointError, "operators that are not of a network: Loop"),
    "a graph in a node": (_hidden_graph, UnsafeCheckpointError, "a part that no network needs"),
    "a function in place of an operator": (_function, UnsafeCheckpointError, "has functions"),
    "a gigantic size": (_gigantic, CheckpointFormatError, "damaged.*declared"),
    "a negative size": (_negative, CheckpointFormatError, "negative size"),
    "a huge number": (_large_number, UnsafeCheckpointError, "above 1,048,576"),
    "a huge margin": (_large_attribute, UnsafeCheckpointError, "above 1,048,576"),
    "a circle": (_circle, CheckpointFormatError, "not computed before"),
    "endless nodes": (_many, UnsafeCheckpointError, "nodes"),
    "another input": (_three_channels, CheckpointFormatError, "from images .N, 3, H, W. to logits"),
    "no metadata": (_no_metadata, CheckpointFormatError, r"not exported by isanet.*isanet\.export"),
}


@pytest.mark.parametrize("name", ONNX)
def test_hostile_onnx(name: str, tmp_path: Path) -> None:
    change, error, message = ONNX[name]
    proto = onnx_model(model())
    change(proto)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    refused(path, error, message)


# --- OpenVINO's IR


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model(), tmp_path_factory.mktemp("ir") / "model.xml")


def copied(ir: Path, folder: Path) -> Path:
    for suffix in (".xml", ".bin"):
        shutil.copy(ir.with_suffix(suffix), folder)
    return folder / ir.name


BOMB = """<?xml version="1.0"?>
<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">%s]>
<net name="&z;"></net>""" % "".join(  # noqa: UP031
    f'<!ENTITY {b} "&{a};&{a};&{a};&{a};&{a};&{a};&{a};&{a};">'
    for a, b in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)

XML: dict[str, tuple[Callable[[str], str], type[Exception], str]] = {
    "an entity bomb": (lambda text: BOMB, UnsafeCheckpointError, "entities"),
    "a comment": (lambda text: text.replace("<layers>", "<layers><!-- -->"), UnsafeCheckpointError, "comments"),
    "deeper than a stack": (lambda text: "<net>" + "<a>" * 200_000, UnsafeCheckpointError, "nested deeper"),
    "other XML": (lambda text: "<?xml version='1.0'?><svg></svg>", CheckpointFormatError, "XML of 'svg'"),
    "cut off": (lambda text: text[: len(text) // 2], CheckpointFormatError, "damaged"),
    "another encoding": (lambda text: "\udcff" + text, CheckpointFormatError, "not an XML file"),
    "no layers": (lambda text: re.sub("(?s)<layers>.*</layers>", "", text), UnsafeCheckpointError, "at least one"),
    "custom operators": (
        lambda text: text.replace('version="opset1"', 'version="extension"', 1), UnsafeCheckpointError, "custom operat",
    ),
    "a loop": (lambda text: text.replace('type="ReLU"', 'type="Loop"', 1), UnsafeCheckpointError, "network: Loop"),
    "state": (lambda text: text.replace('type="ReLU"', 'type="ReadValue"', 1), UnsafeCheckpointError, "ReadValue"),
    "a layer in a layer": (
        lambda text: text.replace("</layer>", '<body><layer type="ReLU" version="opset1"/></body></layer>', 1),
        UnsafeCheckpointError, "networks in its network",
    ),
    "an offset outside": (
        lambda text: re.sub(r'offset="0"', 'offset="99999999"', text, count=1), CheckpointFormatError, "too short",
    ),
    "a negative offset": (
        lambda text: re.sub(r'offset="0"', 'offset="-8"', text, count=1), CheckpointFormatError, "damaged",
    ),
    "a gigantic size": (
        lambda text: re.sub(r'shape="2, 3, 3, 3"', 'shape="2000000000, 3, 3, 3"', text), CheckpointFormatError, "wrong",
    ),
    "a huge margin": (
        lambda text: text.replace('pads_begin="1, 1"', 'pads_begin="1, 99999999"', 1), UnsafeCheckpointError, "above",
    ),
    "a circle": (
        lambda text: text.replace("</edges>", '<edge from-layer="{last}" to-layer="{first}"/></edges>'),
        UnsafeCheckpointError, "in a circle",
    ),
    "an edge to nowhere": (
        lambda text: text.replace("</edges>", '<edge from-layer="99999" to-layer="5"/></edges>'),
        CheckpointFormatError, "edges",
    ),
    "no metadata": (
        lambda text: re.sub("(?s)<isanet>.*</isanet>", "", text), CheckpointFormatError, "not exported by isanet",
    ),
    "another input": (
        lambda text: text.replace('shape="?,3,?,?"', 'shape="?,4,?,?"'), CheckpointFormatError, "from images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", XML)
def test_hostile_xml(name: str, ir: Path, tmp_path: Path) -> None:
    change, error, message = XML[name]
    path = copied(ir, tmp_path)
    text = path.read_text()
    edges = re.findall(r'from-layer="(\d+)" from-port="\d+" to-layer="(\d+)"', text)
    new = change(text).replace("{last}", edges[-1][1]).replace("{first}", edges[0][0])
    assert new != text
    path.write_bytes(new.encode(errors="surrogateescape"))
    refused(path, error, message)


@pytest.mark.parametrize("declared", ["cp037", "utf-16", "utf-7"])
def test_an_encoding_in_which_entities_look_different(declared: str, tmp_path: Path) -> None:
    body = BOMB.partition("\n")[2].encode(declared)
    path = tmp_path / "model.xml"
    for content in (f'<?xml version="1.0" encoding="{declared}"?>'.encode() + body, BOMB.encode(declared)):
        path.write_bytes(content)
        path.with_suffix(".bin").write_bytes(b"")
        refused(path, ValueError, "not an XML file|entities")


@pytest.mark.parametrize("change", ["missing", "short", "long", "of another"])
def test_weights_that_are_not_those_of_the_xml(change: str, ir: Path, tmp_path: Path) -> None:
    path = copied(ir, tmp_path)
    weights = path.with_suffix(".bin")
    if change == "missing":
        weights.unlink()
        refused(path, CheckpointFormatError, r"model\.bin, are not beside it; copy both")
    elif change == "short":
        weights.write_bytes(weights.read_bytes()[:-4])
        refused(path, CheckpointFormatError, "too short")
    elif change == "long":
        weights.write_bytes(weights.read_bytes() + bytes(4))
        refused(path, CheckpointMismatchError, "of another file, or damaged")
    else:
        shutil.copy(export(model("openseg"), tmp_path / "other.xml").with_suffix(".bin"), weights)
        refused(path, ValueError, "too short|of another file|not finite|above")


def test_a_network_of_openvino_that_is_not_isanets(tmp_path: Path) -> None:
    parameter = openvino.opset8.parameter([1, 3], np.float32)
    foreign = openvino.Model([openvino.opset8.relu(parameter)], [parameter])
    openvino.save_model(foreign, tmp_path / "model.xml")
    refused(tmp_path / "model.xml", CheckpointFormatError, "not exported by isanet")


# --- at random

FUZZ = """
import os
import numpy as np
from pathlib import Path
from isanet.errors import CheckpointError, IsanetError
from isanet.inference.segmenter import Segmenter
from isanet.weights.checkpoint import read_file
from tests.helpers.hostile import changed
path, seed, runtime = Path(os.environ["FILE"]), int(os.environ["SEED"]), os.environ["RUNTIME"]
likely = b'0123456789"<>/=-' if path.suffix == ".xml" else bytes(range(0, 64))
structure = 9_700 if path.suffix == ".onnx" else None  # behind it are weights, of which nearly any are valid
valid, numbers = read_file(path), np.random.RandomState(seed)
image = np.random.RandomState(0).randint(0, 256, (30, 40, 3), np.uint8)
target = path.with_name(f"changed{path.suffix}")
if path.suffix == ".xml":
    target.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes())
refused = passed = 0
for _ in range(int(os.environ["COUNT"])):
    head = changed(valid._replace(data=valid.data[:structure]), numbers, likely).data
    target.write_bytes(head.tobytes() + valid.data[structure or len(valid.data) :].tobytes())
    try:
        Segmenter(target, precision="float32", runtime=runtime)(image)
        passed += 1
    except (CheckpointError, IsanetError) as error:
        assert "\\n" not in str(error)
        refused += 1
print(refused, passed)
"""


@pytest.mark.parametrize("kind", ["onnx-onnxruntime", "onnx-openvino", "xml-openvino"])
def test_files_that_are_damaged_at_random_run_or_are_named_errors(kind: str, tmp_path: Path) -> None:
    """In another process, which would show a crash of the runtime."""
    suffix, runtime = kind.split("-")
    path = export(model("bpkd"), tmp_path / f"model.{suffix}")
    process = processes.python(FUZZ, FILE=str(path), SEED="0", COUNT="60", RUNTIME=runtime)
    refused, passed = map(int, processes.output(process).split())
    assert refused > 10
    assert refused + passed == 60
