"""Deterministic train/validation/test splits of a store.

Named splits: `group` (the default of most data sets) keeps each group on one side; `random` ignores groups;
`official_01`, `fold_0` … are published with a data set; `group_fold_0_of_5` and `random_fold_0_of_5` are folds, which
together test each structure once; `paper` reproduces JMP's fine-tuning split. `leakage` counts what validation and
test share with training.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.console import ProgressBar
from eutectic.data.dataset import PaperSplit
from eutectic.data.store import Store

TEST_SHARE = 0.1
"""Default fraction of the structures for validation, and again for test."""

SAME_ENERGY = 0.05
"""Energies (eV) of the same geometry that differ by more belong to different charges, spins or levels of theory."""

NEAR = 0.1
"""Root mean square displacement (Å) below which consecutive rows are neighbours in time. A step of 0.5 fs at 500 K
moves atoms by 0.02 Å; independent structures of a molecule differ by a few tenths of an Å."""


@dataclass(frozen=True, eq=False)
class Split:
    """Three disjoint sets of rows.

    Attributes:
        name: name of the split.
        train: (n_train,) sorted rows.
        validation: (n_validation,) sorted rows.
        test: (n_test,) sorted rows.
    """

    name: str
    train: Int[np.ndarray, " n_train"]
    validation: Int[np.ndarray, " n_validation"]
    test: Int[np.ndarray, " n_test"]


def split(
    store: Store,
    name: str | None = None,
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    needs: tuple[str, ...] = (),
) -> Split:
    """Split a store.

    `group` and `random` depend on ids, groups and `seed` alone, not on the order of rows, and smaller sets are
    subsets of larger ones: with 100 and with 1000 training structures, the test set is the same. `official_…`
    and `paper` take the first rows of the published order and ignore `seed`.

    Args:
        store: store to split.
        name: "group", "random", "paper", or a published split; None is the card's default.
        n_train: training structures; None is all the rest (official: all but validation).
        n_validation: validation structures; None is a tenth (official: 50 of the training list).
        n_test: test structures; None is a tenth (official, paper: the whole test list).
        seed: seed of the hash behind `group` and `random`.
        needs: labels that a row must have to be used.

    Raises:
        EutecticError: no such split; more structures requested than available; too few groups; no row with
            the labels.
    """
    name = name or store.card.default_split
    published = store.published_splits()
    fold = FOLD.fullmatch(name)
    if name not in ("group", "random", "paper", *published) and fold is None:
        names = ["group", "random", "group_fold_0_of_5", *published, *(["paper"] * _in_paper(store))]
        raise EutecticError(
            f"splits of {store.card.name}", f"split {name!r}", f"one of {', '.join(names)}", did_you_mean(name, names)
        )
    eligible = _eligible(store, needs)
    requested = (n_train, n_validation, n_test)
    for part, n in zip(("training", "validation", "test"), requested, strict=True):
        if n is not None and n < (part == "training"):
            raise EutecticError(f"split {name!r}", f"{n} {part} structures", "a positive number", "request more")
    if name == "group":
        parts = _by_group(store, eligible, requested, seed)
    elif name == "random":
        parts = _at_random(store, eligible, requested, seed)
    elif name == "paper":
        parts = _paper(store, eligible, requested, published)
    elif name in published or fold is None:
        parts = _official(store, name, published[name], eligible, requested)
    else:
        parts = _fold(store, name, (fold[1], int(fold[2]), int(fold[3])), eligible, requested, seed)
    return Split(name, *(np.sort(part).astype(np.int64) for part in parts))


def folds_of(store: Store, count: int, name: str | None = None) -> list[str]:
    """Names of the splits of a cross-validation: the published folds, if there are as many, else k folds by group.

    Args:
        store: to split.
        count: number of folds, at least 2.
        name: split whose rule the folds follow (`random` divides groups); None is the card's default.

    Raises:
        EutecticError: fewer than two folds; a published split, which has one test set.
    """
    if count < 2:
        raise EutecticError(
            "folds", f"{count}", "at least 2: each is tested after training on the others", "request more"
        )
    published = store.published_splits()
    official = [f"fold_{i}" for i in range(count)]
    own = {n for n in published if re.fullmatch(r"fold_\d+", n)}
    name = name or store.card.default_split
    if own == set(official) and (name in own or name == store.card.default_split):
        return official
    if name in published and name not in own and name != store.card.default_split:
        raise EutecticError(
            f"folds of {store.card.name}",
            f"{count} folds of the published split {name!r}, which has one test set",
            "the split 'group' or 'random'",
            "leave out --split, or pass one of these",
        )
    kind = "random" if name == "random" else "group"
    return [f"{kind}_fold_{i}_of_{count}" for i in range(count)]


FOLD = re.compile(r"(group|random)_fold_(\d{1,4})_of_(\d{1,4})")

_Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Training, validation, test: rows, ordered so that a smaller set is a prefix."""

_Requested = tuple[int | None, int | None, int | None]
"""Training, validation, test: number of structures requested."""


def _eligible(store: Store, needs: tuple[str, ...]) -> np.ndarray:
    """(rows,) whether a row has every needed label."""
    unknown = [name for name in needs if name not in store.card.properties]
    found = np.ones(len(store), dtype=bool) if not unknown else np.zeros(len(store), dtype=bool)
    if needs and not unknown:
        start = 0
        for batch in store.take(np.arange(len(store)), *needs):
            for name in needs:
                found[start : start + batch.num_rows] &= batch.column(name).is_valid().to_numpy(False)
            start += batch.num_rows
    if not found.any():
        raise EutecticError(
            str(store.path),
            f"no structure has {' and '.join(unknown or needs)}",
            f"labels among {', '.join(store.card.properties)}",
            "choose from the labels that the store has (`eutectic data info` lists them)",
        )
    return found


def _hashes(texts: Iterable[str], seed: int) -> np.ndarray:
    """A number in [0, 2^64) for each text, independent of machine and order."""
    key = hashlib.blake2b(f"{seed}".encode(), digest_size=16).digest()
    digests = b"".join(hashlib.blake2b(t.encode(), digest_size=8, key=key).digest() for t in texts)
    return np.frombuffer(digests, dtype="<u8")


def _in_hash_order(store: Store, seed: int) -> np.ndarray:
    """(rows,) sorted by the hash of their id, independent of the order in the store."""
    return np.argsort(_hashes(store.column("id"), seed), kind="stable")


def _targets(n: int, requested: _Requested) -> tuple[int, int]:
    """Number of validation and test rows to set aside, of n.

    A tenth each, or more if more is requested; requesting less still sets a tenth aside, so that no row moves between
    parts. Less only if the requested training set needs the rows.
    """
    n_train, n_validation, n_test = requested
    tenth = max(1, round(TEST_SHARE * n))
    least = tuple(0 if a is None else a for a in (n_validation, n_test))
    targets = [max(tenth, a) for a in least]
    room = n - (n_train or 1)
    if sum(targets) > room:
        spare = max(0, room - sum(least))
        # Parts without a requested number share the spare rows.
        weights = [tenth if a is None else 0 for a in (n_validation, n_test)]
        targets = [a + spare * w // max(1, sum(weights)) for a, w in zip(least, weights, strict=True)]
    return targets[0], targets[1]


def _first(rows: np.ndarray, n: int | None, part: str, where: str) -> np.ndarray:
    if n is not None and n > len(rows):
        raise EutecticError(
            where, f"{n} {part} structures requested", f"at most {len(rows)}", f"request {len(rows)} or fewer"
        )
    return rows[:n]


def _cut(parts: _Parts, requested: _Requested, where: str) -> _Parts:
    train, validation, test = parts
    return (
        _first(train, requested[0], "training", where),
        _first(validation, requested[1], "validation", where),
        _first(test, requested[2], "test", where),
    )


def _split_eligible(
    divide: Callable[[np.ndarray, _Requested], _Parts],
    order: np.ndarray,
    eligible: np.ndarray,
    requested: _Requested,
    where: str,
) -> _Parts:
    """Split all rows, then keep the eligible ones, so that tasks with different labels share their test structures.

    Only if that leaves a part with too few are the eligible rows split on their own.
    """
    n = int(eligible.sum())
    if sum(a or 0 for a in requested) > n:
        words = " + ".join(str(a or 0) for a in requested)
        raise EutecticError(
            where,
            f"{words} structures requested (training + validation + test)",
            f"at most {n} together",
            "request fewer",
        )
    of_all = tuple(None if a is None else math.ceil(a * len(order) / n) for a in requested)
    train, validation, test = (rows[eligible[rows]] for rows in divide(order, of_all))  # type: ignore[arg-type]
    if any(len(p) < (a or 0) for p, a in zip((train, validation, test), requested, strict=True)):
        train, validation, test = divide(order[eligible[order]], requested)
    return _cut((train, validation, test), requested, where)


def _at_random(store: Store, eligible: np.ndarray, requested: _Requested, seed: int) -> _Parts:
    def divide(rows: np.ndarray, requested: _Requested) -> _Parts:
        n_validation, n_test = _targets(len(rows), requested)
        test, validation, train = np.split(rows, [n_test, n_test + n_validation])
        return train, validation, test

    where = f"split 'random' of {store.card.name}"
    return _split_eligible(divide, _in_hash_order(store, seed), eligible, requested, where)


def _by_group(store: Store, eligible: np.ndarray, requested: _Requested, seed: int) -> _Parts:
    where = f"split 'group' of {store.card.name}"
    names, group_of_row = np.unique(store.column("group").astype(str), return_inverse=True)
    order_of_groups = np.argsort(_hashes(names.tolist(), seed), kind="stable")

    def divide(rows: np.ndarray, requested: _Requested) -> _Parts:
        sizes = np.bincount(group_of_row[rows], minlength=len(names))
        order = order_of_groups[sizes[order_of_groups] > 0]
        if len(order) < 3:
            raise EutecticError(
                where,
                f"{len(order)} group{'s' * (len(order) > 1)} of structures",
                "at least three, one for each part",
                "use the split 'random' (a group may then be on both sides)",
            )
        part = _assign(order, sizes, _targets(len(rows), requested), (requested[1] or 0, requested[2] or 0))[
            group_of_row[rows]
        ]
        return rows[part == 0], rows[part == 1], rows[part == 2]

    return _split_eligible(divide, _in_hash_order(store, seed), eligible, requested, where)


def _assign(
    order: np.ndarray, sizes: np.ndarray, targets: tuple[int, int], least: tuple[int, int], parts: Literal[2, 3] = 3
) -> np.ndarray:
    """(groups,) 0 training, 1 validation, 2 test; the last only if there are three parts.

    In turn, each group is assigned to the test set while that brings it nearer to its target size, then to
    validation, else to training. A group of more than twice the target always goes to training. No part stays empty.

    Args:
        order: (groups,) order of assignment.
        sizes: (groups,) structures of each group.
        targets: target sizes of validation and test.
        least: minimum sizes of validation and test.
    """
    part = np.zeros(len(sizes), dtype=np.int64)
    filled = [0, 0]
    for group in order:
        for which in (1, 0)[3 - parts :]:
            half = sizes[group] / 2
            short = filled[which] < least[which] and half <= targets[which]
            if short or filled[which] + half <= targets[which]:
                part[group] = which + 1
                filled[which] += int(sizes[group])
                break
    # Fill an empty part with the smallest group of a part that has more than one, training first.
    for which in (2, 1, 0)[3 - parts :]:
        if not (part[order] == which).any():
            giver = next(p for p in (0, 2, 1) if (part[order] == p).sum() > 1)
            groups = order[part[order] == giver]
            part[groups[np.argmin(sizes[groups])]] = which
    return part


def _fold(
    store: Store, name: str, fold: tuple[str, int, int], eligible: np.ndarray, requested: _Requested, seed: int
) -> _Parts:
    """Fold `number` of `count` is the test set; validation (also by group) and training come from the other folds."""
    kind, number, count = fold
    where = f"split {name!r} of {store.card.name}"
    if count < 2 or number >= count:
        raise EutecticError(where, name, "fold 0 to k − 1 of k, with k at least 2", "correct the name")
    order = _in_hash_order(store, seed)
    rows = order[eligible[order]]
    if kind == "group":
        names, group_of_row = np.unique(store.column("group").astype(str), return_inverse=True)
        by_hash = np.argsort(_hashes(names.tolist(), seed), kind="stable")
    else:
        by_hash, group_of_row = order, np.arange(len(store))
    sizes = np.bincount(group_of_row[rows], minlength=len(by_hash))
    groups = by_hash[sizes[by_hash] > 0]
    too_few = len(groups) < count
    if not too_few:
        # Largest groups first, each to the smallest fold so far, so that folds are of nearly equal size.
        fold_of_group = np.full(len(by_hash), -1)
        filled = np.zeros(count, dtype=np.int64)
        for group in groups[np.argsort(-sizes[groups], kind="stable")]:
            fold_of_group[group] = smallest = int(np.argmin(filled))
            filled[smallest] += sizes[group]
        rest = groups[fold_of_group[groups] != number]
        too_few = len(rest) < 2
    if too_few:
        what = "groups" if kind == "group" else "structures"
        raise EutecticError(
            where,
            f"{count} folds of {len(groups)} {what}",
            f"at least one {what[:-1]} per fold, and two outside each fold (training, validation)",
            "use fewer folds, or the split 'random' (a group may then be on both sides)"
            if kind == "group"
            else "use fewer folds",
        )
    test = rows[fold_of_group[group_of_row[rows]] == number]
    left = int(sizes[rest].sum())
    target = max(1, round(TEST_SHARE * left), requested[1] or 0)
    if requested[0] is not None:
        target = max(requested[1] or 1, min(target, left - requested[0]))
    part = _assign(rest, sizes, (target, 0), (requested[1] or 0, 0), parts=2)[group_of_row]
    others = rows[np.isin(group_of_row[rows], rest)]
    return _cut((others[part[others] == 0], others[part[others] == 1], test), requested, where)


def _official(
    store: Store, name: str, lists: dict[str, np.ndarray], eligible: np.ndarray, requested: _Requested
) -> _Parts:
    where = f"split {name!r} of {store.card.name}"
    train, test = (lists[part][eligible[lists[part]]] for part in ("train", "test"))
    if "validation" in lists:
        validation = lists["validation"][eligible[lists["validation"]]]
        return _cut((train, validation, test), requested, where)
    n_train, n_validation, n_test = requested
    if n_validation is None:
        n_validation = min(50, len(train) - (n_train or 1))
    if n_train is None:
        n_train = len(train) - n_validation
    if n_train < 1 or n_validation < 0 or n_train + n_validation > len(train):
        raise EutecticError(
            where,
            f"{n_train} training and {n_validation} validation structures requested",
            f"at most {len(train)} together, the published training list",
            "request fewer, or use the split 'random'",
        )
    validation = train[n_train : n_train + n_validation]
    return train[:n_train], validation, _first(test, n_test, "test", where)


def _family(store: Store) -> str:
    return store.card.name.partition(":")[0]


def paper_splits() -> dict[str, PaperSplit | str]:
    """JMP's split of each of its fine-tuning data sets, by the name of the data set or of its family."""
    # Imported here because some of these modules import this one.
    from eutectic.data.datasets import published

    return {name: paper for module in published() for name, paper in getattr(module, "PAPER_SPLITS", {}).items()}


def _paper_split(store: Store) -> PaperSplit | str | None:
    known = paper_splits()
    return known.get(store.card.name) or known.get(_family(store))


def _in_paper(store: Store) -> bool:
    return _paper_split(store) is not None


def _paper(
    store: Store, eligible: np.ndarray, requested: _Requested, published: dict[str, dict[str, np.ndarray]]
) -> _Parts:
    where, n = f"split 'paper' of {store.card.name}", len(store)
    paper = _paper_split(store)
    if paper is None:
        raise EutecticError(
            where,
            "JMP did not use this data set",
            " or ".join(paper_splits()),
            "use the split 'group' or 'random'",
        )
    if isinstance(paper, str):
        name = paper
        if name not in published:
            raise EutecticError(
                where,
                f"a store without the split {name!r}",
                "the complete data set with its published splits",
                "prepare it from the complete files, or use the split 'group' or 'random'",
            )
        return _official(store, name, published[name], eligible, requested)
    *sizes, whole = paper
    if n < whole:
        raise EutecticError(
            where,
            f"{n} structures",
            f"the complete data set, {whole} or more",
            "prepare it from the complete files, or use the split 'random'",
        )
    counts = [int(size * n) if isinstance(size, float) else size for size in sizes]
    rest = n - sum(c for c in counts if c is not None)
    n_train, n_validation, _ = (rest if c is None else c for c in counts)
    # NumPy guarantees that the stream of this legacy generator never changes.
    order = np.arange(n)
    np.random.RandomState(42).shuffle(order)
    bounds = [n_train, n_train + n_validation]
    train, validation, test = (rows[eligible[rows]] for rows in np.split(order, bounds))
    return _cut((train, validation, test), requested, where)


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Overlap of the validation or test set with the training structures.

    Attributes:
        structures: structures in the part.
        in_shared_groups: structures whose group (molecule, compound, trajectory, …) is also in training.
        shared_groups: number of these groups.
        duplicates: structures identical to a training structure to 1e-3 Å, with the same energy if they have one (the
            same geometry with another charge, spin or level of theory is not a duplicate).
        neighbours_in_time: structures whose previous or next row is a training structure of the same atoms, less
            than `NEAR` away.
    """

    structures: int
    in_shared_groups: int
    shared_groups: int
    duplicates: int
    neighbours_in_time: int

    def __str__(self) -> str:
        """Summary for tables."""
        counts = [
            f"{_counted(count, 'structure')} {words}"
            for count, words in (
                (self.in_shared_groups, f"from {_counted(self.shared_groups, 'group')} also in training"),
                (self.duplicates, "identical to a training structure"),
                (self.neighbours_in_time, "adjacent in time to a training structure"),
            )
            if count
        ]
        return ", ".join(counts) if counts else "nothing"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)


def leakage(store: Store, parts: Split, near: Bool[np.ndarray, " rows_but_one"] | None = None) -> dict[str, Leakage]:
    """Leakage of a split.

    Args:
        store: the store.
        parts: its split.
        near: whether each row and the next are neighbours in time; computed if None.

    Returns:
        "validation" and "test" → what they share with training.
    """
    near = _near_the_next(store) if near is None else near
    return leakage_into(store, parts.train, {"validation": parts.validation, "test": parts.test}, near)


def leakage_into(
    store: Store,
    train: np.ndarray,
    parts: Mapping[str, np.ndarray],
    near: Bool[np.ndarray, " rows_but_one"] | None = None,
) -> dict[str, Leakage]:
    """What the rows of each part share with the training rows; neighbours in time are counted if `near` is given."""
    groups, content = store.column("group"), store.column("content")
    train_groups, train_content = set(groups[train]), set(content[train])
    energies = store.column("energy").astype(np.float64) if "energy" in store.card.properties else None
    shared = _energies_of_shared(content, energies, train, parts)
    beside = np.zeros(len(store), dtype=bool)
    if near is not None:
        # Row i is near row i + 1, and one of them is in training.
        trained = np.zeros(len(store), dtype=bool)
        trained[train] = True
        beside[:-1] |= near & trained[1:]
        beside[1:] |= near & trained[:-1]
    return {
        part: Leakage(
            structures=len(rows),
            in_shared_groups=sum(g in train_groups for g in groups[rows]),
            shared_groups=len(train_groups & set(groups[rows])),
            duplicates=sum(
                content[row] in train_content and (energies is None or _any_near(energies[row], shared[content[row]]))
                for row in rows
            ),
            neighbours_in_time=int(beside[rows].sum()),
        )
        for part, rows in parts.items()
    }


def _energies_of_shared(
    content: np.ndarray, energies: np.ndarray | None, train: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[bytes, list[float]]:
    """Content hash found in training and in a part → its energies in training."""
    if energies is None:
        return {}
    outside = {content[row] for rows in parts.values() for row in rows}
    found: dict[bytes, list[float]] = {}
    for row in train:
        if content[row] in outside:
            found.setdefault(content[row], []).append(float(energies[row]))
    return found


def _any_near(energy: float, others: Sequence[float]) -> bool:
    """Whether one of the energies agrees within `SAME_ENERGY`; an unknown one (NaN) counts as agreement."""
    return any(not abs(energy - other) > SAME_ENERGY for other in others)


def _near_the_next(
    store: Store, count: Callable[[int], object] = lambda rows: None
) -> Bool[np.ndarray, " rows_but_one"]:
    """Whether each row and the next have the same atoms at nearly the same positions (within `NEAR`)."""
    near = np.zeros(len(store), dtype=bool)
    start, last = 0, (np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.float32))
    for batch in store.take(np.arange(len(store)), "numbers", "positions"):
        ends = np.cumsum(batch.column("numbers").value_lengths().to_numpy())
        numbers = batch.column("numbers").flatten().to_numpy()
        positions = batch.column("positions").flatten().to_numpy().reshape(-1, 3)
        for i, (a, b) in enumerate(zip(np.append(0, ends[:-1]), ends, strict=True), start=start):
            this = (numbers[a:b], positions[a:b])
            if i and np.array_equal(last[0], this[0]):
                near[i - 1] = np.square(this[1] - last[1]).sum(axis=1).mean() < NEAR**2
            last = this
        start += batch.num_rows
        count(batch.num_rows)
    return near[:-1]


def compare_splits(store: Store, *, progress: bool = False) -> dict[str, dict[str, object]]:
    """Sizes and leakage of every split of a store, as JSON.

    Args:
        store: the store.
        progress: show progress and time left when it takes more than a few seconds.

    Returns:
        Name → `default`, `sizes` ("train", "validation", "test") and `leaks` (as `leakage`, with `words`); or
        `default` and `not_possible` (the reason).
    """
    report: dict[str, dict[str, object]] = {}
    names = ("group", "random", *store.published_splits(), *(["paper"] * _in_paper(store)))
    # One pass for the neighbours in time, and one for each split.
    total = len(store) * (1 + len(names))
    with ProgressBar(f"Comparing {len(names)} splits", total, unit="rows", enabled=progress) as bar:
        near = _near_the_next(store, bar.advance)
        for name in names:
            report[name] = {"default": name == store.card.default_split, **_described(store, name, near)}
            bar.advance(len(store))
    return report


def _described(store: Store, name: str, near: Bool[np.ndarray, " rows_but_one"]) -> dict[str, object]:
    try:
        parts = split(store, name)
    except EutecticError as error:
        return {"not_possible": f"{error.given}; expected {error.expected}"}
    leaks = {part: {**asdict(leak), "words": str(leak)} for part, leak in leakage(store, parts, near).items()}
    return {
        "sizes": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
        "leaks": leaks,
    }


def paper_against_default(store: Store, report: dict[str, dict[str, object]]) -> str:
    """One sentence comparing the test leakage of the paper's and the default split; empty if they are the same."""
    default = store.card.default_split
    words = []
    for name in ("paper", default):
        leaks = report.get(name, {}).get("leaks")
        if default == "paper" or not isinstance(leaks, dict):
            return ""
        words.append(f"{leaks['test']['words']} (of {leaks['test']['structures']:,})")
    return f"Test leakage of the paper's split: {words[0]}; of the default, {default!r}: {words[1]}."
