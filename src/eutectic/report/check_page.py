"""The page of a checked data set: the verdict, the findings, and plots of the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eutectic.check import Report
from eutectic.report import figures
from eutectic.report.formatting import significant
from eutectic.report.page import write_page


def write_check_page(path: Path, report: Report) -> None:
    """Write the page.

    Args:
        path: the HTML file to write, atomically.
        report: from `eutectic.check.check`.

    Raises:
        EutecticError: the file cannot be written.
    """
    energies = report.units.energies_of_elements
    write_page(
        path,
        "check.html.j2",
        title=f"Check of {Path(report.source).name}",
        lead=report.verdict,
        report=report,
        declared=", ".join(f"{k}: {v}" for k, v in report.units.declared.items()),
        element_energies=", ".join(f"{s} {significant(e, 5)}" for s, e in energies.items()),
        plots=list(_plots(report)),
        outliers=list(_outliers(report)),
    )


def _plots(report: Report) -> Iterator[tuple[Figure, str, str]]:
    """Figure, alternative text, caption."""
    plotted, units = report.plotted, report.units
    energy, force = units.energy or "unit of the file", units.forces or "unit of the file"
    if len(plotted.residuals) > 1:
        values = np.array(plotted.residuals)
        yield (
            figures.histogram(values - np.median(values), f"E − Σ n·e, per atom ({energy})"),
            f"Histogram of {len(values)} energy residuals per atom",
            "Energies after subtracting one energy per element, relative to their median. "
            "Two peaks may indicate two levels of theory.",
        )
    if len(plotted.forces) > 1 and max(plotted.forces) > 0:
        yield (
            figures.histogram(np.array(plotted.forces), f"|F| ({force})", log=True),
            f"Histogram of {len(plotted.forces)} force magnitudes",
            "Magnitudes of the forces on single atoms (a sample). In molecular dynamics they are around 1 eV/Å.",
        )
    if len(plotted.work) > 1:
        slope = report.force_test.slope if report.force_test.tested else None
        yield (
            figures.work_parity(np.array(plotted.work), np.array(plotted.energy_change), slope, energy),
            f"Energy changes against the work of the forces, {len(plotted.work)} pairs",
            "Pairs of similar frames, the more similar half: consistent labels lie on the grey line of slope 1.",
        )


def _outliers(report: Report) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of every finding that lists structures."""
    for finding in report.findings:
        first = finding.numbers.get("first")
        listed = [entry for entry in first if isinstance(entry, Mapping)] if isinstance(first, list) else []
        if listed:
            names = list(listed[0])
            yield finding.title, [n.replace("_", " ") for n in names], [[e.get(n) for n in names] for e in listed]
