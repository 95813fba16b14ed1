"""The store: round trips, and incomplete stores are refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Structure, define, parse_definition
from eutectic.data import store as store_module
from eutectic.data.card import Card
from eutectic.data.store import Store, Summary, content_hash, is_store, write_store

CARD = Card(
    name="made up",
    title="Made up",
    domain="tests",
    properties=("energy", "forces", "stress"),
    level_of_theory="none",
    licence="CC0-1.0",
    citation="nobody",
    source="a random generator",
    notes=("not real",),
)


def made_up(n: int, seed: int = 0) -> Iterator[LabelledStructure]:
    random = np.random.default_rng(seed)
    for i in range(n):
        atoms = int(random.integers(1, 9))
        labels: dict[str, np.ndarray] = {"energy": np.asarray(-1e5 + random.normal() / 3)}
        if i % 2:
            labels["forces"] = random.normal(size=(atoms, 3))
        if i % 3 == 0:
            labels["stress"] = random.normal(size=(3, 3))
        periodic = i % 5 == 0
        yield LabelledStructure(
            structure=Structure(
                numbers=random.integers(1, 119, atoms),
                positions=random.normal(size=(atoms, 3)) * 5,
                cell=np.diag(random.uniform(3, 9, 3)) if periodic else np.zeros((3, 3)),
                pbc=np.array([periodic] * 3),
                tags=random.integers(0, 3, atoms) if i % 2 else np.full(atoms, 2),
                fixed=random.integers(0, 2, atoms).astype(bool) if i % 4 == 0 else np.zeros(atoms, dtype=bool),
            ),
            labels=labels,
            id=f"row-{i}",
            group=f"group-{i % 7}",
        )


@pytest.fixture
def written(tmp_path: Path) -> Store:
    assert write_store(tmp_path / "store", CARD, made_up(600)) == 600
    return Store(tmp_path / "store")


def assert_same(a: LabelledStructure, b: LabelledStructure) -> None:
    assert (a.id, a.group) == (b.id, b.group)
    for name in ("numbers", "pbc", "tags", "fixed"):
        np.testing.assert_array_equal(getattr(a.structure, name), getattr(b.structure, name))
    for name in ("positions", "cell"):
        np.testing.assert_allclose(getattr(a.structure, name), getattr(b.structure, name), atol=2e-6)
    assert a.labels.keys() == b.labels.keys()
    for name, value in a.labels.items():
        if name == "forces":
            np.testing.assert_allclose(b.labels[name], value, atol=1e-6)
        else:
            # To the last digit: energies and stresses are kept in float64.
            np.testing.assert_array_equal(b.labels[name], value)


def test_round_trip(written: Store) -> None:
    for before, after in zip(made_up(600), written, strict=True):
        assert_same(before, after)
    assert written.card == CARD


def test_random_access(written: Store) -> None:
    assert written[-1].id == "row-599"
    assert written[np.int64(513)].id == "row-513"
    with pytest.raises(IndexError):
        written[600]


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 8)
    write_store(tmp_path / "store", CARD, made_up(21))
    store = Store(tmp_path / "store")
    assert len(list(store.path.glob("shard-*.arrow"))) == 3
    assert [row.id for row in store] == [f"row-{i}" for i in range(21)]
    (store.path / "shard-00001.arrow").unlink()
    with pytest.raises(EutecticError, match=r"shard-00001\.arrow is missing"):
        Store(store.path)


def test_what_is_missing_or_too_much_is_noticed_without_opening_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 8)
    write_store(tmp_path / "store", CARD, made_up(21))
    with monkeypatch.context() as closed:
        closed.setattr(pa.ipc, "open_file", lambda *_: pytest.fail("a shard was opened"))
        store = Store(tmp_path / "store")
        assert (len(store), store.card) == (21, CARD)
        assert store.label_counts() == {"energy": 21, "forces": 10, "stress": 7}
        assert sum(store.composition().values()) == sum(len(row.structure) for row in made_up(21))
    last = store.path / "shard-00002.arrow"
    other = last.rename(store.path / "shard-00003.arrow")
    with pytest.raises(EutecticError, match=r"shard-00002\.arrow is missing"):
        Store(store.path)
    other.rename(last)
    (store.path / "shard-00003.arrow").write_bytes(last.read_bytes())
    with pytest.raises(EutecticError, match=r"shard-00003\.arrow does not belong"):
        Store(store.path)


def test_a_store_without_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 8)
    write_store(tmp_path / "store", CARD, made_up(21))
    new = Store(tmp_path / "store")
    rows, told = list(new), new.summary()
    (tmp_path / "store" / "manifest.json").unlink()
    old = Store(tmp_path / "store")
    assert (len(old), old.card, old.summary()) == (21, CARD, told)
    for a, b in zip(rows, old, strict=True):
        assert_same(a, b)
    assert [b.num_rows for b in old.batches()] == [4, 4, 4, 4, 4, 1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "eutectic-store-1"}'])
def test_a_damaged_manifest(written: Store, text: str) -> None:
    (written.path / "manifest.json").write_text(text)
    with pytest.raises(EutecticError, match=r"manifest\.json: not readable"):
        Store(written.path)


def test_units_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setitem(PROPERTIES, "energy", replace(PROPERTIES["energy"], unit="kcal/mol"))
        write_store(tmp_path / "older", CARD, made_up(3))
        assert len(Store(tmp_path / "older")) == 3
    manifest = tmp_path / "older" / "manifest.json"
    as_written = manifest.read_text()
    for text in (as_written, as_written.replace('"units"', '"no_units"'), None):
        if text is None:
            manifest.unlink()
        else:
            manifest.write_text(text)
        with pytest.raises(EutecticError, match="older: energy in 'kcal/mol'; expected 'eV', the unit of energy"):
            Store(tmp_path / "older")


def test_a_shard_in_other_units_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "store", CARD, made_up(3))
    with monkeypatch.context() as older:
        older.setitem(PROPERTIES, "forces", replace(PROPERTIES["forces"], unit="eV/A"))
        write_store(tmp_path / "older", CARD, made_up(3))
    manifest, shard = (tmp_path / "store" / name for name in ("manifest.json", "shard-00000.arrow"))
    other = (tmp_path / "older" / shard.name).read_bytes()
    manifest.write_text(manifest.read_text().replace(f'"bytes": [{shard.stat().st_size}]', f'"bytes": [{len(other)}]'))
    shard.write_bytes(other)
    store = Store(tmp_path / "store")
    with pytest.raises(EutecticError, match="forces in 'eV/A'; expected 'eV/Å'"):
        store[0]


def test_definitions_travel_in_a_store(tmp_path: Path) -> None:
    define(parse_definition("e_bind=eV,extensive"))
    card = replace(CARD, properties=("energy", "e_bind"))
    rows = [replace(row, labels={**row.labels, "e_bind": np.asarray(1.5)}) for row in made_up(3)]
    write_store(tmp_path / "store", card, rows)
    for manifest in (True, False):
        PROPERTIES.pop("e_bind")
        if not manifest:
            (tmp_path / "store" / "manifest.json").unlink()
        store = Store(tmp_path / "store")
        assert PROPERTIES["e_bind"].definition == "e_bind=eV,extensive"
        assert float(store[2].labels["e_bind"]) == 1.5
    again = pickle.dumps(card)
    PROPERTIES.pop("e_bind")
    assert pickle.loads(again) == card
    assert "e_bind" in PROPERTIES
    PROPERTIES.pop("e_bind")
    define(parse_definition("e_bind=kJ/mol"))
    with pytest.raises(EutecticError, match="store: the definition e_bind=eV,extensive; expected e_bind=kJ/mol"):
        Store(tmp_path / "store")


def test_the_number_of_groups_is_about_right() -> None:
    def with_groups(names: range) -> pa.RecordBatch:
        ones = pa.array([[1]] * len(names), pa.list_(pa.uint8()))
        columns = {"n_atoms": pa.array([1] * len(names), pa.int32()), "numbers": ones}
        return pa.record_batch({**columns, "group": pa.array([str(i) for i in names])})

    few = Summary.of(with_groups(range(900)), ()) + Summary.of(with_groups(range(500, 1000)), ())
    assert (few.n_groups(), few.structures) == (1000, 1400)
    many = Summary()
    for start in range(0, 20_000, 500):
        many += Summary.of(with_groups(range(start, start + 1000)), ())
    assert many.n_groups() == pytest.approx(20_500, rel=0.1)
    assert Summary.from_dict(json.loads(json.dumps(many.to_dict()))) == many


def test_rows_are_copies(written: Store) -> None:
    row = written[0]
    for values in (row.structure.positions, row.structure.numbers, row.structure.pbc, row.structure.fixed):
        values[...] = 0
    assert_same(written[0], next(made_up(1)))


def _ids(store: Store, first: int) -> list[str]:
    return [store[i].id for i in range(first, 600, 3)]


def test_many_processes_read_at_once(written: Store) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = list(pool.map(_ids, [written] * 3, range(3)))
    assert sorted(name for share in shares for name in share) == sorted(row.id for row in made_up(600))


def test_a_compressed_shard_is_refused(written: Store) -> None:
    shard = written.path / "shard-00000.arrow"
    table = pa.ipc.open_file(shard.read_bytes()).read_all()
    (written.path / "manifest.json").unlink()
    with pa.ipc.new_file(str(shard), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=512)
    with pytest.raises(EutecticError, match="it is compressed"):
        Store(written.path)[0]


def test_columns(written: Store) -> None:
    rows = list(made_up(600))
    np.testing.assert_array_equal(written.column("n_atoms"), [len(r.structure) for r in rows])
    np.testing.assert_array_equal(written.column("energy"), [float(r.labels["energy"]) for r in rows])
    assert written.column("group")[8] == "group-1"
    assert written.label_counts() == {"energy": 600, "forces": 300, "stress": 200}
    counts = np.bincount(np.concatenate([r.structure.numbers for r in rows]))
    assert written.composition() == {z: n for z, n in enumerate(counts.tolist()) if n}


def test_take(written: Store) -> None:
    batches = list(written.take(np.array([599, 3, 511, 512]), "id", "n_atoms"))
    assert [b.column("id").to_pylist() for b in batches] == [["row-3", "row-511"], ["row-512", "row-599"]]
    assert sum(b.num_rows for b in written.take(np.arange(600), "energy")) == 600
    assert list(written.take(np.array([], dtype=np.int64), "id")) == []
    with pytest.raises(IndexError):
        list(written.take(np.array([600]), "id"))


def test_pickles_as_its_path(written: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(written.path.parent)
    relative = pickle.dumps(Store(Path("store")))
    assert len(relative) < 1000
    monkeypatch.chdir(tmp_path.root)
    assert_same(pickle.loads(relative)[7], written[7])


def test_any_arrow_reader_opens_it(written: Store) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed; it comes with the extra `generate`")
    table = pa.ipc.open_file(str(written.path / "shard-00000.arrow")).read_all()
    frame = table.select(["id", "n_atoms", "energy"]).to_pandas()
    assert len(frame) == 600
    assert frame["energy"].iloc[5] == float(written[5].labels["energy"])
    assert table.schema.field("forces").metadata == {b"unit": "eV/Å".encode()}


def test_published_splits_travel_with_it(tmp_path: Path) -> None:
    lists = {"official_01": {"train": np.array([4, 2]), "test": np.array([1])}}
    write_store(tmp_path / "store", CARD, made_up(5), splits=lists)
    read = Store(tmp_path / "store").published_splits()
    np.testing.assert_array_equal(read["official_01"]["train"], [4, 2])


def test_a_fingerprint_is_of_what_a_split_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"official_01": {"train": np.array([4, 2]), "test": np.array([1])}}
    rows = list(made_up(21))
    variants: dict[str, tuple[Card, list[LabelledStructure], dict[str, dict[str, np.ndarray]] | None]] = {
        "same": (CARD, rows, None),
        "another card": (replace(CARD, notes=("a remark",)), rows, None),
        "another label": (CARD, [replace(rows[0], labels={"energy": np.array(0.5)}), *rows[1:]], None),
        "fewer": (CARD, rows[:-1], None),
        "another order": (CARD, rows[::-1], None),
        "another id": (CARD, [replace(rows[0], id="other"), *rows[1:]], None),
        "another group": (CARD, [replace(rows[0], group="other"), *rows[1:]], None),
        "another structure": (CARD, [replace(rows[0], structure=rows[1].structure), *rows[1:]], None),
        "published": (CARD, rows, lists),
        "otherwise published": (CARD, rows, {"official_01": {**lists["official_01"], "test": np.array([3])}}),
    }
    found, contents = {}, {}
    for name, (card, some, splits) in variants.items():
        write_store(tmp_path / name, card, some, splits=splits)
        found[name] = Store(tmp_path / name).fingerprint()
        contents[name] = Store(tmp_path / name).content_hash()
    monkeypatch.setattr(store_module, "ROWS_PER_BATCH", 4)
    monkeypatch.setattr(store_module, "ROWS_PER_SHARD", 8)
    write_store(tmp_path / "shards", CARD, rows)
    found["shards"] = Store(tmp_path / "shards").fingerprint()
    contents["shards"] = Store(tmp_path / "shards").content_hash()
    assert {name for name, value in found.items() if value == found["same"]} == {
        "same",
        "another card",
        "another label",
        "shards",
    }
    assert len(set(found.values())) == 8
    assert {name for name, value in contents.items() if value == contents["same"]} == {"same", "another card", "shards"}
    assert len(set(contents.values())) == 9


def test_the_hash_of_the_contents_is_of_every_value(tmp_path: Path) -> None:
    rows = list(made_up(3))
    first = rows[0]
    moved = first.structure.positions.copy()
    moved[0, 0] += 1e-5  # smaller than the tolerance of the duplicate search
    variants = {
        "same": first,
        "moved": replace(first, structure=replace(first.structure, positions=moved)),
        "fixed": replace(first, structure=replace(first.structure, fixed=~first.structure.fixed)),
        "tagged": replace(first, structure=replace(first.structure, tags=np.zeros_like(first.structure.tags))),
        "unlabelled": replace(first, labels={}),
    }
    found = set()
    for name, row in variants.items():
        write_store(tmp_path / name, CARD, [row, *rows[1:]])
        found.add(Store(tmp_path / name).content_hash())
    assert len(found) == len(variants)


@pytest.mark.parametrize(
    ("rows", "written"),
    [
        ([4, 2, 3, 0], "[4, 2, 3, 0]"),
        ([7, 2, 3, 4, 5, 1, 0], "[7, [2, 6], 1, 0]"),
        (list(range(40)), "[[0, 40]]"),
        ([], "[]"),
        ([3], "[3]"),
        ([0, 0, 1, 2, 3], "[0, [0, 4]]"),
    ],
)
def test_published_splits_are_written_in_runs(tmp_path: Path, rows: list[int], written: str) -> None:
    write_store(tmp_path / "store", CARD, made_up(40), splits={"a": {"train": np.array(rows, dtype=np.int64)}})
    path = tmp_path / "store" / "splits.json"
    assert path.read_text() == '{"a": {"train": ' + written + "}}"
    assert Store(tmp_path / "store").published_splits()["a"]["train"].tolist() == rows
    # As stores made before had it.
    path.write_text(json.dumps({"a": {"train": rows}}))
    assert Store(tmp_path / "store").published_splits()["a"]["train"].tolist() == rows


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"a": {"train": [1, 40]}}',
        '{"a": {"train": [-1]}}',
        '{"a": {"train": [[0, 99999999999999]]}}',
        '{"a": {"train": [[5, 5]]}}',
        '{"a": {"train": [[1, 2, 3], 0]}}',
        '{"a": {"train": ["x"]}}',
        '{"a": {"train": [1e400]}}',
    ],
)
def test_damaged_published_splits(tmp_path: Path, text: str) -> None:
    write_store(tmp_path / "store", CARD, made_up(40), splits={"a": {"train": np.arange(3)}})
    (tmp_path / "store" / "splits.json").write_text(text)
    with pytest.raises(EutecticError, match=r"splits\.json: not readable"):
        Store(tmp_path / "store").published_splits()


def test_content_hash_survives_the_store(written: Store) -> None:
    hashes = {content_hash(written[i].structure) for i in range(60)}
    assert hashes == {content_hash(row.structure) for row in made_up(60)}
    assert len(hashes) == 60
    assert hashes == set(written.column("content")[:60])


def test_content_hash_of_ties_and_signed_zeros() -> None:
    # 0.0005 is a tie in float64, and not in float32.
    numbers = np.array([1, 1])
    here = Structure(numbers=numbers, positions=np.array([[0.0005, 0, 0], [1.0025, 0.0, 0]]))
    stored = Structure(numbers=numbers, positions=here.positions.astype(np.float32).astype(np.float64))
    assert content_hash(here) == content_hash(stored)
    minus = Structure(numbers=numbers, positions=here.positions * [1, -1, 1])
    assert content_hash(here) == content_hash(minus)


def test_a_bad_row_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[LabelledStructure]:
        yield from made_up(3)
        good = next(made_up(1))
        yield LabelledStructure(structure=good.structure, labels={"energy": np.asarray(np.nan)}, id="bad", group="g")

    with pytest.raises(EutecticError, match="made up, bad: energy is not finite"):
        write_store(tmp_path / "store", CARD, rows())
    assert list(tmp_path.iterdir()) == []


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="no structures"):
        write_store(tmp_path / "store", CARD, [])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[LabelledStructure]:
        yield from made_up(600)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", CARD, rows())
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from eutectic.atoms import LabelledStructure, Structure
from eutectic.data.card import Card
from eutectic.data.store import write_store

def rows():
    for i in range(2000):
        if i == 1500:
            os.kill(os.getpid(), signal.SIGKILL)
        s = Structure(numbers=np.array([1]), positions=np.zeros((1, 3)))
        yield LabelledStructure(structure=s, labels={}, id=str(i), group="g")

card = Card(name="k", title="", domain="", properties=(), level_of_theory="", licence="", citation="", source="")
write_store(Path(sys.argv[1]), card, rows(), overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
def test_a_killed_writer_leaves_no_store_and_spares_the_old_one(tmp_path: Path) -> None:
    write_store(tmp_path / "store", CARD, made_up(5))
    for name in ("store", "new"):
        command = [sys.executable, "-c", KILLED, str(tmp_path / name)]
        assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert len(Store(tmp_path / "store")) == 5
    assert not is_store(tmp_path / "new")
    # What the killed writers left does not stop the next one.
    assert write_store(tmp_path / "new", CARD, made_up(4)) == 4


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_store(tmp_path / "store", CARD, made_up(5))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EutecticError, match="No space left on device") as caught:
        write_store(tmp_path / "store", CARD, made_up(600), overwrite=True)
    assert "free some space" in caught.value.fix
    assert len(Store(tmp_path / "store")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_trouble_with_the_source_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    def rows() -> Iterator[LabelledStructure]:
        yield from made_up(3)
        raise OSError("the source went away")

    with pytest.raises(OSError, match="the source went away"):
        write_store(tmp_path / "store", CARD, rows())


def test_a_truncated_shard(written: Store) -> None:
    shard = written.path / "shard-00000.arrow"
    whole = shard.read_bytes()
    for keep in (0, 100, len(whole) // 2, len(whole) - 3):
        shard.unlink()
        shard.write_bytes(whole[:keep])
        with pytest.raises(EutecticError, match="truncated or damaged Arrow file"):
            Store(written.path)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="does not exist"):
        Store(tmp_path / "absent")
    with pytest.raises(EutecticError, match=r"no shard-\*\.arrow"):
        Store(tmp_path)
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(tmp_path / "shard-00000.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(EutecticError, match="format None"):
        Store(tmp_path)


def test_only_a_store_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(EutecticError, match="not a store already exists here"):
        write_store(folder, CARD, made_up(3), overwrite=True)
    assert (folder / "chapter.txt").read_text() == "years of work"
    write_store(tmp_path / "store", CARD, made_up(3))
    with pytest.raises(EutecticError, match="--overwrite"):
        write_store(tmp_path / "store", CARD, made_up(2))
    assert write_store(tmp_path / "store", CARD, made_up(2), overwrite=True) == 2
    assert len(Store(tmp_path / "store")) == 2
    (tmp_path / "empty").mkdir()
    assert write_store(tmp_path / "empty", CARD, made_up(2)) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EutecticError, match="could not be written"):
        write_store(tmp_path / "file" / "store", CARD, made_up(2))


@pytest.mark.parametrize("periodic", [True, False])
def test_atoms_far_from_the_origin_are_stored_as_at_home(periodic: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cell, pbc = np.diag([3.6, 3.7, 3.8]), np.full(3, periodic)
    home = Structure(numbers=np.array([29] * 4), positions=random.uniform(0, 3.6, (4, 3)), cell=cell, pbc=pbc)
    moves = random.integers(-5000, 5000, (4, 3)) @ cell if periodic else np.array([5432.1, -7000.0, 7.0])
    far = replace(home, positions=home.positions + moves)
    rows = [LabelledStructure(structure=s, labels={}, id=i, group=i) for i, s in (("a", home), ("b", far))]
    write_store(tmp_path / "store", CARD, rows)
    stored = [row.structure for row in Store(tmp_path / "store")]
    np.testing.assert_array_equal(stored[0].positions, home.positions.astype(np.float32))
    arms = [s.positions - s.positions[0] if not periodic else s.positions for s in (stored[1], home)]
    np.testing.assert_allclose(*arms, atol=1e-6)
    # Stored and read, it is still the same content, and is not moved again.
    assert content_hash(far) == content_hash(stored[1])
    assert content_hash(stored[0]) == content_hash(home)
    if periodic:
        assert content_hash(far) == content_hash(home)


def test_atoms_near_the_origin_are_stored_where_they_are(tmp_path: Path) -> None:
    cell, pbc = np.diag([60.0, 60.0, 60.0]), np.ones(3, dtype=bool)
    positions = np.random.default_rng(0).integers(-10, 70, (50, 3)) + 0.25
    structure = Structure(numbers=np.full(50, 6), positions=positions, cell=cell, pbc=pbc)
    write_store(tmp_path / "store", CARD, [LabelledStructure(structure=structure, labels={}, id="a", group="a")])
    np.testing.assert_array_equal(Store(tmp_path / "store")[0].structure.positions, positions)
