"""Training batches that depend only on the seed and the step, not on workers, processes, or where a run was resumed.

The images of all epochs form one sequence, each epoch in its own order, which is cut into steps of equal length. So
every image is seen exactly once per epoch, there is no short last batch, and batch sizes differ by at most one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from isanet._text import listed
from isanet.datasets.base import SegmentationDataset
from isanet.errors import IsanetError
from isanet.training.recipe import Recipe


class Draw(NamedTuple):
    """One image in one epoch."""

    epoch: int
    image: int


def seed_of(*parts: object) -> int:
    """A 63-bit seed, derived from what it is for."""
    return int.from_bytes(sha256(" ".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Batches(Sampler[list[Draw]]):
    """One process's images in each optimizer step; the images of a step are dealt out among the processes in turn.

    Attributes:
        steps: Total number of steps.
        total: Total number of images, over all epochs and processes.
        start: The first step to yield, for a resumed run.

    Raises:
        ValueError: A step has fewer images than there are processes and gradient accumulation steps.
    """

    def __init__(self, num_images: int, recipe: Recipe, rank: int = 0, world_size: int = 1) -> None:
        self.num_images, self.seed, self.rank, self.world_size = num_images, recipe.seed, rank, world_size
        self.total = num_images * recipe.epochs
        self.steps = -(-self.total // recipe.batch_size)
        self.start = 0
        smallest = self.total // self.steps
        if smallest < world_size * recipe.accumulate:
            raise ValueError(
                f"a step of {smallest} of {self.total} images (epochs x images) cannot be divided among {world_size} "
                f"processes and {recipe.accumulate} accumulation steps: each needs at least one image; use fewer, or a "
                "larger batch_size"
            )

    def seen(self, step: int) -> int:
        """Number of images seen before a step, over all epochs and processes."""
        return step * self.total // self.steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        orders: dict[int, list[int]] = {}
        for step in range(self.start, self.steps):
            positions = [divmod(index, self.num_images) for index in range(self.seen(step), self.seen(step + 1))]
            epochs = sorted({epoch for epoch, _ in positions})
            orders = {epoch: orders.get(epoch) or self._order(epoch) for epoch in epochs}
            yield [Draw(epoch, orders[epoch][index]) for epoch, index in positions][self.rank :: self.world_size]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, epoch))
        order: list[int] = torch.randperm(self.num_images, generator=generator).tolist()
        return order


class Samples(Dataset[Any]):
    """What `transforms` makes of each image and mask; its random numbers depend only on seed, epoch and image.

    An error is returned, because raised in a worker it would lose its message.
    """

    def __init__(self, dataset: SegmentationDataset, transforms: Callable[..., Any], seed: int) -> None:
        self.dataset, self.transforms, self.seed = dataset, transforms, seed

    def __getitem__(self, draw: Draw) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("sample", self.seed, *draw))
            try:
                image, mask = self.dataset.pair(draw.image)  # a wrapped dataset may be random too
            except IsanetError as error:
                return error
            return self.transforms(image, mask)


def collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor] | IsanetError | ValueError:
    """Images (N, 3, H, W) and masks (N, H, W), or the first error."""
    for sample in samples:
        if isinstance(sample, IsanetError):
            return sample
    images, masks = zip(*samples, strict=True)
    sizes = {f"{tuple(image.shape)} and {tuple(mask.shape)}" for image, mask in samples}
    if len(sizes) > 1:
        found = listed(sorted(sizes), 3)
        return ValueError(f"the dataset's transforms must return images and masks of one size; they returned {found}")
    return torch.stack(images), torch.stack(masks)
