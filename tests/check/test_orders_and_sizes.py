"""The order of six numbers, and sizes that no structure has."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from emt_frames import copper, truth

from eutectic.check import check
from eutectic.check.stresses import ORDERS
from eutectic.data.stresses import tensor


def written(path: Path, order: tuple[str, ...] = ORDERS[0], factor: float = 1.0, virial: bool = False) -> Path:
    frames = copper(24, seed=1, strain=0.008)
    e, f, s = truth(frames)
    for i, atoms in enumerate(frames):
        six = [s[i]["xyz".index(a), "xyz".index(b)] for a, b in order]
        scale = factor * (-atoms.get_volume() if virial else 1.0)
        atoms.info |= {"REF_energy": e[i], "REF_stress": scale * tensor(np.array(six))}
        atoms.arrays["REF_forces"] = f[i]
    ase.io.write(path, frames)
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_found(tmp_path: Path, order: tuple[str, ...]) -> None:
    report = check(written(tmp_path / "mine.xyz", order))
    found = {finding.code: finding for finding in report.findings}
    assert ("stress_order" in found) == (order != ORDERS[0])
    if order != ORDERS[0]:
        assert found["stress_order"].fix == f"State the order: --key stress=NAME:{','.join(order)}."


def test_symmetry_tells_the_order(tmp_path: Path) -> None:
    """Monoclinic cells about y: only xz may be sheared."""
    frames = copper(10)
    truth(frames)
    for i, atoms in enumerate(frames):
        cell = np.diag([3.6, 3.7, 3.5])
        cell[2, 0] = 0.1 + 0.02 * i
        atoms.set_cell(cell)
        atoms.set_scaled_positions([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
        stress = np.diag([0.01, 0.02, 0.03])
        # Of a sign that says nothing.
        stress[0, 1] = stress[1, 0] = 0.02 * (-1) ** i
        atoms.info["REF_stress"] = stress
    ase.io.write(tmp_path / "mine.xyz", frames)
    (found,) = (f for f in check(tmp_path / "mine.xyz").findings if f.code == "stress_order")
    assert "in 10 of 10 structures" in found.message
    assert found.numbers["order"][5] == "xz"


@pytest.mark.parametrize(("factor", "virial"), [(160.2, False), (-1602.0, False), (1.0, True)])
def test_stresses_far_too_large(tmp_path: Path, factor: float, virial: bool) -> None:
    codes = {finding.code for finding in check(written(tmp_path / "mine.xyz", factor=factor, virial=virial)).findings}
    assert codes & {"stress_size", "stress_unit", "stress_sign", "stress_is_virial"}
    codes = {finding.code for finding in check(written(tmp_path / "good.xyz")).findings}
    assert not codes & {"stress_size", "stress_unit", "stress_sign", "stress_is_virial", "stress_order"}


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [("band_gap", 1500.0, "meV"), ("formation_energy", -96.5, "kJ/mol/atom"), ("log10_bulk_modulus", 150.0, "log")],
)
def test_labels_far_too_large(tmp_path: Path, name: str, value: float, unit: str) -> None:
    for scale, large in ((1.0, True), (0.01, False)):
        frames = copper(5)
        truth(frames)
        for i, atoms in enumerate(frames):
            atoms.info[name] = scale * (value + i)
        ase.io.write(tmp_path / "mine.xyz", frames)
        found = [f for f in check(tmp_path / "mine.xyz").findings if f.code == "label_size"]
        assert bool(found) == large
        assert not found or unit in found[0].message + found[0].fix


def test_forces_and_energies_far_too_large(tmp_path: Path) -> None:
    frames = copper(12)
    e, f, _ = truth(frames)
    for i, atoms in enumerate(frames):
        atoms.info["REF_energy"] = 400.0 + 23.06 * e[i]
        atoms.arrays["REF_forces"] = 96.485 * f[i]
    ase.io.write(tmp_path / "mine.xyz", frames)
    found = {finding.code: finding for finding in check(tmp_path / "mine.xyz").findings}
    assert "kJ/mol/Å" in found["forces_size"].message
    assert "kcal/mol" in found["energy_size"].message
