"""Reaction paths: a molecule, a graph edit, and the GFN2-xTB path between the two.

Two bonds of a small molecule are broken and two others formed; the product's geometry is obtained from the reactant's
by UFF, both ends are relaxed with GFN2-xTB and must keep their bonds, and a short nudged-elastic-band calculation
connects them. Its iterates are samples of bond breaking, not converged barriers (and closed-shell GFN2 overestimates
homolysis).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from ase.data import covalent_radii
from ase.mep import NEB
from ase.optimize import FIRE

from eutectic.atoms import LabelledStructure
from eutectic.data.card import Card
from eutectic.generate import qm9
from eutectic.generate.engine import Generator, Rejected, drawn, random_numbers
from eutectic.generate.labels import GFN2, GFN2_CITATION, gfn2, labelled, relax

CARD = Card(
    name="reactions",
    title="Reaction paths of small organic molecules (H, C, N, O, F)",
    domain="reactions",
    properties=("energy", "forces"),
    level_of_theory=GFN2,
    licence="CC0-1.0",
    citation=GFN2_CITATION,
    source="made by `eutectic data generate reactions` from SMILES of QM9 (CC0)",
    notes=(
        "Eight frames per reaction: both relaxed ends, and images of the first and last iterates of a short NEB.",
        "Paths are samples of bond breaking, not converged barriers; closed-shell GFN2 overestimates homolysis.",
        "Neither end is reserved for fine-tuning (eutectic.generate.qm9).",
        "group is reactant>>product in SMILES.",
    ),
)

IMAGES = 6
HIGHEST = 12.0
"""Frames more than this above the reactant (eV) are left out."""

PRODUCTS_TRIED = 4


def _bonds_of(molecule: Any) -> set[tuple[int, int]]:
    return {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in molecule.GetBonds()}


def _bonds_in(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs closer than 1.3 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.3 * (radii[:, None] + radii[None, :])
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))}


def _edited(molecule: Any, broken: tuple[tuple[int, int], ...], formed: tuple[tuple[int, int], ...]) -> Any:
    """The molecule after a graph edit; raises ValueError if valences do not allow it."""
    from rdkit import Chem

    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    product = Chem.RWMol(molecule)
    for change, pairs in ((-1, broken), (1, formed)):
        for i, j in pairs:
            bond = product.GetBondBetweenAtoms(i, j)
            order = (int(bond.GetBondTypeAsDouble()) if bond else 0) + change
            if bond:
                product.RemoveBond(i, j)
            if order:
                if order not in kinds:
                    raise ValueError("no such bond")
                product.AddBond(i, j, kinds[order])
    Chem.SanitizeMol(product)  # RDKit raises a ValueError as well
    return product.GetMol()


def _products(molecule: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """(SMILES, molecule) of graph edits in random order, without duplicates and reserved molecules.

    Args:
        molecule: molecule with explicit hydrogens and Kekulé bonds.
        rng: random number generator for the order.
    """
    from rdkit import Chem

    distance = Chem.GetDistanceMatrix(molecule)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    pairs = [(a, b) for a, b in itertools.combinations(sorted(_bonds_of(molecule)), 2) if not set(a) & set(b)]
    seen = {Chem.MolToSmiles(Chem.RemoveHs(molecule))}
    for which in rng.permutation(len(pairs)):
        (i, j), (k, m) = pairs[which]
        for formed in (((i, k), (j, m)), ((i, m), (j, k))):
            # Distant atoms do not react; H2 is a product of nearly every pair, and therefore rarely kept.
            if max(distance[a, b] for a, b in formed) > 4:
                continue
            if any(numbers[a] == numbers[b] == 1 for a, b in formed) and rng.random() < 0.9:
                continue
            try:
                product = _edited(molecule, pairs[which], formed)
                plain = Chem.RemoveHs(product)
            except ValueError:
                continue
            smiles = Chem.MolToSmiles(plain)
            parts = Chem.GetMolFrags(plain, asMols=True)
            if smiles in seen or len(parts) > 2:
                continue
            seen.add(smiles)
            if all(qm9.may_be_pretrained_on(Chem.MolToInchi(part)) for part in parts):
                yield smiles, product


def _relaxed(atoms: Atoms, molecule: Any, steps: int) -> Atoms | None:
    """The relaxed structure, if it has the molecule's bonds."""
    relaxed = atoms.copy()
    relaxed.calc = gfn2()
    relax(relaxed, fmax=0.05, steps=steps, maxstep=0.1)
    return relaxed if _bonds_in(relaxed) == _bonds_of(molecule) else None


def _folded(molecule: Any, start: np.ndarray) -> np.ndarray:
    """The product's geometry by UFF, from the reactant's positions (Å)."""
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    conformer = Chem.Conformer(len(start))
    for i, position in enumerate(start.tolist()):
        conformer.SetAtomPosition(i, position)
    folded = Chem.Mol(molecule)
    folded.RemoveAllConformers()
    folded.AddConformer(conformer)
    rdForceFieldHelpers.UFFOptimizeMolecule(folded, maxIters=500)
    return np.asarray(folded.GetConformer().GetPositions())


def _band(reactant: Atoms, product: Atoms) -> list[tuple[str, Atoms]]:
    """(name, atoms) of images of a short NEB: three of the first iteration, three of the last."""
    images = [reactant.copy() for _ in range(IMAGES + 1)] + [product.copy()]
    for image in images:
        image.calc = gfn2()
    band = NEB(images, k=0.5, method="improvedtangent", allow_shared_calculator=False)
    band.interpolate("idpp", mic=False)
    first = [image.copy() for image in images]
    FIRE(band, logfile=None, maxstep=0.08).run(fmax=0.2, steps=18)
    return [(f"first-{i}", first[i]) for i in (1, 3, 5)] + [(f"last-{i}", images[i]) for i in (2, 4, 6)]


def make(item: int, seed: int) -> list[LabelledStructure]:
    """The frames of one reaction of one molecule."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    rdBase.DisableLog("rdApp.*")
    pool = qm9.pretraining_molecules((3, 4, 5, 6, 7))
    index, smiles = pool[drawn(CARD.name, seed, len(pool), item)]
    rng = random_numbers(CARD.name, seed, item)
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=int(rng.integers(2**31))) != 0:
        raise Rejected("no conformer")
    rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    reactant = _relaxed(Atoms(symbols, molecule.GetConformer().GetPositions()), molecule, 60)
    if reactant is None:
        raise Rejected("the reactant rearranged")
    for product_smiles, edited in itertools.islice(_products(molecule, rng), PRODUCTS_TRIED):
        product = _relaxed(Atoms(symbols, _folded(edited, reactant.positions)), edited, 60)
        if product is None:
            continue
        minimize_rotation_and_translation(reactant, product)
        frames = [("reactant", reactant), *_band(reactant, product), ("product", product)]
        group = f"{smiles}>>{product_smiles}"
        rows = [
            labelled(frame, GFN2, id=f"qm9-{index}>>{product_smiles}/{name}", group=group) for name, frame in frames
        ]
        lowest = float(rows[0].labels["energy"])
        return [row for row in rows if float(row.labels["energy"]) - lowest < HIGHEST]
    raise Rejected("no product kept its bonds")


GENERATOR = Generator(card=CARD, items=560, make=make, needs=("rdkit", "tblite", "qm9pack"), chunk=5, seconds=120.0)
