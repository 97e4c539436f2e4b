"""Panels: images resized to be drawn on, and sheets of them with titles and a legend."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from salience_detr.utils.drawing import Color

# Okabe and Ito's colors, which color-blind people tell apart.
PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
)
WHITE, BLACK, GRAY, PALE = (255, 255, 255), (0, 0, 0), (150, 150, 150), (225, 225, 225)
Window = tuple[float, float, float, float]

# In pixels: the longer side of a panel, or of one of many; text, and the space between panels.
LONG_SIDE, SMALL_SIDE = 560, 420
TEXT_SIZE, GAP = 15, 8
# Fractional bits of the coordinates that OpenCV is given.
SUBPIXEL_BITS = 4


def level_color(level: int) -> Color:
    """Return the color that a level of the pyramid has in all drawings."""
    return PALETTE[level % len(PALETTE)]


@lru_cache(maxsize=8)
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """Load the font that comes with matplotlib; OpenCV's has ASCII only."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def text_width(text: str) -> int:
    return math.ceil(text_font(TEXT_SIZE).getlength(text))


def gray_image(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, 3) RGB image without its colors, to draw on in color."""
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Map (...) values in [0, 1] to (..., 3) uint8 RGB, as :func:`draw_salience` does."""
    return matplotlib.colormaps["viridis"](values, bytes=True)[..., :3]


def resize_map(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize a level's (h, w) map over the whole image, bilinearly, to (height, width) float32."""
    return cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


class Panel:
    """A part of an image at the size of a panel; what is drawn on it is in pixels of the image.

    Coordinates are continuous: the pixel in column i reaches from i to i + 1.

    Args:
        image: (H, W, 3) uint8 RGB.
        window: xyxy of the part to show, by default all; what lies outside the image is gray.
        long_side: longer side of the panel, in its own pixels.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, the drawing so far.
    """

    def __init__(
        self, image: np.ndarray, *, window: Window | None = None, long_side: int = LONG_SIDE
    ) -> None:
        x0, y0, x1, y1 = window or (0, 0, image.shape[1], image.shape[0])
        self.scale = long_side / max(x1 - x0, y1 - y0)
        self.origin = (x0, y0)
        self.labels: list[tuple[int, int, int, int]] = []
        width = max(1, round((x1 - x0) * self.scale))
        height = max(1, round((y1 - y0) * self.scale))

        image = np.ascontiguousarray(image)
        if window is None:
            method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
            self.pixels = cv2.resize(image, (width, height), interpolation=method)
        else:
            # OpenCV's coordinates are those of the pixels' centers.
            shift = 0.5 * self.scale - 0.5 - np.array([x0, y0]) * self.scale
            transform = np.column_stack([np.eye(2) * self.scale, shift])
            self.pixels = cv2.warpAffine(image, transform, (width, height), borderValue=PALE)

    def locate(self, points: np.ndarray) -> np.ndarray:
        """Convert (..., 2) pixels of the image to (..., 2) continuous pixels of the panel."""
        return (np.asarray(points, dtype=np.float64) - self.origin) * self.scale

    def _fixed_point(self, point: np.ndarray) -> tuple[int, int]:
        """Convert a point to OpenCV's fixed-point coordinates, which far outside would overflow."""
        fixed = np.clip((self.locate(point) - 0.5) * 2**SUBPIXEL_BITS, -(2**26), 2**26)
        return round(fixed[0]), round(fixed[1])

    def dot(self, point: np.ndarray, radius: float, color: Color) -> None:
        """Draw a filled dot with a thin dark rim; the radius is in pixels of the panel."""
        center = self._fixed_point(point)
        for size, ink in ((radius + 1, BLACK), (radius, color)):
            fixed_size = round(size * 2**SUBPIXEL_BITS)
            cv2.circle(self.pixels, center, fixed_size, ink, -1, cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1) -> None:
        ends = self._fixed_point(start), self._fixed_point(end)
        cv2.line(self.pixels, *ends, color, thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def dashes(self, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1) -> None:
        """Draw a dashed line, of dashes and gaps of about five pixels of the panel."""
        length = float(np.abs(end - start).max()) * self.scale
        count = max(1, min(500, round(length / 10)))
        step = (end - start) / count
        for i in range(count):
            self.line(start + i * step, start + (i + 0.5) * step, color, thickness)

    def box(
        self, box: np.ndarray, color: Color, thickness: int = 1, *, dashed: bool = False
    ) -> None:
        """Draw an xyxy box, which may reach beyond the image."""
        x0, y0, x1, y1 = box
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)
        draw = self.dashes if dashed else self.line
        for i in range(4):
            draw(corners[i - 1], corners[i], color, thickness)

    def cells(self, cells: np.ndarray, colors: np.ndarray, *, opacity: float = 0.6) -> None:
        """Fill (n, 4) xyxy cells with (n, 3) colors, a thin line between large ones left free."""
        size = [self.pixels.shape[1], self.pixels.shape[0]]
        edges = np.clip(self.locate(np.reshape(cells, (-1, 2, 2))).round().astype(int), 0, size)
        for ((x0, y0), (x1, y1)), color in zip(edges.tolist(), colors, strict=True):
            # A cell smaller than a pixel is seen, too.
            x1 = max(x1, x0 + 1)
            y1 = max(y1, y0 + 1)
            gap = 1 if min(x1 - x0, y1 - y0) >= 6 else 0
            part = self.pixels[y0 : y1 - gap, x0 : x1 - gap]
            part[:] = np.round(part * (1 - opacity) + np.asarray(color) * opacity)

    def label(self, point: np.ndarray, text: str, color: Color) -> None:
        """Write text on a filled box above a point, inside the panel and below earlier labels."""
        width = text_width(text) + 4
        height = TEXT_SIZE + 4
        x, y = self.locate(point)
        left = int(np.clip(x, 0, max(0, self.pixels.shape[1] - width)))
        lowest = max(0, self.pixels.shape[0] - height)
        wanted = int(np.clip(y - height, 0, lowest))

        # The first free place further down; without one, labels may cover each other.
        box = (left, wanted, left + width, wanted + height)
        for top in range(wanted, lowest, 2):
            candidate = (left, top, left + width, top + height)
            if not any(boxes_overlap(candidate, other) for other in self.labels):
                box = candidate
                break
        self.labels.append(box)

        image = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(image)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=color)
        draw.text((left + 2, box[1]), text, fill=text_color(color), font=text_font(TEXT_SIZE))
        self.pixels = np.array(image)


def boxes_overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Return True if two xyxy boxes share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def text_color(background: Color) -> Color:
    """Return black or white, whichever can be read on a color."""
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def text_strip(text: str, width: int, size: int = TEXT_SIZE) -> np.ndarray:
    """Write text, black on white, in as many lines as it needs, on an (h, width, 3) image."""
    font = text_font(size)
    # Few letters are wider than a digit.
    lines = textwrap.wrap(text, max(1, int(width / font.getlength("0")))) or [""]
    pitch = size + 5
    strip = Image.new("RGB", (width, len(lines) * pitch), WHITE)
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(lines):
        draw.text((0, i * pitch), line, fill=BLACK, font=font)
    return np.array(strip)


def legend_strip(entries: Sequence[tuple[Color, str]], width: int) -> np.ndarray:
    """Draw squares of colors and their meanings, in as many lines as needed: (h, width, 3)."""
    pitch = TEXT_SIZE + 6
    strip = Image.new("RGB", (width, len(entries) * pitch), WHITE)
    draw = ImageDraw.Draw(strip)
    left = top = 0
    for color, text in entries:
        needed = TEXT_SIZE + 6 + text_width(text) + 18
        if left and left + needed > width:
            left = 0
            top += pitch

        square = (left, top + 2, left + TEXT_SIZE - 1, top + TEXT_SIZE + 1)
        draw.rectangle(square, fill=color, outline=GRAY)
        draw.text((left + TEXT_SIZE + 6, top), text, fill=BLACK, font=text_font(TEXT_SIZE))
        left += needed
    return np.array(strip)[: top + pitch]


def heat_bar(width: int, low: str, high: str) -> np.ndarray:
    """Draw the scale of :func:`heat_colors` between the words for 0 and 1: (h, width, 3)."""
    length = 160
    scale = heat_colors(np.linspace(0, 1, length))[None].repeat(TEXT_SIZE, axis=0)
    left = text_width(low) + 8

    strip = Image.new("RGB", (width, TEXT_SIZE + 6), WHITE)
    strip.paste(Image.fromarray(scale), (left, 3))
    draw = ImageDraw.Draw(strip)
    draw.text((0, 0), low, fill=BLACK, font=text_font(TEXT_SIZE))
    draw.text((left + length + 8, 0), high, fill=BLACK, font=text_font(TEXT_SIZE))
    return np.array(strip)


def assemble(
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    heading: str = "",
    columns: int | None = None,
    legend: Sequence[tuple[Color, str]] = (),
    heat: tuple[str, str] | None = None,
    title_size: int = TEXT_SIZE,
) -> np.ndarray:
    """Arrange panels with titles row by row on one (H, W, 3) uint8 RGB image.

    Args:
        panels: titles, and (h, w, 3) uint8 RGB images of any size.
        heading: text over all of them.
        columns: panels in a row; by default as many as make the sheet about as wide as a screen.
        legend: colors and their meanings, written below.
        heat: the words for 0 and 1 of a scale of heat colors, drawn below.
        title_size: size of the titles, in pixels.
    """
    columns = columns or screen_columns(len(panels), panels[0][1].shape)
    width = max(180, *(image.shape[1] for _, image in panels))
    total = columns * (width + GAP) - GAP

    strips = []
    if heading:
        strips.append(text_strip(heading, total))
    for start in range(0, len(panels), columns):
        strips.append(arrange_row(panels[start : start + columns], width, title_size))
    if legend:
        strips.append(legend_strip(legend, total))
    if heat:
        strips.append(heat_bar(total, *heat))

    height = sum(len(strip) + GAP for strip in strips)
    sheet = np.full((height + GAP, total + 2 * GAP, 3), 255, dtype=np.uint8)
    top = GAP
    for strip in strips:
        sheet[top : top + len(strip), GAP : GAP + strip.shape[1]] = strip
        top += len(strip) + GAP
    return sheet


def arrange_row(
    panels: Sequence[tuple[str, np.ndarray]], width: int, title_size: int
) -> np.ndarray:
    """Arrange panels side by side in columns of a width, each below its title."""
    titles = [text_strip(title, width, title_size) for title, _ in panels]
    images = [image for _, image in panels]
    edge = max(len(title) for title in titles)
    height = edge + GAP + max(len(image) for image in images)

    row = np.full((height, len(panels) * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for i, (title, image) in enumerate(zip(titles, images, strict=True)):
        left = i * (width + GAP)
        row[edge - len(title) : edge, left : left + width] = title
        row[edge + GAP : edge + GAP + len(image), left : left + image.shape[1]] = image
    return row


def screen_columns(count: int, shape: tuple[int, ...]) -> int:
    """Return the columns of (h, w) panels for a sheet of about 16:9 with few empty places."""

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        aspect = columns * shape[1] / (rows * shape[0])
        return abs(math.log(aspect / (16 / 9))) + 0.3 * (columns * rows - count)

    return min(range(1, count + 1), key=misfit)
