"""Small replicas of the datasets in their official layouts, made by code, and traps for what may be wrong with them.

Every image is painted in the colors of its classes (`paint`), so that the classes can be told from the pixels alone:
exactly from PNG, by the nearest color from the JPEG files. Class indices, keys and sizes are known (`Replica`); equal
seeds make equal files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isanet.labels import IGNORED, LABEL_SPACES, OFFICIAL_SPACES, LabelSpace, custom_space, generic_palette

Indices = NDArray[np.uint8]

SIZES = ((37, 53), (41, 29), (64, 48), (33, 65))
"""(height, width) of the images in turn."""

BORDER = (224, 224, 192)
"""The color of ignored pixels: that of 255 in VOC's palette, and of no class."""


@dataclass(frozen=True)
class Replica:
    """One split: what a dataset must read from it, and where its files lie."""

    root: Path
    split: str | None
    space: LabelSpace
    keys: list[str]
    masks: dict[str, Indices]
    image_files: dict[str, Path]
    mask_files: dict[str, Path]
    list_file: Path | None = None

    @property
    def first(self) -> str:
        return self.keys[0]


def labels(seed: int, number: int, size: tuple[int, int], avoid: Iterable[int] = ()) -> Indices:
    """(H, W) class indices: squares of 8 pixels, as JPEG has them, of at most 8 classes, one square ignored."""
    random = np.random.default_rng(seed)
    few = random.choice(np.setdiff1d(np.arange(number), list(avoid)), min(8, number), replace=False)
    height, width = -(-size[0] // 8), -(-size[1] // 8)
    cells = random.choice(few, (height, width)).astype(np.uint8)
    cells[random.integers(height), random.integers(width)] = IGNORED
    return np.kron(cells, np.ones((8, 8), np.uint8))[: size[0], : size[1]]


def paint(indices: Indices, space: LabelSpace) -> NDArray[np.uint8]:
    """(H, W, 3): each class in its color, `BORDER` where ignored."""
    colors = np.full((256, 3), BORDER, np.uint8)
    colors[: len(space)] = space.palette
    return colors[indices]


def save(path: Path, pixels: NDArray[np.uint8], *, palette: bool = False) -> Path:
    """Writes an image: (H, W) as values, with the palette of VOC if asked for, (H, W, 3) as colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.fromarray(pixels, "L")
        image.putpalette([channel for color in generic_palette(256) for channel in color])
    image.save(path, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return path


def voc(
    root: Path,
    *,
    home: str = "VOCdevkit/VOC2012",
    train: int = 3,
    val: int = 4,
    seed: int = 0,
    traps: Iterable[str] = (),
) -> dict[str, Replica]:
    """PASCAL VOC 2012: JPEG images, palette masks with an ignored border, lists. Traps go into "val".

    Returns:
        "train", "val", "trainval" and "test" (one image without a mask).
    """
    space, base = LABEL_SPACES["voc21"], root / home
    names = {
        "train": [f"2007_{100 + 32 * i:06d}" for i in range(train)],
        "val": [f"2007_{33 + 90 * i:06d}" for i in range(val)],
        "test": ["2008_000006"],
    }
    names["trainval"] = sorted(names["train"] + names["val"])
    masks: dict[str, Indices] = {}
    for number, name in enumerate(names["trainval"] + names["test"]):
        masks[name] = labels(seed + number, 21, SIZES[number % len(SIZES)])
        masks[name][:, masks[name].shape[1] // 2] = IGNORED
        save(base / "JPEGImages" / f"{name}.jpg", paint(masks[name], space))
        if name not in names["test"]:
            save(base / "SegmentationClass" / f"{name}.png", masks[name], palette=True)
    result = {}
    for split, keys in names.items():
        listed = base / "ImageSets" / "Segmentation" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{key}\n" for key in keys))
        result[split] = Replica(
            root,
            split,
            space,
            keys,
            {key: masks[key] for key in keys},
            {key: base / "JPEGImages" / f"{key}.jpg" for key in keys},
            {key: base / "SegmentationClass" / f"{key}.png" for key in keys if split != "test"},
            listed,
        )
    spring(result["val"], traps)
    return result


def sbd(root: Path, voc_splits: dict[str, Replica], *, seed: int = 50) -> dict[str, Indices]:
    """SBD's `benchmark_RELEASE` in `root`, next to a replica of VOC, which gets the images that are new.

    SBD's train has an image of VOC's train and one of VOC's val, with masks that differ from VOC's; its val has
    another of VOC's val.

    Returns:
        The index masks of "trainaug", sorted by key.
    """
    from scipy.io import savemat

    dataset = root / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    train, val = voc_splits["train"], voc_splits["val"]
    lists = {
        "train": ["2008_000002", train.keys[0], val.keys[0]],
        "val": ["2008_000007", val.keys[1]],
    }
    expected = dict(train.masks)
    images = train.image_files[train.first].parent
    for number, name in enumerate([*lists["train"], *lists["val"]]):
        known = train.masks.get(name, val.masks.get(name))
        mask = labels(seed + number, 21, SIZES[number % len(SIZES)] if known is None else known.shape[:2])
        mask[mask == IGNORED] = 0  # SBD has no border
        cell = np.zeros((1, 1), [("Segmentation", object)])
        cell[0, 0]["Segmentation"] = mask
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": cell})
        if known is None:
            save(images / f"{name}.jpg", paint(mask, train.space))
            expected[name] = mask
    for split, keys in lists.items():
        (dataset / f"{split}.txt").write_text("".join(f"{key}\n" for key in keys))
    return dict(sorted(expected.items()))


def ade20k(root: Path, *, train: int = 3, val: int = 4, seed: int = 0, traps: Iterable[str] = ()) -> dict[str, Replica]:
    """ADE20K below `root/ADEChallengeData2016`: JPEG images, masks of 0 (other) to 150. Traps go into "val"."""
    space, base = LABEL_SPACES["ade20k150"], root / "ADEChallengeData2016"
    result = {}
    for split, folder, count in (("train", "training", train), ("val", "validation", val)):
        keys = [f"ADE_{split}_{i + 1:08d}" for i in range(count)]
        # skyscraper has the color of road; 149 is the class of the greatest value, 150
        masks = {
            key: labels(seed + 100 * (split == "val") + i, 150, SIZES[i % len(SIZES)], avoid=[48])
            for i, key in enumerate(keys)
        }
        masks[keys[0]][:8, :8] = 149
        images = {key: save(base / "images" / folder / f"{key}.jpg", paint(masks[key], space)) for key in keys}
        files = {
            key: save(base / "annotations" / folder / f"{key}.png", masks[key] + np.uint8(1))  # 255 becomes 0
            for key in keys
        }
        result[split] = Replica(root, split, space, keys, masks, images, files)
    spring(result["val"], traps)
    return result


def pascal_context(
    root: Path,
    *,
    home: str = "VOCdevkit/VOC2010",
    train: int = 3,
    val: int = 4,
    seed: int = 0,
    traps: Iterable[str] = (),
) -> dict[str, Replica]:
    """Pascal Context: JPEG images, masks of 0 (other) to 59, lists. Traps go into "val"."""
    space, base = LABEL_SPACES["context59"], root / home
    result = {}
    for split, count in (("train", train), ("val", val)):
        keys = [f"2008_{i + 1 + 100 * (split == 'val'):06d}" for i in range(count)]
        masks = {
            key: labels(seed + i + 100 * (split == "val"), 59, SIZES[i % len(SIZES)], avoid=[12, 47, 57])
            for i, key in enumerate(keys)
        }
        masks[keys[0]][:8, :8] = 58  # the greatest; 12, 47 and 57 have nearly the color of another class
        images = {key: save(base / "JPEGImages" / f"{key}.jpg", paint(masks[key], space)) for key in keys}
        folder = base / "SegmentationClassContext"
        files = {key: save(folder / f"{key}.png", masks[key] + np.uint8(1)) for key in keys}  # 255 becomes 0
        listed = base / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{key}\n" for key in keys))
        result[split] = Replica(root, split, space, keys, masks, images, files, listed)
    spring(result["val"], traps)
    return result


def cityscapes(
    root: Path, *, train: int = 3, val: int = 4, seed: int = 0, traps: Iterable[str] = ()
) -> dict[str, Replica]:
    """Cityscapes: PNG images and labelIds in folders of two cities each. Traps go into "val".

    Ignored pixels have the ids 0 to 6, 9, 10, 14, ... in turn. "test" has one image and a dummy mask, as published.
    """
    space = LABEL_SPACES["cityscapes19"]
    others = sorted(set(OFFICIAL_SPACES["cityscapes-ids"].official_ids) - set(space.official_ids))
    cities = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau"), "test": ("berlin",)}
    result = {}
    for split, count in (("train", train), ("val", val), ("test", 1)):
        names = sorted(f"{cities[split][i % len(cities[split])]}_{i:06d}_000019" for i in range(count))
        masks, images, files = {}, {}, {}
        for i, name in enumerate(names):
            key, city = f"{name}_leftImg8bit", name.partition("_")[0]
            mask = labels(seed + i + 100 * ("train", "val", "test").index(split), 19, SIZES[i % len(SIZES)])
            ids = np.array(space.official_ids, np.uint8)[np.where(mask == IGNORED, 0, mask)]
            ids[mask == IGNORED] = np.resize(others, int((mask == IGNORED).sum()))
            masks[key] = mask
            images[key] = save(root / "leftImg8bit" / split / city / f"{key}.png", paint(mask, space))
            path = root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"
            save(path, ids if split != "test" else np.zeros_like(ids))
            if split != "test":
                files[key] = path
        result[split] = Replica(root, split, space, list(masks), masks, images, files)
    spring(result["val"], traps)
    return result


def folder(
    root: Path,
    *,
    classes: tuple[str, ...] = ("sky", "land", "water", "house"),
    count: int = 4,
    splits: Iterable[str | None] = (None,),
    nested: bool = False,
    write: Callable[[Path, Indices], object] = save,
    seed: int = 0,
    traps: Iterable[str] = (),
) -> dict[str | None, Replica]:
    """Your own folder: `images` and `masks`, both PNG, and `classes.txt`. Traps go into the first split.

    Args:
        root: Created.
        classes: Names for `classes.txt`.
        count: Images of each split.
        splits: Names of sub-folders, or None for no sub-folder.
        nested: Whether the images lie in two further folders, `a` and `b`.
        write: Writes a mask, so that a test can encode it differently.
        seed: Of the masks.
        traps: See `TRAPS`.
    """
    space = custom_space(classes, name=root.name)
    result: dict[str | None, Replica] = {}
    for place, split in enumerate(splits):
        keys = sorted(f"{'ab'[i % 2] + '/' if nested else ''}pic {i}.{place}" for i in range(count))
        masks, images, files = {}, {}, {}
        for i, key in enumerate(keys):
            masks[key] = labels(seed + i + 100 * place, len(classes), SIZES[i % len(SIZES)])
            images[key] = save(root / "images" / (split or ".") / f"{key}.png", paint(masks[key], space))
            files[key] = root / "masks" / (split or ".") / f"{key}.png"
            files[key].parent.mkdir(parents=True, exist_ok=True)
            write(files[key], masks[key])
        result[split] = Replica(root, split, space, keys, masks, images, files)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    spring(next(iter(result.values())), traps)
    return result


def spring(replica: Replica, traps: Iterable[str]) -> None:
    """Damages the first sample of a replica with some of `TRAPS`."""
    for name in traps:
        TRAPS[name](replica)


def _mask(change: Callable[[Path, Indices], object]) -> Callable[[Replica], None]:
    """Rewrites the first mask with changed values."""

    def trap(replica: Replica) -> None:
        path = replica.mask_files[replica.first]
        change(path, np.asarray(Image.open(path)).copy())

    return trap


def _bytes(kind: str, change: Callable[[bytes], bytes | None]) -> Callable[[Replica], None]:
    """Rewrites a file with changed bytes, or removes it where `change` returns None."""

    def trap(replica: Replica) -> None:
        path = {"list": replica.list_file, "mask": replica.mask_files.get(replica.first)}.get(
            kind, replica.image_files[replica.first]
        )
        assert path is not None
        changed = change(path.read_bytes())
        path.unlink() if changed is None else path.write_bytes(changed)

    return trap


def _stray(path: Path, values: Indices) -> None:
    values[0, :3] = 200
    save(path, values)


def _rotated(replica: Replica) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = replica.image_files[replica.first]
    Image.open(path).save(path, exif=exif)


def _train_ids(replica: Replica) -> None:
    for key, path in replica.mask_files.items():
        save(path.with_name(path.name.replace("labelIds", "labelTrainIds")), replica.masks[key])
        path.unlink()


def _16_bits(path: Path, values: Indices) -> None:
    wide = values.astype(np.uint16)
    wide[values == IGNORED] = 65535
    save(path, wide)


def _as_jpeg(path: Path, values: Indices) -> None:
    Image.fromarray(values).save(path, "JPEG")


TRAPS: dict[str, Callable[[Replica], None]] = {
    "missing mask": _bytes("mask", lambda _: None),
    "missing image": _bytes("image", lambda _: None),
    "truncated mask": _bytes("mask", lambda old: old[: len(old) // 2]),
    "truncated image": _bytes("image", lambda old: old[: len(old) // 2]),
    "empty mask": _bytes("mask", lambda _: b""),
    "small mask": _mask(lambda path, values: save(path, values[:-1])),
    "narrow mask": _mask(lambda path, values: save(path, values[:, :-1])),
    "stray value": _mask(_stray),
    "RGB mask": _mask(lambda path, values: save(path, np.stack([values, values, values // 2], -1))),
    "JPEG mask": _mask(_as_jpeg),
    "16-bit mask": _mask(_16_bits),  # 65535 where it was 255; otherwise harmless
    "rotated image": _rotated,
    "train ids alone": _train_ids,
    "line leads out": _bytes("list", lambda old: old + b"../../secret\n"),
    "line is absolute": _bytes("list", lambda old: old + b"/etc/passwd\n"),
    "line leads to a drive": _bytes("list", lambda old: old + b"C:\\images\\1\n"),
    "line twice": _bytes("list", lambda old: old + old.splitlines()[0] + b"\n"),
    "line with paths": _bytes("list", lambda _: b"/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"),
    "empty list": _bytes("list", lambda _: b"\r\n \n"),
    "no list": _bytes("list", lambda _: None),
    "UTF-16 list": _bytes("list", lambda old: old.decode().encode("utf-16")),
    # harmless
    "CRLF": _bytes("list", lambda old: old.replace(b"\n", b"\r\n")),
    "byte order mark": _bytes("list", lambda old: b"\xef\xbb\xbf" + old),
    "blank lines": _bytes("list", lambda old: b"\n" + old.replace(b"\n", b"\n\n")),
    "no newline at the end": _bytes("list", lambda old: old.rstrip(b"\n")),
    "spaces": _bytes("list", lambda old: old.replace(b"\n", b"  \t\n")),
    "second column": _bytes("list", lambda old: b"".join(line + b"  1\n" for line in old.splitlines())),
}
