"""Drawings that a run writes: images and videos with boxes, salience maps, and crops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from salience_detr.detections import ClassTable, Detections
from salience_detr.inference.inputs import is_video
from salience_detr.inference.video import VideoWriter, output_suffix
from salience_detr.utils.drawing import draw_salience
from salience_detr.utils.files import MAX_JPEG_SIDE, UsedPaths, check_name, write_image

# Of the endings that OpenCV can write those that keep the quality. The outputs of others are .png.
WRITABLE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm"}

STRIP_ROWS = 256  # rows of an image that are drawn at a time
CROPS = "crops"  # name of the folder of crops


@dataclass(frozen=True)
class OutputPaths:
    """Paths of the drawings of one input.

    The ending of a video may still change, since it depends on the size of the frames.

    Attributes:
        drawing: image or video with boxes.
        salience: salience map.
    """

    drawing: Path
    salience: Path

    def with_suffix(self, suffix: str) -> OutputPaths:
        """Return the paths with another ending."""
        return OutputPaths(self.drawing.with_suffix(suffix), self.salience.with_suffix(suffix))

    def write(self, drawings: Iterator[np.ndarray]) -> None:
        """Write the drawing of an image and, if there is one, its salience map."""
        # No reference to the drawing stays here while the salience is drawn.
        write_image(self.drawing, next(drawings))
        for salience_map in drawings:
            write_image(self.salience, salience_map)


class OutputFolder:
    """Folder of drawings.

    Args:
        root: path of the folder.
        classes: classes of the detector.
        salience: whether salience maps are written.
        crops: whether detections are cut out.
    """

    def __init__(self, root: Path, classes: ClassTable, *, salience: bool, crops: bool) -> None:
        self.root = root
        self.salience = salience
        self.crops = crops
        self.class_folders = safe_names(classes.names)

    def plan(
        self, sources: Sequence[Path], names: Mapping[Path, Path] | None = None
    ) -> dict[Path, OutputPaths]:
        """Return the output paths of each input, named like it, with a number if that is in use.

        No output has the name of an input or of another output. The names depend only on the list
        of inputs, so that all processes of torchrun agree on them.

        Args:
            sources: images and videos.
            names: path of each in the folder of the outputs; by default its name alone.
        """
        paths = {path.resolve() for path in sources}

        # An input may itself be a crop, NAME_K.jpg, and a new crop must not replace it.
        crops = (self.root / CROPS).resolve()
        earlier_crops = [path for path in paths if crops in path.parents]
        for path in earlier_crops:
            words = path.stem.split("_")
            folder = crops.joinpath(*path.relative_to(crops).parts[1:-1])
            paths |= {folder / "_".join(words[:i]) for i in range(1, len(words) + 1)}

        used = UsedPaths(paths)
        outputs = {}
        for source in sources:
            name = Path(source.name)
            if names is not None:
                name = names.get(source, name)
            outputs[source] = self.plan_one(source, name, used)
        return outputs

    def plan_one(self, source: Path, name: Path, used: UsedPaths) -> OutputPaths:
        """Return the output paths of one input, and note their use."""
        suffixes = [source.suffix if source.suffix.lower() in WRITABLE_ENDINGS else ".png"]
        if is_video(source):
            # The size of the frames decides between the two.
            suffixes = [output_suffix(source, (0, 0)), ".avi"]

        # A folder of the inputs that is called like that of the crops must not mix with it.
        root = self.root / name.parent
        if self.crops and name.parts[0].casefold() == CROPS and len(name.parts) > 1:
            root = self.root / f"{CROPS}_of_input" / name.parent.relative_to(name.parts[0])
        inner = root.relative_to(self.root)

        def paths_of(stem: str) -> list[Path]:
            names = [f"{stem}{suffix}" for suffix in suffixes]
            if self.salience:
                names += [f"{stem}_salience{suffix}" for suffix in suffixes]
            paths = [root / name for name in names]
            if self.crops:
                # One entry for all crops of the input, whose names begin with it.
                paths.append(self.root / CROPS / inner / stem)
            return paths

        stem = used.unused_stem(name.stem, paths_of)
        return OutputPaths(
            drawing=root / f"{stem}{suffixes[0]}",
            salience=root / f"{stem}_salience{suffixes[0]}",
        )

    def check_names(self, paths: OutputPaths) -> None:
        """Check, before anything is written, that the files of an input can be named so.

        Raises:
            FileNameError: a name is too long, or of bytes that the file system refuses.
        """
        check_name(paths.drawing)
        if self.salience:
            check_name(paths.salience)
        if self.crops:
            check_name(self.root / CROPS / self.inner_folder(paths) / f"{paths.drawing.stem}_1.jpg")

    def inner_folder(self, paths: OutputPaths) -> Path:
        """Return the folder of an input's outputs within the folder of all."""
        return paths.drawing.parent.relative_to(self.root)

    def write_crops(
        self,
        image: np.ndarray,
        detections: Detections,
        paths: OutputPaths,
        frame: int | None = None,
    ) -> None:
        """Write the content of each box as crops/CLASS/NAME_K.jpg, for a frame NAME_FRAME-K.jpg.

        An input of a subfolder has its crops in crops/CLASS/SUBFOLDER.

        K counts the detections on the image from 1, in descending order of scores. A box without a
        pixel in the image is left out, but counts.
        """
        prefix = f"{paths.drawing.stem}_"
        if frame is not None:
            prefix += f"{frame:06d}-"

        boxes = detections.pred_boxes.tensor.numpy()
        classes = detections.pred_classes.tolist()
        for number, (box, label) in enumerate(zip(boxes, classes, strict=True), start=1):
            crop = crop_box(image, box)

            if crop.size:
                folder = self.root / CROPS / self.class_folders[label] / self.inner_folder(paths)
                suffix = ".jpg" if max(crop.shape[:2]) <= MAX_JPEG_SIDE else ".png"
                write_image(folder / f"{prefix}{number}{suffix}", crop)


class AnnotatedVideo:
    """Video of drawings and, if there are any, video of salience maps.

    If frames are missing, the last drawing is repeated, so that the video keeps its length.
    """

    def __init__(self, paths: OutputPaths, *, fps: float) -> None:
        self.writers = [VideoWriter(path, fps=fps) for path in (paths.drawing, paths.salience)]
        self.length = 0
        self.last: list[np.ndarray] = []

    def add(self, place: int, drawings: Iterable[np.ndarray]) -> None:
        """Append the drawing, and the salience map if there is one, of the frame at a place."""
        self.fill(place)
        self.last = list(drawings)
        self.write(self.last)
        self.length = place + 1

    def fill(self, length: int) -> None:
        """Repeat the last drawing up to a length in frames."""
        for _ in range(self.length, length):
            self.write(self.last)
        self.length = max(self.length, length)

    def write(self, drawings: Sequence[np.ndarray]) -> None:
        """Append a frame to each video."""
        for writer, drawing in zip(self.writers, drawings, strict=False):
            writer.write(drawing)

    @property
    def codec(self) -> str | None:
        """Return the name of the codec; None without a frame."""
        return self.writers[0].codec

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(self, *error: object) -> None:
        # An error of one does not leave the other open.
        with ExitStack() as stack:
            for writer in self.writers:
                stack.callback(writer.close)


def crop_box(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the pixels of an (H, W, 3) image that an absolute xyxy box touches.

    The crop is empty if the box lies outside of the image.
    """
    height, width = image.shape[:2]
    x0, y0 = np.clip(np.floor(box[:2]), 0, [width, height]).astype(int)
    x1, y1 = np.clip(np.ceil(box[2:]), 0, [width, height]).astype(int)
    return image[y0:y1, x0:x1]


def draw_salience_map(image: np.ndarray, salience: np.ndarray) -> np.ndarray:
    """Draw (h, w) salience on an (H, W, 3) uint8 RGB image, in strips to save memory."""
    height, width = image.shape[:2]
    if salience.shape != (height, width):
        salience = cv2.resize(salience, (width, height))

    drawn = np.empty_like(image, order="C")
    for top in range(0, len(image), STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        drawn[rows] = draw_salience(image[rows], salience[rows])
    return drawn


def safe_names(names: Sequence[str]) -> list[str]:
    """Return a unique folder name for each class: its name, without characters that may fail."""
    folders: list[str] = []
    in_use: set[str] = set()
    for number, name in enumerate(names):
        # Windows has the strictest rules; 100 bytes leave room for a number.
        safe = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]', "_", name).strip(" .")
        while len(safe.encode()) > 100:
            safe = safe[:-1]

        # Some file systems ignore the case of letters.
        if not safe or safe.casefold() in in_use:
            safe = f"{safe or 'class'}_{number}"
        in_use.add(safe.casefold())
        folders.append(safe)
    return folders
