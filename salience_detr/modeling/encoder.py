"""The encoder: only the selected tokens are refined (paper, section 3.3).

Symbols: B images, L levels, S tokens, D channels, K classes, n selected tokens (padded, see
:class:`~salience_detr.modeling.salience.SalienceSelection`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.activation_checkpointing import checkpoint_activations
from salience_detr.layers.mlp import FeedForward
from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention
from salience_detr.layers.self_attention import PositionalSelfAttention, additive_mask
from salience_detr.modeling.salience import SalienceSelection
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens, scatter_tokens


class SalienceEncoderLayer(nn.Module):
    """Attention among the top-k tokens, deformable attention to all, and a feed-forward block.

    Args:
        num_topk: tokens that take part in the first attention.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
        num_topk: int = 300,
    ) -> None:
        super().__init__()

        self.num_topk = num_topk

        # "important" is the name of the top-k tokens in checkpoints.
        self.important_attention = PositionalSelfAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.important_norm = nn.LayerNorm(embed_dim)

        self.deformable_attention = MultiScaleDeformableAttention(
            embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )
        self.deformable_norm = nn.LayerNorm(embed_dim)

        self.ffn = FeedForward(embed_dim=embed_dim, hidden_dim=ffn_dim)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        *,
        importance: Tensor,
        valid_mask: Tensor,
        reference_points: Tensor,
        tokens: TokenPyramid,
    ) -> Tensor:
        """Refine the selected tokens.

        Args:
            query: (B, n, D) running values of the selected tokens.
            position: (B, n, D).
            importance: (B, n), by which the top-k tokens are chosen.
            valid_mask: (B, n) False for padding, which no token may attend to.
            reference_points: (B, n, L, 2), normalized by the padded map of each level.
            tokens: all tokens; their features are the value of every layer.

        Returns:
            (B, n, D); the values of padding are meaningless.
        """
        query = self.attend_topk(query, position, importance, valid_mask)

        attended = self.deformable_attention(
            query + position,
            reference_points,
            tokens.features,
            spatial_shapes=tokens.spatial_shapes,
            level_start_index=tokens.level_start_index,
            padding_mask=tokens.padding_mask,
        )

        return self.ffn(self.deformable_norm(query + attended))

    def attend_topk(
        self, query: Tensor, position: Tensor, importance: Tensor, valid_mask: Tensor
    ) -> Tensor:
        """Attend among the ``num_topk`` tokens of highest importance, and write them back."""
        padding = ~valid_mask
        importance = importance.masked_fill(padding, -torch.inf)
        index = importance.topk(self.count_topk(query.shape[1]), dim=1).indices

        value = gather_tokens(query, index)
        with_position = value + gather_tokens(position, index)

        mask = self.attention_mask(padding.gather(1, index), value)
        attended = self.important_attention(with_position, value, mask)

        return scatter_tokens(query, index, self.important_norm(value + attended))

    def count_topk(self, length: int) -> int:
        """Return how many of the n tokens attend to each other; exported graphs override this."""
        return min(self.num_topk, length)

    def attention_mask(self, padding: Tensor, like: Tensor) -> Tensor | None:
        """Return (B, 1, n) of the dtype of ``like`` for keys that are padding, or None.

        A single image has no padding. Exported graphs pad it, too, and replace this method.
        """
        if padding.shape[0] == 1:
            return None
        return additive_mask(padding[:, None], like)


class BackgroundEmbedding(nn.Module):
    """Learned embedding of (row, column) for the tokens that are not refined.

    Args:
        size: rows and columns of the tables.
    """

    def __init__(self, *, embed_dim: int = 256, size: int = 200) -> None:
        super().__init__()
        self.row_embed = nn.Parameter(torch.rand(size, embed_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(size, embed_dim // 2))

    def forward(self, spatial_shapes_list: Sequence[tuple[int, int]]) -> Tensor:
        """L shapes (H_l, W_l) -> (S, D), the column's half first."""
        levels = []
        for height, width in spatial_shapes_list:
            columns = self._table(self.col_embed, width)[None, :].expand(height, -1, -1)
            rows = self._table(self.row_embed, height)[:, None].expand(-1, width, -1)
            levels.append(torch.cat([columns, rows], dim=-1).flatten(0, 1))
        return torch.cat(levels)

    @staticmethod
    def _table(table: Tensor, size: int) -> Tensor:
        """Return the first entries, or the table stretched to a map that is larger."""
        if size <= len(table):
            return table[:size]

        stretched = F.interpolate(table.t()[None], size=size, mode="linear", align_corners=True)
        return stretched[0].t()


class SalienceEncoder(nn.Module):
    """Refines ever fewer of the selected tokens, then marks the background.

    Args:
        layers: in the order of the data.
        background_embedding: embedding of the tokens that the last layer does not refine.
        use_checkpoint: activation checkpointing of the layers.
    """

    def __init__(
        self,
        *,
        layers: Sequence[SalienceEncoderLayer],
        background_embedding: BackgroundEmbedding,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.background_embedding = background_embedding

        if use_checkpoint:
            for layer in self.layers:
                checkpoint_activations(layer)

    def forward(
        self,
        tokens: TokenPyramid,
        selection: SalienceSelection,
        class_head: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Encode a batch.

        Args:
            tokens: all tokens.
            selection: with masks for as many layers as there are here.
            class_head: (B, n, D) -> (B, n, K) logits; it weighs importance and gets no gradient.

        Returns:
            (B, S, D) memory.
        """
        memory = tokens.features

        index = selection.token_index
        position = gather_tokens(tokens.positions, index)

        # Centers are relative to the unpadded image, the attention's points to the padded map.
        centers = gather_tokens(tokens.centers, index)
        reference_points = centers[:, :, None] * tokens.valid_ratios[:, None]

        for layer, valid_mask in zip(self.layers, selection.layer_masks, strict=True):
            length = valid_mask.shape[1]
            layer_index = index[:, :length]
            query = gather_tokens(memory, layer_index)

            # By the best class logit of the token as it is now, and its salience.
            with torch.no_grad():
                best_logit = class_head(query).amax(-1)
                importance = self.importance(best_logit, selection.scores[:, :length])

            refined = layer(
                query,
                position[:, :length],
                importance=importance,
                valid_mask=valid_mask,
                reference_points=reference_points[:, :length],
                tokens=tokens,
            )

            # Tokens that pad an image keep what they hold.
            refined = torch.where(valid_mask[..., None], refined, query)
            memory = scatter_tokens(memory, layer_index, refined)

        return self.add_background(memory, tokens, layer_index, valid_mask)

    def importance(self, class_logit: Tensor, salience: Tensor) -> Tensor:
        """Return the product of (B, n) class logits and salience logits.

        As published, two negative logits give a large product.
        """
        return class_logit * salience

    def add_background(
        self, memory: Tensor, tokens: TokenPyramid, index: Tensor, valid_mask: Tensor
    ) -> Tensor:
        """Add the background embedding to unpadded tokens that the last layer did not refine."""
        # All unpadded tokens but those that the last layer refined.
        unpadded = ~tokens.padding_mask
        not_refined = ~valid_mask & unpadded.gather(1, index)
        background = unpadded.scatter(1, index, not_refined)

        embedding = self.background_embedding(tokens.spatial_shapes_list).to(memory.dtype)
        return memory + embedding * background[..., None]


class ProbabilityEncoder(SalienceEncoder):
    """An encoder that ranks by the product of probabilities, which rises with both of them."""

    def importance(self, class_logit: Tensor, salience: Tensor) -> Tensor:
        """Return the product of (B, n) class and salience probabilities, of their logits."""
        return class_logit.sigmoid() * salience.sigmoid()
