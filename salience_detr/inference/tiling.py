"""Detection on overlapping tiles of an image, for large images and small objects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from salience_detr.data.images import ImageLike, to_rgb
from salience_detr.detections import Detections
from salience_detr.inference.merging import Found, Grid, areas, concatenate, merge
from salience_detr.predictor import Detector, PredictorOutput

Tile = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image

WHOLE = -1  # number of the view that is the whole image
MARGIN = 0.02  # part of a tile's side; boxes that come as near to a border may be cut by it
MAX_WHOLE_PIXELS = (
    2**24
)  # of the whole image as it is detected on, and of the salience that is kept
MIN_TILES_OF_BAR = 16


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side of ``length`` pixels; the last one is shifted to end where the side ends."""
    if length <= tile:
        return [0]
    step = max(1, math.floor(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]


def tile_grid(height: int, width: int, tile: int, overlap: float) -> list[Tile]:
    """The tiles of an image, row by row: squares of ``tile`` pixels, cut to the image where it is smaller."""
    columns, rows = tile_starts(width, tile, overlap), tile_starts(height, tile, overlap)
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]


class Views(Sequence[np.ndarray]):
    """Tiles of an (H, W, 3) image, not copied."""

    def __init__(self, image: np.ndarray, tiles: Sequence[Tile]) -> None:
        self.image = image
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, item: Any) -> Any:
        """(h, w, 3) of a number, Views of a slice."""
        if isinstance(item, slice):
            return Views(self.image, self.tiles[item])
        x0, y0, x1, y1 = self.tiles[item]
        return self.image[y0:y1, x0:x1]


class TiledDetector:
    """Detects on tiles with another detector, and puts together what they show (see the module ``merging``).

    An image that fits into one tile is given to the other detector as it is. Of the whole image, which is looked at
    besides, only what is longer than half a tile counts, and what lies whole in no tile: all else is larger on a tile,
    and there are fewer false detections without it. The number of detections of an image is not limited.

    Beside the image, memory is bounded: tiles are not copied, and of an image of more than
    :data:`MAX_WHOLE_PIXELS` the pass over the whole, and the salience that is kept, are of a smaller copy.

    Args:
        detector: that detects on each tile.
        tile: side of the tiles in pixels; a good value is the size of the images that the model was trained on.
        overlap: of neighboring tiles, as part of a side; objects of less than that are whole in some tile.
        with_whole: look at the whole image, too, once, for what is larger than a tile.
        progress: show a bar for an image of many tiles.

    Raises:
        ValueError: a side or an overlap that cannot be.
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
            raise ValueError(
                f"overlap is {overlap}; tiles overlap by a part from 0 to 0.9 of their side"
            )
        self.detector = detector
        self.classes = detector.classes
        self.class_names = detector.class_names
        self.batch_size = detector.batch_size
        self.tile = tile
        self.overlap = overlap
        self.with_whole = with_whole
        self.progress = progress

    def __call__(self, image: ImageLike, *, channel_order: str = "RGB") -> Detections:
        """Return the detections on an image."""
        return self.batch([image], channel_order=channel_order)[0]

    def batch(self, images: Sequence[ImageLike], *, channel_order: str = "RGB") -> list[Detections]:
        """Return the detections on each image."""
        return [output.detections for output in self.stream(images, channel_order=channel_order)]

    def stream(
        self, images: Sequence[ImageLike], *, channel_order: str = "RGB"
    ) -> Iterator[PredictorOutput]:
        """Yield detections and salience of each image."""
        for image in images:
            pixels = np.ascontiguousarray(to_rgb(image, channel_order))
            tiles = tile_grid(pixels.shape[0], pixels.shape[1], self.tile, self.overlap)
            if len(tiles) == 1:
                found = next(self.detector.stream([pixels]))
                instances: Instances = found.detections
                salience = found.salience
            else:
                instances, salience = self.detect_on_tiles(pixels, tiles)
            detections = Detections(instances, self.classes, partial(to_rgb, image, channel_order))
            yield PredictorOutput(detections, salience)

    def detect_on_tiles(self, image: np.ndarray, tiles: list[Tile]) -> tuple[Instances, np.ndarray]:
        """What is on an (H, W, 3) image, and its salience, perhaps smaller than the image."""
        height, width = image.shape[:2]
        grid = Grid(np.array(tiles), height, width, margin=max(2.0, MARGIN * self.tile))
        shrunk = shrink(image)
        salience = np.zeros(shrunk.shape[:2], np.float32)
        views = [self.detect_on_whole(shrunk, grid, salience)] if self.with_whole else []
        detections = self.detector.stream(Views(image, tiles))
        bar = tqdm(
            zip(tiles, detections, strict=True), total=len(tiles), desc="tiles", unit="tile", leave=False,
            disable=not self.progress or len(tiles) < MIN_TILES_OF_BAR,
        )  # fmt: skip
        for number, (tile, found) in enumerate(bar):
            boxes = (
                found.detections.pred_boxes.tensor.numpy().astype(np.float64)
                + [tile[0], tile[1]] * 2
            )
            boxes = boxes.clip([tile[0], tile[1]] * 2, [tile[2], tile[3]] * 2)
            views.append(view_of(found, boxes, number, tile, grid.cut_sides(boxes, np.array(tile))))
            paint_highest(salience, found.salience, tile, (height, width))
        return as_instances(merge(concatenate(views), grid), (height, width)), salience

    def detect_on_whole(self, shrunk: np.ndarray, grid: Grid, salience: np.ndarray) -> Found:
        """What counts of that which an image shows as a whole.

        Args:
            shrunk: (h, w, 3) the image, perhaps in a smaller size.
            grid: the tiles of the image.
            salience: (h, w); the image's is written into it.
        """
        found = next(self.detector.stream([shrunk]))
        salience[:] = found.salience
        scale = [grid.width / shrunk.shape[1], grid.height / shrunk.shape[0]] * 2
        boxes = found.detections.pred_boxes.tensor.numpy() * scale
        view = view_of(
            found, boxes, WHOLE, (0, 0, grid.width, grid.height), np.zeros(boxes.shape, bool)
        )
        is_long = (view.boxes[:, 2:] - view.boxes[:, :2]).max(axis=1, initial=0) > self.tile / 2
        return view[is_long | ~grid.has_whole(view.boxes)]


def view_of(
    found: PredictorOutput, boxes: np.ndarray, number: int, tile: Tile, cut: np.ndarray
) -> Found:
    """The detections of a view, with their boxes in the frame of the image, (N, 4); empty boxes are left out."""
    count = len(boxes)
    has_area = areas(boxes) > 0
    scores, classes = found.detections.scores.numpy(), found.detections.pred_classes.numpy()
    return Found(boxes, scores, classes, np.full(count, number), np.tile(tile, (count, 1)), cut)[
        has_area
    ]


def as_instances(found: Found, size: tuple[int, int]) -> Instances:
    """On the CPU, for an image of (height, width)."""
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(found.boxes.astype(np.float32))),
        scores=torch.from_numpy(found.scores.astype(np.float32)),
        pred_classes=torch.from_numpy(found.classes.astype(np.int64)),
    )


def shrink(image: np.ndarray) -> np.ndarray:
    """The image itself, or a smaller one of :data:`MAX_WHOLE_PIXELS`."""
    height, width = image.shape[:2]
    scale = math.sqrt(MAX_WHOLE_PIXELS / (height * width))
    if scale >= 1:
        return image
    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def paint_highest(
    canvas: np.ndarray, salience: np.ndarray, tile: Tile, size: tuple[int, int]
) -> None:
    """Raise the salience of an image of (height, width) to that of a tile, where it is lower.

    Args:
        canvas: (h, w) of the image, perhaps smaller than it; changed in place.
        salience: of the tile, in its size.
        tile: where it is in the image.
        size: (height, width) of the image.
    """
    rows, columns = canvas.shape[0] / size[0], canvas.shape[1] / size[1]
    x0, y0 = math.floor(tile[0] * columns), math.floor(tile[1] * rows)
    x1, y1 = math.ceil(tile[2] * columns), math.ceil(tile[3] * rows)
    place = canvas[y0:y1, x0:x1]
    if place.shape != salience.shape:
        salience = cv2.resize(salience, place.shape[::-1], interpolation=cv2.INTER_AREA)
    np.maximum(place, salience, out=place)
