"""Boxes stay on what they are of: shapes are drawn, augmented, and found again in the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from salience_detr.data import DetectionMapper, RandomFlip, RandomQuarterTurn
from salience_detr.data.augmentation import QuarterTurnTransform, shift_hue

pieces = LazyConfig.load_rel(
    "../../configs/common/augmentation.py",
    ("detr", "large_scale_jitter", "photometric_distortion", "no_up", "strong"),
)
detr, large_scale_jitter, photometric_distortion, no_up, strong = pieces
GEOMETRIC = {
    "detr": detr(sides=[120, 200], max_side=300),
    "large scale jitter": large_scale_jitter(size=128),
    "no up": no_up(),
    "two flips": [L(RandomFlip)(), L(RandomFlip)(horizontal=False, vertical=True)],
    "strong": strong(size=128),
}


def drawn(path, size, box):
    """A record of a dark image with one bright box."""
    width, height = size
    image = np.full((height, width, 3), 20, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = (235, 230, 225)
    Image.fromarray(image).save(path)
    annotation = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3}
    return {
        "file_name": str(path),
        "width": width,
        "height": height,
        "image_id": 1,
        "annotations": [annotation],
    }


def bright_box(image):
    """(x0, y0, x1, y1) of the bright pixels of a (3, H, W) image, or None."""
    pixels = image.numpy().mean(0)
    threshold = (pixels.min() + pixels.max()) / 2
    rows, columns = (np.flatnonzero((pixels > threshold).any(axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize(
    ("size", "box"), [((160, 90), (31, 20, 77, 61)), ((64, 200), (0, 150, 64, 200))]
)
def test_boxes_stay_on_what_they_are_of(tmp_path, name, size, box):
    record = drawn(tmp_path / "x.png", size, box)
    mapper = DetectionMapper(is_train=True, augmentations=[instantiate(x) for x in GEOMETRIC[name]])
    sizes, left = set(), 0
    for seed in range(40):
        np.random.seed(seed)
        mapped = mapper(record)
        image, instances = mapped["image"], mapped["instances"]
        assert tuple(image.shape[1:]) == instances.image_size
        sizes.add(instances.image_size)
        if not len(instances):
            assert (
                float(image.float().max()) - float(image.float().min()) < 60
            )  # the object is not in the window
            continue
        found = instances.gt_boxes.tensor[0].tolist()
        if min(found[2] - found[0], found[3] - found[1]) < 3:
            continue  # hardly a pixel is left of it
        left += 1
        assert bright_box(image) == pytest.approx(found, abs=1.01)
        assert instances.gt_classes.tolist() == [3]
    assert left > 20 and (len(sizes) > 1 or name == "two flips")


def test_colors_change_and_nothing_moves(tmp_path):
    record = drawn(tmp_path / "x.png", (40, 30), (10, 5, 30, 20))
    mapper = DetectionMapper(
        is_train=True, augmentations=[instantiate(x) for x in photometric_distortion()]
    )
    images = set()
    for seed in range(12):
        np.random.seed(seed)
        mapped = mapper(record)
        assert mapped["instances"].gt_boxes.tensor.tolist() == [[10, 5, 30, 20]]
        images.add(mapped["image"].numpy().tobytes())
    assert len(images) > 6


def test_hues_turn_and_grays_stay():
    image = np.array([[[200, 0, 0], [0, 200, 0], [90, 90, 90]]], np.uint8)
    assert shift_hue(image, 120)[0].tolist() == [
        pytest.approx(x, abs=6) for x in ([0, 200, 0], [0, 0, 200], [90] * 3)
    ]
    np.testing.assert_array_equal(shift_hue(image, 0), image)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_move_points_with_the_pixels_and_back(turns):
    image = np.zeros((3, 5, 3), np.uint8)
    image[1, 4] = 255  # its corners are (4, 1) and (5, 2)
    transform = QuarterTurnTransform(turns, 5, 3)
    turned = transform.apply_image(image)
    (y,), (x,) = np.nonzero(turned[..., 0])
    assert transform.apply_box(np.array([[4.0, 1, 5, 2]])).tolist() == [[x, y, x + 1, y + 1]]
    back = transform.inverse()
    np.testing.assert_array_equal(back.apply_image(turned), image)
    np.testing.assert_allclose(
        back.apply_coords(transform.apply_coords(np.array([[4.0, 1]]))), [[4, 1]]
    )


def test_all_quarter_turns_occur():
    turns = {RandomQuarterTurn().get_transform(np.zeros((3, 5, 3))).turns for _ in range(60)}
    assert turns == {0, 1, 2, 3}


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("size", [(1, 1), (400, 1), (3, 500)])
def test_odd_sizes_and_empty_images_pass(tmp_path, name, size):
    record = drawn(tmp_path / "x.png", size, (0, 0, *size)) | {"annotations": []}
    mapper = DetectionMapper(is_train=True, augmentations=[instantiate(x) for x in GEOMETRIC[name]])
    for seed in range(10):
        np.random.seed(seed)
        mapped = mapper(record)
        assert len(mapped["instances"]) == 0 and min(mapped["image"].shape) >= 1
        assert mapped["instances"].gt_boxes.tensor.shape == (0, 4)


def test_the_default_of_coco_is_the_published_recipe():
    root = Path(__file__).resolve().parents[2]
    augmentations = LazyConfig.load(
        str(root / "configs/salience_detr_r50_4scale_12ep.py")
    ).dataloader.train.mapper.augmentations
    flip, crop, resize = (instantiate(x) for x in augmentations)
    assert isinstance(flip, T.RandomFlip) and crop.prob == 0.5
    assert (resize.short_edge_length, resize.max_size) == (list(range(480, 801, 32)), 1333)


def test_samples_of_the_published_recipe_are_those_of_its_steps_alone(tmp_path):
    record = drawn(tmp_path / "x.png", (160, 90), (31, 20, 77, 61))
    augmentations = [instantiate(x) for x in detr(sides=[120, 200], max_side=300)]
    mapper = DetectionMapper(is_train=True, augmentations=augmentations)
    for seed in range(8):
        np.random.seed(seed)
        mapped = mapper(record)

        np.random.seed(seed)
        expected = T.AugInput(
            np.asarray(Image.open(record["file_name"])), boxes=np.array([[31.0, 20, 77, 61]])
        )
        T.AugmentationList(augmentations)(expected)
        np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), expected.image)
        height, width = expected.image.shape[:2]
        boxes = expected.boxes.clip(0, [width, height, width, height]).astype(np.float32)
        for box in mapped["instances"].gt_boxes.tensor.numpy():
            assert box.tolist() == boxes[0].tolist()
