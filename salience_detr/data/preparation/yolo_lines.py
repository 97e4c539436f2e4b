"""Lines of YOLO's text files: what their columns are, and what makes a whole data set unusable.

A line is "class x y width height" or "class x y x y x y ...", relative to the image. Programs that
write down detections put a confidence, the number of a track, or both, after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from salience_detr.data.coco_format import DatasetError
from salience_detr.data.preparation.conversion import UnusableError
from salience_detr.data.preparation.frames import Box

# Descriptions of what a conversion did, for its report.
CONFIDENCE = "lines have a confidence after the box or polygon, which is not used"
TRACK = "lines have the number of a track at their end, which is not used"
QUADRILATERAL = (
    "lines are polygons of four points, perhaps oriented boxes: their upright extent is taken"
)
POLYGON = "lines are polygons, whose extent is taken"
# Share of wrong lines from which on it is no slip, but the data set is of another kind.
WRONG_SHARE = 0.1
# Fewer boxes do not show in what way a data set is wrong.
NUM_TELLING = 3
# A box may reach out of its image by so much of it.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Line:
    """Line of a file of labels.

    Attributes:
        where: file and number of the line.
        text: of the line.
        label: index of the class; None if the line is not numbers, the first of them whole.
        numbers: what follows the class.
    """

    where: str
    text: str
    label: int | None = None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class LineFormat:
    """What the lines of a data set hold.

    Attributes:
        has_keypoints: keypoints follow the box.
        has_tracks: six numbers are a box, a confidence and the number of a track, not a triangle.
    """

    has_keypoints: bool = False
    has_tracks: bool = False

    def corners(self, numbers: Sequence[float]) -> tuple[Box, list[str]]:
        """Return the relative (x0, y0, x1, y1) of a line's numbers, and descriptions of the rest.

        Raises:
            UnusableError: the numbers are something else, or not finite.
        """
        # False for NaN as well.
        if not all(abs(value) < 1e6 for value in numbers):
            raise UnusableError("a number is too large")
        if self.has_keypoints:
            return center_to_corners(numbers[:4]), []

        shape, remarks = self.split_columns(numbers)
        if len(shape) == 4:
            return center_to_corners(shape), remarks

        # The box of a polygon is its extent.
        remarks.append(QUADRILATERAL if len(shape) == 8 else POLYGON)
        return (min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2])), remarks

    def split_columns(self, numbers: Sequence[float]) -> tuple[Sequence[float], list[str]]:
        """Return the numbers of the box or polygon, and descriptions of those after it.

        Raises:
            UnusableError: the numbers are something else.
        """
        count = len(numbers)
        if looks_like_keypoints(numbers):
            raise UnusableError("keypoints seem to follow the box: data.yaml needs kpt_shape")

        if (count == 6 and self.has_tracks) or ends_in_track(numbers):
            return numbers[:-2], [CONFIDENCE, TRACK]
        if count == 4 or (count >= 6 and count % 2 == 0):
            return numbers, []
        if count < 4:
            raise UnusableError("there are too few numbers")

        last = numbers[-1]
        if 0 <= last <= 1:
            return numbers[:-1], [CONFIDENCE]
        if last.is_integer():
            return numbers[:-1], [TRACK]
        raise UnusableError(f"the last number {last:g} is no confidence and no number of a track")


def parse_line(text: str, where: str) -> Line:
    """Parse a line; see :class:`Line` for one that is not numbers."""
    try:
        label, *numbers = map(float, text.split())
        if not label.is_integer():
            raise ValueError
    except (ValueError, OverflowError):
        return Line(where, text)
    return Line(where, text, int(label), tuple(numbers))


def center_to_corners(numbers: Sequence[float]) -> Box:
    """Return the corners of a box "x y width height".

    Raises:
        UnusableError: there are not four numbers.
    """
    if len(numbers) != 4:
        raise UnusableError("there are too few numbers")
    x, y, width, height = numbers
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def ends_in_track(numbers: Sequence[float]) -> bool:
    """Return whether a polygon is followed by a confidence and the number of a track."""
    if len(numbers) < 8 or len(numbers) % 2:
        return False
    *points, confidence, track = numbers
    return max(points) <= 1 + TOLERANCE and confidence <= 1 < track and track.is_integer()


def looks_like_keypoints(numbers: Sequence[float]) -> bool:
    """Return whether triples "x y visibility" seem to follow the box."""
    if (len(numbers) - 4) % 3 or len(numbers) < 7:
        return False
    # Of a few triples, a polygon that touches the edges could look the same.
    is_telling = len(numbers) % 2 == 1 or len(numbers) >= 16
    return is_telling and all(value in (0, 1, 2) for value in numbers[6::3])


def find_format(lines: Sequence[Line], has_keypoints: bool) -> LineFormat:
    """Find out what the lines of a data set hold.

    Args:
        lines: of all files.
        has_keypoints: keypoints follow the box, as the description of the data set says.
    """
    # A track's number is whole; the last coordinate of all triangles hardly is.
    last = [line.numbers[5] for line in lines if len(line.numbers) == 6]
    is_telling = len(last) >= NUM_TELLING or max(last, default=0) > 1
    return LineFormat(has_keypoints, is_telling and all(value.is_integer() for value in last))


def check_lines(lines: Sequence[Line], names: Collection[int]) -> None:
    """Check that the lines of a data set are not all meant in another way.

    Args:
        lines: of all files of labels.
        names: indices of the classes.

    Raises:
        DatasetError: separators, units, corners or indices are others than YOLO's.
    """
    for line in lines:
        if line.label is None:
            check_separators(line)

    check_units([line for line in lines if len(line.numbers) >= 4])
    check_last([line for line in lines if len(line.numbers) == 5])
    check_corners([line for line in lines if len(line.numbers) in (4, 5)])
    check_indices({line.label: line for line in lines if line.label is not None}, names)


def check_separators(line: Line) -> None:
    """Check that a line is not numbers in another notation.

    Raises:
        DatasetError: with semicolons or commas read as blanks or points, it is numbers.
    """
    notations: dict[str, Callable[[str], str]] = {
        "has decimal commas; write points": lambda text: text.replace(",", "."),
        "is separated by commas; write blanks": lambda text: text.replace(",", " "),
        "is separated by semicolons; write blanks, and points in numbers": (
            lambda text: text.replace(";", " ").replace(",", ".")
        ),
    }
    for description, translate in notations.items():
        translated = parse_line(translate(line.text), line.where)
        if translated.label is not None and len(translated.numbers) >= 4:
            raise DatasetError(f"{line.where}: {line.text.strip()[:60]!r} {description}")


def check_units(lines: Sequence[Line]) -> None:
    """Check that coordinates are fractions of the images.

    Raises:
        DatasetError: many are larger.
    """
    in_pixels = [line for line in lines if is_in_pixels(line.numbers[:4])]
    if in_pixels and len(in_pixels) >= WRONG_SHARE * len(lines):
        first = in_pixels[0]
        raise DatasetError(
            f"{len(in_pixels)} of {len(lines)} lines are in pixels or percent, such as "
            f"{first.text.strip()[:60]!r} ({first.where}); YOLO's numbers are fractions of the "
            "image: divide x and width by its width, y and height by its height"
        )


def check_last(lines: Sequence[Line]) -> None:
    """Check that the number after the boxes is a confidence or the number of a track.

    Raises:
        DatasetError: it often is something else, such as an angle.
    """
    others = [line for line in lines if not is_confidence_or_track(line.numbers[4])]
    if others and len(others) >= WRONG_SHARE * len(lines):
        first = others[0]
        raise DatasetError(
            f"the last number of {first.text.strip()[:60]!r} ({first.where}), and of "
            f"{len(others)} of {len(lines)} lines of six numbers, is no confidence from 0 to 1 and "
            "no number of a track; if it is an angle, export upright boxes, else delete it"
        )


def is_confidence_or_track(value: float) -> bool:
    return 0 <= value <= 1 or value.is_integer()


def is_in_pixels(numbers: Sequence[float]) -> bool:
    """Return whether coordinates are too large to be fractions of an image."""
    return max(numbers) > 2 and all(value >= 1 or value == 0 for value in numbers)


def check_corners(lines: Sequence[Line]) -> None:
    """Check that boxes are center and size.

    Raises:
        DatasetError: most are inside the image, but only if they are read as something else.
    """
    outside = [line for line in lines if not is_inside(center_to_corners(line.numbers[:4]))]
    if len(outside) < NUM_TELLING or 2 * len(outside) <= len(lines):
        return

    readings = {
        "corners x0 y0 x1 y1": lambda numbers: is_inside(numbers[:4]),
        "a confidence before x y width height": lambda numbers: (
            len(numbers) == 5 and is_inside(center_to_corners(numbers[1:]))
        ),
    }
    for description, fits in readings.items():
        num_fitting = sum(fits(line.numbers) for line in lines)
        if num_fitting >= 0.9 * len(lines):
            raise DatasetError(
                f"{len(outside)} of {len(lines)} boxes reach out of their images; read as "
                f"{description}, {num_fitting} do not, such as {outside[0].text.strip()!r} "
                f"({outside[0].where}); YOLO's lines are: class, center x y, width height"
            )


def is_inside(corners: Sequence[float]) -> bool:
    """Return whether relative (x0, y0, x1, y1) are a box inside of an image."""
    x0, y0, x1, y1 = corners
    return x0 < x1 and y0 < y1 and min(x0, y0) >= -TOLERANCE and max(x1, y1) <= 1 + TOLERANCE


def check_indices(lines: Mapping[int, Line], names: Collection[int]) -> None:
    """Check that classes are counted as the description of the data set counts them.

    Args:
        lines: one for each index that occurs.
        names: indices of the classes that have a name.

    Raises:
        DatasetError: indices without a name occur, and all would have one if counted otherwise.
    """
    unknown = sorted(set(lines) - set(names))
    if not unknown:
        return

    for shift in (1, -1):
        if all(index - shift in names for index in lines):
            first = lines[unknown[0]]
            raise DatasetError(
                f"the classes of the lines count from {min(names) + shift}, those that have names "
                f"from {min(names)}: they are {sorted(lines)}, such as {first.text.strip()[:60]!r} "
                f"({first.where}); give the names these numbers in a data.yaml, "
                f"'names: {{{min(names) + shift}: NAME, ...}}', or change the lines"
            )
