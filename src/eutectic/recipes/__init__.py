"""Which choices: functions that return whole, typed settings."""

from __future__ import annotations

from collections.abc import Callable

from eutectic.recipes.demonstration import demo
from eutectic.recipes.joint import jmp_l, jmp_s
from eutectic.train.settings import PretrainSettings

RECIPES: dict[str, Callable[[], PretrainSettings]] = {"demo": demo, "jmp_s": jmp_s, "jmp_l": jmp_l}
"""Pre-training recipes by name."""
