"""Freezing of parts of a model by name."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Sequence

from detectron2.engine import HookBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from salience_detr.config import ConfigError

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters inside the named modules, in place, and say how many.

    The statistics of their BatchNorm layers stay with :class:`FrozenBatchNormHook`.

    Args:
        model: to freeze.
        patterns: names of modules or parameters, such as "backbone" or "decoder.layers.[01]"; a
            module stands for everything inside it.

    Raises:
        ConfigError: nothing has such a name, or nothing is left to train.
    """
    if not patterns:
        return

    check_names(model, patterns)

    # Without gradients they get no state in the optimizer either.
    num_frozen = 0
    for name, parameter in model.named_parameters():
        if is_inside(name, patterns):
            parameter.requires_grad_(False)
            num_frozen += parameter.numel()

    trainable = filter(lambda parameter: parameter.requires_grad, model.parameters())
    num_trainable = sum(parameter.numel() for parameter in trainable)
    names = ", ".join(patterns)
    if not num_trainable:
        raise ConfigError(f"train.freeze={names} freezes the whole model: leave a part to train")

    logger.info(
        "frozen (%s): %s parameters and %d layers of BatchNorm; %s are trained",
        names,
        f"{num_frozen:,}",
        len(frozen_batch_norms(model, patterns)),
        f"{num_trainable:,}",
    )


def check_names(model: nn.Module, patterns: Sequence[str]) -> None:
    """Check that each pattern names a part of the model.

    Raises:
        ConfigError: there is none; the nearest names are in the message.
    """
    # The model itself has the name "".
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    names = [*filter(None, modules), *parameters]

    for pattern in patterns:
        if fnmatch.filter(names, pattern):
            continue

        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
        examples = near or list(dict(model.named_children()))
        raise ConfigError(
            f"train.freeze: the model has no part {pattern!r}; it has, for example, "
            f"{', '.join(examples)}"
        )


def is_inside(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a module or parameter, or a module around it, has one of the names."""
    while name:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return True
        name = name.rpartition(".")[0]
    return False


def frozen_batch_norms(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Return the BatchNorm layers inside the named modules."""
    layers: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and is_inside(name, patterns):
            layers.append(module)
    return layers


class FrozenBatchNormHook(HookBase):
    """Evaluation mode of frozen BatchNorm layers, whose statistics stay as they are.

    The model is put into training mode at the start and after each evaluation. Layers are not
    replaced by FrozenBatchNorm2d, because checkpoints keep their names.

    Args:
        patterns: see :func:`freeze`.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = patterns
        self.layers: list[nn.Module] = []

    def before_train(self) -> None:
        # Of the distributed model, whose BatchNorm may be a synchronized one.
        model = getattr(self.trainer.model, "module", self.trainer.model)
        self.layers = frozen_batch_norms(model, self.patterns)

    def before_step(self) -> None:
        for layer in self.layers:
            layer.eval()
