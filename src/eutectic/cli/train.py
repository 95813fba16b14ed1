"""Commands that train: pretrain, plan, report, finetune, demo, replay."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import OVERRIDES, app
from eutectic.cli.options import merged, overrides, pretraining_settings
from eutectic.cli.show import console, plain


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
    from eutectic.plan.plan import plan_run
    from eutectic.recipes.demonstration import pretraining_summary
    from eutectic.report.run_page import write_run_page
    from eutectic.study.compare import environment
    from eutectic.train.pretrain import pretrain as run
    from eutectic.train.runtime.launch import is_first

    changes = overrides(context.args)
    if start is not None:
        changes["start"] = str(start)
    if loggers:
        changes["loggers"] = loggers
    settings = pretraining_settings(recipe, changes)
    if show_settings:
        import yaml

        sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    result = run(settings, out, console=console, page=write_run_page, planner=plan_run)
    if not is_first():
        return
    (out / "results.json").write_text(json.dumps(dict(result.summary), indent=1))
    page = write_run_page(out, pretraining=pretraining_summary(settings, result), environment=environment())
    console.print(f"model: {result.model}\nreport: {page}")


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
    from eutectic.plan.plan import Cluster, known_sizes, plan_cluster
    from eutectic.train.runtime.display import progress_bar
    from eutectic.train.settings import parse

    settings = pretraining_settings(recipe, overrides(context.args))
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
    from eutectic.report.run_page import write_run_page

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
    from eutectic.report.study_page import write_finetune_report
    from eutectic.report.tables import comparison_table
    from eutectic.study.compare import (
        FINETUNING_OPTIMISER,
        announce,
        best_choices,
        compare,
        environment,
        sweep,
        target_of,
    )
    from eutectic.study.results import Start, StudyResults, varied
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

    if any(p not in PROPERTIES for p in property):
        open_store(store)  # knows the properties of the user's own that are in it
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
    results = StudyResults(
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
    from eutectic.recipes.demonstration import TASKS, run_demo
    from eutectic.recipes.demonstration import demo as recipe
    from eutectic.report.study_page import write_demo_report
    from eutectic.report.tables import comparison_table
    from eutectic.study.results import varied

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
    folder: Annotated[Path, typer.Argument(help="A step that was kept: RUN/nonfinite-steps/step-000123.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines, to standard output.")] = False,
    rows: Annotated[int, typer.Option(help="Structures to show.")] = 10,
) -> None:
    """Compute a step again that had no finite loss or gradient: which structure was it, and where in the model.

    Such steps are skipped, and the first few of a run are kept whole.

    **Examples**

    `eutectic replay runs/demo/nonfinite-steps/step-000123`

    `eutectic replay runs/demo/nonfinite-steps/step-000123 --json > step.json`
    """
    from eutectic.train.nonfinite import replay as compute
    from eutectic.train.runtime.display import progress_bar

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
        table.add_row(row.task, plain(row.id), row.formula, *numbers, plain("; ".join(row.problems)))
    console.print(table)
    table = Table(title="norm of the gradient by module", title_justify="left", box=None, pad_edge=False)
    table.add_column("module")
    table.add_column("norm", justify="right")
    for name, norm in found.gradient_norms.items():
        table.add_row(name, f"{norm:.4g}")
    console.print(table)
