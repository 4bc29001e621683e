"""Crash: processes that fetch a model are killed, hundreds of times, and the cache is then the good old one or the new.

A process dies at its n-th step that touches the cache or the network, for every n; or as its file reaches a certain
byte, where the kernel kills it (a limit on the size of files); or at a random moment. Eight at a time, each in
a cache of its own, or all in one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import tiny_zoo
from tests.helpers.file_server import FileServer
from tests.helpers.processes import FORKS, output, python
from tests.helpers.tiny_zoo import FILE_NAME, NAME

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals and limits")

CRASH = (
    FORKS
    + """
import re, resource
from hashlib import sha256
from isanet.weights import checkpoint

random.seed(int(os.environ["SEED"]))
EXPECTED = float(os.environ["EXPECTED"])
BASE = cache.home()
SHARED = BASE / "shared"
counted = dict.fromkeys(("kills", "survivors", "checks", "left"), 0)
longest = 0.0

def killed_at_step(fatal, waiting):
    '''Kills this process at its n-th step; those of waiting for a lock count only where nobody else has it.'''
    steps = 0
    def count(event, arguments):
        nonlocal steps
        texts = [part for part in map(str, arguments) if part.startswith(str(BASE))]
        lock = event == "fcntl.flock" or any(text.endswith(".lock") for text in texts)
        if (waiting if lock else texts or event == "socket.connect"):
            steps += 1
            if steps == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def killed_at_byte(fatal):
    '''From now on a file that grows beyond so many bytes is the end.'''
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (fatal, fatal))

def before_it(module, name, act):
    function = getattr(module, name)
    def wrapped(*arguments, **options):
        act()
        return function(*arguments, **options)
    setattr(module, name, wrapped)

def fetch(home, point, version):
    '''The work of a process that dies at a point: (kind, number).'''
    def work():
        os.environ["ISANET_HOME"] = str(home)
        released.__version__ = f"0.{version}"  # so that every conversion writes another file
        kind, fatal = point
        if kind == "step":
            killed_at_step(fatal, waiting=home != SHARED)
        elif kind == "download":
            killed_at_byte(fatal)
        elif kind == "converted":
            before_it(released, "atomic_write", lambda: killed_at_byte(fatal))
        elif kind == "record":
            before_it(cache, "write_record", lambda: killed_at_byte(fatal))
        released.load(isanet.model_info(NAME), force=True)
    return work

def ended(pids):
    '''Waits for all; returns which were killed.'''
    global longest
    started, killed = time.monotonic(), []
    for pid in pids:
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:
            assert time.monotonic() - started < 150, "a lock blocks"
            time.sleep(0.001)
        status = found[1]
        assert status in (0, signal.SIGKILL, signal.SIGXFSZ), f"status {status}"
        killed.append(status != 0)
    longest = max(longest, time.monotonic() - started)
    counted["kills"] += sum(killed)
    counted["survivors"] += len(killed) - sum(killed)
    return killed

def check(home, had):
    '''The cache is whole: what was there before, or what came; every file under its own name is what it says.'''
    os.environ["ISANET_HOME"], os.environ["ISANET_OFFLINE"] = str(home), "1"
    cached = cache.cached_file(NAME)
    assert cached is not None or not had, "the earlier model is gone"
    assert (cached is None) == (cache.read_record(NAME) is None), "record and file disagree"
    if cached is not None:
        released.verify(isanet.model_info(NAME))
        network, _ = released.load(isanet.model_info(NAME))
        assert digest(network) == EXPECTED, "the wrong model"
    for path in home.iterdir() if home.exists() else ():
        named = re.fullmatch(NAME + r"-([0-9a-f]{8})\\.safetensors", path.name)
        if named:
            assert sha256(path.read_bytes()).hexdigest().startswith(named[1]), "half a file"
        else:
            assert re.fullmatch(rf"{NAME}\\.(json|lock)|\\.isanet-.*\\.part", path.name), path.name
    counted["left"] = max(counted["left"], len(list(home.glob("*.part"))))
    counted["checks"] += 1
    del os.environ["ISANET_OFFLINE"]
    return cached is not None

def eights(points):
    points = list(points)
    return [points[i : i + 8] for i in range(0, len(points), 8)]

def next_run(home):
    '''Succeeds, and takes away what was left.'''
    for path in home.glob("*.part"):
        os.utime(path, (0, 0))
    assert ended([child(fetch(home, ("none", 0), 10_000))]) == [False]
    assert check(home, had=True)
    names = {path.name for path in home.iterdir() if path.suffix != ".lock"}
    assert names == {f"{NAME}.json", cache.cached_file(NAME).name}

# Each in an empty cache of its own, at every step until it lives
steps, lives = 0, False
while not lives:
    homes = [BASE / f"own{steps + i + 1}" for i in range(8)]
    killed = ended([child(fetch(home, ("step", steps + i + 1), 0)) for i, home in enumerate(homes)])
    for home in homes:
        check(home, had=False)
    lives = not all(killed)
    assert killed == sorted(killed, reverse=True)
    steps += sum(killed)
sizes = {"download": os.path.getsize(os.environ["UPSTREAM"])}
os.environ["ISANET_HOME"] = str(homes[-1])
sizes["converted"] = cache.cached_file(NAME).stat().st_size
sizes["record"] = (homes[-1] / f"{NAME}.json").stat().st_size
next_run(BASE / "own1")

def bytes_of(kind, number):
    drawn = [random.randrange(sizes[kind]) for _ in range(number)]
    return [(kind, place) for place in [0, 1, sizes[kind] - 1, *drawn]]

all_bytes = [*bytes_of("download", 24), *bytes_of("converted", 24), *bytes_of("record", 9)]
for number, points in enumerate(eights(all_bytes[::3])):
    homes = [BASE / f"bytes{number}-{i}" for i in range(8)]
    killed = ended([child(fetch(home, point, 0)) for home, point in zip(homes, points)])
    assert all(killed), points
    assert not any([check(home, had=False) for home in homes])

# All in one cache, where the model is; who has the lock dies, and the next goes on
next_run(SHARED)
points = [*(("step", n + 1) for n in range(steps) for _ in range(ROUNDS)), *all_bytes, *all_bytes]
random.shuffle(points)
version = 0
for group in eights(points):
    version += 8
    ended([child(fetch(SHARED, point, version + i)) for i, point in enumerate(group)])
    check(SHARED, had=True)

# At any moment
started = time.monotonic()
assert ended([child(fetch(SHARED, ("none", 0), version + 9))]) == [False]
usual = time.monotonic() - started
for _ in range(6):
    version += 20
    pids = [child(fetch(SHARED, ("none", 0), version + i)) for i in range(8)]
    for pid in pids:
        time.sleep(random.uniform(0, 1.2 * usual))
        os.kill(pid, signal.SIGKILL)  # those that have ended are not waited for yet, so none is another's
    ended(pids)
    check(SHARED, had=True)
next_run(SHARED)
print(json.dumps({"steps": steps, "longest": round(longest, 1), **counted}))
""".replace("ROUNDS", "2")
)


def test_killed_at_any_moment_the_cache_is_whole(tiny: FileServer, tmp_path: Path) -> None:
    upstream = tiny.files[f"/{FILE_NAME}"]
    assert isinstance(upstream, bytes)
    (tmp_path / "upstream.pth").write_bytes(upstream)
    settings = {
        "MANIFEST": str(tmp_path / "weights.json"),
        "UPSTREAM": str(tmp_path / "upstream.pth"),
        "NAME": NAME,
        "SEED": "0",
        "EXPECTED": repr(sum(float(value.double().sum()) for value in tiny_zoo.upstream_state().values())),
        "OMP_NUM_THREADS": "1",
    }
    found = json.loads(output(python(CRASH, **settings), timeout=500).splitlines()[-1])
    print(found)
    assert found["steps"] > 10
    assert found["kills"] > 200
    assert found["left"] > 0, "none was killed while it wrote"
