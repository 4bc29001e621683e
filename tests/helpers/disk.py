"""A disk that fills up."""

from __future__ import annotations

import os

import pytest


def full_at(monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    """The disk has no space for the `file`-th file that is flushed to it, counted from 1; the others succeed."""
    fsync, flushed = os.fsync, []

    def flush(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == file:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
