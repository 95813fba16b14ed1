"""Many independent fine-tuning runs, one process each, as many at a time as there are cores."""

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
"""In a worker process: shared array of steps done, by run."""

_stop = StopFlag()
"""In a worker process: raised by a signal, for this run and any that it had already been handed."""


def _begin(done: Any) -> None:
    global _done
    _done = done
    # From here on a signal is noted, never fatal: the run at hand stops at its next step and saves.
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
        raise Interrupted("not begun")
    return finetune(settings, folder, alone=True, on_step=note, stop=_stop)


def run_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult]:
    """All results, in order. Finished runs are read back; an interrupted call goes on where it stopped.

    Args:
        runs: settings and folder of each.
        workers: processes; one for each core if not given.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
        EutecticError: one run failed; the others' results are kept on disk.
    """
    workers = min(workers or cores(), len(runs))
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", len(runs), lock=False)
    total = sum(settings.train.steps for settings, _ in runs)
    # Long runs first: the last to finish is then a short one.
    order = sorted(range(len(runs)), key=lambda i: -runs[i][0].train.steps)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(done,))
    # A job scheduler's SIGTERM is a wish to stop, like Ctrl-C; and a shell may have started this in the background,
    # where Ctrl-C is ignored unless it is asked for.
    main = threading.current_thread() is threading.main_thread()
    stopping = (signal.SIGINT, signal.SIGTERM) if main else ()
    # Workers inherit this and come up deaf, until `_begin` lets them note a signal instead of dying of it.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stopping}
    with progress_bar(console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total, note="")
        try:
            futures = {i: pool.submit(_one, i, *runs[i]) for i in order}
            for number in stopping:
                signal.signal(number, signal.default_int_handler)
            told = 0
            while True:
                finished = [i for i, future in futures.items() if future.done()]
                for i in finished:
                    if futures[i].exception() is not None:
                        raise futures[i].exception()  # type: ignore[misc]
                progress.update(bar, completed=sum(done), note=f"{len(finished)} of {len(runs)} runs")
                if not console.is_terminal and len(finished) >= told + max(1, len(runs) // 8):
                    told = len(finished)
                    console.print(f"{title}: {told} of {len(runs)} runs", highlight=False)
                if len(finished) == len(runs):
                    break
                time.sleep(0.2)
        except (KeyboardInterrupt, Interrupted) as error:
            # A terminal's Ctrl-C has reached the workers already; a signal sent to this process alone has not.
            for worker in multiprocessing.active_children():
                if worker.pid is not None:
                    os.kill(worker.pid, signal.SIGINT)
            pool.shutdown(wait=True, cancel_futures=True)
            raise Interrupted(f"stopped during {title}; the same command goes on where it stopped") from error
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
