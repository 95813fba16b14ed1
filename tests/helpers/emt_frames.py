"""Frames with labels known independently: copper under strain, by ASE's EMT potential."""

from __future__ import annotations

from functools import cache

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT


@cache
def _labelled(n: int, seed: int, strain: float) -> list[Atoms]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + random.normal(size=(3, 3)) * strain), scale_atoms=True)
        atoms.positions += random.normal(size=(4, 3)) * 0.08
        atoms.calc = EMT()
        atoms.info["truth"] = (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
        made.append(atoms)
    return made


def copper(n: int = 12, seed: int = 0, strain: float = 0.02) -> list[Atoms]:
    """Structures without labels; `info["truth"]` has energy (eV), forces (eV/Å) and stress (3, 3) (eV/Å³)."""
    made = [atoms.copy() for atoms in _labelled(n, seed, strain)]
    for atoms, labelled in zip(made, _labelled(n, seed, strain), strict=True):
        atoms.info = {"truth": labelled.info["truth"]}
    return made


def truth(frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies (n,), forces (n, 4, 3), stresses (n, 3, 3); taken from the structures, which then hold no labels."""
    e, f, s = zip(*(atoms.info.pop("truth") for atoms in frames), strict=True)
    return np.array(e), np.array(f), np.array(s)


def methanol(n: int = 10, seed: int = 0) -> list[Atoms]:
    """Molecules without labels; `info["truth"]` has energy (eV) and forces (eV/Å)."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        atoms = molecule("CH3OH")
        atoms.positions += random.normal(size=atoms.positions.shape) * 0.05
        atoms.calc = EMT()
        labels = (atoms.get_potential_energy(), atoms.get_forces(), np.zeros((3, 3)))
        atoms = atoms.copy()
        atoms.info = {"truth": labels}
        made.append(atoms)
    return made
