"""What a structure is, and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms

from eutectic.atoms import ENERGY, FORCES, PROPERTIES, STRESS, EutecticError, LabelledStructure, Structure

WATER = Structure.from_ase(molecule("H2O"))
COPPER = Structure.from_ase(bulk("Cu"))


SLAB = np.array([True, True, False])


def test_a_molecule_has_no_cell() -> None:
    assert len(WATER) == 3
    assert not WATER.pbc.any()
    assert not WATER.cell.any()
    assert WATER.tags.tolist() == [2, 2, 2]
    assert not WATER.fixed.any()


def test_there_and_back_through_ase() -> None:
    slab = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    slab.set_constraint(FixAtoms([0, 1]))
    structure = Structure.from_ase(slab)
    assert structure.tags.tolist() == [3, 2, 1]
    assert structure.fixed.tolist() == [True, True, False]
    back = Structure.from_ase(structure.to_ase())
    for name in ("numbers", "positions", "cell", "pbc", "tags", "fixed"):
        np.testing.assert_array_equal(getattr(back, name), getattr(structure, name))


def test_a_structure_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        WATER.numbers = np.array([1])  # type: ignore[misc]


def test_good_structures_pass() -> None:
    WATER.check("here")
    COPPER.check("here")
    replace(COPPER, cell=COPPER.cell[[1, 0, 2]]).check("left-handed")
    replace(WATER, cell=np.diag([5.0, 0, 0]), pbc=np.array([True, False, False])).check("a wire")
    replace(WATER, cell=np.diag([0, 5.0, 5.0]), pbc=np.array([False, True, True])).check("a slab")
    replace(WATER, positions=WATER.positions + 9e7).check("far from the origin")
    replace(COPPER, positions=COPPER.positions + 9e7 * COPPER.cell[0] / 2).check("far from its cell")
    replace(WATER, positions=moved(1, [0.0, 0.0, 9e3])).check("two parts")
    replace(WATER, cell=np.diag([9e3, 9e3, 9e3]), pbc=np.ones(3, dtype=bool)).check("in a box")


def moved(row: int, value: list[float]) -> np.ndarray:
    positions = WATER.positions.copy()
    positions[row] = value
    return positions


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        (Structure(numbers=np.zeros(0, dtype=np.int64), positions=np.zeros((0, 3))), "no atoms"),
        (replace(WATER, positions=moved(1, [0.0, np.nan, 0.0])), "atom 1 has position"),
        (replace(WATER, positions=moved(2, [0.0, np.inf, 0.0])), "atom 2 has position"),
        (replace(WATER, numbers=np.array([8, 0, 1])), "atom 1 has atomic number 0"),
        (replace(WATER, numbers=np.array([8, 1, 119])), "atom 2 has atomic number 119"),
        (replace(WATER, positions=WATER.positions + 2e8), "atom 0 has position"),
        (replace(WATER, positions=WATER.positions + 1e300), "atom 0 has position"),
        (replace(COPPER, positions=COPPER.positions + 1e300), "atom 0 has position"),
        (replace(WATER, positions=moved(1, [0.0, 0.0, 2e4])), "atom 1, at .*, is far from the others"),
        (replace(WATER, positions=moved(1, [0.0, 0.0, 5e7])), "atom 1, at .*, is far from the others"),
        (
            replace(WATER, positions=moved(2, [0, 0, 2e4]), cell=np.diag([9.0, 9, 0]), pbc=SLAB),
            "is far from the others",
        ),
        (replace(COPPER, cell=np.full((3, 3), np.nan)), "cell"),
        (replace(COPPER, cell=COPPER.cell * 1e160), "cell"),
        (replace(WATER, cell=np.eye(3) * 1e160), "cell"),
        (replace(COPPER, cell=COPPER.cell * 1e5), "lattice vectors of at most"),
        (replace(COPPER, cell=np.diag([0.11, 3.0, 30.0])), "planes are 0.11 Å apart"),
        (replace(COPPER, cell=np.array([[3.0, 0, 0], [3000, 3, 0], [0, 0, 3]])), "planes are 0.003 Å apart"),
        (replace(COPPER, cell=np.array([[3.0, 0, 0], [0, 3, 0], [1, 1, 0.01]])), "planes are 0.01 Å apart"),
        (replace(COPPER, cell=np.zeros((3, 3))), "no volume"),
        (replace(COPPER, cell=np.ones((3, 3))), "no volume"),
        (replace(WATER, pbc=np.array([True, False, False])), "no volume"),
        (replace(WATER, positions=moved(1, WATER.positions[2].tolist())), "two atoms have the same position"),
    ],
)
def test_unusable_structures_are_refused(structure: Structure, said: str) -> None:
    with pytest.raises(EutecticError, match=said) as caught:
        structure.check("some.xyz, structure 7")
    assert caught.value.where == "some.xyz, structure 7"
    assert caught.value.fix


def test_coincident_atoms_are_those_that_unique_rows_find() -> None:
    random = np.random.default_rng(0)
    lattice = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3)
    for positions in (lattice, lattice * 1e-160, lattice * 2e3, random.normal(size=(40, 3)), -lattice):
        for twins in (False, True):
            places = positions.copy()
            if twins:
                # Zero has two signs and is one place.
                places[7] = np.where(places[31] == 0.0, -places[31], places[31])
            coincide = len(np.unique(places, axis=0)) < len(places)
            assert coincide is twins
            structure = Structure(numbers=np.full(len(places), 6), positions=places)
            if coincide:
                with pytest.raises(EutecticError, match="two atoms have the same position"):
                    structure.check("here")
            else:
                structure.check("here")


def labelled(**labels: np.ndarray) -> LabelledStructure:
    return LabelledStructure(structure=WATER, labels=labels, id="w", group="water")


def test_good_labels_pass() -> None:
    labelled(energy=np.asarray(-1.0), forces=np.zeros((3, 3)), stress=np.zeros((3, 3))).check("here")
    labelled().check("here")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"enrgy": np.asarray(1.0)}, "label 'enrgy'"),
        ({"energy": np.zeros(1)}, r"energy of shape \(1,\)"),
        ({"forces": np.zeros((2, 3))}, r"forces of shape \(2, 3\)"),
        ({"energy": np.asarray(np.nan)}, "energy is not finite"),
    ],
)
def test_unusable_labels_are_refused(labels: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(EutecticError, match=said):
        labelled(**labels).check("here")


def test_properties_say_their_shape() -> None:
    assert ENERGY.shape(5) == ()
    assert FORCES.shape(5) == (5, 3)
    assert STRESS.shape(5) == (3, 3)
    dimensionless = {"refractive_index", "is_metal"}
    assert all(name == p.name and (p.unit or name in dimensionless) for name, p in PROPERTIES.items())
