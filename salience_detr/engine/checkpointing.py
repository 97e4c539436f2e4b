"""Training checkpoints that are complete or not there: written aside, then renamed."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn

from salience_detr.checkpoint import CheckpointError, load_state_dict_strictly, read_checkpoint
from salience_detr.utils.files import written_whole

logger = logging.getLogger(__name__)


class TrainingCheckpointer:
    """Saves and restores the model and everything with a ``state_dict`` that training needs to go on exactly.

    Files are ``model_ITERATION.pth`` (of which the newest ``max_to_keep`` stay), ``model_best.pth`` and
    ``model_final.pth``; ``last_checkpoint`` names the one to resume from. Only process 0 writes.
    The names of the classes are kept beside the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str | Path,
        *,
        max_to_keep: int = 3,
        class_names: Sequence[str] = (),
        **stateful: Any,
    ) -> None:
        self.model = model
        self.output_dir = Path(output_dir)
        self.max_to_keep = max_to_keep
        self.class_names = list(class_names)
        self.stateful = stateful

    def save(self, name: str, *, iteration: int, resumable: bool = True) -> None:
        """Write ``name.pth`` after ``iteration`` finished steps; with ``resumable`` it becomes the last checkpoint."""
        if not comm.is_main_process():
            return
        path = self.output_dir / f"{name}.pth"
        state = {key: value.state_dict() for key, value in self.stateful.items()}
        named = {"class_names": self.class_names} if self.class_names else {}
        write_atomically(
            {"model": self.model.state_dict(), "iteration": iteration, **named, **state}, path
        )
        if resumable:
            pointer = self.output_dir / "last_checkpoint"
            with written_whole(pointer) as temporary:
                temporary.write_text(path.name)
            self.prune(iteration)
        logger.info("saved %s after %d iterations", path, iteration)

    def save_periodic(self, iteration: int) -> None:
        """Write the checkpoint of this iteration."""
        self.save(f"model_{iteration:07d}", iteration=iteration)

    def start_afresh(self) -> None:
        """Make sure that no earlier run's files get mixed with those of a new run.

        Raises:
            FileExistsError: the folder holds checkpoints.
        """
        named = [
            path
            for name in ("model_final.pth", "model_best.*")
            for path in self.output_dir.glob(name)
        ]
        earlier = [*self.periodic_files(), *named]
        if earlier:
            raise FileExistsError(
                f"{self.output_dir} holds {len(earlier)} checkpoint files of an earlier run ({earlier[0].name}, ...); "
                "continue that run with --resume, or set another train.output_dir"
            )

    def prune(self, iteration: int) -> None:
        """Delete all but the newest periodic checkpoints up to ``iteration``.

        Later ones are not this run's: a run that was resumed further back comes to them again.
        """
        own = [path for path in self.periodic_files() if iteration_of(path) <= iteration]
        for path in own[: -self.max_to_keep]:
            path.unlink(missing_ok=True)

    def periodic_files(self) -> list[Path]:
        """Periodic checkpoints, those of the fewest iterations first."""
        found = (
            path
            for path in self.output_dir.glob("model_*.pth")
            if re.fullmatch(r"model_\d+", path.stem)
        )
        return sorted(found, key=iteration_of)

    def bytes_on_disk(self) -> int:
        """What checkpoints take already; a run that goes on writes over them or deletes them."""
        return sum(path.stat().st_size for path in self.output_dir.glob("model_*.pth"))

    def resume(self) -> int:
        """Restore the last complete checkpoint.

        Returns:
            The number of finished iterations; 0 if there is no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but none that can be read, or they do not fit the model.
        """
        for leftover in self.output_dir.glob("*.pth.tmp"):
            leftover.unlink(missing_ok=True)  # of a write that was killed
        pointer = self.output_dir / "last_checkpoint"
        candidates = [*self.output_dir.glob("model_final.pth"), *self.periodic_files()]
        candidates.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        if pointer.is_file():
            named = self.output_dir / pointer.read_text(errors="replace").strip()
            if named in candidates:
                candidates = [named, *(path for path in candidates if path != named)]
            else:
                logger.warning("%s names no checkpoint: taking the newest", pointer)
        for path in candidates:
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                logger.warning("passing over %s", error)
                continue
            self.restore(state, path)
            return int(state["iteration"])
        if candidates:
            raise CheckpointError(
                f"none of the checkpoints in {self.output_dir} can be read; start without --resume"
            )
        logger.info("no checkpoint in %s: starting from the beginning", self.output_dir)
        return 0

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Load the model and all that was saved beside it."""
        missing = sorted({"model", "iteration", *self.stateful} - state.keys())
        if missing == ["ema"]:
            raise CheckpointError(
                f"{path} holds no average of the weights: resume with train.ema.enabled=False"
            )
        if missing:
            raise CheckpointError(
                f"{path} cannot be resumed from: it holds no {', '.join(missing)}"
            )
        if "ema" in state and "ema" not in self.stateful:
            raise CheckpointError(
                f"{path} holds an average of the weights: resume with train.ema.enabled=True"
            )
        load_state_dict_strictly(self.model, state["model"], source=str(path))
        for key, value in self.stateful.items():
            try:
                value.load_state_dict(state[key])
            except (ValueError, KeyError, RuntimeError) as error:
                raise CheckpointError(
                    f"the {key} in {path} does not fit this run ({error}); resume with the config of the run, or start "
                    f"a new one from these weights: train.init_checkpoint={path} and another train.output_dir"
                ) from error
        logger.info("resuming from %s after %d iterations", path, state["iteration"])


def iteration_of(path: Path) -> int:
    """Of a periodic checkpoint, by its name."""
    return int(path.stem.removeprefix("model_"))


class LossNormalizer:
    """What detectron2's dense detectors keep between their steps, but not in their state, from the first one on."""

    def __init__(self, model: DenseDetector) -> None:
        self.model = model

    def state_dict(self) -> dict[str, float]:
        value = getattr(self.model, "loss_normalizer", None)
        return {} if value is None else {"loss_normalizer": float(value)}

    def load_state_dict(self, saved: dict[str, float]) -> None:
        vars(self.model).update(saved)


class DataOrder:
    """What the order of the data depends on: a run that is resumed with another one would not be the same run."""

    def __init__(
        self, *, seed: int, total_batch_size: int, num_images: int, grouped: bool = False
    ) -> None:
        self.values = {
            "train.seed": seed,
            "total_batch_size": total_batch_size,
            "number of images": num_images,
            "aspect_ratio_grouping": int(grouped),
        }

    def state_dict(self) -> dict[str, int]:
        return self.values

    def load_state_dict(self, saved: dict[str, int]) -> None:
        """Compare.

        Raises:
            ValueError: naming what differs, with both values.
        """
        differing = [
            f"{key} was {saved.get(key)}, is {value}"
            for key, value in self.values.items()
            if saved.get(key) != value
        ]
        if differing:
            raise ValueError("; ".join(differing))


def cut_metrics(path: Path, iteration: int) -> None:
    """Drop the lines of metrics.json from ``iteration`` on, which a resumed run writes again, and half-written ones."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            is_earlier = json.loads(line)["iteration"] < iteration
        except (ValueError, KeyError, TypeError):
            continue
        if is_earlier:
            kept.append(line + "\n")
    with written_whole(path) as temporary:
        temporary.write_text("".join(kept))


def write_atomically(state: dict[str, Any], path: Path) -> None:
    """``torch.save``, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is intact.
    """
    try:
        with written_whole(path) as temporary:
            torch.save(state, temporary)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write the checkpoint {path} ({error.strerror}); earlier checkpoints are intact",
        ) from error
    except RuntimeError as error:  # what torch.save raises when the disk is full
        raise OSError(
            f"cannot write the checkpoint {path} ({error}); earlier checkpoints are intact"
        ) from error
