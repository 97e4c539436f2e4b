"""The fast evaluation has the numbers of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.evaluation import coco_evaluation
from pycocotools.cocoeval import COCOeval

from salience_detr.evaluation.fast_coco import use_fast_evaluation
from salience_detr.evaluation.results import make_coco


def test_the_fast_evaluation_has_the_numbers_of_pycocotools(monkeypatch):
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval_opt)
    use_fast_evaluation()
    fast = coco_evaluation.COCOeval_opt
    if fast is COCOeval:
        pytest.skip("neither detectron2._C nor the package faster-coco-eval is there")

    generator = np.random.default_rng(0)
    annotations = []
    detections = []
    for i in range(60):
        box = [*generator.uniform(0, 300, 2), *generator.uniform(5, 200, 2)]
        entry = {"id": i + 1, "image_id": i % 9, "category_id": i % 3 + 4, "bbox": box}
        crowd = int(i % 11 == 0)
        annotations.append({**entry, "area": box[2] * box[3], "iscrowd": crowd, "ignore": crowd})

        moved = list(np.array(box) + generator.normal(0, 4, 4))
        detections.append({**entry, "bbox": moved, "score": float(generator.uniform())})

    images = [{"id": i, "width": 500, "height": 500} for i in range(9)]
    categories = [{"id": i, "name": str(i)} for i in (4, 5, 6)]
    truth = make_coco({"images": images, "categories": categories, "annotations": annotations})
    found = truth.loadRes(detections)

    precisions = []
    for kind in (COCOeval, fast):
        evaluation = kind(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        precisions.append(evaluation.eval["precision"])
    assert np.allclose(*precisions, rtol=0, atol=1e-12) and precisions[0].max() > 0.1
