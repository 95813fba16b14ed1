"""Shared readers of the Open Catalyst Project's data sets: finding files, records, tags."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data.dataset import Piece
from eutectic.data.formats import ase_lmdb
from eutectic.data.formats.pickled_lmdb import array, read_records, record_count

URL = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
PIECE = 10_000
"""Records per piece; reading one takes seconds."""

ARCHIVES = (".tar", ".tar.gz", ".tar.xz", ".tgz", ".tar.bz2")


def find(source: Path, suffixes: Iterable[str], expected: str) -> tuple[str, list[Path]]:
    """The kind of files in a source, and the files sorted by name.

    Args:
        source: a file, or a folder with files at any depth.
        suffixes: suffixes of the supported kinds; the longest match is a file's kind.
        expected: description of these kinds.

    Raises:
        EutecticError: no such source; none of these kinds, or several (possibly the same structures twice); an
            archive that has to be unpacked first.
    """
    kinds = sorted(suffixes, key=len, reverse=True)
    if not source.exists():
        raise EutecticError(str(source), "does not exist", expected, "check the path")
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    found: dict[str, list[Path]] = {}
    for path in paths:
        kind = next((kind for kind in kinds if path.name.endswith(kind)), None)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    if len(found) > 1:
        raise EutecticError(
            str(source),
            "files of several kinds: " + ", ".join(f"{len(found[kind])} {kind}" for kind in sorted(found)),
            "one of them, since they may hold the same structures",
            "name the folder of one kind",
        )
    if not found:
        archive = next((path for path in paths if path.name.endswith(ARCHIVES)), None)
        raise EutecticError(
            str(source),
            f"the archive {archive.name}"
            if archive
            else "a file of another kind"
            if source.is_file()
            else f"none among {len(paths)} files",
            expected,
            f"unpack it (tar -xf {archive} -C {archive.parent}) and give the resulting folder"
            if archive
            else "check the path",
        )
    return next(iter(found.items()))


def lmdb_pieces(paths: Iterable[Path]) -> list[Piece]:
    """Pieces of `.lmdb` and `.aselmdb` files, in the given order.

    Raises:
        EutecticError: as `record_count` and `ase_lmdb.row_count`.
    """
    pieces = []
    for path in paths:
        total = ase_lmdb.row_count(path) if path.suffix == ase_lmdb.SUFFIX else record_count(path)
        pieces += [Piece(path=path, first=first, count=min(PIECE, total - first)) for first in range(0, total, PIECE)]
    return pieces


def tags(published: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(n_atoms,) 0 below the surface, 1 on it, 2 adsorbate.

    If there are none, as in VASP output, or if they number layers: 0 for fixed atoms and 1 for free ones, since OC20
    fixes exactly the atoms below the surface. Adsorbates are then 1 as well, which makes no difference in graphs: 1
    and 2 are treated alike.
    """
    return published if published.any() and published.min() >= 0 and published.max() <= 2 else np.where(fixed, 0, 1)


class Record:
    """One record of a pickled LMDB, field by field.

    Args:
        where: location of the record, for errors.
        fields: its fields.
    """

    def __init__(self, where: str, fields: Mapping[str, object]) -> None:
        self.where, self._fields = where, fields

    def __contains__(self, name: str) -> bool:
        return self._fields.get(name) is not None

    def numbers(self, name: str) -> np.ndarray:
        """Numbers of a required field, in float64.

        Raises:
            EutecticError: no such field; not numbers.
        """
        if name not in self:
            raise EutecticError(
                self.where,
                f"no field {name!r} among {', '.join(sorted(self._fields))[:200]}",
                "a record of the Open Catalyst Project",
                "check that the file is of this data set",
            )
        return np.asarray(array(self._fields[name], f"{self.where}, {name}"), dtype=np.float64)

    def label(self, *names: str) -> np.ndarray | None:
        """The first existing of these fields; None if there is none, or if it is non-finite."""
        for name in names:
            if name in self:
                values = self.numbers(name)
                return values if np.isfinite(values).all() else None
        return None

    def word(self, name: str) -> str:
        """An identifier: an integer or a text.

        Raises:
            EutecticError: as `numbers`; neither.
        """
        value = self._fields.get(name)
        if isinstance(value, str):
            return value
        number = self.numbers(name)
        if number.size != 1 or not float(number.flat[0]).is_integer():
            raise EutecticError(
                self.where, f"{name} of shape {number.shape}", "one whole number", "check the file's records"
            )
        return str(int(number.flat[0]))

    def structure(self, positions: str = "pos") -> Structure:
        """The structure, with positions from the field `positions`.

        Raises:
            EutecticError: a field is missing or has an unexpected shape.
        """
        numbers = self._whole("atomic_numbers").reshape(-1)
        shapes = {positions: (len(numbers), 3), "cell": (3, 3)}
        cartesian, cell = (self._shaped(self.numbers(name), name, shape) for name, shape in shapes.items())
        # Some writers omit fields that are zero everywhere.
        per_atom = [self._whole(name) if name in self else np.zeros(len(numbers)) for name in ("fixed", "tags")]
        fixed, published = (
            self._shaped(values, name, (len(numbers),)).astype(np.int64)
            for name, values in zip(("fixed", "tags"), per_atom, strict=True)
        )
        return Structure(
            numbers=numbers,
            positions=cartesian,
            cell=cell,
            pbc=np.ones(3, dtype=bool),
            tags=tags(published, fixed != 0),
            fixed=fixed != 0,
        )

    def labels(self, energy: tuple[str, ...], forces: tuple[str, ...], n_atoms: int) -> dict[str, np.ndarray]:
        """Energy and forces from the first existing fields; NaN and missing labels are left out.

        Raises:
            EutecticError: an unexpected shape.
        """
        found = {"energy": (self.label(*energy), ()), "forces": (self.label(*forces), (n_atoms, 3))}
        return {
            name: self._shaped(values, name, shape) for name, (values, shape) in found.items() if values is not None
        }

    def _whole(self, name: str) -> np.ndarray:
        """Integers, which may be stored as float32."""
        values = self.numbers(name)
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise EutecticError(self.where, f"{name} with fractions", "whole numbers", "check the file's records")
        return values.astype(np.int64)

    def _shaped(self, values: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reshape, allowing for dimensions of size one, which PyTorch Geometric adds."""
        if values.size != math.prod(shape) or tuple(n for n in values.shape if n != 1) != tuple(
            n for n in shape if n != 1
        ):
            raise EutecticError(
                self.where,
                f"{name} of shape {values.shape}",
                f"shape {shape}",
                "check that labels and atoms match",
            )
        return values.reshape(shape)


def read_lmdb(piece: Piece) -> Iterator[Record]:
    """The records of a piece of a pickled LMDB file."""
    for where, fields in read_records(piece.path, piece.first, piece.count):
        yield Record(where, fields)


def labelled(
    structure: Structure, labels: Mapping[str, np.ndarray], system: str, frame: str | None = None
) -> LabelledStructure:
    """Labelled structure with the id "<system>-<frame>"; all frames of a system are one group."""
    name = system if frame is None else f"{system}-{frame}"
    return LabelledStructure(structure=structure, labels=labels, id=name, group=system)


def structure_from_ase(atoms: Atoms) -> Structure:
    """As `Structure.from_ase`, with `tags` as above."""
    structure = Structure.from_ase(atoms)
    return replace(structure, tags=tags(np.asarray(atoms.get_tags(), dtype=np.int64), structure.fixed))
