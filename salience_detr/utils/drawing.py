"""Drawing detections, ground truth and salience on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import Instances

Color = tuple[int, int, int]  # RGB, 0 to 255


def class_colors(count: int, known: Sequence[Sequence[int]] | None = None) -> list[Color]:
    """A distinct color for each class: the known ones (RGB) first, then hues spread by the golden ratio."""
    colors = [(int(r), int(g), int(b)) for r, g, b in (known or [])[:count]]
    for i in range(len(colors), count):
        r, g, b = colorsys.hsv_to_rgb((0.02 + i * 0.618034) % 1.0, 0.85, 1.0)
        colors.append((round(255 * r), round(255 * g), round(255 * b)))
    return colors


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    *,
    class_names: Sequence[str],
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Return a copy of an (H, W, 3) uint8 RGB image with boxes, class names and scores.

    Args:
        image: image that the boxes belong to.
        instances: ``pred_boxes`` (absolute xyxy), ``scores``, ``pred_classes``, and perhaps
            ``track_ids``, which are drawn unless they are negative.
        class_names: names of all classes.
        colors: RGB of the first classes or of all.
    """
    classes = instances.pred_classes.tolist()
    labels = [
        f"{class_names[c]} {score:.0%}"
        for c, score in zip(classes, instances.scores.tolist(), strict=True)
    ]
    if instances.has("track_ids"):
        for i, number in enumerate(instances.track_ids.tolist()):
            if number >= 0:
                labels[i] = f"#{number} {labels[i]}"

    palette = class_colors(len(class_names), colors)

    # The best detections are drawn last, on top.
    order = range(len(instances) - 1, -1, -1)
    boxes = instances.pred_boxes.tensor.numpy()
    return draw_boxes(
        image,
        [boxes[i] for i in order],
        [labels[i] for i in order],
        [palette[classes[i]] for i in order],
    )


def draw_boxes(
    image: np.ndarray, boxes: Sequence[np.ndarray], labels: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB image with labeled boxes, absolute xyxy, clipped to the image."""
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 320))
    for box, label, color in zip(boxes, labels, colors, strict=True):
        x0, y0, x1, y1 = (
            np.clip(np.round(box), 0, [width - 1, height - 1, width - 1, height - 1])
            .astype(int)
            .tolist()
        )
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
        _draw_label(canvas, label, (x0, y0), color)
    return canvas


def _draw_label(canvas: np.ndarray, text: str, corner: tuple[int, int], color: Color) -> None:
    """Write text on a filled box above a corner, or below it at the upper edge of the image."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, min(canvas.shape[:2]) / 1000)
    thickness = max(1, round(scale * 1.5))
    (text_width, text_height), baseline = cv2.getTextSize(text, font, scale, thickness)
    x = max(0, min(corner[0], canvas.shape[1] - text_width - 2))
    bottom = (
        corner[1]
        if corner[1] >= text_height + baseline + 2
        else corner[1] + text_height + baseline + 2
    )
    top_left, bottom_right = (x, bottom - text_height - baseline - 2), (x + text_width + 2, bottom)
    cv2.rectangle(canvas, top_left, bottom_right, color, -1)
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if brightness > 140 else (255, 255, 255)
    cv2.putText(canvas, text, (x + 1, bottom - baseline), font, scale, ink, thickness, cv2.LINE_AA)


def draw_salience(image: np.ndarray, salience: np.ndarray, *, opacity: float = 0.55) -> np.ndarray:
    """An (H, W, 3) uint8 RGB image in gray under the (H, W) salience in [0, 1], dark blue (none) to yellow."""
    colored = cv2.applyColorMap(
        (np.clip(salience, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS
    )[..., ::-1]
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None].repeat(
        3, axis=2
    )
    return cv2.addWeighted(np.ascontiguousarray(colored), opacity, gray, 1 - opacity, 0)
