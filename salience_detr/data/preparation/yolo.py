"""YOLO's text files as a COCO data set."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from salience_detr.data.coco_format import DatasetError, is_whole
from salience_detr.data.preparation.conversion import (
    IMAGE_SUFFIXES,
    Conversion,
    Labels,
    assemble,
    clip_box,
    read_all,
    size_or_problem,
)

# Names under which a split is found.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Text files that are no labels.
OTHER_TEXTS = {"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt"}


@dataclass(frozen=True)
class YoloDescription:
    """What a data.yaml says.

    Attributes:
        names: of the classes, by the index that the labels give.
        splits: images of each split.
        has_keypoints: lines hold keypoints after the box.
    """

    names: dict[int, str]
    splits: dict[str, list[Path]] = field(default_factory=dict)
    has_keypoints: bool = False


@dataclass(frozen=True)
class YoloFile:
    """One image and how to read its labels."""

    image: Path
    image_root: Path
    has_keypoints: bool = False


def convert_yolo(
    images: Sequence[Path],
    image_root: Path,
    names: dict[int, str],
    *,
    has_keypoints: bool = False,
    workers: int = 0,
) -> Conversion:
    """YOLO's text files as a COCO data set; category ids are YOLO's indices, from 0.

    Args:
        images: of the split; their labels are found as YOLO finds them (:func:`label_candidates`).
        image_root: folder that the names of the images become relative to.
        names: of the classes, by index.
        has_keypoints: lines hold keypoints after the box.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no images.
    """
    if not images:
        raise DatasetError(f"there are no images in {image_root}")
    found = read_all(
        read_yolo, [YoloFile(path, image_root, has_keypoints) for path in images], workers
    )
    conversion = assemble(found, {i: i for i in names}, names)
    conversion.problems.extend(
        f"{text}: there is no image for these labels" for text in orphans(images)
    )
    return conversion


def label_candidates(image: Path) -> Iterator[Path]:
    """Where the labels of an image may be: the last "images" of its path becomes "labels"; or beside it."""
    parts = image.parts
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            yield Path(*parts[:i], "labels", *parts[i + 1 :]).with_suffix(".txt")
            break
    yield image.with_suffix(".txt")


def orphans(images: Sequence[Path]) -> list[Path]:
    """Label files in the folders of the labels of some images that belong to none of them."""
    files = {next(label_candidates(image)) for image in images}
    folders = {path.parent for path in files}
    texts = (text for folder in folders if folder.is_dir() for text in folder.glob("*.txt"))
    # An image of another split may be in the same folder.
    known = {path.with_suffix("") for path in files} | {
        next(label_candidates(path)).with_suffix("")
        for folder in {image.parent for image in images}
        for path in find_images(folder)
    }
    return sorted(x for x in texts if x.with_suffix("") not in known and x.name not in OTHER_TEXTS)


def read_yolo(task: YoloFile) -> Labels:
    """One image and its lines of class, center, size (or a polygon), relative to the image.

    No file of labels, or an empty one: no boxes.
    """
    labels = Labels(Path(os.path.relpath(task.image, task.image_root)).as_posix())
    text = next((path for path in label_candidates(task.image) if path.is_file()), None)
    labels.is_labeled = text is not None
    if not size_or_problem(task.image, labels) or labels.size is None or text is None:
        return labels
    width, height = labels.size
    for number, line in enumerate(decode(text.read_bytes()).splitlines(), 1):
        if not line.strip():
            continue
        try:
            index, *numbers = (float(value) for value in line.split())
            x0, y0, x1, y1 = corners_of(numbers[:4] if task.has_keypoints else numbers)
            category = int(index)
            if category != index:
                raise ValueError
        except (ValueError, OverflowError):
            labels.problems.append(
                f"{text}, line {number}: {line.strip()[:60]!r} is not class x y width height"
            )
            continue
        box = clip_box((x0 * width, y0 * height, x1 * width, y1 * height), labels.size)
        if box is None:
            labels.problems.append(
                f"{text}, line {number}: a box outside the image or without area"
            )
            continue
        labels.boxes.append((category, *box))
    return labels


def decode(data: bytes) -> str:
    """The text of a file of numbers, in whatever encoding it was saved."""
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf_16 else "utf-8-sig", errors="replace")


def corners_of(numbers: Sequence[float]) -> tuple[float, float, float, float]:
    """Relative corners of "x y width height" or of a polygon "x y x y x y ...".

    Raises:
        ValueError: it is neither, or not finite.
    """
    if not all(abs(value) < 1e6 for value in numbers):  # False for NaN as well
        raise ValueError
    if len(numbers) == 4:
        x, y, w, h = numbers
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def read_description(path: Path) -> YoloDescription:
    """A YOLO data.yaml.

    Raises:
        DatasetError: it lacks something, or a folder that it names is not there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(
            f"{path} cannot be read as YAML in UTF-8 ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(f"{path} is not a YOLO description with 'names', 'train' and 'val'")
    base = Path(path.parent, str(content.get("path") or "."))
    splits = {}
    for split, keys in SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is not None:
            splits[split] = split_images(value, (base, path.parent), f"{path}: {split}")
    if not splits:
        raise DatasetError(f"{path} names no images: 'train' and 'val' are missing")
    return YoloDescription(
        class_names(content["names"], path), splits, bool(content.get("kpt_shape"))
    )


def class_names(names: Any, path: Path) -> dict[int, str]:
    """Names of the classes by index, of a list or of a mapping.

    Raises:
        DatasetError: they are something else.
    """
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        found = {int(index): str(name) for index, name in entries.items()}
    except (AttributeError, TypeError, ValueError):
        found = {}
    if (
        not found
        or not all(is_whole(index) and index >= 0 for index in found)
        or None in entries.values()
    ):
        raise DatasetError(
            f"{path}: names is {names!r:.80}; a list, or a mapping of indices to names, is needed"
        )
    return dict(sorted(found.items()))


def split_images(value: Any, bases: Sequence[Path], where: str) -> list[Path]:
    """The images of a split: of a folder with all below it, of a text file that lists them, or of several of both.

    Raises:
        DatasetError: it is none of these, or not there.
    """
    if isinstance(value, list):
        return sorted({image for part in value for image in split_images(part, bases, where)})
    if not isinstance(value, str):
        raise DatasetError(
            f"{where} is {value!r:.80}; a folder, a text file, or a list of them is needed"
        )
    spelling = value.replace("\\", "/")
    # Exports often name the folder as seen from somewhere else.
    candidates = [
        base / name for name in (value, spelling, spelling.removeprefix("../")) for base in bases
    ]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise DatasetError(
            f"{where}: there is no {value!r} in {' or '.join(sorted({str(base) for base in bases}))}"
        )
    if found.is_dir():
        return find_images(found)
    lines = [line.strip() for line in decode(found.read_bytes()).splitlines() if line.strip()]
    listed = [
        next((base / x for base in (found.parent, *bases) if (base / x).is_file()), bases[0] / x)
        for x in lines
    ]
    return [Path(os.path.normpath(path)) for path in listed]


def find_images(folder: Path) -> list[Path]:
    """All images of a folder and below it."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
