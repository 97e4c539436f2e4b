"""Detections that know their classes and their image."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from salience_detr.data.classes import ClassList
from salience_detr.data.images import to_rgb
from salience_detr.detections import ClassTable, Detections

CLASSES = ClassTable(("nick", "burr"), (3, 7))
IMAGE = np.zeros((40, 60, 3), np.uint8)


@pytest.fixture
def found():
    instances = Instances(
        (40, 60), scores=torch.tensor([0.75, 0.5, 0.25]), pred_classes=torch.tensor([1, 0, 1])
    )
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 11, 32], [5, 5, 20, 20], [0, 0, 4, 4]]))
    return Detections(instances, CLASSES, partial(to_rgb, IMAGE))


def test_labels_are_the_names_of_the_classes(found):
    assert found.labels == ["burr", "nick", "burr"] and found.class_names == ["nick", "burr"]


def test_coco_has_the_ids_of_the_data_set_and_width_and_height(found):
    assert found.to_coco("a7")[0] == {
        "image_id": "a7",
        "category_id": 7,
        "bbox": [1, 2, 10, 30],
        "score": 0.75,
    }
    assert [x["category_id"] for x in found.to_coco()] == [7, 3, 7]


def test_a_part_of_them_still_knows_names_and_image(found):
    part = found[found.scores > 0.6]
    assert part.labels == ["burr"] and len(part.to("cpu").to_coco()) == 1
    assert part.draw().any() and not found[found.scores > 1].draw().any()


def test_they_are_drawn_on_their_image_or_on_another_of_its_size(found):
    assert found.draw().shape == (40, 60, 3) and not IMAGE.any()
    white = np.full((40, 60, 3), 255, np.uint8)
    assert (found.draw(white)[39] == 255).all()
    with pytest.raises(ValueError, match=r"40x60 .* this one has 20x60"):
        found.draw(white[:20])


def test_they_can_be_sent_to_another_process(found):
    copied = pickle.loads(pickle.dumps(found))
    assert copied.labels == found.labels and np.array_equal(copied.draw(), found.draw())


def test_classes_without_names_are_called_by_their_number():
    assert ClassTable.build(None, 3).names == ("0", "1", "2")
    assert ClassTable.build(ClassList(("a", "b"), (7, 3)), 2).categories == [
        {"id": 7, "name": "a"}, {"id": 3, "name": "b"},
    ]  # fmt: skip


def test_classes_without_category_ids_have_their_number_and_a_line_says_so(caplog):
    assert ClassTable.build(ClassList(("a", "b")), 2).category_ids == (0, 1)
    assert "do not hold the category ids of their classes" in caplog.text


def test_supervision_gets_boxes_scores_names_and_tracks(found):
    pytest.importorskip("supervision")
    converted = found.to_supervision()
    assert converted.xyxy.tolist() == found.pred_boxes.tensor.tolist()
    assert converted.confidence.tolist() == [0.75, 0.5, 0.25]
    assert converted.class_id.tolist() == [1, 0, 1] and converted.tracker_id is None
    assert converted["class_name"].tolist() == ["burr", "nick", "burr"]

    found.track_ids = torch.tensor([4, -1, 2])
    assert found.to_supervision().tracker_id.tolist() == [4, -1, 2]
    assert len(found[:0].to_supervision()) == 0


def test_fiftyone_gets_boxes_in_parts_of_the_image(found, monkeypatch):
    # Its own packages bring a data base; a stand-in notes what it would get.
    stub = SimpleNamespace(Detection=dict, Detections=dict)
    monkeypatch.setitem(sys.modules, "fiftyone", stub)
    found.track_ids = torch.tensor([4, -1, 2])
    first, second, _ = found.to_fiftyone()["detections"]

    # x 1 to 11 of 60 pixels, y 2 to 32 of 40.
    box = pytest.approx([1 / 60, 2 / 40, 10 / 60, 30 / 40])
    assert first == {"label": "burr", "bounding_box": box, "confidence": 0.75, "index": 4}
    assert second["label"] == "nick" and "index" not in second


@pytest.mark.parametrize("name", ["supervision", "fiftyone"])
def test_an_adapter_without_its_package_names_the_extra(found, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}: .*'salience_detr\[adapters\]'"):
        getattr(found, f"to_{name}")()
