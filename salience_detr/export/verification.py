"""Comparison of an exported model's detections with those of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Instances
from tqdm import tqdm

from salience_detr.detector import ModelDetector, prepare_input

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 1e-3  # of the image's longest side

# Where two tokens are ranked nearly equal, rounding decides which becomes a query. A few of the
# least certain detections may differ for that, as part of all. Random weights make more such ties.
CERTAIN_SCORE = 0.1
UNCERTAIN_PART = 0.02
UNCERTAIN_PART_OF_RANDOM = 0.1

BATCH_SIZE = 6


@dataclass(frozen=True)
class Difference:
    """Difference between the detections of two models on one image.

    Attributes:
        detections: number of detections of the first model.
        unmatched: number of detections of either model that the other does not have.
        unmatched_score: the highest score of these.
        score: largest difference of scores in a matched pair.
        box: largest difference of a coordinate in a matched pair, in pixels.
    """

    detections: int
    unmatched: int
    unmatched_score: float
    score: float
    box: float

    def is_rounding(self, *, uncertain_part: float = UNCERTAIN_PART) -> bool:
        """Return True if the models detect the same but for rounding.

        Args:
            uncertain_part: part of the detections, of low score, that may differ.
        """
        few = self.unmatched <= uncertain_part * self.detections
        return few and self.unmatched_score < CERTAIN_SCORE


def compare(expected: Instances, actual: Instances) -> Difference:
    """Match the detections of two models by class, box and score, one to one, best first.

    Both lists end at the same length. Different detections of nearly equal scores at their ends
    are not counted as unmatched.
    """
    tolerance = BOX_TOLERANCE * max(expected.image_size)
    boxes = expected.pred_boxes.tensor
    other_boxes = actual.pred_boxes.tensor

    # (n, m) of each pair
    box_gaps = (boxes[:, None] - other_boxes).abs().amax(-1)
    score_gaps = (expected.scores[:, None] - actual.scores).abs()
    fits = expected.pred_classes[:, None] == actual.pred_classes
    fits &= (box_gaps <= tolerance) & (score_gaps <= SCORE_TOLERANCE)

    costs = torch.where(fits, box_gaps / tolerance + score_gaps / SCORE_TOLERANCE, torch.inf)

    # Each detection takes the nearest one that is left.
    pairs: dict[int, int] = {}
    for i in range(len(boxes)):
        if len(other_boxes) and costs[i].min() < torch.inf:
            pairs[i] = int(costs[i].argmin())
            costs[:, pairs[i]] = torch.inf

    left = sorted(set(range(len(boxes))) - set(pairs.keys()))
    right = sorted(set(range(len(other_boxes))) - set(pairs.values()))
    unmatched = torch.cat([expected.scores[left], actual.scores[right]])

    if len(boxes) == len(other_boxes) > 0:
        end = torch.minimum(expected.scores.min(), actual.scores.min())
        unmatched = unmatched[unmatched > end + SCORE_TOLERANCE]

    return Difference(
        detections=len(boxes),
        unmatched=len(unmatched),
        unmatched_score=max(unmatched.tolist(), default=0.0),
        score=max((score_gaps[pair].item() for pair in pairs.items()), default=0.0),
        box=max((box_gaps[pair].item() for pair in pairs.items()), default=0.0),
    )


def verify(
    expected: ModelDetector, actual: ModelDetector, images: Sequence[np.ndarray]
) -> list[Difference]:
    """Compare two detectors on each image, and then on batches of images padded to one size.

    Args:
        images: (H, W, 3) RGB.

    Returns:
        The difference on each image alone, then on each image in its batch.
    """
    differences = []
    for image in tqdm(images, desc="verifying", unit="image"):
        differences.append(compare(expected(image), actual(image)))

    inputs = [prepare_input(expected.mapper, image) for image in images]
    for start in tqdm(range(0, len(inputs), BATCH_SIZE), desc="verifying", unit="batch"):
        batch = inputs[start : start + BATCH_SIZE]
        outputs = zip(expected._infer(batch), actual._infer(batch), strict=True)
        differences += [compare(x, y) for (x, _), (y, _) in outputs]
    return differences
