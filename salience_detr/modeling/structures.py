"""What the stages of training share: ground truth and predictions, in one format.

Symbols: B images, N queries, K classes, G boxes of an image, I decoder layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DetectionTargets:
    """Ground truth of one image.

    Attributes:
        labels: (G,) int64, contiguous class indices in [0, K).
        boxes: (G, 4) (cx, cy, w, h), normalized by the unpadded image size.
        image_size: (height, width) in pixels of the unpadded image that ``boxes`` is relative to.
    """

    labels: Tensor
    boxes: Tensor
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes_xyxy(self) -> Tensor:
        """(G, 4) boxes as (x0, y0, x1, y1) in pixels; the frame of the padded image is the same."""
        height, width = self.image_size
        center, half = self.boxes[:, :2], self.boxes[:, 2:] / 2
        scale = self.boxes.new_tensor([width, height, width, height])
        return torch.cat([center - half, center + half], dim=1) * scale


@dataclass(frozen=True)
class BatchCounts:
    """What a part of a batch has to know of the whole, so that the losses of the parts add up to those of the whole.

    Attributes:
        num_boxes: ground-truth boxes, mean over the processes, at least 1 in all of them together.
        num_salient: tokens with a positive salience target, likewise.
        max_boxes: most boxes in an image.
        padded_size: (height, width) in pixels that all images are padded to.
    """

    num_boxes: float
    num_salient: float
    max_boxes: int
    padded_size: tuple[int, int]


@dataclass(frozen=True)
class DetectionPredictions:
    """Class logits and boxes of one or more decoder layers.

    Attributes:
        logits: (I, B, N, K), before the sigmoid.
        boxes: (I, B, N, 4) (cx, cy, w, h), normalized by the unpadded image size.
        query_mask: (B, N) False for surplus slots, which take no part in matching or losses; None where there are
            none. The slots of an image that take part come first.
    """

    logits: Tensor
    boxes: Tensor
    query_mask: Tensor | None = None

    def __len__(self) -> int:
        """Number of layers I."""
        return len(self.logits)

    def split_queries(self, count: int) -> tuple[DetectionPredictions, DetectionPredictions]:
        """The predictions of the first ``count`` queries and those of the others, without a query mask."""
        return (
            DetectionPredictions(self.logits[:, :, :count], self.boxes[:, :, :count]),
            DetectionPredictions(self.logits[:, :, count:], self.boxes[:, :, count:]),
        )
