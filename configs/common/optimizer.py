"""AdamW of the published recipe; the model is filled in when it is built."""

import torch
from detectron2.config import LazyCall as L

from salience_detr.engine.optimizer import get_parameter_groups

optimizer = L(torch.optim.AdamW)(
    params=L(get_parameter_groups)(
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        backbone_lr_factor=0.1,
        sampling_offsets_lr_factor=0.1,
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
)
