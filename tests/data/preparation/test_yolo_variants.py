"""Text files of YOLO's kin: read where their meaning is certain, else refused with a remedy."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from salience_detr.cli.convert_dataset import main

NAMES = ["pit", "dent", "burr"]
# Three boxes of an image of 100 x 50 pixels, one of each class.
BOXES = ["0 0.5 0.5 0.2 0.4", "1 0.25 0.25 0.3 0.3", "2 0.75 0.6 0.3 0.2"]
CORNERS = [[40, 15, 20, 20], [10, 5, 30, 15], [60, 25, 30, 10]]


@pytest.fixture
def yolo(tmp_path):
    """Make two splits of two images with the three boxes each."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for stem in ("a", "b"):
            Image.new("RGB", (100, 50)).save(root / split / "images" / f"{split}_{stem}.png")
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../val/images\nnames: {NAMES}\n")
    write_lines(root, BOXES)
    return root


def write_lines(root, lines):
    for image in root.rglob("*.png"):
        folder = image.parent.parent / "labels" if image.parent.name == "images" else image.parent
        (folder / f"{image.stem}.txt").write_text("".join(f"{line}\n" for line in lines))


def convert(source, *flags):
    """Convert a data set, and return the exit code and the boxes by split."""
    root = source if source.is_dir() else source.parent
    output = root.with_name("out")
    shutil.rmtree(output, ignore_errors=True)
    code = main(["yolo", str(source), "--output", str(output), "--workers", "0", *flags])

    contents = {}
    for path in sorted(output.rglob("*.json")):
        name = path.stem.removeprefix("instances_")
        contents[name] = [x["bbox"] for x in json.loads(path.read_text())["annotations"]]
    return code, contents


def moved(number, line):
    """Return a line with another class."""
    return f"{int(line[0]) + number}{line[1:]}"


def polygon(line):
    """Return the corners of a line's box."""
    label, *numbers = line.split()
    x, y, w, h = map(float, numbers)
    points = [(x - w / 2, y - h / 2), (x + w / 2, y - h / 2), (x + w / 2, y + h / 2)]
    points.append((x - w / 2, y + h / 2))
    return " ".join([label, *(f"{value:.6f}" for point in points for value in point)])


@pytest.mark.parametrize(
    ("lines", "remark"),
    [
        ([f"{line} 0.93" for line in BOXES], "6 lines have a confidence after the box"),
        ([BOXES[0], f"{BOXES[1]} 0.5", BOXES[2]], "2 lines have a confidence after the box"),
        ([f"{line} 1" for line in BOXES], "6 lines have a confidence after the box"),
        ([f"{line} 17" for line in BOXES], "6 lines have the number of a track"),
        ([f"{line} 0.9 {n}" for n, line in enumerate(BOXES)], "6 lines have the number of a track"),
        (
            [polygon(line) for line in BOXES],
            "6 lines are polygons of four points, perhaps oriented",
        ),
        ([f"{polygon(line)} 0.9" for line in BOXES], "6 lines have a confidence after the box"),
        ([f"{polygon(line)} 0.9 4" for line in BOXES], "6 lines have the number of a track"),
        ([f"{polygon(line)} .5 .5" for line in BOXES[:1]], "2 lines are polygons, whose extent"),
        ([line.replace(" ", "\t") for line in BOXES], "6 boxes"),
    ],
)
def test_what_follows_the_box_is_told_and_the_boxes_are_kept(yolo, capsys, lines, remark):
    write_lines(yolo, lines)
    code, boxes = convert(yolo)
    assert code == 0 and remark in capsys.readouterr().out
    assert boxes["train"] == boxes["val"] == CORNERS[: len(lines)] * 2


def test_a_triangle_is_no_track(yolo, capsys):
    write_lines(yolo, ["0 0.1 0.2 0.3 0.2 0.3 0.8"])
    code, boxes = convert(yolo)
    assert code == 0 and boxes["train"] == [[10, 10, 20, 30]] * 2
    assert "2 lines are polygons, whose extent is taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line.replace("0.", "0,") for line in BOXES], "has decimal commas; write points"),
        ([line.replace(" ", ",") for line in BOXES], "is separated by commas; write blanks"),
        ([line.replace(" ", ", ") for line in BOXES], "is separated by commas; write blanks"),
        ([line.replace(" ", ";") for line in BOXES], "is separated by semicolons"),
        ([line.replace(" ", "; ").replace(".", ",") for line in BOXES], "separated by semicolons"),
        (["0 50 25 20 20", "1 25 12.5 30 15", "2 0 30 30 10"], "12 of 12 lines are in pixels"),
        ([*BOXES, "0 50 25 20 20"], "4 of 16 lines are in pixels"),
        (["0 40 15 60 15 60 35 40 35"], "lines are in pixels"),
        (["0 .4 .3 .6 .7", "1 .1 .1 .4 .4", "2 .6 .5 .9 .7"], "read as corners x0 y0 x1 y1"),
        ([f"{x[0]} 0.93 {x[2:]}" for x in BOXES], "read as a confidence before x y width height"),
        ([f"{line} -1.57" for line in BOXES], "if it is an angle, export upright boxes"),
        ([moved(1, line) for line in BOXES], "the classes of the lines count from 1"),
        (["3 .5 .5 .2 .2"], "the classes of the lines count from 1"),
        (BOXES[:0], "no box of train is left, nothing is written"),
        (["pit .5 .5 .2 .2"], "no box of train is left, nothing is written; 2 problems, the first"),
        (["0 .5 .5 .2 .2 .4 .4 2 .6 .6 1 .5 .5 0"], "data.yaml needs kpt_shape"),
    ],
)
def test_data_sets_of_another_kind_are_refused_with_a_remedy(yolo, capsys, lines, message):
    write_lines(yolo, lines)
    # The classes of the training part alone could be right.
    if "count from 1" in message:
        (yolo / "val" / "labels" / "val_b.txt").write_text("1 .5 .5 .2 .2\n")
    code, boxes = convert(yolo)
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    # The number of lines of both splits.
    expected = message.replace("12 of 12", f"{4 * len(lines)} of {4 * len(lines)}")
    assert code == 2 and boxes == {} and len(errors) == 1 and expected in errors[0]


def test_classes_from_one_are_read_if_the_names_count_so(yolo):
    write_lines(yolo, [moved(1, line) for line in BOXES])
    names = "names: {1: pit, 2: dent, 3: burr}"
    (yolo / "data.yaml").write_text(f"train: train/images\nval: val/images\n{names}\n")
    assert convert(yolo) == (0, {"train": CORNERS * 2, "val": CORNERS * 2})


def test_boxes_beyond_the_image_and_images_without_labels_are_counted(yolo, capsys):
    write_lines(yolo, ["0 0.95 0.5 0.2 0.4"])
    (yolo / "train" / "labels" / "train_a.txt").unlink()
    code, boxes = convert(yolo)
    printed = capsys.readouterr().out
    assert code == 0 and boxes["train"] == [[85, 15, 15, 20]]
    assert "1 boxes reached out of their image and were clipped" in printed
    assert "1 images have no file of labels and are taken as background" in printed


def test_a_validation_part_of_empty_files_is_warned_of(yolo, capsys):
    for path in (yolo / "val" / "labels").iterdir():
        path.write_text("")
    assert convert(yolo)[0] == 0
    assert "warning: the part for validation has no boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "description",
    [
        "path: /home/me/x\ntrain: train/images\nval: val/images\n",
        "train: /home/me/x/train/images\nval: C:\\me\\val\\images\n",
        "train: train.txt\nval: [val.txt]\ntest: ../test/images\n",
    ],
)
def test_paths_of_another_computer_are_found_by_their_last_parts(yolo, description):
    for split in ("train", "val"):
        names = [f"/content/x/{split}/images/{split}_{x}.png\n" for x in "ab"]
        (yolo / f"{split}.txt").write_text("".join(names))
    (yolo / "data.yaml").write_text(f"{description}names: {NAMES}\n")
    assert convert(yolo) == (0, {"train": CORNERS * 2, "val": CORNERS * 2})


def test_a_missing_validation_part_is_an_error_and_a_missing_test_part_is_told(yolo, capsys):
    (yolo / "data.yaml").write_text(f"train: train/images\nval: gone/images\nnames: {NAMES}\n")
    assert convert(yolo)[0] == 2
    assert "remove it and add --val-fraction" in capsys.readouterr().err
    description = f"train: train/images\nval: val/images\ntest: gone/images\nnames: {NAMES}\n"
    (yolo / "data.yaml").write_text(description)
    assert convert(yolo)[0] == 0
    assert "the test split is left out" in capsys.readouterr().out


@pytest.fixture
def label_studio(yolo):
    """Make an export of Label Studio: images, labels, classes.txt and notes.json."""
    for folder in ("images", "labels"):
        (yolo / folder).mkdir()
        for split in ("train", "val"):
            for path in (yolo / split / folder).iterdir():
                path.rename(yolo / folder / path.name)
    for split in ("train", "val"):
        shutil.rmtree(yolo / split)
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("\n".join(NAMES))
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    (yolo / "notes.json").write_text(json.dumps({"categories": categories}))
    return yolo


def test_an_export_of_label_studio_needs_no_data_yaml(label_studio, capsys):
    assert convert(label_studio) == (0, {"train": CORNERS * 4})
    assert "--val-fraction 0.2" in capsys.readouterr().out
    assert convert(label_studio / "classes.txt") == (0, {"train": CORNERS * 4})

    (label_studio / "classes.txt").unlink()
    assert convert(label_studio) == (0, {"train": CORNERS * 4})

    (label_studio / "notes.json").unlink()
    assert convert(label_studio)[0] == 2
    assert "there is no data.yaml, obj.data, classes.txt or notes.json" in capsys.readouterr().err


def test_a_part_is_drawn_for_validation(label_studio):
    code, boxes = convert(label_studio, "--val-fraction", "0.5", "--split-by", "^(train|val)_")
    assert code == 0 and [len(x) for x in boxes.values()] == [6, 6]
    output = label_studio.with_name("out") / "annotations"
    for split in ("train", "val"):
        images = json.loads((output / f"instances_{split}.json").read_text())["images"]
        assert len({image["file_name"].partition("_")[0] for image in images}) == 1


def test_labels_of_labelimg_and_darknet_lie_beside_the_images(label_studio):
    for path in (*(label_studio / "images").iterdir(), *(label_studio / "labels").iterdir()):
        path.rename(label_studio / path.name)
    for folder in ("images", "labels"):
        (label_studio / folder).rmdir()
    assert convert(label_studio) == (0, {"train": CORNERS * 4})

    (label_studio / "classes.txt").rename(label_studio / "obj.names")
    names = sorted(path.name for path in label_studio.glob("*.png"))
    (label_studio / "train.txt").write_text("".join(f"data/{name}\n" for name in names))
    (label_studio / "obj.data").write_text(
        "classes = 3\ntrain = data/train.txt\nnames=data/obj.names"
    )
    assert convert(label_studio) == (0, {"train": CORNERS * 4})


def test_a_second_conversion_needs_a_word(yolo, capsys):
    words = ["yolo", str(yolo), "--output", str(yolo / "out"), "--workers", "0"]
    assert main(words) == 0
    before = (yolo / "out" / "annotations" / "instances_train.json").read_text()
    (yolo / "out" / "annotations" / "instances_test.json").write_text("{}")

    write_lines(yolo, BOXES[:1])
    assert main(words) == 2
    assert "is there already: add --overwrite" in capsys.readouterr().err
    assert (yolo / "out" / "annotations" / "instances_train.json").read_text() == before

    # Nothing of the earlier one is left.
    assert main([*words, "--overwrite"]) == 0
    assert (yolo / "out" / "annotations" / "instances_train.json").read_text() != before
    assert not (yolo / "out" / "annotations" / "instances_test.json").exists()


def test_confidences_of_a_real_export_leave_14_and_17_boxes(shared, tmp_path):
    source = shared("field/22-yolo-confidence/22-yolo-confidence")
    assert main(["yolo", str(source), "--output", str(tmp_path), "--workers", "0"]) == 0
    for split, expected in (("train", 14), ("val", 17)):
        content = json.loads((tmp_path / "annotations" / f"instances_{split}.json").read_text())
        assert len(content["annotations"]) == expected
