"""Losses of a batch against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from salience_detr.layers.losses import MatchabilityAwareLoss
from salience_detr.modeling.criterion import OneToManyCriterion, SetCriterion, check_labels
from salience_detr.modeling.denoising import DenoisingLayout
from salience_detr.modeling.matcher import HungarianMatcher, OneToManyMatcher
from salience_detr.modeling.structures import (
    DetectionPredictions,
    DetectionTargets,
    LossNormalizers,
)

K = 4


def random_targets(*counts):
    """Return ground truth of images with these numbers of boxes."""
    images = [random_target(count) for count in counts]
    labels = [x for x, _ in images]
    boxes = [x for _, x in images]
    return DetectionTargets.from_images(labels, boxes, [(100, 160)] * len(images))


def random_target(count):
    centers = torch.rand(count, 2) * 0.6 + 0.2
    sizes = torch.rand(count, 2) * 0.3 + 0.02
    boxes = torch.cat([centers, sizes], dim=1).double()
    return torch.randint(0, K, (count,)), boxes


def random_predictions(layers, images, queries):
    boxes = torch.rand(layers, images, queries, 4, dtype=torch.float64) * 0.4 + 0.2
    logits = torch.randn(layers, images, queries, K, dtype=torch.float64)
    return DetectionPredictions(logits, boxes)


def divided_by(num_boxes):
    return LossNormalizers(num_boxes=num_boxes, num_salient=1, max_boxes=3, padded_size=(128, 160))


def overlap(a, b):
    """Return IoU and GIoU of two cxcywh boxes."""
    ax0, ay0, ax1, ay1 = a[0] - a[2] / 2, a[1] - a[3] / 2, a[0] + a[2] / 2, a[1] + a[3] / 2
    bx0, by0, bx1, by1 = b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2

    common_width = max(0, min(ax1, bx1) - max(ax0, bx0))
    common_height = max(0, min(ay1, by1) - max(ay0, by0))
    intersection = common_width * common_height
    union = a[2] * a[3] + b[2] * b[3] - intersection
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))

    iou = intersection / union
    return iou, iou - (hull - union) / hull


def losses_by_loops(logits, boxes, targets, matches, divisor):
    class_loss = l1 = giou_loss = 0.0
    for i, labels in enumerate(targets.labels):
        iou_targets = {}
        queries, indices = matches[i]
        for q, j in zip(queries.tolist(), indices.tolist(), strict=True):
            predicted = boxes[i, q].tolist()
            wanted = targets.boxes[i, j].tolist()
            iou, giou = overlap(predicted, wanted)

            iou_targets[q, labels[j].item()] = iou
            l1 += sum(abs(a - b) for a, b in zip(predicted, wanted, strict=True))
            giou_loss += 1 - giou

        for q in range(logits.shape[1]):
            for k in range(K):
                p = 1 / (1 + math.exp(-logits[i, q, k].item()))
                if (q, k) in iou_targets:
                    t = iou_targets[q, k]
                    class_loss -= t * (t * math.log(p) + (1 - t) * math.log(1 - p))
                else:
                    class_loss -= 0.75 * p * p * math.log(1 - p)

    return class_loss / divisor, 5 * l1 / divisor, 2 * giou_loss / divisor


@pytest.mark.parametrize("suffix", ["", "_0", "_enc"])
def test_losses_of_every_layer_equal_plain_loops(suffix):
    targets = random_targets(3, 1, 0)
    matcher = HungarianMatcher()
    decoder = random_predictions(2, 3, 5)
    encoder = random_predictions(1, 3, 5)

    losses = SetCriterion(matcher=matcher)(decoder, encoder, targets, divided_by(4))

    source, layer = {"": (decoder, 1), "_0": (decoder, 0), "_enc": (encoder, 0)}[suffix]
    logits = source.pred_logits[layer]
    boxes = source.pred_boxes[layer]
    found = matcher(DetectionPredictions(logits[None], boxes[None]), targets)
    matches = [(found.query[0, found.image == i], found.box[0, found.image == i]) for i in range(3)]
    expected = losses_by_loops(logits, boxes, targets, matches, 4)
    found = [losses[f"loss_{name}{suffix}"].item() for name in ("class", "bbox", "giou")]
    assert found == pytest.approx(expected, abs=1e-12)


def test_denoising_matches_each_positive_query_and_divides_by_the_groups():
    targets = random_targets(3, 1)
    layout = DenoisingLayout(num_groups=2, max_boxes=3)
    denoised = random_predictions(1, 2, layout.num_queries)
    criterion = SetCriterion(matcher=HungarianMatcher())

    losses = criterion.denoising_losses(denoised, layout, targets, divided_by(4))

    # Groups of 2 * 3 queries, positives first.
    matches = [
        (torch.tensor([0, 1, 2, 6, 7, 8]), torch.tensor([0, 1, 2, 0, 1, 2])),
        (torch.tensor([0, 6]), torch.tensor([0, 0])),
    ]
    expected = losses_by_loops(
        denoised.pred_logits[0], denoised.pred_boxes[0], targets, matches, 4 * 2
    )
    found = [losses[f"loss_{name}_dn"].item() for name in ("class", "bbox", "giou")]
    assert found == pytest.approx(expected, abs=1e-12)


def test_another_class_loss_changes_the_class_losses_only():
    targets = random_targets(2, 0)
    predictions = random_predictions(1, 2, 3)
    matcher = HungarianMatcher()

    plain = SetCriterion(matcher=matcher)(predictions, predictions, targets, divided_by(2))
    criterion = SetCriterion(matcher=matcher, class_loss=MatchabilityAwareLoss(gamma=1.0))
    losses = criterion(predictions, predictions, targets, divided_by(2))

    # With gamma = 1: BCE(p, IoU) where matched, p * BCE(p, 0) elsewhere.
    matches = matcher(predictions, targets)
    p = predictions.pred_logits[0].sigmoid()
    expected = -(p * (1 - p).log()).sum().item()
    for query, box in zip(matches.query[0], matches.box[0], strict=True):
        q = p[0, query, targets.labels[0, box]].item()
        iou, _ = overlap(
            predictions.pred_boxes[0, 0, query].tolist(), targets.boxes[0, box].tolist()
        )
        expected += q * math.log(1 - q) - iou * math.log(q) - (1 - iou) * math.log(1 - q)

    assert losses["loss_class"].item() == pytest.approx(expected / 2, abs=1e-12)
    assert losses["loss_bbox"] == plain["loss_bbox"] and losses["loss_giou"] == plain["loss_giou"]


def one_to_many_criterion():
    matcher = OneToManyMatcher(threshold=0.2)
    return OneToManyCriterion(matcher=HungarianMatcher(), one_to_many_matcher=matcher)


@pytest.mark.parametrize("suffix", ["", "_0"])
def test_losses_of_the_second_heads_equal_plain_loops(suffix):
    targets = random_targets(3, 1, 0)
    decoder = random_predictions(2, 3, 16)
    encoder = random_predictions(1, 3, 16)
    criterion = one_to_many_criterion()
    second = torch.randn_like(decoder.pred_logits)

    decoder = replace(decoder, one_to_many_logits=second)
    losses = criterion(decoder, encoder, targets, divided_by(4))

    layer = {"": 1, "_0": 0}[suffix]
    found = criterion.one_to_many_matcher(replace(decoder, pred_logits=second), targets)
    matches = []
    for i in range(3):
        query = found.matched[layer, i].nonzero()[:, 0]
        matches.append((query, found.box[layer, i, query]))
    assert len(matches[0][0]) == 4  # more than boxes

    logits, boxes = second[layer], decoder.pred_boxes[layer]
    class_loss, l1, giou = losses_by_loops(logits, boxes, targets, matches, 4)
    found = [losses[f"loss_{name}_o2m{suffix}"].item() for name in ("class", "bbox", "giou")]
    assert found == pytest.approx([2 * class_loss, l1, giou], abs=1e-12)

    # The losses of the first heads are those of the parent.
    plain = SetCriterion(matcher=HungarianMatcher())(decoder, encoder, targets, divided_by(4))
    assert plain == {name: losses[name] for name in plain}


def test_second_heads_learn_background_from_a_batch_without_boxes():
    predictions = random_predictions(1, 2, 3)
    second = torch.randn_like(predictions.pred_logits).requires_grad_()
    targets = random_targets(0, 0)

    decoder = replace(predictions, one_to_many_logits=second)
    losses = one_to_many_criterion()(decoder, predictions, targets, divided_by(1))
    losses["loss_class_o2m"].backward()

    assert losses["loss_bbox_o2m"] == losses["loss_giou_o2m"] == 0
    assert second.grad.abs().sum() > 0


def test_a_decoder_without_second_heads_is_named():
    predictions = random_predictions(1, 1, 3)
    with pytest.raises(ValueError, match="needs the second class heads of a OneToManyDecoder"):
        one_to_many_criterion()(predictions, predictions, random_targets(1), divided_by(1))


def test_a_batch_without_boxes_has_finite_losses_with_gradients():
    predictions = random_predictions(1, 2, 3)
    predictions.pred_boxes.requires_grad_()
    predictions.pred_logits.requires_grad_()
    targets = random_targets(0, 0)
    criterion = SetCriterion(matcher=HungarianMatcher())

    losses = criterion(predictions, predictions, targets, divided_by(1))
    sum(losses.values()).backward()

    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    assert losses["loss_class"] > 0
    assert predictions.pred_boxes.grad.abs().sum() == 0
    assert predictions.pred_logits.grad.abs().sum() > 0


def test_padded_queries_take_no_part():
    few = random_predictions(1, 1, 3)
    padding = random_predictions(1, 1, 2)
    padded = DetectionPredictions(
        torch.cat([few.pred_logits, padding.pred_logits], dim=2),
        torch.cat([few.pred_boxes, padding.pred_boxes], dim=2),
        torch.tensor([3]),
    )

    targets = random_targets(2)
    criterion = SetCriterion(matcher=HungarianMatcher())
    expected = criterion(few, few, targets, divided_by(2))
    found = criterion(padded, padded, targets, divided_by(2))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_outside_the_classes_says_both_numbers(label):
    labels = torch.tensor([0, label])
    truth = DetectionTargets.from_images([labels], [torch.rand(2, 4)], [(10, 10)])
    with pytest.raises(ValueError, match=rf"class is {label}.*has 4 classes"):
        check_labels(truth, 4)
