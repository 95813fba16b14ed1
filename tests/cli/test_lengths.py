"""The command that a finished fine-tuning names to go on, and options that contradict each other."""

from __future__ import annotations

import pytest

from eutectic.atoms import EutecticError
from eutectic.cli.train import _longer, _numbers
from eutectic.recipes import finetuning
from eutectic.train.settings import FinetuneTrainSettings

SHORT = ["finetune", "my file.xyz", "-p", "energy", "--out", "runs/mine"]


@pytest.mark.parametrize(
    ("length", "train", "longer"),
    [
        ([], {}, "--steps 1000"),
        (["--steps", "300"], {"steps": 300}, "--steps 600"),
        (["--steps=300"], {"steps": 300}, "--steps 600"),
        (["--train.steps", "300"], {"steps": 300}, "--steps 600"),
        (["--epochs", "2.5"], {"epochs": 2.5}, "--epochs 5"),
        (["--time", "45m"], {"time": "45m"}, "--time 1h30m"),
        (["--until-converged"], {"until_converged": True}, "--until-converged --train.patience 10"),
        (["--train.evaluate_every", "30", "--steps", "60"], {"steps": 60, "evaluate_every": 30}, "--steps 120"),
    ],
)
def test_the_command_that_goes_on(length: list[str], train: dict[str, object], longer: str) -> None:
    settings = FinetuneTrainSettings.model_validate(train)
    expected = f"eutectic finetune 'my file.xyz' -p energy --out runs/mine {longer}"
    assert _longer([*SHORT[:2], *length, *SHORT[2:]], settings) == expected
    assert _longer([*SHORT, "--effort", "minutes"], settings, "minutes").endswith("runs/mine --effort hour")


def test_lengths_that_contradict() -> None:
    with pytest.raises(EutecticError, match="steps and epochs are both lengths of the run; give one of them"):
        finetuning("md_aspirin", ["forces"], steps=5, epochs=2.0)
    with pytest.raises(EutecticError, match="limit until_converged by epochs or time"):
        finetuning("md_aspirin", ["forces"], steps=5, until_converged=True)
    assert finetuning("md_aspirin", ["forces"], time="2h", until_converged=True).train.time == 7200


def test_weights_and_losses() -> None:
    chosen = finetuning("md_aspirin", ["energy", "forces"], weights=_numbers(["forces=10"]), loss="huber")
    assert {n: (t.weight, t.loss) for n, t in chosen.targets.items()} == {
        "energy": (1, "huber"),
        "forces": (10, "huber"),
    }
    with pytest.raises(EutecticError, match=r"a number, e\.g\. forces=10"):
        _numbers(["forces=ten"])
    with pytest.raises(EutecticError, match="a weight for stress"):
        finetuning("md_aspirin", ["energy", "forces"], weights={"stress": 1.0})
    with pytest.raises(EutecticError, match="'mae', 'mse'"):
        finetuning("md_aspirin", ["forces"], loss="smooth")
