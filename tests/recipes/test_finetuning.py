"""Settings of a fine-tuning from a few choices."""

from __future__ import annotations

import pytest

from eutectic.atoms import EutecticError
from eutectic.recipes import finetuning
from eutectic.train.settings import FinetuneSettings


def test_what_is_not_given_has_its_default() -> None:
    assert finetuning("qm9_sample", ["gap"]) == FinetuneSettings.model_validate(
        {"data": "qm9_sample", "targets": ["gap"]}
    )


def kinds(settings: FinetuneSettings) -> dict[str, str | None]:
    return {name: target.head.kind for name, target in settings.targets.items()}


def test_forces_are_conservative_where_the_energy_is_learned_too() -> None:
    both = {"energy": "scalar", "forces": "gradient_forces"}
    assert kinds(finetuning("md_aspirin", ["energy", "forces"])) == both
    assert kinds(finetuning("md_aspirin", ["forces"])) == {"forces": "direct_forces"}
    direct = finetuning("md_aspirin", ["energy", "forces"], conservative=False)
    assert kinds(direct) == {"energy": "scalar", "forces": "direct_forces"}
    with pytest.raises(EutecticError, match="without forces among energy"):
        finetuning("md_aspirin", ["energy"], conservative=True)


def test_an_energy_is_added_only_where_forces_are_its_derivative() -> None:
    gradient = finetuning("md_aspirin", ["forces"], conservative=True)
    assert [(name, target.head.kind) for name, target in gradient.targets.items()] == [
        ("forces", "gradient_forces"),
        ("energy", "scalar"),
    ]
    assert gradient.targets["energy"].head.pooling == "sum"
    assert list(finetuning("md_aspirin", ["forces"]).targets) == ["forces"]


def test_a_start_from_scratch_takes_the_architecture_unless_a_backbone_is_given() -> None:
    scratch = finetuning("md_aspirin", ["forces"], from_scratch=True)
    assert (scratch.start, scratch.architecture_from) == ("scratch", "eutectic-small")
    own = finetuning("md_aspirin", ["forces"], from_scratch=True, settings={"backbone": {"name": "painn"}})
    assert (own.architecture_from, own.backbone and own.backbone.name) == (None, "painn")


def test_choices_that_do_not_exist_are_refused() -> None:
    with pytest.raises(EutecticError, match="did you mean 'forces'"):
        finetuning("md_aspirin", ["forcs"])
    with pytest.raises(EutecticError, match="did you mean 'precision'"):
        finetuning("md_aspirin", ["forces"], settings={"train": {"precisio": "bf16-mixed"}})
