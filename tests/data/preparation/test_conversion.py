"""Annotations of Pascal VOC and YOLO become COCO's, box for box."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from salience_detr.cli.convert_dataset import convert_voc, convert_yolo, main, parse_args
from salience_detr.data import load_dataset, register_coco_dataset
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.yolo import label_candidates
from salience_detr.data.preparation.yolo_layout import read_description


def write_image(path, size=(100, 50), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def write_xml(path, objects, filename=None, extra=""):
    """Write an XML file of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, difficult in objects
    )
    filename = filename or f"{path.stem}.jpg"
    path.write_text(f"<annotation><filename>{filename}</filename>{extra}{items}</annotation>")


@pytest.fixture
def voc(tmp_path):
    for stem in ("a", "b", "c"):
        write_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
    # All of the image, in VOC's counting from 1; and a part of it.
    write_xml(
        tmp_path / "Annotations" / "a.xml", [("pit", 1, 1, 100, 50, 0), ("dent", 11, 21, 30, 40, 1)]
    )
    write_xml(
        tmp_path / "Annotations" / "b.xml",
        [("dent", 90, 40, 130, 60, 0), ("pit", 101, 1, 120, 5, 0)],
    )
    write_xml(tmp_path / "Annotations" / "c.xml", [])
    return tmp_path


def from_voc(root, *flags):
    words = ["voc", str(root), "--val-fraction", "0", "--output", "x", "--workers", "0", *flags]
    return convert_voc(parse_args(words)).conversions["train"]


def boxes_of(conversion):
    names = {x["id"]: x["name"] for x in conversion.content["categories"]}
    files = {x["id"]: x["file_name"] for x in conversion.content["images"]}
    return [
        (files[x["image_id"]], names[x["category_id"]], x["bbox"])
        for x in conversion.content["annotations"]
    ]


def test_voc_corners_count_from_one_and_include_the_last_pixel(voc):
    conversion = from_voc(voc)
    assert boxes_of(conversion) == [
        ("a.jpg", "pit", [0, 0, 100, 50]),
        ("a.jpg", "dent", [10, 20, 20, 20]),
        ("b.jpg", "dent", [89, 39, 11, 11]),  # clipped to the image
    ]
    assert len(conversion.content["images"]) == 3
    assert [x["name"] for x in conversion.content["categories"]] == ["dent", "pit"]
    assert conversion.content["annotations"][1]["area"] == 400
    assert (
        len(conversion.problems) == 1
        and "b.xml: pit has the box [101.0, 1.0, 120.0, 5.0]" in conversion.problems[0]
    )


def test_voc_corners_may_count_from_zero_and_difficult_objects_be_dropped(voc):
    conversion = from_voc(voc, "--zero-based", "--drop-difficult")
    assert boxes_of(conversion)[0] == ("a.jpg", "pit", [1, 1, 99, 49])
    assert "dent" not in [name for file, name, _ in boxes_of(conversion) if file == "a.jpg"]


def test_broken_voc_files_are_reported_and_the_others_kept(voc):
    (voc / "Annotations" / "d.xml").write_text("<annotation>")
    write_xml(voc / "Annotations" / "e.xml", [])
    (voc / "JPEGImages" / "f.jpg").write_bytes(b"no image")
    write_xml(voc / "Annotations" / "f.xml", [])
    write_xml(voc / "Annotations" / "c.xml", [("pit", "left", 1, 2, 3, 0)])
    conversion = from_voc(voc)
    assert [x["file_name"] for x in conversion.content["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    problems = "\n".join(conversion.problems)
    for words in (
        "d.xml: not valid XML",
        "there is no image e.jpg",
        "f.jpg: the image cannot be read",
        "c.xml: pit has no readable bndbox",
    ):
        assert words in problems
    with pytest.raises(DatasetError, match=r"no \.xml files"):
        from_voc(voc / "JPEGImages")


@pytest.fixture
def yolo(tmp_path):
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        write_image(tmp_path / "images" / split / f"{stem}.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.3 0.2 0.3 0.8\n"
    )
    (tmp_path / "labels" / "val").mkdir()
    (tmp_path / "labels" / "val" / "c.txt").touch()
    (tmp_path / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: pit, 1: dent}\n"
    )
    return tmp_path


def from_yolo(root):
    words = ["yolo", str(root), "--output", "x", "--workers", "0"]
    return convert_yolo(parse_args(words)).conversions["train"]


def test_yolo_centers_and_polygons_become_boxes(yolo):
    conversion = from_yolo(yolo)
    assert boxes_of(conversion) == [
        ("a.png", "dent", [40, 15, 20, 20]),
        ("a.png", "pit", [10, 10, 20, 30]),
    ]
    assert [x["id"] for x in conversion.content["categories"]] == [0, 1]
    assert [x["file_name"] for x in conversion.content["images"]] == ["a.png", "b.png"]


def test_images_that_exif_turns_have_the_size_in_which_they_are_shown(yolo):
    write_image(yolo / "images" / "train" / "a.jpg", orientation=6)
    (yolo / "images" / "train" / "a.png").unlink()
    conversion = from_yolo(yolo)
    image = conversion.content["images"][0]
    assert (image["file_name"], image["width"], image["height"]) == ("a.jpg", 50, 100)
    assert boxes_of(conversion)[0][2] == [20, 30, 10, 40]


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.2",
        "x 0.5 0.5 0.2 0.2",
        "0 nan 0.5 0.2 0.2",
        "0 1.5 1.5 0.2 0.2",
        "7 .5 .5 .1 .1",
    ],
)
def test_unusable_yolo_lines_are_reported(yolo, line):
    (yolo / "labels" / "train" / "a.txt").write_text(f"{line}\n1 0.5 0.5 0.2 0.4\n")
    conversion = from_yolo(yolo)
    assert len(conversion.content["annotations"]) == 1 and len(conversion.problems) == 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (
            "a/images/x/images/train/1.jpg",
            ["a/images/x/labels/train/1.txt", "a/images/x/images/train/1.txt"],
        ),
        ("train/images/1.jpg", ["train/labels/1.txt", "train/images/1.txt"]),
        ("photos/images.jpg", ["photos/images.txt"]),
    ],
)
def test_labels_lie_beside_the_last_images_folder_or_the_image(image, expected):
    assert [path.as_posix() for path in label_candidates(Path(image))] == expected


@pytest.mark.parametrize(
    "train",
    [
        "train",
        ".",
        "train/images",
        "../x/train/images",
        r"train\images",
        ["train/images"],
        "list.txt",
    ],
)
def test_images_of_a_split_are_found_however_they_are_named(tmp_path, capsys, train):
    root = tmp_path / "x"
    write_image(root / "train" / "images" / "a.JPG")
    (root / "train" / "labels").mkdir()
    (root / "train" / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (root / "list.txt").write_text("./train/images/a.JPG\n")
    (root / "data.yaml").write_text(json.dumps({"train": train, "valid": train, "names": ["pit"]}))
    (root / "args.yaml").write_text("lr: 1")
    assert main(["yolo", str(root), "--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    for split in ("train", "val"):
        content = json.loads(
            (tmp_path / "out" / "annotations" / f"instances_{split}.json").read_text()
        )
        assert [x["file_name"] for x in content["images"]] == ["a.JPG"] and len(
            content["annotations"]
        ) == 1
    assert "--train-images" in capsys.readouterr().out


def test_a_split_without_any_labels_is_an_error_that_says_where_they_were_looked_for(yolo, capsys):
    (yolo / "labels" / "train" / "a.txt").unlink()
    assert main(["yolo", str(yolo), "--output", str(yolo / "out"), "--workers", "0"]) == 2
    assert "none of the 2 images of train has a file of labels; for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], {0: "a", 1: "b"}),
        ({1: "cat", 2: "dog"}, {1: "cat", 2: "dog"}),
        ({str(i): f"n{i}" for i in (0, 1, 2, 10)}, {0: "n0", 1: "n1", 2: "n2", 10: "n10"}),
        ("cat", None), ([], None), (None, None), ({"a": "b"}, None), ({0: None}, None),
    ],
)  # fmt: skip
def test_names_of_classes_keep_their_numbers(yolo, names, expected):
    (yolo / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": names}))
    if expected is None:
        with pytest.raises(DatasetError, match=r"data\.yaml: names is .*a list, or a mapping"):
            read_description(yolo / "data.yaml")
    else:
        assert read_description(yolo / "data.yaml").names == expected


def test_labels_without_image_and_keypoints_and_odd_encodings(yolo):
    labels = yolo / "labels" / "train"
    (labels / "gone.txt").write_text("0 .5 .5 .2 .2\n")
    (labels / "classes.txt").write_text("pit\ndent\n")
    (labels / "a.txt").write_text("1.0 0.5 0.5 0.2 0.4 0.9 0.9 1\n", encoding="utf-8-sig")
    (labels / "b.txt").write_text("0 0.5 0.5 0.2 0.4 0.9 0.9 1\n", encoding="utf-16")
    with open(yolo / "data.yaml", "a") as file:
        file.write("kpt_shape: [1, 3]")
    conversion = from_yolo(yolo)
    assert [x[1:] for x in boxes_of(conversion)] == [
        ("dent", [40, 15, 20, 20]),
        ("pit", [40, 15, 20, 20]),
    ]
    assert conversion.problems == [f"{labels / 'gone.txt'}: there is no image for these labels"]


def test_voc_boxes_follow_the_size_that_the_file_gives(voc):
    size = "<size><width>{}</width><height>{}</height></size>".format
    write_image(voc / "JPEGImages" / "a.jpg", orientation=6)  # stored 100 x 50, shown 50 x 100
    write_xml(voc / "Annotations" / "a.xml", [("pit", 11, 6, 30, 20, 0)], extra=size(100, 50))
    write_xml(voc / "Annotations" / "b.xml", [("pit", 21, 11, 60, 40, 0)], extra=size(200, 100))
    write_xml(voc / "Annotations" / "c.xml", [("pit", 11, 6, 30, 20, 0)], extra=size(90, 20))
    conversion = from_voc(voc)
    assert boxes_of(conversion) == [
        ("a.jpg", "pit", [30, 10, 15, 20]),
        ("b.jpg", "pit", [10, 5, 20, 15]),
    ]
    assert (
        len(conversion.problems) == 1 and "do not fit, 90x20 but 100x50" in conversion.problems[0]
    )


def test_voc_files_are_for_the_image_of_their_own_name(voc):
    write_xml(voc / "Annotations" / "a.xml", [("pit", 1, 1, 9, 9, 0)], filename="b.jpg")
    write_image(voc / "JPEGImages" / "other.png")
    write_xml(
        voc / "Annotations" / "sub" / "d.XML",
        [("pit", 1, 1, 9, 9, 0)],
        filename=r"C:\data\other.png",
    )
    (voc / "Annotations" / "sub" / "d.XML").rename(voc / "Annotations" / "d.XML")
    write_xml(voc / "Annotations" / "e.xml", [("pit", 1, 1, 9, 9, 0)], filename="/etc/hostname")
    conversion = from_voc(voc)
    assert [x["file_name"] for x in conversion.content["images"]] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "other.png",
    ]
    assert ("a.jpg", "pit", [0, 0, 9, 9]) in boxes_of(conversion)
    assert len(conversion.problems) == 2 and "e.xml: there is no image" in conversion.problems[-1]


def test_voc_files_of_any_encoding_are_read(voc):
    text = (
        '<?xml version="1.0" encoding="{}"?><annotation><object><name>凹坑</name>'
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    (voc / "Annotations" / "a.xml").write_bytes(text.format("GB2312").encode("gb2312"))
    (voc / "Annotations" / "b.xml").write_bytes(text.format("klingon").encode())
    conversion = from_voc(voc)
    assert boxes_of(conversion) == [("a.jpg", "凹坑", [0, 0, 9, 9])]
    assert (
        len(conversion.problems) == 1
        and "not valid XML (unknown encoding: klingon)" in conversion.problems[0]
    )


def test_lists_of_voc_may_have_endings_spaces_and_marks(voc, tmp_path, capsys):
    for folder, ending in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (voc / folder / f"b{ending}").rename(voc / folder / f"my img 1{ending}")
    write_image(voc / "JPEGImages" / "unlabeled.jpg")
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a.jpg\nmy img 1\n", encoding="utf-8-sig")
    (lists / "test.txt").write_text("c -1\n")
    words = [
        "voc",
        str(voc),
        "--output",
        str(tmp_path / "out"),
        "--classes",
        "pit, dent",
        "--workers",
        "0",
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert (
        "1 images have no .xml file" in printed
        and "--val-json" in printed
        and "--test-json" not in printed
    )
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [x["file_name"] for x in content["images"]] == ["a.jpg", "my img 1.jpg"]
    assert [x["name"] for x in content["categories"]] == ["pit", "dent"] and len(
        content["annotations"]
    ) == 3


def test_the_command_writes_files_that_load_and_says_what_it_did(yolo, tmp_path, capsys):
    assert main(["yolo", str(yolo), "--output", str(tmp_path / "out"), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 images (1 without boxes), 2 boxes" in printed and "--val-json" in printed
    path = tmp_path / "out" / "annotations" / "instances_train.json"
    register_coco_dataset("converted_yolo", path, yolo / "images" / "train")
    assert [len(x["annotations"]) for x in load_dataset("converted_yolo", is_train=True)] == [2, 0]


def test_voc_splits_are_those_of_the_lists_or_drawn(voc, tmp_path, capsys):
    assert (
        main(["voc", str(voc), "--output", str(tmp_path / "drawn"), "--val-fraction", "0.34"]) == 0
    )
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
