"""Drawings of ground truth beside detections, and of the worst images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salience_detr.cli.evaluate_json import main
from salience_detr.evaluation.comparison import (
    GAP,
    draw_comparison,
    drawing_paths,
    find_image_folder,
    write_comparisons,
)
from salience_detr.evaluation.error_analysis import (
    FALSE_POSITIVES,
    find_errors,
    rank_by_errors,
)
from salience_detr.evaluation.results import ImageResults, ResultsError, load_results
from salience_detr.evaluation.worst_images import (
    DETECTION_COLORS,
    TILE,
    describe_errors,
    draw_errors,
    draw_worst_images,
)


def new_image(size=(120, 100), value=90):
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def data(tmp_path):
    """Write images (None: no file) with a box and a crowd region each, and return the results."""

    def write(images, detections=(), size=(120, 100)):
        content = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "pit"}]}
        for i, (name, image) in enumerate(images.items(), 1):
            path = tmp_path / "data" / "images" / "val" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is not None:
                image.save(path)

            content["images"].append(
                {"id": i, "file_name": name, "width": size[0], "height": size[1]}
            )
            for k, box in enumerate(([10, 20, 30, 40], [70, 50, 40, 40])):
                annotation = {
                    "id": 2 * i + k,
                    "image_id": i,
                    "category_id": 4,
                    "bbox": box,
                    "iscrowd": k,
                }
                content["annotations"].append(annotation)

        results_file = tmp_path / "detections.json"
        results_file.write_text(json.dumps(list(detections)))
        annotation_file = tmp_path / "data" / "annotations" / "instances_val.json"
        annotation_file.parent.mkdir(exist_ok=True)
        annotation_file.write_text(json.dumps(content))
        return load_results(results_file, annotation_file)

    return write


def detection(image, box, score=0.9):
    return {"image_id": image, "category_id": 4, "bbox": box, "score": score}


def differs(drawn, value=90):
    """Return an (H, W) mask of where an image of one gray is drawn on."""
    return np.abs(drawn.astype(int) - value).max(axis=-1) > 60


def test_boxes_are_left_detections_right_and_crowds_are_hatched(data):
    coco = data({"a.png": new_image((600, 500))}, size=(600, 500)).coco
    image = np.asarray(new_image((600, 500)))
    truth = [
        {"image_id": 1, "bbox": [50, 100, 150, 200], "category_id": 4, "iscrowd": 0},
        {"image_id": 1, "bbox": [350, 250, 200, 200], "category_id": 4, "iscrowd": 1},
    ]
    results = ImageResults(1, truth, [detection(1, [100, 300, 300, 150])])

    drawn = draw_comparison(image, results, coco)

    head = drawn.shape[0] - 500
    assert 0 < head < 60
    assert drawn.shape == (head + 500, 2 * 600 + GAP, 3)

    # The lower side of each box, which no label covers, and nothing of the other half.
    left = differs(drawn[head:, :600])
    right = differs(drawn[head:, 600 + GAP :])
    assert left[299:302, 50:200].any(axis=0).all()
    assert not right[299:302, 50:95].any()
    assert right[449:452, 100:400].any(axis=0).all()

    # Boxes are empty inside, crowd regions hatched.
    assert not left[120:290, 60:190].any()
    assert not right[310:440, 260:390].any()
    assert 0.1 < left[260:440, 360:540].mean() < 0.4


def test_small_images_are_enlarged_with_their_boxes(data):
    coco = data({"a.png": new_image()}).coco
    results = ImageResults(1, [], [detection(1, [10, 20, 50, 60])])

    drawn = draw_comparison(np.asarray(new_image()), results, coco)

    # To 480 x 400, 4 times the size.
    head = drawn.shape[0] - 400
    assert drawn.shape[1] == 2 * 480 + GAP
    right = differs(drawn[head:, 480 + GAP :])
    assert right[319:322, 40:240].any(axis=0).all()
    assert not right[330:].any()


def test_drawings_have_the_names_of_their_images(data, tmp_path):
    names = ["one/x.jpg", "two/x.jpg", "x.png", "größe/裂.bmp", "y.gif"]
    results = data({name: new_image() for name in names}, [detection(3, [0, 0, 50, 50])])
    root = tmp_path / "data" / "images" / "val"
    output = tmp_path / "out"

    num_drawn, notes = write_comparisons(results, root, output)

    assert (num_drawn, notes) == (5, [])
    written = {path.relative_to(output).as_posix() for path in output.rglob("*.*")}
    assert written == {*names[:-1], "y.gif.png"}
    for name in written:
        assert Image.open(output / name).size[0] == 2 * 480 + GAP


def test_no_drawing_takes_the_place_of_another_or_of_an_image(tmp_path):
    root = tmp_path / "in"
    (root / "b").mkdir(parents=True)
    paths = drawing_paths(["a.jpg", "A.jpg", "a.jpg", "b/../a.jpg"], root, tmp_path / "out")
    assert [path.name for path in paths] == ["a.jpg", "A_2.jpg", "a_3.jpg", "a_4.jpg"]
    assert drawing_paths(["a.jpg"], root, root) == [root / "a_2.jpg"]

    # Outside of the folder: from what they have in common.
    outside = [str(tmp_path / "x" / folder / "1.jpg") for folder in "pq"]
    names = [
        path.relative_to(tmp_path / "out").as_posix()
        for path in drawing_paths(outside, root, tmp_path / "out")
    ]
    assert names == ["p/1.jpg", "q/1.jpg"]


def test_broken_images_and_those_of_another_size_are_skipped(data, tmp_path):
    results = data({"a.png": new_image(), "gone.png": None, "big.png": new_image((200, 200))})
    root = tmp_path / "data" / "images" / "val"
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:50])

    num_drawn, notes = write_comparisons(results, root, tmp_path / "out")

    assert num_drawn == 0
    assert not (tmp_path / "out").exists()
    for name in ("a.png", "gone.png", "big.png is 200x200"):
        assert any(name in note for note in notes)


def test_only_wanted_images_and_good_detections_are_drawn(data, tmp_path):
    results = data(
        {f"{i}.png": new_image() for i in range(1, 5)}, [detection(2, [60, 5, 40, 20], 0.4)]
    )
    root = tmp_path / "data" / "images" / "val"

    for folder, threshold in (("low", 0.3), ("high", 0.5)):
        settings = {"limit": 2, "score_threshold": threshold}
        subset = results.subset([2, 3, 4])
        assert write_comparisons(subset, root, tmp_path / folder, **settings) == (2, [])
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["2.png", "3.png"]

    half_of_detections = np.s_[40:, 480 + GAP :]
    low = np.asarray(Image.open(tmp_path / "low" / "2.png"))
    high = np.asarray(Image.open(tmp_path / "high" / "2.png"))
    assert differs(low[half_of_detections]).any()
    assert not differs(high[half_of_detections]).any()


def test_the_folder_of_the_images_is_found_beside_the_annotations(data, tmp_path):
    coco = data({"a.png": new_image()}).coco
    file = tmp_path / "data" / "annotations" / "instances_val.json"
    expected = tmp_path / "data" / "images" / "val"
    assert find_image_folder(file, coco).resolve() == expected.resolve()

    # Roboflow's layout.
    folder = tmp_path / "valid"
    folder.mkdir()
    new_image().save(folder / "a.png")
    assert find_image_folder(folder / "_annotations.coco.json", coco) == folder

    # COCO's own.
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    new_image().save(tmp_path / "coco" / "val2017" / "a.png")
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    assert find_image_folder(file, coco) == tmp_path / "coco" / "val2017"

    # That of a conversion, which records it.
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "image_folders.yaml").write_text(f"val.json: {folder}")
    assert find_image_folder(tmp_path / "converted" / "val.json", coco) == folder


def test_images_that_are_not_found_are_told_with_the_remedy(data, tmp_path):
    coco = data({"a.png": None}).coco
    file = tmp_path / "data" / "annotations" / "instances_val.json"

    message = r"\(a\.png, \.\.\.\) are not in a usual place .* with --images"
    with pytest.raises(ResultsError, match=message):
        find_image_folder(file, coco)
    with pytest.raises(ResultsError, match=r"none of the images .*\(a\.png, \.\.\.\) is in"):
        find_image_folder(file, coco, tmp_path)
    with pytest.raises(ResultsError, match="there is no folder of images"):
        find_image_folder(file, coco, tmp_path / "nowhere")


def test_the_sheet_has_the_worst_images_with_names_and_counts(data, tmp_path):
    images = {"a.png": new_image(), "gone.png": None, "c.png": new_image(), "d.png": new_image()}
    # The second is worst, and cannot be read; the fourth is right.
    detections = [
        detection(2, [0, 0, 5, 5]),
        detection(2, [0, 5, 5, 5]),
        detection(3, [0, 0, 9, 9]),
        detection(4, [10, 20, 30, 40]),
    ]
    results = data(images, detections)
    coco = results.coco
    ranking = rank_by_errors(find_errors(results))
    names = [coco.imgs[x.image.image_id]["file_name"] for x in ranking]
    assert names == ["gone.png", "c.png", "a.png"]

    root = tmp_path / "data" / "images" / "val"
    sheet, notes = draw_worst_images(coco, ranking, root, count=2)
    assert len(notes) == 1
    assert "gone.png" in notes[0]

    # Two tiles, each twice an image of 360 x 300, one below the other.
    single, _ = draw_worst_images(coco, ranking, root, count=1)
    assert sheet.shape[0] - single.shape[0] > 300
    assert sheet.shape[1] == single.shape[1]
    assert describe_errors(ranking[1]) == "1 of 1 boxes not found, 1 false detections (1 Bkg)"

    tile = draw_errors(np.asarray(images["c.png"]), ranking[1], coco)
    assert tile.shape == (300, 2 * TILE + GAP, 3)

    # The missed box, three times its size, and the crowd region.
    drawn = tile[:, :TILE].astype(int)
    orange = np.abs(drawn - (255, 140, 0)).max(axis=-1) < 9
    gray = np.abs(drawn - 150).max(axis=-1) < 9
    assert orange[179:182, 30:120].any(axis=0).all()
    assert gray[150:270, 210:330].any()

    assert draw_worst_images(coco, [], root, count=2) == (None, [])


def test_the_command_line_draws_and_says_what_it_left_out(data, tmp_path, capsys):
    data({"a.png": new_image(), "gone.png": None}, [detection(1, [10, 20, 30, 40])])
    files = [
        str(tmp_path / "detections.json"),
        str(tmp_path / "data" / "annotations" / "instances_val.json"),
    ]

    assert main([*files, "--show-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "1 images drawn in" in printed.out
    assert "gone.png" in printed.err
    assert (tmp_path / "out" / "a.png").is_file()

    wrong = [*files, "--show-dir", str(tmp_path / "other"), "--images"]
    assert main([*wrong, str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no folder of images") and error.count("\n") == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "x"], "--images, --score-threshold and --show-count go with --show-dir"),
        (["--show-dir", "x", "--show-count", "0"], "--show-count: it is 0, and must be at least 1"),
        (
            ["--show-dir", "x", "--score-threshold", "nan"],
            "--score-threshold: it is nan, and must be between 0 and 1",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["detections.json", str(Path("truth.json")), *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_every_false_positive_has_a_color_of_its_own():
    assert set(FALSE_POSITIVES) <= set(DETECTION_COLORS)
    assert len(set(DETECTION_COLORS.values())) == len(DETECTION_COLORS)
