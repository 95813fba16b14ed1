"""Progress bars."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SHOW_AFTER = 5.0
"""Seconds after which a bar is shown."""

LINE_EVERY = 30.0
"""Seconds between progress lines where no bar can be shown."""

Element = TypeVar("Element")


class ProgressBar:
    """A progress bar with count, rate and time left, shown after a delay.

    It goes to standard error, since results (possibly JSON) go to standard output.

    Args:
        description: label, e.g. "Reading qm9".
        total: number of units; None while unknown.
        done: units done before this process began.
        unit: unit of the count, in the plural; "bytes" are shown in kB, MB, …; if empty, the bar pulses and shows
            only the elapsed time.
        enabled: False shows nothing. No bar is shown if standard error is a file or a pipe.
        lines: total number of progress lines to print where no bar can be shown.
        every: seconds between such lines instead; for unknown totals.
        delay: seconds until the bar is shown; default: `SHOW_AFTER`.
        keep: leave the bar on the screen at the end.
        console: console to use instead of standard error.
    """

    def __init__(
        self,
        description: str,
        total: float | None = None,
        *,
        done: int = 0,
        unit: str = "structures",
        enabled: bool = True,
        lines: int = 0,
        every: float | None = None,
        delay: float | None = None,
        keep: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._description, self._unit = description, unit
        self._lines = lines if enabled and not self.console.is_terminal else 0
        self._every = every if enabled and not self.console.is_terminal else None
        self._delay = SHOW_AFTER if delay is None else delay
        columns: tuple[ProgressColumn, ...] = (TimeElapsedColumn(),)
        if unit:
            count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
            columns = (count, _text("rate"), TextColumn("·"), TimeRemainingColumn())
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            _text("note"),
            transient=not keep,
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._progress.add_task(description, total=total, completed=done, rate=unit, note="")
        self._total, self._before, self._printed = total, done, 0
        self._done: float = done
        self._note = ""
        self._begun = self._last_line = time.monotonic()
        # A timer thread, since the first update may come late.
        self._timer = threading.Timer(self._delay, self._progress.start)
        self._timer.daemon = True

    def __enter__(self) -> ProgressBar:
        if self._delay > 0:
            self._timer.start()
        else:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        self._progress.stop()

    def advance(self, more: float = 1, *, total: float | None = None, note: str | None = None) -> None:
        """Add `more` to the count; other arguments as in `update`."""
        self.update(self._done + more, total=total, note=note)

    def update(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        """Set the count; `total` updates the total, and `note` is shown after the time left."""
        self._done = done
        self._total = self._total if total is None else total
        self._note = self._note if note is None else note
        seconds, new = time.monotonic() - self._begun, done - self._before
        speed = new / seconds if seconds > 1 else 0.0
        self._progress.update(self._task, completed=done, total=total, rate=self._rate(speed), note=self._note)
        if self._lines and self._total and new > 0:
            part = int(self._lines * new / max(self._total - self._before, 1))
            if part > self._printed:
                self._printed = part
                left = f", about {(self._total - done) / speed / 60:.0f} min left" if speed else ""
                line = f"{self._description}: {done:,.0f} of {self._total:,.0f} {self._unit}"
                note = f", {self._note}" if self._note else ""
                self.console.print(f"{line}{note}{left}", highlight=False, markup=False)

        if self._every is not None and time.monotonic() - self._last_line > self._every:
            self._last_line = time.monotonic()
            left = f", about {(self._total - done) / speed / 60:.0f} min left" if speed and self._total else ""
            line = f"{self._description}: {done:,.0f} {self._unit}, {speed:,.0f} per second{left}"
            self.console.print(line, highlight=False, markup=False)

    def _rate(self, speed: float) -> str:
        if self._unit == "bytes":
            return f"· {speed / 1e6:.1f} MB/s" if speed else ""
        return f"{self._unit} · {speed:{',.0f' if speed >= 10 else '.2g'}}/s" if speed else self._unit


def _text(field: str) -> TextColumn:
    return TextColumn(f"{{task.fields[{field}]}}", markup=False)


def track(
    elements: Iterable[Element], description: str, total: int | None, *, enabled: bool = True
) -> Iterator[Element]:
    """Iterate over `elements` with a progress bar."""
    with ProgressBar(description, total, enabled=enabled) as bar:
        number = 0
        for number, element in enumerate(elements, start=1):
            yield element
            if not number % 50:
                bar.advance(50)
        bar.advance(number % 50)
