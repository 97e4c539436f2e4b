"""Classes of a model and of data sets that it is evaluated on, compared by name."""

from __future__ import annotations

from collections.abc import Sequence

from salience_detr.data.classes import ClassList, ClassNameError, match_classes, unmatched_names
from salience_detr.data.coco_format import DatasetError
from salience_detr.utils.errors import shorten


def find_classes(data: ClassList, known: Sequence[str]) -> list[int | None]:
    """Return the place of each class of a data set among other names, None where it is not there.

    Raises:
        DatasetError: names differ in upper and lower case only.
    """
    try:
        return match_classes(data, ClassList(tuple(known)))
    except ClassNameError as error:
        raise DatasetError(f"{data.source}: {error}") from error


def check_known(known: Sequence[str], data: ClassList, source: str) -> None:
    """Make sure that all classes of a data set are among those of a model.

    Args:
        known: names of the model's classes.
        data: classes of the data set to evaluate on.
        source: what the model's classes are of, for the message.

    Raises:
        DatasetError: some are not.
    """
    unknown = unmatched_names(data, find_classes(data, known))
    if unknown:
        raise DatasetError(
            f"{data.source} has categories that {source} lacks: {data.describe(unknown)} (it has "
            f"{shorten(known)}); rename or remove them in the one, or add them to the other; "
            "--drop-empty-categories leaves out those that have no box in either"
        )


def check_splits(train: ClassList, val: ClassList) -> None:
    """Make sure that a model trained on one data set can be evaluated on another one by name.

    The other one may have fewer classes.

    Raises:
        DatasetError: it has classes that the first one lacks, or other ids for the same names.
    """
    check_known(train.names, val, train.source)
    if train.category_ids is None or val.category_ids is None:
        return

    moved = []
    for i, place in enumerate(find_classes(val, train.names)):
        assert place is not None
        train_id = train.category_ids[place]
        val_id = val.category_ids[i]
        if train_id != val_id:
            moved.append(f"{val.names[i]!r} has {train_id} and {val_id}")
    if moved:
        raise DatasetError(
            f"{train.source} and {val.source} have different ids for the same categories, "
            f"{moved[0]} ({len(moved)} differ); give each name the same id in both files"
        )


def class_map(known: Sequence[str], data: ClassList) -> list[int] | None:
    """Return the class in a data set of each class of a model, by name.

    Returns:
        -1 for classes that the data set lacks; None if all classes are the same.
    """
    places = find_classes(data, known)
    if places == list(range(len(known))):
        return None
    index = {place: i for i, place in enumerate(places)}
    return [index.get(i, -1) for i in range(len(known))]


def describe_difference(known: Sequence[str], data: ClassList) -> str | None:
    """Return a line on how a data set is evaluated whose classes are not the model's, else None."""
    if class_map(known, data) is None:
        return None
    if len(data.names) < len(known):
        return (
            f"{data.source} has {len(data.names)} of the {len(known)} classes "
            f"({data.describe(data.names)}): evaluated by name, AP is over these"
        )
    return f"{data.source} has the same classes in another order: evaluated by name"


def map_in_order(num_classes: int, data: ClassList) -> list[int] | None:
    """Return the class in a data set of each class of a model, in order, whatever their names are.

    Returns:
        -1 for classes beyond those of the data set; None if there are as many.
    """
    if num_classes == len(data):
        return None
    return [i if i < len(data) else -1 for i in range(num_classes)]


def describe_numbers(num_classes: int, data: ClassList) -> str | None:
    """Return a line on how a data set of another number of classes is evaluated, else None."""
    if num_classes == len(data):
        return None

    line = f"{data.source} has {len(data)} classes, the model {num_classes}: compared in order"
    if num_classes < len(data):
        line += f"; never detected are {data.describe(data.names[num_classes:])}"
    return line
