"""Changes from later papers fit the published model; what only training uses stays out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from safetensors.torch import load_file

from salience_detr.checkpoint import CheckpointError, load_weights
from salience_detr.checkpoint.loading import start_from
from salience_detr.cli import convert_checkpoint
from salience_detr.config import load_config
from salience_detr.data.classes import ClassList
from salience_detr.data.loader import seeded
from salience_detr.export.graph import DetectionGraph
from salience_detr.export.program import drop_training_parts
from salience_detr.layers.losses import MatchabilityAwareLoss

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = str(ROOT / "tests" / "configs" / "variants.py")
HEADS = "decoder.one_to_many_heads"
RELATION = "decoder.position_relation"
HYBRID = "hybrid_queries"


@pytest.fixture
def build(micro_config):
    def make(path=micro_config, *overrides):
        return instantiate(load_config(path, overrides).model)

    return make


@pytest.fixture
def batch(make_input):
    return [
        make_input(64, 96, [[4, 4, 40, 30], [50, 8, 90, 60]], [0, 5]),
        make_input(40, 64, [], []),
    ]


def shared_weights(first, second):
    """Return pairs of the tensors that two models have in common."""
    state = second.state_dict()
    return [(x, state[name]) for name, x in first.state_dict().items() if name in state]


def inference_part(state):
    """Return the tensors of a state dict that evaluation uses."""
    return {name: x for name, x in state.items() if HEADS not in name and HYBRID not in name}


def test_evaluation_does_not_see_what_training_has(build, batch):
    decoder = "model.decoder._target_=salience_detr.modeling.decoder.SalienceDecoder"
    plain = build(VARIANTS, decoder, "model.hybrid_queries=null").eval()
    variant = build(VARIANTS).eval()
    plain.load_state_dict(inference_part(variant.state_dict()))
    with torch.no_grad():
        for found, expected in zip(variant(batch), plain(batch), strict=True):
            assert torch.equal(found["instances"].scores, expected["instances"].scores)


def test_all_of_a_variant_learns_in_mixed_precision(build, batch):
    model = build(VARIANTS).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)

    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_relation_is_that_of_the_boxes_of_the_last_two_layers(batch, monkeypatch):
    config = load_config(VARIANTS).model
    config.hybrid_queries = None
    config.decoder.layers.append(config.decoder.layers[0])
    model = instantiate(config).train()

    pairs = []
    relation = model.decoder.position_relation
    forward = relation.forward
    monkeypatch.setattr(relation, "forward", lambda *pair: pairs.append(pair) or forward(*pair))
    decode, decoded = model.decoder.forward, []
    monkeypatch.setattr(
        model.decoder, "forward", lambda *x: decoded.append((x[1], decode(*x))) or decoded[0][1]
    )
    model(batch)

    # Initial boxes and those of the first layer; those of the first and of the second one.
    initial, predictions = decoded[0]
    assert len(pairs) == 2
    assert pairs[0][0] is initial
    assert torch.equal(pairs[0][1], predictions.pred_boxes[0])
    assert pairs[1][0] is pairs[0][1]
    assert torch.equal(pairs[1][1], predictions.pred_boxes[1])


@pytest.mark.parametrize("num_classes", [6, 3])
def test_published_weights_start_a_variant_with_one_line(build, tmp_path, caplog, num_classes):
    plain, variant = build(), build(VARIANTS, f"model.num_classes={num_classes}")
    torch.save(plain.state_dict(), tmp_path / "a.pth")
    fresh = variant.decoder.one_to_many_heads[0].weight.clone()

    with caplog.at_level(logging.WARNING):
        start_from(variant, tmp_path / "a.pth")

    lines = [x for x in caplog.messages if HEADS in x]
    assert lines == [
        f"{tmp_path / 'a.pth'} has no {HEADS}, {RELATION}, {HYBRID}: random weights stay there"
    ]
    assert torch.equal(variant.decoder.one_to_many_heads[0].weight, fresh)
    same = [torch.equal(a, b) for a, b in shared_weights(plain, variant) if a.shape == b.shape]
    assert all(same)


def test_weights_of_a_variant_start_the_published_model_with_one_line(build, tmp_path, caplog):
    plain, variant = build(), build(VARIANTS)
    torch.save(variant.state_dict(), tmp_path / "a.pth")

    with caplog.at_level(logging.INFO):
        start_from(plain, tmp_path / "a.pth")

    lines = [x for x in caplog.messages if HEADS in x]
    parts = f"{HEADS}, {RELATION}, {HYBRID}"
    assert lines == [f"{tmp_path / 'a.pth'}: left out {parts}, which the model does not have"]
    assert all(torch.equal(a, b) for a, b in shared_weights(plain, variant))


def test_weights_detect_without_parts_of_training_but_not_without_the_relation(build, tmp_path):
    state = build(VARIANTS).state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"not in the model: {RELATION}\.projection\.bias"):
        load_weights(build(), tmp_path / "a.pth")

    torch.save({name: x for name, x in state.items() if RELATION not in name}, tmp_path / "b.pth")
    load_weights(build(), tmp_path / "b.pth")


def test_heads_of_training_keep_the_rows_of_their_classes(build, tmp_path):
    source, target = build(VARIANTS), build(VARIANTS, "model.num_classes=2")
    content = {"model": source.state_dict(), "class_names": list("abcdef")}
    torch.save(content, tmp_path / "a.pth")

    start_from(target, tmp_path / "a.pth", classes=ClassList(("e", "b")))

    rows = source.decoder.one_to_many_heads[1].bias[[4, 1]]
    assert torch.equal(target.decoder.one_to_many_heads[1].bias, rows)
    rows = source.hybrid_queries.class_head.weight[[4, 1]]
    assert torch.equal(target.hybrid_queries.class_head.weight, rows)


def test_stripped_weights_have_no_parts_of_training_and_detect(build, tmp_path, capsys):
    variant = build(VARIANTS)
    torch.save({"model": variant.state_dict()}, tmp_path / "a.pth")

    target = tmp_path / "b.safetensors"
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(target)]) == 0

    assert f"left out, for training only (13): {HEADS}.0.bias" in capsys.readouterr().out
    assert load_file(target).keys() == inference_part(variant.state_dict()).keys()
    load_weights(variant, target)


def test_other_missing_parts_are_still_an_error(build, tmp_path):
    state = build().state_dict()
    del state["decoder.class_heads.0.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing from the file.*class_heads\.0\.bias"):
        start_from(build(VARIANTS), tmp_path / "a.pth")


def test_exported_graphs_have_no_parts_of_training(build):
    model = build(VARIANTS)
    graph = DetectionGraph(model)
    drop_training_parts(graph)

    for part in (HEADS, HYBRID):
        assert not any(part in name for name in graph.state_dict())
        assert any(part in name for name in model.state_dict())


def test_hybrid_queries_have_no_relation(build, batch, monkeypatch):
    model = build(VARIANTS).train()
    sizes = []
    relation = model.decoder.position_relation
    forward = relation.forward
    monkeypatch.setattr(relation, "forward", lambda *x: sizes.append(x[0].shape[1]) or forward(*x))
    losses = model(batch)
    assert "loss_class_hybrid" in losses
    assert len(sizes) == len(model.decoder.layers) - 1  # those of the other queries alone


@pytest.mark.parametrize(
    "name",
    [
        "neu_det_r18_plus",
        "surface_defects_tiny_plus",
        "salience_detr_plus_r50_4scale_12ep",
    ],
)
def test_a_config_with_the_changes_takes_a_step(build, make_input, name):
    model = build(name, "model.num_queries=20").train()
    losses = model([make_input(64, 64, [[4, 4, 40, 30]], [0])] * 2)
    sum(losses.values()).backward()

    assert isinstance(model.criterion.class_loss, MatchabilityAwareLoss)
    assert all(x.isfinite() for x in losses.values())
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_the_r50_config_supervises_one_to_many(build):
    assert len(build("salience_detr_plus_r50_4scale_12ep").decoder.one_to_many_heads) == 6


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("neu_det_r18_plus_stage1", "surface_defects_tiny"),
        ("surface_defects_tiny_plus_stage1", "neu_det_r18"),
    ],
)
def test_a_config_starts_from_the_weights_of_other_defects(name, weights):
    config = load_config(name)
    assert config.train.init_checkpoint == weights
    start_from(instantiate(config.model), weights)


@pytest.mark.parametrize(
    ("name", "second_stages"), [("neu_det_r18", 2), ("surface_defects_tiny", 1)]
)
def test_a_config_goes_on_from_its_first_stage(name, second_stages):
    first, second = load_config(f"{name}_plus_stage1"), load_config(f"{name}_plus")
    weights = f"{first.train.output_dir}/model_final.pth"
    assert Path(second.train.init_checkpoint).resolve() == Path(weights).resolve()
    assert first.model == second.model
    # All together are as long as the training of the published model.
    epochs = first.train.epochs + second_stages * second.train.epochs
    assert epochs == load_config(name).train.epochs


def test_duplicates_are_suppressed_where_it_gained_something():
    for name in ("neu_det_r18_plus", "finetune_small"):
        model = load_config(name).model
        assert (model.nms_iou_threshold, model.nms_soft) == (0.5, True)
    assert "nms_iou_threshold" not in load_config("surface_defects_tiny_plus").model


def test_the_neu_det_config_ends_with_whole_images():
    def sizes(augmentations):
        found = set()
        for _ in range(200):
            augmented = T.AugInput(np.zeros((200, 200, 3), np.uint8))
            augmentations(augmented)
            found.add(augmented.image.shape[:2])
        return found

    def mapper_of(name):
        mapper = instantiate(load_config(name).dataloader.train.mapper)
        mapper.begin(8)
        return mapper

    with seeded(0):
        first = mapper_of("neu_det_r18_plus_stage1")
        assert first.end_position == 8 * 157 * 30  # of 50 epochs
        assert max(sizes(first.augmentations)) == (256, 256)
        assert sizes(first.close_up_augmentations) == {(224, 224), (256, 256), (288, 288)}

        second = mapper_of("neu_det_r18_plus")
        assert second.end_position == 0
        sides = (224, 240, 256, 272)
        assert sizes(second.close_up_augmentations) == {(h, w) for h in sides for w in sides}
