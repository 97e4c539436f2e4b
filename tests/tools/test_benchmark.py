"""Measuring a model and detectors of other packages beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from torch.utils.flop_counter import FlopCounterMode

from salience_detr.benchmark import benchmarking
from salience_detr.benchmark.benchmarking import Timing
from salience_detr.benchmark.isolation import IsolatedError, describe_exit, isolated
from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
from salience_detr.benchmark.profiling import STAGES, count, noise_image
from salience_detr.config import load_config
from tools import benchmark

SMALL = ["--size", "64", "64", "--device", "cpu", "--repeats", "1"]


def in_this_process(function: Callable[..., Iterable[Any]], *args: Any) -> Iterator[Any]:
    """Spares the start of a process; what is raised is told as if there were one."""
    try:
        yield from function(*args)
    except Exception as error:
        raise IsolatedError(str(error)) from error


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "isolated", in_this_process)


def rows_of(printed: str) -> list[dict[str, str]]:
    """The first table that was printed."""
    start = printed.index("| detector")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed[start:].split("\n\n")[0].splitlines()
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_model_is_measured_whole_and_by_stage_in_another_process(
    micro_config, tmp_path, monkeypatch, capsys
):
    def spare_a_process(function: Callable[..., Iterable[Any]], *args: Any) -> Iterator[Any]:
        return (in_this_process if function is benchmarking.count_costs else isolated)(
            function, *args
        )

    monkeypatch.setattr(benchmarking, "isolated", spare_a_process)
    words = [
        "--config-file",
        micro_config,
        *SMALL,
        "--modes",
        "eager",
        "--batch-sizes",
        "2",
        "model.num_queries=10",
    ]
    assert (
        benchmark.main([*words, "--json", f"{tmp_path}/b.json", "--markdown", f"{tmp_path}/b.md"])
        == 0
    )
    printed = capsys.readouterr().out
    assert (tmp_path / "b.md").read_text() == printed
    assert "float32; 64x64 pixels; timed calls: 1, after 1 to warm up" in printed.splitlines()[0]
    assert "threads: 1; torch 2" in printed.splitlines()[0]
    found = json.loads((tmp_path / "b.json").read_text())
    (row,) = found["measurements"]
    assert [timing["batch_size"] for timing in row["timings"]] == [1, 2] and row["failure"] == ""
    assert row["stages"].keys() == {*STAGES, "rest", "total"}
    assert row["stages"]["total"] == pytest.approx(
        sum(row["stages"][name] for name in (*STAGES, "rest"))
    )
    assert min(row["stages"][name] for name in STAGES) > 0
    cost = found["costs"]["ours"]
    # 20 queries of 32 numbers became 10.
    assert cost["parameters_millions"] == pytest.approx(
        millions_of_parameters(micro_config) - 10 * 32 / 1e6
    )
    assert [stage["stage"] for stage in cost["stages"]] == [*STAGES, "total"] and cost["stages"][
        -1
    ]["gmacs"] > 0


def millions_of_parameters(config: str) -> float:
    return sum(p.numel() for p in instantiate(load_config(config).model).parameters()) / 1e6


@pytest.mark.parametrize(
    ("function", "args", "items", "reason"),
    [
        (map, (int, ["1", "x"]), [1], "ValueError: invalid literal"),
        (os._exit, (3,), [], "its process ended with exit code 3"),
    ],
)
def test_what_ends_a_process_is_told_after_what_it_has_given(function, args, items, reason):
    found = []
    with pytest.raises(IsolatedError, match=reason):
        for item in isolated(function, *args):
            found.append(item)
    assert found == items


def test_an_ended_process_names_its_signal():
    assert (
        describe_exit(-9)
        == "its process was ended by SIGKILL, as a system does where memory runs out"
    )
    assert describe_exit(-11) == "its process was ended by SIGSEGV"


def test_times_are_summed_up_by_median_percentile_and_throughput():
    # The 95th percentile lies at 0.95 * 4 = 3.8 of the sorted times: 40 + 0.8 * 60.
    timing = Timing(2, [10.0, 30.0, 20.0, 100.0, 40.0], None)
    assert (timing.median, timing.p95) == (30.0, pytest.approx(88.0))
    assert timing.images_per_second == pytest.approx(2 / 0.030)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_peak_is_of_weights_and_of_what_calls_take():
    program = """if True:
        import torch
        from salience_detr.benchmark.profiling import PeakMemory

        memory = PeakMemory(torch.nn.Linear(1024, 1024, bias=False))  # 4 MiB
        memory.reset()
        torch.ones(16 * 2**20)  # 64 MiB
        print(memory.mebibytes())
        memory.reset()
        print(memory.mebibytes())
    """
    # In a process of its own, as the tool measures: memory that tests before have freed may be taken again unseen.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    peak, after = map(float, done.stdout.split())
    assert 60 <= peak < 80 and after < 20  # the system counts in steps


@pytest.mark.parametrize("name", ["retinanet", "fcos", "rt-detr"])
def test_other_detectors_compute_the_image_at_its_size(name):
    detector = OTHER_DETECTORS[name].build((150, 120), 3).eval()
    shapes = []
    backbone = detector.get_submodule(OTHER_DETECTORS[name].parts[0])
    backbone.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    with torch.no_grad():
        (output,) = detector([noise_image(150, 120)])
    assert shapes == [(1, 3, 160, 128)]
    found = output["instances"]
    assert found.image_size == (150, 120) and len(found.scores) == len(found.pred_boxes) == len(
        found.pred_classes
    )
    assert all(detector.get_submodule(part) for part in OTHER_DETECTORS[name].parts)


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
    assert ours["of ours"] == "1.00" and float(fcos["of ours"]) > 1
    assert "(torchvision, random weights)" in fcos["detector"]
    assert ours["images/s, batch 2"] and not fcos["images/s, batch 2"]
    assert "Random weights: FCOS R50 select boxes by their scores" in printed
    assert (
        "Not in the GMACs of FCOS R50 (torchvision, random weights): 1 x scripted functions, such as NMS."
        in printed
    )


def test_the_macs_of_another_detector_are_those_of_its_convolutions_and_norms():
    detector = OTHER_DETECTORS["fcos"].build((64, 96), 3).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        detector([noise_image(64, 96)])
    convolutions = flops.get_total_flops() / 2e9
    assert convolutions <= count(detector, 64, 96).stages[-1].gmacs < 1.01 * convolutions


def test_a_mode_that_fails_is_a_row_that_says_why(one_process, micro_config, monkeypatch, capsys):
    def no_compiler(*_: Any) -> None:
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
    def out_of_memory(function: Callable[..., Any], *args: Any) -> Iterator[Any]:
        yield 1.5 if function is benchmarking.count_costs else Timing(1, [40.0], 100.0)
        raise IsolatedError("out of memory")

    monkeypatch.setattr(benchmarking, "isolated", out_of_memory)
    assert benchmark.main(["--config-file", micro_config, *SMALL, "--modes", "eager"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row["remarks"] == "failed: out of memory; GMACs: failed: out of memory"
    assert [row[name] for name in ("parameters (M)", "GMACs", "median (ms)")] == [
        "1.50",
        "",
        "40.0",
    ]
    assert [row[f"images/s, batch {size}"] for size in (1, 2, 4)] == ["25.0", "", ""]


def test_an_interrupt_leaves_what_was_measured(micro_config, tmp_path, monkeypatch, capsys):
    def interrupted(
        function: Callable[..., Any], settings: Any, name: str, *mode: str
    ) -> Iterator[Any]:
        if mode == ("amp",):
            raise KeyboardInterrupt
        yield 1.5 if function is benchmarking.count_costs else Timing(1, [40.0], 100.0)

    monkeypatch.setattr(benchmarking, "isolated", interrupted)
    words = [
        "--config-file",
        micro_config,
        *SMALL,
        "--compare",
        "fcos",
        "--json",
        f"{tmp_path}/b.json",
    ]
    assert benchmark.main(words) == 130
    eager, amp = rows_of(capsys.readouterr().out)
    assert (eager["median (ms)"], eager["remarks"], amp["remarks"]) == ("40.0", "", "stopped")
    assert (
        json.loads((tmp_path / "b.json").read_text())["notes"][-1]
        == "Stopped before all was measured."
    )


def test_a_package_that_is_not_there_is_a_note(micro_config, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "find_spec", lambda package: None if package == "transformers" else package
    )
    monkeypatch.setattr(benchmarking, "isolated", lambda *_: iter(()))
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
        (["--modes", "fast"], "--modes 'fast' is unknown; use eager, compiled, amp, compiled-amp"),
        (
            ["--compare", "yolo"],
            "--compare 'yolo' is unknown; use all, retinanet, fcos, faster-rcnn",
        ),
        (["--batch-sizes", "0"], "--batch-sizes '0' is not a number of images"),
        (["--size", "0", "64"], "--size is 0 64"),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--json", "/proc/there.json"], "/proc cannot be written to"),
        (["--weights", "none.pth"], "none.pth"),
        (["--modes", "eager", "model.num_querie=3"], "did you mean model.num_queries"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
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
