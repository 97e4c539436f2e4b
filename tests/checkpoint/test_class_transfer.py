"""Class rows of weights in the order of a data set's classes."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import instantiate

from salience_detr.checkpoint import CheckpointError, load_weights, save_weights, start_from
from salience_detr.checkpoint.class_names import COCO_CLASSES
from salience_detr.config import load_config
from salience_detr.data.classes import ClassList
from tests.checkpoint.test_checkpoint import ROOT

# The small model has two decoder layers.
HEADS = ("query_selection.class_head", "decoder.class_heads.0", "decoder.class_heads.1")
ROWS = [f"{head}.{x}" for head in HEADS for x in ("weight", "bias")]
ROWS.append("denoising.label_encoder.weight")
ANIMALS = ClassList(("cat", "Dog", "bird", "fish"), (3, 7, 20, 21))


def classes(*names):
    return ClassList(names, tuple(range(1, len(names) + 1)))


def build(micro_config, num_classes, *overrides):
    return instantiate(
        load_config(micro_config, [f"model.num_classes={num_classes}", *overrides]).model
    )


def copy_state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def save(tmp_path, micro_config):
    """Return a function that writes random weights for classes, and returns path and state."""

    def write(file_classes, num_classes=None, name="weights.safetensors"):
        torch.manual_seed(1)
        state = copy_state(build(micro_config, num_classes or len(file_classes)))
        save_weights(state, tmp_path / name, classes=file_classes)
        return tmp_path / name, state

    return write


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_names_its_classes_with_their_category_ids(save, micro_config, name, caplog):
    path, _ = save(ANIMALS, name=name)
    assert load_weights(build(micro_config, 4), path) == ANIMALS
    assert load_weights(build(micro_config, 4), path, classes=ANIMALS) == ANIMALS
    assert not messages(caplog)


@pytest.mark.parametrize("load", [start_from, load_weights])
def test_the_same_names_in_another_order_are_permuted_and_said_in_one_line(
    save, micro_config, caplog, load
):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    data = ClassList(("fish", "bird", "Dog", "cat"), (21, 20, 7, 3))
    found = load(model, path, classes=data)

    own = model.state_dict()
    for name, x in state.items():
        expected = x[[3, 2, 1, 0]] if name in ROWS else x
        assert torch.equal(own[name], expected), name
    [message] = messages(caplog)
    assert "put into the order of the data set: fish, bird, Dog, cat" in message
    assert found in (None, data)


def test_case_and_spaces_around_a_name_do_not_count(save, micro_config):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    load_weights(model, path, classes=classes(" FISH", "Bird ", "dog", "cat"))
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[3, 2, 1, 0]])


def test_equal_names_come_before_those_that_differ_in_case(save, micro_config):
    path, state = save(classes("Cat", "cat", "CAT"))
    model = build(micro_config, 3)
    load_weights(model, path, classes=classes("cat", "CAT", "Cat"))
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[1, 2, 0]])


def test_training_keeps_shared_names_and_starts_the_others_afresh(save, micro_config, caplog):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    fresh = copy_state(model)
    start_from(model, path, classes=classes("dog", "horse", "cat", "cow"))

    own = model.state_dict()
    for name in ROWS:
        assert torch.equal(own[name][[0, 2]], state[name][[1, 0]]), name
        assert torch.equal(own[name][[1, 3]], fresh[name][[1, 3]]), name
    [message] = messages(caplog)
    assert "kept the rows of 2 with the same name: dog, cat" in message
    assert "start with random weights: horse, cow" in message


def test_training_starts_all_rows_afresh_where_no_name_is_shared(save, micro_config, caplog):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    fresh = copy_state(model)
    start_from(model, path, classes=classes("a", "b", "c", "d"))

    own = model.state_dict()
    for name, x in state.items():
        assert torch.equal(own[name], fresh[name] if name in ROWS else x), name
    [message] = messages(caplog)
    assert "no name is in both: all class rows start with random weights" in message


def test_training_takes_a_part_of_the_classes(save, micro_config, caplog):
    path, state = save(ANIMALS)
    model = build(micro_config, 2)
    start_from(model, path, classes=classes("bird", "cat"))
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[2, 0]])
    assert "4 classes in the file, 2 in the model; kept the rows of 2" in messages(caplog)[0]


def test_prediction_takes_the_rows_of_the_data_set(save, micro_config, caplog):
    path, state = save(ANIMALS)
    model = build(micro_config, 2)
    data = classes("fish", "cat")
    assert load_weights(model, path, classes=data) == data
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[3, 0]])
    assert "took the rows of the data set's 2 classes of 4: fish, cat" in messages(caplog)[0]


def test_a_model_of_all_classes_keeps_them_where_the_data_set_has_a_part(
    save, micro_config, caplog
):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    assert load_weights(model, path, classes=classes("fish", "cat")) == ANIMALS
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])

    part, ids = messages(caplog)
    assert "the data set has 2 of its 4 classes" in part
    assert "(fish: 21 there, 1 in the data set); results have those of the weights" in ids


def test_prediction_refuses_classes_that_the_weights_lack(save, micro_config):
    path, state = save(ANIMALS)
    model = build(micro_config, 4)
    before = copy_state(model)
    data = classes("cat", "dog", "horse", "cow")
    with pytest.raises(CheckpointError, match=r"lacks 2 of .* 4 classes: horse, cow; its"):
        load_weights(model, path, classes=data)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())

    assert load_weights(model, path, classes=data, ignore_class_names=True) == ANIMALS
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])


def test_other_category_ids_for_the_same_names_are_said(save, micro_config, caplog):
    path, _ = save(ANIMALS)
    data = ClassList(ANIMALS.names, (1, 2, 3, 4))
    assert load_weights(build(micro_config, 4), path, classes=data) == data
    [message] = messages(caplog)
    assert "other category ids than the data set (cat: 3 there, 1 in" in message
    assert message.endswith("results have those of the data set")


def test_two_classes_with_one_name_are_told_apart_by_their_ids(save, micro_config):
    path, state = save(ClassList(("pit", "pit", "dent"), (1, 2, 3)))
    model = build(micro_config, 3)
    load_weights(model, path, classes=ClassList(("dent", "pit", "pit"), (0, 1, 2)))
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[2, 0, 1]])

    for load in (load_weights, start_from):
        with pytest.raises(CheckpointError, match=r"'pit' is 2 times .*a name of its own"):
            load(model, path, classes=ClassList(("dent", "pit", "pit"), (0, 7, 8)))


def test_the_same_list_with_a_name_twice_fits(save, micro_config):
    path, state = save(ClassList(("pit", "pit", "dent")))
    model = build(micro_config, 3)
    load_weights(model, path, classes=ClassList(("pit", "pit", "dent"), (1, 2, 3)))
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])


def test_nameless_weights_are_taken_in_order_with_one_line(save, micro_config, caplog):
    path, state = save(None, num_classes=4)
    for load in (load_weights, start_from):
        caplog.clear()
        model = build(micro_config, 4)
        load(model, path, classes=classes("a", "b", "c", "d"))
        assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])
        [message] = messages(caplog)
        assert "does not name its 4 classes; they are taken in order" in message
        assert "a, b, c, d" in message


def test_nameless_heads_of_another_size_start_afresh_with_one_message(save, micro_config, caplog):
    path, state = save(None, num_classes=4)
    model = build(micro_config, 3)
    fresh = copy_state(model)
    start_from(model, path, classes=classes("a", "b", "c"))
    [message] = messages(caplog)
    assert "4 classes in the file, 3 in the model" in message
    assert all(name in message for name in ROWS)
    for name, x in model.state_dict().items():
        expected = fresh[name] if fresh[name].shape != state[name].shape else state[name]
        assert torch.equal(x, expected), name


def test_nameless_weights_of_another_number_of_classes_do_not_predict(save, micro_config):
    path, _ = save(None, num_classes=4)
    for ignore in (False, True):
        with pytest.raises(CheckpointError, match=r"4 classes, the data set 3 .* without names"):
            load_weights(
                build(micro_config, 3),
                path,
                classes=classes("a", "b", "c"),
                ignore_class_names=ignore,
            )


def test_eighty_nameless_classes_are_those_of_coco(save, micro_config, caplog):
    path, state = save(None, num_classes=80)
    names = list(COCO_CLASSES.values())
    model = build(micro_config, 2)
    start_from(model, path, classes=classes("zebra", "scratch"))
    assert torch.equal(model.state_dict()[ROWS[0]][0], state[ROWS[0]][names.index("zebra")])
    assert "does not name its 80 classes; they are taken for person" in messages(caplog)[0]

    found = load_weights(build(micro_config, 80), path)
    assert found.names == tuple(names) and found.category_ids == tuple(COCO_CLASSES)


def test_ninety_one_nameless_classes_are_cocos_by_category_id(save, micro_config):
    path, state = save(None, num_classes=91)
    model = build(micro_config, 2)
    data = ClassList(("zebra", "person"), (24, 1))
    assert load_weights(model, path, classes=data) == data
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]][[24, 1]])


def test_eighty_nameless_classes_of_something_else_stay_in_order(save, micro_config):
    path, state = save(None, num_classes=80)
    model = build(micro_config, 80)
    data = classes("person", *(f"thing {i}" for i in range(79)))
    assert load_weights(model, path, classes=data) == data
    assert torch.equal(model.state_dict()[ROWS[0]], state[ROWS[0]])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"class_names": ["a", "b"]}, r"has 2 class names \(a, b\) for 4 class rows"),
        ({"class_names": "abcd"}, "no list of texts"),
        ({"class_names": 4}, "no list of texts"),
        ({"class_names": list("abcd"), "category_ids": [1, 2]}, "4 class names and 2 different"),
        ({"class_names": list("abcd"), "category_ids": [1, 2, 3, 3]}, "and 3 different"),
        ({"class_names": list("abcd"), "category_ids": [1, 2, 3, None]}, "no list of whole numb"),
    ],
)
def test_entries_that_cannot_be_right_are_refused(save, micro_config, tmp_path, entries, message):
    _, state = save(ANIMALS)
    torch.save({"model": state, **entries}, tmp_path / "wrong.pth")
    for load in (load_weights, start_from):
        with pytest.raises(CheckpointError, match=message):
            load(build(micro_config, 4), tmp_path / "wrong.pth", classes=classes(*"abcd"))


def test_everything_else_must_match(save, micro_config):
    path, _ = save(ANIMALS)
    model = build(micro_config, 3, "model.num_queries=7")
    with pytest.raises(CheckpointError, match=r"of another shape: query_embedding"):
        start_from(model, path, classes=classes("cat", "dog", "cow"))


@pytest.mark.parametrize(
    ("name", "num_anchors"), [("neu_det_retinanet_r18", 9), ("neu_det_fcos_r18", 1)]
)
def test_rows_of_each_anchor_are_put_into_order(tmp_path, name, num_anchors):
    config = load_config(ROOT / "configs" / f"{name}.py")
    config.model.num_classes = 3
    source, target = (instantiate(config.model) for _ in range(2))
    bias = source.head.cls_score.bias
    torch.nn.init.uniform_(bias)
    save_weights(source.state_dict(), tmp_path / "a.pth", classes=classes("a", "b", "c"))

    load_weights(target, tmp_path / "a.pth", classes=classes("c", "a", "b"))
    expected = bias.view(num_anchors, 3)[:, [2, 0, 1]].flatten()
    assert torch.equal(target.head.cls_score.bias, expected)


def test_other_models_of_other_classes_are_refused_to_predict_with(tmp_path, caplog):
    model = torch.nn.Linear(2, 2)
    save_weights(model.state_dict(), tmp_path / "a.pth", classes=classes("a", "b"))
    load_weights(model, tmp_path / "a.pth", classes=classes("a", "b"))
    with pytest.raises(CheckpointError, match="unknown which of its rows belong to them"):
        load_weights(model, tmp_path / "a.pth", classes=classes("b", "a"))

    start_from(model, tmp_path / "a.pth", classes=classes("b", "a"))
    assert "taken as they are" in messages(caplog)[-1]
