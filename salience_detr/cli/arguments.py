"""Command lines of the programs: parser, shared flags, errors in one line, and exit codes."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from salience_detr.utils.errors import print_error, tolerate_names

Number = TypeVar("Number", int, float)

LARGEST_SEED = 2**32 - 1  # of NumPy
OPTIMIZATIONS = ("none", "fused", "compiled")  # those of modeling/, which takes long to import
INTERRUPTED = "interrupted: the results until then are written"


class Parser(argparse.ArgumentParser):
    """Parser of a program's command line, with the flags that programs share.

    A description keeps its line breaks, and an error is one line.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.refuse_empty(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def refuse_empty(self, words: Sequence[str]) -> None:
        """End with an error if a flag has an empty value, which as a path is this folder."""
        for previous, word in zip(["", *words], words, strict=False):
            flag, equals, value = word.partition("=")
            if word == "" and previous.startswith("--"):
                flag = previous
            elif not (flag.startswith("--") and equals and not value):
                continue
            self.error(f"{flag} is given an empty word; is a variable of the shell not set?")

    def add_config(
        self,
        *,
        help: str = "a LazyConfig file, or the name of one in configs/",
        required: bool = True,
        **options: Any,
    ) -> None:
        """Add --config-file, with the options of ``add_argument``, and the config's overrides."""
        add = self.add_argument
        add("--config-file", metavar="FILE", help=help, required=required, **options)
        add("opts", nargs="*", metavar="key=value", help="overrides of the config")
        self.add_trust()

    def add_trust(self) -> None:
        """Add --trust-config, of every program that loads a config."""
        trust_help = "let a .yaml config call whatever it names; a .py config is code anyway"
        self.add_argument("--trust-config", action="store_true", help=trust_help)

    def add_detector(self, **options: Any) -> None:
        """Add what a detector is loaded from: config (see above), weights and device."""
        config_help = "LazyConfig file or name (default: what the weights name)"
        self.add_config(required=False, help=config_help, **options)
        add = self.add_argument
        weights_help = "checkpoint, exported model, or name of a model with weights"
        add("--weights", required=True, metavar="FILE", help=weights_help)
        add("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
        self.add_image_size()

    def add_augmentation(self) -> None:
        """Add --augmentation, of the programs that use training images."""
        names_help = "of the training images: detr, ssd, mosaic, ... (docs/training.md lists them)"
        self.add_argument("--augmentation", metavar="NAME", help=names_help)

    def add_optimize(self, **options: Any) -> None:
        """Add --optimize, of the programs that detect with a checkpoint's model."""
        choice_help = "fused folds constants, compiled is faster after a minute (default: fused)"
        options = {"choices": OPTIMIZATIONS, "default": "fused", "help": choice_help} | options
        self.add_argument("--optimize", **options)

    def add_image_size(self) -> None:
        """Add --image-size, of every program that resizes images."""
        size_help = "shorter side of the resized images in pixels (default: the config's)"
        self.add_argument("--image-size", type=number(int, 1), metavar="N", help=size_help)

    def add_run(self) -> None:
        """Add the flags of keys of a run's config, which ``engine/run_flags.py`` reads."""
        add = self.add_argument
        add("--output", metavar="DIR", help="folder of the run: train.output_dir")
        add("--device", help="cpu, cuda, ...: train.device")
        # At a rate of 0 a run would learn nothing, and not say so.
        add("--lr", type=number(float, 1e-12), metavar="X", help="learning rate: optimizer.lr")
        seed = number(int, 0, LARGEST_SEED)
        add("--seed", type=seed, metavar="N", help="of all that is random: train.seed")
        self.add_image_size()

    def add_size(self) -> None:
        """Add --image-size and --size, of the images that a model is measured on."""
        add = self.add_argument
        side_help = "shorter side of the images, the longer one as COCO's limit (default: 800)"
        add("--image-size", type=coco_size, dest="size", metavar="N", help=side_help)
        both: dict[str, Any] = {"nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
        add("--size", type=number(int, 1), help="or both sides", **both)
        self.set_defaults(size=(800, 1333))

    def add_data(self) -> None:
        """Add the flags of own data, which ``engine/own_data.py`` reads."""
        add = self.add_splits()
        drop_help = "leave out categories that have no box in either split"
        add("--drop-empty-categories", action="store_true", help=drop_help)
        epochs_help = "passes over the data (default: the config's)"
        add("--epochs", type=float, metavar="N", help=epochs_help)

    def add_splits(self) -> Callable[..., argparse.Action]:
        """Add the flags that name own data, and return the function that adds more of them."""
        add = self.add_argument_group("own data").add_argument
        dir_help = "folder of a data set (COCO, YOLO, Pascal VOC), or YOLO's data.yaml"
        add("--data-dir", metavar="DIR", help=dir_help)

        # Or each file and folder by itself; these win over the folder of both.
        for split, purpose in (("train", "to train on"), ("val", "to evaluate on")):
            add(f"--{split}-json", metavar="FILE", help=f"annotations {purpose}")
            add(f"--{split}-images", metavar="DIR", help="folder of their images")

        fraction_help = "draw this part of the training images for validation, such as 0.2"
        add("--val-fraction", type=float, metavar="F", help=fraction_help)
        split_help = (
            "with --val-fraction: images stay together whose names have an equal first group"
        )
        add("--split-by", metavar="REGEX", help=split_help)
        return add

    def hide(self, names: Sequence[str]) -> None:
        """Leave flags, by the names of their values, out of the help."""
        for action in self._actions:
            if action.dest in names:
                action.help = argparse.SUPPRESS

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line whose overrides may stand anywhere, after a list of paths too."""
        words = sys.argv[1:] if argv is None else argv
        self.refuse_empty(words)
        overrides = []
        others = []

        # argparse would add an override to the list before it.
        for previous, word in zip(["", *words], words, strict=False):
            flag = self._option_string_actions.get(previous)
            is_value = flag is not None and flag.nargs is None
            if is_override(word) and not is_value:
                overrides.append(word)
            else:
                others.append(word)

        args = self.parse_intermixed_args(others)
        args.opts += overrides
        return args


def is_override(word: str) -> bool:
    """Return whether a word of a command line is key=value rather than a flag or a path."""
    key, equals, _ = word.partition("=")
    is_key = equals and "/" not in key and not key.startswith("-")
    return bool(is_key) and not os.path.exists(word)


def number(
    kind: Callable[[str], Number], least: float, largest: float = math.inf
) -> Callable[[str], Number]:
    """Return the type of a flag, for argparse, that is a number between two limits."""

    def convert(word: str) -> Number:
        value = kind(word)

        if not least <= value <= largest:
            limits = f"between {least} and {largest}"
            if largest == math.inf:
                limits = f"at least {least}"
            raise argparse.ArgumentTypeError(f"it is {word}, and must be {limits}")
        if value == math.inf:
            raise argparse.ArgumentTypeError(f"it is {word}, and must be finite")
        return value

    # argparse names it where the word is no number.
    convert.__name__ = kind.__name__
    return convert


def coco_size(word: str) -> tuple[int, int]:
    """Return (height, width) of the largest image of a shorter side, as 800 x 1333 is COCO's."""
    side = number(int, 1)(word)
    return side, round(side * 1333 / 800)


def user_errors() -> tuple[type[Exception], ...]:
    """Return the types of the errors that a user can cause.

    ConfigError, DatasetError, ExportError and ResultsError are ValueErrors. ImportErrors name a
    package that is not installed.
    """
    # Seconds to import, which --help does not need.
    from salience_detr.checkpoint import CheckpointError
    from salience_detr.data import DataWorkerError, ImageReadError

    package_errors = (CheckpointError, DataWorkerError, ImageReadError)
    return (*package_errors, ImportError, OSError, ValueError)


def score_threshold(word: str) -> float | str:
    """Return the value of --score-threshold, a number or "best".

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        return word if word == "best" else float(word)
    except ValueError as error:
        message = f"it is {word}, and must be a number from 0 to 1, or best"
        raise argparse.ArgumentTypeError(message) from error


def run_program(
    program: Callable[[argparse.Namespace], int | None], args: argparse.Namespace
) -> int:
    """Run a program and return its exit code, 0 for None.

    It is 2 after an error of the user, which is printed in one line, and 130 after Ctrl-C.
    """
    tolerate_names([sys.stdout, sys.stderr])
    try:
        return program(args) or 0
    except user_errors() as error:
        print_error(error)
        return 2
    except RecursionError as error:
        print_error(ValueError(f"an input file is nested too deeply ({error})"))
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def print_skipped(messages: Sequence[str], noun: str = "inputs") -> None:
    """Print on stderr what was skipped, if anything was."""
    if messages:
        print(f"{len(messages)} {noun} were skipped:", *messages, sep="\n  ", file=sys.stderr)
