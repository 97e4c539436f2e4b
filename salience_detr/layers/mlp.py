"""Multi-layer perceptron with ReLU between its layers."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """``num_layers`` linear layers: ``input_dim -> hidden_dim -> ... -> output_dim``.

    With ``zero_output`` the last layer starts at zero.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        zero_output: bool = False,
    ) -> None:
        super().__init__()

        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        linears = [nn.Linear(before, after) for before, after in pairwise(widths)]

        for layer in linears:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if zero_output:
            nn.init.zeros_(linears[-1].weight)

        self.layers = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)"""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The transformer's residual feed-forward block: LayerNorm(x + W2 ReLU(W1 x))."""

    def __init__(self, *, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()

        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> (..., embed_dim)"""
        hidden = F.relu(self.linear1(x))
        return self.norm(x + self.linear2(hidden))
