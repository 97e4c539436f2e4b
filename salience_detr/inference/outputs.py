"""The images that a run of detections writes: drawings, salience maps, and what was found cut out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from salience_detr.detections import ClassTable, Detections
from salience_detr.inference.inputs import IMAGE_ENDINGS, is_video
from salience_detr.inference.video import VideoWriter
from salience_detr.utils.drawing import class_colors, draw_boxes, draw_salience

WRITABLE_ENDINGS = IMAGE_ENDINGS - {
    ".webp",
    ".pgm",
}  # .webp as we read it may be lossless, .pgm has no colors
STRIP_ROWS = 256  # that are worked on at a time
MAX_JPEG_SIDE = 65500  # that OpenCV writes
CROPS = "crops"  # the folder of what is cut out


@dataclass(frozen=True)
class Targets:
    """Where the outputs of one input go.

    Attributes:
        drawing: path of the drawing; of a video the ending may yet become another one.
        salience: likewise, of the salience map.
    """

    drawing: Path
    salience: Path

    def with_ending(self, ending: str) -> Targets:
        return Targets(self.drawing.with_suffix(ending), self.salience.with_suffix(ending))


class OutputFolder:
    """Writes into a folder what is seen of detections.

    Args:
        root: the folder.
        classes: of the detector.
        salience: whether salience maps are written.
        crops: whether detections are cut out.
    """

    def __init__(self, root: Path, classes: ClassTable, *, salience: bool, crops: bool) -> None:
        self.root = root
        self.classes = classes
        self.salience = salience
        self.crops = crops
        self.colors = class_colors(len(classes.names), classes.colors)
        self.class_folders = safe_names(classes.names)

    def plan(self, sources: Sequence[Path]) -> list[Targets]:
        """Where the outputs of each input go: named like it, with a number added where the name is taken.

        No output takes the name of an input or of another output. The names depend on the list of inputs alone.
        """
        taken = {path.resolve() for path in sources}
        crops = (self.root / CROPS).resolve()
        for path in [path for path in taken if crops in path.parents]:
            words = path.stem.split(
                "_"
            )  # an input that was cut out once: no crop may have its name
            taken |= {crops / "_".join(words[:i]) for i in range(1, len(words) + 1)}
        numbers: dict[str, int] = {}
        return [self.plan_one(source, taken, numbers) for source in sources]

    def plan_one(self, source: Path, taken: set[Path], numbers: dict[str, int]) -> Targets:
        suffix = source.suffix.lower()
        if is_video(source):
            ending = source.suffix if suffix in {".mp4", ".avi"} else ".mp4"
            endings = {ending, ".avi"}  # which one it will be depends on the size of the frames
        else:
            ending = source.suffix if suffix in WRITABLE_ENDINGS else ".png"
            endings = {ending}
        number = numbers.get(source.name, 1)
        while True:
            stem = source.stem if number == 1 else f"{source.stem}_{number}"
            paths = {self.root / f"{stem}{x}" for x in endings}
            if self.salience:
                paths |= {self.root / f"{stem}_salience{x}" for x in endings}
            if self.crops:
                paths.add(self.root / CROPS / stem)  # no file: stands for the names of the crops
            resolved = {path.resolve() for path in paths}
            number += 1
            if not resolved & taken:
                taken |= resolved
                numbers[source.name] = number
                return Targets(
                    self.root / f"{stem}{ending}", self.root / f"{stem}_salience{ending}"
                )

    def draw(self, image: np.ndarray, found: Detections) -> np.ndarray:
        """A copy of an (H, W, 3) uint8 RGB image with boxes, names, scores and, if there are any, track numbers."""
        classes = found.pred_classes.tolist()
        labels = [
            f"{self.classes.names[c]} {score:.0%}"
            for c, score in zip(classes, found.scores.tolist(), strict=True)
        ]
        if found.has("track_ids"):
            numbers = found.track_ids.tolist()
            labels = [x if i < 0 else f"#{i} {x}" for i, x in zip(numbers, labels, strict=True)]
        boxes = found.pred_boxes.tensor.numpy()[::-1]  # the best detections are drawn last, on top
        return draw_boxes(image, list(boxes), labels[::-1], [self.colors[c] for c in classes[::-1]])

    def write_crops(
        self, image: np.ndarray, found: Detections, targets: Targets, frame: int | None = None
    ) -> None:
        """Write what is in the boxes as crops/CLASS/NAME_K.jpg, of frames NAME_FRAME-K.jpg.

        K counts the detections of the image from 1, by falling score; those with no pixel in the image are left
        out.
        """
        stem = (
            f"{targets.drawing.stem}_" if frame is None else f"{targets.drawing.stem}_{frame:06d}-"
        )
        boxes, classes = found.pred_boxes.tensor.numpy(), found.pred_classes.tolist()
        for number, (box, label) in enumerate(zip(boxes, classes, strict=True), start=1):
            crop = cut_out(image, box)
            if crop.size:
                folder = self.root / CROPS / self.class_folders[label]
                folder.mkdir(parents=True, exist_ok=True)
                ending = ".jpg" if max(crop.shape[:2]) <= MAX_JPEG_SIDE else ".png"
                write_image(folder / f"{stem}{number}{ending}", crop.copy())


class AnnotatedVideo:
    """Videos of drawings and, if there are any, of salience maps.

    Where places have no frame, the drawing before stands still, as many times as it takes.
    """

    def __init__(self, targets: Targets, *, fps: float) -> None:
        self.writers = (
            VideoWriter(targets.drawing, fps=fps),
            VideoWriter(targets.salience, fps=fps),
        )
        self.length = 0
        self.last: Sequence[np.ndarray] = ()

    def add(self, place: int, drawings: Sequence[np.ndarray]) -> None:
        """Append what is drawn of the frame at a place: the drawing, and perhaps the salience map."""
        for _ in range(self.length, place):
            self.write(self.last)
        self.write(drawings)
        self.last, self.length = drawings, place + 1

    def write(self, drawings: Sequence[np.ndarray]) -> None:
        for writer, drawing in zip(self.writers, drawings, strict=False):
            writer.write(drawing)

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self.writers:
            writer.close()


def cut_out(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The pixels of an (H, W, 3) image that a box, absolute xyxy, touches; there may be none."""
    height, width = image.shape[:2]
    x0, y0 = np.clip(np.floor(box[:2]), 0, [width, height]).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:]), 0, [width, height]).astype(int)
    return image[y0:y1, x0:x1]


def draw_salience_map(image: np.ndarray, salience: np.ndarray) -> np.ndarray:
    """An (H, W, 3) uint8 RGB image under its (h, w) salience, drawn in strips, for little memory beside it."""
    height, width = image.shape[:2]
    if salience.shape != (height, width):
        salience = cv2.resize(salience, (width, height))

    drawn = np.empty_like(image, order="C")
    for top in range(0, len(image), STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        drawn[rows] = draw_salience(image[rows], salience[rows])
    return drawn


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image, whole or not at all.

    To spare memory its channels are swapped in place: it is used up.

    Raises:
        ValueError: it is too large for a JPEG file.
        OSError: it cannot be written.
    """
    if path.suffix.lower() in {".jpg", ".jpeg"} and max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise ValueError(
            f"{path}: the sides of a JPEG image have at most {MAX_JPEG_SIDE} pixels, not {image.shape}"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        for top in range(0, len(image), STRIP_ROWS):
            strip = image[top : top + STRIP_ROWS]
            strip[...] = strip[..., ::-1].copy()
        # OpenCV's own writing takes no name that is not UTF-8.
        is_encoded, data = cv2.imencode(path.suffix, image)
        if not is_encoded:
            raise OSError("OpenCV cannot encode it")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write the image {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def safe_names(names: Sequence[str]) -> list[str]:
    """A name for a folder for each class: like its own, as far as file systems allow, and unlike the others'."""
    folders: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(names):
        safe = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]', "_", name).strip(" .")
        while len(safe.encode()) > 100:
            safe = safe[:-1]
        if not safe or safe.casefold() in taken:
            safe = f"{safe or 'class'}_{number}"
        taken.add(safe.casefold())
        folders.append(safe)
    return folders
