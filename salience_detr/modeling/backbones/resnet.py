"""detectron2's ResNet with activation checkpointing."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.backbone import resnet

from salience_detr.layers.activation_checkpointing import checkpoint_activations


class ResNet(resnet.ResNet):
    """A ResNet of detectron2.

    Args:
        use_checkpoint: activation checkpointing of the blocks.
        settings: arguments of detectron2's class.
    """

    def __init__(self, *, use_checkpoint: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        if use_checkpoint:
            for stage in self.stages:
                for block in stage:
                    checkpoint_activations(block)
