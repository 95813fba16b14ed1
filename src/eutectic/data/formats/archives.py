"""Files and members of archives, read where they lie: nothing is unpacked to disk, no link is followed."""

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
"""An open file or member. A member is the second, and a checker of types at run time says so."""

INSIDE = "!"
"""Parts the members of a path into nested archives: "qmof_database.zip!qmof.json"."""

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
    """Whatever a file that is cut short or of another kind makes a reader raise, as an error in four parts.

    Raises:
        EutecticError: with these words, in place of what was raised inside.
    """
    try:
        yield
    except _DAMAGE as error:
        # Of a file that is no archive at all, tarfile says for each of four compressions that it is not that.
        said = str(error).partition("\n")[0].rstrip(":")
        raise EutecticError(where, f"not readable ({type(error).__name__}: {said})", expected, fix) from error


@contextlib.contextmanager
def opened(path: Path, member: str = "") -> Iterator[Bytes]:
    """A file, or a member of a zip archive (of a zip archive in it: members joined by `INSIDE`), as seekable bytes."""
    with contextlib.ExitStack() as stack:
        handle: IO[bytes] = stack.enter_context(path.open("rb"))
        for part in member.split(INSIDE) if member else ():
            handle = stack.enter_context(stack.enter_context(zipfile.ZipFile(handle)).open(part))
        yield handle


def tar_members(path: Path, *patterns: str) -> Iterator[tuple[str, Bytes]]:
    """Name and bytes of each file in a tar archive, compressed or not, whose name fits one of the patterns (as
    `Path.match`): front to back, so that it is decompressed once."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and any(Path(member.name).match(pattern) for pattern in patterns):
                handle = tar.extractfile(member)
                assert handle is not None
                yield member.name, handle


def zip_members(path: Path, member: str = "") -> list[str]:
    """Names of the files in a zip archive, or in one that is its `member`."""
    with opened(path, member) as handle, zipfile.ZipFile(handle) as bundle:
        return [info.filename for info in bundle.infolist() if not info.is_dir()]
