"""Charge, spin and level of theory: said, and not learned unless asked."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eutectic.check import check
from eutectic.data import catalogue, conditions
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store


def ions(path: Path, energies: tuple[float, ...] = (0.0, 9.7, 0.9)) -> Path:
    frames = []
    for step in range(12):
        for charge, energy in zip((0, 1, -1), energies, strict=True):
            atoms = Atoms(
                "CO", [[0, 0, 0], [0, 0, 1.1 + 0.01 * step]], info={"charge": charge, "spin": 1 + abs(charge)}
            )
            atoms.calc = SinglePointCalculator(atoms, energy=-600 + energy + 0.1 * step)
            frames.append(atoms)
    ase.io.write(path, frames)
    return path


def test_what_is_said() -> None:
    met = conditions.Met()
    for charge in (0, 1, -1, 1):
        met.add({"total_charge": np.int64(charge), "method": "PBE", "energy": 1.0}.items())
    assert met.differing() == {"total_charge": ("-1", "0", "1")}
    note = conditions.note(met.differing())
    assert note == "Structures differ in total_charge (−1, 0, 1); models take none of these."
    assert conditions.from_notes(["other", note]) == "total_charge (−1, 0, 1)"


def test_ions_are_no_copies(tmp_path: Path) -> None:
    file = ions(tmp_path / "mine.xyz")
    store = Store(catalogue.prepare("ase", file, tmp_path / "store", workers=1))
    assert store.label_counts() == {"energy": 36}
    for source in (file, store.path):
        report = check(source)
        found = {finding.code: finding for finding in report.findings}
        assert report.duplicates == 0
        assert not {"duplicates", "leaked_structures"} & found.keys()
        message = found["one_geometry_several_labels"].message
        assert "charge (−1, 0, 1) and spin (1, 2)" in message
        assert "24 of 36 structures" in message
    same = check(ions(tmp_path / "same.xyz", (0.0, 0.0, 0.0)))
    assert same.duplicates == 24


def test_a_charge_is_a_label_if_it_is_named(tmp_path: Path) -> None:
    found = ase_files.scan(ions(tmp_path / "mine.xyz"), {"charge": "charge"})
    assert found.counts == {"energy": {"energy": 36}, "charge": {"charge": 36}}
