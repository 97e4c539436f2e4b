"""Panels: images enlarged or reduced to be looked at, with a title each, side by side above a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
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
LONG_SIDE = 560  # pixels of a panel
TEXT_SIZE, GAP = 15, 8  # pixels
SUBPIXEL_BITS = 4  # of the coordinates that OpenCV is given


def level_color(level: int) -> Color:
    """The color that a level of the pyramid has in all images."""
    return PALETTE[level % len(PALETTE)]


@lru_cache(maxsize=4)
def text_font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: OpenCV's has ASCII only."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def text_width(text: str) -> int:
    return math.ceil(text_font(TEXT_SIZE).getlength(text))


def gray_image(image: np.ndarray) -> np.ndarray:
    """An (H, W, 3) RGB image without its colors, for what is drawn on it in color."""
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None].repeat(
        3, axis=2
    )


def heat_colors(values: np.ndarray) -> np.ndarray:
    """(...) values in [0, 1] -> (..., 3) uint8 RGB from dark blue to yellow, as :func:`draw_salience` has them."""
    scaled = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(scaled.reshape(-1, 1), cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].reshape(
        *scaled.shape, 3
    )


def resize_map(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w) map of a level over a whole image, bilinear -> (height, width) float32."""
    return cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


class Panel:
    """A part of an image at the size of a panel; all that is drawn on it is given in pixels of the image.

    A coordinate is continuous: the pixel in column i reaches from i to i + 1.

    Args:
        image: (H, W, 3) uint8 RGB.
        window: (x0, y0, x1, y1) the part that is shown, all of it by default; what lies outside the image is gray.
        long_side: of the panel, in its own pixels.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, what is drawn so far.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        window: tuple[float, float, float, float] | None = None,
        long_side: int = LONG_SIDE,
    ) -> None:
        x0, y0, x1, y1 = window or (0, 0, image.shape[1], image.shape[0])
        self.scale = long_side / max(x1 - x0, y1 - y0)
        self.origin = (x0, y0)
        width, height = (max(1, round(side * self.scale)) for side in (x1 - x0, y1 - y0))
        self.taken: list[tuple[int, int, int, int]] = []  # by labels
        image = np.ascontiguousarray(image)
        if window is None:
            method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
            self.pixels = cv2.resize(image, (width, height), interpolation=method)
        else:
            # OpenCV's coordinates name the middles of pixels.
            shift = [0.5 * self.scale - 0.5 - origin * self.scale for origin in (x0, y0)]
            transform = np.array([[self.scale, 0, shift[0]], [0, self.scale, shift[1]]])
            self.pixels = cv2.warpAffine(image, transform, (width, height), borderValue=PALE)

    def locate(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of the image -> (..., 2) continuous pixels of the panel."""
        return (np.asarray(points, dtype=np.float64) - self.origin) * self.scale

    def _fixed_point(self, point: np.ndarray) -> tuple[int, int]:
        """What OpenCV is given for a point; far outside it would overflow."""
        x, y = (
            np.clip((self.locate(point) - 0.5) * 2**SUBPIXEL_BITS, -(2**26), 2**26)
            .round()
            .astype(int)
            .tolist()
        )
        return x, y

    def dot(self, point: np.ndarray, radius: float, color: Color) -> None:
        """A filled dot with a thin dark rim; the radius is in pixels of the panel."""
        at, one = self._fixed_point(point), 2**SUBPIXEL_BITS
        for grown, ink in ((1.0, BLACK), (0.0, color)):
            cv2.circle(
                self.pixels, at, round((radius + grown) * one), ink, -1, cv2.LINE_AA, SUBPIXEL_BITS
            )

    def line(self, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1) -> None:
        cv2.line(
            self.pixels,
            self._fixed_point(start),
            self._fixed_point(end),
            color,
            thickness,
            cv2.LINE_AA,
            SUBPIXEL_BITS,
        )

    def dashes(self, start: np.ndarray, end: np.ndarray, color: Color, thickness: int = 1) -> None:
        """A dashed line, of dashes and gaps of about five pixels of the panel."""
        start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        count = max(1, min(500, round(float(np.abs(end - start).max()) * self.scale / 10)))
        for i in range(count):
            self.line(
                start + (end - start) * i / count,
                start + (end - start) * (i + 0.5) / count,
                color,
                thickness,
            )

    def box(
        self, box: np.ndarray, color: Color, thickness: int = 1, *, dashed: bool = False
    ) -> None:
        """(4,) xyxy, which may reach beyond the image."""
        x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        draw = self.dashes if dashed else self.line
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            draw(start, end, color, thickness)

    def cells(self, cells: np.ndarray, colors: np.ndarray, *, opacity: float = 0.6) -> None:
        """Fill (n, 4) xyxy cells with (n, 3) colors; between them a thin line stays where they are large enough."""
        size = [self.pixels.shape[1], self.pixels.shape[0]]
        edges = np.clip(self.locate(np.reshape(cells, (-1, 2, 2))).round().astype(int), 0, size)
        for ((x0, y0), (x1, y1)), color in zip(edges.tolist(), colors, strict=True):
            x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # a cell smaller than a pixel is seen, too
            gap = 1 if min(x1 - x0, y1 - y0) >= 6 else 0
            part = self.pixels[y0 : y1 - gap, x0 : x1 - gap]
            part[:] = np.round(part * (1 - opacity) + np.asarray(color) * opacity)

    def label(self, point: np.ndarray, text: str, color: Color) -> None:
        """Text on a filled box above a point, moved into the panel and below the labels that are there already."""
        width, height = text_width(text) + 4, TEXT_SIZE + 4
        x, y = self.locate(point)
        left = int(np.clip(x, 0, max(0, self.pixels.shape[1] - width)))
        lowest = max(0, self.pixels.shape[0] - height)
        top = first = int(np.clip(y - height, 0, lowest))
        while top < lowest and any(
            overlap((left, top, left + width, top + height), other) for other in self.taken
        ):
            top += 2
        top = first if top >= lowest else top
        self.taken.append((left, top, left + width, top + height))
        image = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(image)
        draw.rectangle([left, top, left + width - 1, top + height - 1], fill=color)
        draw.text((left + 2, top), text, fill=text_ink(color), font=text_font(TEXT_SIZE))
        self.pixels = np.array(image)


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two xyxy boxes share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def text_ink(color: Color) -> Color:
    """Black or white, whichever can be read on a color."""
    return BLACK if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else WHITE


def text_strip(text: str, width: int) -> np.ndarray:
    """(h, width, 3) black on white, broken into lines where it is too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if not lines[-1] or text_width(longer) <= width else [lines[-1], word]
    strip = Image.new("RGB", (width, len(lines) * (TEXT_SIZE + 5)), WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(strip).text(
            (0, i * (TEXT_SIZE + 5)), line, fill=BLACK, font=text_font(TEXT_SIZE)
        )
    return np.array(strip)


def legend_strip(entries: Sequence[tuple[Color, str]], width: int) -> np.ndarray:
    """(h, width, 3): a square of each color and what it stands for, in as many lines as are needed."""
    places, x, row = [], 0, 0
    for _, text in entries:
        needed = TEXT_SIZE + 6 + text_width(text) + 18
        if x and x + needed > width:
            x, row = 0, row + 1
        places.append((x, row * (TEXT_SIZE + 6)))
        x += needed
    strip = Image.new("RGB", (width, (row + 1) * (TEXT_SIZE + 6)), WHITE)
    draw = ImageDraw.Draw(strip)
    for (color, text), (left, top) in zip(entries, places, strict=True):
        draw.rectangle(
            [left, top + 2, left + TEXT_SIZE - 1, top + TEXT_SIZE + 1], fill=color, outline=GRAY
        )
        draw.text((left + TEXT_SIZE + 6, top), text, fill=BLACK, font=text_font(TEXT_SIZE))
    return np.array(strip)


def heat_bar(width: int, low: str, high: str) -> np.ndarray:
    """(h, width, 3): the colors of :func:`heat_colors` between the words for 0 and for 1."""
    bar = np.full((TEXT_SIZE + 6, width, 3), 255, np.uint8)
    image = Image.fromarray(bar)
    draw, font, length = ImageDraw.Draw(image), text_font(TEXT_SIZE), 160
    draw.text((0, 0), low, fill=BLACK, font=font)
    left = text_width(low) + 8
    draw.text((left + length + 8, 0), high, fill=BLACK, font=font)
    bar = np.array(image)
    scale = heat_colors(np.linspace(0, 1, length))
    bar[3 : TEXT_SIZE + 3, left : left + length] = scale[: max(0, width - left)]
    return bar


def assemble(
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    heading: str = "",
    columns: int | None = None,
    legend: Sequence[tuple[Color, str]] = (),
    heat: tuple[str, str] | None = None,
) -> np.ndarray:
    """One (H, W, 3) uint8 RGB image of panels with titles, row by row.

    Args:
        panels: titles, and (h, w, 3) uint8 RGB images of any sizes.
        heading: over all of them.
        columns: in a row; by default so many that the whole is about as wide as a screen.
        legend: colors and what they stand for, below.
        heat: the words for 0 and 1 of a scale of heat colors, below.
    """
    columns = columns or screen_columns(len(panels), panels[0][1].shape)
    width = max(max(x.shape[1] for _, x in panels), 180)
    total = columns * (width + GAP) - GAP
    rows = [text_strip(heading, total)] if heading else []
    for start in range(0, len(panels), columns):
        rows += arrange_row(panels[start : start + columns], width)
    if legend:
        rows.append(legend_strip(legend, total))
    if heat:
        rows.append(heat_bar(total, *heat))
    rows = [
        cv2.copyMakeBorder(x, 0, GAP, 0, total - x.shape[1], cv2.BORDER_CONSTANT, value=WHITE)
        for x in rows
    ]
    return cv2.copyMakeBorder(
        np.concatenate(rows), GAP, 0, GAP, GAP, cv2.BORDER_CONSTANT, value=WHITE
    )


def arrange_row(panels: Sequence[tuple[str, np.ndarray]], width: int) -> list[np.ndarray]:
    """The titles and the panels of a row, each (h, W, 3), in columns of a width."""
    titles = [text_strip(title, width) for title, _ in panels]
    strips = []
    for pieces, at_bottom in ((titles, True), ([x for _, x in panels], False)):
        height = max(x.shape[0] for x in pieces)
        padded = []
        for piece in pieces:
            missing = height - piece.shape[0]
            above, below = (missing, 0) if at_bottom else (0, missing)
            right = width - piece.shape[1] + GAP
            padded.append(
                cv2.copyMakeBorder(piece, above, below, 0, right, cv2.BORDER_CONSTANT, value=WHITE)
            )
        strips.append(np.concatenate(padded, axis=1)[:, :-GAP])
    return strips


def screen_columns(count: int, shape: tuple[int, ...]) -> int:
    """Columns of ``count`` panels of (h, w) that make an image of about 16:9 with few empty places."""

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns * shape[1] / (rows * shape[0]) / (16 / 9))) + 0.3 * (
            columns * rows - count
        )

    return min(range(1, count + 1), key=misfit)
