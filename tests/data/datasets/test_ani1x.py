"""ANI-1x and related data sets: units and signs by hand and against energy differences, missing labels, wrong names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import ani1x
from eutectic.data.formats import hdf5

HARTREE, BOHR = 27.21138602, 0.52917721067  # CODATA 2014
WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]])
random = np.random.default_rng(0)
FORCES = random.normal(size=(3, 3, 3))
NAN = np.nan


def read(source: Path, name: str = "ani1x") -> list[LabelledStructure]:
    return [row for piece in ani1x.pieces(source, name) for row in ani1x.read(piece, name)]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two formulas; of water, the second conformation lacks forces, the third everything, and a dipole, charges."""
    path = tmp_path / "ani1x-release.h5"
    with h5py.File(path, "w") as file:
        water = file.create_group("H2O1")
        water["atomic_numbers"] = np.array([8, 1, 1], dtype=np.uint8)
        water["coordinates"] = np.stack([WATER, WATER + 1, WATER * 1.1]).astype(np.float32)
        water["wb97x_dz.energy"] = [-76.0, -76.25, NAN]
        forces = FORCES.astype(np.float32)
        forces[1:] = NAN
        water["wb97x_dz.forces"] = forces
        water["wb97x_dz.dipole"] = np.array([[0.0, 0.0, -0.4], [NAN] * 3, [0.0, 0.0, 1.0]], dtype=np.float32)
        water["wb97x_dz.cm5_charges"] = np.array([[-0.6, 0.3, 0.3], [0] * 3, [0] * 3], dtype=np.float32)
        water["wb97x_tz.energy"] = [-77.0, -77.0, -77.0]
        methane = file.create_group("C1H4")
        methane["atomic_numbers"] = np.array([6, 1, 1, 1, 1], dtype=np.uint8)
        methane["coordinates"] = random.normal(size=(4, 5, 3)).astype(np.float32)
        methane["wb97x_dz.energy"] = [-40.0, -40.1, -40.2, -40.3]
        methane["wb97x_dz.forces"] = random.normal(size=(4, 5, 3)).astype(np.float32)
    return path


def relative(path: Path, root: str, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in {
            "species": np.array([b"O", b"H", b"H"]),
            "coordinates": np.stack([WATER, WATER + 1, WATER + 2]),
            "energies": np.array([-76.0, -76.1, -76.2]),
            **arrays,
        }.items():
            file[f"{root}/{root}-0/{key}"] = value
    return path


def test_units_ids_and_what_is_absent(release: Path) -> None:
    rows = read(release)
    assert [row.id for row in rows] == [*(f"C1H4-{i:06d}" for i in range(4)), "H2O1-000000", "H2O1-000001"]
    assert {row.group for row in rows} == {"C1H4", "H2O1"}
    for row in rows:
        row.check(row.id)
    whole, part = rows[4:]
    assert set(whole.labels) == {"energy", "forces", "dipole", "charges"}
    assert float(whole.labels["energy"]) == pytest.approx(-76 * HARTREE, rel=1e-8)
    np.testing.assert_allclose(whole.labels["forces"], FORCES[0] * HARTREE, rtol=1e-6)
    np.testing.assert_allclose(whole.labels["dipole"], [0, 0, -0.4], rtol=1e-6)
    np.testing.assert_allclose(whole.labels["charges"], [-0.6, 0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(whole.structure.positions, WATER, rtol=1e-6)
    assert whole.structure.numbers.tolist() == [8, 1, 1]
    assert not whole.structure.pbc.any()
    # NaN for forces and dipole, zeros for charges: none of them was computed.
    assert set(part.labels) == {"energy"}


def test_comp6_holds_gradients(tmp_path: Path) -> None:
    path = relative(tmp_path / "s66x8.h5", "s66x8", forces=FORCES, lot=np.array([b"wb97x/6-31g*"]))
    rows = read(path, "comp6")
    assert [row.id for row in rows] == [f"s66x8/s66x8/s66x8-0-{i:06d}" for i in range(3)]
    np.testing.assert_allclose([row.labels["forces"] for row in rows], -FORCES * HARTREE, rtol=1e-8)
    assert float(rows[0].labels["energy"]) == pytest.approx(-76 * HARTREE, rel=1e-8)
    relative(tmp_path / "other.h5", "other", forces=FORCES, cm5=np.zeros((3, 4)))
    assert len(read(tmp_path, "comp6")) == 6


def test_alkanes_have_forces_in_hartree_per_bohr(tmp_path: Path) -> None:
    rows = read(relative(tmp_path / "alkane.h5", "gdb11_s02", forces=FORCES), "alkane")
    np.testing.assert_allclose([row.labels["forces"] for row in rows], FORCES * HARTREE / BOHR, rtol=1e-8)


def test_ani1_has_energies_alone(tmp_path: Path) -> None:
    path = relative(tmp_path / "a.h5", "gdb11_s01", coordinatesHE=np.zeros((9, 3, 3)), energiesHE=np.zeros(9))
    rows = read(path, "ani1")
    assert [set(row.labels) for row in rows] == [{"energy"}] * 3


def test_a_relative_under_the_wrong_name(release: Path, tmp_path: Path) -> None:
    comp6 = relative(tmp_path / "c.h5", "s66x8", forces=FORCES, lot=np.array([b"wb97x/6-31g*"]))
    alkane = relative(tmp_path / "a.h5", "gdb11_s02", forces=FORCES)
    ani1 = relative(tmp_path / "1.h5", "gdb11_s01")
    for path, name, message in (
        (comp6, "alkane", "lot, which COMP6 has"),
        (alkane, "comp6", "none of cm5, hirshfeld, lot"),
        (comp6, "ani1", "forces, which ANI-1 does not have"),
        (ani1, "alkane", "no forces; there is"),
        (ani1, "ani1x", "no atomic_numbers"),
        (release, "ani1", "no energies, species"),
    ):
        with pytest.raises(EutecticError, match=message):
            read(path, name)
    with pytest.raises(EutecticError, match="data set 'ani2x'; expected one of ani1x, comp6, ani1, alkane"):
        ani1x.card("ani2x")


@pytest.mark.parametrize("per_piece", [1, 3, 100])
def test_pieces_are_the_whole_in_any_order(release: Path, per_piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [row.id for row in read(release)]
    monkeypatch.setattr(hdf5, "FRAMES_PER_PIECE", per_piece)
    pieces = ani1x.pieces(release, "ani1x")
    assert len(pieces) == -(-7 // per_piece)
    parts = {i: [row.id for row in ani1x.read(pieces[i], "ani1x")] for i in reversed(range(len(pieces)))}
    assert [id_ for i in range(len(pieces)) for id_ in parts[i]] == everything


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("wb97x_dz.energy", np.zeros(2), r"shape \(2\); expected shape \(3\)"),
        ("wb97x_dz.forces", np.zeros((3, 2, 3)), r"shape \(3, 2, 3\); expected shape \(3, 3, 3\)"),
        ("coordinates", np.zeros((3, 3, 2)), r"expected shape \(any, any, 3\)"),
        ("coordinates", np.zeros((3, 4, 3)), r"shape \(3, 4, 3\); expected shape \(any, 3, 3\)"),
        ("atomic_numbers", np.array([b"Q", b"H", b"H"]), "'Q'; expected symbols of elements"),
        ("wb97x_dz.energy", np.array([b"a", b"b", b"c"]), r"entries of type \|S1"),
        ("wb97x_dz.energy", None, r"no wb97x_dz\.energy; there is"),
    ],
)
def test_other_arrays(release: Path, key: str, value: np.ndarray | None, message: str) -> None:
    with h5py.File(release, "a") as file:
        del file["H2O1"][key]
        if value is not None:
            file["H2O1"][key] = value
    with pytest.raises(EutecticError, match=message):
        read(release)


def test_unusable_structures_are_found_by_their_check(release: Path) -> None:
    with h5py.File(release, "a") as file:
        file["H2O1/coordinates"][1, 0, 0] = NAN
    with pytest.raises(EutecticError, match="finite coordinates"):
        read(release)[5].check("here")


def test_damage_anywhere_is_an_error_or_survived(release: Path) -> None:
    """Bytes of the file changed at random, and the file cut: never another exception."""
    whole, rng = release.read_bytes(), np.random.default_rng(0)
    errors = 0
    for keep in (10, 100, 600, len(whole) // 2, len(whole) - 1):
        release.write_bytes(whole[:keep])
        with pytest.raises(EutecticError):
            read(release)
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 20):
            damaged[at] = rng.integers(256)
        release.write_bytes(damaged)
        try:
            read(release)
        except EutecticError:
            errors += 1
    assert errors > 10


def test_cards_and_files() -> None:
    for name in ani1x.names():
        assert ani1x.card(name).name == name
        assert not ani1x.published_splits(Path(), name)
    (file,) = ani1x.files("ani1x")
    assert (file.size_bytes, file.checksum) == (5_590_846_027, "md5:98090dd6679106da861f52bed825ffb7")


def slope_of_energies(rows: Iterable[LabelledStructure], nearer_than: float) -> tuple[int, float, float]:
    """Differences of energies against −F·Δx between near structures of a group: pairs, slope and correlation."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    pairs = []
    for members in groups.values():
        x = np.array([row.structure.positions for row in members])
        f = np.array([row.labels["forces"] for row in members])
        e = np.array([row.labels["energy"] for row in members])
        for i in range(len(members)):
            distance = np.sqrt(((x - x[i]) ** 2).sum(-1).mean(-1))
            distance[i] = np.inf
            j = int(distance.argmin())
            if distance[j] < nearer_than:
                pairs.append((e[j] - e[i], -0.5 * float(((f[i] + f[j]) * (x[j] - x[i])).sum())))
    dE, work = np.array(pairs).T
    return len(pairs), float(dE @ work / (work @ work)), float(np.corrcoef(dE, work)[0, 1])


@pytest.mark.parametrize(
    ("file", "name", "structures", "groups", "nearer_than"),
    [
        ("comp6_s66x8_wb97x6-31gd.h5", "comp6", 528, 66, 0.1),
        ("alkane_C2H6_DFT+Force_NMS.h5", "alkane", 10080, 40, 0.1),
    ],
)
def test_real_forces_are_the_slope_of_energies(
    shared_data: Path, file: str, name: str, structures: int, groups: int, nearer_than: float
) -> None:
    rows = read(shared_data / "ani1x" / file, name)
    assert (len(rows), len({row.group for row in rows})) == (structures, groups)
    for row in rows[::100]:
        row.check(row.id)
    n, slope, r = slope_of_energies(rows, nearer_than)
    assert n > 200
    assert slope == pytest.approx(1, abs=0.05)
    assert r > 0.99


def test_real_release(shared_data: Path) -> None:
    rows = read(shared_data / "ani1x" / "ani1x_release_n5.h5")
    assert (len(rows), len({row.group for row in rows})) == (8, 5)
    stretch = []
    for row in rows:
        row.check(row.id)
        assert {"energy", "forces"} <= set(row.labels)
        # One of the two is computed for each conformation; the other is NaN (dipole) or zero (charges).
        assert ("dipole" in row.labels) != ("charges" in row.labels)
        assert np.abs(row.labels["forces"].sum(axis=0)).max() < 0.01
        z, x = row.structure.numbers, row.structure.positions
        for h in np.flatnonzero(z == 1):
            distance = np.linalg.norm(x - x[h], axis=1)
            distance[h] = np.inf
            if z[c := int(distance.argmin())] == 6:
                stretch.append((distance[c], row.labels["forces"][h] @ (x[h] - x[c]) / distance[c]))
    # Too few conformations for differences of energies; but a C-H bond pulls back with some 20-40 eV/Å².
    (k, _), r = np.polyfit(*np.array(stretch).T, 1), np.corrcoef(np.array(stretch).T)[0, 1]
    assert -40 < k < -20
    assert r < -0.99


def test_real_dipole_is_in_e_angstrom(shared_data: Path) -> None:
    rows = {row.id: row for row in read(shared_data / "ani1x" / "ani1x_release_n5.h5")}
    compared = 0
    with h5py.File(shared_data / "ani1x" / "ani1x_release_n5.h5") as file:
        for row in rows.values():
            if "dipole" in row.labels:
                # Of another basis set and of charges alone, so nearly the same; in debye it would be 4.8 times.
                charges = file[row.group]["wb97x_tz.mbis_charges"][int(row.id[-6:])]
                assert np.linalg.norm(row.labels["dipole"] - charges @ row.structure.positions) < 0.25
                compared += 1
    assert compared == 4


def test_real_ani1(shared_data: Path) -> None:
    rows = read(shared_data / "ani1x" / "ani1_gdb_s01.h5", "ani1")
    assert len(rows) == 10800
    formulas = {row.structure.to_ase().get_chemical_formula() for row in rows[::100]}
    assert formulas == {"CH4", "H3N", "H2O"}
