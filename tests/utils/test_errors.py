"""Errors are one line."""

from __future__ import annotations

import pytest

from salience_detr.utils.errors import one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no such\n  file"), "no such file"),
        (ValueError(), "ValueError"),
        (
            ValueError(
                "Caught it in worker 0.\nTraceback (most recent call last):\n  File x\n"
                "a.b.ImageReadError: no: 1"
            ),
            "no: 1",
        ),
        (ValueError("Traceback ...\ncannot read a b: truncated"), "cannot read a b: truncated"),
    ],
)
def test_the_words_of_an_error_are_kept_without_its_traceback(error, expected):
    assert one_line(error) == expected
