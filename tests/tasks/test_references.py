"""References and scales: planted values come back, exactly and in constant memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data import store as store_module
from eutectic.data.card import Card
from eutectic.data.store import Store, write_store
from eutectic.tasks.references import References, Scale, fit_references, fit_scale, mean_atoms

PLANTED = {1: -13.62222753701504, 6: -1029.4130839658328, 8: -2041.8396277138045, 78: -7.5e5}
CARD = Card(
    name="planted",
    title="",
    domain="",
    properties=("energy", "forces", "gap", "stress"),
    level_of_theory="",
    licence="",
    citation="",
    source="",
)


def make(path: Path, compositions: list[list[int]], noise: float = 0.0, without: tuple[int, ...] = ()) -> Store:
    random = np.random.default_rng(1)
    rows = []
    for i, numbers in enumerate(compositions):
        n = len(numbers)
        labels = {"forces": random.normal(scale=2.5, size=(n, 3)), "gap": np.asarray(float(i))}
        if i not in without:
            labels["energy"] = np.asarray(sum(PLANTED[z] for z in numbers) + noise * random.normal())
        if i % 2:
            labels["stress"] = np.full((3, 3), 0.5)
        structure = Structure(numbers=np.array(numbers), positions=random.normal(size=(n, 3)))
        rows.append(LabelledStructure(structure=structure, labels=labels, id=str(i), group=str(i)))
    write_store(path, CARD, rows)
    return Store(path)


def drawn(n: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.choice([1, 6, 8], size=int(random.integers(2, 12))).tolist() for _ in range(n)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # Small batches, so that sums really are joined.
    monkeypatch.setattr(store_module, "ROWS_PER_BATCH", 16)
    return make(tmp_path / "store", [*drawn(99), [78, 1]], without=(3, 4))


def test_planted_references_come_back(store: Store) -> None:
    fitted = fit_references(store, np.arange(100))
    # Platinum is in one structure of a hundred, and its energy is a thousand times the others.
    assert fitted.values == pytest.approx(PLANTED, abs=1e-8, rel=1e-12)
    numbers = store[5].structure.numbers
    assert fitted.subtract(numbers, float(store[5].labels["energy"])) == pytest.approx(0, abs=1e-8)
    assert fitted.of(numbers) == pytest.approx(float(store[5].labels["energy"]), abs=1e-8)


def test_only_training_rows_count(store: Store) -> None:
    fitted = fit_references(store, np.arange(99))
    assert set(fitted.values) == {1, 6, 8}
    assert "Pt" in fitted.unseen()
    assert "C" not in fitted.unseen()
    with pytest.raises(EutecticError, match="element Pt has no reference: absent from training"):
        fitted.of(np.array([78, 1]))
    with pytest.raises(EutecticError, match="element Pt"):
        fit_scale(store, np.arange(100), "energy", fitted)
    table = fitted.table()
    assert table[6] == fitted.values[6]
    assert np.isnan(table[78])


def test_one_molecule_only(tmp_path: Path) -> None:
    store = make(tmp_path / "store", [[6, 6, 8, 1, 1, 1, 1, 1, 1]] * 20)
    fitted = fit_references(store, np.arange(20))
    assert fitted.of(store[0].structure.numbers) == pytest.approx(float(store[0].labels["energy"]), abs=1e-8)
    assert all(np.isfinite(v) for v in fitted.values.values())
    # Every label is its reference: nothing is left to scale.
    assert fit_scale(store, np.arange(20), "energy", fitted).std == 1.0


def test_against_dense_least_squares(tmp_path: Path) -> None:
    store = make(tmp_path / "store", drawn(60), noise=0.3)
    fitted = fit_references(store, np.arange(60))
    counts = np.array([np.bincount(r.structure.numbers, minlength=9)[[1, 6, 8]] for r in store])
    energies = np.array([float(r.labels["energy"]) for r in store])
    dense, *_ = np.linalg.lstsq(counts.astype(float), energies, rcond=None)
    np.testing.assert_allclose(list(fitted.values.values()), dense, rtol=1e-10)
    left = energies - counts @ dense
    scale = fit_scale(store, np.arange(60), "energy", fitted)
    assert scale.mean == pytest.approx(left.mean(), abs=1e-8)
    assert scale.std == pytest.approx(left.std(), rel=1e-8)


def test_scales(store: Store) -> None:
    rows = [store[i] for i in range(100)]
    scale = fit_scale(store, np.arange(100), "gap")
    assert (scale.mean, scale.std) == pytest.approx((49.5, np.arange(100).std()))
    forces = np.concatenate([r.labels["forces"].ravel() for r in rows])
    scale = fit_scale(store, np.arange(100), "forces")
    assert scale.mean == 0
    assert scale.std == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-9)
    assert fit_scale(store, np.arange(100), "stress") == Scale(mean=0.0, std=0.5)
    energies = np.array([float(r.labels["energy"]) for r in rows if "energy" in r.labels])
    # A large mean does not eat the spread: two-pass accuracy in one pass.
    assert fit_scale(store, np.arange(100), "energy").std == pytest.approx(energies.std(), rel=1e-9)
    assert mean_atoms(store, np.arange(100)) == np.mean([len(r.structure) for r in rows])


def test_json(store: Store) -> None:
    fitted = fit_references(store, np.arange(100))
    assert References.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    assert "Pt" in json.dumps(fitted.to_dict())
    scale = fit_scale(store, np.arange(100), "energy", fitted)
    assert Scale.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale


def test_refusals(store: Store) -> None:
    with pytest.raises(EutecticError, match="gap is not extensive"):
        fit_references(store, np.arange(9), "gap")
    with pytest.raises(EutecticError, match="property 'u0'"):
        fit_scale(store, np.arange(9), "u0")
    with pytest.raises(EutecticError, match="no training structure has energy"):
        fit_references(store, np.array([3, 4]))
    with pytest.raises(EutecticError, match="no training structure has energy"):
        fit_scale(store, np.array([3, 4]), "energy")


def test_real_ethanol(shared_data: Path, tmp_path: Path) -> None:
    from eutectic.data.catalogue import prepare
    from eutectic.data.splits import split

    store = Store(prepare("rmd17:ethanol", shared_data / "rmd17", tmp_path / "ethanol"))
    train = split(store).train
    references = fit_references(store, train)
    assert references.of(store[0].structure.numbers) == pytest.approx(-4209.53, abs=0.2)
    assert fit_scale(store, train, "energy", references).std == pytest.approx(0.18617, rel=0.06)
    # JMP's force scale of ethanol, from the whole data set.
    assert fit_scale(store, train, "forces").std == pytest.approx(1.1929188, rel=0.02)
