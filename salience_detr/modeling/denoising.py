"""Contrastive denoising: noised ground truth that the decoder learns to repair (DINO, section 3.3).

Symbols: B images, N matching queries, D channels, K classes, G boxes of an image, g = most boxes in
an image of the batch, R groups, T = 2 * g * R denoising queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, inverse_sigmoid
from salience_detr.modeling.query_selection import valid_mask
from salience_detr.modeling.structures import DetectionTargets, Matches


@dataclass(frozen=True)
class DenoisingLayout:
    """Order of the denoising queries: each group holds g positive queries, then g negative ones.

    Attributes:
        num_groups: R.
        max_boxes: g. Queries beyond the boxes of an image are padding.
    """

    num_groups: int
    max_boxes: int

    @property
    def num_queries(self) -> int:
        """Number of denoising queries T."""
        return 2 * self.num_groups * self.max_boxes

    def positive_matches(self, num_boxes: Sequence[int]) -> Matches:
        """Return the positive queries of images with these numbers of boxes, on the CPU."""
        first_queries = torch.arange(self.num_groups)[:, None] * 2 * self.max_boxes

        queries, boxes = [], []
        for count in num_boxes:
            box = torch.arange(count)
            queries.append((first_queries + box).view(1, -1))
            boxes.append(box.repeat(1, self.num_groups))
        return Matches.from_images(queries, boxes)


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries that the decoder gets before the matching queries.

    Attributes:
        content: (B, T, D), zero for padding.
        reference_points: (B, T, 4) noised boxes cxcywh in (0, 1), 0.5 for padding.
        attention_mask: (T + N, T + N), True = may not attend.
        layout: order of the queries.
    """

    content: Tensor
    reference_points: Tensor
    attention_mask: Tensor
    layout: DenoisingLayout


class DenoisingGenerator(nn.Module):
    """Makes pairs of a lightly and a strongly noised copy of the boxes of each image.

    Args:
        num_queries: number N of matching queries.
        denoising_queries: approximate number of pairs. There is at least one group, so 0 does not
            turn denoising off.
        label_noise_prob: probability of a random class.
        box_noise_scale: 1 moves the edges of positives by less than half a side.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int = 256,
        num_queries: int = 900,
        denoising_queries: int = 100,
        label_noise_prob: float = 0.25,
        box_noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.denoising_queries = denoising_queries

        self.label_noise_prob = label_noise_prob
        self.box_noise_scale = box_noise_scale

        self.label_encoder = nn.Embedding(num_classes, embed_dim)

    def forward(self, targets: DetectionTargets, max_boxes: int) -> DenoisingQueries:
        """Noise the ground truth of a batch; a batch without boxes gives no queries (T = 0).

        Args:
            targets: ground truth of B images.
            max_boxes: g, at least the boxes of any image.
        """
        layout = self.layout(max_boxes)
        padding = max_boxes - targets.max_boxes
        labels = F.pad(targets.labels, [0, padding])
        boxes = F.pad(targets.boxes, [0, 0, 0, padding])

        # Copies of the ground truth: images, groups, positives and negatives, boxes.
        copies = (len(labels), layout.num_groups, 2, max_boxes)
        noised_labels = labels[:, None, None].expand(copies).clone()
        shifts = boxes.new_zeros(*copies, 4)

        # Drawn image by image: the numbers of one do not depend on the padding.
        for i, count in enumerate(targets.num_boxes):
            image_labels = labels[i, :count].expand(*copies[1:3], -1)
            image_boxes = boxes[i, :count].expand(*copies[1:3], -1, -1)
            noised_labels[i, :, :, :count] = self.noise_labels(image_labels)
            shifts[i, :, :, :count] = self.random_shifts(image_boxes)

        content = self.label_encoder(noised_labels)
        reference = inverse_sigmoid(self.noise_boxes(boxes[:, None, None], shifts))

        # Boxes are padded in logit space: the sigmoid of 0 is 0.5.
        padded = ~valid_mask(torch.tensor(targets.num_boxes), labels)[:, None, None, :, None]
        content = content.masked_fill(padded, 0)
        reference = reference.masked_fill(padded, 0).sigmoid()

        return DenoisingQueries(
            content=content.flatten(1, 3),
            reference_points=reference.flatten(1, 3),
            attention_mask=self.attention_mask(layout),
            layout=layout,
        )

    def layout(self, max_boxes: int) -> DenoisingLayout:
        """Return as many groups as fit into ``denoising_queries``, at least one."""
        if max_boxes == 0:
            return DenoisingLayout(num_groups=1, max_boxes=0)

        num_groups = max(1, self.denoising_queries // max_boxes)
        return DenoisingLayout(num_groups, max_boxes)

    def noise_labels(self, labels: Tensor) -> Tensor:
        """Replace each label by a random class with the set probability."""
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise_prob
        random_labels = torch.randint_like(labels, self.label_encoder.num_embeddings)
        return torch.where(replaced, random_labels, labels)

    @staticmethod
    def random_shifts(boxes: Tensor) -> Tensor:
        """Draw the shifts of the corners of (R, 2, G, 4) boxes, in half sides.

        Each coordinate is shifted in a random direction: by [0, 1) for positives, by [1, 2) for
        negatives.
        """
        factor = torch.rand_like(boxes)
        factor[:, 1] += 1
        sign = torch.randint_like(boxes, 2) * 2 - 1
        return sign * factor

    def noise_boxes(self, boxes: Tensor, shifts: Tensor) -> Tensor:
        """Shift the corners of (..., 4) cxcywh boxes, and clamp them to [0, 1]."""
        half_sides = (boxes[..., 2:] / 2).tile(2)
        corners = box_cxcywh_to_xyxy(boxes) + shifts * half_sides * self.box_noise_scale
        return box_xyxy_to_cxcywh(corners.clamp(0, 1))

    def attention_mask(self, layout: DenoisingLayout) -> Tensor:
        """Return (T + N, T + N), True where a query (row) may not attend.

        A denoising query sees its own group and the matching queries. Matching queries, which must
        not see the ground truth, see each other only.
        """
        device = self.label_encoder.weight.device
        query = torch.arange(layout.num_queries + self.num_queries, device=device)

        # The group of each denoising query; -1 for the matching queries.
        group = query // max(1, 2 * layout.max_boxes)
        group[layout.num_queries :] = -1
        return (group[:, None] != group) & (group != -1)
