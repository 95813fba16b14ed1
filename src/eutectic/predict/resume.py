"""Resume writing predictions after a kill, from a partial file and a record of its contents and origin.

Extended xyz can be truncated to the recorded length and appended to. Parquet and JSON cannot; for these the partial
file has one line per structure, from which the final file is written at the end.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.description import DESCRIPTION
from eutectic.files import hash_of_files, read_json, replacing, write_atomically, writing_to
from eutectic.predict.files import Read, Summary, Write, store_of
from eutectic.predict.outputs import (
    JSONWriter,
    Output,
    TableOutput,
    XYZWriter,
    partial_rows_path,
    prediction_schema,
    replacing_when_complete,
    row_of,
)
from eutectic.predict.prediction import Prediction
from eutectic.tasks import Task

SAVE_EVERY = 2.0
"""Seconds between two records."""

Facts = Mapping[str, str | int | bool | None]
"""What determines the predictions: name in messages → hash or option."""


def facts_of(folder: Path, source: Path, **options: str | int | bool | None) -> Facts | None:
    """What determines the predictions; None for an input that can be read only once.

    Args:
        folder: model folder.
        source: as for `read_each`.
        options: options of the command, by name.
    """
    source = Path(source)
    try:
        store = store_of(source)
        if store is None and not source.is_file():
            return None
        return {
            "the model": hash_of_files(*sorted(folder.glob("*.safetensors")), folder / DESCRIPTION),
            "the input": hash_of_files(source) if store is None else store.content_hash(),
            "eutectic": eutectic.__version__,
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
        }
    except OSError:
        return None  # reported when it is read


@contextmanager
def resuming(
    path: Path,
    task: Task,
    names: Sequence[str],
    facts: Facts | None,
    *,
    normalised: bool = False,
    note: str | None = None,
) -> Iterator[tuple[Resumable, Write[Prediction]]]:
    """Write predictions to a file that replaces `path` at the end, resuming where an earlier process stopped.

    Args:
        path: the final file: .parquet, .json, or extended xyz.
        task, names, normalised, note: as for `prediction_schema`.
        facts: from `facts_of`; if they are None or differ from the recorded ones, writing starts over.

    Yields:
        The partial file, and the function that writes a prediction to it.

    Raises:
        EutecticError: as `writing_predictions`.
        Interrupted: as `writing_predictions`.
    """

    def as_json(source: Path, final: Path) -> None:
        with replacing(final) as temporary, temporary.open("w", encoding="utf-8") as file:
            writer = JSONWriter(file.write, task, names, normalised=normalised, note=note)
            for row in _rows(source):
                writer.add_row(row)
            writer.close(complete=True)

    def as_table(source: Path, final: Path) -> None:
        with replacing(final) as temporary:
            table = TableOutput(temporary, FIX, prediction_schema(task, names, normalised=normalised, note=note))
            try:
                for row in _rows(source):
                    table.add(row)
                table.finish()
            except BaseException:
                table.abandon()
                raise

    convert = {".json": as_json, ".parquet": as_table}.get(path.suffix)
    with replacing_when_complete(
        path, partial_rows_path(path), lambda partial, fix: Resumable(partial, fix, facts, convert)
    ) as stream:

        def add_row(read: Read, outcome: Prediction | EutecticError) -> None:
            line = json.dumps(row_of(read, outcome), ensure_ascii=False, allow_nan=False)
            stream.write(f"{line}\n", worth=not isinstance(outcome, EutecticError))

        yield stream, XYZWriter(stream, task, normalised=normalised).add if convert is None else add_row


FIX = "free some space, then run the same command again"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


class Resumable(Output):
    """A partial file with its record.

    Args:
        path: the partial file.
        fix: advice if it cannot be written.
        facts: see `resuming`.
        convert: called with the partial and the final file to write the latter; None if the two are identical.

    Attributes:
        summary: summary of the structures already in the file.
        complete: whether these are all.
        said: message to show if the file existed; otherwise empty.
    """

    def __init__(self, path: Path, fix: str, facts: Facts | None, convert: Callable[[Path, Path], None] | None) -> None:
        self._facts, self._convert = facts, convert
        self._record = path.with_name(f"{path.name}.record.json")
        self.summary, self.complete, self.said, kept = Summary(), False, "", 0
        if path.exists():
            try:
                kept, self.complete, self.summary = _found(path, self._record, facts)
                self.said = f"resuming after {self.summary.structures:,} structures in {path.name}"
            except _StartOver as why:
                self.said = f"predicting from the start: {why}"
        if not kept:
            # Before the file is truncated: the record would no longer describe it.
            self._record.unlink(missing_ok=True)
        super().__init__(path, fix, kept)
        self._worth = self.summary.predicted > 0
        self._state: dict[str, Any] | None = None
        self._saved = time.monotonic()

    def save(self, summary: Summary, *, complete: bool = False) -> None:
        """Record that the file holds these structures: whole windows, or all.

        The record on disk is updated every few seconds and at the end.
        """
        reasons = [(error.where, error.given, error.expected, error.fix) for error in summary.reasons]
        state = {**vars(summary), "reasons": reasons, "unseen": dict(summary.unseen)}
        self._state = {"bytes": self._good, "complete": complete, "summary": state}
        if complete or time.monotonic() - self._saved >= SAVE_EVERY:
            self._write_record()

    def put_in_place(self, path: Path) -> None:
        if self._convert is None:
            super().put_in_place(path)
        else:
            self._convert(self._path, path)
            self._path.unlink()
        self._record.unlink(missing_ok=True)

    def after(self, stop: str) -> str:
        if not self._record.exists():
            return super().after(stop)
        return f"predictions so far are in {self._path}; the same command resumes from there"

    def abandon(self) -> bool:
        with suppress(EutecticError, ValueError):  # disk full or file closed: the older record stays
            self._write_record()
        kept = super().abandon()
        if not kept:
            self._record.unlink(missing_ok=True)
        return kept

    def _write_record(self) -> None:
        if self._facts is None or self._state is None:
            return
        with writing_to(self._path, fix=self._fix):
            os.fsync(self._file.fileno())  # before the record that describes it
        content = {"facts": dict(self._facts), **self._state}
        write_atomically(self._record, json.dumps(content, ensure_ascii=False, indent=1), sole_writer=True)
        self._saved = time.monotonic()


class _StartOver(Exception):
    """Why a partial file cannot be resumed."""


def _found(partial: Path, record: Path, facts: Facts | None) -> tuple[int, bool, Summary]:
    """The recorded length of a partial file in bytes, whether it is complete, and a summary of its structures.

    Raises:
        _StartOver: the facts differ, or the file does not match its record.
    """
    if facts is None:
        raise _StartOver("with --json or input from a pipe, predictions cannot be resumed")
    try:
        values = read_json(record, fix="")
        before = dict(values["facts"])
        changed = [name for name in dict.fromkeys([*facts, *before]) if facts.get(name) != before.get(name)]
        if changed:
            raise _StartOver(f"{', '.join(changed)} changed since {partial.name} was written")
        kept, summary = int(values["bytes"]), dict(values["summary"])
        reasons = [EutecticError(*map(str, parts)) for parts in summary.pop("reasons")]
        unseen = Counter({str(name): int(count) for name, count in summary.pop("unseen").items()})
        counts = {name: int(count) for name, count in summary.items()}
        with partial.open("rb") as file:
            file.seek(max(kept - 1, 0))
            if kept < 0 or (kept and file.read(1) != b"\n"):
                raise _StartOver(f"{partial.name} is shorter than its record says")
        return kept, bool(values["complete"]), Summary(**counts, reasons=reasons, unseen=unseen)
    except (EutecticError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _StartOver(f"{partial.name} has no readable record") from error
