"""Batches made ahead of the step that wants them, in the order of the steps."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eutectic.atoms import EutecticError
from eutectic.processes import cores
from eutectic.tasks import Batch, Task, make_batch
from eutectic.train.batches.sampler import BatchSampler, TaskDataset

TOGETHER = 64
"""Structures that are made in one go, where a process's share of a batch is smaller."""

SHARED_MEMORY = 2**30
"""Free bytes of it without which batches are made in line (a container of Docker's has 64 MiB)."""


@dataclass(frozen=True)
class RankBatch:
    """One process's share of a batch, on the CPU.

    Attributes:
        index: of the batch, from the start of the run.
        batch: with a structure at least (see `check_shares`).
    """

    index: int
    batch: Batch


_Made = list[RankBatch | EutecticError]


@dataclass(frozen=True)
class _PackedBatches:
    """What a worker process made, its many tensors laid into one for each type: sending each by itself takes longer
    than making it.

    Attributes:
        outline: everything but the tensors, pickled.
        contents: type → all tensors of that type, one behind the other.
        places: of each tensor: type, beginning, shape.
    """

    outline: bytes
    contents: dict[torch.dtype, torch.Tensor]
    places: list[tuple[torch.dtype, int, torch.Size]]

    @classmethod
    def of(cls, value: object) -> _PackedBatches:
        file = io.BytesIO()
        packer = _Packer(file)
        packer.dump(value)
        places: list[tuple[torch.dtype, int, torch.Size]] = []
        parts: dict[torch.dtype, list[torch.Tensor]] = {}
        ends: dict[torch.dtype, int] = {}
        for tensor in packer.tensors:
            kind, begin = tensor.dtype, ends.get(tensor.dtype, 0)
            places.append((kind, begin, tensor.shape))
            # Every tensor begins at a multiple of 16 elements, as kernels like it.
            room = -(-tensor.numel() // 16) * 16
            parts.setdefault(kind, []).append(torch.nn.functional.pad(tensor.reshape(-1), (0, room - tensor.numel())))
            ends[kind] = begin + room
        return cls(file.getvalue(), {kind: torch.cat(p) for kind, p in parts.items()}, places)

    def pin_memory(self) -> _PackedBatches:
        """In memory that a GPU copies from while the CPU goes on (the data loader calls this)."""
        return replace(self, contents={kind: value.pin_memory() for kind, value in self.contents.items()})

    def unpacked(self) -> Any:
        """The value, its tensors views of `contents`."""
        tensors = [self.contents[kind][a : a + shape.numel()].view(shape) for kind, a, shape in self.places]
        unpacker = pickle.Unpickler(io.BytesIO(self.outline))
        unpacker.persistent_load = tensors.__getitem__  # type: ignore[method-assign]
        return unpacker.load()


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Batches(Dataset[Any]):
    def __init__(
        self, source: BatchSampler, tasks: Sequence[Task], rank: int, world: int, dtype: torch.dtype, pack: bool
    ) -> None:
        self.source, self.tasks, self.rank, self.world, self.dtype = source, tasks, rank, world, dtype
        self.pack = pack

    def __getitems__(self, indices: Sequence[int]) -> _Made | _PackedBatches:
        made = self._made(indices)
        return _PackedBatches.of(made) if self.pack else made

    def _made(self, indices: Sequence[int]) -> _Made:
        try:
            shares = self.source.shares(indices, self.rank, self.world)
        except EutecticError as error:
            if len(indices) > 1:  # which of them cannot be made?
                return [made for index in indices for made in self._made([index])]
            return [error]  # raised in a worker process it would come back without its four parts
        return [
            RankBatch(index, make_batch(items, self.tasks, self.dtype))
            for index, items in zip(indices, shares, strict=True)
        ]


class BatchLoader:
    """An iterator of batches that knows how long it was waited for.

    Attributes:
        waited: seconds, since this was last set to zero.
    """

    def __init__(self, batches: Iterator[_Made | _PackedBatches]) -> None:
        several = (made.unpacked() if isinstance(made, _PackedBatches) else made for made in batches)
        self._batches: Iterator[RankBatch | EutecticError] = chain.from_iterable(several)
        self.waited = 0.0

    def take(self, count: int) -> list[RankBatch]:
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


def default_workers(device: torch.device, processes: int, sets: Sequence[TaskDataset]) -> int:
    """Processes that make batches ahead, if nobody says how many.

    On a CPU one, which works while the cores that train wait for each other (see `_politely`); with a GPU the cores are
    free, up to eight. None where graphs are kept in memory once built, and none where batches cannot be handed over:
    that takes processes that fork safely (macOS's do not), and shared memory, of which a container may have next to
    nothing.
    """
    if all(s.keep and not s.edge_dropout for s in sets) or sys.platform != "linux" or _shared_memory() < SHARED_MEMORY:
        return 0
    if device.type == "cpu":
        return 1
    return max(0, min(8, cores() // processes - 1))


def _shared_memory() -> float:
    """Free bytes."""
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return 0.0
    return float(room.f_bavail * room.f_frsize)


def _politely(worker: int) -> None:
    """A worker on a CPU takes a core only when nobody else wants it.

    That is often enough: processes that share a batch wait for the slowest of them after every step. And when a step
    waits for its batch, its core is free.
    """
    os.nice(19)


@contextmanager
def feed(
    source: BatchSampler,
    tasks: Sequence[Task],
    batches: range,
    *,
    rank: int,
    world: int,
    dtype: torch.dtype,
    workers: int,
    pin: bool,
) -> Iterator[BatchLoader]:
    """This process's share of each batch of a range.

    Args:
        source, tasks: as in the loop.
        batches: which, in order.
        rank, world: this process among all.
        dtype: of geometry and labels.
        workers: processes that make batches ahead; 0 makes them when they are asked for, a few at a time.
        pin: for a GPU.
    """
    together = max(1, min(8, TOGETHER * world // source.batch_size))
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _Batches(source, tasks, rank, world, dtype, pack=workers > 0 or pin),
        # Here a "batch" is several: making them together costs less than one after the other.
        batch_size=together,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=max(2, 4 // together) if workers else None,
        # Forked workers are there at once, share the memory of the stores, and never touch the device.
        multiprocessing_context="fork" if forks else None,
        # Of its own, so that the global one is not drawn from.
        generator=torch.Generator(),
        worker_init_fn=None if pin else _politely,
    )
    iterator = iter(loader)
    try:
        yield BatchLoader(iterator)
    finally:
        # Ends the workers now and not whenever the garbage is collected.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _as_it_is(value: Any) -> Any:
    return value
