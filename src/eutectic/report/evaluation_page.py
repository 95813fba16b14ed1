"""The page of an evaluation: errors by data set and property, parity plots, errors by element and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eutectic.report import figures
from eutectic.report.finetune_page import parity_of
from eutectic.report.formatting import significant, words
from eutectic.report.page import write_page


def write_evaluation_page(
    path: Path, result: Mapping[str, Any], *, environment: Mapping[str, Any] | None = None
) -> None:
    """Write the page.

    Args:
        path: the HTML file to write, whole or not at all.
        result: of `Evaluation.to_dict`.
        environment: versions and hardware.

    Raises:
        EutecticError: the file cannot be written.
    """
    sets = result["sets"]
    properties = list(dict.fromkeys(name for errors in sets.values() for name in errors))
    write_page(
        path,
        "evaluation.html.j2",
        title=f"Evaluation: {result['model']}",
        lead=f"{', '.join(map(words, properties)).capitalize()} of {', '.join(sets)}, predicted by task "
        f"{result['task']} ({result['level_of_theory']}).",
        rows=[(where, name, errors) for where, by_name in sets.items() for name, errors in by_name.items()],
        plots=list(_plots(sets)),
        parts=[
            (where, name, kind, errors[key], errors["unit"])
            for where, by_name in sets.items()
            for name, errors in by_name.items()
            for kind, key in (("atoms", "by_size"), ("element", "by_element"))
            if len(errors[key]) > 1
        ],
        notes=result["notes"],
        left_out=result["left_out"],
        environment=environment or {},
    )


def _plots(sets: Mapping[str, Any]) -> Iterator[tuple[str, str, Figure, str]]:
    """Data set, property, figure, caption."""
    for where, by_name in sets.items():
        for name, errors in by_name.items():
            if errors["truth"] and errors["metric"] == "MAE":
                note = f"MAE {significant(errors['mae'])} {errors['unit']}"
                colour = figures.START_COLOURS["pretrained"]
                figure = parity_of(name, errors["truth"], errors["prediction"], errors["unit"], colour, note)
                yield where, name, figure, f"{len(errors['truth']):,} values, evenly chosen."
