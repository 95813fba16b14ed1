"""Inspect a model folder: facts, model card, and comparison with another model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from safetensors.torch import load_file

from eutectic.atoms import PROPERTIES
from eutectic.checkpoints.description import DESCRIPTION, WEIGHTS, file_hash, read_description
from eutectic.checkpoints.model import describe_model, load_model
from eutectic.checkpoints.shipped import CARD, model_folder
from eutectic.files import write_atomically

MADE_BY = "<!-- written by eutectic; remove this line to keep changes of your own -->"
"""Last line of a card that may be overwritten."""

RESULTS = "result.json"
"""File in the folder of a fine-tuning run, with its test errors."""

SUMMARY = "summary.json"
"""File in the folder of a pre-training run, with its validation errors."""


def inspect_model(name_or_path: str | Path) -> dict[str, Any]:
    """Facts about a model as plain JSON: settings, tasks with references, training data, errors, size and hashes.

    Args:
        name_or_path: as for `load_model`, which checks the folder.

    Raises:
        EutecticError: no such model, or a damaged one.
    """
    folder = model_folder(name_or_path)
    model = load_model(folder)
    description = read_description(folder)
    described = describe_model(model)
    tasks = {
        task.name: {
            "level_of_theory": task.level_of_theory,
            "graph": task.graph.model_dump(mode="json"),
            "predicts": {
                name: {
                    "unit": task.property(name).unit,
                    "head": target.settings.head.kind,
                    "scale": target.normaliser.scale,
                    "mean": target.normaliser.mean,
                    "references": None
                    if target.normaliser.references is None
                    else target.normaliser.references.to_dict()["values"],
                }
                for name, target in task.targets.items()
            },
        }
        for task in model.tasks
    }
    return {
        "model": str(name_or_path),
        "format": description["format"],
        "eutectic": model.provenance.get("eutectic"),
        "backbone": described["backbone"],
        "settings": described["settings"],
        "parameters": described["parameters"],
        "parameters_of_backbone": described["parameters_of_backbone"],
        "bytes": (folder / WEIGHTS).stat().st_size,
        "sha256": {WEIGHTS: file_hash(folder / WEIGHTS), DESCRIPTION: file_hash(folder / DESCRIPTION)},
        "sealed": description.get("sha256") is not None,
        "elements": described["elements"],
        "tasks": tasks,
        "training_data": list(training_data(model.provenance)),
        "training": {
            key: value
            for key, value in model.provenance.items()
            if key in ("steps", "structures_seen", "seed", "start")
        },
        "errors": _errors(folder),
        "validation_errors": _validation_errors(folder),
        "uncertainties": {
            task: {name: {"unit": PROPERTIES[name].unit, **value.facts} for name, value in by_name.items()}
            for task, by_name in model.uncertainties.items()
        },
    }


def training_data(provenance: Mapping[str, Any], stage: str = "") -> Iterator[dict[str, Any]]:
    """The data sets in a model's history, last training first.

    Args:
        provenance: provenance of the model.
        stage: name of the stage for data of fine-tuning; empty for the described model itself.
    """

    def entry(name: str, values: Mapping[str, Any], how: str) -> dict[str, Any]:
        rows = values.get("learned_rows") or []
        return {
            "name": name,
            "stage": how,
            "structures": values.get("structures"),
            "level_of_theory": values.get("level_of_theory", values.get("theory")),
            "licence": values.get("licence"),
            "elements": [chemical_symbols[z] for z in values.get("elements") or []],
            "fingerprints": sorted({str(row["fingerprint"]) for row in rows}),
            "splits": sorted({str(row["split"]) for row in rows}),
        }

    if "finetuned_on" in provenance:
        yield entry(str(provenance["finetuned_on"]), provenance, stage or "fine-tuning")
    for name, values in provenance.get("pretrained_on", {}).items():
        yield entry(name, values, "pre-training")
    for key in ("pretrained", "started_from"):
        if isinstance(provenance.get(key), Mapping):
            known = set(provenance.get("pretrained_on", {}))
            earlier = training_data(provenance[key], "fine-tuning before")
            yield from (data for data in earlier if data["name"] not in known)


def _errors(folder: Path) -> dict[str, Any] | None:
    """Test errors of the run that made a model, if the model is still in the run's folder."""
    try:
        values = json.loads((folder.parent / RESULTS).read_text(encoding="utf-8"))
        return {
            name: {
                "error": float(error),
                "unit": str(values["units"][name]),
                "metric": str(values["metrics"][name]),
                "baseline": values.get("test_baselines", {}).get(name),
            }
            for name, error in values["test_errors"].items()
        } or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _validation_errors(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Task → property → validation error at the end of the pre-training run that made a model, if the model is still in
    the run's folder."""
    try:
        values = json.loads((folder.parent / SUMMARY).read_text(encoding="utf-8"))["validation"][-1]["by_set"]
        return {
            task: {
                (name := key.removesuffix("_mae")): {
                    "error": float(error),
                    "unit": PROPERTIES[name].display_unit_per_atom,
                    "baseline": float(errors[f"{name}_baseline"]),
                }
                for key, error in errors.items()
                if key.endswith("_mae") and math.isfinite(error)
            }
            for task, errors in values.items()
        } or None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def write_card(folder: str | Path, name: str | None = None) -> Path:
    """Write a model's card into its folder, as README.md; a card written by hand is not changed.

    Args:
        folder: model folder; it is checked.
        name: name under which the model is loaded; default: the path of the folder or of its run.

    Returns:
        The path of the card.

    Raises:
        EutecticError: no such model, or a damaged one; the card cannot be written.
    """
    folder = model_folder(folder)
    path = folder / CARD
    if path.is_file() and MADE_BY not in path.read_text(encoding="utf-8", errors="replace"):
        return path
    facts = inspect_model(folder)
    facts["model"] = name or str(folder.parent if folder.name == "model" else folder)
    write_atomically(path, card_of(facts))
    return path


def card_of(facts: Mapping[str, Any]) -> str:
    """A model card in Markdown, from `inspect_model`."""
    name = _cell(Path(str(facts["model"])).name)
    lines = [
        "---",
        "library_name: eutectic",
        "tags: [eutectic, atomistic-simulation, chemistry, materials-science]",
        "---",
        "",
        f"# {name}",
        "",
        f"{facts['backbone']}, {facts['parameters']:,} parameters ({facts['bytes'] / 1e6:.1f} MB), made with eutectic "
        f"{facts['eutectic'] or 'of an unknown version'}.",
        "",
        "```python",
        "import eutectic",
        "",
        f"model = eutectic.load({str(facts['model'])!r})",
        f"atoms.calc = model.calculator(task={next(iter(facts['tasks']), None)!r})",
        "```",
        "",
        "## What it predicts",
        "",
        "| task | property | unit | head | level of theory |",
        "|---|---|---|---|---|",
    ]
    for task, values in facts["tasks"].items():
        for prop, entry in values["predicts"].items():
            row = (task, prop, entry["unit"], entry["head"], values["level_of_theory"])
            lines.append(f"| {' | '.join(map(_cell, row))} |")
    elements = ", ".join(facts["elements"])
    lines += ["", f"Elements in its training structures: {elements or 'unknown'}.", "", "## Training data", ""]
    if facts["training_data"]:
        lines += ["| data set | stage | structures | level of theory | licence | hash |", "|---|---|--:|---|---|---|"]
        for entry in facts["training_data"]:
            count = "unknown" if entry["structures"] is None else f"{entry['structures']:,}"
            known = [entry[key] or "unknown" for key in ("level_of_theory", "licence")]
            hashes = ", ".join(entry["fingerprints"]) or "unknown"
            lines.append(f"| {' | '.join(map(_cell, [entry['name'], entry['stage'], count, *known, hashes]))} |")
    else:
        lines.append("Unknown.")
    if facts["training"]:
        lines += ["", "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts["training"].items()) + "."]
    lines += ["", "## Errors", ""]
    if facts["errors"]:
        lines += ["| property | test error | baseline | unit | metric |", "|---|--:|--:|---|---|"]
        for prop, entry in facts["errors"].items():
            baseline = "–" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
            row = (prop, f"{entry['error']:.4g}", baseline, entry["unit"], entry["metric"])
            lines.append(f"| {' | '.join(map(_cell, row))} |")
    if facts["validation_errors"]:
        lines += [
            "Mean absolute errors on validation structures at the end of pre-training; baseline: references and mean "
            "alone, or zero forces.",
            "",
            "| data set | property | validation error | baseline | unit |",
            "|---|---|--:|--:|---|",
        ]
        for task, errors in facts["validation_errors"].items():
            for prop, entry in errors.items():
                row = (task, prop, f"{entry['error']:.4g}", f"{entry['baseline']:.4g}", entry["unit"])
                lines.append(f"| {' | '.join(map(_cell, row))} |")
    if not facts["errors"] and not facts["validation_errors"]:
        lines.append("Not recorded beside the model.")
    if facts["uncertainties"]:
        lines += [
            "",
            "## Uncertainties",
            "",
            "| task | property | calibrated on | typical | unit |",
            "|---|---|--:|--:|---|",
        ]
        for task, by_name in facts["uncertainties"].items():
            for prop, entry in by_name.items():
                row = (task, prop, entry["calibrated_on"], f"{entry['typical']:.3g}", entry["unit"])
                lines.append(f"| {' | '.join(map(_cell, row))} |")
        lines += [
            "",
            "Standard deviations from the last layer (LLPR); typical: their median on validation structures.",
        ]
    references = [
        f"- {_cell(task)}, {_cell(prop)} ({_cell(entry['unit'])}): "
        + ", ".join(f"{_cell(element)} {value:.6g}" for element, value in entry["references"].items())
        for task, values in facts["tasks"].items()
        for prop, entry in values["predicts"].items()
        if entry["references"]
    ]
    if references:
        lines += ["", "## References of elements", "", *references]
    lines += [
        "",
        "## Settings",
        "",
        ", ".join(f"{_cell(key)} {_cell(value)}" for key, value in facts["settings"].items()) + ".",
    ]
    lines += [
        "",
        "## Limits",
        "",
        "Energies of different tasks have different levels of theory. Predictions for elements that are not listed, or "
        "for structures unlike the training data, are unreliable.",
        "",
        "## Files",
        "",
        *(f"- `{file}`: SHA-256 `{digest}`" for file, digest in facts["sha256"].items()),
        "",
        MADE_BY,
        "",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Escape text for a cell of a Markdown table; names may contain any character."""
    text = " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def compare_models(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Differences between two models, as plain JSON.

    Args:
        first, second: as for `inspect_model`.

    Returns:
        `facts`: dotted name → [value in the first, value in the second], null if absent; without names, sizes and
        hashes of files. `weights`: numbers of equal and of changed tensors, the largest relative change of a tensor
        (|b − a| / |a|) with its name, and names of tensors that only one has or whose shapes differ.

    Raises:
        EutecticError: no such model, or a damaged one.
    """
    facts = [dict(_flat(inspect_model(path))) for path in (first, second)]
    ignored = ("model", "bytes", "sha256", "sealed")
    names = [name for name in dict.fromkeys([*facts[0], *facts[1]]) if name.partition(".")[0] not in ignored]
    changed = {
        name: [facts[0].get(name), facts[1].get(name)] for name in names if facts[0].get(name) != facts[1].get(name)
    }
    return {"facts": changed, "weights": _compare_weights(*(model_folder(path) / WEIGHTS for path in (first, second)))}


def _compare_weights(first: Path, second: Path) -> dict[str, Any]:
    a, b = load_file(str(first)), load_file(str(second))
    both = [name for name in a if name in b and a[name].shape == b[name].shape]
    changes = {name: _change(a[name], b[name]) for name in both if not torch.equal(a[name], b[name])}
    most = max(changes, key=changes.__getitem__, default=None)
    return {
        "equal": len(both) - len(changes),
        "changed": len(changes),
        "largest_change": None if most is None else {"tensor": most, "relative": changes[most]},
        "only_in_first": sorted(a.keys() - b.keys()),
        "only_in_second": sorted(b.keys() - a.keys()),
        "other_shape": sorted(name for name in a if name in b and a[name].shape != b[name].shape),
    }


def _change(a: torch.Tensor, b: torch.Tensor) -> float:
    size = float(a.double().norm())
    return float((b.double() - a.double()).norm()) / size if size else float("inf")


def _flat(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested values into dotted names; entries of lists are identified by their name."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{above}.{key}" if above else str(key))
    elif isinstance(values, list) and values and all(isinstance(item, Mapping) for item in values):
        for item in values:
            yield from _flat({k: v for k, v in item.items() if k != "name"}, f"{above}.{item['name']}")
    else:
        yield above, values
