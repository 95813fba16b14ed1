"""Splits: disjoint, independent of the order of rows, published ones as published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data import splits
from eutectic.data.card import Card
from eutectic.data.dataset import PaperSplit
from eutectic.data.datasets import md22, qmof, rmd17, spice
from eutectic.data.splits import Split, split
from eutectic.data.store import PublishedSplits, Store, write_store

CARD = Card(
    name="made up",
    title="",
    domain="",
    properties=("energy", "gap"),
    level_of_theory="",
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
    # A trajectory, and isolated atoms beside it.
    store = make(tmp_path / "atoms", ["giant"] * 200 + ["x", "y", "z"])
    for seed in range(10):
        made = split(store, seed=seed)
        assert set(range(200)) <= parts(made)[0]
        assert len(made.test)
        assert len(made.validation)
    store = make(tmp_path / "three", ["a", "b", "c"])
    assert [len(p) for p in parts(split(store))] == [1, 1, 1]


def test_too_few_groups(tmp_path: Path) -> None:
    store = make(tmp_path / "store", ["a"] * 5 + ["b"] * 5)
    with pytest.raises(EutecticError, match="2 groups of structures; expected at least three") as caught:
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
    with pytest.raises(EutecticError, match=r"390 \+ 20 \+ 0 structures requested") as caught:
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
        with pytest.raises(EutecticError, match="requested; expected at most"):
            split(store, **kwargs)  # type: ignore[arg-type]
    assert all(i % 2 for part in parts(split(store, needs=("gap",), n_train=50)) for i in part)


def test_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = official(tmp_path)
    with pytest.raises(EutecticError, match="400 structures; expected the complete data set, 99000"):
        split(store, "paper")
    monkeypatch.setitem(rmd17.PAPER_SPLITS, "rmd17", PaperSplit(95, 5, None, 300))
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


MOLECULE = np.array([6, 8])


def trajectory(path: Path, steps: list[float], groups: list[str], card: Card = CARD) -> Store:
    """Carbon monoxide, the oxygen of each frame so far along x."""

    def row(i: int) -> LabelledStructure:
        positions = np.array([[0.0, 0, 0], [steps[i], 0, 0]])
        structure = Structure(numbers=MOLECULE, positions=positions)
        return LabelledStructure(structure=structure, labels={}, id=f"row-{i}", group=groups[i])

    write_store(path, card, (row(i) for i in range(len(steps))))
    return Store(path)


def by_hand(train: list[int], validation: list[int], test: list[int]) -> Split:
    return Split("by hand", np.array(train), np.array(validation, dtype=np.int64), np.array(test))


def test_leakage(tmp_path: Path) -> None:
    # Rows 0 to 3 are neighbours in time, 4 jumps away, 5 repeats 0.
    store = trajectory(tmp_path / "store", [1.0, 1.02, 1.04, 1.06, 2.0, 1.0], ["a", "a", "b", "b", "c", "d"])
    found = splits.leakage(store, by_hand([0, 2], [4], [1, 3, 5]))
    assert found["test"] == splits.Leakage(
        structures=3, in_shared_groups=2, shared_groups=2, duplicates=1, neighbours_in_time=2
    )
    assert str(found["test"]) == (
        "2 structures from 2 groups also in training, 1 structure identical to a training structure, "
        "2 structures adjacent in time to a training structure"
    )
    assert str(found["validation"]) == "nothing"
    # Neither the jump from 3 to 4 nor that from 4 to 5 makes neighbours.
    assert splits.leakage(store, by_hand([4], [], [3, 5]))["test"].neighbours_in_time == 0
    assert splits.leakage(store, by_hand([5], [], [0]))["test"].duplicates == 1


def test_neighbours_across_batches_and_other_atoms(tmp_path: Path) -> None:
    steps = [1.0 + 0.0001 * i for i in range(1200)]
    store = trajectory(tmp_path / "store", steps, ["a"] * 1200)
    near = splits._near_the_next(store)
    assert near.shape == (1199,)
    assert near.all()
    # Other atoms in the same places are no neighbours.
    other = make(tmp_path / "other", GROUPS)
    assert splits._near_the_next(other).all()
    rows = [Structure(numbers=np.array([z]), positions=np.zeros((1, 3))) for z in (1, 2, 2, 3)]
    write_store(
        tmp_path / "mixed",
        CARD,
        (LabelledStructure(structure=s, labels={}, id=str(i), group=str(i)) for i, s in enumerate(rows)),
    )
    assert splits._near_the_next(Store(tmp_path / "mixed")).tolist() == [False, True, False]


def test_stretches_of_time_leak_less_than_chance(tmp_path: Path) -> None:
    steps = [1.0 + 0.01 * i for i in range(400)]
    store = trajectory(tmp_path / "store", steps, [f"stretch-{i // 10:02d}" for i in range(400)])
    report = splits.compare_splits(store)
    assert list(report) == ["group", "random"]
    assert report["group"]["default"]
    leaks = {name: entry["leaks"]["test"]["neighbours_in_time"] for name, entry in report.items()}  # type: ignore[index]
    assert leaks["group"] <= 8
    assert leaks["random"] > 30
    assert report["group"]["sizes"] == {"train": 320, "validation": 40, "test": 40}
    assert splits.paper_against_default(store, report) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("md22:made up", (285, 15, 100)), ("qmof", (320, 40, 40)), ("spice:made up", (320, 40, 40))],
)
def test_paper_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[int, int, int]
) -> None:
    monkeypatch.setitem(md22.PAPER_SPLITS, "md22:made up", PaperSplit(285, 15, None, 400))
    monkeypatch.setitem(spice.PAPER_SPLITS, "spice:made up", spice.PAPER_SPLITS["spice:dipeptides"]._replace(whole=400))
    monkeypatch.setitem(qmof.PAPER_SPLITS, "qmof", qmof.PAPER_SPLITS["qmof"]._replace(whole=400))
    store = make(tmp_path / "store", GROUPS, card=replace(CARD, name=name))
    made = split(store, "paper")
    order = np.random.RandomState(42).permutation(400)
    a, b = expected[0], expected[0] + expected[1]
    assert parts(made) == (set(order[:a]), set(order[a:b]), set(order[b:]))
    report = splits.compare_splits(store)
    sentence = splits.paper_against_default(store, report)
    assert "the default, 'group'" in sentence
    assert f"(of {expected[2]})" in sentence


def test_paper_sizes_of_md22_are_its_training_sizes() -> None:
    training = {"Ac-Ala3-NHMe": 6000, "DHA": 8000, "stachyose": 8000, "AT-AT": 3000, "AT-AT-CG-CG": 2000}
    training |= {"buckyball-catcher": 600, "double-walled_nanotube": 800}
    for molecule, n in training.items():
        train, validation, test, _ = md22.PAPER_SPLITS[f"md22:{molecule}"]
        assert (train, validation, test) == (n - int(0.05 * n), int(0.05 * n), None)


def test_paper_of_matbench_is_its_first_fold(tmp_path: Path) -> None:
    order = np.random.default_rng(4).permutation(400)
    lists = {"fold_0": {"train": order[:280], "validation": order[280:320], "test": order[320:]}}
    card = replace(CARD, name="matbench:phonons")
    store = make(tmp_path / "whole", GROUPS, card=card, published=lists)
    assert parts(split(store, "paper")) == parts(split(store, "fold_0"))
    assert parts(split(store, "paper")) == (set(order[:280]), set(order[280:320]), set(order[320:]))
    part = make(tmp_path / "part", GROUPS, card=card)
    with pytest.raises(EutecticError, match="without the split 'fold_0'"):
        split(part, "paper")
    assert "not_possible" in splits.compare_splits(part)["paper"]


def test_real_leaks(shared_data: Path, tmp_path: Path) -> None:
    from eutectic.data.datasets import matbench, md17

    source = shared_data / "md17" / "md17_ethanol_2000.npz"
    rows = (r for p in md17.pieces(source, "md17:ethanol") for r in md17.read(p, "md17:ethanol"))
    write_store(tmp_path / "ethanol", md17.card("md17:ethanol"), rows)
    report = splits.compare_splits(Store(tmp_path / "ethanol"))
    leaks = {name: entry["leaks"]["test"]["neighbours_in_time"] for name, entry in report.items()}  # type: ignore[index]
    # All frames follow each other: by chance, one in a hundred has neither neighbour in training.
    assert leaks["random"] > 0.9 * 200
    assert leaks["group"] <= 10
    name = "matbench:jdft2d"
    (piece,) = matbench.pieces(shared_data / "matbench", name)
    published = matbench.published_splits(shared_data / "matbench", name)
    write_store(tmp_path / "jdft2d", matbench.card(name), matbench.read(piece, name), splits=published)
    store = Store(tmp_path / "jdft2d")
    report = splits.compare_splits(store)
    assert report["paper"]["sizes"] == {"train": 457, "validation": 51, "test": 128}
    assert report["paper"]["leaks"]["test"]["in_shared_groups"] == 18  # type: ignore[index]
    assert report["group"]["leaks"]["test"]["words"] == "nothing"  # type: ignore[index]
    assert "18 structures from 18 groups" in splits.paper_against_default(store, report)


def test_command(tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from eutectic.cli import app

    store = trajectory(tmp_path / "store", [1.0 + 0.01 * i for i in range(60)], [f"g{i // 6}" for i in range(60)])
    shown = CliRunner().invoke(app, ["data", "splits", str(store.path)])
    assert shown.exit_code == 0
    assert "group (default)" in shown.output
    machine = CliRunner().invoke(app, ["data", "splits", str(store.path), "--json"])
    assert json.loads(machine.output) == json.loads(json.dumps(splits.compare_splits(store)))
