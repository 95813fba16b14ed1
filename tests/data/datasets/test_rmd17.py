"""rMD17: every published layout, units, official splits, and wrong files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import rmd17

MALONALDEHYDE = np.array([6, 6, 6, 8, 8, 1, 1, 1, 1], dtype=np.uint8)
KCAL = 4184 / (6.022140857e23 * 1.6021766208e-19)  # CODATA 2014


def read(source: Path, molecule: str) -> Iterator[LabelledStructure]:
    name = f"rmd17:{molecule}"
    for piece in rmd17.pieces(source, name):
        yield from rmd17.read(piece, name)


def count(source: Path, molecule: str) -> list[int | None]:
    return [piece.count for piece in rmd17.pieces(source, f"rmd17:{molecule}")]


def published_splits(source: Path, molecule: str) -> dict[str, dict[str, np.ndarray]]:
    return rmd17.published_splits(source, f"rmd17:{molecule}")


def arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "nuclear_charges": MALONALDEHYDE,
        "coords": random.normal(size=(n, 9, 3)),
        "energies": -167_000 + random.normal(size=n),
        "forces": random.normal(size=(n, 9, 3)),
        "old_indices": np.arange(n),
        "old_energies": np.zeros(n),
        "old_forces": np.zeros((n, 9, 3)),
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The layout of rmd17.tar.bz2, unpacked: 20 structures, 5 splits of 5 + 5."""
    root = tmp_path / "rmd17"
    (root / "npz_data").mkdir(parents=True)
    (root / "splits").mkdir()
    np.savez(root / "npz_data" / "rmd17_malonaldehyde.npz", **arrays(20))
    for k in range(1, 6):
        order = np.random.default_rng(k).permutation(20)
        for part, rows in (("train", order[:5]), ("test", order[5:10])):
            text = "".join(f"{i}\n" for i in rows)
            (root / "splits" / f"index_{part}_0{k}.csv").write_text(text)
    return root


def test_units_and_ids(archive: Path) -> None:
    raw = arrays(20)
    rows = list(read(archive, "malonaldehyde"))
    assert len(rows) == 20
    assert count(archive, "malonaldehyde") == [20]
    for i, row in enumerate(rows):
        row.check("here")
        assert row.id == f"malonaldehyde-{i:06d}"
        np.testing.assert_allclose(row.labels["energy"], raw["energies"][i] * KCAL, rtol=1e-8)
        np.testing.assert_allclose(row.labels["forces"], raw["forces"][i] * KCAL, rtol=1e-8)
        np.testing.assert_array_equal(row.structure.positions, raw["coords"][i])
        assert not row.structure.pbc.any()


def test_official_splits(archive: Path) -> None:
    splits = published_splits(archive, "malonaldehyde")
    assert list(splits) == [f"official_0{k}" for k in range(1, 6)]
    order = np.random.default_rng(3).permutation(20)
    np.testing.assert_array_equal(splits["official_03"]["train"], order[:5])
    np.testing.assert_array_equal(splits["official_03"]["test"], order[5:10])


def test_every_layout_gives_the_same(archive: Path, tmp_path: Path) -> None:
    packed = tmp_path / "rmd17.tar.bz2"
    with tarfile.open(packed, "w:bz2") as tar:
        tar.add(archive, "rmd17")
    npz = archive / "npz_data" / "rmd17_malonaldehyde.npz"
    for source in (archive.parent, archive, archive / "npz_data", npz, packed):
        energies = [float(r.labels["energy"]) for r in read(source, "malonaldehyde")]
        np.testing.assert_allclose(energies, arrays(20)["energies"] * KCAL, rtol=1e-8)
        assert len(published_splits(source, "malonaldehyde")) == 5
        assert count(source, "malonaldehyde") == ([None] if source == packed else [20])


def test_the_pair_is_split_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "rmd17_malonaldehyde_train_01.npz", **arrays(6, 1))
    np.savez(tmp_path / "rmd17_malonaldehyde_test_01.npz", **arrays(4, 2))
    for source in (tmp_path, tmp_path / "rmd17_malonaldehyde_test_01.npz"):
        rows = list(read(source, "malonaldehyde"))
        assert [float(r.labels["energy"]) for r in rows[6:]] == pytest.approx(
            (arrays(4, 2)["energies"] * KCAL).tolist()
        )
        (name, parts), *others = published_splits(source, "malonaldehyde").items()
        assert (name, others) == ("official_01", [])
        assert (parts["train"].tolist(), parts["test"].tolist()) == ([*range(6)], [*range(6, 10)])
    (tmp_path / "rmd17_malonaldehyde_train_01.npz").unlink()
    with pytest.raises(EutecticError, match=r"no rmd17_malonaldehyde_train_01\.npz beside"):
        list(read(tmp_path / "rmd17_malonaldehyde_test_01.npz", "malonaldehyde"))


def test_a_few_positions_beyond_the_end_are_left_out(archive: Path) -> None:
    lists = archive / "splits" / "index_train_01.csv"
    lists.write_text("".join(f"{i}\n" for i in [*range(20)] * 10 + [20]))
    assert len(published_splits(archive, "malonaldehyde")["official_01"]["train"]) == 200
    lists.write_text("1\n99\n")
    with pytest.raises(EutecticError, match="beyond the 20 structures"):
        published_splits(archive, "malonaldehyde")
    lists.write_text("one\n")
    with pytest.raises(EutecticError, match="one position on each line"):
        published_splits(archive, "malonaldehyde")


def test_refusals(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="molecule 'water'"):
        list(read(archive, "water"))
    with pytest.raises(EutecticError, match="does not exist"):
        list(read(tmp_path / "absent", "ethanol"))
    with pytest.raises(EutecticError, match=r"no rmd17_ethanol\.npz here"):
        list(read(archive, "ethanol"))
    npz = archive / "npz_data" / "rmd17_malonaldehyde.npz"
    with pytest.raises(EutecticError, match="C3H4O2; expected C2H6O, which is ethanol"):
        list(read(npz, "ethanol"))
    whole = npz.read_bytes()
    for keep in (0, 10, len(whole) // 2):
        npz.write_bytes(whole[:keep])
        for look in (read, published_splits, count):
            with pytest.raises(EutecticError, match="not a readable rMD17 npz"):
                list(look(archive, "malonaldehyde"))
    (tmp_path / "rmd17.tar.bz2").write_bytes(b"not a tar file")
    with pytest.raises(EutecticError, match="not readable"):
        list(read(tmp_path / "rmd17.tar.bz2", "malonaldehyde"))


def test_other_arrays(archive: Path) -> None:
    npz = archive / "npz_data" / "rmd17_malonaldehyde.npz"
    np.savez(npz, **{**arrays(20), "forces": np.zeros((19, 9, 3))})
    with pytest.raises(EutecticError, match=r"forces \(19, 9, 3\)"):
        list(read(archive, "malonaldehyde"))
    np.savez(npz, coords=np.zeros((2, 9, 3)))
    with pytest.raises(EutecticError, match="not a readable rMD17 npz"):
        list(read(archive, "malonaldehyde"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


def test_a_pickle_is_never_opened(archive: Path) -> None:
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb()
    held = io.BytesIO()
    np.savez(held, **{**arrays(1), "energies": bomb})
    (archive / "npz_data" / "rmd17_malonaldehyde.npz").write_bytes(held.getvalue())
    with pytest.raises(EutecticError, match="not a readable rMD17 npz"):
        list(read(archive, "malonaldehyde"))


@pytest.mark.parametrize("layout", [".", "rmd17", "rmd17/npz_data/rmd17_ethanol.npz"])
def test_real_ethanol(shared_data: Path, layout: str) -> None:
    rows = list(read(shared_data / "rmd17" / layout, "ethanol"))
    energies = np.array([r.labels["energy"] for r in rows])
    forces = np.array([r.labels["forces"] for r in rows])
    assert len(rows) == 2000
    # JMP's table for the whole of rMD17 ethanol: energy −4209.5346 ± 0.1862 eV, forces ± 1.1929 eV/Å.
    assert energies.mean() == pytest.approx(-4209.5346, abs=0.2)
    assert energies.std() == pytest.approx(0.186, rel=0.05)
    assert forces.std() == pytest.approx(1.1929, rel=0.02)
    # No net force on a molecule.
    assert np.abs(forces.sum(axis=1)).max() < 0.02
    splits = published_splits(shared_data / "rmd17" / layout, "ethanol")
    assert {part: len(i) for part, i in splits["official_01"].items()} == {"train": 1000, "test": 1000}


@pytest.mark.parametrize(
    "molecule",
    ["aspirin", "azobenzene", "benzene", "malonaldehyde", "naphthalene", "salicylic", "toluene"],
)
def test_real_molecules(shared_data: Path, molecule: str) -> None:
    source = shared_data / "rmd17"
    assert count(source, molecule) == [1000, 1000]
    row = next(read(source, molecule))
    row.check(molecule)
    assert row.structure.to_ase().get_chemical_formula() == rmd17.MOLECULES[molecule]
