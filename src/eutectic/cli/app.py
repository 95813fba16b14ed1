"""The Typer application, and how it reports errors."""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from typer.core import TyperGroup

import eutectic
from eutectic.atoms import EutecticError, Interrupted
from eutectic.cli.show import console, plain

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of commands that take `--section.key value`."""

PANELS = {
    "Data": ("data",),
    "Train": ("finetune", "compare", "benchmark", "pretrain", "plan", "demo"),
    "Use a model": ("predict", "evaluate", "embed", "nearest", "calibrate", "select", "distill"),
    "Models": ("models", "inspect", "diff", "push", "import-jmp", "import-fairchem"),
    "Runs": ("report", "replay"),
}
"""The commands by panel, in the order of `eutectic --help`; a new one needs a place here."""


class InPanels(TyperGroup):
    """Lists the commands as in `PANELS`, whichever module they are in."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=order.index)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            (panel,) = [panel for panel, names in PANELS.items() if cmd_name in names]
            command.rich_help_panel = panel  # type: ignore[attr-defined]
        return command


app = typer.Typer(
    name="eutectic",
    cls=InPanels,
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
    """Entry point. Errors that a user can fix are printed in four parts, without a traceback."""
    warnings.showwarning = _show_warning
    try:
        app()
    except EutecticError as error:
        fail(error)
    except OSError as error:
        if "No usable temporary directory" in str(error):
            # Raised by `tempfile`, which PyTorch calls on import.
            fail(
                EutecticError(
                    "temporary files",
                    str(error.strerror),
                    "a folder for temporary files, on a disk with free space",
                    "free some space, or name another folder in the environment variable TMPDIR",
                )
            )
        # Any write can fail on a full or read-only disk; finished work is on disk and can be resumed.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        fail(
            EutecticError(
                str(error.filename or "a file"),
                f"{error.strerror}",
                "a disk with free space, and permission to read and write",
                "free some space or choose another --out, then run the same command again: finished work is kept",
            )
        )
    except Interrupted as stop:
        Console(stderr=True).print(f"[yellow]stopped[/] {plain(stop.resume)}")
        sys.exit(130)


def fail(error: EutecticError, status: int = 1) -> NoReturn:
    out = Console(stderr=True)
    # Soft wrap keeps paths in one piece for copying.
    out.print(f"[bold red]error[/] in {plain(error.where)}", soft_wrap=True, highlight=False)
    for label, text in (("given", error.given), ("expected", error.expected), ("what to do", error.fix)):
        out.print(f"  [bold]{label:<11}[/]{plain(text)}", soft_wrap=True, highlight=False)
    sys.exit(status)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as plain text; those of other packages with their place, which is needed to understand them."""
    if Path(filename).is_relative_to(Path(eutectic.__file__).parent):
        Console(stderr=True).print(f"[yellow]warning[/] {plain(str(message))}", soft_wrap=True, highlight=False)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _version(requested: bool) -> bool:
    if requested:
        console.print(eutectic.__version__)
        raise typer.Exit
    return requested


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
