"""Largest batch that fits into memory, by trial."""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from torch import nn

from salience_detr.config import ConfigError, resolve_amp, resolve_device
from salience_detr.data.loader import SeededDataset
from salience_detr.engine.trainer import Batch, Trainer
from salience_detr.utils.process_memory import forget_peak, free_memory, peak_memory
from salience_detr.utils.safe_yaml import read_yaml

# Part of the free memory that is used; images that are loaded meanwhile need the rest.
USED_PART = 0.8
# Larger batches are not faster, and leave few steps.
LARGEST_BATCH = 64
# Images, and random draws of each, among which the largest input is looked for.
NUM_IMAGES = 8
NUM_DRAWS = 8
GIB = 2**30


def use_batch_size(config: DictConfig, args: argparse.Namespace) -> None:
    """Give a config the size of the batch of the command line, in place.

    "auto" becomes a number: that of the run that is resumed, or the largest that fits. It replaces
    "auto" in the arguments, so that all processes have the same.

    Raises:
        ConfigError: not even one image per process fits, or the processes are torchrun's.
    """
    size = getattr(args, "batch_size", None)
    if size is None:
        return

    loader = config.dataloader.train
    if size == "auto":
        before = loader.total_batch_size
        size = size_of_run(config) if args.resume else None
        if size is None:
            size = find_batch_size(config, args)
            print(describe_rate(config, before, size))
        args.batch_size = size
    loader.total_batch_size = size


def size_of_run(config: DictConfig) -> int | None:
    """Return the size of the batch of the run in the output folder; None if there is no run."""
    path = Path(config.train.output_dir) / "config.yaml"
    if not path.is_file():
        return None
    config_of_run: Any = read_yaml(path)
    return int(config_of_run["dataloader"]["train"]["total_batch_size"])


def describe_rate(config: DictConfig, before: int, size: int) -> str:
    """Return what becomes of the learning rate with another size of the batch."""
    rate = config.optimizer.lr
    reference = config.train.reference_batch_size
    if reference:
        return f"the learning rate becomes {rate * size / reference:.3g} (reference_batch_size)"
    return (
        f"the learning rate stays {rate:.3g}, which suits the config's batch of {before}; "
        f"train.reference_batch_size={before} scales it with the batch"
    )


def find_batch_size(config: DictConfig, args: argparse.Namespace) -> int:
    """Return the largest batch of all processes together that fits, and print it in one line.

    Each trial is one forward and backward pass with images of the largest size that the
    augmentations give. The batch of a process is a power of two.

    Raises:
        ConfigError: see :func:`use_batch_size`.
    """
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            "--batch-size auto measures before the processes start, which torchrun has done "
            "already; start them with --num-gpus, or give a number"
        )

    loader = instantiate(config.dataloader.train)
    num_processes = args.num_gpus * args.num_machines
    most = min(LARGEST_BATCH, len(loader.dataset)) // num_processes
    image = largest_input(loader.dataset)
    device = resolve_device(config.train.device)
    trial = Trial(config, device, num_processes=args.num_gpus)

    size = 0
    while max(1, 2 * size) <= max(1, most) and trial.fits(image, max(1, 2 * size)):
        size = max(1, 2 * size)

    height, width = image["image"].shape[-2:]
    budget = f"{trial.budget / GIB:.1f} GiB, {USED_PART:.0%} of what is free on {device}"
    if not size:
        raise ConfigError(
            f"one image of {width}x{height} needs more than {budget}; use smaller images, "
            "train.amp.enabled=True, activation checkpointing (docs/training.md) or another model"
        )

    limit = "the next one does not fit"
    if 2 * size > most:
        limit = f"the most for {len(loader.dataset)} images (at most {LARGEST_BATCH})"
    total = size * num_processes
    print(f"--batch-size auto: {total} images of up to {width}x{height} in {budget}; {limit}")
    return total


def largest_input(dataset: SeededDataset) -> dict:
    """Return a training input as large as the largest sides among draws of the largest images.

    It has as many boxes as the image with the most.
    """
    areas = []
    num_boxes = 1
    for record in dataset.records:
        areas.append(record["width"] * record["height"])
        num_boxes = max(num_boxes, len(record.get("annotations", [])))

    # The end of a run may have other augmentations.
    positions = list(range(NUM_DRAWS))
    end_position = getattr(dataset.mapper, "end_position", None)
    if end_position is not None:
        positions += range(end_position, end_position + NUM_DRAWS)

    # A batch is padded to the largest height and the largest width in it.
    height = 0
    width = 0
    largest_first = np.argsort(areas)[::-1]
    for index in map(int, largest_first[:NUM_IMAGES]):
        for position in positions:
            image = dataset[index, position]["image"]
            height = max(height, image.shape[-2])
            width = max(width, image.shape[-1])

    # Boxes side by side, each a hundredth of the image.
    corners = torch.arange(num_boxes) % 10
    boxes = torch.stack([corners, corners, corners + 1, corners + 1], dim=1) / 10.0
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
    instances.gt_classes = torch.zeros(num_boxes, dtype=torch.int64)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": pixels, "instances": instances, "height": height, "width": width}


class Trial:
    """Forward and backward passes with batches that grow, and the memory that they take.

    Args:
        config: of the run, whose model is built.
        device: of the model.
        num_processes: that share the memory of the CPU.

    Attributes:
        budget: bytes that a pass may take beside the model.
    """

    def __init__(self, config: DictConfig, device: torch.device, *, num_processes: int) -> None:
        model: nn.Module = instantiate(config.model).to(device)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = device
        self.trainer = Trainer(
            model=model,
            data_loader=[],  # type: ignore[arg-type]  # the batches are made here
            optimizer=torch.optim.SGD(parameters, lr=0.0),
            clip_grad_norm=0.0,
            amp_dtype=resolve_amp(config.train.amp, device),
            accumulate=config.train.accumulate,
        )
        self.trainer.iter = 0

        # Two moments of AdamW, and the average of the weights.
        later = 8 * sum(parameter.numel() for parameter in parameters)
        if config.train.ema.enabled:
            later += 4 * sum(parameter.numel() for parameter in model.parameters())
        free = free_memory(device)
        if device.type != "cuda":
            free //= num_processes
        self.budget = USED_PART * free - later

        # Reading the annotations may have taken more than is used now.
        forget_peak()
        self.start = self.used()
        self.taken: dict[int, float] = {}

    def fits(self, image: dict, size: int) -> bool:
        """Return whether a batch of copies of an image stays within the budget."""
        # On the CPU there is no error to wait for: the system would end the process.
        smaller = self.taken.get(size // 2)
        if self.device.type != "cuda" and smaller is not None and 2 * smaller > self.budget:
            return False

        batch: Batch = [image] * size
        try:
            self.trainer.compute_gradients(batch)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            self.trainer.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

        self.taken[size] = self.used() - self.start
        return self.taken[size] <= self.budget

    def used(self) -> float:
        """Return the most bytes that this process has used so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return peak_memory()
