from __future__ import annotations

from collections import Counter

import pytest

from isanet.training import Recipe
from isanet.training.batches import Batches


@pytest.mark.parametrize(("images", "epochs", "size"), [(7, 2, 3), (20, 60, 16), (5, 3, 16), (16, 1, 4), (1, 5, 2)])
def test_every_image_is_seen_once_per_epoch(images: int, epochs: int, size: int) -> None:
    batches = list(Batches(images, Recipe(epochs=epochs, batch_size=size)))
    seen = Counter(place for batch in batches for place in batch)
    assert seen == Counter((epoch, image) for epoch in range(epochs) for image in range(images))
    assert len(batches) == -(-images * epochs // size)
    assert max(map(len, batches)) <= size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert [place.epoch for batch in batches for place in batch] == sorted(place.epoch for b in batches for place in b)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(world_size: int) -> None:
    recipe = Recipe(epochs=3, batch_size=8)
    whole = list(Batches(11, recipe))
    shares = [list(Batches(11, recipe, rank, world_size)) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(place for part in parts for place in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_batches_resume_in_the_middle() -> None:
    recipe = Recipe(epochs=4, batch_size=3)
    whole = list(Batches(7, recipe))
    batches = Batches(7, recipe)
    batches.start = 5
    assert list(batches) == whole[5:]
    assert len(batches) == len(whole) - 5


def test_orders_differ_by_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(30, Recipe(epochs=2, batch_size=30, seed=seed))
        return [place.image for batch in batches for place in batch if place.epoch == epoch]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)
