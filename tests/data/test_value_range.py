"""Scaling of deep images: one range for a data set, which no single pixel changes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from PIL import Image

from salience_detr.data import DetectionMapper, build_test_loader, read_image
from salience_detr.data.depth import choose_from_files
from salience_detr.data.images import to_rgb
from salience_detr.data.loader import keep_value_range
from salience_detr.data.value_range import ValueRange

GRAY = np.arange(64 * 64).reshape(64, 64) % 256  # all 256 values, 16 times each


def chosen(*images):
    """Return what "auto" chooses for arrays."""
    value_range = ValueRange()
    for kind in ("integers", "floats"):
        values = [x for x in images if (x.dtype.kind == "f") == (kind == "floats")]
        if values:
            value_range.choose(kind, values)
    return value_range.setting


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_integers_are_taken_as_the_smallest_number_of_bits(bits):
    image = (GRAY << (bits - 8)).astype(np.uint16)
    assert chosen(image) == chosen(image.astype(np.int32)) == [0, 2**bits - 1]
    assert np.array_equal(ValueRange().to_uint8(image), GRAY)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GRAY / 255, [0, 1]),
        (GRAY * 1.0, [0, 255]),
        (GRAY + 0.5 * (GRAY < 255), [0, 255]),
        (GRAY * 16.0, [0, 4095]),
        (GRAY / 127.5 - 1, [-1, 1]),
        (270.25 + GRAY * 0.25, [270.25, 334]),  # kelvin
        (15.25 + GRAY * 0.125, [15.25, 47.125]),  # degrees Celsius
        (GRAY - 1000, [-1000, -745]),  # Hounsfield units
        (GRAY + 100_000, [100_000, 100_255]),
    ],
)
def test_values_of_other_units_get_their_own_range(image, expected):
    kind = np.float32 if image.dtype.kind == "f" else np.int32
    assert chosen(image.astype(kind)) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("value", [0, 60_000, 65_535, 65_534])
def test_a_dead_pixel_does_not_change_the_range(value):
    image = (GRAY * 16).astype(np.uint16)
    image[3, 4] = value
    assert chosen(image) == [0, 4095]


def test_a_dead_column_does_not_change_the_range():
    image = (GRAY * 16).astype(np.uint16)
    image[:, 7] = 65_535
    assert chosen(image) == [0, 4095]


@pytest.mark.parametrize("value", [1.7, -0.2, np.nan, np.inf, -np.inf, 3e38])
def test_a_single_value_beyond_the_unit_interval_does_not_change_the_range(value):
    image = (GRAY / 255).astype(np.float32)
    image[3, 4] = value
    assert chosen(image) == [0, 1]

    pixel = int(np.clip(np.nan_to_num(value, posinf=1, neginf=0), 0, 1) * 255)
    assert ValueRange().to_uint8(image)[3, 4] == pixel


def test_eight_images_show_that_integers_use_only_a_small_part():
    image = (27_000 + GRAY).astype(np.uint16)  # hundredths of a kelvin
    assert chosen(image) == [0, 32_767 * 2 + 1]
    assert chosen(*[image] * 8) == [27_000, 27_255]


def test_eight_images_show_that_floating_values_use_only_a_small_part_of_the_unit_interval():
    image = (GRAY * 1e-4).astype(np.float32)
    assert chosen(image) == [0, 1]
    assert chosen(*[image] * 8) == pytest.approx([0, 0.0255])


@pytest.mark.parametrize("mark", [-9999, -3.4e38])
@pytest.mark.parametrize(
    ("scale", "expected"), [(1 / 255, [0, 1]), (0.1, [0, 25.5]), (16.0, [0, 4095])]
)
def test_a_mark_of_pixels_without_a_value_does_not_change_the_range(mark, scale, expected):
    image = (GRAY * scale).astype(np.float32)
    image[:20] = mark
    assert chosen(image) == pytest.approx(expected)
    assert (ValueRange().to_uint8(image)[:20] == 0).all()


@pytest.mark.parametrize("value", [0, 7, 300, 65_535])
def test_a_constant_image_chooses_nothing(value):
    value_range = ValueRange()
    value_range.to_uint8(np.full((9, 9), value, np.uint16))
    assert value_range.setting == "auto"
    assert not np.isnan(value_range.to_uint8(np.full((9, 9), np.nan, np.float32))).any()


def test_the_first_image_that_tells_the_range_decides_for_all(caplog):
    value_range = ValueRange()
    value_range.to_uint8((GRAY * 16).astype(np.uint16))
    assert value_range.to_uint8(np.array([[65_535, 4095, 160]], np.uint16)).tolist() == [
        [255, 255, 10]
    ]
    assert [x.message for x in caplog.records] == [
        "there are images with more than 8 bits: their values are taken as 12-bit, 0..4095; to "
        "change this, set dataloader.train.mapper.value_range=[low,high]"
    ]


def test_threads_choose_one_range_and_say_it_once(caplog):
    value_range = ValueRange()
    images = [(GRAY << shift).astype(np.uint16) for shift in (2, 4, 6, 8)] * 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(value_range.to_uint8, images))
    assert len(caplog.records) == 1


def test_copies_in_other_processes_keep_the_range():
    value_range = ValueRange([0, 100])
    assert pickle.loads(pickle.dumps(value_range)).setting == [0, 100]


def test_a_given_range_is_linear_and_clips():
    value_range = ValueRange([100, 355])
    values = np.array([[0, 100, 101, 228, 355, 65_535]])
    expected = [[0, 0, 1, 128, 255, 255]]
    for kind in (np.uint16, np.int32, np.float32):
        assert value_range.to_uint8(values.astype(kind)).tolist() == expected
    assert ValueRange([0.5, 1.5]).to_uint8(np.array([[1.0]], np.float32)).tolist() == [[128]]


@pytest.mark.parametrize("setting", ["12", 12, [1], [1, 1], [2, 1], [0, "x"], [0, np.inf], "01"])
def test_a_range_that_is_none_is_refused_with_the_remedy(setting):
    with pytest.raises(ValueError, match=r"value_range is .*use auto, or \[low, high\]"):
        DetectionMapper(is_train=True, augmentations=[], value_range=setting)


@pytest.fixture
def folder(tmp_path):
    """Images of a data set: 12 bits in PNG and TIFF, two of 8 bits, and one that is damaged."""
    for i in range(12):
        image = (GRAY * 16 // (1 + i)).astype(np.uint16)
        Image.fromarray(image).save(tmp_path / f"{i:02}.{'png' if i % 2 else 'tif'}")

    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(GRAY.astype(np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_bytes((tmp_path / "01.png").read_bytes()[:200])
    return tmp_path


def test_images_of_8_bits_stay_as_they_are_beside_deep_ones(folder):
    value_range = ValueRange()
    choose_from_files(value_range, sorted(map(str, folder.iterdir())))
    assert value_range.setting == [0, 4095]

    # The dark ones are not brightened.
    dark = read_image(str(folder / "07.png"), value_range=value_range)[..., 0]
    assert np.array_equal(dark, GRAY * 16 // 8 >> 4)
    same = read_image(str(folder / "a.png"), value_range=value_range)[..., 0]
    assert np.array_equal(same, GRAY)


def test_a_loader_chooses_for_its_data_set_and_the_config_keeps_it(folder):
    records = [{"file_name": str(x)} for x in sorted(folder.glob("0*"))]
    mapper = DetectionMapper(is_train=False, augmentations=[])
    loader = build_test_loader(dataset=records, mapper=mapper)
    assert mapper.value_range.setting == [0, 4095]

    config = OmegaConf.create({"dataloader": {}})
    for split in ("train", "test"):
        settings = L(DetectionMapper)(is_train=False, augmentations=[])
        config.dataloader[split] = {"mapper": settings}
    config.dataloader.train.mapper.value_range = [1, 2]
    keep_value_range(config, loader)

    assert config.dataloader.test.mapper.value_range == [0, 4095]
    assert config.dataloader.train.mapper.value_range == [1, 2]  # given by the user


def test_integers_and_floating_values_in_one_data_set_have_two_ranges(tmp_path):
    Image.fromarray((GRAY * 16).astype(np.uint16)).save(tmp_path / "a.png")
    Image.fromarray((GRAY / 255).astype(np.float32)).save(tmp_path / "b.tif")
    value_range = ValueRange()
    choose_from_files(value_range, sorted(map(str, tmp_path.iterdir())))

    assert value_range.setting == {"integers": [0, 4095], "floats": [0, 1]}
    assert ValueRange(value_range.setting).setting == value_range.setting
    for name in ("a.png", "b.tif"):
        image = read_image(str(tmp_path / name), value_range=value_range)
        assert np.array_equal(image[..., 0], GRAY)


COLORS = np.dstack([GRAY, GRAY[::-1], GRAY.T])


def test_colors_of_16_bits_in_jpeg_2000_keep_all_of_them(tmp_path):
    deep = (COLORS << 4).astype(np.uint16)
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    cv2.imwrite(str(tmp_path / "a.jp2"), deep[..., ::-1], lossless)
    image = read_image(str(tmp_path / "a.jp2"))
    assert np.abs(image.astype(int) - COLORS).mean() < 1


@pytest.mark.parametrize("ending", [".png", ".tif", ".ppm"])
@pytest.mark.parametrize("bits", [12, 16])
def test_colors_of_16_bits_keep_all_of_them(tmp_path, ending, bits):
    deep = (COLORS << (bits - 8)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{ending}"), deep[..., ::-1])
    assert np.array_equal(read_image(str(tmp_path / f"a{ending}")), COLORS)
    assert np.array_equal(to_rgb(deep), COLORS)


def test_colors_of_floating_values_are_read(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), (COLORS[..., ::-1] / 255).astype(np.float32))
    assert np.array_equal(read_image(str(tmp_path / "a.tif")), COLORS)


def test_transparency_of_16_bits_shows_white(tmp_path):
    deep = np.dstack([COLORS << 4, np.full_like(GRAY, 65_535)]).astype(np.uint16)
    deep[:5, :, 3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., [2, 1, 0, 3]])
    image = read_image(str(tmp_path / "a.png"))
    assert (image[:5] == 255).all() and np.array_equal(image[5:], COLORS[5:])
