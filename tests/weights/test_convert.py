"""Every upstream listing becomes exactly the network that its names and shapes describe, or is refused by name."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import logging
import random
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isanet.errors import CheckpointFormatError, CheckpointMismatchError, UnsafeCheckpointError
from isanet.model import ISANet
from isanet.weights import convert
from isanet.weights.checkpoint import fit_state_dict, read_checkpoint, read_file
from isanet.weights.manifest import Weights, load_manifest
from isanet.weights.pickles import Opaque
from tests.helpers import hostile, stand_in, tiny_zoo

LISTINGS = sorted(
    path.name.removesuffix(".keys.json")
    for path in stand_in.DATA.glob("*_r[15]*.keys.json")  # no tiny ones
)
RELEASED = {name: weights for name, weights in load_manifest().items() if not weights.packaged}


def layout_of(listing: str) -> str:
    family = listing.partition("_")[0]
    return {"bpkd": "mmsegmentation"}.get(family, "openseg_torch" if "torchsyncbn" in listing else family)


def listing_of(weights: Weights) -> str:
    """The listing of a released model's tensors; those of models that differ in training alone are one."""
    data = {"voc21": "voc", "ade20k150": "ade20k", "cityscapes19": "cityscapes", "context59": "pascal_context_59"}
    start = f"{weights.family}_{weights.name.split('_')[1]}_{data[weights.label_space]}"
    corners = "769" if weights.architecture.get("logits_resize") == "corners" else "512x1024"
    found = [listing for listing in LISTINGS if listing.startswith(start) and "torchsyncbn" not in listing]
    return next((each for each in found if corners in each), found[0])


def meta_state(listing: str) -> dict[str, Tensor]:
    """Names, shapes and kinds of a listing, without values."""
    return {
        name: torch.empty(shape, device="meta", dtype=torch.int64 if name.endswith("tracked") else torch.float32)
        for name, shape in stand_in.shapes(listing).items()
    }


def test_there_are_listings_of_every_layout_and_for_every_released_model() -> None:
    assert len(LISTINGS) == 23
    assert {layout_of(listing) for listing in LISTINGS} == set(convert.LAYOUTS)
    assert {listing_of(weights) for weights in RELEASED.values()} <= set(LISTINGS)
    assert len(RELEASED) == 46


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_listing_is_exactly_the_network_inferred_from_it(listing: str) -> None:
    state = meta_state(listing)
    layout = convert.detect_layout(state)
    assert layout == layout_of(listing)
    converted = convert.convert(state, layout)
    with torch.device("meta"):
        model = ISANet(**convert.infer_architecture(converted))
    expected = model.state_dict()
    assert {name: value.shape for name, value in converted.items()} == {n: value.shape for n, value in expected.items()}
    assert {name: value.dtype for name, value in converted.items()} == {n: value.dtype for n, value in expected.items()}
    fit_state_dict(converted, expected, values=False)


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_table_is_invertible(listing: str) -> None:
    state = meta_state(listing)
    layout = convert.detect_layout(state)
    converted = convert.rename(state, convert.LAYOUTS[layout], layout)
    back = convert.rename(converted, tiny_zoo.inverse(layout), layout)
    assert back.keys() == state.keys()
    assert all(back[name] is value for name, value in state.items())
    assert convert.detect_layout(converted) == "isanet"
    converted = convert.convert(state, layout)
    again = convert.convert(converted, "isanet")
    assert again == converted
    assert again is not converted


@pytest.mark.parametrize("layout", convert.LAYOUTS)
def test_no_two_names_of_a_table_become_one_and_all_are_needed(layout: str) -> None:
    table = convert.LAYOUTS[layout]
    assert len(set(table.values())) == len(table)
    names = [name for listing in LISTINGS if layout_of(listing) == layout for name in stand_in.shapes(listing)]
    for prefix in table:
        assert any(f"{name}.".startswith(prefix + ".") for name in names), prefix


def test_no_landmark_ends_as_another_does() -> None:
    marks = [mark for each in convert.LANDMARKS.values() for mark in each]
    assert not any(one is not other and f".{one}".endswith(f".{other}") for one in marks for other in marks)


@pytest.mark.parametrize("name", RELEASED)
def test_the_manifest_says_what_the_listing_says(name: str) -> None:
    weights = RELEASED[name]
    state = meta_state(listing_of(weights))
    layout = convert.detect_layout(state)
    shown = convert.infer_architecture(convert.convert(state, layout))
    with torch.device("meta"):
        promised, inferred = ISANet(**weights.architecture), ISANet(**{**weights.architecture, **shown})
    assert promised.config == inferred.config
    assert (weights.layout, weights.tensors) == (layout, len(state))
    assert weights.payload == sum(value.nbytes for value in state.values())


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 3},
        {"width": 4, "head_channels": 24, "key_channels": 10, "aux_channels": 6},
        {"backbone": "resnet26", "value_bias": True, "fusion_kernel": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", convert.LAYOUTS)
def test_every_argument_that_shapes_show_is_inferred(layout: str, arguments: dict[str, Any]) -> None:
    state = tiny_zoo.upstream_state(layout, **arguments)
    architecture = convert.infer_architecture(convert.convert(state, layout))
    other = {"value_bias": False, "fusion_kernel": 3, **tiny_zoo.LAYOUT_ARCHITECTURE[layout]}
    assert architecture == {**tiny_zoo.ARCHITECTURE, **other, **arguments}


# --- out of the wrapper ---------------------------------------------------------------------------------------

STATE = tiny_zoo.upstream_state()
OTHER = {name: value + 1 for name, value in STATE.items()}


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(STATE, id="bare"),
        pytest.param({"epoch": 60, "model": STATE, "optimizer": stand_in.sgd_state(STATE)}, id="2021"),
        pytest.param(
            {
                "cur_epoch": 60,
                "cur_iter": 39_000,
                "optimizer": stand_in.sgd_state(STATE),
                "model_ema": OTHER,
                "grad_scaler": {"scale": 65536.0},
                "model": STATE,
            },
            id="2023",
        ),
        pytest.param({"model": STATE}, id="weights"),
        pytest.param({"meta": {"epoch": 1, "CLASSES": ("a",)}, "state_dict": STATE, "optimizer": {}}, id="mmcv"),
        pytest.param({"model": {"state_dict": STATE}, "epoch": 1}, id="nested"),
        pytest.param({"model": {f"module.{name}": value for name, value in STATE.items()}}, id="module"),
        pytest.param({f"module.module.{name}": value for name, value in STATE.items()}, id="module twice"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_weights_come_out_of_every_wrapper(tmp_path: Path, contents: object, zipped: bool) -> None:
    data = tiny_zoo.saved(contents, _use_new_zipfile_serialization=zipped)
    state = convert.unwrap(read_checkpoint(read_file(hostile.file(tmp_path, data)))[0])
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


def test_unwrapping_and_converting_do_not_modify_their_input() -> None:
    given = {"model": {f"module.{name}": value for name, value in STATE.items()}}
    state = convert.unwrap(given)
    converted = convert.convert(state, "sssegmentation")
    assert list(given["model"]) == [f"module.{name}" for name in STATE]
    assert list(state) == list(STATE)
    assert {value.data_ptr() for value in converted.values()} == {value.data_ptr() for value in STATE.values()}


def test_wrappers_go_from_any_place_in_any_name_and_never_make_two_names_one() -> None:
    one = torch.ones(1)
    mixed = {"module.a": one, "b": one, "c._orig_mod.d.module.e": one, "_orig_mod.module._orig_mod.f": one}
    assert list(convert.unwrap(mixed)) == ["a", "b", "c.d.e", "f"]
    with pytest.raises(CheckpointFormatError, match="two of its tensors are 'a'"):
        convert.unwrap({"module.a": one, "a": one})


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("contents", "left_out"),
    [
        pytest.param({"state_dict": {**under("model."), "loss.weight": ONE, "val_iou.confmat": ONE}, "epoch": 3},
                     ["loss.weight", "val_iou.confmat"], id="lightning"),
        pytest.param({"state_dict": under("model._orig_mod."), "pytorch-lightning_version": "2"}, [], id="compiled"),
        pytest.param(under("net.module.model."), [], id="three"),
        pytest.param(under("self.any_name_of_mine."), [], id="own name"),
        pytest.param({"n_averaged": torch.tensor(3), **under("module.")}, ["n_averaged"], id="AveragedModel"),
        pytest.param({**under("model."), **under("ema_model.", OTHER)}, ["ema_model."], id="average beside"),
        pytest.param({**STATE, **under("ema_model.", OTHER)}, ["ema_model."], id="average beside none"),
        pytest.param({**STATE, "total_ops": ONE, "in_conv.0.total_params": ONE}, ["in_conv.0.total_params"], id="thop"),
        pytest.param({**STATE, "ema_in_conv_0_weight": ONE}, ["ema_in_conv_0_weight"], id="mmcv's averages"),
        *(pytest.param({key: STATE, "optimizer": {"state": {}}}, [], id=key) for key in convert.CONTAINERS),
        pytest.param({"state_dict_ema": STATE}, [], id="nothing but an average"),
        pytest.param({"net": {"weights": {"params": STATE}}}, [], id="containers in containers"),
        pytest.param({"weights": {"ce": 1.0}, "model": STATE}, [], id="other weights"),
    ],
)  # fmt: skip
def test_the_weights_come_out_of_every_prefix(
    contents: dict[str, Any], left_out: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    state = convert.unwrap(contents)
    assert list(state) == list(STATE)
    assert all(state[name] is value for name, value in STATE.items())
    assert all(name in caplog.text for name in left_out)
    assert bool(left_out) == ("left out" in caplog.text)


@pytest.mark.parametrize(
    "contents",
    [
        *({"model": STATE, key: OTHER} for key in convert.AVERAGES),
        {"state_dict_ema": under("module.", OTHER), "state_dict": STATE},
        {"state_dict": {**under("model."), **under("ema_model.", OTHER)}},
    ],
    ids=[*convert.AVERAGES, "wrapped", "prefix"],
)
def test_an_average_is_said_and_taken_where_it_is_asked_for(
    contents: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    assert all(value is STATE[name] for name, value in convert.unwrap(contents).items())
    assert "weights='ema' (`isanet convert --weights ema`) takes the average" in caplog.text
    assert all(value is OTHER[name] for name, value in convert.unwrap(contents, "ema").items())
    with pytest.raises(ValueError, match="no average of the weights"):
        convert.unwrap(STATE, "ema")
    with pytest.raises(ValueError, match="'ema' or None, got 'last'"):
        convert.unwrap(STATE, "last")


def test_of_two_networks_none_is_chosen() -> None:
    for others in (("first.", "second."), ("assistant.", "student."), ("teacher.", "teachers.0.")):
        with pytest.raises(CheckpointFormatError, match=rf"2 networks \({others[0][:-1]}, {others[1][:-1]}\)"):
            convert.unwrap({**under(others[0]), **under(others[1], OTHER)})


@pytest.mark.parametrize("layout", convert.LAYOUTS)
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("architecture.model.", "distiller.teacher."),  # MMRazor 0.x
        ("architecture.", "teacher."),  # MMRazor 1.x
        ("student.", "teacher."),
        ("module.student.", "module.teacher_model."),
        ("", "teachers.0."),
    ],
)
def test_of_teacher_and_student_the_student_is_taken_and_said(
    student: str, teacher: str, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    own, wide = tiny_zoo.upstream_state(layout), tiny_zoo.upstream_state(layout, width=16)
    state = convert.unwrap({"meta": {}, "state_dict": {**under(teacher, wide), **under(student, own)}})
    assert list(state) == list(own)
    assert all(state[name] is value for name, value in own.items())
    places = [f"state_dict/{name.removeprefix('module.')}".rstrip("/.") for name in (student, teacher)]
    assert f"took {places[0]}, the student; left out {places[1]}" in caplog.text
    alone = convert.unwrap(under(teacher, wide))  # a file of a teacher alone is what it is
    assert all(alone[name] is value for name, value in wide.items())
    assert convert.unwrap({"student": own, "teacher": wide}).keys() == own.keys()


@pytest.mark.parametrize("prefix", ["architecture.model.", "module.architecture.model.", "algorithm.architecture."])
def test_a_student_alone_is_taken_without_a_word(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isanet")
    own = tiny_zoo.upstream_state("mmsegmentation")
    assert list(convert.unwrap({"state_dict": under(prefix, own)})) == list(own)
    assert not caplog.records


def test_an_average_of_a_student_is_taken_where_it_is_asked_for() -> None:
    contents = {
        "state_dict": {**under("student."), **under("teacher.", OTHER)},
        "state_dict_ema": {**under("student.", OTHER), **under("teacher.")},
    }
    assert all(value is STATE[name] for name, value in convert.unwrap(contents).items())
    assert all(value is OTHER[name] for name, value in convert.unwrap(contents, "ema").items())


# --- what conversion changes ----------------------------------------------------------------------------------


def test_scales_of_inplace_abn_become_those_of_torch() -> None:
    state = tiny_zoo.upstream_state("openseg")
    assert any((value < 0).any() for value in state.values() if value.dim() == 1)
    renamed = convert.rename(state, convert.LAYOUTS["openseg"], "openseg")
    converted = convert.convert(state, "openseg")
    norms = {name.removesuffix("running_var") for name in renamed if name.endswith("running_var")}
    assert {norm.partition(".")[0] for norm in norms} >= {"backbone", "reduce", "fuse", "aux_reduce", "long_range"}
    for name, value in renamed.items():
        if name.removesuffix("weight") in norms:  # exact to half a unit of the last place
            expected = (value.double().abs() + 1e-5).float()
            assert torch.equal(converted[name], expected)
            assert (converted[name] > 0).all()
        else:
            assert converted[name] is value
    other = tiny_zoo.upstream_state("openseg_torch")
    renamed = convert.rename(other, convert.LAYOUTS["openseg_torch"], "openseg_torch")
    assert all(value is renamed[name] for name, value in convert.convert(other, "openseg_torch").items())


@pytest.mark.parametrize("layout", convert.LAYOUTS)
def test_files_without_counters_get_zeros_and_others_keep_theirs(layout: str) -> None:
    state = tiny_zoo.upstream_state(layout)
    bare = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert (len(bare) == len(state)) == (layout in ("paddleseg", "openseg"))
    counters = [
        {name: value for name, value in convert.convert(each, layout).items() if name.endswith("num_batches_tracked")}
        for each in (bare, state)
    ]
    assert counters[0].keys() == counters[1].keys()
    assert {(value.item(), value.dtype) for value in counters[0].values()} == {(0, torch.int64)}
    assert {value.item() for value in counters[1].values()} == {int(len(bare) < len(state))}
    fit_state_dict(convert.convert(bare, layout), convert.convert(state, layout))


def test_the_real_older_file_gives_its_values(caplog: pytest.LogCaptureFixture) -> None:
    """torch's older format of 2020, numpy's scalars beside the tensors."""
    caplog.set_level(logging.INFO, "isanet")
    expected = stand_in.state_dict("openseg_tiny_inplace_abn")
    contents: Any = read_checkpoint(read_file(stand_in.DATA / "openseg_tiny_2020.pth"))[0]
    assert contents["config_dict"]["performance"].name == "numpy.core.multiarray.scalar"
    assert contents["config_dict"]["data"]["input_mode"] == "BGR"
    state = convert.unwrap(contents)
    assert list(state) == [name.removeprefix("module.") for name in expected]
    assert all(torch.equal(state[name.removeprefix("module.")], value) for name, value in expected.items())
    assert "numpy.core.multiarray.scalar" in caplog.text
    assert convert.detect_layout(state) == "openseg"


def test_the_stand_ins_older_file_is_read_as_the_real_one(tmp_path: Path) -> None:
    state = {name.removeprefix("module."): v for name, v in stand_in.state_dict("openseg_tiny_inplace_abn").items()}
    path = stand_in.openseg_file(tmp_path / "file.pth", state)
    contents: Any = read_checkpoint(read_file(path))[0]
    real: Any = read_checkpoint(read_file(stand_in.DATA / "openseg_tiny_2020.pth"))[0]
    assert b"cuda:0" in path.read_bytes()
    assert contents["config_dict"]["performance"].name == real["config_dict"]["performance"].name
    assert all(torch.equal(value, state[name]) for name, value in convert.unwrap(contents).items())


def test_whatever_is_pickled_beside_the_weights_is_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("a")),
        "path": PurePosixPath("a/b"),
        "date": datetime.datetime(2026, 1, 1),
        "scalar": np.float64(0.5),
        "array": np.zeros(3),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "default": collections.defaultdict(list, {"a": [1], (1, 2): [torch.ones(2)]}),
        "ordered": collections.OrderedDict({None: 1, 1.5: 2, (1, 2): 3, True: 4}),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "deque": collections.deque([1]),
        "complex": torch.ones(2, dtype=torch.complex64).numpy(),
        "class": Path,
        "function": len,
        "bytes": bytearray(b"123"),
        "layer": torch.nn.Conv2d(1, 1, 1),
    }
    for protocol in (2, 4):
        for zipped in (True, False) if protocol == 2 else (True,):
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
            caplog.clear()
            caplog.set_level(logging.INFO, "isanet")
            data = tiny_zoo.saved({"state_dict": STATE, **beside}, **options)
            contents = read_checkpoint(read_file(hostile.file(tmp_path, data)))[0]
            state = convert.unwrap(contents)
            assert all(torch.equal(state[name], value) for name, value in STATE.items())
            assert list(state) == list(STATE)
            assert "argparse.Namespace" in caplog.text
            for value in contents.values():  # type: ignore[attr-defined]
                assert type(value) in (Opaque, dict), value


class Kind(enum.Enum):
    """An enumeration of a user."""

    FIRST = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a user, as training scripts save them."""

    kind: Kind = Kind.FIRST
    folder: Path = Path("runs")


class Items(dict[str, Any]):
    """A dictionary of a user, such as EasyDict, which has its items as attributes too."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = dict(items)


class Ordered(collections.OrderedDict[str, Any]):
    """An OrderedDict of a user."""


class Schedule:
    """What LambdaLR is given, and keeps in its state."""

    def __call__(self, step: int) -> float:
        return 0.5**step


def schedulers() -> list[Any]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    made = torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule())
    return [optimizer.state_dict(), made.state_dict(), optimizer, made]


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(torch.ones(2, dtype=torch.complex64), id="complex"),
        pytest.param(torch.ones(2, dtype=torch.uint16), id="uint16"),
        pytest.param(torch.ones(2).to(torch.float8_e4m3fn), id="float8"),
        pytest.param(torch.eye(2).to_sparse(), id="sparse"),
        pytest.param(torch.ones(2).untyped_storage(), id="storage"),
        pytest.param(torch.Generator(), id="generator"),
        pytest.param(random.getstate(), id="random"),
        pytest.param(np.random.default_rng(0), id="numpy's random"),
        pytest.param(dict.fromkeys(range(5000), 0.5), id="values by step"),
        pytest.param([Kind.FIRST, Settings(), Items(a=1), Ordered(a=1)], id="classes of a user"),
        pytest.param(schedulers(), id="schedulers"),
        pytest.param([np.float64(1), np.bool_(True), np.datetime64("2026-01-01"), np.array(["a"])], id="numpy"),
        pytest.param([PureWindowsPath("C:/a"), datetime.timedelta(1), decimal.Decimal(1)], id="standard library"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_the_weights_are_found_beside_every_type(tmp_path: Path, beside: object, zipped: bool) -> None:
    data = tiny_zoo.saved({"state_dict": STATE, "beside": beside}, _use_new_zipfile_serialization=zipped)
    state = convert.unwrap(read_checkpoint(read_file(hostile.file(tmp_path, data)))[0])
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local", "numpy.core.multiarray", "numpy._core.multiarray"])
def test_modules_that_moved_are_only_names(tmp_path: Path, module: str) -> None:
    """Python 3.13 has `pathlib._local`, numpy 2 `numpy._core`; neither needs to be here to be left out."""
    data = hostile.archive(b"}" + hostile.text("path") + hostile.call(f"{module}.X", hostile.text("C:\\")) + b"s")
    contents: Any = read_checkpoint(read_file(hostile.file(tmp_path, data)))[0]
    assert contents["path"].name == f"{module}.X"


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(Ordered(STATE), id="OrderedDict of a user"),
        pytest.param(Items(**STATE), id="dictionary with attributes"),
        pytest.param(collections.defaultdict(dict, {"state_dict": STATE}), id="defaultdict"),
        pytest.param({"model": argparse.Namespace(state_dict=Ordered(STATE))}, id="Namespace"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_dictionary_of_another_class_is_read_as_its_items(tmp_path: Path, contents: object, protocol: int) -> None:
    data = tiny_zoo.saved(contents, pickle_protocol=protocol)
    state = convert.unwrap(read_checkpoint(read_file(hostile.file(tmp_path, data)))[0])
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("wrapped", [lambda model: model, torch.nn.DataParallel], ids=["model", "DataParallel"])
@pytest.mark.parametrize(
    "around", [lambda model: model, lambda model: {"model": model}], ids=["bare", "in a container"]
)
def test_a_network_pickled_whole_gives_its_weights(tmp_path: Path, wrapped: Any, around: Any) -> None:
    model = ISANet(num_classes=3, width=8, head_channels=8, key_channels=4, aux_channels=8)
    path = hostile.file(tmp_path, tiny_zoo.saved(around(wrapped(model))))
    state = convert.unwrap(read_checkpoint(read_file(path))[0])
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_module_that_is_a_part_of_itself_ends() -> None:
    module = Opaque("m", {"_modules": {}, "_parameters": {"weight": ONE}})
    module.state["_modules"]["inner"] = module  # type: ignore[index]
    assert convert.unwrap(module) == {"weight": ONE}


@pytest.mark.parametrize(
    "contents",
    [
        Opaque("os.system"),
        {"model": Opaque("os.system")},
        {**STATE, "extra": Opaque("os.system")},
        {"model": {**STATE, "in_conv.0.weight": Opaque("os.system")}},
        {"model": {**under("model."), "model.extra": Opaque("os.system")}},
        {"args": Opaque("os.system")},
    ],
)
def test_what_is_no_tensor_is_refused_in_the_place_of_one(contents: object) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"names 'os\.system' in the place.*nothing in it was run"):
        convert.unwrap(contents)


ITSELF: dict[str, Any] = {}
ITSELF["model"] = ITSELF["state_dict"] = ITSELF


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        pytest.param({}, "an empty dictionary", id="empty"),
        pytest.param({"model": {}}, "an empty dictionary", id="empty inside"),
        pytest.param([torch.ones(1)], "a list", id="list"),
        pytest.param(torch.ones(1), "a Tensor", id="tensor"),
        pytest.param(None, "a NoneType", id="none"),
        pytest.param({"model": torch.ones(1), "epoch": 3}, "'epoch' is not a tensor", id="counter"),
        pytest.param({"mine": STATE}, "dictionary with 'mine', of which 'mine' is not a tensor", id="unknown wrapper"),
        pytest.param({0: torch.ones(1)}, "of which 0 is not a tensor", id="number for a name"),
        pytest.param({None: torch.ones(1)}, "of which None is not a tensor", id="none for a name"),
        pytest.param({str(i): i for i in range(9)}, "'0', '1', '2', '3', '4', '5', …, of which", id="many"),
        pytest.param({"x" * 10_000: 1}, "^.{,900}$", id="endless key"),
        pytest.param(ITSELF, "'model' is not a tensor", id="itself"),
        pytest.param({"module." * 100_000: torch.ones(1)}, r"^'module.{,200}' cannot be the name", id="endless prefix"),
        pytest.param({"a\x1b[2J": torch.ones(1)}, r"^'a\\x1b\[2J' cannot be the name", id="terminal codes"),
        pytest.param({"a\nb": torch.ones(1)}, r"^'a\\nb' cannot be the name", id="two lines"),
    ],
)
def test_what_has_no_state_dict_is_described(contents: object, message: str) -> None:
    with pytest.raises(CheckpointFormatError, match=message):
        convert.unwrap(contents)


# --- what is no ISANet ----------------------------------------------------------------------------------------


def test_another_network_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with pytest.raises(
        CheckpointFormatError, match=r"7 tensors are not an ISANet in a known layout .*0\.weight, 0\.bias"
    ):
        convert.detect_layout(network.state_dict())


@pytest.mark.parametrize("layout", convert.LAYOUTS)
@pytest.mark.parametrize("name", ["decoder.9.weight", "backbone_network.conv1.weight", "head", "fc.weight", ""])
def test_a_tensor_that_the_table_lacks_is_named(layout: str, name: str) -> None:
    state = {**tiny_zoo.upstream_state(layout), name: torch.ones(1)}
    with pytest.raises(CheckpointMismatchError, match=rf"^1 tensors are not part .* {layout}'s layout: {name}$"):
        convert.convert(state, layout)


def test_names_of_one_layout_do_not_fit_another() -> None:
    with pytest.raises(
        CheckpointMismatchError, match=r"not part of an ISANet in mmsegmentation's layout: backbone_net"
    ):
        convert.convert(STATE, "mmsegmentation")


def test_two_names_for_one_tensor_are_refused() -> None:
    state = {"a.weight": torch.ones(1), "b.weight": torch.ones(1), "a.bias": torch.ones(1)}
    with pytest.raises(
        CheckpointMismatchError, match="1 tensors of this test checkpoint have the same name as another one"
    ):
        convert.rename(state, {"a": "x", "b": "x"}, "test")


def test_the_longest_prefix_wins_and_only_whole_parts_count() -> None:
    state = {"a.b.weight": torch.ones(1), "a.bb.weight": torch.ones(1)}
    assert list(convert.rename(state, {"a": "x", "a.b": "y"}, "test")) == ["y.weight", "x.bb.weight"]


OURS = convert.convert(STATE, "sssegmentation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": None}, "classifier.weight"),
        ({"fuse.conv.weight": torch.tensor(1.0)}, "no usable tensor"),
        ({"long_range.value_project.weight": torch.tensor(1.0)}, "no usable tensor"),
        ({"aux_classifier.weight": torch.ones(1)}, "no usable tensor"),
        ({"backbone.layer3.1.conv1.weight": torch.ones(1)}, r"no known backbone has \(1, 1, 2, 1\) bottlenecks"),
        # shapes that only a tensor without elements can have, and that would be made in earnest
        ({"classifier.weight": torch.empty(1 << 40, 0, 1, 1)}, "from 1 to 4096, got 1099511627776"),
        ({"classifier.weight": torch.empty(0, 16, 1, 1)}, "sizes: num_classes = 0"),
        ({"aux_classifier.weight": torch.empty(0, 1 << 50)}, "sizes: aux_channels"),
        ({"fuse.conv.weight": torch.empty(0, 1 << 50)}, "sizes: fusion_kernel"),
        ({"backbone.layer1.0.conv1.weight": torch.empty(0)}, "sizes: width = 0"),
        (
            {"long_range.value_project.weight": torch.empty(0), "long_range.key_project.0.conv.weight": torch.empty(0)},
            "sizes: head_channels = 0, key_channels = 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_shapes_are_named(change: dict[str, Tensor | None], message: str) -> None:
    state = {name: value for name, value in {**OURS, **change}.items() if value is not None}
    with pytest.raises(CheckpointMismatchError, match=message):
        convert.infer_architecture(state)


# --- notes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"meta": {"config": "decode_head=dict(align_corners=True)"}}, True),
        ({"meta": {"config": "'align_corners': True"}}, True),
        ({"meta": {"config": '"align_corners" : True'}}, True),
        ({"meta": {"config": "align_corners = True"}}, True),
        ({"meta": {"config": "align_corners=False"}}, False),
        ({"meta": {"config": "align_corners=False, keep=True"}}, False),
        ({"meta": {"config": {"align_corners": True}}}, False),
        ({"meta": {}}, False),
        ({"meta": None}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
    ids=str,
)
def test_mmsegmentations_config_says_how_logits_are_resized(contents: object, expected: bool) -> None:
    assert convert.notes_align_corners(contents) is expected


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"meta": {"config": "test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513))"}}, True),
        ({"meta": {"cfg": '"mode": "slide"'}}, True),
        ({"meta": {"config": "test_cfg=dict(mode='whole')"}}, False),
        ({"meta": {"config": "model='slideshow'"}}, False),
        ({"meta": {"config": 1}}, False),
        ({}, False),
    ],
    ids=str,
)
def test_mmsegmentations_config_says_whether_it_tests_by_windows(contents: object, expected: bool) -> None:
    assert convert.notes_windows(contents) is expected
