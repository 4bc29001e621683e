"""How test_hostile.py provokes what may go wrong: one function for each kind of failure, for real.

A provocation makes its preparations in a `World` and returns the call that is then judged.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import isanet
from isanet import datasets
from isanet.cli import run as cli
from isanet.model import ISANet
from isanet.weights import cache, checkpoint, convert, download
from isanet.weights.download import Limits
from tests.helpers import hostile, replicas, tiny_zoo
from tests.helpers.file_server import Fault, FileServer, changed, cut, reset, status, trickle
from tests.helpers.hostile import archive, tensor
from tests.helpers.hub_server import HubServer, Reply
from tests.helpers.processes import EIGHT, output, python
from tests.helpers.tiny_zoo import FILE_NAME, NAME

ADDRESS = f"/{FILE_NAME}"
OTHER_ADDRESS = "/isanet_tiny.pth"
QUICK = Limits(connect=5, read=2, window=1, window_bytes=50_000, retries=2, backoff=0.01, deadline=20)
BOUND = 120.0  # seconds for any call here; generous, for busy machines
CLASSES = ("sky", "land", "water", "house")


@dataclass
class World:
    """A user's machine, with files of its own, and the server that has the one model of the zoo."""

    tmp: Path
    home: Path
    server: FileServer
    hub: HubServer
    patch: pytest.MonkeyPatch
    undo: ExitStack
    capture: pytest.CaptureFixture[str]
    released: bytes

    @property
    def url(self) -> str:
        return self.server.url + ADDRESS

    def load(self) -> ISANet:
        return isanet.from_pretrained(NAME)

    def fail(self, *faults: Fault | str) -> None:
        """The next requests get these faults; later ones are served."""
        self.server.plan[ADDRESS] = list(faults)

    def enter(self, **changes: Any) -> None:
        """Change the model's entry in the manifest."""
        document = json.loads((self.tmp / "weights.json").read_text())
        document["weights"][NAME] |= changes
        (self.tmp / "weights.json").write_text(json.dumps(document))

    def pin(self) -> None:
        """Put the hash and size of the released file into the manifest."""
        self.enter(sha256=sha256(self.released).hexdigest(), size=len(self.released))

    def two_addresses(self) -> None:
        self.server.files[OTHER_ADDRESS] = self.released
        self.enter(urls=[self.url, self.server.url + OTHER_ADDRESS])

    def patience(self, **changes: Any) -> None:
        limits = Limits(**{**vars(QUICK), **changes})
        self.patch.setattr(download, "Limits", lambda: limits)

    def offline(self) -> None:
        """No socket may be opened, and the environment says so."""
        self.patch.setenv("ISANET_OFFLINE", "1")
        for name in ("connect", "connect_ex"):
            self.patch.setattr(socket.socket, name, lambda *_: pytest.fail("a socket was opened"))

    def cached(self) -> Path:
        """The model's file in the cache, after one good load."""
        self.load()
        self.server.requests.clear()
        path = cache.cached_file(NAME)
        assert path is not None
        return path

    def image(self, name: str = "image.png", size: tuple[int, int] = (24, 32)) -> Path:
        values = np.random.RandomState(0).randint(0, 256, (*size, 3), dtype=np.uint8)
        return replicas.save(self.tmp / name, values)

    def file(self, name: str, data: bytes) -> Path:
        path = self.tmp / name
        path.write_bytes(data)
        return path

    def files(self) -> dict[Path, bytes | str]:
        """Content of all files but locks; of a link its target, because it must stay a link."""
        paths = [path for path in self.tmp.rglob("*") if path.is_symlink() or path.is_file()]
        return {
            path: str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in paths
            if path.suffix != ".lock"
        }


Call = Callable[[], object]
Provocation = Callable[[World], Call]


# --- network ------------------------------------------------------------------------------------------------


def answers(*faults: Fault | str, pinned: bool = False, **patience: Any) -> Provocation:
    """The server answers with these faults, then serves."""

    def provoke(world: World) -> Call:
        if pinned:
            world.pin()
        world.patience(**patience)
        world.fail(*faults)
        return world.load

    return provoke


def ranges(world: World) -> list[str | None]:
    return [headers.get("Range") for _, _, headers in world.server.requests]


def resumed(world: World) -> Call:
    world.fail(cut(300_000), reset(200_000))

    def call() -> ISANet:
        model = world.load()
        assert ranges(world)[:2] == [None, "bytes=300000-"]
        assert world.server.sent[ADDRESS] < 1.5 * len(world.released)
        return model

    return call


def not_resumed(*again: Fault) -> Provocation:
    """After a cut, an answer that is not the rest of the same object."""

    def provoke(world: World) -> Call:
        world.fail(cut(300_000), *again)

        def call() -> ISANet:
            model = world.load()
            second = world.server.requests[1]
            assert second[2]["If-Range"] == f'"{sha256(world.released).hexdigest()[:16]}"'
            assert ranges(world)[2:] in ([], [None]), "it started again from zero"
            return model

        return call

    return provoke


def other_version() -> bytes:
    """The same network, trained again."""
    state = tiny_zoo.upstream_state()
    return tiny_zoo.saved({"epoch": 60, "model": {**state, "decoder.1.bias": state["decoder.1.bias"] + 1}})


def changed_object(world: World) -> Call:
    world.fail(cut(300_000), changed(other_version()))

    def call() -> None:
        model, good = world.load(), convert.convert(tiny_zoo.upstream_state(), "sssegmentation")
        assert torch.equal(model.classifier.bias, good["classifier.bias"] + 1)
        assert model.provenance["source_sha256"] == sha256(other_version()).hexdigest()

    return call


def stitched(world: World) -> Call:
    """A server that continues with other bytes under the old tag: only the hash of the whole file can tell."""
    world.pin()
    tag = f'"{sha256(world.released).hexdigest()[:16]}"'

    def act(handler: Any) -> None:
        rest = bytes(len(world.released) - 300_000)
        place = f"bytes 300000-{len(world.released) - 1}/{len(world.released)}"
        handler.reply(206, {"Content-Range": place, "ETag": tag}, rest)

    world.fail(cut(300_000), act)
    return world.load


def flipped(world: World) -> Call:
    world.pin()
    world.server.files[ADDRESS] = world.released[:-9] + bytes([world.released[-9] ^ 1]) + world.released[-8:]
    return world.load


def next_address(*faults: Fault | str) -> Provocation:
    """The first address fails, the second has the file."""

    def provoke(world: World) -> Call:
        world.two_addresses()
        world.fail(*faults)

        def call() -> ISANet:
            model = world.load()
            assert model.provenance["source"] == world.server.url + OTHER_ADDRESS
            return model

        return call

    return provoke


def all_wrong(*faults: Fault | str) -> Provocation:
    """One fault for each of two addresses."""

    def provoke(world: World) -> Call:
        world.two_addresses()
        world.server.plan = {ADDRESS: [faults[0]] * 9, OTHER_ADDRESS: [faults[1]] * 9}
        return world.load

    return provoke


def endless(world: World) -> Call:
    world.pin()
    world.fail("endless")

    def call() -> None:
        try:
            world.load()
        finally:
            assert world.server.sent[ADDRESS] < 20_000_000, "what the network holds, not what the disk holds"

    return call


def asked_to_wait(value: str | Callable[[], str], least: float, most: float) -> Provocation:
    def provoke(world: World) -> Call:
        world.fail(status(429, Retry_After=value if isinstance(value, str) else value()))

        def call() -> ISANet:
            started = time.monotonic()
            model = world.load()
            assert least <= time.monotonic() - started < most
            return model

        return call

    return provoke


def never_better(world: World) -> Call:
    """Two addresses that ask to try later, and one deadline for both."""
    world.patience(deadline=1, retries=1000)
    world.two_addresses()
    world.server.plan = {path: [status(503)] * 1000 for path in (ADDRESS, OTHER_ADDRESS)}

    def call() -> None:
        started = time.monotonic()
        try:
            world.load()
        finally:
            assert time.monotonic() - started < 30, "two addresses, one deadline"

    return call


def token_to_another_host(world: World) -> Call:
    """The Hub redirects to another server, as it does for large files."""
    folder = world.tmp / "pushed"
    world.load().save_pretrained(folder)
    repo_id = f"org/hostile-{os.getpid()}-{time.monotonic_ns()}"
    world.hub.add_repo(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()}, private=True)
    weights = (folder / "model.safetensors").read_bytes()
    elsewhere = world.undo.enter_context(FileServer())
    elsewhere.files["/storage"] = weights
    answer, tokens = world.hub.answer, list[bool]()

    def sent_on(method: str, target: str, headers: Any, body: bytes) -> Reply:
        reply = answer(method, target, headers, body)
        if not target.endswith("model.safetensors"):
            return reply
        tokens.append("Authorization" in headers)
        kept = {key: value for key, value in reply.headers.items() if key.startswith("X-")}
        return Reply(b"", 302, {**kept, "Location": elsewhere.url + "/storage"})

    world.patch.setattr(world.hub, "answer", sent_on)

    def call() -> ISANet:
        model = isanet.from_pretrained(repo_id, token=world.hub.token)
        assert all(tokens), "the Hub itself needs it"
        assert elsewhere.requests
        assert not any(name.lower() == "authorization" for _, _, headers in elsewhere.requests for name in headers)
        return model

    return call


def untrusted(world: World) -> Call:
    world.patch.delenv("REQUESTS_CA_BUNDLE")

    def call() -> None:
        try:
            world.load()
        finally:
            assert world.server.requests == [], "neither downgraded nor asked"

    return call


def offline_and_cached(world: World) -> Call:
    world.cached()
    world.offline()
    return world.load


def offline_and_not(world: World) -> Call:
    world.offline()
    return world.load


# --- files --------------------------------------------------------------------------------------------------


def full_disk(size: str, *faults: Fault | str) -> Provocation:
    """A cache on a real disk of this size."""

    def provoke(world: World) -> Call:
        disk = world.tmp / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        world.undo.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        (disk / "earlier").write_bytes(b"earlier")
        world.patch.setenv("ISANET_HOME", str(disk))
        world.fail(*faults)
        return world.load

    return provoke


def limited_files(size: int) -> Provocation:
    """No file may grow beyond this size, as under a quota."""

    def provoke(world: World) -> Call:
        return partial(within, size, world.load)

    return provoke


def within(size: int, call: Call) -> object:
    """The result of a call during which no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write to the folder, not even root, who becomes another user meanwhile."""
    if folder.exists():
        for path in [*folder.iterdir(), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
        if folder.exists():
            folder.chmod(0o755)


def read_only_cache(place: str, call: Callable[[], object]) -> Provocation:
    def provoke(world: World) -> Call:
        base = Path(world.undo.enter_context(tempfile.TemporaryDirectory()))  # pytest's own is for one user alone
        base.chmod(0o755)
        (base / "empty").mkdir(mode=0o755)
        world.patch.setenv("ISANET_HOME", str(base / "full"))
        manifest = base / "weights.json"
        shutil.copy(world.tmp / "weights.json", manifest)
        world.patch.setattr("isanet.weights.manifest.manifest_path", lambda: manifest)
        certificate = base / "certificate.pem"
        shutil.copy(os.environ["REQUESTS_CA_BUNDLE"], certificate)
        world.patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        world.cached()
        world.patch.setenv("ISANET_HOME", str(base / place))
        before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}

        def as_nobody() -> object:
            with read_only(base / place.partition("/")[0]):
                with pytest.raises(PermissionError):
                    (base / place.partition("/")[0] / "probe").touch()
                try:
                    return call()
                finally:
                    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before

        return as_nobody

    return provoke


def eight_at_once(world: World) -> Call:
    upstream = world.file("upstream.pth", world.released)
    settings = {"MANIFEST": str(world.tmp / "weights.json"), "NAME": NAME, "UPSTREAM": str(upstream)}

    def call() -> None:
        lines = output(python(EIGHT, **settings)).splitlines()
        assert len(lines) == 8
        assert len(set(lines)) == 1
        assert json.loads(lines[0])[1] == sha256(world.released).hexdigest()
        assert len(world.server.requests) == 1
        assert len(list(world.home.glob(f"{NAME}-*.safetensors"))) == 1

    return call


COMMAND = (
    "import isanet.weights.manifest, pathlib, sys\n"
    "isanet.weights.manifest.manifest_path = lambda: pathlib.Path(sys.argv[1])\n"
    "from isanet.cli.run import main\n"
    "sys.exit(main(sys.argv[2:]))\n"
)
"""The command, with a manifest of its own."""


def command_elsewhere(world: World, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(world.tmp / "weights.json"), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def killed(world: World) -> Call:
    """The command is killed while it downloads: the hundreds of other moments are in test_crash.py."""
    world.fail(trickle(1000, 0.02))
    with command_elsewhere(world, "download", NAME) as process:
        until = time.monotonic() + BOUND
        while not any(path.stat().st_size for path in world.home.glob("*.part")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    (part,) = world.home.glob(".isanet-*.part")
    os.utime(part, (0, 0))  # older than an hour: the next download removes it
    return world.load


def locked(alive: bool) -> Provocation:
    """Another process holds the lock and does nothing, or did."""

    def provoke(world: World) -> Call:
        world.patch.setattr(cache, "LOCK_TIMEOUT", 0.5)
        holder = python(
            f"from isanet.weights import cache\nwith cache.lock({NAME!r}):\n print('held', flush=True)\n input()"
        )
        world.undo.callback(holder.__exit__, None, None, None)
        world.undo.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if not alive:
            holder.kill()
            holder.wait()
            assert (world.home / f"{NAME}.lock").exists()
        return world.load

    return provoke


def damaged(damage: Callable[[bytes], bytes], offline: bool = False) -> Provocation:
    def provoke(world: World) -> Call:
        path = world.cached()
        path.write_bytes(damage(path.read_bytes()))
        if offline:
            world.offline()

        def call() -> ISANet:
            model = world.load()
            assert len(world.server.requests) == 1, "it was fetched again"
            return model

        return call

    return provoke


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def planted(name: str) -> Provocation:
    """A link to one of the user's files, where the cache will write."""

    def provoke(world: World) -> Call:
        cached = world.cached()
        data = cached.read_bytes()
        for path in world.home.glob(f"{NAME}*"):
            path.unlink()
        world.patch.setattr(checkpoint, "serialize", lambda *_: data)  # so that the name is known before
        place = world.home / name.format(converted=cached.name)
        place.symlink_to(world.file("diary.txt", b"dear diary"))

        def call() -> object:
            result = world.load() if "lock" in name else run("download", NAME, "--keep")
            assert result == 0
            assert not place.is_symlink()
            return world.load()

        return call

    return provoke


def swapped_after_hashing(world: World) -> Call:
    """The cached file changes between being hashed and being parsed."""
    path = world.cached()
    read = checkpoint.read_safetensors

    def swap(file: Any) -> Any:
        path.write_bytes(bytes(len(path.read_bytes())))
        return read(file)

    world.patch.setattr(checkpoint, "read_safetensors", swap)
    return world.load


# --- checkpoints --------------------------------------------------------------------------------------------


def opened(data: bytes) -> Provocation:
    """An untrusted file, in an environment that allows pickles."""

    def provoke(world: World) -> Call:
        world.patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        world.patch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
        path = world.file("given.pth", data)

        def call() -> object:
            tracemalloc.start()
            try:
                return isanet.from_pretrained(path)
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 100 << 20, "it took too much memory"
                assert not (world.tmp / hostile.MARKER).exists(), "it was run"

        return call

    return provoke


def zeros_unpacked(size: int) -> bytes:
    """A few kB that become `size` bytes."""
    return archive(tensor(), {"data/0": bytes(size)}, zipfile.ZIP_DEFLATED)


VARIANCE = "backbone_net.stem.1.running_var"
BIAS = "decoder.1.bias"


def with_tensors(changes: dict[str, Any]) -> bytes:
    """The released file with some tensors replaced; None removes one."""
    state = {**tiny_zoo.upstream_state(), **changes}
    return tiny_zoo.saved({"model": {key: value for key, value in state.items() if value is not None}})


def released_with(changes: dict[str, Any]) -> Provocation:
    def provoke(world: World) -> Call:
        world.server.files[ADDRESS] = with_tensors(changes)
        return world.load

    return provoke


# --- images -------------------------------------------------------------------------------------------------


def segmented(make: Callable[[World], Any], size: tuple[int, int] | None = None, **options: Any) -> Provocation:
    """An image is segmented; `size` is what the labels must have."""

    def provoke(world: World) -> Call:
        segmenter, source = isanet.Segmenter(NAME, **options), make(world)

        def call() -> None:
            labels = segmenter(source).labels
            assert labels.shape == size

        return call

    return provoke


def equal_to(make: Callable[[World], tuple[Any, Any]]) -> Provocation:
    """An image of some kind, and the RGB array that it must be read as."""

    def provoke(world: World) -> Call:
        segmenter, (source, expected) = isanet.Segmenter(NAME), make(world)

        def call() -> None:
            np.testing.assert_array_equal(segmenter(source).labels, segmenter(np.ascontiguousarray(expected)).labels)
            np.testing.assert_array_equal(isanet.images.reading.read_image(source), expected)

        return call

    return provoke


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, shape, dtype=np.uint8)


def saved_as(image: Image.Image, name: str, **options: Any) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        image.save(world.tmp / name, **options)
        return world.tmp / name

    return make


def huge_png() -> bytes:
    """The header of an image of 60,000 x 60,000 pixels, in a small file."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def kinds() -> dict[str, Provocation]:
    rgb = noise(24, 32, 3)
    gray, deep = rgb[..., 0], noise(24, 32).astype(np.uint16) * 257
    palette = Image.fromarray(gray % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    looked_up = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]], np.uint8)[gray % 4]
    turned = Image.Exif()
    turned[0x0112] = 6
    red = np.full((24, 32, 3), (254, 0, 0), np.uint8)

    def case(image: Image.Image, expected: np.ndarray, suffix: str = "png", **options: Any) -> Provocation:
        make = saved_as(image, f"kind.{suffix}", **options)
        return equal_to(lambda world: (make(world), expected))

    cmyk = Image.new("CMYK", (32, 24), (0, 255, 255, 0))
    return {
        "L is three equal channels": case(Image.fromarray(gray), np.stack([gray] * 3, -1)),
        "P is looked up": case(palette, looked_up),
        "RGBA loses its alpha": case(Image.fromarray(np.dstack([rgb, gray])), rgb),
        "of 16 bits the high byte": case(Image.fromarray(deep), np.stack([(deep // 256).astype(np.uint8)] * 3, -1)),
        "CMYK as Pillow converts it": case(cmyk, np.asarray(cmyk.convert("RGB")), "tif"),
        "EXIF is applied": case(Image.fromarray(np.rot90(rgb)), rgb, exif=turned),
        "EXIF of JPEG too": segmented(saved_as(Image.fromarray(red), "turned.jpg", exif=turned), (32, 24)),
    }


# --- masks and datasets ------------------------------------------------------------------------------------


def own_folder(*traps: str, write: Callable[[Path, Any], object] = replicas.save, **options: Any) -> Provocation:
    """All samples of your own folder are read, and are what was drawn."""

    def provoke(world: World) -> Call:
        replica = replicas.folder(world.tmp / "mine", write=write, traps=traps)[None]

        def call() -> None:
            data = datasets.Folder(world.tmp / "mine", **options)
            assert data.keys == replica.keys
            for index, key in enumerate(data.keys):
                np.testing.assert_array_equal(data.read(index)[1], replica.masks[key])

        return call

    return provoke


def in_colors(path: Path, values: Any) -> None:
    replicas.save(path, replicas.paint(values, isanet.labels.custom_space(CLASSES, name="mine")))


def empty_set(world: World) -> Call:
    root = world.tmp / "mine"
    replicas.folder(root)
    for path in [*(root / "images").iterdir(), *(root / "masks").iterdir()]:
        path.unlink()
    return lambda: datasets.Folder(root)


def evaluated(damage: Callable[[replicas.Replica], object]) -> Provocation:
    """A dataset of five images, one of them bad, is evaluated."""

    def provoke(world: World) -> Call:
        replica = replicas.voc(world.tmp / "voc", val=5)["val"]
        model = world.load()
        damage(replica)

        def call() -> None:
            report = isanet.evaluate(model, datasets.VOC2012(world.tmp / "voc"), workers=0, progress=False)
            assert report.num_images == 5

        return call

    return provoke


def listed(*traps: str) -> Provocation:
    def provoke(world: World) -> Call:
        replica = replicas.voc(world.tmp / "voc", val=5, traps=traps)["val"]

        def call() -> None:
            data = datasets.VOC2012(world.tmp / "voc")
            assert data.keys == replica.keys
            np.testing.assert_array_equal(data.read(0)[1], replica.masks[replica.first])

        return call

    return provoke


# --- manifest -----------------------------------------------------------------------------------------------


def manifest_with(old: str, new: str) -> Provocation:
    def provoke(world: World) -> Call:
        path = world.tmp / "weights.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return world.load

    return provoke


# --- command line -------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    return cli.main([str(argument) for argument in arguments])


def command(*arguments: str, code: int, line: str) -> Provocation:
    """One line on standard error, and the code."""

    def provoke(world: World) -> Call:
        world.image("images/a.png")

        def call() -> None:
            world.capture.readouterr()
            try:
                found = run(*arguments)
            except SystemExit as stop:
                found = int(stop.code or 0)
            error = world.capture.readouterr().err
            assert found == code
            assert line in error
            assert "Traceback" not in error
            if code == 1:
                assert [each for each in error.splitlines() if "error" in each] == error.splitlines()[-1:]

        return call

    return provoke


def existing_output(world: World) -> Call:
    world.image("images/a.png")
    output = world.tmp / "segmented" / "a_overlay.png"
    output.parent.mkdir()
    output.write_bytes(b"mine")

    def call() -> None:
        assert run("segment", "images", "--model", NAME) == 0
        assert output.read_bytes() == b"mine"
        assert "1 kept (their outputs exist; --force replaces them)" in world.capture.readouterr().err

    return call


def input_as_output(world: World) -> Call:
    world.image("images/a.png")
    world.image("images/a_overlay.png")

    def call() -> None:
        before = world.files()
        assert run("segment", "images/a.png", "images/a_overlay.png", "--model", NAME, "--output", "images",
                   "--force") == 1  # fmt: skip
        assert "already taken by" in world.capture.readouterr().err
        assert before.items() <= world.files().items()

    return call


def outputs_whole(world: World) -> Call:
    """An overlay for which there is no space."""
    world.cached()
    world.image("images/a.png", (200, 200))

    def call() -> None:
        before = world.files()
        assert within(5000, partial(run, "segment", "images", "--model", NAME)) == 1
        assert "cannot write the outputs of images/a.png to segmented: File too large" in world.capture.readouterr().err
        assert world.files() == before

    return call


def one_bad_among_many(world: World) -> Call:
    for i in range(100):
        world.image(f"images/{i}.png", (8, 8))
    world.file("images/50.png", b"<html>")

    def call() -> None:
        assert run("segment", "images", "--model", NAME, "--batch-size", "8") == 1
        error = world.capture.readouterr().err
        assert "images/50.png" in error
        assert "99 segmented, 1 failed" in error
        assert len(list((world.tmp / "segmented").iterdir())) == 99

    return call


def interrupted(world: World) -> Call:
    world.cached()
    for i in range(2000):
        world.image(f"images/{i}.png", (8, 8))
    written = world.tmp / "segmented"

    def call() -> None:
        with command_elsewhere(world, "segment", "images", "--model", NAME) as process:
            until = time.monotonic() + BOUND
            while not (written.is_dir() and any(written.glob("*.png"))) and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=BOUND)
        assert process.returncode == 130, error
        assert b"Traceback" not in error
        assert 0 < len(list(written.iterdir())) < 2000
        for path in written.iterdir():
            with Image.open(path) as image:
                image.load()

    return call
