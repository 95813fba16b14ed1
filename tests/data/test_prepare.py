"""Preparation: the same store for any number of processes, after kills and with bad records."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, Interrupted, LabelledStructure, Structure
from eutectic.data import prepare as prepare_module
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.prepare import LeftOut, plan, prepare_store
from eutectic.data.store import Store, is_store

CARD = Card(
    name="numbers",
    title="Numbers",
    domain="tests",
    properties=("energy",),
    level_of_theory="none",
    licence="CC0-1.0",
    citation="nobody",
    source="made",
    default_split="official",
)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Files of one number to a line, the energy of a structure; a "-" gives none, a word is damage.

    `eager` looks at the whole piece before it gives the first structure, as readers of arrays do.
    """

    counted: bool = True
    eager: bool = False
    pause: float = 0.0

    def names(self) -> tuple[str, ...]:
        return ("numbers",)

    def card(self, name: str) -> Card:
        return CARD

    def files(self, name: str) -> tuple[File, ...]:
        return ()

    def pieces(self, source: Path, name: str) -> list[Piece]:
        files = sorted(source.glob("*.txt"))
        return [Piece(path=f, count=len(f.read_text().splitlines()) if self.counted else None) for f in files]

    def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
        lines = piece.path.read_text().splitlines()
        end = None if piece.count is None else piece.first + piece.count
        chosen = list(enumerate(lines))[piece.first : end]
        if self.eager:
            [float(line) for _, line in chosen if line != "-"]
        for number, line in chosen:
            if line == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            if line == "-":
                continue
            time.sleep(self.pause)
            energy = float(line)
            yield LabelledStructure(
                structure=Structure(numbers=np.array([1]), positions=np.full((1, 3), float(number))),
                labels={"energy": np.asarray(energy)},
                id=f"{piece.path.stem}-{number}",
                group=piece.path.stem,
            )

    def published_splits(self, source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
        return {"official": {"train": np.array([0, 5, 6, 40]), "test": np.array([7, 3])}}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "PART_RECORDS", 16)


def files(folder: Path, lengths: tuple[int, ...] = (50, 3, 4, 30)) -> Path:
    folder.mkdir(exist_ok=True)
    for number, length in enumerate(lengths):
        (folder / f"f{number}.txt").write_text("".join(f"{number}.{i:02d}\n" for i in range(length)))
    return folder


def put(file: Path, line: int, text: str) -> None:
    lines = file.read_text().splitlines()
    lines[line] = text
    file.write_text("\n".join(lines) + "\n")


def prepare(
    source: Path, path: Path, dataset: Numbers | None = None, *, skip_bad: bool = False, workers: int = 1
) -> LeftOut:
    return prepare_store(dataset or Numbers(), "numbers", source, path, skip_bad=skip_bad, workers=workers)


def everything(source: Path) -> list[str]:
    return [f"{f.stem}-{i}" for f in sorted(source.glob("*.txt")) for i in range(len(f.read_text().splitlines()))]


def ids(path: Path) -> list[str]:
    return [row.id for row in Store(path)]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_plan_looks_at_the_files_alone(tmp_path: Path) -> None:
    source = files(tmp_path / "source")
    parts = plan(Numbers().pieces(source, "numbers"))
    assert [[(p.path.stem, p.first, p.count) for p in pieces] for pieces, _ in parts] == [
        [("f0", 0, 16)],
        [("f0", 16, 16)],
        [("f0", 32, 16)],
        [("f0", 48, 2), ("f1", 0, 3), ("f2", 0, 4)],
        [("f3", 0, 16)],
        [("f3", 16, 14)],
    ]
    assert sum(weight for _, weight in parts) == 87
    uncounted = plan(Numbers(counted=False).pieces(source, "numbers"))
    assert [p for pieces, _ in uncounted for p in pieces] == Numbers(counted=False).pieces(source, "numbers")


def test_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    source = files(tmp_path / "source")
    for workers in (1, 3):
        prepare(source, tmp_path / f"store-{workers}", workers=workers)
    assert digests(tmp_path / "store-1") == digests(tmp_path / "store-3")
    store = Store(tmp_path / "store-3")
    assert ids(store.path) == everything(source)
    assert store.published_splits()["official"]["train"].tolist() == [0, 5, 6, 40]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "store-1", "store-3"]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from eutectic.data import prepare as module
from test_prepare import Numbers
module.PART_RECORDS = 16
if __name__ == "__main__":
    module.prepare_store(Numbers(pause=float(sys.argv[4])), "numbers", Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
"""


def other_process(source: Path, path: Path, pause: float = 0.0) -> subprocess.Popen[bytes]:
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, str(source), str(path), folder, str(pause)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    prepare(source, tmp_path / "whole")
    stop, times = source / "f0.txt", os.stat(source / "f0.txt")
    put(stop, 40, "KILL")
    os.utime(stop, ns=(times.st_atime_ns, times.st_mtime_ns))
    process = other_process(source, path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not is_store(path)
    work = tmp_path / ".store.preparing"
    assert not is_store(work)
    assert [p.name for p in sorted(work.glob("part-*.json"))] == ["part-00000.json", "part-00001.json"]
    # As before the kill, to the last byte: the journal knows a file by its size and time.
    put(stop, 40, "0.40")
    os.utime(stop, ns=(times.st_atime_ns, times.st_mtime_ns))
    read: list[int] = []
    kept = prepare_module.make_part

    def counted(job: prepare_module.Job, number: int, *rest: object) -> prepare_module.Report:
        read.append(number)
        return kept(job, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "make_part", counted)
    journal = json.loads((work / "journal.json").read_text())
    assert journal["files"] == 4
    prepare(source, path)
    assert digests(path) == digests(tmp_path / "whole")
    assert not work.exists()
    assert read == [2, 3, 4, 5]


def test_a_changed_source_starts_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    put(source / "f3.txt", 20, "damage")
    with pytest.raises(EutecticError, match=r"f3\.txt, about record 20.*could not convert.*--skip-bad"):
        prepare(source, path)
    assert len(list((tmp_path / ".store.preparing").glob("part-*.json"))) == 5
    put(source / "f0.txt", 0, "77.125")
    put(source / "f3.txt", 20, "3.20")
    prepare(source, path)
    assert float(Store(path)[0].labels["energy"]) == 77.125
    assert "the source changed" in capsys.readouterr().err


def test_two_processes_never_prepare_the_same_store(tmp_path: Path) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    process = other_process(source, path, pause=0.2)
    deadline = time.monotonic() + 60
    while not (tmp_path / ".store.preparing" / "journal.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        with pytest.raises(EutecticError, match=rf"\(PID {process.pid} on .*\) is preparing this store"):
            prepare(source, path)
    finally:
        process.kill()
        process.communicate()
    # The lock dies with its process.
    prepare(source, path)
    assert ids(path) == everything(source)


@pytest.mark.parametrize("dataset", [Numbers(), Numbers(eager=True), Numbers(counted=False)], ids=repr)
def test_bad_records_are_left_out_and_counted(tmp_path: Path, dataset: Numbers) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    for file, line, text in (("f0", 1, "-"), ("f0", 4, "word"), ("f0", 20, "nan"), ("f3", 0, "word"), ("f3", 29, "x")):
        put(source / f"{file}.txt", line, text)
    with pytest.raises(EutecticError, match="--skip-bad"):
        prepare(source, path, dataset)
    left_out = prepare(source, path, dataset, skip_bad=True)
    assert left_out.count == 4
    assert any("f0-20: energy is not finite" in message for message in left_out.first)
    gone = {"f0-1", "f0-4", "f0-20", "f3-0", "f3-29"}
    assert ids(path) == [name for name in everything(source) if name not in gone]
    store = Store(path)
    assert "4 records could not be used and were left out." in store.card.notes
    assert store.left_out == {"count": 4, "first": left_out.first}
    # Row 3 was the damaged record 4, since record 1 gives none: the others move up.
    assert store.published_splits()["official"]["train"].tolist() == [0, 4, 5, 38]
    assert store.published_splits()["official"]["test"].tolist() == [6]


def test_what_was_skipped_once_is_refused_without_the_word(tmp_path: Path) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    put(source / "f0.txt", 3, "nan")
    prepare_module.prepare_store(Numbers(), "numbers", source, path, skip_bad=True, workers=1)
    shutil.rmtree(path)
    prepare(source, path, skip_bad=True)
    with pytest.raises(EutecticError, match="f0-3: energy is not finite"):
        prepare_store(Numbers(), "numbers", source, path, workers=1, overwrite=True)
    assert len(Store(path)) == 86


def test_a_file_that_is_damaged_as_a_whole(tmp_path: Path) -> None:
    class Broken(Numbers):
        def read(self, piece: Piece, name: str) -> Iterator[LabelledStructure]:
            if piece.path.stem == "f1":
                raise EutecticError(str(piece.path), "cut short", "a whole file", "fetch it again")
            return super().read(piece, name)

    source, path = files(tmp_path / "source"), tmp_path / "store"
    assert prepare(source, path, Broken(), skip_bad=True).count == 3
    assert len(Store(path)) == 84
    assert prepare(source, tmp_path / "other", Broken(counted=False), skip_bad=True).count == 2
    other = Store(tmp_path / "other")
    assert (other.published_splits(), other.card.default_split) == ({}, "group")


def test_nothing_usable(tmp_path: Path) -> None:
    source = files(tmp_path / "source", (2,))
    (source / "f0.txt").write_text("-\n-\n")
    with pytest.raises(EutecticError, match="no usable structures"):
        prepare(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = files(tmp_path / "source"), tmp_path / "store"
    room = [3]

    def full(fd: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EutecticError, match="No space left on device") as caught:
        prepare(source, path)
    assert "--skip-bad" not in caught.value.fix
    work = tmp_path / ".store.preparing"
    assert len(list(work.glob("part-*.json"))) == 3
    assert not list(work.glob("*.writing"))
    monkeypatch.undo()
    monkeypatch.setattr(prepare_module, "PART_RECORDS", 16)
    prepare(source, path)
    assert ids(path) == everything(source)


def test_a_disk_that_will_be_too_small_is_told_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(EutecticError, match="GB more for this store"):
        prepare(files(tmp_path / "source"), tmp_path / "store")
    assert len(list((tmp_path / ".store.preparing").glob("part-*.json"))) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source, path = files(tmp_path / "source"), tmp_path / "store"
    with monkeypatch.context() as pressed:
        pressed.setattr(prepare_module, "_check_room", interrupt)
        with pytest.raises(Interrupted, match=r"of 6 parts of numbers are done.*same command"):
            prepare(source, path, workers=workers)
    assert not path.exists()
    prepare(source, path)
    assert ids(path) == everything(source)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    source = files(tmp_path / "source")
    put(source / "f3.txt", 4, "KILL")
    with pytest.raises(EutecticError, match="a worker process died"):
        prepare(source, tmp_path / "store", workers=2)
    assert not (tmp_path / "store").exists()
