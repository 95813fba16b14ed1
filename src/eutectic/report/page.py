"""Pieces of an HTML page that needs no script and nothing from outside: its style, tables, figures, lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ase.data import atomic_names, chemical_symbols

from eutectic.atoms import MAX_ATOMIC_NUMBER
from eutectic.report.formatting import count

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #59626d;
  --grid: #d9dde2;
  --pretrained: #c9480f; --scratch: #737b86; --glow: #fdeee6;
  --set0: #0072b2; --set1: #009e73; --set2: #b5588f; --set3: #c98a00; --set4: #3f9fd8; --set5: #7a6ad8;
  --set6: #5c7f3a; --set7: #a0522d; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1d2126; --ink: #e8eaed; --quiet:
  #a3abb5;
  --grid: #3a4048; --pretrained: #ff8a52; --scratch: #9aa2ad; --glow: #33221a;
  --set0: #3d9fe0; --set1: #22bd90; --set2: #d884b5; --set3: #e3aa2f; --set4: #7cc4ef; --set5: #a79bf0;
  --set6: #8fb566; --set7: #cf8560; }
  /* Points are painted in the light page's colours. */
  figure svg image { filter: brightness(1.3); } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header > div, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { border-bottom: 1px solid var(--grid); padding: 34px 0 18px; }
header h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.015em; }
header p { margin: 0; color: var(--quiet); max-width: 46em; }
nav { margin-top: 14px; font-size: .92rem; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--pretrained); text-decoration: none; } a:hover { text-decoration: underline; }
section { padding: 30px 0 8px; }
h2 { font-size: 1.35rem; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 1.08rem; margin: 0 0 2px; }
section > p { max-width: 46em; margin: 4px 0 16px; }
.quiet { color: var(--quiet); } .small { font-size: .87rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px; margin:
  16px 0 20px; }
.tile { background: var(--glow); border-radius: 12px; padding: 16px 20px; container-type: inline-size; }
.tile b { display: block; font-size: min(2.5rem, 17cqi); white-space: nowrap;
  line-height: 1.1; letter-spacing: -.02em; color: var(--pretrained);
  font-variant-numeric: tabular-nums; }
.tile.plain { background: var(--card); } .tile.plain b { color: var(--ink); }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: 8px 12px 8px 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid
  var(--grid); }
th { font-weight: 600; color: var(--quiet); font-size: .86rem; vertical-align: bottom; }
th.n, td.n { text-align: right; } td.n { white-space: nowrap; }
tr.mean td { font-weight: 700; border-bottom: 0; border-top: 2px solid var(--ink); }
td small { color: var(--quiet); font-size: .85em; font-weight: 400; }
@media (max-width: 620px) { th, td { padding-right: 8px; } td.n small { display: block; } table {
  font-size: .86rem; } }
.good { color: var(--pretrained); font-weight: 600; }
.card { background: var(--card); border-radius: 14px; padding: 18px 20px 14px; margin: 0 0 16px;
  break-inside: avoid; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
.cards .card { margin: 0; border-top: 4px solid var(--accent, var(--grid)); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 205px), 1fr)); gap: 8px
  18px;
  align-items: start; margin-top: 10px; }
.figures.task { grid-template-columns: 1.36fr 1fr 1fr; }
.figures.task.single { grid-template-columns: minmax(0, 480px) minmax(0, 345px); }
@media (max-width: 800px) { .figures.task, .figures.task.single { grid-template-columns: 1fr; } }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; overflow:
  visible; }
figure.wide { display: grid; grid-template-columns: minmax(0, 2.4fr) minmax(0, 1fr); gap: 24px;
  align-items: end; }
@media (max-width: 800px) { figure.wide { display: block; } }
.figures.task figure { max-width: 480px; }
figcaption { font-size: .87rem; line-height: 1.45; color: var(--quiet); margin: 4px 0 10px; }
svg text { font-family: inherit; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 6px; margin:
  10px 0 4px; }
.gallery figure { text-align: center; }
.cards .gallery { grid-template-columns: repeat(3, 1fr); }
.gallery img { width: 100%; max-width: 140px; height: auto; display: block; margin: 0 auto; }
.gallery figcaption { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 16px; margin: 8px 0;
  font-size: .92rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 520px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } header h1 {
  font-size: 1.5rem; }
  .tile b { font-size: min(2rem, 17cqi); } .card { padding: 14px 14px 10px; } }
.elements { margin: 10px 0 2px; } .elements svg { display: block; width: 100%; height: auto; }
.elements rect { fill: var(--grid); fill-opacity: .45; } .elements rect.on { fill: var(--accent); }
.elements text { font-size: 5px; text-anchor: middle; fill: var(--ink); font-weight: 600; }
.elements text.over { fill: #fff; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; gap: 2px; margin: 6px 0; }
.bar i { background: var(--accent); }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
ul { padding-left: 1.2em; margin: 6px 0; } li { margin: 4px 0; max-width: 48em; }
footer { color: var(--quiet); font-size: .85rem; padding-top: 20px; padding-bottom: 40px; }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #000; --quiet: #444;
  --grid: #ccc;
  --pretrained: #c9480f; --scratch: #737b86; --glow: #fff; } body { print-color-adjust: exact; } nav {
  display: none; } body { font-size: 11pt; }
  .card, .tile { border: 1px solid var(--grid); } figure { break-inside: avoid; } h2, h3 { break-after:
  avoid; } }
""".strip()


def document(title: str, lead: str, sections: Sequence[tuple[str, str]], foot: str) -> str:
    """A whole page.

    Args:
        title, lead: plain text.
        sections: heading (plain text) and body (HTML) of each.
        foot: plain text.
    """
    names = [f"part-{i + 1}" for i in range(len(sections))]
    links = "".join(f'<a href="#{n}">{escape(h)}</a>' for n, (h, _) in zip(names, sections, strict=True))
    body = "\n".join(
        f'<section id="{n}">\n<h2>{escape(h)}</h2>\n{b}\n</section>' for n, (h, b) in zip(names, sections, strict=True)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Even if something slipped through the escaping, the page may neither run nor load anything.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<header><div>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n<nav>{links}</nav>\n</div></header>\n"
        f"<main>\n{body}\n</main>\n<footer>{escape(foot)}</footer>\n</body>\n</html>\n"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, mean: bool = False) -> str:
    """A table of HTML cells.

    Args:
        headings: plain text.
        rows: HTML.
        words: so many columns from the left are text; the others are numbers, set to the right.
        mean: the last row holds the means.
    """
    kinds = ["" if i < words else ' class="n"' for i in range(len(headings))]
    head = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(kinds, headings, strict=True))
    listed = [list(r) for r in rows]
    lines = []
    for i, row in enumerate(listed):
        cells = "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds, row, strict=True))
        lines.append(f"<tr{' class=mean' if mean and i == len(listed) - 1 else ''}>{cells}</tr>")
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def figure(inside: str, caption: str, kind: str = "") -> str:
    """An inline SVG or an image with its caption, both HTML."""
    return f"<figure{f' class={kind}' if kind else ''}>{inside}<figcaption>{caption}</figcaption></figure>"


def image(address: str, alt: str) -> str:
    """An image held in its own address (`data:`); `alt` is plain text."""
    return f'<img src="{address}" alt="{escape(alt)}" loading="lazy">'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms (plain text) and what they are (HTML)."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in pairs) + "</dl>"


def folded(summary: str, values: Mapping[str, Any]) -> str:
    """Nested settings as one flat list that opens on a click; nothing where there are none."""
    pairs = list(flat(values))
    if not pairs:
        return ""
    body = definitions((k, escape(v)) for k, v in pairs)
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as `a.b` → text."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value)) or "none"
        else:
            yield name, "none" if value is None or value == {} else str(value)


def periodic_table(elements: Mapping[int, int]) -> str:
    """A small periodic table; the more atoms of an element, the stronger its colour (logarithmic)."""
    most = max(elements.values(), default=1)
    rows = 9.4 if any(_place(z)[0] > 6 for z in elements) else 7
    parts = []
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        row, column = _place(z)
        if row >= rows:
            continue
        x, y = 10 * column, 10 * row
        n = elements.get(z, 0)
        if not n:
            parts.append(f'<rect x="{x}" y="{y:g}" width="9.2" height="9.2" rx="1.2"/>')
            continue
        strength = 0.25 + 0.75 * (math.log(n + 1) / math.log(most + 1))
        words = f"{atomic_names[z]}: {count(n)} atoms"
        parts.append(
            f'<g><title>{words}</title><rect class="on" x="{x}" y="{y:g}" width="9.2" height="9.2" rx="1.2" '
            f'style="fill-opacity:{strength:.2f}"/>'
            f'<text x="{x + 4.6:g}" y="{y + 6.4:g}"{" class=over" if strength > 0.6 else ""}>'
            f"{chemical_symbols[z]}</text></g>"
        )
    top = sorted(elements, key=lambda z: -elements[z])
    alt = f"Periodic table with {len(elements)} elements marked: " + ", ".join(chemical_symbols[z] for z in top)
    return (
        f'<div class="elements"><svg viewBox="0 0 180 {10 * rows:g}" role="img" aria-label="{alt}">'
        + "".join(parts)
        + "</svg></div>"
    )


def composition_bar(elements: Mapping[int, int]) -> str:
    """Shares of the atoms as one bar, the commonest element first; eight elements, then the rest."""
    total = sum(elements.values()) or 1
    ordered = sorted(elements, key=lambda z: -elements[z])
    parts = [(chemical_symbols[z], elements[z] / total) for z in ordered[:8]]
    if len(ordered) > 8:
        parts.append((f"{len(ordered) - 8} more", sum(elements[z] for z in ordered[8:]) / total))
    pieces = "".join(
        f'<i style="flex:{share:.4f};opacity:{max(1 - 0.105 * i, 0.15):.2f}" title="{name} {100 * share:.1f} %"></i>'
        for i, (name, share) in enumerate(parts)
    )
    words = " · ".join(f"{name} {100 * share:.0f} %" if share >= 0.01 else f"{name} &lt;1 %" for name, share in parts)
    return f'<div class="bar" aria-hidden="true">{pieces}</div><div class="small quiet">{words}</div>'


def _place(z: int) -> tuple[int | float, int]:
    """Row and column (from 0) of an element; the f-block lies below, as usual."""
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
