"""detectron2's training samplers in our loader: the same stream, from any iteration on."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import pytest
import torch
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from torch.utils.data import SequentialSampler

from salience_detr.cli import train as train_net
from salience_detr.data import DatasetError
from salience_detr.data.loader import batches, build_train_loader
from salience_detr.data.sampling import SampledBatchSampler

SAMPLERS = "detectron2.data.samplers"
REPEAT_FACTORS = (
    f"{{_target_:{SAMPLERS}.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency,"
    "dataset_dicts:${dataloader.train.dataset},repeat_thresh:0.5}"
)


def records(count):
    # Every third image is upright.
    return [{"file_name": str(i), "width": 4, "height": 5 - i % 3} for i in range(count)]


def number_of(record):
    return int(record["file_name"])


def repeat_sampler():
    factors = torch.tensor([1.0, 2.5, 1.0, 1.0, 3.2, 1.0, 1.0])
    return RepeatFactorTrainingSampler(factors, seed=3)


def first(sampler, count, **kwargs):
    loader = build_train_loader(
        dataset=records(7), mapper=number_of, total_batch_size=2, sampler=sampler, num_workers=0,
        **kwargs,
    )  # fmt: skip
    stream = batches(loader, 0)
    return [next(stream) for _ in range(count)]


def test_batches_hold_what_the_sampler_gives():
    expected = iter(TrainingSampler(7, seed=5))
    loaded = first(TrainingSampler(7, seed=5), 10)
    assert loaded == [[next(expected), next(expected)] for _ in range(10)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrainingSampler(7, seed=1),
        lambda: TrainingSampler(7, shuffle=False, seed=1),
        lambda: RandomSubsetTrainingSampler(7, 0.5, seed_shuffle=1, seed_subset=2),
        repeat_sampler,
    ],
)
@pytest.mark.parametrize("grouping", [False, True])
def test_the_stream_goes_on_in_its_middle(build, grouping):
    def stream(start):
        loader = build_train_loader(
            dataset=records(7), mapper=number_of, total_batch_size=2, sampler=build(),
            num_workers=0, aspect_ratio_grouping=grouping,
        )  # fmt: skip
        loaded = batches(loader, start)
        return [next(loaded) for _ in range(9)]

    assert stream(3)[:6] == stream(0)[3:]


def test_batches_are_of_one_group():
    for batch in first(TrainingSampler(7, seed=1), 20, aspect_ratio_grouping=True):
        assert len({number % 3 == 2 for number in batch}) == 1


def test_the_processes_share_the_stream():
    def positions(rank):
        indices = TrainingSampler(6, seed=1)
        indices._rank, indices._world_size = rank, 2
        sampler = SampledBatchSampler(
            sampler=indices, size=6, batch_size=2, rank=rank, world_size=2
        )
        return [batch for batch, _ in zip(sampler, range(3), strict=False)]

    # Each position in the stream once; batches of both together are its next four records.
    alone = list(zip(range(12), TrainingSampler(6, seed=1), strict=False))
    for ours, theirs, start in zip(positions(0), positions(1), (0, 4, 8), strict=True):
        together = sorted((position, index) for index, position in ours + theirs)
        assert together == alone[start : start + 4]


def test_images_of_rare_classes_are_repeated(caplog):
    # Class 0 is in all of eight images, class 1 in two of them: sqrt(0.81 / 0.25) = 1.8. A crowd
    # of class 2 is nothing to learn.
    content = []
    for number in range(8):
        annotations = [{"category_id": 0}]
        if number in (2, 5):
            annotations.append({"category_id": 1})
        if number == 7:
            annotations.append({"category_id": 2, "iscrowd": 1})
        content.append({**records(8)[number], "annotations": annotations})

    def stream(start, count):
        loader = build_train_loader(
            dataset=content, mapper=number_of, total_batch_size=2, seed=4, num_workers=0,
            repeat_threshold=0.81,
        )  # fmt: skip
        loaded = batches(loader, start)
        return [next(loaded) for _ in range(count)]

    with caplog.at_level("INFO"):
        numbers = list(chain.from_iterable(stream(0, 480)))
    assert "2 of 8 images, up to 1.80 times; an epoch still counts 8 images" in caplog.text
    assert "all repetitions are 1.20 epochs" in caplog.text

    # 100 passes of, on average, 9.6 images.
    counts = [numbers.count(number) for number in range(8)]
    for number, count in enumerate(counts):
        assert count == pytest.approx(180 if number in (2, 5) else 100, abs=15)

    # A resumed run goes on in the middle of the stream.
    assert stream(77, 9) == stream(0, 86)[77:]


def test_two_ways_of_sampling_are_refused():
    with pytest.raises(DatasetError, match=r"a sampler and a repeat_threshold of 0.1"):
        first(TrainingSampler(7), 1, repeat_threshold=0.1)
    with pytest.raises(DatasetError, match=r"repeat_threshold is 1.5; it is a part"):
        first(None, 1, repeat_threshold=1.5)


def test_samplers_that_end_or_are_of_other_data_are_refused():
    with pytest.raises(DatasetError, match="is a SequentialSampler, no endless"):
        first(SequentialSampler(range(7)), 1)
    with pytest.raises(DatasetError, match=r"a TrainingSampler, is for 5 records, .* have 7"):
        first(TrainingSampler(5), 1)
    with pytest.raises(DatasetError, match="is for 5 records"):
        first(RepeatFactorTrainingSampler(torch.ones(5)), 1)
    with pytest.raises(DatasetError, match="is a str, no endless sampler"):
        first("TrainingSampler", 1)


def test_a_missing_argument_is_named(surface_data, micro_config, tmp_path, capsys):
    sampler = f"+dataloader.train.sampler._target_={SAMPLERS}.TrainingSampler"
    words = ["--config-file", micro_config, sampler, f"train.output_dir={tmp_path}"]
    assert train_net.run(words) == 2
    assert "needs size; add +dataloader.train.sampler.size=..." in capsys.readouterr().err


def losses(output):
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.mark.parametrize(
    "sampler",
    [
        # Without a seed, the run's decides.
        f"{{_target_:{SAMPLERS}.TrainingSampler,size:12}}",
        f"{{_target_:{SAMPLERS}.RepeatFactorTrainingSampler,repeat_factors:{REPEAT_FACTORS}}}",
    ],
)
def test_a_run_with_a_sampler_of_detectron2_resumes_exactly(
    surface_data, micro_config, tmp_path, capsys, sampler
):
    whole = tmp_path / "whole"
    words = ["--config-file", micro_config, f"+dataloader.train.sampler={sampler}"]
    assert train_net.run([*words, f"train.output_dir={whole}"]) == 0

    part = tmp_path / "part"
    part.mkdir()
    for name in ("model_0000002.pth", "config.yaml"):
        shutil.copy(whole / name, part)
    (part / "last_checkpoint").write_text("model_0000002.pth")

    # Another sampler would be another order of the data.
    resume = [f"train.output_dir={part}", "--resume"]
    assert train_net.run(["--config-file", micro_config, *resume]) == 2
    assert "sampler was" in capsys.readouterr().err

    assert train_net.run([*words, *resume]) == 0
    expected = {i: loss for i, loss in losses(whole).items() if i >= 2}
    assert losses(part) == expected and len(expected) == 4
