"""From backbone maps to levels of equal width."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import Conv2d
from torch import Tensor, nn


class ChannelMapper(nn.Module):
    """1x1 conv + GroupNorm per backbone map; each extra level is a 3x3 stride-2 conv + GroupNorm.

    The first extra level reads the last backbone map itself, further ones the level before.
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
                f"in_features {list(in_features)} and in_channels {list(in_channels)} differ in length"
            )
        self.in_features = tuple(in_features)
        self.projections = nn.ModuleList(
            Conv2d(
                channels, out_channels, 1, bias=False, norm=nn.GroupNorm(num_groups, out_channels)
            )
            for channels in in_channels
        )
        extra_inputs = [in_channels[-1], *[out_channels] * (num_extra_levels - 1)][
            :num_extra_levels
        ]
        self.extra_levels = nn.ModuleList(
            Conv2d(
                c,
                out_channels,
                3,
                stride=2,
                padding=1,
                bias=False,
                norm=nn.GroupNorm(num_groups, out_channels),
            )
            for c in extra_inputs
        )
        for conv in [*self.projections, *self.extra_levels]:
            nn.init.xavier_uniform_(conv.weight)

    @property
    def num_levels(self) -> int:
        return len(self.projections) + len(self.extra_levels)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Backbone maps by name -> L maps (B, out_channels, H_l, W_l), finest first."""
        inputs = [features[name] for name in self.in_features]
        levels = [project(x) for project, x in zip(self.projections, inputs, strict=True)]
        x = inputs[-1]
        for downsample in self.extra_levels:
            x = downsample(x)
            levels.append(x)
        return levels
