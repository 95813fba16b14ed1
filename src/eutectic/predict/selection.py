"""Select structures to label: those with the largest uncertainties that are also diverse."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel
from eutectic.checkpoints.uncertainty import Uncertainty
from eutectic.data.formats.elements import Elements
from eutectic.predict.files import Read, Summary, work_through
from eutectic.predict.prediction import check_references, graphs_or_errors, in_batches, task_of
from eutectic.tasks import Sample, Task, make_batch

CANDIDATES = 2000
"""Smallest number of most uncertain structures kept as candidates."""


@dataclass(frozen=True)
class Chosen:
    """A structure worth labelling.

    Attributes:
        read: the structure and its index in the file.
        sigma: standard deviation of its prediction, in the unit of the property.
        left: `sigma` after the labels of those chosen before it are known; small if it resembles them.
        times_typical: `sigma` / the median over the calibration structures. These come from the same distribution as
            the training structures, so this measures the distance from them.
    """

    read: Read
    sigma: float
    left: float
    times_typical: float


def select_file(
    model: TrainedModel,
    source: Path,
    count: int,
    *,
    task: str | None = None,
    property: str | None = None,
    batch_size: int = 32,
    elements: Elements | None = None,
    units: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> tuple[list[Chosen], Summary]:
    """Choose the structures of a file that are most worth labelling, in one pass and constant memory.

    The structure with the largest uncertainty is taken repeatedly; each time, the other uncertainties are updated to
    the last layer's posterior given its label. For extensive properties, uncertainties per atom are compared;
    otherwise the largest structures would be chosen.

    Args:
        model: a calibrated model.
        source, elements, units, stop: as for `work_through`.
        count: number to choose.
        task: task of the model; required if it has several.
        property: property whose uncertainty is used; default: the energy, or the only one.
        batch_size, on_done: as for `predict_each`.

    Returns:
        The chosen structures, most uncertain first, and a summary of all structures.

    Raises:
        EutecticError: a model without uncertainties; no such task or property; no structure that can be predicted.
        Interrupted: `stop` returned true.
    """
    chosen, name, known = uncertain_property(model, task, property)
    extensive = chosen.property(name).extensive
    pool = _Candidates(max(CANDIDATES, 20 * count), extensive)

    def each(structures: Iterable[Structure]) -> Iterator[np.ndarray | EutecticError]:
        return in_batches(
            structures,
            lambda index, structure: _check(index, structure, chosen),
            lambda batch: _directions(model, chosen, name, known, batch),
            batch_size=batch_size,
            on_done=on_done,
        )

    summary = work_through(model, source, each, [pool.add], elements=elements, units=units, stop=stop)
    reads, directions = pool.found
    sizes = np.array([len(read.atoms or ()) for read in reads], dtype=float) if extensive else np.ones(len(reads))
    order, left = spread_out(directions, sizes, known.alpha, count)
    sigma = np.linalg.norm(directions, axis=1)
    typical = known.typical or float("nan")
    return [
        Chosen(reads[i], float(sigma[i]), rest, float(sigma[i]) / typical) for i, rest in zip(order, left, strict=True)
    ], summary


def spread_out(directions: np.ndarray, sizes: np.ndarray, noise: float, count: int) -> tuple[list[int], list[float]]:
    """Greedily choose the most uncertain structure, given those chosen before.

    Args:
        directions: (n, width) u, with |u| the uncertainty and u·u' the covariance of two errors.
        sizes: (n,) by which uncertainties are divided before they are compared.
        noise: standard deviation of a label around the last layer's prediction.
        count: number to choose; all if there are fewer.

    Returns:
        Indices in the order of choice, and the uncertainty of each when it was chosen.
    """
    variance = (directions**2).sum(axis=1)
    available = np.ones(len(directions), dtype=bool)
    order, left = list[int](), list[float]()
    explained: list[np.ndarray] = []  # (n,) rows of a Cholesky factor of the covariance, one per label
    for _ in range(min(count, len(directions))):
        best = int(np.where(available, variance / sizes**2, -np.inf).argmax())
        order.append(best)
        left.append(float(np.sqrt(max(variance[best], 0.0))))
        available[best] = False
        covariance = directions @ directions[best] - sum(
            (row * row[best] for row in explained), np.zeros(len(variance))
        )
        row = covariance / np.sqrt(max(variance[best] + noise**2, 1e-300))
        explained.append(row)
        variance = (variance - row**2).clip(min=0.0)
    return order, left


class _Candidates:
    """The structures with the largest uncertainties."""

    def __init__(self, most: int, per_atom: bool) -> None:
        self.most, self.per_atom = most, per_atom
        self._heap: list[tuple[float, int, Read, np.ndarray]] = []

    def add(self, read: Read, outcome: np.ndarray | EutecticError) -> None:
        """A writer for `work_through`."""
        if isinstance(outcome, EutecticError) or read.atoms is None:
            return
        sigma = float(np.linalg.norm(outcome)) / (len(read.atoms) if self.per_atom else 1)
        entry = (sigma, -read.index, read, outcome)  # among equals the first stays
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def found(self) -> tuple[list[Read], np.ndarray]:
        """The candidates and their directions, in the order of the file."""
        entries = sorted(self._heap, key=lambda entry: entry[2].index)
        return [entry[2] for entry in entries], np.stack([entry[3] for entry in entries])


def uncertain_property(model: TrainedModel, task_name: str | None, name: str | None) -> tuple[Task, str, Uncertainty]:
    """A property with its uncertainty; by default the energy, or the only one.

    Raises:
        EutecticError: no such task or property, or one without an uncertainty.
    """
    task = task_of(model, task_name)
    known = model.uncertainties.get(task.name, {})
    if not known:
        raise EutecticError(
            f"task {task.name}",
            "a model without calibrated uncertainties",
            "a calibrated model (`eutectic finetune` calibrates if validation structures have a scalar label such as "
            "the energy)",
            "calibrate it: eutectic calibrate MODEL DATA",
        )
    if name is None:
        name = "energy" if "energy" in known else next(iter(known)) if len(known) == 1 else ""
    if name not in known:
        raise EutecticError(
            f"task {task.name}",
            f"property {name!r}" if name else "no property given, and several to choose from",
            f"a property with an uncertainty: {', '.join(known)}",
            f"name one: --property {next(iter(known))}",
        )
    return task, name, known[name]


def _check(index: int, structure: Structure, task: Task) -> None:
    structure.check(f"structure {index}")
    check_references(structure, task)


def _directions(
    model: TrainedModel, task: Task, name: str, known: Uncertainty, structures: Sequence[tuple[int, Structure]]
) -> list[np.ndarray | EutecticError]:
    """`Uncertainty.directions` of pairs of index and structure, in one forward pass."""
    results: dict[int, np.ndarray | EutecticError] = {}
    samples: list[tuple[int, Sample]] = []
    built = graphs_or_errors([structure for _, structure in structures], task.graph, model.module.backbone.edge_lists)
    for (index, _), graph in zip(structures, built, strict=True):
        if isinstance(graph, EutecticError):
            results[index] = EutecticError(f"structure {index}, {graph.where}", graph.given, graph.expected, graph.fix)
        else:
            samples.append((index, Sample(0, graph, {})))
    if samples:
        weight = next(model.module.parameters())
        batch = make_batch([sample for _, sample in samples], [task], weight.dtype).to(weight.device)
        with torch.no_grad():
            values = model.module(batch.graph, batch.parts, last_features=[name])[task.name]
        for (index, _), row in zip(samples, known.directions(values[f"{name}_last_features"]), strict=True):
            results[index] = (
                row
                if np.isfinite(row).all()
                else EutecticError(
                    f"structure {index}", "features that are not finite", "finite features", "check its positions"
                )
            )
    return [results[index] for index, _ in structures]


def notes_of(task: Task, name: str, one: Chosen, rank: int) -> dict[str, float | int]:
    """Notes written with a chosen structure.

    Args:
        task, name: the task and its property.
        one: the chosen structure.
        rank: 1 for the first.
    """
    key = f"{task.name}_{name}_uncertainty"
    return {
        "selected": rank,
        "index_in_pool": one.read.index,
        key: one.sigma,
        f"{key}_left": one.left,
        f"{key}_times_typical": one.times_typical,
    }
