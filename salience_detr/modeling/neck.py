"""Levels of equal width from the maps of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import Conv2d
from torch import Tensor, nn


class ChannelMapper(nn.Module):
    """1x1 convolution and GroupNorm per backbone map, 3x3 stride-2 convolutions for extra levels.

    The first extra level reads the last backbone map itself, further ones the level before.

    Args:
        in_features: names of the backbone maps, finest first.
        in_channels: their channels.

    Raises:
        ValueError: ``in_features`` and ``in_channels`` differ in length.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_extra_levels: int = 1,
        num_groups: int = 32,
    ) -> None:
        super().__init__()

        if len(in_features) != len(in_channels):
            raise ValueError(
                f"in_features {list(in_features)} and in_channels {list(in_channels)} differ in "
                "length; give the channels of each map"
            )

        self.in_features = tuple(in_features)

        self.projections = nn.ModuleList()
        for channels in in_channels:
            norm = nn.GroupNorm(num_groups, out_channels)
            self.projections.append(Conv2d(channels, out_channels, 1, bias=False, norm=norm))

        self.extra_levels = nn.ModuleList()
        channels = in_channels[-1]
        for _ in range(num_extra_levels):
            norm = nn.GroupNorm(num_groups, out_channels)
            self.extra_levels.append(
                Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False, norm=norm)
            )
            channels = out_channels

        for conv in [*self.projections, *self.extra_levels]:
            nn.init.xavier_uniform_(conv.weight)

    @property
    def num_levels(self) -> int:
        return len(self.projections) + len(self.extra_levels)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Backbone maps by name -> L maps (B, out_channels, H_l, W_l), finest first."""
        levels = []
        for name, project in zip(self.in_features, self.projections, strict=True):
            levels.append(project(features[name]))

        x = features[self.in_features[-1]]
        for downsample in self.extra_levels:
            x = downsample(x)
            levels.append(x)
        return levels
