"""Sheets of panels: images side by side with titles and a legend, drawn with matplotlib.

What is drawn on a panel is in pixels of its image. Coordinates are continuous: the pixel in
column i reaches from i to i + 1.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from salience_detr.utils.drawing import draw_salience, resize_between

# Okabe and Ito's colors, which color-blind people tell apart.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")
DPI = 100
# The longer side of an image on a panel, in pixels.
MAX_SIDE = 1200
Window = tuple[float, float, float, float]


def palette_color(index: int) -> str:
    """Return the color of a level, or of another thing that is counted, in all drawings."""
    return PALETTE[index % len(PALETTE)]


def gray_image(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, 3) RGB image without its colors, to draw on in color."""
    gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)


def resize_map(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Resize a level's (h, w) map over a whole image, bilinearly, to (height, width) float32."""
    size = image.shape[1], image.shape[0]
    return cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)


def new_sheet(
    heading: str, count: int, shape: Sequence[int], *, columns: int | None = None, side: int = 560
) -> tuple[Figure, list[Axes]]:
    """Create a sheet of panels.

    Args:
        heading: text over all panels.
        count: number of panels.
        shape: (height, width) of their images.
        columns: panels in a row; by default as many as make the sheet about as wide as a screen.
        side: longer side of a panel, in pixels.
    """
    columns = columns or screen_columns(count, shape)
    rows = math.ceil(count / columns)

    # Inches. A narrow panel has room for its title, and each row and the sheet for text.
    scale = side / max(shape[:2]) / DPI
    width = columns * max(2.0, shape[1] * scale)
    height = rows * (max(0.5, shape[0] * scale) + 0.4) + 0.8

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(textwrap.fill(heading, round(width * 11)), x=0.01, ha="left")

    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()

    return figure, axes[:count]


def show_image(
    axes: Axes,
    image: np.ndarray,
    title: str,
    *,
    window: Window | None = None,
    heat: np.ndarray | None = None,
) -> None:
    """Show an image on a panel.

    Args:
        axes: the panel.
        image: (H, W, 3) uint8 RGB.
        title: text above it.
        window: xyxy of the part to show, by default all; what lies outside the image is gray.
        heat: (h, w) map in [0, 1] to draw over the whole image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = window or (0, 0, width, height)

    # Of very large images only as many pixels are drawn as can be seen.
    left = max(0, math.floor(x0))
    top = max(0, math.floor(y0))
    right = min(width, math.ceil(x1))
    bottom = min(height, math.ceil(y1))
    shown = resize_between(image[top:bottom, left:right], 0, MAX_SIDE)
    if heat is not None:
        shown = draw_salience(shown, resize_map(heat, shown))

    # By default a pixel's center, not its edge, has whole coordinates.
    axes.imshow(shown, extent=(left, right, bottom, top), interpolation="bilinear")
    axes.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[], facecolor="gainsboro")
    axes.spines[:].set_visible(False)

    # A letter is about 7 pixels wide.
    characters = max(30, round(axes.get_window_extent().width / 7))
    axes.set_title(textwrap.fill(title, characters), loc="left", fontsize=10)


def draw_box(
    axes: Axes, box: np.ndarray, color: str, linewidth: float = 1.5, linestyle: str = "-"
) -> None:
    """Draw an xyxy box, which may reach beyond the image."""
    x0, y0, x1, y1 = box
    rectangle = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color)
    rectangle.set(linewidth=linewidth, linestyle=linestyle)
    axes.add_patch(rectangle)


def add_legend(
    figure: Figure, colors: Sequence[str], labels: Sequence[str], *, below: bool = True
) -> None:
    """Add a legend of colors below all panels, or beside them."""
    handles = []
    for color, label in zip(colors, labels, strict=True):
        handles.append(Patch(color=color, label=label))

    if below:
        columns = max(1, int(figure.get_figwidth() / 2.2))
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False)
    else:
        figure.legend(handles=handles, loc="outside right upper", frameon=False)


def render(figure: Figure) -> np.ndarray:
    """Draw a figure: (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def screen_columns(count: int, shape: Sequence[int]) -> int:
    """Return the columns of (h, w) panels for a sheet of about 16:9 with few empty places."""

    def misfit(columns: int) -> float:
        rows = math.ceil(count / columns)
        aspect = columns * shape[1] / (rows * shape[0])
        return abs(math.log(aspect / (16 / 9))) + 0.3 * (columns * rows - count)

    return min(range(1, count + 1), key=misfit)
