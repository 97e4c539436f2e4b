"""detectron2's Swin Transformer with the maps that Salience DETR takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from detectron2.modeling.backbone.swin import SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import nn

from salience_detr.layers.activation_checkpointing import checkpoint_activations


class Swin(SwinTransformer):
    """A Swin Transformer whose maps are those of its stages, as the published model takes them.

    Args:
        out_features: names of the maps, "p0" (stride 4) to "p3" (stride 32).
        output_norms: a LayerNorm for each map, as in detectron2.
        use_checkpoint: activation checkpointing of the blocks.
        settings: arguments of detectron2's class.
    """

    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("p1", "p2", "p3"),
        output_norms: bool = False,
        use_checkpoint: bool = False,
        **settings: Any,
    ) -> None:
        indices = [int(name.removeprefix("p")) for name in out_features]
        with warnings.catch_warnings():
            # detectron2 imports DropPath from timm's former place.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(out_indices=indices, **settings)

        if not output_norms:
            for index in indices:
                setattr(self, f"norm{index}", nn.Identity())

        for module in self.modules():
            # A constant, which checkpoints need not hold.
            if isinstance(module, WindowAttention):
                index_table = module.relative_position_index
                module.register_buffer("relative_position_index", index_table, persistent=False)

            # detectron2's own checkpointing loses the gradients of blocks after a frozen stage.
            if use_checkpoint and isinstance(module, SwinTransformerBlock):
                checkpoint_activations(module)

    @property
    def size_divisibility(self) -> int:
        return 32
