"""Open the dataset that a folder holds, whichever it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isanet.datasets.base import Options, SegmentationDataset
from isanet.datasets.folder import Folder, split_paths
from isanet.datasets.listing import PathLike, contents, existing_folder, has_folders
from isanet.datasets.official import ADE20K, VOC2012, Cityscapes, OfficialDataset
from isanet.errors import DatasetError

DATASETS: dict[str, type[OfficialDataset] | type[Folder]] = {
    "voc": VOC2012,
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
    "folder": Folder,
}
"""Dataset classes by the names that `open_dataset` takes as `layout`."""


def open_dataset(
    root: PathLike, split: str | None = None, *, layout: str = "auto", **options: Any
) -> SegmentationDataset:
    """Opens the dataset that a folder holds.

    Args:
        root: The folder, as for the classes of this package.
        split: None: "val", but all of your own folder (`Folder`).
        layout: "voc", "ade20k", "cityscapes", "folder", or "auto": by the folders in `root`. A folder with a
            `classes.txt` is never taken for one of the first three.
        options: Further arguments of the class.

    Raises:
        DatasetError: Not exactly one layout is recognized, the class has no such option, or the class raises it.
    """
    if layout == "auto":
        layout = _recognize(existing_folder(root), options)
    if layout not in DATASETS:
        raise DatasetError(f"unknown layout {layout!r}; the known ones are: auto, {', '.join(DATASETS)}")
    kind: Any = DATASETS[layout]
    known = {*inspect.signature(kind).parameters, *Options.__annotations__} - {"root", "split"}
    for option in options:
        if option not in known:
            raise DatasetError(f"{root} is read as {kind.__name__} (layout={layout!r}), which has no option {option!r}")
    dataset: SegmentationDataset = kind(root, **({} if split is None else {"split": split}), **options)
    return dataset


def _recognize(root: Path, options: Mapping[str, Any]) -> str:
    """The name in `DATASETS` of what a folder holds."""
    has_classes = (root / "classes.txt").is_file()
    official = {name: kind for name, kind in DATASETS.items() if issubclass(kind, OfficialDataset)}
    found = [] if has_classes else [name for name, kind in official.items() if kind.home(root) is not None]
    images, masks = str(options.get("images", "images")), str(options.get("masks", "masks"))
    if has_folders(root, [(images, masks)]):
        found.append("folder")
    elif has_classes:
        raise DatasetError(
            f"{root} has a classes.txt, like a Folder, but not both {images} and {masks}: pass the names of its "
            f"folders as images= and masks=, or what it is as layout=; {contents(root)}"
        )
    if len(found) > 1:
        raise DatasetError(f"{root} holds several datasets ({', '.join(found)}); say which one by layout")
    if not found:
        expected = "; ".join(f"{kind.__name__}: {kind.expected_layout}" for kind in DATASETS.values())
        raise DatasetError(f"{root} is in no known layout. Expected one of these: {expected}. {contents(root)}")
    return found[0]


def open_train_and_val(
    root: PathLike,
    val_root: PathLike | None = None,
    *,
    split: str | None = None,
    val_split: str | None = None,
    hold_out: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Opens a training and a validation dataset.

    Args:
        root: See `open_dataset`.
        val_root: Where the validation data is, if not in `root`.
        split: To train on. None: "train", but all of a `Folder` that has no such split.
        val_split: To validate on. None: "val"; if a `Folder` has no such split and `val_root` is not given, a share of
            the images is held out instead (see `Folder.held_out`).
        hold_out: That share.
        seed: Decides which images are held out.
        options: See `open_dataset`; for both.

    Returns:
        The training and the validation dataset.

    Raises:
        DatasetError: See `open_dataset`.
    """
    root, layout = existing_folder(root), options.get("layout", "auto")
    is_folder = (_recognize(root, options) if layout == "auto" else layout) == "folder"
    if split is None and (not is_folder or _has_split(root, "train", options)):
        split = "train"
    train = open_dataset(root, split, **options)
    if val_root is not None:
        val_root = existing_folder(val_root)
        if val_split is None and (not is_folder or _has_split(val_root, "val", options)):
            val_split = "val"
        return train, open_dataset(val_root, val_split, **options)
    if isinstance(train, Folder) and val_split is None and not _has_split(root, "val", options):
        return train.held_out(hold_out, seed)
    return train, open_dataset(root, val_split or "val", **options)


def _has_split(root: Path, split: str, options: Mapping[str, Any]) -> bool:
    """Whether a `Folder` has a split, see there."""
    return any(path.exists() for path in split_paths(root, options.get("images", "images"), split))
