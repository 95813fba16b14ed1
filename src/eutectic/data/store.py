"""The store: labelled structures in memory-mapped Arrow IPC shards.

A store is a folder of `shard-00000.arrow`, … readable by any Arrow reader (pandas, polars, DuckDB). One row is one
structure: flat arrays (row-major) for per-atom quantities, float64 for energies and other labels of a structure,
float32 for positions, cells and forces (generated labels are computed at the rounded positions; the relative error
of 1e-7 is far below that of any level of theory; atoms far from the origin are moved back first: `stored_positions`).
The schema's metadata holds the card: units, level of theory, licence, citation, definitions of properties that are not
built in. Units are compared with `PROPERTIES` when a store is opened. A small `manifest.json` holds the number and size
of the shards and a summary of their contents, so that a store of 100 million structures opens without reading any
shard. (Stores without a manifest can be read too; every shard is then opened to count its rows.) A store is written to
a temporary folder and renamed when complete, so that an interrupted writer leaves nothing that looks like a store.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, Structure
from eutectic.atoms.home import home_positions
from eutectic.data.card import Card
from eutectic.files import replacing, writing_to

FORMAT = "eutectic-store-1"
ROWS_PER_BATCH = 512
ROWS_PER_SHARD = 262_144
MANIFEST = "manifest.json"
SPLITS = "splits.json"
FAR = 32.0
"""Distance from the origin, Å, up to which float32 is no coarser than 2e-6 Å."""

PublishedSplits = Mapping[str, Mapping[str, np.ndarray]]
"""Split → "train", "validation", "test" → rows, in the published order."""


def _arrow_type(prop: Property) -> pa.DataType:
    scalar = prop.level == "structure" and prop.rank == 0
    return pa.float64() if scalar else pa.list_(pa.float32() if prop.level == "atom" else pa.float64())


def _units(card: Card) -> dict[str, str]:
    return {p.name: p.unit for p in card.property_table()}


def _schema(card: Card) -> pa.Schema:
    fields = [
        pa.field("id", pa.string()),
        pa.field("group", pa.string()),
        pa.field("n_atoms", pa.int32()),
        pa.field("content", pa.binary(16)),
        pa.field("numbers", pa.list_(pa.uint8())),
        pa.field("positions", pa.list_(pa.float32()), metadata={"unit": "Å"}),
        pa.field("cell", pa.list_(pa.float32(), 9), metadata={"unit": "Å"}),
        pa.field("pbc", pa.list_(pa.bool_(), 3)),
        pa.field("tags", pa.list_(pa.uint8())),
        pa.field("fixed", pa.list_(pa.bool_())),
        *(pa.field(p.name, _arrow_type(p), metadata={"unit": p.unit}) for p in card.property_table()),
    ]
    metadata = {
        "format": FORMAT,
        "card": json.dumps(card.to_dict(), ensure_ascii=False),
        "units": json.dumps(_units(card)),
    }
    return pa.schema(fields, metadata=metadata)


def stored_positions(structure: Structure) -> np.ndarray:
    """(n_atoms, 3) positions as a store has them, Å, float32.

    These are the structure's own positions, unless the atoms are so far from the origin that float32 would round them
    several times more coarsely than near it: then the atoms are moved back (`home_positions`).
    """
    positions = structure.positions
    farthest = float(np.abs(positions).max(initial=0))
    if farthest > FAR:
        home, _ = home_positions([structure], np.inf)
        if farthest > 4 * max(0.25 * FAR, float(np.abs(home).max())):
            positions = home
    return positions.astype(np.float32)


def content_hash(structure: Structure) -> bytes:
    """16-byte hash of a structure, equal for structures that are the same to 1e-3 Å, atom by atom."""
    digest = hashlib.sha256()
    digest.update(np.asarray(structure.numbers, dtype=np.uint8).tobytes())
    for lengths in (stored_positions(structure), structure.cell):
        # Through float32, as stored: a structure must round the same before and after storing.
        # Adding zero turns -0.0 into 0.0.
        stored = np.asarray(lengths, dtype=np.float32).astype(np.float64)
        digest.update((np.round(stored, 3) + 0.0).astype(np.float32).tobytes())
    digest.update(structure.pbc.tobytes())
    return digest.digest()[:16]


def _lists(values: Sequence[np.ndarray | None], of: pa.DataType) -> pa.ListArray:
    """One list per row, null for None; ten times faster than Arrow's own conversion of arrays."""
    lengths = [0 if value is None else value.size for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    present = [value.ravel() for value in values if value is not None]
    flat = pa.array(np.concatenate(present) if present else [], type=of)
    absent = pa.array([value is None for value in values]) if len(present) < len(values) else None
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=absent)


def _columns(rows: Sequence[LabelledStructure], schema: pa.Schema, properties: Sequence[Property]) -> pa.RecordBatch:
    structures = [row.structure for row in rows]
    cells = np.array([s.cell for s in structures], dtype=np.float32).ravel()
    pbc = np.array([s.pbc for s in structures], dtype=bool).ravel()
    columns: dict[str, pa.Array] = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "group": pa.array([row.group for row in rows], pa.string()),
        "n_atoms": pa.array([len(s) for s in structures], pa.int32()),
        "content": pa.array([content_hash(s) for s in structures], pa.binary(16)),
        "numbers": _lists([s.numbers.astype(np.uint8) for s in structures], pa.uint8()),
        "positions": _lists([stored_positions(s) for s in structures], pa.float32()),
        "cell": pa.FixedSizeListArray.from_arrays(pa.array(cells), 9),
        "pbc": pa.FixedSizeListArray.from_arrays(pa.array(pbc), 3),
        # In most structures every atom has tag 2 and none is fixed: a null costs one bit.
        "tags": _lists([None if (s.tags == 2).all() else s.tags.astype(np.uint8) for s in structures], pa.uint8()),
        "fixed": _lists([s.fixed if s.fixed.any() else None for s in structures], pa.bool_()),
    }
    for prop in properties:
        labels = [row.labels.get(prop.name) for row in rows]
        if prop.level == "structure" and prop.rank == 0:
            columns[prop.name] = pa.array([None if x is None else float(x) for x in labels], pa.float64())
        else:
            of, kind = (pa.float32(), np.float32) if prop.level == "atom" else (pa.float64(), np.float64)
            columns[prop.name] = _lists([None if x is None else np.asarray(x, dtype=kind) for x in labels], of)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Totals over some rows; summaries of parts can be added.

    Attributes:
        structures: number of structures.
        atoms: total number of atoms.
        largest: number of atoms of the largest structure.
        elements: atomic number → number of atoms.
        labels: property → structures that have it.
        groups: smallest hashes of the group names, from which the number of groups is estimated.
    """

    structures: int = 0
    atoms: int = 0
    largest: int = 0
    elements: Mapping[int, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[int, ...] = ()

    HASHES = 1024

    @classmethod
    def of(cls, batch: pa.RecordBatch, properties: Sequence[str]) -> Summary:
        """Summary of one batch of a store."""
        sizes = batch.column("n_atoms").to_numpy()
        counts = np.bincount(batch.column("numbers").flatten().to_numpy(), minlength=1)
        names = pc.unique(batch.column("group")).to_pylist()
        hashes = {int.from_bytes(hashlib.blake2b(n.encode(), digest_size=8).digest(), "big") for n in names}
        return cls(
            structures=batch.num_rows,
            atoms=int(sizes.sum(dtype=np.int64)),
            largest=int(sizes.max(initial=0)),
            elements={int(z): int(n) for z, n in enumerate(counts) if n},
            labels={name: batch.num_rows - batch.column(name).null_count for name in properties},
            groups=tuple(sorted(hashes)[: cls.HASHES]),
        )

    def __add__(self, other: Summary) -> Summary:
        def both(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
            return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}

        return Summary(
            structures=self.structures + other.structures,
            atoms=self.atoms + other.atoms,
            largest=max(self.largest, other.largest),
            elements=both(self.elements, other.elements),
            labels={n: self.labels.get(n, 0) + other.labels.get(n, 0) for n in {**self.labels, **other.labels}},
            groups=tuple(sorted({*self.groups, *other.groups})[: self.HASHES]),
        )

    def n_groups(self) -> int:
        """Number of groups: exact below 1024, else within about 3 % (the k-th smallest of n uniform hashes is near
        k/n; Bar-Yossef et al., RANDOM 2002), in constant memory."""
        if len(self.groups) < self.HASHES:
            return len(self.groups)
        return round((self.HASHES - 1) / (self.groups[-1] / 2**64))

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {**vars(self), "elements": {str(z): n for z, n in self.elements.items()}, "labels": dict(self.labels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        """Inverse of `to_dict`."""
        elements = {int(z): int(n) for z, n in values["elements"].items()}
        return cls(**{**values, "elements": elements, "groups": tuple(values["groups"])})


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One finished file of a store: number of rows, size and summary."""

    rows: int
    bytes: int
    summary: Summary


class ShardWriter:
    """Writes one Arrow file in batches of 512 rows (the last may be smaller).

    Only its methods write, so that their `OSError` is always the disk's, never the source's.

    Args:
        path: file to create.
        card: written to the schema's metadata; only labels it declares are written.
    """

    def __init__(self, path: Path, card: Card) -> None:
        self.schema, self.properties = _schema(card), card.property_table()
        self.summary = Summary(labels=dict.fromkeys(card.properties, 0))
        self._file = path.open("wb")
        self._writer = pa.ipc.new_file(self._file, self.schema)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self.summary.structures

    def add(self, rows: Sequence[LabelledStructure]) -> None:
        """Write one batch: `ROWS_PER_BATCH` rows, or fewer at the end."""
        batch = _columns(rows, self.schema, self.properties)
        self._writer.write_batch(batch)
        self.summary += Summary.of(batch, [p.name for p in self.properties])

    def close(self) -> Shard:
        """Finish the file and flush it to disk."""
        with self._file:
            self._writer.close()
            self._file.flush()
            # Before the folder is renamed: otherwise a power cut may leave the rename without the data.
            os.fsync(self._file.fileno())
            return Shard(rows=self.rows, bytes=self._file.tell(), summary=self.summary)

    def abandon(self) -> None:
        """Close an unfinished file, ignoring errors (a full disk may refuse even that)."""
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.arrow"


def finish_store(
    folder: Path,
    card: Card,
    shards: Sequence[Shard],
    *,
    splits: PublishedSplits | None = None,
    left_out: Mapping[str, object] | None = None,
) -> None:
    """Write the manifest and published splits of a store.

    Args:
        folder: folder with `shard-00000.arrow`, …
        card: card of the store.
        shards: reports of the shards' writers.
        splits: published splits: name → "train", "validation", "test" → rows.
        left_out: records that could not be read: "count", and the "first" messages.
    """
    if splits:
        _write_json(folder / SPLITS, {n: {part: _runs(rows) for part, rows in s.items()} for n, s in splits.items()})
    total = functools.reduce(Summary.__add__, (shard.summary for shard in shards))
    manifest = {
        "format": FORMAT,
        "card": card.to_dict(),
        "units": _units(card),
        "rows_per_batch": ROWS_PER_BATCH,
        "rows": [shard.rows for shard in shards],
        "bytes": [shard.bytes for shard in shards],
        "summary": total.to_dict(),
        "left_out": left_out or {},
    }
    _write_json(folder / MANIFEST, manifest)


def _runs(rows: np.ndarray) -> list[int | list[int]]:
    """Rows in order, with [first, end] for first, first + 1, …, end - 1: published parts are often whole files, and
    ten million separate rows would be 80 MB of JSON."""
    rows = np.asarray(rows, dtype=np.int64)
    starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1).tolist()
    runs: list[int | list[int]] = []
    for start, end in itertools.pairwise([*starts, len(rows)]):
        first, last = int(rows[start]), int(rows[end - 1])
        runs += [[first, last + 1]] if end - start > 2 else rows[start:end].tolist()
    return runs


def _rows_of(runs: Sequence[int | Sequence[int]], n: int) -> np.ndarray:
    """Inverse of `_runs`, for a store of `n` rows; also accepts a plain list of rows.

    Raises:
        ValueError, TypeError: invalid runs, or rows out of range.
    """
    bounds = np.array([(run, run + 1) if isinstance(run, int) else run for run in runs], dtype=np.int64).reshape(-1, 2)
    if (bounds < 0).any() or (bounds > n).any() or (bounds[:, 0] >= bounds[:, 1]).any():
        raise ValueError(f"rows outside 0 to {n - 1}")
    lengths = bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(lengths)
    return np.repeat(bounds[:, 1] - ends, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def is_store(path: Path) -> bool:
    """Whether `path` is a store (its shards are not opened)."""
    return Path(path).is_dir() and any(Path(path).glob("shard-*.arrow"))


def check_place(path: Path, *, overwrite: bool) -> None:
    """Check that a store may be written at `path`, before hours of reading.

    Raises:
        EutecticError: something exists there that may not be replaced.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())) or (overwrite and is_store(path)):
        return
    raise EutecticError(
        str(path),
        "a store already exists here" if is_store(path) else "something that is not a store already exists here",
        "a new folder",
        "choose another folder" + (", or pass --overwrite" if is_store(path) else ""),
    )


def write_store(
    path: Path,
    card: Card,
    rows: Iterable[LabelledStructure],
    *,
    overwrite: bool = False,
    splits: PublishedSplits | None = None,
) -> int:
    """Check all rows and write them to a new store.

    Args:
        path: folder to create.
        card: written to the schema's metadata; only labels it declares are written.
        rows: labelled structures; read once, in constant memory.
        overwrite: replace an existing store (once the new one is complete). Nothing but a store is ever replaced.
        splits: published splits: name → "train", "validation", "test" → indices into `rows`.

    Returns:
        Number of structures written.

    Raises:
        EutecticError: something exists at `path`; a row is unusable; there is no row; the disk is full.
    """
    path = Path(path).absolute()
    check_place(path, overwrite=overwrite)
    shards: list[Shard] = []
    writer: ShardWriter | None = None
    # Errors inside may come from the source, so they are not reported as write errors.
    with replacing(path, folder=True, errors=()) as folder:
        try:
            for batch in _batches(_checked(rows, card)):
                with writing_to(path):
                    writer = writer or ShardWriter(folder / shard_name(len(shards)), card)
                    writer.add(batch)
                    if writer.rows >= ROWS_PER_SHARD:
                        shards.append(writer.close())
                        writer = None
            if writer is not None:
                with writing_to(path):
                    shards.append(writer.close())
                    writer = None
        finally:
            if writer is not None:
                writer.abandon()
        if not shards:
            raise EutecticError(card.name, "no structures", "at least one", "check the source and its filters")
        with writing_to(path):
            finish_store(folder, card, shards, splits=splits)
    return sum(shard.rows for shard in shards)


def _checked(rows: Iterable[LabelledStructure], card: Card) -> Iterator[LabelledStructure]:
    """The same rows, each checked."""
    for row in rows:
        row.check(f"{card.name}, {row.id}")
        yield row


def _batches(rows: Iterable[LabelledStructure]) -> Iterator[list[LabelledStructure]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, ROWS_PER_BATCH)):
        yield batch


_TWO = struct.Struct("<ii").unpack_from
_DOUBLE = struct.Struct("<d").unpack_from


class _Mapped:
    """A memory-mapped shard, with the file offset of every column of every batch.

    Rows are read directly from the mapped bytes, which is ten times faster than Arrow's scalars. The layout of an
    uncompressed Arrow file allows it (https://arrow.apache.org/docs/format/Columnar.html, "Buffer listing for each
    layout"): validity bits; for lists and strings int32 offsets, one more than rows; values.
    """

    def __init__(self, path: Path, properties: Sequence[Property]) -> None:
        self.path, self._properties = path, properties
        self._scalar = [p.level == "structure" and p.rank == 0 for p in properties]
        try:
            # The mapping outlives the file descriptor, of which a store might need thousands.
            with pa.memory_map(str(path)) as file:
                buffer = file.read_buffer()
            self._base, self._bytes = buffer.address, buffer.size
            self._memory = memoryview(buffer)
            self.reader = pa.ipc.open_file(pa.BufferReader(buffer))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, str(error)) from error
        self.n_batches = self.reader.num_record_batches
        self._places = np.zeros((self.n_batches, 16 + 3 * len(properties)), dtype=np.int64)
        self._located = bytearray(self.n_batches)

    def batch(self, number: int) -> pa.RecordBatch:
        """One record batch."""
        try:
            return self.reader.get_batch(number)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, str(error)) from error

    def row(self, batch: int, row: int) -> LabelledStructure:
        """One structure; all its arrays are copies."""
        if not self._located[batch]:
            self._locate(batch)
        places, memory = self._places[batch].tolist(), self._memory
        start, end = _TWO(memory, places[0] + 4 * row)
        name = str(memory[places[1] + start : places[1] + end], "utf-8")
        start, end = _TWO(memory, places[2] + 4 * row)
        group = str(memory[places[3] + start : places[3] + end], "utf-8")
        start, end = _TWO(memory, places[4] + 4 * row)
        n = end - start
        numbers = np.ndarray((n,), np.uint8, memory, places[5] + start).astype(np.int64)
        start, end = _TWO(memory, places[6] + 4 * row)
        if end - start != 3 * n:
            raise _damaged(self.path, f"{n} atoms and {end - start} coordinates in one row")
        positions = np.ndarray((n, 3), np.float32, memory, places[7] + 4 * start).astype(np.float64)
        cell = np.ndarray((3, 3), np.float32, memory, places[8] + 36 * row).astype(np.float64)
        pbc = self._bits(places[9], 3 * row, 3)
        if self._valid(places[10], row):
            (start, _) = _TWO(memory, places[11] + 4 * row)
            tags = np.ndarray((n,), np.uint8, memory, places[12] + start).astype(np.int64)
        else:
            tags = np.empty(n, dtype=np.int64)
            tags.fill(2)
        # Three numbers each from here on: validity, offsets, values; `fixed` comes first.
        if self._valid(places[13], row):
            (start, _) = _TWO(memory, places[14] + 4 * row)
            fixed = self._bits(places[15], start, n)
        else:
            fixed = np.zeros(n, dtype=bool)
        labels: dict[str, np.ndarray] = {}
        at = 16
        for prop, scalar in zip(self._properties, self._scalar, strict=True):
            if self._valid(places[at], row):
                if scalar:
                    labels[prop.name] = np.array(_DOUBLE(memory, places[at + 2] + 8 * row)[0])
                else:
                    (start, end) = _TWO(memory, places[at + 1] + 4 * row)
                    kind, width = (np.float32, 4) if prop.level == "atom" else (np.float64, 8)
                    shape = prop.shape(n)
                    value = np.ndarray(shape, kind, memory, places[at + 2] + width * start)
                    if value.size != end - start:
                        raise _damaged(self.path, f"{end - start} values of {prop.name} for {n} atoms")
                    labels[prop.name] = value.astype(np.float64)
            at += 3
        structure = Structure(numbers=numbers, positions=positions, cell=cell, pbc=pbc, tags=tags, fixed=fixed)
        return LabelledStructure(structure=structure, labels=labels, id=name, group=group)

    def _valid(self, place: int, row: int) -> bool:
        return place < 0 or bool(self._memory[place + (row >> 3)] >> (row & 7) & 1)

    def _bits(self, place: int, first: int, count: int) -> np.ndarray:
        byte, bit = divmod(first, 8)
        packed = np.ndarray(((bit + count + 7) // 8,), np.uint8, self._memory, place + byte)
        return np.unpackbits(packed, count=bit + count, bitorder="little")[bit:].view(bool)

    def _locate(self, number: int) -> None:
        batch = self.batch(number)

        def of(name: str) -> list[int]:
            """File offset of each buffer of a column; -1 for an absent buffer (no validity bits: all valid)."""
            places = []
            for buffer in batch.column(name).buffers():
                place = -1 if buffer is None else buffer.address - self._base
                if buffer is not None and buffer.size and not 0 <= place <= self._bytes - buffer.size:
                    raise _damaged(self.path, "it is compressed")
                places.append(place)
            return places

        located = []
        for name in ("id", "group"):
            located += of(name)[1:]
        for name in ("numbers", "positions"):
            _, offsets, _, values = of(name)
            located += [offsets, values]
        located += [of("cell")[2], of("pbc")[2]]
        for name in ("tags", "fixed"):
            valid, offsets, _, values = of(name)
            located += [valid, offsets, values]
        for prop, scalar in zip(self._properties, self._scalar, strict=True):
            places = of(prop.name)
            located += [places[0], -1, places[1]] if scalar else [places[0], places[1], places[3]]
        self._places[number] = located
        self._located[number] = 1


def _damaged(path: Path, why: str) -> EutecticError:
    return EutecticError(
        str(path), f"truncated or damaged Arrow file ({why})", "a complete shard", "make the store again"
    )


class Store(Sequence[LabelledStructure]):
    """Random access to a store on disk, in constant memory.

    Safe to share between processes: it is pickled as its path, and all processes map the same pages. Shards are
    mapped on first access.

    Args:
        path: folder written by `write_store` or `prepare_store`.

    Raises:
        EutecticError: not a store, a truncated or missing shard, or another format version; a label in a unit other
            than the library's, or a property defined differently in this process.

    Attributes:
        path: absolute path.
        card: card of the data set.
        left_out: records that could not be read when the store was made: "count" and the "first" messages; often
            empty.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, so that a worker process started elsewhere finds it.
        self.path = Path(path).absolute()
        sizes = _shard_sizes(self.path)
        if not sizes:
            raise EutecticError(
                str(self.path),
                "no shard-*.arrow files here" if self.path.exists() else "does not exist",
                "the folder of a store",
                "make one with `eutectic data prepare`, or check the path",
            )
        self._mapped: list[_Mapped | None] = [None] * len(sizes)
        manifest = self._manifest()
        rows = self._count_rows(sizes) if manifest is None else self._compare(sizes, manifest)
        self._starts: list[int] = [0, *itertools.accumulate(rows)]
        self._bounds = np.array(self._starts)
        if manifest is not None and "units" not in manifest:
            # An older manifest without units; the shards have them.
            self._shard(0)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.path,)

    def _manifest(self) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            self.card = Card.from_dict(manifest["card"], str(self.path))
            self._per_batch = int(manifest["rows_per_batch"])
            self._known: Summary | None = Summary.from_dict(manifest["summary"])
            self.left_out: dict[str, Any] = manifest["left_out"]
            version, units = manifest["format"], manifest.get("units")
            units = None if units is None else dict(units)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise EutecticError(
                str(self.path / MANIFEST),
                f"not readable ({type(error).__name__}: {error})",
                "the manifest written with the store",
                "make the store again",
            ) from error
        self._check_format(version)
        self._properties = self.card.property_table()
        if units is not None:
            self._check_units(units)
        return dict(manifest)

    def _compare(self, sizes: Mapping[str, int], manifest: Mapping[str, Any]) -> list[int]:
        """Check names and sizes of the shards against the manifest; return the rows of each."""
        for number, size in enumerate(manifest["bytes"]):
            name = shard_name(number)
            if name not in sizes:
                raise self._missing(name)
            if sizes[name] != size:
                raise _damaged(self.path / name, f"{sizes[name]:,} bytes of {size:,}")
        if extra := sorted(sizes.keys() - {shard_name(n) for n in range(len(manifest["bytes"]))}):
            raise EutecticError(
                str(self.path),
                f"{extra[0]} does not belong to this store",
                f"the {len(manifest['bytes'])} shards it was written with",
                "move that file elsewhere, or make the store again",
            )
        return list(manifest["rows"])

    def _count_rows(self, sizes: Mapping[str, int]) -> list[int]:
        """Read the card and the rows of every shard of a store without a manifest."""
        rows: list[int] = []
        self._per_batch, self._known, self.left_out, self._properties = 0, None, {}, ()
        for number in range(len(sizes)):
            path = self.path / shard_name(number)
            if path.name not in sizes:
                raise self._missing(path.name)
            shard = _Mapped(path, ())
            metadata = {k.decode(): v.decode() for k, v in (shard.reader.schema.metadata or {}).items()}
            self._check_format(metadata.get("format"))
            if not self._properties:
                self.card = Card.from_dict(json.loads(metadata["card"]), str(self.path))
                self._properties = self.card.property_table()
            self._check_units(json.loads(metadata.get("units", "{}")))
            # Only the last batch may be smaller, so the first and last give all sizes.
            full, last = shard.batch(0).num_rows, shard.batch(shard.n_batches - 1).num_rows
            rows.append(full * (shard.n_batches - 1) + last)
            self._per_batch = max(self._per_batch, full)
        return rows

    def _check_format(self, version: object) -> None:
        if version != FORMAT:
            raise EutecticError(
                str(self.path), f"format {version!r}", FORMAT, "make the store again with this version of eutectic"
            )

    def _check_units(self, stored: Mapping[str, str]) -> None:
        for prop in self._properties:
            if stored.get(prop.name) != prop.unit:
                raise EutecticError(
                    str(self.path),
                    f"{prop.name} in {stored[prop.name]!r}" if prop.name in stored else f"no unit for {prop.name}",
                    f"{prop.unit!r}, the unit of {prop.name} in eutectic",
                    "make the store again with this version of eutectic",
                )

    def _missing(self, name: str) -> EutecticError:
        return EutecticError(str(self.path), f"{name} is missing", "every shard", "make the store again")

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        card = self.card
        labels = ", ".join(f"{name} ({PROPERTIES[name].unit or 'no unit'})" for name in card.properties)
        return f"Store {card.name}: {len(self):,} structures; {labels or 'no labels'}; {card.level_of_theory}"

    def __getitem__(self, index: int | np.integer) -> LabelledStructure:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        which = bisect_right(self._starts, index) - 1
        return self._shard(which).row(*divmod(index - self._starts[which], self._per_batch))

    def __iter__(self) -> Iterator[LabelledStructure]:
        return (self[i] for i in range(len(self)))

    def _shard(self, which: int) -> _Mapped:
        shard = self._mapped[which]
        if shard is None:
            shard = _Mapped(self.path / shard_name(which), self._properties)
            self._check_units(json.loads((shard.reader.schema.metadata or {}).get(b"units", b"{}")))
            self._mapped[which] = shard
        return shard

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in order, as Arrow batches of at most 512 rows."""
        for which in range(len(self._mapped)):
            shard = self._shard(which)
            yield from map(shard.batch, range(shard.n_batches))

    def take(self, indices: np.ndarray, *names: str) -> Iterator[pa.RecordBatch]:
        """Selected columns of selected rows, in constant memory, without building structures.

        Args:
            indices: (n,) rows; the output is sorted.
            names: columns, as in the schema.

        Yields:
            Arrow batches of at most 512 rows.
        """
        indices = np.sort(np.asarray(indices, dtype=np.int64))
        if len(indices) and (indices[0] < 0 or indices[-1] >= len(self)):
            raise IndexError(f"rows {indices[0]} to {indices[-1]} of {len(self)}")
        shards = np.searchsorted(self._bounds, indices, side="right") - 1
        batches, rows = np.divmod(indices - self._bounds[shards], self._per_batch)
        changes = (np.diff(shards, prepend=-1, append=-1) != 0) | (np.diff(batches, prepend=-1, append=-1) != 0)
        for first, end in itertools.pairwise(np.flatnonzero(changes)):
            batch = self._shard(int(shards[first])).batch(int(batches[first])).select(list(names))
            yield batch if end - first == batch.num_rows else batch.take(pa.array(rows[first:end]))

    def column(self, name: str) -> np.ndarray:
        """One column (`id`, `group`, `n_atoms`, a scalar label), without reading the others."""
        return pa.chunked_array([batch.column(name) for batch in self.batches()]).to_numpy()

    def published_splits(self) -> dict[str, dict[str, np.ndarray]]:
        """The splits that came with the data (often none): name → part → rows, in the published order.

        Raises:
            EutecticError: the file is damaged.
        """
        path = self.path / SPLITS
        if not path.exists():
            return {}
        try:
            lists = json.loads(path.read_text())
            return {n: {p: _rows_of(runs, len(self)) for p, runs in s.items()} for n, s in lists.items()}
        except (ValueError, AttributeError, TypeError, OverflowError) as error:
            raise EutecticError(
                str(path),
                f"not readable ({error})",
                "the lists written with the store",
                "make the store again",
            ) from error

    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal for two stores only if every split gives the same structures in both.

        A hash of the number of rows, of every row's id, group and geometry (in order), and of the published splits.
        Labels, card and shard sizes are not included. Reads three columns, in constant memory.
        """
        columns = ("id", "group", "content")
        # Lengths and contents are hashed separately: "ab", "c" differs from "a", "bc".
        digests = {name: (hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)) for name in columns}
        for batch in self.batches():
            for name, (lengths, contents) in digests.items():
                values = batch.column(name)
                lengths.update(pc.binary_length(values).to_numpy().astype(np.int64).tobytes())
                contents.update(b"".join(values.cast(pa.large_binary()).to_pylist()))
        combined = hashlib.blake2b(f"{len(self)}".encode(), digest_size=16)
        for lengths, contents in digests.values():
            combined.update(lengths.digest() + contents.digest())
        for name, parts in sorted(self.published_splits().items()):
            for part, rows in sorted(parts.items()):
                combined.update(f"{name}/{part}/{len(rows)}".encode() + rows.astype(np.int64).tobytes())
        return combined.hexdigest()

    def content_hash(self) -> str:
        """32 hexadecimal digits, equal for two stores only if a model learns the same from both.

        A hash of every value of every row, in order, of the units, and of the published splits. The rest of the card
        and shard sizes are not included. Reads the whole store, in constant memory.
        """
        digests: dict[str, tuple[hashlib.blake2b, hashlib.blake2b]] = {}
        for batch in self.batches():
            for name in batch.schema.names:
                column = batch.column(name)
                # Values and their places are hashed separately; the bytes under a null are undefined.
                places, values = digests.setdefault(name, (hashlib.blake2b(), hashlib.blake2b()))
                if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
                    lengths = pc.fill_null(pc.list_value_length(column), -1)
                    places.update(lengths.to_numpy().astype(np.int64).tobytes())
                    column = column.flatten()
                elif pa.types.is_string(column.type):
                    places.update(pc.binary_length(column).to_numpy().astype(np.int64).tobytes())
                else:
                    places.update(column.is_valid().to_numpy(False).tobytes())
                    column = column.drop_null()
                if pa.types.is_string(column.type) or pa.types.is_fixed_size_binary(column.type):
                    values.update(b"".join(column.cast(pa.large_binary()).to_pylist()))
                else:
                    values.update(column.to_numpy(False).tobytes())
        combined = hashlib.blake2b(self.fingerprint().encode(), digest_size=16)
        combined.update(json.dumps(sorted(_units(self.card).items())).encode())
        for name, (places, values) in sorted(digests.items()):
            combined.update(name.encode() + b"/" + places.digest() + values.digest())
        return combined.hexdigest()

    def bytes(self) -> int:
        """Size on disk."""
        return sum(f.stat().st_size for f in self.path.iterdir() if f.is_file())

    def summary(self) -> Summary:
        """Totals over all rows: from the manifest, or (without one) counted once, in constant memory."""
        if self._known is None:
            names = self.card.properties
            parts = (Summary.of(batch, names) for batch in self.batches())
            self._known = functools.reduce(Summary.__add__, parts)
        return self._known

    def composition(self) -> dict[int, int]:
        """Atomic number → number of atoms in the whole store."""
        return dict(self.summary().elements)

    def label_counts(self) -> dict[str, int]:
        """Property → number of structures that have it."""
        return dict(self.summary().labels)


def _shard_sizes(folder: Path) -> dict[str, int]:
    """Shard file name → size in bytes."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {e.name: e.stat().st_size for e in entries if e.name.startswith("shard-") and e.name.endswith(".arrow")}
