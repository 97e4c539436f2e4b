"""Detection on tiles, and the merging of their detections."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from salience_detr import Predictor
from salience_detr.data.surface.dataset import render_sample
from salience_detr.inference import tiling
from salience_detr.inference.merging import Grid, drop_doubles, merge
from salience_detr.inference.tiling import (
    TiledDetector,
    paint_highest,
    tile_grid,
    tile_starts,
)
from salience_detr.layers.box_ops import box_iou
from tests.inference.fake_detector import RectangleDetector, boxes_of, paint

ROOT = Path(__file__).resolve().parents[2]
TILES = torch.tensor([(0, 0, 100, 100), (80, 0, 180, 100)], dtype=torch.float64)
GRID = Grid(TILES, height=100, width=180, margin=2)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (100, [0]),  # fits exactly
        (40, [0]),
        (101, [0, 1]),  # the second is shifted inside
        (180, [0, 80]),  # steps of 80
        (260, [0, 80, 160]),
        (261, [0, 80, 160, 161]),
    ],
)
def test_tiles_cover_a_side_and_end_with_it(length, expected):
    assert tile_starts(length, 100, 0.2) == expected


def test_tiles_are_squares_cut_to_the_image():
    assert tile_grid(50, 150, 100, 0.5) == [(0, 0, 100, 50), (50, 0, 150, 50)]
    assert tile_grid(1, 1, 100, 0.2) == [(0, 0, 1, 1)]


def test_tiles_are_not_copied():
    image = paint(60, 60)
    detector = RectangleDetector()
    stream = detector.stream
    tiles = []
    # Keeps the tiles that the detector is called with.
    detector.stream = lambda images: tiles.extend(images) or stream(images)
    TiledDetector(detector, tile=30, with_whole=False)(image)

    assert len(tiles) == 9 and all(np.shares_memory(tile, image) for tile in tiles)


def test_an_image_of_one_tile_is_detected_on_as_it_is():
    image = paint(90, 100, (10, 10, 30, 30, 0), (60, 50, 90, 80, 2))
    plain = RectangleDetector()
    tiled = TiledDetector(plain, tile=100)
    output = next(tiled.stream([image]))
    expected = next(plain.stream([image]))

    assert boxes_of(output.detections) == boxes_of(expected.detections)
    assert len(output.detections) == 2
    assert output.detections.labels == expected.detections.labels
    assert np.array_equal(output.salience, expected.salience)
    assert len(plain.batches) == 2  # one pass each


@pytest.mark.parametrize("with_whole", [True, False])
def test_objects_on_borders_and_corners_of_tiles_are_found_once(with_whole):
    objects = [
        (70, 20, 95, 40, 0),  # whole in the first tile, cut by the second
        (150, 75, 170, 105, 1),  # around a corner where four tiles meet
        (5, 95, 15, 99, 2),  # ends before a border
        (190, 190, 220, 220, 0),
        (0, 230, 30, 260, 1),  # at the border of the image
    ]
    tiled = TiledDetector(RectangleDetector(), tile=100, overlap=0.3, with_whole=with_whole)
    detections = tiled(paint(260, 240, *objects))
    assert boxes_of(detections) == sorted(objects)


def test_an_object_larger_than_a_tile_is_detected_on_the_whole_image():
    large = (20, 30, 230, 210, 0)
    small = (240, 5, 250, 15, 0)
    tiled = TiledDetector(RectangleDetector(), tile=100)
    assert boxes_of(tiled(paint(240, 260, large, small))) == [large, small]


def test_parts_that_no_view_has_whole_are_joined():
    scratch = (20, 45, 240, 55, 0)  # over three tiles
    other = (60, 70, 64, 74, 0)
    tiled = TiledDetector(RectangleDetector(), tile=100, with_whole=False)

    assert boxes_of(tiled(paint(100, 260, scratch, other))) == sorted([scratch, other])

    # Without an overlap, parts touch at the border of their tiles.
    tiled = TiledDetector(RectangleDetector(), tile=100, overlap=0, with_whole=False)
    assert boxes_of(tiled(paint(100, 300, scratch, other))) == sorted([scratch, other])


def test_an_object_around_a_corner_is_joined_from_four_tiles():
    square = (40, 30, 170, 160, 1)
    tiled = TiledDetector(RectangleDetector(), tile=100, with_whole=False)
    assert boxes_of(tiled(paint(180, 180, square))) == [square]


def test_neighbors_are_not_joined():
    # Both end near the overlap of the tiles, which is 80 to 100, and neither fills it.
    apart = [(20, 40, 88, 60, 0), (92, 40, 160, 60, 0)]
    tiled = TiledDetector(RectangleDetector(), tile=100, with_whole=False)
    assert boxes_of(tiled(paint(100, 180, *apart))) == apart

    # These two would be parts of one object, but are of different classes.
    parts = detections_on_tiles([(20, 40, 100, 60), (80, 40, 160, 60)], classes=[0, 1])
    assert len(merge(parts, GRID)) == 2


def detections_on_tiles(boxes, *, classes=(0, 0), scores=(0.9, 0.8)):
    """Return a box from each of the tiles 0 to 100 and 80 to 180 of an image of 100 x 180."""
    boxes = torch.tensor(boxes, dtype=torch.float64)
    cut = [GRID.cut_sides(boxes[[i]], TILES[i]) for i in range(2)]
    return Instances(
        (0, 0),
        boxes=boxes,
        scores=torch.tensor(scores, dtype=torch.float64),
        classes=torch.tensor(classes),
        views=torch.arange(2),
        tiles=TILES,
        cut=torch.cat(cut),
    )


def test_sides_are_cut_where_the_image_goes_on():
    # The tile touches the upper and lower side of the image only.
    boxes = torch.tensor([[80.0, 0, 99, 100], [81, 5, 180, 60], [90, 5, 95, 60]])
    grid = Grid(torch.tensor([[80, 0, 180, 100]]), height=100, width=300, margin=2)
    assert grid.cut_sides(boxes, grid.tiles[0]).tolist() == [
        [True, False, False, False],
        [True, False, True, False],
        [False, False, False, False],
    ]


def test_a_part_is_dropped_for_a_larger_part_of_at_least_half_its_score():
    # Both are cut. The second one is smaller and lies in the first; their IoU is 152 / 780.
    boxes = [(60, 10, 99, 30), (80, 10, 99, 18)]
    assert merge(detections_on_tiles(boxes), GRID).boxes.tolist() == [list(boxes[0])]
    assert len(merge(detections_on_tiles(boxes, scores=(0.46, 0.9)), GRID)) == 1
    assert len(merge(detections_on_tiles(boxes, scores=(0.44, 0.9)), GRID)) == 2


def test_a_part_is_dropped_if_another_tile_shows_its_place_whole_and_nothing_there():
    # The second tile begins at 80, the first one ends at 100.
    far = (150, 50, 170, 70)
    assert len(merge(detections_on_tiles([(85, 10, 99, 30), far]), GRID)) == 1
    # Cut by the second tile, too.
    assert len(merge(detections_on_tiles([(81, 10, 99, 30), far]), GRID)) == 2
    assert len(merge(detections_on_tiles([(85, 10, 97, 30), far]), GRID)) == 2  # not cut


def test_of_doubles_from_two_views_the_surer_stays_and_a_cut_one_counts_half():
    whole = [(84, 10, 97, 30), (84, 10, 96, 30)]
    assert merge(detections_on_tiles(whole, scores=(0.5, 0.6)), GRID).scores.tolist() == [0.6]
    cut = [(84, 10, 96, 30), (81, 10, 96, 30)]  # IoU 12 / 15, the second is cut on the left
    assert drop_doubles(detections_on_tiles(cut, scores=(0.5, 0.9))).scores.tolist() == [0.5]
    assert drop_doubles(detections_on_tiles(cut, scores=(0.4, 0.9))).scores.tolist() == [0.9]


def test_overlapping_detections_of_one_view_are_kept():
    detections = detections_on_tiles([(20, 10, 60, 30), (20, 10, 60, 31)])
    # Both are moved to the first tile.
    detections.views = torch.tensor([0, 0])
    detections.tiles = TILES[[0, 0]]
    detections.cut = detections.cut[[0, 0]]
    assert len(merge(detections, GRID)) == 2


def test_detections_come_by_falling_score():
    boxes = [(10, 10, 30, 30), (120, 10, 150, 30)]
    detections = merge(detections_on_tiles(boxes, scores=(0.3, 0.7)), GRID)
    assert detections.scores.tolist() == [0.7, 0.3]


def test_small_objects_of_the_whole_image_do_not_count():
    class SeesGhosts(RectangleDetector):
        """Detector of three objects in images that are larger than a tile."""

        def find(self, image):
            if image.shape[1] > 100:
                image = paint(
                    *image.shape[:2], (10, 10, 40, 40, 2), (10, 60, 70, 90, 2), (70, 10, 110, 30, 0)
                )
            return super().find(image)

    detections = TiledDetector(SeesGhosts(), tile=100, overlap=0.2)(paint(100, 180))
    # The first object is whole on the first tile, which shows it larger: it does not count.
    # The second one is longer than half a tile, and the last one is cut by both tiles.
    assert boxes_of(detections) == [(10, 60, 70, 90, 2), (70, 10, 110, 30, 0)]


def test_boxes_that_reach_out_of_a_tile_or_the_image_are_clipped():
    class Overshooting(RectangleDetector):
        def find(self, image):
            instances, salience = super().find(image)
            instances.pred_boxes.tensor += torch.tensor([-30.0, -30.0, 30.0, 30.0])
            return instances, salience

    image = paint(150, 250, (0, 0, 20, 20, 0), (230, 130, 250, 150, 1), (120, 60, 130, 70, 2))
    found = TiledDetector(Overshooting(), tile=100)(image)

    boxes = found.pred_boxes.tensor
    assert {0, 1, 2} == set(found.pred_classes.tolist())
    assert boxes.min() == 0 and (boxes <= torch.tensor([250.0, 150, 250, 150])).all()
    assert found.pred_boxes.nonempty().all()


def test_tiles_are_computed_in_batches():
    detector = RectangleDetector(batch_size=4)
    TiledDetector(detector, tile=100, overlap=0, with_whole=False).batch([paint(200, 300)])
    assert [len(batch) for batch in detector.batches] == [4, 2]


def test_salience_is_the_highest_of_the_tiles():
    objects = [(70, 20, 95, 40, 0), (150, 75, 170, 105, 1)]
    image = paint(130, 240, *objects)
    for with_whole in (True, False):
        tiled = TiledDetector(RectangleDetector(), tile=100, with_whole=with_whole)
        output = next(tiled.stream([image]))
        assert np.array_equal(output.salience, image.max(axis=2) / 255)

    # The tile covers two of the three pixels; the higher value stays.
    canvas = np.array([[0.5, 0.1, 0.0]], np.float32)
    paint_highest(canvas, np.array([[0.2, 0.3]], np.float32), (0, 0, 2, 1), (1, 3))
    assert canvas.tolist() == [[0.5, pytest.approx(0.3), 0.0]]


def test_of_a_very_large_image_the_whole_and_the_salience_are_smaller(monkeypatch):
    monkeypatch.setattr(tiling, "MAX_WHOLE_PIXELS", 10_000)
    detector = RectangleDetector()
    image = paint(400, 400, (40, 80, 320, 320, 2), (350, 10, 370, 30, 1))
    output = next(TiledDetector(detector, tile=200).stream([image]))

    assert detector.batches[0] == [(100, 100)] and output.salience.shape == (100, 100)
    assert boxes_of(output.detections) == [(40, 80, 320, 320, 2), (350, 10, 370, 30, 1)]
    assert output.salience[50, 50] == 1 and output.salience[1, 50] == 0


def test_a_line_of_one_pixel_is_tiled_too():
    tiled = TiledDetector(RectangleDetector(), tile=100)
    output = next(tiled.stream([paint(1, 2000, (300, 0, 340, 1, 0))]))
    assert boxes_of(output.detections) == [(300, 0, 340, 1, 0)]
    assert output.salience.shape == (1, 2000)


def test_images_without_objects_have_no_detections():
    detections = TiledDetector(RectangleDetector(), tile=100)(paint(300, 300))
    assert len(detections) == 0 and detections.image_size == (300, 300)


def test_it_has_the_interface_of_a_detector(tmp_path):
    image = paint(150, 150, (20, 20, 120, 40, 0))
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    tiled = TiledDetector(RectangleDetector(), tile=100)

    assert tiled.class_names == ["red", "green", "blue"]

    for detections in (
        tiled(tmp_path / "a.png"),
        tiled(image[..., ::-1], channel_order="BGR"),
        *tiled.batch([image]),
    ):
        assert boxes_of(detections) == [(20, 20, 120, 40, 0)] and detections.labels == ["red"]
        assert detections.draw().shape == (150, 150, 3)


@pytest.mark.parametrize(
    "options", [{"tile": 1}, {"tile": 100, "overlap": 1.0}, {"tile": 100, "overlap": -0.1}]
)
def test_tiles_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"is \S+; (the side of a tile|tiles overlap)"):
        TiledDetector(RectangleDetector(), **options)


def test_small_defects_of_a_large_surface_are_found_on_tiles():
    samples = [render_sample(i, split="val", seed=0, image_size=(320, 320)) for i in range(9)]
    # Nine images of 320 x 320 pixels side by side are a surface of 960 x 960.
    rows = [
        np.concatenate([sample.image for sample in samples[i : i + 3]], axis=1) for i in (0, 3, 6)
    ]
    truth = np.concatenate(
        [x.boxes + [320 * (i % 3), 320 * (i // 3)] * 2 for i, x in enumerate(samples)]
    )
    classes = np.concatenate([sample.classes for sample in samples])
    predictor = Predictor(
        ROOT / "configs/surface_defects_tiny.py",
        ROOT / "demo/surface_defects_tiny.safetensors",
        device="cpu",
        score_threshold=0.3,
    )

    # Part of the true boxes that a detection of the same class covers with an IoU of 0.5.
    def recall(detector):
        detections = detector(np.concatenate(rows))
        overlaps, _ = box_iou(torch.from_numpy(truth)[:, None], detections.pred_boxes.tensor)
        is_same_class = torch.from_numpy(classes)[:, None] == detections.pred_classes
        is_matched = (overlaps >= 0.5) & is_same_class
        return is_matched.any(dim=1).float().mean().item()

    assert recall(predictor) < 0.4  # shrunk to a third
    assert recall(TiledDetector(predictor, tile=320)) > 0.9
