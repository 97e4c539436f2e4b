"""detectron2's Swin Transformer for images of unknown size.

The original decides by the sides what to pad and what to mask, which an exporter cannot trace.

Symbols: B images; H, W sides of a feature map; R x C windows of w x w tokens; D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformerBlock
from torch import Tensor, nn


class GraphSwinBlock(SwinTransformerBlock):
    """Block that pads to whole windows and crops again, even if there is no padding."""

    H: int
    W: int

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """(B, H * W, D) and the (R * C, w * w, w * w) mask of shifted windows -> (B, H * W, D)"""
        side = self.window_size
        rows = num_windows(self.H, side)
        columns = num_windows(self.W, side)

        y = self.norm1(x).unflatten(1, (self.H, self.W))
        y = F.pad(y, [0, 0, 0, columns * side - self.W, 0, rows * side - self.H])
        if self.shift_size:
            y = torch.roll(y, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))

        # (B, R * w, C * w, D) -> (B, R, C, w, w, D)
        windows = y.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        mask = mask_matrix if self.shift_size else None
        y = self.attn(windows.flatten(3, 4).flatten(0, 2), mask)

        # (B * R * C, w * w, D) -> (B, R * w, C * w, D)
        y = y.unflatten(1, (side, side)).unflatten(0, (x.shape[0], rows, columns))
        y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift_size:
            y = torch.roll(y, shifts=(self.shift_size, self.shift_size), dims=(1, 2))

        x = x + y[:, : self.H, : self.W].flatten(1, 2)
        return x + self.mlp(self.norm2(x))


class GraphSwinLayer(BasicLayer):
    """Stage that computes the mask of shifted windows from the positions of the tokens."""

    def forward(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """(B, H * W, D) -> its output and sides, and input and sides of the next stage"""
        mask = self.shift_mask(height, width, x.device)
        for block in self.blocks:
            block.H = height
            block.W = width
            x = block(x, mask)

        if self.downsample is None:
            return x, height, width, x, height, width

        smaller = self.downsample(x, height, width)
        return x, height, width, smaller, (height + 1) // 2, (width + 1) // 2

    def shift_mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return (R * C, w * w, w * w): -100 between tokens that only the shift brought together.

        Others are 0.
        """
        side = self.window_size
        rows = num_windows(height, side)
        columns = num_windows(width, side)

        y = self.regions(rows * side, device)
        x = self.regions(columns * side, device)
        regions = (3 * y[:, None] + x).unflatten(1, (columns, side)).unflatten(0, (rows, side))
        windows = regions.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (R * C, w * w)
        return (windows[:, None] != windows[:, :, None]).float() * -100

    def regions(self, size: int, device: torch.device) -> Tensor:
        """Return (size,) regions of the positions along an axis.

        0 is before the last window, 1 and 2 are its parts before and behind the shift.
        """
        position = torch.arange(size, device=device)
        in_last_window = position >= size - self.window_size
        behind_shift = position >= size - self.shift_size
        return in_last_window.long() + behind_shift.long()


def num_windows(size: int, side: int) -> int:
    """Return the number of windows that cover an axis."""
    return (size + side - 1) // side


EXPORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    SwinTransformerBlock: GraphSwinBlock,
    BasicLayer: GraphSwinLayer,
}
