"""Annotations of other formats, as COCO's.

What cannot be used is left out and counted, never guessed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tqdm import tqdm

from salience_detr.data.datasets import DatasetError
from salience_detr.data.mapper import ORIENTATION

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass
class Labels:
    """The annotations of one picture.

    Attributes:
        file_name: relative to the folder of the pictures.
        size: (width, height) in pixels, as the picture is shown; None if it cannot be read.
        boxes: (class name or index, x, y, width, height) in pixels.
        problems: what was left out, in words.
    """

    file_name: str
    size: tuple[int, int] | None = None
    boxes: list[tuple[str | int, float, float, float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversion:
    """A data set in COCO's format and what happened on the way.

    Attributes:
        content: images, annotations, categories.
        problems: what was left out, in words, with the file.
    """

    content: dict[str, list[dict[str, Any]]]
    problems: list[str]

    def report(self) -> str:
        """Pictures, boxes per class, problems."""
        names = {category["id"]: category["name"] for category in self.content["categories"]}
        counts = Counter(names[annotation["category_id"]] for annotation in self.content["annotations"])
        with_boxes = {annotation["image_id"] for annotation in self.content["annotations"]}
        images = self.content["images"]
        lines = [f"{len(images)} pictures ({len(images) - len(with_boxes)} without boxes), {counts.total()} boxes"]
        lines += [f"  {name}: {counts[name]}" for name in names.values()]
        if self.problems:
            lines += [f"left out ({len(self.problems)}):", *(f"  {problem}" for problem in self.problems[:20])]
            lines += [f"  and {len(self.problems) - 20} more"] if len(self.problems) > 20 else []
        return "\n".join(lines)


def shown_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture, turned as its EXIF data says; only its header is read."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def size_or_problem(path: Path, labels: Labels) -> bool:
    """Fill in the size of a picture; False, and a problem, if it cannot be read."""
    try:
        labels.size = shown_size(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        labels.problems.append(f"{path}: the picture cannot be read ({error})")
        return False
    return True


def clip_box(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) clipped to (width, height) as (x, y, width, height); None if no area is left."""
    limits = (*size, *size)
    x0, y0, x1, y1 = (min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True))
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def read_voc(task: tuple[Path, Path, bool, bool]) -> Labels:
    """One file of Pascal VOC.

    Args:
        task: the XML file; the folder of the pictures; whether its corners count from 0 and are exclusive (VOC's count
            from 1 and are inclusive); whether objects that are marked difficult are left out.
    """
    path, image_root, zero_based, drop_difficult = task
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        return Labels(path.stem, problems=[f"{path}: not valid XML ({error})"])
    picture = find_picture(image_root, path.stem, root.findtext("filename"))
    if picture is None:
        return Labels(path.stem, problems=[f"{path}: there is no picture {root.findtext('filename')} in {image_root}"])
    labels = Labels(picture.relative_to(image_root).as_posix())
    if not size_or_problem(picture, labels) or labels.size is None:
        return labels
    offset = 0.0 if zero_based else 1.0
    for item in root.iter("object"):
        if drop_difficult and item.findtext("difficult", "0").strip() == "1":
            labels.problems.append(f"{path}: a difficult {item.findtext('name')}")
            continue
        try:
            corners = [float(item.findtext(f"bndbox/{key}", "none")) for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            labels.problems.append(f"{path}: a {item.findtext('name')} without a readable bndbox")
            continue
        box = clip_box([corners[0] - offset, corners[1] - offset, corners[2], corners[3]], labels.size)
        name = (item.findtext("name") or "").strip()
        if box is None or not name:
            labels.problems.append(
                f"{path}: {name or 'an object without name'} has the box {corners}, outside or empty"
            )
            continue
        labels.boxes.append((name, *box))
    return labels


def find_picture(image_root: Path, stem: str, named: str | None) -> Path | None:
    """The picture of an annotation: the one that it names, or one of the same stem."""
    candidates = [image_root / named] if named else []
    candidates += [
        image_root / f"{stem}{suffix}" for known in sorted(IMAGE_SUFFIXES) for suffix in (known, known.upper())
    ]
    return next((path for path in candidates if path.is_file()), None)


def read_yolo(task: tuple[Path, Path, Path]) -> Labels:
    """One picture of YOLO's layout: lines of class, centre, size (or a polygon), relative to the picture.

    Args:
        task: the picture; the folder of the pictures; the text file, which need not exist: no boxes.
    """
    picture, image_root, text = task
    labels = Labels(picture.relative_to(image_root).as_posix())
    if not size_or_problem(picture, labels) or labels.size is None or not text.is_file():
        return labels
    width, height = labels.size
    for number, line in enumerate(text.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            category, *values = line.split()
            numbers = [float(value) for value in values]
            index = int(category)
            corners = yolo_corners(numbers)
        except ValueError:
            labels.problems.append(f"{text}, line {number}: {line.strip()[:60]!r} is not class x y width height")
            continue
        x0, y0, x1, y1 = corners
        box = clip_box([x0 * width, y0 * height, x1 * width, y1 * height], labels.size)
        if box is None:
            labels.problems.append(f"{text}, line {number}: a box outside the picture or without area")
            continue
        labels.boxes.append((index, *box))
    return labels


def yolo_corners(numbers: Sequence[float]) -> tuple[float, float, float, float]:
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


def convert_voc(
    annotations: Path,
    images: Path,
    *,
    classes: Sequence[str] = (),
    stems: Iterable[str] | None = None,
    zero_based: bool = False,
    drop_difficult: bool = False,
    workers: int = 0,
) -> Conversion:
    """Pascal VOC's XML files as a COCO data set; category ids count from 1.

    Args:
        annotations: folder of the XML files.
        images: folder of the pictures.
        classes: names in the order of their ids; by default those that occur, sorted.
        stems: names of the files of the split, without ending; by default all.
        zero_based: the corners count from 0 and are exclusive.
        drop_difficult: leave out objects that are marked difficult.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no XML files.
    """
    chosen = sorted(annotations.glob("*.xml")) if stems is None else [annotations / f"{stem}.xml" for stem in stems]
    if not chosen:
        raise DatasetError(f"there are no .xml files in {annotations}")
    tasks = [(path, images, zero_based, drop_difficult) for path in chosen]
    found = read_all(read_voc, tasks, workers)
    names = list(classes) or sorted({str(box[0]) for labels in found for box in labels.boxes})
    return assemble(found, {name: i + 1 for i, name in enumerate(names)}, dict(enumerate(names, 1)))


def convert_yolo(images: Path, labels: Path, classes: Sequence[str], *, workers: int = 0) -> Conversion:
    """YOLO's text files as a COCO data set; category ids are YOLO's indices, from 0.

    Args:
        images: folder of the pictures, searched with all below it.
        labels: folder of the text files, laid out alike.
        classes: names in the order of their indices.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no pictures.
    """
    pictures = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise DatasetError(f"there are no pictures in {images}")
    tasks = [(path, images, (labels / path.relative_to(images)).with_suffix(".txt")) for path in pictures]
    found = read_all(read_yolo, tasks, workers)
    return assemble(found, {i: i for i in range(len(classes))}, dict(enumerate(classes)))


def read_all(read: Callable[[Any], Labels], tasks: Sequence[Any], workers: int) -> list[Labels]:
    """Call ``read`` for each task, with a progress bar."""
    if workers == 0:
        return [read(task) for task in tqdm(tasks, desc="annotations", unit="files")]
    with ProcessPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(read, tasks, chunksize=32), total=len(tasks), desc="annotations", unit="files"))


def assemble(found: Iterable[Labels], ids: dict[Any, int], names: dict[int, str]) -> Conversion:
    """Number pictures and boxes from 1 and look up the classes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    problems: list[str] = []
    for labels in found:
        problems += labels.problems
        if labels.size is None:
            continue
        image_id = len(images) + 1
        width, height = labels.size
        images.append({"id": image_id, "file_name": labels.file_name, "width": width, "height": height})
        for label, *box in labels.boxes:
            if label not in ids:
                problems.append(f"{labels.file_name}: the class {label!r} is not one of {list(names.values())}")
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[label],
                    "bbox": [round(value, 3) for value in box],
                    "area": round(box[2] * box[3], 3),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": category_id, "name": name} for category_id, name in names.items()]
    return Conversion({"images": images, "annotations": annotations, "categories": categories}, problems)


def read_yolo_description(path: Path) -> tuple[list[str], dict[str, Path]]:
    """Class names, and the folder of the pictures of each split, of a YOLO data.yaml.

    Raises:
        DatasetError: it lacks something.
    """
    try:
        content = yaml.safe_load(path.read_text())
        names = content["names"]
        base = Path(path.parent, content.get("path") or ".")
        splits = {key: content[key] for key in ("train", "val", "test") if content.get(key)}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is not a YOLO description with 'names', 'train' and 'val' ({error!r})") from error
    classes = [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    folders = {}
    for split, value in splits.items():
        if not isinstance(value, str) or value.endswith(".txt"):
            raise DatasetError(f"{path}: {split} is {value!r}; a folder is needed")
        # Exports often name the folder as seen from somewhere else.
        candidates = [base / value, path.parent / value, path.parent / value.removeprefix("../")]
        folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
        if folder is None:
            raise DatasetError(f"{path}: the folder {value!r} of {split} is not there")
        folders[split] = folder
    return classes, folders


def yolo_labels_folder(images: Path) -> Path:
    """Where YOLO looks for the labels of a folder of pictures: the last "images" in its path becomes "labels"."""
    parts = list(images.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return images
