"""Ctrl-C, SIGTERM and a cluster's warning signal stop a run between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from eutectic.atoms import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Becomes true at the first signal; another one, two seconds later or more, ends the process as usual.

    (A terminal's Ctrl-C and a scheduler's signal may reach one process several times over.)

    Args:
        shared: a byte that several processes of a run see (`multiprocessing.Value("b", lock=False)`): a signal to
            the one that listens stops them all.
    """

    PATIENCE = 2.0

    def __init__(self, shared: Any = None) -> None:
        self._raised = False
        self._shared = shared
        self._when = 0.0

    @property
    def raised(self) -> bool:
        """Whether anyone asked to stop."""
        return self._raised or (self._shared is not None and bool(self._shared.value))

    def __bool__(self) -> bool:
        return self.raised

    def listen(self) -> dict[signal.Signals, Any]:
        """Catch the signals from now on (in a main thread; elsewhere nothing is caught); what caught them before."""

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
        """`listen`, for as long as the block runs."""
        before = self.listen()
        try:
            yield self
        finally:
            _restore(before)


@contextmanager
def stopping_at_once(message: str) -> Iterator[None]:
    """A signal ends the block right away: for work that is simply done again.

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
    return {number: signal.signal(number, handler) for number in SIGNALS}


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
