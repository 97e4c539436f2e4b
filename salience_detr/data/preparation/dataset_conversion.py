"""Conversion of whole data sets, Pascal VOC's and YOLO's, to annotation files in COCO's format."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import (
    Conversion,
    ImageLabels,
    assemble,
    draw_labels,
)
from salience_detr.data.preparation.layouts import IMAGE_FOLDERS
from salience_detr.data.preparation.voc import find_xml_files, read_voc
from salience_detr.data.preparation.voc_layout import ImageIndex, find_folders, find_splits
from salience_detr.data.preparation.yolo import common_folder, read_yolo
from salience_detr.data.preparation.yolo_layout import find_description, read_description
from salience_detr.utils.files import write_text

SPLITS = ("train", "val", "test")
# Part of a VOC data set that is drawn for validation where it has no splits.
VOC_FRACTION = 0.2


@dataclass(frozen=True)
class ConvertedDataset:
    """Data set in COCO's format.

    Attributes:
        conversions: content by split: "train", "val" or "test".
        image_roots: folder of the images by split.
        remarks: what else the user should know.
        drawn: part of the images that was drawn for validation.
    """

    conversions: dict[str, Conversion]
    image_roots: dict[str, Path]
    remarks: list[str] = field(default_factory=list)
    drawn: float = 0.0


def convert_voc(
    source: Path,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    zero_based: bool = False,
    drop_difficult: bool = False,
    val_fraction: float | None = None,
    split_by: str | None = None,
    workers: int = 0,
) -> ConvertedDataset:
    """Convert a VOC data set; all splits get the same classes.

    Args:
        source: folder of the data set.
        annotations: folder of the XML files, if it has no usual name.
        images: folder of the images, if it has no usual name.
        classes: names in the order of their ids; by default all, sorted.
        zero_based: corners count from 0, not, as VOC's, from 1.
        drop_difficult: leave out objects that are difficult.
        val_fraction: part drawn for validation; by default VOC_FRACTION of a data set without
            splits. 0 draws nothing.
        split_by: pattern; images stay together whose first group is equal.
        workers: processes that read; 0 reads in this one.

    Raises:
        DatasetError: the data set cannot be read, or not be split so.
    """
    folders = find_folders(source, annotations, images)
    all_files = find_xml_files(folders.annotations)
    splits = find_splits(folders, all_files)
    # Lists may name files that are not there.
    files = sorted({*all_files, *itertools.chain(*splits.values())})

    index = ImageIndex(folders.images)
    labels = read_voc(
        folders, files, index,
        zero_based=zero_based, drop_difficult=drop_difficult, workers=workers,
    )  # fmt: skip
    split_labels = {name: [labels[path] for path in paths] for name, paths in splits.items()}

    # 0 asks for no validation.
    if not splits:
        split_labels = {"train": list(labels.values())}
        num_images = sum(image.size is not None for image in labels.values())
        if val_fraction is None and round(VOC_FRACTION * num_images):
            val_fraction = VOC_FRACTION
    if val_fraction != 0:
        split_labels = split(split_labels, source, val_fraction, split_by)

    # A class may be missing from a split.
    occurring = set().union(*(image.classes for image in labels.values()))
    names = dict(enumerate(classes or sorted(map(str, occurring)), 1))
    category_ids = {name: category_id for category_id, name in names.items()}
    conversions = {}
    for name, images_labels in split_labels.items():
        conversions[name] = assemble(images_labels, category_ids, names)

    remarks = []
    used = {image.file_name for image in labels.values()}
    unknown = [str(file) for file in index.files if str(file) not in used]
    if unknown:
        example = folders.images / unknown[0]
        remarks.append(
            f"{len(unknown)} images have no .xml file and are in no set ({example}, ...)"
        )
    roots = dict.fromkeys(conversions, folders.images)
    return ConvertedDataset(conversions, roots, remarks, val_fraction or 0.0)


def convert_yolo(
    source: Path,
    *,
    val_fraction: float | None = None,
    split_by: str | None = None,
    workers: int = 0,
) -> ConvertedDataset:
    """Convert a YOLO data set, whose category ids are YOLO's indices, from 0.

    Args:
        source: data.yaml, obj.data or classes.txt, or the folder with it.
        val_fraction: see :func:`convert_voc`; nothing is drawn by default.
        split_by: see :func:`convert_voc`.
        workers: see :func:`convert_voc`.

    Raises:
        DatasetError: the data set cannot be read, or not be split so.
    """
    root = source if source.is_dir() else source.parent
    description = read_description(find_description(source), root)

    # The names of the images are relative to the folder that all of them are in.
    roots = {name: common_folder(images) for name, images in description.splits.items()}
    labels = read_yolo(description, roots, workers=workers)
    splits = split(labels, source, val_fraction, split_by)
    if len(splits) > len(roots):
        roots["val"] = roots["train"]

    category_ids = {index: index for index in description.names}
    conversions = {}
    for name, images_labels in splits.items():
        conversions[name] = assemble(images_labels, category_ids, description.names)
    return ConvertedDataset(conversions, roots, description.remarks, val_fraction or 0.0)


def split(
    splits: dict[str, list[ImageLabels]],
    source: Path,
    val_fraction: float | None,
    split_by: str | None,
) -> dict[str, list[ImageLabels]]:
    """Draw a part of "train" for validation, if the user asks for it.

    Raises:
        DatasetError: there is a part for validation, or none to draw it from.
    """
    if val_fraction is None:
        return splits
    if "val" in splits or "train" not in splits:
        raise DatasetError(
            f"--val-fraction {val_fraction:g} splits a data set without a part for "
            f"validation, but {source} has {' and '.join(splits)}: leave it out"
        )
    return {**splits, **draw_labels(splits["train"], val_fraction, split_by)}


def output_paths(output: Path) -> dict[str, Path]:
    """Return the annotation file of each split."""
    return {name: output / "annotations" / f"instances_{name}.json" for name in SPLITS}


def write_dataset(dataset: ConvertedDataset, output: Path) -> dict[str, Path]:
    """Write the annotation file of each split, and where its images are.

    Images stay where they are; :func:`layouts.find_splits` finds them there.

    Returns:
        The annotation file by split.
    """
    # Splits of an earlier conversion would be taken for parts of this one.
    paths = output_paths(output)
    for path in paths.values():
        path.unlink(missing_ok=True)

    written = {}
    folders = {}
    for name, conversion in dataset.conversions.items():
        path = paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(conversion.content))
        written[name] = path
        folders[path.name] = str(dataset.image_roots[name].resolve())

    text = yaml.safe_dump(folders, allow_unicode=True, width=9999)
    write_text(output / "annotations" / IMAGE_FOLDERS, text)
    return written
