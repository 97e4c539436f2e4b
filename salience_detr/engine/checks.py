"""Checks of a run before its first step: its data, and the room for its checkpoints."""

from __future__ import annotations

import copy
import logging

import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.logger import log_first_n
from omegaconf import DictConfig
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import FrozenBatchNorm2d as VisionFrozenBatchNorm2d

from salience_detr.data.classes import classes_of
from salience_detr.data.datasets import (
    as_list,
    check_boxes_to_learn,
    check_class_count,
    check_files,
    warn_without_boxes,
)
from salience_detr.data.split_classes import check_splits, describe_difference
from salience_detr.engine.checkpointing import TrainingCheckpointer
from salience_detr.utils.config_keys import walk
from salience_detr.utils.files import check_output_dir

logger = logging.getLogger(__name__)

# Settings that freeze parts of a backbone, with their values that freeze nothing.
FREEZING_KEYS = {
    "freeze_at": 0, "freeze_at_stride": 0, "frozen_stages": -1, "freeze_batch_norm": False
}  # fmt: skip


def check_test_set(config: DictConfig) -> None:
    """Find before the first step what an evaluation would stop at hours later.

    Raises:
        DatasetError: the annotations have a mistake, or an image is missing.
    """
    # Each by itself, as it is evaluated.
    for name in as_list(config.dataloader.test.dataset.names):
        dataset = copy.copy(config.dataloader.test.dataset)
        dataset.names = name
        records = instantiate(dataset)
        check_files(records, name)
        warn_without_boxes(records, name)


def check_test_classes(config: DictConfig) -> None:
    """Compare the classes of the test sets with those of the training set, by name.

    Both are loaded. A test set that has fewer classes is fine, and said.

    Raises:
        DatasetError: a test set has classes that the training set lacks, or other ids for them; or
            another number of classes than the model, where names are unknown.
    """
    num_classes = config.model.get("num_classes")
    train_name = as_list(config.dataloader.train.dataset.names)[0]
    train_classes = classes_of(MetadataCatalog.get(train_name))
    for name in as_list(config.dataloader.test.dataset.names):
        test_classes = classes_of(MetadataCatalog.get(name))
        if train_classes is None or test_classes is None:
            check_class_count(name, num_classes)
            continue

        check_splits(train_classes, test_classes)
        difference = describe_difference(train_classes.names, test_classes)
        if difference is not None:
            log_first_n(logging.INFO, difference, key="message")


def check_training_set(config: DictConfig, loader: DataLoader) -> None:
    """Find before the first step what training would stop at, or learn nothing from.

    Raises:
        DatasetError: an image is missing, or there is no box to learn.
    """
    records = getattr(loader.dataset, "records", None)  # None for a loader of another kind
    if records is not None:
        check_files(records, config.dataloader.train.dataset.names)
        check_boxes_to_learn(records)


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters that are not trained, and of frozen BatchNorm, by name."""
    frozen = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen[name] = parameter.detach().clone()

    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d | VisionFrozenBatchNorm2d):
            frozen[f"{name}.weight"] = module.state_dict()["weight"].clone()
    return frozen


def warn_of_random_layers(config: DictConfig, model: nn.Module, before: dict[str, Tensor]) -> None:
    """Warn of frozen layers that no weights were loaded into: they stay random for ever.

    Args:
        config: of the run.
        model: with the weights to start from.
        before: see :func:`frozen_tensors`, of the model with random weights.
    """
    # Backbones of timm may come with weights of their own.
    settings = dict(walk(config.model))
    if any(name.endswith("pretrained") and value for name, value in settings.items()):
        return

    state = model.state_dict()
    random = [name for name, tensor in before.items() if torch.equal(tensor, state[name])]
    if not random:
        return

    remedies = ["start from trained weights (--weights FILE, docs/model_zoo.md)"]
    for name, value in settings.items():
        leaf = name.rpartition(".")[2]
        if leaf in FREEZING_KEYS and value:
            remedies.append(f"or train them: model.{name}={FREEZING_KEYS[leaf]}")
    if config.train.get("freeze"):
        remedies.append("or leave out --freeze")
    if any(value == "FrozenBN" for value in settings.values()):
        remedies.append("and norm=BN in place of FrozenBN in the config")
    logger.warning(
        "%d frozen layers, such as %s, have random weights and would stay so: %s",
        len(random), random[0].rpartition(".")[0], ", ".join(remedies),
    )  # fmt: skip


def check_room(config: DictConfig, checkpointer: TrainingCheckpointer) -> None:
    """Make sure that the output folder has room for the checkpoints, beside those that are there.

    Raises:
        OSError: see :func:`check_output_dir`.
    """
    parameters = checkpointer.model.parameters()
    parameter_bytes = sum(p.numel() * p.element_size() for p in parameters)

    # A checkpoint holds the parameters, two moments of AdamW, and the EMA.
    copies = 4 if "ema" in checkpointer.checkpointables else 3
    checkpoint_bytes = copies * parameter_bytes

    # The best one, the final one and one being written come on top of those that are kept. A run
    # that goes on replaces or deletes its earlier ones.
    num_checkpoints = config.train.checkpointer.max_to_keep + 3
    bytes_on_disk = sum(path.stat().st_size for path in checkpointer.files())
    needed_bytes = checkpoint_bytes * num_checkpoints - bytes_on_disk
    check_output_dir(config.train.output_dir, needed_bytes=max(checkpoint_bytes, needed_bytes))
