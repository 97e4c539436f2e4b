"""Numbers of a run for MLflow."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from salience_detr.config import ConfigError
from salience_detr.utils.errors import one_line

logger = logging.getLogger(__name__)


class MLflowWriter(EventWriter):
    """Losses, learning rate and AP as metrics of an MLflow run, and config.yaml as its artifact.

    A resumed run continues the same run there: its id is kept in the file ``mlflow_id``. The server
    is that of ``MLFLOW_TRACKING_URI``. What it does not take later is a warning, and the training
    goes on.

    Args:
        output_dir: folder of the run.
        experiment: name of the experiment.
        name: of the run; None lets MLflow choose one.

    Raises:
        ConfigError: the package is not installed, or the server does not answer.
    """

    def __init__(self, output_dir: str, *, experiment: str, name: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            remedy = "pip install 'salience_detr[mlflow]'"
            raise ConfigError(f"train.mlflow.enabled needs the package mlflow: {remedy}") from error

        self.mlflow = mlflow
        self.last = -1
        id_file = Path(output_dir) / "mlflow_id"
        run_id = id_file.read_text() if id_file.is_file() else None
        try:
            mlflow.set_experiment(experiment)
            run = mlflow.start_run(run_id=run_id, run_name=name)
            mlflow.log_artifact(str(Path(output_dir) / "config.yaml"))
        except mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"train.mlflow: MLflow says: {one_line(error)}") from error
        id_file.write_text(run.info.run_id)

    def write(self) -> None:
        latest = get_event_storage().latest()
        for step in sorted({at for _, at in latest.values() if at > self.last}):
            # MLflow takes some characters only, which names of classes need not have.
            numbers = {}
            for name, (value, at) in latest.items():
                if at == step:
                    numbers[re.sub(r"[^\w.:/ -]", "_", name)] = value

            self.last = step
            try:
                self.mlflow.log_metrics(numbers, step=step)
            except self.mlflow.exceptions.MlflowException as error:
                logger.warning(
                    "MLflow has not got the numbers of step %d: %s", step, one_line(error)
                )

    def close(self) -> None:
        self.mlflow.end_run()
