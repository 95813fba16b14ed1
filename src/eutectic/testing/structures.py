"""Small structures, each chosen to expose a common error in a backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from ase.build import add_adsorbate, bulk, fcc111
from ase.build import molecule as ase_molecule

from eutectic.atoms import Structure

Structures = Mapping[str, Structure]


def rattled(structure: Structure, amount: float, seed: int) -> Structure:
    """Add Gaussian noise with standard deviation `amount` (Å) to every position."""
    noise = np.random.default_rng(seed).normal(0.0, amount, structure.positions.shape)
    return replace(structure, positions=structure.positions + noise)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) rotation matrix, uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.sign(np.linalg.det(q)))


def rotated(structure: Structure, rotation: np.ndarray) -> Structure:
    """Apply x → rotation · x to positions and cell; `rotation` (3, 3) may be improper."""
    return replace(structure, positions=structure.positions @ rotation.T, cell=structure.cell @ rotation.T)


def molecule(name: str) -> Structure:
    """A molecule from ASE's G2 collection."""
    return Structure.from_ase(ase_molecule(name))


def side_by_side(first: Structure, second: Structure, distance: float) -> Structure:
    """Two molecules as one structure, the second moved by `distance` (Å) along (1, 1, 1)."""
    moved = second.positions + distance / math.sqrt(3)
    return Structure(
        numbers=np.concatenate([first.numbers, second.numbers]),
        positions=np.concatenate([first.positions, moved]),
        tags=np.concatenate([first.tags, second.tags]),
        fixed=np.concatenate([first.fixed, second.fixed]),
    )


def slab(seed: int, amount: float, element: str = "Cu") -> Structure:
    """A rattled 2 × 2 × 2 (111) slab with an adsorbed oxygen atom; the bottom layer is fixed."""
    atoms = fcc111(element, (2, 2, 2), vacuum=None)
    layer = np.asarray(atoms.get_tags())  # 1 is the topmost layer
    add_adsorbate(atoms, "O", 1.3, "fcc")
    tags = np.concatenate([np.where(layer == 1, 1, 0), [2]])
    cell = np.asarray(atoms.cell.array)
    cell[2] = 0.0
    return rattled(
        Structure(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=np.asarray(atoms.positions, dtype=np.float64),
            cell=cell,
            pbc=np.array([True, True, False]),
            tags=tags,
            fixed=np.concatenate([layer == layer.max(), [False]]),
        ),
        amount,
        seed,
    )


def _rock_salt() -> Structure:
    return Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64))


def _slab_across_the_boundary() -> Structure:
    copper = slab(seed=5, amount=0.05)
    cell = copper.cell.copy()
    cell[2, 2] = 14.0
    wrapped = copper.positions.copy()
    wrapped[:, 2] = (wrapped[:, 2] - 1.0) % 14.0
    return replace(copper, positions=wrapped, cell=cell, pbc=np.ones(3, dtype=bool))


def _slab_on_its_side() -> Structure:
    copper = slab(seed=6, amount=0.05)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    cell = np.zeros((3, 3))
    cell[0], cell[2] = copper.cell[0] @ turn.T, copper.cell[1] @ turn.T
    return replace(copper, positions=copper.positions @ turn.T, cell=cell, pbc=np.array([True, False, True]))


def _skewed() -> Structure:
    cell = np.array([[4.2, 0.0, 0.0], [3.9, 2.1, 0.0], [3.5, 1.9, 3.0]])
    fractional = np.array([[0.1, 0.2, 0.3], [0.62, 0.74, 0.83]])
    return Structure(numbers=np.array([12, 8]), positions=fractional @ cell, cell=cell, pbc=np.ones(3, dtype=bool))


def _unwrapped() -> Structure:
    crystal = rattled(Structure.from_ase(bulk("MgO", "rocksalt", a=4.21, cubic=True)), 0.05, seed=4)
    jumps = np.random.default_rng(4).integers(-3, 4, (len(crystal), 3))
    return replace(crystal, positions=crystal.positions + jumps @ crystal.cell)


def _left_handed() -> Structure:
    crystal = rattled(_rock_salt(), 0.1, seed=3)
    return replace(crystal, cell=crystal.cell[[1, 0, 2]])


STRUCTURES: dict[str, Structure] = {
    "helium": Structure(numbers=np.array([2]), positions=np.zeros((1, 3))),
    "two_far_atoms": Structure(numbers=np.array([1, 8]), positions=np.array([[0.0, 0, 0], [90.0, 0, 0]])),
    "hydrogen": molecule("H2"),
    "water": molecule("H2O"),
    "carbon_dioxide": molecule("CO2"),
    "acetylene": molecule("C2H2"),
    "benzene": molecule("C6H6"),
    "ethanol_rattled": rattled(molecule("CH3CH2OH"), 0.1, seed=1),
    "two_molecules_apart": side_by_side(molecule("H2O"), molecule("CH4"), 60.0),
    "sodium_chloride": _rock_salt(),
    "copper_one_atom": Structure.from_ase(bulk("Cu", "fcc", a=3.61)),
    "skewed_cell": _skewed(),
    "left_handed_cell": _left_handed(),
    "unwrapped": _unwrapped(),
    "slab_two_periodic": slab(seed=2, amount=0.1),
    "slab_across_boundary": _slab_across_the_boundary(),
    "slab_on_its_side": _slab_on_its_side(),
}
"""Small structures by name.

helium, two_far_atoms: no edges. hydrogen: no angles. carbon_dioxide, acetylene: three and four collinear atoms, with an
angle of 180° and an undefined dihedral. benzene: planar, with ties between equivalent neighbours. two_molecules_apart:
two parts farther apart than any cutoff. sodium_chloride, copper_one_atom: perfect crystals (ties at every cap, angles
of 180°) with cells smaller than the cutoff, so that atoms are neighbours of their own images; a single atom exposes
axes that are squeezed by mistake. skewed_cell: the nearest images are not in adjacent cells. left_handed_cell: negative
volume. unwrapped: atoms several cells away. slab_two_periodic: the third lattice vector is zero. slab_across_boundary:
periodic in three directions, cut in two by z = 0. slab_on_its_side: periodic along the first and third vectors, the
second is zero.
"""

GENERIC = ("ethanol_rattled", "skewed_cell", "left_handed_cell", "unwrapped", "slab_two_periodic")
"""Names of the structures without symmetry, used to compare derivatives with finite differences. (A crystal whose atoms
are neighbours of their own images always has angles of 180°.)"""


def generic_structures() -> dict[str, Structure]:
    """The structures listed in `GENERIC`."""
    return {name: STRUCTURES[name] for name in GENERIC}
