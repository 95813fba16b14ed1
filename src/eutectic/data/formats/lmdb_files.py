"""Opening LMDB files that others wrote: read only, without a lock file, and never beyond their end."""

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
    """A file as an environment. A process opens a file once, however many readers it has (LMDB allows no more).

    Raises:
        EutecticError: not there, not an LMDB file, or cut short.
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
    whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    # LMDB maps the file into memory: touching a page that is not there would end the process, not raise.
    if size < whole:
        environment.close()
        raise unreadable(path, f"{size} bytes of {whole}")
    return environment


def get(path: Path, transaction: lmdb.Transaction, key: str) -> bytes | None:
    """The value of a key; None where there is none.

    Raises:
        EutecticError: the file is damaged on the way to it.
    """
    try:
        value = transaction.get(key.encode())
    except lmdb.Error as error:
        raise unreadable(path, error) from error
    return None if value is None else bytes(value)


def unreadable(path: Path, why: object) -> EutecticError:
    """For a file that is not whole."""
    said = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
    return EutecticError(
        str(path),
        f"it could not be read ({said})",
        "a complete LMDB file",
        "check the path and the file's size; if it was cut short, download or unpack it again",
    )
