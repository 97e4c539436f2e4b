"""Evaluation on a data set that has only some of the model's classes, or another order of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances


class ClassMappingEvaluator(DatasetEvaluator):
    """Evaluator of detections whose classes become those of the data set.

    Detections of classes that the data set lacks are left out.

    Args:
        evaluator: gets the detections.
        class_map: class in the data set of each class of the model, -1 for none.
    """

    def __init__(self, evaluator: DatasetEvaluator, class_map: Sequence[int]) -> None:
        self.evaluator = evaluator
        self.class_map = torch.tensor(class_map)

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, object]], outputs: list[dict[str, Instances]]) -> None:
        """Hand on the outputs of a batch."""
        translated = []
        for output in outputs:
            instances = output["instances"].to("cpu")
            classes = self.class_map[instances.pred_classes]
            is_known = classes >= 0

            known = instances[is_known]
            known.pred_classes = classes[is_known]
            translated.append({**output, "instances": known})
        self.evaluator.process(inputs, translated)

    def evaluate(self) -> object:
        return self.evaluator.evaluate()
