"""Worker processes: where they cannot start or end early, one line says so and what to do."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isanet._processes import checked_workers, read_ahead
from isanet.errors import IsanetError

ROOT = Path(__file__).parents[2]

GUARD = r'if __name__ == "__main__":.*workers=0'


class Numbers:
    """A dataset that a worker process can end of."""

    action: Any = None

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2 and self.action is not None:
            self.action()
        return index


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended() -> None:
    os._exit(3)


def read(dataset: Any, workers: int = 1, **options: Any) -> list[int]:
    with read_ahead(dataset, workers=workers, batch_size=None, **options) as items:
        return list(items)


def test_items_are_read_in_order() -> None:
    for workers in (0, 2):
        assert read(Numbers(), workers) == [0, 1, 2, 3]


@pytest.mark.parametrize("action", [killed, ended])
@pytest.mark.parametrize(("method", "says"), [("fork", "if memory ran out, use fewer workers"), ("spawn", GUARD)])
def test_a_worker_that_ends_is_one_line(monkeypatch: pytest.MonkeyPatch, action: Any, method: str, says: str) -> None:
    numbers = Numbers()
    numbers.action = action
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    with pytest.raises(IsanetError, match=rf"^a process that reads images has ended [^\n]*{says}[^\n]*$") as caught:
        read(numbers)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_cannot_be_sent_to_a_worker_is_one_line(method: str) -> None:
    numbers = Numbers()
    numbers.action = lambda: None
    with pytest.raises(IsanetError, match=r"^what reads the images cannot be sent [^\n]*workers=0[^\n]*$"):
        read(numbers, multiprocessing_context=method)


def test_a_worker_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(multiprocessing.Process, "start", lost)
    with pytest.raises(IsanetError, match=rf"^worker processes cannot start [^\n]*{GUARD}[^\n]*$"):
        read(Numbers())


def test_errors_of_the_loop_stay_what_they_are() -> None:
    for error in (RuntimeError("out of memory"), OSError("disk"), ValueError("x")):
        with pytest.raises(type(error)) as caught, read_ahead(Numbers(), workers=0, batch_size=None):  # type: ignore[arg-type]
            raise error
        assert caught.value is error


# --- scripts without a guard

CALL = "from isanet._processes import checked_workers\n"

UNGUARDED = {
    "a line": "result = checked_workers(None)\n",
    "a function": "def main():\n    return checked_workers(None)\n\nresult = main()\n",
    "another if": "if True:\n    name = __name__\n    result = checked_workers(None)\n",
    "after a guard": 'if __name__ == "__main__":\n    pass\nresult = checked_workers(None)\n',
    "several lines": "result = checked_workers(\n    None,\n)\n",
}

GUARDED = {
    "a guard": 'if __name__ == "__main__":\n    result = checked_workers(None)\n',
    "a function": 'def main():\n    return checked_workers(None)\n\nif __name__ == "__main__":\n    result = main()\n',
    "turned": "if '__main__' == __name__ and True:\n    result = checked_workers(None)\n",
    "one line": 'result = checked_workers(None) if __name__ == "__main__" else 0\n',
    "in a try": 'try:\n    if __name__ == "__main__":\n        result = checked_workers(None)\nfinally:\n    pass\n',
}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", [*UNGUARDED, *(f"guarded: {kind}" for kind in GUARDED)])
def test_the_default_is_no_workers_where_a_script_has_no_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, method: str
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    caplog.set_level(logging.INFO, "isanet")
    guarded = kind.startswith("guarded")
    script = tmp_path / "script.py"
    script.write_text(CALL + (GUARDED[kind.partition(": ")[2]] if guarded else UNGUARDED[kind]))
    plain = guarded or method == "fork"
    assert runpy.run_path(str(script), run_name="__main__")["result"] == (None if plain else 0)
    assert ("no worker processes" in caplog.text) is not plain
    if not plain:
        script.write_text(script.read_text().replace("None", "2"))
        with pytest.raises(ValueError, match=rf"^worker processes \({method}\) would run this script again.*{GUARD}$"):
            runpy.run_path(str(script), run_name="__main__")
        script.write_text(script.read_text().replace("2", "0"))
        assert runpy.run_path(str(script), run_name="__main__")["result"] == 0


def test_where_there_is_no_script_nothing_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert checked_workers(None) is None
    assert checked_workers(2) == 2
    scope: dict[str, Any] = {"__name__": "__main__", "checked_workers": checked_workers}
    exec(compile("result = checked_workers(None)", "<prompt>", "exec"), scope)
    assert scope["result"] is None


SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[1], force=True)  # the worker has set it already
import isanet

def main():
    scenes = isanet.datasets.ToyStreets(2, size=(32, 32))
    report = isanet.evaluate("isanet_nano_toystreets", scenes, workers=1, device="cpu", progress=False)
    print("measured", report.num_images)

{call}
"""


@pytest.mark.parametrize(
    ("method", "call", "expected"),
    [
        ("spawn", "main()", "error"),
        ("spawn", 'if __name__ == "__main__": main()', "measured 2"),
        ("forkserver", 'if __name__ == "__main__": main()', "measured 2"),
    ],
)
def test_a_script_runs_or_ends_by_one_line(tmp_path: Path, method: str, call: str, expected: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(call=call))
    result = subprocess.run(
        [sys.executable, str(script), method],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if expected == "error":
        assert result.returncode == 1
        last = result.stderr.splitlines()[-1]
        assert last.startswith("ValueError: worker processes")
        assert 'if __name__ == "__main__":' in last
        assert result.stderr.count("Traceback") == 1  # that of the call
    else:
        assert (result.returncode, result.stdout) == (0, f"{expected}\n"), result.stderr
        assert "Traceback" not in result.stderr


def test_workers_end_with_the_block_though_the_error_is_kept() -> None:
    """Otherwise the process would wait at its end for workers that wait for it."""
    script = """
from isanet._processes import read_ahead
from tests.ground.test_processes import Numbers
try:
    with read_ahead(Numbers(), workers=1, batch_size=None) as items:
        next(items)
        raise ValueError
except ValueError as error:
    kept = error
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=100)
