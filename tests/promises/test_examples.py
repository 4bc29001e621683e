"""The examples run, and draw the scenes that they describe."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isanet.datasets import Folder

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = json.loads((EXAMPLES / "finetune_harbor.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def harbor() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "harbor.py"))


def test_harbor_scenes_are_read_by_folder(harbor: dict[str, Any], tmp_path: Path) -> None:
    harbor["write"](tmp_path, 3, 5)
    dataset = Folder(tmp_path)
    assert dataset.classes == harbor["CLASSES"]
    assert len(dataset) == 3
    for index in range(3):
        image, mask = harbor["draw"](5 + index)
        read, labels = dataset.read(index)
        np.testing.assert_array_equal(labels, np.asarray(mask))
        assert read.shape == (192, 256, 3)
        assert abs(read.astype(int) - np.asarray(image)).mean() < 8  # JPEG is lossy


def test_harbor_scenes_depend_only_on_their_seed(harbor: dict[str, Any]) -> None:
    scenes = [[part.tobytes() for part in harbor["draw"](seed, (96, 160))] for seed in (*range(8), *range(8))]
    assert scenes[:8] == scenes[8:]
    assert len({image for image, _ in scenes}) == len({mask for _, mask in scenes}) == 8


def test_every_harbor_class_occurs(harbor: dict[str, Any]) -> None:
    seen = [np.unique(np.asarray(harbor["draw"](seed)[1])) for seed in range(20)]
    counts = np.bincount(np.concatenate(seen), minlength=len(harbor["CLASSES"]))
    assert len(counts) == len(harbor["CLASSES"]) == len(harbor["PALETTE"])
    assert counts.min() >= 10


def test_the_notebook_is_stored_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_fine_tuning_example_improves_the_model(tmp_path: Path) -> None:
    """The notebook runs first; the script in the same folder has the same steps, and finds the run finished.

    The cells run in a process of their own, because they leave image files open.
    """
    shutil.copy(EXAMPLES / "harbor.py", tmp_path)
    shutil.copy(EXAMPLES / "finetune_harbor.py", tmp_path)
    (tmp_path / "notebook.py").write_text("\n".join(CELLS), encoding="utf-8")
    means, written = [], []
    for script in ("notebook.py", "finetune_harbor.py"):
        done = subprocess.run(
            [sys.executable, script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        means += re.findall(r"^mean +([0-9.]+) +([0-9.]+)$", done.stdout, re.M)
        written.append((tmp_path / "runs" / "harbor" / "model.safetensors").stat().st_mtime_ns)
    assert means[0] == means[1]
    assert written[0] == written[1]
    before, after = map(float, means[0])
    assert after > before + 10
    assert (tmp_path / "runs" / "harbor" / "new_scene.png").is_file()
