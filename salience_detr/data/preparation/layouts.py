"""Finding the annotation files and images of a data set in the usual folder layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from salience_detr.data.coco_format import DatasetError, image_path, read_json

# Names under which the splits are found.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
# Relative to the data folder; {s} is the name of the split. COCO, plain, Roboflow, CVAT.
ANNOTATIONS = (
    "annotations/instances_{s}.json", "annotations/instances_{s}2017.json", "annotations/{s}.json",
    "{s}/_annotations.coco.json", "{s}/annotations.json", "{s}/{s}.json", "instances_{s}.json", "{s}.json",
)  # fmt: skip
# Images that are looked for to find their folder.
SAMPLE = 20
OPTIONS = (
    "--train-json, --train-images, --val-json, --val-images; for tools/check_dataset.py JSON IMAGES"
)
IMAGES = ("images/{s}", "images/{s}2017", "{s}/images", "{s}2017", "{s}", "images", ".")


@dataclass(frozen=True)
class Split:
    """A part of a data set: a file in COCO's format and the folder that its file names are relative to."""

    json_file: Path
    image_root: Path


def find_splits(data_dir: str | Path) -> dict[str, Split]:
    """The splits "train" and "val" of a folder, as far as they are there.

    Raises:
        DatasetError: there is no such folder, or neither split is in it, or the images of one are not found.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"there is no data folder {root}")
    found = {}
    for split, names in SPLITS.items():
        candidates = [
            (root / pattern.format(s=name), name) for name in names for pattern in ANNOTATIONS
        ]
        for json_file, name in candidates:
            if json_file.is_file():
                found[split] = Split(json_file, find_images(json_file, root, name))
                break
    if not found:
        raise DatasetError(f"no annotations in COCO's format are in {root}; {hint(root)}")
    return found


def find_images(json_file: Path, root: Path, name: str) -> Path:
    """The folder that holds the images of an annotation file.

    Raises:
        DatasetError: no usual folder does.
    """
    images = read_json(json_file).get("images")
    entries = [x for x in images if isinstance(x, dict)] if isinstance(images, list) else []
    files = [
        name for name in (x.get("file_name") for x in entries[:SAMPLE]) if isinstance(name, str)
    ]
    folders = [json_file.parent, *(root / pattern.format(s=name) for pattern in IMAGES)]
    # Some may be missing: that is for the check of the data to say.
    found = [sum(image_path(folder, file).is_file() for file in files) for folder in folders]
    if not any(found):
        tried = ", ".join(str(folder) for folder in folders)
        raise DatasetError(
            f"the images of {json_file} ({', '.join(files[:3]) or 'none'}, ...) are in none of {tried}; "
            f"move them there, or name the file and its folder ({OPTIONS})"
        )
    return folders[found.index(max(found))]


def hint(root: Path) -> str:
    """What to do with a folder in which nothing was found."""
    if any(root.glob("*.yaml")) or any(root.rglob("labels")):
        return f"it looks like YOLO's layout: convert it with tools/convert_dataset.py yolo {root} --output DIR"
    if any(root.rglob("Annotations/*.xml")) or any(root.glob("*.xml")):
        return f"it looks like Pascal VOC's layout: convert it with tools/convert_dataset.py voc {root} --output DIR"
    return "looked for " + ", ".join(pattern.format(s="train") for pattern in ANNOTATIONS)
