"""Conversion of Pascal VOC's XML files to a COCO data set."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import (
    ImageLabels,
    UnusableError,
    read_image_size,
)
from salience_detr.data.preparation.files import find_files, map_files
from salience_detr.data.preparation.frames import Box, frame_transform
from salience_detr.data.preparation.voc_layout import XML, ImageHints, ImageIndex, VocFolders

CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Descriptions of what a conversion did, for its report.
CORNER_AT_ZERO = "boxes have a corner at 0: if corners count from 0, add --zero-based"
OTHER_NAME = "XML files name another file than the image of their own name, which was taken"
OTHER_ENDING = "XML files fit images of several endings and name none: the first was taken"


@dataclass(frozen=True)
class VocFile:
    """Content of an XML file.

    Attributes:
        path: of the file.
        hints: what it tells of its image.
        size: (width, height) that it gives, if it gives one.
        objects: name and (xmin, ymin, xmax, ymax), as written, of each object.
        problems: descriptions of what was left out.
        is_usable: the file could be read.
    """

    path: Path
    hints: ImageHints
    size: tuple[int, int] | None = None
    objects: list[tuple[str, Box]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_usable: bool = True


@dataclass(frozen=True)
class MatchedFile:
    """XML file and its image.

    Attributes:
        file: XML file.
        image: its image.
        file_name: of the image, relative to the folder of the images.
        counts: of what was assumed, by description.
    """

    file: VocFile
    image: Path
    file_name: str
    counts: Counter[str] = field(default_factory=Counter)


def read_voc(
    folders: VocFolders,
    files: Sequence[Path],
    index: ImageIndex,
    *,
    zero_based: bool = False,
    drop_difficult: bool = False,
    workers: int = 0,
) -> dict[Path, ImageLabels]:
    """Read the objects of XML files; parts of an object, such as a person's hand, are skipped.

    Args:
        folders: of the data set.
        files: XML files.
        index: of the images.
        zero_based: corners count from 0 and are exclusive; VOC's count from 1 and are inclusive.
        drop_difficult: leave out objects that are marked difficult.
        workers: processes that read; 0 reads in this one.

    Returns:
        Labels by XML file; those that are left out have no size.

    Raises:
        DatasetError: there are no XML files.
    """
    if not files:
        raise DatasetError(f"there are no .xml files in {folders.annotations}")

    parse = partial(parse_file, root=folders.annotations, drop_difficult=drop_difficult)
    labels: dict[Path, ImageLabels] = {}
    matched = []
    for file in map_files(parse, files, workers, "annotations"):
        if not file.is_usable:
            labels[file.path] = ImageLabels(problems=file.problems)
            continue
        try:
            matched.append(match_image(file, index))
        except UnusableError as error:
            labels[file.path] = ImageLabels(problems=[f"{file.path}: {error}"])

    read = partial(read_boxes, zero_based=zero_based)
    images_labels = map_files(read, matched, workers, "images")
    labels.update(zip((match.file.path for match in matched), images_labels, strict=True))
    return {path: labels[path] for path in files}


def find_xml_files(annotations: Path) -> list[Path]:
    """Find the XML files of a folder and below it."""
    return find_files(annotations, XML)


def parse_file(path: Path, root: Path, drop_difficult: bool) -> VocFile:
    """Parse an XML file; one that cannot be used holds the problem.

    Args:
        path: XML file.
        root: folder of the XML files.
        drop_difficult: leave out objects that are marked difficult.
    """
    relative = PurePosixPath(path.relative_to(root).as_posix())
    try:
        element = parse_xml(path)
    except UnusableError as error:
        return VocFile(path, ImageHints(relative), problems=[str(error)], is_usable=False)

    hints = ImageHints(
        relative,
        filename=element.findtext("filename", ""),
        folder=element.findtext("folder", ""),
        path=element.findtext("path", ""),
    )
    file = VocFile(path, hints, read_annotated_size(element))
    for item in element.iter("object"):
        try:
            file.objects.append(parse_object(item, drop_difficult))
        except UnusableError as error:
            file.problems.append(f"{path}: {error}")
    return file


def match_image(file: VocFile, index: ImageIndex) -> MatchedFile:
    """Find the image of an XML file.

    Raises:
        UnusableError: there is none, or several could be meant.
    """
    image, others = index.find(file.hints)
    match = MatchedFile(file, image, image.relative_to(index.root).as_posix())

    name = file.hints.image_name.lower()
    if others:
        match.counts[OTHER_ENDING] += 1
    if name and name not in (image.name.lower(), image.stem.lower()):
        match.counts[OTHER_NAME] += 1
    return match


def read_boxes(match: MatchedFile, zero_based: bool) -> ImageLabels:
    """Return the labels of an image with the boxes of its XML file.

    Args:
        match: XML file and image.
        zero_based: see :func:`read_voc`.
    """
    file = match.file
    labels = ImageLabels(match.file_name, problems=list(file.problems), counts=match.counts)
    try:
        size, orientation = read_image_size(match.image)

        # The size in the file tells on which copy of the image the boxes were drawn.
        annotated_size = file.size or size
        transform = frame_transform(annotated_size, size, orientation)
        if transform is None:
            sizes = "{}x{} but {}x{}".format(*annotated_size, *size)
            raise UnusableError(f"the sizes of file and image do not fit, {sizes}")
    except UnusableError as error:
        labels.problems.append(f"{file.path}: {error}")
        return labels

    labels.size = size
    for name, corners in file.objects:
        # VOC's pixels count from 1, and the last one belongs to the box.
        x0, y0, x1, y1 = corners
        drawn = corners if zero_based else (x0 - 1, y0 - 1, x1, y1)
        try:
            if x0 > x1 or y0 > y1:
                raise UnusableError("its first corner is beyond its last")
            labels.add_box(name, transform(drawn))
        except UnusableError as error:
            labels.problems.append(f"{file.path}: {name} has the box {list(corners)}, {error}")
            continue

        if not zero_based and min(x0, y0) == 0:
            labels.counts[CORNER_AT_ZERO] += 1
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
        UnusableError: the file is missing, not XML of this kind, or of an unknown encoding.
    """
    try:
        data = path.read_bytes()
        # Python decodes more encodings than the parser.
        declared = re.match(rb"""<\?xml[^>]*encoding=["']([\w.-]+)["'][^>]*\?>""", data)
        if declared is not None:
            element = ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))
        else:
            element = ElementTree.fromstring(data)
    except FileNotFoundError as error:
        raise UnusableError(f"{path}: there is no such file") from error
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UnusableError(f"{path}: not valid XML ({error})") from error

    # CVAT's XML for images, for example, has all images in one file.
    if element.tag != "annotation":
        raise UnusableError(f"{path}: no VOC file: it begins with <{element.tag}>")
    return element


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
