"""The page of an evaluation: errors by data set and property, parity plots, errors by element and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        path: the HTML file to write, atomically.
        result: from `Evaluation.to_dict`.
        environment: versions and hardware.

    Raises:
        EutecticError: the file cannot be written.
    """
    short = short_names(list(result["sets"]))
    sets = {short[where]: errors for where, errors in result["sets"].items()}
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
        doubts=[
            (where, name, errors["uncertainty"], errors["unit"])
            for where, by_name in sets.items()
            for name, errors in by_name.items()
            if errors.get("uncertainty")
        ],
        calibrations=list(_calibrations(sets)),
        full_names={name: where for where, name in short.items() if name != where},
        notes=result["notes"],
        left_out={short.get(where, where): why for where, why in result["left_out"].items()},
        environment=environment or {},
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Name of a data set → the shortest end of its path that distinguishes it from the others."""
    short = {}
    for name in names:
        parts = name.split("/")
        n = 1
        while n < len(parts) and any(o != name and o.split("/")[-n:] == parts[-n:] for o in names):
            n += 1
        short[name] = "/".join(parts[-n:]) or name
    return short


def _calibrations(sets: Mapping[str, Any]) -> Iterator[tuple[str, str, Figure, str]]:
    """Data set, property, figure, caption."""
    for where, by_name in sets.items():
        for name, errors in by_name.items():
            summary = errors.get("uncertainty")
            bins = [pair for pair in (summary or {}).get("bins", []) if all(value and value > 0 for value in pair)]
            if bins:
                note = f"{summary['coverage']['0.68']:.0%} within σ"
                figure = figures.calibration(bins, unit=errors["unit"], title=words(name), note=note)
                yield where, name, figure, f"{len(bins)} groups of {errors['structures']:,} structures by uncertainty."


def _plots(sets: Mapping[str, Any]) -> Iterator[tuple[str, str, Figure, str]]:
    """Data set, property, figure, caption."""
    for where, by_name in sets.items():
        for name, errors in by_name.items():
            if errors["truth"] and errors["metric"] == "MAE":
                note = f"MAE {significant(errors['mae'])} {errors['unit']}"
                colour = figures.START_COLOURS["pretrained"]
                figure = parity_of(name, errors["truth"], errors["prediction"], errors["unit"], colour, note)
                yield where, name, figure, f"{len(errors['truth']):,} evenly selected values."
