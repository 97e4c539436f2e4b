"""Mixed samples follow from the seed and the position in the stream alone."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from salience_detr.config import ConfigError, load_config, to_yaml
from salience_detr.data import (
    DetectionMapper,
    ImageReadError,
    MixingMapper,
    Mosaic,
    RandomFlip,
    RandomQuarterTurn,
    batches,
    build_train_loader,
    load_dataset,
    register_coco_dataset,
)
from salience_detr.data.augmentation.presets import PRESETS, ImageSize, find_image_size
from salience_detr.data.image_cache import ImageCache
from salience_detr.data.masks import decode_mask
from salience_detr.engine.augmentation_choice import choose_augmentation

MIXES = ["mosaic", "mixup", "mosaic_mixup", "cached_mosaic_mixup", "copy_paste"]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Ten noisy images with two boxes each; one is gray, one of 16 bits, one has no boxes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    found = []
    for number in range(10):
        width, height = (int(x) for x in rng.integers(20, 40, 2))
        pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        if number == 1:
            pixels = pixels[..., 0]
        if number == 2:
            pixels = pixels[..., 0].astype(np.uint16) * 257
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)

        annotations = []
        for x in () if number == 3 else (2, 12):
            box = {"bbox": [x, 3, x + 6, 9 + number], "bbox_mode": BoxMode.XYXY_ABS}
            annotations.append(box | {"category_id": number, "iscrowd": 0})
        annotations.append(annotations[0] | {"iscrowd": 1} if annotations else CROWD)
        record = {"file_name": str(path), "width": width, "height": height, "image_id": number}
        found.append(record | {"annotations": annotations})
    return found


CROWD = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}


def make_loader(records, name, num_workers=0, **options):
    """A loader of the mixes of a preset, and a flip."""
    preset = PRESETS[name](ImageSize(sides=[30], max_side=50, crop=32))
    mapper = MixingMapper(
        is_train=True,
        mixes=[instantiate(x) for x in preset.mixes],
        augmentations=[RandomFlip()],
        pool_size=preset.pool_size and 4,
        pool_period=6,
        **options,
    )
    return build_train_loader(
        dataset=records, mapper=mapper, total_batch_size=2, num_workers=num_workers, seed=3
    )


def as_bytes(stream, count):
    """What the model gets of some batches."""
    found = []
    for batch in (next(stream) for _ in range(count)):
        for inputs in batch:
            instances = inputs["instances"]
            boxes = instances.gt_boxes.tensor.tolist()
            found.append((inputs["image"].numpy().tobytes(), boxes, instances.gt_classes.tolist()))
    return found


@pytest.mark.parametrize("name", MIXES)
def test_samples_do_not_depend_on_cache_resume_or_repetition(records, name):
    whole = as_bytes(batches(make_loader(records, name), 0), 7)
    assert as_bytes(batches(make_loader(records, name), 4), 3) == whole[8:]
    assert as_bytes(batches(make_loader(records, name, cache_mb=0), 0), 7) == whole
    classes = [set(labels) for _, _, labels in whole]
    assert max(map(len, classes)) > 1
    with_boxes = [boxes for _, boxes, _ in whole if boxes]
    assert len(with_boxes) > 8


@pytest.mark.parametrize("name", ["cached_mosaic_mixup"])
def test_samples_do_not_depend_on_the_workers_with_a_resume(records, name):
    whole = as_bytes(batches(make_loader(records, name), 0), 6)
    assert as_bytes(batches(make_loader(records, name, num_workers=2), 0), 6) == whole
    assert as_bytes(batches(make_loader(records, name, num_workers=2), 3), 3) == whole[6:]


def test_the_last_part_of_a_run_is_not_mixed(records, caplog):
    caplog.set_level(logging.INFO)
    closing = make_loader(records, "mosaic", close_up=0.3, max_iter=10)
    assert "the last 3 of 10 iterations are trained without Mosaic" in caplog.text
    samples = as_bytes(batches(closing, 0), 10)
    open_end = as_bytes(batches(make_loader(records, "mosaic"), 0), 10)
    assert samples[:14] == open_end[:14] and samples[14:] != open_end[14:]

    # A run that is resumed in the close-up phase goes on in it.
    resumed = make_loader(records, "mosaic", close_up=0.3, max_iter=10, num_workers=1)
    assert as_bytes(batches(resumed, 8), 2) == samples[16:]
    plain = build_train_loader(
        dataset=records,
        mapper=DetectionMapper(is_train=True, augmentations=[RandomFlip()]),
        total_batch_size=2,
        num_workers=0,
        seed=3,
    )
    assert as_bytes(batches(plain, 7), 3) == samples[14:]


def test_the_last_part_of_a_run_has_augmentations_of_its_own(records, caplog):
    caplog.set_level(logging.INFO)

    def train_loader(mapper):
        return build_train_loader(
            dataset=records, mapper=mapper, total_batch_size=2, num_workers=0, seed=3
        )

    def closing(seen_from):
        mapper = MixingMapper(
            is_train=True,
            mixes=[],
            augmentations=[RandomQuarterTurn()],
            close_up=0.3,
            close_up_augmentations=[RandomFlip()],
            max_iter=10,
        )
        return as_bytes(batches(train_loader(mapper), seen_from), 10 - seen_from)

    samples = closing(0)
    assert "the last 3 of 10 iterations are trained with close_up_augmentations" in caplog.text
    expected = []
    for augmentation in (RandomQuarterTurn(), RandomFlip()):
        mapper = DetectionMapper(is_train=True, augmentations=[augmentation])
        expected.append(as_bytes(batches(train_loader(mapper), 0), 10))
    assert samples == expected[0][:14] + expected[1][14:]
    assert closing(8) == samples[16:]


def test_a_wrong_close_up_is_said():
    for options in ({"close_up": 1.5, "max_iter": 5}, {"close_up": 0.5}):
        with pytest.raises(ValueError, match=r"close_up is .*such as"):
            MixingMapper(is_train=True, mixes=[], augmentations=[], **options)


def test_a_pool_bounds_what_is_read(records):
    seen = set()
    loader = make_loader(records, "cached_mosaic")
    mapper = loader.dataset.mapper
    mapper.position, mapper.draw_from = 7, loader.dataset
    for seed in range(60):
        np.random.seed(seed)
        mapper.draw()
        seen.add(int(loader.dataset.current[0]))
    assert 1 < len(seen) <= 4


def test_the_cache_holds_the_images_that_were_used_last():
    reads = []

    def read(name):
        reads.append(name)
        return np.zeros((10, 10, 3), np.uint8)

    cache = ImageCache(read, max_bytes=650)
    for name in "abacab":
        assert cache(name).shape == (10, 10, 3)
    assert "".join(reads) == "abcb" and cache.num_bytes == 600
    with pytest.raises(ValueError, match="read-only"):
        cache("a")[0] = 1
    assert ImageCache(read, max_bytes=0)("a").flags.writeable


def test_another_image_that_cannot_be_read_is_named(records, tmp_path):
    missing = [x | {"file_name": str(tmp_path / "gone.png")} for x in records]
    mapper = MixingMapper(is_train=True, mixes=[Mosaic(max_side=50, prob=1)], augmentations=[])
    loader = build_train_loader(
        dataset=[*missing, records[0]], mapper=mapper, total_batch_size=1, num_workers=0
    )
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        as_bytes(batches(loader, 0), 9)


SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]


@pytest.mark.parametrize(
    "segmentation",
    [SQUARE, {"size": [12, 20], "counts": [2 * 12 + 3, *[6, 6] * 5, 6, 12 * 12 + 3]}],
)
def test_masks_of_polygons_and_runs_are_decoded(segmentation):
    mask = decode_mask(segmentation, 12, 20)
    assert mask.box.tolist() == [2, 3, 8, 9] and mask.pixels.all()
    assert decode_mask(None, 12, 20) is None and decode_mask([], 12, 20) is None


def test_masks_that_are_not_right_are_none(caplog):
    for wrong in ([[1, 2]], {"size": [3, 3], "counts": [9]}, "x", [["a"] * 6]):
        assert decode_mask(wrong, 12, 20) is None
    assert "a mask cannot be read" in caplog.text


def test_masks_are_loaded_where_they_are_asked_for(tmp_path):
    annotations = []
    for number, segmentation in enumerate(([], SQUARE), 1):
        entry = {"id": number, "image_id": 1, "category_id": 1, "bbox": [2, 3, 6, 6]}
        annotations.append(entry | {"segmentation": segmentation})
    content = {
        "images": [{"id": 1, "file_name": "x.png", "width": 20, "height": 12}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "pit"}],
    }
    Image.new("RGB", (20, 12)).save(tmp_path / "x.png")
    (tmp_path / "x.json").write_text(json.dumps(content))
    name = f"masks_{tmp_path.name}"
    register_coco_dataset(name, tmp_path / "x.json", tmp_path)
    try:
        (plain,) = load_dataset(name, is_train=True)
        (masked,) = load_dataset(name, is_train=True, with_masks=True)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert not any("segmentation" in x for x in plain["annotations"])
    assert [x.get("segmentation") for x in masked["annotations"]] == [None, SQUARE]


@pytest.mark.parametrize("name", ["lsj", "no_up", "ssd", "rtdetr", "mosaic_mixup", "copy_paste"])
def test_presets_keep_the_size_of_a_recipe_and_can_be_saved(tmp_path, name):
    config = load_config("configs/neu_det_r18.py")
    size = find_image_size(config.dataloader)
    assert (max(size.sides), size.max_side, size.crop) == (256, 427, 256)

    choose_augmentation(config, name)
    again = find_image_size(config.dataloader)
    assert (max(again.sides), again.max_side) == (256, 427)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    loaded = load_config(tmp_path / "config.yaml")
    mapper = instantiate(loaded.dataloader.train.mapper)
    assert isinstance(mapper, MixingMapper) == bool(PRESETS[name](size).mixes)
    assert loaded.dataloader.train.dataset.get("with_masks", False) == (name == "copy_paste")
    if isinstance(mapper, MixingMapper):
        assert (mapper.close_up, mapper.max_iter) == (0.1, config.train.max_iter)


def test_sizes_of_recipes():
    for name, sides, max_side, crop in (
        ("salience_detr_r50_4scale_12ep", (480, 800), 1333, 1024),
        ("surface_defects_tiny", (192, 320), 533, 384),
    ):
        size = find_image_size(load_config(f"configs/{name}.py").dataloader)
        assert (min(size.sides), max(size.sides)) == sides and len(size.sides) == 11
        assert (size.max_side, size.crop) == (max_side, crop)


def test_the_size_of_a_preset_is_said_and_what_is_wrong_with_the_flag(capsys):
    config = load_config("configs/surface_defects_tiny.py")
    choose_augmentation(config, "lsj")
    choose_augmentation(config, "mosaic")
    said = capsys.readouterr().out
    assert "--augmentation lsj: squares of 384 pixels" in said
    assert "mosaic: the shorter side is resized to 192 to 320 pixels, the longer one to at" in said
    with pytest.raises(ConfigError, match=r"no augmentation 'mosiac'; did you mean mosaic.*ssd"):
        choose_augmentation(config, "mosiac")
    with pytest.raises(ConfigError, match=r"--augmentation ssd replaces dataloader.*leave one"):
        choose_augmentation(config, "ssd", ["dataloader.train.mapper.augmentations"])
    del config.dataloader.train.mapper.augmentations
    with pytest.raises(ConfigError, match="DetectionMapper"):
        choose_augmentation(config, "ssd")
