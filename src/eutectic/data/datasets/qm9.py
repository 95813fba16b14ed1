"""QM9: 133 885 small organic molecules (C, H, N, O, F) in equilibrium, twelve properties each.

Ramakrishnan, Dral, Rupp, von Lilienfeld, Scientific Data 1, 140022 (2014), doi:10.1038/sdata.2014.22;
files at doi:10.6084/m9.figshare.c.978904. Two layouts are read:

* the published one: `dsgdb9nsd.xyz.tar.bz2`, or a folder of the `dsgdb9nsd_*.xyz` it holds, beside
  `uncharacterized.txt` where that has been fetched too;
* the package `qm9pack` (`pip install eutectic[qm9]`), which carries the same molecules without the
  uncharacterised ones.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from jaxtyping import Int

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import HARTREE
from eutectic.data.card import Card

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
    theory="B3LYP/6-31G(2df,p)",
    licence="CC0-1.0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22",
    source="doi:10.6084/m9.figshare.c.978904 (dsgdb9nsd.xyz.tar.bz2), or the package qm9pack",
    default_split="random",
    notes=(
        "u0, u, h and g are atomisation energies: the free atoms of the same level of theory are subtracted.",
        "3054 molecules whose relaxed geometry is another molecule are left out where "
        "uncharacterized.txt lies beside the files (qm9pack has left them out already).",
        "Stereoisomers share a group (the InChI without its stereo layers).",
    ),
)

COLUMNS = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""The fifteen numbers of a molecule, in the files' order: GHz ×3, D, a0³, Ha ×3, a0², Ha ×5, cal/(mol K)."""

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
    """The labels of one molecule in the library's units.

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
        # Subtracted before the conversion, so that two large numbers meet once and in their own unit.
        free_atoms = sum(ATOM_ENERGIES[name][int(z)] for z in numbers)
        values[name] = (given[column] - free_atoms) * HARTREE
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def read(source: Path | None = None, *, uncharacterized: Path | None = None) -> Iterator[LabelledStructure]:
    """Every molecule, in the order of the files.

    Args:
        source: `dsgdb9nsd.xyz.tar.bz2`, or a folder of `dsgdb9nsd_*.xyz`; None for the package qm9pack.
        uncharacterized: the list of molecules to leave out; None takes `uncharacterized.txt` beside (or in)
            `source` where there is one.

    Raises:
        EutecticError: nothing is at `source`; qm9pack is not installed; a file that cannot be read.
    """
    if source is None:
        yield from _from_package()
        return
    source = Path(source)
    left_out = _uncharacterized(source, uncharacterized)
    for name, text in _texts(source):
        molecule = _from_xyz(text, f"{source}, {name}")
        if int(molecule.id.removeprefix("qm9-")) not in left_out:
            yield molecule


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
    """Formula, bonds and hydrogens of an InChI without the stereo layers, so that stereoisomers share it."""
    layers = inchi.removeprefix("InChI=1S/").removeprefix("InChI=1/").split("/")
    return "/".join(part for i, part in enumerate(layers) if i == 0 or part[:1] in "ch")


def _number(text: str) -> float:
    # Mathematica wrote the small numbers of the published files: 1.23*^-6.
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
            f"not a whole QM9 file ({type(error).__name__}: {error})",
            "the dsgdb9nsd layout: count, 15 properties, atoms, frequencies, SMILES, InChI",
            "fetch the archive again (doi:10.6084/m9.figshare.c.978904)",
        ) from error


def _texts(source: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of the molecules' files in a folder or an archive; nothing is unpacked to disk."""
    found = False
    if source.is_dir():
        for path in sorted(source.rglob("dsgdb9nsd_*.xyz")):
            found = True
            yield path.name, path.read_text()
    elif source.is_file():
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    if member.isfile() and Path(member.name).match("dsgdb9nsd_*.xyz"):
                        found = True
                        handle = archive.extractfile(member)
                        assert handle is not None
                        yield Path(member.name).name, handle.read().decode()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise EutecticError(
                str(source),
                f"not a whole tar archive ({error})",
                "dsgdb9nsd.xyz.tar.bz2, or a folder of dsgdb9nsd_*.xyz",
                "fetch the archive again (doi:10.6084/m9.figshare.c.978904)",
            ) from error
    if not found:
        raise EutecticError(
            str(source),
            "no dsgdb9nsd_*.xyz here" if source.exists() else "nothing is here",
            "dsgdb9nsd.xyz.tar.bz2, or a folder of dsgdb9nsd_*.xyz",
            "check the path, or give none to use the package qm9pack",
        )


def _uncharacterized(source: Path, given: Path | None) -> set[int]:
    """Indices of the molecules that became another when relaxed (none where the list is not there)."""
    path = given or (source if source.is_dir() else source.parent) / "uncharacterized.txt"
    if given is not None and not given.is_file():
        raise EutecticError(
            str(given), "nothing is here", "uncharacterized.txt of QM9", "check the path, or leave it out"
        )
    if not path.is_file():
        return set()
    firsts = (line.split()[0] for line in path.read_text().splitlines() if line.strip())
    return {int(first) for first in firsts if first.isdigit()}


def package_files() -> list[Path]:
    """The CSV files of the package qm9pack.

    Raises:
        EutecticError: it is not installed.
    """
    # Found, never imported: importing qm9pack 1.0.3 fails.
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


def _from_package() -> Iterator[LabelledStructure]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    for path in package_files():
        with path.open(newline="") as handle:
            yield from _from_csv(handle, str(path))


def _from_csv(lines: Iterable[str], where: str) -> Iterator[LabelledStructure]:
    for line, row in enumerate(csv.DictReader(lines, restval=""), start=2):
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
