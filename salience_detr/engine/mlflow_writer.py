"""Numbers of a run for MLflow."""

from __future__ import annotations

from pathlib import Path

from detectron2.utils.events import EventWriter, get_event_storage

from salience_detr.config import ConfigError


class MLflowWriter(EventWriter):
    """Losses, learning rate and AP as metrics of an MLflow run, and config.yaml as its artifact.

    A resumed run continues the same run there: its id is kept in the file ``mlflow_id``. The server
    is that of ``MLFLOW_TRACKING_URI``.

    Args:
        output_dir: folder of the run.
        experiment: name of the experiment.
        name: of the run; None lets MLflow choose one.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, output_dir: str, *, experiment: str, name: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError(
                "train.mlflow.enabled needs mlflow: pip install 'salience_detr[mlflow]'"
            ) from error

        self.mlflow = mlflow
        self.last = -1
        mlflow.set_experiment(experiment)

        id_file = Path(output_dir) / "mlflow_id"
        run_id = id_file.read_text() if id_file.is_file() else None
        run = mlflow.start_run(run_id=run_id, run_name=name)
        id_file.write_text(run.info.run_id)
        mlflow.log_artifact(str(Path(output_dir) / "config.yaml"))

    def write(self) -> None:
        latest = get_event_storage().latest()
        steps = sorted({step for _, step in latest.values() if step > self.last})
        for step in steps:
            numbers = {name: value for name, (value, at) in latest.items() if at == step}
            self.mlflow.log_metrics(numbers, step=step)
            self.last = step

    def close(self) -> None:
        self.mlflow.end_run()
