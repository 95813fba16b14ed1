"""The gradient of one step: accumulated over batches, halved if they do not fit, and summed over processes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence

import lightning_fabric as lf
import torch
import torch.distributed
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from eutectic.atoms import EutecticError
from eutectic.tasks import Batch, Sample, Task, labelled_structures, make_batch, target_losses, weighted_sums
from eutectic.train.batches.loader import RankBatch
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.statistics import RankStatistics, targets_of

BUCKET = 64 * 2**20
"""Bytes of gradients in one all-reduce."""


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error means that the device or the machine is out of memory."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        w in words for w in ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


class GradientSum:
    """Accumulates the gradient of a step in the parameters' `grad`.

    A batch that does not fit into memory is halved repeatedly until its parts fit. The sum of the parts' gradients is
    that of the batch, since the loss is a sum over structures divided by their total number. Each process can halve
    independently, since gradients are summed over processes only after the last pass. If they are reduced during the
    backward pass (`overlap`; always with FSDP), halving is not possible, and the run stops.

    Args:
        fabric, model: `model` as set up by `fabric`.
        tasks, source: as in the loop.
        dtype: of geometry and labels.
        overlap: sum gradients over processes during the last pass.
        split: halve batches that do not fit.
    """

    def __init__(
        self,
        fabric: lf.Fabric,
        model: _FabricModule,
        tasks: Sequence[Task],
        source: BatchSampler,
        dtype: torch.dtype,
        *,
        overlap: bool,
        split: bool,
    ) -> None:
        self.fabric, self.model, self.tasks, self.source, self.dtype = fabric, model, tasks, source, dtype
        self.targets = targets_of(tasks)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.overlap = overlap and fabric.world_size > 1
        self.split = split
        self.limit = float("inf")
        """Size of the smallest batch that did not fit; batches of this size are halved before they are tried."""

    def compute(self, batches: Sequence[RankBatch], structures: int) -> RankStatistics:
        """Gradient of the mean loss over the full step, the same in every process.

        Args:
            batches: this process's shares of the batches.
            structures: number of structures in the step, over all batches and processes, by which the loss is divided.

        Raises:
            EutecticError: a structure does not fit into memory, or a batch does not and halving is off.
        """
        pieces: list[tuple[int, Batch | list[Sample]]] = [(b.index, b.batch) for b in batches]
        while True:
            pieces = [part for piece in pieces for part in self._halved_if_known_too_large(piece)]
            failed = self._try(pieces, structures)
            if isinstance(failed, RankStatistics):
                break
            self._discard_gradients()
            index, piece = pieces[failed]
            items = self._items(index, piece)
            self._check(items)
            batch = piece if isinstance(piece, Batch) else make_batch(items, self.tasks, self.dtype)
            self.limit = min(self.limit, _size(batch))
            pieces[failed : failed + 1] = [(index, half) for half in _halves(items)]
        if self.fabric.world_size > 1 and not self.overlap:
            sum_over_processes(self.parameters)
        return failed

    def _try(self, pieces: Sequence[tuple[int, Batch | list[Sample]]], structures: int) -> RankStatistics | int:
        """The statistics, or the index of the piece that did not fit.

        An index instead of an exception, whose traceback would keep the memory alive. Does not wait for the device,
        except for an out-of-memory error.
        """
        device = self.fabric.device
        losses = torch.zeros(len(self.tasks), device=device, dtype=self.dtype)
        by_target = torch.zeros(len(self.targets), device=device, dtype=self.dtype)
        counts, labelled = [0] * len(self.tasks), [0] * len(self.targets)
        atoms = edges = 0
        # Fabric's strategies average over processes when they send gradients; this gives the mean over structures.
        share = (self.fabric.world_size if self.overlap else 1) / structures
        for position, (_, piece) in enumerate(pieces):
            try:
                batch = piece if isinstance(piece, Batch) else make_batch(piece, self.tasks, self.dtype)
                labels = labelled_structures(batch, self.tasks)
                batch = batch.to(device)
                with self._without_sync(last=position == len(pieces) - 1):
                    errors = target_losses(self.model(batch.graph, batch.parts), batch, self.tasks)
                    parts = weighted_sums(errors, batch, self.tasks)
                    self.fabric.backward(torch.cat(parts).sum() * share)
                losses += torch.stack([part.detach().sum() for part in parts])
                by_target += torch.stack([errors[i][name].detach().sum() for i, name in self.targets])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return position
            counts = [n + len(part) for n, part in zip(counts, parts, strict=True)]
            labelled = [n + labels[i][name] for n, (i, name) in zip(labelled, self.targets, strict=True)]
            atoms += len(batch.graph.numbers)
            edges += len(batch.graph.main)
        return RankStatistics(
            losses=losses,
            target_losses=by_target,
            structures=counts,
            labelled=labelled,
            atoms=atoms,
            edges=edges,
            passes=len(pieces),
        )

    def _without_sync(self, last: bool) -> contextlib.AbstractContextManager[object]:
        if self.fabric.world_size == 1 or (self.overlap and last):
            return contextlib.nullcontext()
        return self.fabric.no_backward_sync(self.model)

    def _discard_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        gc.collect()
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()

    def _items(self, index: int, piece: Batch | list[Sample]) -> list[Sample]:
        if not isinstance(piece, Batch):
            return piece
        return self.source.items(index, self.fabric.global_rank, self.fabric.world_size)

    def _halved_if_known_too_large(
        self, piece: tuple[int, Batch | list[Sample]]
    ) -> list[tuple[int, Batch | list[Sample]]]:
        index, batch = piece
        if not isinstance(batch, Batch) or _size(batch) < self.limit or batch.n_structures == 1 or not self.split:
            return [piece]
        return [(index, half) for half in _halves(self._items(index, batch))]

    def _check(self, items: Sequence[Sample]) -> None:
        graph = items[0].graph
        if self.split and not self.overlap and len(items) > 1:
            return
        subject = (
            f"one structure of {self.tasks[items[0].task].name} with {len(graph.structure)} atoms and "
            f"{len(graph.atom_atom)} edges does"
            if len(items) == 1
            else f"a batch of {len(items)} structures does"
        )
        raise EutecticError(
            "training",
            f"{subject} not fit into the memory of {self.fabric.device}",
            "a batch that fits",
            "turn on train.activation_checkpointing, use bf16-mixed precision, or lower "
            + ("graph.max_neighbours or graph.cutoff" if len(items) == 1 else "train.batch_size")
            + ("" if len(items) == 1 else "; train.out_of_memory 'split' halves batches automatically (ddp only)"),
        )


def _size(batch: Batch) -> int:
    graph = batch.graph
    return len(graph.numbers) + len(graph.main) + len(graph.atom_atom)


def _halves(items: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Split into two lists of about equal cost."""
    ordered = sorted(items, key=lambda item: -sum(item.graph.counts))
    return ordered[::2], ordered[1::2]


def sum_over_processes(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every process's gradients by their sum over all processes, a bucket at a time."""
    for parameter in parameters:
        if parameter.grad is None:  # a head without structures in this process's share
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for parameter in parameters:
        assert parameter.grad is not None
        bucket.append(parameter.grad)
        if sum(g.nbytes for g in bucket) >= BUCKET:
            _sum_bucket(bucket)
            bucket = []
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    flat = _flatten_dense_tensors(bucket)
    torch.distributed.all_reduce(flat)
    for gradient, total in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
        gradient.copy_(total)
