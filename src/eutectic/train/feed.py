"""Batches made ahead of the step that wants them, in the order of the steps."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eutectic.atoms import EutecticError
from eutectic.tasks import Batch, Task, make_batch
from eutectic.train.source import Source


@dataclass(frozen=True)
class Fed:
    """One process's share of a batch, on the CPU.

    Attributes:
        index: of the batch, from the start of the run.
        batch: None where this process has no share of it.
    """

    index: int
    batch: Batch | None

    def pin_memory(self) -> Fed:
        """In memory that a GPU copies from while the CPU goes on (the data loader calls this)."""
        return replace(self, batch=_pinned(self.batch))


def _pinned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {key: _pinned(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _pinned(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


class _Batches(Dataset[Fed | EutecticError]):
    def __init__(self, source: Source, tasks: Sequence[Task], rank: int, world: int, dtype: torch.dtype) -> None:
        self.source, self.tasks, self.rank, self.world, self.dtype = source, tasks, rank, world, dtype

    def __getitem__(self, index: int) -> Fed | EutecticError:
        try:
            items = self.source.items(index, self.rank, self.world)
        except EutecticError as error:
            return error  # raised in a worker process it would come back without its four parts
        return Fed(index, make_batch(items, self.tasks, self.dtype) if items else None)


class Feed:
    """An iterator of batches that knows how long it was waited for.

    Attributes:
        waited: seconds, since this was last set to zero.
    """

    def __init__(self, batches: Iterator[Fed | EutecticError]) -> None:
        self._batches = batches
        self.waited = 0.0

    def take(self, count: int) -> list[Fed]:
        """The next few batches.

        Raises:
            EutecticError: a structure that cannot be used.
        """
        began = time.monotonic()
        taken = []
        for _ in range(count):
            fed = next(self._batches)
            if isinstance(fed, EutecticError):
                raise fed
            taken.append(fed)
        self.waited += time.monotonic() - began
        return taken


def default_workers(device: torch.device, processes: int) -> int:
    """None on a CPU, where they would take the cores that train; with a GPU the cores are free."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(0, min(8, cores // processes - 1))


@contextmanager
def feed(
    source: Source,
    tasks: Sequence[Task],
    batches: range,
    *,
    rank: int,
    world: int,
    dtype: torch.dtype,
    workers: int,
    pin: bool,
) -> Iterator[Feed]:
    """This process's share of each batch of a range.

    Args:
        source, tasks: as in the loop.
        batches: which, in order.
        rank, world: this process among all.
        dtype: of geometry and labels.
        workers: processes that make batches ahead; 0 makes each when it is asked for.
        pin: for a GPU.
    """
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _Batches(source, tasks, rank, world, dtype),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        # Forked workers are there at once, share the memory of the stores, and never touch the device.
        multiprocessing_context="fork" if forks else None,
        # Of its own, so that the global one is not drawn from.
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        yield Feed(iterator)
    finally:
        # Ends the workers now and not whenever the garbage is collected.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _as_it_is(value: Any) -> Any:
    return value
