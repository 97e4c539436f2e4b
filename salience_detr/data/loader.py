"""Loaders that name the image at which a worker died; the training stream depends on the seed alone."""

from __future__ import annotations

import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from salience_detr.data.coco_format import DatasetError
from salience_detr.utils.signals import stop_with_parent


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
            raise ValueError(
                f"total_batch_size ({total_batch_size}) must be a multiple of the {world_size} processes"
            )
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
            whole += (
                np.split(own[:end], range(self.total_batch_size, end, self.total_batch_size))
                if end
                else []
            )
            left.append(own[end:])
        whole = [whole[i] for i in generator.permutation(len(whole))]
        return np.concatenate([order[:first], *whole, *left])


class TrackedDataset(Dataset[Any]):
    """Maps records, and notes which one each worker is at."""

    def __init__(
        self,
        records: list[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        num_workers: int = 0,
    ) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        # The record that each worker is at, -1 for none; the main process sees it too.
        self.at = torch.full((max(1, num_workers),), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id
        self.at[slot] = index
        mapped = self.mapper(self.records[index])
        self.at[slot] = -1
        return mapped


class SeededDataset(TrackedDataset):
    """Maps records with random state that depends on the seed and the position in the stream only."""

    def __init__(
        self,
        records: list[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        seed: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__(records, mapper, num_workers)
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, position = item
        with seeded(self.seed, position):
            return super().__getitem__(index)


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
        DataWorkerError: see :class:`WatchedLoader`.
    """
    loader.batch_sampler.start_iteration = start_iteration  # type: ignore[union-attr]
    return iter(WatchedLoader(loader))


class WatchedLoader:
    """A loader that raises DataWorkerError, with the image, where the data of a worker that died are missed.

    PyTorch would raise as soon as it hears of the death, in the middle of a step for example, which is lost then.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        iterator = iter(self.loader)
        if (
            getattr(self.loader, "num_workers", 0)
            and threading.current_thread() is threading.main_thread()
        ):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not re.match(r"DataLoader worker \(pid", str(error)):
                    raise  # an error in a worker that lives
                raise DataWorkerError(
                    describe_death(getattr(self.loader, "dataset", None), iterator, str(error))
                ) from error


def describe_death(dataset: Any, iterator: Any, error: str) -> str:
    """What happened to a worker, at which image, and what to do."""
    at: list[int] = dataset.at.tolist() if isinstance(dataset, TrackedDataset) else []
    workers = getattr(iterator, "_workers", [])
    dead = [i for i, worker in zip(at, workers, strict=False) if i >= 0 and not worker.is_alive()]
    files = [str(dataset.records[i].get("file_name")) for i in dead or at if i >= 0]
    reason = error.splitlines()[0]
    return (
        f"a data worker died while it read {' or '.join(files) or 'an unknown image'} ({reason}); if memory ran out, "
        "lower num_workers of the loader, else look at the image; then go on with --resume"
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
    """The loader of this process, for its part of ``total_batch_size`` images per iteration.

    The stream is the same for any number of processes and workers. With ``aspect_ratio_grouping`` a batch holds
    upright or wide images, which need less padding than both together.
    """
    if not dataset:
        raise DatasetError("the training data set holds no images")
    sampler = StreamBatchSampler(
        size=len(dataset),
        total_batch_size=total_batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=np.array([x["width"] > x["height"] for x in dataset])
        if aspect_ratio_grouping
        else None,
    )
    return DataLoader(
        SeededDataset(dataset, mapper, seed, num_workers),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=num_workers > 0,
        worker_init_fn=stop_with_parent,
    )


def build_test_loader(
    *, dataset: list[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], num_workers: int = 0
) -> DataLoader[Any]:
    """The loader of this process, for its part of the images, one at a time and in order."""
    return DataLoader(
        TrackedDataset(dataset, mapper, num_workers),
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=stop_with_parent,
    )
