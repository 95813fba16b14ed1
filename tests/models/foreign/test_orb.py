"""Orb v3 as a backbone, compared with the package itself, with random weights: the package downloads its own."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from torch import nn
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints import orb_files
from eutectic.graph import GraphSettings
from eutectic.models.foreign.orb import PACKAGE, Orb, OrbSettings, _shortest
from eutectic.models.lora import add_low_rank, merge_low_rank
from eutectic.models.parts import REST, part_names, part_of
from eutectic.predict.model import Model, load
from eutectic.testing import CheckResult, generic_structures, parametrize_backbone_checks
from eutectic.testing.observation import graph_of

pytest.importorskip("orb_models", reason="orb-models is not installed (pip install 'eutectic[orb]')")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("home")]

from foreign_parity import deviations, frames  # noqa: E402

GRAPH = GraphSettings(cutoff=6.0, max_neighbours=1000)
SIZES: dict[str, Any] = {
    "latent_dim": 16,
    "base_mlp_depth": 2,
    "base_mlp_hidden_dim": 24,
    "head_mlp_depth": 1,
    "head_mlp_hidden_dim": 12,
    "num_message_passing_steps": 3,
    "has_stress": True,
}


def built(kind: str = "conservative", seed: int = 0, **changes: Any) -> Any:
    """The package's model with random weights, with an energy that changes by electronvolts."""
    from orb_models.forcefield import pretrained

    torch.manual_seed(seed)
    model = getattr(pretrained, f"orb_v3_{kind}_architecture")(**SIZES | changes, device="cpu").eval()
    with torch.no_grad():
        model.heads["energy"].normalizer.bn.running_var.fill_(100.0)
        model.heads["energy"].normalizer.bn.running_mean.fill_(0.3)
    if kind == "conservative":
        # As every published model; later versions of the package set it after loading the weights.
        model.pair_repulsion_fn.node_aggregation = "mean"
    return model


def calculator(model: Any, cap: int = 120) -> Any:
    """The package's own, of either version."""
    if importlib.metadata.version("orb-models").startswith("0.5"):
        from orb_models.forcefield.atomic_system import SystemConfig
        from orb_models.forcefield.calculator import ORBCalculator

        return ORBCalculator(model, system_config=SystemConfig(radius=6.0, max_num_neighbors=cap), device="cpu")
    from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
    from orb_models.forcefield.inference.calculator import ORBCalculator

    return ORBCalculator(model, ForcefieldAtomsAdapter(radius=6.0, max_num_neighbors=cap), device="cpu")


@pytest.fixture(scope="module")
def path(home: Path) -> Path:
    """A file of random weights, called as the published ones."""
    torch.save(built().state_dict(), home / "orb-v3-conservative-inf-random.ckpt")
    return home / "orb-v3-conservative-inf-random.ckpt"


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load(f"orb:{path}", device="cpu")


def tiny(**changes: Any) -> OrbSettings:
    known = {"elements": tuple(range(1, 95)), "cutoff": 6.0, "max_neighbours": 120, "repulsion": "sum", "edge_width": 8}
    return OrbSettings(config=SIZES, **known | changes)


def close_pair() -> Atoms:
    """Water with a bond of 0.6 Å, where the pair repulsion is strong."""
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0] + 0.6 * np.array([0.6, 0.48, 0.64])
    return atoms


# --- parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "cap"), [("inf", 120), ("20", 20)])
def test_predictions_are_those_of_the_package(variant: str, cap: int, path: Path) -> None:
    # Both in single precision; the copper has more than 20 neighbours within 6 Å.
    found = deviations(load(f"orb:{path}@{variant}", device="cpu"), calculator(built(), cap), all_axes=True)
    assert max(of["energy"] for of in found.values()) < 5e-6
    assert max(of["forces"] for of in found.values()) < 1e-5
    assert max(of["stress"] for of in found.values() if "stress" in of) < 1e-6
    assert max(of["batch"] for of in found.values()) < 1e-5


def test_in_double_precision_only_rounding_is_left(model: Model) -> None:
    double, own = copy.deepcopy(model.trained), built().double()
    double.module.double()
    torch.set_default_dtype(torch.float64)  # in which the package builds its graphs
    try:
        found = deviations(Model(double), calculator(own), all_axes=True)
    finally:
        torch.set_default_dtype(torch.float32)
    for quantity in ("energy", "forces", "stress", "batch"):
        assert max(of.get(quantity, 0.0) for of in found.values()) < 1e-11


def test_the_pair_repulsion_is_part_of_the_energy(model: Model) -> None:
    ours, theirs = model.predict(close_pair()), close_pair()
    theirs.calc = calculator(built())
    without = built()
    without.pair_repulsion = False
    energy = float(theirs.get_potential_energy())
    assert float(ours["energy"]) == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(ours["forces"], theirs.get_forces(), atol=1e-4, rtol=1e-5)
    theirs.calc = calculator(without)
    assert energy - float(theirs.get_potential_energy()) > 1.0


def test_a_model_of_the_published_size(home: Path) -> None:
    from orb_models.forcefield import pretrained

    full = pretrained.orb_v3_conservative_architecture(device="cpu").eval()
    full.pair_repulsion_fn.node_aggregation = "mean"
    torch.save(full.state_dict(), home / "orb-v3-conservative-20-full.ckpt")
    ours, theirs = load(f"orb:{home / 'orb-v3-conservative-20-full.ckpt'}", device="cpu"), frames()["ethanol"]
    predicted = ours.predict(theirs)
    theirs.calc = calculator(full, 20)
    assert float(predicted["energy"]) == pytest.approx(float(theirs.get_potential_energy()), abs=1e-5)
    np.testing.assert_allclose(predicted["forces"], theirs.get_forces(), atol=1e-5)
    assert ours.trained.module.backbone.settings.max_neighbours == 20  # type: ignore[attr-defined]


def test_a_direct_model_gives_its_energy_alone(home: Path) -> None:
    own = built("direct")
    torch.save(own.state_dict(), home / "direct.ckpt")
    ours = load(f"orb:{home / 'direct.ckpt'}@inf", device="cpu")
    for atoms in (*frames().values(), close_pair()):
        atoms.pbc = atoms.pbc.any()
        predicted = ours.predict(atoms)
        assert set(predicted) == {"energy"}
        atoms.calc = calculator(own)
        assert float(predicted["energy"]) == pytest.approx(float(np.squeeze(atoms.get_potential_energy())), abs=2e-5)


# --- the contract -----------------------------------------------------------------------------


# Not invariant by construction; and the energy is a function of a mean over all atoms.
LEARNED_OR_POOLED = ["rotation", "inversion", "separation"]


@parametrize_backbone_checks(lambda: Orb(tiny()), GRAPH, skip=LEARNED_OR_POOLED)
def test_conformance(check: Callable[[], CheckResult]) -> None:
    check()


# The repulsion of an atom is divided by the number of atoms.
@parametrize_backbone_checks(lambda: Orb(tiny(repulsion="mean")), GRAPH, skip=[*LEARNED_OR_POOLED, "supercell"])
def test_conformance_as_published(check: Callable[[], CheckResult]) -> None:
    check()


def test_the_shortest_edges_of_each_source_are_kept() -> None:
    source = torch.tensor([0, 1, 0, 1, 0, 2])
    distance = torch.tensor([3.0, 1.0, 1.0, 2.0, 2.0, 9.0])
    assert _shortest(source, distance, 3) is None
    kept = _shortest(source, distance, 2)
    assert kept is not None
    assert kept.tolist() == [1, 2, 3, 4, 5]
    nothing = torch.zeros(0, dtype=torch.long)
    assert _shortest(nothing, torch.zeros(0), 1) is None


def test_edges_beyond_cutoff_and_cap_change_nothing_and_have_no_features() -> None:
    torch.manual_seed(0)
    backbone = Orb(tiny(max_neighbours=5)).double()
    structures = list(generic_structures().values())
    short, long = (graph_of(structures, GraphSettings(cutoff=c, max_neighbours=1000), backbone) for c in (6.0, 7.0))
    with torch.no_grad():
        one, two = backbone(short), backbone(long)
    assert torch.allclose(one.atoms, two.atoms, atol=1e-12)
    assert two.edges is not None
    assert two.edges.shape == (len(long.main), 8)
    assert float(two.edges[long.vectors(long.main)[0] >= 6.0].abs().max()) == 0
    with_features = torch.bincount(long.main.source[two.edges.abs().sum(1) > 0])
    assert int(with_features.max()) == 5


def test_parts_and_low_rank_changes() -> None:
    backbone = Orb(tiny()).double()
    blocks = [f"block_{k}" for k in range(3)]
    assert part_names(backbone) == ["embedding", *blocks, "readout", "blocks", "backbone", "heads"]
    assert REST not in {part_of(backbone, name) for name, _ in backbone.named_parameters()}
    graph = graph_of([Structure.from_ase(molecule("CH3CH2OH"))], GRAPH, backbone)
    before = backbone(graph).atoms
    assert add_low_rank(backbone, 4) > 0
    torch.testing.assert_close(backbone(graph).atoms, before, rtol=0, atol=0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1)
    changed = backbone(graph).atoms
    assert not torch.equal(changed, before)
    merge_low_rank(backbone)
    torch.testing.assert_close(backbone(graph).atoms, changed)


# --- used like any other ------------------------------------------------------------------------


def test_it_says_where_it_comes_from(model: Model, path: Path) -> None:
    told = model.trained.provenance
    assert told["imported_from"] == f"orb:{path}"
    assert told["package"] == f"orb-models {PACKAGE.version()}"
    assert list(model.tasks) == ["orb-v3-conservative-inf-random"]


def test_a_converted_model_is_a_folder_like_any_other(home: Path, model: Model) -> None:
    (converted,) = (p for p in (home / "models" / "orb").iterdir() if "-inf-random-" in p.name and "@" not in p.name)
    ethanol = frames()["ethanol"]
    assert load(converted).predict(ethanol)["energy"] == model.predict(ethanol)["energy"]


def test_an_element_it_does_not_know(model: Model) -> None:
    assert model.elements[-1] == "Ra"
    atoms = frames()["ethanol"]
    atoms.numbers[0] = 104
    with pytest.raises(EutecticError, match="Rf"):
        model.predict(atoms)
    backbone = model.trained.module.backbone
    graph = graph_of([Structure.from_ase(atoms)], GRAPH, backbone).to("cpu", torch.float32)
    with pytest.raises(EutecticError, match="Orb: element Rf, which the backbone does not support"):
        backbone(graph)


def test_predict_and_finetune_from_the_command_line(path: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    structures, package = [], calculator(built())
    for seed in range(12):
        atoms = frames()["ethanol"]
        atoms.rattle(0.05, seed=seed)
        own = atoms.copy()
        own.calc = package
        energy, forces = float(own.get_potential_energy()), own.get_forces()
        # On another origin than that of the model, as of any other program.
        atoms.calc = SinglePointCalculator(atoms, energy=energy - 1000.0, forces=forces)
        structures.append(atoms)
    write(tmp_path / "some.xyz", structures)
    done = run(cli.app, ["predict", f"orb:{path}", str(tmp_path / "some.xyz"), "-o", str(tmp_path / "out.xyz")])
    assert done.exit_code == 0, done.output
    assert all(np.isfinite(atoms.info[f"{path.stem}_energy"]) for atoms in read(tmp_path / "out.xyz", ":"))
    command = f"finetune {tmp_path / 'some.xyz'} -p energy -p forces --model orb:{path} --n-train 6 "
    command += f"--n-validation 4 --n-test 0 --steps 2 --batch-size 2 --train.threads 1 --out {tmp_path / 'run'}"
    done = run(cli.app, command.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # Labels are the model's own, but for the origin: before any training it is right, up to its single precision.
    assert result["curves"]["energy"][0] < 0.5
    assert result["curves"]["forces"][0] < 0.1
    tuned = load(tmp_path / "run")
    assert tuned.trained.backbone == "orb"
    assert tuned.trained.provenance["pretrained"]["imported_from"] == f"orb:{path}"  # type: ignore[index]
    assert tuned.predict(structures[0])["forces"].shape == (9, 3)


# --- files and names ----------------------------------------------------------------------------


def test_the_cap_in_a_name() -> None:
    assert orb_files.cap_in_name("orb-v3-conservative-inf-omat-20250404") == "inf"
    assert orb_files.cap_in_name("orb-v3-direct-20-mpa") == "20"
    assert orb_files.cap_in_name("mine-20") is None
    assert all(orb_files.cap_in_name(name) in orb_files.CAPS for name in orb_files.PUBLISHED)


def test_every_published_name_is_one_of_the_package() -> None:
    from orb_models.forcefield import pretrained

    assert set(orb_files.PUBLISHED) <= set(pretrained.ORB_PRETRAINED_MODELS)


def test_weights_are_downloaded_by_the_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orb_models.forcefield import pretrained

    asked = []

    def downloads(address: str) -> str:
        asked.append(address)
        return str(path)

    monkeypatch.setattr(pretrained, "cached_path", downloads)
    published = load("orb:orb-v3-conservative-20-mpa", device="cpu")
    assert "orb-v3-conservative-20-mpa" in asked[0]
    assert "Apache-2.0" in str(published.trained.provenance["licence"])
    assert published.trained.module.backbone.settings.max_neighbours == 20  # type: ignore[attr-defined]

    def fails(address: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pretrained, "cached_path", fails)
    with pytest.raises(EutecticError, match=r"could not be downloaded \(ConnectionError: no route\).*orb:FILE\.ckpt"):
        load("orb:orb-v3-conservative-inf-mpa")


@pytest.mark.parametrize("name", ["orb:orb-v3-conservative-inf-omol", "orb:orb-v2"])
def test_published_models_that_are_not_supported(name: str) -> None:
    with pytest.raises(EutecticError, match="nor an Orb v3 published by orb-models for structures without charge"):
        load(name)


def test_a_file_whose_name_tells_no_cap_needs_one(home: Path) -> None:
    torch.save(built().state_dict(), home / "mine.ckpt")
    with pytest.raises(EutecticError, match=r"do not determine the model's cap on neighbours.*add @inf"):
        load(f"orb:{home / 'mine.ckpt'}")
    with pytest.raises(EutecticError, match="'30' neighbours"):
        load(f"orb:{home / 'mine.ckpt'}@30")


def test_elements_are_those_with_a_reference_energy_of_their_own() -> None:
    references = torch.full((118,), -4.9)
    assert len(orb_files._elements(references)) == 117
    references[torch.tensor([1, 6, 8])] = torch.tensor([-6.0, 0.0, 1.0])
    assert orb_files._elements(references) == (1, 6, 8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("heads.energy.mlp.NN-0.weight"), "expected a state dict of an Orb v3"),
        (lambda state: state.update({"model.conditioner.W": torch.zeros(2)}), "depends on charge and spin"),
        (lambda state: state.update({"model._encoder._node_fn.layer_norm.bias": torch.zeros(2)}), "an Orb v1 or v2"),
        (lambda state: state.update({"model.more": torch.zeros(2)}), "unknown model.more"),
        (lambda state: state.pop("model._encoder._edge_fn.mlp.NN-1.bias"), "lacks model._encoder._edge_fn.mlp.NN-1"),
        (
            lambda state: state.update({"heads.energy.mlp.NN-1.weight": torch.zeros(1, 3)}),
            "a different shape of heads.energy.mlp.NN-1.weight",
        ),
    ],
)
def test_files_that_do_not_fit(change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path) -> None:
    state = dict(built().state_dict())
    change(state)
    torch.save(state, tmp_path / "some.ckpt")
    with pytest.raises(EutecticError, match=says):
        load(f"orb:{tmp_path / 'some.ckpt'}@inf")


def test_weights_without_confidence_are_enough(model: Model, tmp_path: Path) -> None:
    state = {name: value for name, value in built().state_dict().items() if not name.startswith("heads.confidence.")}
    torch.save(state, tmp_path / "some.ckpt")
    ethanol, some = frames()["ethanol"], load(f"orb:{tmp_path / 'some.ckpt'}@inf", device="cpu")
    assert float(some.predict(ethanol)["energy"]) == pytest.approx(float(model.predict(ethanol)["energy"]), abs=1e-5)


def test_the_whole_module_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "module.ckpt")
    with pytest.raises(EutecticError, match="contains no dictionary; expected a state dict of an Orb v3"):
        load(f"orb:{tmp_path / 'module.ckpt'}")
