"""Stores with exact labels, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eutectic.data.store import Store
from eutectic.testing import tiny_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
