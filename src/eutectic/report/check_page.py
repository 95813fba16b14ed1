"""A checked data set as one page that needs nothing else: the verdict, what was found, and the plots behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.check import Finding, Report
from eutectic.files import write_atomically
from eutectic.report import figures, page
from eutectic.report.formatting import count, significant
from eutectic.report.study_page import FOOT

WEIGHTS = {"error": "Would spoil a training", "warning": "To look at", "note": "Good to know"}


def write_check_page(path: Path, report: Report) -> None:
    """Write the page.

    Args:
        path: the HTML file to write, whole or not at all.
        report: of `eutectic.check.check`.

    Raises:
        EutecticError: the file cannot be written.
    """
    sections = [("Findings", _findings(report.findings)), ("Labels and units", _labels(report))]
    plots = _plots(report)
    if plots:
        sections.append(("Distributions", plots))
    sections.append(("Elements", _elements(report)))
    outliers = _outliers(report)
    if outliers:
        sections.append(("Structures to look at", outliers))
    title = f"Check of {Path(report.source).name}"
    write_atomically(path, page.document(title, report.verdict, sections, FOOT))


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing was found that would spoil a training.</p>"
    parts = []
    for severity, heading in WEIGHTS.items():
        cards = [
            f'<div class="card"><h3>{escape(_capital(f.title))}</h3><p>{escape(f.message)}</p>'
            f'<p class="quiet">{escape(f.why)}</p><p><b>What to do:</b> {_code(f.fix)}</p>'
            f'<p class="small quiet">{escape(f.code)}</p></div>'
            for f in findings
            if f.severity == severity
        ]
        if cards:
            parts.append(f"<h3>{heading}</h3>\n" + "\n".join(cards))
    return "\n".join(parts)


def _code(text: str) -> str:
    """Escaped, with what stands in backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _labels(report: Report) -> str:
    rows = [
        [escape(name), escape(", ".join(report.keys.get(name, {})) or "–"), count(n), count(report.structures - n)]
        for name, n in report.labels.items()
    ]
    units = report.units
    facts = [
        ("structures", count(report.structures)),
        ("energies", escape(f"{units.energy or 'unit not told'}; {units.regime} (confidence {units.confidence})")),
        ("coordinates", escape(units.length or "unit not told")),
        ("forces against energies", escape(report.force_test.verdict)),
        ("stresses against energies", escape(report.stress_test.verdict)),
        ("declared in the file", escape(", ".join(f"{k}: {v}" for k, v in units.declared.items()) or "nothing")),
    ]
    if units.energies_of_elements:
        energies = ", ".join(f"{s} {significant(e, 5)}" for s, e in units.energies_of_elements.items())
        facts.append((f"energy per element ({escape(units.energy or 'unit of the file')})", escape(energies)))
    table = page.table(["property", "found under", "structures", "without it"], rows, words=2) if rows else ""
    return table + page.definitions(facts)


def _plots(report: Report) -> str:
    plotted, units = report.plotted, report.units
    parts: list[str] = []
    energy = units.energy or "unit of the file"
    force = units.forces or "unit of the file"
    if len(plotted.residuals) > 1:
        values = np.array(plotted.residuals)
        drawn = figures.histogram(values - np.median(values), f"E − Σ n·e, per atom ({energy})")
        alt = f"Histogram of {len(values)} energy residuals per atom"
        caption = "What one energy per element leaves of the energies, about its median. Two peaks may be two methods."
        parts.append(page.figure(figures.svg(drawn, "residuals", alt), caption))
    if len(plotted.forces) > 1 and max(plotted.forces) > 0:
        drawn = figures.histogram(np.array(plotted.forces), f"|F| ({force})", log=True)
        alt = f"Histogram of {len(plotted.forces)} force magnitudes"
        caption = "Sizes of the forces on single atoms (a sample). Molecules in motion lie around 1 eV/Å."
        parts.append(page.figure(figures.svg(drawn, "forces", alt), caption))
    if len(plotted.work) > 1:
        slope = report.force_test.slope if report.force_test.tested else None
        drawn = figures.work_parity(np.array(plotted.work), np.array(plotted.energy_change), slope, energy)
        alt = f"Energy changes against work of the forces, {len(plotted.work)} pairs"
        caption = "Pairs of near frames, the nearer half: consistent labels lie on the grey line of slope 1."
        parts.append(page.figure(figures.svg(drawn, "parity", alt), caption))
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def _elements(report: Report) -> str:
    rows = [[escape(s), count(n["structures"]), count(n["atoms"])] for s, n in report.elements.items()]
    table = page.periodic_table(report.plotted.atoms_of) if report.plotted.atoms_of else ""
    return f'<div style="--accent: var(--set0)">{table}</div>' + page.table(["element", "structures", "atoms"], rows)


def _outliers(report: Report) -> str:
    """Whatever findings name structures for."""
    parts = []
    for finding in report.findings:
        first = finding.numbers.get("first")
        listed = [entry for entry in first if isinstance(entry, Mapping)] if isinstance(first, list) else []
        if listed:
            names = list(listed[0])
            rows = [[_cell(entry.get(name)) for name in names] for entry in listed]
            headings = [name.replace("_", " ") for name in names]
            parts.append(f"<h3>{escape(_capital(finding.title))}</h3>" + page.table(headings, rows))
    return "\n".join(parts)


def _cell(value: Any) -> str:
    return significant(value) if isinstance(value, float) else escape(str(value))
