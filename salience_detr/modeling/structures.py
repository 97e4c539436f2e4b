"""Inputs, ground truth, encoding, predictions and loss normalizers: what the stages share.

Symbols: I decoder layers, B images, S tokens, D channels, N queries, K classes, G boxes of an
image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from salience_detr.modeling.query_selection import Proposals
from salience_detr.modeling.salience import SalienceSelection
from salience_detr.modeling.token_pyramid import TokenPyramid

# An image as detectron2's models get it, see :meth:`SalienceDETR.forward`.
ModelInput: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class DetectionTargets:
    """Ground truth of one image.

    Attributes:
        labels: (G,) int64, contiguous class indices in [0, K).
        boxes: (G, 4) (cx, cy, w, h), normalized by the unpadded image size.
        image_size: (height, width) in pixels of the unpadded image.
    """

    labels: Tensor
    boxes: Tensor
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def boxes_xyxy(self) -> Tensor:
        """(G, 4) boxes (x0, y0, x1, y1) in pixels of the image; padding does not move them."""
        height, width = self.image_size
        center = self.boxes[:, :2]
        half_size = self.boxes[:, 2:] / 2
        scale = self.boxes.new_tensor([width, height, width, height])
        return torch.cat([center - half_size, center + half_size], dim=1) * scale


@dataclass(frozen=True)
class LossNormalizers:
    """Divisors of the losses, and the sizes on which a batch and its parts have to agree.

    The losses of a batch that is computed in parts (gradient accumulation), each with the
    normalizers of the whole batch, add up to those of the whole batch.

    Attributes:
        num_boxes: ground-truth boxes, mean over the processes, at least 1 in all of them together.
        num_salient: tokens with a positive salience target, likewise.
        max_boxes: most boxes in one image; it determines the number of denoising queries.
        padded_size: (height, width) in pixels that the images are padded to.
    """

    num_boxes: float
    num_salient: float
    max_boxes: int
    padded_size: tuple[int, int]


@dataclass(frozen=True)
class DetectionPredictions:
    """Class logits and boxes of one or more decoder layers.

    Attributes:
        pred_logits: (I, B, N, K), before the sigmoid.
        pred_boxes: (I, B, N, 4) (cx, cy, w, h), normalized by the unpadded image size.
        valid_mask: (B, N) False for padded queries, which take no part in matching or losses; the
            valid queries of an image come first. None if no query is padded.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    valid_mask: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of layers I."""
        return len(self.pred_logits)

    def split_queries(self, num_first: int) -> tuple[DetectionPredictions, DetectionPredictions]:
        """Return the predictions of the first queries and those of the others, without masks."""
        first = DetectionPredictions(
            self.pred_logits[:, :, :num_first], self.pred_boxes[:, :, :num_first]
        )
        others = DetectionPredictions(
            self.pred_logits[:, :, num_first:], self.pred_boxes[:, :, num_first:]
        )
        return first, others


@dataclass(frozen=True)
class Encoding:
    """Results of all stages before the decoder.

    Attributes:
        tokens: the backbone's maps as tokens.
        selection: salience of all tokens, and the tokens that the encoder refined.
        memory: (B, S, D), encoded and fused.
        proposals: tokens that become queries, with their boxes.
    """

    tokens: TokenPyramid
    selection: SalienceSelection
    memory: Tensor
    proposals: Proposals
