"""Class rows of weights, put into the order of a data set's classes by their names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from salience_detr.checkpoint.errors import CheckpointError
from salience_detr.data.classes import ClassList, ClassNameError, match_classes, unmatched_names
from salience_detr.utils.errors import shorten

logger = logging.getLogger(__name__)

# Tensors with a row for each class: Salience DETR's, and those of detectron2's RetinaNet and FCOS,
# which have rows of all classes for each anchor.
CLASS_ROWS = re.compile(
    r"(query_selection|hybrid_queries)\.class_head\..*|decoder\.(class|one_to_many)_heads\..*"
    r"|denoising\.label_encoder\.weight"
)
ANCHOR_ROWS = re.compile(r"head\.cls_score\..*")

REMEDY = (
    "use data with the classes of the weights (train_net.py leaves out those without boxes with "
    "--drop-empty-categories), or take the rows in their order with "
    "--ignore-class-names (in Python: ignore_class_names=True)"
)

# Row in the file of each of the model's classes; None where the file has none.
Places = Sequence[int | None]


class ClassRows:
    """Tensors with rows for the classes, of a file and of a model.

    Args:
        state: state dict of the file, in this project's names.
        own: state dict of the model.
        num_classes: number of classes of the model, None if it does not say it.

    Attributes:
        names: names of the tensors; empty where it is unknown which they are.
        num_file: number of classes of the file, 0 if it is unknown.
        num_own: number of classes of the model, 0 if it is unknown.
    """

    def __init__(
        self, state: Mapping[str, Tensor], own: Mapping[str, Tensor], num_classes: int | None
    ) -> None:
        self.state = state
        self.own = own

        # Tensors that differ in more than their rows are left for the strict loading to report.
        self.names = []
        for name in sorted(state.keys() & own.keys()):
            has_rows = CLASS_ROWS.fullmatch(name) or ANCHOR_ROWS.fullmatch(name)
            if not has_rows or not isinstance(state[name], Tensor):
                continue
            if state[name].ndim and state[name].shape[1:] == own[name].shape[1:]:
                self.names.append(name)

        self.num_anchors = 1
        self.num_file = 0
        self.num_own = num_classes or 0
        if not self.names:
            return

        first = self.names[0]
        if ANCHOR_ROWS.fullmatch(first) and num_classes:
            self.num_anchors = len(own[first]) // num_classes
        self.num_own = len(own[first]) // self.num_anchors
        self.num_file = len(state[first]) // self.num_anchors

    def take(self, places: Places) -> dict[str, Tensor]:
        """Return the state dict of the file with the rows of the model's classes.

        Classes that the file does not have keep the model's own rows.
        """
        rows = []
        file_rows = []
        for row, place in enumerate(places):
            if place is not None:
                rows.append(row)
                file_rows.append(place)

        adapted = {}
        for name in self.names:
            theirs = self.state[name]
            ours = self.own[name].clone()
            num_theirs = self.num_anchors * self.num_file
            num_ours = self.num_anchors * self.num_own

            # (anchors, classes, ...)
            source = theirs[:num_theirs].unflatten(0, (self.num_anchors, self.num_file))
            target = ours[:num_ours].unflatten(0, (self.num_anchors, self.num_own))
            target[:, rows] = source[:, file_rows].to(target)

            # Rows after those of the classes, such as one of "no object", have the same meaning.
            if len(theirs) - num_theirs == len(ours) - num_ours:
                ours[num_ours:] = theirs[num_theirs:]
            adapted[name] = ours
        return {**self.state, **adapted}


def rows_to_train(
    rows: ClassRows, file: ClassList | None, data: ClassList | None, *, source: str
) -> Mapping[str, Tensor]:
    """Return the state dict that a training starts from: rows of classes with the same name.

    The rows of other classes start afresh. Without names on both sides, all rows are taken in
    order if there are as many, and otherwise start afresh.

    Args:
        rows: class rows of the file and of the model.
        file: classes of the file, None if it does not name them.
        data: classes of the data set, None if they are unknown.
        source: name of the file in messages.

    Raises:
        CheckpointError: names are there several times and cannot be matched.
    """
    if file is None or data is None or (rows.names and len(data) != rows.num_own):
        return rows_in_order(rows, file, data, source)

    places = find_places(data, file, source)
    if places == list(range(len(file))):
        return rows.state
    if not rows.names:
        logger.warning(
            "%s was trained for other classes (%s) than those of the data set (%s); its weights "
            "are taken as they are, since the rows of the classes are unknown",
            source,
            file,
            data,
        )
        return rows.state

    fresh = unmatched_names(data, places)
    kept = [name for name, place in zip(data.names, places, strict=True) if place is not None]
    if not fresh and len(data) == len(file):
        logger.warning("%s: %s", source, describe_order(data))
    elif not kept:
        logger.warning(
            "%s: %s, and no name is in both: all class rows start with random weights (%s)",
            source,
            describe_numbers(rows),
            ", ".join(rows.names),
        )
    else:
        outcome = f"kept the rows of {len(kept)} with the same name: {shorten(kept)}"
        if fresh:
            outcome += f"; these start with random weights: {shorten(fresh)}"
        logger.warning("%s: %s; %s", source, describe_numbers(rows), outcome)
    return rows.take(places)


def rows_in_order(
    rows: ClassRows, file: ClassList | None, data: ClassList | None, source: str
) -> Mapping[str, Tensor]:
    """Return the state dict that a training starts from where names cannot be compared.

    All rows are taken if there are as many as in the model, and otherwise start afresh.
    """
    if rows.names and rows.num_file != rows.num_own:
        fresh = ", ".join(rows.names)
        message = "%s: %s; these start with random weights: %s"
        logger.warning(message, source, describe_numbers(rows), fresh)
        return rows.take([None] * rows.num_own)

    if file is None:
        report_nameless(rows, data, source)
    else:
        logger.warning("%s: its class rows are taken in order: %s", source, file)
    return rows.state


def describe_numbers(rows: ClassRows) -> str:
    """Return the numbers of classes of a file and of a model, for messages."""
    return f"{rows.num_file} classes in the file, {rows.num_own} in the model"


def rows_to_predict(
    rows: ClassRows, file: ClassList | None, data: ClassList | None, *, source: str
) -> tuple[Mapping[str, Tensor], ClassList | None]:
    """Return the state dict to predict a data set's classes with, and the classes of its rows.

    Rows are put into the data set's order. Of more classes than the data set has, those that it
    has are taken, unless the model has as many as the file.

    Args:
        rows: class rows of the file and of the model.
        file: classes of the file, None if it does not name them.
        data: classes of the data set, None if they are unknown.
        source: name of the file in messages.

    Raises:
        CheckpointError: the file lacks classes of the data set, or names cannot be matched.
    """
    if file is None:
        check_numbers(rows, data, source)
        report_nameless(rows, data, source)
        return rows.state, data
    if data is None:
        return rows.state, file

    places = find_places(data, file, source)
    missing = unmatched_names(data, places)
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the data set's {len(data)} classes: "
            f"{shorten(missing)}; its classes are {file}; {REMEDY}"
        )

    if places == list(range(len(file))):
        report_ids(file, data, places, source)
        return rows.state, data
    if not rows.names:
        raise CheckpointError(
            f"{source} has the classes {file}, the data set {data}, and it is unknown which of its "
            f"rows belong to them; give the data set the same categories in the same order, or "
            f"{REMEDY}"
        )

    # The strict loading reports a model that has as many classes as neither.
    if rows.num_own == len(data) == len(file):
        logger.warning("%s: %s", source, describe_order(data))
    elif rows.num_own == len(data):
        taken = f"took the rows of the data set's {len(data)} classes of {len(file)}"
        logger.warning("%s: %s: %s", source, taken, data)
    else:
        found = f"the data set has {len(data)} of its {len(file)} classes ({data})"
        logger.warning("%s: %s; it detects all of them", source, found)
        report_ids(file, data, places, source, used="those of the weights")
        return rows.state, file

    report_ids(file, data, places, source)
    return rows.take(places), data


def find_places(data: ClassList, file: ClassList, source: str) -> list[int | None]:
    """Return the row in the file of each class of the data set, None where it has none.

    Raises:
        CheckpointError: names are there several times and cannot be matched.
    """
    try:
        return match_classes(data, file)
    except ClassNameError as error:
        raise CheckpointError(f"{source} and the data set: {error}") from error


def describe_order(data: ClassList) -> str:
    """Return a message that rows were put into the order of the data set."""
    return f"its class rows are put into the order of the data set: {data}"


def check_names(rows: ClassRows, file: ClassList | None, source: str) -> None:
    """Raise CheckpointError if a file does not have as many names as class rows."""
    if file is not None and rows.names and len(file) != rows.num_file:
        raise CheckpointError(
            f"{source} has {len(file)} class names ({file}) for {rows.num_file} class rows; save "
            "it again with its state dict alone, or with right names"
        )


def check_numbers(rows: ClassRows, data: ClassList | None, source: str) -> None:
    """Raise CheckpointError if rows that cannot be matched by name are not those of the data.

    The strict loading reports a model that has another number of classes than both.
    """
    if data is not None and len(data) == rows.num_own != rows.num_file and rows.names:
        raise CheckpointError(
            f"{source} has {rows.num_file} classes, the data set {len(data)} ({data}), and they "
            "cannot be matched without names; use data with the classes of the weights, and "
            f"model.num_classes={rows.num_file}"
        )


def report_nameless(rows: ClassRows, data: ClassList | None, source: str) -> None:
    """Log that classes could not be compared, and what they are called."""
    if not rows.names:
        return

    called = f"0 to {rows.num_own - 1}"
    if data is not None and len(data) == rows.num_own:
        called = f"those of the data set: {data}"
    logger.warning(
        "%s does not name its %d classes; they are taken in order for %s",
        source,
        rows.num_file,
        called,
    )


def report_ids(
    file: ClassList,
    data: ClassList,
    places: Places,
    source: str,
    *,
    used: str = "those of the data set",
) -> None:
    """Log if the category ids of the same classes differ, and which ones results have."""
    if file.category_ids is None or data.category_ids is None:
        return

    for i, place in enumerate(places):
        if place is not None and file.category_ids[place] != data.category_ids[i]:
            ids = f"{file.category_ids[place]} there, {data.category_ids[i]} in the data set"
            logger.warning(
                "%s has other category ids than the data set (%s: %s); results have %s",
                source,
                data.names[i],
                ids,
                used,
            )
            return
