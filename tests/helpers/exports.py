"""One made set of six images, as each labelling tool exports it.

Every shape is a polygon along the borders of pixels, so that the masks are certain: they are drawn by slices, and not
by the code under test. Names are in the order of the alphabet, since some tools have no other.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from isanet.labels import generic_palette

CLASSES = ("background", "car", "person", "road")
COLORS = ((0, 0, 0), (0, 0, 142), (220, 20, 60), (128, 64, 128))
GENERIC = generic_palette(4)

# class, corners, and the same as boxes (left, top, right, bottom)
Shape = tuple[str, list[tuple[int, int]], list[tuple[int, int, int, int]]]


def _box(name: str, left: int, top: int, right: int, bottom: int) -> Shape:
    return name, [(left, top), (right, top), (right, bottom), (left, bottom)], [(left, top, right, bottom)]


ELL: Shape = ("road", [(2, 3), (20, 3), (20, 8), (9, 8), (9, 19), (2, 19)], [(2, 3, 20, 8), (2, 8, 9, 19)])
"""Not convex."""

SHAPES: dict[str, tuple[tuple[int, int], list[Shape]]] = {
    "a": ((24, 32), [_box("road", 0, 12, 32, 24), _box("car", 4, 8, 14, 18), _box("person", 10, 6, 16, 20)]),
    "b": ((21, 33), [ELL, _box("person", 5, 5, 12, 12)]),
    "c": ((30, 17), [_box("car", 0, 0, 17, 30)]),
    "d": ((16, 16), []),
    "e": ((25, 40), [_box("person", 30, 2, 31, 3), ELL, ELL]),
    "f": ((20, 22), [_box("person", 0, 0, 11, 20), _box("road", 11, 0, 22, 20)]),
}
"""(height, width) and shapes by name; the later shape is on top. "d" is empty, in "e" one shape has one pixel."""

SPLITS = {name: "train" if name in "abcd" else "val" for name in SHAPES}


def mask_of(name: str) -> Any:
    """(H, W) class indices."""
    size, shapes = SHAPES[name]
    mask = np.zeros(size, np.uint8)
    for label, _, boxes in shapes:
        for left, top, right, bottom in boxes:
            mask[top:bottom, left:right] = CLASSES.index(label)
    return mask


def one_shape(name: str, shape: Shape) -> Any:
    """(H, W) whether a pixel is in the shape."""
    inside = np.zeros(SHAPES[name][0], bool)
    for left, top, right, bottom in shape[2]:
        inside[top:bottom, left:right] = True
    return inside


def image_of(name: str) -> Any:
    """(H, W, 3) the classes in their colors, with noise."""
    noise = np.random.default_rng(ord(name)).integers(0, 20, (*SHAPES[name][0], 3))
    return np.clip(np.array(COLORS)[mask_of(name)] + noise, 0, 255).astype(np.uint8)


def _save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")


def cvat(root: Path) -> None:
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in zip(CLASSES, COLORS, strict=True)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in SHAPES if SPLITS[name] == split))
    for name in SHAPES:
        _save(root / "JPEGImages" / f"{name}.png", image_of(name))
        _save(root / "SegmentationClass" / f"{name}.png", np.array(COLORS, np.uint8)[mask_of(name)])
        _save(root / "SegmentationObject" / f"{name}.png", np.array(COLORS, np.uint8)[mask_of(name)])


def labelme(root: Path) -> None:
    for name, (size, shapes) in SHAPES.items():
        _save(root / f"{name}.png", image_of(name))
        entries = [
            {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
            for label, points, _ in shapes
        ]
        for entry in entries:
            (left, top), (right, bottom) = entry["points"][0], entry["points"][2]  # type: ignore[index]
            if len(entry["points"]) == 4 and name == "a":  # type: ignore[arg-type]
                entry |= {"shape_type": "rectangle", "points": [[right, bottom], [left, top]]}
            if name == "f":
                pixels = np.ones((bottom - top, right - left), np.uint8)
                entry |= {"shape_type": "mask", "points": [[left, top], [right - 1, bottom - 1]]}
                entry |= {"mask": base64.b64encode(_png(pixels)).decode()}
        data = {"version": "5.5.0", "flags": {}, "shapes": entries, "imagePath": f"{name}.png", "imageData": None}
        _json(root / f"{name}.json", {**data, "imageHeight": size[0], "imageWidth": size[1]})


def counts_of(inside: Any) -> list[int]:
    """COCO's run lengths."""
    counts, value = [0], False
    for pixel in inside.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def packed_counts(counts: list[int]) -> str:
    """As pycocotools' `rleToString`."""
    text = ""
    for i, count in enumerate(counts):
        value, more = count - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            text += chr(bits + (32 if more else 0) + 48)
    return text


def _coco(root: Path, entries: Callable[[str, int], Iterator[dict[str, Any]]], image_folder: str, file: str) -> None:
    for split in ("train", "val"):
        images, annotations = [], []
        for number, (name, (size, _)) in enumerate(SHAPES.items(), 7):
            if SPLITS[name] == split:
                _save(root / image_folder.format(split) / f"{name}.png", image_of(name))
                images.append({"id": number, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
                annotations += [{"id": 100 * number + i, **each} for i, each in enumerate(entries(name, number))]
        categories = [
            {"id": 3 * i, "name": name, "supercategory": "thing", "color": list(COLORS[i])}
            for i, name in enumerate(CLASSES)
            if i
        ]
        _json(root / file.format(split), {"images": images, "annotations": annotations, "categories": categories})


def coco(root: Path) -> None:
    def entries(name: str, number: int) -> Iterator[dict[str, Any]]:
        for i, shape in enumerate(SHAPES[name][1]):
            inside = one_shape(name, shape)
            flat: Any = [[coordinate for point in shape[1] for coordinate in point]]
            segmentation = [
                flat,
                {"size": list(inside.shape), "counts": counts_of(inside)},
                {"size": list(inside.shape), "counts": packed_counts(counts_of(inside))},
            ][(i + number) % 3]
            yield {"image_id": number, "category_id": 3 * CLASSES.index(shape[0]), "segmentation": segmentation}

    _coco(root, entries, "{}2017", "annotations/instances_{}2017.json")


def panoptic(root: Path) -> None:
    def entries(name: str, number: int) -> Iterator[dict[str, Any]]:
        mask, folder = mask_of(name), root / "annotations" / f"panoptic_{SPLITS[name]}"
        ids = np.where(mask > 0, 70_000 + 300 * mask.astype(int), 0)
        _save(folder / f"{name}.png", np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
        segments = [{"id": 70_000 + 300 * int(i), "category_id": 3 * int(i)} for i in np.unique(mask) if i]
        yield {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}

    _coco(root, entries, "{}", "annotations/panoptic_{}.json")


def roboflow(root: Path) -> None:
    for name in SHAPES:
        folder = root / {"train": "train", "val": "valid"}[SPLITS[name]]
        _save(folder / f"{name}.png", image_of(name))
        _save(folder / f"{name}_mask.png", mask_of(name))
        rows = "".join(f"{i}, {each}\n" for i, each in enumerate(CLASSES))
        (folder / "_classes.csv").write_text("Pixel Value, Class\n" + rows)


def label_studio(root: Path) -> None:
    tasks = []
    for number, (name, (_, shapes)) in enumerate(SHAPES.items(), 1):
        _save(root / "images" / f"{name}.png", image_of(name))
        tasks.append({"id": number, "data": {"image": f"/data/upload/3/0a1b2c3d-{name}.png"}, "annotations": []})
        for i, shape in enumerate(shapes):
            brush = f"task-{number}-annotation-{number + 20}-by-1-tag-{shape[0]}-{i}.png"
            _save(root / "brush" / brush, one_shape(name, shape).astype(np.uint8) * 255)
    _json(root / "project.json", tasks)


def via(root: Path) -> None:
    metadata = {}
    for name, (_, shapes) in SHAPES.items():
        _save(root / f"{name}.png", image_of(name))
        regions = []
        for label, points, _ in shapes:
            xs, ys = [x for x, _ in points], [y for _, y in points]
            shape: dict[str, Any] = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            if len(points) == 4:
                shape = {"name": "rect", "x": xs[0], "y": ys[0], "width": xs[1] - xs[0], "height": ys[2] - ys[1]}
            regions.append({"shape_attributes": shape, "region_attributes": {"class": label, "note": ""}})
        metadata[f"{name}.png123"] = {"filename": f"{name}.png", "size": 123, "regions": regions, "file_attributes": {}}
    _json(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": metadata, "_via_attributes": {}})


def supervisely(root: Path) -> None:
    classes = [
        {"title": name, "shape": "any", "color": f"#{bytes(color).hex()}"}
        for name, color in zip(CLASSES, COLORS, strict=True)
        if name != "background"
    ]
    _json(root / "meta.json", {"classes": classes, "tags": []})
    for name, (size, shapes) in SHAPES.items():
        _save(root / SPLITS[name] / "img" / f"{name}.png", image_of(name))
        objects = []
        for i, (label, points, _) in enumerate(shapes):
            entry: dict[str, Any] = {"classTitle": label, "geometryType": "polygon"}
            entry["points"] = {"exterior": [list(point) for point in points], "interior": []}
            if i % 2:
                ys, xs = np.nonzero(one_shape(name, shapes[i]))
                left, top = int(xs.min()), int(ys.min())
                inside = one_shape(name, shapes[i])[top : ys.max() + 1, left : xs.max() + 1]
                data = base64.b64encode(zlib.compress(_png(inside))).decode()
                entry |= {"geometryType": "bitmap", "bitmap": {"data": data, "origin": [left, top]}}
            objects.append(entry)
        data = {"size": {"height": size[0], "width": size[1]}, "objects": objects, "tags": [], "description": ""}
        _json(root / SPLITS[name] / "ann" / f"{name}.png.json", data)


def _class_list(root: Path) -> None:
    lines = [f"{name} #{bytes(color).hex()}" for name, color in zip(CLASSES, COLORS, strict=True)]
    (root / "classes.txt").write_text("\n".join(lines))


def other_names(root: Path) -> None:
    for name in SHAPES:
        _save(root / "imgs" / SPLITS[name] / f"{name}.png", image_of(name))
        _save(root / "labels" / SPLITS[name] / f"{name}.png", mask_of(name))
    _class_list(root)


def suffix_pairs(root: Path) -> None:
    for name in SHAPES:
        _save(root / SPLITS[name] / f"{name}.png", image_of(name))
        _save(root / SPLITS[name] / f"{name}_mask.png", mask_of(name))
    _class_list(root)


EXPORTS: dict[str, tuple[Callable[[Path], None], Any, bool]] = {
    "cvat": (cvat, COLORS, True),
    "labelme": (labelme, GENERIC, False),
    "coco": (coco, COLORS, True),
    "panoptic": (panoptic, COLORS, True),
    "roboflow": (roboflow, GENERIC, True),
    "label-studio": (label_studio, GENERIC, False),
    "via": (via, GENERIC, False),
    "supervisely": (supervisely, COLORS, True),
    "other names": (other_names, COLORS, True),
    "suffix pairs": (suffix_pairs, COLORS, True),
}
"""What writes each, the colors of the classes in it, and whether it has splits."""
