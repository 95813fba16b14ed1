"""The command `benchmark`: the 40 fine-tuning tasks of JMP."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from eutectic.cli.app import app
from eutectic.cli.show import console, plain


@app.command()
def benchmark(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks (`qm9:gap`), families (`rmd17`), or `all`.", show_default=False)
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Name the tasks and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fine-tune to the 40 tasks of JMP (Shoghi et al., ICLR 2024), with their published settings.

    **Examples**

    `eutectic benchmark --list`
    """
    from eutectic.study.benchmark_tasks import TASKS, chosen

    which = chosen(tasks) if tasks else list(TASKS.values())
    if list_tasks:
        if as_json:
            sys.stdout.write(json.dumps([task.to_dict() for task in which], indent=1, ensure_ascii=False) + "\n")
            return
        console.print(_listing([task.to_dict() for task in which]))


def _listing(rows: list[dict[str, object]]) -> Table:
    """Tasks with their published errors, no wider than 80 columns."""
    columns = {
        "jmp_l": "JMP-L",
        "jmp_s": "JMP-S",
        "scratch_l": "scratch",
        "best_before": "before",
        "best_known": "known",
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for row in rows:
        errors = ("–" if row[key] is None else f"{row[key]:g}" for key in columns)
        table.add_row(plain(str(row["name"])), *errors, plain(str(row["unit"])))
    table.caption = (
        "Published test errors (MAE). scratch: JMP-L's architecture without pre-training; before, known: the best "
        "before JMP, and today where it could be read. Matbench: fold_0. More with --json."
    )
    table.caption_justify = "left"
    return table
