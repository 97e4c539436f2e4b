"""Sliced prediction of SAHI with our detectors."""

from __future__ import annotations

import pytest

from salience_detr.inference import sahi_model
from salience_detr.inference.sahi_model import SahiDetectionModel
from tests.inference.fake_detector import RectangleDetector, paint


def test_objects_of_slices_are_where_they_are_on_the_image():
    predict = pytest.importorskip("sahi.predict", reason="needs sahi: pip install sahi")
    image = paint(100, 200, (10, 10, 30, 20, 0), (150, 60, 180, 90, 2))
    model = SahiDetectionModel(model=RectangleDetector(score=0.9), confidence_threshold=0.5)
    result = predict.get_sliced_prediction(
        image, model, slice_height=100, slice_width=100, overlap_height_ratio=0, verbose=0
    )

    seen = {x.category.name: x.bbox.to_xyxy() for x in result.object_prediction_list}
    assert seen == {"red": [10, 10, 30, 20], "blue": [150, 60, 180, 90]}

    model.confidence_threshold = 0.95
    assert not predict.get_prediction(image, model).object_prediction_list


def test_without_sahi_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(sahi_model, "DetectionModel", object)
    with pytest.raises(ImportError, match=r"'salience_detr\[sahi\]'"):
        SahiDetectionModel()
