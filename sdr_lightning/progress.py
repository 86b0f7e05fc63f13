"""Progress of long work: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY_S = 30.0
"""Seconds between two lines of a log."""
_SPEED_OVER_S = 600  # the time left is estimated from the speed over this time

Advance = Callable[[int], None]
"""Called with the number of items finished since the last call."""


@contextmanager
def progress(what: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Advance]:
    """Show how much of the work is done and the time left, in the terminal until it ends.

    Where the console is no terminal, a line is printed at most every :data:`EVERY_S` seconds; short work prints none.

    Args:
        what: the items, such as ``captions``.
        total: number of items.
        done: items that were finished before.
        console: where to print; standard error if None.

    Yields:
        The function to call with the number of items just finished.
    """
    console = Console(stderr=True) if console is None else console
    if not console.is_terminal:
        yield _Lines(what, total, done, console).advance
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left")),
    )
    with Progress(*columns, console=console, transient=True, speed_estimate_period=_SPEED_OVER_S) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda number: bar.advance(task, number)


def time_left(seconds: float) -> str:
    """Say how much time is left, rounded up.

    >>> time_left(12), time_left(200)
    ('about 20 s left', 'about 4 min left')
    """
    return f"about {math.ceil(seconds / 60)} min left" if seconds > 90 else f"about {math.ceil(seconds / 10)}0 s left"


class _Lines:
    def __init__(self, what: str, total: int, done: int, console: Console) -> None:
        self._what, self._total, self._console = what, total, console
        self._before = self._done = done
        self._started = self._printed = time.monotonic()

    def advance(self, number: int) -> None:
        self._done += number
        now = time.monotonic()
        if now - self._printed < EVERY_S or self._done >= self._total or self._done == self._before:
            return
        self._printed = now
        left = (now - self._started) / (self._done - self._before) * (self._total - self._done)
        line = f"{self._what}: {self._done:,} of {self._total:,}; {time_left(left)}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
