"""Detection of some classes only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from salience_detr import Predictor
from salience_detr.detections import ClassTable
from salience_detr.inference.class_filter import find_classes, only_classes
from salience_detr.inference.tiling import TiledDetector
from tests.inference.fake_detector import CLASSES, RectangleDetector, boxes_of, paint

OBJECTS = [(10, 10, 30, 30, 0), (50, 10, 80, 30, 1), (20, 60, 40, 80, 2)]


def test_classes_are_selected_by_name_or_category_id():
    assert find_classes(["blue", "GREEN", "11"], CLASSES) == [0, 1, 2]
    assert find_classes(["12", "green"], CLASSES) == [1]
    numbered = ClassTable(("0", "1", "2"), (5, 0, 1))
    assert find_classes(["1"], numbered) == [1]  # the name, not the id


def test_a_name_that_several_classes_have_selects_all_of_them():
    table = ClassTable(("pit", "Pit", "dent", "dent"), (3, 7, 90, 4))
    assert find_classes(["dent"], table) == [2, 3]
    assert find_classes([" DENT "], table) == [2, 3]
    assert find_classes(["pit"], table) == [0]  # as it is written
    assert find_classes(["PIT"], table) == [0, 1]
    assert find_classes(["90"], table) == [2]


def test_an_unknown_class_is_an_error_with_the_likely_and_all_known_ones():
    message = (
        r"'gren' is unknown; did you mean green\? "
        r"The classes are red \(11\), green \(12\), blue \(13\)"
    )
    with pytest.raises(ValueError, match=message):
        find_classes(["red", "gren"], CLASSES)
    with pytest.raises(ValueError, match=r"'7' is unknown; the classes are red"):
        find_classes(["7"], CLASSES)


def test_other_classes_are_left_out_on_tiles_too():
    image = paint(100, 150, *OBJECTS)
    detector = only_classes(RectangleDetector(), ["red", "blue"])
    assert boxes_of(detector(image)) == [OBJECTS[0], OBJECTS[2]]
    assert next(detector.stream([image])).salience.shape == (100, 150)
    assert boxes_of(TiledDetector(detector, tile=100)(image)) == [OBJECTS[0], OBJECTS[2]]

    # The filter works around the tiled detector, too.
    tiled = TiledDetector(RectangleDetector(), tile=100)
    assert boxes_of(only_classes(tiled, ["13"])(image)) == [OBJECTS[2]]


def test_a_predictor_does_not_lose_them_to_other_classes(micro_config, surface_data):
    predictor = Predictor(micro_config, None, device="cpu")
    image = surface_data / "val" / "000001.jpg"
    everything = predictor(image)  # 20 queries x 6 classes

    assert len(everything) == 120

    # Under this limit, all detections would be of other classes.
    predictor.model.max_detections = 10
    label = everything.labels[-1]  # the least likely
    detections = only_classes(predictor, [label])(image)

    assert len(detections) == 10 and set(detections.labels) == {label}

    expected = everything.scores[everything.pred_classes == everything.pred_classes[-1]][:10]
    assert torch.equal(detections.scores, expected)


def test_the_predictor_of_the_caller_keeps_its_limit(micro_config, surface_data):
    predictor = Predictor(micro_config, None, device="cpu", overrides=["model.max_detections=5"])
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(only_classes(predictor, ["pit"])(image)) == 5
    assert len(predictor(image)) == 5
