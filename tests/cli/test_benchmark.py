"""Measuring a model and detectors of other packages beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from torch.utils.flop_counter import FlopCounterMode

from salience_detr.benchmark import measurements
from salience_detr.benchmark.flops import STAGES, ModelCost, StageCost, count_flops, noise_image
from salience_detr.benchmark.measurements import OURS, Timing, Variant
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.worker import Worker
from salience_detr.cli import benchmark
from salience_detr.config import load_config
from salience_detr.layers import ms_deform_attn

SMALL = ["--size", "64", "64", "--device", "cpu", "--repeats", "1"]


class ThisProcess(Worker):
    """A worker that spares the start of a process."""

    def __enter__(self) -> ThisProcess:
        measurements.prepare.cache_clear()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def attempt(self, function: Callable[..., Any], *args: object) -> Any:
        try:
            return function(*args)
        except Exception as error:
            return f"failed: {error}"


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "Worker", ThisProcess)


def answer_with(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    """Replace all measurements: ``answer`` is called with the function and its arguments."""

    class Oracle(ThisProcess):
        def attempt(self, function: Callable[..., Any], *args: object) -> Any:
            return answer(function, *args)

    monkeypatch.setattr(measurements, "Worker", Oracle)


def cost_of(parameters: float) -> ModelCost:
    return ModelCost([StageCost("total", parameters, 1.0, 1.0)], Counter())


def rows_of(printed: str) -> list[dict[str, str]]:
    """Return the rows of the first table that was printed."""
    table = printed[printed.index("| detector") :].split("\n\n")[0]
    lines = []
    for line in table.splitlines():
        lines.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *rows = lines
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_model_is_measured_whole_and_by_stage_in_another_process(micro_config, tmp_path, capsys):
    files = ["--json", f"{tmp_path}/b.json", "--markdown", f"{tmp_path}/b.md"]
    words = ["--modes", "eager", "--batch-sizes", "2", "model.num_queries=10", *files]
    assert benchmark.main(["--config-file", micro_config, *SMALL, *words]) == 0

    printed = capsys.readouterr().out
    assert (tmp_path / "b.md").read_text() == printed
    assert "float32; 64x64 pixels; timed calls: 1, after 1 to warm up" in printed.splitlines()[0]
    assert "threads: 1; torch 2" in printed.splitlines()[0]

    content = json.loads((tmp_path / "b.json").read_text())
    (measurement,) = content["measurements"]
    assert [timing["batch_size"] for timing in measurement["timings"]] == [1, 2]
    assert measurement["failure"] == ""

    stages = measurement["stages"]
    assert stages.keys() == {*STAGES, "rest", "total"}
    assert min(stages[name] for name in STAGES) > 0
    assert stages["total"] == pytest.approx(sum(stages[name] for name in (*STAGES, "rest")))

    cost = content["costs"]["ours"]["stages"]
    assert [stage["stage"] for stage in cost] == [*STAGES, "total"]
    # 20 queries of 32 numbers became 10.
    parameters = millions_of_parameters(micro_config) - 10 * 32 / 1e6
    assert cost[-1]["parameters"] == pytest.approx(parameters) and cost[-1]["gmacs"] > 0


def millions_of_parameters(config: str) -> float:
    return sum(p.numel() for p in instantiate(load_config(config).model).parameters()) / 1e6


def test_the_reference_operator_and_training_are_measured_beside(micro_config, monkeypatch, capsys):
    calls = []

    def answer(function: Callable[..., Any], settings: Any, subject: Any, *args: Any) -> Any:
        if function is measurements.time_batch:
            calls.append(subject)
            return Timing(1, [60.0 if subject.operator == "reference" else 40.0], None)
        return cost_of(1.5) if function is measurements.count_costs else {}

    answer_with(monkeypatch, answer)
    words = ["--batch-sizes", "1", "--modes", "eager", "training"]
    operators = ["--operator", "compiled", "reference"]
    assert benchmark.main(["--config-file", micro_config, *SMALL, *words, *operators]) == 0

    rows = rows_of(capsys.readouterr().out)
    modes = [(mode, operator) for mode in ("eager", "training") for operator in operators[1:]]
    assert calls == [Variant(OURS, *mode) for mode in modes]
    assert [row["mode"] for row in rows[:2]] == ["eager", "eager, reference"]
    assert [row["of ours"] for row in rows] == ["1.00", "1.50", "1.00", "1.50"]


@pytest.mark.parametrize("operator", ["compiled", "reference"])
def test_a_training_step_changes_the_weights(micro_config, monkeypatch, operator):
    args = benchmark.parse_args(["--config-file", micro_config, *SMALL])
    settings = benchmark.make_settings(args)
    measurements.prepare.cache_clear()
    # The reference is chosen for the rest of a process.
    monkeypatch.setattr(ms_deform_attn, "is_compiled_for", ms_deform_attn.is_compiled_for)

    subject = measurements.prepare(settings, Variant(OURS, "training", operator))
    before = subject.model.query_embedding.detach().clone()
    subject.step(2)
    assert not torch.equal(before, subject.model.query_embedding)


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (int, ("x",), "failed: ValueError: invalid literal"),
        (os._exit, (3,), "failed: its process was ended"),
    ],
)
def test_what_ends_a_process_is_an_answer(function, args, reason):
    with Worker() as worker:
        assert worker.attempt(function, *args).startswith(reason)


def test_times_are_summed_up_by_median_percentile_and_throughput():
    # The 95th percentile lies at 0.95 * 4 = 3.8 of the sorted times: 40 + 0.8 * 60.
    timing = Timing(2, [10.0, 30.0, 20.0, 100.0, 40.0], None)
    assert (timing.median, timing.p95) == (30.0, pytest.approx(88.0))
    assert timing.images_per_second == pytest.approx(2 / 0.030)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_peak_is_of_weights_and_of_what_calls_take():
    program = """if True:
        import torch
        from salience_detr.benchmark.timing import PeakMemory

        memory = PeakMemory(torch.nn.Linear(1024, 1024, bias=False))  # 4 MiB
        memory.reset()
        torch.ones(16 * 2**20)  # 64 MiB
        print(memory.mebibytes())
        memory.reset()
        print(memory.mebibytes())
    """
    # In a process of its own, as the tool measures: memory that tests before have freed may be
    # taken again unseen.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    peak, after = map(float, done.stdout.split())
    assert 60 <= peak < 80 and after < 20  # the system counts in steps


@pytest.mark.parametrize("name", ["retinanet", "fcos", "rt-detr", "deformable-detr"])
def test_other_detectors_compute_the_image_at_its_size(name):
    detector = OTHER_DETECTORS[name].build((150, 120), 3).eval()
    shapes = []
    backbone = detector.get_submodule(OTHER_DETECTORS[name].compiled_stages[0])
    backbone.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    with torch.no_grad():
        (output,) = detector([noise_image(150, 120)])
    assert shapes == [(1, 3, 160, 128)]
    found = output["instances"]
    assert found.image_size == (150, 120) and len(found.scores) == len(found.pred_boxes) == len(
        found.pred_classes
    )
    assert all(detector.get_submodule(part) for part in OTHER_DETECTORS[name].compiled_stages)

    # Their packages may rename what is faster as it is.
    classes = {type(module).__name__ for module in detector.modules()}
    assert classes >= set(OTHER_DETECTORS[name].eager_parts)


def test_other_detectors_are_rows_beside_the_model(one_process, micro_config, capsys):
    words = [
        "--config-file",
        micro_config,
        *SMALL,
        "--warmup",
        "0",
        "--modes",
        "eager",
        "--batch-sizes",
        "1",
        "2",
    ]
    assert benchmark.main([*words, "--compare", "fcos"]) == 0
    printed = capsys.readouterr().out
    ours, fcos = rows_of(printed)
    ratio = float(fcos["median (ms)"]) / float(ours["median (ms)"])
    assert ours["of ours"] == "1.00" and float(fcos["of ours"]) == pytest.approx(ratio, rel=0.02)
    assert "(torchvision, random weights)" in fcos["detector"]
    assert ours["images/s, batch 2"] and not fcos["images/s, batch 2"]
    assert "Random weights: FCOS R50 select boxes by their scores" in printed
    assert (
        "Not in the GMACs of FCOS R50 (torchvision, random weights): "
        "1 x scripted functions, such as NMS." in printed
    )


def test_the_macs_of_another_detector_are_those_of_its_convolutions_and_norms():
    detector = OTHER_DETECTORS["fcos"].build((64, 96), 3).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        detector([noise_image(64, 96)])
    convolutions = flops.get_total_flops() / 2e9
    assert convolutions <= count_flops(detector, 64, 96).stages[-1].gmacs < 1.01 * convolutions


def test_a_mode_that_fails_is_a_row_that_says_why(one_process, micro_config, monkeypatch, capsys):
    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler | found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    words = [
        "--config-file",
        micro_config,
        *SMALL,
        "--batch-sizes",
        "1",
        "--modes",
        "compiled",
        "amp",
        "--warmup",
        "0",
    ]
    assert benchmark.main(words) == 0
    compiled, amp = rows_of(capsys.readouterr().out)
    assert compiled["remarks"] == "failed: no C++ compiler / found" and not compiled["median (ms)"]
    assert float(amp["median (ms)"]) > 0 and not amp["remarks"]


def test_what_was_measured_before_a_failure_is_kept(micro_config, monkeypatch, capsys):
    def answer(function: Callable[..., Any], settings: Any, *args: Any) -> Any:
        if function is measurements.time_batch and args[1] == 1:
            return Timing(1, [40.0], 100.0)
        return "failed: out of memory"

    answer_with(monkeypatch, answer)
    assert benchmark.main(["--config-file", micro_config, *SMALL, "--modes", "eager"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row["remarks"] == "failed: out of memory; GMACs: failed: out of memory"
    assert (row["GMACs"], row["median (ms)"]) == ("", "40.0")
    assert [row[f"images/s, batch {size}"] for size in (1, 2, 4)] == ["25.0", "", ""]


def test_an_interrupt_leaves_what_was_measured(micro_config, tmp_path, monkeypatch, capsys):
    def answer(function: Callable[..., Any], settings: Any, subject: Any, *args: Any) -> Any:
        if function is measurements.count_costs:
            return cost_of(1.5)
        if subject.mode == "amp":
            raise KeyboardInterrupt
        return Timing(1, [40.0], 100.0) if function is measurements.time_batch else {}

    answer_with(monkeypatch, answer)
    words = ["--compare", "fcos", "--json", f"{tmp_path}/b.json"]
    assert benchmark.main(["--config-file", micro_config, *SMALL, *words]) == 130

    eager, amp = rows_of(capsys.readouterr().out)
    assert (eager["median (ms)"], eager["remarks"], amp["remarks"]) == ("40.0", "", "stopped")
    notes = json.loads((tmp_path / "b.json").read_text())["notes"]
    assert notes[-1] == "Stopped before all was measured."


def test_a_package_that_is_not_there_is_a_note(micro_config, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "find_spec", lambda package: None if package == "transformers" else package
    )
    answer_with(monkeypatch, lambda *_: "failed: not measured")
    words = [
        "--config-file",
        micro_config,
        *SMALL,
        "--modes",
        "eager",
        "--compare",
        "rt-detr",
        "deformable-detr",
    ]
    assert benchmark.main(words) == 0
    printed = capsys.readouterr().out
    assert len(rows_of(printed)) == 1
    names = "RT-DETR R50, Deformable DETR R50, two stages"
    assert (
        f"- {names}: transformers is not installed; pip install 'salience_detr[compare]'."
        in printed
    )


def test_each_detector_is_compared_in_its_fastest_mode(micro_config, monkeypatch, capsys):
    times = {
        (OURS, "eager"): 100.0,
        (OURS, "fused"): 80.0,
        (OURS, "amp"): 50.0,
        ("fcos", "eager"): 200.0,
        ("fcos", "channels-last"): 160.0,
        ("fcos", "amp"): 120.0,
    }
    measured = []

    def answer(function: Callable[..., Any], settings: Any, subject: Any, *args: Any) -> Any:
        if function is measurements.count_costs:
            return cost_of(1.5)
        if function is measurements.time_stages:
            return {}
        measured.append((subject.detector, subject.mode))
        if measured[-1] not in times:
            return "failed: not here"
        return Timing(1, [times[measured[-1]]], None)

    answer_with(monkeypatch, answer)
    modes = ["--modes", "eager", "channels-last", "fused", "amp", "training"]
    words = ["--batch-sizes", "1", *modes, "--compare", "fcos"]
    assert benchmark.main(["--config-file", micro_config, *SMALL, *words]) == 0
    # What is this project's own is no mode of another detector.
    assert [mode for name, mode in measured if name == "fcos"] == ["eager", "channels-last", "amp"]

    printed = capsys.readouterr().out
    ours, fcos = rows_of(printed[printed.index("fastest modes:") :])
    assert (ours["fastest in float32"], ours["fastest at all"]) == ("fused", "amp")
    assert (fcos["fastest in float32"], fcos["fastest at all"]) == ("channels-last", "amp")
    assert (fcos["ms in float32"], fcos["ms at all"]) == ("160.0", "120.0")
    # 160 / 80, 120 / 80 and 120 / 50.
    assert fcos["float32 of ours in float32"] == "2.00"
    assert fcos["fastest of ours in float32"] == "1.50"
    assert fcos["fastest of our fastest"] == "2.40"


def test_channels_last_is_the_memory_format_of_the_weights(micro_config):
    args = benchmark.parse_args(["--config-file", micro_config, *SMALL])
    settings = benchmark.make_settings(args)
    measurements.prepare.cache_clear()
    subject = measurements.prepare(settings, Variant(OURS, "channels-last", "compiled"))
    kernels = [x for x in subject.model.parameters() if x.dim() == 4]
    assert kernels and all(x.is_contiguous(memory_format=torch.channels_last) for x in kernels)


def test_another_architecture_is_measured_by_its_own_parts(one_process, capsys):
    words = [
        "--config-file",
        "configs/neu_det_retinanet_r18.py",
        *SMALL,
        "--batch-sizes",
        "1",
        "--modes",
        "eager",
    ]
    assert benchmark.main(words) == 0
    printed = capsys.readouterr().out
    assert "| head " in printed and "| neck " not in printed
    assert rows_of(printed)[0]["detector"] == "neu_det_retinanet_r18 (random weights)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modes", "fast"], "--modes: invalid choice: 'fast' (choose from"),
        (["--compare", "yolo"], "--compare: invalid choice: 'yolo' (choose from"),
        (["--batch-sizes", "0"], "--batch-sizes: it is 0, and must be at least 1"),
        (["--operator", "fast"], "--operator: invalid choice: 'fast' (choose from"),
        (["--size", "0", "64"], "--size: it is 0, and must be at least 1"),
        (["--repeats", "0"], "--repeats: it is 0, and must be at least 1"),
        (["--json", "/proc/there.json"], "/proc cannot be written to"),
        (["--weights", "none.pth"], "none.pth"),
        (["--modes", "eager", "model.num_querie=3"], "did you mean model.num_queries"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--modes", "all", "eager"], "--modes all is a table of its own"),
        (["--modes", "all", "--compare", "fcos"], "leave out other modes and --compare"),
        (["--modes", "all", "--device", "cuda"], "measures on the CPU: leave out --device cuda"),
        (["--modes", "eager", "--exports", "there"], "--exports goes with --modes all"),
        (["--modes", "all", "--exports", "/proc/there"], "--exports"),
        (["--modes", "all", "--size", "64", "640"], "the config's test makes 13x128 of it"),
    ],
)
def test_a_mistake_is_one_line(micro_config, capsys, words, message):
    try:
        code = benchmark.main(["--config-file", micro_config, *words])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert (
        captured.err.startswith("error: ")
        and message in captured.err
        and captured.err.count("\n") == 1
    )
