"""Annotations of other formats, as COCO's: what :mod:`voc` and :mod:`yolo` share.

What cannot be used is left out and counted, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from salience_detr.data.images import UNREADABLE
from salience_detr.data.preparation.frames import shown_size

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass
class Labels:
    """The annotations of one image.

    Attributes:
        file_name: relative to the folder of the images.
        size: (width, height) in pixels, as the image is shown; None if it cannot be read.
        orientation: of the image's EXIF data.
        is_labeled: whether there is a file of labels, be it empty.
        boxes: (class name or index, x, y, width, height) in pixels.
        problems: what was left out, in words.
    """

    file_name: str
    size: tuple[int, int] | None = None
    orientation: int = 1
    is_labeled: bool = True
    boxes: list[tuple[str | int, float, float, float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Conversion:
    """A data set in COCO's format and what happened on the way.

    Attributes:
        content: images, annotations, categories.
        problems: what was left out, in words, with the file.
        num_labeled: images with a file of labels.
    """

    content: dict[str, list[dict[str, Any]]]
    problems: list[str]
    num_labeled: int = 0

    def report(self) -> str:
        """Images, boxes per class, problems."""
        names = {category["id"]: category["name"] for category in self.content["categories"]}
        counts = Counter(
            names[annotation["category_id"]] for annotation in self.content["annotations"]
        )
        with_boxes = {annotation["image_id"] for annotation in self.content["annotations"]}
        images = self.content["images"]
        lines = [
            f"{len(images)} images ({len(images) - len(with_boxes)} without boxes), {counts.total()} boxes"
        ]
        lines += [f"  {name}: {counts[name]}" for name in names.values()]
        if self.problems:
            lines += [
                f"left out ({len(self.problems)}):",
                *(f"  {problem}" for problem in self.problems[:20]),
            ]
            lines += [f"  and {len(self.problems) - 20} more"] if len(self.problems) > 20 else []
        return "\n".join(lines)


def size_or_problem(path: Path, labels: Labels) -> bool:
    """Fill in size and orientation of an image; False, and a problem, if it cannot be read."""
    try:
        labels.size, labels.orientation = shown_size(path)
    except UNREADABLE as error:
        labels.problems.append(f"{path}: the image cannot be read ({error})")
        return False
    return True


def clip_box(
    box: Sequence[float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) clipped to (width, height) as (x, y, width, height); None if no area is left."""
    limits = (*size, *size)
    x0, y0, x1, y1 = (
        min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)
    )
    return (x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def read_all(read: Callable[[Any], Labels], tasks: Sequence[Any], workers: int) -> list[Labels]:
    """Call ``read`` for each task, with a progress bar."""
    if workers == 0:
        return [read(task) for task in tqdm(tasks, desc="annotations", unit="files")]
    with ProcessPoolExecutor(workers) as pool:
        return list(
            tqdm(
                pool.map(read, tasks, chunksize=32),
                total=len(tasks),
                desc="annotations",
                unit="files",
            )
        )


def assemble(found: Iterable[Labels], ids: dict[Any, int], names: dict[int, str]) -> Conversion:
    """Number images and boxes from 1 and look up the classes; of an image with several labels the first count."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    problems: list[str] = []
    seen: set[str] = set()
    num_labeled = 0
    for labels in found:
        problems += labels.problems
        if labels.size is None:
            continue
        if labels.file_name in seen:
            problems.append(f"{labels.file_name}: there are several files of labels for this image")
            continue
        seen.add(labels.file_name)
        num_labeled += labels.is_labeled
        image_id = len(images) + 1
        width, height = labels.size
        images.append(
            {"id": image_id, "file_name": labels.file_name, "width": width, "height": height}
        )
        for label, *box in labels.boxes:
            if label not in ids:
                problems.append(
                    f"{labels.file_name}: the class {label!r} is not one of {list(names.values())}"
                )
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
    return Conversion(
        {"images": images, "annotations": annotations, "categories": categories},
        problems,
        num_labeled,
    )
