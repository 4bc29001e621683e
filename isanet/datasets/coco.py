"""Read COCO's annotations: polygons, run lengths and panoptic masks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isanet.datasets.exports import (
    Annotated,
    Export,
    Images,
    class_name,
    color_of,
    naming,
    read_json,
    size_of,
    split_of,
)
from isanet.datasets.shapes import UNLABELED, Layer, Rings, Runs, Values, polygon, run_lengths
from isanet.errors import DatasetError

log = logging.getLogger("isanet")


def read_coco(root: Path, files: list[Path]) -> Export:
    """COCO: instances (polygons and run lengths) or panoptic (PNG files of segment ids), one JSON file per split."""
    images = Images(root, {path.stem for path in files})  # panoptic masks lie in such folders
    export = Export(root, images=images.all)
    for path in files:
        data = read_json(path)
        with naming(path):
            if isinstance(data, dict) and len(files) > 1 and (other := _other_kind(data)):
                log.warning("%s holds %s, and is left out", path, other)
                continue
            if not isinstance(data, dict) or not all(isinstance(data.get(k), list) for k in _COCO):
                raise ValueError("it has no lists images, annotations and categories, as COCO's files have")
            categories = _coco_categories(export, data)
            entries = {entry["id"]: entry for entry in data["images"]}
            annotations: dict[Any, list[Any]] = {key: [] for key in entries}
            for number, annotation in enumerate(data["annotations"]):
                if annotation["image_id"] not in annotations:
                    image_id = str(annotation["image_id"])[:40]
                    raise ValueError(f"annotation {number} is of the image {image_id!r}, which it does not list")
                annotations[annotation["image_id"]].append(annotation)
        for key, entry in entries.items():
            with naming(f"the image {str(key)[:40]!r} in {path}"):
                size = size_of(entry.get("height"), entry.get("width"))
                image = images.find(entry.get("file_name"), path.parent, path)
                layers: list[Layer] = []
                for annotation in annotations[key]:
                    with naming(f"annotation {str(annotation.get('id'))[:40]} of {path}"):
                        layers += _coco_layers(export, annotation, categories, size, path)
                export.add(Annotated(image, path, layers, split_of(path, root), size))
    if export.skipped["box"] and not any(sample.layers for sample in export.samples.values()):
        raise DatasetError(f"{files[0]} holds boxes alone, for detection; export it with masks or polygons")
    return export


def _other_kind(data: Mapping[str, Any]) -> str:
    """What a file holds that lies beside COCO's masks in the official archive; empty if it may be masks."""
    if any(isinstance(each, dict) and "keypoints" in each for each in data.get("categories") or ()):
        return "keypoints"
    missing = [name for name in _COCO if name not in data]
    return f"no {' and no '.join(missing)}" if missing else ""


_COCO = ("images", "annotations", "categories")


def _coco_categories(export: Export, data: Mapping[str, Any]) -> dict[int, int]:
    used = {part["category_id"] for a in data["annotations"] for part in a.get("segments_info", [a])}
    parents = {category.get("supercategory") for category in data["categories"]}
    indices: dict[int, int] = {}
    for category in sorted(data["categories"], key=lambda category: int(category["id"])):
        key, name = category["id"], class_name(category["name"])
        if key == 0 and key not in used and name in parents and len(data["categories"]) > 1:
            continue  # Roboflow's name of the whole dataset
        if key in indices:
            raise ValueError(f"the category {key} is there twice")
        indices[key] = export.index(name)
        export.classes[name] = export.classes[name] or color_of(category.get("color"))
    return indices


def _coco_layers(
    export: Export, annotation: Mapping[str, Any], categories: Mapping[int, int], size: Any, path: Path
) -> list[Layer]:
    def index_of(part: Mapping[str, Any]) -> int:
        if part["category_id"] not in categories:
            raise ValueError(f"the category {str(part['category_id'])[:40]} is not listed")
        return categories[part["category_id"]]

    if "segments_info" in annotation:
        # identities are red + 256 green + 65536 blue
        ids = {0: UNLABELED}
        for part in annotation["segments_info"]:
            if type(part["id"]) is not int or not 0 < part["id"] < 1 << 24:
                raise ValueError(f"the segment {str(part['id'])[:40]} is not within 1 and 2**24")
            ids[(part["id"] & 255) << 16 | part["id"] & 0xFF00 | part["id"] >> 16] = index_of(part)
        folder, name = path.with_suffix(""), annotation["file_name"]
        if not isinstance(name, str) or not (folder / name).is_file() or Path(name).name != name:
            raise ValueError(f"there is no mask {str(name)[:60]!r} in {folder}, the folder named as the JSON file")
        return [Values(folder / name, ids, True)]
    segmentation, index = annotation.get("segmentation"), index_of(annotation)
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        if size is not None and (height, width) != size:
            raise ValueError(f"its run lengths are of {width}x{height}, its image is {size[1]}x{size[0]}")
        checked = size_of(height, width)
        assert checked is not None
        return [Runs(index, run_lengths(segmentation["counts"], checked), checked)]
    if not segmentation:
        export.skipped["box"] += 1
        return []
    if not isinstance(segmentation, list):
        raise ValueError(f"{str(segmentation)[:40]!r} is no segmentation")
    return [Rings(index, (polygon(part),)) for part in segmentation]
