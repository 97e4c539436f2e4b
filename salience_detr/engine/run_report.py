"""What a run is, on the console before its first step."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from salience_detr.config import resolve_amp, resolve_device
from salience_detr.data.datasets import as_list, class_names_of
from salience_detr.engine.optimizer import learning_rate
from salience_detr.evaluation.coco_evaluation import describe_weights
from salience_detr.utils.config_keys import walk
from salience_detr.utils.processor import is_emulated

logger = logging.getLogger(__name__)

# Of more classes than these, the most frequent are listed, and the rarest.
MOST_CLASSES = 20
FEW_CLASSES = 8


def log_start(config: DictConfig, model: nn.Module, loader: DataLoader[Any], start: int) -> None:
    """Log one block about device, model, data, schedule and output.

    Args:
        config: of the run.
        model: to train.
        loader: of the training data.
        start: number of finished iterations.
    """
    dataset: Any = loader.dataset
    rows = {
        "device": describe_device(config),
        "model": describe_model(model),
        "training": describe_data(config, loader),
        "evaluation": ", ".join(as_list(config.dataloader.test.dataset.names)),
        "image size": describe_sizes(config),
        "batch": describe_batch(config),
        "length": describe_length(config, len(dataset), start),
        "periods": describe_periods(config),
        "output": str(config.train.output_dir),
    }
    lines = [f"  {name:<11}{text}" for name, text in rows.items()]
    logger.info("the run:\n%s", "\n".join(lines))


def describe_device(config: DictConfig) -> str:
    """Describe the device and the precision."""
    device = resolve_device(config.train.device)
    text = f"{device}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        text = f"{device}, {torch.cuda.get_device_name(device)}"

    num_processes = comm.get_world_size()
    if num_processes > 1:
        text += f", {num_processes} processes"

    amp = config.train.amp
    amp_dtype = resolve_amp(amp, device)
    if amp_dtype is None:
        reason = (
            " (mixed precision is slower: the processor has no bfloat16)" if amp.enabled else ""
        )
        return f"{text}, float32{reason}"
    name = str(amp_dtype).removeprefix("torch.")
    if is_emulated(amp_dtype, device):
        name += ", which this processor only emulates: train.amp.dtype=auto is much faster"
    return f"{text}, mixed precision ({name})"


def describe_model(model: nn.Module) -> str:
    """Describe the class and the parameters of a model."""
    num_parameters = 0
    num_trainable = 0
    for parameter in model.parameters():
        num_parameters += parameter.numel()
        if parameter.requires_grad:
            num_trainable += parameter.numel()

    name = type(model).__name__
    return f"{name}, {num_parameters:,} parameters, {num_trainable:,} trainable"


def describe_data(config: DictConfig, loader: DataLoader) -> str:
    """Describe the training data: images, and boxes of each class."""
    text = f"{len(loader.dataset):,} images"  # type: ignore[arg-type]
    records = getattr(loader.dataset, "records", None)
    if records is None:
        return text

    boxes: Counter[int] = Counter()
    for record in records:
        for annotation in record.get("annotations", ()):
            if not annotation.get("iscrowd"):
                boxes[annotation["category_id"]] += 1

    # Classes that have no names are numbers.
    names = class_names_of(config.dataloader.train.dataset.names)
    counts: dict[str, int] = {}
    for label in range(max(len(names), max(boxes, default=-1) + 1)):
        name = names[label] if label < len(names) else str(label)
        counts[name] = boxes[label]
    return f"{text}, {len(counts)} classes, {boxes.total():,} boxes: {list_counts(counts)}"


def list_counts(counts: Mapping[str, int]) -> str:
    """List the classes with their boxes; of many classes the most frequent and the rarest."""
    entries = [f"{name} {count:,}" for name, count in counts.items()]
    if len(entries) <= MOST_CLASSES:
        return ", ".join(entries)

    order = sorted(counts, key=lambda name: -counts[name])
    most = ", ".join(f"{name} {counts[name]:,}" for name in order[:FEW_CLASSES])
    least = ", ".join(f"{name} {counts[name]:,}" for name in order[-FEW_CLASSES:])
    return f"{most}, ... {least}"


def describe_sizes(config: DictConfig) -> str:
    """Describe the sizes of images that the augmentations of training and evaluation give."""
    parts = []
    for name, purpose in (("train", "training"), ("test", "evaluation")):
        size = "as in the files"
        for augmentation in config.dataloader[name].get("mapper", {}).get("augmentations", ()):
            size = size_of(dict(walk(augmentation))) or size

        parts.append(f"{size} in {purpose}")
    return "; ".join(parts)


def size_of(settings: Mapping[str, object]) -> str:
    """Describe the size that an augmentation gives to images; "" if it keeps theirs."""
    sides = settings.get("short_edge_length")
    if isinstance(sides, list) and sides:
        sides = f"{min(sides)} to {max(sides)}"
    if sides:
        text = f"shorter side {sides}"
        if settings.get("max_size"):
            text += f", at most {settings['max_size']}"
        return text

    crop = settings.get("crop_size")
    if isinstance(crop, list | tuple) and len(crop) == 2:
        return f"{crop[0]} x {crop[1]}"
    return ""


def describe_batch(config: DictConfig) -> str:
    """Describe the batch, and the parts in which it is computed."""
    batch_size = config.dataloader.train.total_batch_size
    text = f"{batch_size} images"
    if config.train.accumulate > 1:
        text += f", in {config.train.accumulate} parts"
    if comm.get_world_size() > 1:
        text += f", {batch_size // comm.get_world_size()} in each process"
    return f"{text}; learning rate {learning_rate(config):.3g}"


def describe_length(config: DictConfig, num_images: int, start: int) -> str:
    """Describe the iterations and epochs of the run."""
    max_iter = config.train.max_iter
    epochs = max_iter * config.dataloader.train.total_batch_size / num_images
    text = f"{max_iter:,} iterations, {epochs:.1f} epochs"
    if start:
        text += f"; {start:,} iterations are done"
    return text


def describe_periods(config: DictConfig) -> str:
    """Describe when what is evaluated and saved."""
    evaluation = period_text(config.train.eval_period)
    checkpoints = period_text(config.train.checkpointer.period)
    weights = describe_weights(config)
    return f"evaluation of the {weights} {evaluation}, checkpoints {checkpoints}"


def period_text(period: int) -> str:
    """Return a period in words; 0 is the end of the run alone."""
    return f"every {period:,} iterations" if period > 0 else "at the end"
