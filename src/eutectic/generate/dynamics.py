"""Molecular dynamics of single molecules at 500 K with GFN2-xTB, similar to MD17."""

from __future__ import annotations

from collections.abc import Callable

from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card
from eutectic.generate.engine import Generator, random_numbers
from eutectic.generate.labels import GFN2, GFN2_CITATION, gfn2, labelled, relax
from eutectic.generate.molecules import conformer

TEMPERATURE = 500.0
"""K"""

TIME_STEP = 0.5
"""fs"""

FRICTION = 0.02
"""1/fs: a velocity correlation time of 50 fs."""

EQUILIBRATION, STRIDE = 300, 12
"""Steps before the first frame, and between frames (150 fs and 6 fs)."""

TRAJECTORIES, FRAMES = 20, 36


def _trajectory(card: Card, smiles: str, item: int, seed: int) -> list[LabelledStructure]:
    """Frames of one trajectory, with its own initial conformer and velocities."""
    rng = random_numbers(card.name, seed, item)
    atoms, _ = conformer(smiles, int(rng.integers(2**31)))
    atoms.calc = gfn2()
    relax(atoms, fmax=0.1, steps=60)
    # Half of the kinetic energy quickly becomes potential energy, so start at twice the temperature.
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * TEMPERATURE, rng=rng)
    dynamics = Langevin(atoms, TIME_STEP * units.fs, temperature_K=TEMPERATURE, friction=FRICTION / units.fs, rng=rng)
    dynamics.run(EQUILIBRATION)
    rows = []
    for frame in range(FRAMES):
        dynamics.run(STRIDE)
        rows.append(labelled(atoms, GFN2, id=f"{item:02d}/{frame:02d}", group=f"trajectory {item:02d}"))
    return rows


def _card(name: str, title: str) -> Card:
    return Card(
        name=name,
        title=title,
        domain="molecules",
        properties=("energy", "forces"),
        level_of_theory=GFN2,
        licence="CC0-1.0",
        citation=GFN2_CITATION,
        source=f"made by `eutectic data generate {name}`",
        notes=(
            f"{TRAJECTORIES} independent Langevin trajectories at {TEMPERATURE:g} K, {FRAMES} frames each, "
            f"{STRIDE * TIME_STEP:g} fs apart.",
            "Neighbouring frames are alike: group is the trajectory, and a split by frame flatters a model.",
            "The molecule is never pre-trained on.",
        ),
    )


ASPIRIN = _card("md_aspirin", "Molecular dynamics of aspirin at 500 K")
ALANINE_DIPEPTIDE = _card("md_alanine_dipeptide", "Molecular dynamics of alanine dipeptide at 500 K")


def make_aspirin(item: int, seed: int) -> list[LabelledStructure]:
    """One trajectory of aspirin (21 atoms)."""
    return _trajectory(ASPIRIN, "CC(=O)Oc1ccccc1C(=O)O", item, seed)


def make_alanine_dipeptide(item: int, seed: int) -> list[LabelledStructure]:
    """One trajectory of N-acetyl-L-alanine-N′-methylamide (22 atoms)."""
    return _trajectory(ALANINE_DIPEPTIDE, "CC(=O)N[C@@H](C)C(=O)NC", item, seed)


def _generator(card: Card, make: Callable[[int, int], list[LabelledStructure]]) -> Generator:
    return Generator(card=card, items=TRAJECTORIES, make=make, needs=("rdkit", "tblite"), chunk=1, seconds=900.0)


GENERATORS = (_generator(ASPIRIN, make_aspirin), _generator(ALANINE_DIPEPTIDE, make_alanine_dipeptide))
