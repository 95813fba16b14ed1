"""Transition1x: the native layout, its published split, and links out of the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pyg_records import pickled, write_lmdb

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data import catalogue
from eutectic.data.datasets import transition1x
from eutectic.data.formats import hdf5
from eutectic.data.splits import split as divide
from eutectic.data.store import Store

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
REACTIONS = {"C2H4O": {"rxn0002": 3, "rxn0010": 2}, "CH4": {"rxn0007": 4}, "H2O": {"rxn0001": 1}}
NUMBERS = {"C2H4O": [6, 6, 8, 1, 1, 1, 1], "CH4": [6, 1, 1, 1, 1], "H2O": [8, 1, 1]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three formulas, four reactions; parts by links to formulas, as published."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "transition1x.h5", "w") as file:
        for formula, reactions in REACTIONS.items():
            n = len(NUMBERS[formula])
            for name, frames in reactions.items():
                group = file.create_group(f"data/{formula}/{name}")
                for where, f in ((group, frames), *((group.create_group(k), 1) for k in ("reactant", "product"))):
                    where["atomic_numbers"] = NUMBERS[formula]
                    where["positions"] = rng.normal(size=(f, n, 3))
                    where[ENERGY] = rng.normal(size=f) - 1000
                    where[FORCES] = rng.normal(size=(f, n, 3))
        file["train/C2H4O"] = h5py.SoftLink("/data/C2H4O")
        file["val/H2O"] = h5py.SoftLink("/data/H2O")
        file["test/CH4"] = h5py.SoftLink("/data/CH4")
    return tmp_path / "transition1x.h5"


def read(source: Path) -> list[LabelledStructure]:
    name = "transition1x"
    return [row for piece in transition1x.pieces(source, name) for row in transition1x.read(piece, name)]


def split(source: Path) -> dict[str, list[int]]:
    parts = transition1x.published_splits(source, "transition1x")["published"]
    return {part: rows.tolist() for part, rows in parts.items()}


def test_units_and_ids(path: Path) -> None:
    rows = read(path.parent)
    # Ends of a path, in groups of their own, are not read again.
    assert [row.id for row in rows] == [
        *(f"C2H4O-rxn0002-{i:04d}" for i in range(3)),
        *(f"C2H4O-rxn0010-{i:04d}" for i in range(2)),
        *(f"CH4-rxn0007-{i:04d}" for i in range(4)),
        "H2O-rxn0001-0000",
    ]
    with h5py.File(path) as file:
        for row in rows:
            row.check(row.id)
            formula, reaction, frame = row.id.split("-")
            group, i = file["data"][formula][reaction], int(frame)
            assert row.group == f"{formula}-{reaction}"
            assert float(row.labels["energy"]) == group[ENERGY][i]
            np.testing.assert_array_equal(row.labels["forces"], group[FORCES][i])
            np.testing.assert_array_equal(row.structure.positions, group["positions"][i])
            assert row.structure.numbers.tolist() == NUMBERS[formula]


def test_the_published_split(path: Path) -> None:
    rows = read(path)
    found = split(path)
    assert found == {"train": [0, 1, 2, 3, 4], "validation": [9], "test": [5, 6, 7, 8]}
    assert {rows[i].structure.to_ase().get_chemical_formula() for i in found["train"]} == {"C2H4O"}
    assert transition1x.card("transition1x").default_split == "published"


def test_parts_by_reaction_or_as_groups(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["train/C2H4O"]
        file["train/C2H4O/rxn0010"] = h5py.SoftLink("/data/C2H4O/rxn0010")
        del file["test/CH4"]
        file["test/CH4"] = file["data/CH4"]
    assert split(path) == {"train": [3, 4], "validation": [9], "test": [5, 6, 7, 8]}


def test_without_a_split(path: Path, tmp_path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["val"]
    assert transition1x.published_splits(path, "transition1x") == {}
    store = Store(catalogue.prepare("transition1x", path, tmp_path / "store", workers=1))
    assert store.card.default_split == "group"
    assert "No official splits beside the file." in store.card.notes
    assert {row.group for row in store} > {row.group for row in (store[int(i)] for i in divide(store).test)}


@pytest.mark.parametrize(
    ("at", "link", "message"),
    [
        ("data/evil", h5py.ExternalLink("other.h5", "/"), "'evil' is a link to another file"),
        ("data/evil", h5py.SoftLink("/train"), "'evil' is a link to '/train'"),
        ("data/CH4/rxn0009", h5py.ExternalLink("other.h5", "/"), "'rxn0009' is a link to another file"),
        ("data/CH4/rxn0009", h5py.SoftLink("/data/CH4/rxn0007"), "'rxn0009' is a link to"),
        ("train/evil", h5py.ExternalLink("other.h5", "/"), "'evil' is a link to another file"),
        ("train/evil", h5py.SoftLink("/outside/C2H4O"), "'evil' links to '/outside/C2H4O'"),
        ("train/H4C", h5py.SoftLink("/data/CH4"), "'H4C' links to '/data/CH4'; expected a link to '/data/H4C'"),
        ("train/H9", h5py.SoftLink("/data/H9"), "'H9' is not in data"),
    ],
)
def test_links_that_lead_elsewhere(path: Path, at: str, link: object, message: str) -> None:
    with h5py.File(path.parent / "other.h5", "w") as other:
        other["rxn0000/positions"] = np.zeros((1, 3, 3))
    with h5py.File(path, "a") as file:
        file[at] = link
    look = read if at.startswith("data") else split
    with pytest.raises(EutecticError, match=message):
        look(path)


@pytest.mark.parametrize("per_piece", [1, 4])
def test_pieces_are_the_whole(path: Path, per_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [row.id for row in read(path)]
    monkeypatch.setattr(hdf5, "FRAMES_PER_PIECE", per_piece)
    assert [row.id for row in read(path)] == everything
    assert len(transition1x.pieces(path, "transition1x")) == -(-10 // per_piece)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("positions", np.zeros((4, 4, 3)), r"shape \(4, 4, 3\); expected shape \(any, 5, 3\)"),
        (ENERGY, np.zeros(3), r"expected shape \(4\)|expected shape \(3, 5, 3\)"),
        (FORCES, np.zeros((4, 5)), r"shape \(4, 5\); expected shape \(4, 5, 3\)"),
        (ENERGY, None, "no 'wB97x_6-31G\\(d\\).energy' here"),
        ("atomic_numbers", np.array([b"C"] * 5), r"entries of type \|S1"),
    ],
)
def test_other_arrays(path: Path, key: str, value: np.ndarray | None, message: str) -> None:
    with h5py.File(path, "a") as file:
        del file["data/CH4/rxn0007"][key]
        if value is not None:
            file["data/CH4/rxn0007"][key] = value
    with pytest.raises(EutecticError, match=message):
        read(path)


def test_not_a_number(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["data/H2O/rxn0001"][ENERGY][0] = np.nan
    with pytest.raises(EutecticError, match="energy is not finite"):
        read(path)[-1].check("here")


def test_files_that_are_not_it(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EutecticError, match="not a readable HDF5 file"):
        read(path)
    with h5py.File(path, "w") as file:
        file["CH4/positions"] = np.zeros((1, 5, 3))
    with pytest.raises(EutecticError, match="no 'data' here; there is CH4"):
        read(path)
    with h5py.File(path, "w") as file:
        file.create_group("data")
    with pytest.raises(EutecticError, match="no reactions"):
        read(path)
    (tmp_path / "data.lmdb").write_bytes(b"\0" * 8192)
    with pytest.raises(EutecticError, match="not an HDF5 file"):
        read(tmp_path / "data.lmdb")
    with pytest.raises(EutecticError, match="data set 't1x'"):
        transition1x.pieces(path, "t1x")


def horm(path: Path, **changed: object) -> Path:
    fields = {
        "pos": torch.tensor([[0.0, 0, 0], [0, 0, 1]]),
        "rxn": torch.tensor([1]),
        "energy": torch.tensor(-2000.5),
        "ae": torch.tensor(-3.0),
        "forces": torch.tensor([[0.0, 0, 1], [0, 0, -1]]),
        "charges": torch.tensor([8, 1], dtype=torch.int32),
        "hessian": torch.zeros(36),
        **changed,
    }
    return write_lmdb(path, [pickled({k: v for k, v in fields.items() if v is not None})] * 3)


def test_horm(tmp_path: Path) -> None:
    path = horm(tmp_path / "sample.lmdb")
    (piece,) = transition1x.pieces(path, "horm")
    rows = list(transition1x.read(piece, "horm"))
    assert [(row.id, row.group) for row in rows] == [(f"sample-{i}", "HO") for i in range(3)]
    rows[0].check("here")
    assert rows[0].structure.numbers.tolist() == [8, 1]
    assert (rows[0].labels["energy"].tolist(), rows[0].labels["forces"].tolist()) == (
        -2000.5,
        [[0, 0, 1], [0, 0, -1]],
    )
    assert transition1x.published_splits(path, "horm") == {}
    with pytest.raises(EutecticError, match=r"of another kind; expected LMDB files of HORM"):
        transition1x.pieces(Path(__file__), "horm")
    horm(tmp_path / "other.lmdb", charges=None)
    with pytest.raises(EutecticError, match=r"no 'charges' among .*prepare other LMDB files as records"):
        list(transition1x.read(transition1x.pieces(tmp_path / "other.lmdb", "horm")[0], "horm"))


def test_the_two_layouts_hold_the_same_real_structures(shared_data: Path) -> None:
    path = shared_data / "transition1x" / "horm_sample_100.lmdb"
    rows = [row for piece in transition1x.pieces(path, "horm") for row in transition1x.read(piece, "horm")]
    others = read(shared_data / "transition1x" / "t1x_layout_from_horm.h5")
    energies = [sorted(float(row.labels["energy"]) for row in some) for some in (rows, others)]
    np.testing.assert_allclose(*energies, rtol=1e-6)


def test_real_structures(shared_data: Path) -> None:
    rows = read(shared_data / "transition1x" / "t1x_layout_from_horm.h5")
    assert (len(rows), len({row.group for row in rows})) == (100, 87)
    stretch = []
    for row in rows:
        row.check(row.id)
        assert np.abs(row.labels["forces"].sum(axis=0)).max() < 0.02
        z, x = row.structure.numbers, row.structure.positions
        for h in np.flatnonzero(z == 1):
            distance = np.linalg.norm(x - x[h], axis=1)
            distance[h] = np.inf
            if z[c := int(distance.argmin())] == 6 and distance[c] < 1.3:
                stretch.append((distance[c], row.labels["forces"][h] @ (x[h] - x[c]) / distance[c]))
    # One structure here and there on a path: no near ones to compare; but a C-H bond pulls back.
    (k, _), r = np.polyfit(*np.array(stretch).T, 1), np.corrcoef(np.array(stretch).T)[0, 1]
    assert -40 < k < -10
    assert r < -0.75
    parts = split(shared_data / "transition1x" / "t1x_layout_from_horm.h5")
    assert sorted(i for part in parts.values() for i in part) == list(range(100))
