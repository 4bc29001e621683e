"""How a model fits what it is measured on: its classes to the dataset's, its figure to the published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isanet._text import listed
from isanet.config import are_numbered
from isanet.datasets.base import SegmentationDataset
from isanet.inference.runtimes.exported import ExportedModel
from isanet.inference.segmenter import Segmenter
from isanet.labels import IGNORED, LABEL_SPACES, Groups, LabelSpace, check_groups, custom_space, merged
from isanet.model import ISANet
from isanet.weights.hub import is_released
from isanet.weights.manifest import Weights, load_manifest


@dataclass(frozen=True)
class Match:
    """How the classes of a model and of a dataset correspond.

    Attributes:
        space: The K classes that are compared.
        mask_lookup: (256,) uint8, index in `space` or `IGNORED` for each value of the dataset's masks; None: identity.
        prediction_lookup: (number of the model's classes,) uint8, index in `space`; None: identity.
        keep: The model's classes that can be predicted; None: all.
    """

    space: LabelSpace
    mask_lookup: NDArray[np.uint8] | None = None
    prediction_lookup: Tensor | None = None
    keep: tuple[int, ...] | None = None

    def compared_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) mask of the dataset -> indices in `space` and `IGNORED`."""
        return mask if self.mask_lookup is None else self.mask_lookup[mask]

    def compared_prediction(self, prediction: Tensor) -> Tensor:
        """(H, W) class indices of the model -> indices in `space`, on the same device."""
        if self.prediction_lookup is None:
            return prediction
        return self.prediction_lookup.to(prediction.device)[prediction.long()]


def match_classes(model: ISANet | ExportedModel, space: LabelSpace, mapping: Groups | None) -> Match:
    """How the classes of a model and of a dataset correspond; `mapping` as for `isanet.evaluate`.

    Raises:
        ValueError: They do not, or a group of the mapping is wrong; the message names what differs.
    """
    own = custom_space(model.classes, model.palette, model.label_space or "the model's own")
    if mapping is None:
        if own.classes == space.classes:
            return Match(space)
        hint = 'say how they match by a mapping such as {"vehicle": ["car", "bus"]}, or {} to match them by name'
        if are_numbered(own.classes):
            hint = (
                "the model's classes have no names; give them by from_pretrained(..., classes=[...]) or "
                "`isanet convert --classes`"
            )
        raise ValueError(f"the model's label space is {own}, the dataset's is {space}; {hint}")
    check_groups(mapping, own, space)
    merged_own, own_lookup = merged(own, mapping)
    merged_space, space_lookup = merged(space, mapping)
    if missing := [name for name in merged_space.classes if name not in merged_own.classes]:
        raise ValueError(
            f"{len(missing)} of the dataset's classes are none of the model's: {listed(missing)} (the model's label "
            f"space is {own}, the dataset's is {space}); name their counterparts in the mapping, or map them to None "
            "to ignore them"
        )
    index_of = {name: index for index, name in enumerate(merged_space.classes)}
    predicted = [None if index is None else index_of.get(merged_own.classes[index]) for index in own_lookup]
    keep = tuple(old for old, new in enumerate(predicted) if new is not None)
    mask_lookup = np.full(256, IGNORED, np.uint8)
    mask_lookup[: len(space_lookup)] = [IGNORED if index is None else index for index in space_lookup]
    prediction_lookup = torch.tensor([index or 0 for index in predicted], dtype=torch.uint8)  # others are not predicted
    return Match(merged_space, mask_lookup, prediction_lookup, None if len(keep) == len(own) else keep)


# --- the published figure


def published_entry(name: str | None, model: ISANet | ExportedModel) -> Weights | None:
    """The entry in the manifest of a model that says it is that one, if its weights are verified to be so."""
    entry = load_manifest().get(name or "")
    if entry is None or isinstance(model, ExportedModel) or LABEL_SPACES[entry.label_space].classes != model.classes:
        return None
    return entry if is_released(model.state_dict(), model.config, entry.name) else None


def published_figure(entry: Weights, protocol: str) -> dict[str, Any]:
    """The metrics of an entry; if several mIoUs are published, with the one by the protocol of this name."""
    other = entry.metrics.get("others", {}).get(protocol)
    return dict(entry.metrics) | ({} if other is None else {"miou": other, "protocol": protocol})


def why_incomparable(
    published: Mapping[str, Any],
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    num_images: int,
    mapping: Groups | None,
) -> Iterator[str]:
    """Each reason why the mIoU measured on `num_images` of a dataset does not compare with a published figure."""
    if (dataset.name, dataset.split) != (published["dataset"], published["split"]):
        measured = f"{dataset.name} {dataset.split}" if dataset.split else dataset.name
        yield f"published on {published['dataset']} {published['split']}, measured on {measured}"
    elif num_images < len(dataset):
        yield f"{num_images} of {len(dataset)} images"
    elif dataset.official_size is None:
        yield f"{dataset} is not the official dataset"
    elif dataset.official_size != num_images:
        yield f"{num_images} images, where the official split has {dataset.official_size}"
    if segmenter.protocol.name != published["protocol"]:
        yield f"published by the protocol {published['protocol']!r}, measured by {segmenter.protocol.name!r}"
    if segmenter.precision != "float32":
        yield f"computed in {segmenter.precision}"
    if mapping:
        yield "classes were merged or ignored"
