"""Fine-tuning settings in runs of a few steps from the command line."""

from __future__ import annotations

import pytest
import torch

from salience_detr.checkpoint import read_checkpoint
from salience_detr.cli import train as train_net
from salience_detr.config import load_config


def run(config, output, *words):
    return train_net.run(["--config-file", str(config), *words, f"train.output_dir={output}"])


@pytest.fixture
def restored():
    """Give PyTorch its settings back."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


def test_a_run_stops_early_freezes_repeats_and_resumes_as_it_was(
    micro_config, surface_data, tmp_path, capsys, restored
):
    output = tmp_path / "run"
    words = ["--freeze", "backbone", "neck", "--repeat-threshold", "0.6", "--schedule", "cosine"]
    words += ["--patience", "1", "--deterministic", "train.eval_period=1", "train.previews=0"]
    assert run(micro_config, output, *words) == 0

    # AP stays 0: the second evaluation is no better than the first one.
    final = read_checkpoint(output / "model_final.pth")
    assert final["iteration"] == 2
    log = (output / "log.txt").read_text()
    assert "stopped early after 2 iterations: bbox/AP was best after 1 iterations" in log
    assert "of its peak and not at the" in log and "images are repeated: " in log

    # No gradients, no statistics, and no moments of what is frozen.
    assert all(
        value == 0 for name, value in final["model"].items() if name.endswith("batches_tracked")
        and name.startswith("backbone.")
    )  # fmt: skip
    config = load_config(output / "config.yaml")
    assert config.train.freeze == ["backbone", "neck"] and config.train.patience == 1
    states = final["optimizer"]["state"]
    count = sum(len(group["params"]) for group in final["optimizer"]["param_groups"])
    names = [name for name in final["model"] if not name.startswith(("backbone.", "neck."))]
    assert 0 < len(states) <= count < len(names)

    # Another freezing is another run; the same one ends again.
    other = [word for word in words if word != "neck"]
    assert run(micro_config, output, *other, "--resume") == 2
    assert "train.freeze was backbone, neck, is backbone" in capsys.readouterr().err
    assert run(micro_config, output, *words, "--resume", "--lr", "1e-5") == 0
    assert read_checkpoint(output / "model_final.pth")["iteration"] == 2
    log = (output / "log.txt").read_text()
    assert "own learning rates, up to 0.0004, and not with those of the config, up to 1e-05" in log

    # Another run with deterministic algorithms is equal to the bit.
    assert "all operations are deterministic" in log
    assert run(micro_config, tmp_path / "again", *words) == 0
    again = read_checkpoint(tmp_path / "again" / "model_final.pth")
    assert all(torch.equal(value, again["model"][name]) for name, value in final["model"].items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--patience", "0"], "--patience: it is 0, and must be a whole number from 1 on"),
        (["--patience", "2", "train.eval_period=0"], "counts evaluations, but train.eval_period"),
        (["--freeze", "bakbone"], "the model has no part 'bakbone'; it has, for example, backbone"),
        (["--repeat-threshold", "2"], "repeat_threshold is 2.0; it is a part of the images"),
        (["--layer-decay", "0"], "layer_decay is 0.0; it lies between 0 and 1"),
        (["--batch-size", "many"], "--batch-size: it is many, and must be a whole number"),
        (["--schedule", "linear"], "--schedule: invalid choice: 'linear'"),
    ],
)
def test_mistakes_are_one_line(micro_config, surface_data, tmp_path, capsys, words, message):
    try:
        code = run(micro_config, tmp_path / "run", *words)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "\n" not in error.split("error: ")[-1]
