"""Resumable downloads of published files, with checksums."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from eutectic import __version__
from eutectic.atoms import EutecticError, Interrupted
from eutectic.console import ProgressBar
from eutectic.data.dataset import File
from eutectic.files import locked, writing_to

TIMEOUT = 60.0
"""Seconds without data after which a connection counts as lost."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait before each retry; starts over after an attempt that received data."""

WORTH_TRYING_AGAIN = (408, 425, 429, 500, 502, 503, 504)
CHUNK = 1 << 20


class _Lost(Exception):
    """A broken connection or a busy server; `hopeless` if a retry is unlikely to help."""

    def __init__(self, why: str, *, hopeless: bool = False) -> None:
        super().__init__(why)
        self.hopeless = hopeless


def fetch(file: File, folder: Path, *, progress: bool = True) -> Path:
    """Download a file, or resume an earlier attempt.

    Data is written to `<name>.part`, which is renamed when it is complete and its checksum is right. An existing file
    of that name is therefore not checked again.

    Args:
        file: name, URL, size and checksum.
        folder: destination; created if necessary.
        progress: show a progress bar.

    Returns:
        Path of the file.

    Raises:
        EutecticError: no connection; the server refuses; wrong checksum or length; full disk; another process is
            downloading the same file.
        Interrupted: Ctrl-C; received data is kept.
    """
    if urlsplit(file.url).scheme not in ("http", "https"):
        raise EutecticError(file.url, "not a web address", "http:// or https://", "download the file by other means")
    path = Path(folder) / file.name
    if path.exists():
        return path
    lock = path.with_name(f".{file.name}.lock")
    bar = ProgressBar(f"Downloading {file.name}", file.size_bytes, unit="bytes", enabled=progress)
    with locked(lock, where=path, doing="downloading this file", fix="wait for it, or stop it"), bar:
        if not path.exists():  # another process may just have finished
            _fetch(file, path, bar)
    return path


def _fetch(file: File, path: Path, bar: ProgressBar) -> None:
    with writing_to(path):
        stream: BinaryIO = path.with_name(file.name + ".part").open("ab+")
    with stream:
        try:
            part = _Part(file, path, stream)
            _stream(part, bar)
        except KeyboardInterrupt:
            raise Interrupted(f"received data of {file.name} is kept; run the same command again to resume") from None
        if wrong := part.wrong():
            # Resuming cannot help: every requested byte has arrived.
            part.clear()
            part.mark.unlink(missing_ok=True)
            raise EutecticError(
                file.url,
                f"another file: {wrong}",
                file.checksum or f"{file.size_bytes:,} bytes",
                f"run the same command again; if it happens twice, {_by_hand(file)}",
            )
        with writing_to(path):
            os.fsync(stream.fileno())
            path.with_name(file.name + ".part").replace(path)
        part.mark.unlink(missing_ok=True)


class _Part:
    """Received data of a file, and its checksum so far."""

    def __init__(self, file: File, path: Path, stream: BinaryIO) -> None:
        self.file, self.path, self._stream = file, path, stream
        # The ETag or Last-Modified of the file on the server, for If-Range.
        self.mark = path.with_name(path.name + ".part-of")
        self._algorithm = file.checksum.partition(":")[0]
        self._digest = hashlib.new(self._algorithm) if self._algorithm else None
        stream.seek(0)
        while self._digest is not None and (chunk := stream.read(CHUNK)):
            self._digest.update(chunk)
        stream.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._stream.tell()

    def add(self, chunk: bytes) -> None:
        with writing_to(self.path):
            self._stream.write(chunk)
            self._stream.flush()
        if self._digest is not None:
            self._digest.update(chunk)

    def clear(self) -> None:
        self._stream.truncate(0)
        self._stream.seek(0)
        self._digest = hashlib.new(self._algorithm) if self._algorithm else None

    def wrong(self) -> str:
        """Difference from the published size or checksum; empty if there is none."""
        if self.file.size_bytes is not None and len(self) != self.file.size_bytes:
            return f"{len(self):,} bytes instead of {self.file.size_bytes:,}"
        if self._digest is not None and f"{self._algorithm}:{self._digest.hexdigest()}" != self.file.checksum.lower():
            return f"{self._algorithm} is {self._digest.hexdigest()}"
        return ""


def _by_hand(file: File) -> str:
    return f"download {file.url} in a browser, save it as {file.name}, and {file.by_hand}"


def _stream(part: _Part, bar: ProgressBar) -> None:
    """Append to `part` until it is complete, reconnecting as necessary."""
    pauses = list(PAUSES)
    while True:
        before = len(part)
        try:
            _download_once(part, bar)
            return
        except _Lost as lost:
            if len(part) > before:
                pauses = list(PAUSES)
            if not pauses or (lost.hopeless and not len(part)):
                raise EutecticError(
                    part.file.url,
                    f"{lost}; {len(part):,} bytes received",
                    "a stable connection",
                    "check the network and run the same command again (it resumes), or " + _by_hand(part.file),
                ) from lost
            time.sleep(pauses.pop(0))


def _download_once(part: _Part, bar: ProgressBar) -> None:
    """Download over one connection.

    Raises:
        _Lost: a retry may help.
        EutecticError: a retry cannot help.
    """
    have, file = len(part), part.file
    headers = {"User-Agent": f"eutectic/{__version__}", "Accept-Encoding": "identity"}
    known = part.mark.read_text() if part.mark.exists() else ""
    # Resume only if If-Range or the checksum can show that both halves are of the same file.
    if have and (known or file.checksum):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    try:
        answer = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Nothing follows the received data: complete if the checksum is right, else data of another file.
            if not part.wrong():
                return
            part.clear()
            raise _Lost("the received data is not the beginning of the file on the server") from error
        if error.code in WORTH_TRYING_AGAIN:
            raise _Lost(f"the server answered {error.code} {error.reason}") from error
        raise _refused(file, f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        hopeless = isinstance(reason, socket.gaierror | ConnectionRefusedError)
        raise _Lost(f"no connection ({reason})", hopeless=hopeless) from error
    with answer:
        if answer.status not in (200, 206):
            # Some hosts answer 202 with a browser challenge.
            raise _refused(file, f"the server answered {answer.status} {answer.reason}")
        if answer.status == 200 or not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            # The file has changed, or the server does not support ranges.
            part.clear()
            if answer.status == 206:
                raise _Lost("the server sent a different range than requested")
            have = 0
        tag = answer.headers.get("ETag") or ""
        with writing_to(part.mark):
            # A weak ETag does not guarantee identical bytes.
            part.mark.write_text(tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or "")
        length = answer.headers.get("Content-Length") or ""
        total = have + int(length) if length.isdigit() else file.size_bytes
        _check_room(part, total)
        try:
            # read1 returns data as it arrives, so nothing is lost when the connection breaks.
            while chunk := answer.read1(CHUNK):
                part.add(chunk)
                bar.update(len(part), total=total)
        except (OSError, http.client.HTTPException) as error:
            raise _Lost(f"the connection broke ({error})") from error
    if total is not None and len(part) < total:
        raise _Lost(f"the connection ended at {len(part):,} of {total:,} bytes")


def _refused(file: File, given: str) -> EutecticError:
    return EutecticError(file.url, given, "the file", _by_hand(file))


def _check_room(part: _Part, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - len(part) > free:
        raise EutecticError(
            str(part.path),
            f"{free / 1e9:.1f} GB free",
            f"{(total - len(part)) / 1e9:.1f} GB for the rest of {part.file.name}",
            "free some space, or set EUTECTIC_DATA to a folder on another disk",
        )
