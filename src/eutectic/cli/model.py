"""Commands that use a model: predict, evaluate, models, import-jmp, import-fairchem."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.options import ELEMENTS, pairs
from eutectic.cli.show import console, plain, show_facts

if TYPE_CHECKING:
    from eutectic.checkpoints.imported import ImportReport


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
    _show_import(report, out)


@app.command("import-fairchem")
def import_fairchem(
    checkpoint: Annotated[
        Path, typer.Argument(help="`gemnet_oc_base_s2ef_all.pt`, or another GemNet-OC of fairchem 1.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; an older model is replaced.")],
    scales: Annotated[
        Path | None,
        typer.Option(help="File with the scale factors (.pt or .json), if the checkpoint does not have them."),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(help="oc20, oc22, oc20+oc22 or other, if the checkpoint does not show it."),
    ] = None,
) -> None:
    """Convert a checkpoint of the Open Catalyst Project's GemNet-OC, without executing any code in it.

    The model predicts what fairchem predicts from the file. Published checkpoints can also be given by name, and are
    downloaded: `eutectic models` lists them.

    **Examples**

    `eutectic import-fairchem gemnet_oc_base_s2ef_all_md.pt -o models/oc20`

    `eutectic import-fairchem old.pt --scales gemnet-oc.pt -o models/old`

    `eutectic predict models/oc20 surfaces.xyz -o predicted.xyz`
    """
    from eutectic.checkpoints.fairchem import read_fairchem_checkpoint
    from eutectic.checkpoints.model import save_model

    model, report = read_fairchem_checkpoint(checkpoint, scales=scales, trained_on=trained_on)
    console.print(f"licence: {model.provenance['licence']}", soft_wrap=True, highlight=False)
    save_model(out, model)
    _show_import(report, out)


def _show_import(report: ImportReport, out: Path) -> None:
    console.print(f"{report.size}, {report.parameters:,} parameters")
    for heading, rows in (("taken", report.taken), ("left", report.left), ("missing", report.missing)):
        console.print(f"[bold]{heading}[/]")
        show_facts(dict(rows))
    console.print(f"model: {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder or name of a model (`eutectic models`).")],
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
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Predict forces and stress as derivatives of the energy.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="Unit of the file's positions or cell, if that is not Å: positions=bohr; repeatable."),
    ] = None,
) -> None:
    """Predict energies, forces and the other properties of a task.

    The file written holds the structures as read, with the predictions added as `TASK_energy`, `TASK_forces`, …;
    labels are kept. It appears when it is complete, and replaces an older one then; until then, and after an
    interruption, what was predicted is in `NAME.partial.xyz`.

    A structure that cannot be predicted or read is reported, and the others are predicted. Exit status: 0 all
    predicted, 3 all but those reported, 1 none.

    **Examples**

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`

    `eutectic predict models/jmp-s my.xyz --task ani1x --conservative -o predicted.xyz`

    `eutectic predict runs/aspirin/model my.xyz --json > predicted.json`
    """
    from eutectic.checkpoints.model import load_model
    from eutectic.console import ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.files import JSONWriter, XYZWriter, check_output, predict_file, writing_predictions
    from eutectic.predict.prediction import relative_energies, task_of
    from eutectic.train.runtime.matmul import prefer_fast_matmul
    from eutectic.train.runtime.memory import keep_freed_memory
    from eutectic.train.runtime.stop import StopFlag

    if out is None and not as_json:
        raise EutecticError("predict", "no output for the predictions", "--out FILE.xyz, --json, or both", "give one")
    if out is not None:
        check_output(out, structures)
    replaced = out is not None and out.exists()
    trained = load_model(model)
    keep_freed_memory()
    prefer_fast_matmul(trained.module)
    selected = task_of(trained, task)
    note = None if normalised else relative_energies(trained, selected.name)
    names = dict.fromkeys([*selected.heads, *(("forces", "stress") if conservative else ())])
    json_writer = JSONWriter(sys.stdout.write, selected, names, normalised=normalised, note=note) if as_json else None
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag().listening())
        stream = None if out is None else stack.enter_context(writing_predictions(out))
        writers = [] if stream is None else [XYZWriter(stream, selected, normalised=normalised).add]
        bar = stack.enter_context(ProgressBar("predicting"))
        try:
            summary = predict_file(
                trained,
                selected.name,
                structures,
                [*writers, *([] if json_writer is None else [json_writer.add])],
                elements=parse_elements(elements),
                units=pairs(unit, "--unit", "positions=bohr"),
                batch_size=batch_size,
                normalised=normalised,
                conservative=conservative,
                stop=lambda: stop.raised,
                on_done=bar.advance,
            )
        except BaseException:
            if json_writer is not None:
                json_writer.close(complete=False)
            raise
    if json_writer is not None:
        json_writer.close(complete=True)
    else:
        where = f"{out} (an older file was replaced)" if replaced else f"{out}"
        words = f"{summary.predicted} structures, task {selected.name} ({selected.level_of_theory}): {where}"
        console.print(plain(words), soft_wrap=True)
        if note is not None:
            console.print(f"[yellow]energies are[/] {plain(note)}")
    for line in summary.lines():
        Console(stderr=True).print(f"[yellow]{plain(line)}[/]", soft_wrap=True, highlight=False)
    if summary.failed:
        raise typer.Exit(3)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model or a run, or `eutectic-small`.")],
    data: Annotated[
        list[str],
        typer.Argument(help="Labelled structures: name of a data set, a store, or a file that ASE reads; several."),
    ],
    property: Annotated[
        list[str] | None,
        typer.Option("--property", "-p", help="Property to compare; repeat. Default: all that both have."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the model; needed if there are several.")] = None,
    split: Annotated[str | None, typer.Option(help="Evaluate one part of the data in this split.")] = None,
    part: Annotated[str, typer.Option(help="With --split: `train`, `validation` or `test`.")] = "test",
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Forces and stress as derivatives of the energy.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", "-o", help="HTML page to write, with parity plots.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
    key: Annotated[
        list[str] | None, typer.Option(help="For a file: key of a property, as energy=E_dft; repeat.")
    ] = None,
    unit: Annotated[
        list[str] | None, typer.Option(help="For a file: unit of a property, as energy=kcal/mol; repeat.")
    ] = None,
    elements: Annotated[str | None, typer.Option(help=f"For a file. {ELEMENTS}")] = None,
    level_of_theory: Annotated[str, typer.Option(help="For a file: level of theory of its labels.")] = "not stated",
    skip_unconverged: Annotated[
        bool, typer.Option("--skip-unconverged", help="For a file: leave out calculations that did not converge.")
    ] = False,
) -> None:
    """Compare a model's predictions with labels: errors by property, data set, element and size.

    **Examples**

    `eutectic evaluate runs/mine test.xyz`

    `eutectic evaluate runs/mine 300K.xyz 600K.xyz -o test.html`

    `eutectic evaluate eutectic-small molecules --task molecules --split group --json`
    """
    from eutectic.cli.show import show_evaluation
    from eutectic.workflows import evaluate as run

    if part not in ("train", "validation", "test"):
        raise EutecticError("--part", repr(part), "train, validation or test", "choose one of these")
    result = run(
        model,
        data,
        property or (),
        task=task,
        split=split,
        part=cast(Any, part),
        conservative=conservative,
        batch_size=batch_size,
        report=report,
        console=Console(stderr=True),
        keys=pairs(key),
        units=pairs(unit, "--unit", "energy=kcal/mol"),
        elements=elements,
        level_of_theory=level_of_theory,
        skip_unconverged=skip_unconverged,
    )
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        show_evaluation(result)
        if report is not None:
            console.print(f"report: {report}", highlight=False)


@app.command()
def models(
    model: Annotated[
        Path | None, typer.Argument(help="Name or folder of a model; lists the names if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: everything but the weights.")] = False,
) -> None:
    """List the models that have a name, or show a model's tasks, training data and settings.

    Models in the package are there; published ones are downloaded when they are first named.

    **Examples**

    `eutectic models`

    `eutectic models eutectic-small`

    `eutectic models fairchem:gemnet-oc-oc20-all-md`

    `eutectic models runs/demo/model --json`
    """
    from eutectic.checkpoints.model import describe_model, load_model
    from eutectic.checkpoints.published import PUBLISHED
    from eutectic.checkpoints.shipped import CARD, PREFIX, model_folder, shipped_models

    if model is None:
        every = {name: describe_model(load_model(folder)) for name, folder in shipped_models().items()}
        if as_json:
            sys.stdout.write(json.dumps(every, indent=1, ensure_ascii=False) + "\n")
            return
        for name, facts in every.items():
            tasks = ", ".join(cast("dict[str, Any]", facts["tasks"]))
            console.print(f"[bold]{plain(name)}[/]  {facts['backbone']}, {facts['parameters']:,} parameters: {tasks}")
        console.print("Published, downloaded when first named:")
        for name, one in PUBLISHED.items():
            console.print(f"[bold]{PREFIX}{name}[/]  {plain(one.title)}: {one.about}")
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
