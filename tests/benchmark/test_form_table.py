"""The table of the forms to choose from: what is measured of each, and what is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from salience_detr.benchmark import form_table, forms
from salience_detr.benchmark.forms import FORMS, Precision, Start
from salience_detr.cli import benchmark

SMALL = ["--size", "64", "64", "--repeats", "2", "--warmup", "1", "--modes", "all"]
MEBIBYTE = 2**20


class Process:
    """A worker whose measurements are made up."""

    def __init__(self, answer: Callable[..., Any], log: list[tuple[str, Any]]) -> None:
        self.answer = answer
        self.log = log

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def attempt(self, function: Callable[..., Any], settings: Any, subject: Any, *args: Any) -> Any:
        self.log.append((function.__name__, subject))
        return self.answer(function, subject)


@pytest.fixture
def answer_with(monkeypatch) -> Callable[..., list[tuple[str, Any]]]:
    """Replaces all measurements, and returns the list in which they are noted."""

    def replace(answer: Callable[..., Any]) -> list[tuple[str, Any]]:
        log: list[tuple[str, Any]] = []
        monkeypatch.setattr(form_table, "Worker", lambda: Process(answer, log))
        return log

    return replace


def made_up(function: Callable[..., Any], subject: Any) -> Any:
    """Return results: float32 takes 40 ms, bf16 20 ms, and compiled half of it."""
    if function is forms.start_form:
        return Start(1.5, 100 * MEBIBYTE)
    if function is forms.time_turn:
        milliseconds = 20.0 if subject.dtype == "bfloat16" else 40.0
        if subject.runtime == "compiled":
            milliseconds /= 2
        return [milliseconds, milliseconds * 3]
    if function is forms.peak_bytes:
        return 150 * MEBIBYTE
    if function is forms.size_on_disk:
        return 8 * MEBIBYTE
    return Precision(33.0, 63.0) if function is forms.measure_precision else None


def rows_of(printed: str) -> dict[tuple[str, str], dict[str, str]]:
    """Return the rows of the printed table by form and dtype."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, _, *rows = cells
    named = [dict(zip(header, row, strict=True)) for row in rows]
    return {(row["form"], row["dtype"]): row for row in named}


def test_every_form_is_a_row_with_its_times_of_eager(micro_config, answer_with, capsys):
    answer_with(made_up)
    assert benchmark.main(["--config-file", micro_config, *SMALL]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert list(rows) == [(form.runtime, form.dtype) for form in FORMS]

    compiled = rows["compiled", "bfloat16"]
    assert (compiled["minimum (ms)"], compiled["median (ms)"]) == ("10.0", "20.0")
    assert compiled["of eager"] == "0.250"
    assert (compiled["first start (s)"], compiled["memory (MiB)"]) == ("1.50", "50.0")
    assert compiled["file (MiB)"] == "8.00"
    assert "AP" not in compiled and "remarks" not in compiled
    assert "packages of this project: 100 MiB" in printed


def test_the_forms_take_turns_in_processes_that_stay(micro_config, answer_with):
    log = answer_with(made_up)
    benchmark.main(["--config-file", micro_config, *SMALL])
    turns = [subject for name, subject in log if name == "time_turn"]
    # One round to warm up, and two that count.
    assert turns == [*FORMS, *FORMS, *FORMS]

    # The next starts come last, when the first processes are gone.
    starts = [i for i, (name, _) in enumerate(log) if name == "start_form"]
    assert len(starts) == 2 * len(FORMS)
    assert starts[len(FORMS) :] == list(range(len(log) - len(FORMS), len(log)))


def test_a_form_that_cannot_be_had_is_a_row_with_the_reason(micro_config, answer_with, capsys):
    def answer(function: Callable[..., Any], subject: Any) -> Any:
        if function is forms.write_file and subject.suffix == ".onnx":
            return "failed: ExportError: exporting needs onnx"
        if function is forms.start_form and subject.runtime == "OpenVINO":
            return "failed: ExportError: CPU does not compute in bfloat16; use float32"
        return made_up(function, subject)

    log = answer_with(answer)
    assert benchmark.main(["--config-file", micro_config, *SMALL]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["ONNX Runtime", "float32"]["remarks"].endswith("exporting needs onnx")
    assert "does not compute in bfloat16" in rows["OpenVINO", "bfloat16"]["remarks"]
    assert rows["pt2", "float32"]["remarks"] == "" and rows["pt2", "float32"]["minimum (ms)"]

    # A file is tried once, and what has failed is not measured.
    written = [subject.name for name, subject in log if name == "write_file"]
    operator = ["model_operator.xml", "model_operator_int8.xml"]
    assert written == ["model.onnx", "model.xml", "model_int8.xml", *operator, "model.pt2"]
    assert "OpenVINO" not in {x.runtime for name, x in log if name == "time_turn"}


def test_an_interrupt_keeps_what_was_measured(micro_config, answer_with, tmp_path, capsys):
    turns = []

    def answer(function: Callable[..., Any], subject: Any) -> Any:
        turns.extend([subject] if function is forms.time_turn else [])
        if len(turns) > 2 * len(FORMS):
            raise KeyboardInterrupt
        return made_up(function, subject)

    answer_with(answer)
    words = ["--json", f"{tmp_path}/forms.json"]
    assert benchmark.main(["--config-file", micro_config, *SMALL, *words]) == 130
    assert rows_of(capsys.readouterr().out)["pt2", "float32"]["minimum (ms)"] == "40.0"

    content = json.loads((tmp_path / "forms.json").read_text())
    assert content["forms"][0]["milliseconds"] == [40.0, 120.0]
    assert content["notes"][-1] == "Stopped before all was measured."


def test_ap_comes_with_weights_and_the_images_of_the_test_set(
    micro_config, surface_data, answer_with, tmp_path, monkeypatch, capsys
):
    import torch

    model = benchmark.open_predictor(settings_of(micro_config), dtype="float32", optimize="none")
    torch.save(model.model.state_dict(), tmp_path / "model.pth")
    call = ["--config-file", micro_config, *SMALL, "--weights", f"{tmp_path}/model.pth"]
    answer_with(made_up)
    assert benchmark.main(call) == 0
    row = rows_of(capsys.readouterr().out)["eager", "float32"]
    assert (row["AP"], row["AP50"]) == ("33.0", "63.0")

    monkeypatch.setattr(benchmark, "is_at_hand", lambda metadata: False)
    assert benchmark.main(call) == 0
    printed = capsys.readouterr().out
    assert "AP is left out: the test set of the config is not at hand." in printed
    assert "AP" not in rows_of(printed)["eager", "float32"]


def settings_of(config: str) -> Any:
    return benchmark.make_settings(benchmark.parse_args(["--config-file", config, *SMALL]))


def test_a_form_is_started_timed_and_evaluated(micro_config, surface_data, tmp_path):
    settings = settings_of(micro_config)
    form = FORMS[0]
    start = forms.start_form(settings, form, tmp_path, tmp_path / "cache")
    assert start.seconds > 0
    milliseconds = forms.time_turn(settings, form, tmp_path)
    # A short call is repeated until the turn is over.
    assert len(milliseconds) > 1 and sum(milliseconds[:-1]) < forms.TURN_MS <= sum(milliseconds)

    precision = forms.measure_precision(settings, form, tmp_path)
    assert 0 <= precision.ap <= precision.ap50 <= 100
    predictor = forms.detector_of(settings, form, tmp_path)
    parameters = sum(x.numel() for x in predictor.model.parameters())
    assert forms.size_on_disk(settings, form, tmp_path) >= 4 * parameters


@pytest.mark.parametrize("name", forms.INT8_FILES)
def test_a_missing_int8_file_is_named(micro_config, tmp_path, name):
    remedy = f"DIR/{name} {forms.INT8_FILES[name]} --calibration IMAGES writes it"
    with pytest.raises(forms.ExportError, match=remedy):
        forms.write_file(settings_of(micro_config), tmp_path / name)


@pytest.mark.slow
def test_exported_files_are_written_once_and_detect(micro_config, surface_data, tmp_path):
    settings = settings_of(micro_config)
    for form in FORMS:
        name = form.file
        if name is None or name in forms.INT8_FILES or (tmp_path / name).exists():
            continue
        if name.endswith((".xml", ".onnx")):
            pytest.importorskip("onnxslim")
            pytest.importorskip("openvino")
        forms.write_file(settings, tmp_path / form.file)
        detector = forms.open_form(settings, form, tmp_path)
        assert len(detector(forms.image_in_memory(settings.size))) > 0
        assert forms.size_on_disk(settings, form, tmp_path) > 0
