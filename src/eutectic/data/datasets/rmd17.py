"""Revised MD17: molecular dynamics of ten small molecules at 500 K, 100 000 structures each, relabelled.

Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f;
files at doi:10.6084/m9.figshare.12672038. Supported sources:

* the published archive `rmd17.tar.bz2`, or its unpacked folder (`npz_data/`, `splits/`), which is faster: an archive
  is decompressed once for each molecule;
* one `rmd17_<molecule>.npz`, or a folder with it;
* the pair `rmd17_<molecule>_train_01.npz`, `rmd17_<molecule>_test_01.npz` (either file, or their folder):
  the 2000 structures of official split 1.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import KCAL_PER_MOL
from eutectic.data.card import Card
from eutectic.data.dataset import File, PaperSplit, Piece
from eutectic.data.formats import npz_arrays
from eutectic.data.formats.archives import damage_explained, tar_members

CARD = Card(
    name="rmd17",
    title="Revised MD17: molecular dynamics of small molecules",
    domain="molecules",
    properties=("energy", "forces"),
    level_of_theory="PBE/def2-SVP",
    licence="CC0-1.0",
    citation="Christensen & von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f",
    source="doi:10.6084/m9.figshare.12672038",
    default_split="official_01",
    notes=(
        "The authors ask that no model be trained on more than 1000 structures of a molecule: neighbours in "
        "time are nearly identical, and a larger random training set gives a test error that is too low.",
        "Energies are total energies.",
    ),
)

MOLECULES: dict[str, str] = {
    "aspirin": "C9H8O4",
    "azobenzene": "C12H10N2",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "paracetamol": "C8H9NO2",
    "salicylic": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}
"""Molecule, as in the file names → formula."""

_FETCH = "fetch rmd17.tar.bz2 again (doi:10.6084/m9.figshare.12672038)"


ARCHIVE = File(
    name="rmd17.tar.bz2",
    url="https://ndownloader.figshare.com/files/23950376",
    size_bytes=1_066_301_513,
    checksum="md5:cb1a927628d96f2e966025da4fb63d18",
)


PAPER_SPLITS = {"rmd17": PaperSplit(950, 50, None, 99_000)}


def names() -> tuple[str, ...]:
    """ "rmd17:aspirin", …"""
    return tuple(f"rmd17:{molecule}" for molecule in MOLECULES)


def card(name: str) -> Card:
    """The card of one molecule's data set, `rmd17:<molecule>`."""
    molecule = _molecule(name)
    return replace(CARD, name=f"rmd17:{molecule}", title=f"Revised MD17, {molecule}: molecular dynamics at 500 K")


def files(name: str) -> tuple[File, ...]:
    """The archive, with all molecules."""
    _molecule(name)
    return (ARCHIVE,)


def pieces(source: Path, name: str) -> list[Piece]:
    """The npz of one molecule; or training, then test of the pair.

    Args:
        source: archive, folder or file, see the module's docstring.
        name: "rmd17:<molecule>".

    Raises:
        EutecticError: an unknown molecule; no file of it; a truncated file.
    """
    molecule, source = _molecule(name), Path(source)
    if source.is_file() and source.suffix != ".npz":
        # In one piece: the archive is decompressed for each piece.
        return [Piece(path=source, member=_whole(molecule))]
    return [Piece(path=path, count=_length(path)) for path in _files(source, molecule)]


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The structures of a piece, in the order of its file.

    Yields:
        energy in eV, forces in eV/Å; `id` is "<molecule>-<position among all>".

    Raises:
        EutecticError: a truncated file, of other arrays, or of another molecule.
    """
    molecule = _molecule(name)
    data: io.BytesIO | Path = piece.path
    if piece.member:
        # In memory: nothing of an archive is unpacked to disk.
        data = io.BytesIO(_inside(piece.path, molecule)[0])
    where = f"{piece.path}, {piece.member}" if piece.member else str(piece.path)
    numbers, coords, energies, forces = _arrays(where, data, molecule)
    _decompressed.cache_clear()
    # Test structures of the pair come after the training ones.
    train, test = _pair(molecule)
    before = _length(piece.path.with_name(train)) if piece.path.name == test else 0
    end = len(coords) if piece.count is None else min(piece.first + piece.count, len(coords))
    for i in range(piece.first, end):
        yield LabelledStructure(
            structure=Structure(numbers=numbers, positions=coords[i]),
            labels={"energy": np.asarray(energies[i] * KCAL_PER_MOL), "forces": forces[i] * KCAL_PER_MOL},
            id=f"{molecule}-{before + i:06d}",
            group=molecule,
        )


def published_splits(source: Path, name: str) -> dict[str, dict[str, np.ndarray]]:
    """The splits published with the data.

    Args:
        source: as for `pieces`.

    Returns:
        "official_01" … "official_05" (those present) → "train" and "test" → positions in the order of all pieces, in
        the published order. Empty for a single npz.

    Raises:
        EutecticError: as `pieces`; a split of another data set.
    """
    molecule, source = _molecule(name), Path(source)
    if source.is_file() and source.suffix != ".npz":
        content, listed = _inside(source, molecule)
        lengths = [_length(io.BytesIO(content), f"{source}, {_whole(molecule)}")]
    else:
        lengths, listed = [_length(path) for path in _files(source, molecule)], list(_split_files(source))
    if len(lengths) == 2:
        train = np.arange(lengths[0])
        return {"official_01": {"train": train, "test": lengths[0] + np.arange(lengths[1])}}
    splits: dict[str, dict[str, np.ndarray]] = {}
    for part, number, text in listed:
        file = f"index_{part}_{number}.csv"
        try:
            positions = np.array([int(line) for line in text.split()], dtype=np.int64)
        except ValueError as error:
            raise EutecticError(f"{source}, {file}", f"{error}", "one position on each line", _FETCH) from error
        inside = (positions >= 0) & (positions < lengths[0])
        # The lists are the same for all molecules, and azobenzene has 12 structures fewer: a few may be out of range.
        if inside.mean() < 0.99:
            raise EutecticError(
                f"{source}, {file}",
                f"{int((~inside).sum())} of {len(inside)} positions are beyond the {lengths[0]} structures",
                f"positions within rmd17_{molecule}.npz",
                "use the splits and the npz of the same archive",
            )
        splits.setdefault(f"official_{number}", {})[part] = positions[inside]
    return {name: parts for name, parts in sorted(splits.items()) if {"train", "test"} <= parts.keys()}


def _molecule(name: str) -> str:
    molecule = name.removeprefix("rmd17:")
    if molecule not in MOLECULES:
        raise EutecticError("rmd17", f"molecule {molecule!r}", f"one of {', '.join(MOLECULES)}", "choose one of these")
    return molecule


def _whole(molecule: str) -> str:
    return f"rmd17_{molecule}.npz"


def _pair(molecule: str) -> tuple[str, str]:
    return f"rmd17_{molecule}_train_01.npz", f"rmd17_{molecule}_test_01.npz"


def _files(source: Path, molecule: str) -> list[Path]:
    """The npz files of one molecule outside an archive: one, or the pair of official split 1."""
    pair = _pair(molecule)
    if source.is_dir():
        for folder in (source, source / "npz_data", source / "rmd17" / "npz_data"):
            if (folder / _whole(molecule)).is_file():
                return [folder / _whole(molecule)]
            if all((folder / name).is_file() for name in pair):
                return [folder / name for name in pair]
    elif source.is_file():
        names = pair if source.name in pair else (source.name,)
        for name in names:
            if not (source.parent / name).is_file():
                raise EutecticError(
                    str(source.parent),
                    f"no {name} beside {source.name}",
                    "both files of the pair",
                    "fetch the other one, or give a complete rmd17_<molecule>.npz",
                )
        return [source.parent / name for name in names]
    raise _not_found(source, molecule)


def _not_found(source: Path, molecule: str) -> EutecticError:
    train, test = _pair(molecule)
    return EutecticError(
        str(source),
        f"no {_whole(molecule)} here" if source.exists() else "does not exist",
        f"rmd17.tar.bz2, its folder, {_whole(molecule)}, or {train} with {test}",
        "check the path and the molecule (fetch: doi:10.6084/m9.figshare.12672038)",
    )


def _inside(archive: Path, molecule: str) -> tuple[bytes, list[tuple[str, str, str]]]:
    """The npz of a molecule, and the published lists, in an archive."""
    return _decompressed(archive, molecule, archive.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _decompressed(archive: Path, molecule: str, _changed: int) -> tuple[bytes, list[tuple[str, str, str]]]:
    """Cached, since decompressing the archive takes minutes and is needed for the lists and for the structures."""
    content = b""
    listed = []
    with damage_explained(str(archive), "rmd17.tar.bz2", _FETCH):
        for name, handle in tar_members(archive, _whole(molecule), "index_*.csv"):
            if name.endswith(".npz"):
                content = handle.read()
            else:
                listed.append((*_part_and_number(name), handle.read().decode()))
    if not content:
        raise _not_found(archive, molecule)
    return content, listed


def _part_and_number(name: str) -> tuple[str, str]:
    _, part, number = Path(name).name.removesuffix(".csv").split("_")
    return part, number


def _split_files(source: Path) -> Iterator[tuple[str, str, str]]:
    """Part ("train", "test"), number ("01") and text of every published list beside or in `source`."""
    folder = source.parent if source.is_file() else source
    for splits in (folder / "splits", folder.parent / "splits", folder / "rmd17" / "splits"):
        found = sorted(splits.glob("index_*_*.csv"))
        for path in found:
            yield (*_part_and_number(path.name), path.read_text())
        if found:
            return


def _length(data: io.BytesIO | Path, where: str = "") -> int:
    """Number of energies, without reading them."""
    where = where or str(data)
    try:
        with npz_arrays.opened(data, where) as bundle:
            return int(npz_arrays.array_head(bundle, "energies")[1][0])
    except (zipfile.BadZipFile, zlib.error, KeyError, IndexError, ValueError, EOFError, OSError) as error:
        raise _broken(where, error) from error


def _arrays(
    where: str, data: io.BytesIO | Path, molecule: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    try:
        # Plain arrays only: pickles in an npz are never opened.
        with npz_arrays.opened(data, where) as bundle:
            numbers = np.asarray(npz_arrays.array(bundle, "nuclear_charges"), dtype=np.int64)
            coords, energies, forces = (
                np.asarray(npz_arrays.array(bundle, k), dtype=np.float64) for k in ("coords", "energies", "forces")
            )
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise _broken(where, error) from error
    shape = (len(energies), len(numbers), 3)
    if coords.shape != shape or forces.shape != shape or energies.ndim != 1:
        raise EutecticError(
            where,
            f"coords {coords.shape}, forces {forces.shape}, energies {energies.shape}, nuclear_charges {numbers.shape}",
            "coords and forces (structures, atoms, 3), energies (structures,), nuclear_charges (atoms,)",
            _FETCH,
        )
    expected = Formula(MOLECULES[molecule]).count()
    given = Formula.from_list([str(s) for s in _symbols(numbers)])
    if given.count() != expected:
        raise EutecticError(
            where,
            f"atoms {given:hill}",
            f"{MOLECULES[molecule]}, which is {molecule}",
            "name the molecule that is in the file",
        )
    return numbers, coords, energies, forces


def _symbols(numbers: np.ndarray) -> list[str]:
    return [chemical_symbols[z] if 0 < z < len(chemical_symbols) else "X" for z in numbers]


def _broken(where: str, error: Exception) -> EutecticError:
    return EutecticError(
        where,
        f"not a readable rMD17 npz ({type(error).__name__}: {error})",
        "arrays nuclear_charges, coords, energies, forces (no pickles)",
        _FETCH,
    )
