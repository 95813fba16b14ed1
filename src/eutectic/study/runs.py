"""Independent fine-tuning runs, one process each, as many at a time as there are cores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eutectic.atoms import Interrupted
from eutectic.console import ProgressBar
from eutectic.processes import cores, count, run_in_processes
from eutectic.train.finetune import FinetuneResult, finetune
from eutectic.train.runtime.stop import StopFlag
from eutectic.train.settings import FinetuneSettings

_stop = StopFlag()
"""In a worker process: raised by a signal, for this run and any that the worker was handed already."""


def _one(settings: FinetuneSettings, folder: Path) -> FinetuneResult:
    done = 0

    def step_done(step: int) -> None:
        nonlocal done
        count(step - done)
        done = step

    if _stop:
        raise Interrupted("not begun")
    return finetune(settings, folder, alone=True, on_step=step_done, stop=_stop)


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

        def run_done(number: int, result: FinetuneResult) -> None:
            nonlocal finished
            finished += 1
            bar.advance(0, note=f"{finished} of {len(runs)} runs")

        try:
            results = run_in_processes(
                _one,
                [runs[i] for i in order],
                cores() if workers is None else workers,
                where=title,
                kept="finished runs are kept, and the others resume",
                # From here on a signal is noted, never fatal: the run at hand stops at its next step and saves.
                start=_stop.listen,
                progress=bar.advance,
                finished=run_done,
                one_thread=False,
                graceful=True,
            )
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(f"stopped during {title}; the same command resumes it") from error
    return [result for _, result in sorted(zip(order, results, strict=True), key=lambda pair: pair[0])]
