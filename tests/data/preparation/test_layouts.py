"""Data folders are found as people keep them."""

from __future__ import annotations

import json

import pytest

from salience_detr.data.datasets import DatasetError
from salience_detr.data.preparation.layouts import find_splits


def write(root, json_file, image_file):
    """An annotation file with one image, and the image (an empty file: only its place matters)."""
    path, image = root / json_file, root / image_file
    path.parent.mkdir(parents=True, exist_ok=True)
    image.parent.mkdir(parents=True, exist_ok=True)
    image.touch()
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": image.name}]}))


COCO = [(f"annotations/instances_{x}2017.json", f"{x}2017/1.jpg") for x in ("train", "val")]
PLAIN = [(f"annotations/instances_{x}.json", f"images/{x}/1.jpg") for x in ("train", "val")]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        COCO,
        PLAIN,
        (("annotations/train.json", "train/1.jpg"), ("annotations/val.json", "val/2.jpg")),
        (
            ("train/_annotations.coco.json", "train/1.jpg"),
            ("valid/_annotations.coco.json", "valid/2.jpg"),
        ),
        (("train.json", "images/1.jpg"), ("val.json", "images/2.jpg")),
        (
            ("train/annotations.json", "train/images/1.jpg"),
            ("test/annotations.json", "test/images/2.jpg"),
        ),
    ],
)  # fmt: skip
def test_usual_layouts_are_found(tmp_path, train, val):
    for json_file, image_file in (train, val):
        write(tmp_path, json_file, image_file)
    splits = find_splits(tmp_path)
    for name, (json_file, image_file) in (("train", train), ("val", val)):
        assert splits[name].json_file == tmp_path / json_file
        assert (splits[name].image_root / image_file.rsplit("/", 1)[1]).is_file()


def test_the_validation_part_is_taken_before_the_test_part(tmp_path):
    for name in ("train", "test", "val"):
        write(tmp_path, f"annotations/{name}.json", f"{name}/1.jpg")
    assert find_splits(tmp_path)["val"].json_file.name == "val.json"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "looked for annotations/instances_train.json"),
        (["data.yaml"], "YOLO's layout: convert it with tools/convert_dataset.py yolo"),
        (
            ["Annotations/1.xml"],
            "Pascal VOC's layout: convert it with tools/convert_dataset.py voc",
        ),
    ],
)
def test_other_folders_are_answered_with_what_to_do(tmp_path, files, message):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(DatasetError, match=message):
        find_splits(tmp_path)
    with pytest.raises(DatasetError, match="there is no data folder"):
        find_splits(tmp_path / "nowhere")


def test_a_missing_image_does_not_hide_the_folder(tmp_path):
    write(tmp_path, "train.json", "images/1.jpg")
    names = [{"id": i, "file_name": f"{i}.jpg"} for i in (9, 1)]
    (tmp_path / "train.json").write_text(json.dumps({"images": [*names, "nonsense"]}))
    assert find_splits(tmp_path)["train"].image_root == tmp_path / "images"


@pytest.mark.parametrize("images", [None, "x", {}, ["1.jpg"], [{"file_name": 5}]])
def test_lists_of_images_that_are_none_are_one_error(tmp_path, images):
    (tmp_path / "train.json").write_text(json.dumps({"images": images}))
    with pytest.raises(DatasetError, match="are in none of"):
        find_splits(tmp_path)


def test_images_that_are_elsewhere_are_asked_for(tmp_path):
    write(tmp_path, "train.json", "far/away/1.jpg")
    with pytest.raises(
        DatasetError,
        match=r"the images of .*train\.json \(1\.jpg, \.\.\.\) are in none of .*--train-images",
    ):
        find_splits(tmp_path)
