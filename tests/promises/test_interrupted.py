"""Fine-tuning, evaluating and segmenting, killed and out of disk space at random moments, and two in one folder.

Afterwards every file is whole, and the next call ends with what an uninterrupted one gives, bit by bit. Each moment is
a step that touches the output folder. `SOAK_MOMENTS=50` tries that many of each kind, not four, and on 200 images,
not 20.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import output, python
from tests.helpers.training import tiny, write_data

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals and limits")

SCRIPT = """
import contextlib, csv, io, json, os, pathlib, random, resource, shutil, signal, sys, traceback
import torch
torch.set_num_threads(1)
import accelerate, matplotlib.figure, tqdm, PIL.PngImagePlugin, PIL.JpegImagePlugin
from PIL import Image
import isanet
from isanet import cli
from isanet.datasets import Folder
from isanet.evaluation import run
from isanet.evaluation.evaluate import evaluate
from isanet.training import finetune as _, loop
from isanet.training.finetune import finetune
from isanet.viz import charts
from isanet.weights import checkpoint
from tests.helpers.training import RECIPE, tiny

BASE, WHAT, MOMENTS = pathlib.Path(os.environ["BASE"]), os.environ["WHAT"], int(os.environ["MOMENTS"])
random.seed(int(os.environ["SEED"]))
run.SAVE_EVERY = loop.SAVE_EVERY = 0.0
for name, value in (("confusion_chart", None), ("iou_chart", None), ("training_chart", None), ("to_png", b"")):
    setattr(charts, name, lambda *_, value=value: value)  # drawing is slow
    if hasattr(loop, name):
        setattr(loop, name, getattr(charts, name))
counted = dict.fromkeys(("kills", "full", "survivors", "errors"), 0)
steps = 0

def on_step(folder, fatal, act):
    def count(event, arguments):
        global steps
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir") and str(folder) in str(arguments[0]):
            steps += 1
            if steps == fatal:
                act()
    sys.addaudithook(count)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (random.randrange(100), resource.RLIM_INFINITY))

def work(folder, again=False):
    if WHAT == "finetune":
        finetune(tiny(), Folder(BASE / "data", "train"), Folder(BASE / "data", "val"), RECIPE, folder,
                 device="cpu", workers=0, progress=False)
    elif WHAT == "evaluate":
        if not (folder / "out" / "report.json").exists():
            evaluate(tiny().eval(), Folder(BASE / "many"), output=folder / "out", predictions=folder / "maps",
                     device="cpu", workers=0, progress=False)
    else:
        code = cli.main(["segment", str(BASE / "many" / "images"), "--model", str(BASE / "model"), "--quiet",
                         "--output", str(folder), "--labels", "--areas", "--device", "cpu", *["--force"] * again])
        if code:
            raise isanet.OutputError("not all were segmented")

def child(folder, fatal=0, act=None, again=False):
    pid = os.fork()
    if pid:
        return pid
    code, error = 1, ""
    try:
        on_step(folder, fatal, act)
        random.seed(fatal)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        work(folder, again)
        code = 0
    except BaseException as caught:
        code, error = (3 if isinstance(caught, isanet.IsanetError) else 1), traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (BASE / "error").write_text(error)
    (BASE / f"steps-{os.getpid()}").write_text(str(steps))
    os._exit(code)

def ended(*pids):
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    for code in codes:
        assert code in (0, signal.SIGKILL, 3 << 8), (BASE / "error").read_text()
        counted["kills"] += code == signal.SIGKILL
        counted["errors"] += code == 3 << 8
        counted["survivors"] += code == 0
    return codes

def whole(folder):
    for path in folder.rglob("*"):
        if path.name.startswith(".isanet-") or path.is_dir() or not path.stat().st_size and path.name in EMPTY:
            continue  # what a killed process leaves, under a name of its own
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            checkpoint.read_safetensors(checkpoint.read_file(path))

EMPTY = ("confusion.png", "classes.png", "curves.png")

def result(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name.startswith(".isanet-"):
            continue
        if path.name == "report.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name == "history.csv":
            found[name] = [row[:4] + row[5:] for row in csv.reader(path.open())]
        elif path.name not in ("training_state.safetensors", "index.html"):  # speeds are in them
            found[name] = path.read_bytes()
    return found

pid = child(BASE / "never")
assert ended(pid) == [0], (BASE / "error").read_text()
total = int((BASE / f"steps-{pid}").read_text())
expected = result(BASE / "never")
assert total > 20 and len(expected) > 3
for number in range(MOMENTS):
    for kind in ("kill", "full", "two"):
        folder = BASE / f"{kind}{number}"
        if kind == "two":
            ended(child(folder, random.randint(1, total), kill), child(folder, random.randint(1, total), kill))
        else:
            (code,) = ended(child(folder, random.randint(1, total), kill if kind == "kill" else fill))
            counted["full"] += kind == "full" and code == 3 << 8
            if kind == "full":
                assert not list(folder.rglob(".isanet-*.part")), "a call that has ended left a partial file"
        whole(folder)
        assert ended(child(folder, again=True)) == [0], (BASE / "error").read_text()
        found = result(folder)
        assert found.keys() == expected.keys(), (kind, number, found.keys() ^ expected.keys())
        differing = [name for name in expected if found[name] != expected[name]]
        assert not differing, (kind, number, differing)
        shutil.rmtree(folder)
print(json.dumps({"steps": total, **counted}))
"""


@pytest.mark.parametrize("what", ["finetune", "evaluate", "segment"])
def test_stopped_at_any_moment_the_next_call_ends_with_the_same(tmp_path: Path, what: str) -> None:
    moments = int(os.environ.get("SOAK_MOMENTS", "4"))
    write_data(tmp_path / "data", count=3, val=2)
    rng, count = np.random.default_rng(0), 200 if moments > 4 else 20
    for kind, shape in (("images", (count, 17, 24, 3)), ("masks", (count, 17, 24))):
        (tmp_path / "many" / kind).mkdir(parents=True)
        for index, values in enumerate(rng.integers(0, 256 if kind == "images" else 3, shape, dtype=np.uint8)):
            Image.fromarray(values).save(tmp_path / "many" / kind / f"{index:03}.png")
    (tmp_path / "many" / "classes.txt").write_text("grass\nrust\nsea")
    tiny().save_pretrained(tmp_path / "model")
    settings = {"BASE": str(tmp_path), "WHAT": what, "MOMENTS": str(moments), "SEED": "0", "OMP_NUM_THREADS": "1"}
    found = json.loads(output(python(SCRIPT, **settings), timeout=60 + 120 * moments).splitlines()[-1])
    print(found)
    assert found["kills"] >= moments
    assert found["full"] > 0
