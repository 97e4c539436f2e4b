"""A training loader whose stream depends on the seed alone: not on processes, workers, or interruptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from salience_detr.data.datasets import DatasetError


class StreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, position in the stream), from a fresh permutation of the data per epoch.

    Iteration i covers positions [i * total_batch_size, (i + 1) * total_batch_size); each process takes its part of
    them. Set ``start_iteration`` before iterating to go on where another run stopped.
    """

    def __init__(self, *, size: int, total_batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if total_batch_size % world_size:
            raise ValueError(f"total_batch_size ({total_batch_size}) must be a multiple of the {world_size} processes")
        self.size = size
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.total_batch_size // self.world_size
        position = self.start_iteration * self.total_batch_size + self.rank * share
        epoch, order = -1, np.empty(0, dtype=np.int64)
        while True:
            batch = []
            for p in range(position, position + share):
                if p // self.size != epoch:
                    epoch = p // self.size
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
                batch.append((int(order[p % self.size]), p))
            yield batch
            position += self.total_batch_size


class SeededDataset(Dataset[Any]):
    """Maps records with random state that depends on the seed and the position in the stream only."""

    def __init__(self, records: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, position = item
        with seeded(self.seed, position):
            return self.mapper(self.records[index])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside the block; outside they go on as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def build_train_loader(
    *,
    dataset: list[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    total_batch_size: int,
    num_workers: int = 2,
    seed: int = 0,
) -> DataLoader[Any]:
    """The loader of this process, for its part of ``total_batch_size`` pictures per iteration.

    Batches are not grouped by aspect ratio: the stream stays a plain permutation, the same for any number of
    processes. ``batch_sampler.start_iteration`` says where it begins.
    """
    if not dataset:
        raise DatasetError("the training data set holds no pictures")
    sampler = StreamBatchSampler(
        size=len(dataset),
        total_batch_size=total_batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return DataLoader(
        SeededDataset(dataset, mapper, seed),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=num_workers > 0,
        pin_memory=False,
    )
