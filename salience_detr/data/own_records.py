"""Records of data sets that users register by a function of their own, as detectron2's tutorial."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode, PolygonMasks
from pycocotools import mask

from salience_detr.data.coco_format import (
    Content,
    DatasetError,
    Entry,
    Record,
    distinct_names,
    repeated,
)
from salience_detr.data.images import UNREADABLE
from salience_detr.data.preparation.frames import read_size


def complete_records(records: list[Record]) -> list[Record]:
    """Return copies of a data set's records that have an id and a size.

    Images without ``image_id`` get their number in the data set, as detectron2's conversion gives,
    as a text where the others are texts. Those without ``height`` and ``width`` get the size of
    their file. Numbers of annotations become Python's.

    Raises:
        DatasetError: a record has no file name, no readable size, an id of another kind than the
            others, or an annotation that cannot be used.
    """
    kinds = {type(x["image_id"]) for x in records if x.get("image_id") is not None}
    if str in kinds and len(kinds) > 1:
        raise DatasetError("some image ids are numbers and others are texts; make all of one kind")

    completed = []
    for number, record in enumerate(records):
        where = f"record {number}"
        if not record.get("file_name"):
            raise DatasetError(f"{where} has no file_name; give each the path of its image")

        record = {**record, "file_name": str(record["file_name"])}
        if record.get("image_id") is None:
            record["image_id"] = str(number) if str in kinds else number
        if record.get("annotations") is not None:
            entries = record["annotations"]
            record["annotations"] = [complete_annotation(entry, where) for entry in entries]
        if "height" not in record or "width" not in record:
            record["width"], record["height"] = file_size(record["file_name"], where)
        completed.append(record)
    return completed


def complete_annotation(annotation: Record, where: str) -> Record:
    """Return a copy of an annotation whose numbers are Python's, also of arrays.

    Raises:
        DatasetError: its box has no mode, or one that detectron2 cannot convert, or no numbers.
    """
    try:
        box = [float(number) for number in annotation["bbox"]]
        BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYWH_ABS)
    except (LookupError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        given = f"bbox {annotation.get('bbox')!r:.80}, bbox_mode {annotation.get('bbox_mode')!r}"
        raise DatasetError(
            f"{where} has an annotation with {given}; give four numbers in pixels, and "
            "BoxMode.XYXY_ABS or BoxMode.XYWH_ABS"
        ) from error
    return {**annotation, "bbox": box, "category_id": int(annotation["category_id"])}


def as_content(records: list[Record]) -> Content:
    """Return the boxes of complete records for the checks of all boxes together.

    Each record is an image of its own, whatever its id is: a data set may repeat images.
    """
    images = []
    annotations: list[Entry] = []
    for number, record in enumerate(records):
        images.append({"id": number, "width": record["width"], "height": record["height"]})
        for annotation in record.get("annotations") or ():
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": annotation["category_id"],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": annotation.get("iscrowd", 0),
            }
            annotations.append(entry)
    return {"images": images, "annotations": annotations}


def file_size(file_name: str, where: str) -> tuple[int, int]:
    """Return the (width, height) of an image file.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return read_size(Path(file_name))[0]
    except UNREADABLE as error:
        raise DatasetError(f"{where} has no height and width, and no image: {error}") from error


def to_coco(name: str, records: list[Record]) -> Content:
    """Return complete records as the content of a file in COCO's format.

    A data set without annotations, such as a test set, gives a file without them.

    Args:
        name: of the data set in detectron2's catalogs.
        records: see :func:`complete_records`.

    Raises:
        DatasetError: several images have the same id.
    """
    for image_id in repeated(record["image_id"] for record in records):
        raise DatasetError(
            f"the data set {name!r} has several images with the image_id {image_id!r}; give each "
            "its own, or none at all"
        )

    images = []
    annotations: list[Record] = []
    category_ids = category_ids_of(name, records)
    for record in records:
        image = {key: record[key] for key in ("file_name", "height", "width")}
        images.append({"id": record["image_id"], **image})

        for annotation in record.get("annotations", []):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            entry = {
                "id": len(annotations) + 1,
                "image_id": record["image_id"],
                "category_id": category_ids[annotation["category_id"]],
                "bbox": [float(x) for x in box],
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
            entry["area"] = area_of(annotation, entry["bbox"])
            annotations.append(entry)

    content: Content = {"images": images, "categories": categories_of(name, category_ids)}
    if any("annotations" in record for record in records):
        content["annotations"] = annotations
    return content


def category_ids_of(name: str, records: list[Record]) -> list[int]:
    """Return the id of each class: the data set's own, or the number of the class."""
    metadata = MetadataCatalog.get(name)
    id_to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    if id_to_class:
        class_to_id = {class_index: category_id for category_id, class_index in id_to_class.items()}
        return [class_to_id[i] for i in range(len(class_to_id))]

    # Classes without names are as many as the boxes show.
    num_classes = len(metadata.get("thing_classes", ()))
    if not num_classes:
        annotations = chain.from_iterable(record.get("annotations", []) for record in records)
        num_classes = max((x["category_id"] for x in annotations), default=-1) + 1
    return list(range(num_classes))


def categories_of(name: str, category_ids: list[int]) -> list[Entry]:
    """Return the categories of a data set; classes without a name are called by their number."""
    names = list(MetadataCatalog.get(name).get("thing_classes", ())) or category_ids
    categories = []
    for category_id, class_name in zip(category_ids, names, strict=True):
        categories.append({"id": category_id, "name": str(class_name)})

    for category, distinct in zip(categories, distinct_names(categories), strict=True):
        category["name"] = distinct
    return categories


def area_of(annotation: Record, box: list[float]) -> float:
    """Return the area of the mask, as COCO's size classes take it, or else that of the box."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        polygons = [np.asarray(polygon, dtype=float).ravel() for polygon in segmentation]
        return float(PolygonMasks([polygons]).area()[0])
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], (bytes, str)):
        return float(mask.area(segmentation))
    return box[2] * box[3]
