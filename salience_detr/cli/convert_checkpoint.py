"""Convert a checkpoint into a file with the weights of a Salience DETR alone."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate
from torch import Tensor

from salience_detr.checkpoint import (
    CheckpointError,
    ScoreThresholds,
    convert_reference_checkpoint,
    read_checkpoint,
    save_weights,
)
from salience_detr.checkpoint.averaging import average_states
from salience_detr.checkpoint.backbone_conversion import describe, find_format
from salience_detr.checkpoint.class_names import (
    COCO_CLASSES,
    classes_in,
    name_rows,
    published_names,
)
from salience_detr.checkpoint.files import find_state_dict
from salience_detr.checkpoint.origin import Origin
from salience_detr.checkpoint.reference_conversion import dropped_names, is_reference_checkpoint
from salience_detr.checkpoint.score_thresholds import thresholds_in
from salience_detr.checkpoint.variant_parts import without_training_parts
from salience_detr.cli.arguments import run_program
from salience_detr.cli.flags.convert_checkpoint import parse_args
from salience_detr.config import load_config, to_yaml
from salience_detr.data.classes import ClassList
from salience_detr.model_zoo import list_models
from salience_detr.pretrained import find_origin
from salience_detr.utils.errors import shorten


class Conversion(NamedTuple):
    """Weights of a detector.

    Attributes:
        state: the tensors in this project's names.
        classes: classes of their rows, None if they are unknown.
        thresholds: score thresholds of the classes, None if the checkpoint holds none.
        left_out: names of the tensors that were left out as constants or repetitions.
        training_only: likewise of those that training alone uses.
    """

    state: dict[str, Tensor]
    classes: ClassList | None
    thresholds: ScoreThresholds | None
    left_out: list[str]
    training_only: list[str]


def convert(args: argparse.Namespace) -> Conversion:
    """Return the weights of IN, or their mean with those of other files.

    Raises:
        CheckpointError: see :func:`convert_file` and :func:`average_states`; or classes differ.
    """
    conversion = convert_file(args.input, args)
    if args.average_with:
        conversion = average(conversion, args)

    state = conversion.state
    if args.half:
        state = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
    return conversion._replace(state=state)


def average(conversion: Conversion, args: argparse.Namespace) -> Conversion:
    """Return the mean of the weights of IN, converted already, and of the files beside it.

    Raises:
        CheckpointError: see :func:`convert_file` and :func:`average_states`; or classes differ.
    """
    states = [(args.input, conversion.state)]
    for source in args.average_with:
        other = convert_file(source, args)
        if other.classes != conversion.classes:
            raise CheckpointError(
                f"{source} has the classes {other.classes}, and {args.input} "
                f"{conversion.classes}: their weights have no mean"
            )
        states.append((source, other.state))

    if conversion.thresholds is not None:
        print(f"the score thresholds are those of {args.input}: the mean gets none")
    return conversion._replace(state=average_states(states), thresholds=None)


def convert_file(source: str, args: argparse.Namespace) -> Conversion:
    """Return the weights of a file in this project's names.

    Raises:
        CheckpointError: if the file cannot be read, or is no detector.
    """
    content = read_checkpoint(source)
    thresholds = thresholds_in(content, source)
    if args.raw and content.pop("ema", None) is not None and thresholds is not None:
        print("the score thresholds are those of the EMA: the raw weights get none")
        thresholds = None
    state = dict(find_state_dict(content, source))

    classes = classes_in(content, source)
    left_out: list[str] = []
    if is_reference_checkpoint(state):
        left_out = dropped_names(state)
        state, classes = convert_published(state, all_classes=args.all_classes)
    elif "query_selection.class_head.bias" not in state:
        check_detector(state, source, args)

    training_only = sorted(state.keys() - without_training_parts(state).keys())
    state = without_training_parts(state)
    return Conversion(state, classes, thresholds, left_out, training_only)


def convert_published(
    state: Mapping[str, Tensor], *, all_classes: bool
) -> tuple[dict[str, Tensor], ClassList | None]:
    """Return the weights of a published checkpoint in this project's names, and their classes.

    The file may name its classes; else they are COCO's.

    Raises:
        CheckpointError: see :func:`convert_reference_checkpoint`.
    """
    names = published_names(state)
    if all_classes:
        num_rows = state["transformer.encoder_class_head.bias"].numel()
        classes = name_rows(names, num_rows) if names else None
        return convert_reference_checkpoint(state, category_ids=None), classes

    names = names or COCO_CLASSES
    converted = convert_reference_checkpoint(state, category_ids=tuple(names))
    return converted, ClassList(tuple(names.values()), tuple(names))


def check_detector(state: Mapping[str, Tensor], source: str, args: argparse.Namespace) -> None:
    """Make sure that tensors of unknown names may be written with these names.

    Raises:
        CheckpointError: nothing would change in the file, or it holds a classifier.
    """
    is_classifier = find_format(state) is not None
    if is_classifier or not (args.half or args.raw):
        raise CheckpointError(
            f"{source} looks like {describe(state)}, not a Salience DETR; with --half or --raw "
            "the file of another detector is written with its names unchanged"
        )

    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{source} holds more than tensors: {shorten(sorted(others))}")


def print_summary(conversion: Conversion, output: Path) -> None:
    """Print the numbers of each part of the model, its classes, and what was left out."""
    num_tensors: Counter[str] = Counter()
    num_values: Counter[str] = Counter()
    for name, tensor in conversion.state.items():
        part = name.partition(".")[0]
        num_tensors[part] += 1
        num_values[part] += tensor.numel()

    rows = [(part, num_tensors[part], num_values[part] / 1e6) for part in num_tensors]
    rows.append(("total", num_tensors.total(), num_values.total() / 1e6))
    headers = ("part", "tensors", "values (M)")
    print(tabulate(rows, headers=headers, floatfmt=".2f", tablefmt="github"))

    left_out = conversion.left_out
    if left_out:
        print(f"\nleft out, as constants or repetitions ({len(left_out)}): {', '.join(left_out)}")

    training_only = conversion.training_only
    if training_only:
        print(f"\nleft out, for training only ({len(training_only)}): {', '.join(training_only)}")

    if conversion.classes is None:
        print("\nthe checkpoint does not name its classes, and neither does the new file")
    else:
        print(f"\n{len(conversion.classes)} classes: {conversion.classes}")
    if conversion.thresholds is not None:
        print(f"with the best score thresholds of {conversion.thresholds.source}")
    print(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")


def run(args: argparse.Namespace) -> None:
    """Write the converted weights, and print a summary."""
    conversion = convert(args)
    origin = find_origin(args.input)
    if args.config_file:
        origin = named_origin(args.config_file)

    save_weights(
        conversion.state,
        args.output,
        classes=conversion.classes,
        thresholds=conversion.thresholds,
        origin=origin,
    )
    print_summary(conversion, args.output)
    if args.output.suffix == ".safetensors":
        print_origin(origin)


def named_origin(config_file: str) -> Origin:
    """Return what the metadata say of a config, given by its name or as a file."""
    config = load_config(config_file)
    if config_file in list_models() and not Path(config_file).is_file():
        return Origin(config_name=config_file)
    return Origin(config_yaml=to_yaml(config))


def print_origin(origin: Origin | None) -> None:
    """Print which config the metadata name."""
    if origin is None:
        print("the new file does not name its config: add --config-file NAME or FILE")
    elif origin.config_name:
        print(f"its config: {origin.config_name}")
    else:
        print("its config: written into the new file as a whole")


def main(argv: list[str] | None = None) -> int:
    return run_program(run, parse_args(argv))
