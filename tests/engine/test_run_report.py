"""What a run says: its start, how long it takes, its end, and a lack of memory."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from salience_detr.cli import train as train_net
from salience_detr.config import load_config
from salience_detr.engine import train
from salience_detr.engine.console import LONGEST_SILENCE, ConsoleFilter
from salience_detr.engine.duration import RunClock
from salience_detr.engine.memory import is_out_of_memory, memory_error
from salience_detr.engine.run_report import describe_device, list_counts, size_of
from salience_detr.engine.run_summary import describe_best
from salience_detr.evaluation.ap_table import Evaluated, format_results, read_evaluated
from salience_detr.evaluation.coco_evaluation import choose_weights, describe_weights

R50 = "configs/salience_detr_r50_4scale_12ep.py"


def run(config, output, *words):
    return train_net.run(["--config-file", str(config), *words, f"train.output_dir={output}"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "float32"),
        (["train.amp.enabled=True"], "float32 (mixed precision is slower: the processor has no"),
        (["train.amp.enabled=True", "train.amp.dtype=bf16"], "bfloat16, which this processor only"),
    ],
)
def test_a_processor_without_bfloat16_is_told(micro_config, monkeypatch, words, expected):
    monkeypatch.setattr("salience_detr.config.computes_bfloat16", lambda: False)
    monkeypatch.setattr("salience_detr.utils.processor.computes_bfloat16", lambda: False)
    config = load_config(micro_config, ["train.device=cpu", *words])
    assert expected in describe_device(config)


def test_a_run_says_what_it_is_and_what_came_out_in_few_lines(
    micro_config, surface_data, tmp_path, capsys
):
    output = tmp_path / "run"
    words = ["train.log_period=5", "train.ema.enabled=True", "train.previews=0"]
    assert run(micro_config, output, *words) == 0

    text = capsys.readouterr().out
    assert len(text.splitlines()) < 60
    assert "12 images, 6 classes" in text and "6 iterations, 1.0 epochs" in text
    assert "evaluation of the EMA weights at the end" in text
    assert text.count("APs") == 1 and "copypaste" not in text and "Serializing" not in text
    assert f"salience_detr val --config-file {output}/config.yaml" in text

    log = (output / "log.txt").read_text()
    assert "copypaste" in log and "Average Precision" in log and "Serializing" in log

    # The average alone was evaluated, and model_best follows it.
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert "ema/bbox/AP" in lines[-1] and "bbox/AP" not in lines[-1]
    assert json.loads((output / "model_best.json").read_text())["metric"] == "ema/bbox/AP"
    evaluated = read_evaluated(output / "inference_ema")
    assert str(evaluated) == "EMA weights after 6 iterations, on surface_defects_val"

    # An evaluation by itself adds a line, which a resumed run keeps and does not take for its own.
    weights = str(output / "model_final.pth")
    assert run(micro_config, output, "--eval-only", "--weights", weights) == 0
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["eval_only"] == {"weights": weights, "datasets": ["surface_defects_val"]}
    assert last["iteration"] == 5 and "bbox/AP" in last
    assert run(micro_config, output, *words, "--resume") == 0
    assert '"eval_only"' in (output / "metrics.json").read_text()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_lack_of_memory_is_one_line_with_what_helps(
    micro_config, surface_data, tmp_path, monkeypatch, capsys, error
):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(train, "run_steps", fail)
    assert run(micro_config, tmp_path, "train.previews=0") == 2

    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.out + captured.err
    assert "total_batch_size=1" in captured.err and "train.accumulate=2" in captured.err
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_activation_checkpointing_is_named_where_it_is_off():
    config = load_config(R50, ["model.backbone.use_checkpoint=True"])
    message = str(memory_error(RuntimeError("out of memory"), config, training=True))
    assert "model.encoder.use_checkpoint=True" in message and "backbone" not in message

    message = str(memory_error(RuntimeError("out of memory"), config, training=False))
    assert "total_batch_size" not in message and "dataloader.test" in message
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_the_expected_time_includes_evaluations():
    clock = RunClock(max_iter=10, eval_period=4, estimate=100.0)
    clock.step_seconds = [50.0, 50.0, 50.0, 2.0]

    # At 4, 8 and 10; progress after step 4 comes before its evaluation. 6 steps of 2 s.
    assert clock.remaining_evaluations(4) == 3
    assert clock.remaining_seconds(4) == 6 * 2 + 3 * 100

    # One was measured.
    clock.evaluation_seconds = [10.0]
    clock.last_evaluated = 4
    assert clock.remaining_seconds(4) == 6 * 2 + 2 * 10
    assert clock.remaining_evaluations(10) == 1

    clock.last_evaluated = 10
    assert clock.remaining_seconds(10) == 0


def test_the_console_has_this_project_warnings_and_progress_after_a_silence():
    def is_shown(name, level, message):
        return console.filter(
            logging.makeLogRecord({"name": name, "levelno": level, "msg": message})
        )

    console = ConsoleFilter()
    assert is_shown("salience_detr.engine.train", logging.INFO, "the run")
    assert not is_shown("salience_detr.evaluation", logging.DEBUG, "Average Precision")
    assert not is_shown("detectron2.data", logging.INFO, "Serializing")
    assert is_shown("detectron2.data", logging.WARNING, "no boxes")

    assert not is_shown("detectron2.evaluation", logging.INFO, "Inference done 5/9")
    console.last_time -= LONGEST_SILENCE + 1
    assert is_shown("detectron2.evaluation", logging.INFO, "Inference done 6/9")
    assert not is_shown("detectron2.evaluation", logging.INFO, "Inference done 7/9")


def test_an_ap_table_lists_all_of_few_classes_and_the_ends_of_many():
    few = format_results(
        {"bbox": {"AP": 12.34, "APl": float("nan"), "AP-pit": 5.0, "AP-weld": 7.0}}
    )
    assert few == "AP 12.3  APl -\n  pit    5.0   weld   7.0"

    many = {f"AP-c{i}": float(i) for i in range(80)}
    lines = format_results({"bbox": {"AP": 1.0, **many}})
    assert "lowest AP of 80 classes" in lines and "c0 " in lines and "c79" in lines
    assert "c40" not in lines


def test_long_lists_of_classes_are_shortened():
    assert list_counts({"pit": 3, "weld": 0}) == "pit 3, weld 0"
    text = list_counts({f"c{i}": i for i in range(80)})
    assert text.startswith("c79 79, ") and text.endswith("c1 1, c0 0") and "c40" not in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"short_edge_length": [480, 800], "max_size": 1333},
            "shorter side 480 to 800, at most 1333",
        ),
        ({"short_edge_length": 320}, "shorter side 320"),
        ({"crop_size": [256, 256]}, "256 x 256"),
        ({"horizontal": False}, ""),
    ],
)
def test_sizes_of_images_are_described(settings, text):
    assert size_of(settings) == text


def test_the_choice_of_weights_is_checked():
    config = load_config(R50, ["train.ema.enabled=True"])
    ema = torch.nn.Identity()
    assert choose_weights(config, ema) == "ema" and choose_weights(config, None) == "raw"

    # A config of an earlier version has no choice.
    del config.train.ema.evaluate
    assert choose_weights(config, ema) == "ema"

    config.train.ema = {"enabled": True, "evaluate": "mean"}
    with pytest.raises(ValueError, match="'mean'; use ema, raw or both"):
        choose_weights(config, ema)

    # The report at the start of a run says it first.
    with pytest.raises(ValueError, match="use ema, raw or both"):
        describe_weights(config)


def test_the_best_evaluation_is_described_with_its_classes(tmp_path):
    lines = [
        {"iteration": 3, "bbox/AP": 9.0, "bbox/AP-pit": 9.0, "bbox/AP-weld": 9.0},
        {"iteration": 7, "bbox/AP": 8.0, "bbox/AP-pit": 1.0, "bbox/AP-weld": 2.0},
        {"iteration": 3, "bbox/AP": 0.0, "eval_only": {}},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    best = SimpleNamespace(
        path=tmp_path / "model_best.json",
        metric="bbox/AP",
        read=lambda: {"metric": "bbox/AP", "value": 9.0, "iteration": 4},
    )
    assert describe_best(best) == [
        "best bbox/AP 9.00, after 4 iterations; per class:",
        "  pit    9.0   weld   9.0",
    ]


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    assert read_evaluated(tmp_path) is None
    Evaluated("a.pth", "val").save(tmp_path)
    assert str(read_evaluated(tmp_path)) == "a.pth, on val"
