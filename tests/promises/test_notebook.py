"""In a notebook: bars are widgets, or text where ipywidgets is absent; results show themselves. Warnings are errors."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import isanet
from isanet.viz.sheet import WIDTH
from tests.helpers import notebooks
from tests.helpers.hub_server import HubServer
from tests.helpers.processes import output, python

STRICT = "import sys, warnings; warnings.simplefilter('error')"
WITHOUT_WIDGETS = "sys.modules['ipywidgets'] = None"
CELLS = (
    """
import isanet
data = isanet.datasets.ToyStreets(3, size=(64, 128))
report = isanet.evaluate("isanet_nano_toystreets", data, workers=0, device="cpu")
""",
    """
from isanet.weights import download
from pathlib import Path
Path("file").write_bytes(bytes(1000))
with download.fetch(Path("file").resolve().as_uri(), Path(), sha256=None, size=1000, max_size=2000): pass
""",
    """
from isanet.weights import hub
path = hub.fetch("org/notebook", "file", revision=None, token=None, max_size=2000)
""",
    "isanet.evaluate('isanet_nano_toystreets', data, workers=0, device='cpu', progress=False); print('quiet')",
    "segmenter = isanet.Segmenter('isanet_nano_toystreets', 'cpu'); image = data[0][0]; segmenter(image)",
    "results = segmenter([image] * 3); results",
    "results[:1]",
    "isanet.show(results[0])",
    "isanet.show(segmenter.stream([image] * 30))",
    "isanet.show(image)",
)
BARS, QUIET, SHOWN = (0, 1, 2), 3, {4: 512, 5: WIDTH, 6: WIDTH, 7: 512, 8: WIDTH, 9: 128}


def png(output: Any) -> Image.Image:
    assert set(output["data"]) == {"image/png", "text/plain"}
    image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
    image.load()
    return image


@pytest.mark.parametrize("widgets", [True, False], ids=["with ipywidgets", "without ipywidgets"])
def test_bars_and_results_in_a_kernel(widgets: bool, hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/notebook", {"file": bytes(1000)})
    first = f"{STRICT}\n{'' if widgets else WITHOUT_WIDGETS}"
    notebook = notebooks.execute(
        notebooks.of_cells(first, *CELLS), tmp_path, HF_HUB_DISABLE_PROGRESS_BARS="0", HF_HOME=str(tmp_path)
    )
    cells = [notebooks.outputs(notebook, number + 1) for number in range(len(CELLS))]
    for number in BARS:
        if widgets:
            assert [notebooks.WIDGET in output.get("data", {}) for output in cells[number]] == [True]
        else:
            assert {output["name"] for output in cells[number]} == {"stderr"}
            assert "100%|" in "".join(output["text"] for output in cells[number])
    assert [output["text"] for output in cells[QUIET]] == ["quiet\n"]
    for number, width in SHOWN.items():
        (output,) = cells[number]
        image = png(output)
        assert image.width == width
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50
    assert png(cells[8][0]).height > png(cells[5][0]).height


def test_outside_a_notebook_bars_are_for_terminals(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isanet.evaluate(
            "isanet_nano_toystreets", isanet.datasets.ToyStreets(2, size=(64, 128)), workers=0, device="cpu"
        )
    assert "%|" not in capfd.readouterr().err


def test_outside_a_notebook_nothing_of_jupyter_is_imported() -> None:
    code = "import sys, isanet; isanet.Segmenter, isanet.evaluate, isanet.finetune, isanet.show\n"
    code += "print([name for name in ('IPython', 'ipywidgets', 'asyncio') if name in sys.modules])"
    bare = "import sys, torch; print([name for name in ('IPython', 'ipywidgets', 'asyncio') if name in sys.modules])"
    assert output(python(code)) == output(python(bare))
