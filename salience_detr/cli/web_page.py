"""Functions behind the web page: detection on an image or a video, drawings and tables."""

from __future__ import annotations

import base64
import html
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salience_detr.checkpoint.score_thresholds import BEST
from salience_detr.cli.web_video import alert, detect_on_video
from salience_detr.data.images import to_rgb
from salience_detr.detections import Detections, is_confident
from salience_detr.detector import Detector
from salience_detr.inference.inputs import image_size
from salience_detr.inference.result_files import CocoResults, csv_text
from salience_detr.inference.tiling import TiledDetector
from salience_detr.utils.drawing import draw_detections, draw_salience, resize_between
from salience_detr.utils.drawing_options import DEFAULTS, DrawingOptions
from salience_detr.utils.errors import one_line

# A file of a few kilobytes may hold an image that fills the memory.
MAX_PIXELS = 100_000_000

# Range of the longer side of a shown image: labels are legible, and the page loads quickly.
SHOWN_SIDES = (900, 1600)

TableRow = list[str | float]  # class, score, x0, y0, x1, y1


@dataclass(frozen=True)
class Seen:
    """Last image of a visitor.

    Attributes:
        name: name of the file.
        detections: detections of any score, in the frame of the image.
        shown: (h, w, 3) uint8 RGB, the image resized for the page.
        seconds: time of reading and detection.
    """

    name: str
    detections: Detections
    shown: np.ndarray
    seconds: float


class Page:
    """Functions behind the page. They keep no state, so that many visitors can use it.

    Args:
        detector: a detector with a score threshold of 0.
        drawing: lines, labels, filling and colors of the drawings.
    """

    def __init__(self, detector: Detector, *, drawing: DrawingOptions = DEFAULTS) -> None:
        self.detector = detector
        self.names = detector.class_names
        self.drawing = drawing
        drawing.palette(self.names, detector.classes.colors)  # tells an unknown class at the start

        # The weights may hold the thresholds that were best on a data set.
        self.has_best = detector.best_thresholds is not None

    def thresholds(self, lowest: float, use_best: bool) -> Tensor:
        """Return the (K,) lowest score of each class: one for all, or the stored ones."""
        return self.detector.class_thresholds(BEST if use_best else lowest)

    def tiled(self, tile: int) -> Detector:
        """Return the detector for tiles of a size; for 0 the detector itself."""
        if not tile:
            return self.detector
        return TiledDetector(self.detector, tile=tile)

    def look(self, path: str | None, tile: int = 0) -> tuple[Seen | str, np.ndarray | None]:
        """Detect on the image in a file.

        Args:
            path: the file.
            tile: side of the tiles in pixels, 0 for the whole image.

        Returns:
            The state for :meth:`show` and the drawn salience, or an error message and None.
        """
        if path is None:
            return "there is no image; drop one on the page", None

        start = time.perf_counter()
        name = Path(path).name
        try:
            check_num_pixels(path)
            image = to_rgb(path, "RGB", self.detector.value_range)
            output = next(self.tiled(tile).stream([image]))
            seconds = time.perf_counter() - start
            shown = resize_between(image, *SHOWN_SIDES)
            salience = draw_salience(shown, resize_between(output.salience, *SHOWN_SIDES))
        except Exception as error:  # the page must survive any file
            message = one_line(error).replace(path, name)
            print(f"error: {message}", file=sys.stderr, flush=True)
            return message, None

        # The state refers to the file, since the image in full size may be large.
        classes = self.detector.classes
        read_again = partial(to_rgb, path, "RGB", self.detector.value_range)
        detections = Detections(output.detections, classes, read_again)
        return Seen(name, detections, shown, seconds), salience

    def show(
        self,
        seen: Seen | str | None,
        threshold: float,
        wanted: Sequence[int],
        use_best: bool = False,
    ) -> tuple[np.ndarray | None, str, list[TableRow]]:
        """Return the image with boxes, a summary as HTML, and the rows of the table.

        Args:
            seen: the state or error message of :meth:`look`; None before the first image.
            threshold: detections with lower scores are left out.
            wanted: indices of the classes to show; an empty list means all.
            use_best: take the stored threshold of each class instead.
        """
        if seen is None:
            return None, "", []
        if isinstance(seen, str):
            return None, alert(seen), []

        found = seen.detections
        kept = found[is_confident(found, self.thresholds(threshold, use_best))]
        if wanted:
            kept = kept[torch.isin(kept.pred_classes, torch.tensor(wanted))]

        # The table has the boxes in the frame of the file, the drawing in that of the shown image.
        height, width = kept.image_size
        rows, columns = seen.shown.shape[:2]
        scaled = kept.to("cpu")
        scaled.pred_boxes = kept.pred_boxes.clone()
        scaled.pred_boxes.scale(columns / width, rows / height)
        drawn = draw_detections(
            seen.shown,
            scaled,
            class_names=self.names,
            colors=self.detector.classes.colors,
            options=self.drawing,
        )

        table: list[TableRow] = []
        boxes = kept.pred_boxes.tensor.tolist()
        for label, score, box in zip(kept.labels, kept.scores.tolist(), boxes, strict=True):
            table.append([label, round(score, 3), *(round(x, 1) for x in box)])

        return drawn, self._summary(seen, kept), table

    def _summary(self, seen: Seen, kept: Detections) -> str:
        """Return HTML with the number of detections of each class and a link to save them."""
        # Names of files and classes are escaped: both may have characters of HTML.
        counts = Counter(kept.pred_classes.tolist())
        classes = ", ".join(f"{self.names[i]} ({counts[i]})" for i in sorted(counts))

        # A data URL needs no file on the server.
        coco = CocoResults(self.detector.classes)
        coco.add(kept, seen.name)
        content = base64.b64encode(json.dumps(coco.content()).encode()).decode()
        table = csv_text(kept, self.detector.classes, seen.name)
        rows = base64.b64encode(table.encode(errors="replace")).decode()

        height, width = kept.image_size
        plural = "" if len(kept) == 1 else "s"
        name = html.escape(seen.name)
        return (
            f"<b>{len(kept)} detection{plural}</b> on {name} "
            f"({width} × {height} pixels, {seen.seconds:.2f} s)<br>{html.escape(classes)}<br>"
            f'<a download="{name}.json" href="data:application/json;base64,{content}">'
            "Save as JSON (COCO format)</a> · "
            f'<a download="{name}.csv" href="data:text/csv;base64,{rows}">Save as CSV</a>'
        )

    def look_at_example(
        self, examples: Sequence[str], index: int, tile: int
    ) -> tuple[Seen | str, np.ndarray | None]:
        """Detect on an example that was clicked on."""
        return self.look(examples[index], tile)

    def watch(
        self, path: str | None, threshold: float, tile: int, use_best: bool = False
    ) -> tuple[str | None, str, list[str]]:
        """Detect on the frames of a video.

        Args:
            path: the file.
            threshold: detections with lower scores are left out.
            tile: side of the tiles in pixels, 0 for the whole image.
            use_best: take the stored threshold of each class instead.

        Returns:
            The path of the video with the drawings, a summary as HTML, and the paths of the video
            and the result files to save. An error has no paths.
        """
        if path is None:
            return None, "there is no video; drop one on the page", []
        thresholds = self.thresholds(threshold, use_best)
        return detect_on_video(self.tiled(tile), Path(path), thresholds, self.drawing)


def check_num_pixels(path: str) -> None:
    """Raise ValueError for an image of too many pixels, by its header, before it is decoded."""
    width, height = image_size(Path(path))
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the image {path} has {width} x {height} pixels, and the page takes up to "
            f"{MAX_PIXELS:,}; use demo/demo.py, with --tile for small objects"
        )
