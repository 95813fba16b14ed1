"""Number formatting for tables and pages."""

from __future__ import annotations

import math

from eutectic.atoms import PROPERTIES

MINUS = "−"


def significant(value: float | int | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits; no exponent between 1e-4 and 1e6."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 < exponent < 6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    rounded = round(value, digits - 1 - exponent)
    # Rounding may carry into the next decade (0.9996 → 1.00).
    exponent = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(digits - 1 - exponent, 0)}f}".replace("-", MINUS)


def measured(value: float | int | None, spread: float | int | None) -> str:
    """A value and its spread with the same number of decimals: "0.123 ± 0.004"."""
    text = significant(value)
    if spread is None or not math.isfinite(spread) or text == "–" or "e" in text:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {spread:.{decimals}f}"


def percent(value: float | int | None, spread: float | int | None = None) -> str:
    """A signed percentage with a true minus sign: "+12.3 %", "−4.0 %", "+12.3 ± 1.1 %"."""
    if value is None or not math.isfinite(value):
        return "–"
    tail = "" if spread is None or not math.isfinite(spread) else f" ± {spread:.1f}"
    return f"{value:+.1f}{tail} %".replace("-", MINUS)


def times(value: float | int | None) -> str:
    """A ratio: "2.4×"."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×" if value < 1 else f"{value:.1f}×"


def against(error: float | int | None, baseline: float | int | None, unit: str) -> str:
    """An error beside its baseline: "23.1 meV/Å, 9.1× below the baseline of 210"."""
    text = f"{significant(error)} {unit}".rstrip()
    if not error or not baseline or not math.isfinite(error) or not math.isfinite(baseline):
        return text
    how = f"{times(baseline / error)} below" if error < baseline else "no better than"
    return f"{text}, {how} the baseline of {significant(baseline)}"


def share(value: float | int | None, decimals: int = 0) -> str:
    """A fraction as a percentage: "12 %", "<1 %"."""
    if value is None or not math.isfinite(value):
        return "–"
    return "<1 %" if 0 < value < 0.01 and not decimals else f"{100 * value:.{decimals}f} %"


def rate(value: float | int | None) -> str:
    """A learning rate or weight decay: "0.002", "3e-05"."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2g}"


def words(name: str) -> str:
    """An identifier as words: "dipole_moment" → "dipole moment"."""
    return name.replace("_", " ")


def short(text: str, length: int) -> str:
    """Shorten text to fit a label."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def baseline_of(name: str) -> str:
    """Description of a property's baseline."""
    known = PROPERTIES.get(name)
    if known is None:
        return "references and mean of the training labels"
    if known.categorical:
        return "most frequent class"
    if known.rank:
        return f"zero {words(name)}"
    return "element references" if known.extensive else "mean of the training labels"


def duration(seconds: float | int | None) -> str:
    """A duration in at most two units: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: int | None) -> str:
    """An integer with thousands separated by narrow no-break spaces: "12 345"."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")
