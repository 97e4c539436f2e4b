"""Registering and loading data sets in COCO's JSON format, with errors that say what is wrong with the data."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode

from salience_detr.data.coco_format import (
    DatasetError,
    first_fault,
    image_path,
    is_ignored,
    read_coco,
    read_json,
)

logger = logging.getLogger(__name__)


def register_coco_dataset(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Register a data set in COCO's JSON format under ``name`` in detectron2's catalogs; repeating it is harmless.

    Nothing is read before the data set is first loaded.
    """
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if (metadata.json_file, metadata.image_root) == (str(json_file), str(image_root)):
            return
        raise DatasetError(
            f"a data set {name!r} is registered already, for {metadata.json_file}; choose another name"
        )
    DatasetCatalog.register(name, lambda: read_records(name, Path(json_file), Path(image_root)))
    MetadataCatalog.get(name).set(
        json_file=str(json_file), image_root=str(image_root), evaluator_type="coco"
    )


def load_dataset(
    names: str | list[str],
    *,
    is_train: bool = False,
    json_file: str | None = None,
    image_root: str | None = None,
) -> list[dict[str, Any]]:
    """The records of registered data sets in detectron2's format, images without boxes included.

    With ``json_file`` and ``image_root`` the one that ``names`` names is registered first.

    For training, boxes are clipped to their image, boxes without area and crowd regions are dropped, and the log
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
        except (
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
            OSError,
            ValueError,
        ) as error:
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
    set_class_names(name, read_json(path).get("categories", []))


def set_class_names(name: str, categories: list[dict[str, Any]]) -> None:
    """Number the classes of a registered data set by rising category id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category["name"] for category in ordered]
    metadata.thing_dataset_id_to_contiguous_id = {
        category["id"]: i for i, category in enumerate(ordered)
    }


def diagnose(name: str) -> str | None:
    """What is wrong with the JSON file of a registered data set, in words; None if nothing is found."""
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.get("json_file", ""))
    if not path.is_file():
        remedy = metadata.get(
            "how_to_get", "check the path, or set DETECTRON2_DATASETS to the folder of the data"
        )
        return f"there is no annotation file {path}; {remedy}"
    try:
        fault = first_fault(read_coco(path), path)
    except DatasetError as error:
        return str(error)
    return (
        fault
        and f"{fault}; tools/check_dataset.py lists all such mistakes, and mends them with --fix"
    )


def read_records(name: str, json_file: Path, image_root: Path) -> list[dict[str, Any]]:
    """The records of a COCO file that has no faults, in detectron2's format, by rising image id.

    Only boxes and classes are taken: what a mask or a keypoint looks like does not matter.
    """
    content = read_coco(json_file)
    set_class_names(name, content["categories"])
    number = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": number[annotation["category_id"]],
                "iscrowd": int(is_ignored(annotation)),
            }
        )
    return [
        {
            "file_name": str(image_path(image_root, image["file_name"])),
            "height": int(image["height"]),
            "width": int(image["width"]),
            "image_id": image["id"],
            "annotations": annotations[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def clean_annotations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the records with usable boxes only: xyxy, inside the image, with area, no crowds."""
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
            "%d boxes reached out of their image and were clipped, %d boxes without area inside it were dropped",
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
    clipped = [
        min(max(float(value), 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)
    ]
    has_area = clipped[2] > clipped[0] and clipped[3] > clipped[1]  # False for NaN as well
    if not has_area:
        counts["dropped"] += 1
        return None
    # A thousandth of a pixel is rounding of the annotation tool.
    counts["clipped"] += any(abs(a - b) > 1e-3 for a, b in zip(clipped, box, strict=True))
    return {**annotation, "bbox": clipped, "bbox_mode": BoxMode.XYXY_ABS}


def check_files(records: Sequence[dict[str, Any]]) -> None:
    """Raise DatasetError if images are missing, with how many and the first."""
    missing = [record["file_name"] for record in records if is_missing(record["file_name"])]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(records)} images are missing, the first is {missing[0]}; check the folder of "
            "the images, or remove them from the annotations with tools/check_dataset.py --fix"
        )


def is_missing(file_name: str) -> bool:
    """Whether a local image is not there; of one that a path handler fetches it is not known."""
    return "://" not in file_name and not Path(file_name).is_file()


def check_class_count(dataset_names: str | list[str], num_classes: int | None) -> None:
    """Raise DatasetError if a data set has not as many classes as the model, where both are known."""
    for name in [dataset_names] if isinstance(dataset_names, str) else dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes", [])
        if classes and num_classes is not None and len(classes) != num_classes:
            raise DatasetError(
                f"the data set {name!r} has {len(classes)} classes, but the model has {num_classes}; "
                f"set model.num_classes={len(classes)}"
            )
