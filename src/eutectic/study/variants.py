"""Settings of the runs of a study, which differ in start, seed and optimiser settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eutectic.train.settings import FinetuneSettings, parse

SWEEP_SEED = 1000
"""Seed of the runs that choose learning rates; not used for reported runs."""

Choice = Mapping[str, float]
"""Optimiser settings chosen for a start: `learning_rate`, and `weight_decay` if swept."""


def variant(base: FinetuneSettings, start: str, model: Path | None, *, seed: int, choice: Choice) -> FinetuneSettings:
    """Settings of one run of a study: starts differ only in their initial weights and in `choice`.

    Args:
        base: all other settings.
        start: 'pretrained' or 'scratch'.
        model: the pre-trained model; a start from scratch uses its architecture.
        seed: of the run.
        choice: optimiser settings, chosen for this start on validation data.
    """
    given = None if model is None else str(model)
    values = base.model_dump(mode="json")
    values |= {
        "start": "scratch" if start == "scratch" else given,
        "architecture_from": given if start == "scratch" and base.backbone is None else None,
        "head_from": base.head_from if start == "pretrained" else None,
    }
    values["optimiser"] |= dict(choice)
    values["train"]["seed"] = seed
    return parse(FinetuneSettings, values, f"{base.name}, {start}, seed {seed}")
