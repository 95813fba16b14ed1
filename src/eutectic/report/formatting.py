"""How numbers are written for people: the same on the terminal and on the page."""

from __future__ import annotations

import math

MINUS = "−"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` with so many significant digits, never in exponent form between 1e-4 and 1e6."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 < exponent < 6:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    rounded = round(value, digits - 1 - exponent)
    # Rounding may have carried into the next decade (0.9996 → 1.00).
    exponent = math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(digits - 1 - exponent, 0)}f}".replace("-", MINUS)


def measured(value: float | None, spread: float | None) -> str:
    """A value and its spread to the same decimal: "0.123 ± 0.004"."""
    text = significant(value)
    if spread is None or not math.isfinite(spread) or text == "–" or "e" in text:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {spread:.{decimals}f}"


def percent(value: float | None, spread: float | None = None) -> str:
    """A signed percentage with a true minus sign: "+12.3 %", "−4.0 %", "+12.3 ± 1.1 %"."""
    if value is None or not math.isfinite(value):
        return "–"
    tail = "" if spread is None or not math.isfinite(spread) else f" ± {spread:.1f}"
    return f"{value:+.1f}{tail} %".replace("-", MINUS)


def times(value: float | None) -> str:
    """A ratio: "2.4×"."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×" if value < 1 else f"{value:.1f}×"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: int) -> str:
    """Thousands set apart by a narrow no-break space: "12 345"."""
    return f"{value:,}".replace(",", "\u202f")
