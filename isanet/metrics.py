"""Metrics of semantic segmentation, under their public name; `isanet.evaluation.metrics` has the code."""

from isanet.evaluation.metrics import BoundaryScore, ConfusionMatrix

__all__ = ["BoundaryScore", "ConfusionMatrix"]
