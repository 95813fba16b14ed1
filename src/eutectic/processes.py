"""Worker processes: one function, called in several processes, that never outlive this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from eutectic.atoms import EutecticError, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Result = TypeVar("Result")

_counter: Any = None
"""In a worker process: how much of the work all of them have done, shared with the parent."""

_stopping: Any = None
"""In a worker process: whether nothing more should be begun, shared with the parent."""


def cores() -> int:
    """Cores this process may use, which on a shared machine can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count(more: int) -> None:
    """In a worker process: report that so much more is done (see `run_in_processes`). Elsewhere nothing happens."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += more


def run_in_processes(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    workers: int,
    *,
    where: str,
    kept: str = "what was finished is kept",
    start: Callable[[], object] | None = None,
    progress: Callable[[int], object] = lambda more: None,
    finished: Callable[[int, Result], object] = lambda number, result: None,
    one_thread: bool = True,
    graceful: bool = False,
) -> list[Result]:
    """Call a function with several sets of arguments, in worker processes.

    If a call fails, `progress` or `finished` raises, or the user wants to stop (Ctrl-C, SIGTERM), nothing more is
    begun, the workers are ended, and the exception goes on to the caller. Workers also end when this process is killed.

    Args:
        function: to call; pickled by its name.
        calls: its arguments, one tuple for each call; pickled. Begun in this order.
        workers: processes, at most one for each call.
        where: what the user is doing, for errors.
        kept: what becomes of the work that is done when a worker dies, for the error.
        start: called first in each worker; pickled by its name.
        progress: called here, a few times a second, with the sum of what the workers have passed to `count` since.
        finished: called here with the number of a call and its result, once it is there.
        one_thread: workers use one thread each for linear algebra (more made them far slower).
        graceful: workers note signals themselves (`start` sees to that) and finish soon: they are sent SIGINT and
            waited for. Otherwise they ignore signals, and are killed when the work is stopped.

    Returns:
        The results, in the order of `calls`.

    Raises:
        EutecticError: a worker process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
        Exception: whatever a call raised.
    """
    if not calls:
        return []
    # Spawned: a fork of a process with threads (Arrow has some) may hang.
    context = multiprocessing.get_context("spawn")
    counter, stopping, seen = context.Value("q", 0), context.Value("b", 0), 0
    pool = ProcessPoolExecutor(
        min(workers, len(calls)), mp_context=context, initializer=_start, initargs=(counter, stopping, start)
    )
    with _interruptible() as listen, _one_thread_each() if one_thread else contextlib.nullcontext():
        try:
            futures: dict[Future[Result], int] = {
                pool.submit(_call, function, arguments): number for number, arguments in enumerate(calls)
            }
            listen()
            running = set(futures)
            while running:
                done, running = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                seen, before = counter.value, seen
                progress(seen - before)
                for future in sorted(done, key=futures.__getitem__):
                    finished(futures[future], future.result())
                # The pool itself may not notice for as long as the other workers are busy: it watches those that there
                # were when it last had something to do (seen with Python 3.11).
                if running and connection.wait([process.sentinel for process in _processes(pool)], timeout=0):
                    raise BrokenProcessPool("a worker has ended")
        except BrokenProcessPool as error:
            _end(pool, graceful)  # the other workers, whose end the pool waits for
            raise EutecticError(
                where,
                "a worker process died (out of memory, killed, or a crash in a compiled library)",
                "workers that run to completion",
                f"run the same command again with fewer workers; {kept}",
            ) from error
        except BaseException:
            stopping.value = 1
            _end(pool, graceful)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    # A pool hands out one call more than there are workers, which cannot be taken back.
    if _stopping.value:
        raise Interrupted("not begun")
    return function(*arguments)


def _start(counter: Any, stopping: Any, start: Callable[[], object] | None) -> None:
    """In a new worker: leave signals to the parent, and end with it."""
    global _counter, _stopping
    _counter, _stopping = counter, stopping
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of readers and label engines: nobody here can act on them
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    if start is not None:
        start()


def _processes(pool: ProcessPoolExecutor) -> list[multiprocessing.process.BaseProcess]:
    return list((pool._processes or {}).values())


def _end(pool: ProcessPoolExecutor, graceful: bool) -> None:
    for process in _processes(pool):
        if graceful and process.pid is not None:
            # A terminal's Ctrl-C has reached it already; a signal to the parent alone has not.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        else:
            process.kill()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Signals are ignored, as processes started here inherit it, until the yielded function is called; then Ctrl-C and
    SIGTERM raise KeyboardInterrupt (in the main thread; another is never interrupted)."""
    signals = SIGNALS if threading.current_thread() is threading.main_thread() else ()

    def listen() -> None:
        # Also where a shell has started this in the background, with Ctrl-C ignored.
        for number in signals:
            signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
