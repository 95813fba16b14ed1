"""Worker processes of the commands that make stores: one thread each, and never left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


def start_worker() -> None:
    """A worker uses one thread, leaves Ctrl-C to its parent, ends with it, and passes no warnings on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of readers and label engines: nobody here can act on them
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside this block use one thread for linear algebra (more made them far slower)."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers now: what they have not finished is made anew anyway."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


def cores() -> int:
    """Cores this process may use, which on a shared machine can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
