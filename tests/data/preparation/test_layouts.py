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


def test_a_file_without_images_is_said_to_have_none(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(DatasetError, match=r"train\.json holds no images"):
        find_splits(tmp_path)


def test_images_that_are_elsewhere_are_asked_for(tmp_path):
    write(tmp_path, "train.json", "far/away/1.jpg")
    with pytest.raises(
        DatasetError,
        match=r"the images of .*train\.json \(1\.jpg, \.\.\.\) are in none of .*--train-images",
    ):
        find_splits(tmp_path)


def test_capital_letters_are_found_too(tmp_path):
    write(tmp_path, "annotations/instances_Train.json", "images/Train/1.jpg")
    write(tmp_path, "Annotations/instances_Validation.json", "images/Validation/2.jpg")
    splits = find_splits(tmp_path)
    assert splits["train"].json_file.name == "instances_Train.json"
    assert splits["train"].image_root == tmp_path / "images" / "Train"
    assert splits["val"].json_file.name == "instances_Validation.json"
    assert splits["val"].image_root == tmp_path / "images" / "Validation"


def make_single(root, json_file, image_file, file_name=None):
    """Write a file with all of COCO's lists, of one image."""
    write(root, json_file, image_file)
    images = [{"id": 1, "file_name": file_name or image_file.rpartition("/")[2]}]
    content = {"images": images, "annotations": [], "categories": []}
    (root / json_file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("json_file", "image_file", "file_name"),
    [
        ("annotations/instances_default.json", "images/default/1.jpg", None),
        ("annotations/instances_default.json", "images/1.jpg", None),
        ("result.json", "images/1.jpg", "images/1.jpg"),
        ("result.json", "images/1.jpg", r"images\1.jpg"),
        ("via_export_coco.json", "1.jpg", None),
        ("labels_my-project.json", "photos/1.jpg", None),
        ("dataset.json", "imgs/1.jpg", "/home/me/imgs/1.jpg"),
        ("export/coco/dataset.json", "imgs/1.jpg", r"C:\me\imgs\1.jpg"),
    ],
)
def test_a_single_file_of_any_name_is_for_training(tmp_path, json_file, image_file, file_name):
    make_single(tmp_path, json_file, image_file, file_name)
    # Results and settings beside it are no annotations.
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "settings.json").write_text('{"images": 5}')

    splits = find_splits(tmp_path)
    assert list(splits) == ["train"] and splits["train"].json_file == tmp_path / json_file
    assert (tmp_path / image_file).is_relative_to(splits["train"].image_root)


def test_files_that_lie_there_are_named(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"of results\.json, none has the lists images"):
        find_splits(tmp_path)

    for name in ("a.json", "sub/b.json"):
        make_single(tmp_path, name, "1.jpg")
    with pytest.raises(
        DatasetError, match=r"holds 2 files in COCO's format \(a\.json, sub/b\.json"
    ):
        find_splits(tmp_path)


def test_images_of_one_split_are_not_taken_for_those_of_another(tmp_path):
    write(tmp_path, "train/_annotations.coco.json", "train/1.jpg")
    write(tmp_path, "valid/_annotations.coco.json", "valid/1.jpg")
    (tmp_path / "valid" / "1.jpg").unlink()
    with pytest.raises(DatasetError, match=r"the images of .*valid.*are in none of"):
        find_splits(tmp_path)
