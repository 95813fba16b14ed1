"""`.aselmdb` files: ASE's database rows in LMDB, as fairchem writes them.

Keys "1", "2", … hold rows, "nextid" the first unused number, "deleted_ids" the deleted ones; every value is JSON,
compressed by zlib. A row has the fields of an ASE database (numbers, positions, cell, pbc, tags,
constraints, energy, forces, stress, …, `key_value_pairs` and `data`). Rows are decoded one at a time.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import dict2constraint

from eutectic.atoms import EutecticError
from eutectic.data.formats.lmdb_files import get, opened, unreadable

SUFFIX = ".aselmdb"
_FIXING = ("FixAtoms", "FixCartesian", "FixScaled", "FixedLine", "FixedPlane")
LARGEST_ROW = 1 << 28
"""Maximum bytes of JSON of a row, against decompression bombs; ten thousand atoms need two million."""


def row_count(path: Path) -> int:
    """Number of rows in a file.

    Raises:
        EutecticError: not a complete `.aselmdb` file.
    """
    with opened(path) as environment, environment.begin() as transaction:
        return len(_ids(path, transaction))


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file; empty if it has none.

    Raises:
        EutecticError: not a complete LMDB file.
    """
    with opened(path) as environment, environment.begin() as transaction:
        value = _value(path, transaction, "metadata")
    return value if isinstance(value, dict) else {}


def read_rows(path: Path, first: int = 0, count: int | None = None) -> Iterator[tuple[Atoms, dict[str, Any]]]:
    """Rows sorted by number, without deleted ones.

    Args:
        path: the file.
        first: position of the first row to read.
        count: number of rows; None is all that follow.

    Yields:
        The structure, with its results in `atoms.calc` (raw forces, also on fixed atoms); and its `data` and
        `key_value_pairs` in one dictionary, with the row's number under "row".

    Raises:
        EutecticError: an incomplete file; a row that is damaged or has no structure.
    """
    with opened(path) as environment, environment.begin() as transaction:
        ids = _ids(path, transaction)
        for number in ids[first : None if count is None else first + count]:
            where = f"{path}, row {number}"
            row = _value(path, transaction, str(number))
            if not isinstance(row, dict):
                raise _no_row(where, "missing" if row is None else f"a {type(row).__name__}")
            try:
                yield _atoms(row), {**_dictionary(row, "data"), **_dictionary(row, "key_value_pairs"), "row": number}
            except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
                raise _no_row(where, f"{type(error).__name__}: {error}") from error


def _ids(path: Path, transaction: lmdb.Transaction) -> range | list[int]:
    after, deleted = _value(path, transaction, "nextid"), _value(path, transaction, "deleted_ids") or []
    entries = transaction.stat()["entries"]
    # A wrong number in a damaged file must not lead to a loop of 10^18 steps.
    plain = type(after) is int and isinstance(deleted, list) and all(type(i) is int for i in deleted)
    if not plain or not 1 <= after <= entries + len(deleted) + 1:
        raise EutecticError(
            str(path),
            f"{entries} records, and nextid {str(after)[:40]}",
            "an .aselmdb file: rows 1, 2, … and the record nextid",
            "check the file; pickled .lmdb files are read by their own data sets",
        )
    gone = set(deleted)
    return [i for i in range(1, after) if i not in gone] if gone else range(1, after)


def _value(path: Path, transaction: lmdb.Transaction, key: str) -> Any:
    data = get(path, transaction, key)
    if data is None:
        return None
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(data, LARGEST_ROW)
        if not stream.eof:
            raise ValueError("truncated, or far too large for a structure")
        return json.loads(text, object_hook=_array)
    except (zlib.error, ValueError, TypeError, RecursionError) as error:
        raise unreadable(path, f"record {key}: {type(error).__name__}: {error}") from error


def _array(value: dict[str, Any]) -> Any:
    """Decode an array as marked by ASE's writer, checking its size and type."""
    if "__ndarray__" not in value:
        return value
    shape, dtype, numbers = value["__ndarray__"]
    if math.prod(shape) != len(numbers) or np.dtype(dtype).kind not in "biuf":
        raise ValueError(f"an array of shape {shape} and type {dtype} of {len(numbers)} numbers")
    return np.array(numbers, dtype=dtype).reshape(shape)


def _atoms(row: dict[str, Any]) -> Atoms:
    atoms = Atoms(
        np.asarray(row["numbers"], dtype=np.int64),
        np.asarray(row["positions"], dtype=np.float64),
        cell=np.asarray(row.get("cell", np.zeros((3, 3))), dtype=np.float64),
        pbc=np.asarray(row.get("pbc", (False, False, False)), dtype=bool),
        tags=np.asarray(row.get("tags", np.zeros(len(row["numbers"]))), dtype=np.int64),
    )
    # Those that may fix atoms; others are ignored.
    written = [{**c, "name": c["name"].split(".")[-1]} for c in row.get("constraints") or []]
    atoms.set_constraint([dict2constraint(c) for c in written if c["name"] in _FIXING])
    results = {name: row[name] for name in all_properties if row.get(name) is not None}
    atoms.calc = SinglePointCalculator(
        atoms, **{name: np.asarray(value, dtype=np.float64)[()] for name, value in results.items()}
    )
    return atoms


def _dictionary(row: dict[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} is a {type(value).__name__}")
    return value


def _no_row(where: str, given: str) -> EutecticError:
    return EutecticError(
        where,
        given,
        "a row with numbers and positions",
        "the file may be truncated or damaged: download or write it again",
    )
