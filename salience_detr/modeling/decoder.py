"""The decoder: queries refine boxes layer by layer, looking forward twice (DINO, section 3.4).

Symbols: B images, L levels, S tokens, D channels, K classes, I layers, N queries, of which the
denoising queries come first.
Boxes are (cx, cy, w, h), normalized by the unpadded image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salience_detr.layers.box_ops import inverse_sigmoid
from salience_detr.layers.heads import bbox_head, class_head
from salience_detr.layers.mlp import MLP, FeedForward
from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention
from salience_detr.layers.position_encoding import box_sine_encoding
from salience_detr.layers.self_attention import PositionalSelfAttention, additive_mask
from salience_detr.modeling.position_relation import PositionRelation
from salience_detr.modeling.structures import DetectionPredictions
from salience_detr.modeling.token_pyramid import TokenPyramid


class SalienceDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and feed-forward, each with its LayerNorm."""

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
    ) -> None:
        super().__init__()

        self.self_attention = PositionalSelfAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.self_attention_norm = nn.LayerNorm(embed_dim)

        self.cross_attention = MultiScaleDeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.cross_attention_norm = nn.LayerNorm(embed_dim)

        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=ffn_dim)

    def forward(
        self,
        query: Tensor,
        query_position: Tensor,
        reference_points: Tensor,
        *,
        memory: Tensor,
        tokens: TokenPyramid,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Refine the queries.

        Args:
            query: (B, N, D).
            query_position: (B, N, D).
            reference_points: (B, N, L, 4) cxcywh, normalized by the padded map of each level.
            memory: (B, S, D).
            tokens: shapes and padding of the memory.
            attention_mask: (1 or B, N, N) or (B, M, N, N), added to the logits of the attention
                (of M heads): 0, or -inf where a query may not attend.

        Returns:
            (B, N, D)
        """
        attended = self.self_attention(query + query_position, query, attention_mask)
        query = self.self_attention_norm(query + attended)

        attended = self.cross_attention(
            query + query_position,
            reference_points,
            memory,
            spatial_shapes=tokens.spatial_shapes,
            level_start_index=tokens.level_start_index,
            padding_mask=tokens.padding_mask,
        )

        return self.ffn(self.cross_attention_norm(query + attended))


class SalienceDecoder(nn.Module):
    """Decoder layers and their heads; evaluation returns predictions of the last layer only.

    Args:
        position_relation: of the boxes of successive layers; None for self-attention as published.

    Raises:
        ValueError: the relation and the layers have different numbers of heads.
    """

    def __init__(
        self,
        *,
        layers: Sequence[SalienceDecoderLayer],
        embed_dim: int = 256,
        num_classes: int,
        position_relation: PositionRelation | None = None,
    ) -> None:
        super().__init__()

        num_heads = layers[0].self_attention.num_heads
        if position_relation is not None and position_relation.num_heads != num_heads:
            raise ValueError(
                f"position_relation has {position_relation.num_heads} heads, but the "
                f"self-attention of the decoder {num_heads}; set "
                "model.decoder.position_relation.num_heads"
            )

        self.embed_dim = embed_dim
        self.position_relation = position_relation
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(embed_dim)

        self.query_position_head = MLP(
            input_dim=2 * embed_dim, hidden_dim=embed_dim, output_dim=embed_dim, num_layers=2
        )
        self.class_heads = nn.ModuleList(
            class_head(embed_dim=embed_dim, num_classes=num_classes) for _ in layers
        )
        self.bbox_heads = nn.ModuleList(bbox_head(embed_dim=embed_dim) for _ in layers)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        tokens: TokenPyramid,
        attention_mask: Tensor | None = None,
        *,
        use_relation: bool = True,
    ) -> DetectionPredictions:
        """Decode a batch.

        Args:
            query: (B, N, D) query contents.
            reference_points: (B, N, 4) initial boxes in (0, 1), float32 at least.
            memory: (B, S, D).
            tokens: shapes and padding of the memory.
            attention_mask: (1 or B, N, N), True = may not attend.
            use_relation: False leaves out the position relation.

        Returns:
            Predictions of all I layers in training, of the last one in evaluation.
        """
        # From the unpadded image, which boxes refer to, to the padded map of each level.
        scales = tokens.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)

        mask = None
        if attention_mask is not None:
            mask = additive_mask(attention_mask, query)

        # A position relation changes them from layer to layer.
        relation = self.position_relation if use_relation else None
        layer_mask = mask
        earlier_boxes = reference_points

        last = len(self.layers) - 1
        pred_logits, pred_boxes = [], []
        for i, (layer, regress) in enumerate(zip(self.layers, self.bbox_heads, strict=True)):
            # The boxes that a layer starts from get no gradient through its attention.
            detached = reference_points.detach()
            level_references = detached[:, :, None] * scales

            # Query positions encode the boxes relative to the padded finest level, as published.
            encoding = box_sine_encoding(level_references[:, :, 0], self.embed_dim // 2)
            position = self.query_position_head(encoding.to(query))

            query = layer(
                query,
                position,
                level_references,
                memory=memory,
                tokens=tokens,
                attention_mask=layer_mask,
            )

            # Look forward twice: the prediction starts from boxes with the gradient of the layer
            # before, the next layer from boxes without it, moved by the query before the norm.
            box_logits = inverse_sigmoid(reference_points)
            if self.training or i == last or relation is not None:
                normalized = self.norm(query)
                pred_logits.append(self.classify(i, normalized))
                pred_boxes.append(move_boxes(box_logits, regress(normalized)))

            if i < last:
                reference_points = move_boxes(box_logits.detach(), regress(query))

            # The next self-attention knows how these boxes lie to those of the layer before.
            if i < last and relation is not None:
                layer_mask = relation(earlier_boxes, pred_boxes[-1])
                if mask is not None:
                    layer_mask = layer_mask + mask[:, None]
                earlier_boxes = pred_boxes[-1]

        if not self.training:
            pred_logits, pred_boxes = pred_logits[-1:], pred_boxes[-1:]
        return DetectionPredictions(torch.stack(pred_logits), torch.stack(pred_boxes))

    def classify(self, layer: int, normalized: Tensor) -> Tensor:
        """Return (B, N, K) class logits of the normalized queries of a layer."""
        return self.class_heads[layer](normalized)


class OneToManyDecoder(SalienceDecoder):
    """A decoder whose queries have a second class head in training (MS-DETR, section 3.2).

    Its logits are supervised by one-to-many assignment. Boxes and queries are those of the first
    head, so evaluation, which leaves out the second heads, is that of the parent.
    """

    def __init__(
        self,
        *,
        layers: Sequence[SalienceDecoderLayer],
        embed_dim: int = 256,
        num_classes: int,
        position_relation: PositionRelation | None = None,
    ) -> None:
        super().__init__(
            layers=layers,
            embed_dim=embed_dim,
            num_classes=num_classes,
            position_relation=position_relation,
        )
        self.one_to_many_heads = nn.ModuleList(
            class_head(embed_dim=embed_dim, num_classes=num_classes) for _ in layers
        )

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        tokens: TokenPyramid,
        attention_mask: Tensor | None = None,
        *,
        use_relation: bool = True,
    ) -> DetectionPredictions:
        """Decode a batch, see :meth:`SalienceDecoder.forward`."""
        predictions = super().forward(
            query, reference_points, memory, tokens, attention_mask, use_relation=use_relation
        )
        if not self.training:
            return predictions

        pred_logits, one_to_many_logits = predictions.pred_logits.chunk(2, dim=-1)
        return DetectionPredictions(
            pred_logits, predictions.pred_boxes, one_to_many_logits=one_to_many_logits
        )

    def classify(self, layer: int, normalized: Tensor) -> Tensor:
        """Return (B, N, K) class logits; in training (B, N, 2K), those of both heads."""
        logits = super().classify(layer, normalized)
        if not self.training:
            return logits
        return torch.cat([logits, self.one_to_many_heads[layer](normalized)], dim=-1)


def move_boxes(box_logits: Tensor, offsets: Tensor) -> Tensor:
    """Return the boxes with these logits, moved by offsets in logit space."""
    return (box_logits + offsets.to(box_logits.dtype)).sigmoid()
