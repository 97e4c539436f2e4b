"""Annotation files and images of a data set in the usual folder layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from salience_detr.data.coco_format import DatasetError, image_path, read_json

# Names under which the splits are found.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
# Relative to the data folder; {s} is the name of the split. COCO, plain, Roboflow, CVAT.
ANNOTATIONS = (
    "annotations/instances_{s}.json", "annotations/instances_{s}2017.json", "annotations/{s}.json",
    "{s}/_annotations.coco.json", "{s}/annotations.json", "{s}/{s}.json", "instances_{s}.json",
    "{s}.json",
)  # fmt: skip
IMAGES = ("images/{s}", "images/{s}2017", "{s}/images", "{s}2017", "{s}", "images", ".")
# Number of images that are looked for to find their folder.
SAMPLE = 20
OPTIONS = (
    "--train-json, --train-images, --val-json, --val-images; for tools/check_dataset.py JSON IMAGES"
)


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        json_file: annotations in COCO's format.
        image_root: folder that the file names are relative to.
    """

    json_file: Path
    image_root: Path


def find_splits(data_dir: str | Path) -> dict[str, Split]:
    """Find the splits "train" and "val" of a folder, or the one of them that it has.

    Raises:
        DatasetError: there is no such folder, no split is in it, or a split's images are not found.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"there is no data folder {root}")

    # The first layout that fits counts, in the order of the names, then of the patterns.
    splits = {}
    for split, names in SPLITS.items():
        candidates = [(name, root / x.format(s=name)) for name in names for x in ANNOTATIONS]
        for name, json_file in candidates:
            if json_file.is_file():
                splits[split] = Split(json_file, find_image_root(json_file, root, name))
                break

    if not splits:
        raise DatasetError(f"no annotations in COCO's format are in {root}; {suggest_step(root)}")
    return splits


def find_image_root(json_file: Path, data_dir: Path, name: str) -> Path:
    """Find the folder that holds most of the first images of an annotation file.

    Some images may be missing: validation reports them.

    Args:
        json_file: annotations of the split.
        data_dir: folder of the data set.
        name: of the split in the folder's layout.

    Raises:
        DatasetError: no usual folder holds any.
    """
    # Missing images must not hide the folder: the one with most of them is taken.
    file_names = first_file_names(read_json(json_file, keep=True).get("images"))
    folders = [json_file.parent, *(data_dir / pattern.format(s=name) for pattern in IMAGES)]
    num_found = [count_images(folder, file_names) for folder in folders]

    if not any(num_found):
        tried = ", ".join(str(folder) for folder in folders)
        raise DatasetError(
            f"the images of {json_file} ({', '.join(file_names[:3]) or 'none'}, ...) are in none "
            f"of {tried}; move them there, or name the file and its folder ({OPTIONS})"
        )
    return folders[num_found.index(max(num_found))]


def first_file_names(images: object) -> list[str]:
    """Return the file names of the first usable entries of a COCO file's ``images``."""
    if not isinstance(images, list):
        return []

    entries = [entry for entry in images if isinstance(entry, dict)]
    names = (entry.get("file_name") for entry in entries[:SAMPLE])
    return [name for name in names if isinstance(name, str)]


def count_images(folder: Path, file_names: Iterable[str]) -> int:
    """Count the images that are in a folder."""
    return sum(image_path(folder, name).is_file() for name in file_names)


def suggest_step(root: Path) -> str:
    """Return the next step for a folder in which nothing was found, as the end of a message."""
    command = "convert it with tools/convert_dataset.py {} {} --output DIR"
    if any(root.glob("*.yaml")) or any(root.rglob("labels")):
        return f"it looks like YOLO's layout: {command.format('yolo', root)}"

    if any(root.rglob("Annotations/*.xml")) or any(root.glob("*.xml")):
        return f"it looks like Pascal VOC's layout: {command.format('voc', root)}"

    return "looked for " + ", ".join(pattern.format(s="train") for pattern in ANNOTATIONS)
