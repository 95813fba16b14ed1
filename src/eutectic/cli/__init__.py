"""The command line: a thin layer over the typed settings that the Python API also uses."""

from __future__ import annotations

from eutectic.cli import benchmark, data, embed, imports, models, predict, train, uncertainty  # noqa: F401
from eutectic.cli.app import app, main

__all__ = ["app", "main"]
