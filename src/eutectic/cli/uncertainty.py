"""How far to trust a model's predictions: `calibrate` adds uncertainties to a model, and `select` uses them to choose
the structures most worth labelling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.cli.options import ELEMENTS, pairs
from eutectic.cli.show import console, exit_if_left_out, plain, show_rows


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
    show_rows(("", "structure", "formula", f"uncertainty, {unit_}", "left", "times typical"), rows[:20])
    console.print(plain(f"{len(found)} of {summary.predicted} structures: {out}"), soft_wrap=True)
    exit_if_left_out(summary)
