"""Drawings of what a model in training detects."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from torch import nn

from salience_detr.data.datasets import as_list, class_names_of
from salience_detr.data.images import read_image
from salience_detr.modeling import SalienceDETR
from salience_detr.predictor import detect_with_salience, prepare_input
from salience_detr.utils.drawing import class_colors, draw_boxes, draw_detections, draw_salience

SCORE_THRESHOLD = 0.3
UNKNOWN_COLOR = (150, 150, 150)


def preview_images(
    config: DictConfig, model: nn.Module, class_names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Draw ground truth, detections and salience, side by side, of some images of the test set.

    They are always the same ``train.previews`` images, spread evenly over the (first) set.

    Args:
        config: of the run.
        model: to draw the detections of.
        class_names: names of the model's classes; by default those of the test set.

    Returns:
        (H, 3 * W, 3) uint8 RGB images by the stem of their file; none for models without salience.
    """
    if not isinstance(model, SalienceDETR):
        return {}

    test = config.dataloader.test
    dataset = copy.copy(test.dataset)
    dataset.names = as_list(dataset.names)[0]
    records = instantiate(dataset)
    count = min(config.train.previews, len(records))
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
        panels = [
            draw_ground_truth(image, record, true_names, true_colors),
            draw_detections(image, detections, class_names=class_names, colors=colors),
            draw_salience(image, salience),
        ]

        # Images of several folders may have the same name.
        name = Path(record["file_name"]).stem
        if name in previews:
            name = f"{name}_{len(previews)}"
        previews[name] = np.concatenate(panels, axis=1)

    model.train(was_training)
    return previews


def draw_ground_truth(
    image: np.ndarray,
    record: dict[str, list[dict]],
    class_names: list[str],
    colors: list[tuple[int, int, int]],
) -> np.ndarray:
    """Draw the annotated boxes of a record in detectron2's format on its (H, W, 3) RGB image."""
    entries = record.get("annotations", [])
    boxes = []
    labels = []
    box_colors = []
    for entry in entries:
        boxes.append(BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS))
        labels.append(class_names[entry["category_id"]])
        box_colors.append(colors[entry["category_id"]])
    return draw_boxes(image, boxes, labels, box_colors)
