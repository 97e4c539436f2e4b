"""The generated data set "surface defects": metal with six kinds of defects and their exact boxes.

Each image depends on the seed, the split and its index only, not on the number of images.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.random import Generator

from salience_detr.data.coco_dataset import register_coco_dataset, set_class_names
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import ImageLabels, assemble
from salience_detr.data.preparation.files import map_files
from salience_detr.data.surface.defects import DEFECTS, Defect
from salience_detr.data.surface.textures import Surface, make_surface, photograph
from salience_detr.utils.files import write_image, write_text

SURFACE_DEFECT_CLASSES = tuple(DEFECTS)
CATEGORY_NAMES = dict(enumerate(SURFACE_DEFECT_CLASSES, 1))
SPLITS = ("train", "val")
MIN_SIDE = 32  # of an image, in pixels
MIN_BOX_SIDE = 4  # in pixels; smaller parts of a defect at the border of an image are not drawn
MAX_DEFECTS = 12
PLACEMENT_TRIES = 8  # for each defect, until it fits
MIN_VISIBLE_PART = 0.6  # of a defect at the border of an image
MAX_OVERLAP = 0.1  # of the smaller of two boxes
NO_DEFECT_PROBABILITY = 0.06
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SurfaceSample:
    """An image with its defects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (G, 4) float64 absolute xyxy, the edges of the visible pixels of each defect.
        classes: (G,) int64 indices into SURFACE_DEFECT_CLASSES.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def render_surface(rng: Generator, height: int, width: int) -> SurfaceSample:
    """Draw a random image of ``height`` x ``width`` pixels with up to MAX_DEFECTS defects.

    Raises:
        DatasetError: a side is below MIN_SIDE.
    """
    _check_image_size((height, width))

    surface = make_surface(rng, height, width)
    unit = float(np.clip(min(height, width) / 320, 0.4, 3))
    num_defects = 0
    if rng.random() >= NO_DEFECT_PROBABILITY:
        num_defects = min(1 + int(rng.gamma(2.0, 1.9)), MAX_DEFECTS)

    boxes: list[Box] = []
    classes: list[int] = []
    for _ in range(num_defects):
        for _ in range(PLACEMENT_TRIES):
            label = int(rng.integers(len(SURFACE_DEFECT_CLASSES)))
            defect = DEFECTS[SURFACE_DEFECT_CLASSES[label]](rng, unit, surface.grain)
            box = _place(rng, defect, surface, boxes)
            if box is not None:
                boxes.append(box)
                classes.append(label)
                break

    return SurfaceSample(
        image=photograph(rng, surface),
        boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        classes=np.asarray(classes, dtype=np.int64),
    )


def _place(rng: Generator, defect: Defect, surface: Surface, others: list[Box]) -> Box | None:
    """Draw a defect at a random place of a surface; return its box, or None if it does not fit."""
    height, width = surface.height.shape
    left = int(rng.integers(0, width)) - defect.strength.shape[1] // 2
    top = int(rng.integers(0, height)) - defect.strength.shape[0] // 2
    cropped = _crop(defect, left, top, width, height)
    if cropped is None:
        return None

    x = max(0, left)
    y = max(0, top)
    x0, y0, x1, y1 = cropped.box()
    box = (x0 + x, y0 + y, x1 + x, y1 + y)
    if min(x1 - x0, y1 - y0) < MIN_BOX_SIDE or _overlaps(box, others):
        return None

    rows, columns = cropped.strength.shape
    patch = (slice(y, y + rows), slice(x, x + columns))
    factor = np.atleast_3d(cropped.albedo)  # gray is a factor for all three colors
    surface.albedo[patch] *= factor.astype(np.float32)
    surface.height[patch] += cropped.height.astype(np.float32)
    return box


def _crop(defect: Defect, left: int, top: int, width: int, height: int) -> Defect | None:
    """Return the part of a defect inside an image, or None if most of it is outside.

    Args:
        left, top: of the defect's patch, in pixels of the image; negative if it starts outside.
    """
    rows = slice(max(0, -top), max(0, height - top))
    columns = slice(max(0, -left), max(0, width - left))
    part = (rows, columns)

    cropped = Defect(defect.strength[part], defect.albedo[part], defect.height[part])
    if cropped.strength.sum() < MIN_VISIBLE_PART * defect.strength.sum():
        return None
    return cropped


def _overlaps(box: Box, others: list[Box]) -> bool:
    """Return whether a box and another share more than MAX_OVERLAP of the smaller one."""
    boxes = np.array([box, *others])
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(axis=1)

    common_sides = np.minimum(box[2:], boxes[1:, 2:]) - np.maximum(box[:2], boxes[1:, :2])
    common = common_sides.clip(min=0).prod(axis=1)
    return bool((common > MAX_OVERLAP * np.minimum(areas[0], areas[1:])).any())


def render_sample(
    index: int, *, split: str, seed: int, image_size: tuple[int, int]
) -> SurfaceSample:
    """Draw the image with this index of a split; ``image_size`` is (height, width)."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    return render_surface(rng, *image_size)


def generate_surface_defects(
    root: str | Path,
    *,
    split: str,
    num_images: int,
    image_size: tuple[int, int] = (320, 320),
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Write a split as ``root/SPLIT/*.jpg`` and ``root/annotations/SPLIT.json`` (COCO format).

    Images are written to a temporary folder that is renamed when it is complete; the annotations
    come last, so an interrupted run leaves nothing half-written. A complete split that was made
    with the same arguments is kept.

    Args:
        root: folder of the data set.
        split: "train" or "val"; their images differ.
        num_images: number of images.
        image_size: (height, width) in pixels.
        seed: of the whole data set.
        workers: processes that draw; 0 = this one.
        progress: show a progress bar.
        force: replace a split that was made with other arguments.

    Returns:
        Path of the annotation file.

    Raises:
        DatasetError: an argument is out of range, or differs from those of the existing split.
        OSError: the folder cannot be written to.
    """
    _check_arguments(split, num_images, image_size, seed)
    root = Path(root)
    annotation_file = root / "annotations" / f"{split}.json"
    info = {
        "description": f"Generated surface defects, {split}",
        "version": "1",
        "parameters": {"num_images": num_images, "image_size": list(image_size), "seed": seed},
    }
    if not force and is_complete(root, split, info):
        return annotation_file

    new = root / f".{split}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    render = partial(render_sample, split=split, seed=seed, image_size=image_size)
    write = partial(_write_image, folder=new, render=render)

    try:
        description = f"surface defects {split}"
        images = map_files(write, range(num_images), workers, description, progress=progress)
        conversion = assemble(images, {i: i for i in CATEGORY_NAMES}, CATEGORY_NAMES)

        # The old annotations go first: there are never annotations without their images.
        annotation_file.parent.mkdir(exist_ok=True)
        annotation_file.unlink(missing_ok=True)
        shutil.rmtree(root / split, ignore_errors=True)
        new.rename(root / split)
        write_text(
            annotation_file, json.dumps({"info": info, "licenses": [], **conversion.content})
        )
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return annotation_file


def is_complete(root: Path, split: str, info: Mapping[str, object]) -> bool:
    """Return whether a split with the parameters of ``info`` is there, with all its images.

    Raises:
        DatasetError: something else is in its place.
    """
    folder = root / split
    annotation_file = root / "annotations" / f"{split}.json"
    remedy = "replace it with --force or choose another folder"
    if not annotation_file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise DatasetError(f"{folder} holds files already; {remedy}")
        return False

    try:
        content = json.loads(annotation_file.read_text())
        parameters = content["info"]["parameters"]
        names = [image["file_name"] for image in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        problem = "is broken or was not made by this tool"
        raise DatasetError(f"{annotation_file} {problem}; {remedy}") from error

    if content["info"] != info:
        made = f"was made with {parameters}, not with {info['parameters']}"
        raise DatasetError(f"{annotation_file} {made}; {remedy}")
    return all((folder / name).is_file() for name in names)


def _check_arguments(split: str, num_images: int, image_size: tuple[int, int], seed: int) -> None:
    """Raise DatasetError for an argument that is out of range."""
    if split not in SPLITS:
        raise DatasetError(f"the split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if num_images < 1:
        raise DatasetError(f"the number of images is {num_images}; it must be at least 1")
    if seed < 0:
        raise DatasetError(f"the seed is {seed}; it must not be negative")
    _check_image_size(image_size)


def _check_image_size(image_size: tuple[int, int]) -> None:
    """Raise DatasetError if a side is below MIN_SIDE."""
    if min(image_size) < MIN_SIDE:
        size = f"{image_size[0]}x{image_size[1]}"
        raise DatasetError(f"the image size is {size}; both sides must be {MIN_SIDE} or more")


def _write_image(
    index: int, *, folder: Path, render: Callable[[int], SurfaceSample]
) -> ImageLabels:
    """Draw and write the image with this index, and return its boxes by category id."""
    sample = render(index)
    name = f"{index + 1:06d}.jpg"
    write_image(folder / name, sample.image, quality=95, full_color=False)

    height, width = sample.image.shape[:2]
    labels = ImageLabels(name, (width, height))
    for (x0, y0, x1, y1), label in zip(sample.boxes.tolist(), sample.classes.tolist(), strict=True):
        labels.boxes.append((label + 1, (x0, y0, x1 - x0, y1 - y0)))
    return labels


def register_surface_defects(root: str | Path | None = None) -> None:
    """Register ``surface_defects_train`` and ``surface_defects_val`` in detectron2's catalogs.

    Args:
        root: folder of the data set (default: ``surface_defects`` in $DETECTRON2_DATASETS or
            ./datasets). Registering again replaces an earlier root.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "surface_defects"
    folder = Path(root)

    categories = [{"id": i, "name": name} for i, name in CATEGORY_NAMES.items()]
    for split in SPLITS:
        name = f"surface_defects_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

        # The classes are known before the data is generated.
        register_coco_dataset(name, folder / "annotations" / f"{split}.json", folder / split)
        set_class_names(name, categories)
        remedy = "make it with: python tools/make_surface_defects.py"
        MetadataCatalog.get(name).set(how_to_get=remedy)
