"""Segmentation metrics under their public name; `isanet.evaluation` has the code."""

from isanet.evaluation.boundary import BoundaryScore
from isanet.evaluation.metrics import ConfusionMatrix

__all__ = ["BoundaryScore", "ConfusionMatrix"]


def __dir__() -> list[str]:
    return __all__
