"""Runs that several tests look at, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import settings_for, settings_of

from eutectic.data.store import Store
from eutectic.train.pretrain import pretrain


@pytest.fixture(scope="session")
def plain(molecules: Store, slabs: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, one pass per step: what all others are compared with."""
    folder = tmp_path_factory.mktemp("engine") / "plain"
    pretrain(settings_for(molecules, slabs, steps=6), folder)
    return folder


@pytest.fixture(scope="session")
def molecules_run(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one set."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    pretrain(settings_of({"molecules": molecules}), folder)
    return folder
