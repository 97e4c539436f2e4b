"""A second set of queries in training, several of which learn each object."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from salience_detr.config import load_config
from salience_detr.data.loader import seeded
from salience_detr.modeling.hybrid_queries import HybridQueries
from salience_detr.modeling.structures import DetectionTargets

VARIANTS = str(Path(__file__).resolve().parents[1] / "configs" / "variants.py")


@pytest.fixture
def build():
    def make(*overrides):
        config = load_config(VARIANTS).model
        config.decoder._target_ = "salience_detr.modeling.decoder.SalienceDecoder"
        config.criterion._target_ = "salience_detr.modeling.criterion.SetCriterion"
        del config.criterion.one_to_many_matcher
        config.decoder.position_relation = None
        for name, value in overrides:
            config.hybrid_queries[name] = value
        with seeded(0):
            return instantiate(config).double().train()

    return make


@pytest.fixture
def batch(make_input):
    return [
        make_input(64, 96, [[4, 4, 40, 30], [50, 8, 90, 60]], [0, 5]),
        make_input(40, 64, [[4, 4, 30, 30]], [2]),
    ]


def losses_of(model, batch):
    with seeded(1):
        return model(batch)


def test_a_second_set_like_the_first_has_its_losses(build, batch, monkeypatch):
    model = build(("queries_per_box", 1), ("num_queries", 10))
    hybrid, first = model.hybrid_queries, model.query_selection
    hybrid.class_head, hybrid.bbox_head = first.class_head, first.bbox_head
    hybrid.embedding.data = model.query_embedding.data[:10]
    monkeypatch.setattr(first, "select_tokens", hybrid.select_tokens)

    losses = losses_of(model, batch)

    pairs = [
        (losses[name.removesuffix("_hybrid")], x) for name, x in losses.items() if "_hy" in name
    ]
    assert len(pairs) == 9  # two layers and the proposals
    for expected, loss in pairs:
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_the_second_set_leaves_the_other_losses_as_they_are(build, batch):
    model = build()
    with_hybrid = losses_of(model, batch)
    model.hybrid_queries = None
    without = losses_of(model, batch)

    assert {name for name in with_hybrid if "_hybrid" not in name} == without.keys()
    assert all(torch.equal(with_hybrid[name], x) for name, x in without.items())


def test_each_box_is_the_target_of_several_queries(build, batch, monkeypatch):
    model = build(("queries_per_box", 3))
    seen = []
    matcher = model.criterion.matcher
    monkeypatch.setattr(model.criterion, "matcher", lambda *x: seen.append(matcher(*x)) or seen[-1])
    losses_of(model, batch)

    of_hybrid = seen[-1]
    assert len(seen) == 2
    assert of_hybrid.image.tolist() == [0] * 6 + [1] * 3
    # The boxes 0, 0, 0, 1, 1, 1 of the first image: each copy has a query of its own.
    for boxes, queries in zip(of_hybrid.box[:, :6], of_hybrid.query[:, :6], strict=True):
        assert sorted(boxes.tolist()) == list(range(6)) and len(set(queries.tolist())) == 6


def test_the_losses_are_divided_by_the_repeated_boxes(build, batch, monkeypatch):
    model = build(("queries_per_box", 3))
    seen = []
    compute = model.criterion.losses
    monkeypatch.setattr(
        model.criterion, "losses", lambda *x: seen.append((x[1].num_boxes, x[3])) or compute(*x)
    )
    losses_of(model, batch)

    # The other queries, the denoising ones in R groups, the hybrid ones.
    (_, num_boxes), _, hybrid = seen
    assert num_boxes == 3
    assert hybrid == ((6, 3), 9)


def test_boxes_are_repeated_before_the_padding():
    labels = [torch.tensor([3, 1]), torch.tensor([2])]
    boxes = [torch.rand(2, 4), torch.rand(1, 4)]
    targets = DetectionTargets.from_images(labels, boxes, [(8, 8)] * 2).repeat(2)

    assert targets.num_boxes == (4, 2)
    assert targets.labels.tolist() == [[3, 3, 1, 1], [2, 2, 0, 0]]
    assert torch.equal(targets.boxes[1, :2], boxes[1].expand(2, 4))
    assert not targets.boxes[1, 2:].any()


def test_images_without_boxes_teach_the_background(build, make_input):
    losses = losses_of(build(), [make_input(64, 64, [], [])])
    assert losses["loss_class_hybrid"] > 0
    assert losses["loss_bbox_hybrid"] == losses["loss_giou_hybrid"] == 0


def test_queries_are_the_best_tokens_and_never_of_the_padding(build, batch):
    model = build(("num_queries", 10_000))
    images = model.preprocess_image(batch)
    seen = {}
    select = model.hybrid_queries.select_tokens

    def keep(scores, tokens):
        seen["scores"], seen["tokens"] = scores, tokens
        seen["index"], num_valid = select(scores, tokens)
        return seen["index"], num_valid

    model.hybrid_queries.select_tokens = keep
    losses_of(model, batch)

    valid = seen["tokens"].output_proposals_valid.gather(1, seen["index"])
    assert images.tensor.shape[-2:] == (64, 96) and not valid[1].all()
    for ranked, good in zip(seen["scores"].gather(1, seen["index"]), valid, strict=True):
        count = int(good.sum())
        assert good[:count].all()
        assert (ranked[: count - 1] >= ranked[1:count]).all()


@pytest.mark.parametrize("setting", [{"num_queries": 0}, {"queries_per_box": 0}])
def test_numbers_below_one_are_refused(setting):
    with pytest.raises(ValueError, match="hybrid_queries has num_queries"):
        HybridQueries(class_head=torch.nn.Linear(4, 2), bbox_head=torch.nn.Linear(4, 4), **setting)
