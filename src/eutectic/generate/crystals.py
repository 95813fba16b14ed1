"""Inorganic crystals: simple structure types filled with plausible elements, relaxed by CHGNet.

Ionic types are filled so that the oxidation states balance; metallic ones with transition metals and the
usual partners. The label is the formation energy from the elements, computed with CHGNet.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import dcdft
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from scipy.optimize import minimize_scalar

from eutectic.atoms import LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.generate.engine import Generator, Rejected, drawn, in_turn
from eutectic.generate.labels import CHGNET, CHGNET_CITATION, SURROGATE_NOTE, chgnet, relax, rounded
from eutectic.generate.metals import METALS

CARD = Card(
    name="crystals",
    title="Inorganic crystals and their formation energies",
    domain="materials",
    properties=("formation_energy", "energy"),
    level_of_theory=CHGNET,
    licence="CC0-1.0",
    citation=CHGNET_CITATION,
    source="made by `eutectic data generate crystals`",
    notes=(
        SURROGATE_NOTE,
        "Formation energies are against CHGNet's own energies of the elements: H, N, O, F and Cl as "
        "molecules in a box, the others as the ground-state crystals of the Δ-project "
        "(ase.collections.dcdft; fcc for La), relaxed.",
        "Positions and cell are relaxed within the symmetry of the structure type, to 0.05 eV/Å; many of "
        "these crystals do not exist.",
        "group is the reduced formula, so that polymorphs stay together; the id adds the structure type.",
    ),
)

PLUS1 = ("Li", "Na", "K", "Rb", "Cs", "Cu", "Ag")
PLUS2 = ("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Cd", "Mn", "Fe", "Co", "Ni", "Pb")
PLUS3 = ("Al", "Ga", "In", "Sc", "Y", "La", "V", "Cr")
PLUS4 = ("Ti", "Zr", "Hf", "Sn", "Ge", "Mn", "V", "Ru")
MINUS1 = ("F", "Cl", "Br", "I")
MINUS2 = ("O", "S", "Se", "Te")
MINUS3 = ("N", "P", "As", "Sb")
MOLECULES = ("H", "N", "O", "F", "Cl")

FACE_CENTRED = ((0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
CUBIC = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
HEXAGONAL = (1.0, 0.0, 0.0), (-0.5, 3**0.5 / 2, 0.0)
Q, H, T = 0.25, 0.5, 1 / 3
U = 0.305
"""Internal coordinate of oxygen in rutile, as in TiO2."""

# Lattice vectors in units of a (c/a ratios are initial values), and the sites of each species in turn.
Type = tuple[tuple[tuple[float, float, float], ...], tuple[tuple[tuple[float, float, float], ...], ...]]
TYPES: dict[str, Type] = {
    "rocksalt": (FACE_CENTRED, (((0, 0, 0),), ((H, H, H),))),
    "zincblende": (FACE_CENTRED, (((0, 0, 0),), ((Q, Q, Q),))),
    "CsCl": (CUBIC, (((0, 0, 0),), ((H, H, H),))),
    "wurtzite": (
        (*HEXAGONAL, (0.0, 0.0, 1.633)),
        (((T, 2 * T, 0), (2 * T, T, H)), ((T, 2 * T, 0.375), (2 * T, T, 0.875))),
    ),
    "NiAs": (
        (*HEXAGONAL, (0.0, 0.0, 1.5)),
        (((0, 0, 0), (0, 0, H)), ((T, 2 * T, Q), (2 * T, T, 0.75))),
    ),
    "fluorite": (FACE_CENTRED, (((0, 0, 0),), ((Q, Q, Q), (0.75, 0.75, 0.75)))),
    "rutile": (
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.65)),
        (((0, 0, 0), (H, H, H)), ((U, U, 0), (1 - U, 1 - U, 0), (H + U, H - U, H), (H - U, H + U, H))),
    ),
    "CdI2": ((*HEXAGONAL, (0.0, 0.0, 1.6)), (((0, 0, 0),), ((T, 2 * T, Q), (2 * T, T, 0.75)))),
    "perovskite": (CUBIC, (((H, H, H),), ((0, 0, 0),), ((H, 0, 0), (0, H, 0), (0, 0, H)))),
    "L1_2": (CUBIC, (((0, H, H), (H, 0, H), (H, H, 0)), ((0, 0, 0),))),
    "half-Heusler": (FACE_CENTRED, (((H, H, H),), ((Q, Q, Q),), ((0, 0, 0),))),
    "Heusler": (FACE_CENTRED, (((Q, Q, Q), (0.75, 0.75, 0.75)), ((0, 0, 0),), ((H, H, H),))),
    # Not among `candidates`; used by `bulk`.
    "fcc": (FACE_CENTRED, (((0, 0, 0),),)),
    "bcc": (((-H, H, H), (H, -H, H), (H, H, -H)), (((0, 0, 0),),)),
    "diamond": (FACE_CENTRED, (((0, 0, 0), (Q, Q, Q)),)),
    "L1_0": (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 2**0.5)), (((0, 0, 0),), ((H, H, H),))),
    "AlB2": ((*HEXAGONAL, (0.0, 0.0, 1.05)), (((0, 0, 0),), ((T, 2 * T, H), (2 * T, T, H)))),
    "ReO3": (CUBIC, (((0, 0, 0),), ((H, 0, 0), (0, H, 0), (0, 0, H)))),
    # α-NaFeO2: rocksalt with alternating (111) planes of the two metals.
    "NaFeO2": (
        ((1.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 1.0)),
        (((0, 0, 0),), ((H, H, H),), ((Q, Q, Q), (0.75, 0.75, 0.75))),
    ),
}


@cache
def candidates() -> tuple[list[tuple[str, tuple[str, ...]]], ...]:
    """(structure type, species of its sites), in five families."""
    pairs = [
        *itertools.product(PLUS1, MINUS1),
        *itertools.product(PLUS2, MINUS2),
        *itertools.product(PLUS3, MINUS3),
    ]
    one_to_one = [(t, p) for t in ("rocksalt", "zincblende", "CsCl", "wurtzite", "NiAs") for p in pairs]
    halves = [*itertools.product(PLUS2, MINUS1), *itertools.product(PLUS4, MINUS2)]
    one_to_two = [(t, p) for t in ("fluorite", "rutile", "CdI2") for p in halves]
    one_to_two += [("fluorite", (x, m)) for m, x in itertools.product(PLUS1, MINUS2)]
    perovskites = [
        *itertools.product(("Mg", "Ca", "Sr", "Ba", "Cd", "Pb"), PLUS4, ("O", "S")),
        *itertools.product(("Li", "Na", "K", "Rb", "Ag"), ("V", "Nb", "Ta"), ("O",)),
        *itertools.product(("La", "Y"), ("Al", "Ga", "Sc", "V", "Cr", "Mn", "Fe", "Co", "Ni"), ("O",)),
        *itertools.product(("Na", "K", "Rb", "Cs"), PLUS2[1:], ("F", "Cl", "Br", "I")),
    ]
    alloys = [
        *(("L1_2", p) for p in itertools.permutations((*METALS, "Mg", "In", "Sn"), 2)),
        *(("CsCl", p) for p in itertools.combinations((*METALS, "Mg", "Be", "Ga"), 2)),
    ]
    half_heuslers = [
        *itertools.product(("Li", "Na", "Cu", "Ag"), ("Mg", "Zn", "Cd"), MINUS3),
        *itertools.product(("Ti", "Zr", "Hf"), ("Ni", "Pd", "Pt"), ("Sn", "Ge", "Si")),
        *itertools.product(("V", "Nb", "Ta"), ("Co", "Rh", "Ir"), ("Sn", "Ge")),
        *itertools.product(("Sc", "Y", "La"), ("Ni", "Pd", "Pt"), ("Sb", "Bi")),
    ]
    heuslers = itertools.product(
        ("Fe", "Co", "Ni", "Cu", "Pd", "Ru"),
        ("Ti", "V", "Cr", "Mn", "Zr"),
        ("Al", "Ga", "Si", "Ge", "Sn", "In"),
    )
    families = (
        one_to_one,
        one_to_two,
        [("perovskite", p) for p in perovskites],
        alloys,
        [*(("half-Heusler", p) for p in half_heuslers), *(("Heusler", p) for p in heuslers)],
    )
    return tuple([(kind, tuple(species)) for kind, species in family] for family in families)


KINDS = (0, 1, 2, 3, 0, 1, 2, 4)
"""Families of items 0, 1, 2, 3, 4, …, in turn."""


def formula_of(atoms: Atoms) -> str:
    """The reduced formula, metals first: "TiO2"."""
    return str(atoms.symbols.formula.reduce()[0].format("metal"))


def placed(kind: str, species: tuple[str, ...]) -> Atoms:
    """A structure type filled with elements, in units of its lattice constant, to be scaled."""
    vectors, sites = TYPES[kind]
    symbols = [s for s, places in zip(species, sites, strict=True) for _ in places]
    places = [p for group in sites for p in group]
    return Atoms(symbols, scaled_positions=places, cell=vectors, pbc=True)


def filled(kind: str, species: tuple[str, ...]) -> Atoms:
    """A structure type filled with elements, its closest pair touching (sum of covalent radii)."""
    atoms = placed(kind, species)
    # A supercell contains every neighbour of the first cell once.
    several = atoms.repeat(3)
    radii = covalent_radii[several.numbers]
    apart = several.get_all_distances() + 1e3 * np.eye(len(several))
    closest = (apart / (radii[:, None] + radii[None, :])).min()
    atoms.set_cell(atoms.cell.array / closest, scale_atoms=True)
    return atoms


@cache
def element_energy(symbol: str) -> float:
    """CHGNet's energy of an element in its reference state, eV/atom."""
    if symbol in MOLECULES:
        atoms = molecule(f"{symbol}2")
        atoms.center(5.0)
        atoms.pbc = True
        relaxing = atoms
    else:
        # The Δ-project has no lanthanum; β-La (fcc) is a few meV/atom above its ground state.
        atoms = bulk("La", "fcc", a=5.31) if symbol == "La" else dcdft[symbol]
        atoms.set_initial_magnetic_moments(None)
        relaxing = FrechetCellFilter(atoms)
    atoms.calc = chgnet()
    relax(relaxing, fmax=0.05, steps=50)
    return float(atoms.get_potential_energy()) / len(atoms)


def breathed(atoms: Atoms, tolerance: float = 0.005) -> Atoms:
    """The same shape at the volume of lowest energy.

    Args:
        atoms: atoms with a calculator; changed in place.
        tolerance: tolerance of the cell length, relative to the length at which the closest pair touches.
    """
    shape = atoms.cell.array.copy()

    def energy(scale: float) -> float:
        atoms.set_cell(shape * scale, scale_atoms=True)
        return float(atoms.get_potential_energy())

    smallest, largest = 0.85, 1.35
    best = float(minimize_scalar(energy, bounds=(smallest, largest), method="bounded", options={"xatol": tolerance}).x)
    if min(best - smallest, largest - best) < 0.01:
        raise Rejected("no volume at which it holds together")
    energy(best)
    return atoms


def make(item: int, seed: int) -> list[LabelledStructure]:
    """One crystal."""
    family, place = in_turn(item, KINDS)
    pool = candidates()[family]
    kind, species = pool[drawn(f"{CARD.name}/{family}", seed, len(pool), place)]
    atoms = filled(kind, species)
    atoms.calc = chgnet()
    if not relax(FrechetCellFilter(breathed(atoms)), fmax=0.05, steps=30):
        raise Rejected("not relaxed after 30 steps")
    if not 4 < atoms.get_volume() / len(atoms) < 60:
        raise Rejected("volume outside 4 to 60 Å³ per atom")
    atoms = rounded(atoms)
    atoms.calc = chgnet()
    energy = float(atoms.get_potential_energy())
    formation = (energy - sum(element_energy(s) for s in atoms.get_chemical_symbols())) / len(atoms)
    if abs(formation) > 6:
        raise Rejected("formation energy beyond 6 eV/atom")
    formula = formula_of(atoms)
    return [
        LabelledStructure(
            structure=Structure.from_ase(atoms),
            labels={"formation_energy": np.asarray(formation), "energy": np.asarray(energy)},
            id=f"{formula}-{kind}",
            group=formula,
        )
    ]


GENERATOR = Generator(card=CARD, items=640, make=make, needs=("chgnet",), chunk=10, seconds=120.0)
