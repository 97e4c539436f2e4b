"""Parts that the conversions of Pascal VOC (:mod:`voc`) and YOLO (:mod:`yolo`) to COCO share.

What cannot be used is left out and reported, never guessed.

Libraries were tried on the inputs of tests/data/preparation/test_conversion.py. supervision 0.31
stops at the first broken file or line (7 of 14 inputs), keeps boxes that lie outside the image,
ignores the size that VOC files give, and finds no files in folders below. datumaro 1.13 reads VOC
only with its label map and lists of splits, and then a pixel off; of YOLO it rejects polygons and
UTF-16, and drops all boxes of a file with one bad line. Neither reports what it left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from salience_detr.data.coco_format import Content, DatasetError, Entry
from salience_detr.data.images import UNREADABLE
from salience_detr.data.preparation.files import map_files
from salience_detr.data.preparation.frames import Box, Size, read_size
from salience_detr.data.preparation.splitting import draw_val

# Problems that a report lists.
NUM_LISTED = 20
# Annotation tools round: a box that reaches this many pixels out of its image is not counted.
ROUNDING = 0.1
CLIPPED = "boxes reached out of their image and were clipped"


class UnusableError(ValueError):
    """A file, line or object that is left out; its message is the problem that is reported."""


@dataclass
class ImageLabels:
    """Annotations of one image.

    Attributes:
        file_name: relative to the folder of the images.
        size: EXIF-corrected (width, height) in pixels; None if the image is left out.
        boxes: name or index of the class, and (x, y, width, height) in pixels of the EXIF-corrected
            image, of each box.
        problems: descriptions of what was left out.
        counts: number of times that something was changed or assumed, by its description.
    """

    file_name: str = ""
    size: tuple[int, int] | None = None
    boxes: list[tuple[str | int, Box]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def classes(self) -> set[str | int]:
        """Names or indices of the classes of its boxes."""
        return {label for label, _ in self.boxes}

    def add_box(self, label: str | int, box: Box) -> None:
        """Add an (x0, y0, x1, y1) box in pixels of the EXIF-corrected image, clipped to it.

        Raises:
            UnusableError: no area is left.
        """
        assert self.size is not None
        clipped = clip_box(box, self.size)
        if clipped is None:
            raise UnusableError("outside the image or without area")

        width, height = self.size
        if max(-box[0], -box[1], box[2] - width, box[3] - height) > ROUNDING:
            self.counts[CLIPPED] += 1
        self.boxes.append((label, clipped))


@dataclass(frozen=True)
class Conversion:
    """Data set in COCO's format and a report of its conversion.

    Attributes:
        content: images, annotations, categories.
        problems: descriptions of what was left out, with the file.
        counts: number of times that something was changed or assumed, by its description.
    """

    content: Content
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def report(self) -> str:
        """Return the numbers of images and boxes, boxes per class, and problems as text."""
        images = self.content["images"]
        annotations = self.content["annotations"]
        box_counts = Counter(annotation["category_id"] for annotation in annotations)
        num_empty = len(images) - len({annotation["image_id"] for annotation in annotations})

        lines = [f"{len(images)} images ({num_empty} without boxes), {len(annotations)} boxes"]
        for category in self.content["categories"]:
            lines.append(f"  {category['name']}: {box_counts[category['id']]}")
        lines += [f"  {count} {description}" for description, count in self.counts.items()]

        if self.problems:
            lines.append(f"left out ({len(self.problems)}):")
            lines += [f"  {problem}" for problem in self.problems[:NUM_LISTED]]
        if len(self.problems) > NUM_LISTED:
            lines.append(f"  and {len(self.problems) - NUM_LISTED} more")
        return "\n".join(lines)


def read_image_size(path: Path) -> tuple[tuple[int, int], int]:
    """Read the EXIF-corrected (width, height) of an image and its EXIF orientation.

    Raises:
        UnusableError: the image cannot be read.
    """
    try:
        return read_size(path)
    except UNREADABLE as error:
        raise UnusableError(f"{path}: the image cannot be read ({error})") from error


def clip_box(box: Box, size: Size) -> Box | None:
    """Clip an (x0, y0, x1, y1) box to an image of (width, height).

    Returns:
        The box as (x, y, width, height); None if no area is left.
    """
    x0, y0, x1, y1 = np.clip(box, 0.0, (*size, *size)).tolist()
    if x1 > x0 and y1 > y0:
        return x0, y0, x1 - x0, y1 - y0
    return None


def read_labels(
    read: Callable[[Path], ImageLabels], paths: Sequence[Path], workers: int
) -> list[ImageLabels]:
    """Call ``read`` for each path; where it raises UnusableError, the file is left out."""
    return map_files(partial(read_or_report, read), paths, workers, "annotations")


def read_or_report(read: Callable[[Path], ImageLabels], path: Path) -> ImageLabels:
    """Call ``read``, and turn an UnusableError into a problem."""
    try:
        return read(path)
    except UnusableError as error:
        return ImageLabels(problems=[str(error)])


def assemble(
    images_labels: Iterable[ImageLabels], category_ids: Mapping[Any, int], names: dict[int, str]
) -> Conversion:
    """Make a COCO data set, whose images and boxes are numbered from 1.

    Args:
        images_labels: annotations by image; of an image with several the first count.
        category_ids: id of each label's category.
        names: name of each category by id.
    """
    categories = [{"id": category_id, "name": name} for category_id, name in names.items()]
    images: list[Entry] = []
    annotations: list[Entry] = []
    problems: list[str] = []
    counts: Counter[str] = Counter()
    file_names: set[str] = set()

    for labels in images_labels:
        # Images that are left out leave their problems.
        problems += labels.problems
        counts += labels.counts
        if labels.size is None:
            continue

        name = labels.file_name
        if name in file_names:
            problems.append(f"{name}: there are several files of labels for this image")
            continue

        file_names.add(name)
        width, height = labels.size
        image = {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
        images.append(image)

        for label, box in labels.boxes:
            if label not in category_ids:
                known = list(names.values())
                problems.append(f"{name}: the class {label!r} is not one of {known}")
                continue

            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category_ids[label],
                "bbox": [round(value, 3) for value in box],
                "area": round(box[2] * box[3], 3),
                "iscrowd": 0,
            }
            annotations.append(annotation)

    content = {"images": images, "annotations": annotations, "categories": categories}
    return Conversion(content, problems, counts)


def draw_labels(
    images_labels: Sequence[ImageLabels], fraction: float, split_by: str | None
) -> dict[str, list[ImageLabels]]:
    """Split images into "train" and "val"; see :func:`splitting.draw_val`.

    Images that are left out stay in "train", whose report lists their problems.
    """
    usable = [labels for labels in images_labels if labels.size is not None]
    names = [labels.file_name for labels in usable]
    drawn = draw_val(names, [labels.classes for labels in usable], fraction, split_by)

    val = [usable[index] for index in sorted(drawn)]
    in_val = set(map(id, val))
    return {"train": [x for x in images_labels if id(x) not in in_val], "val": val}


def check_usable(conversions: Mapping[str, Conversion]) -> None:
    """Check that something is left of each split of a data set.

    Raises:
        DatasetError: a split has no image, or lost all of its boxes; or there are none to learn.
    """
    for name, conversion in conversions.items():
        reason = ""
        if conversion.problems:
            reason = f"; {len(conversion.problems)} problems, the first: {conversion.problems[0]}"

        if not conversion.content["images"]:
            raise DatasetError(f"no image of {name} is left, nothing is written{reason}")
        is_needed = name == "train" or len(conversions) == 1 or bool(reason)
        if is_needed and not conversion.content["annotations"]:
            raise DatasetError(f"no box of {name} is left, nothing is written{reason}")
