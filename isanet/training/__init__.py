"""Training: the recipe and its pieces for a loop of your own; `isanet.finetune` puts them together.

A model and datasets come in; a trained model, its history and a report go out.
"""

from isanet.training.recipe import (
    OHEM,
    Recipe,
    freeze,
    keep_statistics,
    loss_weight,
    optimizer_and_schedule,
    poly_schedule,
    poly_sgd,
    segmentation_loss,
)

__all__ = [
    "OHEM",
    "Recipe",
    "freeze",
    "keep_statistics",
    "loss_weight",
    "optimizer_and_schedule",
    "poly_schedule",
    "poly_sgd",
    "segmentation_loss",
]
