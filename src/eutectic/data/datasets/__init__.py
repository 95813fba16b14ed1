"""One module per data set: its card, and a reader of its published files."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import cast

from eutectic.data.dataset import Dataset


@functools.cache
def published() -> tuple[Dataset, ...]:
    """All modules of this package that read published files (those with a function `names`)."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return tuple(cast(Dataset, module) for module in modules if hasattr(module, "names"))
