"""Self-attention whose queries and keys carry a position that its values do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalSelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention, with the parameters of PyTorch's module.

    PyTorch's own ``forward`` projects queries and keys one after the other, although both are the
    same here, and wants a mask per head where images differ.
    """

    def __init__(self, *, embed_dim: int, num_heads: int) -> None:
        super().__init__(embed_dim, num_heads, batch_first=True)

    def forward(  # type: ignore[override]
        self, with_position: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            with_position: (B, N, D), from which queries and keys are projected.
            value: (B, N, D).
            mask: broadcastable to (B, N, N), see :func:`additive_mask`, or to (B, num_heads, N, N);
                None masks nothing.

        Returns:
            (B, N, D)
        """
        # Queries and keys by one product.
        widths = [2 * self.embed_dim, self.embed_dim]
        weight, value_weight = self.in_proj_weight.split(widths)
        bias, value_bias = self.in_proj_bias.split(widths)
        query, key = F.linear(with_position, weight, bias).chunk(2, dim=-1)

        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]  # for all heads

        attended = F.scaled_dot_product_attention(
            self.split_heads(query),
            self.split_heads(key),
            self.split_heads(F.linear(value, value_weight, value_bias)),
            attn_mask=mask,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, num_heads, N, D / num_heads)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def additive_mask(masked: Tensor, like: Tensor) -> Tensor:
    """Return 0, and -inf where ``masked`` is True, in the dtype of ``like``.

    PyTorch makes the same of a boolean mask, but anew for each layer that it is given to.
    """
    return torch.zeros_like(masked, dtype=like.dtype).masked_fill_(masked, -torch.inf)
