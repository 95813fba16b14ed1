"""MD22: the published layout, and other files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.formula import Formula
from ase.symbols import symbols2numbers

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import md22
from eutectic.data.formats import sgdml

KCAL = 4184 / (6.022140857e23 * 1.6021766208e-19)  # CODATA 2014

MEANS = {
    "Ac-Ala3-NHMe": -26913.953,
    "DHA": -27383.035,
    "stachyose": -68463.59,
    "AT-AT": -50080.08,
    "AT-AT-CG-CG": -101034.23,
    "buckyball-catcher": -124776.7,
    "double-walled_nanotube": -338224.16,
}
"""Mean energies of the published files in eV, as JMP's settings give them (arXiv:2310.16802, its code)."""

ATOMS = {
    "Ac-Ala3-NHMe": 42,
    "DHA": 56,
    "stachyose": 87,
    "AT-AT": 60,
    "AT-AT-CG-CG": 118,
    "buckyball-catcher": 148,
    "double-walled_nanotube": 370,
}
"""Chmiela et al. 2023, table 1."""


def arrays(molecule: str, n: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    z = np.array(symbols2numbers(md22.MOLECULES[molecule][0]), dtype=np.uint8)
    return {
        "R": random.normal(size=(n, len(z), 3)),
        "E": MEANS[molecule] / KCAL + random.normal(size=(n, 1)),
        "F": 20 * random.normal(size=(n, len(z), 3)),
        "z": z,
    }


def rows(source: Path, name: str) -> list[LabelledStructure]:
    return [row for piece in md22.pieces(source, name) for row in md22.read(piece, name)]


@pytest.mark.parametrize("molecule", md22.MOLECULES)
def test_every_molecule(tmp_path: Path, molecule: str) -> None:
    raw = arrays(molecule)
    assert len(raw["z"]) == sum(Formula(md22.MOLECULES[molecule][0]).count().values()) == ATOMS[molecule]
    np.savez(tmp_path / f"md22_{molecule}.npz", **raw, e_unit="kcal/mol", r_unit="Ang")
    name = f"md22:{molecule}"
    found = rows(tmp_path, name)
    assert len(found) == 3
    for i, row in enumerate(found):
        row.check("here")
        np.testing.assert_allclose(row.labels["energy"], raw["E"][i, 0] * KCAL, rtol=1e-8)
        np.testing.assert_allclose(row.labels["forces"], raw["F"][i] * KCAL, rtol=1e-8)
    assert md22.card(name).name == name
    assert md22.files(name)[0].url.endswith(f"/md22_{molecule}.npz")
    assert md22.published_splits(tmp_path, name) == {}
    assert name in md22.PAPER_SPLITS


def test_energies_in_another_unit_are_known_or_refused(tmp_path: Path) -> None:
    raw = arrays("DHA")
    path = tmp_path / "md22_DHA.npz"
    np.savez(path, **{**raw, "E": raw["E"] * KCAL})
    assert rows(path, "md22:DHA")[0].labels["energy"] == pytest.approx(raw["E"][0, 0] * KCAL)
    for energies in (raw["E"] * KCAL * 96.485, raw["E"] - raw["E"].mean(), np.full_like(raw["E"], np.nan)):
        np.savez(path, **{**raw, "E": energies})
        with pytest.raises(EutecticError, match="a total energy"):
            rows(path, "md22:DHA")


def test_padded_structures_are_not_md22(tmp_path: Path) -> None:
    z = np.array([[8, 1, 1, 0], [6, 1, 1, 1]])
    np.savez(tmp_path / "md22_DHA.npz", R=np.zeros((2, 4, 3)), F=np.zeros((2, 4, 3)), E=np.zeros((2, 1)), z=z)
    with pytest.raises(EutecticError, match="several sizes"):
        rows(tmp_path, "md22:DHA")


def test_refusals(tmp_path: Path) -> None:
    np.savez(tmp_path / "md22_DHA.npz", **arrays("DHA"))
    with pytest.raises(EutecticError, match="data set 'md22:dha'"):
        rows(tmp_path, "md22:dha")
    with pytest.raises(EutecticError, match=r"no md22_AT-AT\.npz here"):
        rows(tmp_path, "md22:AT-AT")
    with pytest.raises(EutecticError, match="C22H32O2; expected C24H42O21"):
        rows(tmp_path / "md22_DHA.npz", "md22:stachyose")
    with pytest.raises(EutecticError, match="does not exist"):
        rows(tmp_path / "absent", "md22:DHA")


def test_bound_holds_for_every_published_mean() -> None:
    for molecule, mean in MEANS.items():
        numbers = symbols2numbers(md22.MOLECULES[molecule][0])
        ratio = mean / sum(sgdml.ATOM_ENERGIES[z] for z in numbers)
        assert sgdml.BOUND[0] + 0.005 < ratio < sgdml.BOUND[1] - 0.005


@pytest.mark.parametrize("file", ["qm7x_250_small.npz", "3bpa_train_300K.xyz", "ECEMC.xyz"])
def test_real_files_of_other_sets_are_refused(shared_data: Path, file: str) -> None:
    path = shared_data / "md22_like" / file
    for name in md22.names():
        with pytest.raises(EutecticError):
            md22.pieces(path, name)
