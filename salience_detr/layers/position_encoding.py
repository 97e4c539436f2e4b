"""Sine encodings of positions on feature maps and of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0  # the wavelengths are 1 to this many (Attention Is All You Need, section 3.5)


def sine_encoding(coordinates: Tensor, num_features: int) -> Tensor:
    """Encode scalars in [0, 1] by sines and cosines of geometrically spaced frequencies.

    Args:
        coordinates: (...) of a floating dtype, in which the encoding is computed.
        num_features: features per scalar, even.

    Returns:
        (..., num_features): sin and cos interleaved; features 2k and 2k+1 have frequency
        2*pi / 10000^(2k / num_features).
    """
    even = torch.arange(0, num_features, 2, dtype=coordinates.dtype, device=coordinates.device)
    exponent = even / num_features

    angles = coordinates[..., None] * (2 * math.pi) / TEMPERATURE**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class SinePositionEncoding(nn.Module):
    """Position of each map element among the unpadded ones, y features before x features.

    Element k of a row with n unpadded elements lies at (k + 0.5) / n.
    """

    def __init__(self, *, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features  # per axis

    def forward(
        self, padding_masks: Sequence[Tensor], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Encode the positions on the maps of several levels.

        Args:
            padding_masks: (B, H_l, W_l), True = padding.
            dtype: of the result.

        Returns:
            (B, S, 2 * num_features), the elements of all maps row by row.
        """
        levels = []
        for padding_mask in padding_masks:
            unpadded = (~padding_mask).to(dtype)

            positions = []
            for dim in (1, 2):  # y, x
                # 1 for the first unpadded element of a row or column, n for the last one.
                number = unpadded.cumsum(dim)
                total = number.narrow(dim, number.shape[dim] - 1, 1)

                positions.append((number - 0.5) / (total + 1e-6))
            levels.append(torch.stack(positions, dim=-1).flatten(1, 2))

        return sine_encoding(torch.cat(levels, dim=1), self.num_features).flatten(-2)


def box_sine_encoding(boxes: Tensor, num_features: int) -> Tensor:
    """Encode (..., 4) boxes (cx, cy, w, h) in [0, 1].

    Returns:
        (..., 4 * num_features), in the order y, x, w, h.
    """
    reordered = torch.cat([boxes[..., 1:2], boxes[..., :1], boxes[..., 2:]], dim=-1)
    return sine_encoding(reordered, num_features).flatten(-2)
