"""The encoder: only the selected tokens move (paper, section 3.3).

Symbols: B images, L levels, S tokens, D channels, K classes, n slots of selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salience_detr.layers.activation_checkpointing import checkpoint_activations
from salience_detr.layers.mlp import FeedForward
from salience_detr.layers.ms_deform_attn import MultiScaleDeformableAttention
from salience_detr.modeling.salience import SalienceSelection
from salience_detr.modeling.token_pyramid import TokenPyramid, gather_tokens, scatter_tokens


class SalienceEncoderLayer(nn.Module):
    """Attention among the most important tokens, then deformable attention to all tokens, then a feed-forward."""

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_levels: int = 4,
        num_points: int = 4,
        num_important: int = 300,
    ) -> None:
        super().__init__()
        self.num_important = num_important
        self.important_attention = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
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
        slot_mask: Tensor,
        reference_points: Tensor,
        tokens: TokenPyramid,
    ) -> Tensor:
        """Refine the selected tokens.

        Args:
            query: (B, n, D) running values of the selected tokens.
            position: (B, n, D).
            importance: (B, n), by which the tokens of the first attention are chosen.
            slot_mask: (B, n) False for surplus slots, which no other slot may see.
            reference_points: (B, n, L, 2).
            tokens: all tokens; their features are the value of every layer.

        Returns:
            (B, n, D); surplus slots hold nothing of use.
        """
        query = self.attend_important(query, position, importance, slot_mask)
        attended = self.deformable_attention(
            query + position,
            reference_points,
            tokens.features,
            spatial_shapes=tokens.spatial_shapes,
            level_start_index=tokens.level_start_index,
            padding_mask=tokens.padding_mask,
        )
        return self.ffn(self.deformable_norm(query + attended))

    def count_important(self, slots: int) -> int:
        """How many of the slots take part in the first attention."""
        return min(self.num_important, slots)

    def surplus_keys(self, is_token: Tensor) -> Tensor | None:
        """(B, n) False for surplus slots -> True for them; None for one image, whose slots are all filled."""
        return ~is_token if is_token.shape[0] > 1 else None

    def attend_important(
        self, query: Tensor, position: Tensor, importance: Tensor, slot_mask: Tensor
    ) -> Tensor:
        """Self-attention among the ``num_important`` most important tokens, written back into the query."""
        importance = importance.masked_fill(~slot_mask, -torch.inf)
        index = importance.topk(self.count_important(query.shape[1]), dim=1).indices
        value = gather_tokens(query, index)
        with_position = value + gather_tokens(position, index)
        attended = self.important_attention(
            with_position,
            with_position,
            value,
            key_padding_mask=self.surplus_keys(slot_mask.gather(1, index)),
            need_weights=False,
        )[0]
        return scatter_tokens(query, index, self.important_norm(value + attended))


class BackgroundEmbedding(nn.Module):
    """A learned embedding of (row, column) for the tokens that were not selected."""

    def __init__(self, *, embed_dim: int = 256, size: int = 200) -> None:
        super().__init__()
        self.row_embed = nn.Parameter(torch.rand(size, embed_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(size, embed_dim // 2))

    def forward(self, level_shapes: tuple[tuple[int, int], ...]) -> Tensor:
        """(S, D), column half first; tables are stretched for maps that have more rows or columns than they."""
        levels = []
        for height, width in level_shapes:
            columns = self._table(self.col_embed, width)[None, :].expand(height, -1, -1)
            rows = self._table(self.row_embed, height)[:, None].expand(-1, width, -1)
            levels.append(torch.cat([columns, rows], dim=-1).flatten(0, 1))
        return torch.cat(levels)

    @staticmethod
    def _table(table: Tensor, size: int) -> Tensor:
        if size <= len(table):
            return table[:size]
        stretched = F.interpolate(table.t()[None], size=size, mode="linear", align_corners=True)
        return stretched[0].t()


class SalienceEncoder(nn.Module):
    """Refines ever fewer of the selected tokens, then marks the background.

    Args:
        layers: in the order of the data.
        background_embedding: of the tokens that are not selected.
        use_checkpoint: compute the layers' activations again in the backward pass instead of keeping them.
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
            class_head: (B, n, D) -> (B, n, K) logits; weighs importance only, no gradient flows through it.

        Returns:
            (B, S, D) memory.
        """
        memory = tokens.features
        index = selection.token_index
        position = gather_tokens(tokens.positions, index)
        centers = gather_tokens(tokens.centers, index)
        reference_points = centers[:, :, None] * tokens.valid_ratios[:, None]
        for layer, slot_mask in zip(self.layers, selection.layer_masks, strict=True):
            slots = slot_mask.shape[1]
            query = gather_tokens(memory, index[:, :slots])
            with torch.no_grad():
                importance = class_head(query).amax(-1) * selection.scores[:, :slots]
            refined = layer(
                query,
                position[:, :slots],
                importance=importance,
                slot_mask=slot_mask,
                reference_points=reference_points[:, :slots],
                tokens=tokens,
            )
            memory = scatter_tokens(
                memory, index[:, :slots], torch.where(slot_mask[..., None], refined, query)
            )
        return self.add_background(memory, tokens, index[:, :slots], slot_mask)

    def add_background(
        self, memory: Tensor, tokens: TokenPyramid, index: Tensor, slot_mask: Tensor
    ) -> Tensor:
        """Add the background embedding to the unpadded tokens that the last layer did not refine."""
        background = (~tokens.padding_mask).scatter(
            1, index, ~slot_mask & ~tokens.padding_mask.gather(1, index)
        )
        embedding = self.background_embedding(tokens.level_shapes).to(memory.dtype)
        return memory + embedding * background[..., None]
