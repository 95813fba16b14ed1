"""How far a reading is, on standard error, once it is clear that it takes a while: a command's answer, which may be
JSON, goes to standard output."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHOW_AFTER = 5.0
"""Seconds after which progress is shown."""

Row = TypeVar("Row")


class Shown:
    """A bar with count, rate and time left; where nothing is counted, one that moves, and the time it has taken.

    Args:
        what: is done, e.g. "Reading qm9".
        total: how many; None while that is not known.
        done: of them, before this process began.
        noun: what is counted; empty where nothing is.
        enabled: whether to show it; a file or pipe in place of a terminal is never written to.
    """

    def __init__(
        self,
        what: str,
        total: int | float | None = None,
        *,
        done: int = 0,
        noun: str = "structures",
        enabled: bool = True,
    ) -> None:
        console = Console(stderr=True)
        counted = (MofNCompleteColumn(), TextColumn(f"{noun}{{task.fields[rate]}} ·"), TimeRemainingColumn())
        columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), BarColumn())
        self._progress = Progress(
            *columns,
            *(counted if noun else (TimeElapsedColumn(),)),
            transient=True,
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task(what, total=total, completed=done, rate="")
        self._begun, self._new = time.monotonic(), 0
        # A thread, since a library may be busy for long without a word.
        self._timer = threading.Timer(SHOW_AFTER, self._progress.start)
        self._timer.daemon = True

    def __enter__(self) -> Shown:
        if SHOW_AFTER > 0:
            self._timer.start()
        else:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        self._progress.stop()

    def tell(self, more: int, total: int | float | None = None) -> None:
        """So many more are done; `total` where it is known better now."""
        self._new += more
        seconds = time.monotonic() - self._begun
        rate = f" · {self._new / seconds:,.0f}/s" if seconds > 1 else ""
        self._progress.update(self._task, advance=more, rate=rate, total=total)


def counted(rows: Iterable[Row], what: str, total: int | None, *, enabled: bool = True) -> Iterator[Row]:
    """The same rows, counted as they pass."""
    with Shown(what, total, enabled=enabled) as shown:
        number = 0
        for number, row in enumerate(rows, start=1):
            yield row
            if not number % 50:
                shown.tell(50)
        shown.tell(number % 50)
