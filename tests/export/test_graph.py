"""The exportable forms of the model's parts give what the originals give."""

from __future__ import annotations

import copy

import pytest
import torch

from salience_detr.export.graph import (
    DetectionGraph,
    GraphBackgroundEmbedding,
    make_exportable,
    portion,
)
from salience_detr.modeling.backbones.swin import Swin
from salience_detr.modeling.encoder import BackgroundEmbedding


def test_the_graph_equals_the_model_on_padded_images(predictor):
    images = torch.randint(0, 256, (2, 3, 80, 110)).float()
    pixels = [images[0, :, :80, :61], images[1, :, :33, :110]]
    with torch.no_grad():
        boxes, scores, labels, _ = DetectionGraph(predictor.model)(
            images, torch.tensor([[80, 61], [33, 110]])
        )
        expected = [x["instances"] for x in predictor.model([{"image": x} for x in pixels])]
    for i, instances in enumerate(expected):
        torch.testing.assert_close(scores[i], instances.scores)
        torch.testing.assert_close(boxes[i], instances.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        assert torch.equal(labels[i], instances.pred_classes)


@pytest.mark.parametrize("option", [None, "nms_box_voting", "nms_soft"])
def test_the_graph_does_to_duplicates_what_the_model_does(predictor, monkeypatch, option):
    images = torch.randint(0, 256, (2, 3, 80, 110)).float()
    pixels = [images[0, :, :80, :61], images[1, :, :33, :110]]
    monkeypatch.setattr(predictor.model, "nms_iou_threshold", 0.05)
    if option is not None:
        monkeypatch.setattr(predictor.model, option, True)
    with torch.no_grad():
        boxes, scores, labels, _ = DetectionGraph(predictor.model)(
            images, torch.tensor([[80, 61], [33, 110]])
        )
        expected = [x["instances"] for x in predictor.model([{"image": x} for x in pixels])]
        monkeypatch.setattr(predictor.model, "nms_iou_threshold", None)
        published = [x["instances"] for x in predictor.model([{"image": x} for x in pixels])]

    for i, instances in enumerate(expected):
        found = scores[i] > 0
        assert len(instances) > 0 and found.sum() == len(instances)
        assert len(instances) < len(scores[i]) or option == "nms_soft"
        assert instances.scores.sum() < published[i].scores.sum()
        torch.testing.assert_close(scores[i][found], instances.scores)
        torch.testing.assert_close(
            boxes[i][found], instances.pred_boxes.tensor, rtol=1e-4, atol=1e-3
        )
        assert torch.equal(labels[i][found], instances.pred_classes)


@pytest.mark.parametrize("option", [None, "nms_box_voting", "nms_soft"])
def test_a_box_that_is_nan_costs_no_other_detection(predictor, monkeypatch, option):
    monkeypatch.setattr(predictor.model, "nms_iou_threshold", 0.05)
    if option is not None:
        monkeypatch.setattr(predictor.model, option, True)

    graph = DetectionGraph(predictor.model)
    decode = graph.decode

    def decode_with_nan(encoding):
        logits, boxes = decode(encoding)
        boxes[:, logits.amax((0, 2)).argmax()] = torch.nan
        return logits, boxes

    images, sizes = torch.randint(0, 256, (1, 3, 80, 110)).float(), torch.tensor([[80, 110]])
    with torch.no_grad():
        whole = (graph(images, sizes)[1] > 0).sum()
        monkeypatch.setattr(graph, "decode", decode_with_nan)
        boxes, scores, _, _ = graph(images, sizes)

    found = scores > 0
    assert scores.isfinite().all() and boxes[found].isfinite().all()
    assert found.sum() > whole / 2


def test_queries_that_a_small_image_lacks_are_masked(predictor):
    # 32 x 32 padded pixels have 16 + 4 + 1 tokens, of which NMS keeps fewer than 20, the queries.
    image = torch.randint(0, 256, (1, 3, 30, 25)).float()
    with torch.no_grad():
        boxes, scores, labels, _ = DetectionGraph(predictor.model)(image, torch.tensor([[30, 25]]))
        expected = predictor.model([{"image": image[0]}])[0]["instances"]
    count = len(expected)
    assert count < scores.shape[1] and not scores[0, count:].any()
    torch.testing.assert_close(scores[0, :count], expected.scores)
    torch.testing.assert_close(boxes[0, :count], expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert torch.equal(labels[0, :count], expected.pred_classes)


def test_boxes_are_clipped_and_those_without_area_come_last_with_score_0(predictor, monkeypatch):
    # On 40 x 60 pixels: over the left side and the lower one, without width, and whole.
    boxes = torch.tensor([[0.1, 0.9, 0.4, 0.4], [0.5, 0.5, 0.0, 0.2], [0.5, 0.5, 0.5, 0.5]])
    logits = torch.full((1, 3, predictor.model.num_classes), -20.0)
    logits[0, :, 1] = torch.tensor([2.0, 3.0, 1.0])
    graph = DetectionGraph(predictor.model)
    monkeypatch.setattr(graph, "decode", lambda encoding: (logits, boxes[None]))
    monkeypatch.setattr(DetectionGraph, "num_detections", 3)

    with torch.no_grad():
        found, scores, labels, _ = graph(torch.zeros(1, 3, 64, 64), torch.tensor([[40, 60]]))

    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 28, 18, 40]))
    torch.testing.assert_close(found[0, 1], torch.tensor([15.0, 10, 45, 30]))
    assert scores[0].tolist() == pytest.approx([0.8808, 0.7311, 0], abs=1e-4)
    assert labels[0].tolist() == [1, 1, 1]


def test_the_copy_shares_its_weights_and_leaves_the_model_as_it_was(predictor):
    graph = DetectionGraph(predictor.model)
    kinds = {type(module) for module in predictor.model.modules()}
    assert GraphBackgroundEmbedding not in kinds and BackgroundEmbedding in kinds
    for ours, theirs in zip(graph.model.parameters(), predictor.model.parameters(), strict=True):
        assert ours is theirs


@pytest.mark.parametrize("size", [(64, 96), (250, 180)])
def test_swin_for_unknown_sides_equals_detectron2s(size):
    widths = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 2]}
    backbone = Swin(**widths, window_size=7, drop_path_rate=0.1).eval()
    exportable = copy.deepcopy(backbone)
    make_exportable(exportable)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        for ours, theirs in zip(
            exportable(images).values(), backbone(images).values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [5, 12, 31])
def test_background_tables_are_stretched_beyond_their_end_and_else_untouched(size):
    torch.manual_seed(0)
    original = BackgroundEmbedding(embed_dim=8, size=12)
    expected = original(((size, 3),))
    original.__class__ = GraphBackgroundEmbedding
    torch.testing.assert_close(original(((size, 3),)), expected, rtol=1e-5, atol=1e-6)


def test_portions_are_rounded_up():
    assert [portion(10, 0.4), portion(11, 0.4), portion(7, 1), portion(1, 0.2)] == [4, 5, 7, 1]
