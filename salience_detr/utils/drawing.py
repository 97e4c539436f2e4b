"""Drawing detections, ground truth and salience on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from salience_detr.utils.drawing_options import DEFAULTS, Color, DrawingOptions, class_colors
from salience_detr.utils.errors import printable

if TYPE_CHECKING:
    from detectron2.structures import Instances

__all__ = [
    "Color",
    "class_colors",
    "draw_boxes",
    "draw_detections",
    "draw_salience",
    "resize_between",
]


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    *,
    class_names: Sequence[str],
    colors: Sequence[Color] | None = None,
    options: DrawingOptions = DEFAULTS,
) -> np.ndarray:
    """Return a copy of an (H, W, 3) uint8 RGB image with boxes, class names and scores.

    Args:
        image: image that the boxes belong to.
        instances: ``pred_boxes`` (absolute xyxy), ``scores``, ``pred_classes``, and perhaps
            ``track_ids``, which are drawn unless they are negative.
        class_names: names of all classes.
        colors: RGB of the first classes or of all.
        options: lines, labels and filling, and colors that come before the others.
    """
    classes = instances.pred_classes.tolist()
    labels = []
    for label, score in zip(classes, instances.scores.tolist(), strict=True):
        labels.append(f"{class_names[label]} {score:.0%}")

    if instances.has("track_ids"):
        for i, number in enumerate(instances.track_ids.tolist()):
            if number >= 0:
                labels[i] = f"#{number} {labels[i]}"

    palette = options.palette(class_names, colors)

    # The best detections are drawn last, on top.
    order = range(len(instances) - 1, -1, -1)
    boxes = instances.pred_boxes.tensor.numpy()
    return draw_boxes(
        image,
        [boxes[i] for i in order],
        [labels[i] for i in order],
        [palette[classes[i]] for i in order],
        options,
    )


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[np.ndarray],
    labels: Sequence[str],
    colors: Sequence[Color],
    options: DrawingOptions = DEFAULTS,
) -> np.ndarray:
    """Return a copy of an (H, W, 3) uint8 RGB image with labeled boxes.

    Args:
        image: image that the boxes belong to.
        boxes: absolute xyxy boxes; what lies outside of the image is clipped.
        labels: text of each box.
        colors: RGB of each box.
        options: lines, labels and filling.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    thickness = max(1, round(min(height, width) / 320))

    last_pixel = [width - 1, height - 1, width - 1, height - 1]
    for box, label, color in zip(boxes, labels, colors, strict=True):
        x0, y0, x1, y1 = np.clip(np.round(box), 0, last_pixel).astype(int).tolist()
        if options.fill_opacity > 0:
            _fill(canvas[y0 : y1 + 1, x0 : x1 + 1], color, options.fill_opacity)

        if options.line_width is None:
            cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
        else:
            _draw_frame(canvas, (x0, y0, x1, y1), color, options.line_width)
        if options.has_labels:
            _draw_label(canvas, label, (x0, y0), color, options.font_scale)
    return canvas


def _draw_frame(
    canvas: np.ndarray, box: tuple[int, int, int, int], color: Color, line_width: int
) -> None:
    """Draw the lines of a box; OpenCV's are one or two pixels wider than asked for."""
    before = (line_width - 1) // 2
    left, top, right, bottom = (max(0, side - before) for side in box)
    x0, y0, x1, y1 = (side - before + line_width for side in box)

    canvas[top:y0, left:x1] = color
    canvas[bottom:y1, left:x1] = color
    canvas[top:y1, left:x0] = color
    canvas[top:y1, right:x1] = color


def _fill(region: np.ndarray, color: Color, opacity: float) -> None:
    """Mix a color into an (h, w, 3) region, in place."""
    mixed = (1 - opacity) * region + opacity * np.array(color)
    region[:] = np.round(mixed)


def _draw_label(
    canvas: np.ndarray, text: str, corner: tuple[int, int], color: Color, font_scale: float
) -> None:
    """Write text on a filled box above a corner, or below it at the upper edge of the image."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = font_scale * max(0.35, min(canvas.shape[:2]) / 1000)
    thickness = max(1, round(scale * 1.5))
    text = printable(text)
    (text_width, text_height), baseline = cv2.getTextSize(text, font, scale, thickness)

    # The box is moved to the left where it would reach over the right edge.
    height = text_height + baseline + 2
    x = max(0, min(corner[0], canvas.shape[1] - text_width - 2))
    bottom = corner[1]
    if bottom < height:
        bottom += height
    cv2.rectangle(canvas, (x, bottom - height), (x + text_width + 2, bottom), color, -1)

    # Black text on bright colors, by the luma of BT.601; white on dark ones.
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luma > 140 else (255, 255, 255)
    cv2.putText(canvas, text, (x + 1, bottom - baseline), font, scale, ink, thickness, cv2.LINE_AA)


def draw_salience(image: np.ndarray, salience: np.ndarray, *, opacity: float = 0.55) -> np.ndarray:
    """Draw salience over an image in gray: dark blue where there is none, yellow where it is 1.

    Args:
        image: (H, W, 3) uint8 RGB.
        salience: (H, W), in [0, 1].
        opacity: weight of the salience, beside the image.
    """
    levels = (np.clip(salience, 0, 1) * 255).astype(np.uint8)
    heat_bgr = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)
    heat = np.ascontiguousarray(heat_bgr[..., ::-1])

    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    gray = gray[..., None].repeat(3, axis=2)
    return cv2.addWeighted(heat, opacity, gray, 1 - opacity, 0)


def resize_between(image: np.ndarray, least: int, largest: int) -> np.ndarray:
    """Resize an (H, W, ...) image or map so that its longer side lies between two limits."""
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = min(max(longer, least), largest) / longer

    # A long image may be less than half a pixel wide.
    size = (max(1, round(width * factor)), max(1, round(height * factor)))

    # INTER_AREA averages all pixels when shrinking, but cannot enlarge smoothly.
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
