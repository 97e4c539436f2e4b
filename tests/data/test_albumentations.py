"""albumentations' transforms as an augmentation; boxes are those of the shapes."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from detectron2.config import instantiate
from omegaconf import OmegaConf

from salience_detr.data import Albumentations, DetectionMapper
from salience_detr.data.augmentation.presets import PRESETS, ImageSize

SIZE = ImageSize(sides=[64, 80], max_side=110, crop=64)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("albumentations", reason="the extra albumentations")


def bright_box(image):
    """(x0, y0, x1, y1) of the pixels of (H, W, 3) brighter than half."""
    bright = image.max(-1) > 127
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def augment(augmentations, image, boxes, seed):
    np.random.seed(seed)
    mapper = DetectionMapper(is_train=True, augmentations=augmentations)
    mapped = mapper.augment(
        image, np.array(boxes, np.float64).reshape(-1, 4), np.arange(len(boxes))
    )
    return mapped["image"].numpy().transpose(1, 2, 0), mapped["instances"]


def test_boxes_follow_any_list_and_are_dropped_by_their_visible_part(library):
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:50] = 255
    boxes = [[0, 0, 4, 4], [30, 20, 50, 40]]
    transforms = [
        library.HorizontalFlip(p=0.5),
        library.Affine(translate_px=(-40, 40), p=1),
        {"type": "OneOf", "transforms": [{"type": "VerticalFlip", "p": 1}], "p": 0.5},
        library.RandomCrop(height=50, width=60, p=0.5),
    ]
    augmentation = Albumentations(transforms, min_visible=0.3)
    dropped = 0
    for seed in range(40):
        result, instances = augment([augmentation], image, boxes, seed)
        found = dict(
            zip(instances.gt_classes.tolist(), instances.gt_boxes.tensor.tolist(), strict=True)
        )
        seen = (result > 127).all(-1).sum()
        assert (1 in found) == (seen >= 0.3 * 400) or abs(seen - 120) < 15
        if 1 in found:
            assert bright_box(result) == pytest.approx(found[1], abs=1.01)
        dropped += 1 not in found
    assert 0 < dropped < 30


def test_the_published_set_moves_boxes_with_their_shapes_and_repeats(library):
    augmentations = [instantiate(x) for x in PRESETS["strong_album"](SIZE).augmentations]
    image = np.zeros((70, 90, 3), np.uint8)
    image[25:45, 30:60] = 255
    results = []
    for seed in range(30):
        result, instances = augment(augmentations, image[..., ::-1], [[30, 25, 60, 45]], seed)
        for box in instances.gt_boxes.tensor.tolist():
            if min(box[2] - box[0], box[3] - box[1]) > 4:
                assert bright_box(result) == pytest.approx(box, abs=2)
        results.append(result.tobytes())
    again = [augment(augmentations, image[..., ::-1], [[30, 25, 60, 45]], x)[0] for x in range(30)]
    assert [x.tobytes() for x in again] == results and len(set(results)) > 20


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (50, 2)])
def test_thin_and_empty_images_pass(library, size):
    augmentations = [instantiate(x) for x in PRESETS["strong_album"](SIZE).augmentations]
    for seed in range(6):
        image, instances = augment(augmentations, np.zeros((*size, 3), np.uint8), [], seed)
        assert min(image.shape) >= 1 and len(instances) == 0


def test_descriptions_of_a_config_are_checked(library):
    described = OmegaConf.create([{"type": "Blur", "blur_limit": [3, 5]}, {"type": "Transpose"}])
    assert Albumentations(described).transforms[0].blur_limit == (3, 5)
    for wrong in ({"type": "Blurr"}, {"blur_limit": 3}, {"type": "Lambda"}, {"type": "Compose"}):
        with pytest.raises(ValueError, match="albumentations"):
            Albumentations([wrong])


def test_without_the_package_the_extra_is_named(monkeypatch):
    real_import = builtins.__import__

    def fail(name, *args, **options):
        if name == "albumentations":
            raise ImportError("No module named 'albumentations'")
        return real_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"pip install 'salience_detr\[albumentations\]'"):
        PRESETS["strong_album"](SIZE)
