"""The store: labelled structures in memory-mapped Arrow IPC shards.

A store is a folder of `shard-00000.arrow`, … Any Arrow reader (pandas, polars, DuckDB) opens them. One row is
one structure: flat arrays (row-major) for what has one entry per atom, float64 for energies and other labels
of a structure, float32 for positions, cells and forces (generated labels are computed at the rounded
positions; 1e-7 relative is far below any level of theory). The schema's metadata carries the card: units,
level of theory, licence, citation. A store is written beside its place and renamed when whole, so that a
killed or interrupted writer leaves nothing that looks like a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from eutectic.atoms import EutecticError, LabelledStructure, Property, Structure
from eutectic.data.card import Card

FORMAT = "eutectic-store-1"
ROWS_PER_BATCH = 512
ROWS_PER_SHARD = 262_144
SPLITS = "splits.json"

PublishedSplits = Mapping[str, Mapping[str, np.ndarray]]
"""Name of a split → "train", "validation", "test" → rows, in the published order."""


def _arrow_type(prop: Property) -> pa.DataType:
    scalar = prop.level == "structure" and prop.rank == 0
    return pa.float64() if scalar else pa.list_(pa.float32() if prop.level == "atom" else pa.float64())


def _schema(card: Card) -> pa.Schema:
    units = {p.name: p.unit for p in card.property_table()}
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
        "units": json.dumps(units),
    }
    return pa.schema(fields, metadata=metadata)


def content_hash(structure: Structure) -> bytes:
    """16 bytes that two structures share only if they are the same to 1e-3 Å, atom by atom."""
    digest = hashlib.sha256()
    digest.update(np.asarray(structure.numbers, dtype=np.uint8).tobytes())
    for lengths in (structure.positions, structure.cell):
        # Through float32, as stored: a structure and what is read back must fall on the same side of a tie.
        # Adding zero turns -0.0 into 0.0, which is the same place.
        stored = np.asarray(lengths, dtype=np.float32).astype(np.float64)
        digest.update((np.round(stored, 3) + 0.0).astype(np.float32).tobytes())
    digest.update(structure.pbc.tobytes())
    return digest.digest()[:16]


def _columns(rows: Sequence[LabelledStructure], schema: pa.Schema, properties: Sequence[Property]) -> pa.RecordBatch:
    values: dict[str, list[object]] = {name: [] for name in schema.names}
    for row in rows:
        s = row.structure
        values["id"].append(row.id)
        values["group"].append(row.group)
        values["n_atoms"].append(len(s))
        values["content"].append(content_hash(s))
        values["numbers"].append(s.numbers.astype(np.uint8))
        values["positions"].append(s.positions.astype(np.float32).ravel())
        values["cell"].append(s.cell.astype(np.float32).ravel())
        values["pbc"].append(s.pbc)
        # Most structures are all tag 2 and all free: a null costs one bit.
        values["tags"].append(None if (s.tags == 2).all() else s.tags.astype(np.uint8))
        values["fixed"].append(s.fixed if s.fixed.any() else None)
        for prop in properties:
            label = row.labels.get(prop.name)
            if label is not None and (prop.level == "atom" or prop.rank > 0):
                label = np.asarray(label, dtype=np.float32 if prop.level == "atom" else np.float64).ravel()
            values[prop.name].append(label if label is None or np.ndim(label) else float(label))
    return pa.record_batch([pa.array(values[f.name], type=f.type) for f in schema], schema=schema)


class _Shards:
    """Batches of rows, appended to shard after shard in one folder.

    Only its methods write, so that an `OSError` of theirs is the disk's and never the source's.
    """

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.schema, self.properties = folder, _schema(card), card.property_table()
        self.written = 0
        self._file: BinaryIO | None = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, rows: Sequence[LabelledStructure]) -> None:
        if self._writer is None:
            shard = self.folder / f"shard-{self.written // ROWS_PER_SHARD:05d}.arrow"
            self._file = shard.open("wb")
            self._writer = pa.ipc.new_file(self._file, self.schema)
        self._writer.write_batch(_columns(rows, self.schema, self.properties))
        self.written += len(rows)
        if self.written % ROWS_PER_SHARD == 0:
            self.close()

    def close(self) -> None:
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        if writer is None or file is None:
            return
        with file:
            writer.close()
            file.flush()
            # On the disk before the folder gets its name: a rename may outrun the data when power fails.
            os.fsync(file.fileno())


def is_store(path: Path) -> bool:
    """Whether there is a store at `path` (its shards are not opened)."""
    return Path(path).is_dir() and any(Path(path).glob("shard-*.arrow"))


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where a store may not be written; before hours of reading rather than after.

    Raises:
        EutecticError: something is there, and it is not a store that may be replaced.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())) or (overwrite and is_store(path)):
        return
    raise EutecticError(
        str(path),
        "a store is there already" if is_store(path) else "something that is not a store is there already",
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
    """Write every row, checked, into a new store.

    Args:
        path: the folder to make.
        card: becomes the schema's metadata; only labels it declares are written.
        rows: read once, in constant memory.
        overwrite: replace a store that is there (only once the new one is whole). Anything else that is
            there is never touched.
        splits: published with the data: name → "train", "validation", "test" → positions among `rows`.

    Returns:
        The number of structures written.

    Raises:
        EutecticError: something is at `path` already; a row is unusable; there is no row; the disk is full.
    """
    path = Path(path).absolute()
    check_place(path, overwrite=overwrite)
    # Named at random: two writers, or the remains of one that was killed, never meet.
    half = path.with_name(f".{path.name}.writing-{secrets.token_hex(4)}")
    try:
        with _disk(path):
            half.mkdir(parents=True)
        shards, pending = _Shards(half, card), []
        try:
            for row in rows:
                row.check(f"{card.name}, {row.id}")
                pending.append(row)
                if len(pending) == ROWS_PER_BATCH:
                    with _disk(path):
                        shards.add(pending)
                    pending = []
            if pending:
                with _disk(path):
                    shards.add(pending)
        finally:
            with _disk(path):
                shards.close()
        if shards.written == 0:
            raise EutecticError(card.name, "no structures", "at least one", "check the source and its filters")
        with _disk(path):
            if splits:
                lists = {n: {part: np.asarray(i).tolist() for part, i in s.items()} for n, s in splits.items()}
                (half / SPLITS).write_text(json.dumps(lists))
            _move_into_place(half, path)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return shards.written


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EutecticError(
            str(path),
            f"could not be written ({error.strerror or error})",
            "a folder with room to write in",
            "free some space or choose another disk, then run the same command again",
        ) from error


def _move_into_place(half: Path, path: Path) -> None:
    """Two renames, so that at every moment the old store or the new one is whole on the disk."""
    old = path.with_name(f".{path.name}.replaced-{secrets.token_hex(4)}")
    if path.exists():
        path.rename(old)
    try:
        half.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


class Store(Sequence[LabelledStructure]):
    """Random access to a store on disk, in constant memory.

    Safe to share between processes: it pickles as its path, and every process maps the same pages.

    Args:
        path: the folder `write_store` made.

    Raises:
        EutecticError: not a store, a shard that is truncated or missing, or another format version.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, so that a worker process started elsewhere finds it.
        self.path = Path(path).absolute()
        shards = sorted(self.path.glob("shard-*.arrow")) if self.path.is_dir() else []
        if not shards:
            raise EutecticError(
                str(self.path),
                "no shard-*.arrow files here" if self.path.exists() else "nothing is here",
                "the folder of a store",
                "make one with `eutectic data prepare`, or check the path",
            )
        self._where: list[tuple[pa.ipc.RecordBatchFileReader, int]] = []
        counts: list[int] = []
        for number, shard in enumerate(shards):
            if shard.name != f"shard-{number:05d}.arrow":
                raise EutecticError(
                    str(self.path),
                    f"shard-{number:05d}.arrow is missing",
                    "every shard",
                    "make the store again",
                )
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(shard)))
                batches = reader.num_record_batches
                # A writer fills every batch but the last: two of them tell the sizes of all.
                full, last = reader.get_batch(0).num_rows, reader.get_batch(batches - 1).num_rows
            except (pa.ArrowException, OSError) as error:
                raise EutecticError(
                    str(shard),
                    f"not a whole Arrow file ({error})",
                    "a shard written to its end",
                    "make the store again",
                ) from error
            self._where += [(reader, i) for i in range(batches)]
            counts += [full] * (batches - 1) + [last]
        metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT:
            raise EutecticError(
                str(self.path),
                f"format {metadata.get('format')!r}",
                FORMAT,
                "make the store again with this version of eutectic",
            )
        self.card = Card.from_dict(json.loads(metadata["card"]))
        self._starts = np.cumsum([0, *counts])
        self._properties = self.card.property_table()

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int | np.integer) -> LabelledStructure:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        batch, row = self._batch(which), index - int(self._starts[which])

        def flat(name: str) -> np.ndarray | None:
            value = batch.column(name)[row]
            return value.values.to_numpy(zero_copy_only=False) if value.is_valid else None

        numbers = flat("numbers")
        assert numbers is not None
        positions, cell, pbc, tags, fixed = (flat(n) for n in ("positions", "cell", "pbc", "tags", "fixed"))
        assert positions is not None
        assert cell is not None
        assert pbc is not None
        structure = Structure(
            numbers=numbers.astype(np.int64),
            positions=positions.astype(np.float64).reshape(-1, 3),
            cell=cell.astype(np.float64).reshape(3, 3),
            pbc=pbc.astype(bool),
            tags=np.full(len(numbers), 2) if tags is None else tags.astype(np.int64),
            fixed=np.zeros(len(numbers), dtype=bool) if fixed is None else fixed.astype(bool),
        )
        labels: dict[str, np.ndarray] = {}
        for prop in self._properties:
            if prop.level == "structure" and prop.rank == 0:
                scalar = batch.column(prop.name)[row].as_py()
                if scalar is not None:
                    labels[prop.name] = np.asarray(scalar, dtype=np.float64)
            elif (value := flat(prop.name)) is not None:
                labels[prop.name] = value.astype(np.float64).reshape(prop.shape(len(structure)))
        return LabelledStructure(
            structure=structure,
            labels=labels,
            id=batch.column("id")[row].as_py(),
            group=batch.column("group")[row].as_py(),
        )

    def __iter__(self) -> Iterator[LabelledStructure]:
        return (self[i] for i in range(len(self)))

    def _batch(self, which: int) -> pa.RecordBatch:
        reader, i = self._where[which]
        return reader.get_batch(i)

    def take(self, indices: np.ndarray, *names: str) -> Iterator[pa.RecordBatch]:
        """Some columns of some rows, in constant memory and without making a structure of any.

        Args:
            indices: (n,) rows; they come out sorted.
            names: columns, as in the schema.

        Yields:
            Arrow batches of at most 512 rows.
        """
        indices = np.sort(np.asarray(indices, dtype=np.int64))
        if len(indices) and (indices[0] < 0 or indices[-1] >= len(self)):
            raise IndexError(f"rows {indices[0]} to {indices[-1]} of {len(self)}")
        which = np.searchsorted(self._starts, indices, side="right") - 1
        bounds = np.flatnonzero(np.diff(which, prepend=-1, append=-1))
        for first, end in itertools.pairwise(bounds):
            batch, start = self._batch(int(which[first])).select(list(names)), self._starts[which[first]]
            local = indices[first:end] - start
            yield batch if len(local) == batch.num_rows else batch.take(pa.array(local))

    def column(self, name: str) -> np.ndarray:
        """One whole column (`id`, `group`, `n_atoms`, a label of structures) without touching the others."""
        return pa.chunked_array([self._batch(i).column(name) for i in range(len(self._where))]).to_numpy()

    def published_splits(self) -> dict[str, dict[str, np.ndarray]]:
        """The splits that came with the data (often none): name → part → rows, in the published order.

        Raises:
            EutecticError: the file is there and is damaged.
        """
        path = self.path / SPLITS
        if not path.exists():
            return {}
        try:
            lists = json.loads(path.read_text())
            return {n: {p: np.array(rows, dtype=np.int64) for p, rows in s.items()} for n, s in lists.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise EutecticError(
                str(path),
                f"not readable ({error})",
                "the lists written with the store",
                "make the store again",
            ) from error

    def bytes(self) -> int:
        """Size on disk."""
        return sum(f.stat().st_size for f in self.path.iterdir() if f.is_file())

    def composition(self) -> dict[int, int]:
        """Atomic number → number of atoms in the whole store."""
        counts = np.zeros(256, dtype=np.int64)
        for i in range(len(self._where)):
            counts += np.bincount(self._batch(i).column("numbers").flatten().to_numpy(), minlength=256)
        return {int(z): int(n) for z, n in enumerate(counts) if n}

    def label_counts(self) -> dict[str, int]:
        """Property → number of structures that carry it."""
        missing = dict.fromkeys(self.card.properties, 0)
        for i in range(len(self._where)):
            batch = self._batch(i)
            for name in missing:
                missing[name] += batch.column(name).null_count
        return {name: len(self) - count for name, count in missing.items()}
