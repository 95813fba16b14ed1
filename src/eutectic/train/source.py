"""Which structures make up which step: a function of the seed and the step alone.

The order of structures is the mixture's. Where it is cut into steps is decided by count (every step has
`batch_size`), or by cost: windows of `window · batch_size` structures are each cut into `window` steps of nearly
equal cost, so that a step's structures follow from its own window, whatever came before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.mixture import Mixture
from eutectic.data.store import Store
from eutectic.graph import build_graph
from eutectic.tasks import Item, Task

SMALLEST = 4
"""A step cut by cost has at least a fourth of the structures that it has on average."""


@dataclass
class TaskRows:
    """One task's structures, ready to be turned into items.

    Attributes:
        index: of the task in the model.
        store, rows: which structures.
        keep: hold graphs in memory once built (for sets seen many times).
    """

    index: int
    task: Task
    store: Store
    rows: np.ndarray
    keep: bool = False
    _kept: dict[int, Item] = field(default_factory=dict, repr=False)
    _sizes: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> np.ndarray:
        """(n,) atoms of each structure."""
        if self._sizes is None:
            self._sizes = np.asarray(self.store.column("n_atoms"))[self.rows]
        return self._sizes

    def item(self, position: int) -> Item:
        """The structure at a position among the rows."""
        if position in self._kept:
            return self._kept[position]
        row = self.store[int(self.rows[position])]
        graph = build_graph(row.structure, self.task.graph)
        made = Item(task=self.index, graph=graph, labels=self.task.normalised_labels(row))
        if self.keep:
            self._kept[position] = made
        return made

    def items(self) -> list[Item]:
        """All of them, in order."""
        return [self.item(i) for i in range(len(self))]


class Source:
    """The batches of a run.

    Args:
        sets: one for each task that is learned.
        batch_size: structures per step over all processes; their average where steps are cut by cost. What the
            sum of a step's losses is divided by: a structure weighs the same in whichever step it falls.
        temperature: of the mixture; irrelevant with one set.
        seed: of the order.
        weights: task → share of the mixture, instead of the temperature.
        caps, max_shares: see `Mixture`.
        costs: for each set, the cost of a structure by its number of atoms, (most atoms + 1,); cut by count
            without.
        window: steps that are cut together.
    """

    def __init__(
        self,
        sets: Sequence[TaskRows],
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
        self._cuts = functools.lru_cache(maxsize=4)(self._cut)

    @property
    def by_cost(self) -> bool:
        """Whether steps are cut by cost."""
        return self._costs is not None

    @property
    def smallest(self) -> int:
        """The fewest structures a step can have, and so the most processes that can share one."""
        return max(1, self.batch_size // SMALLEST) if self.by_cost else self.batch_size

    def span(self, step: int) -> tuple[int, int]:
        """Where a step begins and ends in the run's whole sequence of structures."""
        if not self.by_cost:
            return step * self.batch_size, (step + 1) * self.batch_size
        window, within = divmod(step, self.window)
        cuts = self._cuts(window)
        first = window * self.window * self.batch_size
        return first + int(cuts[within]), first + int(cuts[within + 1])

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(n,) set and (n,) position within the set of every structure of a step."""
        return self._at(*self.span(step))

    def items(self, step: int, rank: int, world: int) -> list[Item]:
        """This process's share of a step. Shares are balanced by cost (by atoms, where steps are cut by count),
        and together they are the batch."""
        which, row = self.chosen(step)
        mine = np.arange(len(which))
        if world > 1:
            mine = balanced(self._cost(which, row), world)[rank]
        return [self.sets[which[i]].item(int(row[i])) for i in mine]

    def drawn(self, steps: int) -> np.ndarray:
        """(n_sets,) structures drawn from each set in the first `steps` steps, repeats counted."""
        end = self.span(steps - 1)[1] if steps else 0
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
        """(window + 1,) where the steps of a window begin and end, counted from its first structure."""
        n = self.window * self.batch_size
        return cuts(self._cost(*self._at(window * n, (window + 1) * n)), self.window, self.smallest)


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


def check_shares(source: Source, processes: int) -> None:
    """Refuse steps that are too small for every process to have a structure.

    Raises:
        EutecticError: more processes than structures.
    """
    if processes > source.smallest:
        raise EutecticError(
            "train.batch_size",
            f"steps of {source.batch_size} structures{' on average' if source.by_cost else ''}, {processes} processes",
            f"a batch_size of at least {processes * (SMALLEST if source.by_cost else 1)}",
            "raise train.batch_size (or the budget of batching), or use fewer processes",
        )
