"""QM9 as qm9pack carries it, and who may use which of its molecules.

The one place that keeps pre-training and fine-tuning apart: a fifth of QM9 is reserved for fine-tuning, by
the molecule's index in the data set. A molecule is its InChI without the layers of stereochemistry, so that
no mirror image or other conformer of a reserved molecule is pre-trained on.
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
"""Molecules of trajectory benchmarks (MD17, rMD17 and the like): never pre-trained on either."""


def reserved(indices: np.ndarray) -> np.ndarray:
    """Which molecules of QM9 are kept from pre-training.

    Args:
        indices: QM9's own, from 1 (`dsgdb9nsd_000001`); a hash decides, since neighbours in QM9 are alike.
    """
    return np.array([zlib.crc32(b"qm9-%d" % index) % RESERVED_SHARE == 0 for index in indices.tolist()])


def reserved_for_finetuning(index: int) -> bool:
    """Whether one molecule of QM9 is kept from pre-training; `reserved` of one index."""
    return bool(reserved(np.array([index]))[0])


STEREOCHEMISTRY = "/[btms][^/]*"
"""The layers of an InChI that tell stereoisomers apart, as a regular expression."""


def without_stereochemistry(inchi: str) -> str:
    """An InChI's formula, connections and hydrogens."""
    return re.sub(STEREOCHEMISTRY, "", inchi)


@cache
def table(*columns: str) -> pa.Table:
    """Columns of qm9pack's files, in the order of `Index`.

    The package cannot be imported where setuptools no longer brings pkg_resources; its files can be read.

    Raises:
        EutecticError: it is not installed.
    """
    from pyarrow import csv

    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise EutecticError("QM9", "qm9pack is not installed", "its files", EXTRA)
    folder = Path(spec.submodule_search_locations[0]) / "data"
    wanted = csv.ConvertOptions(include_columns=["Index", *columns])
    # Lists are quoted; a block must hold the longest row.
    parts = [
        csv.read_csv(file, convert_options=wanted, read_options=csv.ReadOptions(block_size=1 << 24))
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
    """The molecules that must not be pre-trained on, as InChI without stereochemistry."""
    from rdkit import Chem, rdBase

    rdBase.DisableLog("rdApp.*")
    held_out = {without_stereochemistry(Chem.MolToInchi(Chem.MolFromSmiles(s))) for s in HELD_OUT.values()}
    indices, skeletons = _skeletons()
    kept = {key for key, is_kept in zip(skeletons, reserved(indices), strict=True) if is_kept}
    return frozenset(held_out | kept)


@cache
def pretraining_molecules(heavy_atoms: tuple[int, ...]) -> Sequence[tuple[int, str]]:
    """Molecules that may be pre-trained on, each once.

    Args:
        heavy_atoms: the numbers of atoms other than hydrogen that are wanted.

    Returns:
        (QM9 index, SMILES), in QM9's order.
    """
    rows = table("SMILES", "Elements")
    # "['C','H',…]": heavy atoms are the entries that are not 'H'.
    heavy = pc.subtract(
        pc.count_substring(rows["Elements"], ","), pc.count_substring(rows["Elements"], "'H'")
    ).to_numpy()
    wanted = np.isin(heavy + 1, heavy_atoms)
    indices, skeletons = _skeletons()
    forbidden, seen, found = forbidden_molecules(), set[str](), []
    for index, skeleton, smiles in zip(
        indices[wanted],
        (s for s, w in zip(skeletons, wanted, strict=True) if w),
        rows["SMILES"].filter(pa.array(wanted)).to_pylist(),
        strict=True,
    ):
        if skeleton not in forbidden and skeleton not in seen:
            seen.add(skeleton)
            found.append((int(index), smiles))
    return found


def may_be_pretrained_on(inchi: str) -> bool:
    """Whether a molecule made in any other way (a reaction's product) is free to be used."""
    return without_stereochemistry(inchi) not in forbidden_molecules()
