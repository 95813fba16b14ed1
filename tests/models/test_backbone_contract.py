"""A backbone from outside the package is registered, chosen by name and trained; its settings are checked early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

from eutectic.atoms import EutecticError
from eutectic.checkpoints.model import build_backbone, load_model
from eutectic.data.store import Store
from eutectic.graph import Graph, GraphSettings, build_graph, collate
from eutectic.graph.operations import sum_over_neighbours
from eutectic.models import BACKBONES, Backbone, BackboneEntry, BackboneSettings, Features, register_backbone
from eutectic.models.components import polynomial_envelope
from eutectic.models.multitask import MultitaskModel
from eutectic.testing import STRUCTURES, check_backbone, tiny_store
from eutectic.train.pretrain import pretrain
from eutectic.train.settings import FinetuneSettings, PretrainSettings, parse

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=6)


class PairSumSettings(BackboneSettings):
    cutoff_setting = "reach"

    width: int = Field(default=8, ge=1)
    reach: float | None = Field(default=None, gt=0)

    @property
    def edge_lists(self) -> tuple[str, ...]:
        return ("main",)


class PairSum(Backbone):
    """Nothing but what the contract asks for: a sum over neighbours, and features of edges."""

    def __init__(self, settings: PairSumSettings) -> None:
        super().__init__()
        self.settings = settings
        self.atom_width = self.edge_width = settings.width
        self.reach = settings.known_cutoff
        self.embedding = nn.Embedding(119, settings.width)
        self.edge = nn.Linear(2 * settings.width, settings.width)
        self.atom = nn.Sequential(nn.Linear(settings.width, settings.width), nn.SiLU())
        self.fitted_on: list[int] = []

    def fit(self, graphs: Any) -> None:
        self.fitted_on = [graph.n_structures for graph in graphs]

    def forward(self, graph: Graph) -> Features:
        distance, direction = graph.vectors(graph.main)
        s = self.embedding(graph.numbers)
        pair = torch.cat([s[graph.main.source], s[graph.main.target]], dim=-1)
        f = self.edge(pair) * polynomial_envelope(distance / self.reach, 5)[:, None]
        s = s + self.atom(sum_over_neighbours(f, graph.main, len(s)))
        # A second round, so that angles matter.
        f = f * s[graph.main.source] * s[graph.main.target]
        along = sum_over_neighbours(f[:, :, None] * direction[:, None, :], graph.main, len(s))
        return Features(atoms=s + along.square().sum(-1), edges=f, directions=direction)


@pytest.fixture
def pair_sum() -> Any:
    register_backbone("pair_sum", BackboneEntry(PairSumSettings, PairSum))
    yield BACKBONES["pair_sum"]
    del BACKBONES["pair_sum"]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("molecules") / "molecules", "molecules", 24)


def settings_for(store: Store, **changes: Any) -> PretrainSettings:
    values: dict[str, Any] = {
        "sets": {"molecules": {"store": str(store.path), "validation": 2}},
        "backbone": {"name": "pair_sum"},
        "graph": {"cutoff": 4.0, "max_neighbours": 6},
        "train": {"steps": 2, "batch_size": 4, "evaluate_every": 2, "accelerator": "cpu", "threads": 1},
    }
    return parse(PretrainSettings, {**values, **changes}, "test")


def test_it_keeps_the_contract(pair_sum: BackboneEntry) -> None:
    check_backbone(lambda: pair_sum.module(pair_sum.settings.tiny().for_graphs([GRAPH])), GRAPH)


def test_it_is_trained_by_name(pair_sum: BackboneEntry, molecules: Store, tmp_path: Path) -> None:
    result = pretrain(settings_for(molecules), tmp_path / "run")
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]
    model = load_model(result.model)
    assert isinstance(model.module.backbone, PairSum)
    # The graph's cutoff was filled in, and is written down.
    stored = json.loads((result.model / "model.json").read_text())["backbone"]
    assert stored == {"name": "pair_sum", "settings": {"width": 8, "reach": 4.0}}


def test_training_uses_its_defaults(pair_sum: BackboneEntry, molecules: Store, tmp_path: Path) -> None:
    backbone, _ = build_backbone("pair_sum", {}, [GRAPH])
    assert backbone.compile_units == (backbone,)
    assert list(backbone.repeated) == []
    for name, values, says in (
        ("again", {"train": {"activation_checkpointing": True, "steps": 2, "accelerator": "cpu"}}, "PairSum"),
        ("shared", {"optimiser": {"scale_shared_gradients": True}}, "PairSum"),
    ):
        with pytest.raises(EutecticError, match=says):
            pretrain(settings_for(molecules, **values), tmp_path / name)


def test_compile_units_are_what_is_compiled(pair_sum: BackboneEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    backbone, _ = build_backbone("pair_sum", {}, [GRAPH])
    MultitaskModel(backbone, {}).compile_parts()
    assert compiled == [backbone]
    gemnet, _ = build_backbone("gemnet_oc", BACKBONES["gemnet_oc"].settings.tiny().model_dump())
    MultitaskModel(gemnet, {}).compile_parts()
    assert set(gemnet.repeated) < set(compiled)


def test_fit_sees_the_first_batch(pair_sum: BackboneEntry, molecules: Store) -> None:
    import numpy as np

    from eutectic.tasks import TargetSettings, fit_task
    from eutectic.train.batches.sampler import BatchSampler, TaskDataset
    from eutectic.train.pretrain import initial_model

    task = fit_task("molecules", molecules, np.arange(24), {"energy": TargetSettings()}, GRAPH)
    sampler = BatchSampler([TaskDataset(0, task, molecules, np.arange(24))], 5, 1.0, 0)
    backbone = initial_model("pair_sum", {}, (task,), sampler, 0).backbone
    assert isinstance(backbone, PairSum)
    assert backbone.fitted_on == [5]


def test_a_module_on_the_path_is_found_by_the_processes_of_a_run(molecules: Store, tmp_path: Path) -> None:
    """One file that registers what is in it, imported at the top of the program that trains."""
    (tmp_path / "my_backbone.py").write_text(
        "from eutectic.models import BackboneEntry, PaiNN, PaiNNSettings, register_backbone\n"
        "class Mine(PaiNN):\n    pass\n"
        "register_backbone('mine', BackboneEntry(PaiNNSettings, Mine))\n"
    )
    (tmp_path / "program.py").write_text(
        "import sys\nfrom pathlib import Path\nimport my_backbone\n"
        "from eutectic.train.pretrain import pretrain\nfrom eutectic.train.settings import PretrainSettings\n"
        "if __name__ == '__main__':\n"
        "    pretrain(PretrainSettings.model_validate_json(sys.argv[1]), Path('run'))\n"
    )
    settings = settings_for(molecules, backbone={"name": "painn", "settings": {"width": 8, "layers": 1}})
    values = settings.model_dump(mode="json")
    values["backbone"]["name"] = "mine"
    values["train"]["processes"] = 2
    command = [sys.executable, "program.py", json.dumps(values)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["backbone"]["name"] == "mine"


def test_a_taken_name_is_refused() -> None:
    register_backbone("painn", BACKBONES["painn"])  # the same once more
    with pytest.raises(EutecticError, match="already registered"):
        register_backbone("painn", BackboneEntry(PairSumSettings, PairSum))


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ({"name": "gemnet"}, r"backbone\.name: 'gemnet'.*did you mean 'gemnet_oc'"),
        (
            {"settings": {"atom_widht": 3}},
            r"backbone\.settings: unknown setting 'atom_widht'.*did you mean 'atom_width'",
        ),
        ({"settings": {"atom_width": -3}}, r"backbone\.settings: atom_width: .*greater than or equal to 1"),
        (
            {"name": "painn", "settings": {"blocks": 2, "atom_width": 8}},
            r"atom_width, blocks: settings of gemnet_oc, not of painn.*leave them out",
        ),
    ],
)
@pytest.mark.parametrize("kind", [PretrainSettings, FinetuneSettings])
def test_wrong_settings_are_refused_when_they_are_parsed(kind: Any, backbone: dict[str, Any], says: str) -> None:
    finetune = {"data": {"store": "nowhere"}, "targets": {"energy": {}}, "start": "scratch", "backbone": backbone}
    pretraining = {"sets": {"a": {"store": "nowhere"}}, "backbone": backbone}
    with pytest.raises(EutecticError, match=says):
        parse(kind, pretraining if kind is PretrainSettings else finetune, "test")


def test_settings_that_are_not_given_have_their_defaults() -> None:
    values = {"sets": {"a": {"store": "nowhere"}}, "backbone": {"name": "painn", "settings": {"width": 8}}}
    chosen = parse(PretrainSettings, values, "test").backbone
    assert chosen.of_backbone() == BACKBONES["painn"].settings(width=8)  # type: ignore[call-arg]
    assert chosen.settings["layers"] == 3


# --- the cutoff -------------------------------------------------------------------------------------------------


def pretraining(backbone: dict[str, Any], cutoff: float, other: float | None = None) -> PretrainSettings:
    sets: dict[str, Any] = {"a": {"store": "nowhere"}}
    if other is not None:
        sets["b"] = {"store": "nowhere", "graph": {"cutoff": other}}
    return parse(PretrainSettings, {"sets": sets, "graph": {"cutoff": cutoff}, "backbone": backbone}, "test")


@pytest.mark.parametrize(("name", "setting"), [("painn", "cutoff"), ("gemnet_oc", "radial_cutoff")])
def test_the_cutoff_is_the_graphs_unless_given(name: str, setting: str) -> None:
    settings = pretraining({"name": name}, 7.0, 5.0)
    assert settings.backbone.settings[setting] is None
    # The smallest: no edge ends before its basis does.
    assert settings.backbone.for_graphs(settings.graphs).settings[setting] == 5.0
    given = pretraining({"name": name, "settings": {setting: 4.5}}, 7.0, 5.0)
    assert given.backbone.for_graphs(given.graphs).settings[setting] == 4.5
    backbone, _ = build_backbone(name, {}, [GRAPH])
    assert backbone.settings.known_cutoff == 4.0
    with pytest.raises(EutecticError, match="for_graphs"):
        build_backbone(name, {})


def test_a_cutoff_beyond_the_graphs_is_refused_unless_it_is_jmps() -> None:
    with pytest.raises(EutecticError, match=r"backbone\.settings\.cutoff: 6 Å.*at most 5 Å.*graph\.cutoff"):
        pretraining({"name": "painn", "settings": {"cutoff": 6.0}}, 7.0, 5.0)
    jmp = pretraining({"name": "gemnet_oc", "settings": {"radial_cutoff": 12.0}}, 12.0, 8.0)
    assert jmp.backbone.for_graphs(jmp.graphs).settings["radial_cutoff"] == 12.0


# --- edge lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("painn", {}),
        ("gemnet_oc", {}),
        ("gemnet_oc", {"quadruplet": False, "atom_atom": False}),
        ("gemnet_oc", {"atom_edge": False, "edge_atom": False}),
    ],
)
def test_lists_that_are_not_read_change_nothing(name: str, settings: dict[str, Any]) -> None:
    graph = GraphSettings(cutoff=6.0, max_neighbours=6)
    tiny = BACKBONES[name].settings.tiny().model_dump() | settings
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, tiny, [graph])
    structures = [STRUCTURES["ethanol_rattled"], STRUCTURES["slab_two_periodic"]]
    full, lean = (
        collate([build_graph(s, graph, **lists) for s in structures])  # type: ignore[arg-type]
        for lists in ({}, {"lists": backbone.edge_lists})
    )
    with torch.no_grad():
        expected, found = backbone(full), backbone(lean)
    assert torch.equal(expected.atoms, found.atoms)
    assert torch.equal(expected.edges, found.edges)
    # And each list is read that is asked for: without it something changes.
    for missing in set(backbone.edge_lists) - {"main"}:
        fewer = [one for one in backbone.edge_lists if one != missing]
        with torch.no_grad():
            other = backbone(collate([build_graph(s, graph, lists=fewer) for s in structures]))
        assert not torch.equal(expected.atoms, other.atoms)
