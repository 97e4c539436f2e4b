"""Data sets in COCO's JSON format: registration in detectron2's catalogs, and loading."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from salience_detr.data.annotation_checks import HARMLESS, check_content
from salience_detr.data.coco_format import (
    Content,
    DatasetError,
    Entry,
    Record,
    distinct_names,
    first_fault,
    is_ignored,
    read_coco,
)
from salience_detr.data.image_files import describe_moved, locate_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoLoader:
    """Loader of a data set in COCO's JSON format, which detectron2's catalog calls.

    It takes the place of detectron2's ``load_coco_json``, which also reads masks, fails at some of
    them, and does not notice other mistakes.
    """

    name: str
    image_root: Path

    def __call__(self) -> list[Record]:
        """Return the records in detectron2's format, by rising image id.

        Masks and keypoints are neither read nor checked. The records of a file without a list of
        annotations have no key "annotations".

        Raises:
            DatasetError: the file is missing, or has a mistake.
        """
        content = read_checked(self.name)
        set_class_names(self.name, content["categories"])
        metadata = MetadataCatalog.get(self.name)
        class_of = metadata.thing_dataset_id_to_contiguous_id
        if metadata.drop_categories:
            left_out = [x for x in content["categories"] if x["id"] in metadata.drop_categories]
            names = ", ".join(f"{x['name']} (id {x['id']})" for x in left_out)
            logger.info("%s: left out the categories without boxes: %s", self.name, names)

        # Masks would take most of the memory, and nothing uses them.
        annotations: dict[int | str, list[Record]] = defaultdict(list)
        for annotation in content.get("annotations", []):
            entry = {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": class_of[annotation["category_id"]],
                "iscrowd": int(is_ignored(annotation)),
            }
            annotations[annotation["image_id"]].append(entry)

        located = locate_images(self.image_root, [x["file_name"] for x in content["images"]])
        for line in describe_moved(located, self.image_root):
            log_once(logging.WARNING, f"{self.name}: {line}")

        records = []
        for image in sorted(content["images"], key=itemgetter("id")):
            record = {
                "file_name": str(located.paths[image["file_name"]]),
                "height": int(image["height"]),
                "width": int(image["width"]),
                "image_id": image["id"],
            }
            # COCO's test sets have none.
            if "annotations" in content:
                record["annotations"] = annotations[image["id"]]
            records.append(record)
        return records


def register_coco_dataset(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    drop_categories: Sequence[int] = (),
) -> None:
    """Register a data set in COCO's JSON format in detectron2's catalogs.

    The file is read when the data set is loaded. Registering the same data again does nothing.

    Args:
        name: of the data set.
        json_file: annotation file.
        image_root: folder of the images.
        drop_categories: ids of categories without boxes that are no classes.

    Raises:
        DatasetError: the name is taken by other data.
    """
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        known = [metadata.get(key) for key in ("json_file", "image_root", "drop_categories")]
        if known == [str(json_file), str(image_root), list(drop_categories)]:
            return
        raise DatasetError(
            f"a data set {name!r} is registered already, for {known[0] or 'a function'}; "
            "choose another name, or set the dataset's json_file=null to take that one"
        )

    DatasetCatalog.register(name, CocoLoader(name, Path(image_root)))
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        drop_categories=list(drop_categories),
        evaluator_type="coco",
    )


def read_checked(name: str) -> Content:
    """Return the content of a registered data set's annotation file, which is valid.

    What is suspicious about its boxes is logged.

    Raises:
        DatasetError: the file is missing, or has a mistake.
    """
    metadata = MetadataCatalog.get(name)
    path = Path(metadata.json_file)
    if not path.is_file():
        # Of data that a tool makes, the registration names the tool.
        remedy = "check the path, or set DETECTRON2_DATASETS to the folder of the data"
        remedy = metadata.get("how_to_get", remedy)
        raise DatasetError(f"there is no annotation file {path}; {remedy}")

    content = read_coco(path, lists=("images", "categories"))
    fault = first_fault(content, path)
    if fault is not None:
        raise DatasetError(
            f"{fault}; tools/check_dataset.py lists all such mistakes, and repairs them with --fix"
        )

    check_boxes(content, path)
    return content


def check_boxes(content: Content, source: Path) -> None:
    """Log what is suspicious about the boxes of valid entries.

    Raises:
        DatasetError: they cannot be used.
    """
    findings, fault = check_content(content, source)
    if fault is not None:
        raise DatasetError(fault)
    for kind, lines in findings.items():
        level = logging.INFO if kind in HARMLESS else logging.WARNING
        for line in lines:
            log_once(level, line)


def log_once(level: int, message: str) -> None:
    """Log a message, unless it was logged before: data are loaded anew for each evaluation."""
    log_first_n(level, message, name=__name__, key="message")


def set_class_names(name: str, categories: list[Entry]) -> None:
    """Number the classes of a registered data set from 0 on, by rising category id.

    Names that several categories have get their ids. Dropped categories are no classes.
    """
    dropped = MetadataCatalog.get(name).get("drop_categories", ())
    ordered = sorted(categories, key=itemgetter("id"))
    ordered = [category for category in ordered if category["id"] not in dropped]
    ids = [category["id"] for category in ordered]

    # detectron2's names: its evaluators look there, too.
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = distinct_names(ordered)
    metadata.thing_dataset_id_to_contiguous_id = {x: label for label, x in enumerate(ids)}
