"""MACE as a backbone, compared with the package itself: models made and saved by `mace-torch`, none downloaded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.graph import GraphSettings
from eutectic.models.foreign.mace import MACE, PACKAGE, MACESettings
from eutectic.models.lora import add_low_rank, merge_low_rank
from eutectic.models.parts import REST, part_names, part_of
from eutectic.predict.model import load
from eutectic.testing import CheckResult, parametrize_backbone_checks
from eutectic.testing.observation import graph_of

pytest.importorskip("mace", reason="mace-torch is not installed (pip install 'eutectic[mace]')")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("home")]

from foreign_parity import check_vectors_turn, deviations, frames  # noqa: E402

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=1000)
TINY: dict[str, Any] = {
    "num_bessel": 6,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticInteractionBlock",
    "num_interactions": 2,
    "hidden_irreps": "8x0e+8x1o",
    "MLP_irreps": "4x0e",
    "avg_num_neighbors": 10.0,
    "correlation": 2,
    "gate": "silu",
    "pair_repulsion": False,
    "apply_cutoff": True,
    "use_reduced_cg": True,
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_edge_irreps_first": False,
    "distance_transform": "None",
    "edge_irreps": None,
    "radial_MLP": [16, 16],
    "radial_type": "bessel",
    "heads": ["Default"],
    "readout_cls": "NonLinearReadoutBlock",
    "keep_last_layer_irreps": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "deeper": {"num_interactions": 3, "max_ell": 1, "correlation": 3, "hidden_irreps": "4x0e+4x1o"},
    "one layer": {"num_interactions": 1, "hidden_irreps": "8x0e"},
    "as mpa-0": {
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
    },
    "two heads": {"heads": ["dft", "ccsd"], "distance_transform": "Soft", "pair_repulsion": True},
    "bias": {"readout_cls": "NonLinearBiasReadoutBlock", "use_last_readout_only": True, "gate": "tanh"},
}


def saved(folder: Path, name: str, *, plain: bool = False, precision: torch.dtype = torch.float64) -> Path:
    """A model of random weights, made by the package and saved as it saves its own."""
    (modules,) = PACKAGE.load("modules")
    from e3nn import o3

    config = TINY | KINDS[name]
    heads, numbers = config["heads"], [1, 6, 8, 29]
    values = {
        **config,
        "r_max": 4.0,
        "atomic_numbers": numbers,
        "num_elements": len(numbers),
        "atomic_energies": -np.arange(1.0, 1 + len(heads) * len(numbers)).reshape(len(heads), -1),
        "interaction_cls": modules.interaction_classes[config["interaction_cls"]],
        "interaction_cls_first": modules.interaction_classes[config["interaction_cls_first"]],
        "readout_cls": modules.readout_classes[config["readout_cls"]],
        "gate": modules.gate_dict[config["gate"]],
        **{k: o3.Irreps(config[k]) for k in ("hidden_irreps", "MLP_irreps")},
    }
    scaling = {"atomic_inter_scale": [70.0, 130.0][: len(heads)], "atomic_inter_shift": [0.2, -0.1][: len(heads)]}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        model = modules.MACE(**values) if plain else modules.ScaleShiftMACE(**values, **scaling)
    finally:
        torch.set_default_dtype(before)
    path = folder / f"{name.replace(' ', '_')}.model"
    torch.save(model, path)
    return path


def calculator(path: Path, precision: str = "float64", **options: Any) -> Any:
    from mace.calculators import MACECalculator

    before = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = MACECalculator(model_paths=str(path), device="cpu", default_dtype=precision, **options)
    torch.set_default_dtype(before)
    return made


def tiny(**changes: Any) -> MACESettings:
    return MACESettings(config=TINY | changes, elements=tuple(range(1, 95)), cutoff=5.0, edge_width=8)


# --- parity -----------------------------------------------------------------------------------


def check_parity(found: dict[str, dict[str, float]], tolerance: float) -> None:
    assert max(of["energy"] for of in found.values()) < tolerance
    assert max(of["forces"] for of in found.values()) < tolerance
    assert max(of["stress"] for of in found.values() if "stress" in of) < tolerance
    assert max(of["batch"] for of in found.values()) < tolerance


@pytest.mark.parametrize("name", [kind for kind in KINDS if kind != "two heads"])
def test_predictions_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    check_parity(deviations(load(f"mace:{path}"), calculator(path)), 1e-6)


@pytest.mark.parametrize("head", ["dft", "ccsd"])
def test_each_head_is_a_task(head: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "two heads")
    both = load(f"mace:{path}")
    assert list(both.tasks) == ["dft", "ccsd"]
    own = calculator(path, head=head)
    check_parity(deviations(both, own, head), 1e-6)
    one = load(f"mace:{path}@{head}")
    ethanol = frames()["ethanol"]
    assert one.predict(ethanol)["energy"] == pytest.approx(both.predict(ethanol, task=head)["energy"])
    with pytest.raises(EutecticError, match="no such head; expected one of dft, ccsd"):
        load(f"mace:{path}@mp2")


def test_a_model_without_scale_and_shift(tmp_path: Path) -> None:
    path = saved(tmp_path, "as mpa-0", plain=True)
    check_parity(deviations(load(f"mace:{path}"), calculator(path)), 1e-6)


def test_a_model_in_single_precision(tmp_path: Path) -> None:
    path = saved(tmp_path, "default", precision=torch.float32)
    model = load(f"mace:{path}")
    assert next(model.trained.module.parameters()).dtype == torch.float32
    check_parity(deviations(model, calculator(path, "float32")), 1e-5)


# --- the contract -----------------------------------------------------------------------------


@parametrize_backbone_checks(lambda: MACE(tiny()), GRAPH)
def test_conformance(check: Callable[[], CheckResult]) -> None:
    check()


@parametrize_backbone_checks(
    lambda: MACE(tiny(pair_repulsion=True, distance_transform="Agnesi", **KINDS["bias"])), GRAPH
)
def test_conformance_with_repulsion(check: Callable[[], CheckResult]) -> None:
    check()


def test_polar_vectors_of_all_layers_turn_with_the_structure() -> None:
    torch.manual_seed(0)
    check_vectors_turn(MACE(tiny()).double(), GRAPH, least=1e-3)


# --- used like any other ------------------------------------------------------------------------


def test_finetune_from_the_command_line(tmp_path: Path) -> None:
    path = saved(tmp_path, "default", precision=torch.float32)
    structures, package = [], calculator(path)
    for seed in range(10):
        atoms = frames()["ethanol"]
        atoms.rattle(0.05, seed=seed)
        own = atoms.copy()
        own.calc = package
        energy, forces = own.get_potential_energy(), own.get_forces()
        # On another origin than that of the model, as of any other program.
        atoms.calc = SinglePointCalculator(atoms, energy=energy - 1000.0, forces=forces)
        structures.append(atoms)
    write(tmp_path / "some.xyz", structures)
    # Prepared first, since a file with bonds as random weights make them would be refused.
    store = f"data prepare ase --source {tmp_path / 'some.xyz'} --store {tmp_path / 'store'}"
    command = f"finetune {tmp_path / 'store'} -p energy -p forces --model mace:{path} --n-train 6 --n-validation 4 "
    command += f"--n-test 0 --steps 2 --batch-size 2 --train.threads 1 --out {tmp_path / 'run'}"
    for line in (store, command):
        done = CliRunner().invoke(cli.app, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert "kept: heads of task default: energy" in " ".join(done.output.split())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # Labels are the model's own, but for the origin: before any training it is right, up to single precision.
    assert result["curves"]["energy"][0] < 1.0
    assert result["curves"]["forces"][0] < 0.1
    tuned = load(tmp_path / "run")
    assert tuned.trained.backbone == "mace"
    assert tuned.predict(structures[0])["forces"].shape == (9, 3)


# --- files that are not what they should be -------------------------------------------------------


def test_parts_that_are_not_supported(tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    model = torch.load(path, weights_only=False)
    model.joint_embedding = torch.nn.Linear(1, 1)
    torch.save(model, tmp_path / "charged.model")
    with pytest.raises(EutecticError, match="an embedding of charge or spin, which eutectic does not support"):
        load(f"mace:{tmp_path / 'charged.model'}")


def test_a_model_that_lacks_a_part(tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    model = torch.load(path, weights_only=False)
    del model.radial_embedding
    torch.save(model, tmp_path / "half.model")
    with pytest.raises(EutecticError, match="a MACE of an unknown build: no 'radial_embedding'"):
        load(f"mace:{tmp_path / 'half.model'}")
    model = torch.load(path, weights_only=False)
    model.avg_num_neighbors, model.interactions = 1.0, model.interactions[:1]
    torch.save(model, tmp_path / "short.model")
    with pytest.raises(EutecticError, match=r"unknown build|weights that do not fit"):
        load(f"mace:{tmp_path / 'short.model'}")


def test_a_file_of_the_training_is_no_model(tmp_path: Path) -> None:
    torch.save({"model": {}, "optimizer": {}, "epoch": 3}, tmp_path / "some.pt")
    with pytest.raises(EutecticError, match="not a MACE") as error:
        load(f"mace:{tmp_path / 'some.pt'}")
    assert "not a training checkpoint" in error.value.fix


def test_parts_and_low_rank_changes() -> None:
    backbone = MACE(MACESettings(config=TINY, elements=(1, 6, 7, 8), cutoff=5.0, edge_width=8)).double()
    blocks = [f"block_{k}" for k in range(2)]
    assert part_names(backbone) == ["embedding", *blocks, "readout", "blocks", "backbone", "heads"]
    parts = {name: part_of(backbone, name) for name, _ in backbone.named_parameters()}
    assert REST not in parts.values()
    assert {part for name, part in parts.items() if name.startswith("interactions.0.")} == {"block_0"}
    graph = graph_of([Structure.from_ase(molecule("CH3CH2OH"))], GRAPH, backbone)
    before = backbone(graph).atoms
    # Those of the networks of distances; the package's other weights are not matrices.
    assert add_low_rank(backbone, 4) == 8
    torch.testing.assert_close(backbone(graph).atoms, before, rtol=0, atol=0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1)
    changed = backbone(graph).atoms
    assert not torch.equal(changed, before)
    merge_low_rank(backbone)
    torch.testing.assert_close(backbone(graph).atoms, changed, rtol=0, atol=0)
