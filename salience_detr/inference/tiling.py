"""Detection on overlapping tiles of an image, for large images and small objects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from tqdm import tqdm

from salience_detr.checkpoint import ScoreThresholds
from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.data.value_range import ValueRange
from salience_detr.detections import Detections
from salience_detr.detector import Detector, PredictorOutput
from salience_detr.inference.merging import Grid, merge
from salience_detr.modeling.postprocess import clip_detections

Tile = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image

WHOLE = -1  # number of the view that is the whole image
MARGIN = 0.02  # fraction of a tile's side; a box within it of a border may be cut there
MAX_WHOLE_PIXELS = 2**24  # maximum size of the whole image that is detected on, and of its salience
MIN_TILES_OF_BAR = 16  # images of fewer tiles have no progress bar


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return the starts of the tiles along a side; the last one is shifted to end with the side."""
    if length <= tile:
        return [0]

    step = max(1, math.floor(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]


def tile_grid(height: int, width: int, tile: int, overlap: float) -> list[Tile]:
    """Return the square tiles of an image, row by row, cropped if the image is smaller."""
    tiles = []

    for y in tile_starts(height, tile, overlap):
        for x in tile_starts(width, tile, overlap):
            tiles.append((x, y, min(x + tile, width), min(y + tile, height)))
    return tiles


class TiledDetector(Detector):
    """Detector that runs another detector on tiles and merges the results (see ``merging``).

    An image that fits into one tile is passed to the other detector unchanged. A larger one is
    detected on as a whole, too. The detector sees small objects better on the tiles, so a detection
    on the whole image counts only if it is longer than half a tile or no tile shows all of it. This
    also avoids false detections. The number of detections per image is not limited.

    Memory is bounded: tiles are not copied. If the image has more than :data:`MAX_WHOLE_PIXELS`,
    the pass over the whole image and the salience use a smaller copy.

    Args:
        detector: the other detector.
        tile: side of the tiles in pixels. The size of the training images is a good value.
        overlap: overlap of neighboring tiles, as a fraction of their side. Every object that is
            smaller than the overlap is inside some tile.
        with_whole: whether to detect on the whole image, too, for objects larger than a tile.
        progress: whether to show a progress bar for an image of many tiles.

    Raises:
        ValueError: the side or the overlap is out of range.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tile: int,
        overlap: float = 0.2,
        with_whole: bool = True,
        progress: bool = False,
    ) -> None:
        if tile < 2:
            raise ValueError(f"tile is {tile}; the side of a tile is at least 2 pixels")
        if not 0 <= overlap <= 0.9:
            raise ValueError(f"overlap is {overlap}; tiles overlap by 0 to 0.9 of their side")

        self.detector = detector
        self.classes = detector.classes
        self.source = detector.source
        self.batch_size = detector.batch_size
        self.tile = tile
        self.overlap = overlap
        self.with_whole = with_whole
        self.progress = progress

    @property
    def best_thresholds(self) -> ScoreThresholds | None:
        return self.detector.best_thresholds

    @property
    def value_range(self) -> ValueRange:
        return self.detector.value_range

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        """Yield detections and salience of each image."""
        for image in images:
            pixels = np.ascontiguousarray(to_rgb(image, channel_order, self.value_range))
            height, width = pixels.shape[:2]
            tiles = tile_grid(height, width, self.tile, self.overlap)

            # A small image needs no merging.
            if len(tiles) == 1:
                output = next(self.detector.stream([pixels]))
                instances: Instances = output.detections
                salience = output.salience
            else:
                instances, salience = self._detect_on_tiles(pixels, tiles)

            read_image = partial(to_rgb, image, channel_order, self.value_range)
            yield PredictorOutput(Detections(instances, self.classes, read_image), salience)

    def _detect_on_tiles(
        self, image: np.ndarray, tiles: list[Tile]
    ) -> tuple[Instances, np.ndarray]:
        """Return the detections on an (H, W, 3) image and its (h, w) salience."""
        height, width = image.shape[:2]
        margin = max(2.0, MARGIN * self.tile)
        grid = Grid(torch.tensor(tiles, dtype=torch.float64), height, width, margin)

        small = shrink(image)
        salience = np.zeros(small.shape[:2], np.float32)

        views = []
        if self.with_whole:
            output = next(self.detector.stream([small]))
            salience[:] = output.salience
            views.append(self._view_of_whole(output.detections, grid))

        # Slices share the memory of the image, and the outputs are merged into it one by one.
        crops = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in tiles]
        outputs = tqdm(
            self.detector.stream(crops), total=len(tiles), desc="tiles", unit="tile",
            leave=False, disable=not self.progress or len(tiles) < MIN_TILES_OF_BAR,
        )  # fmt: skip
        for number, output in enumerate(outputs):
            views.append(view_of_tile(output.detections, grid, number))
            paint_highest(salience, output.salience, tiles[number], (height, width))

        merged = merge(Instances.cat(views), grid)
        instances = Instances(
            (height, width),
            pred_boxes=Boxes(merged.boxes.float()),
            scores=merged.scores,
            pred_classes=merged.classes,
        )

        # A box far from the upper left may lose its area in float32.
        return clip_detections(instances), salience

    def _view_of_whole(self, detections: Detections, grid: Grid) -> Instances:
        """Return the detections on the whole image, or on a smaller copy of it, that count."""
        rows, columns = detections.image_size
        scale = torch.tensor([grid.width / columns, grid.height / rows], dtype=torch.float64)
        boxes = detections.pred_boxes.tensor * scale.repeat(2)
        tile = torch.tensor([0, 0, grid.width, grid.height], dtype=torch.float64)
        view = make_view(detections, boxes, tile, torch.zeros_like(boxes, dtype=torch.bool), WHOLE)

        # The tiles show all other objects larger.
        sides = view.boxes[:, 2:] - view.boxes[:, :2]
        is_long = (sides > self.tile / 2).any(dim=1)
        return view[is_long | ~grid.shows_whole(view.boxes)]


def view_of_tile(detections: Detections, grid: Grid, number: int) -> Instances:
    """Return the detections on tile ``number``, in the frame of the image."""
    tile = grid.tiles[number]
    boxes = detections.pred_boxes.tensor + tile[:2].repeat(2)
    return make_view(detections, boxes, tile, grid.cut_sides(boxes, tile), number)


def make_view(
    detections: Detections, boxes: Tensor, tile: Tensor, cut: Tensor, number: int
) -> Instances:
    """Return the detections on a view, clipped to it, with the fields that ``merging`` needs.

    Boxes without area are left out.

    Args:
        detections: detections on the view.
        boxes: (N, 4) float64, their boxes in the frame of the image.
        tile: (4,) box of the view.
        cut: (N, 4) bool, the sides on which the boxes are cut.
        number: number of the view.
    """
    boxes = boxes.clamp(tile[:2].repeat(2), tile[2:].repeat(2))
    view = Instances(
        (0, 0),  # not used; views of different sizes are concatenated
        boxes=boxes,
        scores=detections.scores,
        classes=detections.pred_classes,
        views=torch.full((len(boxes),), number),
        tiles=tile.expand(len(boxes), 4),
        cut=cut,
    )
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return view[has_area]


def shrink(image: np.ndarray) -> np.ndarray:
    """Return the image, or a copy reduced to :data:`MAX_WHOLE_PIXELS` if it has more."""
    height, width = image.shape[:2]
    scale = math.sqrt(MAX_WHOLE_PIXELS / (height * width))
    if scale >= 1:
        return image

    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def paint_highest(
    canvas: np.ndarray, salience: np.ndarray, tile: Tile, size: tuple[int, int]
) -> None:
    """Raise the salience of an image to that of a tile wherever it is lower.

    Args:
        canvas: (h, w) salience of the image, which may be reduced in size; changed in place.
        salience: salience of the tile, in the full size of the tile.
        tile: place of the tile in the image.
        size: (height, width) of the image.
    """
    # Rounding outwards leaves no pixel between tiles without a value.
    rows = canvas.shape[0] / size[0]
    columns = canvas.shape[1] / size[1]
    left = math.floor(tile[0] * columns)
    top = math.floor(tile[1] * rows)
    right = math.ceil(tile[2] * columns)
    bottom = math.ceil(tile[3] * rows)

    place = canvas[top:bottom, left:right]
    if place.shape != salience.shape:
        salience = cv2.resize(salience, place.shape[::-1], interpolation=cv2.INTER_AREA)
    np.maximum(place, salience, out=place)
