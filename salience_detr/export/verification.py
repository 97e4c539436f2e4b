"""Whether an exported model finds what the original finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from salience_detr.predictor import Detector, ModelDetector, prepare_input

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 1e-3  # of the image's longest side
CERTAIN = 0.1  # score from which on no detection may differ
DOUBTFUL_PART = 0.02  # of the detections below, which may
DOUBTFUL_PART_OF_RANDOM = 0.1  # the same with random weights, which rank many tokens nearly equal
BATCH_SIZE = 6


@dataclass(frozen=True)
class Difference:
    """How the detections of two models on one image differ.

    Attributes:
        detections: of the first.
        unmatched: detections of either that the other has not.
        unmatched_score: the highest score of these.
        score: largest difference of a matched pair.
        box: largest difference of a coordinate of a matched pair, in pixels.
    """

    detections: int
    unmatched: int
    unmatched_score: float
    score: float
    box: float

    def is_rounding(self, *, doubtful_part: float = DOUBTFUL_PART) -> bool:
        """Whether the models find the same but for rounding.

        Where two tokens are ranked nearly equal, rounding decides which becomes a query: a few of the least certain
        detections may differ.

        Args:
            doubtful_part: how many, as part of the detections.
        """
        return self.unmatched_score < CERTAIN and self.unmatched <= doubtful_part * self.detections


def compare(expected: Instances, found: Instances) -> Difference:
    """Pair the detections of two models by class, box and score, one to one, best first.

    At the ends of two equally long lists different detections of nearly equal scores are not counted as unmatched.
    """
    tolerance = BOX_TOLERANCE * max(expected.image_size)
    boxes, others = expected.pred_boxes.tensor, found.pred_boxes.tensor
    box_gaps = (boxes[:, None] - others).abs().amax(-1)  # (n, m)
    score_gaps = (expected.scores[:, None] - found.scores).abs()
    fits = expected.pred_classes[:, None] == found.pred_classes
    fits &= (box_gaps <= tolerance) & (score_gaps <= SCORE_TOLERANCE)
    costs = torch.where(fits, box_gaps / tolerance + score_gaps / SCORE_TOLERANCE, torch.inf)
    pairs = []
    for i in range(len(boxes)):
        if costs.shape[1] and costs[i].min() < torch.inf:
            pairs.append((i, int(costs[i].argmin())))
            costs[:, pairs[-1][1]] = torch.inf
    left = sorted(set(range(len(boxes))) - {i for i, _ in pairs})
    right = sorted(set(range(len(others))) - {j for _, j in pairs})
    unmatched = torch.cat([expected.scores[left], found.scores[right]])
    if len(boxes) == len(others) > 0:
        end = torch.minimum(expected.scores.min(), found.scores.min())
        unmatched = unmatched[unmatched > end + SCORE_TOLERANCE]
    return Difference(
        detections=len(boxes),
        unmatched=len(unmatched),
        unmatched_score=max(unmatched.tolist(), default=0.0),
        score=max((score_gaps[pair].item() for pair in pairs), default=0.0),
        box=max((box_gaps[pair].item() for pair in pairs), default=0.0),
    )


def verify(
    expected: ModelDetector, found: ModelDetector, images: Sequence[np.ndarray]
) -> list[Difference]:
    """Compare two detectors on (H, W, 3) RGB images one by one, and then on batches of them, padded to one size."""
    alone = [compare(expected(image), found(image)) for image in images]
    inputs = [prepare_input(expected.mapper, image) for image in images]
    together = []
    for start in range(0, len(inputs), BATCH_SIZE):
        batch = inputs[start : start + BATCH_SIZE]
        together += [
            compare(x, y)
            for (x, _), (y, _) in zip(expected._infer(batch), found._infer(batch), strict=True)
        ]
    return alone + together


def latency(detector: Detector, image: np.ndarray, repeats: int = 5) -> float:
    """Median milliseconds from an image to its detections, after one call that warms up."""
    return median_milliseconds(lambda: detector(image), repeats)


def median_milliseconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times[1:]))
