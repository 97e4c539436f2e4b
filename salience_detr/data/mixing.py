"""Mapper for augmentations of several images, and for others at the end of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from salience_detr.data.augmentation.multi_image import Mix, Sample
from salience_detr.data.coco_format import Record
from salience_detr.data.image_cache import ImageCache
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.value_range import AUTO

logger = logging.getLogger(__name__)

MIB = 2**20


class SeededRecords(Protocol):
    """Records that a mapper draws others from.

    Attributes:
        seed: of the stream.
    """

    seed: int

    def __len__(self) -> int:
        """Return the number of records."""

    def record_to_read(self, index: int) -> Record:
        """Return a record."""


class MixingMapper(DetectionMapper):
    """DetectionMapper that first mixes an image with others of the training set.

    In the close-up phase, at the end of a run, it mixes none, and the augmentations may be weaker
    ones, such as those of the evaluation.

    The others are drawn at random from all images or, with ``pool_size``, from a few of them that
    change every ``pool_period`` images of the stream. That costs less reading, as RTMDet's cache of
    the images that were read before does. Which ones are drawn from follows from the seed and the
    position in the stream alone; with RTMDet's cache, samples depend on the number of workers, and
    change when a run is resumed.

    Decoded images are kept in memory up to ``cache_mb``, in each worker process.

    Args:
        mixes: applied in order, see :mod:`salience_detr.data.augmentation.multi_image`.
        augmentations: of the mixed image, applied in order.
        close_up: part of the run, at its end, that is trained without mixes.
        close_up_augmentations: in place of ``augmentations`` in that part; None for the same ones.
        max_iter: iterations of the run, for ``close_up``.
        pool_size: number of images that are drawn from; 0 draws from all.
        pool_period: number of images of the stream with the same pool.
        cache_mb: MiB of decoded images, in each worker process.
        image_format, value_range: see :class:`DetectionMapper`.

    Raises:
        ValueError: ``close_up`` is no part of a run, or there is no ``max_iter`` for it.
    """

    def __init__(
        self,
        *,
        is_train: bool,
        mixes: Sequence[Mix],
        augmentations: Sequence[T.Augmentation],
        close_up: float = 0.0,
        close_up_augmentations: Sequence[T.Augmentation] | None = None,
        max_iter: int | None = None,
        pool_size: int = 0,
        pool_period: int = 320,
        cache_mb: int = 256,
        image_format: str = "RGB",
        value_range: object = AUTO,
    ) -> None:
        super().__init__(
            is_train=is_train,
            augmentations=augmentations,
            image_format=image_format,
            value_range=value_range,
        )
        if not 0 <= close_up <= 1:
            raise ValueError(
                f"close_up is {close_up}; it is a part of the run without mixes, such as 0.1"
            )
        if close_up and max_iter is None:
            raise ValueError(
                f"close_up is {close_up} of a run of unknown length; set max_iter, such as "
                "${train.max_iter}"
            )

        self.mixes = list(mixes)
        self.close_up = close_up
        self.close_up_augmentations = self.augmentations
        if close_up_augmentations is not None:
            self.close_up_augmentations = T.AugmentationList(list(close_up_augmentations))
        self.max_iter = max_iter
        self.pool_size = pool_size
        self.pool_period = pool_period
        self.cached = ImageCache(super().decode, cache_mb * MIB)
        self.pool_of = lru_cache(maxsize=1)(draw_pool)

        # Of the stream; the loader sets them.
        self.end_position: int | None = None
        self.position = 0
        self.draw_from: SeededRecords | None = None

    def begin(self, total_batch_size: int) -> None:
        """Find where the close-up phase begins in a stream of batches, and log it."""
        if self.max_iter is None or not self.close_up:
            return

        # In positions of the stream, which workers know; they read ahead of the iteration.
        last_iterations = round(self.close_up * self.max_iter)
        self.end_position = (self.max_iter - last_iterations) * total_batch_size
        changes = ["without " + type(mix).__name__ for mix in self.mixes]
        if self.close_up_augmentations is not self.augmentations:
            changes.append("with close_up_augmentations")
        logger.info(
            "the last %d of %d iterations are trained %s",
            last_iterations,
            self.max_iter,
            " and ".join(changes),
        )

    def go_to(self, position: int, draw_from: SeededRecords) -> None:
        """Say which position of the stream is mapped next, and what others are drawn from."""
        self.position = position
        self.draw_from = draw_from

    def decode(self, file_name: str) -> np.ndarray:
        return self.cached(file_name)

    def augment_record(self, record: Record) -> Record:
        """Read, mix and augment the image of a record."""
        sample = self.make_sample(record)
        augmentations = self.close_up_augmentations
        if self.end_position is None or self.position < self.end_position:
            augmentations = self.augmentations
            for mix in self.mixes:
                sample = mix(sample, self.draw)

        # Augmentations may change it in place, and the cached one stays.
        image = np.array(sample.image, order="C")
        return self.augment(image, sample.boxes, sample.classes, augmentations)

    def draw(self) -> Sample:
        """Draw another image of the training set.

        Raises:
            ImageReadError: it cannot be read, or has another size than its record.
        """
        assert self.draw_from is not None, "the loader says where to draw from"

        # numpy's generator is seeded for this position.
        count = len(self.draw_from)
        if not self.pool_size:
            index = int(np.random.randint(count))
        else:
            number = self.position // self.pool_period
            pool = self.pool_of(self.draw_from.seed, number, self.pool_size, count)
            index = int(np.random.choice(pool))

        return self.make_sample(self.draw_from.record_to_read(index))

    def make_sample(self, record: Record) -> Sample:
        """Read the image of a record and its ground truth.

        Raises:
            ImageReadError: the image cannot be read, or has another size than the record.
        """
        image = self.read(record)
        boxes, classes = self.ground_truth(record)

        # Crowd regions are no ground truth, but nothing may be cut out of them.
        crowd_boxes = []
        segmentations = []
        for annotation in record.get("annotations", []):
            if annotation.get("iscrowd", 0):
                mode = annotation["bbox_mode"]
                crowd_boxes.append(BoxMode.convert(annotation["bbox"], mode, BoxMode.XYXY_ABS))
            else:
                segmentations.append(annotation.get("segmentation"))

        crowd = np.asarray(crowd_boxes, dtype=np.float64).reshape(-1, 4)
        return Sample(image, boxes, classes, crowd, segmentations)


def draw_pool(seed: int, number: int, size: int, count: int) -> np.ndarray:
    """Return the (size,) indices of a pool, of ``count`` records; an index may be there twice."""
    return np.random.default_rng((seed, number, size)).integers(count, size=size)
