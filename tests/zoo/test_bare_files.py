"""What a bare file does not say: names of classes, preprocessing, the auxiliary head; and models that come wrapped."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import isanet
from isanet.labels import LABEL_SPACES
from isanet.model import ISANet, unwrapped
from isanet.weights import convert
from isanet.weights.checkpoint import fit_state_dict
from isanet.weights.layouts import NOT_SHOWN
from isanet.weights.manifest import load_manifest
from isanet.zoo.networks import meta_model, model_config
from isanet.zoo.pretrained import convert_file
from tests.helpers import stand_in, tiny_zoo
from tests.helpers.commands import run

CITY = LABEL_SPACES["cityscapes19"]
NINETEEN = [f"mine {i}" for i in range(19)]
PREPROCESSING = {"short_edge": 64, "long_edge": 128, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}


def saved(folder: Path, contents: object, name: str = "file.pth") -> Path:
    path = folder / name
    path.write_bytes(tiny_zoo.saved(contents))
    return path


def state(count: int = 19, layout: str = "sssegmentation") -> dict[str, torch.Tensor]:
    return tiny_zoo.upstream_state(layout, num_classes=count)


def notes(version: int, classes: object, palette: object) -> dict[str, Any]:
    if version == 0:
        return {"CLASSES": classes, "PALETTE": palette}
    return {"dataset_meta": {"classes": classes, "palette": palette}}


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("count", [2, 19, 21, 59, 150])
def test_names_come_from_the_files_own_notes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int, count: int
) -> None:
    names, palette = [f"noted {i}" for i in range(count)], [[i, 2, 3] for i in range(count)]
    path = saved(tmp_path, {"state_dict": state(count), "meta": notes(version, tuple(names), palette)})
    model = isanet.from_pretrained(path)
    assert list(model.classes) == names
    assert [list(color) for color in model.palette] == palette
    assert model.label_space is None
    assert "assumed the names" not in caplog.text
    renamed = isanet.from_pretrained(path, classes=[f"own {i}" for i in range(count)])
    assert torch.equal(renamed.classifier.weight, model.classifier.weight)
    moved = isanet.from_pretrained(path, classes=names[::-1])  # never a name on another class than the file says
    assert torch.equal(moved.classifier.weight, model.classifier.weight.flip(0))


def test_notes_of_a_known_dataset_are_that_space(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": state(), "meta": notes(1, CITY.classes, CITY.palette)})
    model = isanet.from_pretrained(path)
    assert (model.label_space, model.preprocessing["short_edge"]) == ("cityscapes19", 1024)


@pytest.mark.parametrize(
    "classes", [None, 3, [1] * 19, ["a"] * 19, ["a"], ["x" * 300, *NINETEEN[1:]], {"a": 1}], ids=lambda c: str(c)[:20]
)
def test_notes_that_fit_no_class_are_not_used(tmp_path: Path, classes: object) -> None:
    model = isanet.from_pretrained(saved(tmp_path, {"state_dict": state(), "meta": notes(0, classes, "x")}))
    assert model.classes == CITY.classes


def test_names_and_preprocessing_that_were_assumed_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, state())
    model = isanet.from_pretrained(path)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "cityscapes19" in warnings[0]
    assert "from_pretrained(..., classes=" in warnings[0]
    assert "short edge of 1024" in warnings[1]
    assert "from_pretrained(..., preprocessing=" in warnings[1]
    caplog.clear()
    named = isanet.from_pretrained(path, classes=NINETEEN, preprocessing=PREPROCESSING)
    assert not caplog.records
    assert (list(named.classes), named.label_space) == (NINETEEN, None)
    assert named.config["preprocessing"] == PREPROCESSING == named.preprocessing
    for name, value in model.state_dict().items():
        assert torch.equal(named.state_dict()[name], value), name
    named.save_pretrained(tmp_path / "folder")
    assert isanet.from_pretrained(tmp_path / "folder").config == named.config
    assert not caplog.records
    model.save_pretrained(tmp_path / "assumed")
    isanet.from_pretrained(tmp_path / "assumed")  # it still is an assumption
    assert "assumed the names of cityscapes19" in caplog.text
    caplog.clear()
    segmenter = isanet.Segmenter(path, device="cpu", classes=NINETEEN, preprocessing=PREPROCESSING)
    assert segmenter.model.config == named.config
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    with pytest.raises(ValueError, match="classes, weights: arguments of from_pretrained, and the model is already"):
        isanet.Segmenter(named, device="cpu", classes=NINETEEN, weights="ema")
    with pytest.raises(TypeError, match="presicion"):
        isanet.Segmenter(path, device="cpu", presicion="float32")
    with pytest.raises(ValueError, match="preprocessing must have"):
        isanet.from_pretrained(path, preprocessing={"short_edge": 1})


@pytest.mark.parametrize(
    ("count", "space"), [(19, "cityscapes19"), (21, "voc21"), (59, "context59"), (150, "ade20k150")]
)
def test_known_numbers_of_classes_are_assumed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, space: str
) -> None:
    model = isanet.from_pretrained(saved(tmp_path, state(count)))
    assert (model.label_space, model.classes, model.palette) == (
        space, LABEL_SPACES[space].classes, LABEL_SPACES[space].palette
    )  # fmt: skip
    assert f"assumed the names of {space} ({', '.join(model.classes[:3])}, …)" in caplog.text
    assert ("not the older order (aeroplane, bicycle, bird, …)" in caplog.text) == (count == 59)
    assert model.preprocessing["long_edge"] == (520 if count == 59 else 2048)


def test_convert_takes_names_and_preprocessing(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": state(), "model_ema": {n: v + 1 for n, v in state().items()}})
    options = ["--classes", ",".join(NINETEEN), "--preprocessing", json.dumps(PREPROCESSING), "--weights", "ema"]
    assert run("convert", path, tmp_path / "out", *options) == 0
    model = isanet.from_pretrained(tmp_path / "out")
    assert list(model.classes) == NINETEEN
    assert model.preprocessing == PREPROCESSING
    assert torch.equal(model.classifier.bias, state()["decoder.1.bias"] + 1)
    convert_file(path, tmp_path / "space", label_space="cityscapes19")
    assert isanet.from_pretrained(tmp_path / "space").label_space == "cityscapes19"
    with pytest.raises(ValueError, match="unknown label space"):
        convert_file(path, tmp_path / "no", label_space="mars")


@pytest.mark.parametrize("layout", ["sssegmentation", "mmsegmentation"])
def test_weights_without_the_auxiliary_head_load(tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str) -> None:
    whole = state(layout=layout)
    part = {name: value for name, value in whole.items() if not name.startswith("auxiliary_")}
    model = isanet.from_pretrained(saved(tmp_path, part))
    assert caplog.text.count("no auxiliary head") == 1
    expected = isanet.from_pretrained(saved(tmp_path, whole))
    assert torch.equal(tiny_zoo.logits(model), tiny_zoo.logits(expected))
    assert all(torch.isfinite(value).all() for value in model.train()(torch.zeros(2, 3, 64, 64), aux=True))
    some = {name: value for name, value in whole.items() if not name.startswith("auxiliary_") or "bias" in name}
    with pytest.raises(isanet.CheckpointMismatchError):
        isanet.from_pretrained(saved(tmp_path, some))


def test_a_state_dict_of_which_every_tensor_was_halved_loads(tmp_path: Path) -> None:
    model = isanet.from_pretrained(saved(tmp_path, {name: value.half() for name, value in state().items()}))
    assert model.backbone.stem[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(model.classifier.weight, state()["decoder.1.weight"].half().float())


def test_a_model_loaded_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    path = saved(tmp_path, state(3))
    with torch.inference_mode():
        model = isanet.from_pretrained(path)
    model.train()(torch.ones(2, 3, 64, 64)).sum().backward()
    assert model.classifier.weight.grad is not None


def test_wrapped_and_half_models_are_used_as_what_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path, state(3))
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)

    def labels(model: Any) -> Any:
        return isanet.Segmenter(model, device="cpu", precision="float32")(image).labels

    expected = labels(isanet.from_pretrained(path))
    for wrap in (torch.nn.DataParallel, torch.compile, lambda model: torch.compile(torch.nn.DataParallel(model))):
        model = isanet.from_pretrained(path)
        assert unwrapped(wrap(model)) is model
        assert np.array_equal(labels(wrap(model)), expected)
    half = isanet.from_pretrained(path).half()
    assert (labels(half) == expected).mean() > 0.95


def test_what_is_no_network_is_named_with_the_attribute_that_is_one() -> None:
    segmenter = isanet.Segmenter("isanet_nano_toystreets", "cpu")
    data = isanet.datasets.ToyStreets(count=1, size=(64, 128))
    for given, advice in (
        (segmenter, "got Segmenter; pass its attribute `model`$"),
        (torch.nn.Linear(1, 1), "got Linear$"),
    ):
        model: Any = given
        for use in (isanet.Segmenter, lambda m: isanet.evaluate(m, data), lambda m: isanet.finetune(m, data)):
            with pytest.raises(ValueError, match=f"expected an ISANet, or where one is stored, {advice}"):
                use(model)


def test_random_nestings_of_wrappers_and_prefixes_load_or_fail_by_name() -> None:
    """500 of them around a tiny model: what was nested comes out, or the error says why not."""
    own = state(3)
    prefixes = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "student.", "a.b.")
    keys = (*convert.CONTAINERS, *convert.AVERAGES, "else", "optimizer")
    beside: tuple[Any, ...] = (1, None, "text", [1], {"a": 1}, torch.ones(1))
    loaded = 0
    for seed in range(500):
        rng = random.Random(seed)
        contents: Any = own
        for _ in range(rng.randrange(7)):
            if rng.random() < 0.5:
                prefix = rng.choice(prefixes)
                if all(isinstance(value, torch.Tensor) for value in contents.values()):
                    share = 1.0 if rng.random() < 0.8 else 0.5
                    contents = {(prefix if rng.random() < share else "") + n: v for n, v in contents.items()}
            else:
                contents = {rng.choice(keys): contents}
            if rng.random() < 0.3:
                contents = {**contents, rng.choice(("epoch", "loss.weight", *keys)): rng.choice(beside)}
        found, error = attempt(contents)
        if found is None:
            assert 0 < len(error) < 2000
        else:
            loaded += 1
            assert found.keys() == own.keys()
            assert all(found[name] is value for name, value in own.items())
    assert loaded > 150


def attempt(contents: object) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The tensors of a network in a checkpoint, or a message."""
    try:
        found = convert.unwrap(contents)
        converted = convert.convert(found, convert.detect_layout(found))
        network = meta_model(convert.infer_architecture(converted))
        fit_state_dict(converted, network.state_dict(), values=False)
        return found, ""
    except isanet.CheckpointError as error:
        return None, str(error)


# --- what the layout implies ----------------------------------------------------------------------------------

FAMILIES = {
    # layout, classes: an entry of the zoo whose network, preprocessing and protocol the file has, but for its sizes
    ("sssegmentation", 19): "isanet_r50_cityscapes",
    ("mmsegmentation", 19): "isanet_r50_cityscapes.mmseg_512x1024_40k",
    ("mmsegmentation", 21): "isanet_r50_voc.mmseg_20k",
    ("mmsegmentation", 150): "isanet_r18_ade20k.bpkd_plain",
    ("mmsegmentation", 59): "isanet_r18_context59.bpkd_plain",
    ("paddleseg", 19): "isanet_r50_cityscapes.paddleseg",
    ("paddleseg", 21): "isanet_r50_voc.paddleseg",
    ("openseg", 19): "isanet_r101_cityscapes.openseg",
}
SIZES = {*tiny_zoo.ARCHITECTURE, "stem_channels"}


def written(folder: Path, layout: str, tensors: dict[str, torch.Tensor]) -> Path:
    """A file as the trainer of that layout's codebase writes it."""
    if layout == "paddleseg":
        return stand_in.paddle_file(folder / "file", {name: value.numpy() for name, value in tensors.items()})
    if layout.startswith("openseg"):
        return stand_in.openseg_file(folder / "file", tensors)
    return saved(folder, {"state_dict": tensors}, "file")


@pytest.mark.parametrize(("layout", "count"), FAMILIES, ids=str)
def test_a_bare_file_of_a_published_kind_is_run_as_those_are(
    tmp_path: Path, layout: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isanet")
    expected = ISANet(**model_config(load_manifest()[FAMILIES[layout, count]])).config
    model = isanet.from_pretrained(written(tmp_path, layout, state(count, layout)))
    for config in (model.config, expected):
        assert all(config.pop(key, None) or True for key in SIZES)
    assert model.config == expected
    assert model.provenance["layout"] == layout
    assert "the file does not say how images are prepared: assumed" in caplog.text
    assert f"a bare file in the layout of {layout}" in caplog.text


@pytest.mark.parametrize("layout", ["paddleseg", "openseg", "openseg_torch"])
@pytest.mark.parametrize("count", [3, 150])
def test_a_bare_file_of_other_classes_has_what_its_codebase_does(
    tmp_path: Path, layout: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = isanet.from_pretrained(written(tmp_path, layout, state(count, layout)))
    config = model.config
    assert all(config[key] == value for key, value in NOT_SHOWN[layout].items())
    assert config["leaky_slope"] == (0.01 if layout == "openseg" else 0)
    assert "no resize" in caplog.text
    assert ("BGR" in caplog.text) == layout.startswith("openseg")
    assert model.label_space == (None if count == 3 else "ade20k150")
    model.save_pretrained(tmp_path / "folder")
    assert isanet.from_pretrained(tmp_path / "folder").config == config


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("mode", "protocol"), [("slide", "mmseg-slide-769"), ("whole", "mmseg-whole")])
def test_mmsegmentations_models_for_windows_are_run_by_windows(
    tmp_path: Path, corners: bool, mode: str, protocol: str
) -> None:
    config = f"decode_head=dict(align_corners={corners}), test_cfg=dict(mode='{mode}')"
    path = saved(tmp_path, {"state_dict": state(19, "mmsegmentation"), "meta": {"config": config}})
    model = isanet.from_pretrained(path)
    assert model.config["protocol"] == protocol
    assert model.config["logits_resize"] == ("corners" if corners else "half_pixel")
    assert model.preprocessing["short_edge"] == (1025 if corners else 1024)


def test_a_file_of_basic_blocks_is_a_resnet18(tmp_path: Path) -> None:
    sizes = {"backbone": "resnet18", "head_channels": 8, "key_channels": 16}
    model = isanet.from_pretrained(saved(tmp_path, tiny_zoo.upstream_state("mmsegmentation", **sizes)))
    assert all(model.config[key] == value for key, value in sizes.items())


def test_a_file_is_recognized_by_what_it_holds_and_not_by_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, "paddleseg", state(3, "paddleseg"))
    expected = tiny_zoo.logits(isanet.from_pretrained(path))
    for name in ("model.pdparams", "model.pth", "model.safetensors"):
        path = path.rename(tmp_path / name)
        assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(path)), expected)
    legacy = stand_in.openseg_file(tmp_path / "openseg.pdparams", state(3, "openseg"))
    assert isanet.from_pretrained(legacy).provenance["layout"] == "openseg"
    assert run("convert", tmp_path / "model.safetensors", tmp_path / "out") == 0
    assert torch.equal(tiny_zoo.logits(isanet.from_pretrained(tmp_path / "out")), expected)


@pytest.mark.parametrize(
    ("listing", "size"),
    [
        ("paddleseg_r50_voc12aug_512x512", (101, 117)),
        ("openseg_r101_cityscapes_inplace_abn", (101, 117)),
    ],
)
def test_a_bare_file_gives_its_codebases_logits(tmp_path: Path, listing: str, size: tuple[int, int]) -> None:
    """From the whole file as its trainer wrote it. In float64; the references are stored in float32 (6e-8)."""
    layout = listing.partition("_")[0]
    model = isanet.from_pretrained(written(tmp_path, layout, stand_in.state_dict(listing))).double()
    reference = load_file(stand_in.DATA / f"{listing}_{size[0]}x{size[1]}.safetensors")
    with torch.inference_mode():
        logits, auxiliary = model.coarse_logits(stand_in.image(*size).double(), aux=True)
        full = model.resize(logits, size)[..., ::7, ::7]
    for ours, name in ((logits, "logits"), (auxiliary, "aux_logits"), (full, "full")):
        expected = reference[name].double()
        # PaddleSeg's resize computes its ratios in float32: 4e-7
        assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max(), name
