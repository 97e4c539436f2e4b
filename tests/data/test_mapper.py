"""From files to model inputs: boxes stay on what they enclose."""

from __future__ import annotations

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image, ImageOps

from salience_detr.data import DetectionMapper, ImageReadError, images, read_image
from salience_detr.data.loader import StreamBatchSampler, build_train_loader


@pytest.fixture
def record(tmp_path):
    """A black 80 x 60 image with a white rectangle, and its box."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[10:30, 20:60] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    box = {"bbox": [20, 10, 40, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 60,
        "width": 80,
        "image_id": 5,
        "annotations": [box],
    }


def enclosing_box(image):
    """(x0, y0, x1, y1) of the bright pixels of a (3, H, W) image."""
    rows, columns = np.nonzero(image[0].numpy() > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    "augmentations",
    [
        [],
        [T.RandomFlip(prob=1.0)],
        [T.RandomFlip(prob=1.0, horizontal=False, vertical=True)],
        [T.ResizeShortestEdge(90, 400)],
        [T.RandomCrop("absolute", (30, 40))],
        [
            T.RandomFlip(prob=1.0),
            T.RandomCrop("relative_range", (0.6, 0.6)),
            T.ResizeShortestEdge(120, 400),
        ],
    ],
)
def test_boxes_follow_the_augmentation(record, augmentations):
    mapped = DetectionMapper(is_train=True, augmentations=augmentations)(record)
    box = mapped["instances"].gt_boxes.tensor[0].tolist()
    assert box == pytest.approx(enclosing_box(mapped["image"]), abs=1.0)
    assert mapped["instances"].image_size == tuple(mapped["image"].shape[1:])
    assert mapped["instances"].gt_classes.tolist() == [3]
    assert "annotations" not in mapped and mapped["image_id"] == 5


def test_a_crop_beside_the_object_leaves_an_image_without_boxes(record):
    record["annotations"][0]["bbox"] = [0, 0, 1, 1]
    np.random.seed(3)
    mapped = DetectionMapper(is_train=True, augmentations=[T.CropTransform(40, 30, 40, 30)])(record)
    assert len(mapped["instances"]) == 0


def test_the_test_mapper_resizes_as_prepare_image_does(record):
    mapper = DetectionMapper(is_train=False, augmentations=[T.ResizeShortestEdge(30, 400)])
    mapped = mapper(record)
    assert mapped["image"].shape == (3, 30, 40)
    assert (mapped["height"], mapped["width"]) == (60, 80)
    prepared = mapper.prepare_image(np.asarray(Image.open(record["file_name"])))
    assert (prepared["image"] == mapped["image"]).all() and prepared["height"] == 60


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff\xe0 not an image"])
def test_images_that_cannot_be_read_are_named(record, tmp_path, content):
    record["file_name"] = str(tmp_path / "broken.jpg")
    if content is not None:
        (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"broken\.jpg"):
        DetectionMapper(is_train=True, augmentations=[])(record)


def test_a_truncated_image_is_named(record, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.randint(0, 255, (60, 80, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ImageReadError, match=r"cut\.jpg.*replace the file"):
        DetectionMapper(is_train=True, augmentations=[])(record | {"file_name": str(path)})


def test_an_image_of_another_size_says_both(record):
    with pytest.raises(ImageReadError, match=r"is 80x60, but the annotations say 81x60"):
        DetectionMapper(is_train=True, augmentations=[])(record | {"width": 81})


GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.dstack([GRAY, GRAY[::-1], GRAY.T])


def saved(tmp_path, image, name, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        tmp_path / name, **options
    )
    return read_image(str(tmp_path / name))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (GRAY, "l.png"),
        (GRAY.astype(np.uint16) * 257, "i16.png"),
        (GRAY.astype(np.uint16) * 257, "i16.tif"),
        (GRAY.astype(np.float32) / 255, "unit.tif"),
        (GRAY.astype(np.float32), "f255.tif"),
        (Image.fromarray(GRAY).convert("P"), "p.png"),
    ],
)
def test_gray_images_of_all_depths_become_rgb(tmp_path, image, name):
    found = saved(tmp_path, image, name)
    assert found.dtype == np.uint8 and np.array_equal(found, np.dstack([GRAY] * 3))


def test_colors_of_print_and_of_sixteen_bits_become_rgb(tmp_path):
    cmyk = Image.fromarray(COLORS).convert("CMYK")
    assert np.array_equal(saved(tmp_path, cmyk, "c.tif"), COLORS)
    photo = saved(tmp_path, cmyk, "c.jpg", quality=100)
    assert np.array_equal(photo, np.asarray(Image.open(tmp_path / "c.jpg").convert("RGB")))
    cv2.imwrite(str(tmp_path / "deep.png"), COLORS[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(str(tmp_path / "deep.png")), COLORS)
    assert np.array_equal(read_image(str(tmp_path / "deep.png"), "BGR"), COLORS[..., ::-1])


def test_what_is_transparent_shows_white(tmp_path):
    image = np.zeros((2, 3, 4), np.uint8)
    image[..., 0] = 200
    image[..., 3] = [0, 128, 255]
    # 128 / 255 of 200 and of 0, the rest is white.
    expected = [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    assert saved(tmp_path, image, "rgba.png")[0].tolist() == expected
    gray = saved(tmp_path, Image.fromarray(image[..., [0, 3]], "LA"), "la.png")
    assert gray[0].tolist() == [[255] * 3, [227] * 3, [200] * 3]
    palette = Image.fromarray(GRAY).convert("P")
    assert saved(tmp_path, palette, "p.png", transparency=5)[0, 4:7, 0].tolist() == [4, 255, 6]
    assert saved(tmp_path, GRAY, "t.png", transparency=5)[0, 4:7, 0].tolist() == [4, 255, 6]
    opaque = np.dstack([COLORS, np.full_like(GRAY, 255)])
    assert np.array_equal(saved(tmp_path, opaque, "opaque.png"), COLORS)


def test_floats_that_are_no_numbers_are_black(tmp_path):
    values = np.array([[np.nan, 0.5], [1.0, np.inf]], np.float32)
    assert saved(tmp_path, values, "nan.tif")[..., 0].tolist() == [[0, 128], [255, 255]]


def test_of_several_pages_the_first_is_read(tmp_path):
    pages = {"save_all": True, "append_images": [Image.new("L", (30, 40))]}
    assert saved(tmp_path, GRAY, "pages.tif", **pages).shape == (16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(tmp_path, COLORS[:10], "turned.png", exif=exif)
    assert np.array_equal(
        found, np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))
    )


def test_broken_exif_data_does_not_spoil_an_image(tmp_path):
    assert saved(tmp_path, COLORS, "a.jpg", exif=b"Exif\0\0XX*\0garbage").shape == (16, 16, 3)


def test_large_images_are_converted_in_strips(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "STRIP_PIXELS", 50)  # three rows
    assert np.array_equal(saved(tmp_path, COLORS, "a.png"), COLORS)
    assert saved(tmp_path, np.dstack([COLORS, GRAY]), "b.png")[0, 0].tolist() == [255] * 3


def test_images_of_400_million_pixels_are_not_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Image.open(png_of_size(tmp_path / "large.png", 20_000, 20_000)) as image:
            assert image.size == (20_000, 20_000)
    with pytest.raises(
        ImageReadError, match=r"huge\.png: Image size \(1600000000 pixels\) exceeds limit"
    ):
        read_image(str(png_of_size(tmp_path / "huge.png", 40_000, 40_000)))


def png_of_size(path, width, height):
    """A PNG file that says it is so large, and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(x) - 4) + x + struct.pack(">I", zlib.crc32(x)) for x in (header, data)
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (20_000, 2)])
def test_images_of_any_shape_are_read(tmp_path, size):
    assert saved(tmp_path, Image.new("RGB", size), "a.png").shape == (size[1], size[0], 3)


def test_an_empty_file_is_told_as_such(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageReadError, match=r"a\.jpg: it is empty, or of no kind of image"):
        read_image(str(tmp_path / "a.jpg"))


def batches(count, *, start=0, rank=0, world_size=1, size=7):
    sampler = StreamBatchSampler(
        size=size, total_batch_size=4, seed=1, rank=rank, world_size=world_size
    )
    sampler.start_iteration = start
    iterator = iter(sampler)
    return [next(iterator) for _ in range(count)]


def test_every_epoch_of_the_stream_is_a_new_permutation():
    stream = [index for batch in batches(7) for index, _ in batch]
    epochs = [stream[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_stream_goes_on_where_it_stopped():
    assert batches(5)[3:] == batches(2, start=3)


def test_two_processes_share_the_batches_of_one():
    first, second = batches(4, rank=0, world_size=2), batches(4, rank=1, world_size=2)
    assert [a + b for a, b in zip(first, second, strict=True)] == batches(4)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"total_batch_size is 5.*3 processes"):
        StreamBatchSampler(size=7, total_batch_size=5, seed=1, world_size=3)


def random_mapper(record):
    return record["id"], np.random.rand()


def drawn(num_workers):
    records = [{"id": i} for i in range(5)]
    loader = build_train_loader(
        dataset=records, mapper=random_mapper, total_batch_size=2, num_workers=num_workers, seed=3
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(4)]


def test_random_augmentation_does_not_depend_on_the_workers():
    assert drawn(0) == drawn(2)


def test_drawing_leaves_the_global_random_state_alone():
    np.random.seed(9)
    expected = np.random.rand()
    np.random.seed(9)
    drawn(0)
    assert np.random.rand() == expected
