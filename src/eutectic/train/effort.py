"""An effort ladder: trainings of ever more of a model, each from the one before, for as long as that pays.

1. **ridge**: linear heads on the backbone's frozen features, in closed form (`ridge.py`): seconds.
2. **heads**: new heads by gradient descent, the backbone frozen.
3. **lora**: low-rank changes of the backbone's weights beside the heads of the second rung.
4. **all**: all weights, from the best of the second and third.

Heads that fit a backbone before it is changed keep what it knows (Kumar et al., "Fine-tuning can distort pretrained
features and underperform out-of-distribution", ICLR 2022, arXiv:2202.10054). Each rung is a run in a folder of its own,
which resumes as any other; the one with the lowest validation score gives the model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from rich.console import Console
from torch import nn

from eutectic.atoms import EutecticError
from eutectic.files import replacing, write_atomically
from eutectic.models.lora import weight_matrices
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.evaluation import evaluate
from eutectic.train.finetune import (
    Prepared,
    begin_run,
    run_prepared,
    run_result,
    save_run,
)
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.judging import Curve, judge
from eutectic.train.loop import Trained
from eutectic.train.ridge import fit_ridge, why_not, with_linear_heads
from eutectic.train.run_folder import claim_folder, claimed, lengthen, stored_settings
from eutectic.train.runtime.journal import Journal
from eutectic.train.runtime.launch import launched_outside, make_fabric, share_threads
from eutectic.train.settings import Effort, FinetuneSettings, duration

SECONDS: dict[Effort, float | None] = {"seconds": 60.0, "minutes": 600.0, "hour": 3600.0, "full": None}
"""Seconds of training in all, validations included; None trains each rung until it has converged."""

NAMES = ("ridge", "heads", "lora", "all")

SHARES = {"heads": 0.05, "lora": 0.15, "all": 0.8}
"""Part of the time for each rung but the first, which takes seconds."""

RANK = 16
"""Of the low-rank changes."""

PAYS = 0.02
"""A rung pays if it lowers the best validation score so far by more than this, relatively."""


@dataclass
class Rung:
    """One training of the ladder.

    Attributes:
        name: ridge, heads, lora or all.
        trained: what of the model was trained, in words.
        errors: property → validation error in its unit, of the best step.
        score: the mean over properties of error / error of the mean predictor, by which rungs are compared.
        seconds: of training, validations included.
        steps: done.
        outcome: chosen, not chosen, skipped, or not tried.
        why: of an outcome, in words.
    """

    name: str
    trained: str = ""
    errors: dict[str, float] | None = None
    score: float | None = None
    seconds: float | None = None
    steps: int | None = None
    outcome: Literal["chosen", "not chosen", "skipped", "not tried"] = "not tried"
    why: str = ""


def climb(settings: FinetuneSettings, folder: Path, *, console: Console | None = None) -> FinetuneResult:
    """Climb the ladder, or go on with it, or return at once the result of one that is finished.

    A folder that holds the ladder of a lower effort goes on from there.

    Args:
        settings: of the run, with an effort.
        folder: for `model`, `result.json`, and a folder of each rung under `rungs`.
        console: where to report; silent without.

    Raises:
        EutecticError: data, model or settings that cannot be used; no validation structures.
        Interrupted: stopped by a signal; resumable.
    """
    assert settings.effort is not None
    if launched_outside():
        raise EutecticError(
            "effort",
            f"{settings.effort}, in processes that torchrun or srun has started",
            "one process, which starts others (train.processes)",
            "start it without them, or give a length in place of the effort",
        )
    folder = Path(folder)
    with claimed(folder):
        if claim_folder(folder, settings, "finetune", may_lengthen=True):
            _raise_effort(settings, folder)
        prepared = begin_run(settings, folder, console)
        return read_result(folder) if prepared is None else _climb(settings, settings.effort, folder, prepared, console)


def _raise_effort(settings: FinetuneSettings, folder: Path) -> None:
    """Make the ladder in a folder one of this, higher, effort.

    Raises:
        EutecticError: it is a lower one.
    """
    efforts, before = list(SECONDS), stored_settings(folder).get("effort")
    if before in efforts and efforts.index(before) > efforts.index(str(settings.effort)):  # type: ignore[arg-type]
        raise EutecticError(
            f"{folder}, effort {settings.effort}",
            f"a run of effort {before}",
            "the same effort, to return its result, or a greater one, to go on",
            "ask for more, or choose another --out",
        )
    (folder / "result.json").unlink(missing_ok=True)
    # They start from rungs that will be trained for longer.
    for name in ("lora", "all"):
        shutil.rmtree(_place(folder, name), ignore_errors=True)
    lengthen(folder, settings, "finetune")


def _climb(
    settings: FinetuneSettings, effort: Effort, folder: Path, prepared: Prepared, console: Console | None
) -> FinetuneResult:
    if not len(prepared.split.validation):
        raise EutecticError(
            f"effort, split {prepared.split.name!r} of {prepared.store.card.name}",
            "no validation structures, by which trainings are compared",
            "some validation structures",
            "ask for fewer training structures, or give steps, epochs or a time in place of the effort",
        )
    rungs = [Rung(name) for name in NAMES]
    results: dict[str, FinetuneResult] = {}
    for rung in rungs:
        rung.why = _why_skipped(rung.name, effort, prepared)
        if rung.why:
            rung.outcome = "skipped"
            _say(console, f"{rung.name}: skipped ({rung.why})")
            continue
        stopped = _why_stopped(results)
        if stopped:
            for other in rungs[rungs.index(rung) :]:
                other.why = stopped
            _say(console, f"{rung.name}: not tried ({stopped})")
            break
        result = results[rung.name] = _train(rung.name, settings, effort, folder, results, prepared, console)
        best = result.steps.index(result.best_step)
        rung.trained, rung.score = result.trained, result.scores[best]
        rung.errors = {name: curve[best] for name, curve in result.curves.items()}
        rung.seconds, rung.steps = result.seconds[-1], result.total_steps
        rung.outcome = "not chosen"
        errors = ", ".join(f"{name} {error:.4g} {result.units[name]}" for name, error in rung.errors.items())
        _say(console, f"{rung.name}: validation {errors}, score {rung.score:.4f}, {duration(rung.seconds)}")
    chosen = _best(results)
    next(rung for rung in rungs if rung.name == chosen).outcome = "chosen"
    return _finish(settings, folder, chosen, results, rungs)


def _place(folder: Path, name: str) -> Path:
    """The folder of a rung."""
    return folder / "rungs" / f"{NAMES.index(name) + 1}-{name}"


def _say(console: Console | None, words: str) -> None:
    if console is not None:
        console.print(words, highlight=False)


def _best(results: Mapping[str, FinetuneResult]) -> str:
    def score(name: str) -> float:
        return float(np.nanmin([*results[name].scores, np.inf]))

    return min(results, key=score)


def _why_skipped(name: str, effort: Effort, prepared: Prepared) -> str:
    impossible = "; ".join(why_not(prepared.baseline).values())
    if name == "ridge":
        return f"no closed form: {impossible}" if impossible else ""
    if effort == "seconds" and (name != "heads" or not impossible):
        return "takes more than seconds"
    if name == "lora":
        assert prepared.start is not None
        backbone = prepared.start.module.backbone
        matrices = sum(layer.get_parameter("weight").numel() for layer in weight_matrices(backbone))
        if matrices < 0.5 * sum(p.numel() for p in cast(nn.Module, backbone).parameters()):
            return "most of the backbone's weights are not in matrices that low-rank changes can be added to"
    return ""


def _why_stopped(results: Mapping[str, FinetuneResult]) -> str:
    """Why no further rung is tried; empty where one is.

    That new heads are no better than a ridge regression says nothing of what a change of the backbone brings: only
    a rung that has changed it can end the ladder, and only where its error no longer fell: one that had too little time
    says nothing either.
    """
    if "lora" not in results or results["lora"].still_falling is not False:
        return ""
    scores = {name: results[name].scores[results[name].steps.index(results[name].best_step)] for name in results}
    before = min(score for name, score in scores.items() if name != "lora")
    if scores["lora"] < before * (1 - PAYS):
        return ""
    fell = 1 - scores["lora"] / before
    return f"the rung before lowered the best score by {max(0.0, fell):.1%}, less than {PAYS:.0%}"


def _train(
    name: str,
    settings: FinetuneSettings,
    effort: Effort,
    folder: Path,
    results: Mapping[str, FinetuneResult],
    prepared: Prepared,
    console: Console | None,
) -> FinetuneResult:
    """The result of one rung, trained, resumed or read."""
    place = _place(folder, name)
    if name == "ridge":
        return fit_rung_in_closed_form(settings, place)
    values = settings.model_dump(mode="json") | {"effort": None}
    seconds = SECONDS[effort]
    share = 1.0 if effort == "seconds" else SHARES[name]
    length = {"until_converged": True} if seconds is None else {"time": seconds * share}
    # The interval of validations is that of another length.
    none = dict.fromkeys(("steps", "epochs", "time", "evaluate_every"))
    values["train"] |= {**none, "until_converged": False, **length}
    if name == "heads":
        values["freeze"] = ["backbone"]
    else:
        trained = {k: r for k, r in results.items() if k != "ridge"}
        values |= {"start": str(_place(folder, _best(trained)) / "model"), "head_from": settings.name}
    if name == "lora":
        values["lora"] = RANK
    chosen = FinetuneSettings.model_validate(values)
    with claimed(place):
        begun = begin_run(chosen, place, None)
        if begun is None:
            return read_result(place)
        _say(console, f"{name}: {chosen.train.length}")
        return run_prepared(chosen, place, begun, console)


def fit_rung_in_closed_form(settings: FinetuneSettings, place: Path) -> FinetuneResult:
    """Fit linear heads to a run's data, and save the model and its result as those of a run without steps.

    Args:
        settings: of the run; its start, data and properties are used.
        place: folder for `model` and `result.json`.

    Raises:
        EutecticError: a property without a closed form (`ridge.why_not`).
    """
    targets = {
        name: target.model_copy(update={"head": target.head.model_copy(update={"layers": 0})})
        for name, target in settings.targets.items()
    }
    chosen = settings.model_copy(
        update={"effort": None, "freeze": ("backbone",), "head_from": None, "targets": targets}
    )
    with claimed(place):
        prepared = begin_run(chosen, place, None, command="ridge")
        if prepared is None:
            return read_result(place)
        if impossible := why_not(prepared.task):
            raise EutecticError(
                "ridge regression",
                "; ".join(impossible.values()),
                "properties that are linear in the weights of their heads",
                "train heads by gradient descent: --freeze backbone",
            )
        began = time.monotonic()
        share_threads(settings.train, 1)
        fabric = make_fabric(settings.train, alone=True)
        fabric.launch()
        assert prepared.start is not None
        task = with_linear_heads(prepared.task, list(prepared.task.targets))
        lists = prepared.backbone.of_backbone().edge_lists
        training, validation = (
            TaskDataset(0, task, prepared.store, rows, edge_lists=lists)
            for rows in (prepared.split.train, prepared.split.validation)
        )
        ridge = fit_ridge(prepared.start.module.backbone, task, training, validation, fabric.device)
        prepared = replace(prepared, task=ridge.task)
        items = replace(validation, task=ridge.task, kept={}).items()
        found = evaluate(ridge.model, [ridge.task], items, device=fabric.device, baseline=prepared.baseline)
        curve = Curve({name: [] for name in ridge.task.targets})
        seconds = time.monotonic() - began
        curve.add(0, seconds, judge(fabric, found[ridge.task.name], settings.score_weights))
        model = ridge.model.cpu()
        done = Trained(model, {}, Journal(None), seconds, 0)
        result = run_result(chosen, prepared, curve, 0, done, 0, "", model, fabric.device)
        penalties = ", ".join(f"{name} {value:.3g}" for name, value in ridge.penalties.items())
        numbers = sum(p.numel() for p in model.heads.parameters())
        words = f"linear heads in closed form ({numbers:,} parameters; penalty {penalties})"
        result = replace(result, trained=words, length="none: in closed form")
        save_run(chosen, prepared, model.cpu(), result, place, uncertain=settings.uncertainty)
        return result


def _finish(
    settings: FinetuneSettings,
    folder: Path,
    chosen: str,
    results: Mapping[str, FinetuneResult],
    rungs: Sequence[Rung],
) -> FinetuneResult:
    """Copy the best rung's model, and write its result with the table of all."""
    place = _place(folder, chosen)
    with replacing(folder / "model", folder=True) as half:
        shutil.copytree(place / "model", half, dirs_exist_ok=True)
    if (place / "journal.jsonl").is_file():
        with replacing(folder / "journal.jsonl") as half:
            shutil.copy(place / "journal.jsonl", half)
    result = replace(
        results[chosen],
        model=settings.start,
        length=f"effort {settings.effort}",
        rungs=[asdict(rung) for rung in rungs],
    )
    write_atomically(folder / "result.json", json.dumps(result.to_dict()), sole_writer=True)
    return result
