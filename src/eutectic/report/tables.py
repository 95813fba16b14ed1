"""The comparison as a terminal table, at most 80 columns wide."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from eutectic.report.formatting import measured, percent, times
from eutectic.study.results import StudyResults


def comparison_table(results: StudyResults) -> Table:
    """Both errors ± spread over seeds and folds, improvement and speed-up of every task; means in the last row."""
    table = Table(title="Test error by start", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("task", overflow="fold", min_width=12)
    for heading in ("from scratch", "pre-trained", "improvement", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, task in enumerate(results.tasks):
        table.add_row(
            f"{escape(task.name)}\n[dim]{escape(task.property.replace('_', ' '))}, {escape(task.unit)}[/dim]",
            measured(task.scratch, task.spread("scratch")),
            measured(task.pretrained, task.spread("pretrained")),
            percent(task.improvement_percent, task.improvement_spread),
            times(task.speedup),
            end_section=i == len(results.tasks) - 1 and not task.others(),
        )
        for j, (name, (scratch, pretrained)) in enumerate(task.others().items(), 1):
            better = 100 * (1 - pretrained / scratch) if scratch and pretrained is not None else None
            table.add_row(
                f"[dim]{escape(name.replace('_', ' '))}, {escape(task.units[name])}[/dim]",
                measured(scratch, None),
                measured(pretrained, None),
                percent(better, None),
                "",
                end_section=i == len(results.tasks) - 1 and j == len(task.others()),
            )
    spread = f"± standard deviation over {results.repeats}. " if results.repeats else ""
    if results.is_learning_curve:
        table.caption = f"{spread}Tasks: numbers of training structures."
    else:
        mean = percent(results.mean_improvement_percent, results.mean_improvement_spread)
        table.add_row("mean", "", "", mean, times(results.mean_speedup), style="bold")
        table.caption = f"{spread}Mean improvement: arithmetic; mean speed-up: geometric."
    table.caption_justify = "left"
    return table
