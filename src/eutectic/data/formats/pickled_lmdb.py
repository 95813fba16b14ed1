"""Safe reading of LMDB files with pickled records, as written by the Open Catalyst Project and others.

Keys "0", "1", … hold records, "length" sometimes their number. A record is a pickled `torch_geometric.data.Data`
(before version 2.0 with its fields in `__dict__`, after it in `_store`) or a dictionary; its fields are numbers,
texts, NumPy arrays and torch tensors, each of these a `torch.save` archive of the old format within the pickle;
sometimes crystals of pymatgen, as objects or as dictionaries.

Unpickling normally calls whatever functions a pickle names. Here no code is run: the names of arrays, tensors, PyTorch
Geometric, pymatgen and emmet are replaced by stand-ins that describe where the numbers are, and any other name is
refused. Lengths and offsets in a pickle are compared with the size of the record before memory is allocated. Numbers
are decoded only in `array`, so unused fields such as edges, most of a record, cost nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import lmdb
import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.formats.lmdb_files import get, opened, unreadable
from eutectic.data.formats.pickles import PlainDictionary, pickle_end

STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "ShortStorage": "<i2",
}
"""Name of a storage class in `torch` → NumPy type."""

LARGEST_CRYSTAL = 1 << 20
"""Maximum number of entries in the dictionary of a crystal; a site has about twenty."""

_HEAD = b"".join(
    pickle.dumps(part, protocol=2)
    for part in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    )
)
"""Header of every tensor within a pickle: magic number, version and sizes of C types, of which only the byte order
matters (torch.serialization, `_legacy_save`)."""

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Allowed NumPy types of an array."""


class _Refused(Exception):
    """Name of a class or function that a pickle imports and that is not allowed."""


class _Bytes:
    """Stand-in for `torch.storage._load_from_bytes`: an unopened archive of one storage."""

    __slots__ = ("data",)

    def __init__(self, data: object) -> None:
        self.data = data

    def __setstate__(self, _state: object) -> None:
        pass


class _Tensor:
    """Stand-in for `torch._utils._rebuild_tensor_v2` (storage, offset, shape, strides, …)."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_rest: object) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __setstate__(self, _state: object) -> None:
        pass

    def array(self) -> np.ndarray:
        if not isinstance(self.storage, _Bytes) or not isinstance(self.storage.data, bytes):
            raise ValueError("a tensor without a storage")
        numbers = _storage(self.storage.data)
        offset, shape, strides = _size(self.offset), _sizes(self.shape), _sizes(self.strides)
        n = math.prod(shape)
        last = offset + sum((k - 1) * stride for k, stride in zip(shape, strides, strict=True))
        # The second condition prevents a huge tensor from a few bytes by strides of zero.
        if n and (last >= len(numbers) or n > len(numbers)):
            raise ValueError(f"a tensor of shape {shape} in a storage of {len(numbers)} numbers")
        if not n:
            return np.zeros(shape, dtype=numbers.dtype)
        step = numbers.itemsize
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, [s * step for s in strides]).copy()


class _Dtype:
    """Stand-in for `numpy.dtype`: its name, and the byte order from its state."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, *_rest: object) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = str(state[1])

    def dtype(self) -> np.dtype:
        # Numbers only: arrays of objects contain pointers.
        if not isinstance(self.name, str) or self.name not in _NUMBERS:
            raise ValueError("an array of something other than numbers")
        return np.dtype(self.order + self.name)


class _Array:
    """Stand-in for NumPy's `_reconstruct`, filled from its state; base of `_frombuffer` and `scalar` (below)."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_arguments: object) -> None:
        self._fill((), None, False, b"")

    def _fill(self, shape: object, dtype: object, fortran: object, data: object) -> None:
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, fortran, data

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array without a state")
        self._fill(*state[1:])

    def array(self) -> np.ndarray:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.data, bytes | bytearray):
            raise ValueError("an array not written by NumPy")
        numbers = np.frombuffer(self.data, dtype=self.dtype.dtype())
        # `reshape` compares the sizes.
        return numbers.reshape(_sizes(self.shape), order="F" if self.fortran else "C").copy()


class _FromBuffer(_Array):
    def __init__(self, data: object, dtype: object, shape: object, order: object, *_rest: object) -> None:
        self._fill(shape, dtype, order == "F", data)


class _Scalar(_Array):
    def __init__(self, dtype: object, data: object = b"", *_rest: object) -> None:
        self._fill((), dtype, False, data)


class _Encoded:
    """Stand-in for `_codecs.encode`, with which protocol 2 writes bytes, and for `bytes` (empty bytes)."""

    def __new__(cls, text: object = "", *_rest: object) -> object:  # type: ignore[misc]
        if not isinstance(text, str):
            raise pickle.UnpicklingError("bytes not written by pickle")
        return text.encode("latin-1")

    def __setstate__(self, _state: object) -> None:
        pass


class _Object:
    """Stand-in for classes of PyTorch Geometric and pymatgen: attributes only, no methods."""

    __slots__ = ("arguments", "attributes")

    def __init__(self, *arguments: object, **_keywords: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.attributes = state


# Classes, not functions: a pickle could set attributes on a function, but not on these.
_KNOWN: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): PlainDictionary,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch.storage", "_load_from_bytes"): _Bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Object,
    **{
        (f"{core}.{module}", name): stand_in
        for core in ("numpy.core", "numpy._core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _FromBuffer),
        )
    },
}


_INERT = ("torch_geometric.data.", "pymatgen.core.", "emmet.core.")
"""Modules whose classes are replaced by `_Object`."""


class _Records(pickle.Unpickler):
    """Unpickler that never imports, and thus never runs, what a pickle names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is not None:
            return known
        if module_name.startswith(_INERT):
            return _Object
        raise _Refused(f"{module_name}.{global_name}")


class _Storages(pickle.Unpickler):
    """Unpickler for the pickles within a tensor's bytes, which name only its type."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and global_name in STORAGES:
            return STORAGES[global_name]
        raise _Refused(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        match pid:
            case ("storage", str(dtype), str(key), str(), int(length), None) if dtype in STORAGES.values():
                return dtype, key, length
        raise pickle.UnpicklingError("a reference to something other than a storage")


def _storage(data: bytes) -> np.ndarray:
    """Numbers of a storage in torch's legacy format."""
    at = len(_HEAD)
    if not data.startswith(_HEAD):
        magic, at = _one(_Storages, data, 0)
        version, at = _one(_Storages, data, at)
        system, at = _one(_Storages, data, at)
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or system.get("little_endian") is not True:
            raise ValueError("a tensor in another format than torch's of 2018 to today, or in big-endian order")
    (dtype, key, length), at = _one(_Storages, data, at)
    keys, at = _one(_Storages, data, at)
    (stored,) = struct.unpack_from("<q", data, at)
    numbers = np.frombuffer(data, dtype=dtype, offset=at + 8)
    if keys != [key] or not len(numbers) == stored == length:
        raise ValueError(f"{len(numbers)} numbers in a storage of {length}")
    return numbers


def _one(reader: type[pickle.Unpickler], data: bytes, start: int) -> tuple[Any, int]:
    """Content and end of the pickle that begins at `start`."""
    end = pickle_end(data, start)
    return reader(io.BytesIO(data[start:end] if start else data)).load(), end


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a size that is not a number")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        raise ValueError("a shape that is not a tuple")
    return tuple(_size(n) for n in value)


def unpickle(data: bytes, where: str) -> object:
    """Content of a pickle; tensors and arrays are decoded later by `array`.

    Args:
        data: the pickle.
        where: location, for errors.

    Raises:
        EutecticError: it imports a class or function that is not allowed; damaged or truncated; lengths beyond its
            size.
    """
    try:
        return _one(_Records, data, 0)[0]
    except _Refused as name:
        raise _not_opened(where, name) from None
    # Damaged pickles raise many kinds of exceptions.
    except Exception as error:
        raise _damaged(where, error) from error


def array(value: object, where: str) -> np.ndarray:
    """Numbers of a field: a tensor, an array, a list or a single number.

    Raises:
        EutecticError: not numbers; incomplete; a tensor whose bytes contain something else.
    """
    try:
        if isinstance(value, _Tensor | _Array):
            return value.array()
        if isinstance(value, int | float):
            return np.asarray(value)
        # At most two levels: a few bytes of pickle can give endlessly nested lists, or one long row a million times.
        if isinstance(value, list | tuple) and all(isinstance(number, int | float) for number in value):
            return np.asarray(value, dtype=np.float64)
        if isinstance(value, list | tuple) and all(_is_row(row) for row in value):
            return np.asarray(value, dtype=np.float64)
    except _Refused as name:
        raise _not_opened(where, name) from None
    except Exception as error:
        raise _damaged(where, error) from error
    raise EutecticError(
        where, f"a {type(value).__name__.strip('_')}", "numbers", "check that the file is of this data set"
    )


def _is_row(value: object) -> bool:
    """Whether a value is a row of coordinates or of a 3 × 3 tensor."""
    return (
        isinstance(value, list | tuple) and len(value) <= 9 and all(isinstance(number, int | float) for number in value)
    )


def crystal(value: object, where: str) -> Mapping[str, object]:
    """Input of `pymatgen_json.structure` from a pickled `Structure` of pymatgen or its dictionary.

    Raises:
        EutecticError: neither; a dictionary that is far too large.
    """
    try:
        if isinstance(value, dict):
            return cast(Mapping[str, object], _plain(value, iter(range(LARGEST_CRYSTAL))))
        lattice, sites = (_attributes(value)[name] for name in ("_lattice", "_sites"))
        matrix, pbc = _attributes(lattice)["_matrix"], _attributes(lattice).get("_pbc", (True, True, True))
        return {
            "lattice": {"matrix": array(matrix, where).tolist(), "pbc": pbc},
            "sites": [_site(site, where) for site in sites],
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise EutecticError(
            where,
            f"not a readable crystal ({type(error).__name__}: {error})",
            "a Structure of pymatgen, or the dictionary that its as_dict gives",
            "write the records as dictionaries of arrays: atomic_numbers, positions, cell, pbc",
        ) from error


def _site(site: object, where: str) -> Mapping[str, object]:
    held = _attributes(site)
    species = _attributes(held["_species"])["_data"]
    return {
        "species": [{"element": element.arguments[0], "occu": share} for element, share in species.items()],
        "abc": array(held["_frac_coords"], where).tolist(),
    }


def _attributes(value: object) -> dict[str, Any]:
    if not isinstance(value, _Object) or not isinstance(value.attributes, dict):
        raise TypeError(f"a {type(value).__name__.strip('_')} without attributes")
    return value.attributes


def _plain(value: object, left: Iterator[int]) -> object:
    """A deep copy of at most as many entries as `left`, since a pickle may refer to one part many times."""
    if next(left, None) is None:
        raise ValueError("more entries than a crystal has")
    if isinstance(value, dict):
        return {name: _plain(entry, left) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, left) for entry in value]
    # Arrays are dropped: sites are described by numbers and texts.
    return value if isinstance(value, int | float | str) else None


def fields(value: object, where: str) -> Mapping[str, object]:
    """Fields of a record (name → value): a dictionary, or PyTorch Geometric's `Data` of any version.

    Raises:
        EutecticError: neither.
    """
    found = value
    if isinstance(value, _Object):
        found = getattr(value, "attributes", None)
        store = found.get("_store") if isinstance(found, dict) else None
        if isinstance(store, _Object):
            found = getattr(store, "attributes", None)
            found = found.get("_mapping") if isinstance(found, dict) else None
    if isinstance(found, dict) and all(isinstance(name, str) for name in found):
        return found
    raise EutecticError(
        where, "a pickle without named fields", "a Data of PyTorch Geometric, or a dictionary", "check the file"
    )


def record_count(path: Path) -> int:
    """Number of records in a file; the entry "length", if present, is not a record and must be right.

    Raises:
        EutecticError: not a complete LMDB file; keys other than "0" to "n-1"; a "length" that is not their number.
    """
    with opened(path) as environment, environment.begin() as transaction:
        entries = environment.stat()["entries"]
        count, length = entries, get(path, transaction, "length")
        if length is not None:
            where = f"{path}, record length"
            count = int(array(unpickle(length, where), where).flat[0])
        if (
            not 0 < count <= entries
            or get(path, transaction, str(count - 1)) is None
            or get(path, transaction, str(count)) is not None
        ):
            raise EutecticError(
                str(path),
                f"{entries} entries" + (f" and a length of {count}" if length is not None else ""),
                'records under the keys "0", "1", … and, at most, their number under "length"',
                "writing it may have been interrupted: write, download or unpack it again",
            )
        return count


def record_keys(path: Path) -> list[int]:
    """Sorted integer keys of a file, possibly with gaps; "length" and other names are not records.

    Raises:
        EutecticError: not a complete LMDB file; no integer keys.
    """
    with opened(path) as environment, environment.begin() as transaction:
        try:
            keys = [int(key) for key in transaction.cursor().iternext(values=False) if bytes(key).isdigit()]
        except lmdb.Error as error:
            raise unreadable(path, error) from error
    if not keys:
        raise EutecticError(
            str(path),
            "no records",
            'records under the keys "0", "1", …',
            "check the file; an .aselmdb of fairchem is read by `ase`",
        )
    return sorted(keys)


def read_records(path: Path, first: int = 0, count: int | None = None) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Records in the order of their keys, one in memory at a time.

    Args:
        path: the file.
        first: key of the first record to read.
        count: number of records; None is all that follow.

    Yields:
        Location of the record, and its fields: numbers and texts as they are, the rest for `array`.

    Raises:
        EutecticError: as `record_count`, `unpickle` and `fields`; a missing record.
    """
    yield from read_keys(path, range(first, record_count(path) if count is None else first + count))


def read_keys(path: Path, keys: Iterable[int]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """As `read_records`, by key.

    Raises:
        EutecticError: as `read_records`.
    """
    with opened(path) as environment, environment.begin() as transaction:
        for key in keys:
            where = f"{path}, record {key}"
            data = get(path, transaction, str(key))
            if data is None:
                raise unreadable(path, f"record {key} is missing")
            yield where, fields(unpickle(data, where), where)


def _not_opened(where: str, name: object) -> EutecticError:
    return EutecticError(
        where,
        f"a pickle that imports {str(name)[:80]!r}",
        "numbers, texts, NumPy arrays, torch tensors, PyTorch Geometric's Data and crystals of pymatgen",
        "none of it was run; take the file from its publisher, or write its records as dictionaries of arrays",
    )


def _damaged(where: str, error: Exception) -> EutecticError:
    return EutecticError(
        where,
        f"a record that cannot be read ({type(error).__name__}: {str(error)[:120]})",
        "a complete pickle, protocol 2 or later",
        "the file may be truncated or damaged: download, unpack or write it again",
    )
