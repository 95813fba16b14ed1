"""The reports' figures, as matplotlib figures and as inline SVG in the colours of the page.

Pre-trained is always vermilion, from scratch always grey; data sets have the other colours of Okabe and Ito
(2008), which are distinguishable with every kind of colour vision. Each figure is one small panel; a page places
them side by side, a phone one below the other.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from eutectic.report.formatting import MINUS, percent, short, significant, times
from eutectic.study.results import Run, SetSummary, Start, StudyResults, TaskComparison

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)
INK, QUIET, GRID = STYLE["text.color"], STYLE["axes.labelcolor"], STYLE["grid.color"]
START_COLOURS: dict[Start, str] = {"pretrained": "#d9541e", "scratch": "#7d8590"}
START_WORDS: dict[Start, str] = {"pretrained": "pre-trained", "scratch": "from scratch"}
SET_COLOURS = ("#0072b2", "#009e73", "#b5588f", "#c98a00", "#3f9fd8", "#7a6ad8", "#5c7f3a", "#a0522d")
CURVE_POINTS = 400
"""Longer curves are averaged down to this many points, so that the page of a million steps stays small."""

# style.css gives each variable a light and a dark value.
VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--grid",
    START_COLOURS["pretrained"]: "--pretrained",
    START_COLOURS["scratch"]: "--scratch",
    **{colour: f"--set{i}" for i, colour in enumerate(SET_COLOURS)},
}

P = ParamSpec("P")
Points = Sequence[tuple[float, float]]


def styled(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: make a figure in the style of the pages."""

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return make(*args, **kwargs)

    return wrapper


def svg(figure: Figure, prefix: str, alt: str) -> Markup:
    """A figure as inline SVG with the page's colours and font, an alternative text, and ids unique on the page.

    Args:
        figure: a figure from this module.
        prefix: prefix of every id, unique on the page.
        alt: alternative text, unescaped.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=200)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(alt)}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: (bold|700) ([\d.]+)px [^;\"]*", r"font-weight: 600; font-size: \2px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return Markup(re.sub(r"\n\s*", "\n", text).strip())


def _panel(width: float = 4.6, height: float = 3.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _plain_log(axis: matplotlib.axis.Axis, low: float, high: float) -> None:
    """Plain numbers as ticks of a log axis, and enough of them even on a short axis."""
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
    """Use a logarithmic axis for errors if possible."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    if not known or min(known) == max(known):
        return
    low, high = min(known) * 0.92, max(known) * 1.08
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _plain_log(axes.yaxis, low, high)


@styled
def learning_curves(task: TaskComparison) -> Figure:
    """Validation error against steps: the mean over seeds thick, each seed thin."""
    figure, axes = _panel()
    every: list[float] = []
    for start in task.starts():
        colour = START_COLOURS[start]
        for run in task.of(start):
            axes.plot(run.curve.steps, run.curve.errors, color=colour, linewidth=0.8, alpha=0.45)
            # Before the first step, the error reflects only the initialisation of the head.
            every += run.curve.errors[1:] if run.curve.steps[0] == 0 and len(run.curve.steps) > 1 else run.curve.errors
        axes.plot(*task.mean_curve(start), color=colour, label=START_WORDS[start])
    _log_errors(axes, every)
    crossing = task.crossing()
    if crossing is not None:
        start, step, error = crossing
        axes.axhline(error, color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)))
        dot = axes.plot([step], [error], "o", color=START_COLOURS[start], markersize=8, zorder=5)[0]
        dot.set(markeredgecolor="white", markeredgewidth=1.2)
        # Between the two curves if there is room, otherwise below both.
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
    axes.set_ylabel(f"validation error ({short(task.unit, 16)})")
    axes.legend(loc="upper right")
    return figure


def _sizes(results: StudyResults, start: Start) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of training structures, mean test error and its spread (0 for single runs), for the runs of a start."""
    tasks = sorted((t for t in results.tasks if t.of(start)), key=lambda t: t.n_train)
    rows = [(t.n_train, t.mean(start), t.spread(start) or 0.0) for t in tasks]
    n, mean, spread = np.array(rows, dtype=float).reshape(-1, 3).T
    return n, mean, spread


def exponent(results: StudyResults, start: Start) -> float | None:
    """Slope of log(mean test error) against log(number of training structures), by least squares."""
    n, mean, _ = _sizes(results, start)
    good = np.isfinite(mean) & (mean > 0)
    return float(np.polyfit(np.log(n[good]), np.log(mean[good]), 1)[0]) if good.sum() > 1 else None


@styled
def errors_by_size(results: StudyResults) -> Figure:
    """Test error against the number of training structures, both logarithmic; bars: standard deviation."""
    figure, axes = _panel()
    every: list[float] = []
    for start, colour in START_COLOURS.items():
        n, mean, spread = _sizes(results, start)
        if not len(n):
            continue
        # An error bar that reaches below zero cannot be drawn on a logarithmic axis.
        below = np.minimum(spread, 0.9 * mean)
        axes.errorbar(n, mean, yerr=[below, spread], fmt="o", color=colour, capsize=3, label=START_WORDS[start])
        slope = exponent(results, start)
        if slope is not None:
            good = np.isfinite(mean) & (mean > 0)
            level = np.exp(np.mean(np.log(mean[good]) - slope * np.log(n[good])))
            axes.plot(n, level * n**slope, color=colour, linewidth=0.9)
        every += [*(mean + spread), *(mean - below)]
    axes.set_xscale("log")
    sizes = sorted({t.n_train for t in results.tasks})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    _log_errors(axes, every)
    axes.set_xlabel("training structures")
    axes.set_ylabel(f"test error ({short(results.tasks[0].unit, 16)})")
    axes.legend(loc="upper right")
    return figure


@styled
def parity(
    truth: Sequence[float | None],
    prediction: Sequence[float | None],
    *,
    symbol: str,
    unit: str,
    title: str = "",
    colour: str = START_COLOURS["pretrained"],
    note: str = "",
    same_axes_as: Sequence[tuple[Sequence[float | None], Sequence[float | None]]] = (),
) -> Figure:
    """Predicted against true values; predictions far outside the range of the true values are drawn at the edge.

    Args:
        truth, prediction: same length; pairs that are not both finite are skipped.
        symbol, unit: symbol and unit of the quantity, for the axis labels.
        title: title above the frame.
        colour: colour of points and title.
        note: text inside the frame.
        same_axes_as: further pairs of truth and prediction that the axes must also cover.
    """
    both = [_finite_pairs(t, p) for t, p in ((truth, prediction), *same_axes_as)]
    x, y = both[0].T
    truths, every = (np.concatenate([np.zeros((0, 2)), *both])[:, columns].ravel() for columns in ([0], [0, 1]))
    if not len(truths):
        truths = every = np.zeros(1)
    # A few outliers must not compress the rest.
    beyond = 0.3 * (float(np.ptp(truths)) or 1.0)
    low, high = max(every.min(), truths.min() - beyond), min(every.max(), truths.max() + beyond)
    pad = 0.04 * (high - low or 1.0)
    ends = (low - pad, high + pad)
    figure, axes = _panel(3.3, 3.3)
    axes.plot(ends, ends, color=QUIET, linewidth=0.9)
    _points(axes, np.clip(x, low, high), np.clip(y, low, high), colour, 3.6)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    # Longer tick labels would overlap.
    ticks = 4 if max(abs(low), abs(high)) < 2e4 else 2
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(ticks))
    axes.set_title(title, color=colour)
    quantity = f"{short(symbol, 16)} ({short(unit, 16)})" if unit else short(symbol, 16)
    axes.set_xlabel(f"true {quantity}")
    axes.set_ylabel(f"predicted {quantity}")
    axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top", fontsize=9.5)
    return figure


@styled
def calibration(bins: Sequence[Sequence[float]], *, unit: str, title: str = "", note: str = "") -> Figure:
    """Observed errors against predicted uncertainties, both on logarithmic axes.

    Args:
        bins: [root mean square uncertainty, root mean square error] of groups of structures, all positive.
        unit: unit of both.
        title: title above the frame.
        note: text inside the frame.
    """
    values = np.array(bins, dtype=float)
    low, high = float(values.min()) / 1.4, float(values.max()) * 1.4
    figure, axes = _panel(3.3, 3.3)
    axes.plot((low, high), (low, high), color=QUIET, linewidth=0.9)
    axes.plot(*values.T, "o-", color=START_COLOURS["pretrained"], markersize=5, linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_log(axis, low, high)
    axes.set_title(title, color=START_COLOURS["pretrained"])
    axes.set_xlabel(f"predicted uncertainty ({short(unit, 16)})")
    axes.set_ylabel(f"root mean square error ({short(unit, 16)})")
    axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top", fontsize=9.5)
    return figure


def typical(task: TaskComparison, start: Start) -> Run:
    """The run with the median test error."""
    runs = sorted(task.of(start), key=lambda r: (math.isnan(r.test_error), r.test_error))
    return runs[(len(runs) - 1) // 2]


@styled
def improvements(results: StudyResults) -> Figure:
    """One bar per task, one dot per seed, and the mean as a line."""
    tasks = [t for t in results.tasks if t.improvement_percent is not None]
    figure, axes = _panel(7.0, 0.9 + 0.52 * max(len(tasks), 1))
    lowest = 0.0
    for row, task in enumerate(tasks):
        value = task.improvement_percent
        assert value is not None
        better = value >= 0
        axes.barh(row, value, height=0.6, color=START_COLOURS["pretrained" if better else "scratch"], alpha=0.85)
        dots = list(task.improvement_by_seed().values())
        lowest = min([lowest, value, *dots])
        rows = [row] * len(dots)
        axes.plot(dots, rows, "o", color=INK, markersize=4.5, markerfacecolor="white", markeredgewidth=1.1)
        edge = (max([value, 0.0, *dots]), row)
        axes.annotate(percent(value), edge, (8, 0), textcoords="offset points", va="center", fontweight="bold")
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
    axes.set_yticks(range(len(tasks)), [short(t.title, 34) for t in tasks], color=INK)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    if lowest == 0.0:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}".replace("-", MINUS)))
    axes.set_xlabel("reduction of the test error by pre-training (%)")
    return figure


@styled
def curves(
    lines: Mapping[str, Points],
    label: str,
    *,
    colours: Mapping[str, str] | None = None,
    title: str = "",
    size: Literal["wide", "medium", "small"] = "small",
    baseline: float | int | None = None,
    log: bool = True,
) -> Figure:
    """Quantities of a run against the training step.

    Args:
        lines: name → (step, value) points; "all" is drawn last, in black.
        label: label of the y axis, including the unit.
        colours: name → colour; default: black.
        title: title above the panel.
        size: "wide" panels with several lines have a legend.
        baseline: value of a dashed line.
        log: whether the y axis is logarithmic.
    """
    wide, small = size == "wide", size == "small"
    figure, axes = _panel(*{"wide": (7.0, 3.4), "medium": (4.6, 3.3), "small": (2.9, 2.6)}[size])
    for name, points in sorted(lines.items(), key=lambda item: item[0] == "all"):
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=(colours or {}).get(name, INK),
                linewidth=1.3 if wide and name != "all" else 2.0,
                label=short(name, 22),
                marker="o" if len(points) < (2 if wide else 40) else "",
                markersize=3 if small else 4,
            )
    values = [v for points in lines.values() for _, v in points]
    if baseline is not None and math.isfinite(baseline):
        axes.axhline(baseline, color=QUIET, linewidth=1.1, linestyle=(0, (4, 2)))
        values.append(float(baseline))
    if log:
        _log_errors(axes, values)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=True))
    axes.set_title(short(title, 24))
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    if wide and len(lines) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return figure


def losses(journal: Sequence[Mapping[str, Any]], names: Sequence[str], by: str = "loss_by_set") -> Figure:
    """Training loss against step: the total in black, and each part in its colour.

    Args:
        journal: a run's journal.
        names: names of the parts, in the order of their colours.
        by: the journal's field with the loss of each part.
    """
    lines = {name: thinned(journal, [(e.get(by) or {}).get(name) for e in journal]) for name in names}
    lines["all"] = thinned(journal, [e.get("loss") for e in journal])
    return curves(lines, "training loss (no unit)", colours=set_colours(names), size="wide")


def learned_properties(journal: Sequence[Mapping[str, Any]]) -> list[str]:
    """Properties with a training loss in a run's journal, in order of appearance; none in older journals."""
    by_set = [losses for entry in journal for losses in (entry.get("loss_by_property") or {}).values()]
    return list(dict.fromkeys(prop for losses in by_set for prop in losses))


def property_losses(journal: Sequence[Mapping[str, Any]], names: Sequence[str], prop: str) -> Figure:
    """Unweighted training loss of one property against step, each data set in its colour.

    Args:
        journal: a run's journal.
        names: names of the data sets, in the order of their colours.
        prop: name of the property.
    """
    lines = {}
    for name in names:
        losses = [((entry.get("loss_by_property") or {}).get(name) or {}).get(prop) for entry in journal]
        if any(loss is not None for loss in losses):
            lines[name] = thinned(journal, losses)
    return curves(
        lines, "training loss (no unit)", colours=set_colours(names), title=prop.replace("_", " "), size="medium"
    )


def thinned(entries: Sequence[Mapping[str, Any]], values: Sequence[float | int | None]) -> list[tuple[float, float]]:
    """(step, mean value) of at most `CURVE_POINTS` intervals of equal length, skipping non-finite values.

    Args:
        entries: entries of a journal.
        values: one value per entry.
    """
    known = [
        (float(e["step"]), float(v))
        for e, v in zip(entries, values, strict=True)
        if v is not None and math.isfinite(float(v))
    ]
    if len(known) <= CURVE_POINTS:
        return known
    return [tuple(part.mean(axis=0)) for part in np.array_split(np.array(known), CURVE_POINTS)]


@styled
def sizes(summary: SetSummary, colour: str) -> Figure:
    """Histogram of the number of atoms per structure."""
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


@styled
def histogram(values: np.ndarray, label: str, log: bool = False) -> Figure:
    """Histogram of values; outliers are collected in the outermost bars.

    Args:
        values: (n,).
        label: label of the x axis, including the unit.
        log: use a logarithmic axis and drop values that are not positive.
    """
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = np.quantile(values, [0.002, 0.998]) if len(values) else (0.0, 1.0)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
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


@styled
def work_parity(work: np.ndarray, change: np.ndarray, slope: float | None, unit: str) -> Figure:
    """Energy changes between similar frames against the work of their forces, with the line of slope one.

    Args:
        work, change: (pairs,).
        slope: slope of a fitted line to draw; None to omit it.
        unit: unit of the energies.
    """
    reach = float(np.quantile(np.abs(work), 0.98)) or 1.0
    high = max(reach, float(np.quantile(np.abs(change), 0.98))) or 1.0
    figure, axes = _panel(3.6, 3.3)
    axes.plot([-reach, reach], [-reach, reach], color=QUIET, linewidth=1.2)
    if slope is not None:
        line = [-reach * slope, reach * slope]
        axes.plot([-reach, reach], line, color=SET_COLOURS[3], linewidth=1.2, label=f"slope {significant(slope)}")
        axes.legend(loc="best")
    _points(axes, np.clip(work, -reach, reach), np.clip(change, -high, high), SET_COLOURS[0], 3.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("−½(F₁ + F₂)·dx")
    axes.set_ylabel(f"E₂ − E₁ ({short(unit, 16)})")
    return figure


def set_colours(names: Sequence[str]) -> dict[str, str]:
    """Data set → colour, the same on the whole page."""
    return {name: SET_COLOURS[i % len(SET_COLOURS)] for i, name in enumerate(names)}


def _finite_pairs(truth: Sequence[float | None], prediction: Sequence[float | None]) -> np.ndarray:
    """(n, 2) pairs in which both numbers are finite."""
    pairs = np.array([truth, prediction], dtype=float).T.reshape(-1, 2)
    return pairs[np.isfinite(pairs).all(axis=1)]


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, size: float) -> None:
    """Draw semi-transparent points, rasterised since thousands of vector points would make a large page."""
    axes.plot(x, y, "o", color=colour, markersize=size, markeredgewidth=0, alpha=0.5, rasterized=True)
