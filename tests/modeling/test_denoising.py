"""Order, noise and mask of the denoising queries."""

from __future__ import annotations

import pytest
import torch

from salience_detr.layers.box_ops import box_cxcywh_to_xyxy
from salience_detr.modeling.denoising import DenoisingGenerator, DenoisingLayout
from salience_detr.modeling.structures import DetectionTargets


def generator(**options):
    options = {"num_classes": 5, "embed_dim": 8, "num_queries": 3, **options}
    return DenoisingGenerator(**options).double()


def targets(*counts):
    """Return ground truth of images with these numbers of boxes."""
    images = [target(count) for count in counts]
    labels = [x for x, _ in images]
    boxes = [x for _, x in images]
    return DetectionTargets.from_images(labels, boxes, [(10, 10)] * len(images))


def target(count):
    centers = torch.rand(count, 2) * 0.4 + 0.3
    sizes = torch.rand(count, 2) * 0.2 + 0.1
    boxes = torch.cat([centers, sizes], dim=1).double()
    return torch.randint(0, 5, (count,)), boxes


@pytest.mark.parametrize(
    ("boxes", "groups", "queries"),
    # 100 // g groups of 2 g queries; at least one group.
    [(0, 1, 0), (1, 100, 200), (3, 33, 198), (60, 1, 120), (250, 1, 500)],
)
def test_groups_fill_the_wanted_number_of_queries(boxes, groups, queries):
    layout = generator().layout(boxes)
    assert (layout.num_groups, layout.num_queries) == (groups, queries)


def test_positives_of_each_group_come_before_its_negatives():
    layout = DenoisingLayout(num_groups=2, max_boxes=3)

    matches = layout.positive_matches([2, 0, 1])

    assert matches.image.tolist() == [0, 0, 0, 0, 2, 2]
    assert matches.query.tolist() == [[0, 1, 6, 7, 0, 6]]
    assert matches.box.tolist() == [[0, 1, 0, 1, 0, 0]]


def test_without_noise_queries_are_the_boxes_and_labels_and_padding_is_neutral():
    module = generator(label_noise_prob=0.0, box_noise_scale=0.0, denoising_queries=4)
    truth = targets(1, 2)
    few, many = truth.boxes[0, :1], truth.boxes[1]

    queries = module(truth, 2)

    assert queries.layout == DenoisingLayout(num_groups=2, max_boxes=2)

    # Axes: image, group, positive or negative, box.
    content = queries.content.view(2, 2, 2, 2, 8)
    boxes = queries.reference_points.view(2, 2, 2, 2, 4)
    torch.testing.assert_close(boxes[1], many.expand(2, 2, 2, 4))
    torch.testing.assert_close(content[1, 1, 0], module.label_encoder(truth.labels[1]))

    torch.testing.assert_close(boxes[0, :, :, 0], few.expand(2, 2, 4))
    assert (content[0, :, :, 1] == 0).all()
    assert (boxes[0, :, :, 1] == 0.5).all()


def noised(boxes):
    module = generator()
    return module.noise_boxes(boxes, module.random_shifts(boxes))


def test_corners_move_by_up_to_half_a_side_or_by_half_to_a_whole_one():
    box = torch.tensor([0.5, 0.5, 0.2, 0.1], dtype=torch.float64)
    moved = noised(box.expand(5000, 2, 1, 4))

    halves = torch.tensor([0.1, 0.05, 0.1, 0.05], dtype=torch.float64)
    factor = (box_cxcywh_to_xyxy(moved) - box_cxcywh_to_xyxy(box)) / halves
    positives = factor[:, 0].abs()
    negatives = factor[:, 1].abs()
    assert positives.max() < 1 and positives.min() < 0.01
    assert negatives.min() >= 1 and negatives.max() < 2

    # Directions are random, and coordinates drawn independently.
    assert (factor > 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(factor[:, 0, 0].T).triu(1).abs().max() < 0.05


def test_noised_boxes_stay_inside_the_image():
    box = torch.tensor([0.95, 0.05, 0.1, 0.1], dtype=torch.float64)
    corners = box_cxcywh_to_xyxy(noised(box.expand(500, 2, 1, 4)))
    assert corners.min() >= -1e-12 and corners.max() <= 1 + 1e-12


def test_a_quarter_of_the_labels_is_drawn_anew():
    module = DenoisingGenerator(num_classes=1000, embed_dim=4)
    labels = module.noise_labels(torch.full((40000,), 7))
    assert (labels != 7).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_groups_see_themselves_and_matching_queries_and_matching_queries_only_each_other():
    mask = generator(denoising_queries=4)(targets(2), 2).attention_mask

    # Two groups of four queries, then three matching queries; True = may not attend.
    expected = torch.zeros(11, 11, dtype=torch.bool)
    expected[0:4, 4:8] = expected[4:8, 0:4] = True
    expected[8:, :8] = True
    assert torch.equal(mask, expected)


def test_a_batch_without_boxes_gives_no_queries_but_keeps_the_embedding_in_the_graph():
    module = generator()
    queries = module(targets(0, 0), 0)
    assert queries.content.shape == (2, 0, 8)
    assert not queries.attention_mask.any()

    queries.content.sum().backward()
    assert module.label_encoder.weight.grad is not None


def test_with_one_class_labels_stay():
    module = DenoisingGenerator(num_classes=1, embed_dim=4)
    labels = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(module.noise_labels(labels), labels)


def test_the_noise_of_an_image_depends_neither_on_padding_nor_on_images_after_it():
    module = generator(denoising_queries=4)
    truth = targets(2, 1, 2)
    first = DetectionTargets(truth.labels[:1], truth.boxes[:1], (2,), ((10, 10),))

    torch.manual_seed(3)
    together = module(truth, 2).reference_points[0]
    torch.manual_seed(3)
    alone = module(first, 2).reference_points[0]

    assert torch.equal(together, alone)
