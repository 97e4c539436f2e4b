"""Errors are one line."""

from __future__ import annotations

import io

import pytest

from salience_detr.utils.errors import one_line, printable, tolerate_names


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


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_a_name_that_a_console_cannot_encode_is_escaped(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    tolerate_names([stream, closed, None, io.StringIO()])
    print("a\ud800 Löcher 錆", file=stream, flush=True)
    assert stream.buffer.getvalue().startswith(b"a\\ud800 L")


def test_lone_surrogates_are_replaced_and_other_names_stay():
    assert printable("a\ud83d\udc80é錆🙂") == "a??é錆🙂"
