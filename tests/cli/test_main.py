"""The console command: its verbs, their help, and mistakes in it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from salience_detr.cli import main as console
from salience_detr.cli.main import VERBS, Program, find_program, main

HEAVY = ("torch", "detectron2", "cv2", "scipy", "matplotlib", "pycocotools")
CLI = Path(console.__file__).parent
ROOT = CLI.parents[1]


def programs() -> list[tuple[str, Program]]:
    found = []
    for verb, by_second in VERBS.items():
        for second, program in by_second.items():
            found.append((f"{verb} {second}".strip(), program))
    return found


def test_verbs_reach_every_program():
    reached = {program.module for _, program in programs()}
    modules = {path.stem for path in CLI.glob("*.py") if "def main(" in path.read_text()}
    assert reached == modules - {"main"}


def test_help_of_every_verb_imports_nothing_heavy_and_names_the_command():
    code = f"""
import contextlib, io, sys
from salience_detr.cli.main import main
for name in {[name for name, _ in programs()]!r}:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    assert output.getvalue().startswith("usage: salience-detr " + name), output.getvalue()[:80]
heavy = set({HEAVY!r}) & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_help_of_every_script_imports_nothing_heavy():
    scripts = [ROOT / "train_net.py", *ROOT.glob("demo/*.py"), *ROOT.glob("tools/*.py")]
    scripts = [str(path) for path in scripts if "run_script" in path.read_text()]
    assert len(scripts) == 18
    code = f"""
import contextlib, io, runpy, sys
for script in {scripts!r}:
    sys.argv = [script, "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert output.getvalue().startswith("usage: "), script
heavy = set({HEAVY!r}) & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_module_is_the_command():
    command = [sys.executable, "-X", "importtime", "-m", "salience_detr", "trian"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "| torch" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: there is no salience-detr trian; did you mean train?")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("prediction", "did you mean predict?"),
        ("xyz", "use one of train, val, predict"),
        ("benchmark opertor", "did you mean operator?"),
        ("convert yolov8", "did you mean yolo?"),
        ("make tea", "use one of surface-defects, demo-inputs"),
    ],
)
def test_a_verb_that_does_not_exist_is_one_line(capsys, line, remedy):
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no salience-detr {line}; {remedy}")
    assert error.count("\n") == 1


def test_words_after_the_verbs_are_the_programs():
    program, name, rest = find_program(["benchmark", "--device", "cpu", "model.num_classes=3"])
    assert program.module == "benchmark" and name == "salience-detr benchmark"
    assert rest == ["--device", "cpu", "model.num_classes=3"]

    # A key=value is no second word.
    assert find_program(["benchmark", "x=1"])[2] == ["x=1"]
    assert find_program(["analyze", "errors", "a.json"])[1:] == (
        "salience-detr analyze errors",
        ["a.json"],
    )


def test_val_evaluates():
    args = VERBS["val"][""].parse_args(
        ["--config-file", "F", "--weights", "W"], "salience-detr val"
    )
    assert args.eval_only and args.weights == "W"


def test_val_has_no_flags_of_training(capsys):
    words = ["--config-file", "F", "--weights", "W"]
    with pytest.raises(SystemExit, match="2"):
        VERBS["val"][""].parse_args([*words, "--patience", "3", "--batch-size", "2"], "val")
    error = capsys.readouterr().err
    assert "--batch-size, --patience is of training, and val only evaluates" in error

    with pytest.raises(SystemExit, match="0"):
        VERBS["val"][""].parse_args(["--help"], "val")
    text = capsys.readouterr().out
    assert "--show-dir" in text and "--patience" not in text and "--lr" not in text


def test_flags_of_training_beside_eval_only_are_named_and_have_no_effect(capsys):
    words = ["--config-file", "F", "--weights", "W", "--eval-only", "--epochs", "3", "--resume"]
    args = VERBS["train"][""].parse_args(words, "train")
    assert args.epochs is None and args.resume is False
    assert "trains nothing and does without --resume, --epochs" in capsys.readouterr().err


def test_without_detectron2_the_remedy_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert main(["check", "--data-dir", "data"]) == 2
    assert "python -m salience_detr install-detectron2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag_module", "names", "module"),
    [
        ("benchmark", ("MODES", "OPERATORS"), "benchmark.measurements"),
        ("train", ("OPTIMIZATIONS",), "modeling.optimization"),
        ("export", ("DEFAULT_OPSET", "LAST_OPSET"), "export.onnx"),
        ("analyze_errors", ("BACKGROUND_IOU",), "evaluation.error_analysis"),
        ("analyze_errors", ("SCORE_THRESHOLD",), "evaluation.comparison"),
        ("evaluate_json", ("SCORE_THRESHOLD",), "evaluation.comparison"),
        ("make_surface_defects", ("SPLITS",), "data.surface.dataset"),
    ],
)
def test_values_that_flags_repeat_are_those_of_the_package(flag_module, names, module):
    flags = import_module(f"salience_detr.cli.flags.{flag_module}")
    package = import_module(f"salience_detr.{module}")
    for name in names:
        assert getattr(flags, name) == getattr(package, name)


def test_choices_that_flags_repeat_are_those_of_the_programs():
    from salience_detr.benchmark.other_detectors import OTHER_DETECTORS
    from salience_detr.cli.benchmark_op import SHAPES
    from salience_detr.cli.flags import benchmark, benchmark_op

    assert tuple(OTHER_DETECTORS) == benchmark.OTHERS
    assert len(SHAPES) == benchmark_op.NUM_SHAPES
