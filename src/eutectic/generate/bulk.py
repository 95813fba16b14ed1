"""Inorganic crystals off equilibrium: strained and displaced bulk materials for pre-training.

The structure types of `crystals` and a few more are filled with many more elements. Only the volume is relaxed, and
only roughly, since every frame is displaced anyway. Materials in `crystals`, in any structure, are excluded: they are
used for fine-tuning.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card
from eutectic.data.catalogue import embedded
from eutectic.data.store import Store
from eutectic.generate import crystals
from eutectic.generate.crystals import MINUS2
from eutectic.generate.engine import Generator, Rejected, drawn, in_turn, random_numbers
from eutectic.generate.labels import CHGNET, CHGNET_CITATION, SURROGATE_NOTE, chgnet, labelled
from eutectic.generate.metals import METALS

CARD = Card(
    name="bulk",
    title="Inorganic crystals off equilibrium",
    domain="materials",
    properties=("energy", "forces"),
    level_of_theory=CHGNET,
    licence="CC0-1.0",
    citation=CHGNET_CITATION,
    source="made by `eutectic data generate bulk`",
    notes=(
        SURROGATE_NOTE,
        "Four frames per material, of 4 to 24 atoms: the primitive cell or a small supercell near its best volume, "
        "its volume changed by up to 8 %, sheared by a few percent, every atom displaced by normal random "
        "numbers of 0.02 to 0.25 Å per component.",
        "No material whose reduced formula is in the embedded set `crystals`, whatever the structure; a larger "
        "`crystals` that is made with `--scale` is not held out.",
        "Structure types are filled with plausible elements; many of these crystals do not exist.",
        "Frames with a force of 15 eV/Å or more are left out.",
        "group is the reduced formula; id adds the structure type and the frame.",
    ),
)

FRAMES = 4
SIZES = (4, 24)
"""Minimum and maximum number of atoms of a frame."""

VOLUME = 0.08
"""Largest relative change of the volume."""

SHEAR = 0.03
"""Largest component of the volume-conserving strain."""

DISPLACEMENTS = (0.02, 0.25)
"""Smallest and largest standard deviation of the displacements per component, Å."""

NEAREST = 0.65
"""Minimum distance between atoms, as a fraction of the sum of covalent radii."""

PLUS1 = (*crystals.PLUS1, "Tl")
PLUS2 = (*crystals.PLUS2, "Ti", "V", "Cr", "Cu", "Ge", "Pd", "Sn", "Eu", "Yb")
PLUS3 = (
    *(*crystals.PLUS3, "B", "Ti", "Mn", "Fe", "Co", "Rh", "Sb", "Bi"),
    *("Ce", "Pr", "Nd", "Sm", "Gd", "Tb", "Dy", "Ho", "Er", "Lu"),
)
PLUS4 = (*crystals.PLUS4, "Si", "Cr", "Nb", "Mo", "Rh", "Pd", "Te", "Ce", "Ta", "W", "Re", "Os", "Ir", "Pt", "Pb", "Th")
MINUS1 = (*crystals.MINUS1, "H")
MINUS3 = (*crystals.MINUS3, "Bi")
RARE_EARTHS = ("Sc", "Y", "La", "Ce", "Pr", "Nd", "Sm", "Gd", "Dy", "Er", "Lu")
DIAMOND = ("C", "Si", "Ge", "Sn")

KINDS = (2, 3, 0, 2, 1, 3, 2, 0, 3, 2, 4)
"""Families of items 0, 1, 2, 3, 4, …, in turn: roughly proportional to their sizes, so that none runs out much before
scale 4."""

Candidate = tuple[str, tuple[str, ...]]


def _families() -> list[list[Candidate]]:
    """(structure type, species of its sites): AB, AB₂ and AB₃, ternary salts, alloys, Heuslers."""
    pairs = [*itertools.product(PLUS1, MINUS1), *itertools.product(PLUS2, MINUS2), *itertools.product(PLUS3, MINUS3)]
    one_to_one: list[Candidate] = [
        (t, p) for t in ("rocksalt", "zincblende", "CsCl", "wurtzite", "NiAs") for p in pairs
    ]
    halves = [*itertools.product(PLUS2, MINUS1), *itertools.product(PLUS4, MINUS2)]
    one_to_more: list[Candidate] = [(t, p) for t in ("fluorite", "rutile", "CdI2") for p in halves]
    one_to_more += [("fluorite", (x, m)) for m, x in itertools.product(PLUS1, MINUS2)]
    one_to_more += [("ReO3", p) for p in itertools.product(PLUS3, ("F", "Cl", "Br"))]
    salts: list[Candidate] = [
        *(("perovskite", p) for p in itertools.product(("Mg", "Ca", "Sr", "Ba", "Eu", "Pb"), PLUS4, ("O", "S", "Se"))),
        *(("perovskite", p) for p in itertools.product(PLUS1, ("V", "Nb", "Ta", "W", "Sb"), ("O",))),
        *(("perovskite", p) for p in itertools.product(RARE_EARTHS[1:], (*crystals.PLUS3[:5], *METALS[:9]), ("O",))),
        *(("perovskite", p) for p in itertools.product(PLUS1, PLUS2[1:], ("F", "Cl", "Br", "I", "H"))),
        # Antiperovskites: Ca₃SnO, Mn₃GaN, …
        *(
            ("perovskite", (a, x, m))
            for m, a, x in itertools.product(("Ca", "Sr", "Ba"), ("Sn", "Pb", "Ge", "Si"), ("O",))
        ),
        *(
            ("perovskite", (a, x, m))
            for m, a, x in itertools.product(("Mn", "Fe", "Ni", "Cr", "Ti"), ("Al", "Ga", "In", "Zn"), ("N", "C"))
        ),
        *(("NaFeO2", p) for p in itertools.product(PLUS1, PLUS3, ("O", "S", "Se"))),
    ]
    alloys: list[Candidate] = [
        *(("fcc", (m,)) for m in METALS),
        *(("bcc", (m,)) for m in METALS),
        *(("diamond", (e,)) for e in DIAMOND),
        *(("L1_0", p) for p in itertools.combinations(METALS, 2)),
        *(("AlB2", (m, "B")) for m in (*METALS, "Mg", "U")),
        *crystals.candidates()[3],
    ]
    heuslers: list[Candidate] = [
        *crystals.candidates()[4],
        *(("half-Heusler", p) for p in itertools.product(RARE_EARTHS, ("Ni", "Pd", "Pt", "Au"), ("Sb", "Bi"))),
        *(
            ("Heusler", p)
            for p in itertools.product(("Rh", "Au", "Ag", "Li"), ("Mn", "Ti", "Mg", "Zn"), ("Al", "Ga", "Sn", "Sb"))
        ),
    ]
    return [one_to_one, one_to_more, salts, alloys, heuslers]


@cache
def held_out() -> frozenset[str]:
    """Reduced formulas reserved for fine-tuning."""
    return frozenset(Store(embedded()["crystals"]).column("group").tolist())


@cache
def candidates() -> tuple[list[Candidate], ...]:
    """The families without reserved formulas and duplicates."""
    seen: set[tuple[str, str]] = set()
    families: list[list[Candidate]] = []
    for family in _families():
        families.append([])
        for kind, species in family:
            formula = crystals.formula_of(crystals.placed(kind, species))
            if len(set(species)) < len(species) or formula in held_out() or (formula, kind) in seen:
                continue
            seen.add((formula, kind))
            families[-1].append((kind, species))
    return tuple(families)


def repeated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A random supercell of at most three cells along each vector, with a number of atoms within `SIZES`."""
    fitting = [n for n in itertools.product((1, 2, 3), repeat=3) if SIZES[0] <= len(atoms) * np.prod(n) <= SIZES[1]]
    return atoms.repeat(fitting[int(rng.integers(len(fitting)))])


def strained(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A strained copy; atoms keep their fractional coordinates."""
    shear = rng.uniform(-SHEAR, SHEAR, size=(3, 3))
    shear = (shear + shear.T) / 2
    change = np.eye(3) + shear - np.trace(shear) / 3 * np.eye(3)
    change *= (rng.uniform(1 - VOLUME, 1 + VOLUME) / np.linalg.det(change)) ** (1 / 3)
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ change, scale_atoms=True)
    return copy


def too_near(atoms: Atoms) -> bool:
    """Whether two atoms, or an atom and an image, are closer than allowed by `NEAREST`."""
    cutoffs = NEAREST * covalent_radii[atoms.numbers]
    return len(neighbor_list("i", atoms, cutoffs)) > 0


def displaced(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A copy with every atom displaced; drawn again, a few times, if atoms come too close.

    Raises:
        Rejected: atoms are too close in every attempt.
    """
    for _ in range(5):
        copy = atoms.copy()
        copy.positions += rng.normal(scale=rng.uniform(*DISPLACEMENTS), size=(len(atoms), 3))
        if not too_near(copy):
            return copy
    raise Rejected("atoms too near")


def material(item: int, seed: int) -> Candidate:
    """Structure type and species of an item."""
    family, place = in_turn(item, KINDS)
    pool = candidates()[family]
    return pool[drawn(f"{CARD.name}/{family}", seed, len(pool), place)]


def make(item: int, seed: int) -> list[LabelledStructure]:
    """Four frames of one material."""
    kind, species = material(item, seed)
    rng = random_numbers(CARD.name, seed, item)
    atoms = crystals.filled(kind, species)
    atoms.calc = chgnet()
    # A low tolerance suffices, since the volumes of the frames differ by far more.
    atoms = crystals.breathed(atoms, tolerance=0.02)
    if not 4 < atoms.get_volume() / len(atoms) < 60:
        raise Rejected("volume outside 4 to 60 Å³ per atom")
    formula = crystals.formula_of(atoms)
    frames = [displaced(strained(repeated(atoms, rng), rng), rng) for _ in range(FRAMES)]
    return [labelled(frame, CHGNET, id=f"{formula}-{kind}/{i}", group=formula) for i, frame in enumerate(frames)]


GENERATOR = Generator(card=CARD, items=1000, make=make, needs=("chgnet",), max_force=15.0, chunk=10, seconds=120.0)
