"""Processes and devices: on one machine, under torchrun, under SLURM."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning_fabric as lf
import torch
from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from eutectic.atoms import EutecticError, Interrupted
from eutectic.train.settings import TrainSettings
from eutectic.train.stop import SIGNALS

# At import, so that spawned processes are quiet from the start; warnings and errors still come through.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def make_fabric(settings: TrainSettings) -> lf.Fabric:
    """A Fabric that has not been launched.

    Under torchrun or SLURM the launcher says how many processes there are; otherwise `settings.processes` are
    spawned on this machine.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning_fabric.*")
    external = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_NTASKS" in os.environ
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    devices = settings.processes
    strategy = "auto"
    if external:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", "1")))
        strategy = "ddp"
    elif devices > 1:
        strategy = "ddp_spawn"
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", os.environ.get("SLURM_NNODES", "1"))) if external else 1
    return lf.Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=settings.precision,
    )


def share_threads(settings: TrainSettings, processes: int) -> None:
    """Give this process its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    torch.set_num_threads(settings.threads or max(1, cores // processes))


def launch(fabric: lf.Fabric, work: Callable[[lf.Fabric], None]) -> None:
    """Call `work` in every process of the run, and bring home what stopped it.

    Args:
        work: picklable where processes are spawned.

    Raises:
        Interrupted, EutecticError: as raised in a process.
    """
    if not isinstance(fabric.strategy.launcher, _MultiProcessingLauncher):
        fabric.launch()
        work(fabric)
        return
    context = multiprocessing.get_context("spawn")
    raised = context.SimpleQueue()
    signalled = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in SIGNALS} if main else {}
    failure: Exception | None = None
    try:
        fabric.launch(_Guarded(work, raised))
    except Exception as error:
        failure = error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not raised.empty():
        ended = raised.get()
        if ended is None:
            # The first process came to its end, and it cannot without the others: a process that was killed by
            # its own libraries while exiting (gloo's threads can do that) took nothing with it.
            return
        raise ended
    if signalled:
        raise Interrupted("stopped before the first step; the same command starts again") from failure
    if failure is not None:
        raise failure


class _Guarded:
    """A process's work, its expected ends sent to the parent instead of printed as tracebacks.

    Fabric looks into a function's arguments for modules and refuses frozen dataclasses there: what the work
    needs travels inside it.
    """

    def __init__(self, work: Callable[[lf.Fabric], None], raised: Any) -> None:
        self.work, self.raised = work, raised

    def __call__(self, fabric: lf.Fabric) -> None:
        try:
            self.work(fabric)
            if fabric.global_rank == 0:
                self.raised.put(None)
        except (Interrupted, EutecticError) as error:
            if fabric.global_rank == 0 or isinstance(error, EutecticError):
                self.raised.put(error)
        finally:
            if torch.distributed.is_initialized():
                # Leaving it to the interpreter's exit races with gloo's threads.
                torch.distributed.destroy_process_group()
