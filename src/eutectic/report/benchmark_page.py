"""The benchmark table as Markdown and as a page: our errors beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eutectic.report import figures
from eutectic.report.formatting import measured, percent, significant, words
from eutectic.report.page import write_page
from eutectic.study.benchmark_tasks import FAMILIES

COLOURS = {
    "qm9": "#0d9488",
    "rmd17": "#8250c4",
    "md22": "#3f9142",
    "spice": "#d1383d",
    "matbench": "#2f6fd0",
    "qmof": "#e07b16",
}
"""The paper's: teal, purple, green, red, blue, orange."""

COLUMNS = {
    "jmp_l": "JMP-L",
    "jmp_s": "JMP-S",
    "scratch_l": "GN-OC-L",
    "scratch_s": "GN-OC-S",
    "best_before": "best before",
    "best_known": "best known",
}
NOTES = (
    "Test mean absolute errors. GN-OC: the architecture of JMP trained from scratch. Best before: best of the models "
    "that Shoghi et al. (arXiv:2310.16802) compare with. Best known: lowest error found in a readable source; empty if "
    "lower ones are claimed but could not be verified (sources in the JSON).",
    "Published Matbench errors are for fold_0, the only fold with errors from scratch; means over the five folds are "
    "in brackets. Ours are means over the folds that were run.",
    "Improvement: 1 − error / error from scratch; for several tasks, the unweighted mean. Best: no earlier model has a "
    "lower error (for Matbench, by the mean over five folds); a task without an earlier model counts.",
)


def mark(row: Mapping[str, Any]) -> str:
    """A dagger for errors that were not obtained with the published protocol."""
    return " †" if row["departures"] else ""


def cells(row: Mapping[str, Any]) -> list[str]:
    """Our columns and the published ones of one task, as text."""
    folds = row["five_folds"] or {}
    published = []
    for key in COLUMNS:
        text = "" if row[key] is None else f"{row[key]:g}"
        published.append(f"{text} ({folds[key]:g})" if folds.get(key) is not None else text)
    ours = "" if row["ours"] is None else measured(row["ours"], row["ours_spread"]) + mark(row)
    scratch = "" if row["ours_scratch"] is None else significant(row["ours_scratch"])
    return [ours, scratch, "" if row["improvement"] is None else percent(row["improvement"]), *published]


def headings(row_of_ours: bool) -> list[str]:
    """Headings of the columns after task and unit."""
    ours = ["ours", "ours, from scratch", "improvement"] if row_of_ours else []
    return [*ours, *COLUMNS.values()]


def summary_rows(values: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Compared models, and mean improvements in %: over all tasks, then by family."""
    published, ours = values["published"], values["ours"]
    lines = [
        ("JMP-L over GN-OC-L", published["jmp_l_over_scratch_l"]),
        ("JMP-S over GN-OC-S", published["jmp_s_over_scratch_s"]),
        ("JMP-L over JMP-S", published["jmp_l_over_jmp_s"]),
        ("GN-OC-L over GN-OC-S", published["scratch_l_over_scratch_s"]),
    ]
    if ours is not None:
        n = ours["over_scratch"]["tasks"]
        lines += [(f"ours over scratch ({_tasks(n)})", ours["over_scratch"])] if n else []
        if ours["over_smaller"] is not None:
            lines += [(f"ours over {ours['over_smaller']['model']}", ours["over_smaller"])]
    return [(what, [gains["mean"], *gains["by_family"].values()]) for what, gains in lines]


def counts(values: Mapping[str, Any]) -> list[str]:
    """Sentences on the number of best results."""
    published, ours = values["published"]["jmp_l_best"], values["ours"]
    lines = [
        f"JMP-L: best on {published['count']} of {published['of']} tasks when it was published "
        f"({published['count_fold_0']} with fold_0 of Matbench)."
    ]
    if ours is None:
        return lines
    full = ours["best_before"]["of"] or ours["best_known"]["of"] or ours["jmp_l"]["of"]
    if not full:
        note = f"Ours ({ours['model']}): no task was run with the full published protocol, so none is counted."
        return [*lines, note]
    parts = ", ".join(
        f"{what} on {ours[key]['count']} of {ours[key]['of']}"
        for key, what in (
            ("jmp_l", "as good as JMP-L"),
            ("best_before", "as the best before it"),
            ("best_known", "as the best known"),
        )
    )
    return [*lines, f"Ours ({ours['model']}): {parts} tasks that were run with the full published protocol."]


def departures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explanations of the daggers, with tasks grouped by explanation."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["departures"]:
            found.setdefault(tuple(row["departures"]), []).append(row["name"])
    return [f"† {', '.join(names)}: {', '.join(what)}." for what, names in found.items()]


def problems(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks that were not run, each with the reason and the remedy."""
    return [f"{row['name']}: {row['problem']['given']}; {row['problem']['fix']}" for row in rows if row["problem"]]


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n} tasks"


def markdown(values: Mapping[str, Any]) -> str:
    """The table as Markdown.

    Args:
        values: from `eutectic.study.benchmark.table_as_json`.
    """
    rows, with_ours = values["tasks"], values["ours"] is not None
    names = headings(with_ours)
    lines = [f"# The 40 tasks of JMP{': ' + str(values['model']) if values['model'] else ''}", ""]
    lines += _table(["task", "unit", *names], [[r["name"], r["unit"], *cells(r)[-len(names) :]] for r in rows], 2)
    lines += ["", *(f"{note}\n" for note in NOTES)]
    lines += [f"{note}\n" for note in departures(rows)]
    summary = [[what, *("" if n is None else percent(n) for n in numbers)] for what, numbers in summary_rows(values)]
    lines += _table(["improvement", "mean", *FAMILIES.values()], summary, 1)
    lines += ["", *(f"{line}\n" for line in counts(values))]
    if lacking := problems(rows):
        lines += ["Not run:\n", *(f"- {line}" for line in lacking), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def write_benchmark_page(
    path: Path, values: Mapping[str, Any], *, environment: Mapping[str, Any] | None = None
) -> None:
    """Write the page.

    Args:
        path: the HTML file to write, atomically.
        values: from `eutectic.study.benchmark.table_as_json`.
        environment: versions and hardware.

    Raises:
        EutecticError: the file cannot be written.
    """
    rows, ours = values["tasks"], values["ours"]
    by_family = {
        family: [row for row in rows if row["family"] == family]
        for family in FAMILIES
        if any(row["family"] == family for row in rows)
    }
    lead = "Fine-tuning to the 40 tasks of Joint Multi-domain Pre-training (Shoghi et al., ICLR 2024)"
    write_page(
        path,
        "benchmark.html.j2",
        title=f"The 40 tasks of JMP{': ' + str(values['model']) if values['model'] else ''}",
        lead=f"{lead}: test errors beside the published ones.",
        published=values["published"],
        ours=ours,
        families=FAMILIES,
        colours=COLOURS,
        by_family=by_family,
        with_ours=ours is not None,
        names=headings(ours is not None),
        cells=lambda row: cells(row)[-len(headings(ours is not None)) :],
        summary=summary_rows(values),
        counts=counts(values),
        notes=[*NOTES, *departures(rows)],
        problems=problems(rows),
        gains=improvements(rows),
        gains_text="; ".join(f"{r['name']} {percent(r['jmp_l_over_scratch_l'])}" for r in rows),
        means=family_means(values),
        means_text="; ".join(f"{what}: mean {percent(numbers[0])}" for what, numbers in summary_rows(values)),
        what=lambda row: words(row["property"]),
        environment=environment or {},
    )


@figures.styled
def improvements(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Reduction of the error by pre-training: one bar per task in the colour of its family; ours as dots."""
    figure, axes = figures._panel(7.0, 0.9 + 0.2 * len(rows))
    for i, row in enumerate(rows):
        colour = COLOURS[row["family"]]
        axes.barh(i, row["jmp_l_over_scratch_l"], height=0.7, color=colour, alpha=0.85, linewidth=0)
        if row["improvement"] is not None:
            axes.plot(
                [row["improvement"]], [i], "o", color=figures.INK, markersize=5, markerfacecolor="white", zorder=3
            )
    axes.axvline(0, color=figures.QUIET, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], color=figures.INK, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("reduction of the test error by pre-training (%)")
    return figure


@figures.styled
def family_means(values: Mapping[str, Any]) -> Figure:
    """Mean improvement over scratch by family: JMP-L and, if available, ours (hatched)."""
    figure, axes = figures._panel(7.0, 3.1)
    series = [("JMP-L", values["published"]["jmp_l_over_scratch_l"], "")]
    if values["ours"] is not None and values["ours"]["over_scratch"]["tasks"]:
        series.append(("ours", values["ours"]["over_scratch"], "///"))
    width = 0.76 / len(series)
    for j, (_, gains, hatch) in enumerate(series):
        heights = [*gains["by_family"].values(), gains["mean"]]
        for i, (height, colour) in enumerate(zip(heights, [*COLOURS.values(), figures.QUIET], strict=True)):
            if height is None:
                continue
            place = i + (j - (len(series) - 1) / 2) * width
            face = "none" if hatch else colour
            axes.bar(place, height, width=0.94 * width, facecolor=face, edgecolor=colour, hatch=hatch, linewidth=1.0)
            axes.annotate(
                f"{height:.0f}".replace("-", "−"),
                (place, max(height, 0)),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=figures.INK,
            )
    axes.axhline(0, color=figures.QUIET, linewidth=1.0)
    axes.set_xticks(range(len(COLOURS) + 1), [*FAMILIES.values(), "all"], color=figures.INK)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("improvement over scratch (%)")
    return figure
