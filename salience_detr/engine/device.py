"""Devices and number types by name."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from salience_detr.engine.config import ConfigError


def resolve_device(device: str) -> torch.device:
    """The device that a config names; "auto" is this process's GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ConfigError(f"the device {device!r} cannot be used ({reason}); use auto, cpu, cuda or cuda:N") from error
    return found


def resolve_amp(amp: DictConfig, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of a config, or None if mixed precision is off."""
    if not amp.enabled:
        return None
    names = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}
    if amp.dtype == "auto":
        has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float16
    if amp.dtype not in names:
        raise ConfigError(f"train.amp.dtype is {amp.dtype!r}; use auto, bf16 or fp16")
    return names[amp.dtype]
