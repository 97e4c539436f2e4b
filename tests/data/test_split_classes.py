"""Classes of two data sets are compared by name."""

from __future__ import annotations

import pytest

from salience_detr.data import DatasetError
from salience_detr.data.classes import ClassList
from salience_detr.data.coco_format import distinct_names
from salience_detr.data.split_classes import (
    check_splits,
    class_map,
    describe_difference,
)


def make(source, names, ids):
    return ClassList(names, ids, source)


TRAIN = make("train", ("pit", "burr", "weld"), (1, 2, 3))


def test_the_same_classes_and_a_subset_are_accepted():
    for names, ids in ((TRAIN.names, TRAIN.category_ids), (("pit", "weld"), (1, 3)), ((), ())):
        check_splits(TRAIN, make("val", names, ids))


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (("pit", "hole"), (1, 4), r"val has categories that train lacks: hole \(id 4\)"),
        (("Pits",), (1,), r"lacks: Pits \(id 1\) .it has pit, burr, weld.; rename or remove"),
        (("burr", "pit"), (1, 2), "'burr' has 2 and 1 .2 differ.; give each name the same id"),
        (("pit", "burr", "weld"), (0, 1, 2), "'pit' has 1 and 0 .3 differ."),
        (("weld",), (1,), "'weld' has 3 and 1 .1 differ."),
    ],
)
def test_unknown_names_and_other_ids_are_refused(names, ids, message):
    with pytest.raises(DatasetError, match=message):
        check_splits(TRAIN, make("val", names, ids))


def test_own_records_without_ids_go_by_name():
    check_splits(TRAIN, make("val", ("weld", "pit"), None))
    check_splits(make("train", TRAIN.names, None), make("val", ("weld", "pit"), (8, 9)))


def test_differences_are_described_in_a_line():
    assert describe_difference(TRAIN.names, TRAIN) is None and class_map(TRAIN.names, TRAIN) is None

    subset = make("val", ("weld", "pit"), (3, 9))
    assert class_map(TRAIN.names, subset) == [1, -1, 0]
    assert describe_difference(TRAIN.names, subset) == (
        "val has 2 of the 3 classes (weld (id 3), pit (id 9)): evaluated by name, AP is over these"
    )
    turned = make("val", ("weld", "burr", "pit"), None)
    assert class_map(TRAIN.names, turned) == [2, 1, 0]
    assert describe_difference(TRAIN.names, turned) == (
        "val has the same classes in another order: evaluated by name"
    )


def test_many_names_are_shortened():
    many = make("val", tuple(f"c{i}" for i in range(12)), None)
    assert many.describe(many.names).endswith("c7, and 4 more")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pit", "burr"], ["pit", "burr"]),
        (["pit", "pit", "burr"], ["pit (id 1)", "pit (id 2)", "burr"]),
        (["pit"] * 3, ["pit (id 1)", "pit (id 2)", "pit (id 3)"]),
        # A name that looks like another one with its id.
        (["pit", "pit", "pit (id 1)"], ["pit (id 1) (id 1)", "pit (id 2)", "pit (id 1) (id 3)"]),
    ],
)
def test_names_of_several_categories_get_their_ids(names, expected):
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    assert distinct_names(categories) == expected


def test_an_entry_that_is_there_twice_has_one_name():
    assert distinct_names([{"id": 1, "name": "pit"}] * 2) == ["pit", "pit"]


def test_a_category_of_a_shared_name_is_found_where_it_is_the_only_one():
    files = {"train": {2: "nick", 3: "nick", 4: "burr"}, "val": {3: "nick", 4: "burr"}}
    train, val = (numbered_classes(source, names) for source, names in files.items())
    check_splits(train, val)
    assert class_map(train.names, val) == [-1, 0, 1]

    with pytest.raises(DatasetError, match=r"that train lacks: nick \(id 5\) \("):
        check_splits(train, numbered_classes("val", {3: "nick", 5: "nick"}))


def numbered_classes(source, names):
    categories = [{"id": i, "name": name} for i, name in names.items()]
    name_of = dict(zip(names, distinct_names(categories), strict=True))
    return ClassList.from_categories(name_of, source)
