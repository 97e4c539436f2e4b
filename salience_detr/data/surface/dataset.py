"""The generated data set "surface defects": metal with six kinds of defects and their exact boxes.

Each image depends on the seed, the split and its index only, not on the number of images.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from salience_detr.data.datasets import DatasetError, register_coco_dataset
from salience_detr.data.surface.defects import DEFECTS, Defect
from salience_detr.data.surface.textures import Surface, make_surface, photograph
from salience_detr.utils.files import write_image

SURFACE_DEFECT_CLASSES = tuple(DEFECTS)
SPLITS = ("train", "val")
MIN_SIDE = 32  # of an image, in pixels
MIN_BOX_SIDE = 4  # in pixels; smaller parts of a defect at the border of an image are not drawn
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


def render_surface(
    rng: np.random.Generator, height: int, width: int, *, max_defects: int = 12
) -> SurfaceSample:
    """Draw a random image of ``height`` x ``width`` pixels with up to ``max_defects`` defects.

    Raises:
        ValueError: a side is below MIN_SIDE, or ``max_defects`` is negative.
    """
    if min(height, width) < MIN_SIDE or max_defects < 0:
        raise ValueError(
            f"height {height} and width {width} must be {MIN_SIDE} or more, max_defects "
            f"({max_defects}) not negative"
        )

    surface = make_surface(rng, height, width)
    unit = float(np.clip(min(height, width) / 320, 0.4, 3))
    num_defects = 0
    if rng.random() >= NO_DEFECT_PROBABILITY:
        num_defects = min(1 + int(rng.gamma(2.0, 1.9)), max_defects)

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


def _place(
    rng: np.random.Generator, defect: Defect, surface: Surface, others: list[Box]
) -> Box | None:
    """Draw a defect at a random place of a surface; return its box, or None if it does not fit."""
    height, width = surface.height.shape
    left = int(rng.integers(0, width)) - defect.strength.shape[1] // 2
    top = int(rng.integers(0, height)) - defect.strength.shape[0] // 2
    cropped = _crop(defect, left, top, width, height)
    visible = None if cropped is None else cropped.box()
    if cropped is None or visible is None:
        return None

    x, y = max(0, left), max(0, top)
    box = (visible[0] + x, visible[1] + y, visible[2] + x, visible[3] + y)
    if min(box[2] - box[0], box[3] - box[1]) < MIN_BOX_SIDE or _overlaps(box, others):
        return None

    rows, columns = cropped.strength.shape
    surface.albedo[y : y + rows, x : x + columns] *= cropped.albedo.astype(np.float32)
    surface.height[y : y + rows, x : x + columns] += cropped.height.astype(np.float32)
    return box


def _crop(defect: Defect, left: int, top: int, width: int, height: int) -> Defect | None:
    """Return the part of a defect inside an image, or None if most of it is outside.

    Args:
        left, top: of the defect's patch, in pixels of the image; negative if it starts outside.
    """
    rows, columns = defect.strength.shape
    x0, x1 = max(0, left), min(width, left + columns)
    y0, y1 = max(0, top), min(height, top + rows)
    if x0 >= x1 or y0 >= y1:
        return None

    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    cropped = Defect(defect.strength[part], defect.albedo[part], defect.height[part])
    if cropped.strength.sum() < MIN_VISIBLE_PART * defect.strength.sum():
        return None
    return cropped


def _overlaps(box: Box, others: list[Box]) -> bool:
    """Return whether a box and another share more than MAX_OVERLAP of the smaller one."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    for other in others:
        side_x = min(box[2], other[2]) - max(box[0], other[0])
        side_y = min(box[3], other[3]) - max(box[1], other[1])
        other_area = (other[2] - other[0]) * (other[3] - other[1])
        common = side_x * side_y
        if side_x > 0 and side_y > 0 and common > MAX_OVERLAP * min(area, other_area):
            return True
    return False


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
    old = root / f".{split}.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)

    try:
        content = _write_images(new, info, split, num_images, image_size, seed, workers, progress)
        partial_file = new / "annotations.json"
        partial_file.write_text(json.dumps(content))

        # The old annotations go first: there are never annotations without their images.
        annotation_file.parent.mkdir(exist_ok=True)
        annotation_file.unlink(missing_ok=True)
        if (root / split).exists():
            (root / split).rename(old)
        new.rename(root / split)
        (root / split / partial_file.name).replace(annotation_file)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return annotation_file


def is_complete(root: Path, split: str, info: dict[str, Any]) -> bool:
    """Return whether a split with the parameters of ``info`` is there, with all its images.

    Raises:
        DatasetError: something else is in its place.
    """
    annotation_file = root / "annotations" / f"{split}.json"
    if not annotation_file.is_file():
        if (root / split).is_dir() and any((root / split).glob("*")):
            raise DatasetError(
                f"{root / split} holds files already; replace them with --force, or choose another "
                "folder"
            )
        return False

    try:
        content = json.loads(annotation_file.read_text())
        version = content["info"]["version"]
        parameters = content["info"]["parameters"]
        names = [image["file_name"] for image in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{annotation_file} is broken or was not made by this tool; replace it with --force or "
            "use another folder"
        ) from error

    if (version, parameters) != (info["version"], info["parameters"]):
        raise DatasetError(
            f"{annotation_file} was made with {parameters}, not with {info['parameters']}; "
            "replace it with --force or choose another folder"
        )
    return all((root / split / name).is_file() for name in names)


def _check_arguments(split: str, num_images: int, image_size: tuple[int, int], seed: int) -> None:
    """Raise DatasetError for an argument that is out of range."""
    if split not in SPLITS:
        raise DatasetError(f"the split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if num_images < 1:
        raise DatasetError(f"the number of images is {num_images}; it must be at least 1")
    if seed < 0:
        raise DatasetError(f"the seed is {seed}; it must not be negative")
    if min(image_size) < MIN_SIDE:
        size = f"{image_size[0]}x{image_size[1]}"
        raise DatasetError(f"the image size is {size}; both sides must be {MIN_SIDE} or more")


def _write_images(
    folder: Path,
    info: dict[str, Any],
    split: str,
    num_images: int,
    image_size: tuple[int, int],
    seed: int,
    workers: int,
    progress: bool,
) -> dict[str, Any]:
    """Write the images to a folder and return the content of the annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    draw = partial(_write_image, folder=folder, split=split, seed=seed, image_size=image_size)
    with ExitStack() as stack:
        if workers > 0:
            pool = stack.enter_context(ProcessPoolExecutor(workers))
            drawn = pool.map(draw, range(num_images), chunksize=8)
        else:
            drawn = map(draw, range(num_images))

        height, width = image_size
        title = f"surface defects {split}"
        bar = tqdm(drawn, total=num_images, desc=title, unit="image", disable=not progress)
        for image_id, (name, boxes, classes) in enumerate(bar, start=1):
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for (x0, y0, x1, y1), label in zip(boxes, classes, strict=True):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
                annotations.append(annotation)

    categories = [{"id": i + 1, "name": name} for i, name in enumerate(SURFACE_DEFECT_CLASSES)]
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _write_image(
    index: int, *, folder: Path, split: str, seed: int, image_size: tuple[int, int]
) -> tuple[str, list[list[float]], list[int]]:
    """Draw and write one image; return its file name, boxes (xyxy) and classes."""
    sample = render_sample(index, split=split, seed=seed, image_size=image_size)
    name = f"{index + 1:06d}.jpg"
    write_image(folder / name, sample.image, quality=95)
    return name, sample.boxes.tolist(), sample.classes.tolist()


def register_surface_defects(root: str | Path | None = None) -> None:
    """Register ``surface_defects_train`` and ``surface_defects_val`` in detectron2's catalogs.

    Args:
        root: folder of the data set (default: ``surface_defects`` in $DETECTRON2_DATASETS or
            ./datasets). Registering again replaces an earlier root.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "surface_defects"
    folder = Path(root)

    for split in SPLITS:
        name = f"surface_defects_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

        # The classes are known before the data is generated.
        register_coco_dataset(name, folder / "annotations" / f"{split}.json", folder / split)
        MetadataCatalog.get(name).set(
            thing_classes=list(SURFACE_DEFECT_CLASSES),
            thing_dataset_id_to_contiguous_id={
                i + 1: i for i in range(len(SURFACE_DEFECT_CLASSES))
            },
            how_to_get="make it with: python tools/make_surface_defects.py",
        )
