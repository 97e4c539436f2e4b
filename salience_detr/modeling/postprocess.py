"""From the predictions of the last decoder layer to detections.

Symbols: N queries, K classes.
"""

from __future__ import annotations

from detectron2.structures import Boxes, Instances
from torch import Tensor

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy


def select_detections(
    logits: Tensor, boxes: Tensor, image_size: tuple[int, int], *, max_detections: int = 300
) -> Instances:
    """The best (query, class) pairs of one image, by falling score; a query may appear with several classes.

    Args:
        logits: (N, K) class logits.
        boxes: (N, 4) (cx, cy, w, h), normalized.
        image_size: (height, width) in pixels of the frame that the boxes are wanted in.
        max_detections: how many at most.

    Returns:
        Instances with ``pred_boxes`` (absolute xyxy, not clipped to the image), ``scores`` and ``pred_classes``.
    """
    height, width = image_size
    num_classes = logits.shape[1]
    scores, index = (
        logits.to(boxes.dtype).sigmoid().flatten().topk(min(max_detections, logits.numel()))
    )
    absolute = box_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
    return Instances(
        image_size,
        pred_boxes=Boxes(absolute[index // num_classes]),
        scores=scores,
        pred_classes=index % num_classes,
    )
