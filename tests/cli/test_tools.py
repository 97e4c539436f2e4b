"""The small command-line tools."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from salience_detr.benchmark.flops import STAGES, count_flops
from salience_detr.checkpoint import (
    COCO_CATEGORY_IDS,
    ScoreThresholds,
    load_weights,
    read_checkpoint,
    read_thresholds,
    save_weights,
)
from salience_detr.cli import (
    analyze_model,
    benchmark_op,
    convert_checkpoint,
    evaluate_json,
    make_demo_inputs,
    make_surface_defects,
)
from salience_detr.config import load_config
from salience_detr.data.classes import ClassList
from salience_detr.evaluation.results import ResultsError
from salience_detr.inference.video import VideoReader

ROOT = Path(__file__).resolve().parents[2]


def test_the_data_set_tool_makes_both_splits(tmp_path, capsys):
    words = [
        "--output",
        str(tmp_path),
        "--num-train",
        "2",
        "--num-val",
        "1",
        "--size",
        "40x48",
        "--workers",
        "0",
    ]
    assert make_surface_defects.main(words) == 0
    assert "train: 2 images" in capsys.readouterr().out
    assert len(list((tmp_path / "val").glob("*.jpg"))) == 1
    assert make_surface_defects.main([*words, "--seed", "3"]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        make_surface_defects.main(["--size", "large"])
    assert "'large' is neither a side nor HEIGHTxWIDTH" in capsys.readouterr().err


def test_the_demo_inputs_are_made_once(tmp_path, surface_data):
    words = [
        "--output",
        str(tmp_path),
        "--images",
        str(surface_data / "val"),
        "--num-images",
        "2",
    ]
    assert make_demo_inputs.main([*words, "--seconds", "0.5", "--size", "64"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000001.jpg",
        "000002.jpg",
        "conveyor.mp4",
    ]
    reader = VideoReader(tmp_path / "conveyor.mp4")
    assert reader.fps == 10 and [x.shape for x in reader] == [(64, 64, 3)] * 5


def test_converting_a_training_checkpoint_keeps_the_weights_only(tmp_path, micro_config):
    state = instantiate(load_config(micro_config).model).state_dict()
    ema = {name: x + 1 for name, x in state.items()}
    torch.save({"model": state, "optimizer": {}, "iteration": 3, "ema": ema}, tmp_path / "a.pth")
    source, name = str(tmp_path / "a.pth"), "query_embedding"

    assert convert_checkpoint.main([source, str(tmp_path / "a.safetensors")]) == 0
    averaged = load_file(tmp_path / "a.safetensors")
    assert averaged.keys() == state.keys() and torch.equal(averaged[name], ema[name])

    assert convert_checkpoint.main([source, str(tmp_path / "h.safetensors"), "--half"]) == 0
    assert load_file(tmp_path / "h.safetensors")[name].dtype == torch.float16

    assert convert_checkpoint.main([source, str(tmp_path / "r.safetensors"), "--raw"]) == 0
    assert torch.equal(load_file(tmp_path / "r.safetensors")[name], state[name])

    assert convert_checkpoint.main([str(tmp_path / "none.pth"), str(tmp_path / "b.pth")]) == 2


@pytest.mark.parametrize("output", ["b.safetensors", "b.pth"])
def test_converting_keeps_class_names_and_category_ids(tmp_path, micro_config, output):
    model = instantiate(load_config(micro_config).model)
    classes = ClassList(tuple("abcdef"), (7, 3, 90, 1, 2, 4))
    save_weights(model.state_dict(), tmp_path / "a.pth", classes=classes)
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / output)]) == 0
    assert load_weights(model, tmp_path / output) == classes


def test_weights_of_several_checkpoints_have_a_mean(tmp_path, micro_config, capsys):
    name = "query_selection.class_head.bias"
    counter = "neck.num_batches_tracked"
    state = instantiate(load_config(micro_config).model).state_dict()
    classes = ClassList(tuple("abcdef"))
    thresholds = ScoreThresholds(dict.fromkeys("abcdef", 0.4), 0.4, 0.5, "val.json")
    for file, value in (("a.pth", 1.0), ("b.pth", 2.0), ("c.pth", 6.0)):
        changed = state | {name: torch.full_like(state[name], value)}
        changed[counter] = torch.tensor(int(value))
        save_weights(changed, tmp_path / file, classes=classes, thresholds=thresholds)

    a, b, c, mean = (str(tmp_path / x) for x in ("a.pth", "b.pth", "c.pth", "mean.safetensors"))
    assert convert_checkpoint.main([a, mean, "--average-with", b, c]) == 0
    found = load_file(mean)
    assert (found[name] == 3).all() and found[counter] == 1
    for other in state.keys() - {name}:
        torch.testing.assert_close(found[other], state[other])
    # They are those of other weights.
    assert read_thresholds(mean) is None
    assert f"the score thresholds are those of {a}: the mean gets none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "names", "expected"),
    [
        ("model.num_queries=7", "abcdef", r"no mean; tensors of one alone.*: query_embedding"),
        ("model.num_queries=60", "abcdeg", r"has the classes .* their weights have no mean"),
    ],
)
def test_other_models_and_other_classes_have_no_mean(
    tmp_path, micro_config, capsys, change, names, expected
):
    for file, override, classes in (("a", "model.num_queries=60", "abcdef"), ("b", change, names)):
        state = instantiate(load_config(micro_config, [override]).model).state_dict()
        save_weights(state, tmp_path / f"{file}.pth", classes=ClassList(tuple(classes)))

    a, b, mean = (str(tmp_path / x) for x in ("a.pth", "b.pth", "mean.pth"))
    assert convert_checkpoint.main([a, mean, "--average-with", b]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not Path(mean).exists()


def test_a_converted_file_has_an_ending_of_checkpoints(capsys):
    with pytest.raises(SystemExit, match="2"):
        convert_checkpoint.main(["a.pth", "b.txt"])
    assert "OUT is b.txt; its name must end in .safetensors or .pth" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--half", "--raw"])
def test_another_detector_passes_with_its_names_unchanged(tmp_path, flag, capsys):
    config = load_config(ROOT / "configs" / "neu_det_retinanet_r18.py")
    model = instantiate(config.model)
    state = model.state_dict()
    content = {"model": state, "optimizer": {}, "iteration": 3, "class_names": list("abcdef")}
    torch.save(content, tmp_path / "a.pth")

    source, target = str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")
    assert convert_checkpoint.main([source, target]) == 2
    assert "not a Salience DETR; with --half or --raw" in capsys.readouterr().err
    assert convert_checkpoint.main([source, target, flag]) == 0
    assert load_file(target).keys() == state.keys()
    assert load_weights(model, target).names == tuple("abcdef")


def test_a_classifier_is_no_detector(tmp_path, capsys):
    torch.save(resnet18().state_dict(), tmp_path / "a.pth")
    assert (
        convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--half"]) == 2
    )
    assert "a ResNet in torchvision's names" in capsys.readouterr().err


def test_converting_something_else_is_an_error(tmp_path, capsys):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "a.pth")
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 2
    message = "looks like something unknown (bias, weight), not a Salience DETR"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()


def test_converting_reports_what_was_mapped_and_what_was_left_out(shared, tmp_path, capsys):
    shapes = json.loads(shared("parity/r50_4scale_eval.json").read_text())["parameters"]
    state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    state["transformer.level_filter_ratio"] = torch.ones(4)
    torch.save({"model": state}, tmp_path / "a.pth")
    assert convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| decoder +\| +\d+ \|", printed) and re.search(
        r"\| total +\| +\d+ \|", printed
    )
    left_out = printed.split("left out, as constants or repetitions ")[1]
    assert left_out.startswith(
        "(3): transformer.encoder.enhance_mcsp.bias, transformer.encoder.enhance_mcsp.weight"
    )
    content = read_checkpoint(tmp_path / "b.safetensors")
    assert len(content["model"]["query_selection.class_head.bias"]) == 80
    assert content["class_names"][:2] == ["person", "bicycle"]
    assert content["category_ids"] == list(COCO_CATEGORY_IDS)


def annotation_file(tmp_path):
    content = {
        "images": [{"id": 1, "width": 50, "height": 50, "file_name": "a"}],
        "categories": [{"id": 4, "name": "pit"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 4,
                "bbox": [10, 10, 10, 10],
                "area": 100,
                "iscrowd": 0,
            }
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    # IoU 1, and 80 / 120 = 0.667: found up to a threshold of 0.65, 4 of 10.
    ("bbox", "row"),
    [([10, 10, 10, 10], "100.0 |  100.0 |  100.0"), ([12, 10, 10, 10], "40.0 |  100.0 |    0.0")],
)
def test_average_precision_of_a_results_file(tmp_path, capsys, bbox, row):
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 1, "category_id": 4, "bbox": bbox, "score": 0.9}]))
    assert evaluate_json.main([str(results), str(annotation_file(tmp_path)), "--classes"]) == 0
    printed = capsys.readouterr().out
    assert row in printed and "| pit" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not valid JSON"),
        ("3", "has no list of detections"),
        ('[{"image_id": 1}]', "number 0 of the detections in .* has no 'category_id'"),
        ('[{"image_id": 9, "category_id": 4, "bbox": [1, 1, 2, 2], "score": 1}]', "image_id 9"),
    ],
)
def test_results_that_cannot_be_evaluated_are_named(tmp_path, content, message):
    results = tmp_path / "results.json"
    results.write_text(content)
    with pytest.raises(ResultsError, match=message):
        evaluate_json.load_results(results, annotation_file(tmp_path))


def test_the_analysis_lists_every_stage(micro_config, capsys):
    assert analyze_model.main(["--config-file", micro_config, "--size", "64", "64"]) == 0
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in STAGES)
    assert "total" in printed


@pytest.mark.parametrize("size", [("0", "0"), ("64", "0"), ("-1", "64"), ("1.5", "64")])
def test_the_analysis_refuses_a_size_without_pixels(micro_config, capsys, size):
    with pytest.raises(SystemExit) as stop:
        analyze_model.main(["--config-file", micro_config, "--size", *size])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_analysis_of_another_architecture_lists_its_parts(capsys):
    assert (
        analyze_model.main(
            ["--config-file", "configs/neu_det_retinanet_r18.py", "--size", "64", "64"]
        )
        == 0
    )
    rows = [
        line.split("|")[1].strip()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    assert rows == ["stage", "backbone", "head", "anchor_generator", "total"]


def test_a_stage_has_its_parameters_multiplications_and_activations_counted(micro_config):
    # Three 1x1 convolutions of 16, 24 and 32 channels to 32, on maps of 8x8, 4x4 and 2x2; norms
    # count 5 each number.
    model = instantiate(load_config(micro_config).model)
    rows = {name: numbers for name, *numbers in count_flops(model, 64, 64).stages}
    numbers_out = (64 + 16 + 4) * 32
    products = (64 * 16 + 16 * 24 + 4 * 32) * 32
    expected = ((16 + 24 + 32) * 32 + 3 * 2 * 32, products + 5 * numbers_out, numbers_out)
    assert rows["neck"] == pytest.approx([expected[0] / 1e6, expected[1] / 1e9, expected[2] / 1e6])
    assert rows["total"][1] == pytest.approx(sum(rows[stage][1] for stage in STAGES), rel=1e-3)


@pytest.mark.slow
def test_the_r50_model_takes_at_most_206_gmacs(capsys):
    analyze_model.main(["--config-file", "configs/salience_detr_r50_4scale_12ep.py"])
    total = next(line for line in capsys.readouterr().out.splitlines() if "total" in line)
    assert 150 < float(total.split("|")[3]) <= 206


def test_all_implementations_of_the_operator_are_timed(tmp_path, capsys):
    assert (
        benchmark_op.main(
            ["--device", "cpu", "--repeats", "1", "--shapes", "5", "--json", f"{tmp_path}/op.json"]
        )
        == 0
    )
    assert "| small maps, 256x256 | backward | fused" in " ".join(capsys.readouterr().out.split())
    rows = json.loads((tmp_path / "op.json").read_text())
    assert {(row["pass"], row["operator"]) for row in rows} == {
        (direction, name)
        for direction in ("forward", "backward")
        for name in ("reference", "fused", "unfused")
    }
    assert all(row["minimum (ms)"] > 0 and row["peak (MiB)"] > 0 for row in rows)


def test_what_has_a_first_line_for_the_shell_can_be_run():
    root = Path(__file__).resolve().parents[2]
    programs = [
        path
        for path in [*root.glob("*.py"), *root.glob("tools/*"), *root.glob("demo/*.py")]
        if path.is_file()
    ]
    started = [path for path in programs if path.read_bytes().startswith(b"#!")]
    assert len(started) > 15 and all(os.access(path, os.X_OK) for path in started)
