"""Read HDF5 and npz files of arrays as they are, without conversion of units or signs.

Arrays are recognised by name and shape. In HDF5 every group with coordinates is read; arrays with one row per
conformation are divided into structures. Pickled arrays are never opened, and links to other files are not followed.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import atomic_numbers

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Structure
from eutectic.data import own_files
from eutectic.data.formats import hdf5, npz_arrays

FRAMES_AT_ONCE = 512
SUFFIXES = (".h5", ".hdf5", ".npz")

NAMES = {
    "positions": r"(coord(inate)?s?|positions?|pos|xyz|r|conformations?|geometr(y|ies))",
    "numbers": r"(atomic_?numbers?|nuclear_charges?|numbers?|species|elements?|z|symbols?|atom_types?)",
    "energy": r"((dft_|total_|scf_|potential_)*energ(y|ies)|e)",
    "forces": r"((dft_|total_)*(forces?|gradients?|grads?)|f)",
}
"""Names of each array (case-insensitive); "wb97x_dz.energy" is an energy with the prefix "wb97x_dz."."""


@dataclass
class Arrays:
    """The arrays used for each quantity; filled while a file is read.

    Attributes:
        keys: "positions", "numbers", "energy", "forces" → name → structures.
        seen: names of all arrays of numbers.
        declared: "positions", … → unit stated in the file.
        ignored: names that look like energies or forces but are not used → structures.
    """

    keys: dict[str, dict[str, int]] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def count(self, role: str, name: str, n: int) -> None:
        """Add `n` structures that use this array in this role."""
        names = self.keys.setdefault(role, {})
        names[name] = names.get(name, 0) + n


def is_arrays(path: Path) -> bool:
    """Whether this module reads the file (by its suffix)."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def rows(
    path: Path, used: Arrays, keys: Mapping[str, str] | None = None, units: Mapping[str, str] | None = None
) -> Iterator[tuple[str, LabelledStructure]]:
    """Location and structure of each record, in the file's own units and signs unless units are given; unchecked.

    Args:
        path: .h5, .hdf5 or .npz.
        used: filled as the file is read.
        keys: "energy" or "forces" → name of the array; otherwise recognised by name.
        units: "energy", "forces" or "positions" → unit of the array, from which it is converted.

    Raises:
        EutecticError: a truncated or damaged file, or no arrays that look like coordinates and atomic numbers.
    """
    chosen = dict(keys or {})
    own_files.check_units(units or {})
    n = 0
    try:
        with _opened(path) as file:
            for group, arrays in _groups(file):
                used.seen |= dict.fromkeys(n for n, a in arrays.items() if a.kind in "fiu")
                for where, row in _records(path, group, arrays, used, chosen):
                    n += 1
                    yield where, _converted(row, units) if units else row
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EutecticError(
            f"{path}, structure {n}",
            f"could not be read ({type(error).__name__}: {error})",
            "a complete HDF5 or npz file of plain arrays",
            "it may be truncated or damaged: download or write it again",
        ) from error
    if not n:
        raise EutecticError(
            str(path),
            "no arrays that look like coordinates (…, atoms, 3) and atomic numbers",
            "names such as coordinates, positions, R; atomic_numbers, species, z",
            "convert a published data set to a store (`eutectic data prepare`), other files to extxyz",
        )


def _converted(row: LabelledStructure, units: Mapping[str, str]) -> LabelledStructure:
    labels = {
        name: PROPERTIES[name].conversion(units[name])(value, len(row.structure)) if name in units else value
        for name, value in row.labels.items()
    }
    factor = own_files.length("positions", units["positions"]) if "positions" in units else 1.0
    return replace(row, structure=replace(row.structure, positions=row.structure.positions * factor), labels=labels)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.suffix.lower() != ".npz":
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
        return
    with npz_arrays.opened(path, str(path)) as bundle:
        yield bundle


@dataclass(frozen=True, eq=False)
class _Array:
    """One array of a file, read on demand."""

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[slice], np.ndarray]
    unit: str = ""


def _groups(file: Any) -> Iterator[tuple[str, dict[str, _Array]]]:
    if not isinstance(file, h5py.File):
        arrays = {}
        for name in npz_arrays.names(file):
            try:
                npz_arrays.array_head(file, name)
            except ValueError as error:
                if "Python objects" not in str(error):
                    raise
                continue  # pickled: not opened
            array = npz_arrays.array(file, name)
            arrays[name] = _Array(name, array.shape, array.dtype.kind, array.__getitem__)
        yield "", arrays
        return
    pending: list[h5py.Group] = [file]
    while pending:
        group = pending.pop()
        # Soft and external links may lead to other files or form cycles: only hard links are followed.
        members = [group[n] for n in group if isinstance(group.get(n, getlink=True), h5py.HardLink)]
        pending += [m for m in reversed(members) if isinstance(m, h5py.Group)]
        for m in members:
            if isinstance(m, h5py.Dataset) and m.shape is not None:
                hdf5.check_size(m)
        arrays = {
            (name := m.name.rsplit("/", 1)[-1]): _Array(
                name, m.shape, m.dtype.kind, m.__getitem__, _text(m.attrs.get("units", m.attrs.get("unit", "")))
            )
            for m in members
            if isinstance(m, h5py.Dataset) and m.shape is not None and not hdf5.is_external(m)
        }
        # Some writers store the energy of a single structure as an attribute of its group.
        for name, value in group.attrs.items():
            array = np.asarray(value)
            if array.dtype.kind in "fiu" and name not in arrays:
                arrays[name] = _Array(name, array.shape, array.dtype.kind, array.__getitem__)
        yield group.name or "", arrays


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _records(
    path: Path, group: str, arrays: dict[str, _Array], used: Arrays, chosen: Mapping[str, str]
) -> Iterator[tuple[str, LabelledStructure]]:
    numeric = {n: a for n, a in arrays.items() if a.kind in "fiu"}
    coordinates = _best("positions", {n: a for n, a in numeric.items() if len(a.shape) >= 2 and a.shape[-1] == 3})
    species = _best("numbers", {n: a for n, a in arrays.items() if a.kind in "fiuSU" and len(a.shape) in (1, 2)})
    if coordinates is None or species is None or 0 in coordinates.shape:
        return
    sizes = _sizes(coordinates, numeric)
    if sizes is not None:
        yield from _ragged(path, coordinates, species, sizes, numeric, used, chosen)
        return
    alone = len(coordinates.shape) == 2
    n_frames, n_atoms = (1, coordinates.shape[0]) if alone else coordinates.shape[-3:-1]
    if len(coordinates.shape) > 3 or species.shape[-1] != n_atoms or species.shape[0] not in (n_frames, n_atoms):
        return
    like = {role: _like(role, numeric) for role in ("energy", "forces")}
    if alone:
        energies = {n: a for n, a in like["energy"].items() if a.shape in ((), (1,))}
    else:
        energies = {n: a for n, a in like["energy"].items() if a.shape in ((n_frames,), (n_frames, 1))}
    same = {n: a for n, a in like["forces"].items() if a.shape == coordinates.shape}
    forces = numeric.get(chosen["forces"]) if "forces" in chosen else _best("forces", same)
    energy = numeric.get(chosen["energy"]) if "energy" in chosen else _best("energy", energies, _kind(forces, "forces"))
    taken = {"positions": coordinates, "numbers": species, "energy": energy, "forces": forces}
    for role, array in taken.items():
        if array is not None:
            used.count(role, array.name, n_frames)
            if array.unit:
                used.declared[role] = array.unit
    for name in {**like["energy"], **like["forces"]}:
        if name not in {a.name for a in taken.values() if a is not None}:
            used.ignored[name] = used.ignored.get(name, 0) + n_frames
    for first in range(0, n_frames, FRAMES_AT_ONCE):
        part = slice(first, min(first + FRAMES_AT_ONCE, n_frames))
        x = _numbers(coordinates, part, alone)
        z = _atomic_numbers(species, part, n_frames, n_atoms)
        e = None if energy is None else _numbers(energy, part, alone).reshape(len(x))
        f = None if forces is None else _numbers(forces, part, alone)
        for i in range(len(x)):
            # Structures of several sizes are padded with atoms of number 0.
            real = z[i] > 0
            labels: dict[str, np.ndarray] = {}
            # Published files have NaN for labels that were not computed.
            if e is not None and not np.isnan(e[i]):
                labels["energy"] = np.asarray(e[i])
            if f is not None and not np.isnan(f[i][real]).all():
                labels["forces"] = f[i][real]
            name = f"{group.strip('/') or path.name}#{first + i}"
            structure = Structure(numbers=z[i][real], positions=x[i][real])
            where = f"{path}, {name}"
            yield where, LabelledStructure(structure=structure, labels=labels, id=name, group=group or path.name)


def _sizes(coordinates: _Array, numeric: Mapping[str, _Array]) -> np.ndarray | None:
    """Number of atoms of each structure, if the atoms of all structures are concatenated in one array."""
    if len(coordinates.shape) == 2:
        for name, array in numeric.items():
            if re.fullmatch(r"n_?atoms|num_?atoms|natoms?_per_.*", name, re.IGNORECASE) and len(array.shape) == 1:
                sizes = np.asarray(array.read(slice(None))).astype(np.int64)
                if sizes.sum() == coordinates.shape[0] and (sizes > 0).all():
                    return sizes
    return None


def _ragged(
    path: Path,
    coordinates: _Array,
    species: _Array,
    sizes: np.ndarray,
    numeric: Mapping[str, _Array],
    used: Arrays,
    chosen: Mapping[str, str],
) -> Iterator[tuple[str, LabelledStructure]]:
    energies = {n: a for n, a in _like("energy", numeric).items() if a.shape in ((len(sizes),), (len(sizes), 1))}
    same = {n: a for n, a in _like("forces", numeric).items() if a.shape == coordinates.shape}
    forces = numeric.get(chosen["forces"]) if "forces" in chosen else _best("forces", same)
    energy = numeric.get(chosen["energy"]) if "energy" in chosen else _best("energy", energies)
    for role, array in {"positions": coordinates, "numbers": species, "energy": energy, "forces": forces}.items():
        if array is not None:
            used.count(role, array.name, len(sizes))
    if species.shape != coordinates.shape[:1]:
        return
    ends = np.cumsum(sizes)
    e = None if energy is None else np.asarray(energy.read(slice(None)), dtype=np.float64).reshape(-1)
    for i, (first, last) in enumerate(zip(ends - sizes, ends, strict=True)):
        part = slice(int(first), int(last))
        labels = {} if e is None or np.isnan(e[i]) else {"energy": np.asarray(e[i])}
        if forces is not None:
            labels["forces"] = np.asarray(forces.read(part), dtype=np.float64)
        structure = Structure(
            numbers=_as_numbers(np.asarray(species.read(part))),
            positions=np.asarray(coordinates.read(part), dtype=np.float64),
        )
        group = structure.numbers.tobytes().hex()
        yield (
            f"{path}, {path.name}#{i}",
            LabelledStructure(structure=structure, labels=labels, id=f"{path.name}#{i}", group=group),
        )


def _numbers(array: _Array, part: slice, alone: bool) -> np.ndarray:
    if alone:
        # () reads a scalar, where a slice would not.
        return np.asarray(array.read(() if array.shape == () else slice(None)), dtype=np.float64)[None]  # type: ignore[arg-type]
    return np.asarray(array.read(part), dtype=np.float64)


def _atomic_numbers(array: _Array, part: slice, n_frames: int, n_atoms: int) -> np.ndarray:
    """(structures, atoms) atomic numbers of some structures."""
    of_each = len(array.shape) == 2 and array.shape[0] == n_frames
    raw = _as_numbers(np.asarray(array.read(part if of_each else slice(None))))
    n = part.stop - part.start
    return raw.reshape(n, n_atoms) if of_each else np.broadcast_to(raw.ravel()[:n_atoms], (n, n_atoms))


def _as_numbers(raw: np.ndarray) -> np.ndarray:
    if raw.dtype.kind in "SU":
        symbols = [s.decode() if isinstance(s, bytes) else str(s) for s in raw.ravel().tolist()]
        raw = np.array([atomic_numbers.get(s.strip(), 0) for s in symbols]).reshape(raw.shape)
    return raw.astype(np.int64)


def _like(role: str, arrays: Mapping[str, _Array]) -> dict[str, _Array]:
    return {n: a for n, a in arrays.items() if re.search(rf"(^|[._ -]){NAMES[role]}$", n, re.IGNORECASE)}


def _kind(array: _Array | None, role: str) -> str:
    """Prefix of an array's name: "wb97x_dz." of "wb97x_dz.forces"."""
    return "" if array is None else re.sub(rf"{NAMES[role]}$", "", array.name, flags=re.IGNORECASE)


def _best(role: str, arrays: Mapping[str, _Array], kind: str = "") -> _Array | None:
    """The array whose name fits best: by prefix `kind`, then the plainest, then the first."""
    names = list(_like(role, arrays))
    if not names:
        return None

    def mismatch(name: str) -> tuple[bool, bool, int]:
        exact = re.fullmatch(NAMES[role], name, re.IGNORECASE) is not None
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(kind, name, strict=False))))
        # Forces are not the gradient of "corr_energy" or "formation_energy".
        other = re.search(r"corr|formation|atomi[sz]ation|interaction|kinetic|old", name, re.IGNORECASE) is not None
        return other, not exact, -shared

    return arrays[min(names, key=mismatch)]
