"""Toy potentials with exact derivatives, and small stores labelled with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from ase.build import bulk
from ase.data import covalent_radii

from eutectic.atoms import LabelledStructure, Structure
from eutectic.atoms.units import BOHR
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.graph.neighbours import neighbour_list
from eutectic.testing.structures import molecule, random_rotation, rattled, rotated, slab

PAIR_CUTOFF = 6.0
"""Å. Cutoff of the toy potentials; energy and force are continuous there."""

DEPTH = 0.3
"""eV. Well depth of the toy potentials, the same for all pairs of elements."""

RadialFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(distances, equilibrium distances) → energies, derivatives."""


def _lennard_jones(r: np.ndarray, r0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ε ((r0/r)¹² - 2 (r0/r)⁶) and its derivative."""
    x = (r0 / r) ** 6
    return DEPTH * (x * x - 2 * x), 12 * DEPTH * (x - x * x) / r


def _morse(r: np.ndarray, r0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ε ((1 - exp(-a (r - r0)))² - 1) and its derivative, a = 2 / Å."""
    x = np.exp(-2.0 * (r - r0))
    return DEPTH * ((1 - x) ** 2 - 1), 4.0 * DEPTH * (1 - x) * x


def _pairwise(structure: Structure, radial: RadialFunction) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and virial dE/dε (eV) of a pair potential, shifted so that energy and force both
    vanish at the cutoff (Allen & Tildesley, "Computer Simulation of Liquids", eq. 5.10)."""
    edges = neighbour_list([structure], PAIR_CUTOFF)
    s, t, d = edges.source, edges.target, edges.distance
    vector = structure.positions[t] - structure.positions[s] - edges.offset @ structure.cell  # source → target
    radii = covalent_radii[structure.numbers]
    value, slope = radial(d, radii[s] + radii[t])
    end, end_slope = radial(np.full_like(d, PAIR_CUTOFF), radii[s] + radii[t])
    value, slope = value - end - (d - PAIR_CUTOFF) * end_slope, slope - end_slope
    forces = np.zeros((len(structure), 3))
    # Every pair is listed twice: each entry contributes half the energy and the full force on its target.
    np.add.at(forces, t, -(slope / d)[:, None] * vector)
    virial = 0.5 * np.einsum("e,ei,ej->ij", slope / d, vector, vector)
    return 0.5 * float(value.sum()), forces, virial


def lennard_jones(structure: Structure) -> tuple[float, np.ndarray]:
    """Lennard-Jones energy (eV) and exact forces (n_atoms, 3) (eV/Å), with the minimum of each pair at the sum of the
    covalent radii."""
    value, forces, _ = _pairwise(structure, _lennard_jones)
    return value, forces


def morse(structure: Structure) -> tuple[float, np.ndarray]:
    """As `lennard_jones`, with the Morse potential: another "level of theory"."""
    value, forces, _ = _pairwise(structure, _morse)
    return value, forces


Kind = Literal["molecules", "crystals", "slabs"]

_MOLECULES = ("H2O", "CH4", "NH3", "CH3OH", "C2H4", "C2H6", "HCN", "CO2", "H2CO", "CH3CH2OH", "HCOOH", "C2H2")
_CRYSTALS = (
    *(("fcc", name, a) for name, a in (("Cu", 3.61), ("Al", 4.05), ("Ni", 3.52), ("Ag", 4.09))),
    *(("rocksalt", name, a) for name, a in (("MgO", 4.21), ("NaCl", 5.64), ("LiF", 4.03), ("CaO", 4.81))),
    *(("diamond", name, a) for name, a in (("Si", 5.43), ("C", 3.57))),
    *(("bcc", name, a) for name, a in (("Fe", 2.87), ("W", 3.16))),
)
_SURFACES = ("Cu", "Al", "Ni", "Ag", "Pt", "Pd")


def _tiny_structure(kind: Kind, index: int, rng: np.random.Generator) -> tuple[Structure, str]:
    """A rattled structure and the name of its molecule, crystal or metal."""
    if kind == "molecules":
        name = _MOLECULES[index % len(_MOLECULES)]
        structure = rotated(molecule(name), random_rotation(rng))
    elif kind == "crystals":
        lattice, name, a = _CRYSTALS[index % len(_CRYSTALS)]
        structure = Structure.from_ase(bulk(name, lattice, a=a * rng.uniform(0.97, 1.06)).repeat((2, 1, 1)))
    else:
        name = _SURFACES[index % len(_SURFACES)]
        structure = slab(seed=0, amount=0.0, element=name)
    structure = rattled(structure, 0.06, seed=int(rng.integers(2**31)))
    # Stores save float32 positions, so labels are computed for the rounded ones.
    rounded = {k: np.asarray(getattr(structure, k), dtype=np.float32).astype(np.float64) for k in ("positions", "cell")}
    return replace(structure, **rounded), name


def tiny_store(path: Path, kind: Kind, n: int, seed: int = 0) -> Store:
    """Write a small store with exact labels, within seconds.

    Like real data sets, each kind has its own "level of theory" and atomic reference energies: molecules (Morse, -10 eV
    · Z per atom; also ⟨R²⟩ of point charges), crystals (Lennard-Jones, no offset; also stress) and slabs
    (Lennard-Jones, -1 eV · Z per atom; tags, a fixed bottom layer). Forces and stress are exact derivatives of the
    energy. Structures of the same molecule, crystal or metal share a group.

    Args:
        path: the folder to write.
        kind: "molecules", "crystals" or "slabs".
        n: number of structures.
        seed: the same seed gives the same store.
    """
    radial, per_charge = {
        "molecules": (_morse, -10.0),
        "crystals": (_lennard_jones, 0.0),
        "slabs": (_lennard_jones, -1.0),
    }[kind]
    extra = {"molecules": ("electronic_spatial_extent",), "crystals": ("stress",), "slabs": ()}[kind]

    def structures() -> Iterator[LabelledStructure]:
        rng = np.random.default_rng(seed)
        for index in range(n):
            structure, origin = _tiny_structure(kind, index, rng)
            value, forces, virial = _pairwise(structure, radial)
            labels = {"energy": np.asarray(value + per_charge * structure.numbers.sum()), "forces": forces}
            if kind == "crystals":
                labels["stress"] = virial / abs(np.linalg.det(structure.cell))
            if kind == "molecules":
                z = structure.numbers / structure.numbers.sum()
                from_centre = structure.positions - z @ structure.positions
                squared = structure.numbers @ (from_centre**2).sum(1)
                labels["electronic_spatial_extent"] = np.asarray(squared / BOHR**2)
            yield LabelledStructure(structure=structure, labels=labels, id=f"{kind}-{index}", group=origin)

    card = Card(
        name=f"tiny_{kind}",
        title=f"toy {kind} for tests",
        domain=kind,
        properties=("energy", "forces", *extra),
        level_of_theory="Morse pair potential" if kind == "molecules" else "Lennard-Jones pair potential",
        licence="CC0-1.0",
        citation="none: generated by eutectic.testing",
        source="eutectic.testing.tiny_store",
    )
    write_store(path, card, structures())
    return Store(path)
