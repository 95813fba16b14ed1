"""Tables of labels beside files of structures: `id_prop.csv` of CGCNN, MEGNet, ALIGNN and others.

The first column names a file in the table's folder, with or without its suffix, the others are labels. A table with a
header names them; otherwise the only one is the entry `id_prop`, several are `id_prop:1`, `id_prop:2`, …
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from eutectic.atoms import EutecticError
from eutectic.data.formats.archives import unpacked

ENTRY = "id_prop"
LONGEST_LINE = 1 << 20

Labels = Mapping[Path, Mapping[str, float | str]]
"""File → entry → value, in the order of the tables."""

_TABLE = "lines of a file's name and its labels, separated by commas"
_FIX = "correct the table"


def tables(source: Path) -> list[Path]:
    """The tables of a source: itself if it is one, or all `id_prop*.csv` of a folder."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".csv" else []
    return sorted(source.rglob("id_prop*.csv"))


def read(source: Path) -> Labels:
    """Labels of all files that the tables of a source name; empty if there are none.

    Raises:
        EutecticError: a file that is missing or named twice; a line with a different number of columns.
    """
    found: dict[Path, dict[str, float | str]] = {}
    for table in tables(source):
        folder = table.parent
        inside = [path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() != ".csv"]
        by_name: dict[str, list[Path]] = {}
        for path in inside:
            name = path.relative_to(folder).as_posix()
            by_name.setdefault(name, []).append(path)
            if path.suffix:
                by_name.setdefault(name.removesuffix(path.suffix), []).append(path)
        for where, name, labels in _lines(table):
            exact = folder / name
            files = [exact] if exact in by_name.get(name, ()) else by_name.get(name, [])
            if len(files) != 1:
                which = ", ".join(p.name for p in files[:3])
                given = f"{name!r}, which may be {which}" if files else f"{name!r}, which is not there"
                raise EutecticError(where, given, f"one file in {folder}", "add the file, or remove the line")
            if files[0] in found:
                raise EutecticError(where, f"{name!r} a second time", "one line for each file", "remove one of them")
            found[files[0]] = labels
    return found


def _lines(table: Path) -> Iterator[tuple[str, str, dict[str, float | str]]]:
    """Location, name of the file and labels of each line."""
    csv.field_size_limit(LONGEST_LINE)
    with (
        unpacked(table) as content,
        io.TextIOWrapper(cast(IO[bytes], content), encoding="utf-8-sig", newline="") as text,
    ):
        entries: list[str] | None = None
        reader = csv.reader(text, skipinitialspace=True)
        try:
            for row in reader:
                if not any(map(str.strip, row)):
                    continue
                where, values = f"{table}, line {reader.line_num}", [value.strip() for value in row[1:]]
                if entries is None:
                    headed = bool(values) and not any(map(_is_value, values))
                    entries = values if headed else _unnamed(len(values))
                    if headed:
                        continue
                if len(values) != len(entries) or not values:
                    raise EutecticError(where, f"{len(row)} columns", f"{len(entries) + 1}: {_TABLE}", _FIX)
                labels = {entry: _value(value) for entry, value in zip(entries, values, strict=True) if value}
                # Tables with and without a header may stand side by side.
                yield where, row[0].strip(), labels if len(values) > 1 else {**labels, **_as_unnamed(labels)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise EutecticError(f"{table}, line {reader.line_num + 1}", str(error), _TABLE, _FIX) from error
        if not entries:
            raise EutecticError(str(table), "no line", _TABLE, _FIX)


def _unnamed(n: int) -> list[str]:
    return [ENTRY] if n == 1 else [f"{ENTRY}:{i}" for i in range(1, n + 1)]


def _as_unnamed(labels: Mapping[str, float | str]) -> dict[str, float | str]:
    return {ENTRY: next(iter(labels.values()))} if labels else {}


def _is_value(word: str) -> bool:
    return not word or isinstance(_value(word), float) or word.lower() in ("true", "false", "t", "f")


def _value(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
