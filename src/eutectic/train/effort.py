"""An effort ladder: trainings of more and more of a model, each from the one before, as long as the error improves.

1. **ridge**: linear heads on the backbone's frozen features, in closed form (`ridge.py`), in seconds.
2. **heads**: new heads by gradient descent, with a frozen backbone.
3. **lora**: low-rank updates of the backbone's weights, together with the heads of the second rung.
4. **all**: all weights, from the better of the second and third.

Training the heads before the backbone avoids distorting its features (Kumar et al., "Fine-tuning can distort pretrained
features and underperform out-of-distribution", ICLR 2022, arXiv:2202.10054). Each rung is a separate run in its own
folder, resumable like any other; the model of the rung with the lowest validation score is kept.
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
from eutectic.train.finetune import begin_run, run_prepared
from eutectic.train.finetune_outcome import run_result, save_run
from eutectic.train.finetune_preparation import Prepared
from eutectic.train.finetune_result import FinetuneResult, read_result
from eutectic.train.judging import Curve, judge
from eutectic.train.loop import Trained
from eutectic.train.ridge import fit_ridge, why_not, with_linear_heads
from eutectic.train.run_folder import claim_folder, claimed, lengthen, stored_settings
from eutectic.train.runtime.journal import Journal
from eutectic.train.runtime.launch import launched_outside, make_fabric, share_threads
from eutectic.train.settings import Effort, FinetuneSettings, duration

SECONDS: dict[Effort, float | None] = {"seconds": 60.0, "minutes": 600.0, "hour": 3600.0, "full": None}
"""Total training time in seconds, validations included; None trains each rung until it has converged."""

NAMES = ("ridge", "heads", "lora", "all")

SHARES = {"heads": 0.05, "lora": 0.15, "all": 0.8}
"""Fraction of the time for each rung except the first, which takes seconds."""

RANK = 16
"""Rank of the low-rank updates."""

PAYS = 0.02
"""Minimum relative decrease of the best validation score for which the ladder goes on."""


@dataclass
class Rung:
    """A training of the ladder.

    Attributes:
        name: ridge, heads, lora or all.
        trained: trained parts of the model, as text.
        errors: property → validation error at the best step, in its unit.
        score: mean over properties of error / error of the mean predictor, by which rungs are compared.
        seconds: training time, validations included.
        steps: number of steps done.
        outcome: chosen, not chosen, skipped, or not tried.
        why: reason for the outcome.
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
    """Run or resume the trainings of an effort; the result of a finished one is returned at once.

    The ladder of a lower effort in the folder is continued.

    Args:
        settings: of the run, with an effort.
        folder: for `model`, `result.json`, and a folder per rung under `rungs`.
        console: for messages; None prints nothing.

    Raises:
        EutecticError: invalid data, model or settings; no validation structures.
        Interrupted: stopped by a signal; resumable.
    """
    assert settings.effort is not None
    if launched_outside():
        raise EutecticError(
            "effort",
            f"{settings.effort}, in processes started by torchrun or srun",
            "one process, which starts the others (train.processes)",
            "start it without torchrun or srun, or give a length instead of the effort",
        )
    folder = Path(folder)
    with claimed(folder):
        if claim_folder(folder, settings, "finetune", may_lengthen=True):
            _raise_effort(settings, folder)
        prepared = begin_run(settings, folder, console)
        return read_result(folder) if prepared is None else _climb(settings, settings.effort, folder, prepared, console)


def _raise_effort(settings: FinetuneSettings, folder: Path) -> None:
    """Turn the ladder of a lower effort in a folder into one of this effort.

    Raises:
        EutecticError: the ladder in the folder has a higher effort.
    """
    efforts, before = list(SECONDS), stored_settings(folder).get("effort")
    if before in efforts and efforts.index(before) > efforts.index(str(settings.effort)):  # type: ignore[arg-type]
        raise EutecticError(
            f"{folder}, effort {settings.effort}",
            f"a run with effort {before}",
            "the same effort to return its result, or a higher one to continue",
            "choose a higher effort or another --out",
        )
    (folder / "result.json").unlink(missing_ok=True)
    # These rungs start from others, which will be trained for longer.
    for name in ("lora", "all"):
        shutil.rmtree(_place(folder, name), ignore_errors=True)
    lengthen(folder, settings, "finetune")


def _climb(
    settings: FinetuneSettings, effort: Effort, folder: Path, prepared: Prepared, console: Console | None
) -> FinetuneResult:
    if not len(prepared.split.validation):
        raise EutecticError(
            f"effort, split {prepared.split.name!r} of {prepared.store.card.name}",
            "no validation structures, which are needed to compare trainings",
            "some validation structures",
            "use fewer training structures, or give steps, epochs or a time instead of the effort",
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
            return "most of the backbone's weights are not in matrices with low-rank updates"
    return ""


def _why_stopped(results: Mapping[str, FinetuneResult]) -> str:
    """Why no further rung is tried; empty if the ladder goes on.

    Only a rung that has changed the backbone (lora) and whose error no longer fell can end the ladder: heads that do
    not improve on the ridge regression, or a training that was too short, do not show what more training would give.
    """
    if "lora" not in results or results["lora"].still_falling is not False:
        return ""
    scores = {name: results[name].scores[results[name].steps.index(results[name].best_step)] for name in results}
    before = min(score for name, score in scores.items() if name != "lora")
    if scores["lora"] < before * (1 - PAYS):
        return ""
    fell = 1 - scores["lora"] / before
    return f"the previous rung lowered the best score by {max(0.0, fell):.1%}, less than {PAYS:.0%}"


def _train(
    name: str,
    settings: FinetuneSettings,
    effort: Effort,
    folder: Path,
    results: Mapping[str, FinetuneResult],
    prepared: Prepared,
    console: Console | None,
) -> FinetuneResult:
    """Train or resume a rung, or read its result."""
    place = _place(folder, name)
    if name == "ridge":
        return fit_rung_in_closed_form(settings, place)
    values = settings.model_dump(mode="json") | {"effort": None}
    seconds = SECONDS[effort]
    share = 1.0 if effort == "seconds" else SHARES[name]
    length = {"until_converged": True} if seconds is None else {"time": seconds * share}
    # The interval between validations belongs to the previous length.
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
    """Fit linear heads to a run's data, and save model and result like those of a run without steps.

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
        training, validation = (
            TaskDataset(0, task, prepared.store, rows, edge_lists=prepared.edge_lists)
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
    """Copy the model of the best rung, and write its result with the table of all rungs."""
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
