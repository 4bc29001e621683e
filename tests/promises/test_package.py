"""What is installed, and what importing it does. Every layout in which isanet may lie finds its manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import types
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

import isanet

ROOT = Path(__file__).parents[2]

PUBLIC = {
    *("IsanetError", "DownloadError", "NetworkError", "IntegrityError", "OfflineError", "MirrorsExhaustedError"),
    *("CacheError", "OutputError", "CheckpointError", "CheckpointFormatError", "UnsafeCheckpointError"),
    *("CheckpointMismatchError", "ImageError", "DatasetError", "ManifestError"),
    *("Weights", "list_models", "model_info", "recommend", "ISANet", "from_pretrained", "from_backbone"),
    *("Segmenter", "Segmentation", "Report", "evaluate", "Recipe", "Run", "finetune", "export", "show"),
    *("datasets", "labels", "metrics", "training", "viz"),
}
LIGHT = {name for name in PUBLIC if name.endswith("Error")}
LIGHT |= {"Weights", "list_models", "model_info", "recommend", "labels"}
MODULES = {path.stem for path in (ROOT / "isanet").iterdir()}

PACKAGED = (".py", ".safetensors", ".selftest", ".html", ".js", ".css")  # code, packaged models, their answers, pages

BUILT = ("wheel", "wheel from sdist", "editable", "checkout")


def run(code: str, *, path: Path | None = None, cwd: Path | None = None, site: bool = False) -> str:
    """What a fresh interpreter prints that finds isanet in `path` only; `site`: with the .pth files there."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None and not site:
        environment["PYTHONPATH"] = str(path)
    if site:
        first = "sys.path[:] = [p for p in sys.path if p not in before] + before"  # before any installed isanet
        code = f"import site, sys; before = list(sys.path); site.addsitedir({str(path)!r}); {first}\n{code}"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- names --------------------------------------------------------------------------------------------------


def test_the_public_names_are_those_of_the_design() -> None:
    assert set(isanet.__all__) == PUBLIC
    assert isanet.__all__ == sorted(isanet.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_resolves_and_is_listed(name: str) -> None:
    value = getattr(isanet, name)
    assert getattr(value, "__name__", None) in {name, f"isanet.{name}"}
    assert value.__doc__
    assert name in dir(isanet)
    assert getattr(isanet, name) is value


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_a_name_that_needs_no_torch_does_not_wait_for_it(name: str) -> None:
    code = f"import isanet, sys; print(isanet.{name}.__name__.rpartition('.')[2], 'torch' in sys.modules)"
    assert run(code, path=ROOT) == f"{name} False"


@pytest.mark.parametrize("name", ["nothing", "from_pretraind", "__wrapped__", "_missing", "zoo2"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(isanet, name)
    assert not hasattr(isanet, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from isanet import {name}")


def test_no_module_has_the_name_of_a_function_or_class() -> None:
    """Importing such a module would put it in the function's place."""
    objects = {name for name in isanet.__all__ if not isinstance(getattr(isanet, name), types.ModuleType)}
    assert not objects & MODULES


def test_importing_is_light_and_changes_nothing() -> None:
    code = """
import os, sys, threading, warnings, logging
before = dict(os.environ), list(sys.path), list(warnings.filters), list(logging.getLogger().handlers)
known = set(sys.modules)
import isanet
isanet.__version__
dir(isanet)
assert before == (dict(os.environ), list(sys.path), list(warnings.filters), list(logging.getLogger().handlers))
assert threading.active_count() == 1
new = {name.partition(".")[0] for name in set(sys.modules) - known}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert run(code, path=ROOT) == "['isanet']"


def test_a_child_of_the_module_is_not_imported_by_asking_for_another() -> None:
    code = "import isanet, sys; isanet.ManifestError; print('isanet.weights.manifest' in sys.modules)"
    assert run(code, path=ROOT) == "False"


# --- distributions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, with the litter of development."""
    target = tmp_path_factory.mktemp("package") / "checkout"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".git", ".*_cache", "__pycache__", "dist", "build"))
    (target / "isanet" / "assets" / "isanet_stand_in.safetensors").write_bytes(b"a packaged model")
    for litter in ("isanet/__pycache__/zoo.cpython-311.pyc", "tests/__pycache__/a.pyc", "runs/model.safetensors"):
        (target / litter).parent.mkdir(exist_ok=True)
        (target / litter).write_bytes(b"litter")
    return target


@pytest.fixture(scope="module")
def dist(checkout: Path) -> Path:
    """A folder for distributions: a sdist and a wheel from it, a wheel from the checkout, and an editable one."""
    target = checkout.parent / "dist"
    hook = (
        "import hatchling.build, os, sys; os.makedirs(sys.argv[2]); getattr(hatchling.build, sys.argv[1])(sys.argv[2])"
    )
    commands = [["-m", "build", "--no-isolation", "--outdir", str(target / "wheel from sdist")]]
    commands += [["-c", hook, "build_wheel", str(target / "wheel")]]
    if find_spec("editables"):  # what hatchling asks for, for this one kind
        commands += [["-c", hook, "build_editable", str(target / "editable")]]
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def place(dist: Path, checkout: Path, kind: str) -> Path:
    """Where isanet lies, in one of the ways in `BUILT`."""
    if kind == "checkout":
        return checkout
    if kind == "editable":
        pytest.importorskip("editables", reason="hatchling makes editable wheels by editables")
    (wheel,) = (dist / kind).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(dist / f"{kind} unpacked")
    return dist / f"{kind} unpacked"


@pytest.mark.parametrize("kind", BUILT)
def test_the_manifest_is_found(place: Path, checkout: Path, tmp_path: Path, kind: str) -> None:
    code = """
import isanet, json
from isanet.weights.manifest import manifest_path
print(json.dumps([isanet.list_models(), str(manifest_path()), isanet.__version__, isanet.__file__]))
"""
    answer = run(code, path=place, cwd=tmp_path, site=kind == "editable")
    names, manifest, version, file = json.loads(answer)
    assert names == isanet.list_models()
    assert version == isanet.__version__
    source = kind in ("editable", "checkout")
    package = (checkout if source else place) / "isanet"
    assert Path(file) == package / "__init__.py"
    assert Path(manifest) == (checkout if source else package) / "weights.json"
    assert Path(manifest).read_bytes() == (ROOT / "weights.json").read_bytes()


@pytest.mark.parametrize("kind", BUILT[:2])
def test_a_wheel_has_the_package_and_nothing_else(place: Path, checkout: Path) -> None:
    info = f"isanet-{isanet.__version__}.dist-info"
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    files = (path for path in (checkout / "isanet").rglob("*") if path.suffix in PACKAGED)
    sources = {path.relative_to(checkout).as_posix() for path in files}
    assert "isanet/assets/isanet_stand_in.safetensors" in sources
    assert found == {
        *sources,
        *("isanet/py.typed", "isanet/weights.json"),
        *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")),
    }
    for name in (*sources, "isanet/py.typed"):
        assert (place / name).read_bytes() == (checkout / name).read_bytes()
    assert (place / info / "licenses/LICENSE").read_bytes() == (checkout / "LICENSE").read_bytes()
    assert (place / info / "entry_points.txt").read_text().strip() == "[console_scripts]\nisanet = isanet.cli:main"
    assert "Tag: py3-none-any" in (place / info / "WHEEL").read_text()


def test_two_builds_give_the_same_bytes(dist: Path, checkout: Path) -> None:
    """From another folder, at another time: the wheel depends on the sources alone."""
    again = checkout.parent / "again"
    shutil.copytree(checkout, again / "checkout", copy_function=shutil.copy)
    for path in (again / "checkout").rglob("*"):
        os.utime(path, (10**9, 10**9))
    code = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(again)]
    done = subprocess.run(command, cwd=again / "checkout", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ((first,), (second,)) = ((dist / "wheel").glob("*.whl"), again.glob("*.whl"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", BUILT[:3])
def test_the_metadata_say_what_pyproject_says(place: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (file,) = place.glob("*.dist-info/METADATA")
    metadata = Parser().parsestr(file.read_text(encoding="utf-8"))
    assert "version" not in project  # one source: isanet/_version.py
    assert (metadata["Name"], metadata["Version"]) == ("isanet", isanet.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == project["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(required) == sorted(line.replace("_", "-") for line in project["dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", BUILT[:1])
def test_the_entry_point_answers(place: Path, tmp_path: Path) -> None:
    code = "import sys; from isanet.cli import main; sys.exit(main(['list', '*r50_voc']))"
    assert "isanet_r50_voc" in run(code, path=place, cwd=tmp_path)


def test_the_sdist_is_a_checkout_without_litter(dist: Path, checkout: Path) -> None:
    (file,) = (dist / "wheel from sdist").glob("*.tar.gz")
    with tarfile.open(file) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("isanet", "tests", "examples", "docs")
    wanted = {p.relative_to(checkout).as_posix() for f in folders for p in (checkout / f).rglob("*") if p.is_file()}
    wanted = {name for name in wanted if "__pycache__" not in name}
    wanted |= {"pyproject.toml", "hubconf.py", "weights.json", "README.md", "LICENSE", "PKG-INFO", ".gitignore"}
    wanted |= {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", ".ci/run", ".ci/lowest", ".ci/mirror.py"}
    assert found == wanted
