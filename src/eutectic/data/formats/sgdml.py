"""Read trajectories of one molecule in the layout of sgdml.org (MD17, MD22).

npz: `R` (frames, atoms, 3), `E` (frames,) or (frames, 1), `F` (frames, atoms, 3), `z` (atoms,); newer files state
their units as `e_unit` and `r_unit`. xyz: the energy alone on the second line, or as `energy=`, and forces in the
columns after the positions. Both are read in blocks, in constant memory.

If a file does not state its unit, it is determined by comparing its total energies with those of the atoms: units
differ by a factor of twenty, total energies at any level of theory by less than one per cent. Energies that match no
unit are refused.
"""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula
from jaxtyping import Int

from eutectic.atoms import EutecticError
from eutectic.atoms.units import HARTREE, KCAL_PER_MOL, convert
from eutectic.data.formats.archives import Bytes, damage_explained, opened
from eutectic.data.formats.frames import xyz as xyz_frames
from eutectic.data.formats.npz_arrays import array_head, blocks
from eutectic.data.formats.npz_arrays import opened as opened_npz

FRAMES_PER_PIECE = 50_000
STRETCHES = 40
"""Number of groups of a trajectory: consecutive segments, so that few neighbours in time are on both sides of a
split."""

ATOMIC_UNITS = {"e_unit": "hartree", "r_unit": "bohr"}
"""Meaning of "au" in these files."""

ATOM_ENERGIES: dict[int, float] = {1: -13.61, 6: -1029.9, 7: -1485.3, 8: -2042.6}
"""All-electron energies of free atoms, eV, accurate to 0.1 %: B3LYP, doi:10.6084/m9.figshare.1057643."""

BOUND = (0.995, 1.02)
"""Allowed ratio of the total energy to that of the free atoms: binding adds less than 1 % for H, C, N, O."""

_LAYOUT = "an npz of arrays R, E, F and z (no pickles), or an xyz with an energy and forces"


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Header of a file, with its units.

    Attributes:
        path, member: its location.
        numbers: (atoms,) atomic numbers, the same in all frames.
        n_frames: number of frames.
        energy_unit: in eV.
        length_unit: in Å.
    """

    path: Path
    member: str
    numbers: Int[np.ndarray, " atoms"]
    n_frames: int
    energy_unit: float
    length_unit: float

    @property
    def where(self) -> str:
        """Location, for errors."""
        return f"{self.path}, {self.member}" if self.member else str(self.path)

    def stretch(self, frame: int) -> int:
        """Segment (of `STRETCHES`) of a frame."""
        return frame * STRETCHES // self.n_frames


Frame = tuple[np.ndarray, float, np.ndarray]
"""Positions (atoms, 3) in Å, energy in eV, forces (atoms, 3) in eV/Å."""


def trajectory(path: Path, member: str, formula: str, molecule: str, fetch: str) -> Trajectory:
    """Read and check the header of a file.

    Args:
        path: npz, xyz, or a zip archive with `member`.
        member: see `path`.
        formula: expected formula.
        molecule: name of the molecule.
        fetch: suggestion for a damaged file.

    Raises:
        EutecticError: damaged; unexpected arrays; a different molecule; an unknown unit; energies that are not total
            energies in any unit.
    """
    where = f"{path}, {member}" if member else str(path)
    with damage_explained(where, _LAYOUT, fetch), opened(path, member) as handle:
        if (member or path.name).endswith(".xyz"):
            frames = _xyz(where, handle)
            numbers, _, first, _ = next(frames)
            n_frames = 1 + sum(1 for _ in frames)
            units: tuple[str, str] = ("", "")
        else:
            numbers, n_frames, first, units = _npz_head(where, handle, fetch)
    _check_molecule(where, numbers, formula, molecule)
    length = _unit(where, "r_unit", units[1], "Å") if units[1] else 1.0
    energy = _unit(where, "e_unit", units[0], "eV") if units[0] else None
    return Trajectory(
        path=path,
        member=member,
        numbers=numbers,
        n_frames=n_frames,
        energy_unit=_energy_unit(where, numbers, first, energy),
        length_unit=length,
    )


def frames(head: Trajectory, first: int, count: int | None, fetch: str) -> Iterator[Frame]:
    """Frames of a file, in order.

    Raises:
        EutecticError: damaged, or frames of a different molecule.
    """
    stop = head.n_frames if count is None else min(head.n_frames, first + count)
    force_unit = head.energy_unit / head.length_unit
    with damage_explained(head.where, _LAYOUT, fetch), opened(head.path, head.member) as handle:
        if (head.member or head.path.name).endswith(".xyz"):
            for i, (numbers, positions, energy, forces) in enumerate(
                itertools.islice(_xyz(head.where, handle), first, stop), start=first
            ):
                if not np.array_equal(numbers, head.numbers):
                    raise EutecticError(
                        f"{head.where}, frame {i}", "other atoms than in frame 0", "one molecule in a file", fetch
                    )
                yield positions * head.length_unit, energy * head.energy_unit, forces * force_unit
            return
        with opened_npz(handle, head.where) as bundle:
            parts = [blocks(bundle, key, first, stop) for key in ("R", "E", "F")]
            for positions, energies, forces in zip(*parts, strict=True):
                for r, e, f in zip(positions, energies.reshape(-1), forces, strict=True):
                    yield r * head.length_unit, float(e) * head.energy_unit, f * force_unit


def _npz_head(where: str, handle: Bytes, fetch: str) -> tuple[np.ndarray, int, float, tuple[str, str]]:
    """Atomic numbers, number of frames, first energy, stated units (energy, length)."""
    with opened_npz(handle, where) as bundle:
        names = {Path(n).stem for n in bundle.namelist()}
        if {"nuclear_charges", "coords"} <= names and "R" not in names:
            raise EutecticError(
                where,
                "arrays of rMD17 (nuclear_charges, coords, energies, forces)",
                "arrays of sgdml.org (z, R, E, F)",
                "prepare it as rmd17:<molecule>, which has a different level of theory",
            )
        shapes = {key: array_head(bundle, key)[1] for key in ("R", "E", "F", "z")}
        r, e, f, z = (shapes[key] for key in ("R", "E", "F", "z"))
        if len(z) == 2:
            raise EutecticError(
                where,
                f"z of shape {z}: structures of several sizes, as in QM7-X",
                "one molecule, z of shape (atoms,)",
                "convert it to extended xyz and prepare it as `ase`, stating its own level of theory",
            )
        if len(z) != 1 or len(r) != 3 or r != f or r[1:] != (z[0], 3) or e not in ((r[0],), (r[0], 1)) or not r[0]:
            raise EutecticError(
                where,
                f"R {r}, E {e}, F {f}, z {z}",
                "R and F (frames, atoms, 3), E (frames,) or (frames, 1), z (atoms,)",
                fetch,
            )
        numbers = next(blocks(bundle, "z", 0, z[0], at_once=z[0])).astype(np.int64)
        first = float(next(blocks(bundle, "E", 0, 1)).reshape(-1)[0])
        stated = tuple(_text(bundle, key) if key in names else "" for key in ("e_unit", "r_unit"))
    return numbers, int(r[0]), first, (stated[0], stated[1])


def _text(bundle: zipfile.ZipFile, key: str) -> str:
    with bundle.open(f"{key}.npy") as handle:
        value = np.lib.format.read_array(handle, allow_pickle=False).item()
    text = value.decode() if isinstance(value, bytes) else str(value)
    return "" if text.strip().lower() in ("", "n/a", "none", "unknown") else text.strip()


def _unit(where: str, key: str, stated: str, target: str) -> float:
    try:
        return convert(ATOMIC_UNITS[key] if stated.lower() == "au" else stated, target)
    except EutecticError as error:
        raise EutecticError(
            where,
            f"{key} {stated!r}",
            f"{error.expected}, or au",
            "convert the file to eV and Å as extended xyz, and prepare it as `ase`",
        ) from error


def _energy_unit(where: str, numbers: np.ndarray, energy: float, stated: float | None) -> float:
    atoms = sum(ATOM_ENERGIES[int(z)] for z in numbers)
    for unit in [stated] if stated is not None else [KCAL_PER_MOL, 1.0, HARTREE]:
        if BOUND[0] <= energy * unit / atoms <= BOUND[1]:
            return unit
    raise EutecticError(
        where,
        f"a first energy of {energy:.8g}"
        + ("" if stated is None else f" in the unit it states, {energy * stated:.8g} eV"),
        f"a total energy: near {atoms / KCAL_PER_MOL:.6g} kcal/mol, which is {atoms:.6g} eV",
        "use the published file; prepare one with other energies as `ase`, stating what they are",
    )


def _check_molecule(where: str, numbers: np.ndarray, formula: str, molecule: str) -> None:
    symbols = [chemical_symbols[z] if 0 < z < len(chemical_symbols) else "X" for z in numbers.tolist()]
    given = Formula.from_list(symbols)
    if given.count() != Formula(formula).count():
        raise EutecticError(
            where, f"atoms {given:hill}", f"{formula}, which is {molecule}", "name the molecule that is in the file"
        )


_ENERGY = re.compile(r'(?:^|\s)energy\s*=\s*"?([^\s"]+)', re.IGNORECASE)
_PROPERTIES = re.compile(r'Properties\s*=\s*"?([^\s"]+)')


def _xyz(where: str, handle: Bytes) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    """Numbers, positions, energy, forces of each frame, in the units of the file."""
    lines = io.TextIOWrapper(cast(IO[bytes], handle), encoding="utf-8")
    # Detached at the end: the caller closes the file.
    try:
        i = -1
        for i, frame in enumerate(xyz_frames(lines)):
            try:
                if frame.problem:
                    raise ValueError(frame.problem)
                head, comment, *atoms = frame.text.splitlines()
                n = int(head)
                found = _ENERGY.search(comment)
                energy = float(found[1] if found else comment)
                positions_at, forces_at = _columns(comment)
                rows = [line.split() for line in atoms]
                numbers = np.array([atomic_numbers[row[0]] for row in rows], dtype=np.int64)
                values = np.array([[float(x) for x in row[1:]] for row in rows])
                positions = values[:, positions_at : positions_at + 3]
                forces = values[:, forces_at : forces_at + 3]
                if positions.shape != (n, 3) or forces.shape != (n, 3):
                    raise ValueError("too few columns")
            except (ValueError, IndexError, KeyError) as error:
                raise ValueError(f"frame {i}: {error}") from error
            yield numbers, positions, energy, forces
        if i < 0:
            raise ValueError("no frames")
    finally:
        lines.detach()


def _columns(comment: str) -> tuple[int, int]:
    """First columns of positions and forces, not counting the symbol."""
    found = _PROPERTIES.search(comment)
    if not found:
        return 0, 3
    at, places = 0, {}
    parts = found[1].split(":")
    for name, width in zip(parts[::3], parts[2::3], strict=True):
        places[name] = at - 1
        at += int(width)
    if places.get("species") != -1:
        raise ValueError("the first column is not the species")
    return places["pos"], places["forces"] if "forces" in places else places["force"]
