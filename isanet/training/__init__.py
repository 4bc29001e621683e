"""Training: `isanet.finetune` turns a model, datasets and a `Recipe` into a trained model, its history and a report.

The pieces for your own loop are here:

    freeze(model)                                                             # optional, before the optimizer
    optimizer, schedule = poly_sgd(model, lr=0.01, steps=1000)
    for images, masks in batches:
        loss = segmentation_loss(*model(images, aux=True), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
"""

from isanet.training.loss import OHEM, loss_weight, segmentation_loss
from isanet.training.optim import freeze, keep_statistics, optimizer_and_schedule, poly_schedule, poly_sgd
from isanet.training.recipe import Recipe

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


def __dir__() -> list[str]:
    return __all__
