"""What a resumed run must have in common with the run before."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader

from salience_detr.data.sampling import SampledBatchSampler
from salience_detr.engine.resume_checks import DataOrder
from salience_detr.engine.tuning import frozen_names


def data_order(config: DictConfig, data_loader: DataLoader[Any]) -> DataOrder:
    """Return the settings that the order of the data and the trained parameters depend on."""
    loader = config.dataloader.train
    order: dict[str, int | str] = {
        "train.seed": config.train.seed,
        "total_batch_size": loader.total_batch_size,
        "number of images": len(data_loader.dataset),  # type: ignore[arg-type]
        "aspect_ratio_grouping": int(loader.get("aspect_ratio_grouping", False)),
    }
    if isinstance(data_loader.batch_sampler, SampledBatchSampler):
        order["sampler"] = data_loader.batch_sampler.description

    # Checkpoints of earlier versions have neither.
    threshold = loader.get("repeat_threshold", 0)
    if threshold:
        order["repeat_threshold"] = str(threshold)
    if frozen_names(config):
        order["train.freeze"] = ", ".join(frozen_names(config))
    return DataOrder(order)
