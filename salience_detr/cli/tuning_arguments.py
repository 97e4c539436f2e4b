"""Flags of fine-tuning; importing them imports no PyTorch."""

from __future__ import annotations

import argparse

AUTO = "auto"


def add_tuning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`salience_detr.engine.tuning.use_tuning` reads."""
    group = parser.add_argument_group("fine-tuning (docs/training.md)")
    add = group.add_argument

    batch_help = "images per iteration, of all processes together; auto: as many as memory holds"
    add("--batch-size", type=batch_size, metavar="N", help=batch_help)
    patience_help = "end after N evaluations without a better train.best_metric"
    add("--patience", type=whole_number, metavar="N", help=patience_help)
    schedule_help = "course of the learning rate"
    add("--schedule", choices=("step", "cosine", "flat-cosine"), help=schedule_help)

    freeze_help = "parts of the model that are not trained, such as: backbone neck"
    add("--freeze", nargs="+", metavar="NAME", help=freeze_help)
    decay_help = "layers of the backbone learn at F times the rate of the next one, such as 0.8"
    add("--layer-decay", type=float, metavar="F", help=decay_help)
    repeat_help = "repeat images of classes that are in less than this part of the images: 0.1"
    add("--repeat-threshold", type=float, metavar="T", help=repeat_help)
    deterministic_help = "deterministic algorithms, which may be slower; names what has none"
    add("--deterministic", action="store_true", help=deterministic_help)


def whole_number(word: str) -> int:
    """Convert a word to a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"it is {word}, and must be a whole number from 1 on")
    return int(word)


def batch_size(word: str) -> int | str:
    """Convert a word to a batch size, or leave "auto" as it is.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if word == AUTO:
        return word
    try:
        return whole_number(word)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or auto") from error
