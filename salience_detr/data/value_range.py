"""Range of the values of deep images: which of them become black and white.

Images of 8 bits are used as they are. The values of all others (integers of more than 8 bits, and
floating values) are mapped linearly from a range to 0..255, and clipped. "auto" chooses it from
pixels of many images, for all images of a data set alike. The lowest and the highest thousandth of
the pixels (and pixels of 65535, NaN and infinite ones) do not count, so that no dead pixel changes
it:

- Integers: the smallest of 8, 10, 12, 14 and 16 bits that holds them, such as [0, 4095]. If they
  are negative or larger, or if eight or more images together use less than a 16th of it
  (temperatures, say): from the lowest to the highest of them.
- Floating values: [0, 1] if 99 % lie there and none reaches 2. Else [0, 255] if they lie there and
  use a quarter of it. Else from the lowest to the highest of them; so too if eight or more images
  together use less than a 16th of [0, 1]. Whole numbers from 0 to more than 1 are taken as
  integers, whatever type they have.
- A negative value far below all others, such as -9999 or -3.4e38, is a mark of pixels without a
  value, and does not count: the gap is more than twice the range of the others.

Integers in a range of N values fall into 256 bins of equal width: of 16 bits the upper 8 remain,
as usual. Floating values are rounded to the nearest of the 256.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

logger = logging.getLogger(__name__)

Span: TypeAlias = tuple[float, float]  # the values that become black and white

AUTO = "auto"
KINDS = ("integers", "floats")
DEPTHS = (8, 10, 12, 14, 16)
FULL_SPANS: dict[str, Span] = {"integers": (0, 65535), "floats": (0, 1)}

SATURATED = 65535  # also the value of dead pixels
OUTLIERS = 1e-3  # fraction of the pixels at either end that does not count
NEARLY_ALL = 0.99
FAR_OUT = 2.0  # values in [0, 1] have outliers below this; a mark is as many ranges away
NARROW = 1 / 16  # part of a range that is too little to see anything, see validation.FAINT
MIN_IMAGES = 8  # number of images that shows that a data set uses only so little
MIN_CONTRAST = 64  # of values in 0..255

# Not an attribute of the ranges, which are copied to data workers.
LOCK = threading.Lock()


class ValueRange:
    """Range of the values of deep images, given or chosen once from their pixels.

    Several threads may use one object. Copies in other processes have the same range only if it was
    chosen before.

    Args:
        setting: "auto", or ``[low, high]``: the values that become black and white. Data of both
            kinds may need two ranges: ``{"integers": [low, high], "floats": [low, high]}``.

    Raises:
        ValueError: the setting is something else.
    """

    def __init__(self, setting: object = AUTO) -> None:
        self._spans: dict[str, Span] = {}
        if isinstance(setting, Mapping):
            for kind, span in setting.items():
                if kind not in KINDS:
                    raise ValueError(f"value_range has the key {kind!r}; use integers and floats")
                self._spans[kind] = parse_span(span)

        elif setting != AUTO:
            self._spans = dict.fromkeys(KINDS, parse_span(setting))

    @property
    def setting(self) -> str | list[float] | dict[str, list[float]]:
        """Return the setting that makes the same range: "auto" if nothing has been chosen yet."""
        spans = {kind: list(span) for kind, span in self._spans.items()}
        different = list(spans.values())
        if not spans:
            return AUTO
        return spans if different[0] != different[-1] else different[0]

    def is_known(self, kind: str) -> bool:
        """Return whether the range of "integers" or of "floats" is given or chosen."""
        return kind in self._spans

    def choose(self, kind: str, samples: Sequence[np.ndarray]) -> Span | None:
        """Choose the range of a kind by the module's rule, unless it is known, and log it.

        Args:
            kind: "integers" or "floats".
            samples: values of some pixels of each image.

        Returns:
            The range; None if all values are equal or none is finite, which says nothing.
        """
        with LOCK:
            if kind not in self._spans:
                values = np.concatenate([np.ravel(sample) for sample in samples])
                span = choose_span(kind, values, len(samples))
                if span is None:
                    return None

                self._spans[kind] = span
                logger.warning(describe(kind, span, values))
            return self._spans[kind]

    def to_uint8(self, values: np.ndarray) -> np.ndarray:
        """Map integers or floating values of any shape to uint8; NaN becomes black."""
        kind = kind_of(values)
        span = self._spans.get(kind)
        if span is None:
            span = self.choose(kind, [sample_pixels(values)])
        if span is None:
            span = span_of_constant(values)

        if values.dtype == np.uint16:
            table = scale(np.arange(SATURATED + 1), span)
            return table[values]
        return scale(values, span)


def parse_span(span: Any) -> Span:
    """Return a range of two numbers as a tuple.

    Raises:
        ValueError: it is something else.
    """
    try:
        low, high = (float(value) for value in span)
        if isinstance(span, str) or not -np.inf < low < high < np.inf:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"value_range is {span!r}; use auto, or [low, high] with the values that become black "
            "and white, such as [0, 4095] for 12 bits"
        ) from error
    return as_number(low), as_number(high)


def as_number(value: float) -> float:
    """Return whole numbers as int, others rounded to six digits."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def kind_of(values: np.ndarray) -> str:
    """Return the kind of an array's values."""
    return "floats" if values.dtype.kind == "f" else "integers"


def sample_pixels(values: np.ndarray, side: int = 256) -> np.ndarray:
    """Return the values of at most ``side`` evenly spaced rows and columns, without alpha.

    Args:
        values: (H, W) or (H, W, C).
        side: largest number of rows, and of columns.
    """
    height, width = values.shape[:2]
    rows = np.linspace(0, height - 1, min(height, side)).astype(int)
    columns = np.linspace(0, width - 1, min(width, side)).astype(int)
    sample = values[rows[:, None], columns]
    return sample[..., :3] if sample.ndim == 3 else sample


def choose_span(kind: str, values: np.ndarray, num_images: int) -> Span | None:
    """Return the range for some pixels of so many images by the module's rule; None if unclear."""
    values = values[np.isfinite(values)].astype(np.float64)
    if kind == "integers":
        values = values[values != SATURATED]
    if not len(values) or values.min() == values.max():
        return None

    values = without_mark(values)
    low, high = inner_values(values)
    is_sure = num_images >= MIN_IMAGES
    is_whole = kind == "integers" or bool((values == np.floor(values)).all())
    if is_whole and low >= 0 and (kind == "integers" or high > 1):
        span = choose_depth(low, high, is_sure=kind == "floats" or is_sure)
    else:
        span = choose_floats(values, low, high, is_sure=is_sure)

    # Almost all of the values may be equal.
    if not span[0] < span[1]:
        span = (float(values.min()), float(values.max()))
    return as_number(span[0]), as_number(span[1])


def without_mark(values: np.ndarray) -> np.ndarray:
    """Return the values without the lowest one if that marks pixels without a value."""
    lowest = values.min()
    others = values[values > lowest]
    if lowest >= 0 or not len(others):
        return values

    low, high = inner_values(others)
    return others if 0 < FAR_OUT * (high - low) < low - lowest else values


def inner_values(values: np.ndarray) -> Span:
    """Return the lowest and highest value without the outliers; at least one at either end."""
    count = len(values)
    skipped = min(int(np.ceil(OUTLIERS * count)), (count - 1) // 2)
    ordered = np.partition(values, (skipped, count - 1 - skipped))
    return float(ordered[skipped]), float(ordered[count - 1 - skipped])


def choose_depth(low: float, high: float, *, is_sure: bool) -> Span:
    """Return the range of the smallest number of bits, or, if most of it is unused, the values'.

    Args:
        low, high: range of the values, from 0 on.
        is_sure: the values are enough to show that the rest is unused.
    """
    for bits in DEPTHS:
        if high < 2**bits:
            is_narrow = high - low < NARROW * 2**bits
            # The values of 8 bits are always used as they are.
            return (low, high) if is_narrow and is_sure and bits > 8 else (0, 2**bits - 1)
    return low, high


def choose_floats(values: np.ndarray, low: float, high: float, *, is_sure: bool) -> Span:
    """Return the range of floating values, which lie between ``low`` and ``high`` but for a few.

    Args:
        values: all of them.
        low, high: their range.
        is_sure: the values are enough to show that the rest of [0, 1] is unused.
    """
    in_unit = ((values >= 0) & (values <= 1)).mean()
    if in_unit >= NEARLY_ALL and high < FAR_OUT:
        return (low, high) if is_sure and high - low < NARROW else (0, 1)
    if low >= 0 and high <= 255 and high - low >= MIN_CONTRAST:
        return 0, 255
    return low, high


def describe(kind: str, span: Span, values: np.ndarray) -> str:
    """Return what is assumed of deep images, and how to change it, in one line."""
    low, high = span
    names = {"integers": "more than 8 bits", "floats": "floating values"}
    bits = {2**depth - 1: f"{depth}-bit, " for depth in DEPTHS}
    depth = bits.get(int(high), "") if low == 0 and high == int(high) else ""
    beyond = ((values < low) | (values > high)).mean()
    clipped = f" ({100 * beyond:.2g} % of the pixels lie beyond)" if beyond else ""
    return (
        f"there are images with {names[kind]}: their values are taken as {depth}{low:g}..{high:g}"
        f"{clipped}; to change this, set dataloader.train.mapper.value_range=[low,high]"
    )


def span_of_constant(values: np.ndarray) -> Span:
    """Return the range for a single image that says nothing of the range of others."""
    value = float(np.nan_to_num(values.flat[0], posinf=0, neginf=0))
    low, high = FULL_SPANS[kind_of(values)]
    if low <= value <= high:
        return low, high
    if 0 <= value <= 255:
        return 0, 255
    return value - 1, value + 1


def scale(values: np.ndarray, span: Span) -> np.ndarray:
    """Map values linearly from a range to uint8, as the module says."""
    low, high = span
    is_whole = isinstance(low, int) and isinstance(high, int)
    if kind_of(values) == "integers" and is_whole:
        bins = (values.astype(np.int64) - low) * 256 // (high - low + 1)
        return bins.clip(0, 255).astype(np.uint8)

    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values - np.float32(low)) * np.float32(255 / (high - low))
    scaled = np.nan_to_num(scaled, posinf=255, neginf=0)
    return scaled.round().clip(0, 255).astype(np.uint8)
