"""Annotation files and images of a data set in the usual folder layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from salience_detr.data.coco_format import (
    LISTS,
    DatasetError,
    image_path,
    is_file,
    read_json,
)
from salience_detr.data.image_files import describe_folder, locate_images
from salience_detr.utils.errors import shorten

# Names under which the splits are found, also in capitals.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),
}
# Relative to the data folder; {s} is the name of the split. COCO, plain, Roboflow, CVAT.
ANNOTATIONS = (
    "annotations/instances_{s}.json", "annotations/instances_{s}2017.json", "annotations/{s}.json",
    "{s}/_annotations.coco.json", "{s}/annotations.json", "{s}/{s}.json", "instances_{s}.json",
    "{s}.json",
)  # fmt: skip
IMAGES = ("images/{s}", "images/{s}2017", "{s}/images", "{s}2017", "{s}", "images", ".")
# Folders, relative to the data folder, that are searched for a single file of another name.
SINGLE_FILES = ("*.json", "*/*.json", "*/*/*.json")
# Files that describe a data set in YOLO's layout.
YOLO_FILES = ("*.yaml", "*.yml", "*.data", "*.names", "classes.txt")
# Number of images that are looked for to find their folder.
SAMPLE = 20
# File that a conversion writes beside its annotations: the folder of the images of each of them.
IMAGE_FOLDERS = "image_folders.yaml"
OPTIONS = "--train-json, --train-images, --val-json, --val-images"


class NoAnnotationsError(DatasetError):
    """Folder without annotations in COCO's format."""


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

    A single annotation file of another name, such as CVAT's instances_default.json, is "train".

    Raises:
        DatasetError: there is no such folder, no split is in it, or a split's images are not found.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"there is no data folder {root}")

    # The first layout that fits counts, in the order of the names, then of the patterns.
    splits = {}
    for split, names in SPLITS.items():
        for name in names:
            json_file = first_path(root, (pattern.format(s=name) for pattern in ANNOTATIONS))
            if json_file is not None:
                folders = usual_folders(json_file, root, name)
                own_folders = [folder for folder in folders if folder != root]
                splits[split] = Split(json_file, find_image_root(json_file, folders, own_folders))
                break
    if splits:
        return splits

    candidates = find_coco_files(root)
    if len(candidates) == 1:
        json_file = candidates[0]
        # A single file has no other split whose images could be taken for its own.
        folders = usual_folders(json_file, root, json_file.stem.removeprefix("instances_"))
        for place in ("*", "*/*"):
            folders += filter(Path.is_dir, root.glob(place))
        return {"train": Split(json_file, find_image_root(json_file, folders, folders))}

    if candidates:
        some = shorten([path.relative_to(root).as_posix() for path in candidates], 5)
        raise DatasetError(
            f"{root} holds {len(candidates)} files in COCO's format ({some}), none of which has "
            f"the name of a split; name those to use with {OPTIONS}"
        )
    raise NoAnnotationsError(f"no annotations in COCO's format are in {root}; {suggest_step(root)}")


def first_path(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first file of some names below a folder; capitals and small letters are alike."""
    for name in names:
        for path in spellings(root, name):
            if path.is_file():
                return path
    return None


def spellings(root: Path, name: str) -> Iterator[Path]:
    """Yield what is at a path below a folder, itself first, then in other capitals."""
    first, _, rest = name.partition("/")
    if not root.is_dir():
        return

    same = [other for other in os.listdir(root) if other.lower() == first.lower()]
    for other in sorted(same, key=lambda other: (other != first, other)):
        if rest:
            yield from spellings(root / other, rest)
        else:
            yield root / other


def find_coco_files(root: Path) -> list[Path]:
    """Find the files in COCO's format in a folder and the folders in it."""
    return list(filter(is_coco_file, find_json_files(root)))


def find_json_files(root: Path) -> list[Path]:
    """Find the JSON files in a folder and the folders in it."""
    found: set[Path] = set()
    for pattern in SINGLE_FILES:
        found.update(root.glob(pattern))
    return sorted(found)


def is_coco_file(path: Path) -> bool:
    """Return whether a JSON file holds COCO's lists; results and settings do not."""
    try:
        content = read_json(path)
    except DatasetError:
        return False
    return all(isinstance(content.get(key), list) for key in LISTS)


def usual_folders(json_file: Path, data_dir: Path, name: str) -> list[Path]:
    """Return the folders in which the images of an annotation file usually are.

    Args:
        json_file: annotations of the split.
        data_dir: folder of the data set.
        name: of the split in the folder's layout.
    """
    folders = [json_file.parent]
    for pattern in IMAGES:
        places = [data_dir] if pattern == "." else spellings(data_dir, pattern.format(s=name))
        folders += filter(Path.is_dir, places)
    return list(dict.fromkeys(folders))


def find_image_root(json_file: Path, folders: Sequence[Path], search_below: Sequence[Path]) -> Path:
    """Find the folder that holds most of the first images of an annotation file.

    Some images may be missing: validation reports them.

    Args:
        json_file: annotations of the split.
        folders: that the images may be in.
        search_below: folders below which images of foreign names are searched; another split's
            images may not be there.

    Raises:
        DatasetError: none of the folders holds any, or the file names none.
    """
    images = read_json(json_file, keep=True).get("images")
    if images == []:
        raise DatasetError(f"{json_file} holds no images; name another file ({OPTIONS})")

    # Missing images must not hide the folder: the one with most of them is taken.
    file_names = first_file_names(images)
    folders = [*recorded_folder(json_file), *folders]
    fullest = fullest_folder(folders, partial(count_images, file_names=file_names))
    if fullest is not None:
        return fullest

    # The names may come from another computer.
    fullest = fullest_folder(search_below, partial(count_located, file_names=file_names))
    if fullest is not None:
        return fullest

    # A folder of images tells more than that of the annotations.
    tried = ", ".join(map(str, folders))
    likely = [folder for folder in search_below if folder != json_file.parent]
    shown = likely[0] if likely else folders[-1]
    located = locate_images(shown, file_names)
    remarks = [f"{name!r}: {remark}" for name, remark in located.missing.items() if remark]
    details = "; ".join([describe_folder(shown), *remarks[:1]])
    raise DatasetError(
        f"the images of {json_file} ({', '.join(file_names[:3]) or 'none'}, ...) are in none "
        f"of {tried} ({details}); move them there, or name the file and its folder ({OPTIONS})"
    )


def recorded_folder(json_file: Path) -> list[Path]:
    """Return the folder of images that a conversion has recorded, if it is there.

    Raises:
        DatasetError: the file of these folders cannot be read.
    """
    path = json_file.with_name(IMAGE_FOLDERS)
    if not path.is_file():
        return []
    try:
        folder = yaml.safe_load(path.read_text(encoding="utf-8")).get(json_file.name)
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read ({reason}); convert the data again") from error
    return [Path(folder)] if folder and Path(folder).is_dir() else []


def fullest_folder(folders: Sequence[Path], count: Callable[[Path], int]) -> Path | None:
    """Return the folder of the highest count, the first of several; None if all counts are 0."""
    counts = list(map(count, folders))
    if not any(counts):
        return None
    return folders[counts.index(max(counts))]


def first_file_names(images: object) -> list[str]:
    """Return the file names of the first usable entries of a COCO file's ``images``."""
    if not isinstance(images, list):
        return []

    names = []
    entries = [entry for entry in images if isinstance(entry, dict)]
    for entry in entries[:SAMPLE]:
        if isinstance(entry.get("file_name"), str):
            names.append(entry["file_name"])
    return names


def count_images(folder: Path, file_names: Iterable[str]) -> int:
    """Count the images that are in a folder."""
    return sum(is_file(image_path(folder, name)) for name in file_names)


def count_located(folder: Path, file_names: Sequence[str]) -> int:
    """Count the images that are found below a folder, also by names of another computer."""
    return len(set(file_names)) - len(locate_images(folder, file_names).missing)


def suggest_step(root: Path) -> str:
    """Return the next step for a folder in which nothing was found, as the end of a message."""
    command = "convert it with tools/convert_dataset.py {} {} --output DIR"
    is_yolo = any(any(root.glob(pattern)) for pattern in YOLO_FILES) or any(root.rglob("labels"))
    if is_yolo:
        return f"it looks like YOLO's layout: {command.format('yolo', root)}"
    if any(root.rglob("*.xml")):
        return f"it looks like Pascal VOC's layout: {command.format('voc', root)}"

    looked_for = "looked for " + ", ".join(pattern.format(s="train") for pattern in ANNOTATIONS)
    others = [path.relative_to(root).as_posix() for path in find_json_files(root)]
    if others:
        return f"{looked_for}; of {shorten(others, 5)}, none has the lists {', '.join(LISTS)}"
    return f"{looked_for}, and for YOLO's data.yaml and Pascal VOC's .xml files"
