"""Read arrays of npz files in blocks, in constant memory, without unpickling."""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from eutectic.data.formats.archives import Bytes, check_ratio

ROWS_AT_ONCE = 256


@contextlib.contextmanager
def opened(content: Path | Bytes, where: str) -> Iterator[zipfile.ZipFile]:
    """Open an npz.

    Args:
        content: its path or bytes.
        where: location, for errors.

    Raises:
        EutecticError: it unpacks to an implausible size.
        zipfile.BadZipFile: not an npz.
    """
    # Opened here, since ZipFile does not close a file that it cannot read.
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
        bundle = stack.enter_context(zipfile.ZipFile(cast(IO[bytes], handle)))
        members = bundle.infolist()
        check_ratio(where, sum(m.compress_size for m in members), sum(m.file_size for m in members))
        yield bundle


def names(bundle: zipfile.ZipFile) -> list[str]:
    """Names of the arrays."""
    return [name.removesuffix(".npy") for name in bundle.namelist() if name.endswith(".npy")]


def array(bundle: zipfile.ZipFile, key: str) -> np.ndarray:
    """A whole array.

    Raises:
        ValueError, KeyError: as `array_head`.
    """
    array_head(bundle, key)
    with bundle.open(f"{key}.npy") as handle:
        return np.asarray(np.lib.format.read_array(handle, allow_pickle=False))


def array_head(bundle: zipfile.ZipFile, key: str) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Type, shape, and whether the array is in Fortran order.

    Raises:
        ValueError: an array of Python objects; not a NumPy header; a header that declares more than the file holds.
        KeyError: no array of this name.
    """
    with bundle.open(f"{key}.npy") as handle:
        return _read_head(handle, bundle.getinfo(f"{key}.npy").file_size)


def blocks(
    bundle: zipfile.ZipFile, key: str, first: int, stop: int, at_once: int = ROWS_AT_ONCE
) -> Iterator[np.ndarray]:
    """Rows of an array in the archive, in blocks; preceding rows are decompressed but not kept.

    Raises:
        ValueError, KeyError: as `array_head`.
        EOFError: truncated.
    """
    with bundle.open(f"{key}.npy") as handle:
        dtype, shape, fortran = _read_head(handle, bundle.getinfo(f"{key}.npy").file_size)
        if fortran and len(shape) > 1:
            handle.seek(0)
            whole = np.lib.format.read_array(handle, allow_pickle=False)
            yield from (whole[i : min(i + at_once, stop)] for i in range(first, stop, at_once))
            return
        row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        handle.seek(first * row, io.SEEK_CUR)
        for i in range(first, stop, at_once):
            n = min(at_once, stop - i)
            content = handle.read(n * row)
            if len(content) < n * row:
                raise EOFError(f"{key} ends in row {i + len(content) // row} of {shape[0]}")
            yield np.frombuffer(content, dtype=dtype).reshape(n, *shape[1:])


def cut(parts: Iterator[np.ndarray], counts: Iterable[int]) -> Iterator[np.ndarray]:
    """Regroup rows by `counts`, such as an array of all atoms by structure.

    Raises:
        EOFError: too few rows.
    """
    left = np.zeros(0)
    for count in counts:
        held = [left[:count]]
        missing, left = count - len(held[0]), left[count:]
        while missing:
            part = next(parts, None)
            if part is None:
                raise EOFError(f"{missing} rows are missing")
            held.append(part[:missing])
            missing, left = missing - len(held[-1]), part[missing:]
        yield np.concatenate([some for some in held if len(some)] or held[-1:])


def _read_head(handle: Bytes, held: int) -> tuple[np.dtype, tuple[int, ...], bool]:
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(handle)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which would have to be unpickled")
    # Memory for the declared size would be allocated.
    if math.prod(shape) * dtype.itemsize > held or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} is declared in {held:,} bytes")
    return dtype, shape, fortran
