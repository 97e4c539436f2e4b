"""JSON and CSV files of detections.

Under torchrun, each process writes parts of its own, for example ``results.json.part0_...`` beside
``results.json``, which are merged at the end. If a process is killed, the parts stay.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

from detectron2.utils import comm

from salience_detr.data.coco_format import Entry
from salience_detr.detections import ClassTable, Detections
from salience_detr.utils.errors import printable
from salience_detr.utils.files import written_whole

BOX_COLUMNS = ["x0", "y0", "x1", "y1"]
CSV_COLUMNS = ["file", "frame", "class_id", "class_name", "score", *BOX_COLUMNS, "track_id"]


class CocoResults:
    """Detections in COCO's format.

    Annotations have ``bbox`` (x, y, width, height), the data set's ``category_id`` and ``score``.
    Each frame of a video is an image of its own.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self.images: list[Entry] = []
        self.annotations: list[Entry] = []

    def add(self, detections: Detections, file_name: str, frame: int | None = None) -> None:
        """Append the detections on an image, or on a frame of a video, counted from 0."""
        height, width = detections.image_size
        image_id = len(self.images) + 1
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        if frame is not None:
            image["frame"] = frame

        self.images.append(image)

        results = detections.to_coco(image_id)
        for result, track_id in zip(results, track_ids(detections), strict=True):
            box_width, box_height = result["bbox"][2:]
            annotation = {
                "id": len(self.annotations) + 1,
                **result,
                "area": box_width * box_height,
                "iscrowd": 0,
            }
            if track_id is not None:
                annotation["track_id"] = track_id

            self.annotations.append(annotation)

    def content(self) -> Entry:
        """Return the content of the JSON file."""
        return {
            "info": {},
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.classes.categories,
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(self.content()))


class PreAnnotations(CocoResults):
    """Detections on images as a data set that labeling tools import, to be corrected there.

    File names are relative to the folder of the inputs, and each annotation has all that CVAT and
    Label Studio ask for. Frames of videos are left out: the tools name them in their own ways.

    Args:
        classes: classes of the detector.
        names: name of each image in the tool.
    """

    def __init__(self, classes: ClassTable, names: Mapping[str, str]) -> None:
        super().__init__(classes)
        self.names = names

    def add(self, detections: Detections, file_name: str, frame: int | None = None) -> None:
        if frame is not None:
            return

        first = len(self.annotations)
        super().add(detections, self.names[file_name])
        for annotation in self.annotations[first:]:
            annotation["segmentation"] = []
            annotation["attributes"] = {"score": round(annotation["score"], 4)}


class ResultFiles:
    """JSON and CSV file, which are complete when the ``with`` block ends without an error.

    Under torchrun, each process writes its own part of them, see :func:`part_path`.

    CSV rows are written at once to ``NAME.*.tmp``, which is renamed at the end. Boxes are absolute
    xyxy in pixels; ``class_id`` is the data set's category id, as in the JSON file.

    Args:
        classes: classes of the detector.
        json_path: JSON file to write, or None.
        csv_path: CSV file to write, or None.
        labels_path: JSON file of :class:`PreAnnotations` to write, or None.
        names: name of each image in it.
    """

    def __init__(
        self,
        classes: ClassTable,
        json_path: Path | None = None,
        csv_path: Path | None = None,
        labels_path: Path | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.classes = classes
        self.names = names or {}
        self.labels_path = labels_path
        self.labels_part = part_path(labels_path)
        self.json_path = json_path
        self.csv_path = csv_path
        self.json_part = part_path(json_path)
        self.csv_part = part_path(csv_path)

    def __enter__(self) -> ResultFiles:
        self.coco = CocoResults(self.classes)
        self.labels = PreAnnotations(self.classes, self.names)
        self.stack = ExitStack()
        if self.csv_part:
            temporary = self.stack.enter_context(written_whole(self.csv_part))
            self.csv_file = self.stack.enter_context(open_csv(temporary, "w"))
            self.csv_writer = csv.writer(self.csv_file)
            self.csv_writer.writerow(CSV_COLUMNS)

            # Whoever reads the growing file sees each row at once, the header first.
            self.csv_file.flush()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)
        if self.json_part and error[0] is None:
            self.coco.write(self.json_part)
        if self.labels_part and error[0] is None:
            self.labels.write(self.labels_part)

    def add(self, detections: Detections, file_name: str, frame: int | None = None) -> None:
        """Add the detections on an image, or on a frame of a video, counted from 0."""
        if self.json_part:
            self.coco.add(detections, file_name, frame)
        if self.labels_part:
            self.labels.add(detections, file_name, frame)
        if self.csv_part:
            self.csv_writer.writerows(csv_rows(detections, self.classes, file_name, frame))
            self.csv_file.flush()


def part_path(path: Path | None) -> Path | None:
    """Return the path of this process's part of a file; a single process writes the file itself.

    The time in the name keeps the parts of different runs apart.
    """
    if path is None or comm.get_world_size() == 1:
        return path

    started = time.strftime("%Y%m%d_%H%M%S")
    return path.with_name(f"{path.name}.part{comm.get_rank()}_{started}")


def earlier_parts(*paths: Path | None) -> list[Path]:
    """Return the parts of files that an earlier run has left because it was killed.

    Every process must call this: the processes wait for each other, since the new parts of one
    could otherwise be mistaken for old ones.
    """
    parts: list[Path] = []
    for path in filter(None, paths):
        parts += sorted(path.parent.glob(f"{glob.escape(path.name)}.part*"))
    comm.synchronize()
    return parts


def csv_rows(
    detections: Detections, classes: ClassTable, file_name: str, frame: int | None
) -> Iterator[list[str | float | None]]:
    """Yield the row of each detection, see :data:`CSV_COLUMNS`."""
    boxes = detections.pred_boxes.tensor.tolist()
    scores = detections.scores.tolist()
    labels = detections.pred_classes.tolist()

    columns = zip(boxes, scores, labels, track_ids(detections), strict=True)
    for box, score, label, track_id in columns:
        class_id = classes.category_ids[label]
        yield [file_name, frame, class_id, printable(classes.names[label]), score, *box, track_id]


def csv_text(detections: Detections, classes: ClassTable, file_name: str) -> str:
    """Return the content of a CSV file of the detections on one image."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_rows(detections, classes, file_name, None))
    return file.getvalue()


def track_ids(detections: Detections) -> list[int | None]:
    """Return the track number of each detection, or None."""
    if not detections.has("track_ids"):
        return [None] * len(detections)

    return [None if number < 0 else number for number in detections.track_ids.tolist()]


def open_csv(path: Path, mode: Literal["r", "w"] = "r") -> TextIO:
    """Open a CSV file. File names in it may have bytes that are not UTF-8."""
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="")


def merge_json(
    parts: Sequence[Path], path: Path, classes: ClassTable, order: Mapping[str, int]
) -> None:
    """Merge JSON files of several processes.

    Args:
        parts: files to merge; no input is in two of them.
        path: file to write.
        classes: classes of the detector.
        order: place of each ``file_name`` among the inputs.
    """
    # Ids count within a part, so annotations are grouped by image before the parts are joined.
    images: list[tuple[Entry, list[Entry]]] = []
    for part in parts:
        content = json.loads(part.read_text())
        annotations = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        images += [(image, annotations[image["id"]]) for image in content["images"]]

    # The sort is stable: the frames of a video stay in their order.
    images.sort(key=lambda pair: order[pair[0]["file_name"]])

    merged = CocoResults(classes)
    for image_id, (image, annotations_of_image) in enumerate(images, 1):
        merged.images.append(image | {"id": image_id})
        for annotation in annotations_of_image:
            annotation_id = len(merged.annotations) + 1
            merged.annotations.append(annotation | {"id": annotation_id, "image_id": image_id})
    merged.write(path)


def merge_csv(parts: Sequence[Path], path: Path, order: Mapping[str, int]) -> None:
    """Merge CSV files of several processes, see :func:`merge_json`."""
    rows: list[list[str]] = []
    for part in parts:
        with open_csv(part) as file:
            rows += list(csv.reader(file))[1:]

    # The sort is stable: the rows of a file stay in their order.
    rows.sort(key=lambda row: order[row[0]])

    with written_whole(path) as temporary, open_csv(temporary, "w") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(rows)
