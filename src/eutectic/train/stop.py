"""Ctrl-C, SIGTERM and a cluster's warning signal stop a run between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Becomes true at the first signal; another one, two seconds later or more, ends the process as usual.

    (A terminal's Ctrl-C reaches every process of a run, and the parent passes it on to its children: the same
    wish may arrive twice.)
    """

    PATIENCE = 2.0

    def __init__(self) -> None:
        self.raised = False
        self._when = 0.0

    def __bool__(self) -> bool:
        return self.raised

    def listen(self) -> dict[signal.Signals, Any]:
        """Catch the signals from now on (in a main thread; elsewhere nothing is caught); what caught them before."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.raised and time.monotonic() - self._when > self.PATIENCE:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            if not self.raised:
                self.raised, self._when = True, time.monotonic()

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, note) for number in SIGNALS}

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """`listen`, for as long as the block runs."""
        before = self.listen()
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
