"""Ground truth beside detections: a drawing of each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from salience_detr.data.coco_format import Entry, image_path
from salience_detr.data.depth import choose_from_files
from salience_detr.data.image_files import describe_folder, locate_images
from salience_detr.data.images import ImageReadError, read_image
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.preparation.layouts import (
    IMAGES,
    SAMPLE,
    count_images,
    fullest_folder,
    recorded_folder,
)
from salience_detr.data.value_range import ValueRange
from salience_detr.evaluation.results import (
    ImageResults,
    Results,
    ResultsError,
    category_names,
)
from salience_detr.utils.drawing import draw_boxes, resize_between
from salience_detr.utils.drawing_options import DEFAULTS, Color, DrawingOptions
from salience_detr.utils.errors import printable
from salience_detr.utils.files import UsedPaths, write_image

SCORE_THRESHOLD = 0.3
# Limits of the longer side of a drawn image, in pixels: on smaller ones labels would hide the
# boxes, and JPEG files end at 65,500.
MIN_SIDE, MAX_SIDE = 480, 4000
# Pixels between ground truth and detections.
GAP = 8
# Endings of drawings; images with other endings get ".png" added.
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}
# JPEG quality of the drawings.
QUALITY = 92


def draw_entries(
    image: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    colors: Sequence[Color],
    coco: COCO,
    options: DrawingOptions = DEFAULTS,
) -> np.ndarray:
    """Draw ground-truth boxes, or detections with their scores; crowd regions are hatched.

    Args:
        image: (H, W, 3) uint8 RGB, of any size.
        entries: annotations or detections of the image, in pixels of the annotated size.
        colors: RGB of each.
        coco: knows annotated sizes and class names.
        options: lines, labels and filling.
    """
    canvas = image.copy()
    names = dict(zip(sorted(coco.cats), category_names(coco), strict=True))
    boxes = []
    labels = []

    # Crowd regions at the bottom, then boxes, the best detections on top.
    pairs = sorted(zip(entries, colors, strict=True), key=lambda pair: drawing_rank(pair[0]))
    for entry, color in pairs:
        box = drawn_box(entry, image, coco)
        label = names[entry["category_id"]]
        if "score" in entry:
            label += f" {entry['score']:.0%}"
        if entry.get("iscrowd"):
            label += " (crowd)"
            hatch(canvas, box, color)

        boxes.append(box)
        labels.append(label)
    return draw_boxes(canvas, boxes, labels, [color for _, color in pairs], options)


def drawing_rank(entry: Mapping[str, Any]) -> tuple[bool, float]:
    """Return the rank of an annotation or a detection among those that are drawn, lowest first."""
    return not entry.get("iscrowd"), entry.get("score", 0.0)


def drawn_box(entry: Mapping[str, Any], image: np.ndarray, coco: COCO) -> np.ndarray:
    """Return the xyxy box of an entry in pixels of a resized image."""
    x, y, width, height = entry["bbox"]
    annotated = coco.imgs[entry["image_id"]]
    scale = [image.shape[1] / annotated["width"], image.shape[0] / annotated["height"]]
    return np.array([x, y, x + width, y + height]) * np.tile(scale, 2)


def hatch(canvas: np.ndarray, box: np.ndarray, color: Color) -> None:
    """Draw slanting lines in an xyxy box of an (H, W, 3) image, in place."""
    height, width = canvas.shape[:2]
    limits = [width, height, width, height]
    x0, y0, x1, y1 = np.clip(np.round(box), 0, limits).astype(int).tolist()

    # Of each 12 diagonals of pixels, 2 are colored.
    rows, columns = np.ogrid[y0:y1, x0:x1]
    canvas[y0:y1, x0:x1][(rows + columns) % 12 < 2] = color


def draw_comparison(
    image: np.ndarray, results: ImageResults, coco: COCO, options: DrawingOptions = DEFAULTS
) -> np.ndarray:
    """Draw an (H, W, 3) uint8 RGB image twice: ground truth left, detections right, with counts."""
    image = resize_between(image, MIN_SIDE, MAX_SIDE)
    num_crowds = int(results.is_crowd.sum())
    title = f"ground truth: {len(results.annotations) - num_crowds}"
    if num_crowds:
        title += f", crowd regions: {num_crowds}"

    # Each class has one color in all images.
    ids = sorted(coco.cats)
    palette = dict(zip(ids, options.palette(category_names(coco)), strict=True))

    colors = [palette[x["category_id"]] for x in results.annotations]
    left = draw_entries(image, results.annotations, colors, coco, options)

    colors = [palette[x["category_id"]] for x in results.detections]
    right = draw_entries(image, results.detections, colors, coco, options)
    right_title = f"detections: {len(results.detections)}"
    return side_by_side(add_title(left, title), add_title(right, right_title))


def add_title(image: np.ndarray, title: str) -> np.ndarray:
    """Write a line of ASCII text above an (H, W, 3) image, of a size that suits it."""
    scale = max(0.45, min(image.shape[:2]) / 1200)
    pitch = round(40 * scale)

    strip = np.full((pitch, image.shape[1], 3), 255, dtype=np.uint8)
    style = (cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), max(1, round(scale)), cv2.LINE_AA)
    cv2.putText(strip, printable(title), (2, round(0.75 * pitch)), *style)
    return np.concatenate([strip, image])


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    gap = np.full((len(left), GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def write_comparisons(
    results: Results,
    image_root: Path,
    output: Path,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    limit: int | None = None,
    value_range: ValueRange | None = None,
    options: DrawingOptions = DEFAULTS,
) -> tuple[int, list[str]]:
    """Draw images with :func:`draw_comparison` into a folder, under their own names.

    Args:
        results: detections and annotations.
        image_root: folder that the annotations' file names are relative to.
        output: folder of the drawings, see :func:`drawing_paths`.
        score_threshold: lowest score of detections that are drawn.
        limit: number of images to draw, the first in the annotations; None for all.
        value_range: range of the values of deep images; by default it is chosen from all images.
        options: lines, labels, filling and colors.

    Returns:
        The number of images drawn, and a message for each image that could not be read.

    Raises:
        OSError: a drawing cannot be written.
    """
    coco = results.coco
    images = results.by_image(score_threshold)
    names = [coco.imgs[x.image_id]["file_name"] for x in images]
    files = locate_images(image_root, names).paths
    paths = drawing_paths([str(files[name].absolute()) for name in names], image_root, output)
    if value_range is None:
        value_range = ValueRange()
        choose_from_files(value_range, [str(files[name]) for name in names])

    # All images have paths, so that a limit doesn't change the name of a drawing.
    chosen = list(zip(images, paths, strict=True))[:limit]

    notes = []
    for image, path in tqdm(chosen, desc="drawing", unit="image"):
        try:
            entry = coco.imgs[image.image_id]
            pixels = read_annotated_image(entry, files[entry["file_name"]], value_range)
        except ImageReadError as error:
            notes.append(str(error))
            continue

        write_image(path, draw_comparison(pixels, image, coco, options), quality=QUALITY)
    return len(chosen) - len(notes), notes


def read_annotated_image(entry: Entry, path: Path, value_range: ValueRange) -> np.ndarray:
    """Read the (H, W, 3) uint8 RGB image of an entry of the annotations from its file.

    Raises:
        ImageReadError: the image cannot be read, or is not of the annotated size.
    """
    image = read_image(str(path), value_range=value_range)

    DetectionMapper.check_size(image, {**entry, "file_name": str(path)})
    return image


def drawing_paths(file_names: Sequence[str], image_root: Path, output: Path) -> list[Path]:
    """Return the paths of drawings: the images' names and subfolders, in the output folder.

    A drawing whose name is taken, by an image itself or by another drawing, has a number added.
    """
    sources = [Path(os.path.abspath(image_path(image_root, name))) for name in file_names]
    # Images elsewhere are drawn under what their folders have in common.
    root = Path(os.path.abspath(image_root))
    if not all(source.is_relative_to(root) for source in sources):
        root = Path(os.path.commonpath([source.parent for source in sources]))

    used = UsedPaths(sources)
    paths = []
    for source in sources:
        path = output / source.relative_to(root)
        if path.suffix.lower() not in ENDINGS:
            path = path.with_name(f"{path.name}.png")

        paths.append(used.unused_path(path))
    return paths


def find_image_folder(annotation_file: Path, coco: COCO, folder: Path | None = None) -> Path:
    """Return the folder of the images: the given one, or where the usual layouts have it.

    Of converted data it is the one that the conversion has recorded.

    Raises:
        ResultsError: there is no such folder, or no image is in it.
        DatasetError: the record of a conversion cannot be read.
    """
    names = [x["file_name"] for x in coco.dataset["images"]]
    if not names:
        raise ResultsError(f"{annotation_file} has no images")

    if folder is not None:
        if not folder.is_dir():
            raise ResultsError(f"there is no folder of images {folder} (--images)")
        located = locate_images(folder, names)
        if len(located.missing) == len(set(names)):
            raise ResultsError(
                f"none of the images of {annotation_file} ({names[0]}, ...) is in {folder} "
                f"(--images): {describe_folder(folder)}"
            )
        return folder

    # "instances_val2017.json" is of the split val, in COCO's layout val2017; in Roboflow's
    # layout, the file's folder names the split.
    parent = annotation_file.absolute().parent
    stem = annotation_file.name.partition(".")[0].removeprefix("instances_")
    splits = (stem.removesuffix("2017"), stem, parent.name)
    candidates = [parent, *recorded_folder(annotation_file)]
    for root, split, pattern in product((parent, parent.parent), splits, IMAGES):
        candidates.append(root / pattern.format(s=split))

    # Some images may be missing: the folder with most of them is it.
    fullest = fullest_folder(candidates, partial(count_images, file_names=names[:SAMPLE]))
    if fullest is None:
        raise ResultsError(
            f"the images of {annotation_file} ({', '.join(names[:3])}, ...) are not in a usual "
            "place beside it; name their folder with --images"
        )
    return fullest
