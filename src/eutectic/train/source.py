"""Which structures make up which step: a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eutectic.data.mixture import Mixture
from eutectic.data.store import Store
from eutectic.graph import build_graph
from eutectic.tasks import Item, Task

Draw = tuple[int, int, int]
"""Seed, epoch and position: which of a run's draws a structure is, and the seed of all that is random about it."""


@dataclass
class TaskRows:
    """One task's structures, ready to be turned into items.

    Attributes:
        index: of the task in the model.
        store, rows: which structures.
        keep: hold graphs in memory once built (for sets seen many times); not where edges are dropped anew.
        edge_dropout: share of the edges that a structure drawn for training loses.
    """

    index: int
    task: Task
    store: Store
    rows: np.ndarray
    keep: bool = False
    edge_dropout: float = 0.0
    _kept: dict[int, Item] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> np.ndarray:
        """(n,) atoms of each structure."""
        return np.asarray(self.store.column("n_atoms"))[self.rows]

    def item(self, position: int, draw: Draw | None = None) -> Item:
        """The structure at a position among the rows.

        Args:
            position: 0 … len − 1.
            draw: for training: decides which edges it loses.
        """
        if position in self._kept:
            return self._kept[position]
        row = self.store[int(self.rows[position])]
        lossy = draw is not None and self.edge_dropout > 0
        graph = build_graph(
            row.structure,
            self.task.graph,
            edge_dropout=self.edge_dropout if lossy else 0.0,
            rng=np.random.default_rng(draw) if lossy else None,
        )
        made = Item(task=self.index, graph=graph, labels=self.task.normalised_labels(row))
        if self.keep and not lossy:
            self._kept[position] = made
        return made

    def items(self) -> list[Item]:
        """All of them, in order."""
        return [self.item(i) for i in range(len(self))]


class Source:
    """The batches of a run.

    Args:
        sets: one for each task.
        batch_size: structures per step, over all processes.
        temperature: of the mixture; irrelevant with one set.
        seed: of the order.
        weights: task → share of the mixture, instead of the temperature.
    """

    def __init__(
        self,
        sets: Sequence[TaskRows],
        batch_size: int,
        temperature: float,
        seed: int,
        weights: dict[str, float] | None = None,
    ) -> None:
        self.sets = list(sets)
        self.batch_size = batch_size
        self.seed = seed
        self.mixture = Mixture({s.task.name: len(s) for s in sets}, temperature=temperature, weights=weights)
        self._sizes = [s.sizes() for s in sets]

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(batch_size,) set and (batch_size,) position within the set of every structure of a step."""
        position = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epoch, within = position // self.mixture.length, position % self.mixture.length
        which, row = np.empty(self.batch_size, dtype=np.int64), np.empty(self.batch_size, dtype=np.int64)
        for e in np.unique(epoch):
            mask = epoch == e
            which[mask], row[mask] = self.mixture.at(self.seed, int(e), within[mask])
        return which, row

    def span(self, step: int) -> tuple[int, int]:
        """Where a step begins and ends in the run's whole sequence of structures."""
        return step * self.batch_size, (step + 1) * self.batch_size

    def draws(self, step: int) -> list[Draw]:
        """Of every structure of a step, as `chosen` orders them."""
        return [(self.seed % 2**63, *divmod(place, self.mixture.length)) for place in range(*self.span(step))]

    def items(self, step: int, rank: int, world: int) -> list[Item]:
        """This process's share of a step. Shares are balanced by atoms, and together they are the batch."""
        which, row = self.chosen(step)
        draws = self.draws(step)
        mine = np.arange(len(which))
        if world > 1:
            atoms = np.array([self._sizes[w][r] for w, r in zip(which, row, strict=True)])
            mine = balanced(atoms, world)[rank]
        return [self.sets[which[i]].item(int(row[i]), draws[i]) for i in mine]


def balanced(sizes: np.ndarray, bins: int) -> list[np.ndarray]:
    """Indices shared out to bins of nearly equal total size: largest first, each to the lightest bin."""
    loads = np.zeros(bins)
    shares: list[list[int]] = [[] for _ in range(bins)]
    for index in np.argsort(-sizes, kind="stable"):
        lightest = int(loads.argmin())
        loads[lightest] += sizes[index]
        shares[lightest].append(int(index))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]
