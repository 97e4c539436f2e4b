"""Decoding of image files: 8 bits by PIL, and deep images with all of their bits."""

from __future__ import annotations

import importlib
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, BinaryIO, TypeAlias

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

logger = logging.getLogger(__name__)

Tags: TypeAlias = TiffImagePlugin.ImageFileDirectory_v2

# An optional package: pip install pillow-heif.
with suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()

# PIL warns of larger images and refuses those of twice the size, as attacks. Line-scan cameras and
# scanners make images of 20,000 x 20,000 pixels. None is a user's "no limit".
MAX_PIXELS = 2**29
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG2000_SIZE = b"\xff\x4f\xff\x51"  # markers of the stream and of its sizes
JPEG2000_HEADER = 2**16  # bytes in which they are looked for
BLOCK = 2**20  # bytes that are read at a time

UPRIGHT = 1  # EXIF orientation
ORIENTATION = 0x0112  # EXIF tag
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange width and height

# Tags of TIFF files.
WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, PLANES = 256, 257, 258, 262, 277, 284
EXTRA, FORMAT = 338, 339
SIGNED = 2  # format of samples
RGB = 2  # photometric interpretation
INTERLEAVED = 1  # configuration of planes
PREMULTIPLIED, ALPHA = 1, 2  # kinds of extra samples that are transparency
# Types of a sample by format and bits, as OpenCV reads them.
SAMPLE_TYPES = {
    (1, 8): "uint8", (1, 16): "uint16", (1, 32): "uint32", (2, 16): "int16", (2, 32): "int32",
    (3, 32): "float32", (3, 64): "float64",
}  # fmt: skip


@dataclass(frozen=True)
class DecodedImage:
    """Pixels of an image file.

    Attributes:
        pixels: a PIL image of 8 bits; or a deep image as an array (H, W), (H, W, 3) or (H, W, 4) of
            uint16, int32, float32 or another type of more than 8 bits, channels RGBA.
        orientation: EXIF orientation in which the pixels are.
        is_premultiplied: the colors of a deep image are multiplied by its alpha already.
    """

    pixels: Image.Image | np.ndarray
    orientation: int = UPRIGHT
    is_premultiplied: bool = False


def decode_file(file: BinaryIO) -> DecodedImage:
    """Decode all pixels of an image file; of several pages or frames, the first.

    Raises:
        OSError, and others: the file is damaged, truncated or of an unknown kind.
    """
    signature = file.read(8)
    file.seek(0)
    if signature == PNG_SIGNATURE:
        check_png(file)
        file.seek(0)

    tags = None
    if signature[:4] in TIFF_SIGNATURES:
        tags = read_tags(file)
        file.seek(0)
        if tag_of(tags, BITS, 1) == 8 and tag_of(tags, FORMAT, 1) == SIGNED:
            # PIL takes -1 for 255.
            raise OSError("its integers of 8 bits are signed; save them as unsigned, or of 16 bits")

    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        # PIL knows no colors of floating values, for example.
        if tags is None:
            raise
        return decode_deep_tiff(file, tags)

    with image:
        if tags is not None and is_deep_rgb(tags):
            try:
                return decode_deep_tiff(file, tags)
            except OSError as error:
                if not is_interleaved(tags):
                    raise
                # OpenCV lacks some compressions.
                file.seek(0)
                image.load()
                logger.warning("%s; the upper 8 bits of each value are used", error)

        if tags is None and image.mode in ("RGB", "RGBA", "LA") and is_deep_raw(image):
            image.load()
            turn = orientation(image)
            return DecodedImage(decode_with_opencv(file), turn)
        return decode_pil(image)


def check_png(file: BinaryIO) -> None:
    """Check the checksum of each chunk of a PNG file; PIL decodes some of the damaged files.

    Raises:
        OSError: one is wrong, or the file ends within a chunk.
    """
    place = file.seek(len(PNG_SIGNATURE))
    while header := file.read(8):
        if len(header) < 8:
            raise OSError(f"the file is truncated at byte {place}")

        length, kind = struct.unpack(">I4s", header)
        crc = zlib.crc32(kind)
        left = length
        while left and (block := file.read(min(left, BLOCK))):
            crc = zlib.crc32(block, crc)
            left -= len(block)

        expected = file.read(4)
        if len(expected) < 4:
            raise OSError(f"the file is damaged or truncated after byte {place}")
        if expected != crc.to_bytes(4, "big"):
            raise OSError(f"the file is damaged after byte {place}, where a checksum is wrong")
        if kind == b"IEND":
            return
        place += length + 12


def decode_pil(image: Image.Image) -> DecodedImage:
    """Decode a PIL image of any mode.

    Raises:
        OSError, and others: its file is damaged or truncated.
    """
    # First of all: reading its EXIF data may decode it too, and hide that this failed.
    image.load()
    turn = orientation(image)

    if image.mode == "F" or image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return DecodedImage(values.astype(values.dtype.newbyteorder("="), copy=False), turn)

    # A fourth band may be infrared light, for example.
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode == "RGBA":
        extra = tag_of(image.tag_v2, EXTRA, 0)
        image = image if extra else image.convert("RGB")
    return DecodedImage(image, turn)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 (upright) where there is none or it is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # broken EXIF data fails in many ways, and the image is fine
        return UPRIGHT


def read_size(file: BinaryIO) -> tuple[tuple[int, int], int]:
    """Read the EXIF-corrected (width, height) and the EXIF orientation from an image's header.

    Raises:
        OSError, and others: the file is damaged or of an unknown kind.
    """
    signature = file.read(4)
    file.seek(0)
    if signature in TIFF_SIGNATURES:
        # PIL's sizes of these files are turned already, and not all of them can be opened.
        tags = read_tags(file)
        width = tag_of(tags, WIDTH, 0)
        height = tag_of(tags, HEIGHT, 0)
        turn = tag_of(tags, ORIENTATION, UPRIGHT)
    else:
        with Image.open(file) as image:
            width, height = image.size
            turn = orientation(image)

    if turn in QUARTER_TURNS:
        return (height, width), turn
    return (width, height), turn


def is_deep_raw(image: Image.Image) -> bool:
    """Return whether PIL would cut the 16 bits of a file's samples to 8; it is not decoded yet."""
    file = getattr(image, "fp", None)
    if image.format == "JPEG2000" and file is not None:
        return jpeg2000_bits(file) > 8

    tiles = getattr(image, "tile", None)
    if not tiles:
        return False

    # How PIL unpacks the samples; of a PPM file their largest value, too.
    codec, _, _, args = tiles[0]
    if codec == "ppm":
        return bool(args[1] == 2**16 - 1)
    return ";16" in str(args)


def jpeg2000_bits(file: IO[bytes]) -> int:
    """Return the number of bits of the first component of a JPEG 2000 file; 0 if it is unknown."""
    place = file.tell()
    file.seek(0)
    header = file.read(JPEG2000_HEADER)
    file.seek(place)

    # Behind the marker: length, capabilities, eight sizes and the number of components.
    start = header.find(JPEG2000_SIZE)
    component = header[start + 42 : start + 43]
    if start < 0 or not component:
        return 0
    return (component[0] & 0x7F) + 1  # the first bit is that of signed numbers


def is_deep_file(file: BinaryIO) -> bool:
    """Return whether an image file has more than 8 bits, from its header."""
    signature = file.read(26)
    file.seek(0)
    if signature.startswith(PNG_SIGNATURE):
        return signature[24:25] == b"\x10"  # bits of a sample
    if signature[:4] in TIFF_SIGNATURES:
        tags = read_tags(file)
        return tag_of(tags, BITS, 1) > 8

    with Image.open(file) as image:
        return image.mode == "F" or image.mode.startswith("I") or is_deep_raw(image)


def read_tags(file: BinaryIO) -> Tags:
    """Return the tags of the first page of a TIFF file.

    Raises:
        OSError: the file is damaged.
    """
    header = file.read(8)
    if header[2:4] in (b"+\0", b"\0+"):
        header += file.read(8)  # of a BigTIFF

    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
    except Exception as error:  # damaged files fail in many ways
        raise OSError(f"its list of tags is damaged ({error})") from error
    return tags


def tag_of(tags: Tags, tag: int, default: int) -> int:
    """Return the (first) value of a TIFF tag."""
    value = tags.get(tag, default)
    if isinstance(value, (tuple, list)):
        value = value[0] if value else default
    return int(value)


def is_deep_rgb(tags: Tags) -> bool:
    """Return whether a TIFF file has RGB colors of more than 8 bits."""
    return tag_of(tags, BITS, 1) > 8 and tag_of(tags, SAMPLES, 1) >= 3 and is_rgb(tags)


def is_interleaved(tags: Tags) -> bool:
    """Return whether a TIFF file has the bands of a pixel side by side."""
    return tag_of(tags, PLANES, INTERLEAVED) == INTERLEAVED


def is_rgb(tags: Tags) -> bool:
    """Return whether the first three bands of a TIFF file are red, green and blue."""
    return tag_of(tags, PHOTOMETRIC, 0) == RGB


def decode_deep_tiff(file: BinaryIO, tags: Tags) -> DecodedImage:
    """Decode a TIFF file with OpenCV; a fourth band that is not marked as alpha is dropped.

    Raises:
        OSError: OpenCV cannot read it, or not all of its values.
    """
    bands = tag_of(tags, SAMPLES, 1)
    bits = tag_of(tags, BITS, 1)
    sample_type = SAMPLE_TYPES.get((tag_of(tags, FORMAT, 1), bits))
    is_known = bands == 1 or (bands in (3, 4) and is_rgb(tags))
    # OpenCV would mix up deep channels that are stored one after the other.
    is_readable = bits == 8 or is_interleaved(tags)
    pixels = None
    if sample_type is not None and is_known and is_readable:
        pixels = decode_with_opencv(file)

    expected = () if bands == 1 else (bands,)
    if pixels is None or pixels.dtype != sample_type or pixels.shape[2:] != expected:
        kind = {3: "floating values"}.get(tag_of(tags, FORMAT, 1), "integers")
        raise OSError(
            f"a TIFF file of {bands} bands of {bits} bits ({kind}) of this kind cannot be read; "
            "save it as gray or interleaved RGB, of 8 or 16 bits or float32"
        )

    extra = tag_of(tags, EXTRA, 0)
    if bands == 4 and extra not in (PREMULTIPLIED, ALPHA):
        pixels = pixels[..., :3]
    if pixels.dtype == np.uint8:
        return DecodedImage(Image.fromarray(pixels))

    # OpenCV turns TIFF files itself.
    return DecodedImage(pixels, is_premultiplied=extra == PREMULTIPLIED)


def decode_with_opencv(file: BinaryIO) -> np.ndarray:
    """Decode an image file to (H, W), (H, W, 3) or (H, W, 4) of its own type, channels RGBA.

    Raises:
        OSError: OpenCV cannot read it.
    """
    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    try:
        with opencv_silent():
            pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError(f"OpenCV cannot decode it ({error.err})") from error
    if pixels is None:
        raise OSError("OpenCV cannot decode it")

    if pixels.ndim == 2:
        return pixels
    order = [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV's channels are BGR
    return pixels[..., order]


@contextmanager
def opencv_silent() -> Iterator[None]:
    """Keep OpenCV from printing what its exceptions and results tell as well."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
