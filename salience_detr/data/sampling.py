"""Batches of detectron2's training samplers, from any iteration on."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass

import numpy as np
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import Sampler

from salience_detr.data.coco_format import DatasetError, Record

logger = logging.getLogger(__name__)

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


def build_repeat_sampler(
    records: list[Record], threshold: float, seed: int
) -> RepeatFactorTrainingSampler:
    """Build the sampler that draws images of rare classes more often, as LVIS's recipe does.

    A class that is in a part f of the images has the factor max(1, sqrt(threshold / f)); an image
    is drawn, on average, as often as the largest factor of its classes says.

    Args:
        records: of the training images.
        threshold: part of the images, in (0, 1], below which a class is rare.
        seed: of the order, the same in all processes.

    Raises:
        DatasetError: the threshold is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise DatasetError(
            f"dataloader.train.repeat_threshold is {threshold}; it is a part of the images, "
            "between 0 (no repetition) and 1"
        )

    # Regions without a class to learn do not make an image rare.
    learned = []
    for record in records:
        annotations = [x for x in record.get("annotations", []) if not x.get("iscrowd", 0)]
        learned.append({"annotations": annotations})
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(learned, threshold)

    logger.info(
        "images of classes in less than %.3g of the images are repeated: %d of %d images, up to "
        "%.2f times; an epoch still counts %d images, and all repetitions are %.2f epochs",
        threshold,
        int((factors > 1).sum()),
        len(records),
        float(factors.max()),
        len(records),
        float(factors.mean()),
    )
    return RepeatFactorTrainingSampler(factors, seed=seed)
