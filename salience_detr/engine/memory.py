"""Lack of memory: found among errors, and told with what helps."""

from __future__ import annotations

import re

from omegaconf import DictConfig

from salience_detr.utils.config_keys import walk
from salience_detr.utils.errors import one_line

# What CUDA, its libraries, PyTorch's allocators and C++ say.
NO_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|cannot allocate memory|bad_alloc|"
    r"ALLOC_FAILED|not enough memory",
    re.IGNORECASE,
)
CHECKPOINT_KEY = "use_checkpoint"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is for lack of memory, of a GPU or of the machine."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def memory_error(error: Exception, config: DictConfig, *, training: bool) -> MemoryError:
    """Return an error that says what takes less memory than this run.

    Args:
        error: for lack of memory, see :func:`is_out_of_memory`.
        config: of the run.
        training: whether it happened in training, or in an evaluation alone.
    """
    batch_size = config.dataloader.train.total_batch_size
    split = "test"
    where = "in the evaluation"
    if training:
        split = "train"
        where = f"with batches of {batch_size} images"

    remedies = []
    if training and batch_size > 1:
        remedies.append(f"dataloader.train.total_batch_size={batch_size // 2}")
        parts = min(batch_size, 2 * config.train.accumulate)
        remedies.append(f"train.accumulate={parts} (the same batch, in parts)")

    # Activations are kept for the backward pass only.
    for key, value in walk(config.model):
        if training and key.rpartition(".")[2] == CHECKPOINT_KEY and value is False:
            remedies.append(f"model.{key}=True")

    remedies.append(f"smaller images (dataloader.{split}.mapper.augmentations)")

    # PyTorch's message goes on with advice of its own.
    reason = re.split(r"\. (?!\d)", one_line(error))[0].removesuffix(".")
    return MemoryError(f"out of memory {where} ({reason}); what helps: {', '.join(remedies)}")
