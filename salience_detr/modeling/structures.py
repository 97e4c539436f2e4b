"""Inputs, ground truth, encoding, predictions and loss normalizers: what the stages share.

Symbols: I layers, B images, S tokens, D channels, N queries, K classes, G = most boxes in an image
of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.layers.transfer import to_device
from salience_detr.modeling.query_selection import Proposals
from salience_detr.modeling.salience import SalienceSelection
from salience_detr.modeling.token_pyramid import TokenPyramid

# An image as detectron2's models get it, see :meth:`SalienceDETR.forward`.
ModelInput: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class DetectionTargets:
    """Ground truth of a batch; images with fewer than G boxes are padded.

    Attributes:
        labels: (B, G) int64, contiguous class indices in [0, K), 0 for padding.
        boxes: (B, G, 4) (cx, cy, w, h), normalized by the unpadded image size, 0 for padding.
        num_boxes: number of boxes of each image.
        image_sizes: (height, width) in pixels of each unpadded image.
    """

    labels: Tensor
    boxes: Tensor
    num_boxes: tuple[int, ...]
    image_sizes: tuple[tuple[int, int], ...]

    @classmethod
    def from_images(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> DetectionTargets:
        """Pad the labels and the cxcywh boxes of B images, which may have none."""
        return cls(
            labels=pad_sequence(list(labels), batch_first=True),
            boxes=pad_sequence(list(boxes), batch_first=True),
            num_boxes=tuple(len(x) for x in labels),
            image_sizes=tuple(image_sizes),
        )

    def to(self, device: torch.device) -> DetectionTargets:
        """Copy to a device."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            boxes=self.boxes.to(device, non_blocking=True),
        )

    def with_a_box(self) -> DetectionTargets:
        """Return the same ground truth with room for a box: padding, if no image has one."""
        if self.max_boxes > 0:
            return self
        labels = F.pad(self.labels, [0, 1])
        return replace(self, labels=labels, boxes=F.pad(self.boxes, [0, 0, 0, 1]))

    def repeat(self, times: int) -> DetectionTargets:
        """Return the same ground truth with each box several times in a row."""
        return replace(
            self,
            labels=self.labels.repeat_interleave(times, dim=1),
            boxes=self.boxes.repeat_interleave(times, dim=1),
            num_boxes=tuple(times * count for count in self.num_boxes),
        )

    @property
    def max_boxes(self) -> int:
        """Most boxes in one image, G."""
        return self.labels.shape[1]

    @property
    def boxes_xyxy(self) -> Tensor:
        """(B, G, 4) boxes (x0, y0, x1, y1) in pixels of the image; padding does not move them."""
        sizes = [[width, height, width, height] for height, width in self.image_sizes]
        scale = to_device(sizes, self.boxes)
        return box_cxcywh_to_xyxy(self.boxes) * scale[:, None]


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
        num_valid: (B,) on the CPU: number of valid queries of each image, which come first. The
            others are padding and take no part in matching or losses. None if no query is padded.
        one_to_many_logits: (I, B, N, K) of the second class heads, which decoders have in training
            only; None without such heads.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    num_valid: Tensor | None = None
    one_to_many_logits: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of layers I."""
        return len(self.pred_logits)

    def split_queries(self, num_first: int) -> tuple[DetectionPredictions, DetectionPredictions]:
        """Return the predictions of the first queries and those of the others, none padded."""
        first = self.take_queries(slice(None, num_first))
        others = self.take_queries(slice(num_first, None))
        return first, others

    def take_queries(self, queries: slice) -> DetectionPredictions:
        """Return the predictions of some queries, none padded."""
        one_to_many_logits = self.one_to_many_logits
        if one_to_many_logits is not None:
            one_to_many_logits = one_to_many_logits[:, :, queries]
        return DetectionPredictions(
            self.pred_logits[:, :, queries],
            self.pred_boxes[:, :, queries],
            one_to_many_logits=one_to_many_logits,
        )


@dataclass(frozen=True)
class Matches:
    """Matched queries of a batch: M in each layer, as the layers match equally many of an image.

    Attributes:
        image: (M,) image of each match.
        query: (I, M) its query; (1, M) if all layers match the same queries.
        box: likewise the box, among those of the image, that the query is matched with.
    """

    image: Tensor
    query: Tensor
    box: Tensor

    @classmethod
    def from_images(cls, queries: Sequence[Tensor], boxes: Sequence[Tensor]) -> Matches:
        """Join the (I, M_b) matched queries and boxes of B images."""
        lengths = torch.tensor([x.shape[1] for x in queries])
        image = torch.arange(len(queries)).repeat_interleave(lengths)
        return cls(image, torch.cat(list(queries), dim=1), torch.cat(list(boxes), dim=1))

    def to(self, device: torch.device) -> Matches:
        """Copy to a device, at once."""
        together = torch.stack([self.image.expand_as(self.query), self.query, self.box])
        image, query, box = together.to(device, non_blocking=True)
        return Matches(image[0], query, box)


@dataclass(frozen=True)
class OneToManyMatches:
    """Boxes that queries are matched with, several queries with the same box.

    Attributes:
        box: (I, B, N) box of each query, among those of the image; meaningless where not matched.
        matched: (I, B, N) True for matched queries.
    """

    box: Tensor
    matched: Tensor


@dataclass(frozen=True)
class Encoding:
    """Results of all stages before the decoder.

    Attributes:
        tokens: the backbone's maps as tokens.
        selection: salience of all tokens, and the tokens that the encoder refined.
        memory: (B, S, D), encoded and fused.
        output_memory: (B, S, D), the memory as proposals are made of it.
        proposals: tokens that become queries, with their boxes.
    """

    tokens: TokenPyramid
    selection: SalienceSelection
    memory: Tensor
    output_memory: Tensor
    proposals: Proposals
