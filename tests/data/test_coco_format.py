"""Annotation files are parsed once for all that need them."""

from __future__ import annotations

import json

import pytest

from salience_detr.data.coco_format import DatasetError, read_coco, read_json
from salience_detr.evaluation.results import ResultsError, read_results

CONTENT = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "pit"}]}


def test_a_kept_content_is_handed_to_the_next_reader_and_to_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    kept = read_json(path, keep=True)
    assert read_coco(path, keep=True) is kept
    assert read_coco(path) is kept
    assert read_coco(path) is not kept


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    read_coco(path, keep=True)
    path.write_text(json.dumps(CONTENT | {"images": [{"id": 1}]}))
    assert read_coco(path)["images"] == [{"id": 1}]


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"images": [', '[[{"a":'])
def test_a_file_that_is_nested_too_deeply_is_one_line(tmp_path, opening):
    (tmp_path / "a.json").write_text(opening * 100_000)
    for read, error in ((read_json, DatasetError), (read_results, ResultsError)):
        with pytest.raises(error, match=r"a\.json is not valid JSON \(it is nested too deeply\)"):
            read(tmp_path / "a.json")
