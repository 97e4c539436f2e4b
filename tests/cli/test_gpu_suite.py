"""The suite for GPU machines: its steps, its limits and what it leaves, with programs that pretend.

By hand, with the real programs on tiny sizes: SUITE_DEVICE=cpu tools/gpu_suite.sh OUT STEP...
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tools" / "gpu_suite.sh"

# Stands for Python: it prints what a program prints that is slow, that fails, or that succeeds.
PROGRAM = """#!/bin/bash
case " $* " in
*benchmark_op.py*bfloat16*)
	printf 'bfloat16 on a GPU, PyTorch 2.11\\n\\n| shape | ms |\\n| --- | --- |\\n'
	printf '\\r 10%%\\r| encoder | 0.3 |\\n'
	exec sleep 100 ;;
*tests/gpu*) echo '3 | failed'; exit 1 ;;
*tests/modeling*) echo 'collecting'; exec sleep 100 ;;
*tools/benchmark.py*)
	while [ "$1" != --markdown ]; do shift; done
	printf '| mode | ms |\\n| --- | --- |\\n| amp | 20 |\\n' >"$2"
	exec sleep 100 ;;
*tests/export*) echo '9 skipped, 3 deselected' ;;
*' -m pip '*) echo "$*" >"$PIP_WORDS" ;;
*' -c import torch'*) echo 'no GPU' ;;
*) echo 'all is well' ;;
esac
"""

# Seconds after which a step is cut that would never end; a busy machine has printed by then.
SHORT = "3"


@pytest.fixture
def suite(tmp_path):
    """Return a function that starts the suite with the pretending programs, and its folder."""
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    out = tmp_path / "out"

    def start(*words, **environment):
        variables = {"PYTHON": str(program), "CUDA_HOME": "/nowhere"}
        variables["PATH"] = "/usr/bin:/bin"
        return subprocess.Popen(
            [str(SUITE), *words],
            env={**os.environ, **variables, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start, out


def finish(process, code):
    """Return what the process has printed at its end."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    return output


def test_a_step_cut_by_its_limit_keeps_its_table(suite):
    start, out = suite
    endless, others = ("operator_bfloat16", "benchmark"), ("build", "sanitizer")
    output = finish(start(str(out), *endless, SUITE_LIMIT=SHORT), 0)
    finish(start(str(out), *others), 0)
    assert f"operator_bfloat16: at most {SHORT} s" in output

    summary = (out / "summary.md").read_text()
    assert f"| operator_bfloat16 | cut after {SHORT} s |" in summary
    assert "\n| shape | ms |\n| --- | --- |\n" in summary and "\n| encoder | 0.3 |\n" in summary
    assert f"| benchmark | cut after {SHORT} s |" in summary and "\n| amp | 20 |\n" in summary
    assert re.search(r"\| build \| ok \| \d+ s of 400 s \| all is well \|", summary)
    assert "| sanitizer | left out | 0 s | compute-sanitizer is neither on the PATH" in summary

    with tarfile.open(out / "logs.tgz") as archive:
        names = archive.getnames()
    assert {f"{name}.log" for name in endless + others} | {"summary.md"} <= set(names)


def test_failures_are_told_and_steps_add_up(suite):
    start, out = suite
    finish(start(str(out), "model_tests"), 1)
    finish(start(str(out), "parity", SUITE_LIMIT=SHORT), 1)
    finish(start(str(out), "export"), 0)

    summary = (out / "summary.md").read_text()
    assert re.search(r"\| model_tests \| failed \(1\) \| \d+ s of 400 s \| 3 / failed \|", summary)
    assert f"| parity | cut after {SHORT} s |" in summary and "| export | all skipped |" in summary


def test_an_interrupt_leaves_the_summary(suite):
    start, out = suite
    process = start(str(out), "operator_bfloat16", "export")
    log = out / "operator_bfloat16.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "encoder" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process, 130)

    summary = (out / "summary.md").read_text()
    assert "| operator_bfloat16 | interrupted |" in summary and "export" not in summary


def test_every_step_has_a_limit_of_at_most_ten_minutes(suite):
    start, _ = suite
    output = finish(start("--list"), 0)
    limits = dict(line.split() for line in output.splitlines())
    assert len(limits) >= 12 and all(0 < int(limit) <= 600 for limit in limits.values())


def test_wheels_of_a_folder_are_installed_aside(suite, tmp_path):
    start, out = suite
    (tmp_path / "wheels").mkdir()
    output = finish(start(str(out), "build", WHEELS=str(tmp_path / "wheels")), 2)
    assert "error: there are no wheels in" in output

    (tmp_path / "wheels" / "some-1-py3-none-any.whl").touch()
    words = {"WHEELS": str(tmp_path / "wheels"), "PIP_WORDS": str(tmp_path / "words")}
    finish(start(str(out), "build", **words), 0)
    installed = (tmp_path / "words").read_text()
    assert "install" in installed and "--no-index" in installed and "some-1-py3" in installed


def test_mistakes_are_one_line(suite):
    start, out = suite
    for words, message in (((str(out), "biuld"), "no step biuld; the steps are build"),
                           (("--steps",), "unknown flag --steps")):  # fmt: skip
        output = finish(start(*words), 2)
        assert message in output and output.count("\n") == 1
