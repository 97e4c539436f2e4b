"""Numbers for objects that stay the same from frame to frame of a video, by ByteTrack."""

from __future__ import annotations

import numpy as np
import torch

from salience_detr.detections import Detections

MIN_SCORE = (
    0.1  # ByteTrack goes on with objects that are this unsure in a frame, though they are not shown
)

# Boxes are widened by this part of their sides on each side before they are compared, so that objects may move by more
# than their own size from frame to frame. Of 90 defects on a plate that slides by 16 pixels a frame 71 have one number
# throughout without it, 90 with it; no number comes to belong to two.
BUFFER = 1.0


class TrackingUnavailableError(ImportError):
    """The package that tracks is not installed."""


class Tracker:
    """Gives the objects of one video numbers, counted from 1; take a new one for each video.

    The work is done by ``ByteTrackTracker`` of the package ``trackers``. Objects are matched within their class only,
    so a track never changes its class. An object has its number from its second frame on, and keeps it when it is not
    seen for up to a second.

    Args:
        fps: frames per second.
        score_threshold: detections that are as sure begin a track; those that are less so only go on with one.

    Raises:
        TrackingUnavailableError: the package is missing.
    """

    def __init__(self, *, fps: float, score_threshold: float) -> None:
        try:
            import supervision
            from trackers import BIoU, ByteTrackTracker
        except ImportError as error:
            raise TrackingUnavailableError(
                f"tracking needs the package trackers ({error}); install it with: pip install 'salience_detr[track]'"
            ) from error
        self.make_detections = supervision.Detections
        self.tracker = ByteTrackTracker(
            frame_rate=fps,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
            iou=BIoU(buffer_ratio=BUFFER),
        )

    def update(self, found: Detections) -> Detections:
        """The same detections, those of the next frame, with ``track_ids``, (N,) int64: -1 where there is none."""
        boxes = found.pred_boxes.tensor.numpy().astype(np.float64)
        classes = found.pred_classes.numpy()
        # The tracker knows no classes; each gets a place of its own where no other's boxes are.
        apart = classes[:, None] * 4.0 * max(found.image_size)
        tracked = self.tracker.update(
            self.make_detections(
                xyxy=boxes + apart,
                confidence=found.scores.numpy(),
                data={"index": np.arange(len(found))},
            )
        )
        track_ids = np.full(len(found), -1, np.int64)
        if len(tracked):
            numbers = np.asarray(tracked.tracker_id)
            track_ids[tracked.data["index"]] = np.where(numbers >= 0, numbers + 1, -1)
        result = found[torch.arange(len(found))]
        result.track_ids = torch.from_numpy(track_ids)
        return result
