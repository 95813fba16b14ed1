"""Files appear whole or not at all; locks keep others out, and never outlive their process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eutectic.atoms import EutecticError
from eutectic.files import locked, put_in_place, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(fd: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", ["Å\n", b"\x00\xff"])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, "old")
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert names(path.parent) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="this system has other permissions")
def test_others_may_read_it_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EutecticError, match="No space left on device") as caught:
        write_atomically(path, "new")
    assert (caught.value.where, path.read_text(), names(tmp_path)) == (str(path), "old", ["file"])
    assert "free some space" in caught.value.fix
    # Nothing to wait for.
    write_atomically(path, "new", sync=False)
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "thesis.txt").write_text("years of work")
    with pytest.raises(EutecticError, match="could not be written"):
        write_atomically(tmp_path / "place", "text")
    with pytest.raises(EutecticError, match="could not be written"):
        write_atomically(tmp_path / "place" / "thesis.txt" / "file", "text")
    assert names(tmp_path) == ["place"]
    assert (tmp_path / "place" / "thesis.txt").read_text() == "years of work"


def test_an_error_inside_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def write(error: BaseException, **options: Any) -> None:
        with replacing(path, **options) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    with pytest.raises(EutecticError, match=r"could not be written \(bad tensor\).*do it again"):
        write(RuntimeError("bad tensor"), errors=(RuntimeError,), fix="do it again")
    with pytest.raises(OSError, match="of the source"):
        write(OSError("of the source"), errors=())
    assert (path.read_text(), names(tmp_path)) == ("old", ["file"])


def test_a_folder_replaces_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing(path, folder=True) as temporary:
            (temporary / content).write_text(content)
            assert not (path / "new").exists()
    assert (names(path), names(tmp_path)) == (["new"], ["folder"])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EutecticError, match="No space left"), replacing(path, folder=True) as temporary:
        (temporary / "newer").write_text("")
    assert (names(path), names(tmp_path)) == (["new"], ["folder"])


def test_a_folder_that_cannot_be_renamed_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("")
    with pytest.raises(OSError, match="No such file"):
        put_in_place(tmp_path / "absent", tmp_path / "folder", sync=False)
    assert names(tmp_path / "folder") == ["old"]


def take(path: Path, **options: Any) -> None:
    with locked(path, **options):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from eutectic.files import locked, replacing
with locked(Path(sys.argv[1]) / ".lock"), replacing(Path(sys.argv[1]) / "file", sole_writer=True) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_writer_blocks_nobody(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".file.writing", ".lock", "file"]
    assert (tmp_path / "file").read_text() == "old"
    with locked(tmp_path / ".lock"):
        write_atomically(tmp_path / "file", "new", sole_writer=True)
    assert names(tmp_path) == ["file"]


HOLDING = """
import sys
from pathlib import Path
from eutectic.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    command = [sys.executable, "-c", HOLDING, str(lock)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for _ in range(2):  # whoever is refused does not change what the next one is told
        with pytest.raises(EutecticError, match=rf"run: another process \(PID {other.pid} on .*\) is writing here"):
            take(lock)
    with pytest.raises(EutecticError, match=r"file: another process .* is reading; .*; read on"):
        take(lock, where=tmp_path / "file", doing="reading", fix="read on")
    other.communicate()
    take(lock)
    assert names(lock.parent) == []


def test_one_at_a_time_however_many_come(tmp_path: Path) -> None:
    """Each adds one to a number, by reading and writing; a lock file that comes and goes loses none."""
    code = """
import sys, time
from pathlib import Path
from eutectic.atoms import EutecticError
from eutectic.files import locked
folder = Path(sys.argv[1])
for _ in range(40):
    while True:
        try:
            with locked(folder / ".lock"):
                number = int((folder / "number").read_text())
                time.sleep(0.001)
                (folder / "number").write_text(str(number + 1))
            break
        except EutecticError:
            time.sleep(0.0005)
"""
    (tmp_path / "number").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "160"


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("eutectic.files.FileLock.acquire", none)
    with locked(tmp_path / ".lock"):
        assert "no locks" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(EutecticError, match="could not be written"):
        take(tmp_path / "file" / ".lock")
