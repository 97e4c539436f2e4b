"""Annotations of Pascal VOC and YOLO become COCO's, box for box."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from salience_detr.data import load_dataset, register_coco_dataset
from salience_detr.data.conversion import convert_voc, convert_yolo, yolo_labels_folder
from salience_detr.data.datasets import DatasetError
from tools.convert_dataset import main


def picture(path, size=(100, 50), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def voc_file(path, objects, filename=None):
    """``objects``: (name, xmin, ymin, xmax, ymax, difficult)"""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, difficult in objects
    )
    path.write_text(f"<annotation><filename>{filename or path.stem + '.jpg'}</filename>{items}</annotation>")


@pytest.fixture
def voc(tmp_path):
    for stem in ("a", "b", "c"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
    # All of the picture, in VOC's counting from 1; and a part of it.
    voc_file(tmp_path / "Annotations" / "a.xml", [("pit", 1, 1, 100, 50, 0), ("dent", 11, 21, 30, 40, 1)])
    voc_file(tmp_path / "Annotations" / "b.xml", [("dent", 90, 40, 130, 60, 0), ("pit", 101, 1, 120, 5, 0)])
    voc_file(tmp_path / "Annotations" / "c.xml", [])
    return tmp_path


def boxes_of(conversion):
    names = {x["id"]: x["name"] for x in conversion.content["categories"]}
    files = {x["id"]: x["file_name"] for x in conversion.content["images"]}
    return [(files[x["image_id"]], names[x["category_id"]], x["bbox"]) for x in conversion.content["annotations"]]


def test_voc_corners_count_from_one_and_include_the_last_pixel(voc):
    conversion = convert_voc(voc / "Annotations", voc / "JPEGImages")
    assert boxes_of(conversion) == [
        ("a.jpg", "pit", [0, 0, 100, 50]),
        ("a.jpg", "dent", [10, 20, 20, 20]),
        ("b.jpg", "dent", [89, 39, 11, 11]),  # clipped to the picture
    ]
    assert len(conversion.content["images"]) == 3
    assert [x["name"] for x in conversion.content["categories"]] == ["dent", "pit"]
    assert conversion.content["annotations"][1]["area"] == 400
    assert len(conversion.problems) == 1 and "b.xml: pit has the box [101.0, 1.0, 120.0, 5.0]" in conversion.problems[0]


def test_voc_corners_may_count_from_zero_and_difficult_objects_be_dropped(voc):
    conversion = convert_voc(voc / "Annotations", voc / "JPEGImages", zero_based=True, drop_difficult=True)
    assert boxes_of(conversion)[0] == ("a.jpg", "pit", [1, 1, 99, 49])
    assert "dent" not in [name for file, name, _ in boxes_of(conversion) if file == "a.jpg"]


def test_broken_voc_files_are_reported_and_the_others_kept(voc):
    (voc / "Annotations" / "d.xml").write_text("<annotation>")
    voc_file(voc / "Annotations" / "e.xml", [])
    (voc / "JPEGImages" / "f.jpg").write_bytes(b"no picture")
    voc_file(voc / "Annotations" / "f.xml", [])
    voc_file(voc / "Annotations" / "c.xml", [("pit", "left", 1, 2, 3, 0)])
    conversion = convert_voc(voc / "Annotations", voc / "JPEGImages")
    assert [x["file_name"] for x in conversion.content["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    problems = "\n".join(conversion.problems)
    for words in ("d.xml: not valid XML", "there is no picture e.jpg", "f.jpg: the picture cannot be read",
                  "c.xml: a pit without a readable bndbox"):  # fmt: skip
        assert words in problems
    with pytest.raises(DatasetError, match=r"no \.xml files"):
        convert_voc(voc / "JPEGImages", voc / "JPEGImages")


@pytest.fixture
def yolo(tmp_path):
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(tmp_path / "images" / split / f"{stem}.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.3 0.2 0.3 0.8\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: pit, 1: dent}\n")
    return tmp_path


def test_yolo_centres_and_polygons_become_boxes(yolo):
    conversion = convert_yolo(yolo / "images" / "train", yolo / "labels" / "train", ["pit", "dent"])
    assert boxes_of(conversion) == [("a.png", "dent", [40, 15, 20, 20]), ("a.png", "pit", [10, 10, 20, 30])]
    assert [x["id"] for x in conversion.content["categories"]] == [0, 1]
    assert [x["file_name"] for x in conversion.content["images"]] == ["a.png", "b.png"]


def test_pictures_that_exif_turns_have_the_size_in_which_they_are_shown(yolo):
    picture(yolo / "images" / "train" / "a.jpg", orientation=6)
    (yolo / "images" / "train" / "a.png").unlink()
    conversion = convert_yolo(yolo / "images" / "train", yolo / "labels" / "train", ["pit", "dent"])
    image = conversion.content["images"][0]
    assert (image["file_name"], image["width"], image["height"]) == ("a.jpg", 50, 100)
    assert boxes_of(conversion)[0][2] == [20, 30, 10, 40]


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.2", "x 0.5 0.5 0.2 0.2", "0 nan 0.5 0.2 0.2", "0 1.5 1.5 0.2 0.2", "7 .5 .5 .1 .1"]
)
def test_unusable_yolo_lines_are_reported(yolo, line):
    (yolo / "labels" / "train" / "a.txt").write_text(f"{line}\n1 0.5 0.5 0.2 0.4\n")
    conversion = convert_yolo(yolo / "images" / "train", yolo / "labels" / "train", ["pit", "dent"])
    assert len(conversion.content["annotations"]) == 1 and len(conversion.problems) == 1


def test_labels_lie_beside_the_last_images_folder_of_the_path(tmp_path):
    assert yolo_labels_folder(tmp_path / "images" / "x" / "images" / "train") == tmp_path / "images/x/labels/train"
    assert yolo_labels_folder(tmp_path / "pictures") == tmp_path / "pictures"


def test_the_command_writes_files_that_load_and_says_what_it_did(yolo, tmp_path, capsys):
    assert main(["yolo", str(yolo), "--output", str(tmp_path / "out"), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 pictures (1 without boxes), 2 boxes" in printed and "--val-json" in printed
    path = tmp_path / "out" / "annotations" / "instances_train.json"
    register_coco_dataset("converted_yolo", path, yolo / "images" / "train")
    assert [len(x["annotations"]) for x in load_dataset("converted_yolo", is_train=True)] == [2, 0]


def test_voc_splits_are_those_of_the_lists_or_drawn(voc, tmp_path, capsys):
    assert main(["voc", str(voc), "--output", str(tmp_path / "drawn"), "--val-fraction", "0.34"]) == 0
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a 1\nc -1\n")
    (lists / "val.txt").write_text("b\n")
    assert main(["voc", str(voc), "--output", str(tmp_path / "listed")]) == 0
    for folder, expected in (("drawn", [2, 1]), ("listed", [2, 1])):
        contents = [
            json.loads((tmp_path / folder / "annotations" / f"instances_{split}.json").read_text())
            for split in ("train", "val")
        ]
        assert [len(x["images"]) for x in contents] == expected
        assert contents[0]["categories"] == contents[1]["categories"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["yolo", "."], "there is no data.yaml"),
        (["yolo", "data.yaml"], "is not a YOLO description"),
        (["voc", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_missing_sources_are_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    if "data.yaml" in words:
        (tmp_path / "data.yaml").write_text("nonsense: 1")
    assert main([*words, "--output", "out"]) == 2
    assert message in capsys.readouterr().err
