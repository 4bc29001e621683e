"""The class of the highest logit at every pixel, where most pixels need no logits.

A resized logit is a weighted average of a few coarse ones, with the same weights for every class. Where one class is
the highest at all of those, it is the highest of the averages too, so the pixel takes its label. The pixels that are
left lie between coarse positions that disagree, where objects meet: 10 to 25 % of a photograph. Only their logits are
made.

Nothing is approximated: the result differs from the argmax of all logits only where the two highest are equal up to
rounding. Of exactly equal ones the first class is taken, as `argmax` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name for it

from isanet.inference.logits import Axis, Blend

# What is made at a time, of labels and of logits: it fits a processor's cache, and threads rarely wait for each other
_BLOCK_PIXELS = 1 << 20
_CHUNK_BYTES = 4 << 20


def argmax(maps: Sequence[Blend], *, average_probabilities: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """The class whose logit is the highest, on average over maps; a block of rows at a time.

    Args:
        maps: One or more, of equal sizes, of K classes each; float32 or float64, finite, on the CPU.
        average_probabilities: Average the softmax of each map, not the logits.

    Yields:
        The rows, and (rows, W) class indices, uint8 or int32.
    """
    K, height, width = len(maps[0].coarse), len(maps[0].y.indices), len(maps[0].x.indices)
    dtype = torch.uint8 if K < 256 else torch.int32  # K itself marks pixels without a label
    sparse = [_sparse(one) for one in maps]
    across = []  # labels of the coarse rows, (h, W)
    for one, matrix in zip(maps, sparse, strict=True):
        labels = matrix.coarse.max(dim=1).indices.to(dtype).view(one.coarse.shape[1:])
        across.append(_agreed(labels, one.x.indices, 1, K))
    step, at_once = max(1, _BLOCK_PIXELS // width), max(1, _CHUNK_BYTES // (K * maps[0].coarse.element_size()))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        block, *others = (_agreed(labels, one.y.indices[rows], 0, K) for labels, one in zip(across, maps, strict=True))
        for labels in others:
            block.masked_fill_(labels != block, K)
        flat = block.view(-1)
        for pixels in torch.split(torch.from_numpy(np.flatnonzero(flat.numpy() == K)), at_once):
            y = pixels // width
            logits_PK = [_logits(matrix, y + start, pixels - y * width) for matrix in sparse]
            if average_probabilities:
                logits_PK = [one.softmax(dim=1) for one in logits_PK]
            highest = sum(logits_PK[1:], start=logits_PK[0]).max(dim=1).indices
            flat.index_copy_(0, pixels, highest.to(dtype))
        yield rows, block


def _agreed(labels: Tensor, indices: Tensor, dim: int, mixed: int) -> Tensor:
    """For each position along `dim` the label that all of its coarse ones have, or `mixed`."""
    first = labels.index_select(dim, indices[:, 0])
    for others in indices.t()[1:]:
        first.masked_fill_(labels.index_select(dim, others) != first, mixed)
    return first


class _Sparse(NamedTuple):
    """A map as a sparse matrix, of one width for all pixels.

    Pixel (y, x) averages the coarse logits `y.indices[y] + x.indices[x]`, with the weights `y.weights[y] *
    x.weights[x]`.
    """

    coarse: Tensor  # (h * w, K)
    y: Axis
    x: Axis


def _sparse(one: Blend) -> _Sparse:
    y_taps, x_taps = one.y.indices.shape[1], one.x.indices.shape[1]
    y = Axis(one.y.indices * one.coarse.shape[2], one.y.weights)
    return _Sparse(
        one.coarse.flatten(1).t().contiguous(),
        Axis(*(part.repeat_interleave(x_taps, dim=1) for part in y)),
        Axis(*(part.repeat(1, y_taps) for part in one.x)),
    )


def _logits(matrix: _Sparse, y: Tensor, x: Tensor) -> Tensor:
    """(pixels, K)."""
    indices = matrix.y.indices.index_select(0, y).add_(matrix.x.indices.index_select(0, x))
    weights = matrix.y.weights.index_select(0, y).mul_(matrix.x.weights.index_select(0, x))
    return F.embedding_bag(indices, matrix.coarse, per_sample_weights=weights, mode="sum")
