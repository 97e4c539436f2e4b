"""Conversion of Pascal VOC's XML files to a COCO data set."""

from __future__ import annotations

import os
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import (
    Conversion,
    ImageLabels,
    UnusableError,
    assemble,
    clip_box,
    read_image_size,
    read_labels,
)
from salience_detr.data.preparation.files import IMAGE_SUFFIXES, find_files, first_file
from salience_detr.data.preparation.frames import Box, frame_transform

XML = {".xml"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Names of the lists in ImageSets/Main, per split; the first that is there counts.
SPLIT_LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}


def convert_voc(
    annotations: Path,
    images: Path,
    *,
    classes: Sequence[str] = (),
    files: Sequence[Path] | None = None,
    zero_based: bool = False,
    drop_difficult: bool = False,
    workers: int = 0,
) -> Conversion:
    """Convert XML files to a COCO data set, whose category ids count from 1.

    Args:
        annotations: folder of the XML files, searched with all below it.
        images: folder of the images.
        classes: names in the order of their ids; by default those that occur, sorted.
        files: XML files of the split; by default all.
        zero_based: corners count from 0 and are exclusive; VOC's count from 1 and are inclusive.
        drop_difficult: leave out objects that are marked difficult.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no XML files.
    """
    if files is None:
        files = find_files(annotations, XML)
    if not files:
        raise DatasetError(f"there are no .xml files in {annotations}, or none in the split")

    read = partial(
        read_voc, image_root=images, zero_based=zero_based, drop_difficult=drop_difficult
    )
    images_labels = read_labels(read, files, workers)

    occurring: set[Any] = set()
    for labels in images_labels:
        occurring.update(label for label, _ in labels.boxes)
    names = dict(enumerate(classes or sorted(occurring), 1))
    category_ids = {name: category_id for category_id, name in names.items()}
    return assemble(images_labels, category_ids, names)


def images_without_xml(annotations: Path, images: Path) -> list[Path]:
    """Find images without an XML file, of which it is unknown whether they show nothing."""
    stems = {path.stem for path in find_files(annotations, XML)}
    return [path for path in find_files(images) if path.stem not in stems]


def find_splits(source: Path, annotations: Path, val_fraction: float) -> dict[str, list[Path]]:
    """Find the XML files of each split.

    The splits are those of VOC's lists or, where there are none, "train" and "val" drawn with a
    fixed seed.

    Args:
        source: folder of the data set, with ImageSets/Main.
        annotations: folder of the XML files.
        val_fraction: part that is drawn for "val".

    Raises:
        DatasetError: the fraction is not in [0, 1).
    """
    splits = {}
    folder = source / "ImageSets" / "Main"
    for split, names in SPLIT_LISTS.items():
        path = first_file(folder / f"{name}.txt" for name in names)
        if path is not None:
            splits[split] = read_list(path, annotations)
    if splits:
        return splits

    if not 0 <= val_fraction < 1:
        raise DatasetError(f"--val-fraction is {val_fraction}; it lies in [0, 1)")

    # The same files are drawn each time; those of a split stay in the order of their names.
    files = find_files(annotations, XML)
    drawn = set(random.Random(0).sample(files, round(val_fraction * len(files))))
    splits["train"] = [path for path in files if path not in drawn]
    if drawn:
        splits["val"] = sorted(drawn, key=lambda path: path.with_suffix("").as_posix())
    return splits


def read_list(path: Path, annotations: Path) -> list[Path]:
    """Read a split's list of XML files.

    A line names a file with or without an ending. It may hold spaces, or a second word such as
    VOC's 1 and -1: the reading counts for which there is a file.
    """
    files = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue

        # "my image 1.jpg", "my image 1" and "000012 -1" are all in use.
        candidates = []
        for name in (line.strip(), line.split()[0]):
            candidates.append(annotations / f"{name}.xml")
            candidates.append(annotations / f"{os.path.splitext(name)[0]}.xml")
        files.append(first_file(candidates) or candidates[2])
    return files


def read_voc(path: Path, image_root: Path, zero_based: bool, drop_difficult: bool) -> ImageLabels:
    """Read the objects of one XML file; parts of an object, such as a person's hand, are skipped.

    Args:
        path: XML file.
        image_root: folder of the images.
        zero_based: see :func:`convert_voc`.
        drop_difficult: see :func:`convert_voc`.

    Raises:
        UnusableError: the file or its image is missing or broken, or their sizes do not fit.
    """
    root = parse_xml(path)
    image = find_image(image_root, path, root.findtext("filename"))
    size, orientation = read_image_size(image)

    # The size in the file tells on which copy of the image the boxes were drawn.
    annotated_size = read_annotated_size(root) or size
    transform = frame_transform(annotated_size, size, orientation)
    if transform is None:
        sizes = "{}x{} but {}x{}".format(*annotated_size, *size)
        raise UnusableError(f"{path}: the sizes of file and image do not fit, {sizes}")

    labels = ImageLabels(image.relative_to(image_root).as_posix(), size)
    for item in root.iter("object"):
        try:
            name, corners = parse_object(item, drop_difficult)
            # VOC's pixels count from 1, and the last one belongs to the box.
            x0, y0, x1, y1 = corners
            drawn = corners if zero_based else (x0 - 1, y0 - 1, x1, y1)
            box = clip_box(transform(drawn), size)
            if box is None:
                raise UnusableError(f"{name} has the box {list(corners)}, outside or empty")
            labels.boxes.append((name, box))
        except UnusableError as error:
            labels.problems.append(f"{path}: {error}")
    return labels


def parse_object(item: ElementTree.Element, drop_difficult: bool) -> tuple[str, Box]:
    """Return an object's name and its (xmin, ymin, xmax, ymax) as written.

    Raises:
        UnusableError: one of them is missing, or the object is difficult.
    """
    name = item.findtext("name", "").strip()
    if not name:
        raise UnusableError("an object without name")
    if drop_difficult and item.findtext("difficult", "0").strip() == "1":
        raise UnusableError(f"{name} is difficult")

    try:
        x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{key}", "none")) for key in CORNERS)
    except ValueError as error:
        raise UnusableError(f"{name} has no readable bndbox") from error
    return name, (x0, y0, x1, y1)


def parse_xml(path: Path) -> ElementTree.Element:
    """Read an XML file.

    Raises:
        UnusableError: the file is missing, not XML, or of an unknown encoding.
    """
    try:
        data = path.read_bytes()
        # Python decodes more encodings than the parser.
        declared = re.match(rb"""<\?xml[^>]*encoding=["']([\w.-]+)["'][^>]*\?>""", data)
        if declared is None:
            return ElementTree.fromstring(data)
        return ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))
    except FileNotFoundError as error:
        raise UnusableError(f"{path}: there is no such file") from error
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UnusableError(f"{path}: not valid XML ({error})") from error


def read_annotated_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the (width, height) that an XML file gives; None if it gives none, or no size."""
    try:
        width = int(float(root.findtext("size/width", "0")))
        height = int(float(root.findtext("size/height", "0")))
    except (ValueError, OverflowError):
        return None

    if width <= 0 or height <= 0:
        return None
    return width, height


def find_image(image_root: Path, xml_file: Path, named: str | None) -> Path:
    """Find the image of an XML file: the one of the same stem, or else the one that it names.

    Raises:
        UnusableError: neither is in the folder of the images.
    """
    candidates = []
    for suffix in sorted(IMAGE_SUFFIXES):
        candidates.append(image_root / f"{xml_file.stem}{suffix}")
        candidates.append(image_root / f"{xml_file.stem}{suffix.upper()}")

    # A name must not lead out of the folder.
    if named:
        inside = image_root / named
        if inside.resolve().is_relative_to(image_root.resolve()):
            candidates.append(inside)
        # The name may hold folders of the annotator's computer.
        candidates.append(image_root / PureWindowsPath(named).name)

    image = first_file(candidates)
    if image is None:
        name = named or xml_file.stem
        raise UnusableError(f"{xml_file}: there is no image {name} in {image_root}")
    return image
