"""Classes of a data set or of weights: names and category ids, and how two lists of them match."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from detectron2.data import Metadata

from salience_detr.utils.errors import shorten

CategoryId = int | str


class ClassNameError(ValueError):
    """Two lists of classes that cannot be matched by name."""


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of a model's rows.

    Attributes:
        names: name of each class.
        category_ids: id of each class in the annotations of the data set; None if they are unknown.
        source: file or name of the data set, for messages.
    """

    names: tuple[str, ...]
    category_ids: tuple[CategoryId, ...] | None = None
    source: str = field(default="", compare=False)

    @classmethod
    def from_categories(cls, name_of: Mapping[int, str], source: str) -> ClassList:
        """Build the classes of an annotation file from the names of its categories by id."""
        ids = tuple(sorted(name_of))
        return cls(tuple(name_of[i] for i in ids), ids, source)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return shorten(self.names)

    def describe(self, names: Collection[str]) -> str:
        """Return some of the names, each with its category id if it is known."""
        ids = dict(zip(self.names, self.category_ids or (), strict=False))
        described = []
        for name in names:
            number = f" (id {ids[name]})" if name in ids else ""
            described.append(name if name.endswith(number) else name + number)
        return shorten(described)

    def numbered(self) -> ClassList:
        """Return the classes with their indices for ids if these are unknown, as in detectron2."""
        if self.category_ids is not None:
            return self
        return replace(self, category_ids=tuple(range(len(self))))


def classes_of(metadata: Metadata) -> ClassList | None:
    """Return the classes of a data set by its metadata, or None if it does not name them.

    In a data set with ids, a class without one has its index for it, as in detectron2.
    """
    names = tuple(str(name) for name in metadata.get("thing_classes", ()))
    if not names:
        return None

    # detectron2 maps the ids of the annotations to class indices; here it is the other way.
    index_of = metadata.get("thing_dataset_id_to_contiguous_id", {})
    id_of = {index: category_id for category_id, index in index_of.items()}
    ids = tuple(id_of.get(i, i) for i in range(len(names)))
    return ClassList(names, ids if id_of else None, metadata.get("name", ""))


def simplify(name: str) -> str:
    """Return a name without what people write differently: case, and spaces around it."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def find_name(name: str, names: Sequence[str]) -> int:
    """Return the place of a name, compared as :func:`match_classes` does.

    Raises:
        ValueError: it is there not once.
    """
    for key in (str, simplify):
        places = [i for i, other in enumerate(names) if key(other) == key(name)]
        if len(places) == 1:
            return places[0]
    raise ValueError(f"the class {name!r} is unknown or there twice; the classes are {names}")


def match_classes(ours: ClassList, theirs: ClassList) -> list[int | None]:
    """Find each of our classes among theirs, by name.

    Names are compared as they are, and those without a partner once more by :func:`simplify`. Of a
    name that is there several times, the category ids must agree, too. Those have their id in the
    name where they are together, and not where only one of them is left.

    Returns:
        The place of each of our classes in theirs; None where they do not have it.

    Raises:
        ClassNameError: a name is there several times, and ids do not tell which is which.
    """
    # Equal lists match in order, even if names are there twice.
    ids_agree = ours.category_ids == theirs.category_ids
    ids_unknown = ours.category_ids is None or theirs.category_ids is None
    if ours.names == theirs.names and (ids_agree or ids_unknown):
        return list(range(len(ours)))

    places: dict[int, int] = {}
    for key in (str, simplify):
        our_groups = group(ours.names, key, without=places.keys())
        their_groups = group(theirs.names, key, without=places.values())

        for name, members in our_groups.items():
            candidates = their_groups.get(name, [])
            if len(members) == len(candidates) == 1:
                places[members[0]] = candidates[0]
            elif candidates:
                places |= match_ids(name, ours, members, theirs, candidates)

    places |= match_numbered(ours, theirs, places)
    return [places.get(i) for i in range(len(ours))]


def match_numbered(ours: ClassList, theirs: ClassList, known: Mapping[int, int]) -> dict[int, int]:
    """Match classes without a partner whose name has the category id in it on one side only.

    Categories of a file that share a name have it, see
    :func:`salience_detr.data.coco_format.distinct_names`.
    """
    our_places = places_of(ours.names, without=known.keys())
    their_places = places_of(theirs.names, without=known.values())
    our_numbered = places_of(numbered_names(ours), without=known.keys())
    their_numbered = places_of(numbered_names(theirs), without=known.values())

    places = {i: their_places[name] for name, i in our_numbered.items() if name in their_places}
    places |= {our_places[name]: i for name, i in their_numbered.items() if name in our_places}
    return places


def numbered_names(classes: ClassList) -> list[str]:
    """Return the names with the category ids, none if these are unknown."""
    ids = classes.category_ids or ()
    return [f"{name} (id {i})" for name, i in zip(classes.names, ids, strict=False)]


def places_of(names: Sequence[str], *, without: Iterable[int]) -> dict[str, int]:
    """Return the place of each name, but for those at some places."""
    left_out = set(without)
    return {name: i for i, name in enumerate(names) if i not in left_out}


def unmatched_names(classes: ClassList, places: Sequence[int | None]) -> list[str]:
    """Return the names of the classes for which :func:`match_classes` found no place."""
    return [name for name, place in zip(classes.names, places, strict=True) if place is None]


def group(
    names: Sequence[str], key: Callable[[str], str], *, without: Iterable[int]
) -> dict[str, list[int]]:
    """Group the places of names that have the same key."""
    left_out = set(without)
    groups = defaultdict(list)
    for i, name in enumerate(names):
        if i not in left_out:
            groups[key(name)].append(i)
    return groups


def match_ids(
    name: str, ours: ClassList, members: list[int], theirs: ClassList, candidates: list[int]
) -> dict[int, int]:
    """Match classes of the same name by their category ids.

    Raises:
        ClassNameError: classes are left on both sides.
    """
    places = {}
    if ours.category_ids is not None and theirs.category_ids is not None:
        place_of = {theirs.category_ids[i]: i for i in candidates}
        for i in members:
            if ours.category_ids[i] in place_of:
                places[i] = place_of[ours.category_ids[i]]

    if len(places) < min(len(members), len(candidates)):
        raise ClassNameError(
            f"the class name {name!r} is {len(members)} times on one side and {len(candidates)} "
            "times on the other, and category ids do not tell which is which; give each category "
            "a name of its own"
        )
    return places
