"""Loaders for training and evaluation.

The training stream depends on the seed alone, not on the number of processes or workers. A worker
that dies is reported with the image that it was reading.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from salience_detr.data.coco_format import DatasetError, Record
from salience_detr.data.depth import choose_from_files
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.mixing import MixingMapper
from salience_detr.data.sampling import SampledBatchSampler, build_repeat_sampler
from salience_detr.data.value_range import AUTO
from salience_detr.utils.signals import stop_with_parent

Records: TypeAlias = list[Record]
Mapper: TypeAlias = Callable[[Record], Record]


class DataWorkerError(RuntimeError):
    """A worker process of a loader died."""


@dataclass(kw_only=True, eq=False)
class StreamBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, position in the stream), from a new permutation per epoch.

    Iteration i covers the positions [i * total_batch_size, (i + 1) * total_batch_size); each
    process takes its part of them. detectron2's TrainingSampler cannot start in the middle of the
    stream, which an exact resume needs.

    Attributes:
        size: number of records.
        total_batch_size: of all processes together.
        seed: of the permutations.
        rank: of this process.
        world_size: number of processes.
        groups: (size,) group of each record. Batches are of one group as far as the numbers allow,
            and every epoch still has each record once.
        start_iteration: the first one that iterating gives.

    Raises:
        ValueError: ``total_batch_size`` is no multiple of ``world_size``.
    """

    size: int
    total_batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    groups: np.ndarray | None = None
    start_iteration: int = 0

    def __post_init__(self) -> None:
        if self.total_batch_size % self.world_size:
            raise ValueError(
                f"total_batch_size is {self.total_batch_size}; it must be a multiple of the "
                f"{self.world_size} processes"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.total_batch_size // self.world_size
        order_of = lru_cache(maxsize=1)(self.order_of)

        for iteration in itertools.count(self.start_iteration):
            start = iteration * self.total_batch_size + self.rank * share
            batch = []
            for position in range(start, start + share):
                epoch, place = divmod(position, self.size)
                batch.append((int(order_of(epoch)[place]), position))

            yield batch

    def order_of(self, epoch: int) -> np.ndarray:
        """Return (size,) indices of the records in the order of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.size)
        if self.groups is None:
            return order

        # The first records fill up the batch that began in the epoch before.
        batch_size = self.total_batch_size
        first = min(-epoch * self.size % batch_size, self.size)
        others = order[first:]

        # Full batches of each group, in random order, then what is left of the groups.
        full_batches: list[np.ndarray] = []
        remainders = []
        for group in np.unique(self.groups):
            members = others[self.groups[others] == group]
            end = len(members) // batch_size * batch_size
            full_batches += list(members[:end].reshape(-1, batch_size))
            remainders.append(members[end:])

        shuffled = [full_batches[i] for i in generator.permutation(len(full_batches))]
        return np.concatenate([order[:first], *shuffled, *remainders])


class TrackedDataset(Dataset):
    """Maps records, and notes which record each worker is reading."""

    def __init__(self, records: Records, mapper: Mapper, num_workers: int) -> None:
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        # Index of the record of each worker, -1 for none; shared with the main process.
        self.current = torch.full((max(1, num_workers),), -1).share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        mapped = self.mapper(self.record_to_read(index))
        self.current[worker_number()] = -1
        return mapped

    def record_to_read(self, index: int) -> Record:
        """Return a record, and note that this worker is reading it."""
        self.current[worker_number()] = index
        record: Record = self.records[index]
        return record


def worker_number() -> int:
    """Return the number of this worker process; 0 where there are none."""
    info = get_worker_info()
    return 0 if info is None else info.id


class SeededDataset(TrackedDataset):
    """Maps records with random numbers that depend on seed and position in the stream only."""

    def __init__(self, records: Records, mapper: Mapper, num_workers: int, seed: int) -> None:
        super().__init__(records, mapper, num_workers)
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> Record:  # type: ignore[override]
        index, position = item
        if isinstance(self.mapper, MixingMapper):
            self.mapper.go_to(position, draw_from=self)
        with seeded(self.seed, position):
            return super().__getitem__(index)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators in the block, and restore them after it."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])

    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def batches(loader: DataLoader, start_iteration: int) -> Iterator[Records]:
    """Return the batches of :func:`build_train_loader` from an iteration on.

    Raises:
        DataWorkerError: see :class:`WatchedLoader`.
    """
    loader.batch_sampler.start_iteration = start_iteration  # type: ignore[union-attr]
    return iter(WatchedLoader(loader))


class WatchedLoader:
    """A loader that raises DataWorkerError, with the image, when a dead worker's batch is due.

    PyTorch raises as soon as it hears of the death, for example in the middle of a step, which
    would be lost. Here the steps whose batches are complete finish first.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Records]:
        iterator = iter(self.loader)

        in_main_thread = threading.current_thread() is threading.main_thread()
        if getattr(self.loader, "num_workers", 0) and in_main_thread:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler, see above

        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                # Any other error was raised by a worker that is alive.
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise DataWorkerError(describe_death(iterator, str(error))) from error


def describe_death(iterator: Any, error: str) -> str:
    """Return what happened to a worker of PyTorch's iterator, at which image, and the remedy."""
    files = []
    dataset = getattr(iterator, "_dataset", None)  # None for a loader that is not PyTorch's
    if isinstance(dataset, TrackedDataset):
        for index, worker in zip(dataset.current.tolist(), iterator._workers, strict=True):
            if index >= 0 and not worker.is_alive():
                files.append(dataset.records[index]["file_name"])

    images = " or ".join(files) or "an unknown image"
    reason = error.splitlines()[0]
    return (
        f"a data worker died while it read {images} ({reason}); if memory ran out, lower "
        "num_workers of the loader, else look at the image; then go on with --resume"
    )


def build_train_loader(
    *,
    dataset: Records,
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int = 2,
    seed: int = 0,
    aspect_ratio_grouping: bool = False,
    sampler: Iterable[int] | None = None,
    repeat_threshold: float = 0.0,
) -> DataLoader:
    """Build the loader of this process, for its part of ``total_batch_size`` images per iteration.

    The stream is the same for any number of processes and workers. With ``aspect_ratio_grouping`` a
    batch holds either upright or wide images, which need less padding than both together. One of
    detectron2's training samplers may take the place of the random permutations. With a
    ``repeat_threshold``, images of classes that are in a smaller part of the images are drawn more
    often (see :func:`build_repeat_sampler`).

    Raises:
        DatasetError: there are no images, the sampler is not for them, or the threshold is not
            between 0 and 1.
        ValueError: ``total_batch_size`` is no multiple of the number of processes.
    """
    if not dataset:
        raise DatasetError("the training data set holds no images; check its annotation file")

    groups = None
    if aspect_ratio_grouping:
        groups = np.array([x["width"] > x["height"] for x in dataset])

    batch_sampler: Sampler[list[tuple[int, int]]] = StreamBatchSampler(
        size=len(dataset),
        total_batch_size=total_batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=groups,
    )
    if repeat_threshold:
        if sampler is not None:
            raise DatasetError(
                f"dataloader.train has a sampler and a repeat_threshold of {repeat_threshold}: "
                "leave one of them out"
            )
        sampler = build_repeat_sampler(dataset, repeat_threshold, seed)

    if sampler is not None:
        batch_sampler = SampledBatchSampler(
            sampler=sampler,
            size=len(dataset),
            batch_size=total_batch_size // comm.get_world_size(),
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            groups=groups,
        )

    choose_value_range(mapper, dataset)
    if isinstance(mapper, MixingMapper):
        mapper.begin(total_batch_size)
    return DataLoader(
        SeededDataset(dataset, mapper, num_workers, seed),
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),  # a GPU copies from there while the host goes on
        persistent_workers=num_workers > 0,
        worker_init_fn=stop_with_parent,
    )


def build_test_loader(*, dataset: Records, mapper: Mapper, num_workers: int = 0) -> DataLoader:
    """Build the loader of this process, for its part of the images, one at a time and in order."""
    choose_value_range(mapper, dataset)
    return DataLoader(
        TrackedDataset(dataset, mapper, num_workers),
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=stop_with_parent,
    )


def choose_value_range(mapper: Mapper, dataset: Records) -> None:
    """Choose how deep images are scaled, from the images of a data set, unless it is known."""
    if isinstance(mapper, DetectionMapper):
        choose_from_files(mapper.value_range, [record["file_name"] for record in dataset])


def keep_value_range(config: DictConfig, loader: DataLoader) -> None:
    """Write the range of values that a loader has chosen into a config, where it says "auto"."""
    mapper = getattr(getattr(loader, "dataset", None), "mapper", None)
    if not isinstance(mapper, DetectionMapper) or mapper.value_range.setting == AUTO:
        return

    for loader_config in config.dataloader.values():
        settings = loader_config.get("mapper")
        if settings is not None and settings.get("value_range", AUTO) == AUTO:
            settings.value_range = mapper.value_range.setting
