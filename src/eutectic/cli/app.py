"""The application that the commands join, and what it does with errors."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import eutectic
from eutectic.atoms import EutecticError, Interrupted
from eutectic.cli.show import console, plain

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that take `--section.key value`."""

app = typer.Typer(
    name="eutectic",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=True,
    pretty_exceptions_show_locals=False,
    help="Joint multi-domain pre-training of atomistic models, and fine-tuning to any atomic property.",
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="List, prepare, inspect, check and generate data."
)
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point: errors a user can put right are printed in four parts, without a traceback."""
    try:
        app()
    except EutecticError as error:
        fail(error)
    except OSError as error:
        # A full or read-only disk can strike at any write; finished work is on disk and resumes.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        fail(
            EutecticError(
                str(error.filename or "a file"),
                f"{error.strerror}",
                "a place with room, and the right to read and write there",
                "free some space or choose another --out, then run the same command again: finished work is kept",
            )
        )
    except Interrupted as stop:
        Console(stderr=True).print(f"[yellow]stopped[/] {plain(stop.resume)}")
        sys.exit(130)


def fail(error: EutecticError, status: int = 1) -> NoReturn:
    out = Console(stderr=True)
    # A path stays in one piece, for copying.
    out.print(f"[bold red]error[/] in {plain(error.where)}", soft_wrap=True, highlight=False)
    for label, text in (("given", error.given), ("expected", error.expected), ("what to do", error.fix)):
        out.print(f"  [bold]{label:<11}[/]{plain(text)}", soft_wrap=True, highlight=False)
    sys.exit(status)


def _version(asked: bool) -> bool:
    if asked:
        console.print(eutectic.__version__)
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
