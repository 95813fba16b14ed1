"""Independent fine-tuning runs, one process each, as many at a time as there are cores; spread over the GPUs."""

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
from eutectic.train.finetune import FinetuneResult, finetune
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import FinetuneSettings

_stop = StopFlag()
"""In a worker process: raised by a signal, for this run and any that the worker was handed already."""


Result = TypeVar("Result")


def gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()] if torch.cuda.is_available() else []
    return [str(i) for i in range(torch.cuda.device_count())]


def _begin(devices: Sequence[str]) -> None:
    """In a new worker process: take one of several GPUs, before CUDA is used; note signals from here on."""
    if len(devices) > 1:
        # Numbered in the order in which they are started.
        (number, *_) = multiprocessing.current_process()._identity
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    # A signal is noted, never fatal: the run at hand stops at its next step and saves.
    _stop.listen()


def _one(settings: FinetuneSettings, folder: Path) -> FinetuneResult:
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
        return _one(settings, folder)
    except EutecticError as error:
        return error


def run_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult]:
    """All results, in order. Finished runs are read back; an interrupted call goes on where it stopped.

    Args:
        runs: settings and folder of each.
        title: of the progress bar.
        workers: processes; one for each core if not given.
        console: where to show progress.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
        EutecticError: one run failed; the others save and stop, and finished ones are kept.
    """
    return _side_by_side(_one, runs, title, workers, console)


def try_all(
    runs: Sequence[tuple[FinetuneSettings, Path]], *, title: str, workers: int | None = None, console: Console
) -> list[FinetuneResult | EutecticError]:
    """As `run_all`, but a run that fails does not stop the others: its error takes the place of its result.

    Raises:
        Interrupted: Ctrl-C; each run is resumable.
    """
    return _side_by_side(_attempt, runs, title, workers, console)


def _side_by_side(
    function: Callable[[FinetuneSettings, Path], Result],
    runs: Sequence[tuple[FinetuneSettings, Path]],
    title: str,
    workers: int | None,
    console: Console,
) -> list[Result]:
    # Long runs first: the last to finish is then a short one.
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
                kept="finished runs are kept, and the others resume",
                start=functools.partial(_begin, gpus()),
                progress=bar.advance,
                finished=run_done,
                one_thread=False,
                graceful=True,
            )
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(f"stopped during {title}; the same command resumes it") from error
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]
