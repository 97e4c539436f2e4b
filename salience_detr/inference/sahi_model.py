"""Model class of SAHI, for its sliced prediction (``--tile`` does the same without SAHI)."""

from __future__ import annotations

from typing import Any

import numpy as np

from salience_detr.inference.loading import load_detector

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
except ImportError:  # an optional package
    DetectionModel = object


class SahiDetectionModel(DetectionModel):
    """Detector as SAHI calls it; its arguments are those of SAHI's ``DetectionModel``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if DetectionModel is object:
            raise ImportError("this needs sahi: pip install 'salience_detr[sahi]'")
        super().__init__(*args, **options)

    def load_model(self) -> None:
        """Load the weights ``model_path`` with the config ``config_path``, or an exported model."""
        self.set_model(load_detector(self.config_path, self.model_path, device=str(self.device)))

    def set_model(self, model: Any, **options: Any) -> None:
        """Set a loaded detector, such as a :class:`salience_detr.Predictor`."""
        self.model = model
        self.category_mapping = {str(x["id"]): x["name"] for x in model.classes.categories}

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect on an (H, W, 3) uint8 RGB image."""
        self._original_predictions = self.model(image)

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        """Convert the detections, which are those on a slice of the full image."""
        shifts = fix_shift_amount_list(shift_amount_list or [0, 0])
        full_shapes = fix_full_shape_list(full_shape_list) or [None]

        detections = self._original_predictions
        predictions = []
        for found in detections[detections.scores >= self.confidence_threshold].to_coco():
            x, y, width, height = found["bbox"]
            predictions.append(
                ObjectPrediction(
                    bbox=[x, y, x + width, y + height],
                    category_id=found["category_id"],
                    category_name=self.category_mapping[str(found["category_id"])],
                    score=found["score"],
                    shift_amount=shifts[0],
                    full_shape=full_shapes[0],
                )
            )
        self._object_prediction_list_per_image = [predictions]
