"""Validation part of a training run, drawn from its single annotation file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from omegaconf import DictConfig

from salience_detr.config import ConfigError
from salience_detr.data.coco_format import read_coco
from salience_detr.data.preparation.layouts import Split
from salience_detr.data.preparation.splitting import describe_split, split_coco
from salience_detr.utils.files import write_text

# Folder of the two annotation files, in the output folder of the run.
FOLDER = "split"


def split_for_validation(
    config: DictConfig, args: argparse.Namespace, splits: dict[str, Split]
) -> dict[str, Split]:
    """Split the training data as --val-fraction and --split-by say.

    The parts are written to the output folder, OUTPUT/split/{train,val}.json, so that the saved
    config alone resumes and evaluates. The draw is the same each time.

    Args:
        config: of the run.
        args: of the command line.
        splits: that the flags name; "train" alone.

    Raises:
        ConfigError: the flags do not fit the data, or another run in the output folder.
        DatasetError: the data cannot be split so.
    """
    if args.val_fraction is None:
        raise ConfigError(f"--split-by {args.split_by} goes with --val-fraction: add it")
    if "train" not in splits:
        raise ConfigError(
            "--val-fraction splits the training data: add --data-dir, or --train-json FILE "
            "--train-images DIR"
        )
    if "val" in splits:
        raise ConfigError(
            f"--val-fraction {args.val_fraction:g} splits the training data, but "
            f"{splits['val'].json_file} is there for validation: leave one of the two out"
        )

    source = splits["train"]
    content = read_coco(source.json_file, keep=True)
    parts = split_coco(content, source.json_file, args.val_fraction, args.split_by)
    folder = Path(config.train.output_dir, FOLDER)
    paths = (folder / "train.json", folder / "val.json")
    texts = dict(zip(paths, map(json.dumps, parts), strict=True))

    # Each process comes here, and a resumed run comes again.
    changed = [path for path, text in texts.items() if read_text(path) != text]
    is_new_run = not (getattr(args, "resume", False) or getattr(args, "eval_only", False))
    if changed and changed[0].exists() and not is_new_run:
        raise ConfigError(
            f"{changed[0]} is another split than --val-fraction {args.val_fraction:g} of "
            f"{source.json_file} gives now: give the flags and the data of that run, or another "
            "train.output_dir"
        )

    if changed:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
        print(f"{source.json_file} was split: {describe_split(*parts)}; see {folder}")
    return {path.stem: Split(path, source.image_root) for path in texts}


def read_text(path: Path) -> str | None:
    """Return the content of a file; None if there is none."""
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8")
