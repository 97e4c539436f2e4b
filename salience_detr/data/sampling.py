"""Batches of detectron2's training samplers, from any iteration on."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from salience_detr.data.coco_format import DatasetError

REMEDY = (
    "use one of detectron2's, such as detectron2.data.samplers.RepeatFactorTrainingSampler, over "
    "the records of dataloader.train.dataset"
)


@dataclass(kw_only=True, eq=False)
class SampledBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, position in the stream), from an endless sampler.

    The sampler gives the records of this process, as detectron2's do. A resumed run replays its
    indices from the beginning, which takes a second for a million of them.

    Attributes:
        sampler: endless, and the same each time that it is iterated over.
        size: number of records.
        batch_size: of this process.
        rank: of this process.
        world_size: number of processes.
        groups: (size,) group of each record; a batch is of one group.
        start_iteration: the first one that iterating gives.

    Raises:
        DatasetError: the sampler ends, or is for another number of records.
    """

    sampler: Iterable[int]
    size: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    groups: np.ndarray | None = None
    start_iteration: int = 0

    def __post_init__(self) -> None:
        name = type(self.sampler).__name__
        if not isinstance(self.sampler, Iterable) or isinstance(self.sampler, Sized):
            raise DatasetError(
                f"dataloader.train.sampler is a {name}, no endless sampler; {REMEDY}"
            )

        # detectron2's attribute; its RepeatFactorTrainingSampler has the factors instead.
        factors = getattr(self.sampler, "_frac_part", range(self.size))
        size = getattr(self.sampler, "_size", len(factors))
        if size != self.size:
            raise DatasetError(
                f"dataloader.train.sampler, a {name}, is for {size} records, but the training data "
                f"have {self.size}; set its size, or make its factors of dataloader.train.dataset"
            )

    @property
    def description(self) -> str:
        """Return what the order of the records depends on."""
        return f"{type(self.sampler).__name__}, seed {getattr(self.sampler, '_seed', None)}"

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self.all_batches(), self.start_iteration, None)

    def all_batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the batches from the first one on."""
        waiting: defaultdict[object, list[tuple[int, int]]] = defaultdict(list)
        for number, index in enumerate(self.sampler):
            group = None if self.groups is None else self.groups[index]
            position = number * self.world_size + self.rank
            waiting[group].append((int(index), position))

            if len(waiting[group]) == self.batch_size:
                yield waiting.pop(group)
