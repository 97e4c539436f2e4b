"""Folders of Pascal VOC data sets: where the XML files, their images and the splits are.

VOC keeps all in Annotations, JPEGImages and ImageSets. NEU-DET has a folder of images for each
class, Roboflow a folder for each split with images and XML files, labelImg both side by side.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.endings import image_endings
from salience_detr.data.preparation.conversion import UnusableError
from salience_detr.data.preparation.files import find_files, first_file
from salience_detr.utils.errors import shorten

XML = {".xml"}
# Usual names of the two folders, in small letters.
ANNOTATION_FOLDERS = ("annotations", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("jpegimages", "images", "imgs", "image")
# Names of the lists in ImageSets/Main, per split; the first that is there counts.
SPLIT_LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
# Names of folders of the splits, in small letters.
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class VocFolders:
    """Folders of a data set.

    Attributes:
        source: folder of the data set, with ImageSets/Main.
        annotations: folder of the XML files.
        images: folder of the images.
    """

    source: Path
    annotations: Path
    images: Path


def find_folders(source: Path, annotations: Path | None, images: Path | None) -> VocFolders:
    """Find the folders of a data set; where they do not have a usual name, ``source`` is searched.

    Args:
        source: folder of the data set, or that of VOCdevkit around a single one.
        annotations: folder of the XML files, if the user named it.
        images: folder of the images, if the user named it.

    Raises:
        DatasetError: a folder is not there, or holds several data sets.
    """
    if not source.is_dir():
        raise DatasetError(f"there is no folder {source}: use --annotations or --images")

    if annotations is None and images is None:
        inner = sorted(path.parents[1] for path in source.glob("**/ImageSets/Main"))
        if len(inner) > 1:
            some = shorten(list(map(str, inner)), 5)
            raise DatasetError(f"{source} holds several data sets; name one of {some}")
        if inner:
            source = inner[0]

    annotations = annotations or find_folder(source, ANNOTATION_FOLDERS, XML)
    images = images or find_folder(source, IMAGE_FOLDERS, None)
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}: use --annotations or --images")
    return VocFolders(source, annotations, images)


def find_folder(source: Path, names: Sequence[str], suffixes: Collection[str] | None) -> Path:
    """Return the first folder of a usual name with such files, or else the source itself.

    Without suffixes they are images.
    """
    for name in names:
        for folder in sorted(source.iterdir()):
            if folder.is_dir() and folder.name.lower() == name and find_files(folder, suffixes):
                return folder
    return source


def find_splits(folders: VocFolders, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Find the XML files of each split, by VOC's lists or else by the names of folders.

    Args:
        folders: of the data set.
        files: all of its XML files.

    Returns:
        Files by split; empty if the data set has no splits.

    Raises:
        DatasetError: some files are in the folder of a split, others in none.
    """
    splits: dict[str, list[Path]] = {}
    for split, names in SPLIT_LISTS.items():
        candidates = (folders.source / "ImageSets" / "Main" / f"{name}.txt" for name in names)
        path = first_file(candidates)
        if path is not None:
            splits[split] = read_list(path, folders.annotations, files)
    if splits:
        return splits

    without = []
    for file in files:
        parts = file.relative_to(folders.annotations).parts[:-1]
        named = list(filter(None, map(SPLIT_FOLDERS.get, map(str.lower, parts))))
        if named:
            splits.setdefault(named[0], []).append(file)
        else:
            without.append(file)

    if splits and without:
        raise DatasetError(
            f"{len(without)} XML files such as {without[0]} are in none of the folders of "
            f"{', '.join(splits)}; move them into one, or name a folder with --annotations"
        )
    return {split: splits[split] for split in SPLIT_LISTS if split in splits}


def read_list(path: Path, annotations: Path, files: Sequence[Path]) -> list[Path]:
    """Read a split's list of XML files.

    A line names a file with or without an ending. It may hold spaces, or a second word such as
    VOC's 1 and -1: the reading counts for which there is a file.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_stem[file.stem].append(file)

    listed = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue

        # "my image 1.jpg", "my image 1" and "000012 -1" are all in use.
        candidates = []
        for name in (line.strip(), line.split()[0]):
            candidates.append(annotations / f"{name}.xml")
            candidates.append(annotations / f"{os.path.splitext(name)[0]}.xml")

        # The files may lie in folders that the list does not name.
        for candidate in candidates[::-1]:
            if len(by_stem[candidate.stem]) == 1:
                candidates += by_stem[candidate.stem]
        listed.append(first_file(candidates) or annotations / f"{line.split()[0]}.xml")
    return listed


@dataclass(frozen=True)
class ImageHints:
    """What an XML file tells of its image.

    Attributes:
        xml_file: relative to the folder of the XML files.
        filename: element of this name; empty if there is none.
        folder: element of this name; empty if there is none.
        path: element of this name; empty if there is none.
    """

    xml_file: PurePosixPath
    filename: str = ""
    folder: str = ""
    path: str = ""

    @property
    def image_name(self) -> str:
        """Name of the image, without the folders of the annotator's computer."""
        return PureWindowsPath(self.filename.strip()).name

    @property
    def folders(self) -> set[str]:
        """Names of folders that the image may be in."""
        names = {*self.xml_file.parts[:-1], *PureWindowsPath(self.folder.strip()).parts}
        for text in (self.filename, self.path):
            names.update(PureWindowsPath(text.strip()).parts[:-1])
        return names


class ImageIndex:
    """The images of a folder and below it, by their names without endings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = [PurePosixPath(path.relative_to(root).as_posix()) for path in find_files(root)]
        self._by_stem: dict[str, list[PurePosixPath]] = defaultdict(list)
        for file in self.files:
            self._by_stem[file.stem].append(file)
            if file.stem.lower() != file.stem:
                self._by_stem[file.stem.lower()].append(file)

    def find(self, hints: ImageHints) -> tuple[Path, list[PurePosixPath]]:
        """Find the image of an XML file: of the same stem, or else the one that it names.

        Of several, the very file that the XML names comes first, then the one in folders of the
        names that the XML tells.

        Returns:
            The image, and others in its folder that only differ in their ending.

        Raises:
            UnusableError: there is no image, or several folders have one.
        """
        name = hints.image_name
        candidates = self._with_stem(hints.xml_file.stem) or self._with_stem(name)
        if not candidates:
            wanted = name or hints.xml_file.stem
            raise UnusableError(f"there is no image {wanted} in {self.root}")

        for is_named in (
            lambda file: file.name == name,
            lambda file: file.name.lower() == name.lower(),
            lambda file: file.suffix.lower() == PurePosixPath(name).suffix.lower(),
        ):
            candidates = list(filter(is_named, candidates)) or candidates

        scores = {file: folder_score(file, hints.folders) for file in candidates}
        best = [file for file in candidates if scores[file] == max(scores.values())]
        if len({file.parent for file in best}) > 1:
            some = shorten(list(map(str, best)), 3)
            raise UnusableError(f"several images could be meant: {some}; the XML file names none")
        return self.root / best[0], best[1:]

    def _with_stem(self, name: str) -> list[PurePosixPath]:
        """Return the images of a name, with or without its ending."""
        # "x_jpg.rf.1a2b" of Roboflow is a stem.
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in image_endings():
            stem = name
        return self._by_stem.get(stem) or self._by_stem.get(stem.lower()) or []


def folder_score(file: PurePosixPath, folders: set[str]) -> tuple[int, int]:
    """Return how well the folders of an image fit names of folders; more is better."""
    parts = file.parts[:-1]
    num_fitting = sum(part in folders for part in parts)
    return num_fitting, num_fitting - len(parts)
