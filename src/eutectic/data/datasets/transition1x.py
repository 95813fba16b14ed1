"""Transition1x: 9.6 million structures along 10 000 organic reactions (C, H, N, O), on and off their paths.

Schreiner, Bhowmik, Vegge, Busk, Winther, Scientific Data 9, 779 (2022), doi:10.1038/s41597-022-01870-w; file at
doi:10.6084/m9.figshare.19614657 (version 4). Layout of `transition1x.h5`:
`/data/<formula>/<reaction>/{atomic_numbers, positions, wB97x_6-31G(d).energy, wB97x_6-31G(d).forces}` in Å, eV and
eV/Å; `/train`, `/val` and `/test` are links into `/data` and give the published split.

"horm" is HORM (Cui et al., arXiv:2505.12447): structures from Transition1x and RGD1, recalculated at the same level
of theory with Hessians. LMDB files of pickled records (`pos`, `charges`, which are atomic numbers, `energy`,
`forces`, `hessian`) in Å and eV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import elements, hdf5
from eutectic.data.formats.open_catalyst import find, lmdb_pieces
from eutectic.data.formats.pickled_lmdb import array, read_records

CARD = Card(
    name="transition1x",
    title="Transition1x: structures along organic reactions",
    domain="reactions",
    properties=("energy", "forces"),
    level_of_theory="ωB97X/6-31G(d)",
    licence="CC-BY-4.0",
    citation="Schreiner et al., Sci. Data 9, 779 (2022), doi:10.1038/s41597-022-01870-w",
    source="doi:10.6084/m9.figshare.19614657 (transition1x.h5)",
    default_split="published",
    notes=(
        "Energies are total energies.",
        "A group is a reaction.",
        "All structures of every path are read. The separate groups with the reactant, transition state and product of "
        "each reaction are not (as in JMP): structures that are on the path would count twice.",
    ),
)

HORM = Card(
    name="horm",
    title="HORM: reactive molecules of Transition1x and RGD1, with Hessians",
    domain="reactions",
    properties=("energy", "forces"),
    level_of_theory="ωB97X/6-31G(d)",
    licence="not stated (the accompanying code: GPL-3.0)",
    citation="Cui et al., arXiv:2505.12447 (2025)",
    source="github.com/deepprinciple/HORM",
    notes=(
        "Energies are total energies in float32: their precision is 5e-4 eV at -8000 eV.",
        "A group is a chemical formula: records do not identify their reaction (`rxn` is 1 in all records examined).",
        "Hessians and the field `ae` (the energy minus a linear reference) are not read.",
    ),
)

PARTS = {"train": "train", "validation": "val", "test": "test"}
"""Part of the published split → its name in the file."""

_ENERGY, _FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
_EXPECTED = "transition1x.h5"
_FIX = "fetch transition1x.h5 again (doi:10.6084/m9.figshare.19614657)"


PUBLISHED_SIZE = (10_000_000, 14.0)
"""Structures and mean number of atoms (Shoghi et al., ICLR 2024)."""


def names() -> tuple[str, ...]:
    """Transition1x and HORM."""
    return ("transition1x", "horm")


def card(name: str) -> Card:
    """Card of one data set."""
    _known(name)
    return CARD if name == "transition1x" else HORM


def files(name: str) -> tuple[File, ...]:
    """The file of Transition1x (checksum unknown); none for HORM, which has no direct download address."""
    _known(name)
    if name == "horm":
        return ()
    return (
        File(
            name="transition1x.h5",
            url="https://ndownloader.figshare.com/files/36035789",
            size_bytes=6_623_929_000,
        ),
    )


def pieces(source: Path, name: str) -> list[Piece]:
    """Ranges of structures, by formula and reaction; for HORM, in the order of the files.

    Raises:
        EutecticError: no such source; not HDF5 (HORM: LMDB), truncated, or of another data set.
    """
    _known(name)
    if name == "horm":
        return lmdb_pieces(find(Path(source), (".lmdb",), "LMDB files of HORM, such as ts1x-val.lmdb")[1])
    (path,) = hdf5.files_of(Path(source), _EXPECTED, _FIX)
    with hdf5.opened(path, _EXPECTED, _FIX) as file:
        data = hdf5.subgroup(file, "data")
        return hdf5.pieces(path, _reactions(data), partial(_size, data))


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The structures of a piece.

    Yields:
        energy in eV, forces in eV/Å; ids are "<formula>-<reaction>-<position>", groups "<formula>-<reaction>"; for
        HORM, "<file>-<position>" and the formula.

    Raises:
        EutecticError: not HDF5 (HORM: LMDB), truncated, or arrays of other shapes.
    """
    _known(name)
    if name == "horm":
        yield from _horm(piece)
        return
    with hdf5.opened(piece.path, _EXPECTED, _FIX) as file:
        data = hdf5.subgroup(file, "data")
        for path, first, last in hdf5.spans(piece, _reactions(data), partial(_size, data)):
            reaction = hdf5.subgroup(data, path)
            numbers = hdf5.numbers_in(hdf5.dataset(reaction, "atomic_numbers", None)).astype(np.int64)
            positions = hdf5.dataset(reaction, "positions", None, len(numbers), 3)
            frames = int(positions.shape[0])
            coordinates = hdf5.numbers_in(positions, first, last)
            energies = hdf5.numbers_in(hdf5.dataset(reaction, _ENERGY, frames), first, last)
            forces = hdf5.numbers_in(hdf5.dataset(reaction, _FORCES, frames, len(numbers), 3), first, last)
            group = path.replace("/", "-")
            for i in range(last - first):
                yield LabelledStructure(
                    structure=Structure(numbers=numbers, positions=coordinates[i]),
                    labels={"energy": np.asarray(energies[i]), "forces": forces[i]},
                    id=f"{group}-{first + i:04d}",
                    group=group,
                )


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """The split in the file: "published" → train, validation, test → positions in the order of `pieces`.

    Empty for a file without a split.

    Raises:
        EutecticError: as `pieces`; a part with entries that are not in `data`, or links out of it.
    """
    _known(name)
    if name == "horm":
        return {}
    (path,) = hdf5.files_of(Path(source), _EXPECTED, _FIX)
    with hdf5.opened(path, _EXPECTED, _FIX) as file:
        if not set(PARTS.values()) <= set(hdf5.names(file)):
            return {}
        data = hdf5.subgroup(file, "data")
        reactions = _reactions(data)
        ends = np.cumsum([_size(data, reaction) for reaction in reactions])
        starts = dict(zip(reactions, zip(ends - np.diff(ends, prepend=0), ends, strict=True), strict=True))
        parts = {}
        for part, key in PARTS.items():
            members = _members(file, key, reactions)
            ranges = [np.arange(*starts[reaction], dtype=np.int64) for reaction in members]
            parts[part] = np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)
    return {"published": parts}


def _known(name: str) -> None:
    if name not in names():
        raise EutecticError("transition1x", f"data set {name!r}", " or ".join(names()), "choose one of these")


def _horm(piece: Piece) -> Iterator[LabelledStructure]:
    for number, (where, held) in enumerate(read_records(piece.path, piece.first, piece.count), start=piece.first):
        if missing := [key for key in ("pos", "charges", "energy", "forces") if held.get(key) is None]:
            raise EutecticError(
                where,
                f"no {missing[0]!r} among {', '.join(held)}",
                "a record of HORM: pos, charges, energy, forces",
                "prepare other LMDB files as records",
            )
        charges, positions, energy, forces = (
            np.asarray(array(held[key], f"{where}, {key}"), dtype=np.float64)
            for key in ("charges", "pos", "energy", "forces")
        )
        numbers = np.rint(charges).astype(np.int64)
        yield LabelledStructure(
            structure=Structure(numbers=numbers, positions=positions),
            labels={"energy": energy.reshape(()), "forces": forces},
            id=f"{piece.path.stem}-{number}",
            group=elements.formula(numbers.reshape(-1)),
        )


def _reactions(data: h5py.Group) -> list[str]:
    """Paths of all reactions, "<formula>/<reaction>", in order."""
    found = [f"{f}/{r}" for f in hdf5.names(data) for r in hdf5.names(hdf5.subgroup(data, f))]
    if not found:
        raise EutecticError(hdf5.place(data), "no reactions", "data/<formula>/<reaction>", _FIX)
    return found


def _size(data: h5py.Group, reaction: str) -> int:
    return int(hdf5.dataset(hdf5.subgroup(data, reaction), _ENERGY, None).shape[0])


def _members(file: h5py.File, part: str, reactions: list[str]) -> list[str]:
    """The reactions of a part, which contains formulas or reactions, as links into `data` or as groups."""
    known = set(reactions)
    of_formula: dict[str, list[str]] = {}
    for reaction in reactions:
        of_formula.setdefault(reaction.split("/")[0], []).append(reaction)
    found: list[str] = []
    group = hdf5.subgroup(file, part)
    for formula in hdf5.names(group):
        if (target := hdf5.link_to(group, formula)) is not None:
            _expect(group, formula, target, f"data/{formula}")
            if formula not in of_formula:
                raise _dangling(group, formula)
            found += of_formula[formula]
            continue
        inner = hdf5.subgroup(group, formula)
        for name in hdf5.names(inner):
            reaction = f"{formula}/{name}"
            if (target := hdf5.link_to(inner, name)) is not None:
                _expect(inner, name, target, f"data/{reaction}")
            if reaction not in known:
                raise _dangling(inner, name)
            found.append(reaction)
    return found


def _expect(group: h5py.Group, name: str, target: str, expected: str) -> None:
    if target.strip("/") != expected:
        raise EutecticError(hdf5.place(group), f"{name!r} links to {target!r}", f"a link to '/{expected}'", _FIX)


def _dangling(group: h5py.Group, name: str) -> EutecticError:
    return EutecticError(hdf5.place(group), f"{name!r} is not in data", "formulas and reactions in data", _FIX)
