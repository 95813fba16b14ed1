"""The command line: a thin layer over the typed settings that the Python API also uses."""

from __future__ import annotations

# Import order is the order of the commands in --help.
from eutectic.cli import train  # isort: skip  # noqa: F401
from eutectic.cli import benchmark  # isort: skip  # noqa: F401
from eutectic.cli import model  # isort: skip  # noqa: F401
from eutectic.cli import data  # isort: skip  # noqa: F401
from eutectic.cli.app import app, main

__all__ = ["app", "main"]
