"""Signals that stop a run between two steps: Ctrl-C, SIGTERM, a closed terminal, a cluster's warning signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from eutectic.atoms import Interrupted
from eutectic.processes import caught


class StopFlag:
    """Set by the first signal; another one at least two seconds later terminates the process.

    Earlier ones are ignored, since Ctrl-C or a scheduler may signal a process several times.

    Args:
        shared: a byte in memory shared by the processes of a run (`multiprocessing.Value("b", lock=False)`), so that a
            signal to the listening process stops them all.
    """

    PATIENCE = 2.0

    def __init__(self, shared: Any = None) -> None:
        self._raised = False
        self._shared = shared
        self._when = 0.0

    @property
    def raised(self) -> bool:
        """Whether this process, or one that shares the flag, has received a signal."""
        return self._raised or (self._shared is not None and bool(self._shared.value))

    def __bool__(self) -> bool:
        return self.raised

    def listen(self) -> dict[signal.Signals, Any]:
        """Catch the signals from now on (only in the main thread); returns the previous handlers."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._raised and time.monotonic() - self._when > self.PATIENCE:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            if not self._raised:
                self._raised, self._when = True, time.monotonic()
                if self._shared is not None:
                    self._shared.value = 1

        return _install(note)

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """`listen` within a `with` block."""
        before = self.listen()
        try:
            yield self
        finally:
            _restore(before)


@contextmanager
def stopping_at_once(message: str) -> Iterator[None]:
    """Raise immediately on a signal, for work that can simply be repeated.

    Raises:
        Interrupted: with `message`.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(message)

    before = _install(end)
    try:
        yield
    finally:
        _restore(before)


def _install(handler: Any) -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in caught()}


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
