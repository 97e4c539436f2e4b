"""Options of drawings: width of lines, size of labels, filling and colors; flags that set them."""

from __future__ import annotations

import argparse
import colorsys
import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ImageColor

Color = tuple[int, int, int]  # RGB, 0 to 255

COLORS_HELP = (
    "NAME:COLOR for a class, colors in the order of the classes, one for all, or a .json file of "
    "either; a color is red, #ff8800 or 255,128,0"
)


@dataclass(frozen=True)
class ColorChoice:
    """Colors that a user has chosen, before the classes are known.

    Attributes:
        in_order: RGB of the first classes; a single color is for all classes.
        by_name: RGB of classes by their names.
    """

    in_order: tuple[Color, ...] = ()
    by_name: dict[str, Color] = field(default_factory=dict)


@dataclass(frozen=True)
class DrawingOptions:
    """Options of a drawing.

    Attributes:
        line_width: width of the lines in pixels; None for one that suits the size of the image.
        font_scale: size of the labels, relative to the one that suits the size of the image.
        fill_opacity: weight of the color within a box, from 0 (none) to 1 (nothing else).
        colors: colors of classes; the others have those of the data set, or different hues.
        has_labels: whether names and scores are written.
    """

    line_width: int | None = None
    font_scale: float = 1.0
    fill_opacity: float = 0.0
    colors: ColorChoice = ColorChoice()
    has_labels: bool = True

    def palette(
        self, names: Sequence[str], known: Sequence[Sequence[int]] | None = None
    ) -> list[Color]:
        """Return the color of each class.

        Args:
            names: names of all classes.
            known: RGB of the first classes, from the data set.

        Raises:
            ValueError: a color was chosen for a class that is not there.
        """
        colors = class_colors(len(names), known)
        chosen = self.colors.in_order
        if len(chosen) > max(len(names), 1):
            raise ValueError(
                f"--colors has {len(chosen)} colors, but there are {len(names)} classes: "
                f"{', '.join(names)}"
            )

        # A single color is for all classes.
        if len(chosen) == 1:
            chosen *= len(names)
        colors[: len(chosen)] = chosen

        for name, color in self.colors.by_name.items():
            for index in find_name(name, names):
                colors[index] = color
        return colors


DEFAULTS = DrawingOptions()


def class_colors(num_classes: int, known: Sequence[Sequence[int]] | None = None) -> list[Color]:
    """Return a distinct color for each class.

    Args:
        num_classes: number of classes.
        known: RGB of the first classes; the others get theirs here.
    """
    colors = [(int(r), int(g), int(b)) for r, g, b in (known or [])[:num_classes]]

    # Steps by the golden ratio spread hues well, however many follow.
    for i in range(len(colors), num_classes):
        r, g, b = colorsys.hsv_to_rgb((0.02 + i * 0.618034) % 1.0, 0.85, 1.0)
        colors.append((round(255 * r), round(255 * g), round(255 * b)))
    return colors


def find_name(wanted: str, names: Sequence[str]) -> list[int]:
    """Return the indices of the classes of a name; in any case if none is spelled like it.

    Raises:
        ValueError: there is none; the message has a similar name, or all names.
    """
    # Several classes may have one name.
    exact = [i for i, name in enumerate(names) if name == wanted]
    folded = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if exact or folded:
        return exact or folded

    hint = ""
    similar = difflib.get_close_matches(wanted, names, n=1)
    if similar:
        hint = f"did you mean {similar[0]}? "
    raise ValueError(f"--colors {wanted!r} is no class; {hint}the classes are {', '.join(names)}")


def parse_color(word: str) -> Color:
    """Return the RGB of a color: a name of CSS, rrggbb with or without #, or three numbers.

    Raises:
        ValueError: it is none of these.
    """
    text = word.strip()

    # In a shell, an unquoted # would begin a comment.
    if re.fullmatch("[0-9a-fA-F]{6}", text):
        text = f"#{text}"
    if text.count(",") == 2 and "(" not in text:
        text = f"rgb({text})"

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        advice = "write red, #ff8800 or 255,128,0"
        if "=" in word:
            advice = f"for a class write {word.replace('=', ':', 1)}"
        raise ValueError(f"--colors {word!r} is no color; {advice}") from error
    if max(red, green, blue) > 255:
        raise ValueError(f"--colors {word!r} is no color; its numbers go from 0 to 255")
    return red, green, blue


def parse_colors(words: Sequence[str]) -> ColorChoice:
    """Return the colors of a command line, see :data:`COLORS_HELP`.

    Raises:
        ValueError: they cannot be read; says which.
    """
    if len(words) == 1 and words[0].lower().endswith(".json"):
        return read_colors(Path(words[0]))

    in_order: list[Color] = []
    by_name: dict[str, Color] = {}
    for word in words:
        # The name of a class may have a colon itself.
        name, colon, color = word.rpartition(":")
        if colon:
            by_name[name] = parse_color(color)
        else:
            in_order.append(parse_color(word))
    return ColorChoice(tuple(in_order), by_name)


def read_colors(path: Path) -> ColorChoice:
    """Read colors from a JSON file: a list, or an object with the names of classes.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--colors {path} cannot be read: {error}") from error

    if isinstance(content, list):
        return ColorChoice(tuple(parse_entry(entry) for entry in content))
    if isinstance(content, dict):
        return ColorChoice(by_name={name: parse_entry(x) for name, x in content.items()})
    raise ValueError(
        f'--colors {path} must hold a list of colors, or an object such as {{"pit": "red"}}'
    )


def parse_entry(entry: object) -> Color:
    """Return the RGB of an entry of a file: a text, or a list of three numbers."""
    if isinstance(entry, list):
        return parse_color(",".join(map(str, entry)))
    return parse_color(str(entry))


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`drawing_options` reads, as a group."""
    add = parser.add_argument_group("drawings").add_argument

    width_help = "width of lines in pixels (default: by the size of the image)"
    add("--line-width", type=limited(int, 1, 1000), metavar="N", help=width_help)
    scale_help = "size of the labels, 1 is the default"
    add("--font-scale", type=limited(float, 0.1, 100), default=1.0, metavar="X", help=scale_help)
    opacity_help = "opacity of the color within boxes, from 0 to 1 (default: 0)"
    add("--fill-opacity", type=limited(float, 0, 1), default=0.0, metavar="X", help=opacity_help)

    add("--colors", nargs="+", default=[], metavar="COLOR", help=COLORS_HELP)
    add("--no-labels", action="store_true", help="draw boxes without names and scores")


def limited(kind: Callable[[str], float], least: float, largest: float) -> Callable[[str], float]:
    """Return the type of a flag, for argparse, that is a number between two limits."""

    def convert(word: str) -> float:
        value = kind(word)
        if not least <= value <= largest:
            raise argparse.ArgumentTypeError(f"it is {word}, and must be {least} to {largest}")
        return value

    # argparse names it where the word is no number.
    convert.__name__ = kind.__name__
    return convert


def has_drawing_arguments(args: argparse.Namespace) -> bool:
    """Return whether a flag of :func:`add_drawing_arguments` was given another value."""
    given = (args.line_width, args.font_scale, args.fill_opacity, args.colors, args.no_labels)
    return given != (None, 1.0, 0.0, [], False)


def drawing_options(args: argparse.Namespace) -> DrawingOptions:
    """Return the options that the flags of :func:`add_drawing_arguments` set.

    Raises:
        ValueError: a color cannot be read.
    """
    return DrawingOptions(
        line_width=args.line_width,
        font_scale=args.font_scale,
        fill_opacity=args.fill_opacity,
        colors=parse_colors(args.colors),
        has_labels=not args.no_labels,
    )
