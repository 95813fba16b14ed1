"""The check: every problem is detected on synthetic labels, without false alarms on good ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import BOHR, HARTREE, KCAL_PER_MOL
from eutectic.check import Report, check
from eutectic.check.contents import Distinct
from eutectic.check.scales import Largest, Sample, atom_energy, readings
from eutectic.data import catalogue
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store

METHANE = np.array([6, 1, 1, 1, 1])
TETRAHEDRON = np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 1.09 / np.sqrt(3)


def labels_of(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces of a methane of springs: C–H 31 eV/Å², H–H 3 eV/Å², and an all-electron offset."""
    energy, forces = HARTREE * -40.5, np.zeros((5, 3))
    for i in range(5):
        for j in range(i):
            stiff, rest = (31.0, 1.09) if j == 0 else (3.0, 1.78)
            vector = positions[i] - positions[j]
            distance = float(np.linalg.norm(vector))
            energy += 0.5 * stiff * (distance - rest) ** 2
            pull = -stiff * (distance - rest) * vector / distance
            forces[i] += pull
            forces[j] -= pull
    return energy, forces


def walk(n: int = 120, step: float = 0.015) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 5, 3) positions (Å) that wander about equilibrium, energies (eV), forces (eV/Å)."""
    random = np.random.default_rng(1)
    shift, frames = np.zeros((5, 3)), []
    for _ in range(n):
        shift = 0.93 * shift + random.normal(scale=step, size=(5, 3))
        frames.append(TETRAHEDRON + shift)
    labelled = [labels_of(x) for x in frames]
    return np.array(frames), np.array([e for e, _ in labelled]), np.array([f for _, f in labelled])


def npz(file: Path, x: np.ndarray, e: np.ndarray, f: np.ndarray) -> Path:
    np.savez(file, R=x, E=e, F=f, z=METHANE)
    return file


def xyz(file: Path, x: np.ndarray, e: np.ndarray, f: np.ndarray) -> Path:
    frames = []
    for positions, energy, forces in zip(x, e, f, strict=True):
        atoms = Atoms(METHANE, positions)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    ase.io.write(file, frames)
    return file


def codes(report: Report) -> set[str]:
    return {f.code for f in report.findings}


def finding(report: Report, code: str) -> Any:
    return next(f for f in report.findings if f.code == code)


def test_good_labels_are_good(tmp_path: Path) -> None:
    for file in (npz(tmp_path / "good.npz", *walk()), xyz(tmp_path / "good.xyz", *walk())):
        report = check(file)
        assert report.ok, report.verdict
        assert not report.of("warning")
        assert report.force_test.tested
        assert report.force_test.slope == pytest.approx(1, abs=0.02)
        assert (report.units.energy, report.units.confidence, report.units.length) == ("eV", "high", "Å")
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_gradients_called_forces(tmp_path: Path) -> None:
    x, e, f = walk()
    report = check(npz(tmp_path / "gradient.npz", x, e / HARTREE, -f / HARTREE))
    assert not report.ok
    assert "gradients" in report.verdict
    assert "Hartree" in report.verdict
    assert report.force_test.slope == pytest.approx(-1, abs=0.02)
    assert report.force_test.factor == -1
    assert finding(report, "energy_unit").severity == "warning"  # an array file claims nothing


@pytest.mark.parametrize(
    ("energy", "force", "length", "slope", "words"),
    [
        (HARTREE, HARTREE / BOHR, 1.0, 1 / BOHR, "forces in Hartree/bohr, coordinates in Å"),
        (1.0, HARTREE / BOHR, 1.0, HARTREE / BOHR, "energies in eV, forces in Hartree/bohr"),
        (KCAL_PER_MOL, 1.0, 1.0, 1 / KCAL_PER_MOL, "energies in kcal/mol, forces in eV/Å"),
        (1.0, KCAL_PER_MOL, 1.0, KCAL_PER_MOL, "energies in eV, forces in kcal/mol/Å"),
        (HARTREE, 1.0, 1.0, 1 / HARTREE, "energies in Hartree, forces in eV/Å"),
        (HARTREE, HARTREE, BOHR, BOHR, "forces in Hartree/Å, coordinates in bohr"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_mixed_units_are_named(
    tmp_path: Path, energy: float, force: float, length: float, slope: float, words: str, sign: int
) -> None:
    x, e, f = walk()
    report = check(npz(tmp_path / "mixed.npz", x / length, e / energy, sign * f / force))
    assert not report.ok
    assert words in finding(report, "forces_unit").message
    assert report.force_test.slope == pytest.approx(sign * slope, rel=0.03)
    assert report.force_test.factor == pytest.approx(sign * slope, rel=1e-6)
    assert ("forces_sign" in codes(report)) == (sign < 0)


def test_consistent_units_that_are_not_ours(tmp_path: Path) -> None:
    x, e, f = walk()
    report = check(npz(tmp_path / "kcal.npz", x, e / KCAL_PER_MOL, f / KCAL_PER_MOL))
    assert report.ok
    assert codes(report) == {"energy_unit"}
    assert finding(report, "energy_unit").numbers["factor"] == pytest.approx(KCAL_PER_MOL)
    # A structure file is used as eV: there it is an error.
    assert not check(xyz(tmp_path / "kcal.xyz", x, e / KCAL_PER_MOL, f / KCAL_PER_MOL)).ok
    bohr = check(npz(tmp_path / "bohr.npz", x / BOHR, e / HARTREE, f / HARTREE * BOHR))
    assert bohr.ok
    assert (bohr.units.energy, bohr.units.forces, bohr.units.length) == ("Hartree", "Hartree/bohr", "bohr")


def test_energies_without_a_core_are_no_other_unit(tmp_path: Path) -> None:
    """GFN2-xTB's valence energies in eV lie near all-electron ones in Rydberg."""
    x, e, f = walk()
    report = check(xyz(tmp_path / "valence.xyz", x, e + 40.5 * HARTREE - 113.0, f))
    assert report.ok
    assert report.units.energy == "eV"
    assert "energy_unit" not in codes(report)


def test_energies_of_the_wrong_sign(tmp_path: Path) -> None:
    x, e, f = walk()
    assert "energy_sign" in codes(check(npz(tmp_path / "binding.npz", x, -e - 40.5 * HARTREE, f)))
    assert "both_signs" in codes(check(npz(tmp_path / "both.npz", x, -e, -f)))


def test_without_near_frames_bonds_tell_the_sign(tmp_path: Path) -> None:
    x, e, f = walk(40, step=0.03)
    for name, sign in (("right", 1), ("wrong", -1)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            for i in range(40):  # each in a group of its own: frames that are not compared
                group = file.create_group(f"molecule{i}")
                group["coordinates"], group["energies"], group["forces"] = (
                    x[i : i + 1],
                    e[i : i + 1],
                    sign * f[i : i + 1],
                )
                group["atomic_numbers"] = METHANE
    right, wrong = check(tmp_path / "right.h5"), check(tmp_path / "wrong.h5")
    assert right.ok, right.verdict
    assert not right.force_test.tested
    assert "sign is right" in right.force_test.verdict
    assert "forces_sign" in codes(wrong)
    x, e, f = walk(8)
    few = check(npz(tmp_path / "few.npz", x, e, f))
    assert few.ok
    assert "not tested" in few.force_test.verdict


def crystal(strain: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Cell (Å), energy (eV) and stress (eV/Å³) of a cube of springs under a strain."""
    cell = 4.0 * (np.eye(3) + strain)
    stiff, pressed = 1.2, 0.05
    energy = 64.0 * (0.5 * stiff * float((strain**2).sum()) + pressed * float(np.trace(strain)))
    stress = (stiff * strain + pressed * np.eye(3)) * 64.0 / abs(float(np.linalg.det(cell)))
    return cell, energy - 3.7, stress


@pytest.mark.parametrize(
    ("factor", "code"), [(1.0, None), (-1.0, "stress_sign"), (160.21766, "stress_unit"), (-1602.1766, "stress_sign")]
)
def test_stresses(tmp_path: Path, factor: float, code: str | None) -> None:
    random = np.random.default_rng(3)
    frames = []
    for _ in range(40):
        strain = random.normal(scale=0.003, size=(3, 3))
        cell, energy, stress = crystal(0.5 * (strain + strain.T))
        atoms = Atoms("CsCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=cell, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, stress=factor * stress)
        frames.append(atoms)
    ase.io.write(tmp_path / "strained.xyz", frames)
    report = check(tmp_path / "strained.xyz")
    assert report.stress_test.tested
    assert report.stress_test.slope == pytest.approx(1 / factor, rel=0.05)
    assert report.ok == (code is None)
    assert code is None or finding(report, code).numbers["factor"] == pytest.approx(1 / factor, rel=1e-4)


def test_periodic_frames_cross_the_boundary(tmp_path: Path) -> None:
    x, e, f = walk(60)
    frames = []
    for positions, energy, forces in zip(x, e, f, strict=True):
        atoms = Atoms(METHANE, positions, cell=[9.0] * 3, pbc=True)
        atoms.wrap()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-forces)
        frames.append(atoms)
    ase.io.write(tmp_path / "wrapped.xyz", frames)
    report = check(tmp_path / "wrapped.xyz")
    assert report.force_test.slope == pytest.approx(-1, abs=0.03)
    assert "forces_sign" in codes(report)


def test_outliers_are_named(tmp_path: Path) -> None:
    x, e, f = walk()
    e[77] += 50.0
    f[30] *= 400.0
    x[99, 2] = x[99, 1] + 0.05
    report = check(npz(tmp_path / "wild.npz", x, e, f))
    assert finding(report, "energy_outliers").numbers["first"][0]["id"] == "wild.npz#77"
    assert [o["id"] for o in finding(report, "force_outliers").numbers["first"]] == ["wild.npz#30"]
    assert [o["id"] for o in finding(report, "close_atoms").numbers["first"]] == ["wild.npz#99"]
    assert report.force_test.slope == pytest.approx(1, abs=0.02)  # a few wild frames do not turn the verdict


def test_placeholder_cells(tmp_path: Path) -> None:
    x, e, f = walk(30)
    frames = ase.io.read(xyz(tmp_path / "mine.xyz", x, e, f), ":")
    for atoms in frames:
        atoms.set_cell([1000.0] * 3)
        atoms.pbc = True
    ase.io.write(tmp_path / "mine.xyz", frames)
    assert "huge_cells" in codes(check(tmp_path / "mine.xyz"))


@pytest.mark.parametrize(("scale", "unit"), [(1.0, "eV"), (HARTREE, "Hartree")])
def test_float32_energies(tmp_path: Path, scale: float, unit: str) -> None:
    x, e, f = walk()
    e = e * 16  # a large molecule
    rounded = (e / scale).astype(np.float32).astype(np.float64) * scale
    found = finding(check(xyz(tmp_path / "rounded.xyz", x, rounded, f)), "coarse_energies").numbers
    assert found["unit"] == unit
    assert found["resolution_meV"] == pytest.approx(1000 * scale * np.spacing(np.float32(np.abs(e / scale).max())))
    assert "coarse_energies" not in codes(check(xyz(tmp_path / "fine.xyz", x, e, f)))


def test_forces_that_do_not_balance(tmp_path: Path) -> None:
    x, e, f = walk()
    assert "net_force" in codes(check(npz(tmp_path / "net.npz", x, e, f + np.array([0.5, 0, 0]))))
    turned = f @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert "torque" in codes(check(npz(tmp_path / "turned.npz", x, e, turned)))


def test_two_levels_of_theory(tmp_path: Path) -> None:
    x, e, f = walk()
    e[::3] += 4.0
    assert "two_populations" in codes(check(npz(tmp_path / "two.npz", x, e, f)))


def test_what_was_taken_and_what_not(tmp_path: Path) -> None:
    x, e, f = walk(30)
    with h5py.File(tmp_path / "ani.h5", "w") as file:
        group = file.create_group("gdb/mol0")
        group["coordinates"], group["wb97x_tz.forces"], group["species"] = x, f, np.array(list("CHHHH"), dtype="S1")
        group["hf_dz.energy"], group["wb97x_tz.energy"], group["mp2.corr_energy"] = e * 0, e, e
        group["elsewhere"] = h5py.ExternalLink("/etc/hostname", "/")
    report = check(tmp_path / "ani.h5")
    assert report.keys["energy"] == {"wb97x_tz.energy": 30}
    assert report.keys["forces"] == {"wb97x_tz.forces": 30}
    assert set(report.ignored) == {"hf_dz.energy", "mp2.corr_energy"}
    other = check(tmp_path / "ani.h5", keys={"energy": "hf_dz.energy"})
    assert other.keys["energy"] == {"hf_dz.energy": 30}
    assert "constant_labels" in codes(other)


def test_array_files_of_other_layouts(tmp_path: Path) -> None:
    x, e, f = walk(20)
    with h5py.File(tmp_path / "each.hdf5", "w") as file:
        for i in range(20):
            group = file.create_group(f"frame{i}")
            group["positions"], group["forces"], group["elements"] = x[i], f[i], METHANE
            group.attrs["energy"] = e[i]
    padded = {"R": np.pad(x, ((0, 0), (0, 2), (0, 0))), "F": np.pad(f, ((0, 0), (0, 2), (0, 0)))}
    np.savez(tmp_path / "padded.npz", E=e[:, None], z=np.tile(np.pad(METHANE, (0, 2)), (20, 1)), **padded)
    np.savez(
        tmp_path / "flat.npz",
        R=x.reshape(-1, 3),
        F=f.reshape(-1, 3),
        Z=np.tile(METHANE, 20),
        energies=e,
        n_atoms=np.full(20, 5),
    )
    for name in ("each.hdf5", "padded.npz", "flat.npz"):
        report = check(tmp_path / name)
        assert report.labels == {"energy": 20, "forces": 20}, name
        assert report.elements == {"H": {"structures": 20, "atoms": 80}, "C": {"structures": 20, "atoms": 20}}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(npz(tmp_path / "whole.npz", *walk(20)).read_bytes()[:2000])
    (tmp_path / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    # A pickle inside must stay closed: opening it would run it.
    np.savez(tmp_path / "pickled.npz", R=np.array([{}], dtype=object), z=METHANE)
    (tmp_path / "data.lmdb").write_bytes(b"x")
    for name in ("torn.npz", "torn.h5", "other.npz", "pickled.npz", "data.lmdb", "absent"):
        with pytest.raises(EutecticError):
            check(tmp_path / name)


def test_elements_a_model_never_saw(tmp_path: Path) -> None:
    file = npz(tmp_path / "mine.npz", *walk(20))
    assert "unseen_elements" not in codes(check(file, model_elements=[1, 6, 8]))
    assert finding(check(file, model_elements=[1]), "unseen_elements").numbers == {"C": 20}
    # A model whose provenance does not say: no list is no reason to stop, nor a list of nothing.
    unknown = check(file, model_elements=[])
    assert finding(unknown, "model_elements_unknown").severity == "note"
    assert "unseen_elements" not in codes(unknown)
    assert "model_elements_unknown" not in codes(check(file))


def test_arrays_that_lie_in_other_files_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "private.h5", "w") as file:
        file["x"] = np.ones((20, 5, 3))
    layout = h5py.VirtualLayout((20, 5, 3), dtype="f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "private.h5"), "x", (20, 5, 3))
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.create_virtual_dataset("coordinates", layout)
        file["atomic_numbers"] = METHANE
    with pytest.raises(EutecticError, match="no arrays that look like coordinates"):
        check(tmp_path / "mine.h5")


def store_of(path: Path, splits: dict[str, dict[str, np.ndarray]] | None = None) -> Path:
    card = Card(
        name="made",
        title="Made",
        domain="molecules",
        properties=("energy",),
        level_of_theory="springs",
        licence="CC0-1.0",
        citation="nobody",
        source="made",
    )
    x, e, _ = walk(40)
    x[34:], e[34:] = x[:6], e[:6]
    rows = [
        LabelledStructure(
            structure=Structure(numbers=METHANE, positions=x[i]),
            labels={"energy": np.asarray(e[i])},
            id=str(i),
            group=str(i // 4),
        )
        for i in range(40)
    ]
    write_store(path, card, rows, splits=splits)
    return path


def test_leaks_between_the_parts_of_a_split(tmp_path: Path) -> None:
    published = {"official": {"train": np.arange(30), "test": np.arange(30, 40)}}
    report = check(store_of(tmp_path / "store", published))
    by_name = {s["split"]: s for s in report.splits}
    assert 1 <= by_name["official"]["structures"] <= 6
    assert by_name["official"]["groups"] == 1  # rows 28 and 29 are in training, 30 and 31 not
    assert by_name["group"]["groups"] == 0
    assert report.duplicates == 6
    assert "leaked_structures" in codes(report)
    assert "leaked_groups" in codes(report)


def test_elements_that_only_held_out_structures_have(tmp_path: Path) -> None:
    path = store_of(tmp_path / "store", {"official": {"train": np.arange(30), "test": np.arange(30, 40)}})
    assert "elements_held_out" not in codes(check(path))
    rows = [
        LabelledStructure(
            structure=Structure(numbers=np.array([10 if i == 35 else 6, 1]), positions=np.eye(3)[:2] * (1 + i / 50)),
            labels={"energy": np.asarray(-float(i))},
            id=f"{i}",
            group=f"{i}",
        )
        for i in range(40)
    ]
    splits = {"official": {"train": np.arange(30), "test": np.arange(30, 40)}}
    card = replace(Store(path).card, default_split="random")
    write_store(tmp_path / "neon", card, rows, splits=splits)
    found = finding(check(tmp_path / "neon"), "elements_held_out")
    assert found.numbers["official"] == ["Ne"]
    assert "'official', Ne" in found.message


def test_counting_in_bounded_memory() -> None:
    distinct = Distinct(most=500)
    for i in range(20_000):
        distinct.add(int.to_bytes((i % 10_000) * 2_654_435_761 % 2**64, 8, "little"))
    assert not distinct.exact
    assert distinct.repeated() == pytest.approx(10_000, rel=0.2)
    sample: Sample[int] = Sample(100)
    for i in range(10_000):
        sample.add(i)
    assert len(sample) == 100
    assert np.mean(sample.kept) == pytest.approx(5000, rel=0.2)
    largest: Largest[int] = Largest(3)
    for i in range(100):
        largest.add(float(i % 50), i)
    assert [v for v, _ in largest.items()] == [49, 49, 48]


@pytest.mark.parametrize(
    ("number", "hartree"), [(1, -0.5), (6, -37.84), (8, -75.07), (17, -460.15), (26, -1262.4), (78, -17331.0)]
)
def test_energies_of_atoms(number: int, hartree: float) -> None:
    """Hartree–Fock limits (Koga et al., Int. J. Quantum Chem. 71, 491 (1999)) within the formula's few per cent."""
    assert atom_energy(number) == pytest.approx(hartree, rel=0.09 if number == 1 else 0.02)


def test_readings_prefer_the_simple() -> None:
    first = readings(1.8897, energy=None, length="Å", force=None)[0]
    assert (first.energy, first.force_energy, first.force_length) == ("Hartree", "Hartree", "bohr")
    assert readings(1.45, energy=None, length="Å", force=None) == []


LARGE = ("molecules", "reactions", "metal_slabs")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in sorted(catalogue.embedded())],
)
def test_embedded_sets_are_usable(name: str) -> None:
    report = check(name)
    assert report.ok, report.verdict
    assert not {"energy_unit", "length_unit", "forces_unit", "net_force", "torque", "huge_cells"} & codes(report)


REAL: list[tuple[str, bool, set[str]]] = [
    ("ani1x/comp6_s66x8_wb97x6-31gd.h5", False, {"forces_sign", "energy_unit"}),
    ("ani1x/alkane_C2H6_DFT+Force_NMS.h5", False, {"forces_unit", "energy_unit"}),
    ("spice/SPICE-1.1.4_n2.hdf5", False, {"forces_sign", "length_unit", "energy_unit"}),
    ("ani1x/ani1x_release_n5.h5", True, {"energy_unit"}),
    ("rmd17/rmd17_aspirin_test_01.npz", True, {"energy_unit"}),
    ("md17/md17_ethanol_2000.npz", True, {"energy_unit"}),
    ("md22_like/qm7x_250_small.npz", True, set()),
    ("md22_like/3bpa_train_300K.xyz", True, set()),
    ("mptrj/mptrj-random-1k.xyz", True, set()),
    ("oc20/trajs_small", True, set()),
]
UNITS_AND_SIGNS = {"forces_sign", "forces_unit", "energy_unit", "length_unit", "energy_sign", "forces_unexplained"}


LARGE = ("ani1x/alkane_C2H6_DFT+Force_NMS.h5", "mptrj/mptrj-random-1k.xyz")
"""Checked for half a minute each."""


@pytest.mark.parametrize(
    ("name", "ok", "expected"),
    [pytest.param(*real, id=real[0], marks=[pytest.mark.slow] if real[0] in LARGE else []) for real in REAL],
)
def test_real_files(shared_data: Path, name: str, ok: bool, expected: set[str]) -> None:
    report = check(shared_data / name)
    assert report.ok == ok, report.verdict
    assert UNITS_AND_SIGNS & codes(report) == expected


def moving(n: int, *, energy: float = -1.0) -> list[Atoms]:
    made = []
    for i in range(n):
        atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1 + 0.01 * i]])
        forces = np.array([[0.0, 0.0, 1.0 + i], [0.0, 0.0, -1.0 - i]])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def test_check_a_good_file(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "mine.xyz", moving(6))
    report = check(tmp_path / "mine.xyz").to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["ok"]
    assert report["labels"] == {"energy": 6, "forces": 6}
    assert report["duplicates"] == 0
    assert report["largest_force"] == pytest.approx(6.0)
    assert "Usable" in str(report["verdict"])


def test_check_a_doubtful_file(tmp_path: Path) -> None:
    wild = moving(1)[0]
    wild.positions[1, 2] = 0.2
    wild.calc = SinglePointCalculator(wild, energy=99.0, forces=np.full((2, 3), 500.0))
    bare = Atoms("He")
    ase.io.write(tmp_path / "mine.xyz", [*moving(5), *moving(2), wild, bare])
    report = check(tmp_path / "mine.xyz").to_dict()
    assert report["ok"]
    assert report["duplicates"] == 2
    outliers = report["force_outliers"]
    assert isinstance(outliers, dict)
    assert [o["id"] for o in outliers["first"]] == ["mine.xyz#7"]
    assert "lack some labels" in str(report["verdict"])


def test_check_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.xyz"
    ase.io.write(file, [*moving(2), *moving(1, energy=np.nan), *moving(4)])
    report = check(file).to_dict()
    assert not report["ok"]
    assert report["structures"] == 7
    assert report["bad"] == {
        "count": 1,
        "first": [f"{file}, structure 2: energy is not finite; " + NOT_FINITE],
    }
    file.write_bytes(file.read_bytes()[:-30])
    bad = check(file).to_dict()["bad"]
    assert isinstance(bad, dict)
    assert bad["count"] == 2
    ase.io.write(file, [Atoms("He")])
    assert check(file).to_dict()["verdict"] == "Not usable: no labels were found."
    with pytest.raises(EutecticError):
        check(tmp_path / "absent")


NOT_FINITE = "expected finite numbers; unknown labels must be absent; drop the label or the structure"
