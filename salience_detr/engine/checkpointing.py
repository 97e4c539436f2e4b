"""Checkpoints of a training run, from which it continues exactly."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from salience_detr.checkpoint import CheckpointError, read_checkpoint
from salience_detr.checkpoint.class_names import classes_in, to_entries
from salience_detr.checkpoint.errors import BrokenCheckpointError
from salience_detr.checkpoint.score_thresholds import (
    ScoreThresholds,
    thresholds_in,
    thresholds_to_entries,
)
from salience_detr.data.classes import ClassList, simplify
from salience_detr.engine.resume_checks import DataOrder, check_state
from salience_detr.utils.files import write_text, written_whole

logger = logging.getLogger(__name__)

# The key of the lines of metrics.json that --eval-only wrote, see evaluation_record.py.
EVALUATION = "eval_only"

Checkpoint: TypeAlias = dict[str, Any]  # what a file of a run holds


class TrainingCheckpointer(Checkpointer):
    """Checkpointer of the model and of all that training needs to go on exactly.

    It differs from fvcore's in four ways. A file is complete or not there, because it is written
    aside and renamed. Files are read as plain tensors, so that no code in them runs. A checkpoint
    that lacks something, or does not fit, is an error, and nothing of it is loaded. Of the periodic
    checkpoints the newest are kept, after a resume too. (detectron2's DetectionCheckpointer adds
    the conversion of other projects' weights, which ``salience_detr.checkpoint`` does here.)

    The files are ``model_ITERATION.pth``, ``model_best.pth`` and ``model_final.pth``;
    ``last_checkpoint`` names the one to resume from. Only process 0 writes.

    Best score thresholds of a checkpoint stay in it when a finished run is resumed and saved again.
    They are not handed on to later iterations, whose weights give other scores; nor does a training
    that starts from the weights, maybe for other classes, take them over.

    Args:
        model: whose weights are saved.
        output_dir: folder of the files.
        max_to_keep: number of periodic checkpoints that stay.
        classes: classes of the data set, saved beside the weights; None if they are unknown.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str | Path,
        *,
        max_to_keep: int = 3,
        classes: ClassList | None = None,
        **checkpointables: Any,
    ) -> None:
        is_main = comm.is_main_process()
        super().__init__(model, str(output_dir), save_to_disk=is_main, **checkpointables)
        self.output_dir = Path(output_dir)
        self.max_to_keep = max_to_keep
        self.classes = classes
        self.kept_thresholds: tuple[int, ScoreThresholds] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes; none if they are unknown."""
        return self.classes.names if self.classes is not None else ()

    def save(self, name: str, *, iteration: int, resumable: bool = True) -> None:
        """Write ``name.pth`` after ``iteration`` finished steps.

        Args:
            name: of the file, without its ending.
            iteration: number of finished steps.
            resumable: whether it becomes the checkpoint to resume from.

        Raises:
            OSError: it cannot be written; earlier checkpoints are intact.
        """
        if not self.save_to_disk:
            return

        # Plain tensors, numbers and strings, so that it can be read without running code.
        state = {"model": self.model.state_dict(), "iteration": iteration}
        state |= to_entries(self.classes)
        if self.kept_thresholds is not None and self.kept_thresholds[0] == iteration:
            state |= thresholds_to_entries(self.kept_thresholds[1])
        for key, checkpointable in self.checkpointables.items():
            state[key] = checkpointable.state_dict()

        # An earlier file of this name stays until the new one is complete.
        path = self.output_dir / f"{name}.pth"
        try:
            self.make_way(path)
            with written_whole(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch.save raises either when the disk is full
            raise OSError(
                f"cannot write the checkpoint {path} ({error}); earlier checkpoints are intact: "
                "go on with --resume when it can be written"
            ) from error

        if resumable:
            self.tag_last_checkpoint(path.name)
            self.prune(iteration)
        logger.info("saved %s after %d iterations", path, iteration)

    def make_way(self, path: Path) -> None:
        """Make the output folder if it was deleted, and rename a folder of the file's name."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            renamed = path.with_name(f"{path.name}.folder")
            logger.warning("%s is a folder: it is renamed to %s", path, renamed.name)
            path.rename(renamed)

    def save_periodic(self, iteration: int) -> None:
        """Write the checkpoint of this iteration."""
        self.save(f"model_{iteration:07d}", iteration=iteration)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint to resume from."""
        write_text(self.output_dir / "last_checkpoint", last_filename_basename)

    def prune(self, iteration: int) -> None:
        """Delete all but the newest periodic checkpoints up to ``iteration``.

        Later ones are not this run's: a run that was resumed further back comes to them again.
        """
        own = [path for path in self.periodic_files() if iteration_of(path) <= iteration]
        for path in own[: -self.max_to_keep]:
            path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """Return all checkpoints in the output folder; folders and broken links are none."""
        return [path for path in self.output_dir.glob("model_*.pth") if path.is_file()]

    def periodic_files(self) -> list[Path]:
        """Return the periodic checkpoints, those of the fewest iterations first."""
        periodic = (path for path in self.files() if re.fullmatch(r"model_\d+", path.stem))
        return sorted(periodic, key=iteration_of)

    def check_no_earlier_run(self) -> None:
        """Make sure that no earlier run's files get mixed with those of a new run.

        Raises:
            FileExistsError: the folder holds checkpoints.
        """
        earlier = [*self.output_dir.glob("model_*.pth"), *self.output_dir.glob("model_best.json")]
        if earlier:
            raise FileExistsError(
                f"{self.output_dir} holds checkpoints of an earlier run ({earlier[0].name}, ...); "
                "continue that run with --resume, or set another train.output_dir"
            )

    def resume(self) -> int:
        """Restore the last complete checkpoint.

        Returns:
            The number of finished iterations; 0 if there is no checkpoint.

        Raises:
            CheckpointError: no checkpoint of those that are there can be read, or the one that can
                does not fit the run.
        """
        # Leftovers of a write that was killed.
        for leftover in self.output_dir.glob("*.pth*.tmp"):
            leftover.unlink(missing_ok=True)

        for path in self.output_dir.glob("model_*.pth"):
            if not path.is_file():
                kind = "a folder" if path.is_dir() else "a broken link"
                logger.warning("skipping %s: it is %s", path, kind)

        # A file may be broken where the machine went down: the next one is tried.
        reasons = []
        for path in self.candidates():
            try:
                checkpoint = read_run_checkpoint(path)
                self.check(checkpoint, path, self.checkpointables)
            except BrokenCheckpointError as error:
                logger.warning("skipping %s", error)
                reasons.append(str(error))
                continue

            self.restore(checkpoint, path, self.checkpointables)
            return int(checkpoint["iteration"])

        if reasons:
            raise CheckpointError(
                f"none of the checkpoints in {self.output_dir} can be read ({reasons[0]}); start "
                "without --resume in another train.output_dir"
            )
        logger.info("no checkpoint in %s: starting from the beginning", self.output_dir)
        return 0

    def candidates(self) -> list[Path]:
        """Return the checkpoints, the one to resume from first, then the newest."""
        paths = [*self.output_dir.glob("model_final.pth"), *self.periodic_files()]

        paths = [path for path in paths if path.is_file()]
        paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)

        # The last one saved need not be the newest: files may have been copied.
        pointer = self.output_dir / "last_checkpoint"
        if not pointer.is_file():
            return paths

        last = self.output_dir / pointer.read_text(errors="replace").strip()
        if last not in paths:
            logger.warning("%s names no checkpoint: taking the newest", pointer)
            return paths
        paths.remove(last)
        return [last, *paths]

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return bool(self.candidates())

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint to resume from, "" if there is none."""
        return str(next(iter(self.candidates()), ""))

    def load(self, path: str, checkpointables: list[str] | None = None) -> Checkpoint:
        """Load a checkpoint as fvcore's ``Checkpointer.load``, but all of it or nothing.

        Args:
            path: of the file; "" loads nothing.
            checkpointables: names of what to load beside the model; None loads everything.

        Returns:
            What else the file holds, such as the iteration.

        Raises:
            CheckpointError: something is missing, or does not fit; nothing is loaded then.
        """
        if not path:
            return {}

        names = list(self.checkpointables) if checkpointables is None else checkpointables
        wanted = {name: self.checkpointables[name] for name in names}
        checkpoint = self._load_file(path)
        self.check(checkpoint, Path(path), wanted)
        self.restore(checkpoint, Path(path), wanted)
        loaded = {"model", *self.checkpointables}
        return {name: value for name, value in checkpoint.items() if name not in loaded}

    def check(self, checkpoint: Checkpoint, path: Path, wanted: Mapping[str, Any]) -> None:
        """Check the model's state and those of other objects, before any of them is loaded.

        Args:
            checkpoint: content of the file.
            path: of the file.
            wanted: objects beside the model, by name.

        Raises:
            BrokenCheckpointError: no run can have written it.
            CheckpointError: something is missing, or does not fit this run.
        """
        # An EMA that is switched on or off is what most likely differs.
        missing = sorted({"model", "iteration", *wanted} - checkpoint.keys())
        if wanted and "ema" in checkpoint and "ema" not in self.checkpointables:
            raise CheckpointError(f"{path} holds an EMA: resume with train.ema.enabled=True")
        if missing == ["ema"]:
            raise CheckpointError(f"{path} holds no EMA: resume with train.ema.enabled=False")
        if missing:
            raise CheckpointError(f"{path} cannot be resumed: it holds no {', '.join(missing)}")

        self.check_classes(checkpoint, path)
        iteration = checkpoint["iteration"]
        if type(iteration) is not int or iteration < 0:
            raise BrokenCheckpointError(f"{path}: its iteration is {iteration!r:.60}")

        for key, target in {"model": self.model, **wanted}.items():
            try:
                check_state(target, checkpoint[key], source=f"the {key} in {path}")
                if isinstance(target, DataOrder):
                    target.load_state_dict(checkpoint[key])  # only compares
            except ValueError as error:
                raise misfit(key, path, error) from error

    def restore(self, checkpoint: Checkpoint, path: Path, wanted: Mapping[str, Any]) -> None:
        """Load what :meth:`check` has checked.

        Raises:
            CheckpointError: it does not fit this run.
        """
        self.model.load_state_dict(checkpoint["model"])
        for key, target in wanted.items():
            try:
                target.load_state_dict(checkpoint[key])
            except (ValueError, KeyError, RuntimeError) as error:
                raise misfit(key, path, error) from error
        logger.info("resuming from %s after %d iterations", path, checkpoint["iteration"])

        thresholds = thresholds_in(checkpoint, path)
        if thresholds is not None:
            self.kept_thresholds = (checkpoint["iteration"], thresholds)
            logger.info(
                "its best score thresholds stay in checkpoints of iteration %d only; store those "
                "of later weights with analyze errors --save-thresholds",
                checkpoint["iteration"],
            )

    def check_classes(self, checkpoint: Checkpoint, path: Path) -> None:
        """Make sure that the data set has the classes that the run was started with.

        Raises:
            CheckpointError: the names, or their order, have changed.
        """
        saved = classes_in(checkpoint, path)
        if saved is None or self.classes is None:
            return

        before = list(map(simplify, saved.names))
        now = list(map(simplify, self.classes.names))
        if before != now:
            raise CheckpointError(
                f"{path} was trained for the classes {saved}, but the data set has {self.classes}; "
                f"resume with the data set of that time, or start another run from it by --weights "
                f"{path} and another train.output_dir"
            )

        if saved.category_ids not in (None, self.classes.category_ids):
            logger.warning("the category ids of the data set have changed since %s was saved", path)

    def _load_file(self, f: str) -> Checkpoint:
        return read_checkpoint(f)


def misfit(key: str, path: Path, error: Exception) -> CheckpointError:
    """Return the error of a state that is of another run."""
    return CheckpointError(
        f"the {key} in {path} does not fit this run ({error}); resume with its config, "
        "or start another run from it by train.init_checkpoint and train.output_dir"
    )


def read_run_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of a run.

    Raises:
        BrokenCheckpointError: it cannot be read.
    """
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        raise BrokenCheckpointError(str(error)) from error


def iteration_of(path: Path) -> int:
    """Return the iteration in the name of a periodic checkpoint."""
    return int(path.stem.removeprefix("model_"))


def cut_metrics(path: Path, iteration: int) -> None:
    """Drop the lines of metrics.json that a resumed run writes again, and half-written ones.

    Args:
        path: of the file, which need not exist.
        iteration: first one that is written again.
    """
    if not path.is_file():
        return

    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            # Evaluations by --eval-only are of no step of the run.
            is_earlier = EVALUATION in record or record["iteration"] < iteration
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # half-written

        if is_earlier:
            kept.append(line + "\n")

    write_text(path, "".join(kept))
