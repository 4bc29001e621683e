"""Progress bars that are reported instead of shown."""

from __future__ import annotations

import threading

import pytest

from isanet._progress import progress_bar, reported_bars


def test_bars_tell_a_function_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, float, float | None]] = []
    with reported_bars(lambda *what: told.append(what)):
        with progress_bar(show=None, desc="file.pth", total=None, mininterval=0) as bar:
            bar.total = 30
            bar.update(10)
            bar.update(20)
        other = threading.Thread(target=lambda: list(progress_bar([1], show=False)))
        other.start()
        other.join()
    assert told[0][:2] == ("file.pth", 0)
    assert ("file.pth", 10, 30) in told
    assert told[-1] == ("file.pth", 30, 30)
    told.clear()
    assert list(progress_bar([1, 2], show=False)) == [1, 2]
    assert told == []
    assert capsys.readouterr() == ("", "")
