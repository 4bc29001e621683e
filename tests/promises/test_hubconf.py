"""torch.hub for a new user: a bare checkout in the hub's cache, isanet not installed, no network."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isanet
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer

ROOT = Path(__file__).parents[2]
NAME = "isanet_r50_voc"

IMPORT_NAMES = {"pillow-heif": "pillow_heif", "pillow": "PIL"}
"""Of distributions that are imported under another name."""

NOT_INSTALLED = """
import sys
from importlib.machinery import PathFinder

installed = list(sys.path)

class Hidden:
    # The tests themselves may have isanet installed, in whatever way: only folders added from now on may give it.
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "isanet":
            return None
        spec = PathFinder.find_spec(name, [folder for folder in sys.path if folder not in installed])
        if spec is None:
            raise ModuleNotFoundError(f"isanet is in none of {sys.path}", name="isanet")
        return spec

sys.meta_path.insert(0, Hidden)
try:
    import isanet
except ModuleNotFoundError:
    pass
else:
    raise AssertionError(f"isanet is installed: this would not test the checkout: {isanet.__file__}")
"""

SCRIPT = (
    NOT_INSTALLED
    + """
import contextlib, importlib.util, io, json, os, socket, sys

connect = socket.socket.connect

def loopback_only(self, address):
    assert address[0] == "127.0.0.1", f"a connection to {address}"
    return connect(self, address)

socket.socket.connect = loopback_only
answers = {}
sys.stdin = None  # nobody is there to be asked

import torch
torch.set_num_threads(1)
torch.manual_seed(0)
NAME = os.environ["NAME"]
path_before = list(sys.path)
cached = dict(trust_repo=True, skip_validation=True)

def describe(model):
    return {
        "class": type(model).__qualname__,
        "file": sys.modules[type(model).__module__].__file__,
        "training": model.training,
        "classes": list(model.classes),
        "provenance": dict(model.provenance),
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
        "devices": sorted({value.device.type for value in model.state_dict().values()}),
        "sum": sum(float(value.double().sum()) for value in model.state_dict().values()),
    }

def other():
    # Its modules have the names that everybody takes
    return torch.hub.load("else/other:main", "answer", **cached)

with contextlib.redirect_stderr(io.StringIO()):
    answers["other before"] = other()
    answers["list"] = torch.hub.list("org/isanet:v1.0", **cached)
    answers["help"] = torch.hub.help("org/isanet:v1.0", NAME, **cached)
    answers["trained"] = describe(torch.hub.load("org/isanet:v1.0", NAME, **cached))
    for key, options in json.loads(os.environ["OPTIONS"]).items():
        try:
            model = torch.hub.load("org/isanet:v1.0", NAME, **options, **cached)
            answers[key] = describe(model)
            with torch.inference_mode():
                answers[key]["out"] = list(model.eval()(torch.zeros(1, 3, 40, 48)).shape)
        except Exception as error:
            answers[key] = f"{type(error).__name__}: {error}"
    answers["other after"] = other()
    answers["again"] = describe(torch.hub.load("org/isanet:v1.0", NAME, **cached))
    answers["path"] = sys.path == path_before
    answers["modules"] = sorted({name.partition(".")[0] for name in sys.modules} & {"tests", "examples", "hubconf"})
    answers["hub dir"] = sorted(os.listdir(torch.hub.get_dir()))
print(json.dumps(answers))
"""
)

LOCAL = (
    NOT_INSTALLED
    + """
import json, os, sys
import torch
model = torch.hub.load(os.environ["CHECKOUT"], os.environ["NAME"], source="local", pretrained=False, num_classes=2)
import isanet
print(json.dumps([len(model.classes), isanet.__file__]))
"""
)

OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {"pretrained": False},
    "bare of 3": {"pretrained": False, "num_classes": 3},
    "bare named": {"pretrained": False, "classes": ["road", "person"]},
    "bare of 3 quietly": {"pretrained": False, "num_classes": 3, "progress": False},
    "trained of 3": {"num_classes": 3},
    "trained named": {"classes": ["road", "person"]},
    "bare mistaken": {"pretrained": False, "num_clases": 3},
    "trained mistaken": {"num_clases": 3},
}


@pytest.fixture(scope="module")
def upstream() -> bytes:
    return tiny_zoo.saved({"model": tiny_zoo.upstream_state()})


@pytest.fixture(scope="module")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME in which this checkout, with a tiny network for one name, lies as torch.hub unpacks v1.0."""
    home = tmp_path_factory.mktemp("torch")
    checkout = home / "hub" / "org_isanet_v1.0"
    checkout.mkdir(parents=True)
    shutil.copytree(ROOT / "isanet", checkout / "isanet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", checkout)
    document = json.loads((ROOT / "weights.json").read_text(encoding="utf-8"))
    tiny = json.loads(tiny_zoo.manifest_of_one(home / "tiny.json").read_text())["weights"][tiny_zoo.NAME]
    document["weights"][NAME] = tiny
    (checkout / "weights.json").write_text(json.dumps(document))
    other = home / "hub" / "else_other_main"
    other.mkdir()
    (other / "hubconf.py").write_text("from models import name\nfrom utils import answer\n")
    (other / "models.py").write_text("name = 'models of another'\n")
    (other / "utils.py").write_text("from models import name\n\n\ndef answer():\n    return name\n")
    return home


def run(script: str, home: Path, cwd: Path, **settings: str) -> Any:
    ours = re.compile(r"ISANET_.*|HF_HUB_OFFLINE|PYTHONPATH|(HTTPS?|ALL)_PROXY", re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    environment |= {
        "TORCH_HOME": str(home),
        "NAME": NAME,
        "CHECKOUT": str(home / "hub" / "org_isanet_v1.0"),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(hub_home: Path, upstream: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What one process saw of a hub with the checkout, another repository and a mirror on loopback."""
    with FileServer() as server:
        server.files[f"/{tiny_zoo.FILE_NAME}"] = upstream
        settings = {"ISANET_MIRROR": server.url, "OPTIONS": json.dumps(OPTIONS)}
        found = run(SCRIPT, hub_home, tmp_path_factory.mktemp("elsewhere"), **settings)
        found["requests"] = len(server.requests)
        yield found


def test_the_models_and_nothing_else_are_listed(answers: Any) -> None:
    assert sorted(answers["list"]) == sorted(name.replace(".", "_") for name in isanet.list_models())


def test_help_says_what_a_model_takes(answers: Any) -> None:
    assert NAME in answers["help"]
    for word in ("pretrained", "num_classes", "classes"):
        assert word in answers["help"]


def test_pretrained_is_the_released_model_in_evaluation_mode(answers: Any, hub_home: Path, upstream: bytes) -> None:
    trained = answers["trained"]
    checkout = hub_home / "hub" / "org_isanet_v1.0"
    assert (trained["class"], trained["file"]) == ("ISANet", str(checkout / "isanet" / "model.py"))
    assert not trained["training"]
    assert trained["devices"] == ["cpu"]
    assert trained["classes"] == list(isanet.labels.LABEL_SPACES["voc21"].classes)
    state = tiny_zoo.upstream_state()
    assert trained["sum"] == pytest.approx(sum(float(value.double().sum()) for value in state.values()), rel=1e-9)
    assert len(trained["shapes"]) == len(state)
    assert trained["provenance"]["name"] == NAME
    assert answers["again"] == trained


def test_the_file_was_fetched_once_into_the_cache_beside_the_checkout(answers: Any, hub_home: Path) -> None:
    assert answers["requests"] == 1
    assert "isanet" in answers["hub dir"]
    assert len(list((hub_home / "hub" / "isanet").glob(f"{NAME}-*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("key", "classes"),
    [
        ("bare of 3", ["class 0", "class 1", "class 2"]),
        ("bare of 3 quietly", ["class 0", "class 1", "class 2"]),
        ("bare named", ["road", "person"]),
        ("trained of 3", ["class 0", "class 1", "class 2"]),
        ("trained named", ["road", "person"]),
        ("bare", list(isanet.labels.LABEL_SPACES["voc21"].classes)),
    ],
)
def test_classes_are_chosen_with_and_without_weights(answers: Any, key: str, classes: list[str]) -> None:
    model, trained = answers[key], answers["trained"]
    assert model["classes"] == classes
    assert model["out"] == [1, len(classes), 40, 48]
    assert bool(model["provenance"]) == key.startswith("trained")
    same = {name for name, shape in model["shapes"].items() if shape == trained["shapes"][name]}
    heads = {f"{head}.{part}" for head in ("classifier", "aux_classifier") for part in ("weight", "bias")}
    assert set(trained["shapes"]) - same == (set() if key == "bare" else heads)


@pytest.mark.parametrize("key", ["bare mistaken", "trained mistaken"])
def test_a_misspelt_option_is_refused(answers: Any, key: str) -> None:
    assert answers[key].startswith("TypeError")
    assert "num_clases" in answers[key]


def test_another_repository_works_before_and_after(answers: Any) -> None:
    assert answers["other before"] == answers["other after"] == "models of another"
    assert answers["path"], "sys.path is as it was"
    assert answers["modules"] == []


def test_a_local_folder_works_too(hub_home: Path, tmp_path: Path) -> None:
    classes, file = run(LOCAL, hub_home, tmp_path)
    assert classes == 2
    assert Path(file) == hub_home / "hub" / "org_isanet_v1.0" / "isanet" / "__init__.py"


def test_hubconf_only_imports() -> None:
    """One statement of its own, `dependencies`; everything else is in the package, where it is tested and typed."""
    for node in ast.parse((ROOT / "hubconf.py").read_text(encoding="utf-8")).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        named = isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] in (
            ["dependencies"],
            ["__all__"],
        )
        assert docstring or named or isinstance(node, ast.ImportFrom), ast.unparse(node)


# --- dependencies -------------------------------------------------------------------------------------------


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Top-level names of the modules that a source imports, and whether it does so inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0], inside
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            if not typing_only:
                yield from walk(child, inside or function)

    return walk(tree, False)


def names_of(requirements: list[str]) -> set[str]:
    distributions = {line.partition("[")[0].partition(">")[0].strip() for line in requirements}
    return {IMPORT_NAMES.get(name, name) for name in distributions}


def declared() -> list[str]:
    found: dict[str, Any] = {}
    for node in ast.parse((ROOT / "hubconf.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return list(found["dependencies"])


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("train", "heic", "sbd", "openvino", "onnxruntime", "video", "serve")
OPTIONAL = set().union(*(names_of(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS))
CHARTS = {"matplotlib"}  # for reports only: torch.hub should not refuse a model because it is missing
SOURCES = sorted((ROOT / "isanet").rglob("*.py"))


def test_dependencies_are_what_pip_would_install() -> None:
    assert len(declared()) == len(set(declared()))
    assert set(declared()) == names_of(PROJECT["dependencies"]) - CHARTS


@pytest.mark.parametrize("name", declared())
def test_a_dependency_is_an_import_name(name: str) -> None:
    """torch.hub refuses to load where it is not."""
    assert name.isidentifier()
    __import__(name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_dependencies_cover_every_import(source: Path) -> None:
    allowed = sys.stdlib_module_names | {"isanet"} | set(declared())
    for name, inside in imported(ast.parse(source.read_text(encoding="utf-8"))):
        assert name in allowed or (name in OPTIONAL | CHARTS and inside), f"{source.name} imports {name}"
