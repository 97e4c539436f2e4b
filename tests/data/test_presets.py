"""Boxes of the presets: colored shapes are drawn, augmented, and measured in the pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from pycocotools import mask as coco_mask

from salience_detr.data import DetectionMapper
from salience_detr.data.augmentation.boxes import clip_boxes
from salience_detr.data.augmentation.multi_image import Sample
from salience_detr.data.augmentation.presets import PRESETS, ImageSize

COLORS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
)
SIZE = ImageSize(sides=[40, 56, 72], max_side=110, crop=64)
SINGLE = ["hflip", "multi_scale", "detr", "lsj", "no_up", "ssd", "ssdlite", "rtdetr"]
MIXED = ["mosaic", "copy_paste"]


def draw_shapes(numbers, size, rng, *, ellipses=False, masks=False):
    """A sample of black with shapes beside each other, of the colors of their numbers."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width] + 0.5
    boxes = []
    segmentations = []
    slot = width // len(numbers)
    for place, number in enumerate(numbers):
        w = rng.integers(8, slot - 2)
        h = rng.integers(8, height - 2)
        x = place * slot + rng.integers(slot - w)
        y = rng.integers(height - h)
        inside = (columns > x) & (columns < x + w) & (rows > y) & (rows < y + h)
        if ellipses:
            distances = ((columns - x - w / 2) / (w / 2)) ** 2
            inside = distances + ((rows - y - h / 2) / (h / 2)) ** 2 < 1
        image[inside] = COLORS[number]
        boxes.append((x, y, x + w, y + h))
        segmentations.append(coco_mask.encode(np.asfortranarray(inside)))
    return Sample(
        image,
        np.array(boxes, np.float64),
        np.array(numbers),
        segmentations=segmentations if masks else [],
    )


def extent(image, number):
    """(x0, y0, x1, y1) of the pixels of (3, H, W) that are mostly of a color, or None."""
    pixels = image.numpy().transpose(1, 2, 0).astype(int)
    is_color = (np.abs(pixels - COLORS[number]) < 128).all(-1)
    if not is_color.any():
        return None
    rows, columns = (np.flatnonzero(is_color.any(axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def geometric_part(preset):
    """The augmentations of a preset that move something."""
    pieces = [x for x in preset.augmentations if "Photometric" not in str(x)]
    return [instantiate(x) for x in pieces]


def augmented(preset, sample, others=()):
    """The mapper's result for a sample, which is mixed with others."""
    others = itertools.cycle(others)
    for mix in preset.mixes:
        mix.prob = 1.0
        sample = instantiate(mix)(sample, lambda: next(others))
    mapper = DetectionMapper(is_train=True, augmentations=geometric_part(preset))
    return mapper.augment(np.array(sample.image), sample.boxes, sample.classes)


def check_boxes(mapped, numbers):
    """Each box is the extent of its shape. Return the boxes by number."""
    image, instances = mapped["image"], mapped["instances"]
    found = dict(
        zip(instances.gt_classes.tolist(), instances.gt_boxes.tensor.tolist(), strict=True)
    )
    assert instances.image_size == tuple(image.shape[1:])
    for number in numbers:
        seen = extent(image, number)
        box = found.get(number)
        if box is not None and min(box[2] - box[0], box[3] - box[1]) > 2.5:
            assert seen == pytest.approx(box, abs=1.01), number
    return found


def seeded(seed):
    """Seed what the augmentations draw from, and return a generator of the shapes."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", SINGLE)
def test_boxes_of_single_images_are_the_extents_of_their_shapes(name):
    preset = PRESETS[name](SIZE)
    kept = 0
    for seed in range(24):
        rng = seeded(seed)
        ellipses = seed % 2 == 1
        sample = draw_shapes([0, 1, 2], (96, 64), rng, ellipses=ellipses)
        mapped = augmented(preset, sample)
        height, width = mapped["image"].shape[1:]
        for number, box in check_whole(mapped, ellipses).items():
            kept += 1
            assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height, number
    assert kept > 24


def check_whole(mapped, ellipses):
    """check_boxes; of ellipses only for those that the image does not cut."""
    height, width = mapped["image"].shape[1:]
    boxes = mapped["instances"].gt_boxes.tensor.numpy()
    inside = (boxes[:, :2] > 1).all(1) & (boxes[:, 2:] < [width - 1, height - 1]).all(1)
    labels = mapped["instances"].gt_classes.numpy()
    numbers = labels[inside] if ellipses else labels
    return check_boxes(mapped, numbers.tolist())


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("name", MIXED)
def test_boxes_of_mixed_images_are_the_extents_of_their_shapes(name, masks):
    preset = PRESETS[name](SIZE)
    sizes = [(64, 48), (40, 70), (90, 60), (50, 50)]
    kept = 0
    for seed in range(40):
        rng = seeded(seed)
        numbers = [[0, 1], [2, 3], [4], [5]]
        samples = [
            draw_shapes(n, size, rng, masks=masks, ellipses=masks and name == "copy_paste")
            for n, size in zip(numbers, sizes, strict=True)
        ]
        mapped = augmented(preset, samples[0], samples[1:])
        kept += len(check_boxes(mapped, range(6)))
    assert kept > 60


def test_both_images_of_mixup_keep_their_boxes():
    preset = PRESETS["mixup"](SIZE)
    preset.mixes[0].fill = 0
    for seed in range(40):
        rng = seeded(seed)
        samples = [draw_shapes([n], (40 + 30 * n, 60), rng) for n in (0, 1)]
        mapped = augmented(preset, samples[0], samples[1:])
        image = mapped["image"].numpy()
        assert mapped["instances"].gt_classes.tolist() == [0, 1]
        for channel, box in enumerate(mapped["instances"].gt_boxes.tensor.tolist()):
            bright = image[channel] > image[channel].max() / 2
            rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
            seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert seen == pytest.approx(box, abs=1.01)


def test_a_mosaic_drops_what_is_hardly_visible_and_nothing_else():
    mix = instantiate(PRESETS["mosaic"](SIZE).mixes[0])
    mix.prob = 1.0
    dropped = 0
    for seed in range(60):
        rng = seeded(seed)
        samples = [draw_shapes([n], (60, 50), rng) for n in range(4)]
        others = iter(samples[1:])
        mixed = mix(samples[0], lambda others=others: next(others))
        areas = [int((sample.image > 0).any(-1).sum()) for sample in samples]
        for number, area in enumerate(areas):
            seen = (mixed.image == COLORS[number]).all(-1).sum()
            assert (number in mixed.classes) == (seen >= 0.1 * area and seen > 0)
            dropped += number not in mixed.classes
    assert dropped > 3


def test_boxes_are_clipped_and_dropped_by_the_part_that_is_left():
    boxes = np.array([[-10, 0, 10, 10], [-95, 0, 5, 10], [30, 5, 30.4, 15], [19.5, 0, 25, 9.0]])
    clipped, kept = clip_boxes(boxes, 20, 20, min_visible=0.1)
    # Half of the first is left, a 20th of the second; the third lies outside, as half a pixel of
    # the last does not.
    assert kept.tolist() == [True, False, False, False]
    assert clipped[0].tolist() == [0, 0, 10, 10]
    assert clip_boxes(np.array([[3, 3, 3.5, 4]]), 20, 20, min_visible=0.1)[1].all()


@pytest.mark.parametrize("name", [x for x in PRESETS if x != "strong_album"])
@pytest.mark.parametrize("size", [(1, 1), (90, 1), (2, 70)])
def test_thin_and_empty_images_pass(name, size):
    preset = PRESETS[name](SIZE)
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    empty = Sample(image, np.zeros((0, 4)), np.zeros(0, np.int64))
    boxed = Sample(image, np.array([[0.0, 0, *size]]), np.zeros(1, np.int64))
    for seed in range(3):
        for sample in (empty, boxed):
            seeded(seed)
            mapped = augmented(preset, sample, [empty, sample])
            assert min(mapped["image"].shape) >= 1
            assert len(mapped["instances"]) <= 4 * len(sample.boxes)


def test_colors_change_and_nothing_moves():
    for name in ("ssd", "rtdetr"):
        pieces = [x for x in PRESETS[name](SIZE).augmentations if "Photometric" in str(x)]
        mapper = DetectionMapper(is_train=True, augmentations=[instantiate(x) for x in pieces])
        sample = draw_shapes([0, 1], (40, 30), np.random.default_rng(1))
        gray = np.dstack([sample.image.max(-1)] * 3)
        images = set()
        for seed in range(12):
            seeded(seed)
            mapped = mapper.augment(sample.image[..., ::-1], sample.boxes, sample.classes)
            assert mapped["instances"].gt_boxes.tensor.tolist() == sample.boxes.tolist()
            images.add(mapped["image"].numpy().tobytes())
            still_gray = mapper.augment(gray, sample.boxes, sample.classes)["image"]
            assert (still_gray[0] == still_gray[1]).all()
        assert len(images) > 6


def test_pasted_boxes_cover_no_object_without_a_mask():
    mix = instantiate(PRESETS["copy_paste"](SIZE).mixes[0])
    mix.prob = 1.0
    for seed in range(40):
        rng = seeded(seed)
        target, source = (draw_shapes(n, (60, 40), rng) for n in ([0, 1], [2, 3]))
        mixed = mix(target, lambda source=source: source)
        for number in (0, 1):
            color = COLORS[number]
            before = (target.image == color).all(-1)
            assert ((mixed.image == color).all(-1) == before).all()
        assert mixed.classes[:2].tolist() == [0, 1]
        assert (mixed.boxes[:2] == target.boxes).all()


def test_an_object_that_touches_others_or_a_crowd_is_not_cut_out_by_its_box():
    mix = instantiate(PRESETS["copy_paste"](SIZE).mixes[0])
    mix.prob = 1.0
    target = Sample(np.zeros((60, 60, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, np.int64))
    source = Sample(
        np.full((60, 60, 3), 200, np.uint8),
        np.array([[0.0, 0, 20, 20], [15, 15, 30, 30], [40, 40, 50, 50], [5, 40, 15, 50]]),
        np.arange(4),
        crowd_boxes=np.array([[45.0, 45, 60, 60]]),
    )
    classes = set()
    for seed in range(30):
        seeded(seed)
        classes |= set(mix(target, lambda: source).classes.tolist())
    assert classes == {3}
