"""Splitting of one data set into a part for training and a part for validation.

The draw has a fixed seed and does not depend on the order of the images: the same images are drawn
each time. Every class is drawn from in proportion, the rarest first, as in the iterative
stratification of Sechidis et al. 2011; images that belong together stay on one side.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salience_detr.data.coco_format import Content, DatasetError, first_fault

SEED = 0


@dataclass
class Group:
    """Images that stay on one side.

    Attributes:
        members: indices of the images.
        classes: number of its images by class; images without boxes count as the class None.
        in_val: the group is drawn for validation.
    """

    members: list[int] = field(default_factory=list)
    classes: Counter[Hashable] = field(default_factory=Counter)
    in_val: bool | None = None


def split_coco(
    content: Content, path: Path, fraction: float, split_by: str | None
) -> tuple[Content, Content]:
    """Split the content of an annotation file into those of training and validation.

    Both have all categories, and whatever else the file holds.

    Args:
        content: of a file in COCO's format.
        path: of the file, for messages.
        fraction: part of the images that is drawn for validation.
        split_by: see :func:`draw_val`.

    Raises:
        DatasetError: the file has a mistake, or cannot be split so.
    """
    fault = first_fault(content, path)
    if fault is not None:
        raise DatasetError(
            f"{fault}; tools/check_dataset.py lists all such mistakes, and repairs them with --fix"
        )

    classes_of: dict[object, set[int]] = defaultdict(set)
    for annotation in content["annotations"]:
        classes_of[annotation["image_id"]].add(annotation["category_id"])

    images = content["images"]
    names = [image["file_name"] for image in images]
    classes = [classes_of[image["id"]] for image in images]
    drawn = draw_val(names, classes, fraction, split_by)

    val_ids = {images[index]["id"] for index in drawn}
    return select_images(content, val_ids, False), select_images(content, val_ids, True)


def select_images(content: Content, val_ids: Collection[object], in_val: bool) -> Content:
    """Return the images of one side, with their annotations, and the rest of the content."""
    images = [x for x in content["images"] if (x["id"] in val_ids) == in_val]
    annotations = [x for x in content["annotations"] if (x["image_id"] in val_ids) == in_val]
    return {**content, "images": images, "annotations": annotations}


def draw_val(
    names: Sequence[str],
    classes: Sequence[Collection[Hashable]],
    fraction: float,
    split_by: str | None = None,
) -> set[int]:
    """Draw the images for validation.

    Args:
        names: of the images.
        classes: those that each image shows.
        fraction: part of the images that is drawn, in (0, 1).
        split_by: regular expression; images stay together in whose names the first group of its
            first match is the same. Images that it does not match stand alone.

    Returns:
        Indices of the images that are drawn.

    Raises:
        DatasetError: fraction or expression are not valid, or nothing is left on one side.
    """
    check_fraction(fraction)

    num_val = round(fraction * len(names))
    if not 0 < num_val < len(names):
        side = "training" if num_val else "validation"
        raise DatasetError(
            f"--val-fraction {fraction:g} of {len(names)} images leaves none for {side}; "
            "choose another fraction"
        )

    groups = group_images(names, classes, split_by)
    if len(groups) < 2:
        raise DatasetError(
            f"all {len(names)} images are one group, such as {names[0]!r}, which cannot be split; "
            "let the first group of --split-by, in parentheses, tell them apart"
        )

    random.Random(SEED).shuffle(groups)
    stratify(groups, fraction)
    balance(groups, num_val, fraction)
    drawn: set[int] = set()
    for group in groups:
        if group.in_val:
            drawn.update(group.members)
    return drawn


def check_fraction(fraction: float) -> None:
    """Raise DatasetError unless a number is a part of the images that can be drawn."""
    if not 0 < fraction < 1:
        raise DatasetError(f"--val-fraction is {fraction:g}; it lies between 0 and 1, such as 0.2")


def group_images(
    names: Sequence[str], classes: Sequence[Collection[Hashable]], split_by: str | None
) -> list[Group]:
    """Return the groups of images that stay together, sorted by their names."""
    keys = group_keys(names, split_by)

    # Sorted, so that the draw does not depend on the order of the images.
    groups: dict[tuple[bool, str], Group] = defaultdict(Group)
    for index in sorted(range(len(names)), key=lambda index: (keys[index], names[index], index)):
        group = groups[keys[index]]
        group.members.append(index)
        group.classes.update(set(classes[index]) or {None})
    return list(groups.values())


def group_keys(names: Sequence[str], split_by: str | None) -> list[tuple[bool, str]]:
    """Return the key of each image's group: whether the expression matches, and what it finds.

    Raises:
        DatasetError: the expression is not valid, has no group, or matches no name.
    """
    if split_by is None:
        # Even a name that occurs twice has one image on one side.
        return [(False, name) for name in names]

    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise DatasetError(f"--split-by {split_by!r} is no regular expression ({error})") from error
    if not pattern.groups:
        raise DatasetError(
            f"--split-by {split_by!r} has no group: put the part of the name that is common to "
            "images of one side in parentheses, such as '^(.*)_'"
        )

    keys = []
    for name in names:
        found = pattern.search(name)
        if found is None or found[1] is None:
            keys.append((False, name))
        else:
            keys.append((True, found[1]))

    if not any(is_matched for is_matched, _ in keys):
        raise DatasetError(
            f"--split-by {split_by!r} matches none of {len(names)} names, such as {names[0]!r}"
        )
    return keys


def stratify(groups: Sequence[Group], fraction: float) -> None:
    """Decide the side of every group, class by class, the rarest first.

    A class of several groups has one on each side, one of a single group stays in training.
    """
    groups_of: dict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        for label in group.classes:
            groups_of[label].append(group)

    for label in sorted(groups_of, key=lambda label: (len(groups_of[label]), repr(label))):
        having = groups_of[label]
        num_wanted = fraction * sum(group.classes[label] for group in having)
        undecided = []
        for group in having:
            if group.in_val is None:
                undecided.append(group)
            elif group.in_val:
                num_wanted -= group.classes[label]

        sides = {group.in_val for group in having}
        if len(having) > 1 and undecided and True not in sides:
            first = min(undecided, key=lambda group: len(group.members))
            first.in_val = True
            num_wanted -= first.classes[label]
            undecided.remove(first)
        if undecided and False not in sides:
            undecided.pop().in_val = False

        # Taken if that brings the number of images closer to what is wanted.
        for group in undecided:
            size = group.classes[label]
            group.in_val = size <= 2 * num_wanted
            num_wanted -= size * group.in_val


def balance(groups: Sequence[Group], num_val: int, fraction: float) -> None:
    """Move groups to the other side until the number of images for validation fits.

    A class stays on both sides while others can move.
    """
    counts = ClassCounts(groups, fraction)
    num_missing = num_val - sum(len(group.members) for group in groups if group.in_val)
    to_val = num_missing > 0
    candidates = [group for group in groups if group.in_val != to_val]

    num_left = move_groups(candidates, abs(num_missing), counts, keep_classes=True)
    others = [group for group in candidates if group.in_val != to_val]
    move_groups(others, num_left, counts, keep_classes=False)

    # Of a few large groups, all may be on the side that they fit better.
    for in_val in (True, False):
        if not any(group.in_val == in_val for group in groups):
            min(groups, key=lambda group: len(group.members)).in_val = in_val


class ClassCounts:
    """Number of images by class, in all and in validation, and what it should be there."""

    def __init__(self, groups: Sequence[Group], fraction: float) -> None:
        self.in_all: Counter[Hashable] = Counter()
        self.in_val: Counter[Hashable] = Counter()
        for group in groups:
            self.in_all.update(group.classes)
            if group.in_val:
                self.in_val.update(group.classes)
        self.wanted = {label: fraction * count for label, count in self.in_all.items()}

    def cost(self, group: Group) -> float:
        """Return what a move adds to the sum over classes of (number - wanted)^2 / wanted."""
        sign = -1 if group.in_val else 1
        cost = 0.0
        for label, count in group.classes.items():
            excess = self.in_val[label] - self.wanted[label]
            cost += count * (count + 2 * sign * excess) / self.wanted[label]
        return cost

    def loses_class(self, group: Group) -> bool:
        """Return whether the side that a group leaves would lose a class."""
        for label, count in group.classes.items():
            num_here = self.in_val[label]
            if not group.in_val:
                num_here = self.in_all[label] - num_here
            if num_here <= count:
                return True
        return False

    def move(self, group: Group) -> None:
        """Move a group to the other side."""
        if group.in_val:
            self.in_val.subtract(group.classes)
        else:
            self.in_val.update(group.classes)
        group.in_val = not group.in_val


def move_groups(
    candidates: Sequence[Group], num_images: int, counts: ClassCounts, *, keep_classes: bool
) -> int:
    """Move groups to the other side while that brings their images closer to a number.

    Args:
        candidates: groups of one side; the one that costs least moves next.
        num_images: number of images to move.
        counts: of the classes, which follow.
        keep_classes: no class leaves the side.

    Returns:
        Number of images that are still to be moved; negative if too many are.
    """
    heap = [(counts.cost(group), number) for number, group in enumerate(candidates)]
    heapq.heapify(heap)
    while heap and num_images > 0:
        former_cost, number = heapq.heappop(heap)
        group = candidates[number]

        # A cost only rises by the moves of others: what is still the least is the least.
        cost = counts.cost(group)
        if cost > former_cost and heap and cost > heap[0][0]:
            heapq.heappush(heap, (cost, number))
            continue
        if len(group.members) >= 2 * num_images or (keep_classes and counts.loses_class(group)):
            continue

        counts.move(group)
        num_images -= len(group.members)
    return num_images


def describe_split(train: Content, val: Content) -> str:
    """Return the numbers of images of the two parts, and the classes that one lacks, as text."""
    names = {category["id"]: category["name"] for category in train["categories"]}
    in_train, in_val = map(shown_categories, (train, val))

    descriptions = []
    for purpose, part, shown in (("training", train, in_train), ("validation", val, in_val)):
        description = f"{len(part['images'])} images for {purpose}"
        missing = (in_train | in_val) - shown
        if missing:
            description += f" (without {', '.join(sorted(names[x] for x in missing))})"
        descriptions.append(description)
    return " and ".join(descriptions)


def shown_categories(content: Content) -> set[int]:
    """Return the ids of the categories that have a box."""
    return {annotation["category_id"] for annotation in content["annotations"]}
