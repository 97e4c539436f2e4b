"""Objects of a video keep their numbers."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from detectron2.structures import Boxes, Instances

from salience_detr.detections import ClassTable, Detections
from salience_detr.inference.tracking import Tracker, TrackingUnavailableError

pytest.importorskip("trackers")


def frame(*objects):
    """Return detections of objects given by x0, y0, side, class, score."""
    rows = torch.tensor([[x, y, x + side, y + side] for x, y, side, _, _ in objects]).reshape(-1, 4)
    instances = Instances(
        (100, 400),
        pred_boxes=Boxes(rows.float()),
        pred_classes=torch.tensor([x[3] for x in objects], dtype=torch.int64),
        scores=torch.tensor([x[4] for x in objects]),
    )
    return Detections(instances, ClassTable(("a", "b"), (1, 2)), lambda: None)


def moving(num_frames, *, step, side=30, score=0.9):
    """Return frames of one object that moves to the right by ``step`` pixels a frame."""
    frames = []
    for i in range(num_frames):
        frames.append(frame((10 + step * i, 20, side, 0, score)))
    return frames


def numbers(frames, **options):
    tracker = Tracker(**{"fps": 25, "score_threshold": 0.5} | options)
    return [tracker.update(detections).track_ids.tolist() for detections in frames]


def test_an_object_keeps_its_number_from_its_second_frame_on():
    assert numbers(moving(5, step=5)) == [[-1], *[[1]] * 4]


def test_a_small_object_may_move_by_more_than_its_size():
    assert numbers(moving(5, step=16, side=12)) == [[-1], *[[1]] * 4]


def test_objects_that_cross_keep_their_numbers():
    track_ids = numbers(
        frame((10 + 10 * i, 20, 20, 0, 0.9), (200 - 10 * i, 30, 20, 0, 0.9)) for i in range(20)
    )
    assert track_ids[1:] == [[1, 2]] * 19


def test_classes_are_tracked_apart():
    # Objects of two classes at one place, which change their order in the third frame.
    first = frame((10, 20, 30, 0, 0.9), (10, 20, 30, 1, 0.8))
    last = frame((10, 20, 30, 1, 0.9), (10, 20, 30, 0, 0.8))
    assert numbers([first, first, last]) == [[-1, -1], [1, 2], [2, 1]]


def test_a_number_outlives_frames_without_the_object():
    at = moving(8, step=5)
    assert numbers([at[0], at[1], frame(), frame(), at[4]]) == [[-1], [1], [], [], [1]]


def test_detections_of_low_scores_continue_tracks_and_begin_none():
    sure = moving(4, step=5)
    unsure = moving(4, step=5, score=0.2)

    assert numbers([sure[0], sure[1], unsure[2], sure[3]]) == [[-1], [1], [1], [1]]
    assert numbers(unsure) == [[-1]] * 4
    assert numbers(unsure[:3], score_threshold=0.1) == [[-1], [1], [1]]


def test_every_video_counts_from_one():
    for _ in range(2):
        assert numbers([frame((10, 20, 30, 0, 0.9))] * 2) == [[-1], [1]]


def test_the_detections_stay_as_they_are():
    detections = frame((10, 20, 30, 0, 0.9), (200, 20, 30, 1, 0.7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracked = Tracker(fps=25, score_threshold=0.5).update(detections)

    assert torch.equal(tracked.pred_boxes.tensor, detections.pred_boxes.tensor)
    assert tracked.labels == ["a", "b"]
    assert not detections.has("track_ids")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(TrackingUnavailableError, match=r"pip install 'salience_detr\[track\]'"):
        Tracker(fps=25, score_threshold=0.5)
