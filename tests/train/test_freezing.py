"""What a fine-tuning trains: frozen parts, low-rank changes, fewer blocks, rates by part, the energy stage."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import journal, losses

from eutectic.atoms import EutecticError, Interrupted
from eutectic.checkpoints.model import build_backbone, load_model
from eutectic.data.store import Store
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.models.backbone import Features
from eutectic.models.frozen_features import FrozenFeatures
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.models.painn import PaiNN
from eutectic.predict.model import load
from eutectic.recipes.finetuning import finetuning
from eutectic.train import freezing
from eutectic.train.finetune import finetune
from eutectic.train.optimisation import make_optimiser, relative_rates, set_learning_rate
from eutectic.train.runtime import launch
from eutectic.train.settings import FinetuneSettings, OptimiserSettings

BOTH = {"energy": {}, "forces": {"head": {"kind": "gradient_forces"}}}


def settings(store: Store, start: Path | str, **changes: Any) -> FinetuneSettings:
    train = {"steps": 6, "batch_size": 8, "evaluate_every": 3, "threads": 1, "accelerator": "cpu"}
    values: dict[str, Any] = {
        "data": {"store": str(store.path), "split": "random", "train": 40, "validation": 12, "test": 8},
        "targets": BOTH,
        "start": str(start),
        "name": "mine",
        "train": train | changes.pop("train", {}),
    }
    if start == "scratch":
        values |= {"backbone": {"name": "painn", "settings": {"width": 16, "layers": 2, "cutoff": 4.0}}}
        values |= {"graph": {"cutoff": 4.0}}
    return FinetuneSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def base(molecules: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    finetune(settings(molecules, "scratch", optimiser={"learning_rate": 1e-2}), folder)
    return folder / "model"


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_model(model).module.state_dict()


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("embedding,block_0", ("backbone.embedding.", "backbone.layers.0.")),
        ("blocks", ("backbone.layers.",)),
        ("backbone", ("backbone.",)),
        ("heads", ("heads.",)),
    ],
)
def test_frozen_parts_stay_bit_by_bit_and_all_others_change(
    molecules: Store, base: Path, tmp_path: Path, freeze: str, frozen: tuple[str, ...]
) -> None:
    before = weights(base)
    result = finetune(settings(molecules, base, freeze=freeze), tmp_path / "run")
    after = weights(tmp_path / "run" / "model")
    # The weights of the best step: that of the start has changed nothing.
    assert result.best_step > 0
    assert after.keys() == before.keys()
    for name, value in before.items():
        if name.startswith("backbone.edge_features."):
            continue  # read by direct forces only: no gradient
        if "heads." in name and "heads." not in frozen:
            continue  # rescaled to this data
        assert torch.equal(after[name], value) == name.startswith(frozen), name


def test_features_of_a_frozen_backbone_are_computed_once(
    molecules: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads learn the same from features that are remembered as from those computed in every step."""
    calls: list[int] = []
    real = PaiNN.forward

    def counted(self: PaiNN, graph: Graph) -> Features:
        calls.append(graph.n_structures)
        return real(self, graph)

    monkeypatch.setattr(PaiNN, "forward", counted)
    direct = {"energy": {}, "forces": {"head": {"kind": "direct_forces"}}}
    chosen = settings(molecules, base, targets=direct, freeze="backbone", head_from=None, train={"steps": 20})
    chosen = chosen.model_copy(update={"uncertainty": False})  # whose features are computed after the training
    finetune(chosen, tmp_path / "remembered")
    # 12 validation structures, 40 training structures (each batch in which one is new), and 8 test structures.
    remembered = sum(calls)
    assert remembered < 2 * 40 + 12 + 8
    monkeypatch.setattr(freezing, "FrozenFeatures", lambda: None)
    calls.clear()
    finetune(chosen, tmp_path / "computed")
    assert sum(calls) > 20 * 8
    assert losses(tmp_path / "remembered") == pytest.approx(losses(tmp_path / "computed"), rel=1e-5)
    first, second = (weights(tmp_path / name / "model") for name in ("remembered", "computed"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


def test_little_memory_remembers_little(molecules: Store) -> None:
    backbone, _ = build_backbone("painn", {"width": 8, "layers": 1, "cutoff": 4.0, "edge_width": 4})
    graphs = [
        collate([build_graph(molecules[i].structure, GraphSettings(cutoff=4.0), lists=("main",)) for i in some])
        for some in ((0, 1), (1, 0), (1, 2))
    ]
    memory = FrozenFeatures(most_bytes=10**9)
    for graph in graphs:
        found, expected = memory.of(backbone, graph), backbone(graph)
        for name in ("atoms", "edges", "directions", "vectors"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert len(memory) == 3
    assert len(copy.deepcopy(memory)) == 3
    small = FrozenFeatures(most_bytes=memory.bytes // 2)
    for graph in graphs:
        torch.testing.assert_close(small.of(backbone, graph).atoms, backbone(graph).atoms, rtol=1e-5, atol=1e-6)
    assert len(small) in (1, 2)
    assert small.bytes <= small.most_bytes


def test_low_rank_changes_are_learned_resumed_and_merged(
    molecules: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(molecules, base, lora=2, optimiser={"learning_rate": 1e-2})
    said = Console(width=1000, file=io.StringIO())
    result = finetune(chosen, tmp_path / "whole", console=said)
    words = said.file.getvalue()  # type: ignore[attr-defined]
    assert "trained: low-rank updates (rank 2) of 14 weight matrices of the backbone, heads (" in words
    before, after = weights(base), weights(tmp_path / "whole" / "model")
    assert after.keys() == before.keys()
    assert torch.equal(after["backbone.embedding.weight"], before["backbone.embedding.weight"])
    change = after["backbone.layers.0.mix.weight"] - before["backbone.layers.0.mix.weight"]
    assert 0 < int(torch.linalg.matrix_rank(change.double(), rtol=1e-3)) <= 2
    # The saved model gives the validation errors that the unmerged one had.
    found = finetune(settings(molecules, tmp_path / "whole" / "model", optimiser={"learning_rate": 1e-9}), None)
    best = result.steps.index(result.best_step)
    assert result.best_step > 0
    assert found.errors[0] == pytest.approx(result.errors[best], rel=1e-5)

    class StopsAt(launch.StopFlag):
        calls = 0

        @property
        def raised(self) -> bool:
            StopsAt.calls += 1
            return StopsAt.calls == 3

    monkeypatch.setattr(launch, "StopFlag", StopsAt)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        finetune(chosen, tmp_path / "run")
    monkeypatch.undo()
    again = finetune(chosen, tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert again.errors == result.errors
    for name, value in weights(tmp_path / "run" / "model").items():
        assert torch.equal(value, after[name]), name


def test_fewer_blocks_train_predict_and_load(molecules: Store, base: Path, tmp_path: Path) -> None:
    finetune(settings(molecules, base, keep_blocks=1), tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    assert model.backbone_settings["layers"] == 1
    assert not any("layers.1." in name for name in model.module.state_dict())
    structures = [molecules[i].structure for i in range(3)]
    made = load(tmp_path / "run", device="cpu").predict(structures)
    assert all(np.isfinite(one["forces"]).all() for one in made)
    # A run that goes on from it may say again how many blocks it has.
    finetune(settings(molecules, tmp_path / "run" / "model", keep_blocks=1), tmp_path / "next")
    with pytest.raises(EutecticError, match="keep_blocks: 9, for a model with 2 blocks"):
        finetune(settings(molecules, base, keep_blocks=9), tmp_path / "nine")


def test_bad_input_is_refused_before_training(molecules: Store, base: Path, tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=r"freeze: 'blockx'.*did you mean 'blocks'"):
        finetune(settings(molecules, base, freeze="blockx"), tmp_path / "run")
    with pytest.raises(EutecticError, match=r"freeze: backbone, heads: all of the model.*freeze less"):
        finetune(settings(molecules, base, freeze="backbone,heads"), tmp_path / "run")
    with pytest.raises(EutecticError, match=r"freeze: heads, but new heads \(energy\) give random numbers"):
        finetune(settings(molecules, base, freeze="heads", head_from=None), tmp_path / "run")
    with pytest.raises(EutecticError, match=r"lora: rank 4, for a PaiNN with backbone frozen"):
        finetune(settings(molecules, base, freeze="backbone", lora=4), tmp_path / "run")
    for wrong, message in (
        ({"lora": 0}, "lora: Input should be greater than or equal to 1"),
        ({"keep_blocks": 0}, "keep_blocks: Input should be greater than or equal to 1"),
        ({"layer_decay": 1.5}, "optimiser.layer_decay: Input should be less than or equal to 1"),
        ({"energy_stage": 0.5}, "energy_stage raises the weight of the energy relative to other properties"),
        ({"lora": 4, "from_scratch": True}, "lora adapts a trained backbone"),
        ({"effort": "seconds", "steps": 10}, "seconds, together with steps"),
        ({"effort": "seconds", "lora": 4}, "effort decides what is trained"),
        ({"effort": "days"}, "effort"),
    ):
        with pytest.raises(EutecticError, match=message):
            finetuning(molecules.path, ["energy"], model=base, **wrong)


def test_rates_of_the_optimisers_groups() -> None:
    backbone, _ = build_backbone("gemnet_oc", {"blocks": 2, "atom_width": 8, "edge_width": 8, "radial_cutoff": 5.0})
    model = MultitaskModel(backbone, {"mine": {"energy": HeadSettings()}})
    rates = relative_rates(backbone, OptimiserSettings(layer_decay=0.5, backbone_lr_scale=0.8))
    assert rates == pytest.approx(
        {"embedding": 0.1, "basis": 0.1, "block_0": 0.2, "block_1": 0.4, "readout": 0.8, "rest": 0.8}
    )
    # JMP's for two of the blocks of JMP-S.
    chosen = OptimiserSettings(part_rates={"blocks": 0.4, "embedding": 0.3, "block_0": 0.3}, learning_rate=2.0)
    optimiser = make_optimiser(model, chosen)
    set_learning_rate(optimiser, 2.0)
    by_parameter = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: by_parameter[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(by_parameter)
    expected = {
        "backbone.atom_embedding.weight": 0.6,
        "backbone.bases.output_radial": 2.0,
        "backbone.blocks.0.dense.weight": 0.6,
        "backbone.outputs.0.radial.weight": 0.6,
        "backbone.outputs.1.radial.weight": 0.6,
        "backbone.blocks.1.dense.weight": 0.8,
        "backbone.outputs.2.radial.weight": 0.8,
        "backbone.atom_readout.dense.weight": 2.0,
        "heads.mine.energy.perceptron.0.weight": 2.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    with pytest.raises(EutecticError, match=r"optimiser.part_rates: 'block_7'"):
        make_optimiser(model, OptimiserSettings(part_rates={"block_7": 0.3}))
    with pytest.raises(EutecticError, match="a learning rate for the heads"):
        make_optimiser(model, OptimiserSettings(part_rates={"heads": 0.3}))


def test_the_energy_weighs_more_in_the_last_stage(molecules: Store, base: Path, tmp_path: Path) -> None:
    """With weights that hardly change, the loss rises by (factor − 1) times the energy's at the stage's first step."""
    still = {"optimiser": {"learning_rate": 1e-12, "weight_decay": 0.0}, "train": {"steps": 8}}
    finetune(settings(molecules, base, **still), tmp_path / "plain")
    staged = settings(molecules, base, energy_stage=0.25, energy_stage_factor=5.0, **still)
    finetune(staged, tmp_path / "staged")
    plain, found = (journal(tmp_path / name) for name in ("plain", "staged"))
    for before, after in zip(plain, found, strict=True):
        energy = before["loss_by_property"]["mine"]["energy"]
        extra = 4.0 * energy if after["step"] > 6 else 0.0
        assert after["loss"] == pytest.approx(before["loss"] + extra, rel=1e-4)
        assert after["loss_by_property"]["mine"]["energy"] == pytest.approx(energy, rel=1e-4)
    with pytest.raises(ValueError, match="needs a length that is fixed beforehand"):
        settings(molecules, base, energy_stage=0.25, train={"steps": None, "until_converged": True})
