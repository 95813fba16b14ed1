"""QM9: 133 885 small organic molecules (C, H, N, O, F) at equilibrium, with twelve properties each.

Ramakrishnan, Dral, Rupp, von Lilienfeld, Scientific Data 1, 140022 (2014), doi:10.1038/sdata.2014.22;
files at doi:10.6084/m9.figshare.c.978904. Two layouts are read:

* the published one: `dsgdb9nsd.xyz.tar.bz2`, or a folder with its `dsgdb9nsd_*.xyz`, and optionally
  `uncharacterized.txt` beside it;
* the package `qm9pack` (`pip install eutectic[qm9]`), with the same molecules except the uncharacterised ones.
"""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from jaxtyping import Int

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import HARTREE
from eutectic.data.card import Card
from eutectic.data.dataset import File, PaperSplit, Piece
from eutectic.data.formats.archives import damage_explained, tar_members

CARD = Card(
    name="qm9",
    title="QM9: small organic molecules in equilibrium",
    domain="molecules",
    properties=(
        "dipole_moment",
        "polarizability",
        "homo",
        "lumo",
        "gap",
        "electronic_spatial_extent",
        "zpve",
        "u0",
        "u",
        "h",
        "g",
        "heat_capacity",
    ),
    level_of_theory="B3LYP/6-31G(2df,p)",
    licence="CC0-1.0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22",
    source="doi:10.6084/m9.figshare.c.978904 (dsgdb9nsd.xyz.tar.bz2), or the package qm9pack",
    default_split="random",
    notes=(
        "u0, u, h and g are atomisation energies: the free atoms of the same level of theory are subtracted.",
        "3054 molecules that relaxed to a different molecule are left out if uncharacterized.txt is beside the files "
        "(qm9pack does not contain them).",
        "Stereoisomers share a group (the InChI without its stereo layers).",
    ),
)

COLUMNS = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""The fifteen values of a molecule, in file order: GHz ×3, D, a0³, Ha ×3, a0², Ha ×5, cal/(mol K)."""

ATOM_ENERGIES: dict[str, dict[int, float]] = {
    "u0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "u": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "h": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "g": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
}
"""Free atoms at B3LYP/6-31G(2df,p), Hartree, by Z: `atomref.txt` of the data set
(doi:10.6084/m9.figshare.1057643)."""

_PACKAGE_COLUMNS = (
    "RotA_GHz",
    "RotB_GHz",
    "RotC_GHz",
    "Dipole_debye",
    "Polarizability_bohr3",
    "HOMO_au",
    "LUMO_au",
    "HOMO_LUMO_gap_au",
    "R2_bohr2",
    "ZPVE_au",
    "InternalEnergy_0K_au",
    "InternalEnergy_298K_au",
    "Enthalphy_298K_au",
    "GibbsFreeEnergy_298K_au",
    "Heatcapacity_Cv_cal_mol_K",
)


def properties_from_row(numbers: Int[np.ndarray, " atoms"], row: Sequence[float]) -> dict[str, np.ndarray]:
    """Labels of one molecule in the library's units.

    Args:
        numbers: (n_atoms,) atomic numbers.
        row: the fifteen values of `COLUMNS`, in the units of the files.

    Returns:
        Property name → float64 scalar. homo, lumo, gap, zpve in eV; u0, u, h, g in eV less the free atoms
        (`ATOM_ENERGIES`); dipole_moment D; polarizability a0³; electronic_spatial_extent a0²;
        heat_capacity cal/(mol K).
    """
    given = dict(zip(COLUMNS, row, strict=True))
    values = {
        "dipole_moment": given["mu"],
        "polarizability": given["alpha"],
        "homo": given["homo"] * HARTREE,
        "lumo": given["lumo"] * HARTREE,
        "gap": given["gap"] * HARTREE,
        "electronic_spatial_extent": given["r2"],
        "zpve": given["zpve"] * HARTREE,
        "heat_capacity": given["Cv"],
    }
    for name, column in (("u0", "U0"), ("u", "U"), ("h", "H"), ("g", "G")):
        # Subtract in Hartree, before the conversion, to lose no precision.
        free_atoms = sum(ATOM_ENERGIES[name][int(z)] for z in numbers)
        values[name] = (given[column] - free_atoms) * HARTREE
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


FILES = (
    File(
        name="dsgdb9nsd.xyz.tar.bz2",
        url="https://ndownloader.figshare.com/files/3195389",
        size_bytes=86_144_227,
        checksum="md5:ad1ebd51ee7f5b3a6e32e974e5d54012",
    ),
    File(
        name="uncharacterized.txt",
        url="https://ndownloader.figshare.com/files/3195404",
        size_bytes=486_752,
        checksum="md5:a361887bacb427b8a0ce7903d92a53b4",
    ),
)


PAPER_SPLITS = {"qm9": PaperSplit(None, 10_000, 10_000, 130_000)}


def names() -> tuple[str, ...]:
    """One data set."""
    return ("qm9",)


def card(name: str) -> Card:
    """The card."""
    return CARD


def files(name: str) -> tuple[File, ...]:
    """The archive, and the list of uncharacterised molecules."""
    return FILES


def pieces(source: Path, name: str) -> list[Piece]:
    """The archive, or the molecules' files sorted by name, or the parts of qm9pack.

    Args:
        source: `dsgdb9nsd.xyz.tar.bz2`; a folder with it or with `dsgdb9nsd_*.xyz`; or the folder of qm9pack.

    Raises:
        EutecticError: none of these.
    """
    source = Path(source)
    if source.is_file():
        return [Piece(path=source)]
    for pattern in ("dsgdb9nsd_*.xyz", "dsgdb9nsd*.xyz.tar.bz2", "qm9_part*.csv"):
        if found := sorted(source.rglob(pattern)):
            # One file per molecule: the folder is the piece, and its files are the records.
            if pattern == "dsgdb9nsd_*.xyz":
                return [Piece(path=source, count=len(found))]
            return [Piece(path=path) for path in found]
    raise _not_found(source)


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The molecules of a piece, in the order of the files.

    Molecules listed in `uncharacterized.txt` in the folder, or beside the archive, are left out.

    Raises:
        EutecticError: a file that cannot be read.
    """
    end = None if piece.count is None else piece.first + piece.count
    if piece.path.suffix == ".csv":
        with piece.path.open(newline="") as handle:
            yield from _from_csv(handle, str(piece.path), piece.first, end)
        return
    left_out = _uncharacterized(piece.path)
    for member, text in _texts(piece.path, piece.first, end):
        molecule = _from_xyz(text, f"{piece.path}, {member}")
        if int(molecule.id.removeprefix("qm9-")) not in left_out:
            yield molecule


def published_splits(source: Path, name: str) -> dict[str, dict[str, np.ndarray]]:
    """None: every paper uses its own random split."""
    return {}


def _molecule(
    index: int, symbols: Sequence[str], positions: np.ndarray, row: Sequence[float], inchi: str
) -> LabelledStructure:
    numbers = np.array([atomic_numbers[s] for s in symbols], dtype=np.int64)
    return LabelledStructure(
        structure=Structure(numbers=numbers, positions=positions),
        labels=properties_from_row(numbers, row),
        id=f"qm9-{index:06d}",
        group=_constitution(inchi) or f"qm9-{index:06d}",
    )


def _constitution(inchi: str) -> str:
    """Formula, connectivity and hydrogen layers of an InChI, identical for stereoisomers."""
    layers = inchi.removeprefix("InChI=1S/").removeprefix("InChI=1/").split("/")
    return "/".join(part for i, part in enumerate(layers) if i == 0 or part[:1] in "ch")


def _number(text: str) -> float:
    # Small numbers in the published files have Mathematica's format: 1.23*^-6.
    return float(text.replace("*^", "e"))


def _from_xyz(text: str, where: str) -> LabelledStructure:
    """One file: count; "gdb i", fifteen properties; atoms with charges; frequencies; SMILES; InChI."""
    try:
        lines = text.splitlines()
        n_atoms = int(lines[0])
        _, index, *row = lines[1].split()
        atoms = [line.split() for line in lines[2 : 2 + n_atoms]]
        inchi = lines[4 + n_atoms].split("\t")[0].strip()
        return _molecule(
            int(index),
            [a[0] for a in atoms],
            np.array([[_number(x) for x in a[1:4]] for a in atoms]).reshape(n_atoms, 3),
            [_number(x) for x in row],
            inchi,
        )
    except (ValueError, IndexError, KeyError) as error:
        raise EutecticError(
            where,
            f"not a readable QM9 file ({type(error).__name__}: {error})",
            "the dsgdb9nsd layout: count, 15 properties, atoms, frequencies, SMILES, InChI",
            "fetch the archive again (doi:10.6084/m9.figshare.c.978904)",
        ) from error


def _texts(source: Path, first: int, end: int | None) -> Iterator[tuple[str, str]]:
    """Names and texts of molecules' files in a folder or an archive; nothing is unpacked to disk."""
    if source.is_dir():
        for path in sorted(source.rglob("dsgdb9nsd_*.xyz"))[first:end]:
            yield path.name, path.read_text()
        return
    found = 0
    fetch = "fetch the archive again (doi:10.6084/m9.figshare.c.978904)"
    with damage_explained(str(source), "dsgdb9nsd.xyz.tar.bz2, or a folder of dsgdb9nsd_*.xyz", fetch):
        for member, content in tar_members(source, "dsgdb9nsd_*.xyz"):
            if end is not None and found >= end:
                return
            found += 1
            if found > first:
                yield Path(member).name, content.read().decode()
    if not found:
        raise _not_found(source)


def _not_found(source: Path) -> EutecticError:
    return EutecticError(
        str(source),
        "no dsgdb9nsd_*.xyz here" if source.exists() else "does not exist",
        "dsgdb9nsd.xyz.tar.bz2, or a folder of dsgdb9nsd_*.xyz",
        "check the path, or give none to use the package qm9pack",
    )


def _uncharacterized(source: Path) -> set[int]:
    """Indices of the molecules that relaxed to a different molecule (none without the list)."""
    path = (source if source.is_dir() else source.parent) / "uncharacterized.txt"
    if not path.is_file():
        return set()
    firsts = (line.split()[0] for line in path.read_text().splitlines() if line.strip())
    return {int(first) for first in firsts if first.isdigit()}


def package_files() -> list[Path]:
    """The CSV files of the package qm9pack.

    Raises:
        EutecticError: it is not installed.
    """
    # Located without importing: importing qm9pack 1.0.3 fails.
    spec = importlib.util.find_spec("qm9pack")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(p for root in roots for p in Path(root).rglob("qm9_part*.csv"))
    if not files:
        raise EutecticError(
            "qm9",
            "neither a source nor the package qm9pack",
            "dsgdb9nsd.xyz.tar.bz2 as the source, or qm9pack installed",
            "pip install 'eutectic[qm9]', or pass --source",
        )
    return files


def installed(name: str = "qm9") -> Path | None:
    """Folder with the files of the package qm9pack; None if it is not installed."""
    try:
        return Path(os.path.commonpath([path.parent for path in package_files()]))
    except EutecticError:
        return None


def _from_csv(lines: Iterable[str], where: str, first: int = 0, end: int | None = None) -> Iterator[LabelledStructure]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    numbered = enumerate(csv.DictReader(lines, restval=""), start=2)
    for line, row in itertools.islice(numbered, first, end):
        try:
            symbols = row["Elements"].strip("[]").replace("'", "").replace(" ", "").split(",")
            flat = row["XYZ_Ang"].replace("[", "").replace("]", "").split(",")
            yield _molecule(
                int(row["Index"]),
                symbols,
                np.array([_number(x) for x in flat]).reshape(len(symbols), 3),
                [_number(row[c]) for c in _PACKAGE_COLUMNS],
                row["InChi"],
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise EutecticError(
                f"{where}, line {line}",
                f"not a molecule of qm9pack ({type(error).__name__}: {error})",
                "the columns of qm9pack 1.0.3",
                "install qm9pack again",
            ) from error
