"""The cost of a batch: measured on real batches on this device, or counted without running the model.

Time and memory of a step are each modelled as constant + a·atoms + e·edges + t·triplets + q·quadruplets with
non-negative coefficients fitted to real steps. Since a store contains numbers of atoms but no graphs, the numbers of
edges, triplets and quadruplets of a structure are predicted from its number of atoms, for each data set separately
(`SizeModel`).
"""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from eutectic.checkpoints.model import build_backbone
from eutectic.graph import Counts
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Batch, Sample, Task, make_batch, structure_losses
from eutectic.train.batches.mixture import Mixture
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.gradient import out_of_memory
from eutectic.train.loop import checkpoint_activations
from eutectic.train.settings import BackboneChoice, Coefficients

SAMPLED = 48
"""Number of structures of a set whose graphs are built to fit its `SizeModel`."""

PATIENCE = 4.0
"""Seconds after which a calibration does not try larger batches."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """constant + atoms · atom + edges · edge + …, in seconds or bytes; `constant` is per step, not per structure."""

    constant: float
    atom: float
    edge: float
    triplet: float
    quadruplet: float

    @property
    def coefficients(self) -> Coefficients:
        """Coefficients for cutting batches, rounded to two digits so that they can be written and read exactly."""
        values = {k: float(f"{v:.2g}") for k, v in asdict(self).items() if k != "constant"}
        return Coefficients(**values) if any(values.values()) else Coefficients(atom=1.0)

    def of(self, counts: np.ndarray) -> np.ndarray:
        """(…, 4) atoms, edges, triplets, quadruplets of steps → (…,) cost."""
        return np.asarray(self.constant + counts @ np.array([self.atom, self.edge, self.triplet, self.quadruplet]))


def fit_cost(counts: Float[np.ndarray, "n 4"], measured: Float[np.ndarray, " n"]) -> CostModel:
    """Non-negative least squares of relative errors, so that small steps count as much as large ones.

    Args:
        counts: atoms, edges, triplets, quadruplets of each step.
        measured: cost of each step, positive.
    """
    table = np.column_stack([np.ones(len(counts)), counts]) / measured[:, None]
    # Columns differ by orders of magnitude.
    size = np.maximum(np.abs(table).max(axis=0), 1e-300)
    solution, _ = nnls(table / size, np.ones(len(counts)))
    constant, atom, edge, triplet, quadruplet = (solution / size).tolist()
    return CostModel(constant=constant, atom=atom, edge=edge, triplet=triplet, quadruplet=quadruplet)


@dataclass(frozen=True)
class SizeModel:
    """Number of atoms → edges, triplets, quadruplets, for the structures of one data set.

    A molecule with n atoms and at most k neighbours has at most n·min(n − 1, k) edges. Each count is fitted as a
    non-negative combination of n, n·d and n·d² with d = min(n − 1, k).

    Attributes:
        neighbours: k of the main graph.
        coefficients: (3, 3) of edges, triplets, quadruplets.
    """

    neighbours: int
    coefficients: np.ndarray

    @classmethod
    def fit(cls, counts: Sequence[Counts], neighbours: int) -> SizeModel:
        """Fit to the counts of built graphs."""
        table = np.array(counts, dtype=np.float64)
        features = cls._features(table[:, 0], neighbours)
        return cls(neighbours, np.stack([nnls(features, table[:, i])[0] for i in (1, 2, 3)]))

    def counts(self, atoms: np.ndarray) -> np.ndarray:
        """(n,) atoms → (n, 4) atoms, edges, triplets, quadruplets."""
        n = np.asarray(atoms, dtype=np.float64)
        return np.column_stack([n, self._features(n, self.neighbours) @ self.coefficients.T])

    @staticmethod
    def _features(n: np.ndarray, neighbours: int) -> np.ndarray:
        d = np.minimum(np.maximum(n - 1, 0), neighbours)
        return np.column_stack([n, n * d, n * d * d])


def spread_rows(rows: TaskDataset, count: int) -> np.ndarray:
    """Positions of `count` structures, evenly spaced in the order of size."""
    order = np.argsort(rows.sizes(), kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))]


def size_model(rows: TaskDataset, count: int = SAMPLED) -> SizeModel:
    """Fit a `SizeModel` to a few structures of a set, always the same ones, with edge dropout as in training."""
    counts = [_training_sample(rows, int(i)).graph.counts for i in spread_rows(rows, count)]
    return SizeModel.fit(counts, rows.task.graph.max_neighbours)


def _training_sample(rows: TaskDataset, position: int) -> Sample:
    """A structure with edge dropout as in training."""
    return rows.item(position, (0, 0, position))


def costs_by_size(rows: TaskDataset, sizes: SizeModel, coefficients: Coefficients) -> Float[np.ndarray, " most_atoms"]:
    """Cost of a structure by its number of atoms, (largest number of atoms + 1,), positive; for `BatchSampler`."""
    c = coefficients
    counts = sizes.counts(np.arange(int(rows.sizes().max()) + 1))
    cost = counts @ np.array([c.atom, c.edge, c.triplet, c.quadruplet])
    return np.asarray(np.maximum(cost, 1e-3 * max(float(cost.max()), 1e-12)))


def mean_counts(source: BatchSampler, sizes: Sequence[SizeModel]) -> np.ndarray:
    """(4,) mean atoms, edges, triplets, quadruplets of a structure drawn from the mixture."""
    return mixture_shares(source.mixture) @ counts_by_set(source, sizes)


def counts_by_set(source: BatchSampler, sizes: Sequence[SizeModel]) -> np.ndarray:
    """(n_sets, 4) mean atoms, edges, triplets, quadruplets of a structure of each set."""
    return np.stack([size.counts(r.sizes()).mean(0) for r, size in zip(source.sets, sizes, strict=True)])


def mixture_shares(mixture: Mixture) -> np.ndarray:
    """(n_sets,) fraction of the draws of one epoch from each set."""
    return np.array([mixture.places[name] / mixture.length for name in mixture.names])


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured cost of steps on this device.

    Attributes:
        seconds: time of forward pass, backward pass and loss.
        bytes: peak memory of intermediate results.
        data_seconds: time to read a structure and build its graph.
        error: relative root mean square error of the fit of seconds.
        batches: measurements: structures, atoms, edges, triplets, quadruplets, seconds, bytes.
        device: description of the device.
    """

    seconds: CostModel
    bytes: CostModel
    data_seconds: float
    error: float
    batches: tuple[Mapping[str, float | int], ...]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`."""
        models = {k: CostModel(**values[k]) for k in ("seconds", "bytes")}
        return cls(**{**values, **models, "batches": tuple(values["batches"])})


def calibrate(
    model: MultitaskModel,
    tasks: Sequence[Task],
    trials: Iterable[Sequence[Sample]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    patience: float = PATIENCE,
) -> Calibration:
    """Time forward and backward passes on real batches. The weights do not change.

    Args:
        model: on any device; moved to `device`, without gradients.
        tasks: all tasks of the model.
        trials: batches, smallest first, built lazily (see `trials_of`). Stops at the first that does not fit into
            memory.
        patience: seconds after which no larger batch is tried.
    """
    device = torch.device(device)
    model = model.to(device, dtype)
    model.train()
    built = 0.0
    records: list[dict[str, float | int]] = []

    def step(batch: Batch) -> None:
        with autocast():
            losses = structure_losses(model(batch.graph, batch.parts), batch, tasks)
        torch.cat(losses).sum().backward()
        model.zero_grad(set_to_none=True)

    began = start = time.perf_counter()
    for items in trials:
        batch = make_batch(items, tasks, dtype)
        built += time.perf_counter() - start
        batch = batch.to(device)
        work = functools.partial(step, batch)
        if not records:
            # Warm-up pass.
            work()
            began = time.perf_counter()
        try:
            used = _memory(work, device)
            seconds = _seconds(work, device)
        except (RuntimeError, MemoryError) as error:
            if not records or not out_of_memory(error):
                raise
            model.zero_grad(set_to_none=True)
            break
        counts = np.sum([item.graph.counts for item in items], axis=0).tolist()
        records.append(
            {"structures": len(items), **dict(zip(Counts._fields, counts, strict=True)), "seconds": seconds}
            | {"bytes": used}
        )
        if time.perf_counter() - began > patience:
            break
        start = time.perf_counter()
    table = np.array([[r[k] for k in Counts._fields] for r in records], dtype=np.float64)
    seconds_seen, bytes_seen = (np.array([r[k] for r in records], dtype=np.float64) for k in ("seconds", "bytes"))
    fitted = fit_cost(table, seconds_seen)
    threads = torch.get_num_threads()
    return Calibration(
        seconds=fitted,
        bytes=fit_cost(table, np.maximum(bytes_seen, 1.0)),
        data_seconds=built / sum(r["structures"] for r in records),
        error=float(np.sqrt(np.mean((fitted.of(table) / seconds_seen - 1) ** 2))),
        batches=tuple(records),
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{threads} CPU thread{'s' * (threads > 1)}",
    )


def trials_of(source: BatchSampler, processes: int = 1) -> Iterator[list[Sample]]:
    """Trial batches for a calibration.

    An eighth and a quarter of a process's share of a batch (at most 64 structures) from each set, then a half and all
    of it from the mixture.

    Args:
        source: the batches.
        processes: number of processes that share a batch.
    """
    largest = max(2, min(source.batch_size // processes, 64))
    for size in sorted({max(1, largest // 8), max(1, largest // 4)}):
        for rows in source.sets:
            yield [_training_sample(rows, int(i)) for i in spread_rows(rows, size)]
    which, row = (x[:largest] for x in source.chosen(0))
    mixed = [_training_sample(source.sets[w], int(r)) for w, r in zip(which, row, strict=True)]
    yield mixed[: largest // 2]
    yield mixed


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)


def _memory(work: Callable[[], None], device: torch.device) -> int:
    """Peak bytes of a step without the weights: from the allocator on a GPU, from all created tensors on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with PeakBytes() as peak:
        work()
    return peak.most


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors created while it is active, like an allocator, on any device.

    Attributes:
        most: peak of the allocated bytes, without workspace inside kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, int] = {}
        self._sum = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := _storage(tensor)) not in given and key not in self._alive:
                storage = tensor.untyped_storage()
                self._alive[key] = storage.nbytes()
                self._sum += storage.nbytes()
                weakref.finalize(storage, self._forget, key)
        self.most = max(self.most, self._sum)
        return result

    def _forget(self, key: int) -> None:
        self._sum -= self._alive.pop(key)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations and memory of a step.

    Attributes:
        flops: floating-point operations of the matmuls in forward and backward pass; a multiply-add counts as two.
        bytes: peak memory of intermediate results, at 32 bits.
        parameters: number of parameters of the model.
    """

    flops: int
    bytes: int
    parameters: int


def count_work(
    choice: BackboneChoice, tasks: Sequence[Task], items: Sequence[Sample], *, checkpointing: bool = False
) -> Work:
    """Count the work of a training step of a model of any size, without allocating weights or running it.

    Weights, positions and everything computed from them are on the meta device: shapes without values. Indices and
    masks are real, since shapes depend on them (docs/decisions/0007-counting-work-without-doing-it.md).

    Args:
        choice: the backbone.
        tasks: all tasks of the model.
        items: the batch.
        checkpointing: blocks are recomputed in the backward pass.
    """
    batch = make_batch(items, tasks)
    graph = batch.graph.with_positions(batch.graph.positions.to("meta"), batch.graph.cell.to("meta"))
    with torch.device("meta"):
        backbone, _ = build_backbone(choice.name, choice.settings, [task.graph for task in tasks])
        model = MultitaskModel(backbone, {task.name: task.heads for task in tasks}).train()
    if checkpointing:
        checkpoint_activations(model)
    with PeakBytes() as peak, _ToMeta(), _MatmulFlops() as matmuls:
        predictions = model(graph, batch.parts)
        torch.stack([value.sum() for by_name in predictions.values() for value in by_name.values()]).sum().backward()
    return Work(
        flops=matmuls.flops,
        bytes=peak.most,
        parameters=sum(p.numel() for p in cast(nn.Module, model).parameters()),
    )


class _MatmulFlops(TorchDispatchMode):
    """Counts the floating-point operations of matmuls.

    PyTorch's `FlopCounterMode` would keep tensors alive that checkpointed blocks have freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


class _ToMeta(TorchDispatchMode):
    """Moves real tensors to the meta device when an operation combines them with meta tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
            args, kwargs = tree_map(lambda x: self._shape(x) if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return func(*args, **kwargs)

    def _shape(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            return tensor
        # Outside the dispatch modes, so that an existing tensor is not counted as a new one.
        with _disable_current_modes():
            return tensor.to("meta")
