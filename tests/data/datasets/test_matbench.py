"""Matbench: rows, targets and folds as published; disordered crystals and broken files refused."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import matbench
from eutectic.data.formats import pymatgen_json


def crystal(symbol: str = "Na", **changes: Any) -> dict[str, Any]:
    """Rock salt of 2 atoms, as pymatgen writes it."""
    matrix = [[0.0, 2.8, 2.8], [2.8, 0.0, 2.8], [2.8, 2.8, 0.1]]
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": None,
        "lattice": {"matrix": matrix, "a": 3.96, "volume": 43.9},
        "sites": [
            {"species": [{"element": symbol, "occu": 1}], "abc": [0.0, 0.0, 0.0], "label": symbol},
            {"species": [{"element": "Cl", "occu": 1.0}], "abc": [0.5, 0.25, 0.5], "label": "Cl"},
        ],
        **changes,
    }


def write(path: Path, rows: list[list[Any]], column: str = "exfoliation_en") -> Path:
    table = {"index": [*range(len(rows))], "columns": ["structure", column], "data": rows}
    with gzip.open(path, "wt") as file:
        json.dump(table, file)
    return path


def read(source: Path, task: str = "jdft2d") -> list[LabelledStructure]:
    name = f"matbench:{task}"
    return [row for piece in matbench.pieces(source, name) for row in matbench.read(piece, name)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "matbench_jdft2d.json.gz", [[crystal(), 60.5], [crystal("K"), 7], [crystal("D"), None]])


def test_rows(file: Path) -> None:
    for source in (file, file.parent):
        first, second, third = read(source)
        first.check("here")
        assert [r.id for r in (first, second, third)] == ["mb-jdft2d-001", "mb-jdft2d-002", "mb-jdft2d-003"]
        assert [r.group for r in (first, second, third)] == ["ClNa", "ClK", "HCl"]
        assert first.labels == {"exfoliation_energy": np.array(60.5)}
        assert second.labels == {"exfoliation_energy": np.array(7.0)}
        assert third.labels == {}
        assert first.structure.numbers.tolist() == [11, 17]
        assert first.structure.pbc.all()
        np.testing.assert_allclose(first.structure.positions[1], [2.1, 2.8, 2.15])
        np.testing.assert_array_equal(first.structure.cell[2], [2.8, 2.8, 0.1])


def test_unpacked_and_through_a_small_window(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = file.with_suffix("")
    plain.write_bytes(gzip.decompress(file.read_bytes()))
    whole = [(r.id, dict(r.labels), r.structure.positions.tolist()) for r in read(plain)]
    for window in (1, 7, 64):
        monkeypatch.setattr(pymatgen_json, "CHUNK", window)
        assert [(r.id, dict(r.labels), r.structure.positions.tolist()) for r in read(plain)] == whole


def test_json_item_by_item() -> None:
    text = ' {"a": [1, [2, "],"], {}], "b": 12, "c": [], "d": {"x": [1]}, "é": "ü" } '
    found = list(pymatgen_json.items(io.BytesIO(text.encode()).read))
    assert found == [("a", 1), ("a", [2, "],"]), ("a", {}), ("b", 12), ("d", {"x": [1]}), ("é", "ü")]
    assert list(pymatgen_json.items(io.BytesIO(b"[1, 2]").read)) == [("", 1), ("", 2)]
    for broken in (b"", b"12", b'{"a": [1, 2', b'{"a": [1 2]}', b'{"a" 1}', b"[1, qq]", b"{1: 2}", b"[\xff]"):
        with pytest.raises(ValueError):  # noqa: PT011
            list(pymatgen_json.items(io.BytesIO(broken).read))


@pytest.mark.parametrize("task", matbench.TASKS)
def test_every_task(tmp_path: Path, task: str) -> None:
    entry = matbench.TASKS[task]
    target = True if task == "mp_is_metal" else 0.25
    write(tmp_path / f"matbench_{task}.json.gz", [[crystal(), target]], entry.column)
    (row,) = read(tmp_path, task)
    row.check("here")
    assert row.labels == {entry.label: np.array(float(target))}
    card, (remote,) = matbench.card(f"matbench:{task}"), matbench.files(f"matbench:{task}")
    assert card.properties == (entry.label,)
    assert remote.url.endswith(f"/matbench_{task}.json.gz")
    assert len(remote.checksum) == len("sha256:") + 64
    # Folds are positions in the whole file: a part has none.
    assert matbench.published_splits(tmp_path, f"matbench:{task}") == {}


def test_disorder_and_dummies(tmp_path: Path) -> None:
    path = tmp_path / "matbench_jdft2d.json.gz"
    site = {"abc": [0, 0, 0]}
    shared = {**site, "species": [{"element": "Fe", "occu": 0.5}, {"element": "Ni", "occu": 0.5}]}
    for sites, message in (
        ([shared], "occupied by Fe 0.5, Ni 0.5"),
        ([{**site, "species": [{"element": "Fe", "occu": 0.9}]}], "occupied by Fe 0.9"),
        ([{**site, "species": [{"element": "X", "occu": 1}]}], "species 'X'"),
        ([{**site, "species": [{"element": "Vac", "occu": 1}]}], "species 'Vac'"),
    ):
        write(path, [[crystal(), 1.0], [crystal(sites=sites), 2.0]])
        with pytest.raises(EutecticError, match=message) as caught:
            read(path)
        assert "row 1, site 0" in caught.value.where


@pytest.mark.parametrize(
    "changes",
    [
        {"lattice": {}},
        {"lattice": {"matrix": [[1, 0], [0, 1]]}},
        {"lattice": {"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "pbc": [True]}},
        {"sites": [{"species": [{"element": "H", "occu": 1}]}]},
        {"sites": [{"species": [], "abc": [0, 0, 0]}]},
        {"sites": [{"species": "H", "abc": [0, 0, 0]}]},
        {"sites": None},
    ],
)
def test_not_a_structure(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "matbench_jdft2d.json.gz", [[crystal(**changes), 1.0]])
    with pytest.raises(EutecticError, match="not a structure of pymatgen"):
        read(path)


def test_refusals(file: Path) -> None:
    whole = file.read_bytes()
    with pytest.raises(EutecticError, match="columns structure, exfoliation_en; expected structure, n"):
        read(file, "dielectric")
    with pytest.raises(EutecticError, match="no matbench_phonons"):
        read(file.parent, "phonons")
    with pytest.raises(EutecticError, match="data set 'matbench:steels'"):
        read(file, "steels")
    piece = matbench.pieces(file, "matbench:jdft2d")[0]
    for keep in (0, 5, len(whole) // 2, len(whole) - 9):
        file.write_bytes(whole[:keep])
        with pytest.raises(EutecticError, match="not readable"):
            list(matbench.read(piece, "matbench:jdft2d"))
    write(file, [])
    with pytest.raises(EutecticError, match="no rows"):
        read(file)
    for rows in ([[crystal()]], [[crystal(), 1.0, 2.0]], [3]):
        write(file, rows)  # type: ignore[arg-type]
        with pytest.raises(EutecticError, match="a row that does not have 2 entries"):
            read(file)
    write(file, [[crystal(), "60"]])
    with pytest.raises(EutecticError, match="exfoliation_en '60'; expected a number"):
        read(file)
    write(file, [["NaCl", 1.0]])
    with pytest.raises(EutecticError, match="a str; expected a structure"):
        read(file)
    write(file, [[crystal(), float("nan")]])
    with pytest.raises(EutecticError, match="exfoliation_energy is not finite"):
        read(file)[0].check("here")


def test_nesting_without_end_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "matbench_jdft2d.json"
    path.write_text('{"columns": ["structure", "exfoliation_en"], "data": ' + "[" * 100_000)
    with pytest.raises(EutecticError, match="not readable"):
        read(path)


def test_folds_of_a_classification() -> None:
    # Folds are of one size, and so are the shares of a class in them.
    classes = np.random.RandomState(0).random_sample(10_000) < 0.43
    fold_of = matbench.stratified_folds(classes)
    share = classes.mean()
    for fold in range(5):
        assert (fold_of == fold).sum() == 2000
        assert classes[fold_of == fold].mean() == pytest.approx(share, abs=1e-3)
    # Names of the classes are nothing; the class of the first row is shuffled first.
    np.testing.assert_array_equal(matbench.stratified_folds(~classes), fold_of)
    # A single class is dealt out in turn, then shuffled by a stream of its own.
    alone = np.arange(5).repeat(4)
    np.random.RandomState(matbench.SEED).shuffle(alone)
    np.testing.assert_array_equal(matbench.stratified_folds(np.ones(20, dtype=bool)), alone)


def test_official_folds(shared_data: Path) -> None:
    with gzip.open(shared_data / "matbench" / "matbench_v0.1_validation_subset.json.gz") as file:
        official = json.load(file)["splits"]
    for task, rows in (("jdft2d", 636), ("phonons", 1265), ("dielectric", 4764)):
        fold_of = matbench.folds(rows)
        for fold in range(5):
            for part, mine in (("test", fold_of == fold), ("train", fold_of != fold)):
                ids = official[f"matbench_{task}"][f"fold_{fold}"][part]
                numbers = [int(i.rpartition("-")[2]) - 1 for i in ids]
                assert np.flatnonzero(mine).tolist() == numbers


def test_real_jdft2d(shared_data: Path) -> None:
    rows = read(shared_data / "matbench")
    assert len(rows) == 636
    for row in rows:
        row.check(row.id)
    with gzip.open(shared_data / "matbench" / "matbench_v0.1_validation_subset.json.gz") as file:
        official = json.load(file)["splits"]["matbench_jdft2d"]
    splits = matbench.published_splits(shared_data / "matbench", "matbench:jdft2d")
    for fold in range(5):
        made = splits[f"fold_{fold}"]
        assert [rows[i].id for i in made["test"]] == official[f"fold_{fold}"]["test"]
        learned = np.sort(np.concatenate([made["train"], made["validation"]]))
        assert [rows[i].id for i in learned] == official[f"fold_{fold}"]["train"]
        assert len(made["train"]) == int(0.9 * len(learned))


@pytest.mark.parametrize(
    ("file", "task", "count"),
    [
        ("substitute_dielectric_petousis.json.gz", "dielectric", 1056),
        ("substitute_log_kvrh_mpbinary.json.gz", "log_kvrh", 3953),
        ("substitute_mp_devset200.json.gz", "mp_gap", 200),
        ("substitute_mp_devset200.json.gz", "mp_is_metal", 200),
        ("substitute_mp_devset200.json.gz", "mp_e_form", 200),
    ],
)
def test_real_substitutes(shared_data: Path, file: str, task: str, count: int) -> None:
    source = shared_data / "matbench" / file
    found = read(source, task)
    assert len(found) == count
    found[-1].check("here")
    # They are not the rows of Matbench, and claim none of its folds.
    assert matbench.published_splits(source, f"matbench:{task}") == {}
