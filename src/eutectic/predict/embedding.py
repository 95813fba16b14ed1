"""Embeddings: the invariant features that a backbone assigns to atoms; maps and nearest neighbours made from them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import torch

from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.model import TrainedModel
from eutectic.data.formats.elements import Elements
from eutectic.graph import GraphSettings, collate
from eutectic.predict.files import Read, Summary, Write, work_through
from eutectic.predict.outputs import TableOutput
from eutectic.predict.prediction import graphs_or_errors, in_batches, task_of

Per = Literal["structure", "atom"]
"""structure: one embedding per structure, the mean over its atoms; atom: one per atom."""


def embed_each(
    model: TrainedModel,
    structures: Iterable[Structure],
    *,
    per: Per = "structure",
    task: str | None = None,
    batch_size: int = 32,
    window: int | None = None,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Iterator[np.ndarray | EutecticError]:
    """Embeddings of structures, one by one and in constant memory.

    Args:
        model: runs on the device and in the precision of its weights; heads and labels are not used.
        structures: read lazily.
        per: "structure": the mean over the atoms, so that a supercell has the embedding of its unit cell.
        task: the task whose graph settings are used; default: the model's own.
        batch_size, window, on_done: as for `predict_each`.

    Yields:
        In the order of the structures, (width,) or (n_atoms, width), float32; or the error that prevented it.

    Raises:
        EutecticError: no such task; an unknown `per`.
    """
    if per not in get_args(Per):
        raise EutecticError("per", repr(per), "'structure' or 'atom'", "choose one of these")
    settings = graph_of(model, task)
    yield from in_batches(
        structures,
        lambda index, structure: structure.check(f"structure {index}"),
        lambda batch: _embedded(model, settings, batch, per),
        batch_size=batch_size,
        window=window,
        on_done=on_done,
    )


def graph_of(model: TrainedModel, task: str | None) -> GraphSettings:
    """The graph settings of a task, or those of the model.

    Raises:
        EutecticError: no such task.
    """
    return model.graph if task is None else task_of(model, task).graph


def _embedded(
    model: TrainedModel, settings: GraphSettings, structures: Sequence[tuple[int, Structure]], per: Per
) -> list[np.ndarray | EutecticError]:
    results: dict[int, np.ndarray | EutecticError] = {}
    graphs = []
    built = graphs_or_errors([structure for _, structure in structures], settings, model.module.backbone.edge_lists)
    for (index, _), graph in zip(structures, built, strict=True):
        if isinstance(graph, EutecticError):
            results[index] = EutecticError(f"structure {index}, {graph.where}", graph.given, graph.expected, graph.fix)
        else:
            graphs.append((index, graph))
    if graphs:
        weight = next(model.module.parameters())
        batch = collate([graph for _, graph in graphs], weight.dtype).to(weight.device)
        with torch.no_grad():
            atoms = model.module.backbone(batch).atoms.to("cpu", torch.float64).numpy()
        ends = np.cumsum([len(graph.structure) for _, graph in graphs])
        for (index, _), rows in zip(graphs, np.split(atoms, ends[:-1]), strict=True):
            if np.isfinite(rows).all():
                results[index] = (rows if per == "atom" else rows.mean(axis=0)).astype(np.float32)
            else:
                results[index] = EutecticError(
                    f"structure {index}", "features that are not finite", "finite features", "check its positions"
                )
    return [results[index] for index, _ in structures]


def embed_file(
    model: TrainedModel,
    source: Path,
    writers: Sequence[Write[np.ndarray]],
    *,
    per: Per = "structure",
    task: str | None = None,
    batch_size: int = 32,
    elements: Elements | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Summary:
    """Embed the structures of a file or store in order, in constant memory.

    Args:
        model, per, task, batch_size, on_done: as for `embed_each`.
        source, writers, elements, stop: as for `work_through`.

    Raises:
        EutecticError: as `embed_each`; no structure could be embedded.
        Interrupted: `stop` returned true.
    """

    def each(structures: Iterable[Structure]) -> Iterator[np.ndarray | EutecticError]:
        return embed_each(model, structures, per=per, task=task, batch_size=batch_size, on_done=on_done)

    return work_through(model, source, each, writers, elements=elements, stop=stop)


def table_schema(width: int, per: Per, **notes: str) -> pa.Schema:
    """Columns of a table of embeddings: `structure` (its index in the file), `n_atoms` or `atom` and `number` (atomic
    number), and `embedding`, a list of `width` numbers.

    Args:
        width: width of an embedding.
        per: whether a row is a structure or an atom.
        notes: metadata of the file.
    """
    middle = [("n_atoms", pa.int32())] if per == "structure" else [("atom", pa.int32()), ("number", pa.int16())]
    columns = [("structure", pa.int64()), *middle, ("embedding", pa.list_(pa.float32(), width))]
    return pa.schema(columns, metadata={"per": per, **notes})


def table_writer(table: TableOutput, per: Per) -> Write[np.ndarray]:
    """A writer that adds embeddings to a table of `table_schema`; structures without an embedding are skipped."""

    def add(read: Read, outcome: np.ndarray | EutecticError) -> None:
        if isinstance(outcome, EutecticError) or read.structure is None:
            return
        if per == "structure":
            table.add({"structure": read.index, "n_atoms": len(read.structure), "embedding": outcome})
            return
        for atom, (number, row) in enumerate(zip(read.structure.numbers.tolist(), outcome, strict=True)):
            table.add({"structure": read.index, "atom": atom, "number": number, "embedding": row})

    return add


@dataclass
class Moments:
    """Running mean and covariance of embeddings, for their principal components.

    Attributes:
        n: number of embeddings.
        mean: (width,).
        scatter: (width, width) sum of outer products of deviations from the mean.
    """

    n: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, rows: np.ndarray) -> None:
        """Add embeddings (n, width); Chan et al. 1983, doi:10.1080/00031305.1983.10483115."""
        rows = rows.astype(np.float64)
        if not self.n:
            self.mean, self.scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        mean = rows.mean(axis=0)
        shift, total = mean - self.mean, self.n + len(rows)
        self.scatter += (rows - mean).T @ (rows - mean) + np.outer(shift, shift) * self.n * len(rows) / total
        self.mean = self.mean + shift * len(rows) / total
        self.n = total

    @property
    def spread(self) -> float:
        """Root mean square distance of an embedding from the mean."""
        return float(np.sqrt(np.trace(self.scatter) / max(self.n, 1)))

    def components(self, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """(count, width) principal directions, each with a positive sum, and (count,) fractions of the variance."""
        values, vectors = np.linalg.eigh(self.scatter)
        chosen = vectors[:, ::-1][:, :count].T
        chosen = chosen * np.where(chosen.sum(axis=1) < 0, -1.0, 1.0)[:, None]
        return chosen, values[::-1][:count] / max(float(values.sum()), 1e-300)


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a map.

    Attributes:
        index: index of the structure in its file.
        structure: the structure.
        atom: index of the atom, if points are atoms.
        embedding: (width,).
    """

    index: int
    structure: Structure
    atom: int | None
    embedding: np.ndarray


class MapSample:
    """Points for a map (all, or a uniform random sample), and the moments of all embeddings.

    Args:
        most: largest number of points kept.
    """

    def __init__(self, most: int = 3000) -> None:
        self.most, self.moments = most, Moments()
        self._rng = np.random.default_rng(0)
        self._points: list[Point] = []

    def add(self, read: Read, outcome: np.ndarray | EutecticError) -> None:
        """A writer for `embed_file`."""
        if isinstance(outcome, EutecticError) or read.structure is None:
            return
        rows = np.atleast_2d(outcome)
        for atom, row in enumerate(rows):
            point = Point(read.index, read.structure, atom if outcome.ndim == 2 else None, row)
            # Vitter's algorithm R.
            seen = self.moments.n + atom
            if seen < self.most:
                self._points.append(point)
            elif (place := int(self._rng.integers(seen + 1))) < self.most:
                self._points[place] = point
        self.moments.add(rows)

    @property
    def points(self) -> list[Point]:
        """The points in the order of the file."""
        return sorted(self._points, key=lambda point: (point.index, point.atom or 0))

    def principal(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_points, 2) principal components of the points, and their fractions of the total variance."""
        components, shares = self.moments.components()
        embeddings = np.stack([point.embedding for point in self.points])
        return (embeddings - self.moments.mean) @ components.T, shares

    def umap(self) -> np.ndarray | None:
        """(n_points, 2) coordinates of UMAP (McInnes et al. 2018, arXiv:1802.03426); None if it is not installed or
        there are too few points."""
        if len(self._points) < 10:
            return None
        try:
            from umap import UMAP
        except ImportError:
            return None
        embeddings = np.stack([point.embedding for point in self.points])
        return np.asarray(UMAP(n_neighbors=min(15, len(embeddings) - 1), random_state=0).fit_transform(embeddings))


@dataclass(frozen=True)
class Neighbour:
    """A structure near another one.

    Attributes:
        index: index in its file or store.
        structure: the structure.
        distance: Euclidean distance between the embeddings.
    """

    index: int
    structure: Structure
    distance: float


class Nearest:
    """The structures nearest to given ones, found in one pass over a file.

    Args:
        queries: (n_queries, width) embeddings.
        count: number of neighbours per query.
    """

    def __init__(self, queries: np.ndarray, count: int = 5) -> None:
        self.queries, self.count, self.moments = queries.astype(np.float64), count, Moments()
        self._heaps: list[list[tuple[float, int, Structure]]] = [[] for _ in queries]

    def add(self, read: Read, outcome: np.ndarray | EutecticError) -> None:
        """A writer for `embed_file`."""
        if isinstance(outcome, EutecticError) or read.structure is None:
            return
        self.moments.add(outcome[None])
        distances = np.linalg.norm(self.queries - outcome, axis=1)
        for heap, distance in zip(self._heaps, distances.tolist(), strict=True):
            # The farthest on top; among equals, the later one.
            entry = (-distance, -read.index, read.structure)
            if len(heap) < self.count:
                heapq.heappush(heap, entry)
            elif entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)

    @property
    def found(self) -> list[list[Neighbour]]:
        """For each query, its neighbours, nearest first."""
        return [
            [Neighbour(-index, structure, -distance) for distance, index, structure in sorted(heap, reverse=True)]
            for heap in self._heaps
        ]
