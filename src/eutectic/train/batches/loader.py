"""Batch loading: worker processes prepare batches ahead of the training steps, in order."""

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
from torch.utils.data import DataLoader, Dataset, get_worker_info

from eutectic.atoms import EutecticError
from eutectic.processes import cores
from eutectic.tasks import Batch, Task, make_batch
from eutectic.train.batches.sampler import BatchSampler, TaskDataset

TOGETHER = 64
"""Number of structures prepared together if a process's share of a batch is smaller."""

SHARED_MEMORY = 2**30
"""Free bytes of shared memory required for worker processes (a Docker container has 64 MiB)."""


@dataclass(frozen=True)
class RankBatch:
    """One process's share of a batch, on the CPU.

    Attributes:
        index: of the batch, from the start of the run.
        batch: has at least one structure (see `check_shares`).
    """

    index: int
    batch: Batch


_Loaded = list[RankBatch | EutecticError]


@dataclass(frozen=True)
class _PackedBatches:
    """Batches from a worker process, with their tensors concatenated by dtype.

    Sending each tensor separately would take longer than preparing it.

    Attributes:
        outline: everything but the tensors, pickled.
        contents: dtype → all tensors of that dtype, concatenated.
        places: dtype, offset and shape of each tensor.
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
            # Every tensor begins at a multiple of 16 elements, for aligned access.
            room = -(-tensor.numel() // 16) * 16
            parts.setdefault(kind, []).append(torch.nn.functional.pad(tensor.reshape(-1), (0, room - tensor.numel())))
            ends[kind] = begin + room
        return cls(file.getvalue(), {kind: torch.cat(p) for kind, p in parts.items()}, places)

    def pin_memory(self) -> _PackedBatches:
        """A copy in pinned memory, for asynchronous transfer to a GPU (the data loader calls this)."""
        return replace(self, contents={kind: value.pin_memory() for kind, value in self.contents.items()})

    def unpacked(self) -> Any:
        """The original value, with tensors that are views of `contents`."""
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

    def __getitems__(self, indices: Sequence[int]) -> _Loaded | _PackedBatches:
        loaded = self._load(indices)
        if not self.pack:
            return loaded
        packed = _PackedBatches.of(loaded)
        if get_worker_info() is None:
            return packed
        # A failure in the queue that sends the batch would only be printed by a thread, and training would hang.
        try:
            for content in packed.contents.values():
                content.share_memory_()
        except (RuntimeError, OSError) as error:
            return [
                EutecticError(
                    "shared memory (/dev/shm)",
                    f"not enough space for prepared batches ({str(error).partition(chr(10))[0]})",
                    "space for a few batches per background process",
                    "free some, or prepare batches in the training process: train.workers 0",
                )
            ]
        return packed

    def _load(self, indices: Sequence[int]) -> _Loaded:
        try:
            shares = self.source.shares(indices, self.rank, self.world)
        except EutecticError as error:
            if len(indices) > 1:  # find the batch that fails
                return [loaded for index in indices for loaded in self._load([index])]
            return [error]  # an exception raised in a worker process would lose the parts of its message
        return [
            RankBatch(index, make_batch(items, self.tasks, self.dtype))
            for index, items in zip(indices, shares, strict=True)
        ]


class BatchLoader:
    """An iterator of batches that measures the time spent waiting for them.

    Attributes:
        waited: seconds since this was last set to zero.
    """

    def __init__(self, batches: Iterator[_Loaded | _PackedBatches]) -> None:
        several = (loaded.unpacked() if isinstance(loaded, _PackedBatches) else loaded for loaded in batches)
        self._batches: Iterator[RankBatch | EutecticError] = chain.from_iterable(several)
        self.waited = 0.0

    def take(self, count: int) -> list[RankBatch]:
        """The next `count` batches.

        Raises:
            EutecticError: an invalid structure.
        """
        began = time.monotonic()
        taken = []
        for _ in range(count):
            batch = next(self._batches)
            if isinstance(batch, EutecticError):
                raise batch
            taken.append(batch)
        self.waited += time.monotonic() - began
        return taken


def default_workers(device: torch.device, processes: int, sets: Sequence[TaskDataset]) -> int:
    """Default number of worker processes that prepare batches.

    On a CPU: one, which runs while training processes wait for each other (see `_lower_priority`). With a GPU: up to
    eight, since the cores are free. None if built graphs are kept in memory, or if workers cannot send batches, which
    needs safe forking (not on macOS) and enough shared memory (containers may have very little).
    """
    if all(s.keep and not s.edge_dropout for s in sets) or sys.platform != "linux" or _shared_memory() < SHARED_MEMORY:
        return 0
    if device.type == "cpu":
        return 1
    return max(0, min(8, cores() // processes - 1))


def _shared_memory() -> float:
    """Free bytes of shared memory."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0.0
    return float(status.f_bavail * status.f_frsize)


def _lower_priority(worker: int) -> None:
    """Run a worker on a CPU at the lowest priority, so that it uses only idle cores.

    Cores are idle often enough: processes that share a batch wait for the slowest one after every step, and a process
    that waits for its batch leaves its core free.
    """
    os.nice(19)


@contextmanager
def load_batches(
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
    """Load this process's share of each batch of a range.

    Args:
        source, tasks: as in the loop.
        batches: indices of the batches, in order.
        rank, world: rank of this process, and number of processes.
        dtype: of geometry and labels.
        workers: processes that prepare batches ahead; 0 prepares them on demand, a few at a time.
        pin: pin memory, for a GPU.
    """
    together = max(1, min(8, TOGETHER * world // source.batch_size))
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _Batches(source, tasks, rank, world, dtype, pack=workers > 0 or pin),
        # A "batch" of the data loader is several batches, which are cheaper to prepare together.
        batch_size=together,
        sampler=batches,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=pin,
        prefetch_factor=max(2, 4 // together) if workers else None,
        # Forked workers start at once, share the memory of the stores, and never use the device.
        multiprocessing_context="fork" if forks else None,
        # A separate generator, so that the global one is not advanced.
        generator=torch.Generator(),
        worker_init_fn=None if pin else _lower_priority,
    )
    iterator = iter(loader)
    try:
        yield BatchLoader(iterator)
    finally:
        # End the workers now instead of at garbage collection.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _identity(value: Any) -> Any:
    return value
