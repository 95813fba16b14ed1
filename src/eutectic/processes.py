"""Call a function in several worker processes, which end with this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from eutectic.atoms import EutecticError, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals that stop work so that it can be resumed: Ctrl-C, a scheduler's or cluster's warning, a closed terminal."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

DIED = "a worker process died (out of memory, killed, or a crash in a compiled library)"

Result = TypeVar("Result")

_counter: Any = None
"""In a worker process: total work done by all workers, shared with the parent."""

_stopping: Any = None
"""In a worker process: whether to start no further calls, shared with the parent."""


def caught() -> list[signal.Signals]:
    """The signals to catch: `SIGNALS`, without SIGHUP if it is ignored, as under nohup."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


def cores() -> int:
    """Number of CPU cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count(more: int) -> None:
    """In a worker process, add to the work done (see `run_in_processes`). Elsewhere this does nothing."""
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

    If a call, `progress` or `finished` raises, or a signal stops the work (see `SIGNALS`), no further calls are
    started, the workers are ended, and the exception is raised here. Workers also end when this process is killed.

    Args:
        function: function to call; pickled by name.
        calls: its arguments, one tuple per call; pickled. Started in this order.
        workers: number of processes, at most one per call.
        where: activity, for errors.
        kept: note on finished work, for the error when a worker dies.
        start: called first in each worker; pickled by name.
        progress: called here, a few times a second, with the sum of what the workers passed to `count` in between.
        finished: called here with the index and result of each finished call.
        one_thread: use one linear-algebra thread per worker (more made them far slower).
        graceful: workers handle signals themselves (handlers installed by `start`) and finish soon, so they are sent
            SIGINT and joined. Otherwise they ignore signals and are killed when the work is stopped.

    Returns:
        The results, in the order of `calls`.

    Raises:
        EutecticError: a worker process died; no workers.
        KeyboardInterrupt: one of `SIGNALS`.
        Exception: raised by a call.
    """
    if workers < 1:
        raise EutecticError(where, f"{workers} worker processes", "at least 1", "omit the number to use one per core")
    if not calls:
        return []
    # Spawned, since forking a process with threads (Arrow starts some) may hang.
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
                # The pool may not notice a dead worker while the others are busy: it watches only the workers that
                # existed when it was last woken (seen with Python 3.11).
                if running and connection.wait([process.sentinel for process in _processes(pool)], timeout=0):
                    raise BrokenProcessPool("a worker has ended")
        except BrokenProcessPool as error:
            _end(pool, graceful)  # the other workers, for which the pool would wait
            raise EutecticError(
                where,
                DIED,
                "workers that run to completion",
                f'run again with fewer workers; {kept}. A script must start work below `if __name__ == "__main__":`',
            ) from error
        except BaseException:
            stopping.value = 1
            _end(pool, graceful)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]


def map_in_order(
    function: Callable[..., Result],
    calls: Iterable[tuple[Any, ...]],
    starts: Sequence[Callable[[], object]],
    *,
    where: str,
    fix: str,
) -> Iterator[Result]:
    """Call a function with many sets of arguments, in worker processes; at most two calls per worker are queued.

    Workers end with the iterator, and when this process is killed. Only this process handles signals.

    Args:
        function: function to call; pickled by name.
        calls: its arguments, one tuple per call, read lazily; pickled.
        starts: for each worker, the function called first in it; pickled.
        where: activity, for errors.
        fix: advice in the error when a worker dies.

    Yields:
        The results, in the order of `calls`.

    Raises:
        EutecticError: a worker process died.
        Exception: raised by a call.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    for start in starts:
        queue.put(start)
    initial = (context.Value("q", 0), context.Value("b", 0), partial(_start_next, queue))
    pool = ProcessPoolExecutor(len(starts), mp_context=context, initializer=_start, initargs=initial)
    waiting: deque[Future[Result]] = deque()

    def first() -> Result:
        while not wait([waiting[0]], timeout=0.25).done:
            # As in `run_in_processes`: the pool may not notice a dead worker.
            if connection.wait([process.sentinel for process in _processes(pool)], timeout=0):
                raise BrokenProcessPool("a worker has ended")
        return waiting.popleft().result()

    try:
        for arguments in calls:
            # Workers start with the first call; they inherit ignored signals until they ignore them themselves.
            with contextlib.nullcontext() if waiting else _interruptible():
                waiting.append(pool.submit(_call, function, arguments))
            if len(waiting) >= 3 * len(starts):
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool as error:
        raise EutecticError(where, DIED, "workers that run to completion", fix) from error
    finally:
        if waiting:
            _end(pool, graceful=False)
        pool.shutdown(wait=True, cancel_futures=True)


def _start_next(queue: Any) -> None:
    queue.get()()


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    # The pool queues one call more than there are workers, which cannot be cancelled.
    if _stopping.value:
        raise Interrupted("not started")
    return function(*arguments)


def _start(counter: Any, stopping: Any, start: Callable[[], object] | None) -> None:
    """In a new worker: ignore signals, which the parent handles, and end with the parent."""
    global _counter, _stopping
    _counter, _stopping = counter, stopping
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # from readers and label engines; users cannot act on them
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
            # Ctrl-C in a terminal has reached it already, but a signal sent only to the parent has not.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        else:
            process.kill()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ignore signals, also in processes started in the block, until the yielded function is called; from then on they
    raise KeyboardInterrupt (in the main thread only)."""
    signals = caught() if threading.current_thread() is threading.main_thread() else []

    def listen() -> None:
        # Set explicitly, since a shell that starts this in the background makes it ignore Ctrl-C.
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


def available_memory() -> int | None:
    """Bytes of memory that this process can still use without swapping; None if unknown.

    On Linux, the smaller of the machine's available memory and what the limit of the control group (container) leaves.
    """
    available = []
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            maximum, current = (int((Path("/sys/fs/cgroup") / name).read_text()) for name in (limit, used))
            available.append(maximum - current)
    return max(0, min(available)) if available else None
