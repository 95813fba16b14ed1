"""Commands that train: pretrain, plan, report, finetune, compare, demo, replay."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eutectic.atoms import EutecticError
from eutectic.cli.app import OVERRIDES, app
from eutectic.cli.options import ELEMENTS, overrides, pairs, pretraining_settings, print_settings
from eutectic.cli.show import console, plain, show_end, show_finetuning

if TYPE_CHECKING:
    from eutectic.train.settings import Effort, FinetuneTrainSettings


@app.command(context_settings=OVERRIDES)
def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (`demo`), or a YAML file of settings.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print the resolved settings and stop.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained model to add the recipe's data sets to; the model's own are validated."),
    ] = None,
    loggers: Annotated[
        list[str] | None,
        typer.Option("--loggers", help="csv, tensorboard or wandb; repeat. Default: csv and tensorboard."),
    ] = None,
) -> None:
    """Train one backbone on several data sets at once.

    Any setting can be changed by `--section.key value`. Progress is shown in `report.html` in the run's folder.

    **Examples**

    `eutectic pretrain demo --out runs/demo`

    `eutectic pretrain demo --train.steps 60 --train.processes 1 --out runs/short`

    `eutectic pretrain demo --show-settings --out - > my.yaml; eutectic pretrain my.yaml --out runs/mine`

    `eutectic pretrain my.yaml --batching.by cost --batching.atoms 2000 --loggers csv --out runs/by-cost`

    `eutectic pretrain new-set.yaml --start runs/demo/model --out runs/added`
    """
    from eutectic.train.runtime.launch import is_first
    from eutectic.workflows import pretrain as run

    changes = overrides(context.args)
    if start is not None:
        changes["start"] = str(start)
    if loggers:
        changes["loggers"] = loggers
    settings = pretraining_settings(recipe, changes)
    if show_settings:
        print_settings(settings)
        return
    result = run(settings, out, console=console)
    if is_first():
        console.print(f"model: {result.model}\nreport: {out / 'report.html'}", highlight=False)


@app.command(context_settings=OVERRIDES)
def plan(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file of settings.")],
    gpus: Annotated[int, typer.Option(help="Number of GPUs.")] = 8,
    peak_tflops: Annotated[float, typer.Option(help="Peak TFLOP/s per GPU, at the precision of the matmuls.")] = 312.0,
    efficiency: Annotated[float, typer.Option(help="Fraction of the peak reached in training.")] = 0.05,
    launch_ms: Annotated[float, typer.Option(help="Minimum time per step, for kernel launches, ms.")] = 30.0,
    memory_gb: Annotated[float, typer.Option(help="Memory per GPU, GB.")] = 80.0,
    link_gb_s: Annotated[float, typer.Option(help="Bandwidth between GPUs, per GPU, GB/s.")] = 25.0,
    strategy: Annotated[str | None, typer.Option(help="`ddp` or `fsdp`; default: train.strategy.")] = None,
    price: Annotated[float, typer.Option(help="Price of a GPU-hour, $.")] = 2.0,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="Size of a data set without a store, as name=structures,mean atoms; repeat."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate time, memory and cost of a pre-training, on this machine and on a cluster, without training.

    Operations per step are counted on typical structures; similar structures replace data sets without a store. All
    assumptions are listed. Any setting can be changed by `--section.key value`.

    **Examples**

    `eutectic plan demo`

    `eutectic plan my.yaml --gpus 64 --efficiency 0.2 --price 1.5 --train.batch_size 1024 --json`

    `eutectic plan my.yaml --size my_set=5e6,40`
    """
    from eutectic.console import ProgressBar
    from eutectic.plan.plan import Cluster, known_sizes, plan_cluster
    from eutectic.train.settings import parse

    settings = pretraining_settings(recipe, overrides(context.args))
    given: dict[str, Any] = {"gpus": gpus, "peak_tflops": peak_tflops, "efficiency": efficiency, "launch_ms": launch_ms}
    given |= {"memory_gb": memory_gb, "link_gb_s": link_gb_s, "price": price}
    given["strategy"] = strategy or ("fsdp" if settings.train.strategy == "fsdp" else "ddp")
    cluster = parse(Cluster, given, "plan")
    with ProgressBar("counting", len(settings.sets) + 1, unit="data sets") as bar:
        result = plan_cluster(
            settings,
            cluster,
            sizes=known_sizes(size or ()),
            progress=lambda what: bar.advance(note=what),
        )
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n")
    else:
        result.show(console)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a pre-training (running, killed or finished), a fine-tuning or a study.")
    ],
) -> None:
    """Regenerate a run's report from its folder.

    **Example:** `eutectic report runs/demo`
    """
    from eutectic.workflows import write_report

    console.print(f"report: {write_report(folder)}", highlight=False)


Data = Annotated[str, typer.Argument(help="Name of a data set, path of a store, or a file that ASE reads.")]
Properties = Annotated[
    list[str],
    typer.Option("--property", "-p", help="Property to learn; repeat. The best step is chosen by all of them."),
]
Model = Annotated[
    Path,
    typer.Option(
        help="Pre-trained model: its name (`eutectic models`), a folder, or a model of another package "
        "(sevennet:7net-0, mace:FILE.model, orb:FILE.ckpt)."
    ),
]
HeadFrom = Annotated[
    str | None,
    typer.Option(
        help="Task of the model whose heads are reused where they fit; `none` for new heads. Default in `finetune`: a "
        "task that beats the mean predictor, or halves its error at another level of theory; in `compare`: `none`."
    ),
]
Conservative = Annotated[
    bool | None,
    typer.Option(
        "--conservative/--direct",
        help="Predict forces as derivatives of the energy, or directly by a separate head (two to three times as "
        "fast). Default: conservative if both energy and forces are learned.",
        show_default=False,
    ),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        help="How to choose among several rates: `halving` (default; short runs, half the cost of one run) or `full` "
        "(full-length runs). Without several rates, 1/3, 1 and 3 times the learning rate are tried."
    ),
]
Split = Annotated[str | None, typer.Option(help="Name of the split; default: the data set's.")]
Training = Annotated[
    int | None, typer.Option("--n-train", "--train", help="Number of training structures; default: all in the split.")
]
Validation = Annotated[
    int | None, typer.Option("--n-validation", "--validation", help="Number of validation structures.")
]
Test = Annotated[int | None, typer.Option("--n-test", "--test", help="Number of test structures.")]
Steps = Annotated[int | None, typer.Option(help="Length in optimiser steps [default: 500].")]
BatchSize = Annotated[int | None, typer.Option(help="Structures per batch [default: 16].")]
Key = Annotated[
    list[str] | None,
    typer.Option(help="For a file: key of a property, as property=key; virial=key for a virial; repeat."),
]
Unit = Annotated[
    list[str] | None,
    typer.Option(help="For a file: unit of a property, as energy=kcal/mol, positions=bohr, virial=-eV; repeat."),
]
Define = Annotated[
    list[str] | None,
    typer.Option(help="New property, as NAME=UNIT[,atom][,vector|tensor|class][,extensive]; repeat."),
]
Elements = Annotated[str | None, typer.Option(help=f"For a file. {ELEMENTS}")]
SkipUnconverged = Annotated[
    bool, typer.Option("--skip-unconverged", help="For a file: skip calculations that did not converge.")
]
LevelOfTheory = Annotated[str | None, typer.Option(help="For a file: level of theory of its labels.")]


@app.command(context_settings=OVERRIDES)
def finetune(
    context: typer.Context,
    data: Data,
    property: Properties,
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run in it is resumed.")],
    model: Model = Path("eutectic-small"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start from random weights, with the architecture of --model.")
    ] = False,
    head_from: HeadFrom = None,
    conservative: Conservative = None,
    split: Split = None,
    n_train: Training = None,
    n_validation: Validation = None,
    n_test: Test = None,
    steps: Steps = None,
    epochs: Annotated[float | None, typer.Option(help="Length in epochs, instead of --steps.")] = None,
    time: Annotated[str | None, typer.Option(help="Training time, instead of --steps: 90s, 30m, 1h30m.")] = None,
    until_converged: Annotated[
        bool,
        typer.Option(
            "--until-converged",
            help="Train until the validation error no longer falls; --epochs or --time is then the maximum.",
        ),
    ] = False,
    batch_size: BatchSize = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            "--learning-rate",
            "--rate",
            help="Peak learning rate [default: 0.002]; repeat to choose on validation data.",
        ),
    ] = None,
    weight_decay: Annotated[
        list[float] | None, typer.Option(help="Weight decay [default: 0.01]; repeat to choose on validation data.")
    ] = None,
    sweep: Sweep = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="Weight of a property in the loss of normalised errors, as forces=30; repeat. Default: 1; 10 for "
            "conservative forces."
        ),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Loss: `mae` (default), `huber` or `mse`.")] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Part to freeze: embedding, blocks, block_0, …, readout, backbone, heads; repeat."),
    ] = None,
    keep_blocks: Annotated[int | None, typer.Option(help="Keep only the first blocks, this many.")] = None,
    lora: Annotated[
        int | None,
        typer.Option(help="Train low-rank updates (LoRA) of this rank in the backbone; merged at the end."),
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Learning rate of each block relative to the next block.")
    ] = None,
    energy_stage: Annotated[
        float | None,
        typer.Option(help="Final fraction of the run, e.g. 0.25, with ten times the weight on the energy."),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="Instead of a length: `seconds`, `minutes`, `hour` or `full`. Trains more and more of the model for "
            "as long as the error improves."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed [default: 0].")] = None,
    key: Key = None,
    unit: Unit = None,
    define: Define = None,
    elements: Elements = None,
    level_of_theory: LevelOfTheory = None,
    skip_unconverged: SkipUnconverged = False,
    test_file: Annotated[
        str | None,
        typer.Option(help="Store or file to test on, read like the data; no test split is then taken from the data."),
    ] = None,
    together_with: Annotated[
        list[str] | None,
        typer.Option(
            help="Other data to train on at the same time, with separate heads: DATA or DATA=PROPERTY,…; repeat."
        ),
    ] = None,
    remember: Annotated[
        list[str] | None,
        typer.Option(
            help="Task that the model should not forget: its predictions on your structures are learned too; repeat."
        ),
    ] = None,
    no_uncertainty: Annotated[
        bool, typer.Option("--no-uncertainty", help="Do not calibrate uncertainties of energies and other scalars.")
    ] = False,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print the resolved settings and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune a pre-trained model on your data.

    Writes `model/`, `result.json` and `report.html` to the run's folder. A file of structures is prepared and checked
    first. An unfinished run in the folder is resumed; a finished one is continued if its length is increased. Any
    other setting can be changed by `--section.key value`, e.g. `--train.precision bf16-mixed`.

    **Examples**

    `eutectic finetune md_aspirin -p forces --n-train 100 --out runs/aspirin`

    `eutectic finetune my.xyz -p energy -p forces --out runs/mine`

    `eutectic finetune my.xyz -p energy --time 30m --out runs/mine`, then the same with `--time 1h` to continue

    `eutectic finetune my.xyz -p energy -p forces --effort minutes --out runs/mine`

    `eutectic finetune my.xyz -p energy --freeze backbone --out runs/heads`; `--lora 8`; `--keep-blocks 1`

    `eutectic finetune my.xyz -p gap --remember molecules --out runs/gap`; `--together-with other.xyz=energy,forces`

    `eutectic finetune my.xyz -p energy --key energy=E_dft --unit energy=kcal/mol --out runs/mine`

    `eutectic finetune my.xyz -p energy --learning-rate 1e-3 --learning-rate 4e-3 --out runs/mine`, or `--sweep halving`

    Several seeds, folds (`--folds`) or numbers of training structures (`--sizes`): `eutectic compare --help`

    `eutectic finetune md_aspirin -p forces --model runs/demo/model --head-from molecules --out runs/kept`
    """
    from eutectic.recipes.finetuning import finetuning
    from eutectic.train.kept_heads import AUTO
    from eutectic.train.runtime.launch import is_first
    from eutectic.workflows import finetune as run

    settings = finetuning(
        data,
        property,
        model=model,
        from_scratch=from_scratch,
        head_from=AUTO if head_from is None else None if head_from == "none" else head_from,
        conservative=conservative,
        split=split,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        steps=steps,
        epochs=epochs,
        time=time,
        until_converged=until_converged,
        batch_size=batch_size,
        learning_rate=learning_rate[0] if learning_rate else None,
        weight_decay=weight_decay[0] if weight_decay else None,
        seed=seed,
        weights=_numbers(weight),
        loss=loss,
        freeze=[name for given in freeze or () for name in given.split(",")],
        keep_blocks=keep_blocks,
        lora=lora,
        layer_decay=layer_decay,
        energy_stage=energy_stage,
        effort=effort,
        keys=pairs(key),
        units=pairs(unit, "--unit", "energy=kcal/mol"),
        define=define or (),
        elements=elements,
        level_of_theory=level_of_theory,
        skip_unconverged=skip_unconverged,
        test_file=test_file,
        together_with=together_with or (),
        remember=remember or (),
        settings=({"uncertainty": False} if no_uncertainty else {}) | overrides(context.args),
    )
    if show_settings:
        print_settings(settings)
        return
    rates, halving = _sweep(sweep, learning_rate, weight_decay, settings.optimiser.learning_rate)
    result = run(
        settings,
        out=out,
        learning_rates=rates,
        weight_decays=weight_decay or (),
        halving=halving,
        console=Console(stderr=True) if as_json else console,
    )
    if not is_first():
        return
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return
    show_finetuning(result)
    show_end(result, out, _longer(sys.argv[1:], settings.train, settings.effort))


def _sweep(
    sweep: str | None, rates: list[float] | None, decays: list[float] | None, usual: float
) -> tuple[list[float], bool]:
    """Learning rates to choose from, and whether to choose by halving."""
    if sweep not in (None, "halving", "full"):
        raise EutecticError("--sweep", repr(sweep), "halving or full", "choose one of these")
    if sweep is not None and len(rates or ()) < 2 and len(decays or ()) < 2:
        usual = rates[0] if rates else usual
        return [usual / 3, usual, usual * 3], sweep == "halving"
    return rates or [], sweep != "full"


def _whole_numbers(given: str | None, where: str) -> list[int]:
    """Parse "50,200,950"."""
    try:
        return [int(word) for word in (given or "").split(",") if word.strip()]
    except ValueError:
        raise EutecticError(where, given or "", "whole numbers, e.g. 50,200,950", "correct it") from None


def _numbers(given: list[str] | None) -> dict[str, float]:
    """Property → number, from "property=number"."""
    found: dict[str, float] = {}
    for name, text in (pairs(given, "--weight", "forces=10") or {}).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise EutecticError("--weight", f"{name}={text}", "a number, e.g. forces=10", "correct it") from None
    return found


def _longer(arguments: Sequence[str], train: FinetuneTrainSettings, effort: Effort | None = None) -> str:
    """The command for a run of twice the length, or of the next effort."""
    from eutectic.train.effort import SECONDS
    from eutectic.train.settings import duration

    kept, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        name = word.partition("=")[0].replace("-", "_").removeprefix("__").removeprefix("train.")
        if word.startswith("--") and name in (
            "steps",
            "epochs",
            "time",
            "evaluate_every",
            "until_converged",
            "effort",
        ):
            if "=" not in word and name != "until_converged" and rest:
                rest.pop(0)
        else:
            kept.append(word)
    if effort is not None:
        efforts = list(SECONDS)
        length = ["--effort", efforts[min(efforts.index(effort) + 1, len(efforts) - 1)]]
    elif train.epochs is not None:
        length = ["--epochs", f"{2 * train.epochs:g}"]
    elif train.time is not None:
        length = ["--time", duration(2 * train.time)]
    elif train.steps is not None:
        length = ["--steps", f"{2 * train.steps}"]
    else:
        length = ["--until-converged", "--train.patience", f"{2 * train.patience}"]
    return shlex.join(["eutectic", *kept, *length])


@app.command(context_settings=OVERRIDES)
def compare(
    context: typer.Context,
    data: Data,
    property: Properties,
    out: Annotated[Path, typer.Option(help="Folder of the study; an unfinished study is resumed.")],
    model: Model = Path("eutectic-small"),
    starts: Annotated[str, typer.Option("--start", "--starts", help="`pretrained`, `scratch`, or `both`.")] = "both",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of runs per start [default: 3, or 1 with --folds].")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation folds: the published ones if there are any, otherwise by group."),
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Training set sizes of a learning curve: 50,200,950.")] = None,
    sweep: Sweep = None,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option("--learning-rate", "--rate", help="Peak learning rate; repeat to choose on validation data."),
    ] = None,
    weight_decay: Annotated[
        list[float] | None,
        typer.Option("--weight-decay", "--decay", help="Weight decay; repeat to choose on validation data."),
    ] = None,
    head_from: HeadFrom = None,
    conservative: Conservative = None,
    split: Split = None,
    n_train: Training = None,
    n_validation: Validation = None,
    n_test: Test = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    key: Key = None,
    unit: Unit = None,
    define: Define = None,
    elements: Elements = None,
    level_of_theory: LevelOfTheory = None,
    skip_unconverged: SkipUnconverged = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Concurrent runs; default: one per core.")] = None,
) -> None:
    """Compare fine-tuning with training from scratch, over seeds, folds and training set sizes.

    Each run is a separate fine-tuning in `runs/`; one table and one report cover them all. With several learning rates
    or weight decays, the best for each start are chosen on validation data, by successive halving on short runs.

    **Examples**

    `eutectic compare md_aspirin -p forces --n-train 100 --out studies/aspirin`

    `eutectic compare my.xyz -p energy --folds 5 --sizes 50,200,800 --start pretrained --out studies/mine`

    `eutectic compare rmd17:ethanol -p forces --split official_01 --n-train 50 --seeds 3 --learning-rate 1e-3
    --learning-rate 3e-3 --out studies/ethanol`
    """
    from eutectic.recipes.finetuning import finetuning
    from eutectic.report.tables import comparison_table
    from eutectic.study.results import Start
    from eutectic.workflows import compare as run

    named: dict[str, tuple[Start, ...]] = {
        "both": ("scratch", "pretrained"),
        "scratch": ("scratch",),
        "pretrained": ("pretrained",),
    }
    if starts not in named:
        raise EutecticError("--start", repr(starts), "pretrained, scratch or both", "choose one of these")
    base = finetuning(
        data,
        property,
        model=model,
        from_scratch=True,
        head_from=None if head_from == "none" else head_from,
        conservative=conservative,
        split=split,
        n_train=n_train,
        n_validation=n_validation,
        n_test=n_test,
        steps=steps,
        batch_size=batch_size,
        keys=pairs(key),
        units=pairs(unit, "--unit", "energy=kcal/mol"),
        define=define or (),
        elements=elements,
        level_of_theory=level_of_theory,
        skip_unconverged=skip_unconverged,
        settings=overrides(context.args),
    )
    rates, halving = _sweep(sweep, learning_rate, weight_decay, base.optimiser.learning_rate)
    results = run(
        base,
        out=out,
        model=model,
        starts=named[starts],
        seeds=seeds,
        folds=folds,
        sizes=_whole_numbers(sizes, "--sizes"),
        learning_rates=rates,
        weight_decays=weight_decay or (),
        halving=halving,
        workers=workers,
        console=console,
    )
    console.print(comparison_table(results))
    console.print(f"runs: {out / 'runs' / base.name}\nreport: {out / 'report.html'}", highlight=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration; an interrupted one is resumed.")] = Path(
        "demo-output"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Pre-training steps; default: the recipe's.")] = None,
    finetune_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each fine-tuning; default: the recipe's.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per start.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
) -> None:
    """Pre-train on four domains, fine-tune on five unseen tasks, and compare with training from scratch (10 minutes).

    Writes `results.json` and `report.html`.

    **Examples**

    `eutectic demo`

    `eutectic demo --steps 60 --finetune-steps 20 --seeds 1 --out quick-look`
    """
    from eutectic.data.catalogue import open_store
    from eutectic.data.examples import varied
    from eutectic.recipes.demonstration import TASKS, run_demo
    from eutectic.recipes.demonstration import demo as recipe
    from eutectic.report.study_page import write_demo_page
    from eutectic.report.tables import comparison_table

    settings = recipe(processes=workers) if steps is None else recipe(steps=steps, processes=workers)
    tasks = TASKS if finetune_steps is None else [dataclasses.replace(t, steps=finetune_steps) for t in TASKS]
    results = run_demo(out, settings=settings, seeds=range(seeds), tasks=tasks, workers=workers, console=console)
    results.write(out / "results.json")
    stores = {task.name: open_store(task.store) for task in tasks}
    examples = {name: [store[i].structure for i in varied(store)] for name, store in stores.items()}
    write_demo_page(out / "report.html", results, examples)
    console.print(comparison_table(results))
    console.print(f"results: {out / 'results.json'}\nreport: {out / 'report.html'}")


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved step: RUN/nonfinite-steps/step-000123.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Number of structures to show.")] = 10,
) -> None:
    """Replay a step with a non-finite loss or gradient, and show losses and gradients by structure and by module.

    Training skips such steps and saves the first few.

    **Examples**

    `eutectic replay runs/demo/nonfinite-steps/step-000123`

    `eutectic replay runs/demo/nonfinite-steps/step-000123 --json > step.json`
    """
    from eutectic.console import ProgressBar
    from eutectic.train.nonfinite import replay as compute

    with ProgressBar("replaying") as bar:
        result = compute(folder, progress=lambda done, n: bar.update(done, total=n))
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return
    console.print(
        f"step {result.step}: loss {result.loss:.6g} (in the run: {result.recorded_loss:.6g}), "
        f"gradient norm {result.gradient_norm:.4g}",
        highlight=False,
    )
    table = Table(title="structures, suspicious ones first", title_justify="left", box=None, pad_edge=False)
    for heading in ("set", "id", "formula", "atoms", "loss", "gradient", "problem"):
        table.add_column(heading, justify="right" if heading in ("atoms", "loss", "gradient") else "left")
    for structure in result.structures[:rows]:
        numbers = (f"{structure.n_atoms}", f"{structure.loss:.4g}", f"{structure.gradient_norm:.4g}")
        problems = plain("; ".join(structure.problems))
        table.add_row(structure.task, plain(structure.id), structure.formula, *numbers, problems)
    console.print(table)
    table = Table(title="gradient norm by module", title_justify="left", box=None, pad_edge=False)
    table.add_column("module")
    table.add_column("norm", justify="right")
    for name, norm in result.gradient_norms.items():
        table.add_row(name, f"{norm:.4g}")
    console.print(table)
