"""Read files and members of archives in place: nothing is unpacked to disk, no link is followed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from eutectic.atoms import EutecticError

Bytes = IO[bytes] | io.BufferedIOBase
"""An open file or archive member (a member is an `io.BufferedIOBase`, as a run-time type checker would report)."""

INSIDE = "!"
"""Separator of members in nested archives: "qmof_database.zip!qmof.json"."""

MOST_RATIO = 200
"""Compressed files of structures unpack to three to twenty times their size; more than this is not plausible."""

ALWAYS_UNPACKED = 1 << 25
"""Bytes; a small file may unpack to any multiple of its size up to this."""

READ_AHEAD = 1 << 28
"""Bytes; if unpacking at most this much can show that a size is implausible, it is unpacked before the first structure
is used, so that the error does not come after hours of predictions."""

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


def check_ratio(where: str, packed: int, unpacked: int) -> None:
    """Refuse what unpacks to far more than structures and their labels can.

    Args:
        where: the file, for the error.
        packed, unpacked: bytes on disk, and unpacked so far.

    Raises:
        EutecticError: an implausible ratio.
    """
    if unpacked > max(ALWAYS_UNPACKED, MOST_RATIO * packed):
        raise EutecticError(
            where,
            f"{packed:,} bytes that unpack to {unpacked:,} or more",
            f"at most {MOST_RATIO} times as many: numbers do not compress that well",
            "fetch the file again, or unpack it yourself if you trust it",
        )


class _Unpacked(io.RawIOBase):
    """An unpacked stream that stops where its size becomes implausible."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream, self._packed = path, stream, path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        check_ratio(str(self._path), self._packed, self._stream.tell())
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Bytes]:
    """Open a file as seekable bytes; its first bytes show whether it is compressed by gzip, bzip2 or xz.

    Raises:
        EutecticError: a small file that unpacks to an implausible size (`check_ratio`), or a large one while reading.
    """
    with path.open("rb") as raw:
        magic = raw.read(6)
        raw.seek(0)
        kinds: dict[bytes, Callable[..., Any]] = {
            b"\x1f\x8b": gzip.open,
            b"BZh": bz2.open,
            b"\xfd7zXZ\x00": lzma.open,
        }
        unpack = next((kind for start, kind in kinds.items() if magic.startswith(start)), None)
        if unpack is None:
            yield raw
            return
        with unpack(raw) as stream, io.BufferedReader(_Unpacked(path, stream), 1 << 16) as content:
            if max(ALWAYS_UNPACKED, MOST_RATIO * path.stat().st_size) <= READ_AHEAD:
                while content.read(1 << 20):
                    pass
                content.seek(0)
            yield content


@contextlib.contextmanager
def opened(path: Path, member: str = "") -> Iterator[Bytes]:
    """Open a file, or a member of a (nested) zip archive, as seekable bytes; nested members are joined by `INSIDE`."""
    with contextlib.ExitStack() as stack:
        handle: IO[bytes] = stack.enter_context(path.open("rb"))
        for part in member.split(INSIDE) if member else ():
            bundle = stack.enter_context(zipfile.ZipFile(handle))
            check_ratio(f"{path}, {part}", bundle.getinfo(part).compress_size, bundle.getinfo(part).file_size)
            handle = stack.enter_context(bundle.open(part))
        yield handle


def tar_members(path: Path, *patterns: str) -> Iterator[tuple[str, Bytes]]:
    """Name and bytes of each file in a tar archive, compressed or not, whose name matches one of the patterns (as
    `Path.match`), front to back in one pass."""
    with unpacked(path) as content, tarfile.open(fileobj=cast(IO[bytes], content)) as tar:
        for member in tar:
            if member.isfile() and any(Path(member.name).match(pattern) for pattern in patterns):
                handle = tar.extractfile(member)
                assert handle is not None
                yield member.name, handle


def zip_members(path: Path, member: str = "") -> list[str]:
    """Names of the files in a zip archive, or in a zip archive that is its `member`."""
    with opened(path, member) as handle, zipfile.ZipFile(handle) as bundle:
        return [info.filename for info in bundle.infolist() if not info.is_dir()]
