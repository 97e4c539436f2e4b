"""The images that a detector gets most wrong on one sheet, ground truth beside detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from salience_detr.data.image_files import locate_images
from salience_detr.data.images import ImageReadError
from salience_detr.data.value_range import ValueRange
from salience_detr.evaluation.comparison import (
    GAP,
    draw_entries,
    read_annotated_image,
    side_by_side,
)
from salience_detr.evaluation.error_analysis import FALSE_POSITIVES, ImageErrors, Outcome
from salience_detr.utils.drawing import resize_between
from salience_detr.utils.drawing_options import Color
from salience_detr.visualization.panels import add_legend, new_sheet, render, show_image

# The longer side of an image on the sheet.
TILE = 360

GREEN, ORANGE, GRAY = (0, 170, 0), (255, 140, 0), (150, 150, 150)
BOX_COLORS: dict[Outcome, Color] = {
    Outcome.FOUND: GREEN,
    Outcome.CLS: ORANGE,
    Outcome.LOC: ORANGE,
    Outcome.MISS: ORANGE,
    Outcome.CROWD: GRAY,
}
DETECTION_COLORS: dict[Outcome, Color] = {
    Outcome.CORRECT: GREEN,
    Outcome.LOC: (40, 110, 255),
    Outcome.CLS: (220, 0, 220),
    Outcome.BOTH: (130, 60, 0),
    Outcome.DUPE: (0, 190, 190),
    Outcome.BKG: (230, 0, 0),
    Outcome.IGNORED: GRAY,
}
# What the colors mean.
LEGEND = {
    "left: found": GREEN,
    "left: not found": ORANGE,
    "left: crowd region": GRAY,
    **{f"right: {outcome.label}": color for outcome, color in DETECTION_COLORS.items()},
}


def draw_worst_images(
    coco: COCO, ranking: Sequence[ImageErrors], image_root: Path, *, count: int
) -> tuple[np.ndarray | None, list[str]]:
    """Draw the first images of a ranking on one sheet, boxes in the colors of their outcomes.

    Images that cannot be read are skipped; the next ones take their places.

    Returns:
        (H, W, 3) uint8 RGB, None if no image could be drawn; and a message for each image that
        could not be read.
    """
    names = [coco.imgs[errors.image.image_id]["file_name"] for errors in ranking]
    files = locate_images(image_root, names).paths
    tiles: list[tuple[str, np.ndarray]] = []
    notes = []
    value_range = ValueRange()
    with tqdm(total=min(count, len(ranking)), desc="worst images", unit="image") as bar:
        for rank, errors in enumerate(ranking, 1):
            if len(tiles) == count:
                break

            entry = coco.imgs[errors.image.image_id]
            try:
                image = read_annotated_image(entry, files[entry["file_name"]], value_range)
            except ImageReadError as error:
                notes.append(str(error))
                continue

            title = f"{rank}. {entry['file_name']}: {describe_errors(errors)}"
            tiles.append((title, draw_errors(image, errors, coco)))
            bar.update()

    if not tiles:
        return None, notes

    # A tile is about twice as wide as high.
    columns = max(1, round((len(tiles) / 2) ** 0.5))
    heading = "Worst images: ground truth left, detections right"
    shape = (TILE, 2 * TILE + GAP)
    figure, axes = new_sheet(heading, len(tiles), shape, columns=columns, side=shape[1])
    for panel, (title, drawing) in zip(axes, tiles, strict=True):
        show_image(panel, drawing, title)

    colors = [f"#{bytes(color).hex()}" for color in LEGEND.values()]
    add_legend(figure, colors, list(LEGEND))
    return render(figure), notes


def draw_errors(image: np.ndarray, errors: ImageErrors, coco: COCO) -> np.ndarray:
    """Draw an image twice, boxes left and detections right: (h, 2 * TILE + GAP, 3) at most."""
    image = resize_between(image, TILE, TILE)
    box_colors = [BOX_COLORS[outcome] for outcome in errors.box_outcomes]
    left = draw_entries(image, errors.image.annotations, box_colors, coco)

    colors = [DETECTION_COLORS[outcome] for outcome in errors.detection_outcomes]
    right = draw_entries(image, errors.image.detections, colors, coco)
    return side_by_side(left, right)


def describe_errors(errors: ImageErrors) -> str:
    """Describe the number of boxes not found and of false detections by type, in words."""
    text = f"{errors.num_false_negatives} of {errors.num_boxes} boxes not found"
    text += f", {errors.num_false_positives} false detections"

    types = []
    for outcome in FALSE_POSITIVES:
        count = errors.detection_outcomes.count(outcome)
        if count:
            types.append(f"{count} {outcome.label}")

    return f"{text} ({', '.join(types)})" if types else text
