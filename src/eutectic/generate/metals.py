"""Metal surfaces with small adsorbates: elements, and alloys of the L1₂ and B2 structures."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from ase import Atoms
from ase.build import bulk

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card
from eutectic.generate.engine import Generator, drawn, in_turn, random_numbers
from eutectic.generate.labels import CHGNET, CHGNET_CITATION, SURROGATE_NOTE
from eutectic.generate.slabs import ADSORBATES, BCC, FCC, Surface, cut, frames, plane_of, with_adsorbate

CARD = Card(
    name="metal_slabs",
    title="Metal surfaces with small adsorbates",
    domain="metal catalysts",
    properties=("energy", "forces"),
    level_of_theory=CHGNET,
    licence="CC0-1.0",
    citation=CHGNET_CITATION,
    source="made by `eutectic data generate metal_slabs`",
    notes=(
        SURROGATE_NOTE,
        "Four frames per system: shaken start, part of a relaxation, its end after at most 15 steps, shaken end.",
        "Tags as in OC20: 0 below the surface (held fixed), 1 surface, 2 adsorbate. Forces are given on all atoms.",
        "Periodic in all directions with at least 16 Å between a slab and the next adsorbate along z.",
        "Alloys are ordered cells on lattices of averaged volume; many of them do not exist.",
        "group and the start of the id are bulk, facet and adsorbate.",
    ),
)

FCC_METALS = ("Al", "Ni", "Cu", "Rh", "Pd", "Ag", "Ir", "Pt", "Au")
BCC_METALS = ("V", "Cr", "Fe", "Nb", "Mo", "Ta", "W")
HCP_METALS = ("Sc", "Ti", "Co", "Zn", "Y", "Zr", "Ru", "Hf", "Re", "Os")
METALS = FCC_METALS + BCC_METALS + HCP_METALS
CUBIC = ((1, 1, 1), (1, 0, 0), (1, 1, 0))


def _volume(metal: str) -> float:
    """Å³ per atom of the element at room temperature (ASE's reference states)."""
    atoms = bulk(metal)
    return atoms.get_volume() / len(atoms)


def _miller(plane: tuple[int, int, int]) -> str:
    return "".join(map(str, plane))


def _element(metal: str, plane: tuple[int, int, int]) -> Surface:
    atoms = bulk(metal)
    if metal in HCP_METALS:
        return Surface(name=metal, bulk=atoms, miller=_miller(plane), plane=plane)
    vectors = FCC if metal in FCC_METALS else BCC
    return Surface(name=metal, bulk=atoms, miller=_miller(plane), plane=plane_of(plane, vectors))


def _ordered(sites: list[tuple[str, tuple[float, float, float]]], volume: float) -> Atoms:
    """An ordered alloy on a cubic lattice of a given volume per cell (Å³)."""
    return Atoms([s for s, _ in sites], scaled_positions=[p for _, p in sites], cell=[volume ** (1 / 3)] * 3, pbc=True)


def _l12(major: str, minor: str, plane: tuple[int, int, int]) -> Surface:
    sites = [
        (minor, (0.0, 0.0, 0.0)),
        (major, (0.0, 0.5, 0.5)),
        (major, (0.5, 0.0, 0.5)),
        (major, (0.5, 0.5, 0.0)),
    ]
    atoms = _ordered(sites, 3 * _volume(major) + _volume(minor))
    return Surface(name=f"{major}3{minor}", bulk=atoms, miller=_miller(plane), plane=plane)


def _b2(one: str, two: str, plane: tuple[int, int, int]) -> Surface:
    atoms = _ordered([(one, (0.0, 0.0, 0.0)), (two, (0.5, 0.5, 0.5))], _volume(one) + _volume(two))
    return Surface(name=f"{one}{two}", bulk=atoms, miller=_miller(plane), plane=plane)


@cache
def _surfaces() -> tuple[list[Surface], list[Surface], list[Surface]]:
    """Elements, L1₂ and B2."""
    elements = [_element(m, p) for m in FCC_METALS + BCC_METALS for p in CUBIC]
    elements += [_element(m, p) for m in HCP_METALS for p in ((0, 0, 1), (1, 0, 0))]
    l12 = [_l12(a, b, p) for a in FCC_METALS for b in METALS if a != b for p in CUBIC]
    b2 = [_b2(a, b, p) for a, b in itertools.combinations(METALS, 2) for p in ((1, 1, 0), (1, 0, 0))]
    return elements, l12, b2


KINDS = (0, 1, 0, 2)
"""Items 0, 1, 2, 3, 4, … are of these kinds in turn: half of them are elements."""


def make(item: int, seed: int) -> list[LabelledStructure]:
    """Four frames of one (surface, adsorbate)."""
    kind, place = in_turn(item, KINDS)
    systems = _surfaces()[kind]
    entry = drawn(f"{CARD.name}/{kind}", seed, len(systems) * len(ADSORBATES), place)
    which, adsorbate = divmod(entry, len(ADSORBATES))
    surface, name = systems[which], list(ADSORBATES)[adsorbate]
    rng = random_numbers(CARD.name, seed, item)
    slab = cut(surface, rng, width=4.3, thickness=3.8, most=28)
    # Strained by up to 2 % in the plane, as by a support.
    strain = rng.uniform(0.98, 1.02)
    slab.set_cell(slab.cell.array * np.array([[strain], [strain], [1.0]]), scale_atoms=True)
    atoms = with_adsorbate(slab, name, rng)
    return frames(atoms, rng, system=f"{surface.name}({surface.miller})+{name}", steps=15, deepest=15.0)


GENERATOR = Generator(card=CARD, items=450, make=make, needs=("chgnet",), chunk=5, seconds=120.0)
