"""QM9 from the package qm9pack, divided between pre-training and fine-tuning.

A fifth of QM9 is reserved for fine-tuning, by the molecule's index in the data set. Molecules are identified by their
InChI without stereochemistry, so that no stereoisomer or other conformer of a reserved molecule is used for
pre-training.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eutectic.atoms import EutecticError
from eutectic.generate.engine import EXTRA

RESERVED_SHARE = 5
"""One of this many molecules is reserved."""

HELD_OUT = {
    "ethanol": "CCO",
    "malonaldehyde (keto)": "O=CCC=O",
    "malonaldehyde (enol)": "O=CC=CO",
    "benzene": "c1ccccc1",
    "toluene": "Cc1ccccc1",
    "naphthalene": "c1ccc2ccccc2c1",
    "salicylic acid": "O=C(O)c1ccccc1O",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "azobenzene": "c1ccc(N=Nc2ccccc2)cc1",
    "uracil": "O=c1cc[nH]c(=O)[nH]1",
    "alanine dipeptide": "CC(=O)NC(C)C(=O)NC",
}
"""Molecules of trajectory benchmarks (MD17, rMD17, …): also excluded from pre-training."""


def reserved(indices: np.ndarray) -> np.ndarray:
    """Whether molecules of QM9 are reserved for fine-tuning.

    Args:
        indices: QM9's indices, from 1 (`dsgdb9nsd_000001`); decided by a hash, since neighbours in QM9 are similar.
    """
    return np.array([zlib.crc32(b"qm9-%d" % index) % RESERVED_SHARE == 0 for index in indices.tolist()])


def reserved_for_finetuning(index: int) -> bool:
    """Whether one molecule of QM9 is reserved for fine-tuning; see `reserved`."""
    return bool(reserved(np.array([index]))[0])


STEREOCHEMISTRY = "/[btms][^/]*"
"""Regular expression of the stereochemistry layers of an InChI."""


def without_stereochemistry(inchi: str) -> str:
    """Formula, connectivity and hydrogen layers of an InChI."""
    return re.sub(STEREOCHEMISTRY, "", inchi)


@cache
def table(*columns: str) -> pa.Table:
    """Columns of qm9pack's files, sorted by `Index`.

    The files are read directly, since the package cannot be imported without pkg_resources.

    Raises:
        EutecticError: qm9pack is not installed.
    """
    from pyarrow import csv

    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise EutecticError("QM9", "qm9pack is not installed", "its files", EXTRA)
    folder = Path(spec.submodule_search_locations[0]) / "data"
    options = csv.ConvertOptions(include_columns=["Index", *columns])
    # Lists are quoted; a block must hold the longest row.
    parts = [
        csv.read_csv(file, convert_options=options, read_options=csv.ReadOptions(block_size=1 << 24))
        for file in sorted(folder.glob("qm9_part*.csv"))
    ]
    return pa.concat_tables(parts).sort_by("Index")


@cache
def _skeletons() -> tuple[np.ndarray, list[str]]:
    """Indices, and the molecules' InChI without stereochemistry."""
    rows = table("InChi")
    skeletons = pc.replace_substring_regex(rows["InChi"], pattern=STEREOCHEMISTRY, replacement="")
    return rows["Index"].to_numpy(), skeletons.to_pylist()


@cache
def forbidden_molecules() -> frozenset[str]:
    """Molecules excluded from pre-training, as InChI without stereochemistry."""
    from rdkit import Chem, rdBase

    rdBase.DisableLog("rdApp.*")
    held_out = {without_stereochemistry(Chem.MolToInchi(Chem.MolFromSmiles(s))) for s in HELD_OUT.values()}
    indices, skeletons = _skeletons()
    finetuning = {key for key, is_reserved in zip(skeletons, reserved(indices), strict=True) if is_reserved}
    return frozenset(held_out | finetuning)


@cache
def pretraining_molecules(heavy_atoms: tuple[int, ...]) -> Sequence[tuple[int, str]]:
    """Molecules for pre-training, without duplicates.

    Args:
        heavy_atoms: allowed numbers of heavy atoms.

    Returns:
        (QM9 index, SMILES), in QM9's order.
    """
    rows = table("SMILES", "Elements")
    # "['C','H',…]": heavy atoms are the entries other than 'H'.
    heavy = pc.subtract(
        pc.count_substring(rows["Elements"], ","), pc.count_substring(rows["Elements"], "'H'")
    ).to_numpy()
    right_size = np.isin(heavy + 1, heavy_atoms)
    indices, skeletons = _skeletons()
    forbidden, seen, molecules = forbidden_molecules(), set[str](), []
    for index, skeleton, smiles in zip(
        indices[right_size],
        (s for s, right in zip(skeletons, right_size, strict=True) if right),
        rows["SMILES"].filter(pa.array(right_size)).to_pylist(),
        strict=True,
    ):
        if skeleton not in forbidden and skeleton not in seen:
            seen.add(skeleton)
            molecules.append((int(index), smiles))
    return molecules


def may_be_pretrained_on(inchi: str) -> bool:
    """Whether a molecule from another source (the product of a reaction) is allowed in pre-training."""
    return without_stereochemistry(inchi) not in forbidden_molecules()
