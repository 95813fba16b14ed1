"""Settings: what is refused, and what survives JSON."""

from __future__ import annotations

import json

import pytest

from eutectic.atoms import EutecticError
from eutectic.train.settings import (
    FinetuneSettings,
    PretrainSettings,
    parse,
)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sets": {"a": {"store": "molecules"}}, "temprature": 1}, "temperature"),
        ({"sets": {"a": {"store": "molecules"}}, "train": {"step": 3}}, "steps"),
        ({"sets": {"a": {"store": "molecules"}}, "graph": {"cutof": 3}}, "cutoff"),
        ({"sets": {"a": {"stor": "molecules"}}}, "store"),
        ({"sets": {"a": {"store": "m", "targets": {"force": {}}}}}, "forces"),
        ({"sets": {"a": {"store": "m"}}, "train": {"steps": -1}}, "steps"),
        ({"sets": {}}, "sets"),
    ],
)
def test_wrong_settings_are_refused_with_the_nearest_name(values: dict[str, object], says: str) -> None:
    with pytest.raises(EutecticError, match=says):
        parse(PretrainSettings, values, "test")


def test_settings_survive_json() -> None:
    from eutectic.recipes import RECIPES

    for recipe in RECIPES.values():
        settings = recipe()
        assert PretrainSettings.model_validate(json.loads(settings.model_dump_json())) == settings
    with pytest.raises(EutecticError, match="data"):
        parse(FinetuneSettings, {"targets": {"gap": {}}, "start": "scratch"}, "test")


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": {"learning_rate": float("inf")}},
        {"optimiser": {"learning_rate": float("nan")}},
        {"optimiser": {"weight_decay": float("inf")}},
        {"optimiser": {"betas": [0.9, 1.0]}},
        {"optimiser": {"betas": [-0.1, 0.9]}},
        {"train": {"threads": 0}},
        {"train": {"seed": -1}},
        {"train": {"seed": 2**64}},
        {"train": {"checkpoint_every": float("nan")}},
        {"graph": {"cutoff": float("inf")}},
        {"graph": {"atom_edge_neighbours": 0}},
        {"targets": {"energy": {"weight": float("inf")}}},
    ],
    ids=str,
)
def test_numbers_out_of_range(change: dict[str, object]) -> None:
    values = {"data": {"store": "metal_slabs"}, "targets": {"energy": {}}, **change}
    with pytest.raises(EutecticError, match=r"settings: (optimiser|train|graph|targets)\."):
        parse(FinetuneSettings, values, "settings")
