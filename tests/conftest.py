"""Stores with exact labels, made once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from ase.build import molecule
from made_up import make_store, pair, slab

from eutectic.atoms import PROPERTIES, Structure
from eutectic.data.store import Store
from eutectic.study.results import PretrainingSummary, StudyResults, summarise
from eutectic.testing import tiny_store


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Before each test, since trainings set the number for their process, and sums in two threads round differently.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_properties_end_with_a_test() -> Iterator[None]:
    before = dict(PROPERTIES)
    yield
    PROPERTIES.clear()
    PROPERTIES.update(before)


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Sizes are symbols while a model is traced, which the tests' type checks take for mistakes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("stores") / "molecules", "molecules", 96)


@pytest.fixture(scope="session")
def slabs(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("stores") / "slabs", "slabs", 48)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data sets is not beside the project")
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    molecules = [Structure.from_ase(molecule(n)) for n in ("H2O", "CH4", "C6H6", "NH3", "CO", "CH3OH", "HF", "C2H2")]
    make: Callable[[str], Path] = tmp_path_factory.mktemp
    sets = [
        summarise(make_store(make("a"), "some_molecules", molecules), 300),
        summarise(make_store(make("b"), "some_slabs", [slab("Cu"), slab("Pt"), slab("Ni")]), 100),
    ]
    names = [s.name for s in sets]
    journal = [
        {
            "step": step,
            "seconds": 0.1 * step,
            "loss": 1.0 / step,
            "learning_rate": 1e-3,
            "loss_by_set": {n: (i + 1.0) / step for i, n in enumerate(names)},
        }
        for step in range(10, 101, 10)
    ]
    errors = {"energy_mae": 5.0, "forces_mae": 90.0, "energy_baseline": 50.0, "forces_baseline": 300.0}
    validation = [{"step": s, "seconds": 0.1 * s, "by_set": dict.fromkeys(names, errors)} for s in (50, 100)]
    return StudyResults(
        tasks=[pair("alpha"), pair("beta")],
        pretraining=PretrainingSummary(
            sets=sets,
            journal=journal,
            validation=validation,
            drawn={s.name: s.n_drawn for s in sets},
            seconds=100.0,
            n_parameters=123456,
            backbone="gemnet_oc",
        ),
        settings={"model": {"width": 64}, "steps": 400},
        times={"pre-training": 100.0},
        environment={"torch": "2.8"},
    )
