"""Registering and loading data sets in COCO's JSON format, with errors that say what is wrong with the data."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)


class DatasetError(ValueError):
    """A data set that cannot be used as it is."""


def register_coco_dataset(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Register a data set in COCO's JSON format under ``name`` in detectron2's catalogues; repeating it is harmless.

    Nothing is read before the data set is first loaded.
    """
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if (metadata.json_file, metadata.image_root) == (str(json_file), str(image_root)):
            return
        raise DatasetError(f"a data set {name!r} is registered already, for {metadata.json_file}; choose another name")
    register_coco_instances(name, {}, str(json_file), str(image_root))


def load_dataset(
    names: str | list[str],
    *,
    is_train: bool = False,
    json_file: str | None = None,
    image_root: str | None = None,
) -> list[dict[str, Any]]:
    """The records of registered data sets in detectron2's format, pictures without boxes included.

    With ``json_file`` and ``image_root`` the one that ``names`` names is registered first.

    For training, boxes are clipped to their picture, boxes without area and crowd regions are dropped, and the log
    says how many; evaluation uses the annotations of the JSON file untouched.

    Raises:
        DatasetError: the data set is unknown, its file cannot be read, or its annotations do not hang together.
    """
    if json_file and image_root:
        register_coco_dataset(str(names), json_file, image_root)
    records: list[dict[str, Any]] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog.list():
            raise DatasetError(
                f"there is no data set {name!r}; register it with salience_detr.data.register_coco_dataset "
                f"(registered are, for example, {', '.join(sorted(DatasetCatalog.list())[:6])})"
            )
        # detectron2 would pass over some mistakes in silence, and answer others with a bare KeyError.
        problem = diagnose(name) if MetadataCatalog.get(name).get("json_file") else None
        if problem:
            raise DatasetError(f"data set {name!r}: {problem}")
        try:
            found = get_detection_dataset_dicts(name, filter_empty=False)
            records += clean_annotations(found) if is_train else found
        except (LookupError, TypeError, AttributeError, AssertionError, OSError, ValueError) as error:
            raise DatasetError(f"data set {name!r}: {error}") from error
    if not isinstance(names, str):
        check_same_classes(names)
    return records


def check_same_classes(names: Sequence[str]) -> None:
    """Raise DatasetError if data sets that are joined number their classes differently."""
    classes = {name: list(MetadataCatalog.get(name).get("thing_classes", [])) for name in names}
    first = names[0]
    for name in names[1:]:
        if classes[name] != classes[first]:
            raise DatasetError(
                f"the data sets {first!r} and {name!r} have different classes ({classes[first]} and {classes[name]}); "
                "give both files the same categories with the same ids"
            )


def class_names_of(names: str | Sequence[str]) -> list[str]:
    """Names of the classes of registered data sets, which share them; empty if they are not known."""
    first = names if isinstance(names, str) else names[0]
    ensure_class_names(first)
    return list(MetadataCatalog.get(first).get("thing_classes", []))


def ensure_class_names(name: str) -> None:
    """Take the names and ids of a registered data set's classes from its JSON file, if they are not known yet.

    Without the file they stay unknown.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.get("json_file", ""))
    if metadata.get("thing_classes") or not path.is_file():
        return
    categories = sorted(read_json(path).get("categories", []), key=lambda category: category["id"])
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = {category["id"]: i for i, category in enumerate(categories)}


def fill_annotation_defaults(annotations: list[dict[str, Any]]) -> None:
    """Add, in place, what COCO's evaluation needs and many files leave out: ``iscrowd`` and the box's ``area``."""
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])


def read_json(path: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DatasetError: it is not valid JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}); it may be truncated") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} holds a {type(content).__name__}, not an object with images, annotations and categories"
        )
    return content


def diagnose(name: str) -> str | None:
    """What is wrong with the JSON file of a registered data set, in words; None if nothing is found."""
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.get("json_file", ""))
    if not path.is_file():
        remedy = metadata.get("how_to_get", "check the path, or set DETECTRON2_DATASETS to the folder of the data")
        return f"there is no annotation file {path}; {remedy}"
    try:
        content = read_json(path)
    except DatasetError as error:
        return str(error)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            return f"{path} has no {key!r}; COCO's format needs images, annotations and categories"
    return diagnose_entries(content, path)


REQUIRED_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def diagnose_entries(content: dict[str, list[Any]], path: Path) -> str | None:
    """The first entry of a COCO file that lacks something, or does not fit to the others, in words."""
    for kind, keys in REQUIRED_KEYS.items():
        for number, entry in enumerate(content[kind]):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                which = f"id {entry['id']}" if isinstance(entry, dict) and "id" in entry else f"number {number}"
                return f"the entry {which} of {kind!r} in {path} has no {missing[0]!r}"
        counts = Counter(entry["id"] for entry in content[kind])
        repeated = [entry_id for entry_id, count in counts.items() if count > 1]
        if repeated:
            return f"{path} has several {kind} with id {repeated[0]}; ids must be unique"
    image_ids, category_ids = ({entry["id"] for entry in content[kind]} for kind in ("images", "categories"))
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']} in {path}"
        if annotation["category_id"] not in category_ids:
            return (
                f"{where} (image {annotation['image_id']}) has the unknown category id {annotation['category_id']}; "
                f"categories are {sorted(category_ids)}"
            )
        if annotation["image_id"] not in image_ids:
            return f"{where} belongs to the unknown image id {annotation['image_id']}"
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4:
            found = f"of {len(box)} numbers" if isinstance(box, list) else repr(box)
            return f"{where} has a bbox {found}, not (x, y, width, height)"
        if not all(isinstance(x, (int, float)) for x in box):
            return f"{where} has the bbox {box}, which are not four numbers"
    return None


def clean_annotations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the records with usable boxes only: xyxy, inside the picture, with area, no crowds."""
    counts: Counter[str] = Counter()
    cleaned = []
    for record in records:
        annotations = []
        for annotation in record.get("annotations", []):
            usable = clean_annotation(annotation, record["width"], record["height"], counts)
            if usable is not None:
                annotations.append(usable)
        cleaned.append({**record, "annotations": annotations})
    if counts["clipped"] or counts["dropped"]:
        logger.warning(
            "%d boxes reached out of their picture and were clipped, %d boxes without area inside it were dropped",
            counts["clipped"],
            counts["dropped"],
        )
    return cleaned


def clean_annotation(
    annotation: dict[str, Any], width: int, height: int, counts: Counter[str]
) -> dict[str, Any] | None:
    """The annotation with a clipped xyxy box, or None if it is not to be used; counts what was done."""
    if annotation.get("iscrowd", 0):
        return None
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    limits = (width, height, width, height)
    clipped = [min(max(float(value), 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)]
    has_area = clipped[2] > clipped[0] and clipped[3] > clipped[1]  # False for NaN as well
    if not has_area:
        counts["dropped"] += 1
        return None
    # A thousandth of a pixel is rounding of the annotation tool.
    counts["clipped"] += any(abs(a - b) > 1e-3 for a, b in zip(clipped, box, strict=True))
    return {**annotation, "bbox": clipped, "bbox_mode": BoxMode.XYXY_ABS}


def check_class_count(dataset_names: str | list[str], num_classes: int) -> None:
    """Raise DatasetError if a data set has more classes than the model."""
    for name in [dataset_names] if isinstance(dataset_names, str) else dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes", [])
        if len(classes) > num_classes:
            raise DatasetError(
                f"the data set {name!r} has {len(classes)} classes, but the model has {num_classes}; "
                f"set model.num_classes={len(classes)}"
            )
