"""Registered data sets: their records and classes, with errors that name a remedy."""

from __future__ import annotations

import json
import logging
import operator
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from detectron2.utils import comm

from salience_detr.data.classes import ClassList, classes_of
from salience_detr.data.coco_dataset import (
    CocoLoader,
    check_boxes,
    log_once,
    read_checked,
    register_coco_dataset,
    set_class_names,
)
from salience_detr.data.coco_format import (
    DatasetError,
    Record,
    read_json,
)
from salience_detr.data.image_files import FolderListing, describe_folder
from salience_detr.data.masks import add_segmentations
from salience_detr.data.own_records import as_content, complete_records, to_coco
from salience_detr.utils.errors import shorten
from salience_detr.utils.files import write_text

logger = logging.getLogger(__name__)


def load_dataset(
    names: str | list[str],
    *,
    is_train: bool = False,
    json_file: str | None = None,
    image_root: str | None = None,
    drop_categories: Sequence[int] = (),
    with_masks: bool = False,
) -> list[Record]:
    """Return the records of registered data sets in detectron2's format.

    Images without boxes are included. For training, boxes are clipped to their image, and boxes
    without area and crowd regions are dropped; a warning says how many, and it is an error if none
    is left. Evaluation uses the annotations as they are.

    Args:
        names: a name, or several of data sets with the same classes.
        is_train: True if the records are trained on.
        json_file: annotation file to register under the name first, with ``image_root``.
        image_root: folder of its images.
        drop_categories: see :func:`register_coco_dataset`.
        with_masks: keep the masks of the annotations, as copy-paste uses them.

    Raises:
        DatasetError: the data set is unknown, or its file cannot be read or has a mistake.
    """
    names = as_list(names)
    if json_file and image_root:
        if len(names) > 1:
            raise DatasetError(
                f"{json_file} is one data set, but there are {len(names)} names "
                f"({', '.join(names)}); set the dataset's json_file=null to take registered ones"
            )
        register_coco_dataset(names[0], json_file, image_root, drop_categories)

    records: list[Record] = []
    for name in names:
        loaded = load_registered(name)
        if is_train and not any("annotations" in record for record in loaded):
            raise DatasetError(f"the data set {name!r} has no annotations to train on")
        if with_masks and isinstance(DatasetCatalog[name], CocoLoader):
            add_segmentations(name, loaded)
        records += loaded
    if is_train:
        records = clean_annotations(records)

    # Classes are known once the data are loaded.
    check_same_classes(names)
    if is_train:
        warn_of_empty_classes(names[0], records)
    return records


def warn_of_empty_classes(name: str, records: list[Record]) -> None:
    """Name the classes without a box to learn from, such as the root category of Roboflow."""
    classes = classes_of(MetadataCatalog.get(name))
    if classes is None:
        return

    with_boxes: set[int] = set()
    for record in records:
        with_boxes.update(annotation["category_id"] for annotation in record["annotations"])

    empty = [x for i, x in enumerate(classes.names) if i not in with_boxes]
    if empty:
        logger.warning(
            "%d of the %d classes have no box in the training data: %s; "
            "--drop-empty-categories leaves out those that have none in the validation data either",
            len(empty),
            len(classes),
            classes.describe(empty),
        )


def load_registered(name: str) -> list[Record]:
    """Return the records of one data set.

    Raises:
        DatasetError: see :func:`load_dataset`.
    """
    if name not in DatasetCatalog.list():
        known = shorten(sorted(DatasetCatalog.list()), 6)
        raise DatasetError(
            f"there is no data set {name!r}; register it with "
            f"salience_detr.data.register_coco_dataset (registered are, for example, {known})"
        )

    try:
        if isinstance(DatasetCatalog[name], CocoLoader):
            return get_detection_dataset_dicts(name, filter_empty=False)

        # Of data that others registered; their loaders may end in a bare KeyError.
        if has_own_file(name):
            read_checked(name)
        records = complete_records(get_detection_dataset_dicts(name, filter_empty=False))
        if not has_own_file(name):
            check_boxes(as_content(records), Path(name))
        return records
    except (LookupError, TypeError, AttributeError, AssertionError, OSError, ValueError) as error:
        raise DatasetError(f"data set {name!r}: {error}") from error


def has_own_file(name: str) -> bool:
    """Return whether a data set has an annotation file that was not derived from its records."""
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    return bool(json_file) and json_file != metadata.get("derived_json_file")


def derive_annotation_file(name: str, folder: Path) -> None:
    """Write the annotation file of a data set that has none, as evaluators need it, anew.

    detectron2's COCOEvaluator would write one itself, but take that of an earlier run for it.

    Raises:
        DatasetError: the records cannot be evaluated on.
        OSError: the file cannot be written.
    """
    metadata = MetadataCatalog.get(name)
    path = metadata.get("derived_json_file") or str(folder / f"{name}_coco_format.json")
    content = to_coco(name, load_registered(name))
    if comm.get_local_rank() == 0:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), json.dumps(content))

    comm.synchronize()
    metadata.set(json_file=path, derived_json_file=path)


def as_list(names: str | Sequence[str]) -> list[str]:
    """Return the names of one or several data sets as a list.

    Raises:
        DatasetError: there is none.
    """
    if isinstance(names, str):
        return [names]
    if not names:
        raise DatasetError("dataset.names is empty; name a registered data set, or several")
    return list(names)


def check_same_classes(names: Sequence[str]) -> None:
    """Raise DatasetError if data sets that are joined have different classes."""
    first, *others = names
    expected = list(MetadataCatalog.get(first).get("thing_classes", []))
    for name in others:
        classes = list(MetadataCatalog.get(name).get("thing_classes", []))
        if classes != expected:
            raise DatasetError(
                f"the data sets {first!r} and {name!r} have different classes "
                f"({expected} and {classes}); give both files the same categories with the same ids"
            )


def class_names_of(names: str | Sequence[str]) -> list[str]:
    """Return the class names that registered data sets share; empty if they are unknown."""
    classes = dataset_classes(names)
    return [] if classes is None else list(classes.names)


def dataset_classes(names: str | Sequence[str]) -> ClassList | None:
    """Return the classes that registered data sets share; None if they are unknown.

    A class of a data set without category ids has its index for one.
    """
    first = as_list(names)[0]
    ensure_class_names(first)
    classes = classes_of(MetadataCatalog.get(first))
    return None if classes is None else classes.numbered()


def ensure_class_names(name: str) -> None:
    """Read the classes of a registered data set from its annotation file, if they are unknown.

    They stay unknown where the file does not exist, as where only a model is used.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.get("json_file", ""))
    if not metadata.get("thing_classes") and has_own_file(name) and path.is_file():
        set_class_names(name, read_json(path).get("categories", []))


def clean_annotations(records: list[Record]) -> list[Record]:
    """Return copies of the records with boxes to train on: absolute xyxy, clipped, with area.

    Raises:
        DatasetError: there are images, but no such box.
    """
    counts: Counter[str] = Counter()
    cleaned = []
    for record in records:
        annotations = []
        for annotation in record.get("annotations", []):
            usable = clean_annotation(annotation, record["width"], record["height"], counts)
            if usable is not None:
                annotations.append(usable)
        counts["usable"] += len(annotations)
        cleaned.append({**record, "annotations": annotations})

    if counts["clipped"] or counts["dropped"]:
        logger.warning(
            "%d boxes reached out of their image and were clipped, "
            "%d boxes without area inside it were dropped",
            counts["clipped"],
            counts["dropped"],
        )
    if cleaned and not counts["usable"]:
        raise DatasetError(
            f"there is no box to learn in the training data: {len(records)} images have "
            f"{counts['crowd']} crowd regions or boxes to ignore, {counts['dropped']} boxes "
            "without area inside their image, and no others; annotate objects, or set iscrowd and "
            "ignore to 0 where they are wrong"
        )
    return cleaned


def clean_annotation(
    annotation: Record, width: int, height: int, counts: Counter[str]
) -> Record | None:
    """Return a copy with the box clipped to the image, or None for a crowd or an empty box.

    Args:
        annotation: with a box in any of detectron2's formats; the copy has absolute xyxy.
        width, height: size of the image in pixels.
        counts: of "crowd" regions, and of boxes that were "clipped" and "dropped"; it is added to.
    """
    if annotation.get("iscrowd", 0):
        counts["crowd"] += 1
        return None

    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x0, x1 = (min(max(float(x), 0.0), float(width)) for x in box[::2])
    y0, y1 = (min(max(float(y), 0.0), float(height)) for y in box[1::2])
    has_area = x1 > x0 and y1 > y0  # False for NaN, too
    if not has_area:
        counts["dropped"] += 1
        return None

    # Annotation tools round: up to a thousandth of a pixel is not counted.
    clipped = [x0, y0, x1, y1]
    counts["clipped"] += max(map(abs, map(operator.sub, clipped, box))) > 1e-3
    return {**annotation, "bbox": clipped, "bbox_mode": BoxMode.XYXY_ABS}


def check_files(records: Sequence[Record], dataset_names: str | Sequence[str] = ()) -> None:
    """Raise DatasetError if images are missing; the message has their number and the first.

    Args:
        records: in detectron2's format.
        dataset_names: the data sets they are from, whose folders are named in the message.
    """
    missing = []
    listing = FolderListing()
    for record in records:
        name = record["file_name"]
        # Images at addresses such as s3://... are fetched by path handlers when they are read.
        if "://" not in name and not listing.holds(Path(name)):
            missing.append(name)

    if missing:
        roots = set()
        for name in as_list(dataset_names) if dataset_names else []:
            roots.add(MetadataCatalog.get(name).get("image_root"))
        folders = map(Path, sorted(filter(None, roots)))
        content = "; ".join(map(describe_folder, folders))
        raise DatasetError(
            f"{len(missing)} of {len(records)} images are missing, the first is {missing[0]}; "
            f"check the folder of the images{f' ({content})' if content else ''}, or remove them "
            "from the annotations with tools/check_dataset.py --fix"
        )


def has_boxes(records: Sequence[Record]) -> bool:
    """Return whether any image has a box that is no crowd region."""
    for record in records:
        for annotation in record.get("annotations", []):
            if not annotation.get("iscrowd", 0):
                return True
    return False


def check_boxes_to_learn(records: Sequence[Record]) -> None:
    """Raise DatasetError if no image has a box that can be learned."""
    if not has_boxes(records):
        raise DatasetError(
            f"there is no box to learn in the {len(records)} images of the training data; annotate "
            "objects in them"
        )


def warn_without_boxes(records: Sequence[Record], dataset_names: str | Sequence[str]) -> None:
    """Log a warning if a data set to evaluate on has lists of annotations, but no boxes."""
    is_annotated = any("annotations" in record for record in records)
    if is_annotated and not has_boxes(records):
        log_once(
            logging.WARNING,
            f"there are no boxes in {', '.join(as_list(dataset_names))}: its AP is nan, and a "
            "training run keeps its last checkpoint as model_best",
        )


def check_class_count(dataset_names: str | list[str], num_classes: int | None) -> None:
    """Raise DatasetError if a data set and the model have different numbers of classes.

    Unknown classes, and a model of an unknown number (None), are not compared.
    """
    for name in as_list(dataset_names):
        classes = MetadataCatalog.get(name).get("thing_classes", [])
        if classes and num_classes is not None and len(classes) != num_classes:
            raise DatasetError(
                f"the data set {name!r} has {len(classes)} classes, but the model has "
                f"{num_classes}; set model.num_classes={len(classes)}"
            )
