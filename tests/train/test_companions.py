"""What a fine-tuning learns at the same time: other data with heads of their own, and the start's own predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import small_finetuning

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.data.store import Store, write_store
from eutectic.predict.prediction import predict, task_of
from eutectic.recipes.finetuning import finetuning
from eutectic.train.finetune import finetune, prepare_run
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.settings import FinetuneSettings


def settings(store: Path, start: str = "scratch", **changes: Any) -> FinetuneSettings:
    return small_finetuning(store, start, **({"name": "first"} | changes))


@pytest.fixture(scope="module")
def model(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of energies and forces, whose task is named `first`."""
    folder = tmp_path_factory.mktemp("model")
    finetune(settings(molecules.path), folder)
    return str(folder / "model")


@pytest.fixture(scope="module")
def mine(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same structures with energies of another level of theory, and no forces."""
    path = tmp_path_factory.mktemp("mine") / "mine"
    rows = [replace(r, labels={"energy": np.asarray(2 * r.labels["energy"])}) for r in molecules]
    write_store(path, replace(molecules.card, level_of_theory="another", properties=("energy",)), rows)
    return path


def run(mine: Path, model: str, folder: Path | None = None, **changes: Any) -> FinetuneResult:
    values = {"name": "mine", "targets": {"energy": {}}} | changes
    return finetune(settings(mine, model, **values), folder)


@pytest.fixture(scope="module")
def remembering(mine: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuneResult]:
    folder = tmp_path_factory.mktemp("remembering")
    return folder, run(mine, model, folder, companions={"first": {"store": None}})


def test_predictions_of_the_start_are_what_is_remembered(mine: Path, model: str) -> None:
    prepared = prepare_run(settings(mine, model, name="mine", targets={"energy": {}}, companions={"first": {}}))
    (companion,) = prepared.companions
    start = load_model(model)
    assert companion.memory is not None
    rows = companion.parts.train[:5]
    expected = predict(start, "first", [prepared.store[int(row)].structure for row in rows], normalised=True)
    for position, one in enumerate(expected):
        for name in ("energy", "forces"):
            np.testing.assert_allclose(companion.memory[0][position].labels[name], one[name], rtol=1e-4, atol=1e-5)


def test_what_is_remembered_is_forgotten_less_than_what_is_only_watched(
    mine: Path, model: str, remembering: tuple[Path, FinetuneResult]
) -> None:
    watched = run(mine, model, companions={"first": {"ratio": 0.0}}).companions["first"]
    _, result = remembering
    remembered = result.companions["first"]
    for name in ("energy", "forces"):
        assert remembered["before"][name] == pytest.approx(0, abs=1e-2)
        assert remembered["after"][name] < 0.5 * watched["after"][name]
    assert np.isfinite(result.test_errors["energy"])


def test_the_model_has_both_tasks_and_predicts_its_own_by_default(remembering: tuple[Path, FinetuneResult]) -> None:
    folder, _ = remembering
    model = load_model(folder / "model")
    assert [task.name for task in model.tasks] == ["mine", "first"]
    assert task_of(model, None).name == "mine"


def test_a_second_data_set_is_learned_judged_and_tested(molecules: Store, mine: Path) -> None:
    result = run(mine, "scratch", companions={"other": {"store": str(molecules.path), "train": 40, "split": "random"}})
    other = result.companions["other"]
    assert other["judged"]
    assert other["after"]["energy"] / 3 < other["test"]["energy"] < 3 * other["after"]["energy"]
    assert other["after"]["energy"] < other["before"]["energy"]
    # The score is the mean over both.
    best = result.steps.index(result.best_step)
    own = result.curves["energy"][best] / result.validation_baselines["energy"]
    mean = (own + other["after"]["energy"] / other["baselines"]["energy"]) / 2
    assert result.scores[best] == pytest.approx(mean, rel=1e-6)


def test_heads_of_the_data_set_that_was_learned_from_are_kept(molecules: Store, mine: Path, model: str) -> None:
    values = {"name": "mine", "targets": {"energy": {}}}
    one = {"store": str(molecules.path), "split": "random", "train": 40}
    prepared = prepare_run(settings(mine, model, **values, companions={"first": one}))
    (companion,) = prepared.companions
    assert companion.kept.task == "first"
    assert not companion.judged
    assert set(companion.task.targets) == {"energy", "forces"}


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    mine: Path, model: str, tmp_path: Path, remembering: tuple[Path, FinetuneResult]
) -> None:
    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 25:
            raise Stop

    values = settings(
        mine,
        model,
        name="mine",
        targets={"energy": {}},
        companions={"first": {}},
        train={
            "steps": 40,
            "batch_size": 8,
            "evaluate_every": 20,
            "threads": 1,
            "accelerator": "cpu",
            "checkpoint_every": 0,
        },
    )
    with pytest.raises(Stop):
        finetune(values, tmp_path / "run", on_step=stop)
    resumed = finetune(values, tmp_path / "run")
    _, whole = remembering
    assert resumed.companions["first"]["after"] == pytest.approx(whole.companions["first"]["after"], rel=1e-4)
    assert resumed.companions["first"]["before"] == pytest.approx(whole.companions["first"]["before"], abs=1e-4)
    assert resumed.errors == pytest.approx(whole.errors, rel=1e-4)


def test_frozen_heads_of_watched_companions_stay_as_they_are(mine: Path, model: str, tmp_path: Path) -> None:
    run(mine, model, tmp_path / "run", companions={"first": {"ratio": 0.0}})
    before, after = load_model(model), load_model(tmp_path / "run" / "model")
    # Nothing of it was learned.
    assert "together_with" not in after.provenance or not after.provenance["together_with"]
    assert len(after.provenance["learned_rows"]) == 1  # type: ignore[arg-type]
    for name, value in before.module.heads["first"].state_dict().items():
        torch.testing.assert_close(after.module.heads["first"].state_dict()[name], value)


@pytest.mark.parametrize(
    ("start", "companions", "words"),
    [
        ("scratch", {"first": {}}, "predictions of the starting model, in a training from scratch"),
        ("model", {"firsts": {}}, "no task 'firsts'"),
        ("model", {"other": {"store": "mine", "targets": ["forces"]}}, "no structure has forces"),
        ("model", {"other": {"store": "mine", "head_from": "none-such"}}, "no task 'none-such'"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    mine: Path, model: str, start: str, companions: dict[str, Any], words: str
) -> None:
    given = {k: {**v, "store": str(mine)} if "store" in v else v for k, v in companions.items()}
    values = {"name": "mine", "targets": {"energy": {}}, "companions": given}
    with pytest.raises(EutecticError, match=words):
        prepare_run(settings(mine, model if start == "model" else "scratch", **values))


def test_the_options_of_the_command_line(mine: Path) -> None:
    given = finetuning(mine, ["energy"], together_with=["qm9_sample=gap", mine.parent / "b"], remember=["molecules"])
    assert set(given.companions) == {"qm9_sample", "b", "molecules"}
    assert list(given.companions["qm9_sample"].targets or ()) == ["gap"]
    assert given.companions["molecules"].store is None
    with pytest.raises(EutecticError, match="twice"):
        finetuning(mine, ["energy"], together_with=["molecules"], remember=["molecules"])
    with pytest.raises(EutecticError, match="name of the run's own task"):
        finetuning(mine, ["energy"], together_with=[mine])


def test_new_heads_of_a_companion_cannot_be_frozen(molecules: Store, mine: Path, model: str) -> None:
    one = {"store": str(molecules.path), "split": "random", "train": 40, "head_from": None}
    with pytest.raises(EutecticError, match="all of other"):
        prepare_run(settings(molecules.path, model, freeze=("heads",), companions={"other": one}, head_from="first"))


def test_structures_that_a_companion_was_learned_from_are_recorded(
    molecules: Store, mine: Path, tmp_path: Path
) -> None:
    run(mine, "scratch", tmp_path / "run", companions={"other": {"store": str(molecules.path), "split": "random"}})
    start = load_model(tmp_path / "run" / "model")
    seen = seen_rows(start.provenance, molecules)
    assert seen is not None
    assert len(seen)
