from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isanet import datasets
from isanet.labels import LABEL_SPACES
from isanet.viz import charts
from tests.helpers import replicas
from tests.helpers.color_model import ColorModel


@pytest.fixture
def cityscapes(tmp_path: Path) -> datasets.SegmentationDataset:
    replicas.cityscapes(tmp_path / "data", val=7)
    return datasets.Cityscapes(tmp_path / "data", "val")


@pytest.fixture
def model() -> Any:
    return ColorModel(LABEL_SPACES["cityscapes19"])


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for the two charts: drawing is slow."""
    for name, value in (("confusion_chart", None), ("iou_chart", None), ("to_png", b"")):
        monkeypatch.setattr(charts, name, lambda *_, value=value: value)
