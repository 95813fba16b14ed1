"""Prepare a store from a data set's files: parallel, resumable, and independent of the number of processes.

The files are divided into parts by a rule that depends on the files alone. Each part is read by one process into one
Arrow file in a hidden folder beside the store (`.<name>.preparing`); the finished parts are renamed to the store's
shards. An interrupted preparation resumes with the unfinished parts, provided that a small journal shows that
neither the source nor the reader has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
from rich.console import Console

from eutectic import __version__, processes
from eutectic.atoms import EutecticError, Interrupted, LabelledStructure
from eutectic.console import ProgressBar
from eutectic.data import store as store_module
from eutectic.data.card import Card
from eutectic.data.dataset import Dataset, Piece
from eutectic.data.store import (
    PublishedSplits,
    Shard,
    ShardWriter,
    Summary,
    check_place,
    finish_store,
    shard_name,
)
from eutectic.files import locked, put_in_place, replacing, write_atomically, writing_to
from eutectic.processes import cores, run_in_processes

PART_RECORDS = 4096
"""Minimum number of records of a part: the work lost if the process is killed."""

MAX_PARTS = 1024
"""Maximum number of parts, however large the data set."""

RECORD_BYTES = 4096
"""Assumed size of a record in files without a record count."""

LOCK = "lock"
"""Lock file in the folder of a preparation."""

FIRST_MESSAGES = 10
MOST_IN_A_ROW = 20
"""After this many consecutive unreadable records, the rest of a file of unknown length is skipped: if its end is
damaged, reading would never reach it."""


@dataclass(kw_only=True)
class LeftOut:
    """Records left out with `skip_bad`.

    Attributes:
        count: number of records.
        first: error messages of the first ten.
        rows: their indices among all rows; None if unknown.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    rows: list[int] | None = field(default_factory=list)

    def add(self, error: EutecticError, row: int, count: int | None = 1) -> None:
        """Add `count` consecutive records starting at `row`; None is an unknown number."""
        self.first += [str(error)] * (len(self.first) < FIRST_MESSAGES)
        if count is None:
            self.rows = None
        elif self.rows is not None:
            self.rows += range(row, row + count)
        self.count += count or 1

    def __add__(self, other: LeftOut) -> LeftOut:
        known = self.rows is not None and other.rows is not None
        return LeftOut(
            count=self.count + other.count,
            first=[*self.first, *other.first][:FIRST_MESSAGES],
            rows=[*(self.rows or ()), *(other.rows or ())] if known else None,
        )


# --- the plan ---------------------------------------------------------------------------------------


def plan(pieces: Sequence[Piece]) -> list[tuple[tuple[Piece, ...], float]]:
    """Divide the work into parts of consecutive pieces: large pieces are cut, small ones combined.

    Depends on the files alone, not on the number of processes.

    Returns:
        The pieces of each part, in order, and their approximate number of records.
    """
    pieces_per_file = Counter(piece.path for piece in pieces)
    guess = {path: max(1.0, path.stat().st_size / RECORD_BYTES / n) for path, n in pieces_per_file.items()}
    weights = [guess[p.path] if p.count is None else float(p.count) for p in pieces]
    most = max(PART_RECORDS, math.ceil(sum(weights) / MAX_PARTS))
    parts: list[tuple[tuple[Piece, ...], float]] = []
    current: list[Piece] = []
    total = 0.0
    for piece, weight in zip(pieces, weights, strict=True):
        for cut, cut_weight in _cut(piece, weight, most):
            if current and total + cut_weight > most:
                parts.append((tuple(current), total))
                current, total = [], 0.0
            current.append(cut)
            total += cut_weight
    return [*parts, (tuple(current), total)] if current else parts


def _cut(piece: Piece, weight: float, most: int) -> Iterator[tuple[Piece, float]]:
    if piece.count is None or piece.count <= most:
        yield piece, weight
        return
    for offset in range(0, piece.count, most):
        count = min(most, piece.count - offset)
        yield replace(piece, first=piece.first + offset, count=count), float(count)


# --- reading one part -------------------------------------------------------------------------------


def _read(dataset: Dataset, piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """Read a piece; unexpected exceptions become an `EutecticError` with the file and record."""
    done = 0
    try:
        for row in dataset.read(piece, name):
            yield row
            done += 1
    except (EutecticError, MemoryError):
        raise
    # Readers raise all kinds of exceptions on damaged files; the user needs the location.
    except Exception as error:
        raise EutecticError(
            f"{_location(piece)}, about record {piece.first + done}",
            f"could not be read ({type(error).__name__}: {error})",
            f"a record of {name}",
            "the file may be truncated or damaged: download it again",
        ) from error


def _location(piece: Piece) -> str:
    return f"{piece.path}, {piece.member}" if piece.member else str(piece.path)


def _fails(dataset: Dataset, piece: Piece, name: str) -> bool:
    try:
        for _ in _read(dataset, piece, name):
            pass
    except EutecticError:
        return True
    return False


def _bad_record(dataset: Dataset, piece: Piece, name: str, done: int) -> int | None:
    """Index of the first failing record of a piece whose first `done` rows were read; None if none fails now."""
    if _fails(dataset, replace(piece, first=piece.first + done, count=1), name):
        return done
    # Some records give no row: find the shortest failing prefix by bisection.
    good, reach = done, done + 1
    while not _fails(dataset, replace(piece, count=reach), name):
        if reach == piece.count or reach > 2**40:
            return None
        good, reach = reach, min(2 * reach, piece.count or 2**41)
    while reach - good > 1:
        middle = (good + reach) // 2
        if _fails(dataset, replace(piece, count=middle), name):
            reach = middle
        else:
            good = middle
    return reach - 1


def _rows(dataset: Dataset, piece: Piece, name: str, bad: LeftOut | None, start: int) -> Iterator[LabelledStructure]:
    """The usable rows of a piece; unusable ones raise or, with `bad`, are recorded there and skipped.

    Args:
        start: index of the piece's first row, for `bad`.
    """
    rest, place, in_a_row, before = piece, start, 0, ""

    def usable(rows: Iterator[LabelledStructure]) -> Iterator[LabelledStructure]:
        nonlocal place
        for row in rows:
            place += 1
            try:
                row.check(f"{_location(piece)}, {row.id}")
            except EutecticError as error:
                if bad is None:
                    raise _suggest_skip_bad(error) from error
                bad.add(error, place - 1)
            else:
                yield row

    while rest.count is None or rest.count > 0:
        first_place = place
        try:
            yield from usable(_read(dataset, rest, name))
            return
        except EutecticError as error:
            if bad is None:
                raise _suggest_skip_bad(error) from error
            done = place - first_place
            in_a_row = 1 if done else in_a_row + 1
            which = _bad_record(dataset, rest, name, done)
            if which is None:
                raise
            if which > done:
                # A reader that reads records in blocks has not yielded those before the bad one.
                rows = _read(dataset, replace(rest, count=which), name)
                yield from usable(row for number, row in enumerate(rows) if number >= done)
            if str(error) == before or (rest.count is None and in_a_row >= MOST_IN_A_ROW):
                bad.add(error, place, None if rest.count is None else rest.count - which)
                return
            bad.add(error, place)
            place, before = place + 1, str(error)
            left = None if rest.count is None else rest.count - which - 1
            rest = replace(rest, first=rest.first + which + 1, count=left)


def _suggest_skip_bad(error: EutecticError) -> EutecticError:
    if "--skip-bad" in error.fix:
        return error
    return EutecticError(
        error.where, error.given, error.expected, f"{error.fix}; or pass --skip-bad to leave such records out"
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings shared by all parts of a preparation. Picklable: a module is stored by name."""

    dataset: Dataset | str
    name: str
    card: Card
    work: Path
    skip_bad: bool

    def reader(self) -> Dataset:
        """The data set's module or object."""
        return cast(Dataset, importlib.import_module(self.dataset)) if isinstance(self.dataset, str) else self.dataset


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report on a finished part."""

    shard: Shard
    left_out: LeftOut

    @property
    def records(self) -> int:
        """Records read, usable or not."""
        return self.shard.rows + self.left_out.count

    def write(self, path: Path) -> None:
        """Write atomically; its presence marks the part as done."""
        shard = {"rows": self.shard.rows, "bytes": self.shard.bytes, "summary": self.shard.summary.to_dict()}
        content = json.dumps({"shard": shard, "left_out": vars(self.left_out)})
        # No fsync: a part whose report is lost in a power cut is read again.
        write_atomically(path, content, sync=False, sole_writer=True)

    @classmethod
    def read(cls, path: Path) -> Report | None:
        """None if the part is not done, or its file does not match the report."""
        try:
            values = json.loads(path.read_text())
            shard = Shard(**{**values["shard"], "summary": Summary.from_dict(values["shard"]["summary"])})
            complete = path.with_suffix(".arrow").stat().st_size == shard.bytes
            return cls(shard=shard, left_out=LeftOut(**values["left_out"])) if complete else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _report_of(work: Path, number: int) -> Path:
    return work / f"part-{number:05d}.json"


def make_part(job: Job, number: int, pieces: Sequence[Piece], progress: Callable[[int], object]) -> Report:
    """Read some pieces into one Arrow file. Its report is written last and marks the part as done.

    Args:
        job: settings of the preparation.
        number: index of the part.
        pieces: pieces to read, in order.
        progress: called with the number of records read since the last call.
    """
    report, dataset = _report_of(job.work, number), job.reader()
    bad = LeftOut() if job.skip_bad else None
    pending: list[LabelledStructure] = []
    # Errors inside may come from the source, so they are not reported as write errors. The writer calls fsync.
    with replacing(report.with_suffix(".arrow"), sync=False, sole_writer=True, errors=()) as partial:
        with writing_to(job.work):
            writer = ShardWriter(partial, job.card)
        try:
            reported = 0
            for piece in pieces:
                start = writer.rows + len(pending) + (bad.count if bad else 0)
                for row in _rows(dataset, piece, job.name, bad, start):
                    pending.append(row)
                    if len(pending) == store_module.ROWS_PER_BATCH:
                        with writing_to(job.work):
                            writer.add(pending)
                        pending = []
                    read = writer.rows + len(pending) + (bad.count if bad else 0)
                    if not len(pending) % 64:
                        progress(read - reported)
                        reported = read
            with writing_to(job.work):
                if pending:
                    writer.add(pending)
                finished = Report(shard=writer.close(), left_out=bad or LeftOut())
        except BaseException:
            writer.abandon()
            raise
    finished.write(report)
    progress(finished.records - reported)
    return finished


def _make_part_in_worker(job: Job, number: int, pieces: Sequence[Piece]) -> Report:
    """`make_part` in a worker process."""
    return make_part(job, number, pieces, processes.count)


# --- the complete store -----------------------------------------------------------------------------


def prepare_store(
    dataset: Dataset,
    name: str,
    source: Path,
    path: Path,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> LeftOut:
    """Convert a data set's files into a store, or resume an interrupted conversion.

    Args:
        dataset: module that reads the files.
        name: one of its names.
        source: the user's file or folder.
        path: folder to create.
        skip_bad: leave out and report unusable records instead of raising.
        workers: number of processes; None is one per core. The store does not depend on it.
        overwrite: replace an existing store.
        progress: show a progress bar when it takes more than a few seconds.

    Returns:
        The records left out.

    Raises:
        EutecticError: a source that cannot be read; a bad record; something already at `path`; a disk that is or
            will be full; another process preparing the same store.
        Interrupted: Ctrl-C; finished parts are kept.
    """
    path = Path(path).absolute()
    check_place(path, overwrite=overwrite)
    if workers is not None and workers < 1:
        raise EutecticError(f"preparing {name}", f"{workers} workers", "at least 1", "leave it out for one per core")
    with ProgressBar(f"Scanning the files of {name}", unit="", enabled=progress):
        card, pieces = dataset.card(name), dataset.pieces(source, name)
        splits = dataset.published_splits(source, name)
    if card.default_split not in ("group", "random", "paper", *splits):
        card = replace(card, default_split="group", notes=(*card.notes, "No official splits beside the file."))
    parts = plan(pieces)
    work = path.with_name(f".{path.name}.preparing")
    fix = "wait for it, stop it, or choose another --store"
    with locked(work / LOCK, where=path, doing="preparing this store", fix=fix):
        check_place(path, overwrite=overwrite)
        with writing_to(path):
            _begin(work, dataset, name, card, pieces)
        reference = dataset.__name__ if isinstance(dataset, ModuleType) else dataset
        job = Job(dataset=reference, name=name, card=card, work=work, skip_bad=skip_bad)
        reports = _make_all(job, parts, cores() if workers is None else workers, progress)
        left_out = sum((r.left_out for r in reports), LeftOut())
        shards = [r.shard for r in reports if r.shard.rows]
        if not shards:
            shutil.rmtree(work, ignore_errors=True)
            raise EutecticError(name, "no usable structures", "at least one", "check the source and its filters")
        card, splits = _final(card, splits, left_out, reports)
        with writing_to(path):
            folder = work / "store"
            folder.mkdir()
            numbers = [number for number, report in enumerate(reports) if report.shard.rows]
            for at, number in enumerate(numbers):
                _link(_report_of(work, number).with_suffix(".arrow"), folder / shard_name(at))
            summary = {"count": left_out.count, "first": left_out.first} if left_out.count else None
            finish_store(folder, card, shards, splits=splits, left_out=summary)
            put_in_place(folder, path)
        shutil.rmtree(work, ignore_errors=True)
    return left_out


def _final(
    card: Card, splits: PublishedSplits, left_out: LeftOut, reports: Sequence[Report]
) -> tuple[Card, PublishedSplits]:
    """Final card and splits, corrected for records left out and for too few groups."""
    notes, default = list(card.notes), card.default_split
    if left_out.count:
        notes.append(f"{left_out.count} records could not be used and were left out.")
    if splits and left_out.rows is None:
        notes.append("Published splits dropped: it is not known which of their records were left out.")
        splits = {}
    elif splits and left_out.count:
        splits = _without(splits, reports)
    if default not in ("random", "paper", *splits):
        default = "group"
        if sum((r.shard.summary for r in reports), Summary()).n_groups() < 3:
            default = "random"
            notes.append("Fewer than three groups: the default split is random, so groups are on both sides.")
    return replace(card, notes=tuple(notes), default_split=default), splits


def _without(splits: PublishedSplits, reports: Sequence[Report]) -> PublishedSplits:
    """The splits with the left-out records removed and the remaining rows renumbered."""
    missing, before = [], 0
    for report in reports:
        missing += [before + row for row in report.left_out.rows or ()]
        before += report.records
    gone = np.array(missing, dtype=np.int64)

    def kept(rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)[~np.isin(rows, gone)]
        return rows - np.searchsorted(gone, rows)

    return {n: {p: kept(r) for p, r in s.items()} for n, s in splits.items()}


def _link(part: Path, shard: Path) -> None:
    """Hard link (so that a kill at any moment loses nothing), or a copy where links are not supported."""
    try:
        os.link(part, shard)
    except OSError:
        shutil.copyfile(part, shard)


def _begin(work: Path, dataset: Dataset, name: str, card: Card, pieces: Sequence[Piece]) -> None:
    """Clean the work folder; finished parts of an earlier run are kept if its journal is identical."""
    journal = _journal(dataset, name, card, pieces)
    try:
        previous = json.loads((work / "journal.json").read_text())
    except (OSError, ValueError):
        previous = {}
    for left in work.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != LOCK and (previous != journal or left.suffix == ".writing"):
            left.unlink()
    if previous != journal:
        if changed := [key for key in journal if previous and previous.get(key) != journal[key]]:
            why = f"{', '.join(changed)} changed since this preparation was interrupted: starting again"
            Console(stderr=True).print(why)
        write_atomically(work / "journal.json", json.dumps(journal, indent=1), sync=False, sole_writer=True)


def _journal(dataset: Dataset, name: str, card: Card, pieces: Sequence[Piece]) -> dict[str, object]:
    """Everything a part depends on. Files are identified by size and time, since hashing is as slow as reading."""

    def digest(*values: object) -> str:
        return hashlib.sha256(repr(values).encode()).hexdigest()[:32]

    places = {piece.path.absolute() for piece in pieces}
    files = sorted({f for place in places for f in (place.rglob("*") if place.is_dir() else (place,)) if f.is_file()})
    states = [(str(file), (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    module = dataset if isinstance(dataset, ModuleType) else sys.modules[type(dataset).__module__]
    sources = [Path(str(m.__file__)) for m in (module, store_module, sys.modules[__name__])]
    settings = (PART_RECORDS, MAX_PARTS, store_module.ROWS_PER_BATCH)
    options = "" if isinstance(dataset, ModuleType) else repr(dataset)
    return {
        "data set": name,
        "files": len(files),
        "the source": digest(states, pieces),
        "the options": digest(card, options, settings),
        "the program": digest(__version__, [p.read_bytes() for p in sources if p.is_file()]),
    }


def _make_all(job: Job, parts: Sequence[tuple[tuple[Piece, ...], float]], workers: int, progress: bool) -> list[Report]:
    """Make the unfinished parts."""
    reports: dict[int, Report] = {}
    for number in range(len(parts)):
        report = Report.read(_report_of(job.work, number))
        # Without --skip-bad, a part with skipped records is read again, and raises.
        if report is not None and (job.skip_bad or not report.left_out.count):
            reports[number] = report
    todo = [number for number in range(len(parts)) if number not in reports]
    before, total = sum(report.records for report in reports.values()), _total(parts, reports)

    def finished(number: int, report: Report) -> None:
        reports[number] = report
        bar.advance(0, total=_total(parts, reports))
        _check_room(job.work, parts, reports)

    try:
        with ProgressBar(f"Reading {job.name}", total, done=before, enabled=progress) as bar:
            if workers == 1 or len(todo) <= 1:
                for number in todo:
                    finished(number, make_part(job, number, parts[number][0], bar.advance))
            else:
                run_in_processes(
                    _make_part_in_worker,
                    [(job, number, parts[number][0]) for number in todo],
                    workers,
                    where=f"preparing {job.name}",
                    progress=bar.advance,
                    finished=lambda which, report: finished(todo[which], report),
                )
    except KeyboardInterrupt:
        raise Interrupted(
            f"{len(reports)} of {len(parts)} parts of {job.name} are done; run the same command again to resume"
        ) from None
    return [reports[number] for number in range(len(parts))]


def _check_room(work: Path, parts: Sequence[tuple[tuple[Piece, ...], float]], reports: Mapping[int, Report]) -> None:
    """Stop early if the disk is clearly too small for the remaining parts, extrapolated from the finished ones."""
    done = sum(parts[number][1] for number in reports)
    left = sum(weight for _, weight in parts) - done
    needed = sum(report.shard.bytes for report in reports.values()) / max(done, 1.0) * left
    free = shutil.disk_usage(work).free
    if 0.8 * needed > free:
        raise EutecticError(
            str(work.parent),
            f"{free / 1e9:.1f} GB free",
            f"about {needed / 1e9:.1f} GB more for this store",
            "free some space and run the same command again (finished parts are kept), or choose another disk",
        )


def _total(parts: Sequence[tuple[tuple[Piece, ...], float]], reports: Mapping[int, Report]) -> float | None:
    """Records of all parts: known, or estimated from the finished parts; None before the first is finished."""
    weight = sum(weight for _, weight in parts)
    if all(piece.count is not None for pieces, _ in parts for piece in pieces):
        return weight
    done = sum(parts[number][1] for number in reports)
    return sum(report.records for report in reports.values()) / done * weight if done else None
