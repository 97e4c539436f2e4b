"""Batch sizes by trial: the largest that fits, its bounds, and the memory that there is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from salience_detr.config import ConfigError, load_config
from salience_detr.engine import batch_size
from salience_detr.engine.batch_size import largest_input, use_batch_size
from salience_detr.utils import process_memory
from salience_detr.utils.process_memory import free_memory, peak_memory


def arguments(size="auto", **others):
    defaults = {"batch_size": size, "resume": False, "num_gpus": 1, "num_machines": 1}
    return SimpleNamespace(**defaults | others)


@pytest.fixture
def config(micro_config, surface_data, tmp_path):
    return load_config(micro_config, [f"train.output_dir={tmp_path}"])


class FakeTrial:
    """Trial of a device that holds so many images."""

    budget = 2**30
    holds = 5

    def __init__(self, config, device, *, num_processes):
        self.tried = []

    def fits(self, image, size):
        return size <= self.holds


@pytest.mark.parametrize(
    ("holds", "processes", "expected", "reason"),
    [
        (5, 1, 4, "the next one does not fit"),
        # Of 12 images, 8 is the largest power of two, or 4 for each of two processes.
        (99, 1, 8, "the most for 12 images"),
        (99, 2, 8, "the most for 12 images"),
        (1, 3, 3, "the next one does not fit"),
    ],
)
def test_the_largest_power_of_two_per_process_is_taken(
    config, monkeypatch, capsys, holds, processes, expected, reason
):
    monkeypatch.setattr(FakeTrial, "holds", holds)
    monkeypatch.setattr(batch_size, "Trial", FakeTrial)
    args = arguments(num_gpus=processes)
    use_batch_size(config, args)

    # The other processes are given the number.
    assert config.dataloader.train.total_batch_size == args.batch_size == expected
    lines = capsys.readouterr().out.splitlines()
    assert f"auto: {expected} images of up to 64x64 in 1.0 GiB" in lines[-2]
    assert reason in lines[-2] and "stays 0.0004, which suits the config's batch of 2" in lines[-1]


def test_one_forward_and_backward_pass_measures(config, monkeypatch, capsys):
    monkeypatch.setattr(batch_size, "LARGEST_BATCH", 2)
    config.train.reference_batch_size = 4
    use_batch_size(config, arguments())
    assert config.dataloader.train.total_batch_size == 2
    assert "learning rate becomes 0.0002 " in capsys.readouterr().out

    # Of a megabyte, the weights and their moments take more.
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 2**20)
    with pytest.raises(ConfigError, match=r"one image of 64x64 needs more than .* free on cpu"):
        use_batch_size(config, arguments())


def test_a_resumed_run_takes_its_number_and_torchrun_is_refused(config, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("dataloader: {train: {total_batch_size: 6}}")
    use_batch_size(config, arguments(resume=True))
    assert config.dataloader.train.total_batch_size == 6

    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="--batch-size auto measures before the processes start"):
        use_batch_size(config, arguments())


def test_the_input_has_the_largest_sides_and_most_boxes():
    class Records:
        """Wide and upright images, of which the second draw is larger, and the end of the run."""

        mapper = SimpleNamespace(end_position=1000)
        records = (
            {"width": 40, "height": 20, "annotations": [{}] * 3},
            {"width": 20, "height": 30},
        )

        def __getitem__(self, item):
            index, position = item
            record = self.records[index]
            height = record["height"] + position % 2
            width = record["width"] + (5 if position >= 1000 else 0)
            return {"image": torch.zeros(3, height, width)}

    image = largest_input(Records())
    assert image["image"].shape == (3, 31, 45) and len(image["instances"]) == 3


def test_the_limit_of_a_container_counts_without_cached_files(tmp_path, monkeypatch):
    whole = free_memory(torch.device("cpu"))
    assert peak_memory() > 2**20 and whole > 0

    monkeypatch.setattr(process_memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert free_memory(torch.device("cpu")) == 550
