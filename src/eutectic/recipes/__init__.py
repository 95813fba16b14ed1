"""Recipes: functions that return the complete settings of a run."""

from __future__ import annotations

from collections.abc import Callable

from eutectic.recipes.demonstration import demo
from eutectic.recipes.finetuning import finetuning
from eutectic.recipes.joint import jmp_l, jmp_s
from eutectic.recipes.small import eutectic_fast, eutectic_small, eutectic_small_molecules
from eutectic.train.settings import PretrainSettings

__all__ = [
    "RECIPES",
    "demo",
    "eutectic_fast",
    "eutectic_small",
    "eutectic_small_molecules",
    "finetuning",
    "jmp_l",
    "jmp_s",
]

RECIPES: dict[str, Callable[[], PretrainSettings]] = {
    "demo": demo,
    "eutectic_small": eutectic_small,
    "eutectic_fast": eutectic_fast,
    "eutectic_small_molecules": eutectic_small_molecules,
    "jmp_s": jmp_s,
    "jmp_l": jmp_l,
}
"""Pre-training recipes by name."""
