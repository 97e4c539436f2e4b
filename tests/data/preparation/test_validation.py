"""A data set with every kind of problem: each is found once, and repaired."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from salience_detr.cli.check_dataset import main
from salience_detr.data.preparation.repair import repair
from salience_detr.data.preparation.statistics import class_table, size_histogram, size_table
from salience_detr.data.preparation.validation import ERRORS, WARNINGS, validate

CATEGORIES = [{"id": 3, "name": "pit"}, {"id": 9, "name": "dent"}]


def box(annotation_id, bbox, image=1, category=3, **others):
    return {"id": annotation_id, "image_id": image, "category_id": category, "bbox": bbox, **others}


def write(root, name, images, annotations, categories=CATEGORIES):
    path = root / f"{name}.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": categories, "info": "kept"}
        )
    )
    return path


def image(image_id, file_name, width=40, height=30):
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        drawn = Image.new("RGB", (40, 30), (i, 0, 0))
        drawn.paste((255, 255, 255), (5, 5, 20, 20))
        drawn.save(tmp_path / f"{name}.png")
    (tmp_path / "same.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    return tmp_path


@pytest.fixture
def everything_wrong(root):
    images = [
        image(1, "a.png"), image(2, "b.png", 400, 300), image(3, "missing.png"),
        image(4, "broken.png"), image(5, "same.png"),
        image(1, "c.png"), {"id": 7, "file_name": "c.png"},
    ]  # fmt: skip
    annotations = [
        box(1, [1, 2, 3, 4], note="kept"), box(1, [1, 2, 3, 4]), box(0, [0, 0, 40, 30]),
        box(2, [5, 5, 0, 4]), box(3, [41, 5, 4, 4]), box(4, [30, 20, 20, 20]), box(5, [1, 2, 3]),
        box(6, [1, 2, float("nan"), 3]), box(7, [1, 2, 3, 4], category=77),
        box(8, [1, 2, 3, 4], image=99), {"id": 9},
        box(10, [3, 3, 300, 200], image=2),
    ]  # fmt: skip
    categories = [CATEGORIES[0], CATEGORIES[0], CATEGORIES[1]]
    return write(root, "wrong", images, annotations, categories)


def counts(result):
    return {kind: len(found) for kind, found in result.problems.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_problem_is_found_once(everything_wrong, root, workers):
    assert counts(validate(everything_wrong, root, workers=workers)) == {
        "missing image": 1, "unreadable image": 1, "wrong size": 1, "duplicate image id": 1,
        "duplicate annotation id": 1, "duplicate category id": 1, "malformed box": 2,
        "box without area": 1, "box outside the image": 1, "unknown category": 1,
        "unknown image": 1, "unusable entry": 2,
        "annotation id 0": 1, "box reaching out of the image": 1, "category without boxes": 1,
        "category name twice": 1,
        "image without boxes": 2, "image twice in the set": 2, "box twice in an image": 1,
    }  # fmt: skip


def test_a_good_set_has_no_problems(root):
    path = write(
        root,
        "good",
        [image(1, "a.png")],
        [box(1, [1, 2, 3, 4]), box(2, [0, 0, 40, 30], category=9)],
    )
    assert counts(validate(path, root)) == {}


def test_a_repaired_set_has_no_errors_and_keeps_the_rest(everything_wrong, root, capsys):
    content, done = repair(validate(everything_wrong, root))
    # Two images have the id 1: whose its boxes are is not known.
    assert [x["file_name"] for x in content["images"]] == ["b.png", "same.png", "c.png"]
    assert content["images"][0]["width"] == 40 and content["info"] == "kept"
    # Drawn on an image ten times as large.
    assert [x["bbox"] for x in content["annotations"]] == [pytest.approx([0.3, 0.3, 30, 20])]
    assert content["categories"] == CATEGORIES
    assert done == {
        "images left out": 4, "sizes corrected": 2, "boxes left out": 11,
        "boxes moved into the frame of their image": 1,
    }  # fmt: skip
    out = root / "fixed.json"
    assert main([str(everything_wrong), str(root), "--fix", str(out), "--workers", "0"]) == 1
    assert "4 images left out" in capsys.readouterr().out
    assert main([str(out), str(root), "--workers", "0"]) == 0
    assert not set(counts(validate(out, root))) & set(ERRORS)


def test_an_image_in_both_sets_is_an_error(root, capsys):
    boxes = [box(1, [1, 2, 3, 4]), box(2, [1, 2, 3, 4], image=2)]
    train = write(root, "train", [image(1, "a.png"), image(2, "b.png")], boxes)
    val = write(root, "val", [image(1, "same.png"), image(2, "c.png")], [box(1, [1, 2, 3, 4])])
    assert main([str(train), str(root), "--val", str(val), str(root), "--workers", "0"]) == 1
    assert "ERROR: image in both sets: 1\n    same.png is a.png of" in capsys.readouterr().out
    assert main([str(train), str(root), "--workers", "0"]) == 0
    out = root / "apart.json"
    main([str(train), str(root), "--val", str(val), str(root), "--workers", "0", "--fix", str(out)])
    assert [x["file_name"] for x in json.loads(out.read_text())["images"]] == ["b.png"]
    assert main([str(out), str(root), "--val", str(val), str(root), "--workers", "0"]) == 0


def test_boxes_are_clipped_and_ids_and_settings_repaired(root):
    annotations = [
        box(0, [30, 20, 20, 20], area=7, note="kept"), box(5, [1, 2, 3, 4], area=None),
        box(5, [2, 2, 3, 4], iscrowd="no"),
        {**box(1, [3, 2, 3, 4]), "id": None},
    ]  # fmt: skip
    content, done = repair(validate(write(root, "x", [image(1, "a.png")], annotations), root))
    assert content["annotations"] == [
        box(1, [30, 20, 10, 10], area=100, note="kept"),
        *(box(i, [i - 1, 2, 3, 4], area=12) for i in (2, 3, 4)),
    ]  # fmt: skip
    assert done == {"boxes clipped": 1, "areas computed": 3, "annotation ids given anew": 4}


def test_one_image_listed_twice_under_its_id_stays_with_its_boxes(root):
    path = write(root, "x", [image(1, "a.png"), image(1, "a.png")], [box(1, [1, 2, 3, 4])])
    content, done = repair(validate(path, root))
    assert content["images"] == [image(1, "a.png")]
    assert content["annotations"] == [box(1, [1, 2, 3, 4], area=12)]
    assert done == {"images left out": 1, "areas computed": 1}


@pytest.mark.parametrize(
    ("annotated_size", "drawn", "expected"),
    [
        ((30, 40), [5, 2, 20, 10], [5, 2, 20, 10]),  # as the image is shown
        (
            (40, 30),
            [5, 2, 20, 10],
            [18, 5, 10, 20],
        ),  # as it is stored: x becomes 30 - (y + height), y becomes x
        ((60, 80), [5, 2, 20, 10], [2.5, 1, 10, 5]),  # shown, twice as large
        ((80, 60), [10, 4, 40, 20], [18, 5, 10, 20]),  # stored, twice as large
        ((70, 71), [5, 2, 20, 10], None),
    ],
)
def test_boxes_follow_the_frame_that_the_size_tells(root, annotated_size, drawn, expected):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 40 wide and 30 high, shown after a quarter turn to the right
    Image.open(root / "a.png").save(root / "turned.png", exif=exif)
    path = write(root, "x", [image(1, "turned.png", *annotated_size)], [box(1, drawn)])
    content, _ = repair(validate(path, root))
    if expected is None:
        assert content["images"] == content["annotations"] == []
        return
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (30, 40)
    assert [x["bbox"] for x in content["annotations"]] == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"category_id": "3"}, "has the category_id '3', not a whole number"),
        ({"image_id": [1]}, "has the image_id [1], not a whole number or a text"),
        ({"iscrowd": "yes"}, "has the iscrowd 'yes', not 0 or 1"),
        ({"area": "big"}, "has the area 'big', not a number"),
        ({"id": None}, "has the id None"),
    ],
)
def test_entries_of_another_kind_are_named(root, entry, words):
    path = write(
        root,
        "x",
        [image(1, "a.png")],
        [box(1, [1, 2, 3, 4]), {**box(2, [1, 2, 3, 4], category=9), **entry}],
    )
    assert [x for x in validate(path, root).problems["unusable entry"] if words in x]


def test_sizes_that_are_missing_or_no_numbers_are_not_unknown_images(root):
    images = [
        {"id": 1, "file_name": "a.png"},
        image(2, "missing.png", None),
        image(3, "b.png", "40", 30),
    ]
    annotations = [box(i, [1, 2, 3, 4], image=i, category=3 if i == 1 else 9) for i in (1, 2, 3)]
    found = counts(validate(write(root, "x", images, annotations), root))
    assert found == {"unusable entry": 3, "missing image": 1}


def test_images_in_which_nothing_can_be_seen_are_pointed_out(root):
    Image.new("I;16", (40, 30), 3000).save(root / "dark.png")
    path = write(
        root, "x", [image(1, "dark.png")], [box(1, [1, 2, 3, 4]), box(2, [1, 2, 3, 4], category=9)]
    )
    assert counts(validate(path, root)) == {"image of nearly one color": 1}


def test_file_names_with_the_separators_of_windows_are_found(root):
    (root / "sub").mkdir()
    (root / "a.png").rename(root / "sub" / "a.png")
    path = write(
        root,
        "x",
        [image(1, "sub\\a.png")],
        [box(1, [1, 2, 3, 4]), box(2, [1, 2, 3, 4], category=9)],
    )
    assert counts(validate(path, root)) == {}


def test_tables_count_classes_and_sizes(root):
    # Sides 4 (twice), 33 and 100: a square of the area of the last two boxes.
    boxes = [[0, 0, 4, 4], [0, 0, 2, 8], [0, 0, 33, 33], [0, 0, 200, 50]]
    annotations = [box(i, x, category=3 if i < 3 else 9) for i, x in enumerate(boxes, 1)]
    result = validate(
        write(root, "sizes", [image(1, "a.png"), image(2, "b.png")], annotations), root
    )
    rows = [
        (x["class"], x["boxes"], x["images"], x["small"], x["medium"], x["large"])
        for x in class_table(result)
    ]
    assert rows == [("pit", 2, 1, 2, 0, 0), ("dent", 2, 1, 0, 1, 1)]
    bins = {row["side of boxes"]: row["boxes"] for row in size_histogram(result)}
    assert bins == {"4 to 8": 2, "8 to 16": 0, "16 to 32": 0, "32 to 64": 1, "64 to 128": 1}
    per_image = size_table(result)[-1]
    assert (per_image["smallest"], per_image["median"], per_image["largest"]) == (0, 2, 4)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [], "annotations": []}'])
def test_files_that_are_none_are_one_line_and_code_two(root, capsys, content):
    (root / "x.json").write_text(content)
    assert main([str(root / "x.json"), str(root)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([str(root / "nothing.json"), str(root)]) == 2
    assert main([str(root / "x.json"), str(root / "nowhere")]) == 2


def test_entries_that_are_no_objects_are_reported(root):
    path = write(
        root, "odd", ["a.png", image(1, "a.png")], [5, box(1, [1, 2, 3, 4])], [None, CATEGORIES[0]]
    )
    assert counts(validate(path, root))["unusable entry"] == 3


def test_a_kind_of_problem_is_an_error_or_a_warning():
    assert not set(ERRORS) & set(WARNINGS)


def test_real_data_have_no_errors(shared, capsys):
    assert main(["--data-dir", str(shared("data/coco128"))]) == 0
    assert "no errors" in capsys.readouterr().out


def test_a_damaged_image_and_a_bad_box_name_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)

    images = [{"id": i, "file_name": x, "width": 64, "height": 48} for i, x in enumerate("ab")]
    for image in images:
        image["file_name"] += ".png"
    box = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [70, 0, 5, 5]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))

    problems = validate(tmp_path / "a.json", tmp_path).problems
    assert "a.png: the file is damaged after byte" in problems["unreadable image"][0]
    assert "annotation 5 (image 1, b.png)" in problems["box outside the image"][0]
