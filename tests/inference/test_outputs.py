"""Drawings of a run: their names, crops, videos and salience maps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from salience_detr.detections import Detections
from salience_detr.inference.outputs import (
    AnnotatedVideo,
    OutputFolder,
    OutputPaths,
    crop_box,
    draw_salience_map,
    safe_names,
)
from salience_detr.inference.video import VideoReader
from tests.inference.fake_detector import CLASSES, paint


def detections(*rows, track_ids=None):
    """Return detections of x0, y0, x1, y1, class, score on an image of 60 x 80."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    instances = Instances(
        (60, 80),
        pred_boxes=Boxes(table[:, :4]),
        pred_classes=table[:, 4].long(),
        scores=table[:, 5],
    )
    if track_ids is not None:
        instances.track_ids = torch.tensor(track_ids, dtype=torch.int64)

    return Detections(instances, CLASSES, lambda: None)


def planned(root, *sources, salience=False, crops=False):
    folder = OutputFolder(root, CLASSES, salience=salience, crops=crops)
    outputs = folder.plan([Path(source) for source in sources])
    return [paths.drawing.name for paths in outputs.values()]


def test_outputs_are_named_like_their_inputs(tmp_path):
    images = planned(tmp_path, "in/a.jpg", "in/b.webp", "in/c.tar.PNG")
    assert images == ["a.jpg", "b.png", "c.tar.PNG"]

    videos = planned(tmp_path, "in/f.mp4", "in/g.mov", "in/ü.avi")
    assert videos == ["f.mp4", "g.mp4", "ü.avi"]


def test_no_output_has_the_name_of_another_or_of_an_input(tmp_path):
    names = planned(tmp_path, "x/a.jpg", "y/a.jpg", "z/a.png", "y/a_2.jpg")
    assert names == ["a.jpg", "a_2.jpg", "a.png", "a_2_2.jpg"]
    assert planned(tmp_path, tmp_path / "a.jpg", "y/a.jpg") == ["a_2.jpg", "a_3.jpg"]
    # The salience map of a.jpg would have the name of the other drawing.
    names = planned(tmp_path, "x/a_salience.jpg", "x/a.jpg", salience=True)
    assert names == ["a_salience.jpg", "a_2.jpg"]
    # A video of odd size becomes an .avi.
    assert planned(tmp_path, "x/f.mp4", "x/f.avi") == ["f.mp4", "f_2.avi"]


def test_outputs_keep_the_subfolders_of_their_inputs(tmp_path):
    names = {Path(f"in/{x}/x.jpg"): Path(x, "x.jpg") for x in ("a", "b", "crops/red")}
    folder = OutputFolder(tmp_path, CLASSES, salience=True, crops=True)
    outputs = folder.plan(list(names), names).values()
    drawings = [x.drawing.relative_to(tmp_path).as_posix() for x in outputs]

    # Crops of other inputs lie in the folder crops.
    assert drawings == ["a/x.jpg", "b/x.jpg", "crops_of_input/red/x.jpg"]
    first = next(iter(outputs))
    assert first.salience == tmp_path / "a" / "x_salience.jpg"

    image = paint(60, 80, (10, 10, 30, 20, 0))
    folder.write_crops(image, detections((10, 10, 30, 20, 0, 0.9)), first)
    assert [x.relative_to(tmp_path).as_posix() for x in tmp_path.rglob("*.jpg")] == [
        "crops/red/a/x_1.jpg"
    ]


def test_with_crops_names_differ_without_their_endings_and_from_earlier_crops(tmp_path):
    # Crops are .jpg files, whatever the endings of their inputs.
    names = planned(tmp_path, "x/a.jpg", "x/a.png", "x/a.mp4", crops=True)
    assert names == ["a.jpg", "a_2.png", "a_3.mp4"]

    earlier = tmp_path / "crops" / "red" / "a_1.jpg"
    assert planned(tmp_path, earlier, "x/a.jpg", crops=True) == ["a_1_2.jpg", "a_2.jpg"]


def test_many_inputs_of_one_name_are_planned_quickly(tmp_path):
    names = planned(tmp_path, *(f"{i}/image.jpg" for i in range(3000)))
    assert names[0] == "image.jpg" and names[-1] == "image_3000.jpg"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a/b", "a\\b", "a:b"), ["a_b", "a_b_1", "a_b_2"]),
        (("..", "", " . "), ["class_0", "class_1", "class_2"]),
        (("Pit", "pit", "Grübchen"), ["Pit", "pit_1", "Grübchen"]),
        (("ä" * 200,), ["ä" * 50]),
    ],
)
def test_names_of_classes_become_folders(names, expected):
    assert safe_names(names) == expected


def test_a_crop_has_the_pixels_that_a_box_touches_within_the_image():
    image = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)
    assert np.array_equal(crop_box(image, np.array([10.2, 20.0, 12.1, 22.0])), image[20:22, 10:13])
    assert np.array_equal(crop_box(image, np.array([-5.0, 50.0, 10.0, 90.0])), image[50:, :10])
    assert crop_box(image, np.array([90.0, 10.0, 99.0, 20.0])).size == 0
    assert crop_box(image, np.array([10.0, 10.0, 10.0, 20.0])).size == 0


def test_crops_are_filed_by_class_and_numbered_by_image(tmp_path):
    folder = OutputFolder(tmp_path, CLASSES, salience=False, crops=True)
    image = paint(60, 80, (10, 10, 30, 20, 0), (40, 10, 60, 50, 2))
    objects = detections(
        (10, 10, 30, 20, 0, 0.9),
        (40, 10, 60, 50, 2, 0.8),
        (90, 0, 99, 9, 0, 0.7),
        (0, 0, 80, 60, 0, 0.6),
    )

    folder.write_crops(image, objects, folder.plan([Path("in/a.png")])[Path("in/a.png")])
    folder.write_crops(image, objects[:1], OutputPaths(tmp_path / "f.mp4", tmp_path / "s.mp4"), 17)

    crops = tmp_path / "crops"
    sizes = {}
    for path in tmp_path.rglob("*.jpg"):
        sizes[path.relative_to(crops).as_posix()] = Image.open(path).size
    assert sizes == {
        "red/a_1.jpg": (20, 10),
        "blue/a_2.jpg": (20, 40),
        "red/a_4.jpg": (80, 60),
        "red/f_000017-1.jpg": (20, 10),
    }

    # JPEG changes the red a little.
    center = np.asarray(Image.open(crops / "red" / "a_1.jpg"))[5, 10]
    assert center.tolist() == pytest.approx([254, 0, 0], abs=3)
    assert image[15, 15].tolist() == [255, 0, 0]  # writing did not change the image


def test_tracked_objects_are_drawn_with_their_numbers():
    image = np.zeros((60, 80, 3), np.uint8)
    row = (10, 30, 60, 50, 0, 0.9)
    plain = detections(row).draw(image)
    assert np.array_equal(plain, detections(row, track_ids=[-1]).draw(image))
    assert not np.array_equal(plain, detections(row, track_ids=[3]).draw(image))


def test_a_drawing_stands_still_where_frames_are_missing(tmp_path):
    targets = OutputPaths(tmp_path / "a.avi", tmp_path / "b.avi")
    with AnnotatedVideo(targets, fps=10) as video:
        for place, value in ((0, 0), (3, 120), (4, 240)):
            video.add(place, [np.full((48, 64, 3), value, np.uint8)])

    values = [int(frame.mean()) for frame in VideoReader(targets.drawing)]
    assert values == pytest.approx([0, 0, 0, 120, 240], abs=4) and not targets.salience.exists()


def test_a_salience_map_that_is_smaller_than_the_image_is_enlarged():
    small = np.array([[0, 1], [0, 1]], np.float32)
    image = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_salience_map(image, small)
    assert np.array_equal(drawn, draw_salience_map(image, cv2.resize(small, (60, 40))))
    assert drawn.shape == image.shape and (drawn[:, 50] != drawn[:, 10]).any()
