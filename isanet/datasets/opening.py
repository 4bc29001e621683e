"""Open the dataset that a folder holds, whichever it is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isanet.datasets.annotations import FORMATS
from isanet.datasets.base import Options, SegmentationDataset
from isanet.datasets.exported import Exported
from isanet.datasets.exports import files_below
from isanet.datasets.folder import Folder, split_paths
from isanet.datasets.listing import PathLike, contents, existing_folder, files_by_key, has_folders
from isanet.datasets.official import ADE20K, VOC2012, Cityscapes, OfficialDataset, PascalContext
from isanet.errors import DatasetError
from isanet.images.reading import SUFFIXES

DATASETS: dict[str, type[OfficialDataset] | type[Folder]] = {
    "voc": VOC2012,
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
    "context59": PascalContext,
    "folder": Folder,
}
"""Dataset classes by the names that `open_dataset` takes as `layout`."""


IMAGES, MASKS = ("images", "imgs", "image", "img"), ("masks", "labels", "mask", "label")
"""Names of folders, in any case, that are taken for a `Folder`'s, if there is one of each."""

MASK_SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_seg", "_gt")
"""What masks have behind the names of the images beside which they lie."""


def open_dataset(
    root: PathLike, split: str | None = None, *, layout: str = "auto", **options: Any
) -> SegmentationDataset:
    """Opens the dataset that a folder holds.

    >>> isanet.datasets.open_dataset("streets")
    Folder(streets, 4 images, 11 classes: road, sidewalk, building, …)

    Args:
        root: The folder, as for the classes of this package.
        split: None: "val", but all of your own folder (`Folder`).
        layout: "voc", "ade20k", "cityscapes", "context59", "folder", what a labelling tool exported ("cvat",
            "roboflow", "supervisely", "label-studio", "labelme", "via", "coco"), or "auto": by what is in `root`. A
            folder with a `classes.txt` is never taken for one of the first four. Of your own folder, images and masks
            are also found in folders of other usual names ("imgs", "labels"), or beside each other ("x.jpg",
            "x_mask.png").
        options: Further arguments of the class.

    Raises:
        DatasetError: Not exactly one layout is recognized, the class has no such option, or the class raises it.
    """
    if layout == "auto":
        layout = _recognize(existing_folder(root), options)
    if layout not in DATASETS and layout not in FORMATS:
        known_layouts = ", ".join(["auto", *DATASETS, *FORMATS])
        raise DatasetError(f"unknown layout {layout!r}; the known ones are: {known_layouts}")
    kind: Any = DATASETS.get(layout, Exported)
    known = {*inspect.signature(kind).parameters, *Options.__annotations__} - {"root", "split", "layout"}
    for option in options:
        if option not in known:
            raise DatasetError(
                f"{root} is read as {kind.__name__} (layout={layout!r}), which has no argument {option}="
            )
    if layout in FORMATS:
        options["layout"] = layout
    elif layout == "folder":
        options |= folder_options(existing_folder(root), options)
    dataset: SegmentationDataset = kind(root, **({} if split is None else {"split": split}), **options)
    return dataset


def _recognize(root: Path, options: Mapping[str, Any]) -> str:
    """The name in `DATASETS` or `FORMATS` of what a folder holds."""
    if FORMATS["cvat"].find(root):  # its folders are those of VOC
        return "cvat"
    has_classes = (root / "classes.txt").is_file()
    official = {name: kind for name, kind in DATASETS.items() if issubclass(kind, OfficialDataset)}
    found = [] if has_classes else [name for name, kind in official.items() if kind.home(root) is not None]
    images, masks = str(options.get("images", "images")), str(options.get("masks", "masks"))
    if has_folders(root, [(images, masks)]):
        found.append("folder")
    if not {"images", "masks"} & options.keys():
        found = found or export_layouts(root)
    found = found or (["folder"] if folder_options(root, options) else [])
    if has_classes and not found:
        raise DatasetError(
            f"{root} has a classes.txt, like a Folder, but not both {images} and {masks}: pass the names of its "
            f"folders as images= and masks=, or what it is as layout=; {contents(root)}"
        )
    if len(found) > 1:
        raise DatasetError(f"{root} holds several datasets ({', '.join(found)}); say which one by layout=")
    if not found:
        expected = "; ".join(
            [f"{kind.__name__}: {kind.expected_layout}" for kind in DATASETS.values()]
            + [each.title for each in FORMATS.values()]
        )
        raise DatasetError(f"{root} is in no known layout. Expected one of these: {expected}. {contents(root)}")
    return found[0]


def export_layouts(root: Path) -> list[str]:
    """The names in `FORMATS` of the exports that a folder holds; the first that is certain, or all that may be."""
    found = []
    for name, each in FORMATS.items():
        if each.find(root):
            if not each.by_content:
                return [name]
            found.append(name)
    return found


def folder_options(root: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Options of `Folder` for folders of other names, and for masks beside their images; empty if it is neither."""
    if {"images", "masks", "mask_suffix"} & options.keys() or has_folders(root, [("images", "masks")]):
        return {}
    names = {path.name.lower(): path.name for path in root.iterdir() if path.is_dir()}
    images, masks = ([names[name] for name in usual if name in names] for usual in (IMAGES, MASKS))
    if len(images) == len(masks) == 1:
        if files_by_key(root / masks[0], *SUFFIXES):
            return {"images": images[0], "masks": masks[0]}
        raise DatasetError(
            f"{root / masks[0]} holds no image files, so no masks (text files there are YOLO's boxes or polygons); "
            "export masks as PNG, or COCO"
        )
    if len(images) > 1 or len(masks) > 1:
        return {}
    stems = {path.with_suffix("") for path in files_below(root) if path.suffix.lower() in SUFFIXES}
    for suffix in MASK_SUFFIXES:
        if any(f"{stem}".endswith(suffix) and Path(f"{stem}".removesuffix(suffix)) in stems for stem in stems):
            return {"images": ".", "masks": ".", "mask_suffix": suffix}
    return {}


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

    >>> train, val = isanet.datasets.open_train_and_val("streets", hold_out=0.25)
    >>> len(train), len(val)
    (3, 1)

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
    root, val_options = existing_folder(root), dict(options)
    if options.get("layout", "auto") == "auto":
        options["layout"] = _recognize(root, options)
    whole, splits = _splits(root, options)
    is_own = splits is not None
    if split is None and (splits is None or "train" in splits):
        split = "train"
    train = _open_split(root, split, whole, options)
    if val_root is not None:
        val_root = existing_folder(val_root)
        if val_split is None and (not is_own or "val" in (_splits(val_root, val_options)[1] or ())):
            val_split = "val"
        return train, open_dataset(val_root, val_split, **val_options)
    if isinstance(train, Folder) and val_split is None and "val" not in (splits or ()):
        return train.held_out(hold_out, seed)
    return train, _open_split(root, val_split or "val", whole, options)


def _open_split(
    root: Path, split: str | None, whole: Exported | None, options: Mapping[str, Any]
) -> SegmentationDataset:
    return open_dataset(root, split, **options) if whole is None else whole.part(split)


def open_parts(
    root: PathLike, *, hold_out: float = 0.2, seed: int = 0, **options: Any
) -> dict[str, SegmentationDataset]:
    """Opens all splits of a dataset: "train" and "val" as `open_train_and_val`, and what else an export has.

    Raises:
        DatasetError: See `open_dataset`.
    """
    root = existing_folder(root)
    if options.get("layout", "auto") == "auto":
        options["layout"] = _recognize(root, options)
    whole, splits = _splits(root, options)
    if splits is not None and not {"train", "val"} & {*splits}:
        everything = whole or open_dataset(root, **options)
        if len(everything) == 1:  # of which none can be held out
            return {"train": everything}
    train, val = open_train_and_val(root, hold_out=hold_out, seed=seed, **options)
    more = {} if whole is None else {each: whole.part(each) for each in whole.splits if each not in ("train", "val")}
    return {"train": train, "val": val, **more}


def _splits(root: Path, options: Mapping[str, Any]) -> tuple[Exported | None, list[str] | None]:
    """All of an export, and its splits; of a `Folder` those of "train" and "val" that it has; None if it is neither."""
    layout = options.get("layout", "auto")
    layout = _recognize(root, options) if layout == "auto" else layout
    if layout in FORMATS:
        dataset = open_dataset(root, **{**options, "layout": layout})
        assert isinstance(dataset, Exported)
        return dataset, dataset.splits
    if layout != "folder":
        return None, None
    images = {**folder_options(root, options), **options}.get("images", "images")
    return None, [name for name in ("train", "val") if any(path.exists() for path in split_paths(root, images, name))]
