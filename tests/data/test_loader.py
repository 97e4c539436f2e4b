"""The training stream, and what happens when a worker dies."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import time

import numpy as np
import pytest

from salience_detr.data.loader import (
    DataWorkerError,
    StreamBatchSampler,
    WatchedLoader,
    batches,
    build_test_loader,
    build_train_loader,
)


def records(count):
    return [{"file_name": f"{i}.jpg", "width": 4, "height": 3} for i in range(count)]


def kill_at_seven(record):
    if record["file_name"] == "7.jpg":
        os.kill(os.getpid(), signal.SIGKILL)
    return record["file_name"]


def name_of(record):
    return record["file_name"]


def first(loader, count, start=0):
    stream = batches(loader, start)
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_names_its_image(workers):
    loader = build_train_loader(
        dataset=records(10), mapper=kill_at_seven, total_batch_size=2, num_workers=workers
    )
    with pytest.raises(DataWorkerError, match=r"died while it read 7\.jpg .*--resume"):
        first(loader, 6)


def test_a_worker_that_dies_in_between_costs_no_step():
    loader = build_train_loader(
        dataset=records(10), mapper=name_of, total_batch_size=1, num_workers=2
    )
    stream = batches(loader, 0)
    next(stream)
    (child, *_) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(1)  # nothing is raised here, where a step would be computed
    with pytest.raises(DataWorkerError, match=r"a data worker died .*--resume"):
        for _ in range(20):
            next(stream)


def test_workers_leave_the_signals_of_a_launcher_to_the_main_process():
    loader = build_train_loader(
        dataset=records(10), mapper=name_of, total_batch_size=1, num_workers=1
    )
    stream = batches(loader, 0)
    next(stream)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT"):
        subprocess.run(
            ["kill", f"-{name}", str(worker.pid)], check=True
        )  # from a process that is not its parent
    assert len([next(stream) for _ in range(8)]) == 8
    worker.terminate()  # by its parent
    worker.join(10)
    assert worker.exitcode == 0


def test_a_worker_that_dies_in_an_evaluation_names_its_image():
    loader = WatchedLoader(
        build_test_loader(dataset=records(10), mapper=kill_at_seven, num_workers=1)
    )
    assert len(loader) == 10
    with pytest.raises(DataWorkerError, match=r"died while it read 7\.jpg"):
        list(loader)
    plain = WatchedLoader(build_test_loader(dataset=records(3), mapper=name_of))
    assert list(plain) == [["0.jpg"], ["1.jpg"], ["2.jpg"]]


def test_the_stream_goes_on_where_it_is_told_to():
    loader = build_train_loader(
        dataset=records(10), mapper=name_of, total_batch_size=3, num_workers=0
    )
    assert first(loader, 3, start=4) == first(loader, 7)[4:]


@pytest.mark.parametrize("size", [5, 24, 37, 100])
def test_grouped_batches_hold_each_record_once_an_epoch_and_mostly_one_shape(size):
    groups = np.arange(size) % 3 == 0
    sampler = StreamBatchSampler(size=size, total_batch_size=8, seed=1, groups=groups)
    stream = [index for batch in itertools.islice(sampler, size) for index, _ in batch]
    for epoch in range(8):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    mixed = [
        len({bool(groups[i]) for i in stream[at : at + 8]}) == 2 for at in range(0, 8 * size, 8)
    ]
    # At the end of each of the 8 epochs what is left over of both shapes fills up to two batches.
    assert sum(mixed) <= 2 * 8
    plain = StreamBatchSampler(size=size, total_batch_size=8, seed=1)
    assert stream != [index for batch in itertools.islice(plain, size) for index, _ in batch]


def test_the_grouped_stream_does_not_depend_on_the_processes():
    options = {"size": 30, "total_batch_size": 6, "seed": 2, "groups": np.arange(30) < 11}
    whole = list(itertools.islice(StreamBatchSampler(**options), 12))
    halves = [
        itertools.islice(StreamBatchSampler(**options, rank=i, world_size=2), 12) for i in (0, 1)
    ]
    assert whole == [a + b for a, b in zip(*halves, strict=True)]
