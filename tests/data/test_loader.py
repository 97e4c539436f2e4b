"""The training stream, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal

import pytest

from salience_detr.data.loader import DataWorkerError, batches, build_train_loader


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
def test_a_worker_that_dies_names_its_picture(workers):
    loader = build_train_loader(dataset=records(10), mapper=kill_at_seven, total_batch_size=2, num_workers=workers)
    with pytest.raises(DataWorkerError, match=r"died while it read 7\.jpg .*--resume"):
        first(loader, 6)


def test_the_stream_goes_on_where_it_is_told_to():
    loader = build_train_loader(dataset=records(10), mapper=name_of, total_batch_size=3, num_workers=0)
    assert first(loader, 3, start=4) == first(loader, 7)[4:]
