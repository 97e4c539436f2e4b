"""detectron2's Swin Transformer for images whose sides are unknown: it decides by them what to pad and what to mask.

Symbols: B images, H and W sides of a map, R by C windows of w by w places, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformerBlock
from torch import Tensor, nn


class GraphSwinBlock(SwinTransformerBlock):
    """Pads to whole windows and cuts the padding off again, whether there is any or not."""

    H: int
    W: int

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """(B, H * W, D) and the (R * C, w * w, w * w) mask of shifted windows -> (B, H * W, D)"""
        height, width, side = self.H, self.W, self.window_size
        rows, columns = whole_windows(height, side), whole_windows(width, side)
        y = self.norm1(x).unflatten(1, (height, width))
        y = F.pad(y, [0, 0, 0, columns * side - width, 0, rows * side - height])
        if self.shift_size:
            y = torch.roll(y, shifts=(-self.shift_size, -self.shift_size), dims=(1, 2))
        windows = (
            y.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        )  # (B, R, C, w, w, D)
        attended = self.attn(
            windows.flatten(3, 4).flatten(0, 2), mask_matrix if self.shift_size else None
        )
        y = attended.unflatten(1, (side, side)).unflatten(0, (x.shape[0], rows, columns))
        y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, R * w, C * w, D)
        if self.shift_size:
            y = torch.roll(y, shifts=(self.shift_size, self.shift_size), dims=(1, 2))
        x = x + y[:, :height, :width].flatten(1, 2)
        return x + self.mlp(self.norm2(x))


class GraphSwinLayer(BasicLayer):
    """Computes the mask of shifted windows from the places themselves."""

    def forward(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """(B, H * W, D) of a map -> its output and sides, and those of the next stage's input"""
        mask = self.shift_mask(height, width, x.device)
        for block in self.blocks:
            block.H, block.W = height, width
            x = block(x, mask)
        if self.downsample is None:
            return x, height, width, x, height, width
        return (
            x,
            height,
            width,
            self.downsample(x, height, width),
            (height + 1) // 2,
            (width + 1) // 2,
        )

    def shift_mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """(R * C, w * w, w * w) -100 between places that the shift brought together, else 0."""
        side = self.window_size
        rows, columns = whole_windows(height, side), whole_windows(width, side)
        y, x = (self.regions(count * side, device) for count in (rows, columns))
        regions = (3 * y[:, None] + x).unflatten(1, (columns, side)).unflatten(0, (rows, side))
        windows = regions.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (R * C, w * w)
        return (windows[:, None] != windows[:, :, None]).float() * -100

    def regions(self, size: int, device: torch.device) -> Tensor:
        """(size,) of each place along an axis: 0 in all windows but the last, 1 before and 2 behind its shift."""
        place = torch.arange(size, device=device)
        return (place >= size - self.window_size).long() + (place >= size - self.shift_size).long()


def whole_windows(size: int, side: int) -> int:
    """Windows that cover an axis."""
    return (size + side - 1) // side


def make_swin_exportable(backbone: nn.Module) -> None:
    """Exchange the parts of a Swin, in place; other backbones stay as they are."""
    for module in backbone.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = GraphSwinBlock
        elif type(module) is BasicLayer:
            module.__class__ = GraphSwinLayer
