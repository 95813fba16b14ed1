"""Open published LMDB files safely: read-only, without a lock file, and never beyond their end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from eutectic.atoms import EutecticError

_guard = threading.Lock()
_open: dict[tuple[int, str], tuple[lmdb.Environment, int]] = {}


@contextmanager
def opened(path: Path) -> Iterator[lmdb.Environment]:
    """Open a file as an environment, shared by all readers in the process (LMDB does not allow opening it twice).

    Raises:
        EutecticError: no such file, not an LMDB file, or truncated.
    """
    # An environment does not survive a fork.
    key = (os.getpid(), os.path.realpath(path))
    with _guard:
        environment, readers = _open[key] if key in _open else (_opened(path), 0)
        _open[key] = environment, readers + 1
    try:
        yield environment
    finally:
        with _guard:
            environment, readers = _open.pop(key)
            if readers > 1:
                _open[key] = environment, readers - 1
            else:
                environment.close()


def _opened(path: Path) -> lmdb.Environment:
    try:
        size = path.stat().st_size
        if size == 0:
            raise unreadable(path, "an empty file")
        environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    except (lmdb.Error, OSError) as error:
        raise unreadable(path, error) from error
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    # LMDB maps the file into memory: reading a missing page would kill the process, not raise.
    if size < expected:
        environment.close()
        raise unreadable(path, f"{size} bytes of {expected}")
    return environment


def get(path: Path, transaction: lmdb.Transaction, key: str) -> bytes | None:
    """The value of a key; None if missing.

    Raises:
        EutecticError: a damaged file.
    """
    try:
        value = transaction.get(key.encode())
    except lmdb.Error as error:
        raise unreadable(path, error) from error
    return None if value is None else bytes(value)


def unreadable(path: Path, why: object) -> EutecticError:
    """Error for a damaged or truncated file."""
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    return EutecticError(
        str(path),
        f"it could not be read ({reason})",
        "a complete LMDB file",
        "check the path and the file's size; if it is truncated, download or unpack it again",
    )
