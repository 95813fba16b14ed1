"""SPICE: drug-like molecules, peptides and their dimers at a high level of theory.

Eastman et al., Scientific Data 10, 11 (2023), doi:10.1038/s41597-022-01882-6 (version 1); Eastman, Pritchard,
Chodera, Markland, J. Chem. Theory Comput. 20, 8583 (2024), doi:10.1021/acs.jctc.4c00794 (version 2). Files
`SPICE-1.1.4.hdf5` (doi:10.5281/zenodo.8222043) and `SPICE-2.0.1.hdf5` (doi:10.5281/zenodo.10975225): one group for
each molecule, every array with its unit as the attribute `units`. `dft_total_gradient` is the gradient of the energy:
**forces are its negative** (issue 94 of github.com/openmm/spice-dataset).

The layout of the package mlip (github.com/instadeepai/mlip, "HDF5 reader"; units eV and Å by its
documentation), in which SPICE 2 was republished, is supported too: a group for each structure, with `elements`,
`positions` and `forces`, and `energy` and `charge` as attributes. Its `dipole` and `atomic_charges` are left out:
their units and method are not documented.

"spice" is all of a file; "spice:dipeptides", "spice:solvated_amino_acids", … are its subsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import convert
from eutectic.data.card import Card
from eutectic.data.dataset import File, PaperSplit, Piece
from eutectic.data.formats import hdf5

CARD = Card(
    name="spice",
    title="SPICE: drug-like molecules, peptides, dimers and solvated molecules",
    domain="molecules",
    properties=("energy", "forces", "dipole", "charges", "charge"),
    level_of_theory="ωB97M-D3(BJ)/def2-TZVPPD",
    licence="CC0-1.0",
    citation="Eastman et al., Sci. Data 10, 11 (2023), doi:10.1038/s41597-022-01882-6; "
    "Eastman et al., J. Chem. Theory Comput. 20, 8583 (2024), doi:10.1021/acs.jctc.4c00794",
    source="doi:10.5281/zenodo.10975225 (SPICE-2.0.1.hdf5), or any SPICE-1 or SPICE-2 file",
    notes=(
        "Energies are total energies (dft_total_energy, float64 in the files; positions, gradients, dipoles and "
        "charges are float32 there). They span 10⁵ eV: in float32 their resolution would be 6.6 meV.",
        "The files hold gradients; forces are their negative.",
        "A group is a molecule. JMP split by conformation: structures of one molecule were on both sides.",
        "charge is the sum of the formal charges in the SMILES; charges are MBIS charges, absent where MBIS did not "
        "converge; the dipole of a charged structure is about the files' origin.",
        "A few structures have very large forces (issue 60 of the publisher): see `eutectic data check`.",
    ),
)

SUBSETS: dict[str, tuple[str, int]] = {
    "dipeptides": ("dipeptides", 1),
    "solvated_amino_acids": ("amino acids in water", 1),
    "des_monomers": ("monomers of DES370K", 1),
    "des370k": ("dimers of DES370K", 1),
    "pubchem": ("drug-like molecules of PubChem", 1),
    "pubchem_boron_silicon": ("molecules of PubChem with boron or silicon", 2),
    "ion_pairs": ("ion pairs", 1),
    "amino_acid_ligand": ("pairs of an amino acid and a ligand", 2),
    "solvated_pubchem": ("molecules of PubChem in water", 2),
    "water_clusters": ("clusters of water", 2),
}
"""Subset → description, and the version of SPICE that introduced it."""

JMP_SUBSETS = ("dipeptides", "solvated_amino_acids")
"""Subsets used for fine-tuning in JMP."""

_LENGTH = {"bohr": "bohr", "angstrom": "Å"}
_ENERGY = {"hartree": "hartree", "ev": "eV"}
_CHARGE = {"elementary_charge": "e"}
_GRADIENT = {f"{e}/{x}": f"{e}/{x}" for e in _ENERGY for x in _LENGTH}
_DIPOLE = {f"elementary_charge*{x}": f"e*{x}" for x in _LENGTH}
"""Unit in the files → unit in `eutectic.atoms.units`."""

_EXPECTED = "SPICE-2.0.1.hdf5"
_FIX = "fetch SPICE-2.0.1.hdf5 (doi:10.5281/zenodo.10975225) or SPICE-1.1.4.hdf5 (doi:10.5281/zenodo.8222043)"


PAPER_SPLITS = {
    "spice:dipeptides": PaperSplit(0.8, None, 0.1, 30_000),
    "spice:solvated_amino_acids": PaperSplit(0.8, None, 0.1, 1200),
}


def names() -> tuple[str, ...]:
    """All of SPICE, and each of its subsets."""
    return ("spice", *(f"spice:{subset}" for subset in SUBSETS))


def card(name: str) -> Card:
    """Card of SPICE or a subset."""
    subset = _subset_of(name)
    return replace(CARD, name=name, title=f"SPICE: {SUBSETS[subset][0]}") if subset else CARD


def files(name: str) -> tuple[File, ...]:
    """Version 2.0.1; for the subsets used by JMP 1.1.4, as in JMP."""
    if _subset_of(name) in JMP_SUBSETS:
        url = "https://zenodo.org/records/8222043/files/SPICE-1.1.4.hdf5"
        return (File(name="SPICE-1.1.4.hdf5", url=url),)
    return (
        File(
            name="SPICE-2.0.1.hdf5",
            url="https://zenodo.org/records/10975225/files/SPICE-2.0.1.hdf5",
            size_bytes=37_479_271_148,
            checksum="md5:bfba2224b6540e1390a579569b475510",
        ),
    )


def subset_slug(text: str) -> str:
    """Subset name from the name in a file, without versions and set numbers.

    "SPICE PubChem Set 6 Single Points Dataset v1.2" → "pubchem".
    """
    text = re.sub(r" v\d[\d.]*$", "", text.strip().removeprefix("SPICE "))
    text = re.sub(r" (Single Points Dataset|Set \d+|Supplement)\b", "", text)
    return text.lower().replace(" ", "_")


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges in a SMILES, e: `[N+:9]` 1, `[O-]` −1, `[Ca+2:1]` and `[Ca++]` 2.

    Source: OpenSMILES 1.0, "charge" (only atoms in brackets have one; the map number after ":" is not a charge).
    """
    total = 0
    for atom in re.findall(r"\[([^\]]*)\]", smiles):
        if found := re.search(r"([+-]+)(\d*)$", atom.partition(":")[0]):
            signs, digits = found.groups()
            total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total


def pieces(source: Path, name: str) -> list[Piece]:
    """Ranges of conformations, by molecule (only those of the subset, if one is named).

    Raises:
        EutecticError: no such source; not HDF5, truncated, of another layout, or none of the subset.
    """
    subset = _subset_of(name)
    (path,) = hdf5.files_of(Path(source), files(name)[0].name, _FIX)
    with hdf5.opened(path, _EXPECTED, _fix(path)) as file:
        molecules = hdf5.names(file)
        if not molecules:
            raise EutecticError(str(path), "no molecules", _EXPECTED, _FIX)
        if _is_mlip(hdf5.subgroup(file, molecules[0])):
            if subset:
                raise EutecticError(
                    str(path),
                    "the layout of mlip, which names no subsets",
                    name,
                    "prepare it as spice, or take " + _FIX,
                )
            return hdf5.pieces(path, molecules, lambda _: 1)
        found = hdf5.pieces(path, molecules, partial(_size, file, subset))
        if not found:
            held = sorted({_subset_in(hdf5.subgroup(file, molecule)) for molecule in molecules[:1000]})
            raise EutecticError(
                str(path), f"no structure of {name}; there are {', '.join(held)}", name, "name another subset"
            )
        return found


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The conformations of a piece.

    Yields:
        energy in eV, forces in eV/Å, charge in e; dipole in e Å and charges in e where they are known. Ids are
        "<molecule>-<position>", groups "<molecule>", as the file names it.

    Raises:
        EutecticError: not HDF5, truncated, arrays of other shapes, an unknown unit.
    """
    subset = _subset_of(name)
    with hdf5.opened(piece.path, _EXPECTED, _fix(piece.path)) as file:
        if _is_mlip(hdf5.subgroup(file, piece.member)):
            for structure, _, _ in hdf5.spans(piece, hdf5.names(file), lambda _: 1):
                yield _mlip_row(hdf5.subgroup(file, structure), structure)
            return
        for molecule, first, last in hdf5.spans(piece, hdf5.names(file), partial(_size, file, subset)):
            group = hdf5.subgroup(file, molecule)
            numbers = hdf5.numbers_in(hdf5.dataset(group, "atomic_numbers", None)).astype(np.int64)
            n, frames = len(numbers), _frames(group)
            positions = _values(group, "conformations", _LENGTH, "Å", first, last, frames, n, 3)
            labels = {
                "energy": _values(group, "dft_total_energy", _ENERGY, "eV", first, last, frames),
                "forces": -_values(group, "dft_total_gradient", _GRADIENT, "eV/Å", first, last, frames, n, 3),
                "charge": np.full(last - first, float(formal_charge(_text(group, "smiles")))),
            }
            if _given(group, "scf_dipole"):
                labels["dipole"] = _values(group, "scf_dipole", _DIPOLE, "e Å", first, last, frames, 3)
            if _given(group, "mbis_charges"):
                labels["charges"] = _values(group, "mbis_charges", _CHARGE, "e", first, last, frames, n, 1)[..., 0]
            for i in range(last - first):
                yield LabelledStructure(
                    structure=Structure(numbers=numbers, positions=positions[i]),
                    labels={key: np.asarray(value[i]) for key, value in labels.items()},
                    id=f"{molecule}-{first + i:04d}",
                    group=molecule,
                )


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None are published."""
    _subset_of(name)
    return {}


def _subset_of(name: str) -> str:
    """Subset of a data set name; empty for all of SPICE."""
    family, _, subset = name.partition(":")
    if family != "spice" or (subset not in SUBSETS and name != "spice"):
        raise EutecticError("spice", f"data set {name!r}", f"one of {', '.join(names())}", "choose one of these")
    return subset


def _fix(path: Path) -> str:
    return "prepare it as the data set `ase`" if path.suffix in (".xyz", ".extxyz") else _FIX


def _is_mlip(group: h5py.Group) -> bool:
    """Whether a group has the layout of the package mlip (one structure)."""
    return {"elements", "positions"} <= set(hdf5.names(group))


def _mlip_row(group: h5py.Group, name: str) -> LabelledStructure:
    """A structure in the layout of mlip; "…_md_7" is a frame of the molecule "…"."""
    numbers = hdf5.numbers_in(hdf5.dataset(group, "elements", None)).astype(np.int64)
    labels = {
        "energy": _attribute(group, "energy"),
        "forces": hdf5.numbers_in(hdf5.dataset(group, "forces", len(numbers), 3)),
    }
    if "charge" in group.attrs:
        labels["charge"] = _attribute(group, "charge")
    return LabelledStructure(
        structure=Structure(
            numbers=numbers, positions=hdf5.numbers_in(hdf5.dataset(group, "positions", len(numbers), 3))
        ),
        labels=labels,
        id=name,
        group=re.sub(r"_[a-z]+_\d+$", "", name),
    )


def _attribute(group: h5py.Group, name: str) -> np.ndarray:
    value = np.asarray(group.attrs.get(name, ""))
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise EutecticError(
            f"{hdf5.place(group)}, attribute {name}",
            str(value)[:60] or "nothing",
            "one number",
            "check that the file is complete and in the layout of mlip",
        )
    return value.astype(np.float64).reshape(())


def _frames(molecule: h5py.Group) -> int:
    """Number of conformations of a molecule; a few molecules of version 2 have empty arrays."""
    node = hdf5.child(molecule, "conformations")
    if isinstance(node, h5py.Dataset) and node.shape == (0,):
        return 0
    return int(hdf5.dataset(molecule, "conformations", None, None, 3).shape[0])


def _size(file: h5py.File, subset: str, molecule: str) -> int:
    group = hdf5.subgroup(file, molecule)
    return _frames(group) if not subset or _subset_in(group) == subset else 0


def _subset_in(molecule: h5py.Group) -> str:
    return subset_slug(_text(molecule, "subset"))


def _text(molecule: h5py.Group, key: str) -> str:
    return hdf5.text_in(hdf5.dataset(molecule, key, 1))


def _given(molecule: h5py.Group, key: str) -> bool:
    """Whether an optional array is present and not empty (it may be missing if a calculation did not converge)."""
    if key not in hdf5.names(molecule):
        return False
    node = hdf5.child(molecule, key)
    return not (isinstance(node, h5py.Dataset) and node.size == 0)


def _values(
    molecule: h5py.Group, key: str, units: Mapping[str, str], target: str, first: int, last: int, *sizes: int
) -> np.ndarray:
    node = hdf5.dataset(molecule, key, *sizes)
    unit = node.attrs.get("units")
    unit = unit.decode() if isinstance(unit, bytes) else unit
    if not isinstance(unit, str) or unit.lower() not in units:
        raise EutecticError(
            hdf5.place(node),
            "no attribute 'units'" if unit is None else f"units {unit!r}",
            f"units {' or '.join(units)}",
            _FIX,
        )
    return hdf5.numbers_in(node, first, last) * convert(units[unit.lower()], target)
