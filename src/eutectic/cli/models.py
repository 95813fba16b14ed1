"""Looking at models and sharing them: `models` lists them, `inspect` shows everything known about one, `diff` compares
two, and `push` uploads one to the Hugging Face Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.show import console, plain, show_facts, show_rows


@app.command()
def models(
    model: Annotated[
        Path | None, typer.Argument(help="Name or folder of a model; without it, the named models are listed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: everything but the weights.")] = False,
) -> None:
    """List the named models, or show a model's tasks, training data and settings.

    Some models are part of the package; published ones are downloaded on first use.

    **Examples**

    `eutectic models`

    `eutectic models eutectic-small`

    `eutectic models fairchem:gemnet-oc-oc20-all-md`

    `eutectic models runs/demo/model --json`

    `eutectic models sevennet:7net-0 --json`
    """
    if model is None:
        _list_models(as_json=as_json)
    else:
        _show_model(model, as_json=as_json)


def _list_models(*, as_json: bool) -> None:
    """Print the models that can be given by name."""
    from eutectic.checkpoints.model import describe_model, load_model
    from eutectic.checkpoints.published import PUBLISHED
    from eutectic.checkpoints.shipped import PREFIX, shipped_models

    every = {name: describe_model(load_model(folder)) for name, folder in shipped_models().items()}
    if as_json:
        sys.stdout.write(json.dumps(every, indent=1, ensure_ascii=False) + "\n")
        return
    for name, facts in every.items():
        tasks = ", ".join(cast("dict[str, Any]", facts["tasks"]))
        console.print(f"[bold]{plain(name)}[/]  {facts['backbone']}, {facts['parameters']:,} parameters: {tasks}")
    console.print("Published, downloaded on first use:")
    for name, published in PUBLISHED.items():
        console.print(f"[bold]{PREFIX}{name}[/]  {plain(published.title)}: {published.about}")
    console.print("Details: eutectic models NAME; fine-tune from one: eutectic finetune … --model NAME")


def _show_model(model: Path, *, as_json: bool) -> None:
    """Print a model's facts, tasks and card."""
    from eutectic.checkpoints.model import describe_model, load_model
    from eutectic.checkpoints.shipped import CARD, model_folder

    folder = model_folder(model)
    description = describe_model(load_model(folder))
    if as_json:
        sys.stdout.write(json.dumps(description, indent=1, ensure_ascii=False) + "\n")
        return
    show_facts({key: value for key, value in description.items() if key not in ("settings", "provenance", "tasks")})
    origin = cast("dict[str, Any]", description["provenance"])
    show_facts({key: origin[key] for key in ("imported_from", "package", "licence") if key in origin})
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "predicts", "level of theory"):
        table.add_column(heading)
    for name, task in cast("dict[str, Any]", description["tasks"]).items():
        predicts = ", ".join(f"{prop} ({unit})" for prop, unit in task["properties"].items())
        table.add_row(plain(name), predicts, plain(task["level_of_theory"]))
    console.print(table)
    if (folder / CARD).is_file():
        from rich.markdown import Markdown

        console.print(Markdown((folder / CARD).read_text()))


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="Name or folder of a model, or the folder of its run.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all facts as JSON, with settings and references.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Print a model card in Markdown, e.g. to save as README.md in the folder.")
    ] = False,
) -> None:
    """Show a model's tasks, elements, training data with hashes and licences, test errors, settings and size.

    This also verifies the model's files. Test errors are shown if the model is still in the folder of its run.

    **Examples**

    `eutectic inspect eutectic-small`

    `eutectic inspect runs/mine --json`

    `eutectic inspect runs/mine --card > runs/mine/model/README.md`
    """
    from eutectic.checkpoints.inspection import card_of, inspect_model

    if as_json and card:
        raise EutecticError("inspect", "--json and --card", "one of the two", "leave one out")
    facts = inspect_model(model)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return
    if card:
        sys.stdout.write(card_of(facts))
        return
    _show_inspection(facts)


def _show_inspection(facts: dict[str, Any]) -> None:
    """Print the facts of `inspect_model`: those of the whole model, then tasks, training data and errors as tables."""
    show_facts(
        {
            "model": facts["model"],
            "made with": f"eutectic {facts['eutectic'] or 'of an unknown version'}, format {facts['format']}",
            "backbone": facts["backbone"],
            "parameters": f"{facts['parameters']:,}, of which {facts['parameters_of_backbone']:,} in the backbone",
            "size": f"{facts['bytes'] / 1e6:.1f} MB",
            "SHA-256": facts["sha256"]["model.safetensors"],
            "files": "unchanged since written" if facts["sealed"] else "without hashes (older version)",
            "elements": facts["elements"] or "unknown",
            **{key.replace("_", " "): value for key, value in facts["training"].items()},
            "settings": ", ".join(f"{key} {value}" for key, value in facts["settings"].items()),
        }
    )
    show_rows(
        ("task", "predicts", "references", "level of theory"),
        [
            (
                name,
                ", ".join(f"{prop} ({values['unit']}, {values['head']})" for prop, values in task["predicts"].items()),
                ", ".join(
                    f"{prop} of {len(v['references'])} elements"
                    for prop, v in task["predicts"].items()
                    if v["references"]
                )
                or "none",
                task["level_of_theory"],
            )
            for name, task in facts["tasks"].items()
        ],
    )
    show_rows(
        ("trained on", "stage", "structures", "licence", "level of theory", "hash"),
        [
            (
                data["name"],
                data["stage"],
                "unknown" if data["structures"] is None else f"{data['structures']:,}",
                data["licence"] or "unknown",
                data["level_of_theory"] or "unknown",
                ", ".join(data["fingerprints"]) or "unknown",
            )
            for data in facts["training_data"]
        ],
    )
    show_rows(
        ("property", "test error", "baseline", "unit", "metric"),
        [
            (
                name,
                f"{values['error']:.4g}",
                "–" if values["baseline"] is None else f"{values['baseline']:.4g}",
                values["unit"],
                values["metric"],
            )
            for name, values in (facts["errors"] or {}).items()
        ],
    )
    show_rows(
        ("data set", "property", "validation error", "baseline", "unit"),
        [
            (task, name, f"{values['error']:.4g}", f"{values['baseline']:.4g}", values["unit"])
            for task, errors in (facts["validation_errors"] or {}).items()
            for name, values in errors.items()
        ],
    )


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Name or folder of a model.")],
    second: Annotated[Path, typer.Argument(help="Name or folder of another model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how two models differ: settings, tasks, references, training data, and number of changed weights.

    **Examples**

    `eutectic diff eutectic-small runs/mine`

    `eutectic diff runs/first runs/second --json`
    """
    from eutectic.checkpoints.inspection import compare_models

    found = compare_models(first, second)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return
    show_rows(
        ("", str(first), str(second)),
        [(name, *(_short(value) for value in values)) for name, values in found["facts"].items()],
    )
    weights = found["weights"]
    change = weights["largest_change"]
    largest = "" if change is None else f", by at most {change['relative']:.1%} ({change['tensor']})"
    console.print(f"weights: {weights['equal']} tensors equal, {weights['changed']} changed{largest}", highlight=False)
    for key, words in (
        ("only_in_first", f"only in {first}"),
        ("only_in_second", f"only in {second}"),
        ("other_shape", "with different shapes"),
    ):
        if weights[key]:
            console.print(plain(f"{words}: {len(weights[key])} tensors, e.g. {weights[key][0]}"), highlight=False)


def _short(value: object) -> str:
    """A value for a table; long ones are truncated."""
    text = "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Folder of a model or its run.")],
    name: Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face Hub (`pip install 'eutectic[hub]'`).

    The card, README.md in the model's folder, is generated unless it was edited by hand: predicted properties,
    elements, references, training data with hashes and licences, errors, settings. Anyone may then use the model by
    name: `--model user/name`, `eutectic.load("user/name")`. Log in first: `hf auth login`.

    **Examples**

    `eutectic push runs/mine ada/aspirin --private`

    `eutectic predict ada/aspirin my.xyz -o predicted.xyz`
    """
    from eutectic.checkpoints.hub import push as upload
    from eutectic.checkpoints.inspection import write_card
    from eutectic.checkpoints.shipped import model_folder

    folder = model_folder(model)
    write_card(folder, name)
    console.print(f"pushed: {upload(folder, name, private=private)}", highlight=False)
