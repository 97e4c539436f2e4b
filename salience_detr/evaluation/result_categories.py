"""Categories of a detections file, found among those of the annotations by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from salience_detr.data.classes import CategoryId, ClassList, ClassNameError, match_classes
from salience_detr.data.coco_format import Entry, distinct_names, entry_fault
from salience_detr.utils.errors import shorten

logger = logging.getLogger(__name__)


class CategoryError(ValueError):
    """Categories of detections that are not those of the annotations."""


def match_categories(
    detected: Any, annotated: Sequence[Entry]
) -> dict[CategoryId, CategoryId | None]:
    """Find the category of the annotations for each category of a detections file.

    Args:
        detected: the list "categories" of the file, as demo.py writes it.
        annotated: the valid categories of the annotations.

    Returns:
        The id in the annotations by the id in the file, None where they have no such category.

    Raises:
        CategoryError: the list is not valid, or no category is found, or names are ambiguous.
    """
    check_categories(detected)
    ours, theirs = class_list(detected), class_list(annotated)
    try:
        places = match_classes(ours, theirs)
    except ClassNameError as error:
        raise CategoryError(str(error)) from error

    found: dict[CategoryId, CategoryId | None] = {}
    for category, place in zip(detected, places, strict=True):
        found[category["id"]] = None if place is None else annotated[place]["id"]
    if set(places) - {None}:
        report(found, ours)
        return found

    # A model that does not know the names of its classes calls them by their numbers.
    if all(name.isdecimal() for name in ours.names):
        known = {category["id"] for category in annotated}
        return {i: i if i in known else None for i in found}
    raise CategoryError(
        f"its categories ({ours}) are none of those of the annotations ({theirs}); give the "
        "annotations that belong to it"
    )


def check_categories(categories: object) -> None:
    """Raise CategoryError unless a value is a list of categories with different ids."""
    if not isinstance(categories, list):
        raise CategoryError("its categories are no list; write it anew with demo.py --json")

    for i, category in enumerate(categories):
        fault = entry_fault("categories", category)
        if fault is not None:
            raise CategoryError(f"number {i} of its categories {fault}")
    if len({category["id"] for category in categories}) != len(categories):
        raise CategoryError("two of its categories have the same id")


def class_list(categories: Sequence[Entry]) -> ClassList:
    """Return the names and ids of categories; names that several have get their ids."""
    ids = tuple(category["id"] for category in categories)
    return ClassList(tuple(distinct_names(list(categories))), ids)


def report(found: dict[CategoryId, CategoryId | None], detected: ClassList) -> None:
    """Log which categories have other ids in the annotations, and which are not there."""
    names = dict(zip(found, detected.names, strict=True))
    moved = [names[i] for i, other in found.items() if other not in (i, None)]
    missing = [names[i] for i, other in found.items() if other is None]

    if moved:
        logger.warning(
            "%d categories have other ids in the annotations and are found by name: %s",
            len(moved),
            shorten(moved),
        )
    if missing:
        logger.warning(
            "detections of %d categories that the annotations lack are left out: %s",
            len(missing),
            shorten(missing),
        )
