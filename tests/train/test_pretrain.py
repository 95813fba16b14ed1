"""Pre-training: which rows, sets added to a model, batches by cost, resumed runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import BY_COST, journal, settings_for, settings_of

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.seen_rows import seen_rows
from eutectic.data.splits import split
from eutectic.data.store import Store
from eutectic.plan.plan import plan_run
from eutectic.report.run_page import write_run_page
from eutectic.train.batches.sampler import BatchSampler
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import launch
from eutectic.train.settings import (
    PretrainSettings,
)


def test_the_test_part_is_left_alone_and_the_model_says_so(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = BatchSampler.chosen, {"molecules": set(), "slabs": set()}  # type: ignore[var-annotated]

    def noted(self: BatchSampler, batch: int) -> tuple[np.ndarray, np.ndarray]:
        which, position = real(self, batch)
        for w, p in zip(which, position, strict=True):
            drawn[self.sets[w].task.name].add(int(self.sets[w].rows[p]))
        return which, position

    monkeypatch.setattr(BatchSampler, "chosen", noted)
    settings = settings_for(molecules, slabs, steps=40, evaluate_every=40, workers=0)
    pretrain(settings, tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    for store in (molecules, slabs):
        name = "molecules" if store is molecules else "slabs"
        parts = split(store, "random", n_validation=8)
        seen = seen_rows(model.provenance, store)
        assert seen is not None
        np.testing.assert_array_equal(seen, parts.train)
        assert len(drawn[name]) > 20
        assert drawn[name] <= set(seen.tolist())
        assert not drawn[name] & {*parts.test.tolist(), *parts.validation.tolist()}

    # Learning goes on with one set, divided otherwise: both parts of it have been seen, and of the other what was.
    again = settings.model_dump()
    again["sets"] = {"molecules": again["sets"]["molecules"] | {"split": "group", "validation": 5}}
    again |= {"start": str(tmp_path / "run" / "model"), "backbone": None, "watch": {}}
    del again["backbone"]
    pretrain(type(settings).model_validate(again), tmp_path / "again")
    later = load_model(tmp_path / "again" / "model")
    seen = seen_rows(later.provenance, molecules)
    assert seen is not None
    trained = [split(molecules, name, n_validation=n).train for name, n in (("random", 8), ("group", 5))]
    np.testing.assert_array_equal(seen, np.union1d(*trained))
    before, after = (seen_rows(m.provenance, slabs) for m in (model, later))
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before, after)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_by_cost_one_process_or_two_and_resumed(
    molecules: Store, slabs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of({"molecules": molecules, "slabs": slabs}, batching=BY_COST.model_dump())
    pretrain(settings, tmp_path / "one")
    one = journal(tmp_path / "one")
    assert sum(e["structures"] for e in one) == 72  # two windows of 36, however they are cut
    assert len({e["structures"] for e in one}) > 1
    assert [sum(e["structures_by_set"].values()) for e in one] == [e["structures"] for e in one]
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["drawn"] == {n: sum(e["structures_by_set"].get(n, 0) for e in one) for n in ("molecules", "slabs")}

    class StopsAt(launch.StopFlag):
        calls = 0

        @property
        def raised(self) -> bool:
            StopsAt.calls += 1
            return StopsAt.calls == 4

    monkeypatch.setattr(launch, "StopFlag", StopsAt)
    with pytest.raises(Interrupted, match="step 4 of 6"):
        pretrain(settings, tmp_path / "again")
    monkeypatch.undo()
    assert len(table(tmp_path / "again")) == 4
    pretrain(settings, tmp_path / "again")
    for key in ("loss", "structures", "atoms", "edges"):
        assert [e[key] for e in journal(tmp_path / "again")] == [e[key] for e in one]
    rows = table(tmp_path / "again")
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(r["loss"]) for r in rows] == [e["loss"] for e in one]

    two = settings.model_copy(update={"train": settings.train.model_copy(update={"processes": 2})})
    pretrain(two, tmp_path / "two")
    np.testing.assert_allclose([e["loss"] for e in journal(tmp_path / "two")], [e["loss"] for e in one], rtol=2e-4)


def test_what_was_measured_decides_the_cuts_of_a_resumed_run_too(
    molecules: Store, slabs: Store, tmp_path: Path
) -> None:
    sets = {"molecules": molecules, "slabs": slabs}
    settings = settings_of(sets, {"accumulate": 2}, batching={"by": "cost", "atoms": 60})
    pretrain(settings, tmp_path / "run", planner=plan_run)
    measured = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert len(measured["batches"]) > 4
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    # A budget of atoms replaces the number of structures.
    mean = sum(s["share"] * s["atoms"] for s in plan["sets"])
    assert plan["batch_size"] == 2 * int(60 / mean)
    # On a CPU whoever makes batches ahead shares the cores with the steps.
    assert plan["estimates"][0]["step_seconds"] > plan["estimates"][0]["compute_seconds"] > 0
    assert sum(e["structures"] for e in journal(tmp_path / "run")) != 72


def test_a_set_is_added_to_a_finished_model(molecules_run: Path, slabs: Store, tmp_path: Path) -> None:
    settings = settings_of({"slabs": slabs}, start=str(molecules_run / "model"))
    pretrain(settings, tmp_path / "run")
    old, new = load_model(molecules_run / "model"), load_model(tmp_path / "run" / "model")
    assert [t.name for t in new.tasks] == ["molecules", "slabs"]
    assert new.tasks[0] == old.tasks[0]  # references and scales stay
    moved = {k: not torch.equal(v, new.module.state_dict()[k]) for k, v in old.module.state_dict().items()}
    heads = [k for k in moved if k.startswith("heads.molecules")]
    assert heads
    assert not any(moved[k] for k in heads)  # neither learned nor worn off by weight decay
    assert any(v for k, v in moved.items() if k.startswith("backbone"))
    # The old set is watched from the state it was left in.
    validation = json.loads((tmp_path / "run" / "validation.json").read_text())["validation"]
    before = json.loads((molecules_run / "validation.json").read_text())["validation"][-1]["by_set"]["molecules"]
    assert validation[0]["by_set"]["molecules"] == pytest.approx(before, rel=1e-4)
    assert set(validation[-1]["by_set"]) == {"molecules", "slabs"}
    assert set(new.provenance["pretrained_on"]) == {"molecules", "slabs"}  # type: ignore[call-overload]
    assert set(journal(tmp_path / "run")[-1]["loss_by_set"]) == {"slabs"}


def test_a_set_is_added_by_two_processes(molecules_run: Path, slabs: Store, tmp_path: Path) -> None:
    """With whole parameters and with shares of them, frozen heads among them; the page is drawn meanwhile."""
    shared: dict[str, dict[str, Any]] = {
        "one": {},
        "ddp": {"processes": 2},
        "fsdp": {"processes": 2, "strategy": "fsdp"},
    }
    for name, train in shared.items():
        settings = settings_of({"slabs": slabs}, train, start=str(molecules_run / "model"), edge_dropout=0.1)
        pretrain(settings, tmp_path / name, page=write_run_page)
        assert (tmp_path / name / "report.html").exists()
        if name != "one":
            losses = [[e["loss"] for e in journal(tmp_path / f)] for f in ("one", name)]
            np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4)
    old, new = load_model(molecules_run / "model"), load_model(tmp_path / "fsdp" / "model")
    frozen = [k for k in old.module.state_dict() if k.startswith("heads.molecules")]
    assert all(torch.equal(old.module.state_dict()[k], new.module.state_dict()[k]) for k in frozen)


def test_settings_that_a_stored_run_lacks_have_their_defaults(
    molecules_run: Path, molecules: Store, tmp_path: Path
) -> None:
    """A run of before a setting was there is the run that it always was."""
    run = shutil.copytree(molecules_run, tmp_path / "run")
    stored = json.loads((run / "settings.json").read_text())
    for key in ("batching", "edge_dropout", "start", "watch", "loggers"):
        del stored[key]
    for key in ("accumulate", "workers", "keep_nonfinite_steps"):
        del stored["train"][key]
    del stored["sets"]["molecules"]["cap"]
    (run / "settings.json").write_text(json.dumps(stored))
    pretrain(settings_of({"molecules": molecules}), run)
    with pytest.raises(EutecticError, match=r"different: edge_dropout\)"):
        pretrain(settings_of({"molecules": molecules}, edge_dropout=0.1), run)
    with pytest.raises(EutecticError, match=r"different: train\)"):
        pretrain(settings_of({"molecules": molecules}, {"accumulate": 2}), run)
    # What an older version knew and this one does not is not passed over.
    (run / "settings.json").write_text(json.dumps(stored | {"phlogiston": 1}))
    with pytest.raises(EutecticError, match="phlogiston"):
        pretrain(settings_of({"molecules": molecules}), run)


def test_an_old_set_in_the_mixture_goes_on_learning(
    molecules_run: Path, molecules: Store, slabs: Store, tmp_path: Path
) -> None:
    settings = settings_of({"slabs": slabs, "molecules": molecules}, start=str(molecules_run / "model"))
    pretrain(settings, tmp_path / "run")
    old, new = load_model(molecules_run / "model"), load_model(tmp_path / "run" / "model")
    assert new.tasks[0] == old.tasks[0]
    key = next(k for k in old.module.state_dict() if k.startswith("heads.molecules"))
    assert not torch.equal(old.module.state_dict()[key], new.module.state_dict()[key])


def test_another_backbone_or_an_unknown_watch_is_refused(molecules_run: Path, slabs: Store, tmp_path: Path) -> None:
    other = {"name": "painn", "settings": {"width": 32, "layers": 1, "cutoff": 4.0}}
    with pytest.raises(EutecticError, match="it is read from the model"):
        pretrain(settings_of({"slabs": slabs}, start=str(molecules_run / "model"), backbone=other), tmp_path / "a")
    watch = {"crystals": {"store": "crystals"}}
    with pytest.raises(EutecticError, match="has no heads"):
        pretrain(settings_of({"slabs": slabs}, start=str(molecules_run / "model"), watch=watch), tmp_path / "b")


def test_caps_reach_the_run(molecules: Store, slabs: Store, tmp_path: Path) -> None:
    settings = settings_of({"molecules": molecules, "slabs": slabs})
    sets = {n: s.model_dump() | {"cap": 10} if n == "molecules" else s.model_dump() for n, s in settings.sets.items()}
    settings = PretrainSettings.model_validate(settings.model_dump() | {"sets": sets, "temperature": 1.0})
    result = pretrain(settings, tmp_path / "run")
    # 10 of molecules to the 35 of slabs that are neither validated nor tested on.
    assert result.summary["drawn"]["molecules"] == pytest.approx(72 * 10 / 45, abs=5)
    assert load_model(result.model).provenance["pretrained_on"]["molecules"]["structures"] == 10  # type: ignore[index]
