"""Writers of the numbers of a run: console, metrics.json, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from salience_detr.config import ConfigError
from salience_detr.engine.duration import RunClock, duration_text
from salience_detr.engine.mlflow_writer import MLflowWriter
from salience_detr.engine.run_folder import is_gone

logger = logging.getLogger(__name__)


def build_writers(output_dir: str, start: int, mlflow: Mapping[str, Any]) -> list[EventWriter]:
    """Return the writers of this process to files: all of them in process 0, else none.

    Args:
        output_dir: folder of the run.
        start: first iteration; what TensorBoard has of later ones, from before a resume, is hidden.
        mlflow: ``train.mlflow`` of the config; a config of an earlier version has none.
    """
    if not comm.is_main_process():
        return []

    writers: list[EventWriter] = [
        MetricsWriter(str(Path(output_dir) / "metrics.json")),
        TensorBoardWriter(str(output_dir), purge_step=start),
    ]
    settings = dict(mlflow)
    if settings.pop("enabled", False):
        writers.append(MLflowWriter(output_dir, **settings))
    return writers


class MetricsWriter(JSONWriter):
    """metrics.json: a line of numbers for each iteration that is logged, and one per evaluation.

    detectron2's writes nothing of an iteration that it has written before. Here the results of an
    evaluation may follow, for the numbers of the step are written before its checkpoint.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.written: dict[str, int] = {}  # last iteration of each number

    def write(self) -> None:
        lines: defaultdict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self.written.get(name, -1):
                lines[iteration][name] = value
                self.written[name] = iteration

        for iteration, numbers in sorted(lines.items()):
            record = {**numbers, "iteration": iteration}
            self._file_handle.write(json.dumps(record, sort_keys=True) + "\n")
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())


class TensorBoardWriter(TensorboardXWriter):
    """TensorBoard's file of a run; a folder that is gone is no error of its own.

    The hook that ends such a run saves its state first, and says what happened.
    """

    def __init__(self, output_dir: str, **settings: object) -> None:
        super().__init__(output_dir, **settings)
        self.output_dir = output_dir

    def write(self) -> None:
        with self.errors_of_a_folder_that_exists():
            super().write()

    def close(self) -> None:
        with self.errors_of_a_folder_that_exists():
            super().close()

    @contextmanager
    def errors_of_a_folder_that_exists(self) -> Iterator[None]:
        """Pass over an OSError inside the block if the folder is gone."""
        try:
            yield
        except OSError:
            if not is_gone(self.output_dir):
                raise


class ConsoleWriter(EventWriter):
    """Log of one line per period: progress, ETA, losses in groups, speed, memory.

    detectron2's CommonMetricPrinter lists every loss, of which there are more than thirty here.
    """

    def __init__(self, clock: RunClock) -> None:
        self.clock = clock
        self.written = -1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest()
        _, iteration = latest.get("total_loss", (0.0, -1))
        if iteration <= self.written:
            return  # the end of training asks once more
        self.written = iteration
        finished = iteration + 1

        # The windows of the medians are shorter at the beginning.
        smooth = {name: storage.history(name).median(20) for name in latest}
        eta = duration_text(self.clock.remaining_seconds(finished))

        groups = []
        for name, value in smooth.items():
            if name.startswith("loss_groups/"):
                groups.append(f"{name.removeprefix('loss_groups/')} {value:.3f}")

        parts = [
            f"{finished}/{self.clock.max_iter}",
            f"eta {eta}",
            f"loss {smooth['total_loss']:.3f} ({'  '.join(groups)})",
            f"grad {smooth.get('grad_norm', 0.0):.2f}",
            f"lr {latest.get('lr', (0.0, 0))[0]:.2e}",
            f"{smooth.get('samples_per_second', 0.0):.2f} images/s",
            f"data {smooth.get('data_time', 0.0):.3f} s",
        ]
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        logger.info("  ".join(parts))


@contextmanager
def wandb_run(output_dir: str, *, enabled: bool, **settings: object) -> Iterator[None]:
    """Send what TensorBoard gets inside the block to Weights & Biases as well.

    A resumed run continues the same run there: its id is kept in the file ``wandb_id``.

    Args:
        output_dir: folder of the run.
        enabled: False does nothing; only process 0 does something.
        settings: ``project``, ``name`` and whatever else ``wandb.init`` takes.

    Raises:
        ConfigError: the package is not installed.
    """
    if not enabled or not comm.is_main_process():
        yield
        return

    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "train.wandb.enabled needs the package wandb: pip install wandb, or set it to False"
        ) from error

    id_file = Path(output_dir) / "wandb_id"
    run_id = id_file.read_text() if id_file.is_file() else None
    run = wandb.init(dir=output_dir, id=run_id, resume="allow", sync_tensorboard=True, **settings)
    id_file.write_text(run.id)
    try:
        yield
    finally:
        run.finish()
