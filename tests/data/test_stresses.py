"""Stresses and virials by any name, sign, unit and order, with numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from eutectic.atoms import EutecticError
from eutectic.data import catalogue, stresses
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store

CELL = np.diag([2.0, 3.0, 4.0])  # 24 Å³
STRESS = np.array([[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]])
VIRIAL = -24.0 * STRESS


def written(path: Path, **info: object) -> Path:
    ase.io.write(path, Atoms("He", cell=CELL, pbc=True, info=info))
    return path


@pytest.mark.parametrize(
    ("value", "keys", "units"),
    [
        (VIRIAL, {"virial": "w"}, {}),
        (VIRIAL, {"virial": "w"}, {"virial": "eV"}),
        (-VIRIAL, {"virial": "w"}, {"virial": "-eV"}),
        (VIRIAL / 27.211_386_02, {"virial": "w"}, {"virial": "hartree"}),
        (VIRIAL, {"stress": "w"}, {"stress": "eV"}),
        (-VIRIAL, {"stress": "w"}, {"stress": "-eV"}),
        (VIRIAL.reshape(9), {"virial": "w"}, {}),
        (-24.0 * np.array([1.0, 2, 3, 0.4, 0.5, 0.6]), {"virial": "w"}, {}),
        (-24.0 * np.array([1.0, 2, 3, 0.6, 0.4, 0.5]), {"virial": "w:xx,yy,zz,xy,yz,zx"}, {}),
        (np.array([1.0, 2, 3, 0.6, 0.4, 0.5]), {"stress": "w:xx,yy,zz,xy,yz,zx"}, {}),
        (np.array([1.0, 0.6, 0.5, 2, 0.4, 3]), {"stress": "w:xx xy xz yy yz zz"}, {}),
        # 1 kbar = 0.1 GPa = 1e8 J/m³ = 1e8 / 1.6021766208e-19 · 1e-30 eV/Å³ = 6.241509126e-4 eV/Å³
        (-STRESS / 6.241_509_126e-4, {"stress": "w"}, {"stress": "-kbar"}),
        # 1 hartree/bohr³ = 27.21138602 / 0.52917721067³ = 183.63153 eV/Å³
        (STRESS / 183.631_53, {"stress": "w"}, {"stress": "a.u."}),
    ],
)
def test_any_name_sign_unit_and_order(
    tmp_path: Path, value: np.ndarray, keys: dict[str, str], units: dict[str, str]
) -> None:
    file = written(tmp_path / "mine.traj", w=value)
    (row,) = ase_files.read(file, keys, units=units)
    np.testing.assert_allclose(row.labels["stress"], STRESS, rtol=1e-7)


def test_a_virial_is_not_stored_as_a_stress(tmp_path: Path) -> None:
    for name in ("virial", "REF_virials", "dft_virial", "Virial"):
        (row,) = ase_files.read(written(tmp_path / "mine.xyz", **{name: VIRIAL}), {"stress": name})
        np.testing.assert_allclose(row.labels["stress"], STRESS)
    # A unit of pressure says that it is a stress, whatever its name.
    (row,) = ase_files.read(written(tmp_path / "p.xyz", virial=STRESS), {"stress": "virial"}, units={"stress": "eV/Å³"})
    np.testing.assert_allclose(row.labels["stress"], STRESS)
    (row,) = ase_files.read(written(tmp_path / "no.xyz", virial=VIRIAL, REF_energy=1.0), {"virial": ""})
    assert "stress" not in row.labels


def test_positions_in_other_units(tmp_path: Path) -> None:
    (row,) = ase_files.read(written(tmp_path / "mine.xyz", virial=VIRIAL), units={"positions": "nm"})
    np.testing.assert_allclose(row.labels["stress"], 1e-3 * STRESS, rtol=1e-12)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.xyz", w=VIRIAL)
    for keys, units, message in (
        ({"virial": "v"}, {}, "no 'v' for virial; .*an existing entry: w"),
        ({"stress": "w:xx,yy,zz,xy,xy,xz"}, {}, "each component once, such as"),
        ({"virial": "w"}, {"virial": "GPa"}, "--unit virial=GPa"),
    ):
        with pytest.raises(EutecticError, match=message):
            ase_files.scan(file, keys, units=units)


@pytest.mark.parametrize(
    ("factor", "words"), [(1.0, None), (160.217_66, "GPa"), (-1.0, "a sign"), (-1602.176_6, "−kbar"), (3.0, "3 times")]
)
def test_stress_and_virial_that_contradict_each_other(tmp_path: Path, factor: float, words: str | None) -> None:
    file = written(tmp_path / "mine.xyz", virial=VIRIAL, REF_stress=factor * STRESS, REF_energy=-1.0)
    found = ase_files.scan(file)
    assert (found.contradictions == ()) == (words is None)
    if words is None:
        return
    assert words in found.contradiction
    with pytest.raises(EutecticError, match="REF_stress and virial contradict each other"):
        catalogue.prepare("ase", file, tmp_path / "no", workers=1)
    for keys, expected in (({"virial": "virial"}, STRESS), ({"stress": "REF_stress"}, factor * STRESS)):
        store = catalogue.prepare("ase", file, tmp_path / "yes", keys=keys, workers=1, overwrite=True)
        np.testing.assert_allclose(Store(store)[0].labels["stress"], expected, rtol=1e-12)


def test_neither_a_multiple_of_the_other() -> None:
    assert stresses.contradiction(STRESS, np.diag([1.0, 2, 3])) == "of which neither is a multiple of the other"


def test_records_ask_for_the_order(tmp_path: Path) -> None:
    row = {"numbers": [2], "positions": [[0, 0, 0]], "cell": CELL.tolist(), "energy": 0.0}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{**row, "stress": [-10, -20, -30, -6, -4, -5], "my_w": (VIRIAL * 10).tolist()}]))
    options = {"units": {"energy": "eV", "positions": "angstrom", "stress": "-kbar"}, "pbc": "true", "workers": 1}
    with pytest.raises(EutecticError, match=r"six numbers of stress in unknown order; .*--key stress=stress:ORDER"):
        catalogue.prepare("records", file, tmp_path / "s", **options)  # type: ignore[arg-type]
    keys = {"stress": "stress:xx,yy,zz,xy,yz,zx"}
    made = catalogue.prepare("records", file, tmp_path / "s", keys=keys, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(Store(made)[0].labels["stress"], STRESS * 6.241_509_126e-3, rtol=1e-7)
    options["units"] = {"energy": "eV", "positions": "angstrom", "virial": "meV"}
    made = catalogue.prepare("records", file, tmp_path / "w", keys={"virial": "my_w"}, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(Store(made)[0].labels["stress"], STRESS / 100, rtol=1e-12)
