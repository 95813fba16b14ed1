"""Revised MD17: ten small molecules in molecular dynamics at 500 K, 100 000 structures each, relabelled.

Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f;
files at doi:10.6084/m9.figshare.12672038. Layouts read, by what `source` is:

* the published archive `rmd17.tar.bz2`, or the folder it unpacks to (`npz_data/`, `splits/`), which is
  quicker: an archive is decompressed again for each look;
* one `rmd17_<molecule>.npz`, or a folder with it;
* the pair `rmd17_<molecule>_train_01.npz`, `rmd17_<molecule>_test_01.npz` (either file, or their folder):
  the 2000 structures of official split 1.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import KCAL_PER_MOL
from eutectic.data.card import Card

CARD = Card(
    name="rmd17",
    title="Revised MD17: molecular dynamics of small molecules",
    domain="molecules",
    properties=("energy", "forces"),
    theory="PBE/def2-SVP",
    licence="CC0-1.0",
    citation="Christensen & von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f",
    source="doi:10.6084/m9.figshare.12672038",
    default_split="official_01",
    notes=(
        "The authors ask that no model be trained on more than 1000 structures of a molecule: neighbours in "
        "time are nearly alike, and a larger random training set measures memory.",
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
"""The molecules by the names of their files, with their formulas."""

_FETCH = "fetch rmd17.tar.bz2 again (doi:10.6084/m9.figshare.12672038)"


def card(molecule: str) -> Card:
    """The card of one molecule's data set, `rmd17:<molecule>`."""
    _known(molecule)
    return replace(CARD, name=f"rmd17:{molecule}", title=f"Revised MD17, {molecule}: molecular dynamics at 500 K")


def read(source: Path, molecule: str) -> Iterator[LabelledStructure]:
    """Every structure of one molecule, in the order of its file (of the pair: training, then test).

    Args:
        source: archive, folder or file, as the head of this module says.
        molecule: one of `MOLECULES`.

    Yields:
        energy in eV, forces in eV/Å; `id` is "<molecule>-<position in the file>".

    Raises:
        EutecticError: an unknown molecule; no file of it; a file cut short, of other arrays, or of another
            molecule.
    """
    _known(molecule)
    position = 0
    for where, data in _files(Path(source), molecule):
        numbers, coords, energies, forces = _arrays(where, data, molecule)
        for i in range(len(coords)):
            yield LabelledStructure(
                structure=Structure(numbers=numbers, positions=coords[i]),
                labels={"energy": np.asarray(energies[i] * KCAL_PER_MOL), "forces": forces[i] * KCAL_PER_MOL},
                id=f"{molecule}-{position:06d}",
                group=molecule,
            )
            position += 1


def count(source: Path, molecule: str) -> int:
    """How many structures `read` will give, from the headers of the arrays."""
    return sum(_length(where, data) for where, data in _files(Path(source), molecule))


def official_splits(source: Path, molecule: str) -> dict[str, dict[str, np.ndarray]]:
    """The splits published with the data.

    Args:
        source: as for `read`.

    Returns:
        "official_01" … "official_05" (those that are there) → "train" and "test" → positions in the order of
        `read`, in the published order. Empty for a lone npz.

    Raises:
        EutecticError: as `read`; a split of another data set.
    """
    _known(molecule)
    source = Path(source)
    lengths = [_length(where, data) for where, data in _files(source, molecule)]
    if len(lengths) == 2:
        train = np.arange(lengths[0])
        return {"official_01": {"train": train, "test": lengths[0] + np.arange(lengths[1])}}
    splits: dict[str, dict[str, np.ndarray]] = {}
    for part, number, text in _split_files(source):
        name = f"index_{part}_{number}.csv"
        try:
            positions = np.array([int(line) for line in text.split()], dtype=np.int64)
        except ValueError as error:
            raise EutecticError(f"{source}, {name}", f"{error}", "one position on each line", _FETCH) from error
        inside = (positions >= 0) & (positions < lengths[0])
        # One list serves all molecules, and azobenzene has 12 structures fewer: a handful may fall outside.
        if inside.mean() < 0.99:
            raise EutecticError(
                f"{source}, {name}",
                f"{int((~inside).sum())} of {len(inside)} positions are beyond the {lengths[0]} structures",
                f"positions within rmd17_{molecule}.npz",
                "use the splits and the npz of the same archive",
            )
        splits.setdefault(f"official_{number}", {})[part] = positions[inside]
    return {name: parts for name, parts in sorted(splits.items()) if {"train", "test"} <= parts.keys()}


def _known(molecule: str) -> None:
    if molecule not in MOLECULES:
        raise EutecticError("rmd17", f"molecule {molecule!r}", f"one of {', '.join(MOLECULES)}", "name one of these")


def _files(source: Path, molecule: str) -> Iterator[tuple[str, io.BytesIO | Path]]:
    """The npz files of one molecule: one, or the pair of official split 1."""
    whole, pair = f"rmd17_{molecule}.npz", [f"rmd17_{molecule}_{part}_01.npz" for part in ("train", "test")]
    if source.is_dir():
        for folder in (source, source / "npz_data", source / "rmd17" / "npz_data"):
            if (folder / whole).is_file():
                yield str(folder / whole), folder / whole
                return
            if all((folder / name).is_file() for name in pair):
                yield from ((str(folder / name), folder / name) for name in pair)
                return
    elif source.suffix == ".npz" and source.is_file():
        names = pair if source.name in pair else [source.name]
        for name in names:
            if not (source.parent / name).is_file():
                raise EutecticError(
                    str(source.parent),
                    f"no {name} beside {source.name}",
                    "both files of the pair",
                    "fetch the other one, or give a whole rmd17_<molecule>.npz",
                )
            yield str(source.parent / name), source.parent / name
        return
    elif source.is_file():
        for name, content in _members(source, whole):
            # Read where it lies: nothing of an archive is ever unpacked to disk.
            yield f"{source}, {name}", io.BytesIO(content)
            return
    raise EutecticError(
        str(source),
        f"no {whole} here" if source.exists() else "nothing is here",
        f"rmd17.tar.bz2, its folder, {whole}, or {pair[0]} with {pair[1]}",
        "check the path and the molecule (fetch: doi:10.6084/m9.figshare.12672038)",
    )


def _split_files(source: Path) -> Iterator[tuple[str, str, str]]:
    """Part ("train", "test"), number ("01") and text of every published list that goes with `source`."""
    found: list[tuple[str, str]] = []
    if source.is_file() and source.suffix != ".npz":
        found = [(Path(n).name, text.decode()) for n, text in _members(source, "index_*.csv")]
    else:
        folder = source.parent if source.is_file() else source
        for splits in (folder / "splits", folder.parent / "splits", folder / "rmd17" / "splits"):
            found = [(path.name, path.read_text()) for path in sorted(splits.glob("index_*_*.csv"))]
            if found:
                break
    for name, text in found:
        _, part, number = name.removesuffix(".csv").split("_")
        yield part, number, text


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and Path(member.name).match(pattern):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    yield member.name, handle.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise EutecticError(str(archive), f"not a whole tar archive ({error})", "rmd17.tar.bz2", _FETCH) from error


def _length(where: str, data: io.BytesIO | Path) -> int:
    """Number of energies, without reading them."""
    try:
        with zipfile.ZipFile(data) as bundle, bundle.open("energies.npy") as handle:
            version = np.lib.format.read_magic(handle)
            header = (
                np.lib.format.read_array_header_1_0(handle)
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0(handle)
            )
        return int(header[0][0])
    except (zipfile.BadZipFile, zlib.error, KeyError, IndexError, ValueError, EOFError, OSError) as error:
        raise _broken(where, error) from error


def _arrays(
    where: str, data: io.BytesIO | Path, molecule: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    try:
        # Plain arrays only: an npz may hold pickles, and those are never opened.
        # Opened here, since np.load leaves a file open that is not a whole npz.
        with contextlib.ExitStack() as opened:
            handle = opened.enter_context(data.open("rb")) if isinstance(data, Path) else data
            bundle = opened.enter_context(np.load(handle, allow_pickle=False))
            numbers = np.asarray(bundle["nuclear_charges"], dtype=np.int64)
            coords, energies, forces = (
                np.asarray(bundle[k], dtype=np.float64) for k in ("coords", "energies", "forces")
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
    wanted = Formula(MOLECULES[molecule]).count()
    given = Formula.from_list([str(s) for s in _symbols(numbers)])
    if given.count() != wanted:
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
        f"not a whole rMD17 npz ({type(error).__name__}: {error})",
        "arrays nuclear_charges, coords, energies, forces (no pickles)",
        _FETCH,
    )
