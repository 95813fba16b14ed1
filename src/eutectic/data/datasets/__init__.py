"""One file for each data set: its card, and a reader from its native layout."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import cast

from eutectic.data.dataset import Dataset


@functools.cache
def published() -> tuple[Dataset, ...]:
    """Every module in this folder that reads published files: those with a function `names`."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(cast(Dataset, module) for module in modules if hasattr(module, "names"))
