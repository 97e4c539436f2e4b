"""Work that the processes of torchrun share out among themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from salience_detr.inference.detection_run import Ending
from salience_detr.inference.records import Journal, Recorder, Results, replay

T = TypeVar("T")

GRACE = 2.0  # seconds for the others to end, when one is gone and torchrun stops them all
PATIENCE = timedelta(days=30)  # some have far more to do than others


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: number of this one.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """What this process has to do of a list: every ``count``-th."""
        return list(items[self.rank :: self.count])

    def highest(self, number: int) -> int | None:
        """The highest number of all processes, when all have come here; None if one of them is gone."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number)
        try:
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        except RuntimeError:  # gloo lost a connection
            return None
        return int(numbers)

    def agree(self, number: int) -> int:
        """The same, or this process's own number if one of them is gone, which then tells by itself."""
        highest = self.highest(number)
        return number if highest is None else highest


@contextmanager
def started_by_torchrun() -> Iterator[Processes]:
    """The processes that torchrun started, each with its part of the GPUs or of the cores; one where it did not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "LOCAL_RANK" not in os.environ:
        yield Processes()
        return
    local_rank, local_count = (
        int(os.environ["LOCAL_RANK"]),
        int(os.environ.get("LOCAL_WORLD_SIZE", count)),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_count))
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def record_together(
    work: Callable[[Recorder], Ending], results: Results, folder: Path, processes: Processes
) -> Ending:
    """Work, and write the results; of several processes the first writes those of all.

    Each of them keeps a journal in the folder, so that what it found outlives it. If one is gone, the first one or
    another, the quickest of the rest writes what all have found until then.

    Args:
        work: detects on this process's part of the inputs.
        results: of all.
        folder: that all processes see.
        processes: this one and the others.

    Returns:
        How it ended: the worst of all processes; if one of them is gone, as interrupted.

    Raises:
        OSError: the results cannot be written.
    """
    if processes.count == 1:
        with results:
            return work(results)
    journals = [folder / f".journal_{rank}.jsonl" for rank in range(processes.count)]
    claim = folder / ".journal_claim"
    if processes.is_first:
        for path in [*journals, claim]:  # left by a run that was killed
            path.unlink(missing_ok=True)
    processes.highest(0)
    with closing(Journal(journals[processes.rank])) as journal:
        ending = work(journal)
    highest = processes.highest(ending)
    if highest is None:
        time.sleep(GRACE)
    if processes.is_first if highest is not None else is_first_to_make(claim):
        with results:
            replay([path for path in journals if path.is_file()], results)
        results.notes += [
            f"what process {i} found is missing" for i, x in enumerate(journals) if not x.is_file()
        ]
        for path in [*journals, claim]:
            path.unlink(missing_ok=True)
    return Ending.INTERRUPTED if highest is None else Ending(highest)


def is_first_to_make(path: Path) -> bool:
    """Make a file, and whether no other process had done so."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
