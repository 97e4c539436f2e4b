"""A training loader whose stream depends on the seed alone: not on processes, workers, or interruptions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from salience_detr.data.datasets import DatasetError


class DataWorkerError(RuntimeError):
    """A worker process of a loader died."""


class StreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, position in the stream), from a fresh permutation of the data per epoch.

    Iteration i covers positions [i * total_batch_size, (i + 1) * total_batch_size); each process takes its part of
    them. Set ``start_iteration`` before iterating to go on where another run stopped.

    Args:
        size: number of records.
        total_batch_size: of all processes together.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        groups: (size,) group of each record; batches are of one group each as far as the numbers allow, and every
            epoch still has each record once.
    """

    def __init__(
        self,
        *,
        size: int,
        total_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: np.ndarray | None = None,
    ) -> None:
        if total_batch_size % world_size:
            raise ValueError(f"total_batch_size ({total_batch_size}) must be a multiple of the {world_size} processes")
        self.size = size
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.groups = groups
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
                    order = self.order_of(epoch)
                batch.append((int(order[p % self.size]), p))
            yield batch
            position += self.total_batch_size

    def order_of(self, epoch: int) -> np.ndarray:
        """(size,) the records in the order of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.size)
        if self.groups is None:
            return order
        # The first ones fill up the batch that began in the epoch before.
        first = min(-epoch * self.size % self.total_batch_size, self.size)
        whole, left = [], []
        for group in np.unique(self.groups):
            own = order[first:][self.groups[order[first:]] == group]
            end = len(own) // self.total_batch_size * self.total_batch_size
            whole += np.split(own[:end], range(self.total_batch_size, end, self.total_batch_size)) if end else []
            left.append(own[end:])
        whole = [whole[i] for i in generator.permutation(len(whole))]
        return np.concatenate([order[:first], *whole, *left])


class SeededDataset(Dataset[Any]):
    """Maps records with random state that depends on the seed and the position in the stream only."""

    def __init__(
        self, records: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int, num_workers: int = 0
    ) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed
        # The record that each worker is at, -1 for none; the main process sees it too.
        self.at = torch.full((max(1, num_workers),), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, position = item
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id
        self.at[slot] = index
        with seeded(self.seed, position):
            mapped = self.mapper(self.records[index])
        self.at[slot] = -1
        return mapped


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


def batches(loader: DataLoader[Any], start_iteration: int) -> Iterator[list[dict[str, Any]]]:
    """The batches of :func:`build_train_loader` from an iteration on.

    Raises:
        DataWorkerError: a worker process died, of too little memory for example, with the picture that it was at.
    """
    loader.batch_sampler.start_iteration = start_iteration  # type: ignore[union-attr]
    iterator = iter(loader)
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if not re.match(r"DataLoader worker \(pid", str(error)):
                raise  # an error in a worker that lives
            raise DataWorkerError(describe_death(loader.dataset, iterator, str(error))) from error


def describe_death(dataset: Any, iterator: Any, error: str) -> str:
    """What happened to a worker, at which picture, and what to do."""
    at: list[int] = dataset.at.tolist()
    workers = getattr(iterator, "_workers", [])
    dead = [i for i, worker in zip(at, workers, strict=False) if i >= 0 and not worker.is_alive()]
    files = [str(dataset.records[i].get("file_name")) for i in dead or at if i >= 0]
    reason = error.splitlines()[0]
    return (
        f"a data worker died while it read {' or '.join(files) or 'no picture'} ({reason}); if memory ran out, lower "
        "dataloader.train.num_workers, else look at the picture; then go on with --resume"
    )


def build_train_loader(
    *,
    dataset: list[dict[str, Any]],
    mapper: Callable[[dict[str, Any]], Any],
    total_batch_size: int,
    num_workers: int = 2,
    seed: int = 0,
    aspect_ratio_grouping: bool = False,
) -> DataLoader[Any]:
    """The loader of this process, for its part of ``total_batch_size`` pictures per iteration.

    The stream is the same for any number of processes and workers. With ``aspect_ratio_grouping`` a batch holds
    upright or wide pictures, which need less padding than both together.
    """
    if not dataset:
        raise DatasetError("the training data set holds no pictures")
    sampler = StreamBatchSampler(
        size=len(dataset),
        total_batch_size=total_batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=np.array([x["width"] > x["height"] for x in dataset]) if aspect_ratio_grouping else None,
    )
    return DataLoader(
        SeededDataset(dataset, mapper, seed, num_workers),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=num_workers > 0,
        pin_memory=False,
    )
