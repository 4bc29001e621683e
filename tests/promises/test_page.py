"""The page of `isanet serve` in a real browser that reaches no other host."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import isanet
from isanet.datasets import ToyStreets
from isanet.inference.segmentation import Segmentation
from isanet.tools.demo import MODEL
from isanet.weights.manifest import manifest_path
from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer, trickle
from tests.helpers.processes import ROOT, python

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytest.importorskip("gradio", reason="the page needs gradio")
webdriver: Any = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs Debian's packages chromium and chromium-driver", allow_module_level=True)

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any, address: str, downloads: Path) -> None:
        self.driver, self.address, self.downloads = driver, address, downloads

    def open(self, width: int = 1280, height: int = 900) -> None:
        """A new visit, in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.address)
        self.wait(lambda: self.all("#uploads input[type=file]") and self.all("#result .empty"))

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def wait(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives, as soon as that is true."""
        return WebDriverWait(self.driver, 60, 0.05, [StaleElementReferenceException]).until(lambda _: condition())

    def upload(self, *paths: Path) -> None:
        """Puts files into the page, and waits until they are there."""
        before = len(self.all("#uploads .thumbnail-lg, #uploads .thumbnail-item"))
        self.all("#uploads input[type=file]")[0].send_keys("\n".join(map(str, paths)))
        self.wait(lambda: len(self.all("#uploads .thumbnail-lg, #uploads .thumbnail-item")) > before)

    def segment(self, *paths: Path) -> None:
        """Uploads files and presses the button."""
        self.upload(*paths)
        self.all("#segment")[0].click()

    def result(self) -> dict[str, str]:
        """The areas that are shown, by class."""
        script = """return [...document.querySelectorAll("#result .bars li")].map((row) =>
            [row.querySelector(".name").textContent, row.querySelector(".share").textContent])"""
        return dict(self.wait(lambda: self.driver.execute_script(script)))

    def picture(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The result's pixels on the screen."""
        return np.asarray(Image.open(io.BytesIO(self.all("#result .stage")[0].screenshot_as_png)).convert("RGB"))

    def download(self, name: str) -> Path:
        """Clicks on a download; returns the file."""
        target = self.downloads / name
        target.unlink(missing_ok=True)
        self.wait(lambda: self.all("#downloads a[download]"))
        (link,) = (each for each in self.all("#downloads a[download]") if each.get_attribute("download") == name)
        link.click()
        self.wait(target.exists)
        return target


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    settings = {
        "ISANET_OFFLINE": "1",
        "ISANET_HOME": str(folder / "home"),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),
        "HTTP_PROXY": "http://127.0.0.1:9",  # a proxy that is not there: nothing may go through it
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    environment = {**os.environ, **settings}
    environment.pop("NO_PROXY", None)
    command = [sys.executable, "-m", "isanet.cli", "--quiet", "serve", "--device", "cpu", "--max-files", "3"]
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) is ready; Ctrl-C ends it\n", line)
        assert found, line + (folder / "errors").read_text()
        try:
            yield found[1]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    folder, downloads = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads")
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Page(driver, address, downloads)
        events = [json.loads(each["message"])["message"] for each in driver.get_log("performance")]
        asked = {
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        }
        assert any(url.startswith("http://127.0.0.1:") for url in asked)
        away = [url for url in asked if url.startswith(("http", "ws")) and not url.startswith("http://127.0.0.1:")]
        assert set(away) <= {"https://elsewhere.example/"}  # what a test asks for in vain
        severe = [each["message"] for each in driver.get_log("browser") if each["level"] == "SEVERE"]
        assert [line for line in severe if "elsewhere.example" not in line] == []
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("streets")
    for number, name in enumerate(("one.png", "two.jpg")):
        Image.fromarray(ToyStreets(count=1, seed=number, split="test").read(0)[0]).save(folder / name)
    return [folder / "one.png", folder / "two.jpg"]


@pytest.fixture(scope="module")
def expected(streets: list[Path]) -> list[Segmentation]:
    segmenter = isanet.Segmenter(MODEL, "cpu")
    return [segmenter(path, confidence=True) for path in streets]


def same_areas(shown: dict[str, str], result: Segmentation) -> bool:
    text = {name: f"{share:.1%}".replace("%", " %") for name, share in result.areas().items()}
    return {**text, **{name: "<0.1 %" for name, share in result.areas().items() if share < 0.001}} == shown


def test_a_street(page: Page, streets: list[Path], expected: list[Segmentation]) -> None:
    """The overlay changes with the slider, the pointer names classes, and the downloads are the segmenter's."""
    page.open()
    page.segment(streets[0])
    result = expected[0]
    assert result.confidence is not None
    assert same_areas(page.result(), result)
    facts = page.all("#result .facts")[0].text
    assert facts.startswith("one.png · 512 × 256 · mean confidence ")
    assert f"{result.confidence.mean():.0%}".replace("%", " %") in facts
    assert re.fullmatch(rf"{MODEL} on cpu in \w+ by \w+", page.all("#result .how")[0].text)

    (slider,) = page.all("#result input[type=range]")
    middle = page.picture()
    slider.send_keys(Keys.HOME)
    bare = page.picture()
    slider.send_keys(Keys.END)
    colors = page.picture()
    scale = colors.shape[1] / 512
    rows, columns = np.mgrid[8:256:16, 8:512:16]
    at = ((rows + 0.5) * scale).astype(int), ((columns + 0.5) * scale).astype(int)
    same = (colors[at] == np.array(result.palette)[result.labels[rows, columns]]).all(-1)
    assert same.mean() > 0.98  # where an edge between classes is not on an edge between pixels of the screen
    photo = np.asarray(Image.fromarray(result.image).resize((colors.shape[1], colors.shape[0])), int)
    assert np.abs(photo - bare).mean() < 6 < np.abs(photo - middle).mean() < np.abs(photo - colors).mean()

    stage = page.all("#result .stage")[0]
    page.driver.execute_script("arguments[0].scrollIntoView()", stage)
    for y, x in ((200, 250), (40, 30)):
        offset = int((x + 0.5 - 256) * scale), int((y + 0.5 - 128) * scale)
        ActionChains(page.driver).move_to_element_with_offset(stage, *offset).perform()
        name = result.classes[result.labels[y, x]]
        assert re.fullmatch(rf"{name}, \d+ %", page.all("#result .tip")[0].text)
        assert page.all("#result li.pointed .name")[0].text == name

    labels = np.asarray(Image.open(page.download("one_labels.png")))
    np.testing.assert_array_equal(labels, result.labels)
    np.testing.assert_array_equal(
        np.asarray(Image.open(page.download("one_overlay.png"))), np.asarray(result.overlay())
    )
    assert json.loads(page.download("coco.json").read_text()) == json.loads(json.dumps(result.to_coco()))
    assert page.download("areas.csv").read_text().startswith("image,road,")


def test_several_images_of_which_one_is_broken(
    page: Page, streets: list[Path], expected: list[Segmentation], tmp_path: Path
) -> None:
    broken = tmp_path / "<img src=x onerror=alert(1)>.png"
    broken.write_text("no image")
    page.open()
    page.segment(streets[0], broken, streets[1])
    assert same_areas(page.result(), expected[0])
    (error,) = page.all("#result .error")
    assert "is not an image in a known format: it looks like text ('no image')" in error.text
    assert "/" not in error.text
    second = page.all("#result .strip button")[1]
    second.click()
    page.wait(lambda: page.all("#result .facts")[0].text.startswith("two.jpg"))
    assert same_areas(page.result(), expected[1])
    assert page.download("segmented.zip").stat().st_size > 1000


def test_messages(page: Page, streets: list[Path], tmp_path: Path) -> None:
    """Nothing to segment, too much, and a model that cannot be had."""
    page.open()
    page.all("#segment")[0].click()
    page.wait(lambda: page.all("#result .error"))
    assert page.all("#result .error")[0].text == "choose an image first"
    page.segment(*(shutil.copy(streets[0], tmp_path / f"{number}.png") for number in range(4)))
    page.wait(lambda: "4 files are too many at once: at most 3" in page.all("#result")[0].text)

    box = page.all("#model input")[0]
    box.click()
    box.send_keys("r50_voc.mmseg_40k")
    page.wait(lambda: page.all("[role=option]"))
    options = [each.text.strip("✓ \n") for each in page.all("[role=option]")]
    assert options == ["isanet_r50_voc.mmseg_40k · mIoU 76.2 · 151 MB · to download"]
    box.send_keys(Keys.ENTER)
    page.all("#segment")[0].click()
    page.wait(lambda: "ISANET_OFFLINE is set" in page.all("#result")[0].text)
    assert not page.all("#result .bars")


def test_two_visitors_at_once(page: Page, streets: list[Path], expected: list[Segmentation]) -> None:
    page.open()
    page.upload(streets[0])
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    second = page.driver.current_window_handle
    page.open()
    page.segment(streets[1])
    page.driver.switch_to.window(first)
    page.all("#segment")[0].click()
    assert same_areas(page.result(), expected[0])
    np.testing.assert_array_equal(np.asarray(Image.open(page.download("one_labels.png"))), expected[0].labels)
    page.driver.switch_to.window(second)
    assert same_areas(page.result(), expected[1])
    np.testing.assert_array_equal(np.asarray(Image.open(page.download("two_labels.png"))), expected[1].labels)
    page.driver.close()
    page.driver.switch_to.window(first)


def test_pasted_from_the_camera_and_an_example(page: Page, streets: list[Path], expected: list[Segmentation]) -> None:
    page.open()
    script = """
        const bytes = Uint8Array.from(atob(arguments[0]), (char) => char.charCodeAt(0));
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
        document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
    """
    page.driver.execute_script(script, base64.b64encode(streets[0].read_bytes()).decode())
    page.wait(lambda: page.all("#uploads img"))
    page.all("#segment")[0].click()
    assert same_areas(page.result(), expected[0])
    np.testing.assert_array_equal(np.asarray(Image.open(page.download("pasted_labels.png"))), expected[0].labels)

    page.open()
    next(each for each in page.all("button") if each.text.startswith("Camera")).click()
    page.wait(lambda: [each for each in page.all("#camera div, #camera button") if "Webcam" in each.text])[-1].click()
    playing = "const video = document.querySelector('#camera video'); return video && video.readyState > 2"
    page.wait(lambda: page.driver.execute_script(playing))
    page.wait(lambda: page.all("#camera button[aria-label='capture photo']"))[0].click()
    page.wait(lambda: page.all("#uploads img"))
    page.all("#segment")[0].click()
    page.result()
    assert page.all("#result .facts")[0].text.startswith("image.png")

    page.open()
    page.wait(lambda: page.all(".gallery-item, .gallery button"))[0].click()
    page.wait(lambda: page.all("#uploads img"))
    page.all("#segment")[0].click()
    assert "road" in page.result()
    assert page.all("#result .facts")[0].text.startswith("street_1.png")


def test_a_video_is_played(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.helpers.videos import make_video

    scene = ToyStreets(count=1, seed=1, size=(128, 256), split="test").read(0)[0]
    clip = make_video(tmp_path / "clip <1>.mp4", [np.roll(scene, 4 * shift, 1) for shift in range(6)], rate=2)
    page.open()
    page.segment(clip)
    assert "road" in page.result()
    script = "const video = arguments[0]; return video.readyState > 1 && [video.videoWidth, video.duration]"
    width, duration = page.wait(lambda: page.driver.execute_script(script, page.all("#result video")[0]))
    assert width >= 256  # with a legend
    assert duration == 3
    assert "256 × 128 · 6 frames" in page.all("#result .facts")[0].text
    assert page.download("clip 1_areas.csv").read_text().count("\n") == 7


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page: Page, streets: list[Path], width: int) -> None:
    page.open(width)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == width
    page.segment(*streets)
    page.result()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == width
    boxes = [page.all(selector)[0].rect for selector in ("#uploads", "#result")]
    if width > 1000:
        assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"]  # side by side
    else:
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
        assert min(box["width"] for box in boxes) > 350
    stage = page.all("#result .stage")[0]
    page.driver.execute_script("arguments[0].scrollIntoView()", stage)
    touch = {
        "type": "touchStart",
        "touchPoints": [
            page.driver.execute_script(
                "const box = arguments[0].getBoundingClientRect(); return {x: box.x + 40, y: box.y + 20}", stage
            )
        ],
    }
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait(lambda: re.fullmatch(r"[\w ]+, \d+ %", page.all("#result .tip")[0].text))


def test_other_hosts_are_refused(page: Page, address: str) -> None:
    page.open()
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
        fetch("https://elsewhere.example/").catch(() => {});
    """
    assert page.driver.execute_async_script(script).startswith("https://elsewhere.example")
    with pytest.raises(HTTPError, match="403"):
        urlopen(address + "gradio_api/file=https://elsewhere.example/")
    with urlopen(address + "config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert config["title"] == "ISANet"


def test_a_model_is_downloaded_when_it_is_used(
    page: Page, tiny: FileServer, streets: list[Path], tmp_path: Path
) -> None:
    zoo = tmp_path / "zoo.json"
    document = json.loads((tmp_path / "weights.json").read_text())
    document["weights"][MODEL] = json.loads(manifest_path().read_text())["weights"][MODEL]
    zoo.write_text(json.dumps(document))
    tiny.plan[f"/{tiny_zoo.FILE_NAME}"] = [trickle(20_000, 0.02)]
    code = f"""
from pathlib import Path
from isanet.weights import manifest
manifest.manifest_path = lambda: Path({str(zoo)!r})
from isanet.tools import serve
serve.serve({tiny_zoo.NAME!r}, ready=lambda url: print(url, flush=True))
"""
    process = python(code, TMPDIR=str(tmp_path))
    try:
        assert process.stdout is not None
        own = Page(page.driver, process.stdout.readline().strip(), page.downloads)
        own.open()
        assert own.all("#model input")[0].get_attribute("value").endswith("to download")
        assert not tiny.requests
        own.segment(streets[0])
        own.wait(lambda: re.search(rf"{tiny_zoo.FILE_NAME} - \d+\.\d%", own.all("#result")[0].text))  # above a bar
        own.result()
        assert own.all("#result .how")[0].text.startswith(tiny_zoo.NAME)
        own.open()
        own.wait(lambda: own.all("#model input")[0].get_attribute("value").endswith("cached"))
    finally:
        process.kill()
        process.communicate()


def test_nothing_of_a_visitor_is_left(tmp_path: Path) -> None:
    """Old uploads are removed while the server runs, and everything with it."""
    code = f"""
import pathlib, shutil, types
from isanet.tools import serve
serve.KEEP_SECONDS = 1
full, usage = pathlib.Path({str(tmp_path / "full")!r}), shutil.disk_usage
serve.shutil.disk_usage = lambda path: types.SimpleNamespace(free=0) if full.exists() else usage(path)
serve.serve(ready=lambda url: print(url, flush=True))
"""
    (tmp_path / "tmp").mkdir()
    process = python(code, TMPDIR=str(tmp_path / "tmp"))
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert {path.stat().st_mode & 0o077 for path in (tmp_path / "tmp").iterdir()} == {0}
        path = upload(address)
        assert path.is_relative_to(tmp_path / "tmp")
        while path.exists():
            time.sleep(0.05)
        assert list(tmp_path.rglob("street_1.png"))
        upload(address)
        (tmp_path / "full").touch()
        with pytest.raises(HTTPError, match="507"):
            upload(address)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
        assert list((tmp_path / "tmp").iterdir()) == []
    finally:
        process.kill()


def upload(address: str) -> Path:
    """Uploads a file as the page does; returns where the server keeps it."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="mine.png"\r\n\r\nmine\r\n--x--\r\n'
    request = Request(address + "gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    with urlopen(request) as answer:
        (path,) = json.load(answer)
    return Path(path)
