"""ANI-1x, five million conformations of small organic molecules (C, H, N, O), and related data sets.

* "ani1x": `ani1x-release.h5`. Smith et al., Scientific Data 7, 134 (2020), doi:10.1038/s41597-020-0473-z; file at
  doi:10.6084/m9.figshare.c.4712477. One group for each formula: `coordinates` Å, `wb97x_dz.energy` Hartree,
  `wb97x_dz.forces` Hartree/Å, `wb97x_dz.dipole` e Å (units: the paper's table of properties).
* "comp6": any file of COMP6, or a folder of them. Smith et al., J. Chem. Phys. 148, 241733 (2018),
  doi:10.1063/1.5023802; files at github.com/isayev/COMP6. **What is called `forces` there is the gradient**, in
  Hartree/Å (issue 2 of that repository; checked against differences of energies).
* "ani1": ANI-1, `ani_gdb_s01.h5` … `ani_gdb_s08.h5`, energies only. Smith, Isayev, Roitberg, Scientific Data 4,
  170193 (2017), doi:10.1038/sdata.2017.193.
* "alkane": bond breaking in alkanes, github.com/GoodpasterGroup/Alkane-Dataset (DFT, with forces), in the same
  layout; **forces are in Hartree/bohr** while positions are in Å (checked against differences of energies).

All four: ωB97X/6-31G(d).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from ase.data import atomic_numbers

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.atoms.units import BOHR, HARTREE
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import hdf5

CARD = Card(
    name="ani1x",
    title="ANI-1x: conformations of small organic molecules, chosen by active learning",
    domain="molecules",
    properties=("energy", "forces", "dipole", "charges"),
    level_of_theory="ωB97X/6-31G(d)",
    licence="CC0-1.0",
    citation="Smith et al., Sci. Data 7, 134 (2020), doi:10.1038/s41597-020-0473-z",
    source="doi:10.6084/m9.figshare.c.4712477 (ani1x-release.h5)",
    notes=(
        "Energies are total energies.",
        "A group is a formula: isomers are never on both sides of a split.",
        "Labels that were not computed are absent; a conformation with neither energy nor forces is left out. Ids "
        "are positions in the formula's group of the file, with gaps for missing conformations.",
        "charges are CM5 charges; zeros in the file mean that they were not computed.",
        "JMP discarded formulas of fewer than four atoms; here they are kept.",
    ),
)

_SHARED = (
    "Energies are total energies.",
    "A group is a molecule of the file.",
    "Labels that are not finite are absent; a conformation with neither energy nor forces is left out.",
)

CARDS: dict[str, Card] = {
    "ani1x": CARD,
    "comp6": replace(
        CARD,
        name="comp6",
        title="COMP6: benchmark of molecules larger than those of ANI-1x",
        properties=("energy", "forces"),
        licence="MIT",
        citation="Smith et al., J. Chem. Phys. 148, 241733 (2018), doi:10.1063/1.5023802",
        source="github.com/isayev/COMP6 (COMP6v1: one or all of its .h5 files)",
        notes=(*_SHARED, "The files call the gradient 'forces'; the sign has been corrected."),
    ),
    "ani1": replace(
        CARD,
        name="ani1",
        title="ANI-1: normal-mode samples of small organic molecules, energies only",
        properties=("energy",),
        citation="Smith, Isayev, Roitberg, Sci. Data 4, 170193 (2017), doi:10.1038/sdata.2017.193",
        source="doi:10.6084/m9.figshare.c.3846712 (ani_gdb_s01.h5 … ani_gdb_s08.h5, unpacked)",
        notes=(*_SHARED, "The separate list of high-energy conformations (coordinatesHE) is left out."),
    ),
    "alkane": replace(
        CARD,
        name="alkane",
        title="Alkane data set: breaking C-C bonds",
        properties=("energy", "forces"),
        licence="not stated",
        citation="github.com/GoodpasterGroup/Alkane-Dataset",
        source="github.com/GoodpasterGroup/Alkane-Dataset (DFT, the .h5 files)",
        notes=(*_SHARED, "Forces are in Hartree/bohr in the files, and have been converted."),
    ),
}

_FIX = (
    "check the name: ani1x is ani1x-release.h5 (doi:10.6084/m9.figshare.c.4712477); comp6, ani1 and alkane have names "
    "of their own; or fetch the file again"
)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """File layout of a data set.

    Attributes:
        file: published file name.
        numbers: name of the array of atomic numbers or symbols.
        energy: name of the array of energies (Hartree).
        forces: name of the array of forces; empty if there are none.
        forces_factor: factor from the file's forces to eV/Å, including the sign.
    """

    file: str
    numbers: str = "species"
    energy: str = "energies"
    forces: str = "forces"
    forces_factor: float = HARTREE


_LAYOUTS = {
    "ani1x": _Layout(
        file="ani1x-release.h5", numbers="atomic_numbers", energy="wb97x_dz.energy", forces="wb97x_dz.forces"
    ),
    "comp6": _Layout(file="s66x8_wb97x6-31gd.h5", forces_factor=-HARTREE),
    "ani1": _Layout(file="ani_gdb_s01.h5", forces=""),
    "alkane": _Layout(file="C2H6_DFT+Force_NMS.h5", forces_factor=HARTREE / BOHR),
}


PUBLISHED_SIZE = (2_000_000, 15.0)
"""Structures and mean number of atoms (Shoghi et al., ICLR 2024)."""


def names() -> tuple[str, ...]:
    """The data sets of this module."""
    return tuple(CARDS)


def card(name: str) -> Card:
    """Card of one data set."""
    return CARDS[_known(name)]


def files(name: str) -> tuple[File, ...]:
    """Files to download: one for ANI-1x; the others must be downloaded by hand (an archive, repositories)."""
    if _known(name) != "ani1x":
        return ()
    return (
        File(
            name="ani1x-release.h5",
            url="https://ndownloader.figshare.com/files/18112775",
            size_bytes=5_590_846_027,
            checksum="md5:98090dd6679106da861f52bed825ffb7",
        ),
    )


def pieces(source: Path, name: str) -> list[Piece]:
    """Ranges of conformations, file by file, sorted by group name.

    Raises:
        EutecticError: no such source; not HDF5, truncated, or of another data set.
    """
    layout = _LAYOUTS[_known(name)]
    found: list[Piece] = []
    for path in hdf5.files_of(Path(source), layout.file, _FIX, several=name != "ani1x"):
        with hdf5.opened(path, layout.file, _FIX) as file:
            groups = _groups(file, name)
            _check_layout(hdf5.subgroup(file, groups[0]), name)
            found += hdf5.pieces(path, groups, partial(_size, file))
    return found


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The conformations of a piece.

    Yields:
        energy in eV, forces in eV/Å, dipole in e Å, charges in e, each where it is known. Ids are
        "<formula>-<position>" for ANI-1x, "<file>/<group>-<position>" for the others.

    Raises:
        EutecticError: not HDF5, truncated, arrays of other shapes, or an invalid element.
    """
    layout = _LAYOUTS[_known(name)]
    with hdf5.opened(piece.path, layout.file, _FIX) as file:
        for group, first, last in hdf5.spans(piece, _groups(file, name), partial(_size, file)):
            molecule = hdf5.subgroup(file, group)
            _check_layout(molecule, name)
            numbers = _numbers(molecule, layout)
            where = group if name == "ani1x" else f"{piece.path.stem}/{group}"
            positions, labels = _arrays(molecule, name, len(numbers), first, last)
            for i in range(len(positions)):
                known = {key: np.asarray(value[i]) for key, value in labels.items() if np.isfinite(value[i]).all()}
                # Missing charges are zeros in the file; other missing properties are NaN.
                if "charges" in known and not known["charges"].any():
                    del known["charges"]
                if "energy" in known or "forces" in known:
                    yield LabelledStructure(
                        structure=Structure(numbers=numbers, positions=positions[i]),
                        labels=known,
                        id=f"{where}-{first + i:06d}",
                        group=where,
                    )


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """None are published."""
    _known(name)
    return {}


def _known(name: str) -> str:
    if name not in CARDS:
        raise EutecticError("ani1x", f"data set {name!r}", f"one of {', '.join(CARDS)}", "choose one of these")
    return name


def _groups(file: h5py.File, name: str) -> list[str]:
    """Paths of the groups that hold conformations."""
    roots = hdf5.names(file)
    found = roots if name == "ani1x" else [path for root in roots for path in _leaves(file, root)]
    if not found:
        raise EutecticError(file.filename, "no groups of molecules", _LAYOUTS[name].file, _FIX)
    return found


def _leaves(file: h5py.File, path: str, depth: int = 0) -> Iterator[str]:
    node = hdf5.child(file, path)
    # Deep enough for all these files; limited because a group can contain itself.
    if isinstance(node, h5py.Group) and depth < 4:
        held = hdf5.names(node)
        if "coordinates" in held:
            yield path
        else:
            for name in held:
                yield from _leaves(file, f"{path}/{name}", depth + 1)


def _size(file: h5py.File, group: str) -> int:
    return int(hdf5.dataset(hdf5.subgroup(file, group), "coordinates", None, None, 3).shape[0])


def _check_layout(molecule: h5py.Group, name: str) -> None:
    """Refuse a related data set under the wrong name: sign and unit of the forces differ without any other sign."""
    layout, held = _LAYOUTS[name], set(hdf5.names(molecule))
    needed = {layout.numbers, layout.energy, "coordinates", *filter(None, [layout.forces])}
    # Present only in the files of COMP6.
    comp6 = {"cm5", "hirshfeld", "lot"}
    if missing := needed - held:
        given = f"no {', '.join(sorted(missing))}; there is {', '.join(sorted(held)[:8]) or 'nothing'}"
    elif name == "ani1" and "forces" in held:
        given = "forces, which ANI-1 does not have"
    elif name == "alkane" and held & comp6:
        given = f"{', '.join(sorted(held & comp6))}, which COMP6 has"
    elif name == "comp6" and not held & comp6:
        given = f"none of {', '.join(sorted(comp6))}, which COMP6 has"
    else:
        return
    raise EutecticError(hdf5.place(molecule), given, f"the layout of {name} ({layout.file})", _FIX)


def _numbers(molecule: h5py.Group, layout: _Layout) -> np.ndarray:
    node = hdf5.dataset(molecule, layout.numbers, None)
    if node.dtype.kind not in "SO":
        return hdf5.numbers_in(node).astype(np.int64)
    symbols = node.asstr()[:] if h5py.check_string_dtype(node.dtype) else []
    unknown = [str(s) for s in symbols if str(s) not in atomic_numbers]
    if unknown or not len(symbols):
        raise EutecticError(
            hdf5.place(node), f"{unknown[0]!r}" if unknown else f"type {node.dtype}", "symbols of elements", _FIX
        )
    return np.array([atomic_numbers[str(s)] for s in symbols], dtype=np.int64)


def _arrays(
    molecule: h5py.Group, name: str, n_atoms: int, first: int, last: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions (frames, n_atoms, 3) in Å, and labels in the library's units."""
    layout = _LAYOUTS[name]
    frames = int(hdf5.dataset(molecule, "coordinates", None, n_atoms, 3).shape[0])

    def values(key: str, *sizes: int) -> np.ndarray:
        return hdf5.numbers_in(hdf5.dataset(molecule, key, frames, *sizes), first, last)

    labels = {"energy": values(layout.energy) * HARTREE}
    if layout.forces:
        labels["forces"] = values(layout.forces, n_atoms, 3) * layout.forces_factor
    if name == "ani1x":
        # Optional arrays.
        held = hdf5.names(molecule)
        if "wb97x_dz.dipole" in held:
            labels["dipole"] = values("wb97x_dz.dipole", 3)
        if "wb97x_dz.cm5_charges" in held:
            labels["charges"] = values("wb97x_dz.cm5_charges", n_atoms)
    return values("coordinates", n_atoms, 3), labels
