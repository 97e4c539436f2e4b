"""Cross-level fusion of the encoder memory: a path aggregation network of RepVGGPluX blocks.

Symbols: B images, L levels of size (H_l, W_l), D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm and, if ``activation``, SiLU; stride 1 keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()

        padding = kernel_size // 2

        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.SiLU() if activation else nn.Identity()

        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))"""
        return self.activation(self.normalize(self.conv(x)))

    def normalize(self, x: Tensor) -> Tensor:
        """Apply BatchNorm.

        In training, a single value per channel (one tiny image) has no variance: the running
        statistics are used instead.
        """
        norm = self.norm
        if type(norm) is nn.BatchNorm2d and norm.training and x[:, 0].numel() == 1:
            return F.batch_norm(
                x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )

        return norm(x)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias of the convolution that equals conv and norm in evaluation."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None

        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        kernel = self.conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        return kernel, bias


class ContextGate(nn.Module):
    """Scales channels by a gate computed from the attention-pooled context of the map."""

    def __init__(self, *, channels: int, reduction: int = 16) -> None:
        super().__init__()

        hidden = max(1, channels // reduction)
        self.attention = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

        for conv in (self.attention, self.reduce, self.expand):
            nn.init.kaiming_uniform_(conv.weight, a=1)

        assert self.attention.bias is not None
        nn.init.zeros_(self.attention.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)"""
        # Attention pooling: a mean over the map, weighted by the softmax of one channel.
        weights = self.attention(x).flatten(2).softmax(-1)  # (B, 1, H * W)
        context = (x.flatten(2) * weights).sum(-1)[..., None, None]

        return x * self.expand(F.relu(self.reduce(context))).sigmoid()


class RepVGGBlock(nn.Module):
    """Parallel grouped 3x3 and 1x1 convolutions, gated, with a shortcut.

    In evaluation both convolutions are folded into one on the fly; nothing is stored, so
    checkpoints stay the same.
    """

    def __init__(self, *, channels: int, groups: int = 4) -> None:
        super().__init__()
        self.conv3x3 = ConvBN(channels, channels, 3, groups=groups, activation=False)
        self.conv1x1 = ConvBN(channels, channels, 1, groups=groups, activation=False)
        self.gate = ContextGate(channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)"""
        if self.training:
            y = self.conv3x3(x) + self.conv1x1(x)
        else:
            kernel, bias = self.folded()
            y = F.conv2d(x, kernel, bias, padding=1, groups=self.conv3x3.conv.groups)

        return self.gate(F.silu(y)) + x

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias of the 3x3 convolution that equals the sum of both branches."""
        kernel3, bias3 = self.conv3x3.folded()
        kernel1, bias1 = self.conv1x1.folded()

        # A 1x1 kernel is a 3x3 kernel with zeros around it.
        return kernel3 + F.pad(kernel1, [1, 1, 1, 1]), bias3 + bias1


class CSPBlock(nn.Module):
    """Two 1x1 branches, one of them through RepVGG blocks, added: 2D -> D channels."""

    def __init__(self, *, channels: int, num_blocks: int = 3, groups: int = 4) -> None:
        super().__init__()
        self.main = ConvBN(2 * channels, channels, 1)

        blocks = [RepVGGBlock(channels=channels, groups=groups) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks)

        self.shortcut = ConvBN(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2D, H, W) -> (B, D, H, W)"""
        return self.blocks(self.main(x)) + self.shortcut(x)


class FeatureFusion(nn.Module):
    """Top-down, then bottom-up exchange between neighboring levels."""

    def __init__(
        self, *, channels: int = 256, num_levels: int = 4, num_blocks: int = 3, groups: int = 4
    ) -> None:
        super().__init__()

        def block() -> CSPBlock:
            return CSPBlock(channels=channels, num_blocks=num_blocks, groups=groups)

        # lateral[l] and top_down[l] produce level l; downsample[l] and bottom_up[l] level l + 1.
        steps = range(num_levels - 1)
        self.lateral = nn.ModuleList(ConvBN(channels, channels, 1) for _ in steps)
        self.top_down = nn.ModuleList(block() for _ in steps)
        self.downsample = nn.ModuleList(ConvBN(channels, channels, 3, stride=2) for _ in steps)
        self.bottom_up = nn.ModuleList(block() for _ in steps)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """L maps (B, D, H_l, W_l), finest first -> maps of the same shapes."""
        levels = list(maps)

        # Top-down: each level takes in the coarser one.
        for level in reversed(range(len(levels) - 1)):
            levels[level + 1] = self.lateral[level](levels[level + 1])

            shape = levels[level].shape[-2:]
            upsampled = F.interpolate(levels[level + 1], size=shape, mode="nearest")
            levels[level] = self.top_down[level](torch.cat([upsampled, levels[level]], dim=1))

        # Bottom-up: each level takes in the finer one.
        for level in range(len(levels) - 1):
            downsampled = self.downsample[level](levels[level])
            merged = torch.cat([downsampled, levels[level + 1]], dim=1)
            levels[level + 1] = self.bottom_up[level](merged)

        return levels
