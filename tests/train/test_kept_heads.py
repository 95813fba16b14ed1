"""References that go with a head that is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eutectic.atoms import LabelledStructure
from eutectic.checkpoints.model import TrainedModel
from eutectic.data.store import Store, write_store
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.predict.prediction import predict
from eutectic.tasks import TargetSettings, Task, fit_task
from eutectic.tasks.references import References
from eutectic.tasks.task import Normaliser, Target
from eutectic.train.kept_heads import with_their_references

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=20)
ORIGINS = {1: -13.5, 6: -1000.25, 7: -1480.0, 8: -2040.0}
"""eV for each atom, by which the labels differ from what the kept head predicts."""


@pytest.fixture(scope="module")
def teacher() -> TrainedModel:
    torch.manual_seed(0)
    backbone = PaiNN(PaiNNSettings.tiny().for_graphs([GRAPH]))
    settings = TargetSettings(head=HeadSettings(layers=0))
    references = References(property="energy", values={z: 0.5 * z for z in range(1, 20)})
    targets = {"energy": Target(settings, Normaliser(references, 0.0, 1.7), 1.0)}
    task = Task(name="theirs", level_of_theory="made up", targets=targets, graph=GRAPH)
    module = MultitaskModel(backbone, {"theirs": task.heads}).double().eval()
    return TrainedModel(module, (task,), "painn", backbone.settings.model_dump(), GRAPH)


@pytest.fixture(scope="module")
def relabelled(molecules: Store, teacher: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The predictions of the teacher, on another origin."""
    structures = [molecules[i].structure for i in range(48)]
    energies = [float(p["energy"]) for p in predict(teacher, "theirs", structures)]
    origins = [sum(ORIGINS[int(z)] for z in s.numbers) for s in structures]
    labelled = [
        LabelledStructure(structure=s, labels={"energy": np.asarray(e + o)}, id=f"{i}", group=f"{i}")
        for i, (s, e, o) in enumerate(zip(structures, energies, origins, strict=True))
    ]
    card = replace(molecules.card, properties=("energy",))
    path = tmp_path_factory.mktemp("kept") / "relabelled"
    write_store(path, card, labelled)
    return Store(path)


def test_labels_that_differ_by_constants_are_predicted_at_once(relabelled: Store, teacher: TrainedModel) -> None:
    rows = np.arange(len(relabelled))
    fitted = fit_task("ours", relabelled, rows, {"energy": TargetSettings(head=HeadSettings(layers=0))}, GRAPH)
    task = with_their_references(fitted, teacher, teacher.tasks[0], ["energy"], relabelled, rows)
    module = MultitaskModel(teacher.module.backbone, {"ours": task.heads}).double().eval()
    head = module.heads["ours"]["energy"]  # type: ignore[index]
    head.load_state_dict(teacher.module.heads["theirs"]["energy"].state_dict())  # type: ignore[index]
    head.rescale(1.7 / task.targets["energy"].normaliser.scale)
    ours = replace(teacher, module=module, tasks=(task,))
    made = predict(ours, "ours", [one.structure for one in relabelled])
    wrong = [abs(float(p["energy"]) - float(one.labels["energy"])) for p, one in zip(made, relabelled, strict=True)]
    assert max(wrong) < 1e-6
    # Without, the least-squares fit to labels alone is off by what the teacher says beyond its references.
    before = replace(ours, tasks=(fitted,))
    made = predict(before, "ours", [one.structure for one in relabelled])
    assert (
        max(abs(float(p["energy"]) - float(o.labels["energy"])) for p, o in zip(made, relabelled, strict=True)) > 0.01
    )


def test_other_properties_are_left_alone(relabelled: Store, teacher: TrainedModel) -> None:
    rows = np.arange(len(relabelled))
    fitted = fit_task("ours", relabelled, rows, {"energy": TargetSettings()}, GRAPH)
    assert with_their_references(fitted, teacher, teacher.tasks[0], [], relabelled, rows) == fitted
