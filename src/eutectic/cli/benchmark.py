"""The command `benchmark`: the 40 fine-tuning tasks of JMP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import OVERRIDES, app
from eutectic.cli.options import overrides, without_settings
from eutectic.cli.show import console, plain

if TYPE_CHECKING:
    from eutectic.study.benchmark import Benchmark

PARTLY = 3
"""Exit status when some tasks ran and others could not."""


@app.command(context_settings=OVERRIDES)
def benchmark(
    context: typer.Context,
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks (`qm9:gap`), families (`rmd17`), or `all`.", show_default=False)
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks with their published errors.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print the results in `--out` next to the published ones, as Markdown.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the benchmark; finished runs in it are kept.")] = Path(
        "benchmark"
    ),
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model to start from: a name or a folder.")
    ] = "eutectic-small",
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Also train from scratch, to report the improvement over it.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per start and split.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Length of each run in steps; default: 32 epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0, help="Length of each run in epochs; default: 32.")] = None,
    time: Annotated[str | None, typer.Option(help="Length of each run as a duration: 30m, 2h.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Another split: `random` for incomplete data, `fold_0`. Default: the paper's.")
    ] = None,
    n_train: Annotated[int | None, typer.Option(min=1, help="Maximum number of training structures.")] = None,
    n_validation: Annotated[int | None, typer.Option(min=1, help="Maximum number of validation structures.")] = None,
    n_test: Annotated[int | None, typer.Option(min=1, help="Maximum number of test structures.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Structures per batch; default: the paper's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--rate", help="Peak learning rate; default: 8e-5.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Concurrent runs; default: one per GPU, or one per core without a GPU.")
    ] = None,
    smaller: Annotated[
        Path | None, typer.Option(help="Benchmark folder of a smaller model, to report the gain of the larger one.")
    ] = None,
) -> None:
    """Fine-tune on the 40 tasks of JMP (Shoghi et al., ICLR 2024), and compare with the published errors.

    QM9 (12), rMD17 (10), MD22 (7), SPICE (2), Matbench (8, five folds each) and QMOF (1), with the published settings.
    Any setting can be changed by `--section.key value`. Writes `benchmark.json`, `table.md`, `table.json`,
    `report.html` and, for Matbench, the record file `matbench.json.gz`. If data are missing for a task, the command
    says how to get them and runs the other tasks (exit status 3). Run the same command again to resume.

    **Examples**

    `eutectic benchmark --list`

    `eutectic data prepare qm9; eutectic benchmark qm9:gap --model models/jmp-s --out benchmarks/jmp-s`

    `eutectic benchmark rmd17 matbench:jdft2d --from-scratch --seeds 3 --out benchmarks/small`

    `eutectic benchmark all --n-train 200 --n-test 100 --steps 200 --learning-rate 1e-3 --split random --out trial`

    `eutectic benchmark --table --out benchmarks/small`
    """
    from eutectic.study.benchmark import FILE, Benchmark, table_as_json
    from eutectic.study.benchmark_tasks import TASKS, chosen

    names, settings = without_settings([*(tasks or []), *context.args])
    which = list(TASKS.values()) if not names and (list_tasks or table) else chosen(names)
    changes = overrides(settings)
    if list_tasks:
        listed = [task.to_dict() for task in which]
        if as_json:
            sys.stdout.write(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
        else:
            console.print(_listing(listed))
        return
    other = None if smaller is None else Benchmark.read(smaller)
    if table:
        from eutectic.report.benchmark_page import markdown
        from eutectic.workflows import write_benchmark

        # Without results, only the published columns.
        ours = Benchmark.read(out) if (out / FILE).is_file() else Benchmark()
        if ours.outcomes:
            write_benchmark(out, smaller=other)
        values = table_as_json(ours, [task.name for task in which], other)
        sys.stdout.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n" if as_json else markdown(values))
        return
    lengths = [name for name, value in (("steps", steps), ("epochs", epochs), ("time", time)) if value is not None]
    if len(lengths) > 1:
        raise EutecticError("length", " and ".join(f"--{name}" for name in lengths), "one of them", "leave out one")
    from eutectic.workflows import benchmark as run

    ours = run(
        [task.name for task in which],
        out=out,
        model=model,
        from_scratch=from_scratch,
        seeds=seeds,
        workers=workers,
        smaller=other,
        console=Console(stderr=True) if as_json else console,
        steps=steps,
        epochs=epochs,
        time=time,
        split=split,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        batch_size=batch_size,
        learning_rate=learning_rate,
        settings=changes,
    )
    values = table_as_json(ours, [task.name for task in which], other)
    if as_json:
        sys.stdout.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    else:
        console.print(_results(values["tasks"]))
        console.print(f"table: {out / 'table.md'}\nreport: {out / 'report.html'}", highlight=False, soft_wrap=True)
    _show_problems(ours, [task.name for task in which])


def _show_problems(ours: Benchmark, names: list[str]) -> None:
    """Report tasks that were not run, grouped by reason, and exit with the matching status."""
    problems: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        problem = ours.outcomes[name].problem
        if problem is not None:
            parts = (problem["given"], problem["expected"], problem["fix"])
            problems.setdefault(parts, []).append(problem["where"])
    if not problems:
        return
    out = Console(stderr=True)
    for (given, expected, fix), where in problems.items():
        out.print(f"[bold red]error[/] in {plain(', '.join(where))}", soft_wrap=True, highlight=False)
        for label, text in (("given", given), ("expected", expected), ("what to do", fix)):
            out.print(f"  [bold]{label:<11}[/]{plain(text)}", soft_wrap=True, highlight=False)
    raise typer.Exit(PARTLY if any(ours.outcomes[name].runs for name in names) else 1)


def _results(rows: list[dict[str, object]]) -> Table:
    """Our errors next to some of the published ones, at most 80 columns wide."""
    from eutectic.report.benchmark_page import mark
    from eutectic.report.formatting import measured, percent, significant

    shown = Table(box=None, pad_edge=False)
    shown.add_column("task", overflow="fold")
    for heading in ("ours", "scratch", "improved", "JMP-L", "JMP-S"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("unit", no_wrap=True)
    for row in rows:
        if not row["runs"]:
            continue
        ours = measured(row["ours"], row["ours_spread"])  # type: ignore[arg-type]
        scratch, jmp_l, jmp_s = (significant(row[key]) for key in ("ours_scratch", "jmp_l", "jmp_s"))  # type: ignore[arg-type]
        gain = percent(row["improvement"])  # type: ignore[arg-type]
        shown.add_row(plain(str(row["name"])), ours + mark(row), scratch, gain, jmp_l, jmp_s, plain(str(row["unit"])))
    return shown


def _listing(rows: list[dict[str, object]]) -> Table:
    """Tasks with their published errors, at most 80 columns wide."""
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
        "Published test errors (MAE). scratch: JMP-L's architecture without pre-training; before: the best before "
        "JMP; known: the best known today, where available. Matbench: fold_0. More with --json."
    )
    table.caption_justify = "left"
    return table
