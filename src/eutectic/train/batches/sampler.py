"""Batch sampling: the structures of a batch are a function only of the seed and the index of the batch.

The order of structures is that of the mixture. It is cut into batches by count (`batch_size` structures each), or by
cost: each window of `window · batch_size` structures is cut into `window` batches of nearly equal cost, so that the
structures of a batch depend only on its window. A step of the optimiser uses one batch, or several with gradient
accumulation.
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
"""Seed, epoch and position of a drawn structure; also the seed of its edge dropout."""

SMALLEST = 4
"""A batch cut by cost has at least a quarter of the mean number of structures."""


@dataclass
class TaskDataset:
    """The structures of one task, from which samples are built.

    Attributes:
        index: of the task in the model.
        store, rows: the structures.
        keep: keep built graphs in memory (for sets seen many times); not with edge dropout.
        edge_dropout: fraction of edges dropped from a structure drawn for training.
        edge_lists: the edge lists that the backbone reads (`Backbone.edge_lists`); no others are built.
        kept: position → sample kept in memory.
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
            draw: for training; seeds the edge dropout.
        """
        return make_samples([(self, position, draw)])[0]

    def items(self) -> list[Sample]:
        """All structures, in order."""
        return make_samples([(self, position, None) for position in range(len(self))])


def make_samples(keys: Sequence[tuple[TaskDataset, int, SampleKey | None]]) -> list[Sample]:
    """Build samples for batches. Graphs with the same settings are built together, which is faster.

    Args:
        keys: data set, position in it, and draw (None outside training) of each structure.
    """
    samples: list[Sample | None] = [data.kept.get(position) for data, position, _ in keys]
    by_settings: dict[tuple[GraphSettings, tuple[str, ...], float], list[int]] = defaultdict(list)
    for k, (data, _, draw) in enumerate(keys):
        if samples[k] is None:
            by_settings[data.task.graph, data.edge_lists, 0.0 if draw is None else data.edge_dropout].append(k)
    for (settings, lists, dropout), indices in by_settings.items():
        read = [data.store[int(data.rows[position])] for data, position, _ in (keys[k] for k in indices)]
        graphs = build_graphs(
            [labelled.structure for labelled in read],
            settings,
            lists=lists,
            edge_dropout=dropout,
            rngs=[np.random.default_rng(keys[k][2]) for k in indices] if dropout else None,
        )
        for k, labelled, graph in zip(indices, read, graphs, strict=True):
            data, position, _ = keys[k]
            sample = samples[k] = Sample(task=data.index, graph=graph, labels=data.task.normalised_labels(labelled))
            if data.keep and not dropout:
                data.kept[position] = sample
    return cast(list[Sample], samples)


class BatchSampler:
    """The batches of a run.

    Args:
        sets: one data set per task trained on.
        batch_size: structures per batch over all processes (mean number if batches are cut by cost). The sum of the
            losses in a step is divided by this number, so that every structure has the same weight in any batch.
        temperature: of the mixture; irrelevant with one set.
        seed: of the order.
        weights: task → share of the mixture, instead of the temperature.
        caps, max_shares: see `Mixture`.
        costs: for each set, the cost of a structure by its number of atoms, (largest number of atoms + 1,); None cuts
            by count.
        window: number of batches that are cut together.
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
        """Minimum number of structures in a batch, and maximum number of processes that can share one."""
        return max(1, self.batch_size // SMALLEST) if self.by_cost else self.batch_size

    def span(self, batch: int) -> tuple[int, int]:
        """First and last (exclusive) position of a batch in the run's sequence of structures."""
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
        """Key of every structure of a batch, in the order of `chosen`."""
        return [(self.seed % 2**63, *divmod(place, self.mixture.length)) for place in range(*self.span(batch))]

    def items(self, batch: int, rank: int, world: int) -> list[Sample]:
        """This process's share of a batch. Shares are balanced by cost (by atoms if batches are cut by count)."""
        return self.shares([batch], rank, world)[0]

    def shares(self, batches: Sequence[int], rank: int, world: int) -> list[list[Sample]]:
        """This process's share of several batches, which are faster to build together."""
        keys: list[tuple[TaskDataset, int, SampleKey]] = []
        ends = [0]
        for batch in batches:
            which, row = self.chosen(batch)
            draws = self.draws(batch)
            share = np.arange(len(which))
            if world > 1:
                share = balanced(self._cost(which, row), world)[rank]
            keys += [(self.sets[which[i]], int(row[i]), draws[i]) for i in share.tolist()]
            ends.append(len(keys))
        items = make_samples(keys)
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
        """(window + 1,) boundaries of the batches of a window, counted from its first structure."""
        if self._last_cut is None or self._last_cut[0] != window:
            n = self.window * self.batch_size
            costs = self._cost(*self._at(window * n, (window + 1) * n))
            self._last_cut = window, cuts(costs, self.window, self.smallest)
        return self._last_cut[1]


def cuts(costs: np.ndarray, parts: int, smallest: int) -> np.ndarray:
    """Cut a sequence into parts of nearly equal cost, in order.

    Args:
        costs: (n,) positive; n ≥ parts · smallest.
        parts: number of parts.
        smallest: smallest number of elements in a part.

    Returns:
        (parts + 1,) boundaries, 0 and n included, each as near as possible to its fraction of the total. Where
        `smallest` does not bind, a part differs from the mean by at most the cost of its two boundary elements.
    """
    total = np.concatenate([[0.0], np.cumsum(costs)])
    target = total[-1] * np.arange(1, parts) / parts
    above = np.searchsorted(total, target)
    inner = np.where(total[above] - target <= target - total[above - 1], above, above - 1)
    result = np.concatenate([[0], inner, [len(costs)]])
    k = np.arange(parts + 1)
    # Forwards, then backwards: no part is smaller than allowed, and boundaries move no further than necessary.
    result = np.maximum.accumulate(result - smallest * k) + smallest * k
    last = len(costs) - smallest * (parts - k)
    return np.minimum(result, last)


def balanced(sizes: np.ndarray, bins: int) -> list[np.ndarray]:
    """Distribute indices over bins of nearly equal total size: largest first, each to the lightest bin.

    No bin is empty if there are at least as many structures as bins.
    """
    loads = np.zeros(bins)
    shares: list[list[int]] = [[] for _ in range(bins)]
    for index in np.argsort(-sizes, kind="stable"):
        lightest = int(loads.argmin())
        loads[lightest] += sizes[index]
        shares[lightest].append(int(index))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def check_shares(source: BatchSampler, processes: int) -> None:
    """Check that batches are large enough for every process to get a structure.

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
