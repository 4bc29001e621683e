"""Batches for training that depend on the seed and the step alone: not on workers, processes, or where a run went on.

The images of all epochs stand in one row, each epoch in an order of its own, and the row is cut into steps of equal
length. So every image is seen exactly as often as there are epochs, there is no short last batch, and sizes of
batches differ by one at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from isanet.datasets.base import SegmentationDataset
from isanet.errors import IsanetError
from isanet.training.recipe import Recipe


class Place(NamedTuple):
    """One image in one epoch."""

    epoch: int
    image: int


def seed_of(*parts: object) -> int:
    """A seed of 63 bits for something that is drawn at random, from what it is."""
    return int.from_bytes(sha256(" ".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Batches(Sampler[list[Place]]):
    """What one process takes in each step of the optimizer.

    Args:
        images: Number of images of the dataset.
        recipe: Its epochs, batch_size, accumulate and seed.
        rank: Of the process.
        world: Number of processes; images of a step are dealt out among them, in turn.

    Attributes:
        steps: Number of steps in all.
        start: The step to begin with, for a run that goes on.

    Raises:
        ValueError: A step has fewer images than there are processes and parts.
    """

    def __init__(self, images: int, recipe: Recipe, rank: int = 0, world: int = 1) -> None:
        self.images, self.seed, self.rank, self.world = images, recipe.seed, rank, world
        self.total = images * recipe.epochs
        self.steps = -(-self.total // recipe.batch_size)
        self.start = 0
        smallest = self.total // self.steps
        if smallest < world * recipe.accumulate:
            raise ValueError(
                f"a step of {smallest} of {self.total} images (epochs x images) cannot be shared out among {world} "
                f"processes and {recipe.accumulate} parts: each needs one at least; take fewer, or a larger batch_size"
            )

    def seen(self, step: int) -> int:
        """Number of images before a step, over all epochs and processes."""
        return step * self.total // self.steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        orders: dict[int, list[int]] = {}
        for step in range(self.start, self.steps):
            row = range(self.seen(step), self.seen(step + 1))
            orders = {
                epoch: orders.get(epoch) or self._order(epoch)
                for epoch in range(row[0] // self.images, row[-1] // self.images + 1)
            }
            places = [Place(at // self.images, orders[at // self.images][at % self.images]) for at in row]
            yield places[self.rank :: self.world]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        order: list[int] = torch.randperm(self.images, generator=generator).tolist()
        return order


class Samples(Dataset[Any]):
    """Augmented images; what is drawn at random depends on the seed, the epoch and the image alone.

    An error is a value, because raised in a worker it would lose its message.
    """

    def __init__(self, dataset: SegmentationDataset, transforms: Any, seed: int) -> None:
        self.dataset, self.transforms, self.seed = dataset, transforms, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor] | IsanetError:
        try:
            image, mask = self.dataset.pair(place.image)
        except IsanetError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("sample", self.seed, *place))
            image_3HW, mask_HW = self.transforms(image, mask)
        return image_3HW, mask_HW


def collate(samples: Sequence[tuple[Tensor, Tensor] | IsanetError]) -> tuple[Tensor, Tensor] | IsanetError | ValueError:
    """Images (N, 3, H, W) and masks (N, H, W), or the first error."""
    pairs = []
    for sample in samples:
        if isinstance(sample, IsanetError):
            return sample
        pairs.append(sample)
    if len({(image.shape, mask.shape) for image, mask in pairs}) > 1:
        sizes = ", ".join(sorted({f"{tuple(image.shape)} and {tuple(mask.shape)}" for image, mask in pairs})[:3])
        return ValueError(f"the dataset's transforms must give images and masks of one size; they gave {sizes}")
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])
