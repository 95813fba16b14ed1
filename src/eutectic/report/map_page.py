"""Maps of embeddings: an HTML page, or a file for chemiscope (https://chemiscope.org)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from matplotlib import colormaps
from matplotlib.colors import to_hex

from eutectic.files import write_atomically
from eutectic.predict.embedding import MapSample, Point
from eutectic.report import drawing
from eutectic.report.page import write_page

SIZE, MARGIN = (640.0, 440.0), 14.0
"""Size and margin of a map, in SVG units."""

MOST_CLASSES = 7
"""Number of classes with their own colour; all others share the eighth."""

PICTURES = 12
"""Number of structures that are drawn, chosen far apart on the map."""


@dataclass(frozen=True)
class Colouring:
    """A way to colour the points.

    Attributes:
        name: heading.
        colours: CSS colour of each point.
        legend: pairs of colour and text.
    """

    name: str
    colours: list[str]
    legend: list[tuple[str, str]]


def write_map_page(path: Path, sample: MapSample, *, model: str, source: str) -> None:
    """Write the map as one HTML file without scripts: points with tooltips and a choice of colours.

    Args:
        path: the HTML file to write.
        sample: points and moments.
        model, source: names of the model and of the embedded file.

    Raises:
        EutecticError: the file cannot be written.
    """
    points = sample.points
    principal, shares = sample.principal()
    maps = [_Map("Principal components", principal, [f"component {i + 1}, {s:.0%}" for i, s in enumerate(shares)])]
    if (umap := sample.umap()) is not None:
        maps.append(_Map("UMAP", umap, ["", ""]))
    colourings = _colourings(points)
    atoms = points[0].atom is not None
    what = "atoms" if atoms else "structures"
    total = sample.moments.n
    shown = f"{total:,} {what}" if total == len(points) else f"{len(points):,} of {total:,} {what}, drawn at random"
    write_page(
        path,
        "map.html.j2",
        title=f"Map of {source}",
        lead=f"{shown}, by the features of {model}",
        maps=maps,
        labels=[label_of(point) for point in points],
        colourings=colourings,
        styles=[";".join(f"--c{k + 1}:{c.colours[i]}" for k, c in enumerate(colourings)) for i in range(len(points))],
        pictures=[(points[i].index, points[i].structure) for i in _spread(principal)],
        facts=[
            ("Embedding", f"{len(sample.moments.mean)} invariant features of the backbone"),
            ("Points", f"{what}; " + ("one per atom" if atoms else "the mean over the atoms of a structure")),
            ("Variance shown", " + ".join(f"{share:.1%}" for share in shares)),
        ],
    )


def write_chemiscope(path: Path, sample: MapSample, *, model: str, source: str, cutoff: float) -> None:
    """Write the map in chemiscope's JSON (its `Dataset`), compressed if the name ends in .gz.

    Args:
        path: `.json` or `.json.gz`.
        sample: points and moments.
        model, source: names of the model and of the embedded file.
        cutoff: cutoff of the atoms' environments, Å.

    Raises:
        EutecticError: the file cannot be written.
    """
    points = sample.points
    target = "structure" if points[0].atom is None else "atom"
    principal, shares = sample.principal()

    def property_of(values: Sequence[Any], **more: str) -> dict[str, Any]:
        return {"target": target, "values": list(values), **more}

    properties = {
        f"PCA {i + 1}": property_of(principal[:, i].tolist(), description=f"{share:.1%} of the variance")
        for i, share in enumerate(shares)
    }
    if (umap := sample.umap()) is not None:
        properties |= {f"UMAP {i + 1}": property_of(umap[:, i].tolist()) for i in range(2)}
    properties |= {
        "index in the file": property_of([p.index for p in points]),
        "number of atoms": property_of([len(p.structure) for p in points]),
        "formula": property_of([drawing.formula(p.structure) for p in points]),
        "kind": property_of([drawing.kind(p.structure) for p in points]),
    }
    if target == "atom":
        properties["element"] = property_of([_element(p) for p in points])
    unique = {p.index: p.structure for p in points}
    place = {index: i for i, index in enumerate(unique)}
    values: dict[str, Any] = {
        "meta": {"name": f"{source} by {model}", "description": "features of a backbone, written by eutectic"},
        "structures": [_chemiscope_structure(structure) for structure in unique.values()],
        "properties": properties,
    }
    if target == "atom":
        values["environments"] = [{"structure": place[p.index], "center": p.atom, "cutoff": cutoff} for p in points]
    text = json.dumps(values, allow_nan=False).encode()
    write_atomically(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _chemiscope_structure(structure: Any) -> dict[str, Any]:
    x, y, z = structure.positions.round(4).T.tolist()
    names = [chemical_symbols[n] for n in structure.numbers]
    cell = {"cell": structure.cell.ravel().round(5).tolist()} if structure.pbc.any() else {}
    return {"size": len(structure), "names": names, "x": x, "y": y, "z": z, **cell}


def label_of(point: Point) -> str:
    """The tooltip of a point."""
    text = f"{point.index}: {drawing.formula(point.structure)}"
    return text if point.atom is None else f"{text}, atom {point.atom} ({_element(point)})"


def _element(point: Point) -> str:
    return chemical_symbols[int(point.structure.numbers[point.atom or 0])]


class _Map:
    """A map, with the coordinates of its points on the page."""

    def __init__(self, name: str, coordinates: np.ndarray, axes: Sequence[str]) -> None:
        self.name, self.axes = name, list(axes)
        low, high = coordinates.min(axis=0), coordinates.max(axis=0)
        unit = (coordinates - low) / np.where(high > low, high - low, 1.0)
        unit = np.where(high > low, unit, 0.5)
        unit[:, 1] = 1 - unit[:, 1]
        self.places = (MARGIN + unit * (np.array(SIZE) - 2 * MARGIN)).round(1).tolist()
        self.size = SIZE


def _colourings(points: Sequence[Point]) -> list[Colouring]:
    by_class = {"kind": [drawing.kind(p.structure) for p in points]}
    if points[0].atom is not None:
        by_class = {"element": [_element(p) for p in points], **by_class}
    else:
        by_class["formula"] = [drawing.formula(p.structure) for p in points]
    colourings = [_by_class(name, values) for name, values in by_class.items() if _is_informative(values)]
    sizes = np.array([len(p.structure) for p in points], dtype=float)
    if sizes.max() > sizes.min():
        colourings.append(_by_number("number of atoms", sizes))
    if not colourings:
        colourings.append(Colouring("one colour", ["var(--set0)"] * len(points), []))
    return colourings


def _is_informative(values: Sequence[str]) -> bool:
    """Whether there are several classes and most points are in those with their own colour."""
    common = Counter(values).most_common(MOST_CLASSES)
    return len(common) > 1 and 2 * sum(n for _, n in common) > len(values)


def _by_class(name: str, values: Sequence[str]) -> Colouring:
    counts = Counter(values)
    order = sorted(counts, key=lambda value: (-counts[value], value))
    colour = {value: f"var(--set{i})" for i, value in enumerate(order[:MOST_CLASSES])}
    legend = [(colour[value], f"{value} ({counts[value]:,})") for value in order[:MOST_CLASSES]]
    if rest := order[MOST_CLASSES:]:
        legend.append(("var(--set7)", f"{len(rest):,} others ({sum(counts[value] for value in rest):,})"))
    return Colouring(name, [colour.get(value, "var(--set7)") for value in values], legend)


def _by_number(name: str, values: np.ndarray) -> Colouring:
    low, high = float(values.min()), float(values.max())

    def colour(value: float) -> str:
        return to_hex(colormaps["viridis"](0.05 + 0.85 * (value - low) / (high - low)))

    legend = [(colour(v), f"{v:g}") for v in np.unique(np.round(np.linspace(low, high, 4)))]
    return Colouring(name, [colour(v) for v in values.tolist()], legend)


def _spread(coordinates: np.ndarray) -> list[int]:
    """Points far apart (farthest-point sampling), starting with the one nearest to the centre."""
    middle = np.linalg.norm(coordinates - coordinates.mean(axis=0), axis=1)
    chosen = [int(middle.argmin())]
    distance = np.linalg.norm(coordinates - coordinates[chosen[0]], axis=1)
    while len(chosen) < PICTURES and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(coordinates - coordinates[chosen[-1]], axis=1))
    return chosen


def write_map(path: Path, sample: MapSample, *, model: str, source: str, cutoff: float) -> None:
    """Write a map in the format given by the file name: a page (.html) or chemiscope's (.json, .json.gz)."""
    if path.suffix == ".html":
        write_map_page(path, sample, model=model, source=source)
    else:
        write_chemiscope(path, sample, model=model, source=source, cutoff=cutoff)


FORMATS: Mapping[str, str] = {".html": "a page", ".json": "chemiscope", ".json.gz": "chemiscope, compressed"}
"""Suffix → format of the files that `write_map` writes."""
