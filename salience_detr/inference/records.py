"""What a run of detections has found, as it goes: in memory, in a JSON and a CSV file, or in a journal that several
processes each write and one reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from heapq import merge
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from salience_detr.detections import ClassTable, Detections
from salience_detr.utils.files import written_whole

CSV_COLUMNS = (
    "file",
    "frame",
    "class_id",
    "class_name",
    "score",
    "x0",
    "y0",
    "x1",
    "y1",
    "track_id",
)


@dataclass(frozen=True)
class Record:
    """The detections of an image or of a frame.

    Symbols: N detections.

    Attributes:
        file_name: of the image or video.
        frame: number of the frame, from 0; None for an image.
        height: of the image in pixels.
        width: likewise.
        boxes: (N, 4) absolute xyxy.
        scores: (N,)
        classes: (N,) indices.
        track_ids: (N,) None where there is none.
    """

    file_name: str
    frame: int | None
    height: int
    width: int
    boxes: list[list[float]]
    scores: list[float]
    classes: list[int]
    track_ids: list[int | None]

    @classmethod
    def of(cls, found: Detections, file_name: str, frame: int | None = None) -> Record:
        """Of detections that may have ``track_ids``, of which negative ones are none."""
        height, width = found.image_size
        tracked = found.track_ids.tolist() if found.has("track_ids") else [-1] * len(found)
        return cls(
            file_name,
            frame,
            height,
            width,
            found.pred_boxes.tensor.tolist(),
            found.scores.tolist(),
            found.pred_classes.tolist(),
            [None if number < 0 else number for number in tracked],
        )


class Recorder(Protocol):
    """What takes note of the things that happen; ``position`` is that of the input among all inputs."""

    def found(self, position: int, record: Record) -> None:
        """Detections of an image or frame."""

    def done(self, position: int) -> None:
        """An input was worked through."""

    def failed(self, position: int, message: str) -> None:
        """An input was passed over."""

    def note(self, position: int, message: str) -> None:
        """Something to be told at the end."""


class CocoFile:
    """Detections in COCO's format: images, categories, and annotations with bbox (x, y, width, height), category_id of
    the data set, and score; each frame of a video is an image of its own."""

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, record: Record) -> None:
        image_id = len(self.images) + 1
        image = {
            "id": image_id,
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
        }
        self.images.append(image if record.frame is None else image | {"frame": record.frame})
        for (x0, y0, x1, y1), score, label, track_id in zip(
            record.boxes, record.scores, record.classes, record.track_ids, strict=True
        ):
            ids = {"id": len(self.annotations) + 1, "image_id": image_id}
            box = {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "score": score,
                "iscrowd": 0,
            }
            tracked = {} if track_id is None else {"track_id": track_id}
            self.annotations.append(
                ids | {"category_id": self.classes.category_ids[label]} | box | tracked
            )

    def content(self) -> dict[str, Any]:
        categories = self.classes.categories
        return {
            "info": {},
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(self.content()))


class CsvFile:
    """Detections as rows of :data:`CSV_COLUMNS`, written as they come to ``NAME.tmp``, which is renamed at the end.

    Boxes are absolute xyxy in pixels; class_id is the data set's, as in the JSON file.
    """

    def __init__(self, file: TextIO, classes: ClassTable) -> None:
        self.file = file
        self.classes = classes
        self.writer = csv.writer(file)
        self.writer.writerow(CSV_COLUMNS)
        file.flush()

    def add(self, record: Record) -> None:
        for box, score, label, track_id in zip(
            record.boxes, record.scores, record.classes, record.track_ids, strict=True
        ):
            class_id, name = self.classes.category_ids[label], self.classes.names[label]
            self.writer.writerow(
                [record.file_name, record.frame, class_id, name, score, *box, track_id]
            )
        self.file.flush()


@dataclass
class Results:
    """The results of a run, which are written when the ``with`` block that it opens ends without an error.

    Args:
        classes: of the detector.
        json_path: of the JSON file, if one is wanted.
        csv_path: of the CSV file, if one is wanted.

    Attributes:
        num_images: images and frames.
        num_detections: on all of them.
        succeeded: inputs that were worked through.
        failures: why inputs were passed over.
        notes: to be told at the end.
        are_written: whether the block has ended well.
    """

    classes: ClassTable
    json_path: Path | None = None
    csv_path: Path | None = None
    num_images: int = 0
    num_detections: int = 0
    succeeded: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    are_written: bool = False

    def __enter__(self) -> Results:
        self.coco = CocoFile(self.classes) if self.json_path else None
        self.csv: CsvFile | None = None
        self.closing = ExitStack()
        if self.csv_path:
            temporary = self.closing.enter_context(written_whole(self.csv_path))
            # Names of files may hold bytes that are no UTF-8.
            file = open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="")
            self.csv = CsvFile(self.closing.enter_context(file), self.classes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.__exit__(kind, error, trace)
        if error is None:
            if self.coco and self.json_path:
                self.coco.write(self.json_path)
            self.are_written = True

    def found(self, position: int, record: Record) -> None:
        self.num_images += 1
        self.num_detections += len(record.scores)
        for file in (self.coco, self.csv):
            if file:
                file.add(record)

    def done(self, position: int) -> None:
        self.succeeded += 1

    def failed(self, position: int, message: str) -> None:
        self.failures.append(message)

    def note(self, position: int, message: str) -> None:
        self.notes.append(message)


class Journal:
    """What one of several processes notes in a file, line by line, so that what it did outlives it."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, event: str, position: int, content: Any = None) -> None:
        self.file.write(json.dumps([position, event, content]) + "\n")
        self.file.flush()

    def found(self, position: int, record: Record) -> None:
        self.write("found", position, asdict(record))

    def done(self, position: int) -> None:
        self.write("done", position)

    def failed(self, position: int, message: str) -> None:
        self.write("failed", position, message)

    def note(self, position: int, message: str) -> None:
        self.write("note", position, message)

    def close(self) -> None:
        self.file.close()


def replay(journals: Iterable[Path], recorder: Recorder) -> None:
    """Give what processes noted to another recorder, in the order of the inputs, of which each process took some.

    Raises:
        OSError: a journal is missing.
    """
    for position, event, content in merge(*map(read_journal, journals), key=lambda line: line[0]):
        if event == "found":
            recorder.found(position, Record(**content))
        elif event == "done":
            recorder.done(position)
        else:
            {"failed": recorder.failed, "note": recorder.note}[event](position, content)


def read_journal(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Position, event and content of each line; the last line of a process that was killed may be cut short."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield tuple(json.loads(line))
