"""Contrastive denoising queries: noised ground truth that the decoder learns to repair (DINO, section 3.3).

Symbols: B images, N matching queries, D channels, K classes, g = most boxes in an image of the batch,
R groups, T = 2 * g * R denoising queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, inverse_sigmoid
from salience_detr.modeling.structures import DetectionTargets


@dataclass(frozen=True)
class DenoisingLayout:
    """Where the denoising queries of a box are: group r holds g positive slots, then g negative ones.

    Attributes:
        num_groups: R.
        max_boxes: g.
    """

    num_groups: int
    max_boxes: int

    @property
    def num_queries(self) -> int:
        """T"""
        return 2 * self.num_groups * self.max_boxes

    def positive_matches(self, num_boxes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(R * G,) slots of the positives of an image with G boxes, and the box of each."""
        box = torch.arange(num_boxes, device=device)
        group = torch.arange(self.num_groups, device=device)
        slots = group[:, None] * 2 * self.max_boxes + box
        return slots.flatten(), box.repeat(self.num_groups)


@dataclass(frozen=True)
class DenoisingQueries:
    """What the decoder is given before the matching queries.

    Attributes:
        content: (B, T, D), zero in empty slots.
        reference_boxes: (B, T, 4) noised boxes cxcywh in (0, 1), 0.5 in empty slots.
        attention_mask: (T + N, T + N), True = may not attend.
        layout: where each box is.
    """

    content: Tensor
    reference_boxes: Tensor
    attention_mask: Tensor
    layout: DenoisingLayout


class DenoisingGenerator(nn.Module):
    """Makes about ``denoising_queries`` pairs of a lightly and a strongly noised copy of the boxes of each image.

    There is at least one group: 0 ``denoising_queries`` do not turn denoising off.
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

    def forward(
        self, targets: list[DetectionTargets], *, max_boxes: int | None = None
    ) -> DenoisingQueries:
        """Noise the ground truth of a batch; a batch without boxes gives no queries (T = 0).

        Args:
            targets: of B images.
            max_boxes: g, at least as many as any image has; by default the most.
        """
        layout = self.layout(
            max(len(target) for target in targets) if max_boxes is None else max_boxes
        )
        noised = [self.noise_image(target, layout) for target in targets]
        return DenoisingQueries(
            content=torch.stack([content for content, _ in noised]),
            reference_boxes=torch.stack([boxes for _, boxes in noised]),
            attention_mask=self.attention_mask(layout).to(self.label_encoder.weight.device),
            layout=layout,
        )

    def layout(self, max_boxes: int) -> DenoisingLayout:
        """As many groups as fit into ``denoising_queries``, one at least."""
        return DenoisingLayout(
            max(1, self.denoising_queries * max_boxes // max(max_boxes**2, 1)), max_boxes
        )

    def noise_image(
        self, target: DetectionTargets, layout: DenoisingLayout
    ) -> tuple[Tensor, Tensor]:
        """(T, D) contents and (T, 4) reference boxes of one image."""
        embeddings = self.label_encoder.weight
        copies = (layout.num_groups, 2, len(target))  # the second axis: positives, negatives
        labels = self.noise_labels(target.labels.expand(copies))
        boxes = self.noise_boxes(target.boxes.expand(*copies, 4))
        content = embeddings.new_zeros(*copies[:2], layout.max_boxes, embeddings.shape[1])
        references = boxes.new_zeros(*copies[:2], layout.max_boxes, 4)
        content[:, :, : len(target)] = self.label_encoder(labels)
        references[:, :, : len(target)] = inverse_sigmoid(boxes)
        return content.flatten(0, 2), references.flatten(0, 2).sigmoid()

    def noise_labels(self, labels: Tensor) -> Tensor:
        """Replace each label by a random class with the set probability."""
        replaced = torch.rand(labels.shape, device=labels.device) < self.label_noise_prob
        return torch.where(
            replaced, torch.randint_like(labels, self.label_encoder.num_embeddings), labels
        )

    def noise_boxes(self, boxes: Tensor) -> Tensor:
        """Move the corners of (R, 2, G, 4) cxcywh boxes.

        Each coordinate moves, in a random direction, by a factor of the half side: in [0, 1) for positives,
        in [1, 2) for negatives; then it is clamped to [0, 1].
        """
        factor = torch.rand_like(boxes)
        factor[:, 1] += 1
        sign = torch.randint_like(boxes, 2) * 2 - 1
        half_sides = (boxes[..., 2:] / 2).repeat(1, 1, 1, 2)
        corners = box_cxcywh_to_xyxy(boxes) + sign * factor * half_sides * self.box_noise_scale
        return box_xyxy_to_cxcywh(corners.clamp(0, 1))

    def attention_mask(self, layout: DenoisingLayout) -> Tensor:
        """(T + N, T + N) True where a query (row) may not attend: to denoising queries of another group.

        Matching queries belong to no group, so they see no denoising query; all see the matching ones.
        """
        group_size = max(1, 2 * layout.max_boxes)
        group = torch.arange(layout.num_queries + self.num_queries) // group_size
        group[layout.num_queries :] = -1
        return (group[:, None] != group) & (group != -1)
