"""Paths of checkpoints: files, folders of runs, names of configs, and URLs."""

from __future__ import annotations

from pathlib import Path

from detectron2.utils.file_io import PathManager

from salience_detr.checkpoint.catalog import download
from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.checkpoint.published import RELEASED, SHIPPED, published_weights
from salience_detr.utils.errors import one_line, suggest

# Weights in the folder of a run, the preferred ones first.
RUN_FILES = ("model_best.pth", "model_final.pth")


def local_path(path: str | Path) -> str:
    """Return the local file of a checkpoint.

    Args:
        path: a file; the name of a config whose weights are shipped or released (see
            :mod:`published`); the folder of a run, for its best weights; or a URL, of the web or
            one that detectron2's path manager knows. What is not at hand is downloaded.

    Raises:
        CheckpointError: there is no such file, or it cannot be downloaded.
    """
    if not str(path):
        raise CheckpointError("the path of the weights is empty; name a file, a model or a folder")
    if Path(path).is_file():
        return str(path)

    source = published_weights(str(path)) or str(path)
    if source.startswith(("https://", "http://")):
        return download(source)
    if Path(source).is_dir():
        return file_of_run(Path(source))

    try:
        local = PathManager.get_local_path(source)
    except OSError as error:
        reason = one_line(error)
        raise CheckpointError(f"cannot get the checkpoint {path}: {reason}") from error

    if not Path(local).is_file():
        # What ends as a file is none of the names.
        hint = ""
        if not Path(path).suffix:
            hint = f"; {suggest(str(path), (*SHIPPED, *RELEASED))}"
        raise CheckpointError(f"there is no checkpoint file {path}{hint}")
    return local


def file_of_run(folder: Path) -> str:
    """Return the best weights in the folder of a run.

    Raises:
        CheckpointError: there are none.
    """
    for name in RUN_FILES:
        if (folder / name).is_file():
            return str(folder / name)

    known = " and no ".join(RUN_FILES)
    raise CheckpointError(f"the folder {folder} has no {known}: name a checkpoint file")


def remedy_of_damage(path: str | Path, local: str) -> str:
    """Return what to do about a damaged file; a downloaded one stays in the cache until then."""
    if str(path) == local:
        return "get it again"
    return f"delete {local}, and get it again"
