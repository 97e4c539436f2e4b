"""What is done to a model before its training: memory format, compiled stages, processes."""

from __future__ import annotations

import logging

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from salience_detr.config import ConfigError, resolve_amp, resolve_device
from salience_detr.engine.sync_batch_norm import use_cpu_sync_batch_norm
from salience_detr.layers.activation_checkpointing import checkpoints_batch_norm
from salience_detr.layers.onednn import use_onednn, uses_onednn
from salience_detr.modeling.optimization import COMPILED_STAGES

logger = logging.getLogger(__name__)


# oneDNN reads the channels of a pointwise convolution in blocks of as many.
CHANNEL_BLOCK = 16


def set_memory_format(config: DictConfig, model: nn.Module) -> None:
    """Set the memory format of the convolutions, in place, as configured.

    Raises:
        ConfigError: channels last is asked for, and would crash; or the setting is no switch.
    """
    channels_last = config.train.channels_last
    if channels_last not in (None, True, False):
        raise ConfigError(f"train.channels_last is {channels_last!r}; use True, False or null")

    on_cpu = resolve_device(config.train.device).type == "cpu"
    crashing = find_crashing_convolution(model) if on_cpu else None

    if channels_last and crashing:
        raise ConfigError(
            f"train.channels_last is True, but {crashing} is a strided 1x1 convolution whose "
            f"channels are no multiple of {CHANNEL_BLOCK}, with which PyTorch can crash on the "
            "CPU; set train.channels_last=False"
        )
    if channels_last or (channels_last is None and on_cpu and not crashing):
        model.to(memory_format=torch.channels_last)


def find_crashing_convolution(model: nn.Module) -> str | None:
    """Return the name of a convolution whose backward pass can crash on the CPU, if there is one.

    With maps in channels last, PyTorch 2.15 crashes in the gradient of the weights of a strided
    1x1 convolution of 4, 8 or 12 channels. It did not with 20 or 24, but they end in the middle of
    a block as well.
    """
    for name, module in model.named_modules():
        is_strided = isinstance(module, nn.Conv2d) and max(module.stride) > 1
        if is_strided and max(module.kernel_size) == 1 and module.in_channels % CHANNEL_BLOCK:
            return name
    return None


def use_fast_products(config: DictConfig, model: nn.Module) -> None:
    """Choose what computes the linear layers, in place, by the device and the precision."""
    # Autocast and inductor have products of their own.
    is_autocast = resolve_amp(config.train.amp, resolve_device(config.train.device)) is not None
    if is_autocast or config.train.compile:
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
