"""Using a model on structures: `predict` writes its predictions, `evaluate` compares them with labels, and `distill`
stores them as labels for a faster model."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.options import ELEMENTS, pairs
from eutectic.cli.show import console, exit_if_left_out, plain, show_evaluation


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(help="Folder or name of a model (`eutectic models`), or a model of another package.")
    ],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task of the model; sets heads, graph and level of theory. Required if there are several."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: extended xyz, or .parquet, or .json.")
    ] = None,
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
        typer.Option(help="Unit of the file's positions or cell, if not Å: positions=bohr; repeatable."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda, cuda:1, …; repeat to run one process on each. Default: a GPU if available."),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the model first: 10 to 40 s, then up to 3 times as fast on a CPU."),
    ] = False,
) -> None:
    """Predict energies, forces and the other properties of a task.

    An extended xyz file holds the structures as read, with the predictions added as `TASK_energy`, `TASK_forces`, …;
    labels are kept. A model with calibrated uncertainties (`eutectic calibrate`) adds `TASK_energy_uncertainty`, a
    standard deviation. A Parquet or JSON file holds only the predictions, with units and the index of each structure.
    The file appears, and replaces an older one, when it is complete. Until then the predictions are in
    `NAME.partial.xyz` (`NAME.json.partial.jsonl`, `NAME.parquet.partial.jsonl`); after an interruption the same
    command continues from there. If the model, the input or an option has changed, it says so and starts again.

    A structure that cannot be read or predicted is reported, and the others are predicted. Exit status: 0 all
    predicted, 3 some could not be, 1 none.

    **Examples**

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`

    `eutectic predict models/jmp-s my.xyz --task ani1x --conservative -o predicted.xyz`

    `eutectic predict runs/aspirin/model my.xyz -o predicted.parquet`

    `eutectic predict runs/aspirin/model my.xyz --json > predicted.json`

    `eutectic predict sevennet:7net-0 my.xyz -o predicted.xyz`

    `eutectic predict eutectic-fast many.xyz --task molecules --compile -o predicted.xyz`

    `eutectic predict runs/mine my.xyz -o predicted.xyz --device cuda:0 --device cuda:1`
    """
    from eutectic.checkpoints.model import load_model
    from eutectic.checkpoints.shipped import model_folder
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.devices import devices_named
    from eutectic.predict.files import Summary, Write, about_how_many, predict_file
    from eutectic.predict.outputs import JSONWriter, check_output
    from eutectic.predict.prediction import Prediction, predicted_names, relative_energies, task_of
    from eutectic.predict.resume import Resumable, facts_of, resuming
    from eutectic.train.runtime.matmul import prefer_fast_matmul
    from eutectic.train.runtime.memory import keep_freed_memory
    from eutectic.train.runtime.stop import StopFlag

    if out is None and not as_json:
        raise EutecticError("predict", "no output for the predictions", "--out FILE.xyz, --json, or both", "give one")
    if out is not None:
        check_output(out, structures)
    replaced = out is not None and out.exists()
    devices = devices_named(device or ())
    folder = model_folder(model)
    trained = load_model(folder)
    keep_freed_memory()
    prefer_fast_matmul(trained.module)
    if len(devices) == 1:
        trained.module.to(devices[0])
    selected = task_of(trained, task)
    note = None if normalised else relative_energies(trained, selected.name)
    names = predicted_names(trained, selected, conservative)
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag().listening())
        writers: list[Write[Prediction]] = []
        printer = JSONWriter(sys.stdout.write, selected, names, normalised=normalised, note=note) if as_json else None
        stream: Resumable | None = None
        if printer is not None:
            writers.append(printer.add)
        if out is not None:
            facts = facts_of(
                folder,
                structures,
                task=selected.name,
                normalised=normalised,
                conservative=conservative,
                batch_size=batch_size,
                elements=elements,
                unit=" ".join(sorted(unit or ())),
                compile=compile,
            )
            written = resuming(out, selected, names, None if as_json else facts, normalised=normalised, note=note)
            stream, writer = stack.enter_context(written)
            writers.append(writer)
            if stream.said:
                Console(stderr=True).print(plain(stream.said), soft_wrap=True, highlight=False)
        if compile:
            Console(stderr=True).print(
                "compiling the model: the first predictions take up to a minute", highlight=False
            )
        summary = Summary() if stream is None else stream.summary
        total = about_how_many(structures)
        bar = stack.enter_context(ProgressBar("predicting", total, done=summary.structures, every=LINE_EVERY))
        try:
            if stream is None or not stream.complete:
                summary = predict_file(
                    trained,
                    selected.name,
                    structures,
                    writers,
                    elements=parse_elements(elements),
                    units=pairs(unit, "--unit", "positions=bohr"),
                    batch_size=batch_size,
                    normalised=normalised,
                    conservative=conservative,
                    compile=compile,
                    folder=folder,
                    devices=devices,
                    summary=summary,
                    after_window=(lambda summary: None) if stream is None else stream.save,
                    stop=lambda: stop.raised,
                    on_done=bar.advance,
                )
            if stream is not None:
                stream.save(summary, complete=True)
        except BaseException:
            if printer is not None:
                printer.close(complete=False)
            raise
        if printer is not None:
            printer.close(complete=True)
    if not as_json:
        where = f"{out} (an older file was replaced)" if replaced else f"{out}"
        words = f"{summary.predicted} structures, task {selected.name} ({selected.level_of_theory}): {where}"
        console.print(plain(words), soft_wrap=True)
        if note is not None:
            console.print(f"[yellow]energies are[/] {plain(note)}")
    exit_if_left_out(summary)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a model or a run, or `eutectic-small`.")],
    data: Annotated[
        list[str],
        typer.Argument(help="Labelled structures, one or more: a data set, a store, or a file that ASE reads."),
    ],
    property: Annotated[
        list[str] | None,
        typer.Option(
            "--property", "-p", help="Property to compare; repeat. Default: all that the model and the data share."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the model; required if there are several.")] = None,
    split: Annotated[str | None, typer.Option(help="Evaluate only one part of the data, in this split.")] = None,
    part: Annotated[str, typer.Option(help="With --split: `train`, `validation` or `test`.")] = "test",
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Predict forces and stress as derivatives of the energy.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", "-o", help="Write an HTML report with parity plots to this file.")
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
def distill(
    teacher: Annotated[
        Path, typer.Argument(help="Folder or name of a model (`eutectic models`), or a model of another package.")
    ],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Store to write.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task of the teacher; its predictions are the labels. Required if there are several."),
    ] = None,
    property: Annotated[
        list[str] | None, typer.Option("--property", "-p", help="Property to predict; repeat. Default: all.")
    ] = None,
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Predict forces and stress as derivatives of the energy.")
    ] = False,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
) -> None:
    """Write a store whose labels are a model's predictions, to train a faster model.

    The store's level of theory names the teacher. Existing labels of the structures are ignored.

    **Examples**

    `eutectic distill sevennet:7net-0 my.xyz -o stores/teacher`

    `eutectic finetune stores/teacher -p energy -p forces --out runs/student`, then with your labels
    `eutectic finetune my.xyz -p energy -p forces --model runs/student/model --head-from teacher --out runs/mine`
    """
    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.distillation import distil
    from eutectic.train.runtime.memory import keep_freed_memory

    keep_freed_memory()
    with ProgressBar("predicting", every=LINE_EVERY) as bar:
        written, left_out = distil(
            load_model(teacher),
            structures,
            out,
            name=str(teacher),
            task=task,
            properties=property or (),
            conservative=conservative,
            elements=parse_elements(elements),
            batch_size=batch_size,
            on_done=bar.advance,
        )
    console.print(f"{written:,} structures with predictions of {plain(str(teacher))}: {out}", highlight=False)
    if left_out:
        console.print(f"[yellow]left out: {len(left_out):,}[/]; the first: {plain(left_out[0])}", highlight=False)
