"""Heads that a fine-tuning keeps, and the tests that it is given."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import small_finetuning

from eutectic.atoms import EutecticError
from eutectic.data.store import Store, write_store
from eutectic.train.finetune import finetune, prepare_run
from eutectic.train.finetune_result import FinetuneResult
from eutectic.train.optimisation import learning_rate
from eutectic.train.settings import FinetuneOptimiserSettings, FinetuneSettings


@pytest.fixture(scope="module")
def first(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuneResult]:
    folder = tmp_path_factory.mktemp("first")
    return folder / "model", finetune(small_finetuning(molecules.path), folder)


def shifted(molecules: Store, path: Path, **card: Any) -> Path:
    """The same structures with other energies of the elements: every energy is off by some eV per atom."""
    rows = [
        replace(
            row, labels={**row.labels, "energy": np.asarray(row.labels["energy"] + 0.7 * row.structure.numbers.sum())}
        )
        for row in molecules
    ]
    write_store(path, replace(molecules.card, **card), rows)
    return path


def begun(settings: FinetuneSettings) -> tuple[str, Any]:
    said = Console(width=1000, file=io.StringIO())
    prepared = prepare_run(settings, said)
    return said.file.getvalue(), prepared  # type: ignore[attr-defined]


def test_a_head_that_fits_is_kept_with_references_of_its_own(
    molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    """On the same structures with shifted energies, a kept head starts with the errors that it ended with."""
    model, before = first
    store = shifted(molecules, tmp_path / "shifted")
    said, prepared = begun(small_finetuning(store, str(model)))
    assert "kept: heads of task mine: energy; before training, on 12 validation structures: energy" in said
    assert "conservative: forces as derivatives of the energy" in said
    assert "references and scales (references to the residuals of the kept heads)" in said
    assert prepared.kept.errors["forces"] == pytest.approx(min(before.curves["forces"]), rel=1e-3)
    # Refitted, on other structures than those that it is tried on: a little worse, or better.
    assert prepared.kept.errors["energy"] < 1.3 * min(before.curves["energy"])
    assert prepared.kept.baselines["energy"] == pytest.approx(before.validation_baselines["energy"], rel=1e-6)
    result = finetune(small_finetuning(store, str(model)), None)
    assert result.errors[0] == pytest.approx(prepared.kept.errors["forces"], rel=1e-3)
    assert result.validation_baselines["energy"] == pytest.approx(before.validation_baselines["energy"], rel=1e-6)


def test_kept_heads_keep_their_references_where_refitted_ones_are_worse(
    molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    """A second run on the same data begins with the errors that the first ended with, in spite of outliers."""
    model, before = first
    training = set(begun(small_finetuning(molecules.path))[1].split.train[:8].tolist())
    rows = [
        replace(row, labels={**row.labels, "energy": np.asarray(row.labels["energy"] + 50.0 * (i in training))})
        for i, row in enumerate(molecules)
    ]
    write_store(tmp_path / "outliers", molecules.card, rows)
    settings = small_finetuning(tmp_path / "outliers", str(model), head_from="mine")
    said, prepared = begun(settings)
    assert not prepared.kept.refitted
    assert "fitted to the training split: scales (kept heads keep their references)" in said
    result = finetune(settings, None)
    best = before.steps.index(before.best_step)
    for name, curve in before.curves.items():
        assert result.curves[name][0] == pytest.approx(curve[best], rel=1e-4)


def test_kept_heads_of_an_element_without_a_reference_get_refitted_ones(
    molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    rows = [replace(row, structure=replace(row.structure, numbers=row.structure.numbers + 1)) for row in molecules]
    write_store(tmp_path / "others", molecules.card, rows)
    _, prepared = begun(small_finetuning(tmp_path / "others", str(first[0]), head_from="mine"))
    assert prepared.kept.task == "mine"
    assert prepared.kept.refitted


@pytest.mark.parametrize(
    ("seconds", "compiler", "said_so"), [(1200.0, "c++", True), (1200.0, None, False), (300.0, "c++", False)]
)
def test_compilation_is_recommended_for_long_runs_with_conservative_forces(
    molecules: Store, monkeypatch: pytest.MonkeyPatch, seconds: float, compiler: str | None, said_so: bool
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: compiler if name == compiler else None)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    settings = small_finetuning(molecules.path)
    train = settings.train.model_copy(update={"time": seconds})
    said, _ = begun(settings.model_copy(update={"train": train}))
    assert ("faster: --train.compile true" in said) == said_so


def test_heads_of_another_level_of_theory_or_worse_than_the_mean_are_not_kept(
    molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path
) -> None:
    model, _ = first
    other = shifted(molecules, tmp_path / "other", level_of_theory="another")
    said, prepared = begun(small_finetuning(other, str(model)))
    assert "reset: new heads for energy" in said
    assert "dropped: heads of mine" in said
    assert prepared.kept.task is None
    assert prepared.task is prepared.baseline
    said, prepared = begun(small_finetuning(other, str(model), head_from="mine"))
    assert "kept: heads of task mine (Morse pair potential, another level of theory): energy" in said
    # Forces of the wrong sign and size: the heads' errors are above those of no force.
    rows = [replace(row, labels={n: np.asarray(-5.0 * v) for n, v in row.labels.items()}) for row in molecules]
    write_store(tmp_path / "wrong", molecules.card, rows)
    said, prepared = begun(small_finetuning(tmp_path / "wrong", str(model)))
    assert "not kept: heads of task mine, of the same level of theory: errors 1." in said
    assert prepared.kept.task is None
    said, _ = begun(
        small_finetuning(molecules.path, str(model), targets={"energy": {"head": {"layers": 3}}}, head_from="mine")
    )
    assert "no head of task mine fits" in said


def test_heads_of_another_level_of_theory_are_kept_if_they_begin_well(
    molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shifted(molecules, tmp_path / "other", level_of_theory="another")
    _, prepared = begun(small_finetuning(other, str(first[0])))
    assert prepared.kept.task is None  # 0.7 of the mean predictor's errors
    monkeypatch.setattr("eutectic.train.kept_heads.OTHER_LEVEL", 0.9)
    said, prepared = begun(small_finetuning(other, str(first[0])))
    assert "kept: heads of task mine (Morse pair potential, another level of theory): energy" in said
    assert prepared.kept.refitted


@pytest.mark.parametrize(
    ("errors", "kept"),
    [
        ({"oxide_slabs": 0.30, "molecules": 0.40}, "molecules"),  # about as good, and with fewer other elements
        ({"oxide_slabs": 0.30, "molecules": 0.46}, "oxide_slabs"),
        ({"oxide_slabs": 0.55, "molecules": 0.55}, None),
        ({"oxide_slabs": float("nan"), "molecules": 0.45}, "molecules"),
    ],
)
def test_of_heads_that_begin_equally_well_those_of_the_nearest_chemistry_are_kept(
    molecules: Store, monkeypatch: pytest.MonkeyPatch, errors: dict[str, float], kept: str | None
) -> None:
    monkeypatch.setattr(
        "eutectic.train.kept_heads._errors",
        lambda start, theirs, *others: ({"forces": errors.get(theirs.name, 1.0)}, {"forces": 1.0}),
    )
    settings = FinetuneSettings.model_validate({"data": {"store": str(molecules.path)}, "targets": {"forces": {}}})
    assert prepare_run(settings).kept.task == kept


def test_kept_heads_are_warmed_up_gently(molecules: Store, first: tuple[Path, FinetuneResult], tmp_path: Path) -> None:
    rates = FinetuneOptimiserSettings(warmup_steps=2)
    gentle = rates.gentle(100)
    assert learning_rate(gentle, 0, 100) == pytest.approx(0.01 * rates.learning_rate)
    assert learning_rate(gentle, 9, 100) == pytest.approx(rates.learning_rate)
    assert rates.model_copy(update={"kept_head_warmup": 0.0}).gentle(100).warmup_lr_ratio == rates.warmup_lr_ratio
    seen: list[float] = []
    for head in ("auto", None):
        folder = tmp_path / str(head)
        finetune(small_finetuning(molecules.path, str(first[0]), head_from=head), folder)
        seen.append(float((folder / "journal.jsonl").read_text().split('"learning_rate": ')[1].split(",")[0]))
    assert seen == pytest.approx([0.01 * 2e-3, 0.2 * 2e-3])


def test_a_test_file_of_ones_own(molecules: Store, tmp_path: Path) -> None:
    write_store(tmp_path / "all", molecules.card, [molecules[i] for i in range(80)])
    write_store(tmp_path / "test", molecules.card, [molecules[i] for i in range(78, 96)])
    said = Console(width=1000, file=io.StringIO())
    # Of 80 structures 12 are validated on and 68 trained on: none is set aside.
    chosen = small_finetuning(tmp_path / "all", data={"train": 68, "test": None, "test_file": str(tmp_path / "test")})
    result = finetune(chosen, tmp_path / "run", console=said)
    words = said.file.getvalue()  # type: ignore[attr-defined]
    assert "test: 18 structures of" in words
    assert "2 of them are also training or validation structures" in words
    assert (result.trained_on, result.validated_on, result.tested_on) == (68, 12, 18)
    from eutectic.predict.evaluation import evaluate_model
    from eutectic.predict.model import load

    model = load(tmp_path / "run", device="cpu").trained
    found = evaluate_model(model, {"test": (Store(tmp_path / "test"), np.arange(18))}).sets["test"]
    assert found["forces"].mae == pytest.approx(result.test_errors["forces"], rel=1e-5)
    assert found["energy"].mae == pytest.approx(result.test_errors["energy"], rel=1e-4)
    with pytest.raises(ValueError, match="test and test_file are both given"):
        small_finetuning(tmp_path / "all", data={"test_file": str(tmp_path / "test")})
    rows = [replace(molecules[i], labels={"forces": molecules[i].labels["forces"]}) for i in range(4)]
    write_store(tmp_path / "unlabelled", molecules.card, rows)
    wanted = small_finetuning(
        tmp_path / "all", targets={"energy": {}}, data={"test": None, "test_file": str(tmp_path / "unlabelled")}
    )
    with pytest.raises(EutecticError, match="no labels of energy; its labels: forces"):
        finetune(wanted, None)


@pytest.mark.parametrize("freeze", [(), ("backbone",)])
def test_without_edge_features_vectors_of_the_atoms_give_directions(molecules: Store, freeze: tuple[str, ...]) -> None:
    """Direct forces of a backbone that has no edge features, from scratch and with its features kept."""
    values = small_finetuning(molecules.path).model_dump() | {"targets": {"forces": {}}, "freeze": freeze}
    values["backbone"]["settings"]["edge_width"] = 0
    asked = FinetuneSettings.model_validate(values)
    assert prepare_run(asked).task.heads["forces"].kind == "atom_vector"
    result = finetune(asked, None)
    assert min(result.errors) < result.validation_baselines["forces"]
