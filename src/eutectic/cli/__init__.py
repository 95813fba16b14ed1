"""The command line, a thin layer over the typed settings that the Python API uses too."""

from __future__ import annotations

# In the order in which --help lists their commands.
from eutectic.cli import train  # isort: skip  # noqa: F401
from eutectic.cli import benchmark  # isort: skip  # noqa: F401
from eutectic.cli import model  # isort: skip  # noqa: F401
from eutectic.cli import data  # isort: skip  # noqa: F401
from eutectic.cli.app import app, main

__all__ = ["app", "main"]
