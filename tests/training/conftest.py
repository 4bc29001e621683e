"""A small dataset, and training runs in separate processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isanet.datasets import Folder
from isanet.training import Recipe
from tests.helpers.training import RECIPE, ROOT, SCRIPT, write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def splits(data: Path) -> tuple[Folder, Folder]:
    return Folder(data, "train"), Folder(data, "val")


@pytest.fixture
def launch(tmp_path: Path, data: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a training run in separate processes."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def begin(
        output: Path,
        recipe: Recipe = RECIPE,
        *,
        processes: int = 1,
        save_every: float = 0,
        dropout: float = 0.1,
        limit: int | None = None,
        workers: int = 0,
        trap: str = "",
    ) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        arguments = [str(data), str(output), recipe.to_json(), str(save_every), str(dropout), str(workers), trap]
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else []), str(tmp_path / "script.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )

    return begin
