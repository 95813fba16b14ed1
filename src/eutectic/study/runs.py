"""Independent fine-tuning runs, one process each, by default one per core at a time, distributed over the GPUs."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from eutectic.atoms import EutecticError, Interrupted
from eutectic.console import ProgressBar
from eutectic.processes import cores, count, run_in_processes
from eutectic.train.finetune import finetune
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import FinetuneSettings

_stop = StopFlag()
"""In a worker process: set by a signal, for the current run and runs already queued in the worker."""


Result = TypeVar("Result")


def gpus() -> list[str]:
    """The GPUs that this process may use, by their names in `CUDA_VISIBLE_DEVICES`."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(i) for i in range(torch.cuda.device_count())]


def _begin(devices: Sequence[str]) -> None:
    """In a new worker process: choose one of several GPUs before CUDA is used, and catch signals."""
    if len(devices) > 1:
        # Workers are numbered in the order in which they are started.
        (number, *_) = multiprocessing.current_process()._identity
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    # Signals are not fatal: the current run stops after its next step and saves.
    _stop.listen()


def _run(settings: FinetuneSettings, folder: Path) -> FinetuneResult:
    done = 0

    def step_done(step: int) -> None:
        nonlocal done
        count(step - done)
        done = step

    if _stop:
        raise Interrupted("not begun")
    return finetune(settings, folder, alone=True, on_step=step_done, stop=_stop)


def _attempt(settings: FinetuneSettings, folder: Path) -> FinetuneResult | EutecticError:
    try:
        return _run(settings, folder)
    except EutecticError as error:
        return error


def run_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult]:
    """All results, in order. Finished runs are read back; an interrupted call is resumed.

    Args:
        runs: settings and folder of each run.
        title: of the progress bar.
        workers: number of processes; default: one per core.
        console: for progress.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
        EutecticError: one run failed; the others save and stop, and finished ones are kept.
    """
    return _concurrently(_run, runs, title, workers, console)


def try_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult | EutecticError]:
    """Like `run_all`, but a failed run does not stop the others: its error replaces its result.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
    """
    return _concurrently(_attempt, runs, title, workers, console)


def _concurrently(
    function: Callable[[FinetuneSettings, Path], Result],
    runs: Sequence[tuple[FinetuneSettings, Path]],
    title: str,
    workers: int | None,
    console: Console,
) -> list[Result]:
    # Long runs first, so that few cores are idle at the end.
    lengths = [settings.train.steps for settings, _ in runs]
    order = sorted(range(len(runs)), key=lambda i: -(lengths[i] or 0))
    finished = 0

    with ProgressBar(
        title,
        None if None in lengths else sum(steps or 0 for steps in lengths),
        unit="steps",
        delay=0,
        keep=True,
        lines=8,
        enabled=not console.quiet,
        console=console,
    ) as bar:

        def run_done(number: int, result: Result) -> None:
            nonlocal finished
            finished += 1
            bar.advance(0, note=f"{finished} of {len(runs)} runs")

        try:
            results = run_in_processes(
                function,
                [runs[i] for i in order],
                cores() if workers is None else workers,
                where=title,
                kept="finished runs are kept, and the others can be resumed",
                start=functools.partial(_begin, gpus()),
                progress=bar.advance,
                finished=run_done,
                one_thread=False,
                graceful=True,
            )
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(f"stopped during {title}; the same command resumes it") from error
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]
