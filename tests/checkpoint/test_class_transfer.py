"""Starting from the weights of a model with other classes."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import instantiate

from salience_detr.checkpoint import CheckpointError, start_from
from salience_detr.checkpoint.class_transfer import COCO_CLASSES
from salience_detr.config import load_config

ROWS = (
    "query_selection.class_head.weight",
    "decoder.class_heads.0.bias",
    "denoising.label_encoder.weight",
)


def build(micro_config, num_classes, *overrides):
    return instantiate(
        load_config(micro_config, [f"model.num_classes={num_classes}", *overrides]).model
    )


@pytest.fixture
def file(tmp_path, micro_config):
    """Weights for four named classes, and their state dict."""
    torch.manual_seed(1)
    state = build(micro_config, 4).state_dict()
    torch.save(
        {"model": state, "class_names": ["cat", "Dog", "bird", "fish"]}, tmp_path / "four.pth"
    )
    return tmp_path / "four.pth", state


def test_heads_of_another_size_start_afresh_with_one_message(file, micro_config, caplog):
    path, state = file
    model = build(micro_config, 3)
    fresh = {name: x.clone() for name, x in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        start_from(model, path)
    [message] = [r.getMessage() for r in caplog.records if "random weights" in r.getMessage()]
    assert "4 classes in the file, 3 in the model" in message and all(
        name in message for name in ROWS
    )
    for name, x in model.state_dict().items():
        expected = fresh[name] if fresh[name].shape != state[name].shape else state[name]
        assert torch.equal(x, expected), name


def test_classes_of_the_same_name_keep_their_rows(file, micro_config):
    path, state = file
    model = build(micro_config, 3)
    fresh = {name: x.clone() for name, x in model.state_dict().items()}
    start_from(model, path, class_names=["dog", "horse", "cat"], match_classes=True)
    own = model.state_dict()
    for name in ROWS:
        assert torch.equal(own[name][0], state[name][1]), name
        assert torch.equal(own[name][1], fresh[name][1]), name
        assert torch.equal(own[name][2], state[name][0]), name


def test_the_same_number_of_classes_is_matched_by_name_too(file, micro_config):
    path, state = file
    model = build(micro_config, 4)
    start_from(model, path, class_names=["fish", "bird", "dog", "cat"], match_classes=True)
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[3, 2, 1, 0]])
    start_from(
        model, path, class_names=["a", "b", "c", "d"]
    )  # without matching, rows stay in their places
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])


def test_eighty_nameless_classes_are_those_of_coco(tmp_path, micro_config):
    state = build(micro_config, 80).state_dict()
    torch.save(state, tmp_path / "coco.pth")
    model = build(micro_config, 2)
    start_from(model, tmp_path / "coco.pth", class_names=["zebra", "scratch"], match_classes=True)
    assert torch.equal(model.state_dict()[ROWS[0]][0], state[ROWS[0]][COCO_CLASSES.index("zebra")])


def test_names_that_nobody_knows_cannot_be_matched(tmp_path, micro_config):
    torch.save(build(micro_config, 4).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not say what its 4 classes are called"):
        start_from(
            build(micro_config, 2), tmp_path / "a.pth", class_names=["a", "b"], match_classes=True
        )


def test_everything_else_must_match(file, micro_config):
    model = build(micro_config, 3, "model.num_queries=7")
    with pytest.raises(CheckpointError, match=r"of another shape: query_embedding"):
        start_from(model, file[0])
