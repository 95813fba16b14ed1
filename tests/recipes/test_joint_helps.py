"""The claim the project stands on, at the smallest size that shows it: joint pre-training, then better than scratch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from rich.console import Console

from eutectic.recipes.demonstration import TASKS, demo, finetuning
from eutectic.study.compare import compare
from eutectic.train.pretrain import pretrain


@pytest.mark.slow
def test_joint_pretraining_beats_scratch_over_three_seeds(tmp_path: Path) -> None:
    recipe = demo(steps=200, processes=1)
    settings = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"batch_size": 16, "evaluate_every": 200}),
            "optimiser": recipe.optimiser.model_copy(update={"warmup_steps": 20}),
            "sets": {name: one.model_copy(update={"validation": 8}) for name, one in recipe.sets.items()},
        }
    )
    model = pretrain(settings, tmp_path / "pretrain").model
    task = dataclasses.replace(
        next(t for t in TASKS if t.name == "aspirin"), train=50, validation=20, test=40, steps=50, batch_size=4
    )
    (found,) = compare(
        [(finetuning(task), task.title)],
        model,
        # The learning rates that the demonstration chose for each start.
        {task.name: task.choices},
        tmp_path / "finetune",
        seeds=(0, 1, 2),
        workers=2,
        console=Console(quiet=True),
    )
    improvements = found.improvement_by_seed()
    assert set(improvements) == {0, 1, 2}
    assert min(improvements.values()) > 5, improvements
    assert (found.improvement_percent or 0) > 15
    assert (found.speedup or 0) > 1.2
