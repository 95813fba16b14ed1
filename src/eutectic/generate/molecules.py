"""Off-equilibrium molecules: thermal displacements along normal modes, labelled by GFN2-xTB.

A molecule of QM9 (its SMILES; none that is reserved for fine-tuning) is embedded twice by ETKDG, relaxed and
given normal modes by MMFF94 (microseconds), and displaced along them as a classical harmonic oscillator at a
random temperature. Only the label costs a quantum-chemical calculation.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms, units

from eutectic.atoms import LabelledStructure
from eutectic.atoms.units import KCAL_PER_MOL
from eutectic.data.card import Card
from eutectic.generate import qm9
from eutectic.generate.engine import Generator, Rejected, drawn, in_turn, random_numbers
from eutectic.generate.labels import GFN2, GFN2_CITATION, labelled

CARD = Card(
    name="molecules",
    title="Off-equilibrium organic molecules (H, C, N, O, F)",
    domain="molecules",
    properties=("energy", "forces"),
    level_of_theory=GFN2,
    licence="CC0-1.0",
    citation=GFN2_CITATION,
    source="made by `eutectic data generate molecules` from SMILES of QM9 (CC0)",
    notes=(
        "Two frames per molecule, from two conformers, at random temperatures of 300 to 1500 K along MMFF94 modes.",
        "No molecule reserved for fine-tuning, nor its stereoisomers: see eutectic.generate.qm9.",
        "group is the SMILES in QM9; id is QM9's index and the frame.",
    ),
)

FRAMES = 2
TEMPERATURES = (300.0, 1500.0)
SOFTEST = 0.05
"""Smallest curvature used, eV/(Å² u), about 117 cm⁻¹: softer torsions are not linear in Cartesian displacements."""

SIZES: tuple[tuple[int, ...], ...] = ((3, 4, 5, 6, 7), (8,), (9,))
"""Numbers of heavy atoms of each kind of item; most of QM9 has nine."""

KINDS = (0, 1, 0, 2)
"""Kinds of items 0, 1, 2, 3, 4, …, in turn."""


def conformer(smiles: str, seed: int) -> tuple[Atoms, np.ndarray]:
    """One relaxed conformer and its Hessian.

    Args:
        smiles: the molecule.
        seed: random seed of the embedding.

    Returns:
        The atoms at a minimum of MMFF94; the Hessian (3 n, 3 n) in eV/Å².
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom
    from rdkit.Chem import rdForceFieldHelpers as mmff

    rdBase.DisableLog("rdApp.*")  # unspecified stereocentres are intended
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise Rejected("no conformer")
    parameters = mmff.MMFFGetMoleculeProperties(molecule)
    if parameters is None:
        raise Rejected("no MMFF94 parameters")
    field = mmff.MMFFGetMoleculeForceField(molecule, parameters)
    if field.Minimize(maxIts=1000) != 0:
        raise Rejected("MMFF94 did not relax")
    start = np.asarray(field.Positions()).ravel()

    def gradient(x: np.ndarray) -> np.ndarray:
        # RDKit's gradient uses the distances of the last energy call: compute the energy first.
        field.CalcEnergy(x.tolist())
        return np.asarray(field.CalcGrad(x.tolist())) * KCAL_PER_MOL

    step = 1e-3
    shifts = step * np.eye(len(start))
    hessian = np.array([(gradient(start + s) - gradient(start - s)) / (2 * step) for s in shifts])
    atoms = Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], start.reshape(-1, 3))
    return atoms, (hessian + hessian.T) / 2


def displaced(atoms: Atoms, hessian: np.ndarray, temperature: float, rng: np.random.Generator) -> Atoms:
    """A thermal sample of the harmonic molecule.

    Args:
        atoms: the molecule at its minimum.
        hessian: (3 n, 3 n), eV/Å².
        temperature: K.
        rng: random number generator.
    """
    root_mass = np.sqrt(np.repeat(atoms.get_masses(), 3))
    curvature, modes = np.linalg.eigh(hessian / np.outer(root_mass, root_mass))
    # Translations and rotations have zero curvature (up to the error of the numerical Hessian).
    real = curvature > 1e-3
    amplitude = np.sqrt(units.kB * temperature / np.maximum(curvature[real], SOFTEST))
    shift = (modes[:, real] @ (amplitude * rng.normal(size=amplitude.shape))) / root_mass
    moved = atoms.copy()
    moved.positions += shift.reshape(-1, 3)
    return moved


def _molecule(item: int, seed: int) -> tuple[int, str]:
    """QM9's index and SMILES of an item."""
    kind, place = in_turn(item, KINDS)
    pool = qm9.pretraining_molecules(SIZES[kind])
    return pool[drawn(f"{CARD.name}/{kind}", seed, len(pool), place)]


def make(item: int, seed: int) -> list[LabelledStructure]:
    """Two frames of one molecule."""
    index, smiles = _molecule(item, seed)
    rng = random_numbers(CARD.name, seed, item)
    rows = []
    for frame in range(FRAMES):
        atoms, hessian = conformer(smiles, int(rng.integers(2**31)))
        moved = displaced(atoms, hessian, rng.uniform(*TEMPERATURES), rng)
        rows.append(labelled(moved, GFN2, id=f"qm9-{index}/{frame}", group=smiles))
    return rows


GENERATOR = Generator(card=CARD, items=5000, make=make, needs=("rdkit", "tblite", "qm9pack"), chunk=50, seconds=60.0)
