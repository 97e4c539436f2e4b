"""Conversion of YOLO's text files to a COCO data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import ImageLabels, UnusableError, read_image_size
from salience_detr.data.preparation.files import find_files, first_file, map_files
from salience_detr.data.preparation.yolo_layout import YoloDescription, decode
from salience_detr.data.preparation.yolo_lines import (
    Line,
    LineFormat,
    check_lines,
    find_format,
    parse_line,
)

# Text files that are no labels.
OTHER_TEXTS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "notes.txt"}
WITHOUT_LABELS = "images have no file of labels and are taken as background"


@dataclass(frozen=True)
class LabeledImage:
    """Image and the lines of its labels.

    Attributes:
        labels: of the image, without boxes; its size is None if the image cannot be read.
        lines: of the file of labels.
        has_file: there is a file of labels.
    """

    labels: ImageLabels
    lines: list[Line] = field(default_factory=list)
    has_file: bool = False


def read_yolo(
    description: YoloDescription, image_roots: Mapping[str, Path], *, workers: int = 0
) -> dict[str, list[ImageLabels]]:
    """Read the labels of all splits.

    Args:
        description: tells the images, the classes, and what the lines hold.
        image_roots: folder by split that the names of its images become relative to.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: a split for training or validation has no labels, or the lines are meant in
            another way than YOLO's.
    """
    splits: dict[str, list[LabeledImage]] = {}
    for name, images in description.splits.items():
        read = partial(read_image_labels, image_root=image_roots[name])
        splits[name] = map_files(read, images, workers, "annotations")

        # Without any labels the folders are probably wrong; a test part may have none.
        if name != "test" and not any(image.has_file for image in splits[name]):
            places = " and ".join(map(str, label_candidates(images[0])))
            raise DatasetError(
                f"none of the {len(images)} images of {name} has a file of labels; "
                f"for {images[0]} looked for {places}"
            )

    lines: list[Line] = []
    for image in chain(*splits.values()):
        lines += image.lines
    check_lines(lines, description.names)
    line_format = find_format(lines, description.has_keypoints)

    images_labels = {}
    for name, labeled_images in splits.items():
        images_labels[name] = [read_boxes(image, line_format) for image in labeled_images]
        orphans = find_orphans(description.splits[name])
        problems = [f"{path}: there is no image for these labels" for path in orphans]
        images_labels[name].append(ImageLabels(problems=problems))
    return images_labels


def common_folder(images: Sequence[Path]) -> Path:
    """Return the folder that some images are all in."""
    return Path(os.path.commonpath({str(image.parent) for image in images}))


def label_candidates(image: Path) -> list[Path]:
    """Return the places of an image's labels, the usual one first.

    The last folder "images" of the path becomes "labels", or the labels lie beside the image.
    """
    beside = image.with_suffix(".txt")
    *folders, name = beside.parts
    if "images" not in folders:
        return [beside]

    last = len(folders) - 1 - folders[::-1].index("images")
    folders[last] = "labels"
    return [Path(*folders, name), beside]


def find_orphans(images: Sequence[Path]) -> list[Path]:
    """Find files beside the labels of some images that are labels of no image."""
    texts: set[Path] = set()
    for folder in {label_candidates(image)[0].parent for image in images}:
        texts.update(folder.glob("*.txt"))

    # An image of another split may be in the same folder.
    neighbors = set(images)
    for folder in {image.parent for image in images}:
        neighbors.update(find_files(folder))
    texts -= {label_candidates(image)[0] for image in neighbors}
    return sorted(path for path in texts if path.name not in OTHER_TEXTS)


def read_image_labels(image: Path, image_root: Path) -> LabeledImage:
    """Read the size of an image, and the lines of its labels.

    Args:
        image: image file.
        image_root: folder that the name of the image becomes relative to.
    """
    path = first_file(label_candidates(image))
    try:
        size, _ = read_image_size(image)
    except UnusableError as error:
        return LabeledImage(ImageLabels(problems=[str(error)]), has_file=path is not None)

    labels = ImageLabels(Path(os.path.relpath(image, image_root)).as_posix(), size)
    if path is None:
        # Without labels the image is background, as YOLO takes it.
        labels.counts[WITHOUT_LABELS] += 1
        return LabeledImage(labels)

    lines = []
    for number, text in enumerate(decode(path.read_bytes()).splitlines(), 1):
        if text.strip():
            lines.append(parse_line(text, f"{path}, line {number}"))
    return LabeledImage(labels, lines, has_file=True)


def read_boxes(image: LabeledImage, line_format: LineFormat) -> ImageLabels:
    """Return the labels of an image, with the boxes of its lines, in place; others are reported."""
    labels = image.labels
    for line in image.lines:
        try:
            if line.label is None:
                raise UnusableError("it is no class and numbers")

            assert labels.size is not None
            width, height = labels.size
            (x0, y0, x1, y1), remarks = line_format.corners(line.numbers)
            labels.add_box(line.label, (x0 * width, y0 * height, x1 * width, y1 * height))
            labels.counts.update(remarks)
        except UnusableError as error:
            labels.problems.append(f"{line.where}: {line.text.strip()[:60]!r} is left out: {error}")
    return labels
