"""A sample of QM9 with its own labels (B3LYP), drawn from the molecules reserved for fine-tuning."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
from ase.data import atomic_numbers

from eutectic.atoms import LabelledStructure, Structure
from eutectic.atoms.units import HARTREE
from eutectic.data.card import Card
from eutectic.generate import qm9
from eutectic.generate.engine import Generator, drawn

# Columns of qm9pack → property and the factor to the library's unit.
COLUMNS: dict[str, tuple[str, float]] = {
    "Dipole_debye": ("dipole_moment", 1.0),
    "Polarizability_bohr3": ("polarizability", 1.0),
    "HOMO_au": ("homo", HARTREE),
    "LUMO_au": ("lumo", HARTREE),
    "HOMO_LUMO_gap_au": ("gap", HARTREE),
    "R2_bohr2": ("electronic_spatial_extent", 1.0),
    "ZPVE_au": ("zpve", HARTREE),
    "InternalEnergy_0K_au": ("u0", HARTREE),
    "Heatcapacity_Cv_cal_mol_K": ("heat_capacity", 1.0),
}

CARD = Card(
    name="qm9_sample",
    title="A sample of QM9: properties of small organic molecules",
    domain="molecules",
    properties=tuple(name for name, _ in COLUMNS.values()),
    level_of_theory="B3LYP/6-31G(2df,p)",
    licence="CC0-1.0",
    citation=("QM9: Ramakrishnan, Dral, Rupp & von Lilienfeld, Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22"),
    source="QM9 as carried by the package qm9pack, sampled by `eutectic data generate qm9_sample`",
    notes=(
        "Drawn from the fifth of QM9 that is reserved for fine-tuning (eutectic.generate.qm9).",
        "u0 is the energy of atomisation at 0 K (U₀ less that of the free atoms), negative where bound.",
        "Molecules that QM9 calls uncharacterised are absent, as in qm9pack.",
        "group is QM9's index; id too.",
    ),
)

FREE_ATOMS_U0 = {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}
"""U₀ of the free atoms, Hartree: `atomref.txt` of QM9 (Ramakrishnan et al. 2014, figshare 978904)."""


@cache
def _reserved() -> np.ndarray:
    """Indices in QM9 of the reserved molecules."""
    indices = qm9.table("InChi")["Index"].to_numpy()
    return indices[qm9.reserved(indices)]


def make(item: int, seed: int) -> list[LabelledStructure]:
    """One molecule."""
    index = int(_reserved()[drawn(CARD.name, seed, len(_reserved()), item)])
    rows = qm9.table("Elements", "XYZ_Ang", *COLUMNS)
    place = int(np.searchsorted(rows["Index"].to_numpy(), index))
    row = {column: rows[column][place].as_py() for column in rows.column_names}
    symbols = json.loads(str(row["Elements"]).replace("'", '"'))
    labels = {name: np.asarray(float(row[column]) * factor) for column, (name, factor) in COLUMNS.items()}
    labels["u0"] = np.asarray(labels["u0"] - HARTREE * sum(FREE_ATOMS_U0[s] for s in symbols))
    structure = Structure(
        numbers=np.array([atomic_numbers[s] for s in symbols], dtype=np.int64),
        positions=np.asarray(json.loads(str(row["XYZ_Ang"])), dtype=np.float64),
    )
    return [LabelledStructure(structure=structure, labels=labels, id=f"qm9-{index}", group=f"qm9-{index}")]


GENERATOR = Generator(card=CARD, items=3000, make=make, needs=("qm9pack",), chunk=500, seconds=300.0)
