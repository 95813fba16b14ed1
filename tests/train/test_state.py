"""The state of a run: a checkpoint of foreign content is an error in four parts, or the one before it is used."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_fabric as lf
import pytest
import torch
from runs import losses, settings_for

from eutectic.atoms import EutecticError, Interrupted
from eutectic.data.store import Store
from eutectic.train.checkpoint import previous
from eutectic.train.pretrain import pretrain
from eutectic.train.runtime import launch
from eutectic.train.runtime.stop import StopFlag

STEPS = 4


class _StopsAtTwo(StopFlag):
    @property
    def raised(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls == 2


def _stopped_early(fabric: lf.Fabric, stop: StopFlag, work: Any) -> None:
    work(fabric, _StopsAtTwo())


@pytest.fixture(scope="module")
def interrupted(molecules: Store, slabs: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    real = launch.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "eutectic.train.pretrain.launch",
            lambda settings, work: real(settings, functools.partial(_stopped_early, work=work)),
        )
        with pytest.raises(Interrupted):
            pretrain(settings_for(molecules, slabs, steps=STEPS, checkpoint_every=0.0), folder)
    return folder


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {k: v for k, v in state.items() if k != name}


def _reshaped(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"model": {k: torch.zeros(3, 5, 7) for k in state["model"]}}


FOREIGN: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {name}": _without(name) for name in ("step", "model", "averaged", "optimiser", "seconds", "extra")},
    "list": lambda state: [1, 2],
    "tensor": lambda state: torch.zeros(3),
    "number": lambda state: 5,
    "wrong shape": _reshaped,
    "model of a list": lambda state: state | {"model": []},
    "optimiser of text": lambda state: state | {"optimiser": "Adam"},
    "optimiser of another run": lambda state: state | {"optimiser": {"state": {99: {}}, "param_groups": []}},
    "extra of text": lambda state: state | {"extra": "none"},
    "validation that is no JSON": lambda state: state | {"extra": {"validation": "["}},
    "step of text": lambda state: state | {"step": "two"},
    "step that is true": lambda state: state | {"step": True},
    "step beyond the run": lambda state: state | {"step": 99},
    "step below 0": lambda state: state | {"step": -1},
    "seconds of text": lambda state: state | {"seconds": "long"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_checkpoint_is_an_error_in_four_parts(
    interrupted: Path, molecules: Store, slabs: Store, tmp_path: Path, case: str
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    torch.save(FOREIGN[case](torch.load(path, weights_only=True)), path)
    previous(path).unlink(missing_ok=True)
    with pytest.raises(EutecticError, match="not a readable checkpoint") as caught:
        pretrain(settings_for(molecules, slabs, steps=STEPS, checkpoint_every=0.0), tmp_path / "run")
    assert caught.value.where == str(path)
    assert "delete it" in caught.value.fix


def test_the_checkpoint_before_a_foreign_one_is_used(
    interrupted: Path, molecules: Store, slabs: Store, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    shutil.copy(path, previous(path))
    torch.save([1, 2], path)
    pretrain(settings_for(molecules, slabs, steps=STEPS, checkpoint_every=0.0), tmp_path / "run")
    assert len(losses(tmp_path / "run")) == STEPS
