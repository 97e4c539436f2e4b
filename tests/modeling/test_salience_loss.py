"""Salience targets on drawn boxes."""

from __future__ import annotations

import math

import pytest
import torch

from salience_detr.layers.box_ops import box_xyxy_to_cxcywh
from salience_detr.modeling.salience_loss import SalienceCriterion, count_salient, salience_targets
from salience_detr.modeling.structures import DetectionTargets, LossNormalizers

SHAPES = [(8, 10), (4, 5)]  # strides 8 and 16
PADDED = (64, 80)
RANGES = ((-1.0, 24.0), (24.0, 99999.0))


def target_maps(targets):
    """Return the salience targets as a map (B, H_l, W_l) for each level."""
    target = salience_targets(SHAPES, targets, PADDED, RANGES)
    levels = target.split([height * width for height, width in SHAPES], dim=1)
    return [level.unflatten(1, shape) for level, shape in zip(levels, SHAPES, strict=True)]


def drawn(*images):
    """Return ground truth of 64 x 80 images, given the boxes of each in pixels (xyxy)."""
    labels, boxes = [], []
    for image in images:
        xyxy = torch.tensor(image, dtype=torch.float64).reshape(-1, 4)
        boxes.append(box_xyxy_to_cxcywh(xyxy) / torch.tensor([80, 64, 80, 64]))
        labels.append(torch.zeros(len(xyxy), dtype=torch.int64))
    return DetectionTargets.from_images(labels, boxes, [(64, 80)] * len(images))


def test_a_token_in_the_middle_has_salience_one():
    # The token at row 1, column 2 lies at (20, 12), the middle of this box.
    target = target_maps(drawn([[10, 2, 30, 22]]))[0][0]
    assert target[1, 2] == pytest.approx(1)


def test_salience_falls_towards_the_sides():
    # At (12, 12) in a box of 10..30 x 2..22: left 2, right 18, dx = -0.8, dy = 0: 1 - 0.8 / 2.
    target = target_maps(drawn([[10, 2, 30, 22]]))[0][0]
    assert target[1, 1] == pytest.approx(0.6)


def test_tokens_outside_have_none():
    target = target_maps(drawn([[10, 2, 30, 22]]))[0][0]

    # Token centers 4, 12, 20 (rows) and 12, 20, 28 (columns) are inside.
    inside = torch.zeros(8, 10, dtype=torch.bool)
    inside[0:3, 1:4] = True
    assert torch.equal(target > 0, inside)


def test_a_level_answers_for_its_range_of_distances_only():
    # In the middle of a box of side 60 the largest distance is about 30: the second level's.
    fine, coarse = target_maps(drawn([[2, 2, 62, 62]]))
    assert fine[0, 3, 3] == 0
    assert coarse[0, 1, 1] > 0.8


def test_where_boxes_overlap_the_largest_value_counts_even_of_a_box_of_another_range():
    # Two boxes around the same middle (20, 12).
    small = [10, 2, 30, 22]
    large = [0, 0, 40, 24]
    both = target_maps(drawn([small, large]))[0][0]

    # Token (12, 12): 0.6 in the small box; in the large one dx = (12 - 28) / 40 = -0.4, so 0.8. The
    # large box's largest distance, 28, is beyond this level's range, but the small one makes the
    # token positive.
    assert both[1, 1] == pytest.approx(0.8)


def test_padded_images_and_images_without_boxes_have_zeros():
    fine, coarse = target_maps(drawn([], [[1, 1, 5, 5]]))
    assert fine[0].sum() == 0 and coarse[0].sum() == 0
    assert fine[1, 0, 0] > 0
    assert (fine[1] > 0).sum() == 1


def test_a_box_without_area_is_ignored():
    fine, coarse = target_maps(drawn([[20, 12, 20, 12]]))
    assert fine.isfinite().all()
    assert fine.sum() == 0 and coarse.sum() == 0


def divided_by(num_salient):
    return LossNormalizers(num_boxes=1, num_salient=num_salient, max_boxes=1, padded_size=PADDED)


def test_the_loss_is_divided_by_the_positive_tokens():
    # All logits 0: every token costs w * ln 2 with w = 0.1875 (1 - t) + 0.0625 t.
    target = drawn([[10, 2, 30, 22]])
    wanted = salience_targets(SHAPES, target, PADDED, RANGES)
    expected = 2 * ((0.1875 * (1 - wanted) + 0.0625 * wanted).sum() * math.log(2) / 9)

    maps = [torch.zeros(1, *shape, dtype=torch.float64) for shape in SHAPES]
    criterion = SalienceCriterion(level_ranges=RANGES)
    targets = criterion.targets(SHAPES, target, PADDED)
    assert count_salient(targets) == 9

    loss = criterion(maps, targets, divided_by(9))["loss_salience"]
    assert loss.item() == pytest.approx(expected.item())


def test_without_boxes_every_token_is_background():
    maps = [torch.zeros(1, *shape) for shape in SHAPES]
    criterion = SalienceCriterion(level_ranges=RANGES)
    targets = criterion.targets(SHAPES, drawn([]), PADDED)
    assert count_salient(targets) == 0

    # All 100 logits are 0: weight 0.75 * 0.25, BCE = ln 2.
    loss = criterion(maps, targets, divided_by(1))["loss_salience"]
    assert loss.item() == pytest.approx(2 * 100 * 0.1875 * math.log(2), rel=1e-5)


def test_a_level_without_range_is_refused():
    with pytest.raises(ValueError, match="2 levels but 4 level_ranges"):
        SalienceCriterion().targets(SHAPES, drawn([]), PADDED)
