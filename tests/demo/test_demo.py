"""The demo's command line on images and broken files."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from salience_detr import Predictor
from salience_detr.cli import evaluate_json
from salience_detr.data import register_coco_dataset
from tests.inference.fake_detector import paint

ROOT = Path(__file__).resolve().parents[2]


def outputs(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_broken_image_is_skipped_and_listed(call, images, tmp_path, capsys):
    assert call(images) == 0
    assert outputs(tmp_path) == ["1.jpg", "2.jpg"]
    errors = capsys.readouterr().err
    assert "1 inputs were skipped" in errors and "broken.jpg" in errors


def test_only_broken_images_are_a_failure(call, images, capsys):
    assert call(images / "broken.jpg") == 1


def test_salience_and_json_are_written(call, images, tmp_path, micro_config, weights):
    json_file = tmp_path / "results.json"
    assert call(images / "*.jpg", extra=["--salience", "--json", str(json_file)]) == 0
    assert outputs(tmp_path) == ["1.jpg", "1_salience.jpg", "2.jpg", "2_salience.jpg"]

    coco = COCO(str(json_file))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [
        str(images / "1.jpg"), str(images / "2.jpg"),
    ]  # fmt: skip

    expected = Predictor(micro_config, weights, device="cpu")(images / "2.jpg")
    results = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [x["score"] for x in results] == pytest.approx(expected.scores.tolist())

    # The data set's category ids begin at 1.
    category_ids = (expected.pred_classes + 1).tolist()
    assert [x["category_id"] for x in results] == category_ids

    x0, y0, x1, y1 = expected.pred_boxes.tensor[0].tolist()
    assert results[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])


def test_the_threshold_leaves_out_what_is_below(call, images, tmp_path):
    json_file = tmp_path / "results.json"
    call(images / "1.jpg", extra=["--score-threshold", "0.99", "--json", str(json_file)])
    assert json.loads(json_file.read_text())["annotations"] == []


def test_an_output_whose_name_is_too_long_fails_that_input_only(call, images, tmp_path, capsys):
    # 255 bytes are a name; with .png in place of .p, or with _salience, they are too many.
    for name in ("0" * 253 + ".p", "ä" * 122 + ".jpg", "3" * 242 + ".jpg"):
        (images / name).write_bytes((images / "2.jpg").read_bytes())
    inputs = [images / "1.jpg", *sorted(images.glob("[!1b]*")), tmp_path / ("x" * 300 + ".jpg")]

    json_file = tmp_path / "found.json"
    assert call(*inputs, extra=["--salience", "--json", str(json_file), "--batch-size", "2"]) == 0

    written = ["1.jpg", "1_salience.jpg", "2.jpg", "2_salience.jpg"]
    assert outputs(tmp_path) == sorted([*written, f"{'3' * 242}.jpg", f"{'3' * 242}_salience.jpg"])
    errors = capsys.readouterr().err
    assert "3 inputs were skipped" in errors and errors.count("File name too long") == 2
    assert len(json.loads(json_file.read_text())["images"]) == 3
    assert call(images / ("ä" * 122 + ".jpg"), extra=["--salience"]) == 1


def test_an_output_that_is_a_folder_fails_that_input_only(call, images, video, tmp_path, capsys):
    for name in ("1.jpg", "film.mp4"):
        (tmp_path / "out" / name).mkdir(parents=True)

    assert call(images / "1.jpg", video, images / "2.jpg") == 0

    assert outputs(tmp_path) == ["1.jpg", "2.jpg", "film.mp4"]
    errors = capsys.readouterr().err
    assert "2 inputs were skipped" in errors and errors.count("it is a folder") == 2


def test_images_and_videos_of_the_same_name_do_not_overwrite_each_other(call, images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "1.jpg").write_bytes((images / "2.jpg").read_bytes())

    # The names of outputs have no folders, so the second one gets a number.
    assert call(images / "1.jpg", other / "1.jpg") == 0
    assert outputs(tmp_path) == ["1.jpg", "1_2.jpg"]


def test_folders_and_lists_keep_their_subfolders(call, images, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (images / name).mkdir()
        (images / name / "x.jpg").write_bytes((images / "1.jpg").read_bytes())

    assert call(images) == 0
    written = sorted(x.relative_to(tmp_path / "out") for x in (tmp_path / "out").rglob("*.jpg"))
    assert list(map(str, written)) == ["1.jpg", "2.jpg", "a/x.jpg", "b/x.jpg"]

    lines = f"{images / 'a' / 'x.jpg'}\n{images / '2.jpg'}\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))
    assert call("-", extra=["--output", str(tmp_path / "listed")]) == 0
    assert (tmp_path / "listed" / "a" / "x.jpg").is_file() and (tmp_path / "listed/2.jpg").is_file()


@pytest.mark.parametrize("name", ["gray.png", "alpha.png", "deep.png"])
def test_unusual_images_are_read(call, tmp_path, name):
    gray = np.random.randint(0, 255, (40, 50), np.uint8)
    image = {
        "gray.png": gray,
        "alpha.png": np.dstack([gray] * 4),
        "deep.png": gray.astype(np.uint16) * 257,
    }[name]
    cv2.imwrite(str(tmp_path / name), image)

    assert call(tmp_path / name) == 0


@pytest.mark.parametrize(
    ("inputs", "extra", "message"),
    [
        (["nowhere/*.jpg"], [], "nowhere/*.jpg: there is no such image"),
        (["{image}"], ["modle.num_classes=3"], "did you mean model.num_classes"),
        (["{image}"], ["model.num_classes=3"], "6 classes, the model 3"),
        (["{image}"], ["--output", "/dev/null/x"], "cannot be written to"),
        (["{image}"], ["--csv", "/dev/null/x.csv"], "set --csv"),
        (["{image}"], ["--classes", "pitt"], "--classes 'pitt' is unknown; did you mean pit?"),
        (["{image}"], ["--tile", "0"], "tile is 0"),
        (["{image}"], ["--tile", "64", "--tile-overlap", "1"], "overlap is 1.0"),
        (["{image}"], ["--batch-size", "0"], "batch_size is 0"),
        (["{image}"], ["--score-threshold", "2"], "score_threshold is 2.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    demo, arguments, images, capsys, inputs, extra, message
):
    files = [x.format(image=images / "1.jpg") for x in inputs]

    # An override is positional: it follows the inputs.
    options = list(extra)
    overrides = []
    if extra and "=" in extra[-1]:
        overrides.append(options.pop())

    assert demo.main([*arguments, *options, "--input", *files, *overrides]) == 2

    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_the_inputs_are_never_written_over(call, images, video, tmp_path):
    (tmp_path / "out").mkdir()
    inputs = [
        tmp_path / "out" / "1.jpg",
        tmp_path / "out" / "1_salience.jpg",
        tmp_path / "out" / "film.mp4",
    ]
    for path, source in zip(inputs, [images / "1.jpg", images / "2.jpg", video], strict=True):
        path.write_bytes(source.read_bytes())

    before = [path.read_bytes() for path in inputs]
    assert call(tmp_path / "out", extra=["--salience"]) == 0
    assert [path.read_bytes() for path in inputs] == before
    assert len(outputs(tmp_path)) == 9  # a drawing and a map for each


def test_a_missing_file_is_listed_and_the_others_are_done(call, images, tmp_path, capsys):
    assert call(images / "1.jpg", tmp_path / "none.jpg") == 0
    assert outputs(tmp_path) == ["1.jpg"]
    assert "none.jpg: there is no such image" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--tile", "50"]])
def test_images_of_strange_shapes_do_not_stop_the_others(call, images, tmp_path, capsys, extra):
    # A line, a pixel, and a file without content.
    Image.new("1", (2000, 1)).save(tmp_path / "thin.png")
    Image.new("L", (1, 1)).save(tmp_path / "pixel.png")
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["thin.png", "pixel.png", "empty.png"]

    assert call(*(tmp_path / name for name in names), images / "1.jpg", extra=extra) == 0
    assert outputs(tmp_path) == ["1.jpg", "pixel.png", "thin.png"]
    assert "empty.png: it is empty" in capsys.readouterr().err


def test_a_large_image_is_detected_on(call, tmp_path):
    Image.new("L", (20_000, 400)).save(tmp_path / "large.png")
    assert call(tmp_path / "large.png", extra=["--tile", "4000", "--salience"]) == 0
    assert Image.open(tmp_path / "out" / "large.png").size == (20_000, 400)


def test_a_json_file_that_cannot_be_written_is_an_early_error(call, images, tmp_path, capsys):
    assert call(images, extra=["--json", str(images)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert call(images, extra=["--json", "/dev/null/results.json"]) == 2
    assert "set --json" in capsys.readouterr().err


def test_detections_of_some_images_evaluate_on_these(call, surface_data, tmp_path, capsys):
    json_file = tmp_path / "results.json"
    call(
        surface_data / "val" / "000003.jpg",
        surface_data / "val" / "000005.jpg",
        extra=["--json", str(json_file)],
    )
    results = evaluate_json.load_results(json_file, surface_data / "annotations" / "val.json")

    assert results.image_ids == [3, 5]
    assert {x["image_id"] for x in results.detections} == {3, 5}

    # Images are matched by the names of their files.
    content = json.loads(json_file.read_text())
    content["images"][0]["file_name"] = "elsewhere.jpg"
    json_file.write_text(json.dumps(content))

    assert evaluate_json.main([str(json_file), str(surface_data / "annotations" / "val.json")]) == 2
    assert "elsewhere.jpg is 0 times in the annotations" in capsys.readouterr().err


def test_own_classes_have_their_names_and_ids(demo, arguments, surface_data, tmp_path):
    content = json.loads((surface_data / "annotations" / "val.json").read_text())
    # Ids that neither begin at 1 nor are indices of the model.
    content["categories"] = [{"id": 11 + i, "name": f"my_{i}"} for i in range(6)]
    content["annotations"] = []
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_dataset("own_classes", tmp_path / "own.json", surface_data / "val")
    words = [
        *arguments,
        "--score-threshold",
        "0",
        "--json",
        str(tmp_path / "results.json"),
        "--input",
    ]
    words += [str(surface_data / "val" / "000001.jpg"), "dataloader.test.dataset.names=own_classes"]

    assert demo.main(words) == 0

    content_of_run = json.loads((tmp_path / "results.json").read_text())
    assert content_of_run["categories"] == content["categories"]
    assert {x["category_id"] for x in content_of_run["annotations"]} <= set(range(11, 17))


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_one_line(call, images, capsys, device):
    assert call(images / "1.jpg", extra=["--device", device]) == 2
    assert f"error: the device '{device}' cannot be used" in capsys.readouterr().err


def read_json(path):
    return json.loads(path.read_text())


def test_batches_give_the_same_as_single_images(call, images, surface_data, tmp_path):
    results = []
    for size in ("1", "4"):
        file = tmp_path / f"{size}.json"
        extra = ["--batch-size", size, "--json", str(file)]
        assert call(images, surface_data / "val", extra=extra) == 0
        results.append(read_json(file))

    assert results[0]["images"] == results[1]["images"] and len(results[0]["images"]) == 8

    scores = [[x["score"] for x in content["annotations"]] for content in results]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_batch_that_fails_is_tried_image_by_image(call, images, tmp_path, monkeypatch, capsys):
    (images / "broken.jpg").unlink()

    # The batch of three fails, and then the white image by itself.
    infer = Predictor._infer
    means = []

    def fail_on_batches_and_white(predictor, inputs):
        means.append([x["image"].float().mean().item() for x in inputs])
        if len(inputs) > 1 or means[-1][0] > 250:
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        return infer(predictor, inputs)

    monkeypatch.setattr(Predictor, "_infer", fail_on_batches_and_white)
    Image.new("RGB", (64, 64), "white").save(images / "0.jpg")
    assert call(images, extra=["--batch-size", "4"]) == 0
    assert outputs(tmp_path) == ["1.jpg", "2.jpg"] and [len(x) for x in means] == [3, 1, 1, 1]
    errors = capsys.readouterr().err
    assert "cannot detect on " in errors and "0.jpg: CUDA out of memory." in errors


def test_only_the_classes_that_are_asked_for_are_in_the_outputs(call, images, tmp_path):
    file, table = tmp_path / "results.json", tmp_path / "results.csv"
    extra = ["--json", str(file), "--csv", str(table), "--save-crops", "--classes", "pit", "6"]
    assert call(images, extra=extra) == 0

    annotations = read_json(file)["annotations"]
    assert {x["category_id"] for x in annotations} == {2, 6}
    assert len(annotations) == 2 * 2 * 20  # each query of both images with both classes

    rows = list(csv.DictReader(table.open()))
    classes = {(x["class_id"], x["class_name"]) for x in rows}
    assert classes == {("2", "pit"), ("6", "dent")} and len(rows) == 80
    assert {path.name for path in (tmp_path / "out" / "crops").iterdir()} <= {"pit", "dent"}


def test_overrides_may_follow_classes(demo):
    line = "--config-file c --weights w --output o --input a.jpg a.b=1 --classes x c=2"
    args = demo.parse_args(line.split())
    assert args.input == ["a.jpg"] and args.classes == ["x"] and args.opts == ["a.b=1", "c=2"]


def test_tiles_and_overlap_go_together(demo, capsys):
    with pytest.raises(SystemExit, match="2"):
        line = "--config-file c --weights w --output o --input a --tile-overlap 0.3"
        demo.parse_args(line.split())
    assert "need --tile SIZE" in capsys.readouterr().err


def save_rgb(path, image):
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def test_detections_are_cropped_and_listed(call, rectangles, tmp_path):
    image = paint(200, 300, (20, 20, 180, 60, 0), (250, 100, 270, 140, 2))
    pixels = save_rgb(tmp_path / "ä.png", image)
    table = tmp_path / "results.csv"
    extra = ["--tile", "100", "--save-crops", "--csv", str(table), "--salience"]
    assert call(pixels, extra=extra) == 0

    crops = tmp_path / "out" / "crops"
    assert Image.open(crops / "red" / "ä_1.jpg").size == (160, 40)
    assert Image.open(crops / "blue" / "ä_2.jpg").size == (20, 40)

    lines = table.read_text(encoding="utf-8").splitlines()
    # Neither a frame nor a track number; 0.9 as a float32 is 0.8999...
    assert lines[1].startswith(f"{pixels},,11,red,0.8999")
    assert lines[1].endswith(",20.0,20.0,180.0,60.0,")
    assert len(lines) == 3 and len(rectangles.batches) > 1  # the whole, then tiles


def test_processes_share_the_inputs_and_give_the_results_of_one(
    call, micro_config, weights, images, surface_data, tmp_path
):
    (images / "3.jpg").write_bytes((surface_data / "val" / "000003.jpg").read_bytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.jpg").write_bytes((surface_data / "val" / "000004.jpg").read_bytes())
    inputs = [str(images), str(tmp_path / "other"), "nowhere.jpg"]
    one = ["--json", str(tmp_path / "one.json"), "--csv", str(tmp_path / "one.csv")]

    assert call(*inputs, extra=one) == 0

    # The same run by two processes.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2"]
    process = subprocess.run(
        [*torchrun, str(ROOT / "demo" / "demo.py"),
         "--config-file", micro_config, "--weights", str(weights), "--score-threshold", "0",
         "--output", str(tmp_path / "two"), "--json", str(tmp_path / "two.json"),
         "--csv", str(tmp_path / "two.csv"), "--input", *inputs],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("detections on 4 images") == 1
    assert "2 inputs were skipped" in process.stderr

    for ending in ("json", "csv"):
        assert (tmp_path / f"two.{ending}").read_text() == (tmp_path / f"one.{ending}").read_text()

    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == outputs(tmp_path)
    assert outputs(tmp_path) == ["1.jpg", "1_2.jpg", "2.jpg", "3.jpg"]


def test_a_name_that_is_not_utf8_is_written_like_any_other(call, images, tmp_path):
    odd = images / os.fsdecode(b"odd\xff.jpg")
    odd.write_bytes((images / "1.jpg").read_bytes())
    (images / os.fsdecode(b"film\xff.mp4")).write_bytes(b"no video")

    assert call(images) == 0
    # The drawing keeps the bytes of the name; a video of such a name is skipped.
    names = [os.fsencode(name) for name in outputs(tmp_path)]
    assert sorted(names) == [b"1.jpg", b"2.jpg", b"odd\xff.jpg"]


def test_pre_annotations_are_a_data_set_of_the_folder(call, rectangles, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        image = paint(50, 80, (10, 10, 30, 20, 0), (40, 10, 60, 30, 2))
        cv2.imwrite(str(tmp_path / "in" / name / "x.png"), image[..., ::-1])

    file = tmp_path / "labels.json"
    assert call(tmp_path / "in", extra=["--pre-annotations", str(file)]) == 0
    assert f"detections written to {file}" in capsys.readouterr().out

    content = read_json(file)
    size = {"height": 50, "width": 80}
    assert content["images"] == [
        {"id": 1, "file_name": "a/x.png", **size}, {"id": 2, "file_name": "b/x.png", **size},
    ]  # fmt: skip
    assert [x["name"] for x in content["categories"]] == ["red", "green", "blue"]
    first = content["annotations"][0]
    assert first["bbox"] == [10, 10, 20, 10] and first["area"] == 200
    assert first["attributes"] == {"score": pytest.approx(0.9)}
    assert first["segmentation"] == [] and first["iscrowd"] == 0 and first["category_id"] == 11

    # A tool could not tell two images of one name apart.
    inputs = [tmp_path / "in" / name / "x.png" for name in ("a", "b")]
    assert call(*inputs, extra=["--pre-annotations", str(file)]) == 2
    assert "would both be called x.png; give --input the folder" in capsys.readouterr().err
