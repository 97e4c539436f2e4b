"""Work in a process of its own, which others neither disturb nor end."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from salience_detr.utils.errors import one_line


class IsolatedError(RuntimeError):
    """Why a process of its own did not come to its end."""


def isolated(function: Callable[..., Iterable[Any]], *args: Any) -> Iterator[Any]:
    """What ``function(*args)`` gives, item by item, computed in a fresh process.

    Nothing of other work is in its memory, and what ends it ends it alone. It ends with the iterator.

    Raises:
        IsolatedError: the function raised an exception, or its process was ended.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender, function, args))
    with interrupts_ignored():  # which a new process inherits: Ctrl-C is for the one that waits
        process.start()
    sender.close()
    try:
        while True:
            try:
                item = receiver.recv()
            except EOFError:
                break
            if isinstance(item, IsolatedError):
                raise item
            yield item
        process.join()
        if process.exitcode:
            raise IsolatedError(describe_exit(process.exitcode))
    finally:
        process.kill()
        process.join()
        receiver.close()


def serve(
    connection: Connection, function: Callable[..., Iterable[Any]], args: tuple[Any, ...]
) -> None:
    """Send what a function gives, or why it could not, to the process that waits for it."""
    warnings.simplefilter("ignore")
    try:
        for item in function(*args):
            connection.send(item)
    except Exception as error:  # whatever the function raises is told where it is waited for
        connection.send(IsolatedError(f"{type(error).__name__}: {one_line(error)}"))


def describe_exit(code: int) -> str:
    """An exit code of a process in words; a negative one is a signal."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", as a system does where memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
