"""Adding a data set as one file, as described in CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eutectic import cli
from eutectic.data import datasets
from eutectic.data.catalogue import listing, open_store, prepare
from eutectic.data.splits import split

MODULE = '''"""Argon dimers at many distances, one CSV row each: distance (Å), energy (kcal/mol)."""

import numpy as np

from eutectic.atoms import LabelledStructure, Structure
from eutectic.atoms.units import KCAL_PER_MOL
from eutectic.data.card import Card
from eutectic.data.dataset import PaperSplit, Piece

CARD = Card(
    name="argon_dimers",
    title="Argon dimers",
    domain="molecules",
    properties=("energy",),
    level_of_theory="CCSD(T)",
    licence="CC0-1.0",
    citation="nobody, 2026",
    source="a table",
    default_split="random",
)
PAPER_SPLITS = {"argon_dimers": PaperSplit(0.8, None, 0.1, 10)}


def names():
    return ("argon_dimers",)


def card(name):
    return CARD


def files(name):
    return ()


def pieces(source, name):
    return [Piece(path=source)]


def read(piece, name):
    for i, line in enumerate(piece.path.read_text().splitlines()):
        distance, energy = map(float, line.split(","))
        positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
        structure = Structure(numbers=np.array([18, 18]), positions=positions)
        labels = {"energy": np.array(energy * KCAL_PER_MOL)}
        yield LabelledStructure(structure=structure, labels=labels, id=str(i), group=str(i))


def published_splits(source, name):
    return {}
'''


@pytest.fixture
def _argon_dimers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "datasets"
    folder.mkdir()
    (folder / "argon_dimers.py").write_text(MODULE)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(folder)])
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    datasets.published.cache_clear()
    yield
    datasets.published.cache_clear()


@pytest.mark.usefixtures("_argon_dimers")
def test_a_new_data_set_is_one_file(tmp_path: Path) -> None:
    assert "argon_dimers" in [row.name for row in listing()]
    (tmp_path / "dimers.csv").write_text("\n".join(f"{3 + 0.1 * i},{-0.01 * i}" for i in range(20)))
    prepare("argon_dimers", tmp_path / "dimers.csv", workers=1)
    store = open_store("argon_dimers")
    assert len(store) == 20
    # 1 kcal/mol is 0.0433641 eV (CODATA 2014 by way of ASE).
    assert float(store[10].labels["energy"]) == pytest.approx(-0.1 * 0.0433641, rel=1e-5)
    parts = split(store, "paper")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [16, 2, 2]
    shown = CliRunner().invoke(cli.app, ["data", "list"])
    assert "Argon dimers" in shown.stdout
