"""Metadata of exported files come from anywhere."""

from __future__ import annotations

import json

import pytest

from salience_detr.detections import ClassTable
from salience_detr.export.info import DetectorInfo, ExportError

INFO = DetectorInfo(
    ClassTable(("pit", "dent"), (1, 7), ((1, 2, 3), (4, 5, 6))), 320, 533, "RGB", 32
)


def test_metadata_are_read_as_they_were_written():
    assert DetectorInfo.from_json(INFO.to_json(), "a.onnx") == INFO


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["classes"], None),
        (["classes"], ["pit"]),
        (["classes", "names"], "pit"),
        (["classes", "names"], ["pit", 5]),
        (["classes", "category_ids"], [1]),
        (["classes", "category_ids"], 5),
        (["classes", "colors"], [["red", "green", "blue"]]),
        (["short_edge_length"], "320"),
        (["max_size"], 0),
        (["max_size"], True),
        (["size_divisibility"], None),
        (["image_format"], "GRAY"),
        (["other"], 1),
        (["quantization"], "int8"),
        (["quantization"], {"int8": ["neck"]}),
    ],
)
def test_broken_metadata_are_one_line(keys, value):
    content = json.loads(INFO.to_json())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    with pytest.raises(
        ExportError, match=r"^a\.onnx holds broken metadata \(.*\); export it again$"
    ):
        DetectorInfo.from_json(json.dumps(content), "a.onnx")


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", "{}", "[" * 100_000, "\ud800"])
def test_metadata_that_are_no_object_are_one_line(text):
    with pytest.raises(
        ExportError, match=r"^a\.onnx holds broken metadata \(.*\); export it again$"
    ):
        DetectorInfo.from_json(text, "a.onnx")


def test_another_version_is_named():
    text = INFO.to_json().replace('"version": 1', '"version": 99')
    with pytest.raises(ExportError, match="another version, 99 instead of 1; export it again"):
        DetectorInfo.from_json(text, "a.onnx")
