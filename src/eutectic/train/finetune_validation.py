"""Validations of a fine-tuning: the errors along it, the weights of its best step, and restarts after a head has died.

How one validation is judged is in `judging.py`, and for companions in `companions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning_fabric as lf

from eutectic.atoms import EutecticError
from eutectic.files import null_for_unknown
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks import Sample
from eutectic.train.batches.sampler import TaskDataset
from eutectic.train.companions import CompanionErrors, joint_score, judge_companions
from eutectic.train.evaluation import evaluate
from eutectic.train.finetune_preparation import Prepared
from eutectic.train.judging import Curve, Judgement, judge
from eutectic.train.loop import Verdict
from eutectic.train.runtime.display import FinetuneDisplay
from eutectic.train.settings import FinetuneSettings

PROBES = 32
"""Training structures used to detect dead heads if there are no validation structures."""

MOST_DEATHS = 3
"""How often a run restarts from earlier weights after a head has died."""


class Validation:
    """The validations of a run in one process, which takes its share of the structures.

    Args:
        fabric: launched.
        settings, prepared: of the run.
        model: at the start; its weights are the best so far.
        training: the run's own training structures, used if there are no validation structures.

    Attributes:
        curve: errors of the run's own task.
        companions: errors of the companions.
        best_step, best_weights: the step that would be kept if the run ended now, and its weights.
    """

    def __init__(
        self,
        fabric: lf.Fabric,
        settings: FinetuneSettings,
        prepared: Prepared,
        model: MultitaskModel,
        training: TaskDataset,
    ) -> None:
        self._fabric, self._settings, self._prepared = fabric, settings, prepared
        task, rows, edge_lists = prepared.task, prepared.split.validation, prepared.edge_lists
        self._items = self._share(TaskDataset(0, task, prepared.store, rows, edge_lists=edge_lists))
        # Without validation structures, a few training structures serve to detect a dead head.
        self._probes = [] if len(rows) else [training.item(i) for i in range(min(PROBES, len(training)))]
        self._companion_items = {
            companion.task.name: self._share(companion.validating(k, edge_lists))
            for k, companion in enumerate(prepared.companions, start=1)
        }
        self.curve = Curve({name: [] for name in task.targets})
        self.companions = CompanionErrors()
        self.best_step = 0
        self.best_weights = {name: weights.clone() for name, weights in model.state_dict().items()}

    def _share(self, data: TaskDataset) -> list[Sample]:
        """This process's share of validation structures."""
        return data.items()[self._fabric.global_rank :: self._fabric.world_size]

    def validate(self, averaged: MultitaskModel, step: int, elapsed: float, *, display: FinetuneDisplay) -> Verdict:
        """Validate the EMA model, and keep its weights if they are the best so far.

        Raises:
            EutecticError: a head has died too often.
        """
        found, of_companions = self._judge(averaged)
        dead = self._dead_on_probes(averaged) if self._probes else found.dead
        # Without validation structures, the last step is kept.
        improved = not dead if self._probes else self.curve.improves(found)
        if improved:
            self.best_step = step
            self.best_weights = {k: v.detach().cpu().clone() for k, v in averaged.state_dict().items()}
        self.companions.add(of_companions, first=not self.curve.steps, kept=improved)
        self.curve.add(step, elapsed, found)
        display.validated(step, found, improved)
        restart = None
        if dead and step:
            self._note_death(dead, step, display)
            restart = self.best_weights
        elif dead:
            display.say(f"the head of {' and '.join(dead)} gives the same output for all structures", style="yellow")
        errors: dict[str, Any] = {"errors": null_for_unknown(found.errors), "score": null_for_unknown(found.score)}
        if of_companions:
            errors["companions"] = {name: null_for_unknown(other.errors) for name, other in of_companions.items()}
        known = len(self._prepared.split.validation) and not dead
        return Verdict(score=found.score if known else None, errors=errors, restart=restart)

    def _judge(self, averaged: MultitaskModel) -> tuple[Judgement, dict[str, Judgement]]:
        """The run's own errors, with the score and dead heads of judged companions, and those of each companion."""
        fabric, prepared, tasks = self._fabric, self._prepared, self._prepared.tasks
        errors = evaluate(averaged, tasks, self._items, device=fabric.device, baseline=prepared.baseline)
        found = judge(fabric, errors[prepared.task.name], self._settings.score_weights)
        if not self._companion_items:
            return found, {}
        others = judge_companions(fabric, averaged, tasks, self._companion_items)
        judged = [companion.task.name for companion in prepared.companions if companion.judged]
        if judged:
            dead = tuple(f"{name} of {other}" for other in judged for name in others[other].dead)
            score = joint_score(found.score, [others[other].score for other in judged])
            found = replace(found, dead=(*found.dead, *dead), score=score)
        return found, others

    def _dead_on_probes(self, averaged: MultitaskModel) -> tuple[str, ...]:
        errors = evaluate(averaged, self._prepared.tasks, self._probes, device=self._fabric.device)
        return judge(self._fabric, errors[self._prepared.task.name], {}).dead

    def _note_death(self, dead: Sequence[str], step: int, display: FinetuneDisplay) -> None:
        """Count and announce a restart from the best weights.

        Raises:
            EutecticError: more than `MOST_DEATHS` times.
        """
        self.curve.deaths += 1
        if self.curve.deaths > MOST_DEATHS:
            raise EutecticError(
                f"step {step}, head of {' and '.join(dead)}",
                f"the same output for all structures, for the {self.curve.deaths}th time, despite lower and lower "
                "learning rates",
                "predictions that differ between structures",
                f"lower --learning-rate ({self._settings.optimiser.learning_rate:g}); check the labels "
                "(`eutectic data check`)",
            )
        self.curve.notes.append(
            f"step {step}: the head of {' and '.join(dead)} had died (same output for all structures); restarted "
            f"from the weights of step {self.best_step} with half the learning rate"
        )
        display.say(self.curve.notes[-1], style="yellow")

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        best = {"step": self.best_step, "weights": self.best_weights}
        return {"curve": self.curve.to_json(), "best": best, "companions": self.companions.to_json()}

    def restore(self, state: dict[str, Any]) -> None:
        self.curve.restore(state["curve"])
        self.best_step, self.best_weights = state["best"]["step"], state["best"]["weights"]
        if "companions" in state:  # not in runs begun by earlier versions
            self.companions.restore(state["companions"])
