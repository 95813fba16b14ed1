"""Read files and members of archives in place: nothing is unpacked to disk, no link is followed."""

from __future__ import annotations

import contextlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from eutectic.atoms import EutecticError

Bytes = IO[bytes] | io.BufferedIOBase
"""An open file or archive member (a member is an `io.BufferedIOBase`, as a run-time type checker would report)."""

INSIDE = "!"
"""Separator of members in nested archives: "qmof_database.zip!qmof.json"."""

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    ValueError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


@contextlib.contextmanager
def damage_explained(where: str, expected: str, fix: str) -> Iterator[None]:
    """Convert the exceptions of readers on damaged or wrong files to an `EutecticError`.

    Raises:
        EutecticError: in place of an exception raised inside.
    """
    try:
        yield
    except _DAMAGE as error:
        # First line only: for a file that is not an archive, tarfile adds a line for each of four compressions.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise EutecticError(where, f"not readable ({type(error).__name__}: {reason})", expected, fix) from error


@contextlib.contextmanager
def opened(path: Path, member: str = "") -> Iterator[Bytes]:
    """Open a file, or a member of a (nested) zip archive, as seekable bytes; nested members are joined by `INSIDE`."""
    with contextlib.ExitStack() as stack:
        handle: IO[bytes] = stack.enter_context(path.open("rb"))
        for part in member.split(INSIDE) if member else ():
            handle = stack.enter_context(stack.enter_context(zipfile.ZipFile(handle)).open(part))
        yield handle


def tar_members(path: Path, *patterns: str) -> Iterator[tuple[str, Bytes]]:
    """Name and bytes of each file in a tar archive, compressed or not, whose name matches one of the patterns (as
    `Path.match`), front to back in one pass."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and any(Path(member.name).match(pattern) for pattern in patterns):
                handle = tar.extractfile(member)
                assert handle is not None
                yield member.name, handle


def zip_members(path: Path, member: str = "") -> list[str]:
    """Names of the files in a zip archive, or in a zip archive that is its `member`."""
    with opened(path, member) as handle, zipfile.ZipFile(handle) as bundle:
        return [info.filename for info in bundle.infolist() if not info.is_dir()]
