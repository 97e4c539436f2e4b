"""JSON and CSV files of detections, and merging those of several processes."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from salience_detr.detections import Detections
from salience_detr.inference import result_files
from salience_detr.inference.result_files import (
    CSV_COLUMNS,
    ResultFiles,
    earlier_parts,
    merge_csv,
    merge_json,
)
from tests.inference.fake_detector import CLASSES


def detections(*rows, track_ids=None):
    """Return detections of x0, y0, x1, y1, class, score on an image of 60 x 80."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    instances = Instances(
        (60, 80),
        pred_boxes=Boxes(table[:, :4]),
        pred_classes=table[:, 4].long(),
        scores=table[:, 5],
    )
    if track_ids is not None:
        instances.track_ids = torch.tensor(track_ids, dtype=torch.int64)

    return Detections(instances, CLASSES, lambda: None)


ON_IMAGE = (detections((1, 2, 11, 22, 1, 0.5)), "a,ü.jpg")
ON_FRAME_0 = (
    detections((1, 2, 3, 4, 0, 0.75), (5, 6, 7, 8, 2, 0.25), track_ids=[4, -1]),
    "f.mp4",
    0,
)
ON_FRAME_1 = (detections(track_ids=[]), "f.mp4", 1)


def read_lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_json_and_csv_hold_the_same(tmp_path):
    with ResultFiles(CLASSES, tmp_path / "f.json", tmp_path / "f.csv") as files:
        for result in (ON_IMAGE, ON_FRAME_0, ON_FRAME_1):
            files.add(*result)

    rows = list(csv.DictReader((tmp_path / "f.csv").open(encoding="utf-8", newline="")))
    assert list(rows[0]) == CSV_COLUMNS
    assert [list(row.values()) for row in rows] == [
        ["a,ü.jpg", "", "12", "green", "0.5", "1.0", "2.0", "11.0", "22.0", ""],
        ["f.mp4", "0", "11", "red", "0.75", "1.0", "2.0", "3.0", "4.0", "4"],
        ["f.mp4", "0", "13", "blue", "0.25", "5.0", "6.0", "7.0", "8.0", ""],
    ]

    content = json.loads((tmp_path / "f.json").read_text())
    image = {"id": 2, "file_name": "f.mp4", "height": 60, "width": 80, "frame": 0}
    assert content["images"][1] == image

    ids = {"id": 2, "image_id": 2, "category_id": 11, "track_id": 4}
    box = {"bbox": [1, 2, 2, 2], "area": 4, "score": 0.75, "iscrowd": 0}
    assert content["annotations"][1] == ids | box
    assert "track_id" not in content["annotations"][2] and len(content["images"]) == 3


def test_rows_are_written_as_they_come_and_become_the_file_at_the_end(tmp_path):
    (tmp_path / "f.csv").write_text("earlier")
    with ResultFiles(CLASSES, csv_path=tmp_path / "f.csv") as files:
        files.add(*ON_IMAGE)
        [growing] = tmp_path.glob("f.csv.*.tmp")
        assert len(read_lines(growing)) == 2
        files.add(*ON_FRAME_0)
        assert len(read_lines(growing)) == 4
        assert (tmp_path / "f.csv").read_text() == "earlier"

    assert len(read_lines(tmp_path / "f.csv")) == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "f.csv"]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    name = b"\xff.jpg".decode(errors="surrogateescape")
    with ResultFiles(CLASSES, tmp_path / "f.json", tmp_path / "f.csv") as files:
        files.add(ON_IMAGE[0], name)

    assert b"\xff.jpg" in (tmp_path / "f.csv").read_bytes()
    assert json.loads((tmp_path / "f.json").read_text())["images"][0]["file_name"] == name

    # Merging reads and writes the same bytes.
    parts = [tmp_path / "f.csv"]
    merge_csv(parts, tmp_path / "merged.csv", {name: 0})
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "f.csv").read_bytes()


def test_parts_of_several_processes_become_the_files_of_one(tmp_path):
    results = [
        (detections((1, 2, 3, 4, 0, 0.75)), "0.jpg"),
        ON_FRAME_0,
        ON_FRAME_1,
        (detections(), "2.jpg"),
        ON_IMAGE,
    ]
    with ResultFiles(CLASSES, tmp_path / "one.json", tmp_path / "one.csv") as files:
        for result in results:
            files.add(*result)
    # The first process has the images 0.jpg and 2.jpg, the second one the rest.
    for rank in (0, 1):
        with ResultFiles(CLASSES, tmp_path / f"{rank}.json", tmp_path / f"{rank}.csv") as files:
            for result in results:
                if (result[1] == "f.mp4" or result[1] == "a,ü.jpg") == bool(rank):
                    files.add(*result)

    order = {"0.jpg": 0, "f.mp4": 1, "unreadable.jpg": 2, "2.jpg": 3, "a,ü.jpg": 4}
    json_parts = [tmp_path / "0.json", tmp_path / "1.json"]
    merge_json(json_parts, tmp_path / "merged.json", CLASSES, order)
    merge_csv([tmp_path / "0.csv", tmp_path / "1.csv"], tmp_path / "merged.csv", order)

    for suffix in (".json", ".csv"):
        merged = (tmp_path / "merged").with_suffix(suffix)
        assert merged.read_bytes() == (tmp_path / "one").with_suffix(suffix).read_bytes()


def test_each_process_has_a_part_of_its_own_and_a_later_run_finds_it(tmp_path, monkeypatch):
    assert earlier_parts(tmp_path / "f[1].csv", None) == []

    monkeypatch.setattr(result_files.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(result_files.comm, "get_rank", lambda: 1)
    # A run that fails leaves nothing.
    with pytest.raises(KeyError), ResultFiles(CLASSES, None, tmp_path / "f[1].csv") as files:
        raise KeyError

    assert list(tmp_path.iterdir()) == []

    with ResultFiles(CLASSES, None, tmp_path / "f[1].csv") as files:
        files.add(*ON_IMAGE)

    assert files.csv_part.name.startswith("f[1].csv.part1_")
    assert earlier_parts(tmp_path / "f[1].csv", None) == [files.csv_part]
