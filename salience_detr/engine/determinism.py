"""Deterministic algorithms of PyTorch, and the names of what has none."""

from __future__ import annotations

import logging
import os
import re
import warnings

import torch
from detectron2.engine import HookBase

logger = logging.getLogger(__name__)

# How PyTorch begins its warning of an operation that it has no deterministic algorithm for.
WARNING = re.compile(r"(\S+) does not have a deterministic implementation")

# Our operator adds the gradients of the sampled values atomically (ops/csrc/cuda/kernels.cuh), in
# an order that differs from run to run. PyTorch does not know of it.
ON_CUDA = "the backward pass of multi-scale deformable attention (atomic additions)"


def use_deterministic_algorithms() -> None:
    """Choose PyTorch's deterministic algorithms in this process, before it uses a GPU.

    An operation without one runs as ever; :class:`DeterminismHook` names it.
    """
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


class DeterminismHook(HookBase):
    """One line, after the first step, that names what is not deterministic on this device.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.names = [ON_CUDA] if device.type == "cuda" else []
        self.recorder = warnings.catch_warnings(record=True)
        self.recorded: list[warnings.WarningMessage] | None = None

    def before_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            self.recorded = self.recorder.__enter__()
            warnings.simplefilter("always")

    def after_step(self) -> None:
        if self.recorded is None:
            return

        recorded = self.recorded
        self.close()
        for warning in recorded:
            match = WARNING.match(str(warning.message))
            if match is None:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
            elif match[1] not in self.names:
                self.names.append(match[1])

        if self.names:
            logger.warning(
                "not deterministic on this device, so that two runs may differ: %s",
                ", ".join(self.names),
            )
        else:
            logger.info("all operations are deterministic: equal runs give equal weights")

    def after_train(self) -> None:
        self.close()

    def close(self) -> None:
        """Give warnings back to whoever shows them."""
        if self.recorded is not None:
            self.recorder.__exit__(None, None, None)
            self.recorded = None
