"""The model on a simulated CUDA device: no mix of devices, and no wait of the host but the known.

The work itself is in checks.py, which runs in processes of its own: ``stub.c`` is preloaded there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTED_TORCH = "2.15"  # the simulation uses internals of PyTorch

# Waits of the micro model for two images, and operators of its forward and backward pass. Lower
# them with each one that goes; they never rise.
# Of the evaluation: two NMS, two sets of boxes with area, the largest number of selected tokens.
EVALUATION_WAITS = 5
# Of a step: two NMS, the number of selected tokens, normalizers, matching costs, and the losses.
TRAINING_WAITS = 6
# With gradient scaling also whether a gradient overflowed, and the scale.
SCALED_TRAINING_WAITS = 8
PREDICTION_WAITS = 8
TRAINING_OPERATORS = 1879

# The same of the ResNet-50 model by the number of images: of evaluation 2 for each and 1, of
# training one NMS for each and 4. Operators of a pass with two images, and of each one more.
RESNET_EVALUATION_WAITS = {2: 5, 8: 17}
RESNET_TRAINING_WAITS = {2: 6, 8: 12}
RESNET_TRAINING_OPERATORS = 4282
OPERATORS_PER_IMAGE = 20

FAST_CHECKS = ["evaluation", "training", "training_fp16", "planted_tensor"]
SLOW_CHECKS = [
    "evaluation_bf16",
    "evaluation_fp16",
    "prediction",
    "prediction_fp16",
    "training_bf16",
    "training_accumulated",
    "training_channels_last",
    "training_ema",
    "training_without_boxes",
]


@pytest.fixture(scope="module")
def run_checks(tmp_path_factory):
    """Return a function that runs checks by their names and returns the result of each."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of the CUDA library")
    if torch.version.cuda is None:
        pytest.skip("needs a PyTorch with CUDA; this one is for the CPU only")
    if not torch.__version__.startswith(f"{TESTED_TORCH}."):
        pytest.skip(f"needs PyTorch {TESTED_TORCH}, whose internals it uses")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the stub would take its place")

    stub = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    build = [compiler, "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*build, HERE / "stub.c", "-o", stub], check=True)

    environment = os.environ | {
        "LD_PRELOAD": str(stub),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def run(names, *options):
        command = [sys.executable, HERE / "checks.py", *options, *names]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-3000:]
        results = [json.loads(line) for line in finished.stdout.splitlines()]
        return {result.pop("check"): result for result in results}

    return run


@pytest.fixture(scope="module")
def results(run_checks):
    return run_checks(FAST_CHECKS)


@pytest.mark.parametrize("check", ["evaluation", "training"])
def test_it_computes_what_the_cpu_computes(results, check):
    assert results[check]["difference"] < 1e-5


def test_the_losses_of_mixed_precision_are_near_those_of_float32(results):
    assert results["training_fp16"]["difference"] < 0.1


@pytest.mark.parametrize(
    ("check", "budget"),
    [
        ("evaluation", EVALUATION_WAITS),
        ("training", TRAINING_WAITS),
        ("training_fp16", SCALED_TRAINING_WAITS),
    ],
)
def test_the_host_waits_no_more_than_it_must(results, check, budget):
    assert results[check]["waits"] <= budget


def test_a_step_launches_no_more_operators_than_known(results):
    assert results["training"]["operators"] <= TRAINING_OPERATORS


def test_a_cpu_tensor_in_a_stage_is_caught(results):
    error = results["planted_tensor"]["error"]
    assert "a CPU tensor" in error and "ms_deform_attn.py" in error


@pytest.mark.slow
def test_every_way_to_run_it_works(run_checks):
    results = run_checks(SLOW_CHECKS)

    assert results["prediction"]["difference"] < 1e-5
    assert results["prediction"]["waits"] <= PREDICTION_WAITS
    for name in ("training_channels_last", "training_ema", "training_without_boxes"):
        assert results[name]["difference"] < 1e-5, name
        assert results[name]["waits"] <= TRAINING_WAITS, name
    for name in ("training_bf16", "training_accumulated"):
        assert results[name]["difference"] < 0.1, name


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [2, 8])
def test_the_budgets_of_the_resnet_50_model(run_checks, num_images):
    config = str(ROOT / "configs" / "salience_detr_r50_4scale_12ep.py")
    options = ["--config", config, "--images", str(num_images), "--size", "64"]
    results = run_checks(["evaluation", "training"], *options)

    assert results["evaluation"]["waits"] <= RESNET_EVALUATION_WAITS[num_images]
    assert results["training"]["waits"] <= RESNET_TRAINING_WAITS[num_images]

    more_images = num_images - 2
    operators = RESNET_TRAINING_OPERATORS + more_images * OPERATORS_PER_IMAGE
    assert results["training"]["operators"] <= operators


@pytest.mark.slow
def test_changes_from_later_papers_add_no_wait_but_that_of_a_second_matching(run_checks):
    checks = ["evaluation", "training", "training_fp16", "training_without_boxes"]
    results = run_checks(checks, "--config", str(ROOT / "tests" / "configs" / "variants.py"))

    assert results["evaluation"]["waits"] <= EVALUATION_WAITS
    for name in ("training", "training_without_boxes"):
        assert results[name]["waits"] <= TRAINING_WAITS + 1, name  # the hybrid queries are matched
        assert results[name]["difference"] < 1e-5, name
    assert results["training_fp16"]["waits"] <= SCALED_TRAINING_WAITS + 1
