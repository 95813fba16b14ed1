"""Predictions for the structures of a file, in constant memory: read, predicted and written one after the other."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress

from eutectic.atoms import PROPERTIES, EutecticError, Interrupted, Structure
from eutectic.checkpoints.model import TrainedModel, elements_seen
from eutectic.checkpoints.uncertainty import property_of
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files
from eutectic.data.formats.elements import Elements
from eutectic.data.store import Store, is_store
from eutectic.files import locked, writing_to
from eutectic.predict.prediction import Prediction, predict_each, unit_of
from eutectic.tasks import Task


@dataclass(frozen=True)
class Read:
    """A structure of a file, or why it could not be read.

    Attributes:
        index: in the file.
        where: its location, for errors.
        atoms: as ASE reads it, with all its data.
        structure: the same.
        error: why there is none.
    """

    index: int
    where: str
    atoms: Atoms | None = None
    structure: Structure | None = None
    error: EutecticError | None = None


def read_each(source: Path, elements: Elements | None = None, units: Mapping[str, str] | None = None) -> Iterator[Read]:
    """Every structure of a file or a store; those that cannot be read are given with the reason.

    Where reading cannot go on after a structure, the last one given says so.

    Args:
        source: a file that ASE reads, or the path or name of a store.
        elements: type or label of an atom → symbol of its element, for a file that does not name elements.
        units: "positions" and "cell" → unit in the file, before the one that it states; Å by default.

    Raises:
        EutecticError: no file of structures at all.
    """
    source = Path(source)
    store = _store(source)
    if store is not None:
        yield from _rows(store)
        return
    if source.is_dir():
        raise EutecticError(str(source), "a folder", "one file of structures, or a store", "name its files one by one")
    if not source.exists():
        raise EutecticError(str(source), "nothing is here", "a file of structures", "check the path")
    index = 0
    lost: list[Read] = []  # in a row, where reading ended: they are structures only if there are others after them
    while True:
        try:
            for item in ase_files.structures(source, elements, index, units=units):
                yield from lost
                lost.clear()
                if isinstance(item, EutecticError):
                    yield Read(index, item.where, error=item)
                else:
                    yield Read(index, *item)
                index += 1
            break
        except EutecticError as error:
            if index == 0 and "structure 0" not in error.where:
                raise  # of the file
            lost.append(Read(index, error.where, error=error))
            index += 1
            if len(lost) == ase_files.MOST_IN_A_ROW:
                break
    if lost:
        first, last = lost[0], cast(EutecticError, lost[0].error)
        given = f"{last.given}; nothing after it could be read"
        yield Read(first.index, first.where, error=EutecticError(last.where, given, last.expected, last.fix))


def _store(source: Path) -> Store | None:
    if is_store(source):
        return Store(source)
    if source.exists():
        return None
    try:
        return catalogue.open_store(source)
    except EutecticError:
        return None


def _rows(store: Store) -> Iterator[Read]:
    for index in range(len(store)):
        row = store[index]
        atoms = row.structure.to_ase()
        atoms.info |= {"id": row.id, "group": row.group}
        known = {name: row.labels[name] for name in ("energy", "forces", "stress") if name in row.labels}
        atoms.calc = SinglePointCalculator(
            atoms,
            **{
                name: full_3x3_to_voigt_6_stress(value)
                if name == "stress"
                else float(value)
                if not value.ndim
                else value
                for name, value in known.items()
            },
        )
        for name in row.labels.keys() - known.keys():
            value = row.labels[name]
            if PROPERTIES[name].level == "atom":
                atoms.arrays[name] = value
            else:
                atoms.info[name] = value if value.ndim else float(value)
        yield Read(index, f"{store.path}, row {index}", atoms, row.structure)


R = TypeVar("R")

Write = Callable[[Read, R | EutecticError], object]
"""Takes a structure with its result (a prediction, an embedding), or the reason why there is none."""


@dataclass
class Summary:
    """What became of the structures of a file.

    Attributes:
        predicted: number of structures.
        failed: number of structures without a prediction.
        reasons: why, for the first of them.
        unseen: element that the model never saw in training → number of predicted structures with it.
    """

    predicted: int = 0
    failed: int = 0
    reasons: list[EutecticError] = field(default_factory=list)
    unseen: Counter[str] = field(default_factory=Counter)

    MOST_REASONS = 10

    def lines(self) -> list[str]:
        """The same in words; empty if there is nothing to say."""
        lines = []
        if self.failed:
            total = self.predicted + self.failed
            lines.append(f"{self.failed:,} of {total:,} structures could not be predicted, the others were:")
            lines += [f"  {error.where}: {error.given}" for error in self.reasons]
            if self.failed > len(self.reasons):
                lines.append(f"  and {self.failed - len(self.reasons):,} more")
        if self.unseen:
            counts = ", ".join(f"{symbol} ({n:,} structures)" for symbol, n in self.unseen.items())
            lines.append(f"elements that the model never saw in training: {counts}")
        return lines


def predict_file(
    model: TrainedModel,
    task_name: str,
    source: Path,
    writers: Sequence[Write[Prediction]],
    *,
    elements: Elements | None = None,
    units: Mapping[str, str] | None = None,
    batch_size: int = 32,
    normalised: bool = False,
    conservative: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int], None] = lambda structures: None,
) -> Summary:
    """Predict the structures of a file one after the other, in constant memory.

    Args:
        model, task_name, batch_size, normalised, conservative, on_done: as for `predict_each`.
        source: a file that ASE reads, or a store.
        writers: called for every structure, in order.
        elements, units: as for `read_each`.
        stop: asked between structures.

    Raises:
        EutecticError: as `predict_each`; no structure of the file could be predicted.
        Interrupted: `stop` said so.
    """

    def predictions(structures: Iterable[Structure]) -> Iterator[Prediction | EutecticError]:
        return predict_each(
            model,
            task_name,
            structures,
            batch_size=batch_size,
            normalised=normalised,
            conservative=conservative,
            on_done=on_done,
        )

    return work_through(model, source, predictions, writers, elements=elements, units=units, stop=stop)


def work_through(
    model: TrainedModel,
    source: Path,
    each: Callable[[Iterable[Structure]], Iterator[R | EutecticError]],
    writers: Sequence[Write[R]],
    *,
    elements: Elements | None = None,
    units: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Give the structures of a file to a model and the results to writers, one after the other, in constant memory.

    Args:
        model: whose training elements are compared with those of the structures.
        source, elements, units: as for `read_each`.
        each: results of structures, in order, or why there is none.
        writers: called for every structure, in order.
        stop: asked between structures.

    Raises:
        EutecticError: those of `each`; no structure of the file has a result.
        Interrupted: `stop` said so.
    """
    summary = Summary()
    waiting: deque[Read] = deque()
    seen = elements_seen(model)

    def go_on() -> None:
        if stop():
            raise Interrupted(f"{summary.predicted:,} structures were predicted; the same command starts again")

    def readable() -> Iterator[Structure]:
        for read in read_each(source, elements, units):
            go_on()
            waiting.append(read)
            if read.structure is not None:
                yield read.structure

    def done(read: Read, outcome: R | EutecticError) -> None:
        if isinstance(outcome, EutecticError):
            summary.failed += 1
            if len(summary.reasons) < summary.MOST_REASONS:
                summary.reasons.append(outcome)
        else:
            summary.predicted += 1
            numbers = set() if read.structure is None else set(read.structure.numbers.tolist())
            summary.unseen.update(chemical_symbols[z] for z in sorted(numbers - seen if seen else ()))
        for writer in writers:
            writer(read, outcome)

    def unreadable() -> None:
        while waiting and waiting[0].error is not None:
            read = waiting.popleft()
            done(read, cast(EutecticError, read.error))

    outcomes = each(readable())
    for outcome in outcomes:
        unreadable()
        read = waiting.popleft()
        if isinstance(outcome, EutecticError):
            outcome = EutecticError(read.where, outcome.given, outcome.expected, outcome.fix)
        done(read, outcome)
        go_on()
    unreadable()
    if not summary.predicted:
        first = summary.reasons[0]
        given = first.given if summary.failed == 1 else f"{first.given} (and no other structure could be predicted)"
        raise EutecticError(first.where, given, first.expected, first.fix)
    return summary


def key_of(task_name: str, property_name: str) -> str:
    """Key of a prediction in a file, e.g. "oc20_energy". Never a key from which labels are read."""
    prefix = f"{task_name}_"
    return f"{'predicted_' if prefix in ase_files.PREFIXES else ''}{prefix}{property_name}"


class XYZWriter:
    """Writes extended xyz: the structures as read, labels included, with the predictions added (see `key_of`).

    A structure without prediction has the reason in its place, as `TASK_not_predicted`; one that could not be read is
    left out.

    Args:
        stream: to write to.
        task: that was predicted.
        normalised: the predictions are in model units.
    """

    def __init__(self, stream: Output, task: Task, *, normalised: bool = False) -> None:
        self.stream, self.task, self.normalised = stream, task, normalised

    def add(self, read: Read, outcome: Prediction | EutecticError) -> None:
        """Write one structure, whole or not at all."""
        if read.atoms is None:
            return
        copy = read.atoms.copy()
        copy.calc = read.atoms.calc
        if isinstance(outcome, EutecticError):
            copy.info[key_of(self.task.name, "not_predicted")] = outcome.given
        else:
            for name, value in outcome.items():
                key = key_of(self.task.name, name) + ("_normalised" if self.normalised else "")
                if PROPERTIES[property_of(name)].level == "atom":
                    copy.arrays[key] = value
                else:
                    copy.info[key] = float(value) if value.ndim == 0 else value
        text = StringIO()
        try:
            _write_xyz(text, copy)
        except Exception:
            # What is no structure at all (no element of this number, …) ASE may not be able to write.
            if not isinstance(outcome, EutecticError):
                raise
            return
        self.stream.write(text.getvalue(), worth=not isinstance(outcome, EutecticError))


def _write_xyz(stream: StringIO, atoms: Atoms) -> None:
    from ase.io import write

    write(stream, atoms, format="extxyz")


class JSONWriter:
    """Writes one JSON object: task, units, and a prediction for each structure, in order.

    A structure without prediction is null there, and is under `not_predicted` with the reason. The object ends with
    `complete`: whether the whole file was worked through.

    Args:
        write: called with pieces of text.
        task: that was predicted.
        names: of the predicted properties.
        normalised: the predictions are in model units.
        note: on the energies.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        task: Task,
        names: Iterable[str],
        *,
        normalised: bool = False,
        note: str | None = None,
    ) -> None:
        self._write = write
        self._failed: list[dict[str, Any]] = []
        self._count, self._begun = 0, False
        units = {name: unit_of(task, name, normalised=normalised) for name in names}
        self._head: dict[str, Any] = {"task": task.name, "level_of_theory": task.level_of_theory, "units": units}
        if note is not None:
            self._head["energies"] = note

    def add(self, read: Read, outcome: Prediction | EutecticError) -> None:
        """Write one prediction. Nothing is written before the first structure that can be predicted."""
        if isinstance(outcome, EutecticError):
            self._failed.append({"structure": read.index, "reason": outcome.given})
            if self._begun:
                self._put("null")
            return
        if not self._begun:
            self._begun = True
            self._write(json.dumps(self._head, ensure_ascii=False)[:-1] + ',\n"predictions": [')
            for _ in self._failed:
                self._put("null")
        self._put(json.dumps({name: value.tolist() for name, value in outcome.items()}, allow_nan=False))

    def close(self, *, complete: bool) -> None:
        """End the object, if it has been begun."""
        if self._begun:
            tail = {"not_predicted": self._failed, "complete": complete}
            self._write("\n],\n" + json.dumps(tail, ensure_ascii=False)[1:] + "\n")

    def _put(self, text: str) -> None:
        self._write((",\n" if self._count else "\n") + text)
        self._count += 1


def prediction_schema(
    task: Task, names: Iterable[str], *, normalised: bool = False, note: str | None = None
) -> pa.Schema:
    """Columns of a Parquet file of predictions: `structure` (its index in the file), `n_atoms`, one for each property
    under its own name with its unit in the metadata, and `not_predicted`, the reason where there is no prediction.

    Args:
        task: that is predicted.
        names: of the predicted properties.
        normalised: the predictions are in model units.
        note: on the energies.
    """
    columns = [pa.field("structure", pa.int64()), pa.field("n_atoms", pa.int32())]
    for name in names:
        target, prop = task.targets.get(name), PROPERTIES[property_of(name)]
        kind = pa.float64()
        for _ in range(prop.rank):
            kind = pa.list_(kind, 3)
        if prop.level == "atom" or (target is not None and target.categorical):
            kind = pa.list_(kind)
        columns.append(pa.field(name, kind, metadata={"unit": unit_of(task, name, normalised=normalised)}))
    columns.append(pa.field("not_predicted", pa.string()))
    notes = {"task": task.name, "level_of_theory": task.level_of_theory} | ({} if note is None else {"energies": note})
    return pa.schema(columns, metadata=notes)


def prediction_rows(table: TableOutput) -> Write[Prediction]:
    """Writes predictions to a table of `prediction_schema`; structures without one are rows with the reason."""

    def add(read: Read, outcome: Prediction | EutecticError) -> None:
        row: dict[str, Any] = {"structure": read.index}
        if read.structure is not None:
            row["n_atoms"] = len(read.structure)
        if isinstance(outcome, EutecticError):
            table.add(row | {"not_predicted": outcome.given}, worth=False)
        else:
            table.add(row | {name: value.tolist() for name, value in outcome.items()})

    return add


def partial_path(path: Path) -> Path:
    """Where predictions are written until all are there."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def check_output(path: Path, source: Path) -> None:
    """Refuse an output file that cannot or should not be written, before anything is computed.

    Raises:
        EutecticError: a folder or another special file; the input itself.
    """
    path = Path(path)
    for written in (path, partial_path(path)):
        if written.exists() and not written.is_file():
            what = "a folder" if written.is_dir() else "not an ordinary file"
            raise EutecticError(
                f"--out {path}", f"{written} is {what}", "a file to write", "name a file, or use --json for a pipe"
            )
        if written.exists() and Path(source).exists() and written.samefile(source):
            raise EutecticError(
                f"--out {path}", f"{written} is the input", "another file", "choose another name for the predictions"
            )


@contextmanager
def writing_predictions(path: Path) -> Iterator[Output]:
    """Write predictions to a file that replaces `path` when the block ends without an error.

    Until then they are in `NAME.partial.xyz` beside it, and stay there, without half a structure, when the block is
    ended by an error or a signal, or the process is killed.

    Raises:
        EutecticError: the file cannot be written; another process writes it; the block's, with the partial file named.
        Interrupted: the block's, with the partial file named.
    """
    with _replacing_when_complete(path, Output) as stream:
        yield stream


@contextmanager
def writing_table(path: Path, schema: pa.Schema) -> Iterator[TableOutput]:
    """As `writing_predictions`, for a Parquet file; what is left of it can be read unless the process was killed.

    Args:
        path: of the file.
        schema: of its columns.
    """
    with _replacing_when_complete(path, lambda partial, fix: TableOutput(partial, fix, schema)) as table:
        yield table


Out = TypeVar("Out", "Output", "TableOutput")


@contextmanager
def _replacing_when_complete(path: Path, begin: Callable[[Path, str], Out]) -> Iterator[Out]:
    path = Path(os.path.realpath(path))  # through a link, whose file is replaced
    partial = partial_path(path)
    fix = "free some space or choose another --out, then run the same command again"
    with locked(
        path.with_name(f".{path.name}.lock"),
        where=path,
        doing="writing predictions here",
        fix="wait for it, stop it, or choose another --out",
    ):
        stream = begin(partial, fix)
        try:
            yield stream
            stream.finish()
        except BaseException as error:
            kept = stream.abandon()
            if kept and isinstance(error, EutecticError):
                fix = f"{error.fix}; what was predicted until then is in {partial}"
                raise EutecticError(error.where, error.given, error.expected, fix) from error
            if kept and isinstance(error, Interrupted):
                raise Interrupted(f"{error.resume}; what was predicted until then is in {partial}") from error
            raise
        with writing_to(path, fix=fix):
            os.replace(partial, path)


class Output:
    """A text file of which only whole pieces, each given to one `write`, are kept if writing fails."""

    def __init__(self, path: Path, fix: str) -> None:
        self._path, self._fix, self._good, self._worth = path, fix, 0, False
        with writing_to(path, fix=fix):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=0)

    def write(self, text: str, *, worth: bool = True) -> None:
        """Write one piece; `worth` keeping if the rest cannot be written."""
        content = memoryview(text.encode())
        with writing_to(self._path, fix=self._fix):
            while content:
                content = content[self._file.write(content) or 0 :]
        self._good, self._worth = self._file.tell(), self._worth or worth

    def finish(self) -> None:
        with writing_to(self._path, fix=self._fix), self._file:
            os.fsync(self._file.fileno())

    def abandon(self) -> bool:
        """Cut off what is not whole; whether anything worth it is left."""
        with suppress(OSError, ValueError):
            self._file.truncate(self._good)
        with suppress(OSError):
            self._file.close()
        if not self._worth:
            self._path.unlink(missing_ok=True)
        return self._worth


class TableOutput:
    """A Parquet file, written a row group at a time.

    Args:
        path: to write.
        fix: advice if that fails.
        schema: of the columns.
    """

    ROWS = 1024
    """Rows of a group; large enough to compress, small enough to hold."""

    def __init__(self, path: Path, fix: str, schema: pa.Schema) -> None:
        self._path, self._fix, self._schema = path, fix, schema
        self._rows: list[Mapping[str, Any]] = []
        self._worth = False
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def add(self, row: Mapping[str, Any], *, worth: bool = True) -> None:
        """Add one row: column → value; `worth` keeping if the rest cannot be written."""
        self._rows.append(row)
        self._worth = self._worth or worth
        if len(self._rows) >= self.ROWS:
            self._flush()

    def finish(self) -> None:
        self._flush()
        with self._writing():
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def abandon(self) -> bool:
        """End the file after what is whole; whether anything is left."""
        try:
            self._flush()
            self._writer.close()
            self._file.close()
        except (OSError, pa.ArrowException, EutecticError):
            # Without its end a Parquet file cannot be read.
            with suppress(OSError):
                self._file.close()
            self._worth = False
        if not self._worth:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        return self._worth

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            # One builder for all rows of a column; rows are plain Python values or arrays.
            columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in self._schema]
            table = pa.Table.from_arrays(columns, schema=self._schema)
            with self._writing():
                self._writer.write_table(table)

    def _writing(self) -> AbstractContextManager[object]:
        return writing_to(self._path, errors=(OSError, pa.ArrowException), fix=self._fix)
