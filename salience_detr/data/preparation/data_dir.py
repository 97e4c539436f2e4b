"""Data sets as users name them: a folder in any known format, or YOLO's data.yaml.

YOLO's and Pascal VOC's are converted into a cache, once for each state of their files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.utils import comm

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import check_usable
from salience_detr.data.preparation.dataset_conversion import (
    ConvertedDataset,
    convert_voc,
    convert_yolo,
    write_dataset,
)
from salience_detr.data.preparation.layouts import (
    YOLO_FILES,
    NoAnnotationsError,
    Split,
    find_splits,
)
from salience_detr.data.preparation.voc_layout import find_folders
from salience_detr.data.preparation.yolo import label_candidates
from salience_detr.data.preparation.yolo_layout import find_description, read_description
from salience_detr.utils.files import write_text

# Files of the cache beside the annotations.
SUMMARY = "summary.txt"
REPORT = "report.txt"
# Changes with what conversions write, so that those of earlier versions are made again.
VERSION = "1"

_announced: set[Path] = set()


def open_data_dir(source: str | Path, *, draw: bool = True) -> dict[str, Split]:
    """Find the splits of a data set in COCO's format, or convert one of YOLO or Pascal VOC.

    Args:
        source: folder of the data set, or file that describes a YOLO data set.
        draw: draw a part for validation of a VOC data set without splits.

    Raises:
        DatasetError: there is no data set, or it cannot be used.
        OSError: the cache cannot be written to.
    """
    path = Path(source)
    if path.is_file():
        if not any(path.match(pattern) for pattern in YOLO_FILES):
            raise DatasetError(
                f"{path} is no data set: name its folder, or the data.yaml of a YOLO data set; of "
                "single files, name annotations and images (--train-json, --train-images)"
            )
        return find_splits(convert_into_cache(path, "YOLO", draw=draw))

    try:
        return find_splits(path)
    except NoAnnotationsError as error:
        kind = foreign_format(path)
        if kind is None:
            raise
        try:
            return find_splits(convert_into_cache(path, kind, draw=draw))
        except DatasetError as conversion_error:
            raise conversion_error from error


def foreign_format(root: Path) -> str | None:
    """Return "YOLO" or "VOC" if the files of a folder look so."""
    has_xml = any(root.rglob("*.xml"))
    is_yolo = any(any(root.glob(pattern)) for pattern in YOLO_FILES) or any(root.rglob("labels"))
    if has_xml and is_yolo:
        # Both have a folder "labels" or a list of classes.
        is_yolo = describes_yolo(root)

    if is_yolo:
        return "YOLO"
    return "VOC" if has_xml else None


def describes_yolo(root: Path) -> bool:
    """Return whether a folder holds the description of a YOLO data set, in YAML."""
    try:
        path = find_description(root)
        read_description(path, root)
    except DatasetError:
        return False
    return path.suffix in (".yaml", ".yml")


def convert_into_cache(source: Path, kind: str, *, draw: bool) -> Path:
    """Convert a data set into a folder of the cache, unless it is there already.

    Returns:
        The folder.

    Raises:
        DatasetError: the data set cannot be used.
        OSError: the cache cannot be written to.
    """
    draw = draw and kind == "VOC"
    name = f"{source.resolve().stem}-{fingerprint(source, kind, draw=draw)}"
    folder = cache_folder() / name
    is_new = not (folder / SUMMARY).is_file()
    if is_new:
        convert(source, kind, folder, draw=draw)

    # Each of several processes comes here, and some come twice.
    if is_new or (folder not in _announced and comm.is_main_process()):
        print((folder / SUMMARY).read_text(encoding="utf-8"), flush=True)
    _announced.add(folder)
    return folder


def convert(source: Path, kind: str, folder: Path, *, draw: bool) -> None:
    """Convert a data set into a folder, with a summary of one line and a report.

    Raises:
        DatasetError, OSError: see :func:`convert_into_cache`.
    """
    workers = os.cpu_count() or 1
    if kind == "YOLO":
        dataset = convert_yolo(source, workers=workers)
    elif draw:
        dataset = convert_voc(source, workers=workers)
    else:
        dataset = convert_voc(source, val_fraction=0.0, workers=workers)
    check_usable(dataset.conversions)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_dataset(dataset, folder)
        write_text(folder / REPORT, report(dataset))
        # The last one: where it is, all of them are.
        write_text(folder / SUMMARY, summarize(dataset, source, kind, folder))
    except OSError as error:
        raise OSError(
            f"{source} cannot be converted into {folder} ({error}); set XDG_CACHE_HOME to another "
            "folder, or convert it with salience-detr convert"
        ) from error


def summarize(dataset: ConvertedDataset, source: Path, kind: str, folder: Path) -> str:
    """Return what was converted, and where to, in one line."""
    parts = []
    num_problems = 0
    for name, conversion in dataset.conversions.items():
        num_images = len(conversion.content["images"])
        num_boxes = len(conversion.content["annotations"])
        parts.append(f"{name} {num_images} images, {num_boxes} boxes")
        num_problems += len(conversion.problems)

    text = f"{source} ({kind}) converted into {folder}: {'; '.join(parts)}"
    if dataset.drawn:
        text += f" (val is {dataset.drawn:g} of all; --val-fraction F draws another part)"
    if num_problems:
        text += f"; {num_problems} were left out"
    if num_problems or dataset.remarks:
        text += f"; {folder / REPORT} says more"
    return text


def report(dataset: ConvertedDataset) -> str:
    """Return the numbers of each split, and all that was left out."""
    sections = list(dataset.remarks)
    for name, conversion in dataset.conversions.items():
        sections.append(f"{name}: {conversion.report()}")
        sections += conversion.problems
    return "\n".join(sections) + "\n"


def cache_folder() -> Path:
    """Return the folder of converted data sets."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "salience_detr" / "converted"


def fingerprint(source: Path, kind: str, *, draw: bool) -> str:
    """Return a hash of a data set's path, and of the names, sizes and times of its files.

    Raises:
        DatasetError: the description of a YOLO data set cannot be used.
    """
    digest = hashlib.sha256(f"{VERSION} {kind} {draw} {source.resolve()}".encode())
    for folder in sorted(folders_of(source, kind)):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_file():
                status = entry.stat()
                digest.update(f"{entry.path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def folders_of(source: Path, kind: str) -> Iterable[Path]:
    """Return the folders of a data set's files; YOLO's description may name those of others."""
    root = source if source.is_dir() else source.parent
    if kind == "VOC":
        voc = find_folders(root, None, None)
        found: set[Path] = set()
        for top in (root, voc.annotations, voc.images):
            found.update(Path(folder) for folder, _, _ in os.walk(top))
        return found

    path = find_description(source)
    description = read_description(path, root)
    folders = {path.parent}
    for images in description.splits.values():
        for image in images:
            folders.add(image.parent)
            folders.update(label.parent for label in label_candidates(image))
    return filter(Path.is_dir, folders)
