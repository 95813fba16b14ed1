"""Fetching published files: resumed where they were interrupted, and checked while they stream."""

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
"""Seconds without a byte after which a connection is taken for dead."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait before a new attempt, and then a longer one; over again after every one that brought bytes."""

WORTH_TRYING_AGAIN = (408, 425, 429, 500, 502, 503, 504)
CHUNK = 1 << 20


class _Lost(Exception):
    """A connection that broke, or a server that is busy; hopeless where another attempt will hardly go better."""

    def __init__(self, why: str, *, hopeless: bool = False) -> None:
        super().__init__(why)
        self.hopeless = hopeless


def fetch(file: File, folder: Path, *, progress: bool = True) -> Path:
    """Download a file, or go on where an earlier attempt stopped.

    It grows under `<name>.part` and gets its name when it is whole and its checksum is right, so that a file with
    its name is never looked at again.

    Args:
        file: what, from where, and how to know that it is right.
        folder: where to; made if it is not there.
        progress: show how far it is.

    Returns:
        The file.

    Raises:
        EutecticError: no connection; a server that refuses; another checksum or length; a full disk; another
            process that fetches the same file.
        Interrupted: Ctrl-C; what has arrived is kept.
    """
    if urlsplit(file.url).scheme not in ("http", "https"):
        raise EutecticError(file.url, "not a web address", "http:// or https://", "fetch the file by other means")
    path = Path(folder) / file.name
    if path.exists():
        return path
    lock = path.with_name(f".{file.name}.lock")
    bar = ProgressBar(f"Fetching {file.name}", file.size_bytes, unit="bytes", enabled=progress)
    with locked(lock, where=path, doing="fetching this file", fix="wait for it, or stop it"), bar:
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
            raise Interrupted(f"what has arrived of {file.name} is kept; run the same command again to go on") from None
        if wrong := part.wrong():
            # It cannot be gone on with: every byte that was asked for is there.
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
    """What has arrived of a file, and its checksum so far."""

    def __init__(self, file: File, path: Path, stream: BinaryIO) -> None:
        self.file, self.path, self._stream = file, path, stream
        # Where the word is kept by which a server knows whether its file is still the one that was begun.
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
        """In what it differs from what was published; empty if it is right."""
        if self.file.size_bytes is not None and len(self) != self.file.size_bytes:
            return f"{len(self):,} bytes instead of {self.file.size_bytes:,}"
        if self._digest is not None and f"{self._algorithm}:{self._digest.hexdigest()}" != self.file.checksum.lower():
            return f"{self._algorithm} is {self._digest.hexdigest()}"
        return ""


def _by_hand(file: File) -> str:
    return f"fetch {file.url} in a browser, save it as {file.name}, and pass it with --source"


def _stream(part: _Part, bar: ProgressBar) -> None:
    """Append to `part` until the server says that it is whole."""
    pauses = list(PAUSES)
    while True:
        before = len(part)
        try:
            _once(part, bar)
            return
        except _Lost as lost:
            if len(part) > before:
                pauses = list(PAUSES)
            if not pauses or (lost.hopeless and not len(part)):
                raise EutecticError(
                    part.file.url,
                    f"{lost}; {len(part):,} bytes are here",
                    "a connection that lasts",
                    "check the network and run the same command again (it goes on where it was), or "
                    + _by_hand(part.file),
                ) from lost
            time.sleep(pauses.pop(0))


def _once(part: _Part, bar: ProgressBar) -> None:
    """One connection.

    Raises:
        _Lost: worth another.
        EutecticError: not.
    """
    have, file = len(part), part.file
    headers = {"User-Agent": f"eutectic/{__version__}", "Accept-Encoding": "identity"}
    known = part.mark.read_text() if part.mark.exists() else ""
    # Two halves are joined only if something will tell that they belong together.
    if have and (known or file.checksum):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    try:
        answer = urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            # Nothing comes after what is here. Whole, if the checksum says so; else what is here is of another file.
            if not part.wrong():
                return
            part.clear()
            raise _Lost("what was here is not the beginning of the file on the server") from error
        if error.code in WORTH_TRYING_AGAIN:
            raise _Lost(f"the server answered {error.code} {error.reason}") from error
        raise _refused(file, f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        hopeless = isinstance(reason, socket.gaierror | ConnectionRefusedError)
        raise _Lost(f"no connection ({reason})", hopeless=hopeless) from error
    with answer:
        if answer.status not in (200, 206):
            # Some hosts answer 202 and a puzzle for browsers.
            raise _refused(file, f"the server answered {answer.status} {answer.reason}")
        if answer.status == 200 or not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            # The file is another now, or the server knows no ranges.
            part.clear()
            if answer.status == 206:
                raise _Lost("the server sent another range than it was asked for")
            have = 0
        tag = answer.headers.get("ETag") or ""
        with writing_to(part.mark):
            # A weak tag says "much the same", which is not enough to join two halves.
            part.mark.write_text(tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or "")
        length = answer.headers.get("Content-Length") or ""
        total = have + int(length) if length.isdigit() else file.size_bytes
        _check_room(part, total)
        try:
            # As it comes, and not a whole buffer at a time: what has arrived when a connection breaks is kept.
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
