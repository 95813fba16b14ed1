"""The report's figures, as matplotlib figures and as SVG that takes its colours from the page.

Pre-trained is always vermilion, from scratch always grey; data sets have the other colours of Okabe and Ito
(2008), which stay apart for every kind of colour vision. Each figure is one small panel: a page lays them
side by side, a phone one below the other.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from eutectic.report.formatting import MINUS, percent, significant, times
from eutectic.study.results import (
    PretrainingSummary,
    Run,
    SetSummary,
    Start,
    StudyResults,
    TaskComparison,
)

INK, QUIET, GRID = "#1b1f24", "#6a737d", "#d9dde2"
START_COLOURS: dict[Start, str] = {"pretrained": "#d9541e", "scratch": "#7d8590"}
START_WORDS: dict[Start, str] = {"pretrained": "pre-trained", "scratch": "from scratch"}
SET_COLOURS = ("#0072b2", "#009e73", "#b5588f", "#c98a00", "#3f9fd8", "#7a6ad8", "#5c7f3a", "#a0522d")

# The page gives each of these a value for light and one for dark; see `report.STYLE`.
VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--grid",
    START_COLOURS["pretrained"]: "--pretrained",
    START_COLOURS["scratch"]: "--scratch",
    **{colour: f"--set{i}" for i, colour in enumerate(SET_COLOURS)},
}

_RC: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.color": GRID,
    "ytick.labelcolor": QUIET,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "eutectic",
    "axes.unicode_minus": True,
    # Titles and units are written as they are: a dollar sign begins no formula.
    "text.parse_math": False,
}


def svg(figure: Figure, prefix: str, alt: str) -> str:
    """A figure as inline SVG: the page's colours and font, one alternative text, names unique on the page.

    Args:
        figure: one from this module.
        prefix: unique on the page; goes before every id.
        alt: what the figure says, already escaped for HTML.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{alt}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: (bold|700) ([\d.]+)px [^;\"]*", r"font-weight: 600; font-size: \2px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


def _panel(width: float = 4.6, height: float = 3.3) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def _plain_log(axis: matplotlib.axis.Axis, low: float, high: float) -> None:
    """Ticks of a log axis as people write numbers, and enough of them however short the axis is."""
    decades = math.log10(high / low) if low > 0 else 1.0
    if decades > 0.45:
        subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 1.2 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _log_errors(axes: Axes, values: Sequence[float]) -> None:
    """A log axis of errors wherever they allow one."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    if not known or min(known) == max(known):
        return
    low, high = min(known) * 0.92, max(known) * 1.08
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _plain_log(axes.yaxis, low, high)


def learning_curves(task: TaskComparison) -> Figure:
    """Validation error against steps: the mean over seeds thick, each seed thin."""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel()
        every: list[float] = []
        for start in task.starts():
            colour = START_COLOURS[start]
            for run in task.of(start):
                axes.plot(run.curve.steps, run.curve.errors, color=colour, linewidth=0.8, alpha=0.45)
                # Before the first step the error says nothing but how the head was made.
                every += (
                    run.curve.errors[1:] if run.curve.steps[0] == 0 and len(run.curve.steps) > 1 else run.curve.errors
                )
            axes.plot(*task.mean_curve(start), color=colour, label=START_WORDS[start])
        _log_errors(axes, every)
        crossing = task.crossing()
        if crossing is not None:
            start, step, error = crossing
            axes.axhline(error, color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)))
            dot = axes.plot([step], [error], "o", color=START_COLOURS[start], markersize=8, zorder=5)[0]
            dot.set(markeredgecolor="white", markeredgewidth=1.2)
            # Between the two curves while there is room, else under both.
            early = step < 0.55 * task.steps
            axes.annotate(
                f"{times(task.speedup)} {'sooner' if start == 'pretrained' else '(slower)'}",
                (step, error),
                textcoords="offset points",
                xytext=(7, 5) if early else (-5, -7),
                ha="left" if early else "right",
                va="bottom" if early else "top",
                color=START_COLOURS[start],
                fontweight="bold",
                fontsize=10,
            )
        axes.set_xlim(0, task.steps)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel(f"validation error ({_short(task.unit, 16)})")
        axes.legend(loc="upper right")
        return figure


def parity(task: TaskComparison, start: Start) -> Figure:
    """Predicted against true, of the run whose test error is the middle one."""
    shown = {s: typical(task, s) for s in task.starts()}
    values = np.concatenate([np.array(r.truth + r.prediction) for r in shown.values()] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    # One frame for both starts; a few wild predictions must not shrink everything else.
    truths = np.concatenate([np.array(r.truth) for r in shown.values()])
    truths = truths[np.isfinite(truths)] if np.isfinite(truths).any() else np.zeros(1)
    width = float(np.ptp(truths)) or 1.0
    low = max(float(values.min(initial=0 if not len(values) else np.inf)), truths.min() - 0.3 * width)
    high = min(float(values.max(initial=0 if not len(values) else -np.inf)), truths.max() + 0.3 * width)
    pad = 0.04 * (high - low or 1.0)
    run = shown[start]
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(3.3, 3.3)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color=QUIET, linewidth=0.9)
        axes.plot(
            np.clip(run.truth, low, high),
            np.clip(run.prediction, low, high),
            "o",
            color=START_COLOURS[start],
            markersize=3.6,
            markeredgewidth=0,
            alpha=0.5,
            rasterized=True,
        )
        axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
        # Labels of six characters and more would touch.
        ticks = 4 if max(abs(low), abs(high)) < 2e4 else 2
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(ticks))
        axes.set_title(START_WORDS[start], color=START_COLOURS[start])
        axes.set_xlabel(f"true {_short(task.symbol, 10)} ({_short(task.unit, 16)})")
        axes.set_ylabel(f"predicted {_short(task.symbol, 10)} ({_short(task.unit, 16)})")
        axes.text(
            0.04,
            0.96,
            f"test error {significant(run.test_error)} {_short(task.unit, 16)}",
            transform=axes.transAxes,
            va="top",
            fontsize=9.5,
        )
        return figure


def typical(task: TaskComparison, start: Start) -> Run:
    """The run of middle test error: neither the lucky nor the unlucky seed."""
    runs = sorted(task.of(start), key=lambda r: (math.isnan(r.test_error), r.test_error))
    return runs[(len(runs) - 1) // 2]


def improvements(results: StudyResults) -> Figure:
    """One bar a task, one dot a seed, the mean as a line."""
    tasks = [t for t in results.tasks if t.improvement_percent is not None]
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(7.0, 0.9 + 0.52 * max(len(tasks), 1))
        lowest = 0.0
        for row, task in enumerate(tasks):
            value = task.improvement_percent
            assert value is not None
            better = value >= 0
            axes.barh(row, value, height=0.6, color=START_COLOURS["pretrained" if better else "scratch"], alpha=0.85)
            dots = list(task.improvement_by_seed().values())
            lowest = min([lowest, value, *dots])
            axes.plot(
                dots,
                [row] * len(dots),
                "o",
                color=INK,
                markersize=4.5,
                markerfacecolor="white",
                markeredgewidth=1.1,
            )
            edge = max([value, 0.0, *dots])
            axes.annotate(
                percent(value),
                (edge, row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
            )
        mean = results.mean_improvement_percent
        if mean is not None and len(tasks) > 1:
            axes.axvline(mean, color=QUIET, linestyle=(0, (2, 2)), linewidth=1.1)
            axes.annotate(
                f"mean {percent(mean)}",
                (mean, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=QUIET,
                fontsize=9.5,
            )
        axes.axvline(0, color=QUIET, linewidth=1.0)
        axes.set_yticks(range(len(tasks)), [_short(t.title, 34) for t in tasks], color=INK)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        if lowest == 0.0:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}".replace("-", MINUS)))
        axes.set_xlabel("reduction of the test error by pre-training (%)")
        return figure


def losses(pretraining: PretrainingSummary) -> Figure:
    """Training loss of every data set against steps; the loss of all of them in black."""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(7.0, 3.4)
        every: list[float] = []
        steps = [row["step"] for row in pretraining.journal]
        total = [_number(row.get("loss")) for row in pretraining.journal]
        for name, colour in set_colours(pretraining).items():
            rows = [
                (r["step"], _number(r["loss_by_set"][name])) for r in pretraining.journal if name in r["loss_by_set"]
            ]
            if rows:
                axes.plot(
                    *zip(*rows, strict=True),
                    color=colour,
                    linewidth=1.3,
                    label=_short(name, 22),
                    marker=_lone(rows),
                )
                every += [v for _, v in rows]
        axes.plot(steps, total, color=INK, linewidth=2.0, label="all", marker=_lone(steps))
        _log_errors(axes, every + total)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel("training loss (no unit)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
        return figure


def curves(
    lines: Mapping[str, Sequence[tuple[float | int, float | int]]],
    names: Sequence[str],
    label: str,
    *,
    small: bool = False,
    level: float | int | None = None,
    log: bool = True,
) -> Figure:
    """Any quantities of a run against steps.

    Args:
        lines: name → points; "all" is drawn thick and in black.
        names: of all sets, in the order of their colours.
        label: what the axis says, unit included.
        small: a panel among others, without a legend.
        level: of a dashed line.
        log: a logarithmic axis.
    """
    colours = {name: SET_COLOURS[i % len(SET_COLOURS)] for i, name in enumerate(names)}
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(2.9, 2.6) if small else _panel(7.0, 3.4)
        for name, points in sorted(lines.items(), key=lambda item: item[0] == "all"):
            if not points:
                continue
            whole = name == "all"
            axes.plot(
                *zip(*points, strict=True),
                color=colours.get(name, INK),
                linewidth=2.0 if whole and not small else 1.3,
                label=_short(name, 22),
                marker="o" if small and len(points) < 40 else _lone(points),
                markersize=3,
            )
        values = [v for points in lines.values() for _, v in points]
        if level is not None and math.isfinite(level):
            axes.axhline(level, color=QUIET, linewidth=1.1, linestyle=(0, (4, 2)))
            values.append(level)
        if log:
            _log_errors(axes, values)
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=True))
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        if not small:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
        return figure


def validation(pretraining: PretrainingSummary, name: str, quantity: str, label: str) -> Figure:
    """One data set's validation error against steps, and the error of knowing nothing as a dashed line.

    Args:
        pretraining: the summary.
        name: which data set.
        quantity: "energy" or "forces".
        label: what the axis says, unit included.
    """
    rows = [(r["step"], r["by_set"][name]) for r in pretraining.validation if name in r["by_set"]]
    rows = [(step, by) for step, by in rows if by.get(f"{quantity}_mae") is not None]
    errors = [_number(by[f"{quantity}_mae"]) for _, by in rows]
    baselines = [_number(by.get(f"{quantity}_baseline")) for _, by in rows]
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(2.9, 2.6)
        axes.plot([s for s, _ in rows], errors, color=set_colours(pretraining)[name], marker="o", markersize=3)
        if baselines and math.isfinite(baselines[-1]):
            axes.axhline(baselines[-1], color=QUIET, linewidth=1.1, linestyle=(0, (4, 2)))
            errors = [*errors, baselines[-1]]
        _log_errors(axes, errors)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(_short(name, 24))
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        return figure


def sizes(summary: SetSummary, colour: str) -> Figure:
    """How many structures have how many atoms."""
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(5.2, 1.7)
        values, counts = np.array(list(summary.sizes)), np.array(list(summary.sizes.values()))
        span = int(np.ptp(values)) + 1 if len(values) else 1
        width = max(1, math.ceil(span / 24))
        edges = np.arange(values.min(), values.max() + width + 1, width) - 0.5 if len(values) else [0, 1]
        axes.hist(values, bins=edges, weights=counts, color=colour, alpha=0.85, rwidth=0.88)  # type: ignore[arg-type]
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("atoms in a structure")
        axes.set_ylabel("structures")
        return figure


def histogram(values: np.ndarray, label: str, log: bool = False) -> Figure:
    """How often each value occurs; a few wild ones are gathered in the outermost bars, not left to flatten the rest.

    Args:
        values: (n,).
        label: of the axis, unit included.
        log: on a logarithmic axis, without values that are not positive.
    """
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = np.quantile(values, [0.002, 0.998]) if len(values) else (0.0, 1.0)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(3.6, 3.3)
        edges = np.geomspace(low, high, 49) if log else np.linspace(low, high, 49)
        axes.hist(np.clip(values, low, high), bins=edges, color=SET_COLOURS[0], alpha=0.85)  # type: ignore[arg-type]
        if log:
            axes.set_xscale("log")
            _plain_log(axes.xaxis, float(low), float(high))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(label)
        axes.set_ylabel("number")
        return figure


def work_parity(work: np.ndarray, change: np.ndarray, slope: float | None, unit: str) -> Figure:
    """Energy changes between near frames against the work of their forces, and the line of slope one.

    Args:
        work, change: (pairs,).
        slope: of the line through them, drawn too; None where there is none.
        unit: of the energies.
    """
    reach = float(np.quantile(np.abs(work), 0.98)) or 1.0
    high = max(reach, float(np.quantile(np.abs(change), 0.98))) or 1.0
    with matplotlib.rc_context(_RC):
        figure, axes = _panel(3.6, 3.3)
        axes.plot([-reach, reach], [-reach, reach], color=QUIET, linewidth=1.2)
        if slope is not None:
            line = [-reach * slope, reach * slope]
            axes.plot([-reach, reach], line, color=SET_COLOURS[3], linewidth=1.2, label=f"slope {significant(slope)}")
            axes.legend(loc="best")
        axes.plot(
            np.clip(work, -reach, reach),
            np.clip(change, -high, high),
            "o",
            color=SET_COLOURS[0],
            markersize=3.2,
            markeredgewidth=0,
            alpha=0.5,
            rasterized=True,
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("−½(F₁ + F₂)·dx")
        axes.set_ylabel(f"E₂ − E₁ ({_short(unit, 16)})")
        return figure


def set_colours(pretraining: PretrainingSummary) -> dict[str, str]:
    """Data set → its colour, the same on the whole page."""
    return {s.name: SET_COLOURS[i % len(SET_COLOURS)] for i, s in enumerate(pretraining.sets)}


def _short(text: str, length: int) -> str:
    """Cut to what a label has room for."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _lone(rows: Sequence[object]) -> str:
    """A line of one point needs a marker to be seen."""
    return "o" if len(rows) < 2 else ""
