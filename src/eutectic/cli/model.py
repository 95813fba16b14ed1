"""Commands that use a model: predict, models, import-jmp."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.options import pairs
from eutectic.cli.show import console, plain, show_facts


@app.command("import-jmp")
def import_jmp(
    checkpoint: Annotated[Path, typer.Argument(help="`jmp-s.pt`, `jmp-l.pt`, or another file of that layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; an older model is replaced.")],
    raw: Annotated[bool, typer.Option("--raw", help="Use the weights of the last step instead of the EMA.")] = False,
) -> None:
    """Convert a pre-trained checkpoint of the original JMP, without executing any code in it.

    **Examples**

    `eutectic import-jmp jmp-s.pt -o models/jmp-s`

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`
    """
    from eutectic.checkpoints.jmp import read_published_checkpoint
    from eutectic.checkpoints.model import save_model

    model, report = read_published_checkpoint(checkpoint, raw=raw)
    save_model(out, model)
    console.print(f"{report.size}, {report.parameters:,} parameters")
    for heading, rows in (("taken", report.taken), ("left", report.left), ("missing", report.missing)):
        console.print(f"[bold]{heading}[/]")
        show_facts(dict(rows))
    console.print(f"model: {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task of the model; sets heads, graph and level of theory. Needed if there are several."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Extended xyz file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Predict in model units, without scales and reference energies.")
    ] = False,
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Predict forces and stress as derivatives of the energy.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Structures per batch.")] = 32,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="Unit of the file's positions or cell, if that is not Å: positions=bohr; repeatable."),
    ] = None,
) -> None:
    """Predict energies, forces and the other properties of a task.

    The file written holds the structures as read, with the predictions added as `TASK_energy`, `TASK_forces`, …;
    labels are kept.

    **Examples**

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`

    `eutectic predict models/jmp-s my.xyz --task ani1x --conservative -o predicted.xyz`

    `eutectic predict runs/aspirin/model my.xyz --json > predicted.json`
    """
    from eutectic.checkpoints.model import load_model
    from eutectic.console import ProgressBar
    from eutectic.predict import prediction
    from eutectic.train.runtime.matmul import prefer_fast_matmul
    from eutectic.train.runtime.memory import keep_freed_memory

    if out is None and not as_json:
        raise EutecticError("predict", "no output for the predictions", "--out FILE.xyz, --json, or both", "give one")
    trained = load_model(model)
    keep_freed_memory()
    prefer_fast_matmul(trained.module)
    selected = prediction.task_of(trained, task)
    atoms, inputs = prediction.read_structures(structures, pairs(unit, "--unit", "positions=bohr"))
    with ProgressBar("predicting", len(inputs)) as bar:
        predictions = prediction.predict(
            trained,
            selected.name,
            inputs,
            batch_size=batch_size,
            normalised=normalised,
            conservative=conservative,
            on_done=bar.advance,
        )
    note = None if normalised else prediction.relative_energies(trained, selected.name)
    if out is not None:
        prediction.write_predictions(out, atoms, predictions, selected, normalised=normalised)
    if as_json:
        sys.stdout.write(prediction.as_json(predictions, selected, normalised=normalised, note=note) + "\n")
    else:
        console.print(f"{len(predictions)} structures, task {selected.name} ({plain(selected.level_of_theory)}): {out}")
        if note is not None:
            console.print(f"[yellow]energies are[/] {plain(note)}")


@app.command()
def models(
    model: Annotated[
        Path | None, typer.Argument(help="Name or folder of a model; lists the shipped models if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: everything but the weights.")] = False,
) -> None:
    """List the models in the package, or show a model's tasks, training data and settings.

    **Examples**

    `eutectic models`

    `eutectic models eutectic-small`

    `eutectic models runs/demo/model --json`
    """
    from eutectic.checkpoints.model import describe_model, load_model
    from eutectic.checkpoints.shipped import CARD, model_folder, shipped_models

    if model is None:
        every = {name: describe_model(load_model(folder)) for name, folder in shipped_models().items()}
        if as_json:
            sys.stdout.write(json.dumps(every, indent=1, ensure_ascii=False) + "\n")
            return
        for name, facts in every.items():
            tasks = ", ".join(cast("dict[str, Any]", facts["tasks"]))
            console.print(f"[bold]{plain(name)}[/]  {facts['backbone']}, {facts['parameters']:,} parameters: {tasks}")
        console.print("Details: eutectic models NAME; fine-tune from it: eutectic finetune … --model NAME")
        return
    folder = model_folder(model)
    description = describe_model(load_model(folder))
    if as_json:
        sys.stdout.write(json.dumps(description, indent=1, ensure_ascii=False) + "\n")
        return
    show_facts({key: value for key, value in description.items() if key not in ("settings", "provenance", "tasks")})
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "predicts", "level of theory"):
        table.add_column(heading)
    for name, task in cast("dict[str, Any]", description["tasks"]).items():
        predicts = ", ".join(f"{one} ({unit})" for one, unit in task["properties"].items())
        table.add_row(plain(name), predicts, plain(task["level_of_theory"]))
    console.print(table)
    if (folder / CARD).is_file():
        from rich.markdown import Markdown

        console.print(Markdown((folder / CARD).read_text()))
