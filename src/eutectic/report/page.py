"""HTML pages from templates; each is one self-contained file without scripts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from itertools import count as counter
from pathlib import Path
from typing import Any

from ase.data import atomic_names, chemical_symbols
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.data.examples import structure_from_dict
from eutectic.files import write_atomically
from eutectic.report import drawing, figures, formatting

HERE = Path(__file__).parent


def write_page(path: Path, template: str, *, title: str, lead: str, **values: Any) -> None:
    """Fill in a template and write the page.

    Args:
        path: the HTML file to write, atomically.
        template: a file in `templates/`.
        title, lead: heading and first paragraph, unescaped.
        values: the other variables of the template.

    Raises:
        EutecticError: the file cannot be written.
    """
    number = counter(1)

    def svg(figure: figures.Figure, alt: str) -> Markup:
        return figures.svg(figure, f"figure-{next(number)}", alt)

    # The template collects its headings while the body is rendered; the navigation above lists them.
    text = ENVIRONMENT.get_template(template).render(title=title, lead=lead, headings=[], svg=svg, **values)
    write_atomically(path, text + "\n")


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings: `a.b` → text."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, "none" if value is None or value == {} else str(value)


def code(text: str) -> Markup:
    """Render text in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def subscripts(formula: str) -> Markup:
    """A chemical formula with its numbers as subscripts."""
    return Markup(re.sub(r"(\d+)", r"<sub>\1</sub>", escape(formula)))


def spread_below(text: str) -> Markup:
    """A value with its spread ("0.12 ± 0.03") in small type; on a phone the spread goes below the value."""
    value, _, spread = text.partition(" ± ")
    return Markup(f"{escape(value)} <small>± {escape(spread)}</small>") if spread else Markup(escape(text))


def composition(elements: Mapping[int, int]) -> list[tuple[str, float]]:
    """Element → fraction of the atoms, most common first; eight elements, then all others together."""
    total = sum(elements.values()) or 1
    ordered = sorted(elements, key=lambda z: -elements[z])
    shares = [(chemical_symbols[z], elements[z] / total) for z in ordered[:8]]
    rest = ordered[8:]
    return [*shares, (f"{len(rest)} more", sum(elements[z] for z in rest) / total)] if rest else shares


def periodic_table(elements: Mapping[int, int]) -> Iterable[dict[str, Any]]:
    """Squares of a small periodic table: position, symbol, name, number of atoms and (logarithmic) opacity."""
    most = max(elements.values(), default=1)
    has_f_block = any(_place(z)[0] > 6 for z in elements)
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        (row, column), n = _place(z), elements.get(z, 0)
        if row < 7 or has_f_block:
            yield {
                "x": 10 * column,
                "y": round(10 * row, 1),
                "symbol": chemical_symbols[z],
                "name": atomic_names[z],
                "atoms": n,
                "opacity": 0.25 + 0.75 * math.log(n + 1) / math.log(most + 1),
            }


def _place(z: int) -> tuple[int | float, int]:
    """Row and column (from 0) of an element; the f-block is below the table, as usual."""
    closed = [0, 2, 10, 18, 36, 54, 86, 118]
    period = next(i for i, last in enumerate(closed[1:]) if z <= last)
    i, length = z - closed[period], closed[period + 1] - closed[period]
    if length == 2:
        return period, 0 if i == 1 else 17
    if length == 8:
        return period, i - 1 if i <= 2 else i + 9
    if length == 18 or i <= 2:
        return period, i - 1
    return (period + 2.4, i - 1) if i <= 17 else (period, i - 15)


ENVIRONMENT = Environment(
    loader=FileSystemLoader([HERE / "templates", HERE]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.do"],
)
ENVIRONMENT.filters |= {
    "count": formatting.count,
    "duration": formatting.duration,
    "measured": formatting.measured,
    "percent": formatting.percent,
    "rate": formatting.rate,
    "share": formatting.share,
    "significant": formatting.significant,
    "times": formatting.times,
    "words": formatting.words,
    "code": code,
    "spread_below": spread_below,
    "structure": structure_from_dict,
    "subscripts": subscripts,
}
ENVIRONMENT.globals |= {
    "against": formatting.against,
    "baseline_of": formatting.baseline_of,
    "composition": composition,
    "figures": figures,
    "flat": flat,
    "formula": drawing.formula,
    "kind": drawing.kind,
    "periodic_table": periodic_table,
    "picture": drawing.png,
}
