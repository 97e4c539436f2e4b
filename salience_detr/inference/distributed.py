"""Detection by the processes of torchrun.

Each process detects on a part of the inputs, and the first one merges the results.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.utils import comm

from salience_detr.inference.detection_run import DetectionRun, Summary
from salience_detr.inference.live import LiveSource
from salience_detr.inference.result_files import merge_csv, merge_json

TIMEOUT = timedelta(days=30)  # one process may have far more to do than another


class LostProcessError(ConnectionError):
    """Another process ended before the results were merged."""


@contextmanager
def join_torchrun() -> Iterator[None]:
    """Join the process group of torchrun, if it started this process, for detectron2's ``comm``.

    Each process gets its own GPU, or its part of the cores. Unlike in training, gloo does all the
    communication, since only results are exchanged.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "LOCAL_RANK" not in os.environ:
        yield
        return

    # Without a GPU, as many threads as cores in each process would slow down all of them.
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    else:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))

    torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def run_distributed(run: DetectionRun, *, live: LiveSource | None = None) -> Summary | None:
    """Detect on this process's part of the inputs, and merge the results in the first process.

    Args:
        run: run of this process; its output paths name the inputs of all processes.
        live: a camera or stream, see :meth:`DetectionRun.run`.

    Returns:
        The summary of all processes; None in all but the first.

    Raises:
        OSError: the results cannot be written.
        LostProcessError: another process is gone; the parts of the results stay.
    """
    # The processes take turns in the list, since neighboring inputs often need similar time.
    sources = list(run.outputs)
    files = run.files
    with files:
        run.run(sources[comm.get_rank() :: comm.get_world_size()], live=live)
    if comm.get_world_size() == 1:
        return run.summary

    try:
        own_parts = (files.json_part, files.csv_part, files.labels_part)
        gathered = comm.gather((run.summary, *own_parts))
    except RuntimeError as error:  # gloo lost a connection
        parts = [str(part) for part in own_parts if part]
        raise LostProcessError(
            "another process has ended, so the results are not merged; those of this process "
            f"stay in {' and '.join(parts) or run.folder.root}"
        ) from error
    if not comm.is_main_process():
        return None

    # Each input is in one part only; the merged files have the order of the inputs.
    summaries, json_parts, csv_parts, labels_parts = zip(*gathered, strict=True)
    order = {str(source): place for place, source in enumerate(sources)}
    if files.json_path:
        merge_json(json_parts, files.json_path, files.classes, order)
    if files.csv_path:
        merge_csv(csv_parts, files.csv_path, order)
    if files.labels_path:
        order_of_names = {files.names[source]: place for source, place in order.items()}
        merge_json(labels_parts, files.labels_path, files.classes, order_of_names)

    # Parts are deleted last: an error above must not lose them.
    for part in filter(None, json_parts + csv_parts + labels_parts):
        part.unlink()
    return merge_summaries(summaries, sources)


def merge_summaries(summaries: Sequence[Summary], sources: Sequence[Path]) -> Summary:
    """Add up the summaries of all processes, with messages in the order of the inputs."""
    failures = ChainMap(*(summary.failures for summary in summaries))
    warnings = ChainMap(*(summary.warnings for summary in summaries))
    other_codecs = ChainMap(*(summary.other_codecs for summary in summaries))
    return Summary(
        num_images=sum(summary.num_images for summary in summaries),
        num_detections=sum(summary.num_detections for summary in summaries),
        num_completed=sum(summary.num_completed for summary in summaries),
        failures={source: failures[source] for source in sources if source in failures},
        warnings={source: warnings[source] for source in sources if source in warnings},
        other_codecs=dict(sorted(other_codecs.items())),
        ending=max(summary.ending for summary in summaries),
    )
