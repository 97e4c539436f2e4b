"""Pascal VOC's XML files as a COCO data set."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import (
    IMAGE_SUFFIXES,
    Conversion,
    Labels,
    assemble,
    clip_box,
    read_all,
    size_or_problem,
)
from salience_detr.data.preparation.frames import to_shown_frame


@dataclass(frozen=True)
class VocFile:
    """One XML file and how to read it.

    Attributes:
        path: of the file.
        image_root: folder of the images.
        zero_based: its corners count from 0 and are exclusive; VOC's count from 1 and are inclusive.
        drop_difficult: leave out objects that are marked difficult.
    """

    path: Path
    image_root: Path
    zero_based: bool = False
    drop_difficult: bool = False


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
        annotations: folder of the XML files, searched with all below it.
        images: folder of the images.
        classes: names in the order of their ids; by default those that occur, sorted.
        stems: names of the files of the split, without ending; by default all.
        zero_based: the corners count from 0 and are exclusive.
        drop_difficult: leave out objects that are marked difficult.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: there are no XML files.
    """
    paths = (
        find_files(annotations)
        if stems is None
        else [annotations / f"{stem}.xml" for stem in stems]
    )
    if not paths:
        raise DatasetError(
            f"there are no .xml files in {annotations}"
            if stems is None
            else "the split holds no files"
        )
    found = read_all(
        read_voc, [VocFile(path, images, zero_based, drop_difficult) for path in paths], workers
    )
    names = list(classes) or sorted({str(box[0]) for labels in found for box in labels.boxes})
    return assemble(found, {name: i + 1 for i, name in enumerate(names)}, dict(enumerate(names, 1)))


def find_files(annotations: Path) -> list[Path]:
    """All XML files of a folder."""
    return sorted(path for path in annotations.rglob("*") if path.suffix.lower() == ".xml")


def images_without_file(annotations: Path, images: Path) -> list[Path]:
    """Images that no XML file is for: whether they show nothing or were never looked at is not known."""
    stems = {path.stem for path in find_files(annotations)}
    image_files = (path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in image_files if path.stem not in stems)


def read_voc(task: VocFile) -> Labels:
    """The objects of one XML file; what is no object of its own, such as the parts of a person, is passed over."""
    path = task.path
    try:
        root = parse(path)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        reason = (
            "there is no such file"
            if isinstance(error, FileNotFoundError)
            else f"not valid XML ({error})"
        )
        return Labels(path.stem, problems=[f"{path}: {reason}"])
    named = root.findtext("filename")
    image = find_image(task.image_root, path.stem, named)
    if image is None:
        return Labels(
            path.stem,
            problems=[f"{path}: there is no image {named or path.stem} in {task.image_root}"],
        )
    labels = Labels(image.relative_to(task.image_root).as_posix())
    if not size_or_problem(image, labels) or labels.size is None:
        return labels
    said = said_size(root) or labels.size
    if to_shown_frame((0, 0, *said), said, labels.size, labels.orientation) is None:
        sizes = " but ".join(f"{width}x{height}" for width, height in (said, labels.size))
        labels.problems.append(f"{path}: the sizes of file and image do not fit, {sizes}")
        labels.size = None
        return labels
    for item in root.iter("object"):
        add_object(labels, item, said, task)
    return labels


def add_object(
    labels: Labels, item: ElementTree.Element, said: tuple[int, int], task: VocFile
) -> None:
    """Add the box of an object, drawn in a frame of ``said`` (width, height), or why it is left out."""
    assert labels.size is not None
    name = (item.findtext("name") or "").strip()
    where = f"{task.path}: {name or 'an object without name'}"
    if task.drop_difficult and item.findtext("difficult", "0").strip() == "1":
        labels.problems.append(f"{where} is difficult")
        return
    try:
        corners = [
            float(item.findtext(f"bndbox/{key}", "none"))
            for key in ("xmin", "ymin", "xmax", "ymax")
        ]
    except ValueError:
        labels.problems.append(f"{where} has no readable bndbox")
        return
    offset = 0.0 if task.zero_based else 1.0
    frame = (corners[0] - offset, corners[1] - offset, corners[2], corners[3])
    shown = to_shown_frame(frame, said, labels.size, labels.orientation)
    box = None if shown is None else clip_box(shown, labels.size)
    if box is None or not name:
        labels.problems.append(
            f"{where} has the box {corners}, outside or empty" if name else where
        )
        return
    labels.boxes.append((name, *box))


def parse(path: Path) -> ElementTree.Element:
    """The root of an XML file, in whatever encoding Python knows: the parser itself knows few.

    Raises:
        ElementTree.ParseError, ValueError, LookupError, OSError: it is not XML, or of an unknown encoding.
    """
    data = path.read_bytes()
    try:
        return ElementTree.fromstring(data)
    except (ValueError, LookupError):
        declared = re.match(rb"""<\?xml[^>]*encoding=["']([\w.-]+)["'][^>]*\?>""", data)
        if declared is None:
            raise
        return ElementTree.fromstring(data[declared.end() :].decode(declared[1].decode()))


def said_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(width, height) that the file gives; None if it gives none, or nonsense."""
    try:
        width, height = (
            int(float(root.findtext(f"size/{side}", "0"))) for side in ("width", "height")
        )
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def find_image(image_root: Path, stem: str, named: str | None) -> Path | None:
    """The image of an annotation file: the one of the same stem, or else the one that the file names."""
    suffixes = [
        spelling for suffix in sorted(IMAGE_SUFFIXES) for spelling in (suffix, suffix.upper())
    ]
    candidates = [image_root / f"{stem}{suffix}" for suffix in suffixes]
    if named:
        inside = image_root / named
        candidates += [inside] if inside.resolve().is_relative_to(image_root.resolve()) else []
        candidates += [
            image_root / PureWindowsPath(named).name
        ]  # of the folders of the annotator's computer
    return next((path for path in candidates if path.is_file()), None)
