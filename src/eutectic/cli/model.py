"""Commands that use a model: predict, distill, evaluate, calibrate, select, push, embed, nearest, models, inspect,
diff, and imports."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
    from eutectic.predict.files import Summary


@app.command("import-jmp")
def import_jmp(
    checkpoint: Annotated[Path, typer.Argument(help="`jmp-s.pt`, `jmp-l.pt`, or another file with that layout.")],
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
        typer.Option(help="File with the scale factors (.pt or .json), if the checkpoint lacks them."),
    ] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(help="oc20, oc22, oc20+oc22 or other, if this cannot be inferred from the checkpoint."),
    ] = None,
) -> None:
    """Convert a checkpoint of the Open Catalyst Project's GemNet-OC, without executing any code in it.

    The model gives the same predictions as fairchem. Published checkpoints can also be given by name and are
    downloaded; `eutectic models` lists them.

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
            )
            written = resuming(out, selected, names, None if as_json else facts, normalised=normalised, note=note)
            stream, writer = stack.enter_context(written)
            writers.append(writer)
            if stream.said:
                Console(stderr=True).print(plain(stream.said), soft_wrap=True, highlight=False)
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
    _report(summary)


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


def _report(summary: Summary) -> None:
    """Report the structures that were left out, and exit with status 3 if there are any."""
    for line in summary.lines():
        Console(stderr=True).print(f"[yellow]{plain(line)}[/]", soft_wrap=True, highlight=False)
    if summary.failed:
        raise typer.Exit(3)


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
def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a model or its run; or the name of a model, with --out.")],
    data: Annotated[str, typer.Argument(help="Training data of the model: name of a data set, a store, or a file.")],
    held_out: Annotated[
        str | None,
        typer.Option(help="Structures not used in training. Default: the validation part of the data."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of a new model; default: update the model in place.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the model; required if there are several.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data; default: the data set's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
    key: Annotated[
        list[str] | None, typer.Option(help="For a file: key of a property, as energy=E_dft; repeat.")
    ] = None,
    unit: Annotated[
        list[str] | None, typer.Option(help="For a file: unit of a property, as energy=kcal/mol; repeat.")
    ] = None,
    elements: Annotated[str | None, typer.Option(help=f"For a file. {ELEMENTS}")] = None,
) -> None:
    """Calibrate uncertainties of energies and other scalars, which `predict` and `select` then use.

    `eutectic finetune` does this at the end of a run; this command is for older models and models given by name. The
    covariance of last-layer features is computed on the training structures, and calibrated with the errors on
    held-out structures (LLPR: last-layer Laplace, arXiv:2403.02251). Forces and other vectors get no uncertainties.

    **Examples**

    `eutectic calibrate runs/mine my.xyz`

    `eutectic calibrate runs/mine train.xyz --held-out validation.xyz`

    `eutectic calibrate eutectic-small molecules --task molecules -o models/small`
    """
    from eutectic.atoms import PROPERTIES
    from eutectic.report.formatting import significant
    from eutectic.workflows import calibrate as run

    reading: dict[str, Any] = {
        "keys": pairs(key),
        "units": pairs(unit, "--unit", "energy=kcal/mol"),
        "elements": elements,
    }
    found = run(
        model,
        data,
        held_out=held_out,
        out=out,
        task=task,
        split=split,
        batch_size=batch_size,
        console=Console(stderr=True),
        **{name: value for name, value in reading.items() if value},
    )
    for name, uncertainty in found.items():
        facts = uncertainty.facts
        console.print(
            f"{name.replace('_', ' ')}: typical uncertainty {significant(uncertainty.typical)} "
            f"{PROPERTIES[name].unit}, from {facts['trained_on']:,} training and {facts['calibrated_on']:,} held-out "
            "structures",
            highlight=False,
        )
    console.print(f"model: {out or model}", highlight=False)


@app.command()
def select(
    model: Annotated[Path, typer.Argument(help="Folder or name of a model with calibrated uncertainties.")],
    structures: Annotated[Path, typer.Argument(help="Structures to choose from: a file that ASE reads, or a store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Extended xyz file to write.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of structures to choose.")] = 20,
    task: Annotated[str | None, typer.Option(help="Task of the model; required if there are several.")] = None,
    property: Annotated[
        str | None,
        typer.Option("--property", "-p", help="Select by the uncertainty of this; default: energy, or the only one."),
    ] = None,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="Unit of the file's positions or cell, if not Å: positions=bohr; repeatable."),
    ] = None,
) -> None:
    """Choose the structures of a file that are most worth labelling.

    Structures are taken one by one by the largest uncertainty (per atom, for energies), assuming that those taken
    before will be labelled, which avoids choosing many similar ones. Each frame is written with `selected` (its
    rank), `index_in_pool`, `TASK_energy_uncertainty`, `…_left` (the uncertainty that remains once those before it are
    labelled) and `…_times_typical` (relative to the training structures: 1 is typical).

    **Examples**

    `eutectic select runs/mine pool.xyz -n 20 -o chosen.xyz`

    `eutectic select runs/mine trajectory.traj -n 50 -p energy -o chosen.xyz`
    """
    from io import StringIO

    from ase.io import write as write_atoms

    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.outputs import check_output, writing_predictions
    from eutectic.predict.selection import notes_of, select_file, uncertain_property
    from eutectic.report.drawing import formula
    from eutectic.report.formatting import significant
    from eutectic.train.runtime.stop import StopFlag

    if out.suffix not in (".xyz", ".extxyz"):
        raise EutecticError(f"--out {out}", f"the name {out.name}", "a name that ends in .xyz", "rename it")
    check_output(out, structures)
    trained = load_model(model)
    chosen, name, _ = uncertain_property(trained, task, property)
    with StopFlag().listening() as stop, ProgressBar("predicting", every=LINE_EVERY) as bar:
        found, summary = select_file(
            trained,
            structures,
            count,
            task=chosen.name,
            property=name,
            batch_size=batch_size,
            elements=parse_elements(elements),
            units=pairs(unit, "--unit", "positions=bohr"),
            stop=lambda: stop.raised,
            on_done=bar.advance,
        )
    rows = []
    with writing_predictions(out) as stream:
        for rank, pick in enumerate(found, 1):
            atoms, structure = pick.read.atoms, pick.read.structure
            assert atoms is not None
            assert structure is not None
            copy = atoms.copy()
            copy.calc = atoms.calc
            copy.info |= notes_of(chosen, name, pick, rank)
            text = StringIO()
            write_atoms(text, copy, format="extxyz")
            stream.write(text.getvalue())
            numbers = (significant(pick.sigma), significant(pick.left), f"{pick.times_typical:.2f}")
            rows.append((str(rank), str(pick.read.index), formula(structure), *numbers))
    unit_ = chosen.property(name).unit
    _show_rows(("", "structure", "formula", f"uncertainty, {unit_}", "left", "times typical"), rows[:20])
    console.print(plain(f"{len(found)} of {summary.predicted} structures: {out}"), soft_wrap=True)
    _report(summary)


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


@app.command()
def embed(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Parquet file to write.")] = None,
    per: Annotated[
        str, typer.Option(help="One embedding per `structure` (mean over atoms) or per `atom`.")
    ] = "structure",
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", help="Write a map of the embeddings: a page (.html), or chemiscope input (.json, .json.gz)."
        ),
    ] = None,
    points: Annotated[int, typer.Option(min=2, help="Maximum number of points in the map, drawn at random.")] = 3000,
    task: Annotated[str | None, typer.Option(help="Use this task's graph settings instead of the model's.")] = None,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
) -> None:
    """Embed structures or atoms: the invariant features of the model's backbone.

    The Parquet file has the columns `structure` (index in the file), `n_atoms` (or `atom` and `number`) and
    `embedding`. It appears when it is complete; until then, and after an interruption, the embeddings are in
    `NAME.partial.parquet`. A map shows principal components, and UMAP if the package umap-learn is installed.

    **Examples**

    `eutectic embed eutectic-small my.xyz -o embeddings.parquet --map map.html`

    `eutectic embed eutectic-small qm9_sample --map map.json.gz`

    `eutectic embed runs/mine my.xyz --per atom -o atoms.parquet`
    """
    from typing import get_args

    import numpy as np

    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.data.formats.elements import parse as parse_elements
    from eutectic.predict.embedding import MapSample, Per, embed_file, graph_of, table_schema, table_writer
    from eutectic.predict.files import Write, about_how_many
    from eutectic.predict.outputs import check_output, writing_table
    from eutectic.report.map_page import FORMATS, write_map
    from eutectic.train.runtime.stop import StopFlag

    if out is None and map_ is None:
        raise EutecticError("embed", "nothing to write", "--out FILE.parquet, --map FILE, or both", "give one")
    for option, path, endings in (("--out", out, [".parquet"]), ("--map", map_, list(FORMATS))):
        if path is None:
            continue
        if not path.name.endswith(tuple(endings)):
            raise EutecticError(
                f"{option} {path}", f"the name {path.name}", f"a name that ends in {' or '.join(endings)}", "rename it"
            )
        check_output(path, structures)
    if per not in get_args(Per):
        raise EutecticError("--per", repr(per), "structure or atom", "choose one of these")
    chosen = cast(Per, per)
    trained = load_model(model)
    graph = graph_of(trained, task)
    width = trained.module.backbone.atom_width
    sample = None if map_ is None else MapSample(points)
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag().listening())
        writers: list[Write[np.ndarray]] = [] if sample is None else [sample.add]
        if out is not None:
            schema = table_schema(width, chosen, model=str(model), source=str(structures), task=task or "")
            writers.append(table_writer(stack.enter_context(writing_table(out, schema)), chosen))
        bar = stack.enter_context(ProgressBar("embedding", about_how_many(structures), every=LINE_EVERY))
        summary = embed_file(
            trained,
            structures,
            writers,
            per=chosen,
            task=task,
            batch_size=batch_size,
            elements=parse_elements(elements),
            stop=lambda: stop.raised,
            on_done=bar.advance,
        )
    written = [str(path) for path in (out, map_) if path is not None]
    if sample is not None and map_ is not None:
        write_map(map_, sample, model=str(model), source=structures.name, cutoff=graph.cutoff)
    console.print(
        plain(f"{summary.predicted} structures, {width} features per {per}: {', '.join(written)}"), soft_wrap=True
    )
    _report(summary)


@app.command()
def nearest(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    query: Annotated[Path, typer.Argument(help="File with the query structures.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads, or the path or name of a store.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Number of neighbours per query.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    task: Annotated[str | None, typer.Option(help="Use this task's graph settings instead of the model's.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch.")] = 32,
) -> None:
    """Find the structures of a file or store whose embeddings are nearest to those of query structures.

    Distances are Euclidean, also given relative to the spread of the file (the root mean square distance of its
    structures from their mean): 0 for the same structure, more than 1 for one unlike any other.

    **Examples**

    `eutectic nearest eutectic-small query.xyz qm9_sample`

    `eutectic nearest runs/mine query.xyz train.xyz -k 10 --json`
    """
    import numpy as np

    from eutectic.checkpoints.model import load_model
    from eutectic.console import LINE_EVERY, ProgressBar
    from eutectic.predict.embedding import Nearest, embed_file
    from eutectic.predict.files import Read
    from eutectic.report.drawing import formula
    from eutectic.train.runtime.stop import StopFlag

    trained = load_model(model)
    queries: list[tuple[Read, np.ndarray]] = []

    def note(read: Read, outcome: np.ndarray | EutecticError) -> None:
        if isinstance(outcome, EutecticError):
            raise outcome
        queries.append((read, outcome))

    with StopFlag().listening() as stop:
        embed_file(trained, query, [note], task=task, batch_size=batch_size, stop=lambda: stop.raised)
        search = Nearest(np.stack([embedding for _, embedding in queries]), count)
        with ProgressBar("searching", every=LINE_EVERY) as bar:
            summary = embed_file(
                trained,
                structures,
                [search.add],
                task=task,
                batch_size=batch_size,
                stop=lambda: stop.raised,
                on_done=bar.advance,
            )
    spread = search.moments.spread
    rows = [
        {
            "query": read.index,
            "structure": neighbour.index,
            "formula": formula(neighbour.structure),
            "distance": neighbour.distance,
            "relative_distance": neighbour.distance / spread if spread else None,
        }
        for (read, _), found in zip(queries, search.found, strict=True)
        for neighbour in found
    ]
    if as_json:
        sys.stdout.write(json.dumps({"spread": spread, "neighbours": rows}, indent=1) + "\n")
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("query", "structure", "formula", "distance", "distance / spread"):
            table.add_column(heading, justify="left" if heading == "formula" else "right")
        for row in rows:
            relative = "–" if row["relative_distance"] is None else f"{row['relative_distance']:.3f}"
            table.add_row(
                str(row["query"]), str(row["structure"]), str(row["formula"]), f"{row['distance']:.4g}", relative
            )
        console.print(table)
    for line in summary.lines():
        Console(stderr=True).print(f"[yellow]{plain(line)}[/]", soft_wrap=True, highlight=False)


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
        console.print("Published, downloaded on first use:")
        for name, published in PUBLISHED.items():
            console.print(f"[bold]{PREFIX}{name}[/]  {plain(published.title)}: {published.about}")
        console.print("Details: eutectic models NAME; fine-tune from one: eutectic finetune … --model NAME")
        return
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
    _show_rows(
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
    _show_rows(
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
    _show_rows(
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
    _show_rows(
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
    _show_rows(
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


def _show_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, or nothing if it has no rows."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(plain, row))
    console.print()
    console.print(table)
