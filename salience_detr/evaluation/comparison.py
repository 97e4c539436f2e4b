"""Ground truth beside detections: a drawing of each image, and a sheet of the worst ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from tqdm import tqdm

from salience_detr.data.coco_format import image_path
from salience_detr.data.images import ImageReadError, read_image
from salience_detr.data.mapper import DetectionMapper
from salience_detr.data.preparation.layouts import IMAGES, SAMPLE
from salience_detr.evaluation.error_analysis import FALSE_KINDS, ImageErrors
from salience_detr.evaluation.results import ResultsError, by_image, truth_of
from salience_detr.utils.drawing import Color, class_colors, draw_boxes
from salience_detr.utils.files import written_whole

SCORE_THRESHOLD = 0.3
# Longer side of a drawn image, in pixels: on smaller ones labels would hide the boxes, and JPEG files end at 65,500.
SMALLEST, LARGEST = 480, 4000
# Endings that drawings can have; others get ".png" added.
ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
GAP = 8  # between the two halves
PAPER, INK, GRAY = (255, 255, 255), (0, 0, 0), (150, 150, 150)
FONT = cv2.FONT_HERSHEY_SIMPLEX

# On the sheet: the side of the square that an image is fitted into, in pixels, and what the colors mean.
TILE = 360
FATE_COLORS: dict[str, Color] = {
    "found": (0, 170, 0), "class confused": (255, 140, 0), "localization": (255, 140, 0),
    "overlooked": (255, 140, 0), "crowd": GRAY,
}  # fmt: skip
KIND_COLORS: dict[str, Color] = {
    "correct": (0, 170, 0), "localization": (40, 110, 255), "class confused": (220, 0, 220),
    "duplicate": (0, 190, 190), "background": (230, 0, 0), "ignored": GRAY,
}  # fmt: skip


@dataclass(frozen=True)
class Marks:
    """Boxes to draw on an image; later ones come on top.

    Attributes:
        boxes: (N, 4) absolute xyxy in the frame of the image.
        labels: the text of each.
        colors: RGB of each.
        crowds: whether each is a crowd region, which is hatched.
    """

    boxes: np.ndarray
    labels: list[str]
    colors: list[Color]
    crowds: list[bool]


def marks_of(entries: Sequence[dict[str, Any]], coco: COCO, colors: Sequence[Color]) -> Marks:
    """Marks of annotations or detections: crowd regions at the bottom, the best detections on top.

    Args:
        entries: with ``bbox`` (x, y, width, height) and ``category_id``; detections with ``score`` have it written.
        coco: knows the names of the classes.
        colors: RGB of each entry.
    """
    order = sorted(
        range(len(entries)),
        key=lambda i: (not entries[i].get("iscrowd"), entries[i].get("score", 0.0)),
    )
    crowds = [bool(entries[i].get("iscrowd")) for i in order]
    labels = []
    for i, crowd in zip(order, crowds, strict=True):
        name = coco.cats[entries[i]["category_id"]]["name"]
        score = f" {entries[i]['score']:.0%}" if "score" in entries[i] else ""
        labels.append(f"{name}{score}{' (crowd)' if crowd else ''}")
    boxes = np.array([entries[i]["bbox"] for i in order], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Marks(boxes, labels, [colors[i] for i in order], crowds)


def draw_marks(image: np.ndarray, marks: Marks, size: tuple[int, int]) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image, brought to a size (width, height), with boxes, and crowd regions hatched."""
    height, width = image.shape[:2]
    shrinks = size[0] < width
    canvas = cv2.resize(
        np.ascontiguousarray(image),
        size,
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    boxes = marks.boxes * np.tile([size[0] / width, size[1] / height], 2)
    for box, color, is_crowd in zip(boxes, marks.colors, marks.crowds, strict=True):
        if is_crowd:
            hatch(canvas, box, color)
    return draw_boxes(canvas, list(boxes), marks.labels, marks.colors)


def hatch(canvas: np.ndarray, box: np.ndarray, color: Color) -> None:
    """Draw slanting lines in an absolute xyxy box of an (H, W, 3) image, in place."""
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = np.clip(np.round(box), 0, [width, height, width, height]).astype(int).tolist()
    rows, columns = np.ogrid[y0 : max(y0, y1), x0 : max(x0, x1)]
    canvas[y0:y1, x0:x1][(rows + columns) % 12 < 2] = color


def side_by_side(
    image: np.ndarray, truth: Marks, found: Marks, size: tuple[int, int]
) -> np.ndarray:
    """(height, 2 * width + GAP, 3) uint8 RGB: the ground truth of an image left, the detections right, each brought to
    a size (width, height)."""
    gap = np.full((size[1], GAP, 3), PAPER, dtype=np.uint8)
    return np.concatenate(
        [draw_marks(image, truth, size), gap, draw_marks(image, found, size)], axis=1
    )


def drawn_size(image: np.ndarray, least: int, largest: int) -> tuple[int, int]:
    """(width, height) of an (H, W, 3) image whose longer side is brought to between ``least`` and ``largest``."""
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = min(max(longer, least), largest) / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def caption(lines: Sequence[str], width: int, *, scale: float = 0.45) -> np.ndarray:
    """A (height, width, 3) white strip with lines of text; a line that is too long loses its beginning."""
    thickness = max(1, round(scale))
    pitch = round(40 * scale)
    strip = np.full((pitch * len(lines) + 4, width, 3), PAPER, dtype=np.uint8)
    for i, line in enumerate(lines):
        shown = line
        while len(shown) > 4 and cv2.getTextSize(shown, FONT, scale, thickness)[0][0] > width - 4:
            shown = "..." + shown[4:]
        cv2.putText(
            strip, shown, (2, round(pitch * (i + 0.75))), FONT, scale, INK, thickness, cv2.LINE_AA
        )
    return strip


def comparison(
    image: np.ndarray, truth: list[dict[str, Any]], detections: list[dict[str, Any]], coco: COCO
) -> np.ndarray:
    """An image twice, its ground truth drawn left and its detections right, each half under a line that counts them.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: its annotations.
        detections: in COCO's results format.
        coco: knows the classes.
    """
    ids = sorted(coco.cats)
    palette = dict(zip(ids, class_colors(len(ids)), strict=True))
    left_marks, right_marks = (
        marks_of(x, coco, [palette[y["category_id"]] for y in x]) for x in (truth, detections)
    )
    size = drawn_size(image, SMALLEST, LARGEST)
    crowds = sum(bool(x["iscrowd"]) for x in truth)
    titles = [
        f"ground truth: {len(truth) - crowds}" + (f", crowd regions: {crowds}" if crowds else "")
    ]
    titles.append(f"detections: {len(detections)}")
    scale = max(0.45, min(size) / 1200)
    left, right = (caption([title], size[0], scale=scale) for title in titles)
    head = np.concatenate(
        [left, np.full((len(left), GAP, 3), PAPER, dtype=np.uint8), right], axis=1
    )
    return np.concatenate([head, side_by_side(image, left_marks, right_marks, size)])


def write_comparisons(
    coco: COCO,
    results: list[dict[str, Any]],
    image_root: Path,
    output: Path,
    *,
    images: list[Any] | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    count: int | None = None,
) -> tuple[int, list[str]]:
    """Draw images with :func:`comparison` into a folder, under their own names; see :func:`drawing_paths`.

    Args:
        coco: the annotations.
        results: detections in COCO's results format.
        image_root: the folder that the file names of the annotations are relative to.
        output: the folder of the drawings.
        images: ids of the images to draw; None for all.
        score_threshold: of the detections that are drawn.
        count: of the images, the first in the annotations; None for all.

    Returns:
        How many were drawn, and why each other one was passed over.

    Raises:
        OSError: a drawing cannot be written.
    """
    wanted = set(coco.imgs) if images is None else set(images)
    entries = [x for x in coco.dataset["images"] if x["id"] in wanted]
    paths = drawing_paths([x["file_name"] for x in entries], image_root, output)
    found = by_image(results, score_threshold=score_threshold)
    chosen = list(zip(entries, paths, strict=True))[:count]
    notes = []
    for entry, path in tqdm(chosen, desc="drawing", unit="image"):
        try:
            image = image_of(entry, image_root)
        except ImageReadError as error:
            notes.append(str(error))
            continue
        write_image(
            path, comparison(image, truth_of(coco, entry["id"]), found.get(entry["id"], []), coco)
        )
    return len(chosen) - len(notes), notes


def image_of(entry: dict[str, Any], image_root: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB image of an entry of the annotations.

    Raises:
        ImageReadError: it cannot be read, or is not of the annotated size.
    """
    path = str(image_path(image_root, entry["file_name"]))
    image = read_image(path)
    DetectionMapper.check_size(image, {**entry, "file_name": path})
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image whole, making its folder; the ending says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        Image.fromarray(image).save(temporary, format=ENDINGS[path.suffix.lower()], quality=92)


def drawing_paths(file_names: Sequence[str], image_root: Path, output: Path) -> list[Path]:
    """Where the drawings of images go: under the name of the image, in its subfolder.

    A drawing whose name is taken, by an image itself or by another drawing, has a number added.
    """
    sources = [Path(os.path.abspath(image_path(image_root, name))) for name in file_names]
    root = Path(os.path.abspath(image_root))
    if not all(source.is_relative_to(root) for source in sources):
        root = Path(os.path.commonpath([source.parent for source in sources]))
    # Upper and lower case are one on some file systems.
    taken = {str(source.resolve()).casefold() for source in sources}
    paths = []
    for source in sources:
        name = source.relative_to(root)
        if name.suffix.lower() not in ENDINGS:
            name = name.with_name(f"{name.name}.png")
        for path in numbered(output / name):
            key = str(path.resolve()).casefold()
            if key not in taken:
                taken.add(key)
                paths.append(path)
                break
    return paths


def numbered(path: Path) -> Iterator[Path]:
    """The path, then with _2, _3, ... before its ending."""
    yield path
    number = 2
    while True:
        yield path.with_stem(f"{path.stem}_{number}")
        number += 1


def find_images(annotation_file: Path, coco: COCO, folder: Path | None = None) -> Path:
    """The folder of the images: the named one, or where the usual layouts have it, seen from the annotations.

    Raises:
        ResultsError: there is none, or no image is in it.
    """
    names = [x["file_name"] for x in coco.dataset["images"]]
    if not names:
        raise ResultsError(f"{annotation_file} has no images")
    if folder is not None:
        if not folder.is_dir():
            raise ResultsError(f"there is no folder of images {folder} (--images)")
        if not any(image_path(folder, name).is_file() for name in names):
            raise ResultsError(
                f"none of the images of {annotation_file} ({names[0]}, ...) is in {folder} (--images)"
            )
        return folder
    parent = annotation_file.absolute().parent
    stem = annotation_file.name.partition(".")[0].removeprefix("instances_")
    splits = dict.fromkeys((stem.removesuffix("2017"), stem, parent.name))
    folders = [parent]
    folders += [
        root / x.format(s=split)
        for root in (parent, parent.parent)
        for split in splits
        for x in IMAGES
    ]
    found = [
        sum(image_path(folder, name).is_file() for name in names[:SAMPLE]) for folder in folders
    ]
    if not any(found):
        raise ResultsError(
            f"the images of {annotation_file} ({', '.join(names[:3])}, ...) are not in a usual place beside it; "
            "name their folder with --images"
        )
    return folders[found.index(max(found))]


def worst_sheet(
    coco: COCO, images: Sequence[ImageErrors], image_root: Path, *, count: int
) -> tuple[np.ndarray | None, list[str]]:
    """The first images of a ranking on one sheet, (H, W, 3) uint8 RGB: ground truth and detections in the colors of
    what became of them, file name and counts below.

    Returns:
        The sheet, None if there is no image; and why images were passed over, whose places the next ones take.
    """
    tiles: list[np.ndarray] = []
    notes = []
    with tqdm(total=min(count, len(images)), desc="worst images", unit="image") as bar:
        for rank, errors in enumerate(images, 1):
            if len(tiles) == count:
                break
            try:
                image = image_of(coco.imgs[errors.image_id], image_root)
            except ImageReadError as error:
                notes.append(str(error))
                continue
            tiles.append(tile(image, errors, coco, rank))
            bar.update()
    return (arranged(tiles) if tiles else None), notes


def tile(image: np.ndarray, errors: ImageErrors, coco: COCO, rank: int) -> np.ndarray:
    """An image of the sheet with its captions, (height, 2 * TILE + GAP, 3) uint8 RGB."""
    truth = marks_of(errors.truth, coco, [FATE_COLORS[fate] for fate in errors.fates])
    found = marks_of(errors.detections, coco, [KIND_COLORS[kind] for kind in errors.kinds])
    drawn = side_by_side(image, truth, found, drawn_size(image, TILE, TILE))
    padded = np.full((drawn.shape[0], 2 * TILE + GAP, 3), PAPER, dtype=np.uint8)
    padded[:, : drawn.shape[1]] = drawn
    kinds = ", ".join(
        f"{errors.kinds.count(kind)} {kind}" for kind in FALSE_KINDS if kind in errors.kinds
    )
    counts = f"{errors.num_missed} of {errors.num_boxes} missed; {errors.num_false} false"
    lines = [
        f"{rank}. {coco.imgs[errors.image_id]['file_name']}",
        f"{counts}{f' ({kinds})' if kinds else ''}",
    ]
    return np.concatenate([padded, caption(lines, padded.shape[1])])


def arranged(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of one width in rows, on a sheet about as wide as high, under the legend."""
    columns = max(1, round((len(tiles) / 2) ** 0.5))
    margin, width = 2 * GAP, tiles[0].shape[1] + 2 * GAP
    strips = [legend(columns * width + margin)]
    for i in range(0, len(tiles), columns):
        row = tiles[i : i + columns]
        height = max(len(drawing) for drawing in row) + margin
        strip = np.full((height, columns * width + margin, 3), PAPER, dtype=np.uint8)
        for k, drawing in enumerate(row):
            strip[: len(drawing), margin + k * width : (k + 1) * width] = drawing
        strips.append(strip)
    return np.concatenate(strips)


def legend(width: int) -> np.ndarray:
    """A (height, width, 3) strip that says what the colors of a sheet mean."""
    fates = {
        "found": FATE_COLORS["found"],
        "missed": FATE_COLORS["overlooked"],
        "crowd region": FATE_COLORS["crowd"],
    }
    lines = ("left, ground truth:", fates), ("right, detections:", KIND_COLORS)
    strip = np.full((64, width, 3), PAPER, dtype=np.uint8)
    for row, (words, colors) in enumerate(lines):
        x, y = 2 * GAP, 22 + 22 * row
        for text, color in ((words, None), *colors.items()):
            if color is not None:
                cv2.rectangle(strip, (x, y - 9), (x + 10, y + 1), color, -1)
                x += 14
            cv2.putText(strip, text, (x, y), FONT, 0.42, INK, 1, cv2.LINE_AA)
            x += cv2.getTextSize(text, FONT, 0.42, 1)[0][0] + 14
    return strip
