"""Every kind of structure can be drawn, and is recognised for what it is."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from made_up import slab
from matplotlib.figure import Figure

from eutectic.atoms import Structure
from eutectic.report.drawing import draw, formula, kind, picture, png, scene

CUT = Structure.from_ase(fcc111("Pt", (2, 2, 2), vacuum=6.0))
CASES = {
    "atom": (Structure.from_ase(Atoms("He")), "molecule"),
    "two atoms": (Structure.from_ase(molecule("CO")), "molecule"),
    "molecule": (Structure.from_ase(molecule("CH3CH2OH")), "molecule"),
    "molecule in a box": (
        Structure.from_ase(Atoms("HF", [[0, 0, 0], [0, 0, 1]], cell=[15] * 3, pbc=True)),
        "molecule",
    ),
    "slab": (slab(), "slab"),
    "slab without a third vector": (
        Structure(
            numbers=CUT.numbers,
            positions=CUT.positions,
            cell=CUT.cell * np.array([[1.0], [1.0], [0.0]]),
            pbc=np.array([True, True, False]),
        ),
        "slab",
    ),
    "crystal": (Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True)), "crystal"),
    "one atom, periodic": (Structure.from_ase(bulk("Cu")), "crystal"),
    "unknown element": (Structure.from_ase(Atoms("Og")), "molecule"),
}


@pytest.mark.parametrize("name", CASES)
def test_draws(name: str) -> None:
    structure, expected = CASES[name]
    assert kind(structure) == expected
    image = picture(structure, 60)
    assert image.shape == (60, 60, 4)
    assert np.isfinite(image).all()
    painted = image[..., 3] > 0.5
    assert 0.01 < painted.mean() < 0.95
    # Nothing is cut off: the rim is empty.
    assert not painted[[0, -1]].any()
    assert not painted[:, [0, -1]].any()


def test_is_the_same_every_time() -> None:
    assert png(slab(), 60) == png(slab(), 60)
    assert png(slab(), 60).startswith("data:image/png;base64,")


def test_bonds_of_water() -> None:
    # Three balls, and two sticks of two halves of 24.
    assert len(scene(Structure.from_ase(molecule("H2O"))).centres) == 3 + 2 * 2 * 24


def test_draws_into_axes() -> None:
    axes = Figure().add_subplot()
    draw(axes, Structure.from_ase(molecule("H2O")), 40)
    assert len(axes.images) == 1


def test_formula() -> None:
    assert formula(Structure.from_ase(molecule("CH3CH2OH"))) == "C2H6O"
    assert formula(slab()) == "Cu12HO"
