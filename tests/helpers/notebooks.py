"""Notebooks, executed as Jupyter does: in a kernel, with its messages.

`python -m tests.helpers.notebooks examples/finetune_harbor.ipynb` writes the outputs of a new run into a notebook.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import nbformat
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = 800
"""Width of what a page shows, in pixels."""

WIDGET = "application/vnd.jupyter.widget-view+json"


def of_cells(*cells: str) -> Any:
    """A notebook of code."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def execute(notebook: Any, folder: Path, **settings: str) -> Any:
    """Runs all cells in `folder`, with Jupyter's own files in it; returns the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    jupyter = folder / "jupyter"
    names = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    settings = {name: str(jupyter) for name in names} | {"PYTHONPATH": str(ROOT), **settings}
    with patch.dict(os.environ, settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own packages; the kernel has its own filters
        from nbclient import NotebookClient

        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
        return client.execute()


def outputs(notebook: Any, cell: int) -> list[Any]:
    """What the cell of a number, counting code alone, has written."""
    return [one for one in notebook["cells"] if one["cell_type"] == "code"][cell]["outputs"]


def images(notebook: Any) -> Iterator[tuple[int, Image.Image]]:
    """The PNGs that a notebook shows, each with the number of its cell, counting code alone."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code):
        for output in cell["outputs"]:
            if data := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(data)))
                image.load()
                yield number, image


def _smaller(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((PAGE, 4 * PAGE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def main(path: Path) -> None:
    """Executes a notebook beside the modules it imports, and stores it with its outputs, as a page shows them.

    Bars, which are over, are left out, and images are stored in the width of pages.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        for module in path.parent.glob("*.py"):
            shutil.copy(module, folder)
        execute(notebook, Path(folder))
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [
                output
                for output in cell["outputs"]
                if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
            ]
            for output in cell["outputs"]:
                if png := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = _smaller(png)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
