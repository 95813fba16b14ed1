"""Oxide surfaces, bare and with small adsorbates: rocksalt, wurtzite, fluorite, rutile, perovskite."""

from __future__ import annotations

from functools import cache

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card
from eutectic.generate.engine import Generator, drawn, random_numbers
from eutectic.generate.labels import CHGNET, CHGNET_CITATION, SURROGATE_NOTE
from eutectic.generate.slabs import ADSORBATES, FCC, Surface, cut, frames, plane_of, with_adsorbate

CARD = Card(
    name="oxide_slabs",
    title="Oxide surfaces, bare and with small adsorbates",
    domain="oxide catalysts",
    properties=("energy", "forces"),
    level_of_theory=CHGNET,
    licence="CC0-1.0",
    citation=CHGNET_CITATION,
    source="made by `eutectic data generate oxide_slabs`",
    notes=(
        SURROGATE_NOTE,
        "Four frames per system: shaken start, part of a relaxation, its end after at most 15 steps, shaken end.",
        "Tags as in OC20: 0 below the surface (held fixed), 1 surface, 2 adsorbate. Forces are given on all atoms.",
        "Slabs are stoichiometric and cut at random; polar ones that relax by more than 15 eV are left out.",
        "Periodic in all directions with at least 16 Å between a slab and the next image along z.",
        "group and the start of the id are bulk, facet and adsorbate.",
    ),
)

# Lattice constants in Å: of the oxide if it exists in this structure, else approximate; a strain of up to 2 % is added.
ROCKSALT = {
    "Mg": 4.21, "Ca": 4.81, "Sr": 5.16, "Ba": 5.54, "Ti": 4.18, "V": 4.09, "Mn": 4.44, "Fe": 4.33, "Co": 4.26,
    "Ni": 4.18, "Cd": 4.70, "Zn": 4.28, "Cu": 4.25, "Eu": 5.14,
}  # fmt: skip
WURTZITE = {
    "Zn": (3.25, 5.207),
    "Be": (2.698, 4.377),
    "Mg": (3.28, 5.10),
    "Cd": (3.66, 5.86),
    "Co": (3.24, 5.20),
}
FLUORITE = {"Ce": 5.41, "Zr": 5.07, "Hf": 5.08, "Th": 5.60, "U": 5.47, "Pr": 5.39, "Tb": 5.22, "Ti": 4.87}
RUTILE = {
    "Ti": (4.594, 2.959), "Sn": (4.737, 3.186), "Ru": (4.492, 3.107), "Ir": (4.498, 3.154),
    "V": (4.555, 2.851), "Cr": (4.421, 2.916), "Mn": (4.398, 2.873), "Pb": (4.955, 3.383),
    "Ge": (4.395, 2.860), "Nb": (4.77, 2.96), "Os": (4.500, 3.184), "Rh": (4.489, 3.090),
    "Mo": (4.86, 2.79), "W": (4.86, 2.77), "Re": (4.80, 2.81), "Pt": (4.485, 3.130), "Ta": (4.75, 3.06),
}  # fmt: skip
PEROVSKITE = {
    ("Sr", "Ti"): 3.905, ("Ba", "Ti"): 4.00, ("Ca", "Ti"): 3.83, ("Pb", "Ti"): 3.97, ("Ba", "Zr"): 4.19,
    ("Sr", "Zr"): 4.10, ("Sr", "Ru"): 3.93, ("Ca", "Mn"): 3.74, ("Sr", "Mn"): 3.81, ("Sr", "Fe"): 3.85,
    ("Sr", "Co"): 3.83, ("Sr", "V"): 3.84, ("Sr", "Mo"): 3.98, ("Ba", "Sn"): 4.12, ("Ba", "Hf"): 4.17,
    ("La", "Mn"): 3.88, ("La", "Ni"): 3.84, ("La", "Co"): 3.82, ("La", "Fe"): 3.93, ("La", "Cr"): 3.88,
    ("La", "Al"): 3.79, ("La", "V"): 3.91, ("La", "Ti"): 3.96, ("Y", "Al"): 3.72, ("Y", "Fe"): 3.83,
    ("K", "Ta"): 3.99, ("K", "Nb"): 4.00, ("Na", "Nb"): 3.91, ("Na", "Ta"): 3.93, ("Ag", "Nb"): 3.95,
}  # fmt: skip

Kind = tuple[str, str, Atoms, np.ndarray, tuple[tuple[int, int, int], ...]]


def _kinds() -> list[Kind]:
    """(name, structure, primitive cell, its vectors in conventional ones, conventional Miller indices)."""
    cubic, hexagonal, own = ((1, 0, 0), (1, 1, 0), (1, 1, 1)), ((1, 0, 0), (1, 1, 0)), np.eye(3)
    kinds: list[Kind] = []
    # (111) of rocksalt is polar however it is cut.
    kinds += [(f"{m}O", "rocksalt", bulk(f"{m}O", "rocksalt", a=a), FCC, cubic[:2]) for m, a in ROCKSALT.items()]
    kinds += [
        (f"{m}O", "wurtzite", bulk(f"{m}O", "wurtzite", a=a, c=c), own, hexagonal) for m, (a, c) in WURTZITE.items()
    ]
    kinds += [(f"{m}O2", "fluorite", bulk(f"{m}O2", "fluorite", a=a), FCC, cubic) for m, a in FLUORITE.items()]
    for m, (a, c) in RUTILE.items():
        # Oxygen at u = 0.305, as in TiO2.
        sites, cell = [(0, 0, 0), (0.305, 0.305, 0)], [a, a, c, 90, 90, 90]
        rutile = crystal([m, "O"], sites, spacegroup=136, cellpar=cell)
        kinds.append((f"{m}O2", "rutile", rutile, own, ((1, 1, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1))))
    for (a_site, b_site), a in PEROVSKITE.items():
        places = [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)]
        perovskite = Atoms([a_site, b_site, "O", "O", "O"], scaled_positions=places, cell=[a] * 3, pbc=True)
        kinds.append((f"{a_site}{b_site}O3", "perovskite", perovskite, own, ((1, 0, 0), (1, 1, 0))))
    return kinds


@cache
def _surfaces() -> list[Surface]:
    return [
        Surface(
            name=f"{name}-{structure}",
            bulk=Atoms(cell.numbers, cell.positions, cell=cell.cell, pbc=True),
            miller="".join(map(str, miller)),
            plane=plane_of(miller, vectors),
        )
        for name, structure, cell, vectors, facets in _kinds()
        for miller in facets
    ]


WIDTH, THICK, MOST = 3.9, 3.8, 28
BARE = 4
"""One in this many items has no adsorbate (until every surface has been used bare once)."""


def make(item: int, seed: int) -> list[LabelledStructure]:
    """Four frames of one (surface, adsorbate)."""
    surfaces = _surfaces()
    bare, turn = divmod(item, BARE)
    rng = random_numbers(CARD.name, seed, item)
    if turn == 0 and bare < len(surfaces):
        surface, name = surfaces[drawn(f"{CARD.name}/bare", seed, len(surfaces), bare)], ""
    else:
        entry = drawn(CARD.name, seed, len(surfaces) * len(ADSORBATES), item)
        which, adsorbate = divmod(entry, len(ADSORBATES))
        surface, name = surfaces[which], list(ADSORBATES)[adsorbate]
    slab = cut(surface, rng, width=WIDTH, thickness=THICK, most=MOST)
    strain = rng.uniform(0.98, 1.02)
    slab.set_cell(slab.cell.array * np.array([[strain], [strain], [1.0]]), scale_atoms=True)
    atoms = with_adsorbate(slab, name, rng) if name else slab
    system = f"{surface.name}({surface.miller})" + (f"+{name}" if name else "")
    return frames(atoms, rng, system=system, steps=15, deepest=15.0)


GENERATOR = Generator(card=CARD, items=360, make=make, needs=("chgnet",), chunk=5, seconds=120.0)
