"""SevenNet as a backbone, compared with the package itself; weights of 7net-0 come in its wheel."""

from __future__ import annotations

import copy
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
from ase.io import read, write
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.graph import GraphSettings
from eutectic.models.foreign.sevennet import PACKAGE, SevenNet, SevenNetSettings
from eutectic.models.lora import add_low_rank, merge_low_rank
from eutectic.models.parts import REST, part_names, part_of
from eutectic.predict.model import Model, load
from eutectic.testing import CheckResult, generic_structures, parametrize_backbone_checks
from eutectic.testing.observation import graph_of

pytest.importorskip("sevenn", reason="sevenn is not installed (pip install 'eutectic[sevennet]')")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("home")]

from foreign_parity import check_vectors_turn, deviations, frames  # noqa: E402

GRAPH = GraphSettings(cutoff=5.0, max_neighbours=1000)
TINY: dict[str, Any] = {
    "_normalize_sph": True,
    "_number_of_species": 94,
    "act_gate": {"e": "silu", "o": "tanh"},
    "act_radial": "silu",
    "act_scalar": {"e": "silu", "o": "tanh"},
    "channel": 8,
    "conv_denominator": 10.0,
    "cutoff": 5.0,
    "cutoff_function": {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6},
    "interaction_type": "nequip",
    "irreps_manual": False,
    "is_parity": True,
    "lmax": 2,
    "lmax_edge": -1,
    "lmax_node": -1,
    "num_convolution_layer": 3,
    "radial_basis": {"radial_basis_name": "bessel", "bessel_basis_num": 6},
    "readout_as_fcn": False,
    "self_connection_type": "nequip",
    "train_denominator": False,
    "use_bias_in_linear": False,
    "weight_nn_hidden_neurons": [16],
}


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load("sevennet:7net-0", device="cpu")


def calculator(name: str, **options: Any) -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(name, device="cpu", **options)


def tiny(**changes: Any) -> SevenNetSettings:
    return SevenNetSettings(config=TINY | changes, elements=tuple(range(1, 95)), cutoff=5.0, edge_width=8)


# --- parity -----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_package(model: Model) -> None:
    # Both in single precision.
    found = deviations(model, calculator("7net-0"))
    assert max(of["energy"] for of in found.values()) < 5e-6
    assert max(of["forces"] for of in found.values()) < 1e-5
    assert max(of["stress"] for of in found.values() if "stress" in of) < 1e-6
    assert max(of["batch"] for of in found.values()) < 1e-5


def test_a_modality_is_chosen_by_name() -> None:
    found = deviations(load("sevennet:7net-mf-0@R2SCAN"), calculator("7net-mf-0", modal="R2SCAN"))
    assert max(of["energy"] for of in found.values()) < 5e-6
    assert max(of["forces"] for of in found.values()) < 1e-5


def test_in_double_precision_only_rounding_is_left(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    double, own = copy.deepcopy(model.trained), calculator("7net-0")
    double.module.double()
    own.model.double()

    def in_double(module: Any, data: Any) -> None:
        for name, value in data[0].to_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                data[0][name] = value.double()

    own.model.register_forward_pre_hook(in_double)
    # Two modules of the package convert indices to single precision.
    real = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: real(x) if x.is_floating_point() else x.double())
    found = deviations(Model(double), own)
    assert max(of["energy"] for of in found.values()) < 1e-7
    # The package rounds edge vectors to single precision before they come here.
    assert max(of["forces"] for of in found.values()) < 3e-6
    assert max(of["stress"] for of in found.values() if "stress" in of) < 1e-7
    assert max(of["batch"] for of in found.values()) < 1e-11


def test_a_checkpoint_of_a_user_is_read_as_the_published_one(model: Model, tmp_path: Path) -> None:
    from sevenn.util import pretrained_name_to_path

    path = tmp_path / "mine.pth"
    path.write_bytes(Path(pretrained_name_to_path("7net-0")).read_bytes())
    mine = load(f"sevennet:{path}")
    assert list(mine.tasks) == ["mine"]
    ethanol = frames()["ethanol"]
    assert mine.predict(ethanol)["energy"] == model.predict(ethanol)["energy"]


# --- the contract -----------------------------------------------------------------------------


@parametrize_backbone_checks(lambda: SevenNet(tiny()), GRAPH)
def test_conformance_with_parity(check: Callable[[], CheckResult]) -> None:
    check()


@parametrize_backbone_checks(
    lambda: SevenNet(tiny(is_parity=False, num_convolution_layer=2, self_connection_type="linear")),
    GRAPH,
    # Vectors and their cross products share channels, so that the energy itself may change under inversion.
    skip=["inversion"],
)
def test_conformance_without_parity_as_published(check: Callable[[], CheckResult]) -> None:
    check()


def test_polar_vectors_of_all_layers_turn_with_the_structure() -> None:
    torch.manual_seed(0)
    check_vectors_turn(SevenNet(tiny()).double(), GRAPH, least=1e-5)
    assert SevenNet(tiny(is_parity=False)).vector_width == 0


def test_edges_beyond_its_cutoff_change_nothing() -> None:
    torch.manual_seed(0)
    backbone = SevenNet(tiny(cutoff_function={"cutoff_function_name": "XPLOR", "cutoff_on": 4.5})).double()
    structures = list(generic_structures().values())
    short, long = (graph_of(structures, GraphSettings(cutoff=c, max_neighbours=1000), backbone) for c in (5.0, 7.0))
    with torch.no_grad():
        one, two = backbone(short), backbone(long)
    assert torch.allclose(one.atoms, two.atoms, atol=1e-12)
    assert two.edges is not None
    assert two.edges.shape == (len(long.main), 8)
    assert float(two.edges[long.vectors(long.main)[0] >= 5.0].abs().max()) == 0


# --- used like any other ------------------------------------------------------------------------


def test_it_says_where_it_comes_from(model: Model) -> None:
    told = model.trained.provenance
    assert told["imported_from"] == "sevennet:7net-0"
    assert told["package"] == f"sevenn {PACKAGE.version()}"
    assert "MIT" in str(told["licence"])
    assert "PBE" in model.trained.tasks[0].level_of_theory
    assert len(model.elements) == 89


def test_it_is_converted_once_and_then_a_model_folder_like_any_other(home: Path, model: Model) -> None:
    folder = home / "models" / "sevennet"
    (converted,) = (path for path in folder.iterdir() if path.name.startswith("7net-0-"))
    written = (converted / "model.json").stat().st_mtime_ns
    again = load("sevennet:7net-0")
    assert (converted / "model.json").stat().st_mtime_ns == written
    assert "model.safetensors" in json.loads((converted / "model.json").read_text())["sha256"]
    ethanol = frames()["ethanol"]
    for one, two in ((again, model), (load(converted), model)):
        assert one.predict(ethanol)["energy"] == two.predict(ethanol)["energy"]


def test_an_element_it_does_not_know(model: Model) -> None:
    atoms = frames()["ethanol"]
    atoms.numbers[0] = 86
    with pytest.raises(EutecticError, match="Rn"):
        model.predict(atoms)
    backbone = model.trained.module.backbone
    graph = graph_of([Structure.from_ase(atoms)], GRAPH, backbone).to("cpu", torch.float32)
    with pytest.raises(EutecticError, match="SevenNet: element Rn, which the backbone does not support"):
        backbone(graph)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sevennet:7net-mf-0", "several modalities, and none given; expected one of R2SCAN, PBE"),
        ("sevennet:7net-mf-0@PBE0", "modality 'PBE0'"),
        ("sevennet:7net-0@PBE", "expected no modality"),
    ],
)
def test_modalities_that_do_not_fit(name: str, says: str) -> None:
    with pytest.raises(EutecticError, match=says):
        load(name)


def test_predict_and_finetune_from_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    structures, package = [], calculator("7net-0")
    for seed in range(12):
        atoms = frames()["ethanol"]
        atoms.rattle(0.05, seed=seed)
        own = atoms.copy()
        own.calc = package
        energy, forces = own.get_potential_energy(), own.get_forces()
        # On another origin than that of the model, as of any other program.
        atoms.calc = SinglePointCalculator(atoms, energy=energy - 1000.0, forces=forces)
        structures.append(atoms)
    write(tmp_path / "some.xyz", structures)
    done = run(cli.app, ["predict", "sevennet:7net-0", str(tmp_path / "some.xyz"), "-o", str(tmp_path / "out.xyz")])
    assert done.exit_code == 0, done.output
    assert all(np.isfinite(atoms.info["7net-0_energy"]) for atoms in read(tmp_path / "out.xyz", ":"))
    command = f"finetune {tmp_path / 'some.xyz'} -p energy -p forces --model sevennet:7net-0 --n-train 6 "
    command += f"--n-validation 4 --n-test 0 --steps 2 --batch-size 2 --train.threads 1 --out {tmp_path / 'run'}"
    done = run(cli.app, command.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "kept: heads of task 7net-0: energy" in words
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # Labels are the model's own, but for the origin: before any training it is right, up to its single precision.
    assert result["curves"]["energy"][0] < 0.5
    assert result["curves"]["forces"][0] < 0.1
    tuned = load(tmp_path / "run")
    assert tuned.trained.backbone == "sevennet"
    assert tuned.trained.provenance["pretrained"]["imported_from"] == "sevennet:7net-0"  # type: ignore[index]
    assert tuned.predict(structures[0])["forces"].shape == (9, 3)


def test_parts_and_low_rank_changes() -> None:
    backbone = SevenNet(tiny()).double()
    blocks = [f"block_{k}" for k in range(3)]
    assert part_names(backbone) == ["embedding", *blocks, "readout", "blocks", "backbone", "heads"]
    parts = {name: part_of(backbone, name) for name, _ in backbone.named_parameters()}
    assert REST not in parts.values()
    assert {part for name, part in parts.items() if name.startswith("network.0_")} == {"block_0"}
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


def test_a_copy_has_the_weights_of_a_new_model(model: Model) -> None:
    # Constants of e3nn's generated code become buffers in a copy, such as the EMA's.
    module = model.trained.module
    duplicate = copy.deepcopy(module)
    assert duplicate.state_dict().keys() == module.state_dict().keys()
    module.load_state_dict(duplicate.state_dict())
    duplicate.load_state_dict(module.state_dict())
