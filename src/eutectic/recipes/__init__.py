"""Which choices: functions that return whole, typed settings."""

from __future__ import annotations

from collections.abc import Callable

from eutectic.recipes.demonstration import demo
from eutectic.train.settings import PretrainSettings

RECIPES: dict[str, Callable[[], PretrainSettings]] = {"demo": demo}
"""Pre-training recipes by name."""
