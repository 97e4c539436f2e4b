"""Damaged files are refused, and TIFF files of any number of bands are read or refused."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from salience_detr.data import ImageReadError, read_image
from salience_detr.data.images import to_rgb
from salience_detr.data.preparation.frames import read_size

GRAY = np.arange(64 * 48).reshape(48, 64) % 256
COLORS = np.dstack([GRAY, GRAY[::-1], 255 - GRAY]).astype(np.uint8)


def encoded(image, kind, **options):
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind, **options)
    return bytearray(data.getvalue())


def is_refused(path, data):
    path.write_bytes(data)
    try:
        read_image(str(path))
    except ImageReadError as error:
        assert path.name in str(error)
        return True
    return False


def test_png_files_with_a_flipped_byte_are_refused(tmp_path, shared):
    rng = random.Random(0)
    sources = sorted(shared("data/neu_det/images/val").iterdir())
    for number in range(150):
        with Image.open(rng.choice(sources)) as image:
            pixels = np.asarray(image.convert(rng.choice(["L", "RGB", "P"])).resize((80, 80)))

        data = encoded(pixels, "PNG")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        assert is_refused(tmp_path / f"{number}.png", data)


def test_png_images_of_pil_with_a_flipped_byte_are_refused(tmp_path):
    data = encoded(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8), "PNG")
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ImageReadError, match=r"a\.png"):
        to_rgb(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_truncated_files_are_refused_as_pil_refuses_them(tmp_path, kind):
    data = encoded(COLORS, kind)
    for length in range(0, len(data), max(1, len(data) // 40)):
        path = tmp_path / f"a.{kind.lower()}"
        refused = is_refused(path, data[:length])
        try:
            with Image.open(path) as image:
                image.load()
        except Exception:
            assert refused
        else:
            assert not refused or kind == "PNG"  # the last chunk may be cut


def chunk(kind, content=b""):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def test_png_files_of_unusual_structure_are_read(tmp_path):
    data = bytes(encoded(COLORS, "PNG"))
    several = io.BytesIO()
    pages = [Image.fromarray(255 - COLORS)]
    Image.fromarray(COLORS).save(several, "PNG", save_all=True, append_images=pages)

    variants = {
        "trailing": data + b"anything",
        "animated": several.getvalue(),
        "unknown chunk": data[:-12] + chunk(b"prIV", b"abc") + data[-12:],
    }
    for name, variant in variants.items():
        (tmp_path / f"{name}.png").write_bytes(variant)
        assert np.array_equal(read_image(str(tmp_path / f"{name}.png")), COLORS), name


def tiff(pixels, *, sample_format=1, extra=(), orientation=1, planar=False):
    """A TIFF file of an (H, W) or (H, W, C) array, RGB from three bands on."""
    height, width = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    planes = [pixels.tobytes()]
    if planar:
        planes = [pixels[..., i].tobytes() for i in range(bands)]

    entries = {
        256: [width], 257: [height], 258: [pixels.itemsize * 8] * bands, 259: [1],
        262: [2 if bands > 2 else 1], 273: [0] * len(planes), 274: [orientation], 277: [bands],
        278: [height], 279: [len(plane) for plane in planes], 284: [1 + planar],
        339: [sample_format] * bands,
    }  # fmt: skip
    if extra:
        entries[338] = list(extra)

    # Values of more than four bytes follow the directory, and the pixels follow them.
    start = 8 + 2 + 12 * len(entries) + 4
    place = start + sum(4 * len(x) for x in entries.values() if len(x) > 1)
    entries[273] = [place + sum(map(len, planes[:i])) for i in range(len(planes))]
    directory = b""
    values = b""
    for tag in sorted(entries):
        packed = struct.pack(f"<{len(entries[tag])}I", *entries[tag])
        if len(packed) > 4:
            values, packed = values + packed, struct.pack("<I", start + len(values))
        directory += struct.pack("<HHI", tag, 4, len(entries[tag])) + packed

    count = struct.pack("<H", len(entries))
    return b"II*\0\x08\0\0\0" + count + directory + b"\0" * 4 + values + b"".join(planes)


def read_tiff(tmp_path, pixels, **options):
    (tmp_path / "a.tif").write_bytes(tiff(np.ascontiguousarray(pixels), **options))
    return read_image(str(tmp_path / "a.tif"))


INFRARED = np.full(GRAY.shape, 100)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(tmp_path, dtype):
    scale = 257 if dtype == np.uint16 else 1
    pixels = (np.dstack([COLORS, INFRARED]) * scale).astype(dtype)
    for extra in ((), (0,)):
        assert np.array_equal(read_tiff(tmp_path, pixels, extra=extra), COLORS), extra

    # 100 of 255 of the color, and the rest is white.
    shown = read_tiff(tmp_path, pixels, extra=(2,)).astype(int)
    assert np.abs(shown - (COLORS * (100 / 255) + 155)).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "sample_format"),
    [("uint16", 1), ("uint32", 1), ("int16", 2), ("int32", 2), ("float32", 3), ("float64", 3)],
)
@pytest.mark.parametrize("bands", [1, 3])
def test_tiff_files_of_all_depths_are_read(tmp_path, dtype, sample_format, bands):
    image = COLORS if bands == 3 else GRAY
    pixels = (image.astype(int) * 16).astype(dtype)
    expected = image if bands == 3 else np.dstack([GRAY] * 3)
    found = read_tiff(tmp_path, pixels, sample_format=sample_format)
    assert np.abs(found.astype(int) - expected).max() <= 1  # floating values are rounded


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colors_are_turned_once(tmp_path, orientation, dtype):
    sample_format = 3 if dtype == np.float32 else 1
    options = {"orientation": orientation, "sample_format": sample_format}
    found = read_tiff(tmp_path, COLORS.astype(dtype) * dtype(257), **options)
    (tmp_path / "b.tif").write_bytes(tiff(COLORS, orientation=orientation))

    assert np.abs(found.astype(int) - read_image(str(tmp_path / "b.tif"))).max() <= 1
    assert read_size(tmp_path / "a.tif")[0] == found.shape[1::-1]


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (np.dstack([COLORS] * 2).astype(np.uint16), {"extra": (0, 0, 0)}),
        (COLORS.astype(np.float16), {"sample_format": 3}),
        (COLORS.astype(np.uint16), {"planar": True}),
    ],
)
def test_bands_that_cannot_be_read_are_described(tmp_path, pixels, options, capfd):
    with pytest.raises(ImageReadError, match=r"a\.tif: a TIFF file of \d bands of 16 bits.*save"):
        read_tiff(tmp_path, pixels, **options)
    assert capfd.readouterr().err == ""


def test_signed_integers_of_8_bits_are_refused(tmp_path):
    pixels = (GRAY.astype(int) - 128).astype(np.int8)
    with pytest.raises(ImageReadError, match="8 bits are signed; save them as unsigned"):
        read_tiff(tmp_path, pixels, sample_format=2)
