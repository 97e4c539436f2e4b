"""check_dataset.py on data sets of the field: what it says, and what --fix writes."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from salience_detr.cli.check_dataset import main
from salience_detr.evaluation.results import evaluate, load_results, summary


@pytest.fixture
def data_set(tmp_path):
    """Return a function that writes train.json and an image of 40 x 30 pixels."""
    drawn = Image.new("RGB", (40, 30))
    drawn.paste((255, 255, 255), (5, 5, 20, 20))
    drawn.save(tmp_path / "a.png")

    def write(annotations, file_name="a.png", **changes):
        defaults = {"image_id": 1, "category_id": 3, "area": 12, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": file_name, "width": 40, "height": 30}],
            "annotations": [{"id": i, **defaults, **x} for i, x in enumerate(annotations, 1)],
            "categories": [{"id": 3, "name": "pit"}],
            **changes,
        }
        path = tmp_path / "train.json"
        path.write_text(json.dumps(content))
        return path

    return write


def fix(path):
    """Run the tool with --fix, and return its exit code and the content of the file."""
    fixed = path.with_name("fixed.json")
    code = main([str(path), str(path.parent), "--workers", "0", "--fix", str(fixed)])
    return code, json.loads(fixed.read_text()) if fixed.is_file() else None


def fix_field(folder, tmp_path):
    """Fix both sets of a folder; return the fixed contents."""
    contents = {}
    for split in ("train", "val"):
        source = folder / "annotations" / f"{split}.json"
        images = folder / "images" / split
        fixed = tmp_path / f"{split}.json"
        main([str(source), str(images), "--workers", "0", "--fix", str(fixed)])
        contents[split] = json.loads(fixed.read_text())
        assert main([str(fixed), str(images), "--workers", "0"]) == 0
    return contents


@pytest.mark.parametrize(
    "name",
    [
        "04-area-zero/04-area-zero", "12-segmentation-only/12-segmentation-only",
        "14b-text-category-ids/14b-text-category-ids", "14b-text-category-ids/14c-float-ids",
        "14b-text-category-ids/45-text-boxes", "44-box-twice/44-box-twice",
    ],
)  # fmt: skip
def test_fixed_sets_of_the_field_have_all_boxes_once(shared, tmp_path, name):
    contents = fix_field(shared(f"field/{name}"), tmp_path)
    num_boxes = {split: len(content["annotations"]) for split, content in contents.items()}
    assert num_boxes == {"train": 17 if name.startswith("04") else 27, "val": 17}

    for content in contents.values():
        for annotation in content["annotations"]:
            width, height = annotation["bbox"][2:]
            assert annotation["area"] == width * height
            assert type(annotation["category_id"]) is int


def test_sizes_go_by_width_and_height_where_the_area_is_zero(shared):
    folder = shared("field/04-area-zero/04-area-zero")
    results = load_results(folder / "perfect_val.json", folder / "annotations" / "val.json")
    metrics = summary(evaluate(results))
    assert metrics == dict.fromkeys(metrics, pytest.approx(100))
    sizes = [(x["area"] >= 32**2) + (x["area"] >= 96**2) for x in results.coco.anns.values()]
    assert [sizes.count(size) for size in range(3)] == [3, 10, 4]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("04-area-zero/04-area-zero", "warning: area 0: 1\n    17 of 17 boxes"),
        ("05-fractions/05-fractions", "ERROR: boxes in fractions of the image: 1\n    17 of 17"),
        ("06-corners/06-corners", "ERROR: corners in place of x, y, width, height: 1\n    10 of"),
        ("06-corners/06-corners", "\n    15 of 17 boxes fit into their image as corners"),
        ("11-all-crowd/11-all-crowd", "ERROR: nothing to train on: 1\n    all 27 boxes are crowd"),
        ("11-all-crowd/11-all-crowd", "warning: no box to learn: 1\n    all 17 boxes are crowd"),
        ("33-name-twice/33-name-twice", "warning: category name twice: 1\n    inclusion (ids 2"),
        ("43-val-without-boxes/43-val-without-boxes", "warning: no box to learn: 1\n    there are"),
        ("44-box-twice/44-box-twice", "warning: box twice in an image: 27\n    annotation 90000"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_sets_of_the_field_is_told(shared, capsys, name, line):
    code = main(["--data-dir", str(shared(f"field/{name}")), "--workers", "0"])
    out = capsys.readouterr().out
    assert line in out
    assert code == ("ERROR" in out)


def test_numbers_that_are_texts_are_named_with_what_fix_makes_of_them(data_set, capsys):
    path = data_set([{"bbox": ["1", " 2.5 ", "3e0", "4"]}, {"bbox": ["inf", 1, 2, 3]}])
    code, fixed = fix(path)
    assert code == 1
    out = capsys.readouterr().out
    assert "has the bbox ['1', ' 2.5 ', '3e0', '4'] in an image of 40x30; --fix makes it [1," in out
    assert [x["bbox"] for x in fixed["annotations"]] == [[1, 2.5, 3, 4]]


def test_polygons_and_boxes_may_be_mixed(data_set):
    path = data_set([{"segmentation": [[1, 2, 9, 2, 9, 8]]}, {"bbox": [1, 1, 5, 5]}, {}])
    _, fixed = fix(path)
    assert [x["bbox"] for x in fixed["annotations"]] == [[1, 2, 8, 6], [1, 1, 5, 5]]


@pytest.mark.parametrize(
    ("annotations", "changes"),
    [
        ([{"bbox": "x"}], {}),
        ([{"bbox": [90, 90, 5, 5]}], {}),
        ([{"bbox": [1, 1, 5, 5], "category_id": 9}], {}),
        ([{"bbox": [1, 1, 5, 5]}], {"categories": []}),
        ([{"bbox": [1, 1, 5, 5]}], {"file_name": "gone.png"}),
        ([], {"images": []}),
    ],
)
def test_a_set_of_which_nothing_would_be_left_is_not_written(
    data_set, capsys, annotations, changes
):
    code, fixed = fix(data_set(annotations, **changes))
    assert code == 2 and fixed is None
    assert "would be left" in capsys.readouterr().err


@pytest.mark.parametrize("form", [float, str])
def test_corners_are_not_clipped_and_fractions_not_kept(data_set, capsys, form):
    corners = [[20, 5, 39, 29], [25, 5, 38, 28], [21, 16, 39, 29]]
    fractions = [[0.1, 0.2, 0.5, 0.5], [0.2, 0.1, 0.3, 0.2]]
    for boxes, reason in ((corners, "look like corners"), (fractions, "look like fractions")):
        path = data_set([{"bbox": [form(number) for number in box]} for box in boxes])
        code, fixed = fix(path)
        assert code == 2 and fixed is None
        assert reason in capsys.readouterr().err


def test_the_ends_of_names_that_fit_several_images_are_told(data_set, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        shutil.copy(tmp_path / "a.png", tmp_path / "train" / folder / "x.png")
    data_set([{"bbox": [1, 1, 5, 5]}], file_name="D:\\x.png")

    assert main(["--data-dir", str(tmp_path), "--workers", "0"]) == 2
    errors = capsys.readouterr().err
    assert "train holds a/x.png, b/x.png; 'D:\\\\x.png': it could be a/x.png or b/x.png)" in errors


def test_a_file_name_of_another_computer_is_corrected(data_set, capsys):
    path = data_set([{"bbox": [1, 1, 5, 5]}], file_name="C:\\me\\upload\\a.png")
    code, fixed = fix(path)
    assert code == 0
    assert "C:\\me\\upload\\a.png is a.png" in capsys.readouterr().out
    assert fixed["images"][0]["file_name"] == "a.png"

    code, fixed = fix(data_set([{"bbox": [1, 1, 5, 5]}], file_name="C:\\me\\b.png"))
    assert code == 2
    assert "C:\\me\\b.png (" in capsys.readouterr().out
