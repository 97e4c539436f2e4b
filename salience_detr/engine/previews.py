"""Images of what a model in training sees and finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from omegaconf import DictConfig
from torch import nn

from salience_detr.data.images import read_image
from salience_detr.modeling import SalienceDETR
from salience_detr.predictor import detect_with_salience, prepare_input
from salience_detr.utils.drawing import class_colors, draw_boxes, draw_detections, draw_salience

SCORE_THRESHOLD = 0.3


def preview_images(config: DictConfig, model: nn.Module) -> dict[str, np.ndarray]:
    """Ground truth, detections and salience, side by side, of ``train.previews`` images of the test set.

    They are always the same, spread evenly over the set.

    Returns:
        (H, 3 * W, 3) uint8 RGB images, by the stem of their file; none for models without salience.
    """
    if not isinstance(model, SalienceDETR):
        return {}
    records = instantiate(config.dataloader.test.dataset)
    count = min(config.train.previews, len(records))
    chosen = [records[i * len(records) // count] for i in range(count)]
    mapper = instantiate(config.dataloader.test.mapper)
    names = config.dataloader.test.dataset.names
    class_names = MetadataCatalog.get(names if isinstance(names, str) else names[0]).thing_classes
    colors = class_colors(len(class_names))
    was_training = model.training
    model.eval()
    images: dict[str, np.ndarray] = {}
    for record in chosen:
        image = read_image(record["file_name"])
        instances, heat = detect_with_salience(model, [prepare_input(mapper, image)])[0]
        found = instances[instances.scores >= SCORE_THRESHOLD]
        boxes = [
            BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS)
            for x in record.get("annotations", [])
        ]
        classes = [x["category_id"] for x in record.get("annotations", [])]
        truth = draw_boxes(
            image, boxes, [class_names[c] for c in classes], [colors[c] for c in classes]
        )
        detections = draw_detections(image, found, class_names=class_names, colors=colors)
        salience = draw_salience(image, heat)
        stem = Path(record["file_name"]).stem
        name = stem if stem not in images else f"{stem}_{len(images)}"
        images[name] = np.concatenate([truth, detections, salience], axis=1)
    model.train(was_training)
    return images
