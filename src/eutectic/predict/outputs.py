"""Files of predictions: extended xyz, JSON and Parquet; each appears only when complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from ase import Atoms

from eutectic.atoms import PROPERTIES, EutecticError, Interrupted
from eutectic.checkpoints.uncertainty import property_of
from eutectic.data.datasets import ase_files
from eutectic.files import locked, writing_to
from eutectic.predict.files import Read
from eutectic.predict.prediction import Prediction, unit_of
from eutectic.tasks import Task


def key_of(task_name: str, property_name: str) -> str:
    """Key of a prediction in a file, e.g. "oc20_energy"; never a key that is read as a label."""
    prefix = f"{task_name}_"
    return f"{'predicted_' if prefix in ase_files.PREFIXES else ''}{prefix}{property_name}"


class XYZWriter:
    """Writes extended xyz: the structures as read, including labels, with the predictions added (see `key_of`).

    A structure without prediction gets the reason as `TASK_not_predicted`; one that could not be read is left out.

    Args:
        stream: output file.
        task: the predicted task.
        normalised: the predictions are in model units.
    """

    def __init__(self, stream: Output, task: Task, *, normalised: bool = False) -> None:
        self.stream, self.task, self.normalised = stream, task, normalised

    def add(self, read: Read, outcome: Prediction | EutecticError) -> None:
        """Write one structure, completely or not at all."""
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
            # ASE may be unable to write an invalid structure (no element with this number, …).
            if not isinstance(outcome, EutecticError):
                raise
            return
        self.stream.write(text.getvalue(), worth=not isinstance(outcome, EutecticError))


def _write_xyz(stream: StringIO, atoms: Atoms) -> None:
    from ase.io import write

    write(stream, atoms, format="extxyz")


def row_of(read: Read, outcome: Prediction | EutecticError) -> dict[str, Any]:
    """A prediction as plain values: `structure` (index in the file), `n_atoms` if it could be read, and a value per
    property, or `not_predicted` with the reason."""
    row: dict[str, Any] = {"structure": read.index}
    if read.structure is not None:
        row["n_atoms"] = len(read.structure)
    if isinstance(outcome, EutecticError):
        return row | {"not_predicted": outcome.given}
    return row | {name: value.tolist() for name, value in outcome.items()}


class JSONWriter:
    """Writes one JSON object: task, units, and a prediction for each structure, in order.

    A structure without prediction is null, and listed in `not_predicted` with the reason. The object ends with
    `complete`: whether the whole file was processed.

    Args:
        write: called with pieces of text.
        task: the predicted task.
        names: names of the predicted properties.
        normalised: the predictions are in model units.
        note: a note on the energies.
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
        """Write one prediction. Nothing is written before the first successful one."""
        self.add_row(row_of(read, outcome))

    def add_row(self, row: Mapping[str, Any]) -> None:
        """As `add`, with a row from `row_of`."""
        if "not_predicted" in row:
            self._failed.append({"structure": row["structure"], "reason": row["not_predicted"]})
            if self._begun:
                self._put("null")
            return
        if not self._begun:
            self._begun = True
            self._write(json.dumps(self._head, ensure_ascii=False)[:-1] + ',\n"predictions": [')
            for _ in self._failed:
                self._put("null")
        values = {name: value for name, value in row.items() if name not in ("structure", "n_atoms")}
        self._put(json.dumps(values, allow_nan=False))

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
    """Columns of a Parquet file of predictions: `structure` (index in the file), `n_atoms`, one per property with its
    unit in the metadata, and `not_predicted`, the reason for a missing prediction.

    Args:
        task: the predicted task.
        names: names of the predicted properties.
        normalised: the predictions are in model units.
        note: a note on the energies.
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


def partial_path(path: Path) -> Path:
    """Path of the incomplete file."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def partial_rows_path(path: Path) -> Path:
    """The same for `eutectic.predict.resume`, which writes rows (see `row_of`) for formats that cannot be appended."""
    return path.with_name(f"{path.name}.partial.jsonl") if path.suffix in (".json", ".parquet") else partial_path(path)


def check_output(path: Path, source: Path) -> None:
    """Refuse an output path that cannot or should not be written, before anything is computed.

    Raises:
        EutecticError: it is a folder or a special file, or the input itself.
    """
    path = Path(path)
    for file in (path, partial_path(path), partial_rows_path(path)):
        if file.exists() and not file.is_file():
            kind = "a folder" if file.is_dir() else "not a regular file"
            raise EutecticError(
                f"--out {path}", f"{file} is {kind}", "a file to write", "name a file, or use --json for a pipe"
            )
        if file.exists() and Path(source).exists() and file.samefile(source):
            raise EutecticError(
                f"--out {path}", f"{file} is the input", "another file", "choose another name for the predictions"
            )


@contextmanager
def writing_predictions(path: Path) -> Iterator[Output]:
    """Write predictions to a file that replaces `path` when the block ends without an error.

    Until then they are in `NAME.partial.xyz` beside it. They stay there, without a truncated structure, if the block
    ends with an error or a signal, or if the process is killed.

    Raises:
        EutecticError: the file cannot be written; another process is writing it; or an error of the block, with the
            partial file named.
        Interrupted: raised by the block; the partial file is named.
    """
    with replacing_when_complete(path, partial_path(path), Output) as stream:
        yield stream


@contextmanager
def writing_table(path: Path, schema: pa.Schema) -> Iterator[TableOutput]:
    """As `writing_predictions`, for a Parquet file; a partial one is readable unless the process was killed.

    Args:
        path: the file to write.
        schema: its columns.
    """
    with replacing_when_complete(path, partial_path(path), lambda at, fix: TableOutput(at, fix, schema)) as table:
        yield table


Out = TypeVar("Out", bound="Output | TableOutput")


@contextmanager
def replacing_when_complete(path: Path, partial: Path, begin: Callable[[Path, str], Out]) -> Iterator[Out]:
    """Write to a partial file, which replaces `path` when the block ends without an error.

    Args:
        path: the final file; locked against other processes.
        partial: the partial file, beside it.
        begin: opens the partial file; called with its path and advice for error messages.

    Raises:
        EutecticError: as `writing_predictions`.
        Interrupted: as `writing_predictions`.
    """
    path = Path(os.path.realpath(path))  # follow a link and replace its target
    partial = path.with_name(partial.name)
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
                fix = f"{error.fix}; predictions so far are in {partial}"
                raise EutecticError(error.where, error.given, error.expected, fix) from error
            if kept and isinstance(error, Interrupted):
                raise Interrupted(stream.after(error.resume)) from error
            raise
        with writing_to(path, fix=fix):
            stream.put_in_place(path)


class Output:
    """A text file that keeps only complete pieces, one per `write`, if writing fails.

    Args:
        path: the file to write.
        fix: advice if writing fails.
        kept: number of bytes to keep at the beginning of an existing file.
    """

    def __init__(self, path: Path, fix: str, kept: int = 0) -> None:
        self._path, self._fix, self._good, self._worth = path, fix, kept, False
        with writing_to(path, fix=fix):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+b" if kept else "wb", buffering=0)
            self._file.truncate(kept)
            self._file.seek(kept)

    def write(self, text: str, *, worth: bool = True) -> None:
        """Write one piece; `worth`: worth keeping if the rest cannot be written."""
        content = memoryview(text.encode())
        with writing_to(self._path, fix=self._fix):
            while content:
                content = content[self._file.write(content) or 0 :]
        self._good, self._worth = self._file.tell(), self._worth or worth

    def finish(self) -> None:
        with writing_to(self._path, fix=self._fix), self._file:
            os.fsync(self._file.fileno())

    def put_in_place(self, path: Path) -> None:
        os.replace(self._path, path)

    def after(self, stop: str) -> str:
        """Message after an interruption; `stop` is its reason."""
        return f"{stop}; predictions so far are in {self._path}"

    def abandon(self) -> bool:
        """Truncate to complete pieces; returns whether anything worth keeping is left."""
        with suppress(OSError, ValueError):
            self._file.truncate(self._good)
        with suppress(OSError):
            self._file.close()
        if not self._worth:
            self._path.unlink(missing_ok=True)
        return self._worth


class TableOutput:
    """A Parquet file, written one row group at a time.

    Args:
        path: the file to write.
        fix: advice if writing fails.
        schema: its columns.
    """

    ROWS = 1024
    """Rows per group: enough for good compression, few enough to keep in memory."""

    def __init__(self, path: Path, fix: str, schema: pa.Schema) -> None:
        self._path, self._fix, self._schema = path, fix, schema
        self._rows: list[Mapping[str, Any]] = []
        self._worth = False
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")

    def add(self, row: Mapping[str, Any], *, worth: bool = True) -> None:
        """Add one row: column → value; `worth`: worth keeping if the rest cannot be written."""
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

    def put_in_place(self, path: Path) -> None:
        os.replace(self._path, path)

    def after(self, stop: str) -> str:
        """Message after an interruption; `stop` is its reason."""
        return f"{stop}; predictions so far are in {self._path}"

    def abandon(self) -> bool:
        """End the file after the last complete row; returns whether anything worth keeping is left."""
        try:
            self._flush()
            self._writer.close()
            self._file.close()
        except (OSError, pa.ArrowException, EutecticError):
            # A Parquet file without its footer cannot be read.
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
            # Column by column, since rows may hold plain Python values or arrays.
            columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in self._schema]
            table = pa.Table.from_arrays(columns, schema=self._schema)
            with self._writing():
                self._writer.write_table(table)

    def _writing(self) -> AbstractContextManager[object]:
        return writing_to(self._path, errors=(OSError, pa.ArrowException), fix=self._fix)
