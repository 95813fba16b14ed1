"""Many independent fine-tuning runs in parallel, one process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console

from eutectic.atoms import EutecticError, Interrupted
from eutectic.processes import cores
from eutectic.train.finetune import FinetuneResult, finetune
from eutectic.train.runtime.display import progress_bar
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import FinetuneSettings

_done: Any = None
"""In a worker process: shared array of steps done by each run."""

_stop = StopFlag()
"""In a worker process: set by a signal, for the current run and any queued for this worker."""


def _begin(done: Any) -> None:
    global _done
    _done = done
    # From here on a signal only sets the flag: the current run stops after its next step and saves.
    _stop.listen()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _one(index: int, settings: FinetuneSettings, folder: Path) -> FinetuneResult:
    def note(step: int) -> None:
        _done[index] = step

    if _stop:
        raise Interrupted("not started")
    return finetune(settings, folder, alone=True, on_step=note, stop=_stop)


def run_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult]:
    """Run all and return their results in order. Finished runs are read back, and interrupted ones resumed.

    Args:
        runs: settings and folder of each.
        workers: number of processes; default: one per core.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
        EutecticError: a run failed; results of the others are kept on disk.
    """
    workers = min(workers or cores(), len(runs))
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", len(runs), lock=False)
    total = sum(settings.train.steps for settings, _ in runs)
    # Long runs first, so that the last to finish is short.
    order = sorted(range(len(runs)), key=lambda i: -runs[i][0].train.steps)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(done,))
    # SIGTERM from a job scheduler stops like Ctrl-C. In a shell's background jobs Ctrl-C is ignored unless a handler
    # is installed.
    main = threading.current_thread() is threading.main_thread()
    stopping = (signal.SIGINT, signal.SIGTERM) if main else ()
    # Workers inherit this and ignore signals until `_begin` installs their handlers.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stopping}
    with progress_bar(console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total, note="")
        try:
            futures = {i: pool.submit(_one, i, *runs[i]) for i in order}
            for number in stopping:
                signal.signal(number, signal.default_int_handler)
            reported = 0
            while True:
                finished = [i for i, future in futures.items() if future.done()]
                for i in finished:
                    if futures[i].exception() is not None:
                        raise futures[i].exception()  # type: ignore[misc]
                progress.update(bar, completed=sum(done), note=f"{len(finished)} of {len(runs)} runs")
                if not console.is_terminal and len(finished) >= reported + max(1, len(runs) // 8):
                    reported = len(finished)
                    console.print(f"{title}: {reported} of {len(runs)} runs", highlight=False)
                if len(finished) == len(runs):
                    break
                time.sleep(0.2)
        except (KeyboardInterrupt, Interrupted) as error:
            # A terminal's Ctrl-C has reached the workers already; a signal sent to this process alone has not.
            for worker in multiprocessing.active_children():
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGINT)
            pool.shutdown(wait=True, cancel_futures=True)
            raise Interrupted(f"stopped during {title}; the same command resumes it") from error
        except BrokenProcessPool as error:
            raise EutecticError(
                title,
                "a worker process died (out of memory, or killed)",
                "worker processes that run to completion",
                "run again with fewer workers or a smaller batch; finished runs are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for number, handler in before.items():
                signal.signal(number, handler)
    return [futures[i].result() for i in range(len(runs))]
