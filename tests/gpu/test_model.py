"""The model on a GPU: training steps, mixed precision, detections and processes, as on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from salience_detr import Predictor
from salience_detr.config import load_config
from salience_detr.engine.compilation import compile_model, distribute, set_memory_format
from salience_detr.engine.launch import any_process
from salience_detr.engine.train import build_ema, build_optimizer
from salience_detr.engine.trainer import Trainer, average_over_processes
from salience_detr.export.verification import compare
from salience_detr.modeling.distributed import mean_over_processes
from tests.fixed_loader import FixedLoader

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
# The noise of denoising would be another one on another device.
NO_NOISE = ("model.denoising.label_noise_prob=0.0", "model.denoising.box_noise_scale=0.0")


@pytest.fixture
def images(make_input):
    """Four images of different sizes, one of them without boxes."""
    return [
        make_input(64, 96, [[4, 4, 40, 30], [50, 8, 90, 60]], [0, 5]),
        make_input(96, 50, [[1, 1, 20, 90]], [2]),
        make_input(40, 64, [], []),
        make_input(64, 64, [[5, 5, 12, 14], [30, 30, 60, 60], [0, 0, 64, 64]], [1, 3, 4]),
    ]


@pytest.fixture
def train(micro_config, images):
    """Return a function that trains for some steps; it returns each step's losses, and the model.

    The model may be wrapped before its first step.
    """

    def run(device, *overrides, steps=2, dtype=torch.float32, wrap=None, batch=images, **options):
        words = [f"train.device={device}", *NO_NOISE, *overrides]
        config = load_config(micro_config, words)
        torch.manual_seed(1)
        model = instantiate(config.model)
        # As initialized, all tokens are nearly equally likely: rounding would choose the queries.
        nn.init.normal_(model.query_selection.class_head.weight)
        model.to(device, dtype)

        set_memory_format(config, model)
        optimizer = build_optimizer(config, model)
        ema = build_ema(config, model)
        compile_model(config, model)
        trainer = Trainer(
            model=wrap(model) if wrap else model,
            data_loader=FixedLoader(batch),
            optimizer=optimizer,
            clip_grad_norm=0.1,
            **options,
        )
        trainer.start_iter = 0

        losses = []
        with EventStorage() as trainer.storage:
            for trainer.iter in range(steps):
                trainer.run_step()
                if ema is not None:
                    ema.update(model, step=trainer.iter)
                latest = trainer.storage.latest()
                losses.append({name: latest[name][0] for name in latest if "loss" in name})
        return losses, model

    return run


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)], ids=["fp64", "fp32"]
)
def test_training_steps_equal_the_cpus(gpu, train, dtype, tolerance):
    expected, expected_model = train(torch.device("cpu"), dtype=dtype)
    found, model = train(gpu, dtype=dtype)
    for losses, expected_losses in zip(found, expected, strict=True):
        assert losses == pytest.approx(expected_losses, rel=tolerance)

    # AdamW's first steps are as large as the learning rate, whatever the gradient.
    weights = dict(model.named_parameters())
    for name, weight in expected_model.named_parameters():
        if weight.grad is not None:
            gradient = weights[name].grad.cpu()
            largest = weight.grad.abs().max().clamp(min=1e-8)
            difference = (gradient - weight.grad).abs().max() / largest
            assert difference < 100 * tolerance, name


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], {"amp_dtype": torch.bfloat16}),
        ([], {"amp_dtype": torch.float16}),
        (["train.channels_last=True", "train.ema.enabled=True"], {"amp_dtype": torch.float16}),
        (["model.encoder.use_checkpoint=True"], {"amp_dtype": torch.bfloat16}),
        (["train.ema.enabled=True"], {"accumulate": 2}),
    ],
    ids=["bf16", "fp16", "fp16, channels last, EMA", "bf16, checkpointing", "accumulate, EMA"],
)
def test_training_steps_of_all_kinds_have_the_losses_of_float32(gpu, train, overrides, options):
    expected, _ = train(torch.device("cpu"), steps=1)
    found, model = train(gpu, *overrides, steps=3, **options)

    # A query that rounding exchanges changes single terms, the sum little.
    assert found[0]["total_loss"] == pytest.approx(expected[0]["total_loss"], rel=0.05)
    assert all(np.isfinite(list(losses.values())).all() for losses in found)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_batch_without_boxes_is_trained(gpu, train, make_input):
    empty = [make_input(64, 96, [], []), make_input(40, 64, [], [])]
    expected, _ = train(torch.device("cpu"), batch=empty)
    found, _ = train(gpu, batch=empty)
    assert found[0] == pytest.approx(expected[0], rel=1e-3, abs=1e-5)


def test_adamw_is_fused_on_the_gpu(gpu, micro_config):
    config = load_config(micro_config)
    optimizer = build_optimizer(config, instantiate(config.model).to(gpu))
    assert optimizer.defaults["fused"] == (True if gpu.type == "cuda" else None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_predictor_detects_what_it_detects_on_the_cpu(gpu, micro_config, dtype):
    predictors = []
    for device, precision in (("cpu", "float32"), (gpu, dtype)):
        torch.manual_seed(1)
        predictors.append(Predictor(micro_config, None, device=str(device), dtype=precision))

    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected, found = (predictor(pixels) for predictor in predictors)
    assert len(found) == len(expected)
    assert found.pred_boxes.tensor.isfinite().all()
    if dtype == "float32":
        assert compare(expected, found).unmatched <= 0.05 * len(expected)


@pytest.fixture
def one_process(gpu):
    """A process group of this process alone, by nccl on a GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    backend = "nccl" if gpu.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_on_one_gpu_trains_as_without(gpu, train, one_process, monkeypatch):
    def wrap(model):
        # One process would not be wrapped.
        with monkeypatch.context() as patch:
            patch.setattr(comm, "get_world_size", lambda: 2)
            return distribute(model)

    expected, expected_model = train(gpu, dtype=torch.float64)
    found, model = train(gpu, dtype=torch.float64, wrap=wrap)
    for losses, expected_losses in zip(found, expected, strict=True):
        assert losses == pytest.approx(expected_losses, rel=1e-7)
    for name, weight in expected_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-7)


def test_what_processes_exchange_goes_through_the_gpu(gpu, one_process, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    counts = mean_over_processes(torch.tensor([4.0, 0.0], device=gpu))
    assert counts.tolist() == [2.0, 0.5]  # sums of 4 and at least 1, over two processes
    assert average_over_processes({"a": 4.0}, gpu) == {"a": 2.0}
    assert any_process(True) and not any_process(False)


def test_torchrun_trains_and_evaluates_in_one_process(gpu, micro_config, surface_data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    program = ["train_net.py", "--config-file", micro_config, "--output", str(tmp_path)]
    settings = ["train.max_iter=4", "train.eval_period=4", "train.amp.enabled=True"]
    words = [*command, *program, f"train.device={gpu.type}", *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert (tmp_path / "model_final.pth").is_file()
    assert '"bbox/AP"' in (tmp_path / "metrics.json").read_text()
