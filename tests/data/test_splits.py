"""Splits: nobody is on two sides, the order of rows is nothing, published ones are as published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data import splits
from eutectic.data.card import Card
from eutectic.data.splits import Split, split
from eutectic.data.store import PublishedSplits, Store, write_store

CARD = Card(
    name="made up",
    title="",
    domain="",
    properties=("energy", "gap"),
    theory="",
    licence="",
    citation="",
    source="",
)
ATOM = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)))


def make(
    path: Path,
    groups: list[str],
    *,
    order: np.ndarray | None = None,
    card: Card = CARD,
    published: PublishedSplits | None = None,
) -> Store:
    def row(i: int) -> LabelledStructure:
        labels = {"energy": np.asarray(1.0)} | ({"gap": np.asarray(2.0)} if i % 2 else {})
        return LabelledStructure(structure=ATOM, labels=labels, id=f"row-{i}", group=groups[i])

    positions = np.arange(len(groups)) if order is None else order
    write_store(path, card, (row(int(i)) for i in positions), splits=published)
    return Store(path)


GROUPS = [f"group-{i % 37}" for i in range(400)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make(tmp_path / "store", GROUPS)


def parts(made: Split) -> tuple[set[int], set[int], set[int]]:
    for rows in (made.train, made.validation, made.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    train, validation, test = (set(r.tolist()) for r in (made.train, made.validation, made.test))
    assert train.isdisjoint(validation)
    assert test.isdisjoint(train | validation)
    return train, validation, test


def ids(store: Store, rows: np.ndarray) -> set[str]:
    return set(store.column("id")[rows])


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_two_sides(store: Store, seed: int) -> None:
    made = split(store, seed=seed)
    assert made.name == "group"
    train, validation, test = ({GROUPS[i] for i in part} for part in parts(made))
    assert train.isdisjoint(validation)
    assert test.isdisjoint(train | validation)
    assert len(made.train) + len(made.validation) + len(made.test) == 400
    # A tenth each, to half a group.
    assert abs(len(made.test) - 40) <= 6
    assert abs(len(made.validation) - 40) <= 6


@pytest.mark.parametrize("name", ["group", "random"])
def test_the_order_of_rows_does_not_matter(tmp_path: Path, store: Store, name: str) -> None:
    order = np.random.default_rng(0).permutation(400)
    other = make(tmp_path / "shuffled", GROUPS, order=order)
    for kwargs in ({}, {"n_train": 50, "n_test": 10}):
        a, b = (split(s, name, **kwargs) for s in (store, other))  # type: ignore[arg-type]
        assert ids(store, a.train) == ids(other, b.train)
        assert ids(store, a.test) == ids(other, b.test)


@pytest.mark.parametrize("name", ["group", "random"])
def test_seeds(store: Store, name: str) -> None:
    first, again, other = (parts(split(store, name, seed=s)) for s in (0, 0, 1))
    assert first == again
    assert first[2] != other[2]


@pytest.mark.parametrize("name", ["group", "random"])
def test_fewer_lie_within_more(store: Store, name: str) -> None:
    small, large = split(store, name, n_train=20), split(store, name, n_train=200)
    assert (len(small.train), len(large.train)) == (20, 200)
    assert set(small.train) < set(large.train) < set(split(store, name).train)
    np.testing.assert_array_equal(small.test, large.test)
    few = split(store, name, n_test=5, n_validation=0)
    assert set(few.test) < set(large.test)
    assert len(few.validation) == 0


def test_all_of_them(store: Store) -> None:
    made = split(store, "random", n_train=350, n_validation=20, n_test=30)
    assert [len(p) for p in parts(made)] == [350, 20, 30]
    made = split(store, "random", n_train=350, n_test=30)
    assert [len(p) for p in parts(made)] == [350, 20, 30]
    assert [len(p) for p in parts(split(store, "group", n_train=100, n_validation=50, n_test=100))] == [
        100,
        50,
        100,
    ]


def test_unequal_groups(tmp_path: Path) -> None:
    store = make(tmp_path / "store", ["giant"] * 300 + [f"small-{i // 5}" for i in range(50)])
    for seed in range(10):
        train, validation, test = parts(split(store, seed=seed))
        assert 0 in train
        assert validation
        assert test
    store = make(tmp_path / "three", ["a", "b", "c"])
    assert [len(p) for p in parts(split(store))] == [1, 1, 1]


def test_too_few_groups(tmp_path: Path) -> None:
    store = make(tmp_path / "store", ["a"] * 5 + ["b"] * 5)
    with pytest.raises(EutecticError, match="2 groups of structures that belong together") as caught:
        split(store)
    assert "'random'" in caught.value.fix


def test_needs(store: Store) -> None:
    made = split(store, needs=("gap",))
    for part in parts(made):
        assert all(i % 2 for i in part)
    # A task with fewer labels has the same test structures, of those it knows.
    assert parts(made)[2] < parts(split(store))[2]
    assert [len(p) for p in parts(split(store, "random", needs=("gap",), n_train=160, n_test=40))][::2] == [
        160,
        40,
    ]
    with pytest.raises(EutecticError, match="no structure has u0"):
        split(store, needs=("u0",))


@pytest.mark.parametrize("name", ["group", "random"])
def test_more_than_there_is(store: Store, name: str) -> None:
    with pytest.raises(EutecticError, match=r"390 \+ 20 \+ 0 structures asked for") as caught:
        split(store, name, n_train=390, n_validation=20)
    assert "400" in caught.value.expected
    with pytest.raises(EutecticError, match="0 training structures"):
        split(store, name, n_train=0)


def test_names(store: Store) -> None:
    with pytest.raises(EutecticError, match="did you mean 'random'"):
        split(store, "rnadom")
    with pytest.raises(EutecticError, match="JMP did not use this data set"):
        split(store, "paper")
    with pytest.raises(EutecticError, match="one of group, random"):
        split(store, "official_01")


def official(tmp_path: Path) -> tuple[Store, np.ndarray]:
    order = np.random.default_rng(4).permutation(400)
    lists = {"official_01": {"train": order[:200], "test": order[200:300]}}
    card = replace(CARD, name="rmd17:aspirin", default_split="official_01")
    return make(tmp_path / "official", ["aspirin"] * 400, card=card, published=lists), order


def test_official(tmp_path: Path) -> None:
    store, order = official(tmp_path)
    made = split(store)
    assert made.name == "official_01"
    assert parts(made) == (set(order[:150]), set(order[150:200]), set(order[200:300]))
    made = split(store, "official_01", n_train=100, n_validation=20, n_test=30)
    assert parts(made) == (set(order[:100]), set(order[100:120]), set(order[200:230]))
    assert [len(p) for p in parts(split(store, n_train=200))] == [200, 0, 100]
    for kwargs in ({"n_train": 190, "n_validation": 20}, {"n_train": 201}, {"n_test": 101}):
        with pytest.raises(EutecticError, match="asked for; expected at most"):
            split(store, **kwargs)  # type: ignore[arg-type]
    assert all(i % 2 for part in parts(split(store, needs=("gap",), n_train=50)) for i in part)


def test_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = official(tmp_path)
    with pytest.raises(EutecticError, match="400 structures; expected the whole data set, 99000"):
        split(store, "paper")
    monkeypatch.setitem(splits.PAPER_SIZES, "rmd17", (95, 5, None, 300))
    made = split(store, "paper")
    # The first numbers of RandomState(42).shuffle(arange(400)), worked out once with NumPy.
    order = np.arange(400)
    np.random.RandomState(42).shuffle(order)
    assert parts(made) == (set(order[:95]), set(order[95:100]), set(order[100:]))
    assert [len(p) for p in parts(split(store, "paper", n_train=10, n_test=7))] == [10, 5, 7]


def test_real_official(shared_data: Path, tmp_path: Path) -> None:
    from eutectic.data.catalogue import prepare

    store = Store(prepare("rmd17:ethanol", shared_data / "rmd17" / "rmd17", tmp_path / "ethanol"))
    made = split(store)
    assert made.name == "official_01"
    lists = shared_data / "rmd17" / "rmd17" / "splits"
    train = [int(i) for i in (lists / "index_train_01.csv").read_text().split()]
    test = [int(i) for i in (lists / "index_test_01.csv").read_text().split()]
    assert parts(made) == (set(train[:950]), set(train[950:]), set(test))
