"""Names of tasks in a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eutectic.models.multitask import ByTask

NAMES = [
    "v1.2",
    "keys",
    "training",
    "items",
    "",
    "%",
    "%v1%2E2",
    "%keys",
    "a.b.c",
    "_modules",
    "__class__",
    "heads",
    "T",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_may_have_any_name(name: str) -> None:
    modules = ByTask()
    for i, other in enumerate(["rmd17:aspirin", *NAMES]):
        modules[other] = nn.Linear(1, i + 1)
    assert isinstance(modules[name], nn.Linear)
    assert name in modules
    assert modules[name].out_features == NAMES.index(name) + 2
    again = ByTask()
    for i, other in enumerate(["rmd17:aspirin", *NAMES]):
        again[other] = nn.Linear(1, i + 1)
    again.load_state_dict(modules.state_dict())
    assert torch.equal(again[name].weight, modules[name].weight)


def test_other_names_are_those_of_models_of_before() -> None:
    modules = ByTask()
    for name in ("bulk", "rmd17:aspirin", "md_ethanol", "mine-2", "18_boolean_label", "ä ö"):
        modules[name] = nn.Linear(1, 1)
        assert f"{name}.weight" in modules.state_dict()
