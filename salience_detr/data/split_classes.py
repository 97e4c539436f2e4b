"""Classes of a model and of data sets that it is evaluated on, compared by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from detectron2.data import MetadataCatalog

from salience_detr.data.classes import ClassList, ClassNameError, match_classes
from salience_detr.data.coco_format import DatasetError

# Number of names in a message.
SHOWN = 8


@dataclass(frozen=True)
class Classes:
    """Classes of a data set.

    Attributes:
        source: its file or name, for messages.
        names: in the order of the classes.
        ids: category id of each; None where the data set has no ids.
    """

    source: str
    names: tuple[str, ...]
    ids: tuple[int, ...] | None

    @classmethod
    def from_categories(cls, source: str, categories: Mapping[int, str]) -> Classes:
        """Build the classes of an annotation file from its names by category id."""
        ids = tuple(sorted(categories))
        return cls(source, tuple(categories[i] for i in ids), ids)

    @classmethod
    def of_dataset(cls, name: str) -> Classes:
        """Return the classes of a registered data set, without names where they are unknown."""
        metadata = MetadataCatalog.get(name)
        names = tuple(metadata.get("thing_classes", ()))
        id_to_class = metadata.get("thing_dataset_id_to_contiguous_id")

        ids = None
        if id_to_class:
            ids = tuple(sorted(id_to_class, key=id_to_class.__getitem__))
        return cls(name, names, ids)

    def describe(self, names: Collection[str]) -> str:
        """Return some of the names, each with its id where there is one."""
        ids = dict(zip(self.names, self.ids or (), strict=False))
        shown = [f"{name} (id {ids[name]})" if name in ids else name for name in names]
        if len(shown) > SHOWN:
            shown[SHOWN:] = [f"and {len(shown) - SHOWN} more"]
        return ", ".join(shown)


def find_classes(data: Classes, known: Sequence[str]) -> list[int | None]:
    """Return the place of each class of a data set among other names, None where it is not there.

    Raises:
        DatasetError: names differ in upper and lower case only.
    """
    try:
        return match_classes(ClassList(data.names), ClassList(tuple(known)))
    except ClassNameError as error:
        raise DatasetError(f"{data.source}: {error}") from error


def check_known(known: Sequence[str], data: Classes, source: str) -> None:
    """Make sure that all classes of a data set are among those of a model.

    Args:
        known: names of the model's classes.
        data: classes of the data set to evaluate on.
        source: what the model's classes are of, for the message.

    Raises:
        DatasetError: some are not.
    """
    places = zip(data.names, find_classes(data, known), strict=True)
    unknown = [name for name, place in places if place is None]
    if unknown:
        raise DatasetError(
            f"{data.source} has categories that {source} lacks: {data.describe(unknown)} (it has "
            f"{', '.join(known[:SHOWN])}{', ...' if len(known) > SHOWN else ''}); rename or remove "
            "them in the one, or add them to the other"
        )


def check_splits(train: Classes, val: Classes) -> None:
    """Make sure that a model trained on one data set can be evaluated on another one by name.

    The other one may have fewer classes.

    Raises:
        DatasetError: it has classes that the first one lacks, or other ids for the same names.
    """
    check_known(train.names, val, train.source)
    if train.ids is None or val.ids is None:
        return

    moved = []
    for name, val_id, place in zip(val.names, val.ids, find_classes(val, train.names), strict=True):
        train_id = train.ids[place or 0]
        if train_id != val_id:
            moved.append(f"{name!r} has {train_id} and {val_id}")
    if moved:
        raise DatasetError(
            f"{train.source} and {val.source} have different ids for the same categories, "
            f"{moved[0]} ({len(moved)} differ); give each name the same id in both files"
        )


def class_map(known: Sequence[str], data: Classes) -> list[int] | None:
    """Return the class in a data set of each class of a model, by name.

    Returns:
        -1 for classes that the data set lacks; None if all classes are the same.
    """
    places = find_classes(data, known)
    if places == list(range(len(known))):
        return None
    index = {place: i for i, place in enumerate(places)}
    return [index.get(i, -1) for i in range(len(known))]


def describe_difference(known: Sequence[str], data: Classes) -> str | None:
    """Return a line on how a data set is evaluated whose classes are not the model's, else None."""
    if class_map(known, data) is None:
        return None
    if len(data.names) < len(known):
        return (
            f"{data.source} has {len(data.names)} of the {len(known)} classes "
            f"({data.describe(data.names)}): evaluated by name, AP is over these"
        )
    return f"{data.source} has the same classes in another order: evaluated by name"
