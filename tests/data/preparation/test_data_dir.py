"""--data-dir of YOLO's and Pascal VOC's data sets, and of what a conversion wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from salience_detr.cli.check_dataset import main as check
from salience_detr.cli.convert_dataset import main as convert
from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.data_dir import open_data_dir
from salience_detr.data.preparation.layouts import find_splits

XML = """<annotation><filename>{name}.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>pit</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>13</ymax></bndbox>
</object></annotation>"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "cpu_count", lambda: 0)  # reads in this process
    return tmp_path / "cache" / "salience_detr" / "converted"


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (len(path.stem), 50, sum(map(ord, path.stem)) % 256)).save(path)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            add_image(root / "images" / split / f"{split}{i}.jpg")
            label = root / "labels" / split / f"{split}{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.2 0.4\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [pit]\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    for i in range(10):
        add_image(root / "JPEGImages" / f"{'x' * i}{i}.jpg")
        (root / "Annotations" / f"{'x' * i}{i}.xml").write_text(XML.format(name=f"{'x' * i}{i}"))
    return root


@pytest.mark.parametrize("name", ["", "data.yaml"])
def test_yolo_is_converted_into_the_cache_and_said(yolo, cache, capsys, name):
    splits = open_data_dir(yolo / name)
    assert splits["train"].json_file.is_relative_to(cache)
    assert splits["train"].image_root == yolo / "images" / "train"
    content = json.loads(splits["val"].json_file.read_text())
    assert [box["bbox"] for box in content["annotations"]] == [[16.0, 9.0, 8.0, 12.0]] * 2

    printed = capsys.readouterr().out.splitlines()
    said = [line for line in printed if "(YOLO) converted into" in line]
    assert len(said) == 1 and said[0].endswith("train 4 images, 4 boxes; val 2 images, 2 boxes")


def test_a_changed_source_is_converted_again_and_another_one_is_not(yolo):
    before = open_data_dir(yolo)["train"].json_file
    written = before.stat().st_mtime_ns
    assert open_data_dir(yolo)["train"].json_file == before
    assert before.stat().st_mtime_ns == written

    (yolo / "labels" / "train" / "train0.txt").write_text("0 0.5 0.5 0.1 0.1\n0 0.3 0.3 0.1 0.1\n")
    after = open_data_dir(yolo)["train"].json_file
    assert after != before
    assert len(json.loads(after.read_text())["annotations"]) == 5
    assert len(json.loads(before.read_text())["annotations"]) == 4


def test_voc_without_splits_gets_a_part_for_validation_as_convert_draws_it(voc, tmp_path, capsys):
    splits = open_data_dir(voc)
    assert "val is 0.2 of all; --val-fraction F draws another part" in capsys.readouterr().out
    assert convert(["voc", str(voc), "--output", str(tmp_path / "out")]) == 0
    for name, split in find_splits(tmp_path / "out").items():
        assert json.loads(split.json_file.read_text()) == json.loads(
            splits[name].json_file.read_text()
        )

    # The user draws another part.
    assert list(open_data_dir(voc, draw=False)) == ["train"]


def test_what_is_left_out_is_said(voc, capsys):
    (voc / "Annotations" / "broken.xml").write_text("<annotation>")
    folder = open_data_dir(voc)["train"].json_file.parents[1]
    assert f"1 were left out; {folder / 'report.txt'} says more" in capsys.readouterr().out
    assert "broken.xml" in (folder / "report.txt").read_text()


def test_a_conversion_is_found_without_its_images(yolo, tmp_path, capsys):
    output = tmp_path / "converted"
    assert convert(["yolo", str(yolo), "--output", str(output)]) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert line == f"train, val, check and visualize data take it with --data-dir {output}"
    assert find_splits(output)["val"].image_root == yolo / "images" / "val"
    assert check(["--data-dir", str(output), "--workers", "0"]) == 0


@pytest.mark.parametrize("words", [["--data-dir", "{}/data.yaml"], ["--data-dir", "{}"]])
def test_check_takes_the_flags_of_the_training(yolo, words):
    assert check([*(word.format(yolo) for word in words), "--workers", "0"]) == 0


def test_check_takes_single_files(yolo, tmp_path, capsys):
    assert convert(["yolo", str(yolo), "--output", str(tmp_path / "c")]) == 0
    files = ["--train-json", str(tmp_path / "c" / "annotations" / "instances_train.json")]
    files += ["--train-images", str(yolo / "images" / "train"), "--val-fraction", "0.5"]
    assert check([*files, "--workers", "0"]) == 0
    assert "note: --val-fraction is left to the training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "there is no data folder"), ("a.json", "is no data set: name its folder")],
)
def test_other_paths_are_one_line(tmp_path, name, message):
    (tmp_path / "a.json").touch()
    with pytest.raises(DatasetError, match=message):
        open_data_dir(tmp_path / name)


def test_a_cache_that_cannot_be_written_to_says_what_to_do(yolo, cache):
    cache.parent.mkdir(parents=True)
    cache.touch()
    with pytest.raises(OSError, match="set XDG_CACHE_HOME to another folder"):
        open_data_dir(yolo)
