"""The report of a few detections whose mistakes are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from salience_detr.checkpoint import read_thresholds, save_weights
from salience_detr.cli import convert_checkpoint
from salience_detr.cli.analyze_errors import confusion_table, main, table
from salience_detr.evaluation.plots import plot_confusion

DRAWINGS = ["confusion.png", "error_types.png", "score_curves.png"]
NAMES = ["report.md", "report.json", *DRAWINGS, "worst.jpg"]


@pytest.fixture
def files(tmp_path):
    """Two images, of a right detection and of a missed box."""
    (tmp_path / "images").mkdir()
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "1e5"}, {"id": 2, "name": "a|b"}],
    }
    for i in (1, 2):
        Image.new("L", (64, 48), 99).save(tmp_path / "images" / f"é{i}.png")
        content["images"].append(
            {"id": f"p{i}", "file_name": f"é{i}.png", "width": 64, "height": 48}
        )
        box = {"id": i, "image_id": f"p{i}", "category_id": i, "bbox": [8, 8, 16, 16]}
        content["annotations"].append(box)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    detections = [{"image_id": "p1", "category_id": 1, "bbox": [8, 8, 16, 16], "score": 0.8}]
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    return [str(tmp_path / "detections.json"), str(tmp_path / "truth.json")]


def test_everything_is_written_beside_the_results(files, tmp_path, capsys):
    assert main(files) == 0
    output = tmp_path / "errors"
    assert sorted(path.name for path in output.iterdir()) == sorted(NAMES)
    text = (output / "report.md").read_text()
    assert capsys.readouterr().out.startswith(text)
    assert "| 1e5   " in text and r"| a\|b" in text
    report = json.loads((output / "report.json").read_text())
    assert report["metrics"] == pytest.approx(
        {"AP": 50, "AP50": 50, "AP75": 50, "APs": 50, "APm": None, "APl": None}
    )  # of the two classes one is found
    assert (
        report["errors"]["detections"]["correct"] == 1 and report["errors"]["boxes"]["missed"] == 1
    )
    assert report["confusion"]["matrix"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert "## What errors cost" in text and "| Miss " in text
    gains = {row["error"]: row["gain"] for row in report["error_costs"]}
    assert gains["Miss"] == 50 and gains["Loc"] == 0
    assert [x["picture"] for x in report["worst"]] == ["é2.png"]
    for name in (*DRAWINGS, "worst.jpg"):
        drawn = np.asarray(Image.open(output / name).convert("RGB"))
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5


def test_thresholds_of_nms_are_compared(files, capsys):
    assert main([*files, "--nms", "0.6", "0.75"]) == 0
    text = capsys.readouterr().out
    assert "## Class-wise NMS" in text
    assert "| none " in text and "| 0.75 " in text
    assert "AP is highest without NMS: `model.nms_iou_threshold=null model.nms_soft=False" in text


def test_without_images_only_the_sheet_is_missing(files, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "worst.jpg").write_bytes(b"of an earlier run")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert main([*files, "--output", str(output)]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1 and notes[0].startswith("note: no worst.jpg: the images of")
    assert sorted(path.name for path in output.iterdir()) == sorted(NAMES[:-1])
    assert (
        main(
            [
                *files,
                "--output",
                str(output),
                "--images",
                str(tmp_path / "elsewhere"),
                "--worst",
                "1",
            ]
        )
        == 0
    )
    assert (output / "worst.jpg").stat().st_size > 1000


def test_detections_of_demo_are_judged_on_its_images_alone(files, tmp_path):
    detections = {"images": [{"id": 5, "file_name": "some/é1.png"}], "annotations": []}
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    assert main(files) == 0
    report = json.loads((tmp_path / "errors" / "report.json").read_text())
    assert report["pictures"] == 1 and report["errors"]["boxes"]["missed"] == 1
    assert report["confusion"]["matrix"] == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_without_detections_boxes_or_mistakes_there_is_a_report(files, tmp_path, capsys):
    truth = json.loads((tmp_path / "truth.json").read_text())
    (tmp_path / "detections.json").write_text("[]")
    assert main(files) == 0
    truth["annotations"] = []
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert main(files) == 0
    assert "There is no mistake in any image." in capsys.readouterr().out
    assert not (tmp_path / "errors" / "worst.jpg").exists()
    truth["images"] = []
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert main(files) == 0
    assert "has no images" in capsys.readouterr().err


def test_a_mistake_is_one_line(files, tmp_path, capsys):
    assert main([files[0], str(tmp_path / "nothing.json")]) == 2
    assert main([*files, "--images", str(tmp_path / "nowhere")]) == 2
    assert main([*files, "--output", files[0]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert "set --output" in lines[2]
    with pytest.raises(SystemExit):
        main([*files, "--worst", "0"])
    assert "--worst: it is 0, and must be between 1 and 400" in capsys.readouterr().err


def test_texts_stay_as_they_are_and_missing_numbers_are_dashes():
    rows = [{"class": "1e5", "boxes": 7, "AP": 12.345}, {"class": "x\ny", "boxes": 12, "AP": None}]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows).splitlines()]
    assert cells[0] == ["class", "boxes", "AP"]
    assert cells[2:] == [["1e5", "7", "12.3"], ["x y", "12", "-"]]


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path):
    names = [f"c{i}" for i in range(40)]
    matrix = np.diag([9] * 41)
    matrix[3, 5], matrix[7, 40], matrix[6, 2] = 2, 8, 4
    lines = confusion_table(matrix, names).splitlines()[4:]
    assert [line.split()[1::2] for line in lines] == [["c6", "c2", "4"], ["c3", "c5", "2"]]
    plot_confusion(matrix, [*names[:-1], "$x$ 裂"], tmp_path / "x.png")
    assert min(Image.open(tmp_path / "x.png").size) > 900
    assert confusion_table(np.diag([9] * 41), names) == "No class is confused."


def test_thresholds_are_reported_and_stored_in_weights(files, tmp_path, capsys):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.float16)}
    weights = [tmp_path / "a.safetensors", tmp_path / "b.pth"]
    entries = {"class_names": '["1E5", "A|B"]', "category_ids": "[5, 6]", "config": "x"}
    save_file(tensors, weights[0], metadata=entries)
    torch.save({"model": tensors, "iteration": 7, "class_names": ["a|b", "1e5", "c"]}, weights[1])

    assert main([*files, "--save-thresholds", *map(str, weights)]) == 0

    printed, notes = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert ["1e5", "1", "0.4", "100.0", "100.0", "100.0", ""] in cells
    assert ["all classes", "2", "0.4", "66.7", "100.0", "50.0", "one threshold"] in cells
    assert "keeps all detections, whose lowest score is 0.8" in printed
    assert f"{weights[1]}: stored the thresholds of 3 classes" in printed
    assert "b.pth gets the threshold of all classes for those that" in notes

    first = read_thresholds(weights[0])
    assert first.classes == {"1E5": 0.4, "A|B": 0.4} and first.iou_threshold == 0.5
    assert first.source.endswith("/truth.json") and first.source.count("/") == 2
    assert read_thresholds(weights[1]).classes == {"a|b": 0.4, "1e5": 0.4, "c": 0.4}

    # All else stays as it is.
    with safe_open(weights[0], framework="pt") as file:
        assert entries.items() <= file.metadata().items()
        assert torch.equal(file.get_tensor("b"), tensors["b"])
    assert torch.load(weights[1])["iteration"] == 7

    # Conversion hands them on.
    save_weights(tensors, weights[1], thresholds=first)
    assert convert_checkpoint.main([str(weights[1]), str(tmp_path / "c.pth"), "--half"]) == 0
    assert read_thresholds(tmp_path / "c.pth") == first


def test_weights_of_other_classes_get_no_thresholds(files, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"class_names": '["pit", "1e5"]'})
    before = path.read_bytes()

    assert main([*files, "--save-thresholds", str(path)]) == 2
    assert main([*files, "--save-thresholds", str(tmp_path / "a.json")]) == 2
    assert main([*files, "--save-thresholds", str(tmp_path / "none.onnx")]) == 2
    (tmp_path / "detections.json").write_text("[]")
    assert main([*files, "--save-thresholds", str(path)]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert "lacks 1 of the 2 classes of " in lines[0] and "its classes are pit, 1e5" in lines[0]
    assert "files of weights end in .safetensors" in lines[1]
    assert "there is no file" in lines[2]
    assert "there is no best score threshold to store" in lines[3]
    assert len(lines) == 4 and path.read_bytes() == before
    assert not any((tmp_path / "errors").iterdir())
