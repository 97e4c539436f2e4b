"""Drawings of what a model in training detects."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from torch import nn

from salience_detr.data.datasets import as_list, class_names_of
from salience_detr.data.images import read_image
from salience_detr.detector import prepare_input
from salience_detr.evaluation.ap_table import Evaluated
from salience_detr.modeling import SalienceDETR
from salience_detr.predictor import detect_with_salience
from salience_detr.utils.drawing import class_colors, draw_boxes, draw_detections, draw_salience

SCORE_THRESHOLD = 0.3
SHORTEST_SIDE = 400
LONGEST_SIDE = 1600
TITLE_HEIGHT = 26
UNKNOWN_COLOR = (150, 150, 150)


def preview_images(
    config: DictConfig,
    model: nn.Module,
    class_names: Sequence[str] = (),
    weights: str = "weights",
    iteration: int | None = None,
) -> dict[str, np.ndarray]:
    """Draw ground truth, detections and salience, side by side, of some images of the test set.

    They are always the same ``train.previews`` images, spread evenly over the (first) set. Small
    ones are enlarged, so that their labels can be read.

    Args:
        config: of the run.
        model: to draw the detections of.
        class_names: names of the model's classes; by default those of the test set.
        weights: what the weights are called in the title of each.
        iteration: number of steps that they were trained for, for the same.

    Returns:
        (H, W, 3) uint8 RGB images by the stem of their file; none for models without salience.
    """
    if not isinstance(model, SalienceDETR):
        return {}

    test = config.dataloader.test
    dataset = copy.copy(test.dataset)
    dataset.names = as_list(dataset.names)[0]
    records = instantiate(dataset)
    count = min(config.train.previews, len(records))
    title = f"{Evaluated(weights, dataset.names, iteration)}: truth, detections, salience"
    mapper = instantiate(test.mapper)

    # A class has one color, even where the test set numbers it otherwise.
    true_names = class_names_of(dataset.names) or list(class_names)
    if not true_names:
        true_names = list(map(str, range(model.num_classes)))
    class_names = list(class_names) or true_names
    colors = class_colors(len(class_names))
    color_of = dict(zip(class_names, colors, strict=True))
    true_colors = [color_of.get(name, UNKNOWN_COLOR) for name in true_names]

    # The model goes on in the mode it was in.
    was_training = model.training
    model.eval()
    previews: dict[str, np.ndarray] = {}
    for i in range(count):
        record = records[i * len(records) // count]
        image = read_image(record["file_name"], value_range=mapper.value_range)
        instances, salience = detect_with_salience(model, [prepare_input(mapper, image)])[0]
        detections = instances[instances.scores >= SCORE_THRESHOLD]

        # The lines and labels of a small image would hide it.
        height, width = image.shape[:2]
        image = enlarge(image)
        scale = (image.shape[1] / width, image.shape[0] / height)
        detections.pred_boxes.scale(*scale)
        panels = [
            draw_ground_truth(image, record, true_names, true_colors, scale),
            draw_detections(image, detections, class_names=class_names, colors=colors),
            draw_salience(image, cv2.resize(salience, (image.shape[1], image.shape[0]))),
        ]

        # Images of several folders may have the same name.
        name = Path(record["file_name"]).stem
        if name in previews:
            name = f"{name}_{len(previews)}"
        drawing = np.concatenate(panels, axis=1)
        previews[name] = add_title(drawing, title)

    model.train(was_training)
    return previews


def draw_ground_truth(
    image: np.ndarray,
    record: dict[str, list[dict]],
    class_names: list[str],
    colors: list[tuple[int, int, int]],
    scale: tuple[float, float],
) -> np.ndarray:
    """Draw the annotated boxes of a record in detectron2's format on its (H, W, 3) RGB image.

    The image is wider and higher than the record's by the factors of ``scale``.
    """
    entries = record.get("annotations", [])
    boxes = []
    labels = []
    box_colors = []
    for entry in entries:
        box = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
        boxes.append(np.array(box) * (*scale, *scale))
        labels.append(class_names[entry["category_id"]])
        box_colors.append(colors[entry["category_id"]])
    return draw_boxes(image, boxes, labels, box_colors)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Enlarge an (H, W, 3) image so that its shorter side is ``SHORTEST_SIDE`` pixels.

    The longer side of a long image ends at ``LONGEST_SIDE``; large images stay as they are.
    """
    height, width = image.shape[:2]
    factor = min(SHORTEST_SIDE / min(height, width), LONGEST_SIDE / max(height, width))
    if factor <= 1:
        return image

    size = (round(factor * width), round(factor * height))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def add_title(image: np.ndarray, title: str) -> np.ndarray:
    """Return an (H, W, 3) image with a line of text above it."""
    strip = np.full((TITLE_HEIGHT, image.shape[1], 3), 255, np.uint8)
    place = (6, TITLE_HEIGHT - 8)
    cv2.putText(strip, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, image])
