"""The command line: thin, over the same typed settings as the Python API."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import eutectic
from eutectic.atoms import EutecticError, Interrupted

if TYPE_CHECKING:
    from eutectic.data.doctor import Report
    from eutectic.train.settings import PretrainSettings

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="eutectic",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=True,
    pretty_exceptions_show_locals=False,
    help="Joint multi-domain pre-training of atomistic models, and fine-tuning to any atomic property.",
)
data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="List, prepare, inspect, check and generate data."
)
app.add_typer(data_app, name="data")

console = Console()


def main() -> None:
    """Entry point: errors a user can put right are printed in four parts, without a traceback."""
    try:
        app()
    except EutecticError as error:
        _fail(error)
    except OSError as error:
        # A full or read-only disk can strike at any write; finished work is on disk and resumes.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        _fail(
            EutecticError(
                str(error.filename or "a file"),
                f"{error.strerror}",
                "a place with room, and the right to read and write there",
                "free some space or choose another --out, then run the same command again: finished work is kept",
            )
        )
    except Interrupted as stop:
        Console(stderr=True).print(f"[yellow]stopped[/] {_plain(stop.resume)}")
        sys.exit(130)


def _fail(error: EutecticError, status: int = 1) -> NoReturn:
    out = Console(stderr=True)
    # A path stays in one piece, for copying.
    out.print(f"[bold red]error[/] in {_plain(error.where)}", soft_wrap=True, highlight=False)
    for label, text in (("given", error.given), ("expected", error.expected), ("what to do", error.fix)):
        out.print(f"  [bold]{label:<11}[/]{_plain(text)}", soft_wrap=True, highlight=False)
    sys.exit(status)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _version(asked: bool) -> bool:
    if asked:
        console.print(eutectic.__version__)
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--train.steps 60 --temperature=1` → {"train": {"steps": 60}, "temperature": 1}; values are read as YAML.

    Raises:
        EutecticError: an argument that is not of this form.
    """
    import yaml

    tree: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key or (not equals and not rest):
            raise EutecticError(
                "command line", f"{word!r}", "settings as --section.key value", "see the command's --help"
            )
        try:
            parsed = yaml.safe_load(value if equals else rest.pop(0))
        except yaml.YAMLError as error:
            raise EutecticError("command line", f"the value of --{key}: {error}", "a YAML value", "quote it") from error
        if isinstance(parsed, str):
            # YAML 1.1 reads 1e-3 as a string.
            with suppress(ValueError):
                parsed = float(parsed)
        branch = tree
        *sections, leaf = key.split(".")
        for section in sections:
            branch = branch.setdefault(section.replace("-", "_"), {})
        branch[leaf.replace("-", "_")] = parsed
    return tree


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `values`, section by section."""
    result = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], change)
        else:
            result[key] = change
    return result


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise EutecticError(
            str(path), f"cannot be read ({error})", "a YAML file of settings", "check the file"
        ) from error
    if not isinstance(values, dict):
        raise EutecticError(
            str(path), f"a {type(values).__name__}", "a mapping of settings", "see `eutectic pretrain --help`"
        )
    return values


@app.command(context_settings=OVERRIDES)
def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (`demo`), or a YAML file of settings.")],
    out: Annotated[Path, typer.Option(help="The run's folder. One that holds this run unfinished is resumed.")],
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print the resolved settings and stop.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(help="Folder of a finished model to add the recipe's sets to; its own sets are watched."),
    ] = None,
    loggers: Annotated[
        list[str] | None,
        typer.Option("--loggers", help="csv, tensorboard, wandb; repeat. csv and tensorboard if not given."),
    ] = None,
) -> None:
    """Train one backbone on several data sets at once.

    Any setting is changed by `--section.key value`. While it runs, `report.html` in its folder shows it.

    **Examples**

    `eutectic pretrain demo --out runs/demo`

    `eutectic pretrain demo --train.steps 60 --train.processes 1 --out runs/short`

    `eutectic pretrain demo --show-settings --out - > my.yaml; eutectic pretrain my.yaml --out runs/mine`

    `eutectic pretrain my.yaml --batching.by cost --batching.atoms 2000 --loggers csv --out runs/by-cost`

    `eutectic pretrain new-set.yaml --start runs/demo/model --out runs/added`
    """
    from eutectic.evaluate.run_page import write_run_page
    from eutectic.recipes.comparison import environment
    from eutectic.recipes.demonstration import pretraining_summary
    from eutectic.train.launch import is_first
    from eutectic.train.pretrain import pretrain as run

    changes = overrides(context.args)
    if start is not None:
        changes["start"] = str(start)
    if loggers:
        changes["loggers"] = loggers
    settings = _pretraining(recipe, changes)
    if show_settings:
        import yaml

        sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    result = run(settings, out, console=console, page=write_run_page)
    if not is_first():
        return
    (out / "results.json").write_text(json.dumps(dict(result.summary), indent=1))
    page = write_run_page(out, pretraining=pretraining_summary(settings, result), environment=environment())
    console.print(f"model: {result.model}\nreport: {page}")


def _pretraining(recipe: str, changes: dict[str, Any]) -> PretrainSettings:
    """The settings of a recipe or a file, with changes laid over them."""
    from eutectic.recipes import RECIPES
    from eutectic.train.settings import PretrainSettings, parse

    if recipe in RECIPES:
        values = RECIPES[recipe]().model_dump(mode="json")
    elif Path(recipe).suffix in (".yaml", ".yml", ".json"):
        values = _read_yaml(Path(recipe))
    else:
        raise EutecticError(
            "recipe",
            repr(recipe),
            f"one of {', '.join(RECIPES)}, or a .yaml file",
            "see `eutectic pretrain --help`",
        )
    return parse(PretrainSettings, merged(values, changes), f"settings of {recipe!r}")


@app.command(context_settings=OVERRIDES)
def plan(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file of settings.")],
    gpus: Annotated[int, typer.Option(help="GPUs that share each step.")] = 8,
    peak_tflops: Annotated[float, typer.Option(help="Of a GPU, at the precision of the matrix products.")] = 312.0,
    efficiency: Annotated[float, typer.Option(help="Part of that peak that training reaches.")] = 0.05,
    launch_ms: Annotated[float, typer.Option(help="What a step takes at least, to launch its kernels.")] = 30.0,
    memory_gb: Annotated[float, typer.Option(help="Of a GPU.")] = 80.0,
    link_gb_s: Annotated[float, typer.Option(help="Bandwidth of each GPU to the others, GB/s.")] = 25.0,
    strategy: Annotated[str | None, typer.Option(help="`ddp` or `fsdp`; as in train.strategy if not given.")] = None,
    price: Annotated[float, typer.Option(help="Of a GPU-hour, $.")] = 2.0,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="A set that is not here, as name=structures,mean atoms; repeat."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What a pre-training would take, on this machine and on a cluster, without training.

    The work of a step is counted on typical structures (for sets that are not here, on others in their place), and
    everything that is assumed is said. Any setting is changed by `--section.key value`.

    **Examples**

    `eutectic plan demo`

    `eutectic plan my.yaml --gpus 64 --efficiency 0.2 --price 1.5 --train.batch_size 1024 --json`

    `eutectic plan my.yaml --size my_set=5e6,40`
    """
    from eutectic.train.display import progress_bar
    from eutectic.train.plan import Cluster, known_sizes, plan_cluster
    from eutectic.train.settings import parse

    settings = _pretraining(recipe, overrides(context.args))
    given: dict[str, Any] = {"gpus": gpus, "peak_tflops": peak_tflops, "efficiency": efficiency, "launch_ms": launch_ms}
    given |= {"memory_gb": memory_gb, "link_gb_s": link_gb_s, "price": price}
    given["strategy"] = strategy or ("fsdp" if settings.train.strategy == "fsdp" else "ddp")
    cluster = parse(Cluster, given, "plan")
    err = Console(stderr=True)
    with progress_bar(err, disable=not err.is_terminal) as bar:
        counting = bar.add_task("counting", total=len(settings.sets) + 1, note="")
        made = plan_cluster(
            settings,
            cluster,
            sizes=known_sizes(size or ()),
            progress=lambda what: bar.update(counting, advance=1, note=what),
        )
    if as_json:
        sys.stdout.write(json.dumps(made.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        made.show(console)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a pre-training: running, killed or finished.")],
) -> None:
    """Draw a run anew from what is in its folder.

    **Example:** `eutectic report runs/demo`
    """
    from eutectic.evaluate.run_page import write_run_page

    console.print(f"report: {write_run_page(folder)}")


@app.command(context_settings=OVERRIDES)
def finetune(
    context: typer.Context,
    store: Annotated[str, typer.Argument(help="Name of an embedded set, or a store made by `eutectic data prepare`.")],
    out: Annotated[Path, typer.Option(help="The run's folder. One that holds this run unfinished is resumed.")],
    property: Annotated[
        list[str],
        typer.Option("--property", "-p", help="What to learn; repeat for several. The first, or forces, is judged."),
    ],
    start: Annotated[str, typer.Option(help="`pretrained`, `scratch`, or `both` for a comparison.")] = "pretrained",
    model: Annotated[
        Path | None,
        typer.Option(help="Pre-trained model: `eutectic-small`, or a folder. A start from scratch takes its size."),
    ] = None,
    train: Annotated[int | None, typer.Option(help="Training structures; all of the split's if not given.")] = None,
    validation: Annotated[int | None, typer.Option(help="Validation structures.")] = None,
    test: Annotated[int | None, typer.Option(help="Test structures.")] = None,
    split: Annotated[str | None, typer.Option(help="Split by name; the data set's default if not given.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of every run.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Structures per step.")] = 16,
    seeds: Annotated[int, typer.Option(help="Runs of each start.")] = 1,
    rate: Annotated[
        list[float] | None,
        typer.Option("--rate", help="Peak learning rate; several are swept for each start on validation data."),
    ] = None,
    decay: Annotated[
        list[float] | None, typer.Option("--decay", help="Weight decay; several are swept together with the rates.")
    ] = None,
    forces: Annotated[str, typer.Option(help="`direct`, or `gradient` of the energy (conservative).")] = "direct",
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core if not given.")] = None,
) -> None:
    """Fine-tune to a property, from a pre-trained backbone, from scratch, or both.

    Any other setting is changed by `--section.key value`, e.g. `--optimiser.weight_decay 0`.

    **Examples**

    `eutectic finetune md_aspirin -p forces --model eutectic-small --train 100 --out runs/aspirin`

    `eutectic finetune md_aspirin -p forces --model eutectic-small --head-from molecules --out runs/kept`

    `eutectic data prepare rmd17 --molecule ethanol --source rmd17.tar.bz2 --store stores/ethanol`

    `eutectic finetune stores/ethanol -p forces --split official_01 --train 50 --start both --seeds 3
    --model eutectic-small --rate 1e-3 --rate 3e-3 --out runs/ethanol`
    """
    from eutectic.data.catalogue import open_store
    from eutectic.evaluate.comparison import DemoResults, Start, varied
    from eutectic.evaluate.report import write_finetune_report
    from eutectic.evaluate.table import comparison_table
    from eutectic.recipes.comparison import (
        FINETUNING_OPTIMISER,
        announce,
        best_choices,
        compare,
        environment,
        sweep,
        target_of,
    )
    from eutectic.train.settings import FinetuneSettings, parse

    if start not in ("pretrained", "scratch", "both"):
        raise EutecticError("--start", repr(start), "pretrained, scratch or both", "choose one of these")
    if forces not in ("direct", "gradient"):
        raise EutecticError("--forces", repr(forces), "direct or gradient", "choose one of these")
    if start != "scratch" and model is None:
        raise EutecticError(
            "--model",
            "nothing",
            f"a pre-trained model, for --start {start}",
            "pass --model eutectic-small, which comes with the package, or the model of a pre-training of your own",
        )
    from eutectic.atoms import PROPERTIES

    known = [p for p in property if p in PROPERTIES]
    if len(known) < len(property):
        import difflib

        wrong = next(p for p in property if p not in PROPERTIES)
        near = difflib.get_close_matches(wrong, PROPERTIES, 1)
        raise EutecticError(
            "--property",
            repr(wrong),
            f"one of {', '.join(PROPERTIES)}",
            f"did you mean {near[0]!r}?" if near else "choose one of these",
        )
    how = cast(Literal["direct", "gradient"], forces)
    names = list(dict.fromkeys([*property, *(["energy"] if "forces" in property and forces == "gradient" else [])]))
    name = Path(store).name
    values: dict[str, Any] = {
        "name": name,
        "data": {"store": store, "split": split, "train": train, "validation": validation, "test": test},
        "targets": {p: target_of(p, forces=how).model_dump(mode="json") for p in names},
        "start": "scratch",
        "train": {
            "steps": steps,
            "batch_size": batch_size,
            "evaluate_every": max(1, steps // 10),
            "threads": 1,
        },
        "optimiser": FINETUNING_OPTIMISER.model_dump(),
    }
    base = parse(FinetuneSettings, merged(values, overrides(context.args)), "settings")
    starts: tuple[Start, ...] = ("scratch", "pretrained") if start == "both" else (cast(Start, start),)
    grid = [
        {"learning_rate": r, "weight_decay": d}
        for d in (decay or [base.optimiser.weight_decay])
        for r in (rate or [base.optimiser.learning_rate])
    ]
    announce(base, model, starts, console)
    trials = {}
    chosen: dict[str, Mapping[str, float]] = dict.fromkeys(starts, grid[0])
    if len(grid) > 1:
        trials = sweep([base], model, grid, out / "choices", starts=starts, workers=workers, console=console)
        chosen = best_choices(trials[name])
        for s, c in chosen.items():
            console.print(f"chosen on validation data, {s}: " + ", ".join(f"{k} {v:g}" for k, v in c.items()))
    title = f"{name}, {' and '.join(property)}"
    tasks = compare(
        [(base, title)],
        model,
        {base.name: chosen},
        out / "runs",
        seeds=range(seeds),
        starts=starts,
        trials=trials,
        workers=workers,
        console=console,
    )
    results = DemoResults(
        tasks=tasks,
        pretraining=None,
        settings={"finetune": {**base.model_dump(mode="json"), "chosen": {s: dict(c) for s, c in chosen.items()}}},
        times={"finetuning_seconds": round(sum(r.seconds for t in tasks for r in t.runs), 1)},
        environment=environment(),
    )
    results.write(out / "results.json")
    examples = open_store(store)
    write_finetune_report(
        out / "report.html",
        tasks[0],
        settings=results.settings,
        times=results.times,
        environment=results.environment,
        examples=[examples[i].structure for i in varied(examples)],
    )
    console.print(comparison_table(results))
    console.print(f"models: {out / 'runs' / name}\nreport: {out / 'report.html'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration; an interrupted one goes on.")] = Path(
        "demo-output"
    ),
    steps: Annotated[int | None, typer.Option(help="Pre-training steps; the recipe's if not given.")] = None,
    finetune_steps: Annotated[
        int | None, typer.Option(help="Fine-tuning steps of every run; the recipe's if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each start.")] = 3,
    workers: Annotated[int, typer.Option(help="Processes for pre-training and for fine-tuning.")] = 2,
) -> None:
    """Four domains, one backbone, five tasks it never saw: pre-trained against from scratch, in about ten minutes.

    Writes `results.json` and `report.html`.

    **Examples**

    `eutectic demo`

    `eutectic demo --steps 60 --finetune-steps 20 --seeds 1 --out quick-look`
    """
    from eutectic.data.catalogue import open_store
    from eutectic.evaluate.comparison import varied
    from eutectic.evaluate.report import write_demo_report
    from eutectic.evaluate.table import comparison_table
    from eutectic.recipes.demonstration import TASKS, run_demo
    from eutectic.recipes.demonstration import demo as recipe

    settings = recipe(processes=workers) if steps is None else recipe(steps=steps, processes=workers)
    tasks = TASKS if finetune_steps is None else [dataclasses.replace(t, steps=finetune_steps) for t in TASKS]
    results = run_demo(out, settings=settings, seeds=range(seeds), tasks=tasks, workers=workers, console=console)
    results.write(out / "results.json")
    stores = {task.name: open_store(task.store) for task in tasks}
    examples = {name: [store[i].structure for i in varied(store)] for name, store in stores.items()}
    write_demo_report(out / "report.html", results, examples)
    console.print(comparison_table(results))
    console.print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="A step that was kept: RUN/bad-steps/step-000123.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines, to standard output.")] = False,
    rows: Annotated[int, typer.Option(help="Structures to show.")] = 10,
) -> None:
    """Compute a step again that had no finite loss or gradient: which structure was it, and where in the model.

    Such steps are skipped, and the first few of a run are kept whole.

    **Examples**

    `eutectic replay runs/demo/bad-steps/step-000123`

    `eutectic replay runs/demo/bad-steps/step-000123 --json > step.json`
    """
    from eutectic.train.bad_step import replay as compute
    from eutectic.train.display import progress_bar

    err = Console(stderr=True)
    with progress_bar(err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("replay", total=None, note="")
        found = compute(folder, progress=lambda done, n: progress.update(bar, completed=done, total=n))
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return
    console.print(
        f"step {found.step}: loss {found.loss:.6g} (then: {found.recorded_loss:.6g}), "
        f"norm of the gradient {found.gradient_norm:.4g}",
        highlight=False,
    )
    table = Table(title="structures, suspicious ones first", title_justify="left", box=None, pad_edge=False)
    for heading in ("set", "id", "formula", "atoms", "loss", "gradient", "what is wrong"):
        table.add_column(heading, justify="right" if heading in ("atoms", "loss", "gradient") else "left")
    for row in found.structures[:rows]:
        numbers = (f"{row.n_atoms}", f"{row.loss:.4g}", f"{row.gradient_norm:.4g}")
        table.add_row(row.task, _plain(row.id), row.formula, *numbers, _plain("; ".join(row.problems)))
    console.print(table)
    table = Table(title="norm of the gradient by module", title_justify="left", box=None, pad_edge=False)
    table.add_column("module")
    table.add_column("norm", justify="right")
    for name, norm in found.gradient_norms.items():
        table.add_row(name, f"{norm:.4g}")
    console.print(table)


@app.command("import-jmp")
def import_jmp(
    checkpoint: Annotated[Path, typer.Argument(help="`jmp-s.pt`, `jmp-l.pt`, or another file of that layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model to make; an older one is replaced.")],
    raw: Annotated[bool, typer.Option("--raw", help="The weights of the last step, not their moving average.")] = False,
) -> None:
    """Make a model of the original's pre-trained checkpoint; nothing in that file is run.

    **Examples**

    `eutectic import-jmp jmp-s.pt -o models/jmp-s`

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`
    """
    from eutectic.tasks.folder import save_model
    from eutectic.tasks.published_checkpoint import read_published_checkpoint

    model, report = read_published_checkpoint(checkpoint, raw=raw)
    save_model(out, model)
    console.print(f"{report.size}, {report.parameters:,} parameters")
    for heading, rows in (("taken", report.taken), ("left", report.left), ("missing", report.missing)):
        console.print(f"[bold]{heading}[/]")
        _show(dict(rows))
    console.print(f"model: {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or `eutectic-small`.")],
    structures: Annotated[Path, typer.Argument(help="A file that ASE reads.")],
    task: Annotated[str, typer.Option(help="Which of the model's tasks: decides heads, graph and level of theory.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Extended xyz to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines, to standard output.")] = False,
    normalised: Annotated[
        bool, typer.Option("--normalised", help="Model units, without scales and reference energies.")
    ] = False,
    conservative: Annotated[
        bool, typer.Option("--conservative", help="Forces and stress as derivatives of the energy.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Structures at a time.")] = 32,
) -> None:
    """Energies, forces and whatever else a task has, for structures without labels.

    The written file holds what was read and, beside it, `TASK_energy`, `TASK_forces`, …: labels stay as they are.

    **Examples**

    `eutectic predict models/jmp-s my.xyz --task oc20 -o predicted.xyz`

    `eutectic predict models/jmp-s my.xyz --task ani1x --conservative -o predicted.xyz`

    `eutectic predict runs/aspirin/model my.xyz --task md_aspirin --json > predicted.json`
    """
    from eutectic.evaluate import prediction as made
    from eutectic.models.memory import keep_freed_memory
    from eutectic.models.products import prefer_fast_products
    from eutectic.tasks.folder import load_model

    if out is None and not as_json:
        raise EutecticError("predict", "nowhere to put predictions", "--out FILE.xyz, --json, or both", "give one")
    trained = load_model(model)
    keep_freed_memory()
    prefer_fast_products(trained.module)
    asked = made.task_of(trained, task)
    atoms, inputs = made.read_structures(structures)
    err = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
        console=err,
        disable=not err.is_terminal or len(inputs) <= batch_size,
    ) as bar:
        row = bar.add_task("predicting", total=len(inputs))
        predictions = made.predict(
            trained,
            task,
            inputs,
            batch_size=batch_size,
            normalised=normalised,
            conservative=conservative,
            on_done=lambda structures: bar.advance(row, structures),
        )
    note = None if normalised else made.relative_energies(trained, task)
    if out is not None:
        made.write_predictions(out, atoms, predictions, asked, normalised=normalised)
    if as_json:
        sys.stdout.write(made.as_json(predictions, asked, normalised=normalised, note=note) + "\n")
    else:
        console.print(f"{len(predictions)} structures, task {task} ({_plain(asked.theory)}): {out}")
        if note is not None:
            console.print(f"[yellow]energies are[/] {_plain(note)}")


@app.command()
def models(
    model: Annotated[
        Path | None, typer.Argument(help="Name or folder of one; all that are shipped if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: everything, weights aside.")] = False,
) -> None:
    """Models that come with the package; or what one is, was trained on, and can predict.

    **Examples**

    `eutectic models`

    `eutectic models eutectic-small`

    `eutectic models runs/demo/model --json`
    """
    from eutectic.tasks.folder import describe_model, load_model
    from eutectic.tasks.shipped import CARD, model_folder, shipped_models

    if model is None:
        every = {name: describe_model(load_model(folder)) for name, folder in shipped_models().items()}
        if as_json:
            sys.stdout.write(json.dumps(every, indent=1, ensure_ascii=False) + "\n")
            return
        for name, told in every.items():
            tasks = ", ".join(cast("dict[str, Any]", told["tasks"]))
            console.print(f"[bold]{_plain(name)}[/]  {told['backbone']}, {told['parameters']:,} parameters: {tasks}")
        console.print("More of one: eutectic models NAME; fine-tune from it: eutectic finetune … --model NAME")
        return
    folder = model_folder(model)
    told = describe_model(load_model(folder))
    if as_json:
        sys.stdout.write(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        return
    _show({key: value for key, value in told.items() if key not in ("settings", "provenance", "tasks")})
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "predicts", "level of theory"):
        table.add_column(heading)
    for name, task in cast("dict[str, Any]", told["tasks"]).items():
        predicts = ", ".join(f"{one} ({unit})" for one, unit in task["properties"].items())
        table.add_row(_plain(name), predicts, _plain(task["theory"]))
    console.print(table)
    if (folder / CARD).is_file():
        from rich.markdown import Markdown

        console.print(Markdown((folder / CARD).read_text()))


@data_app.command("list")
def data_list(as_json: Annotated[bool, typer.Option("--json", help="For machines: everything.")] = False) -> None:
    """Every data set the commands know: those that come with the package, and those that `prepare` makes.

    `--json` has also citations, notes, and the files that `prepare` fetches.

    **Examples**

    `eutectic data list`

    `eutectic data list --json`
    """
    from eutectic.data.catalogue import families, listing

    rows = listing()
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
        return
    for name, members in families(rows).items():
        ready = [member for member in members if member.structures is not None]
        if len(members) > 1:
            # One entry for the molecules of rMD17, and the like.
            state, title = f"{len(ready)} of {len(members)} prepared", ", ".join(m.name for m in members)
        else:
            (one,) = members
            state = f"{one.structures:,} structures, {(one.size_bytes or 0) / 1e6:,.1f} MB" if ready else "to prepare"
            title = one.title
        labels = list(dict.fromkeys(label for member in members for label in member.properties))
        brief = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
        words = {"domain": "domain", "theory": "level of theory", "licence": "licence", "source": "source"}
        about = [_shared([getattr(member, what) for member in members], word) for what, word in words.items()]
        about[2] = about[2].replace("not stated", "licence not stated")
        console.print(f"[bold]{_plain(name)}[/]  {state}", highlight=False)
        for line in (title, " · ".join(filter(None, [brief or "the labels it finds", *about]))):
            console.print(Padding(_plain(line), (0, 0, 0, 4), expand=False), highlight=False)


def _shared(values: Sequence[str], what: str) -> str:
    """What all have, or the two that there are; of addresses, the folder that they share."""
    distinct = list(dict.fromkeys(values))
    folders = {value.rpartition("/")[0] for value in distinct}
    if len(distinct) > 1 and len(folders) == 1 and "/" in distinct[0]:
        return f"{folders.pop()}/…"
    return " or ".join(distinct) if len(distinct) <= 2 else f"{what} differs"


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str, typer.Argument(help="Data set, as `eutectic data list` names it; `ase` or `records` for your own files.")
    ],
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of the store to make; without it, a place where its name finds it again."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="Published files: a file, folder or archive; downloaded if not given, where that is allowed."
        ),
    ] = None,
    molecule: Annotated[str | None, typer.Option(help="Of rmd17: which molecule; the same as rmd17:MOLECULE.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Of ase, records: which entry holds a property, as property=key; repeat. Of records also "
            "numbers=…, positions=…, cell=…, and property= to leave one out."
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(help="Of records: a unit in the files, as energy=kcal/mol or positions=bohr; repeat."),
    ] = None,
    pbc: Annotated[
        str | None, typer.Option(help="Of records: whether cells repeat: true, false, or such as TTF for slabs.")
    ] = None,
    group_key: Annotated[
        str | None,
        typer.Option(help="Of ase, records: entry that names what must not be split (a molecule, a trajectory)."),
    ] = None,
    theory: Annotated[str, typer.Option(help="Of ase, records: level of theory of the labels.")] = "not stated",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records that cannot be used, and say how many.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core if not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there.")] = False,
) -> None:
    """Turn a data set's published files into a store.

    Interrupted, it goes on where it was when the same command is given again. Downloads and stores lie in
    `$EUTECTIC_DATA` (else `~/.local/share/eutectic`) when no place is given.

    **Examples**

    `eutectic data prepare rmd17:aspirin` (then `eutectic finetune rmd17:aspirin …`)

    `eutectic data prepare rmd17 --molecule aspirin --source rmd17.tar.bz2 --store stores/aspirin`

    `eutectic data prepare qm9 --store stores/qm9` (from the package of `pip install 'eutectic[qm9]'` if it is there)

    `eutectic data prepare ase --source my.xyz --store stores/mine`

    `eutectic data prepare records --source my.lmdb --key energy=y --unit energy=eV --unit positions=angstrom
    --pbc true --store stores/mine` (what the file does not say is asked for)
    """
    from eutectic.data.catalogue import describe, open_store, prepare

    made = prepare(
        name,
        source,
        store,
        molecule=molecule,
        keys=_keys(key),
        units=_keys(unit, "--unit", "energy=kcal/mol"),
        pbc=pbc,
        group_key=group_key,
        theory=theory,
        skip_bad=skip_bad,
        workers=workers,
        overwrite=overwrite,
    )
    _show(describe(open_store(str(made))))


@data_app.command("info")
def data_info(
    store: Annotated[str, typer.Argument(help="Name of an embedded or prepared set, or a store.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """What a store holds.

    **Example:** `eutectic data info molecules`
    """
    from eutectic.data.catalogue import describe, open_store

    described = describe(open_store(store))
    if as_json:
        sys.stdout.write(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    else:
        _show(described)


@data_app.command("check")
def data_check(
    what: Annotated[str, typer.Argument(help="An embedded set, a store, a file or folder ASE reads, HDF5 or npz.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines, to standard output.")] = False,
    html: Annotated[Path | None, typer.Option(help="A page with plots to write.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a model: which elements has it never seen?")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Which entry holds a property, as property=key; repeat.")
    ] = None,
) -> None:
    """Look for what would spoil a training: units, signs, outliers, repeats, leaks between splits.

    HDF5 and npz files are taken as they lie, without converting anything. Exit status: 0 usable, 1 trouble was
    found, 2 it cannot be read.

    **Examples**

    `eutectic data check my.xyz --html check.html`

    `eutectic data check stores/ethanol --model runs/demo/model`

    `eutectic data check ani.h5 --key energy=wb97x_tz.energy --key forces=wb97x_tz.forces --json`
    """
    from eutectic.data.doctor import check
    from eutectic.tasks.folder import elements_seen, load_model

    try:
        seen = None if model is None else elements_seen(load_model(model))
        report = check(what, keys=_keys(key), model_elements=seen, progress=True)
    except EutecticError as error:
        _fail(error, status=2)
    if html is not None:
        from eutectic.evaluate.check_page import write_check_page

        write_check_page(html, report)
    if as_json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        _show_report(report)
        if html is not None:
            console.print(f"page: {html}")
    if not report.ok:
        raise typer.Exit(1)


def _keys(pairs: Sequence[str] | None, option: str = "--key", example: str = "energy=E_dft") -> dict[str, str] | None:
    keys = {}
    for pair in pairs or []:
        prop, equals, named = pair.partition("=")
        if not equals:
            what = option.removeprefix("--")
            raise EutecticError(option, repr(pair), f"property={what}, e.g. {example}", "correct the option")
        keys[prop] = named
    return keys or None


def _show_report(report: Report) -> None:
    colours = {"error": "red", "warning": "yellow", "note": "blue"}
    console.print(f"[bold]{_plain(report.verdict)}[/]", soft_wrap=True, highlight=False)
    for finding in report.findings:
        console.print(f"\n[{colours[finding.severity]}]{finding.severity}[/] [dim]{finding.code}[/]", highlight=False)
        for text in (finding.message, finding.why, f"→ {finding.fix}"):
            console.print(f"  {_plain(text)}", highlight=False)
    console.print()
    units = report.units
    facts = {
        "structures": report.structures,
        "labels": ", ".join(
            f"{name} ({n})" + (f" from {', '.join(report.keys[name])}" if report.keys.get(name) else "")
            for name, n in report.labels.items()
        ),
        "elements": ", ".join(f"{symbol} {n['structures']}" for symbol, n in report.elements.items()),
        "energies": f"{units.energy or 'unit not told'}, {units.regime} (confidence {units.confidence})"
        if units.energy_per_atom is not None
        else "none",
        "forces": report.force_test.verdict,
        "stresses": report.stress_test.verdict,
    }
    _show(facts)


def _entry(value: Any) -> str:
    return " ".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value)


def _show(values: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None)
    for key, value in values.items():
        text = ", ".join(f"{k} {_entry(v)}" for k, v in value.items()) if isinstance(value, dict) else _cell(value)
        table.add_row(f"[bold]{_plain(key)}[/]", _plain(text))
    console.print(table)


@data_app.command("generate")
def data_generate(
    out: Annotated[Path, typer.Option(help="Folder for the stores.")],
    names: Annotated[list[str] | None, typer.Argument(help="Sets to make; all if none is named.")] = None,
    scale: Annotated[float, typer.Option(help="1 makes the sets in the size that is shipped with the package.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; one for each core if not given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace stores that are there.")] = False,
) -> None:
    """Make the embedded data sets again, or larger ones (needs `pip install 'eutectic[generate]'`).

    One set more is not embedded, but only made here: `bulk`, inorganic crystals off equilibrium, to pre-train on.

    A killed or stopped generation goes on where it was. A larger scale begins with what is embedded, or with a smaller
    store of the same seed at the same place, and makes only what that lacks.

    **Examples**

    `eutectic data generate molecules --out my-data --scale 4`

    `eutectic data generate molecules --out my-data --scale 0.1`

    `eutectic data generate bulk --out my-data`

    `eutectic data generate --out my-data --workers 8`
    """
    from eutectic.data.generate import generate

    made = generate(names or None, out, scale=scale, seed=seed, workers=workers, overwrite=overwrite)
    for name, count in made.items():
        console.print(f"{name}: {count} structures in {out / name}")


@data_app.command("splits")
def data_splits(
    store: Annotated[str, typer.Argument(help="Name of an embedded set, or a store.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Sizes of every split, and what of the held-out structures each has seen in training.

    Counted are structures of groups that are trained on, repeated structures, and neighbours in time.

    **Examples**

    `eutectic data splits md_aspirin`

    `eutectic data splits stores/jdft2d --json`
    """
    from eutectic.data.catalogue import open_store
    from eutectic.data.splits import compare_splits, paper_against_default

    opened = open_store(store)
    report = compare_splits(opened, progress=True)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("split", "train", "validation", "test"):
        table.add_column(heading, justify="left" if heading == "split" else "right", no_wrap=True)
    table.add_column("held out although trained on", overflow="fold")
    for name, entry in report.items():
        shown = f"[bold]{_plain(name)}[/]" + (" (default)" if entry["default"] else "")
        if "not_possible" in entry:
            table.add_row(shown, "–", "–", "–", f"not possible: {_plain(str(entry['not_possible']))}")
            continue
        sizes, leaks = cast(dict[str, int], entry["sizes"]), cast(dict[str, dict[str, Any]], entry["leaks"])
        words = "\n".join(f"{part}: {leaks[part]['words']}" for part in ("validation", "test"))
        table.add_row(shown, *(f"{n:,}" for n in sizes.values()), words)
    console.print(table)
    if sentence := paper_against_default(opened, report):
        console.print(_plain(sentence))
