"""Complete runs with their reports, for the command line and notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.check.files import is_of_files, open_data
from eutectic.checkpoints.inspection import write_card
from eutectic.checkpoints.model import save_model
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.checkpoints.shipped import model_folder
from eutectic.checkpoints.uncertainty import Uncertainty, write_uncertainties
from eutectic.console import ProgressBar
from eutectic.data.examples import structure_from_dict
from eutectic.data.splits import split as split_store
from eutectic.data.store import Store
from eutectic.files import write_atomically
from eutectic.plan.plan import plan_run
from eutectic.predict.evaluation import Evaluation, evaluate_model
from eutectic.predict.model import Model, load
from eutectic.predict.prediction import task_of
from eutectic.recipes import RECIPES
from eutectic.recipes.benchmark import Choices, run_benchmark
from eutectic.recipes.demonstration import pretraining_summary
from eutectic.recipes.finetuning import finetuning
from eutectic.report.benchmark_page import markdown, write_benchmark_page
from eutectic.report.evaluation_page import write_evaluation_page
from eutectic.report.finetune_page import write_finetune_page
from eutectic.report.run_page import write_run_page
from eutectic.report.study_page import write_results_page
from eutectic.study.benchmark import Benchmark, table_as_json
from eutectic.study.benchmark_tasks import chosen
from eutectic.study.compare import STARTS, choose_for_one, environment, run_study
from eutectic.study.results import Start, StudyResults
from eutectic.train import finetune as training
from eutectic.train import pretrain as pretraining
from eutectic.train.effort import climb
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.pretrain import PretrainResult
from eutectic.train.run_folder import stored_settings, without_notes
from eutectic.train.runtime.journal import read_journal
from eutectic.train.runtime.launch import is_first
from eutectic.train.settings import FinetuneSettings, PretrainSettings
from eutectic.train.uncertainty import calibrated, check_calibrated


def pretrain(
    settings: PretrainSettings | str, out: str | Path, *, console: Console | None = None, quiet: bool = False
) -> PretrainResult:
    """Train one backbone on several data sets; writes `model/`, `results.json` and `report.html` to `out`.

    An unfinished run in the folder is resumed. The report is updated during the run.

    Args:
        settings: of the run, or the name of a recipe.
        out: folder of the run.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.

    Raises:
        EutecticError: invalid data or settings; the folder is used for something else.
        Interrupted: stopped by a signal; resumable.
    """
    out = Path(out)
    chosen = RECIPES[settings]() if isinstance(settings, str) else settings
    result = pretraining.pretrain(chosen, out, console=_console(console, quiet), page=write_run_page, planner=plan_run)
    if is_first():
        write_atomically(out / "results.json", json.dumps(dict(result.summary), indent=1))
        write_run_page(out, pretraining=pretraining_summary(chosen, result), environment=environment())
    return result


def finetune(
    data: str | Path | FinetuneSettings,
    properties: Sequence[str] = (),
    *,
    out: str | Path,
    learning_rates: Sequence[float] = (),
    weight_decays: Sequence[float] = (),
    halving: bool = True,
    console: Console | None = None,
    quiet: bool = False,
    **choices: Any,
) -> FinetuneResult:
    """Fine-tune one model; writes `model/`, `result.json` and `report.html` to `out`.

    An unfinished run in the folder is resumed; a shorter run with otherwise the same settings is continued. With an
    `effort`, several trainings are tried (`eutectic.train.effort`), each in a folder under `rungs/`, and the best
    model is kept.

    Args:
        data: name of a data set, path of a store, or a file that ASE reads; or the complete settings of a run.
        properties: to learn.
        out: folder of the run.
        learning_rates, weight_decays: if several are given, the best are first chosen on validation data, with short
            runs under `choices/` in separate processes.
        halving: choose by successive halving on short runs instead of full-length runs.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.
        choices: model, steps, n_train, conservative, …, arguments of `eutectic.recipes.finetuning`.

    Raises:
        EutecticError: invalid data, model or settings; the folder is used for something else.
        Interrupted: stopped by a signal; resumable.
    """
    settings = data if isinstance(data, FinetuneSettings) else finetuning(data, properties, **choices)
    if len(learning_rates) + len(weight_decays) > 0:
        settings = choose_for_one(
            settings, out, learning_rates, weight_decays, halving=halving, console=_console(console, quiet)
        )
    train = training.finetune if settings.effort is None else climb
    result = train(settings, Path(out), console=_console(console, quiet))
    if is_first():
        write_report(out)
    return result


def compare(
    data: str | Path | FinetuneSettings,
    properties: Sequence[str] = (),
    *,
    out: str | Path,
    model: str | Path | None = "eutectic-small",
    starts: Sequence[Start] = STARTS,
    seeds: int | None = None,
    folds: int | None = None,
    sizes: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    weight_decays: Sequence[float] = (),
    halving: bool = True,
    workers: int | None = None,
    console: Console | None = None,
    quiet: bool = False,
    **choices: Any,
) -> StudyResults:
    """Repeat a fine-tuning with several starts and seeds; writes `runs/`, `results.json` and `report.html` to `out`.

    Runs are concurrent, in separate processes that import the calling script again: in a script, call this under
    `if __name__ == "__main__":`.

    Args:
        data, properties, choices: see `finetune`.
        out: folder of the study; an interrupted study is resumed.
        model: pre-trained model; its architecture is used from scratch, too.
        starts, seeds, folds, sizes, learning_rates, weight_decays, halving, workers: see
            `eutectic.study.compare.run_study`.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.

    Raises:
        EutecticError: invalid data, model or settings.
        Interrupted: stopped by a signal; resumable.
    """
    if not isinstance(data, FinetuneSettings):
        data = finetuning(data, properties, model=model, from_scratch=True, **{"head_from": None, **choices})
    results = run_study(
        data,
        Path(out),
        model=None if model is None else Path(model),
        starts=starts,
        seeds=seeds,
        folds=folds,
        sizes=sizes,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        halving=halving,
        workers=workers,
        console=_console(console, quiet) or Console(quiet=True),
    )
    write_report(out)
    return results


def benchmark(
    tasks: Sequence[str],
    *,
    out: str | Path = "benchmark",
    model: str | Path = "eutectic-small",
    from_scratch: bool = False,
    seeds: int = 1,
    workers: int | None = None,
    smaller: Benchmark | None = None,
    console: Console | None = None,
    quiet: bool = False,
    **choices: Any,
) -> Benchmark:
    """Fine-tune on tasks of JMP; writes the runs, `benchmark.json`, `table.md` and `report.html` to `out`.

    Runs are concurrent, as in `compare`. A task with missing data or a failed run does not stop the others: its
    outcome contains the reason.

    Args:
        tasks: names of tasks or families, or "all".
        out: folder of the benchmark; results of earlier calls in it are kept.
        model: pre-trained model.
        from_scratch: also train the same architecture from scratch.
        seeds, workers: see `eutectic.recipes.benchmark.run_benchmark`.
        smaller: results of a smaller model, to compare with.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.
        choices: steps, n_train, split, …, fields of `eutectic.recipes.benchmark.Choices`.

    Raises:
        EutecticError: unknown tasks; the folder holds the benchmark of another model.
        Interrupted: stopped by a signal; resumable.
    """
    results = run_benchmark(
        chosen([tasks] if isinstance(tasks, str) else tasks),
        Path(out),
        model=model,
        starts=STARTS if from_scratch else ("pretrained",),
        seeds=seeds,
        choices=Choices(**choices),
        workers=workers,
        console=_console(console, quiet) or Console(quiet=True),
    )
    write_benchmark(out, smaller=smaller)
    return results


def write_benchmark(folder: str | Path, *, smaller: Benchmark | None = None) -> Path:
    """Write `table.md`, `table.json` and `report.html` of a benchmark from `benchmark.json` in the folder.

    Args:
        folder: of a benchmark.
        smaller: results of a smaller model, to compare with.

    Returns:
        Path of the report, `folder/report.html`.

    Raises:
        EutecticError: the folder holds no benchmark.
    """
    folder = Path(folder)
    results = Benchmark.read(folder)
    values = table_as_json(results, smaller=smaller)
    write_atomically(folder / "table.md", markdown(values))
    write_atomically(folder / "table.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    write_benchmark_page(folder / "report.html", values, environment=dict(results.environment))
    return folder / "report.html"


def evaluate(
    model: str | Path | Model,
    data: str | Path | Sequence[str | Path],
    properties: Sequence[str] = (),
    *,
    task: str | None = None,
    split: str | None = None,
    part: Literal["train", "validation", "test"] = "test",
    conservative: bool = False,
    batch_size: int = 32,
    report: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    quiet: bool = False,
    **reading: Any,
) -> Evaluation:
    """Errors of a model on labelled structures: by property, data set, element and size.

    Args:
        model: a loaded model, or its name or folder.
        data: names of data sets, stores, or files that ASE reads; one or several.
        properties: to compare; default: all that the model predicts and the data have.
        task: of the model; required if it has several.
        split: evaluate only one part of each data set, in this split.
        part: of the split.
        conservative: forces and stress as derivatives of the energy.
        batch_size: structures per batch.
        report: HTML report to write.
        device: to predict on, as in `eutectic.load`.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.
        reading: keys, units, define, elements, level_of_theory, …, options of `open_data` for files.

    Raises:
        EutecticError: unknown model, task, property or data; no labels to compare with.
    """
    shown = _console(console, quiet)
    loaded = model if isinstance(model, Model) else load(model, device=device)
    sets: dict[str, tuple[Store, np.ndarray]] = {}
    every = [data] if isinstance(data, str | Path) else list(data)
    files = [path for path in every if is_of_files(path)]
    for path in every:
        # Reading options are an error for stores; with stores and files, they apply to the files.
        options = {} if files and path not in files else reading
        store = open_data(path, console=shown, **options)
        rows = np.arange(len(store)) if split is None else getattr(split_store(store, split), part)
        if not len(rows):
            raise EutecticError(f"{path}", f"no {part} structures in split {split!r}", "some", "choose another --part")
        name = str(path) if split is None else f"{path} ({part} of {split})"
        sets[name] = (store, rows)
    total = sum(len(rows) for _, rows in sets.values())
    with ProgressBar("evaluating", total, enabled=shown is not None) as bar:
        result = evaluate_model(
            loaded.trained,
            sets,
            name=loaded.name,
            task=task,
            properties=[properties] if isinstance(properties, str) else properties,
            conservative=conservative,
            batch_size=batch_size,
            progress=bar.advance,
        )
    if report is not None:
        write_evaluation_page(Path(report), result.to_dict(), environment=environment())
    return result


def calibrate(
    model: str | Path,
    data: str | Path,
    *,
    held_out: str | Path | None = None,
    out: str | Path | None = None,
    task: str | None = None,
    split: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    console: Console | None = None,
    quiet: bool = False,
    **reading: Any,
) -> dict[str, Uncertainty]:
    """Calibrate uncertainties of a model's scalar properties, as `finetune` does at the end of a run.

    Args:
        model: folder of a model or its run; or a name, with `out`.
        data: training data of the model: a data set, store or file.
        held_out: structures not used in training, at the same level of theory; default: the validation part of `data`.
        out: folder of a new model; default: update the model's own folder.
        task: of the model; required if it has several.
        split: of `data`; default: the data set's.
        batch_size: structures per batch.
        device: to predict on, as in `eutectic.load`.
        console: for messages and progress; default: the terminal or notebook.
        quiet: print nothing.
        reading: keys, units, …, options of `open_data` for files.

    Returns:
        Property → uncertainty.

    Raises:
        EutecticError: unknown model, task or data; a model given by name without `out`; no scalar property, or too few
            held-out structures.
    """
    shown = _console(console, quiet)
    if out is None and not Path(model).exists():
        raise EutecticError(
            f"calibrate {model}",
            "a model given by name, which cannot be changed",
            "a folder for the new model",
            "give --out",
        )
    loaded = load(model, device=device).trained
    chosen = task_of(loaded, task, f"model {model}")
    store = open_data(data, console=shown, **(reading if is_of_files(data) else {}))
    parts = split_store(store, split or store.card.default_split)
    seen = seen_rows(loaded.provenance, store)
    known = seen is not None and len(seen) > 0
    training = (store, seen if known and seen is not None else parts.train)
    if held_out is None:
        rows = parts.validation if seen is None else np.setdiff1d(parts.validation, seen)
        others = (store, rows)
    else:
        other = open_data(held_out, console=shown, **(reading if is_of_files(held_out) else {}))
        others = (other, np.arange(len(other)))
    found = calibrated(loaded.module, chosen, training, others, batch_size=batch_size)
    check_calibrated(found, loaded.module, chosen, f"calibrate {model}")
    every = {**loaded.uncertainties, chosen.name: found}
    if out is None:
        folder = model_folder(model)
        write_uncertainties(folder, every)
    else:
        folder = Path(out)
        save_model(folder, replace(loaded, uncertainties=every))
    write_card(folder)
    return found


def _console(console: Console | None, quiet: bool) -> Console | None:
    return None if quiet else console or Console()


def write_report(folder: str | Path) -> Path:
    """Write the report of a run or study from the files in its folder.

    Args:
        folder: of a pre-training (running, killed or finished), a finished fine-tuning, or a finished study.

    Returns:
        Path of the report, `folder/report.html`.

    Raises:
        EutecticError: the folder holds none of these.
    """
    folder = Path(folder)
    page = folder / "report.html"
    if (folder / "results.json").is_file() and not (folder / "settings.json").is_file():
        results = StudyResults.read(folder / "results.json")
        write_results_page(
            page,
            results,
            examples={t.name: [structure_from_dict(example) for example in t.examples] for t in results.tasks},
        )
        return page
    stored = stored_settings(folder)
    if stored.get("command") != "finetune":
        return write_run_page(folder)
    result = read_result(folder)
    write_finetune_page(
        page,
        result.to_dict(),
        settings=without_notes(stored),
        environment=environment(),
        journal=read_journal(folder),
        examples=[structure_from_dict(example) for example in result.examples],
    )
    return page
