"""What labelling tools export: small readers, one for each format, from a folder to classes and layers of shapes.

A reader returns its classes in the export's own order, or sorted where it has none (LabelMe without `labels.txt`, VIA,
Label Studio). Images that the export does not mention are no samples; they are listed. Shapes without an area (points,
lines) are skipped and counted. `isanet.datasets.shapes` says how shapes become pixels.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from isanet._text import listed
from isanet.datasets.coco import read_coco
from isanet.datasets.exports import (
    MAX_BITMAP,
    Annotated,
    Export,
    Images,
    class_name,
    color_of,
    decoded,
    files_below,
    json_files,
    marked,
    naming,
    read_json,
    read_labelmap,
    size_of,
    split_name,
    split_of,
)
from isanet.datasets.listing import files_by_key, read_keys, read_lines
from isanet.datasets.shapes import (
    UNLABELED,
    Bitmap,
    Layer,
    Rings,
    Values,
    ellipse,
    polygon,
    rectangle,
)
from isanet.errors import DatasetError
from isanet.images.reading import SUFFIXES


def read_cvat(root: Path, files: list[Path]) -> Export:
    """CVAT's "Segmentation mask": colors in SegmentationClass, `labelmap.txt`, lists in ImageSets/Segmentation."""
    export = Export(root, dict(read_labelmap(files[0])), whole=True)
    colors: dict[int, int] = {}
    for index, (name, color) in enumerate(export.classes.items()):
        assert color is not None
        code = color[0] << 16 | color[1] << 8 | color[2]
        if code in colors:
            raise DatasetError(
                f"{files[0]}: {name!r} has the color of another class, #{code:06x}; export it with others"
            )
        colors[code] = index
    colors.setdefault(0, UNLABELED)
    split_of_key: dict[str, str] = {}
    for path in sorted((root / "ImageSets" / "Segmentation").glob("[!.]*.txt")):
        if path.stem != "default" and path.stat().st_size:
            split_of_key |= dict.fromkeys(read_keys(path), split_name(path.stem) or path.stem)
    _add_masks(export, root / "JPEGImages", root / "SegmentationClass", "", colors, True, split_of_key)
    return export


def _add_masks(
    export: Export,
    images: Path,
    masks: Path,
    suffix: str,
    indices: Mapping[int, int],
    by_color: bool,
    splits: Mapping[str, str] | str | None,
) -> None:
    """Adds the images in a folder whose mask is in another, or beside them and then with a suffix to its name."""
    found = files_by_key(images, *SUFFIXES)
    pairs = found if masks == images else files_by_key(masks, *SUFFIXES)
    export.images += [path for key, path in found.items() if not suffix or not key.endswith(suffix)]
    for mask_key, mask in pairs.items():
        if not mask_key.endswith(suffix):
            continue
        key = mask_key.removesuffix(suffix)
        if key not in found:
            raise DatasetError(f"the mask {mask} has no image {key} in {images}; export with the images")
        split = splits.get(key) if isinstance(splits, Mapping) else splits
        export.add(Annotated(found[key], mask, [Values(mask, indices, by_color)], split))


def read_roboflow(root: Path, files: list[Path]) -> Export:
    """Roboflow's "Semantic Segmentation Masks": `x.jpg`, `x_mask.png` and `_classes.csv` in train, valid and test."""
    export = Export(root, whole=True)
    tables = {path.parent: _class_table(path) for path in files}
    first = tables[files[0].parent]
    for path in files:
        if tables[path.parent] != first:
            raise DatasetError(f"{path} has other classes than {files[0]}; export all splits together")
    indices = {value: export.index(name) for value, name in first.items()}
    for folder in tables:
        split = split_name(folder.name) if folder != root else None
        _add_masks(export, folder, folder, "_mask", indices, False, split)
    return export


def _class_table(path: Path) -> dict[int, str]:
    table: dict[int, str] = {}
    for number, text in read_lines(path)[1:]:
        with naming(f"line {number} of {path}"):
            value, name = next(csv.reader([text], skipinitialspace=True))
            if (index := int(value)) in table or not 0 <= index <= 255:
                raise ValueError(f"{index} is there twice, or not within 0 and 255")
            table[index] = class_name(name)
    if not table or len(set(table.values())) < len(table):
        raise DatasetError(f"{path} lists no classes, or one of them twice")
    return table


def read_labelme(root: Path, files: list[Path]) -> Export:
    """LabelMe: a JSON file for each image, and `labels.txt` with the order of the classes, if it is there."""
    images = Images(root)
    export = Export(root, images=images.all)
    if (root / "labels.txt").is_file():
        names = [class_name(text) for _, text in read_lines(root / "labels.txt")]
    else:
        names = sorted({class_name(shape["label"]) for path in files for shape in _labelme_shapes(path)[1]})
    for name in names:
        export.index(name)
    for path in files:
        data, shapes = _labelme_shapes(path)
        with naming(path):
            size = size_of(data.get("imageHeight"), data.get("imageWidth"))
        layers: list[Layer] = []
        for number, shape in enumerate(shapes):
            with naming(f"shape {number} of {path}"):
                if (root / "labels.txt").is_file() and class_name(shape["label"]) not in export.classes:
                    raise ValueError(f"the class {shape['label']!r} is not in {root / 'labels.txt'}")
                layers += _labelme_layer(export, shape)
        image = images.find(data.get("imagePath"), path.parent, path)
        export.add(Annotated(image, path, layers, split_of(path.parent / "x", root), size))
    if "__ignore__" in export.classes:
        export.ignored.add(export.index("__ignore__"))
    return export


def _labelme_shapes(path: Path) -> tuple[dict[str, Any], list[Any]]:
    data = read_json(path)
    with naming(path):
        shapes = data["shapes"]
        if not isinstance(shapes, list):
            raise ValueError("its shapes are no list")
        for number, shape in enumerate(shapes):
            if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
                raise ValueError(f"shape {number} has no label")
            class_name(shape["label"])
        return data, shapes


def _labelme_layer(export: Export, shape: Mapping[str, Any]) -> list[Layer]:
    kind, points, index = shape.get("shape_type") or "polygon", shape["points"], export.index(shape["label"])
    if kind == "polygon":
        return [Rings(index, (polygon(points),))]
    if kind in ("rectangle", "circle", "mask"):
        (x0, y0), (x1, y1) = points
        if kind == "rectangle":
            return [Rings(index, (rectangle(x0, y0, x1, y1),))]
        if kind == "circle":
            radius = abs(complex(x1 - x0, y1 - y0))
            return [Rings(index, (ellipse(x0, y0, radius, radius),))]
        return [Bitmap(index, decoded(shape["mask"]), int(x0), int(y0))]
    export.skipped[str(kind)[:40]] += 1
    return []


def read_via(root: Path, files: list[Path]) -> Export:
    """VGG Image Annotator: JSON with the regions of each file; the class is the attribute that its regions have."""
    images = Images(root)
    export = Export(root, images=images.all)
    entries: list[tuple[Path, Mapping[str, Any], list[Mapping[str, Any]]]] = []
    for path in files:
        data = read_json(path)
        with naming(path):
            data = data.get("_via_img_metadata", data)
            for entry in data.values():
                regions = entry["regions"]
                regions = list(regions.values()) if isinstance(regions, dict) else regions
                entries.append((path, entry, regions))
                for region in regions:
                    region["shape_attributes"]["name"], region["region_attributes"].items()
    regions_of = [region for _, _, regions in entries for region in regions]
    attribute = _via_attribute(root, [region["region_attributes"] for region in regions_of])
    with naming(root):
        for name in sorted({_via_class(region, attribute) for region in regions_of}):
            export.index(name)
    for path, entry, regions in entries:
        layers: list[Layer] = []
        for number, region in enumerate(regions):
            with naming(f"region {number} of {str(entry.get('filename'))[:60]!r} in {path}"):
                layers += _via_layer(export, region["shape_attributes"], export.index(_via_class(region, attribute)))
        image = images.find(entry.get("filename"), path.parent, path)
        export.add(Annotated(image, path, layers, split_of(path, root)))
    return export


def _via_attribute(root: Path, regions: list[Mapping[str, Any]]) -> str | None:
    """The region attribute that names the class; None: there is none, and all regions are "object"."""
    names = sorted({name for region in regions for name in region})
    usual = [name for name in ("class", "label", "name", "type", "category") if name in names]
    if len(names) > 1 and not usual:
        raise DatasetError(f"which attribute of the regions in {root} is the class: {listed(names)}? Call it class")
    return next(iter(usual or names), None)


def _via_class(region: Mapping[str, Any], attribute: str | None) -> str:
    value = "object" if attribute is None else region["region_attributes"].get(attribute)
    if isinstance(value, dict):  # check boxes
        value = next((name for name, on in value.items() if on), None)
    return class_name(value)


def _via_layer(export: Export, shape: Mapping[str, Any], index: int) -> list[Layer]:
    kind = shape["name"]
    if kind == "polygon":
        points = [list(point) for point in zip(shape["all_points_x"], shape["all_points_y"], strict=True)]
        return [Rings(index, (polygon(points),))]
    if kind == "rect":
        x, y = shape["x"], shape["y"]
        return [Rings(index, (rectangle(x, y, x + shape["width"], y + shape["height"]),))]
    if kind in ("circle", "ellipse"):
        rx, ry = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        return [Rings(index, (ellipse(shape["cx"], shape["cy"], rx, ry, shape.get("theta") or 0),))]
    export.skipped[str(kind)[:40]] += 1
    return []


def read_supervisely(root: Path, files: list[Path]) -> Export:
    """Supervisely: `meta.json`, and below it folders `ann` (a JSON file for each image) and `img`."""
    export = Export(root)
    meta = read_json(files[0])
    with naming(files[0]):
        for entry in meta["classes"]:
            export.index(entry["title"])
            export.classes[class_name(entry["title"])] = color_of(entry.get("color"))
    images = Images(files[0].parent, {"masks_machine", "masks_human", "masks_instances"})
    export.images = images.all
    for path in json_files(files[0].parent):
        if path.parent.name != "ann":
            continue
        data = read_json(path)
        with naming(path):
            size, objects = size_of(data["size"]["height"], data["size"]["width"]), data["objects"]
            layers: list[Layer] = []
            for number, item in enumerate(objects):
                with naming(f"object {number} of {path}"):
                    if class_name(item["classTitle"]) not in export.classes:
                        raise ValueError(f"the class {item['classTitle']!r} is not in {files[0]}")
                    layers += _supervisely_layer(export, item, export.index(item["classTitle"]))
        image = images.find(path.name[: -len(".json")], path.parent.with_name("img"), path)
        export.add(Annotated(image, path, layers, split_of(path.parent.parent / "x", root), size))
    return export


def _supervisely_layer(export: Export, item: Mapping[str, Any], index: int) -> list[Layer]:
    kind = item["geometryType"]
    if kind == "bitmap":
        left, top = item["bitmap"]["origin"]
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(decoded(item["bitmap"]["data"]), MAX_BITMAP)
        if unpacker.unconsumed_tail:
            raise ValueError(f"its bitmap has more than {MAX_BITMAP:,} bytes")
        return [Bitmap(index, data, int(left), int(top))]
    if kind in ("polygon", "rectangle"):
        outline = item["points"]["exterior"]
        if kind == "rectangle":
            return [Rings(index, (rectangle(*outline[0], *outline[1]),))]
        return [Rings(index, (polygon(outline), *map(polygon, item["points"].get("interior") or [])))]
    export.skipped[str(kind)[:40]] += 1
    return []


_BRUSH = re.compile(r"task-(\d+)-annotation-(\d+)-by-.*?-?tag-(.+)-(\d+)\.png", re.IGNORECASE)


def read_label_studio(root: Path, files: list[Path]) -> Export:
    """Label Studio's brush labels as PNG, `task-1-annotation-2-by-3-tag-NAME-0.png`, and its JSON, for the images."""
    images = Images(root)
    brushes: dict[int, dict[int, list[tuple[int, str, Path]]]] = {}
    for path in images.all:
        if match := _BRUSH.fullmatch(path.name):
            task, annotation, tag, number = match.groups()
            brush = (int(number), class_name(tag), path)
            brushes.setdefault(int(task), {}).setdefault(int(annotation), []).append(brush)
    export = Export(root, images=[path for path in images.all if not _BRUSH.fullmatch(path.name)])
    for name in sorted({tag for parts in brushes.values() for part in parts.values() for _, tag, _ in part}):
        export.index(name)
    tasks: dict[int, tuple[str, Path]] = {}
    for path in json_files(root):
        data = read_json(path)
        with naming(path):
            for task in data if isinstance(data, list) else [data]:
                address = task["data"]["image"] if isinstance(task.get("data"), dict) else task["image"]
                tasks[int(task["id"])] = (address.rpartition("?d=")[2], path)
    if missing := sorted(set(brushes) - set(tasks)):
        raise DatasetError(
            f"which image is task {missing[0]} of {root}? Label Studio's PNG export does not say; export the project "
            f"as JSON too, and put it and the images into {root}"
        )
    for task, (address, path) in tasks.items():
        name = address.rpartition("/")[2]
        if name not in images.by_name:
            name = re.sub(r"^[0-9a-f]{8}-", "", name)  # what uploading puts before it
        annotations = brushes.get(task, {0: []})
        if len(annotations) > 1:
            export.skipped["annotation by another"] += len(annotations) - 1
        brushed = sorted(annotations[max(annotations)])
        layers: list[Layer] = [Bitmap(export.index(tag), file) for _, tag, file in brushed]
        export.add(Annotated(images.find(name, root, path), brushed[0][2] if brushed else path, layers))
    return export


class Format(NamedTuple):
    """A format: how it is called, how its files are found in a folder (none: it is not there), and how it is read.

    `by_content`: of such formats, several may seem to be in one folder.
    """

    title: str
    find: Callable[[Path], list[Path]]
    read: Callable[[Path, list[Path]], Export]
    by_content: bool = False


def _find_cvat(root: Path) -> list[Path]:
    return (
        [root / "labelmap.txt"] if (root / "labelmap.txt").is_file() and (root / "SegmentationClass").is_dir() else []
    )


def _find_roboflow(root: Path) -> list[Path]:
    tables = [path for path in [root / "_classes.csv", *sorted(root.glob("[!.]*/_classes.csv"))] if path.is_file()]
    return [path for path in tables if read_lines(path)[0][1].lower().startswith("pixel value")]


def _find_supervisely(root: Path) -> list[Path]:
    found = [path for path in [root / "meta.json", *sorted(root.glob("[!.]*/meta.json"))] if path.is_file()]
    return [path for path in found if any(each.parent.name == "ann" for each in files_below(path.parent))][:1]


def _find_brushes(root: Path) -> list[Path]:
    return [path for path in files_below(root) if _BRUSH.fullmatch(path.name)][:1]


FORMATS: dict[str, Format] = {
    "cvat": Format("CVAT: labelmap.txt and SegmentationClass", _find_cvat, read_cvat),
    "roboflow": Format("Roboflow: _classes.csv beside x.jpg and x_mask.png", _find_roboflow, read_roboflow),
    "supervisely": Format("Supervisely: meta.json, ann and img", _find_supervisely, read_supervisely),
    "label-studio": Format("Label Studio: task-…-tag-….png and JSON", _find_brushes, read_label_studio),
    "labelme": Format("LabelMe: x.json beside x.jpg", lambda root: marked(root, b'"shapes"'), read_labelme, True),
    "via": Format("VIA: JSON", lambda root: marked(root, b'"shape_attributes"', b'"_via_'), read_via, True),
    "coco": Format("COCO: JSON", lambda root: marked(root, b'"image_id"', b'"file_name"'), read_coco, True),
}
"""By the names that `open_dataset` takes as `layout`, in the order in which they are tried."""
