"""What is done to a model before its training: memory format, compiled stages, processes."""

from __future__ import annotations

import logging

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from salience_detr.config import ConfigError
from salience_detr.engine.sync_batch_norm import use_cpu_sync_batch_norm
from salience_detr.layers.activation_checkpointing import checkpoints_batch_norm
from salience_detr.layers.onednn import use_onednn, uses_onednn
from salience_detr.modeling.optimization import COMPILED_STAGES

logger = logging.getLogger(__name__)


def set_memory_format(config: DictConfig, model: nn.Module) -> None:
    """Set the memory format of the convolutions, in place, as configured."""
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)


def use_fast_products(config: DictConfig, model: nn.Module) -> None:
    """Choose what computes the linear layers, in place, by the device and the precision."""
    # Autocast and inductor have products of their own.
    if config.train.amp.enabled or config.train.compile:
        return

    weight = next(model.parameters())
    if uses_onednn(weight.device, weight.dtype):
        use_onednn(model)


def compile_model(config: DictConfig, model: nn.Module) -> None:
    """Compile the stages, in place, as configured.

    Raises:
        ConfigError: the stages cannot be compiled as they are.
    """
    if not config.train.compile:
        return

    if any(checkpoints_batch_norm(module) for module in model.modules()):
        raise ConfigError(
            "train.compile=True cannot compile BatchNorm under activation checkpointing; set "
            "model.backbone.use_checkpoint=False, or train.compile=False"
        )

    for name, stage in model.named_children():
        if name in COMPILED_STAGES:
            logger.info("compiling the stage %s", name)
            stage.compile()


def distribute(model: nn.Module) -> nn.Module:
    """Average gradients and BatchNorm statistics over the processes, if there are several."""
    if comm.get_world_size() == 1:
        return model

    # torch's SyncBatchNorm needs GPUs.
    device_ids = None
    if next(model.parameters()).is_cuda:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        device_ids = [torch.cuda.current_device()]
    else:
        model = use_cpu_sync_batch_norm(model)

    # The statistics of BatchNorm are equal in all processes already.
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
