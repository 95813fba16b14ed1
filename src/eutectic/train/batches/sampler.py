"""Which structures make up which batch: a function of the seed and the batch's number alone.

The order of structures is the mixture's. Where it is cut into batches is decided by count (every batch has
`batch_size`), or by cost: windows of `window · batch_size` structures are each cut into `window` batches of nearly
equal cost, so that a batch's structures follow from its own window, whatever came before. A step of the optimiser
takes one batch, or as many as are accumulated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.store import Store
from eutectic.graph import LISTS, GraphSettings, build_graphs
from eutectic.tasks import Sample, Task
from eutectic.train.batches.mixture import Mixture

SampleKey = tuple[int, int, int]
"""Seed, epoch and position: which of a run's draws a structure is, and the seed of all that is random about it."""

SMALLEST = 4
"""A batch cut by cost has at least a fourth of the structures that it has on average."""


@dataclass
class TaskDataset:
    """One task's structures, ready to be turned into items.

    Attributes:
        index: of the task in the model.
        store, rows: which structures.
        keep: hold graphs in memory once built (for sets seen many times); not where edges are dropped anew.
        edge_dropout: share of the edges that a structure drawn for training loses.
        edge_lists: the lists that the backbone reads (`Backbone.edge_lists`); graphs have no others.
        kept: position → what is held in memory so far.
    """

    index: int
    task: Task
    store: Store
    rows: np.ndarray
    keep: bool = False
    edge_dropout: float = 0.0
    edge_lists: tuple[str, ...] = LISTS
    kept: dict[int, Sample] = field(default_factory=dict, repr=False)
    _sizes: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> np.ndarray:
        """(n,) atoms of each structure."""
        if self._sizes is None:
            self._sizes = np.asarray(self.store.column("n_atoms"))[self.rows]
        return self._sizes

    def item(self, position: int, draw: SampleKey | None = None) -> Sample:
        """The structure at a position among the rows.

        Args:
            position: 0 … len − 1.
            draw: for training: decides which edges it loses.
        """
        return make_samples([(self, position, draw)])[0]

    def items(self) -> list[Sample]:
        """All of them, in order."""
        return make_samples([(self, position, None) for position in range(len(self))])


def make_samples(wanted: Sequence[tuple[TaskDataset, int, SampleKey | None]]) -> list[Sample]:
    """Structures ready to be batched. Those that become graphs in the same way do so together, which costs less.

    Args:
        wanted: of each the set, the position in it, and the draw if it is one.
    """
    found: list[Sample | None] = [rows.kept.get(position) for rows, position, _ in wanted]
    alike: dict[tuple[GraphSettings, tuple[str, ...], float], list[int]] = defaultdict(list)
    for k, (rows, _, draw) in enumerate(wanted):
        if found[k] is None:
            alike[rows.task.graph, rows.edge_lists, 0.0 if draw is None else rows.edge_dropout].append(k)
    for (settings, lists, dropout), these in alike.items():
        read = [rows.store[int(rows.rows[position])] for rows, position, _ in (wanted[k] for k in these)]
        graphs = build_graphs(
            [row.structure for row in read],
            settings,
            lists=lists,
            edge_dropout=dropout,
            rngs=[np.random.default_rng(wanted[k][2]) for k in these] if dropout else None,
        )
        for k, row, graph in zip(these, read, graphs, strict=True):
            rows, position, _ = wanted[k]
            item = found[k] = Sample(task=rows.index, graph=graph, labels=rows.task.normalised_labels(row))
            if rows.keep and not dropout:
                rows.kept[position] = item
    return cast(list[Sample], found)


class BatchSampler:
    """The batches of a run.

    Args:
        sets: one for each task that is learned.
        batch_size: structures per batch over all processes; their average where batches are cut by cost. The sum of
            a step's losses is divided by this average: a structure weighs the same in whichever batch it falls.
        temperature: of the mixture; irrelevant with one set.
        seed: of the order.
        weights: task → share of the mixture, instead of the temperature.
        caps, max_shares: see `Mixture`.
        costs: for each set, the cost of a structure by its number of atoms, (most atoms + 1,); cut by count
            without.
        window: batches that are cut together.
    """

    def __init__(
        self,
        sets: Sequence[TaskDataset],
        batch_size: int,
        temperature: float,
        seed: int,
        weights: dict[str, float] | None = None,
        *,
        caps: Mapping[str, int] | None = None,
        max_shares: Mapping[str, float] | None = None,
        costs: Sequence[np.ndarray] | None = None,
        window: int = 16,
    ) -> None:
        self.sets = list(sets)
        self.batch_size = batch_size
        self.seed = seed
        self.mixture = Mixture(
            {s.task.name: len(s) for s in sets}, temperature, weights, caps=caps, max_shares=max_shares
        )
        self.window = window
        self._sizes = [s.sizes() for s in sets]
        self._costs = None if costs is None else [np.asarray(c, dtype=np.float64) for c in costs]
        self._last_cut: tuple[int, np.ndarray] | None = None

    @property
    def by_cost(self) -> bool:
        """Whether batches are cut by cost."""
        return self._costs is not None

    @property
    def smallest(self) -> int:
        """The fewest structures a batch can have, and so the most processes that can share one."""
        return max(1, self.batch_size // SMALLEST) if self.by_cost else self.batch_size

    def span(self, batch: int) -> tuple[int, int]:
        """Where a batch begins and ends in the run's whole sequence of structures."""
        if not self.by_cost:
            return batch * self.batch_size, (batch + 1) * self.batch_size
        window, within = divmod(batch, self.window)
        bounds = self._cut(window)
        first = window * self.window * self.batch_size
        return first + int(bounds[within]), first + int(bounds[within + 1])

    def chosen(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) set and (n,) position within the set of every structure of a batch."""
        return self._at(*self.span(batch))

    def draws(self, batch: int) -> list[SampleKey]:
        """Of every structure of a batch, as `chosen` orders them."""
        return [(self.seed % 2**63, *divmod(place, self.mixture.length)) for place in range(*self.span(batch))]

    def items(self, batch: int, rank: int, world: int) -> list[Sample]:
        """This process's share of a batch. Shares are balanced by cost (by atoms, where batches are cut by count),
        and together they are the batch."""
        return self.shares([batch], rank, world)[0]

    def shares(self, batches: Sequence[int], rank: int, world: int) -> list[list[Sample]]:
        """This process's share of each of some batches; making several at once costs less."""
        wanted: list[tuple[TaskDataset, int, SampleKey]] = []
        ends = [0]
        for batch in batches:
            which, row = self.chosen(batch)
            draws = self.draws(batch)
            mine = np.arange(len(which))
            if world > 1:
                mine = balanced(self._cost(which, row), world)[rank]
            wanted += [(self.sets[which[i]], int(row[i]), draws[i]) for i in mine.tolist()]
            ends.append(len(wanted))
        items = make_samples(wanted)
        return [items[a:b] for a, b in pairwise(ends)]

    def drawn(self, batches: int) -> np.ndarray:
        """(n_sets,) structures drawn from each set in the first `batches` batches, repeats counted."""
        end = self.span(batches - 1)[1] if batches else 0
        epochs, rest = divmod(end, self.mixture.length)
        counts = epochs * np.array(list(self.mixture.places.values()), dtype=np.int64)
        for first in range(end - rest, end, 2**20):
            which, _ = self._at(first, min(first + 2**20, end))
            counts += np.bincount(which, minlength=len(counts))
        return counts

    def _at(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.arange(first, end, dtype=np.int64)
        epoch, within = position // self.mixture.length, position % self.mixture.length
        which, row = np.empty(len(position), dtype=np.int64), np.empty(len(position), dtype=np.int64)
        for e in np.unique(epoch):
            mask = epoch == e
            which[mask], row[mask] = self.mixture.at(self.seed, int(e), within[mask])
        return which, row

    def _cost(self, which: np.ndarray, row: np.ndarray) -> np.ndarray:
        atoms = np.array([self._sizes[w][r] for w, r in zip(which, row, strict=True)])
        if self._costs is None:
            return atoms
        return np.array([self._costs[w][n] for w, n in zip(which, atoms, strict=True)])

    def _cut(self, window: int) -> np.ndarray:
        """(window + 1,) where the batches of a window begin and end, counted from its first structure."""
        if self._last_cut is None or self._last_cut[0] != window:
            n = self.window * self.batch_size
            costs = self._cost(*self._at(window * n, (window + 1) * n))
            self._last_cut = window, cuts(costs, self.window, self.smallest)
        return self._last_cut[1]


def cuts(costs: np.ndarray, parts: int, smallest: int) -> np.ndarray:
    """Cut a sequence into parts of nearly equal cost, in order.

    Args:
        costs: (n,) positive; n ≥ parts · smallest.
        parts: how many.
        smallest: the fewest elements of a part.

    Returns:
        (parts + 1,) boundaries, 0 and n included. Each stands as near as it can to its share of the total: where
        `smallest` does not bite, a part is off the mean by at most its two boundary elements' cost.
    """
    total = np.concatenate([[0.0], np.cumsum(costs)])
    wanted = total[-1] * np.arange(1, parts) / parts
    above = np.searchsorted(total, wanted)
    inner = np.where(total[above] - wanted <= wanted - total[above - 1], above, above - 1)
    result = np.concatenate([[0], inner, [len(costs)]])
    k = np.arange(parts + 1)
    # Forwards, then backwards: no part smaller than allowed, and boundaries moved no further than needed.
    result = np.maximum.accumulate(result - smallest * k) + smallest * k
    last = len(costs) - smallest * (parts - k)
    return np.minimum(result, last)


def balanced(sizes: np.ndarray, bins: int) -> list[np.ndarray]:
    """Indices shared out to bins of nearly equal total size: largest first, each to the lightest bin.

    With as many structures as bins or more, no bin is empty.
    """
    loads = np.zeros(bins)
    shares: list[list[int]] = [[] for _ in range(bins)]
    for index in np.argsort(-sizes, kind="stable"):
        lightest = int(loads.argmin())
        loads[lightest] += sizes[index]
        shares[lightest].append(int(index))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def check_shares(source: BatchSampler, processes: int) -> None:
    """Refuse batches that are too small for every process to have a structure.

    Raises:
        EutecticError: more processes than structures.
    """
    if processes > source.smallest:
        raise EutecticError(
            "train.batch_size",
            f"{source.batch_size} structures{' on average' if source.by_cost else ''} for {processes} processes",
            f"a batch_size of at least {processes * (SMALLEST if source.by_cost else 1)}",
            "raise train.batch_size (or the budget of batching), or use fewer processes",
        )
