"""The page on export keeps its word where there is no PyTorch: in Python and in C++."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from PIL import Image

import isanet
from isanet.toystreets import draw_scene

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
NANO = "isanet_nano_toystreets"


def snippet(language: str, word: str) -> str:
    """The one block of the page in a language that has a word in it."""
    (found,) = (
        text for kind, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S) if kind == language and word in text
    )
    return found


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.integer]:
    """What the model gives for photo.jpg, beside the model as a file of the whole job."""
    monkeypatch.chdir(tmp_path)
    draw_scene(3, (90, 170))[0].save("photo.jpg", quality=95)
    isanet.export(NANO, "street.xml", whole=True)
    return isanet.Segmenter(NANO, "cpu", precision="float32")("photo.jpg").labels


def test_python_with_openvino_numpy_and_pillow_alone(tmp_path: Path, expected: NDArray[np.integer]) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("openvino", "numpy", "pillow"):
        for top in {file.parts[0] for file in files(name) or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(next(each for each in files(name) or () if each.parts[0] == top).locate()))
            while source.name != top:
                source = source.parent
            (packages / top).symlink_to(source)
    code = "import sys\ntry:\n    import torch\nexcept ImportError:\n    pass\nelse:\n    sys.exit('torch is here')\n"
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.append({str(packages)!r})\n" + code + snippet("python", "ov."),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (np.asarray(Image.open("labels.png")) == expected).mean() > 0.9999
    assert "'car'" in result.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_c_plus_plus(expected: NDArray[np.integer]) -> None:
    package = Path(openvino.__file__).parent
    (library,) = (package / "libs").glob("libopenvino.so*")
    Path("main.cpp").write_text(snippet("cpp", "openvino"))
    call = ["g++", "-std=c++17", "-O0", "main.cpp", "-o", "main", "-I", str(package / "include"), str(library)]
    subprocess.run([*call, f"-Wl,-rpath,{library.parent}"], check=True, capture_output=True, timeout=300)
    Image.open("photo.jpg").save("photo.ppm")
    subprocess.run(["./main", "street.xml", "photo.ppm", "labels.pgm"], check=True, capture_output=True, timeout=300)
    assert (np.asarray(Image.open("labels.pgm")) == expected).mean() > 0.9999
