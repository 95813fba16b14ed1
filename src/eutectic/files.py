"""Atomic writes of files and folders, guarded reads, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eutectic.atoms import EutecticError

log = logging.getLogger(__name__)

FIX = "free some space or choose another disk, then run the same command again"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def writing_to(path: Path, *, errors: tuple[type[Exception], ...] = (OSError,), fix: str = FIX) -> Iterator[None]:
    """Convert a failed write to an error that a user can act on.

    Args:
        path: file or folder being written.
        errors: exceptions that mean a failed write; some libraries raise their own.
        fix: advice in the error.

    Raises:
        EutecticError: one of `errors` was raised in the block.
    """
    try:
        yield
    except errors as error:
        raise EutecticError(
            str(path),
            f"could not be written ({getattr(error, 'strerror', None) or error})",
            "a writable folder with free space",
            fix,
        ) from error


@contextlib.contextmanager
def replacing(
    path: Path,
    *,
    folder: bool = False,
    sync: bool = True,
    sole_writer: bool = False,
    errors: tuple[type[Exception], ...] = (OSError,),
    fix: str = FIX,
) -> Iterator[Path]:
    """Write a file or folder under a temporary name; it replaces `path` when the block ends without an error.

    After an error `path` is unchanged. Missing parent folders are created.

    Args:
        path: the file or folder to write.
        folder: create a folder instead of a file.
        sync: wait until the contents are on disk; otherwise a power failure can leave the new name without its data.
        sole_writer: no other process writes here at the same time. The temporary name is then fixed, so that leftovers
            of a killed process are overwritten.
        errors: exceptions inside the block that mean a failed write (empty: the block reports its own).
        fix: advice in the error.

    Yields:
        The temporary path.

    Raises:
        EutecticError: the disk is full, or the folder is not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{'' if sole_writer else secrets.token_hex(4) + '.'}writing")
    try:
        with writing_to(path, fix=fix):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            if folder:
                temporary.mkdir()
        with writing_to(path, errors=errors, fix=fix):
            yield temporary
        with writing_to(path, fix=fix):
            put_in_place(temporary, path, sync=sync)
    finally:
        _remove(temporary)


def write_atomically(path: Path, content: str | bytes, *, sync: bool = True, sole_writer: bool = False) -> None:
    """Write a file atomically. Arguments and errors are those of `replacing`; text is written as UTF-8."""
    with replacing(path, sync=sync, sole_writer=sole_writer) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(path: Path, *, expected: str = "a file written by eutectic", fix: str) -> dict[str, Any]:
    """Read a JSON object from a file that may be missing, truncated, or something else.

    Args:
        path: the file to read.
        expected, fix: for the error.

    Raises:
        EutecticError: the file holds no JSON object.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except FileNotFoundError as error:
        raise EutecticError(str(path), "does not exist", expected, fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise EutecticError(str(path), f"cannot be read ({error})", expected, fix) from error
    return values


def null_for_unknown(value: Any) -> Any:
    """Convert to plain JSON values: None for NaN and infinity, lists for tuples."""
    if isinstance(value, dict):
        return {key: null_for_unknown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_unknown(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hash_of_files(*paths: Path) -> str:
    """Hash of the contents of files in the given order, as 32 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    combined = hashlib.blake2b(digest_size=16)
    for path in paths:
        with Path(path).open("rb") as file:
            combined.update(hashlib.file_digest(file, "blake2b").digest())
    return combined.hexdigest()


def put_in_place(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Rename a finished file or folder to `path`. A complete old or new version exists at every moment.

    Raises:
        OSError: the rename failed; the old version is still at `path`.
    """
    if sync:
        for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
            if file.is_file():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
    if not temporary.is_dir():
        os.replace(temporary, path)
        return
    # A rename cannot replace a non-empty folder.
    old = path.with_name(f".{path.name}.replaced-{secrets.token_hex(4)}")
    if path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    where: Path | None = None,
    doing: str = "writing here",
    fix: str = "wait for it, stop it, or choose another folder",
) -> Iterator[None]:
    """Hold an exclusive lock between processes while the block runs.

    The operating system releases the lock when the process ends, even if it is killed; a leftover lock file does not
    block the next process.

    Args:
        path: the lock file; created, and removed at the end.
        where: path that the lock protects, for the error; default: the folder of the lock file.
        doing: activity of the other process, for the error.
        fix: advice in the error.

    Raises:
        EutecticError: another process holds the lock, or the folder is not writable.
    """
    path = Path(path)
    where = path.parent if where is None else where
    with writing_to(where):
        path.parent.mkdir(parents=True, exist_ok=True)
    holder, lock = _holder(path), FileLock(path)
    try:
        lock.acquire(timeout=0)
    # FileNotFoundError: the other process has just finished and removed the folder.
    except (Timeout, FileNotFoundError):
        raise EutecticError(str(where), f"another process{holder} is {doing}", "one process at a time", fix) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            with writing_to(where):
                raise
        log.warning("%s: this file system has no locks (%s); do not start a second process here", where, error)
    try:
        with contextlib.suppress(OSError):
            path.write_text(f"PID {os.getpid()} on {platform.node()}")
        yield
    finally:
        # Removed before the lock is released, so that a waiting process creates a new file.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    """The process that holds a lock, as recorded in its file; empty if unknown."""
    try:
        content = path.read_text()
    except (OSError, ValueError):
        return ""
    return f" ({content})" if content else ""
