"""AP of a detector on a config's test set."""

from __future__ import annotations

import pytest

from salience_detr import Predictor
from salience_detr.data import DatasetError
from salience_detr.evaluation.coco_evaluation import evaluate
from salience_detr.evaluation.detector_evaluation import evaluate_detector


def test_a_predictor_has_the_ap_of_its_model(surface_data):
    predictor = Predictor.from_pretrained("surface_defects_tiny", device="cpu", optimize="none")
    config = predictor.config
    config.dataloader.evaluator.output_dir = None
    config.dataloader.test.num_workers = 0

    expected = evaluate(config, predictor.model)["bbox"]
    found = evaluate_detector(config, predictor)
    assert found["AP"] > 1
    assert (found["AP"], found["AP50"]) == (expected["AP"], expected["AP50"])


def test_other_classes_are_one_line(surface_data, micro_config):
    predictor = Predictor(micro_config, None, device="cpu")
    few = Predictor(micro_config, None, device="cpu", overrides=["model.num_classes=2"])
    with pytest.raises(DatasetError, match="has 6 classes, but the model has 2"):
        evaluate_detector(predictor.config, few)
