"""Checkpoints in the layout of fairchem's GemNet-OC (see `benchmarks/golden_checkpoints.py`)."""

from __future__ import annotations

import json
import lzma
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_checkpoint import write_published
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints.fairchem import OC20_STATISTICS, ROWS, TRAINING_DATA, read_fairchem_checkpoint
from eutectic.checkpoints.model import TrainedModel, elements_seen, load_model, save_model
from eutectic.data.datasets import oc20
from eutectic.predict.prediction import predict

FOLDER = Path(__file__).parent / "golden_fairchem"
FRAMES = Path(__file__).parents[2].parent / "shared" / "data" / "oc20" / "s2ef" / "val_20" / "data.lmdb"
NAMES = ("oc20", "oc22")
TASKS = {"oc20": "oc20", "oc22": "oc20+oc22"}
TOLERANCE = 1e-12
"""Relative to the largest value. Both compute in float64, and differ by 1e-14."""

Content = dict[str, Any]
Change = Callable[[Content], None]


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return {name: lzma.decompress((FOLDER / f"{name}.pt.xz").read_bytes()) for name in NAMES}


@pytest.fixture
def checkpoint(contents: dict[str, bytes], tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint, as fairchem's or changed."""

    def write(name: str, change: Change | None = None) -> Path:
        path = tmp_path / f"{name}.pt"
        path.write_bytes(contents[name])
        if change is not None:
            content = torch.load(path, weights_only=True)
            change(content)
            torch.save(content, path)
        return path

    return write


def options(content: Content) -> Content:
    """Configuration of the model."""
    found: Content = content["config"]["model_attributes"]
    return found


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "predictions.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def structures(golden: dict[str, np.ndarray]) -> list[Structure]:
    names = ("numbers", "positions", "tags", "cell", "pbc")
    return [Structure(**{name: golden[f"in.{i}.{name}"] for name in names}) for i in range(2)]


def check_same(
    model: TrainedModel,
    given: list[Structure],
    golden: dict[str, np.ndarray],
    labels: list[str],
    tolerance: float = TOLERANCE,
) -> None:
    """The predictions of `given`, in float64, are fairchem's of these labels."""
    model.module.double()
    predicted = predict(model, model.tasks[0].name, given)
    for one, label in zip(predicted, labels, strict=True):
        for prop in ("energy", "forces"):
            expected = golden[f"{label}.{prop}"]
            assert np.abs(one[prop] - expected).max() <= tolerance * np.abs(expected).max()


# --- predictions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_energies_and_forces_are_fairchems(
    name: str,
    checkpoint: Callable[..., Path],
    structures: list[Structure],
    golden: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    model, _ = read_fairchem_checkpoint(checkpoint(name))
    # What the test would not see if the numbers were small.
    assert all(np.abs(golden[f"{name}.{i}.forces"]).max() > 0.1 for i in range(2))
    save_model(tmp_path / "model", model)
    check_same(load_model(tmp_path / "model"), structures, golden, [f"{name}.{i}" for i in range(2)])


@pytest.mark.skipif(not FRAMES.is_file(), reason=f"OC20's frames are not at {FRAMES}")
@pytest.mark.parametrize("name", NAMES)
def test_frames_of_oc20_are_predicted_as_by_fairchem(
    name: str, checkpoint: Callable[..., Path], golden: dict[str, np.ndarray]
) -> None:
    frames = [labelled.structure for labelled in oc20.read(oc20.pieces(FRAMES, "oc20")[0], "oc20")]
    rattled = []
    for frame in (frames[0], frames[-1]):
        atoms = frame.to_ase()
        atoms.rattle(0.01, seed=0)
        atoms.positions = atoms.positions.astype(np.float32)
        atoms.set_cell(atoms.cell.array.astype(np.float32))
        rattled.append(replace(Structure.from_ase(atoms), tags=frame.tags))
    model, _ = read_fairchem_checkpoint(checkpoint(name))
    # Three atoms nearly in line amplify rounding errors of their dihedral angle.
    check_same(model, rattled, golden, [f"{name}.frame_{i}" for i in range(2)], tolerance=1e-8)


def test_the_command_and_predictions_in_a_file(
    checkpoint: Callable[..., Path], structures: list[Structure], golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from ase.io import read, write

    runner = CliRunner()
    result = runner.invoke(cli.app, ["import-fairchem", str(checkpoint("oc20")), "-o", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for words in (
        "adsorption energies",
        "licence:",
        "CC BY 4.0",
        "MIT",
        "task oc20",
        "RPBE",
        "rows for elements 1 to 83",
    ):
        assert words in said
    write(tmp_path / "in.xyz", [one.to_ase() for one in structures], format="extxyz")
    arguments = [str(tmp_path / "model"), str(tmp_path / "in.xyz"), "-o", str(tmp_path / "out.xyz")]
    result = runner.invoke(cli.app, ["predict", *arguments])
    assert result.exit_code == 0, result.output
    assert "adsorption energies" in " ".join(result.output.split())
    for i, atoms in enumerate(read(tmp_path / "out.xyz", ":")):
        assert atoms.info["oc20_energy"] == pytest.approx(golden[f"oc20.{i}.energy"], rel=1e-5)
        assert np.abs(atoms.arrays["oc20_forces"] - golden[f"oc20.{i}.forces"]).max() < 1e-5


# --- what is taken ---------------------------------------------------------------------------------------------


def test_task_and_provenance_of_oc20(checkpoint: Callable[..., Path]) -> None:
    model, report = read_fairchem_checkpoint(checkpoint("oc20"))
    (task,) = model.tasks
    normalisers = {prop: target.normaliser for prop, target in task.targets.items()}
    # As the file has them, in float32.
    mean, std = (float(np.float32(value)) for value in OC20_STATISTICS)
    assert (normalisers["energy"].mean, normalisers["energy"].scale) == (mean, std)
    assert (normalisers["forces"].mean, normalisers["forces"].scale) == (0.0, std)
    assert task.graph.caps == {"main": 30, "atom_edge": 20, "quadruplet": 8, "atom_atom": 1000}
    assert (task.graph.cutoff, task.graph.quadruplet_tags, task.graph.symmetry) == (12, (1, 2), "lower_source")
    assert "adsorption" in str(model.provenance["energies"])
    assert model.provenance["weights"] == "as stored"
    assert {1, 6, 29, 78} < elements_seen(model)
    assert not {2, 3, 92} & elements_seen(model)
    assert report.taken["scale factors"] == "80"


def test_the_averaged_weights_of_a_file_to_train_on_from_are_taken(checkpoint: Callable[..., Path]) -> None:
    model, report = read_fairchem_checkpoint(checkpoint("oc22"))
    assert model.provenance["weights"] == "averaged (EMA)"
    assert report.left["state of training"] == "optimizer"

    def without(content: Content) -> None:
        content["ema"] = None

    raw, _ = read_fairchem_checkpoint(checkpoint("oc22", without))
    assert raw.provenance["weights"] == "as stored"
    content = torch.load(checkpoint("oc22"), weights_only=True)
    name = "heads.oc20+oc22.energy.perceptron.0.weight"
    assert torch.equal(raw.module.state_dict()[name], content["state_dict"]["module.out_energy.linear.weight"])
    assert not torch.equal(raw.module.state_dict()[name], model.module.state_dict()[name])


def test_elements_that_fairchem_has_no_row_for(checkpoint: Callable[..., Path]) -> None:
    model, _ = read_fairchem_checkpoint(checkpoint("oc20"))
    table = model.module.backbone.atom_embedding.weight
    assert len(table) == ROWS
    rows = torch.load(checkpoint("oc20"), weights_only=True)["state_dict"]["module.module.atom_emb.embeddings.weight"]
    assert torch.equal(table[: len(rows)], rows)
    uranium = Structure(numbers=np.array([92, 8]), positions=np.array([(0.0, 0, 0), (1.8, 0, 0)]))
    assert np.isfinite(predict(model, "oc20", [uranium])[0]["energy"])


def trained_on(kind: str, **dataset: object) -> Change:
    def change(content: Content) -> None:
        content["config"]["task"]["dataset"] = kind
        content["config"]["dataset"] = dataset

    return change


def test_what_it_was_trained_on(checkpoint: Callable[..., Path]) -> None:
    def task(path: Path, given: str | None = None) -> str:
        return read_fairchem_checkpoint(path, trained_on=given)[0].tasks[0].name

    assert task(checkpoint("oc22")) == "oc20+oc22"
    assert task(checkpoint("oc22", trained_on("oc22_lmdb"))) == "oc22"
    other = checkpoint("oc22", trained_on("lmdb"))
    with pytest.raises(EutecticError, match=r"kind 'lmdb', with a mean energy of 0 eV.*--trained-on oc20, oc22"):
        task(other)
    for name in TRAINING_DATA:
        assert task(other, name) == name
    with pytest.raises(EutecticError, match=r"'oc21'.*did you mean 'oc2"):
        task(other, "oc21")


def test_normalisers_of_the_configuration_where_the_file_has_none(checkpoint: Callable[..., Path]) -> None:
    statistics = {"target_mean": -1.0, "target_std": 3.0, "grad_target_mean": 0.0, "grad_target_std": 2.0}
    path = checkpoint("oc22", trained_on("oc22_lmdb", normalize_labels=True, **statistics))
    targets = read_fairchem_checkpoint(path)[0].tasks[0].targets
    assert (targets["energy"].normaliser.mean, targets["energy"].normaliser.scale) == (-1, 3)
    assert targets["forces"].normaliser.scale == 2


def test_energies_of_elements_are_added(checkpoint: Callable[..., Path], structures: list[Structure]) -> None:
    def change(content: Content) -> None:
        references = torch.zeros(119, dtype=torch.float64)
        references[8], references[29] = -400.0, -1.5
        content["elementrefs"] = {"energy": {"element_references": references}}

    (with_them, _), (without, _) = (read_fairchem_checkpoint(checkpoint("oc22", c)) for c in (change, None))
    energies = [float(predict(m, m.tasks[0].name, structures[:1])[0]["energy"]) for m in (with_them, without)]
    # 18 atoms of copper, one of oxygen and one of hydrogen.
    assert energies[0] - energies[1] == pytest.approx(-400 - 18 * 1.5, abs=1e-6)


# --- scale factors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("ending", ["", ".scale_factor"])
def test_scale_factors_of_a_separate_file(
    suffix: str, ending: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    expected = read_fairchem_checkpoint(checkpoint("oc20"))[0].module.state_dict()
    scales: dict[str, torch.Tensor] = {}

    def take(content: Content) -> None:
        scales.update(content.pop("scale_dict"))

    path = checkpoint("oc20", take)
    with pytest.raises(EutecticError, match=r"80 of 80 scale factors are neither.*a scale file.*--scales FILE"):
        read_fairchem_checkpoint(path)
    file = tmp_path / f"scales{suffix}"
    named = {f"{name}{ending}": value for name, value in scales.items()}
    if suffix == ".pt":
        torch.save(named, file)
    else:
        numbers = {name: float(value) for name, value in named.items()}
        file.write_text(json.dumps({"comment": "GemNet-OC", **numbers}))
    got = read_fairchem_checkpoint(path, scales=file)[0].module.state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_scale_factors_that_are_not_there_or_contradict(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    factor = "int_blocks.2.quad_interaction.scale_sbf_sum"

    def unfit(content: Content) -> None:
        content["state_dict"][f"module.{factor}.scale_factor"].zero_()

    with pytest.raises(EutecticError, match=rf"1 of 54 scale factors.*{factor}.*--scales"):
        read_fairchem_checkpoint(checkpoint("oc22", unfit))
    file = tmp_path / "scales.json"
    file.write_text(json.dumps({factor: 0.5}))
    model, _ = read_fairchem_checkpoint(checkpoint("oc22", unfit), scales=file)
    assert float(model.module.state_dict()["backbone.blocks.2.quadruplet.scale_sum.value"]) == 0.5
    with pytest.raises(EutecticError, match=r"scale_sbf_sum.*and 0.5 in .*scales.json; expected one value"):
        read_fairchem_checkpoint(checkpoint("oc22"), scales=file)
    for wrong in ("[", "\x00\x01"):
        file.write_text(wrong)
        with pytest.raises(EutecticError, match="cannot be read as scale factors"):
            read_fairchem_checkpoint(checkpoint("oc22", unfit), scales=file)
    with pytest.raises(EutecticError, match="cannot be read as scale factors"):
        read_fairchem_checkpoint(checkpoint("oc22"), scales=tmp_path / "absent.pt")


# --- what is refused -------------------------------------------------------------------------------------------


def option(**changes: object) -> Change:
    return lambda content: options(content).update(changes)


def drop(*names: str) -> Change:
    def change(content: Content) -> None:
        for name in names:
            del content["state_dict"][f"module.{name}"]

    return change


def model_is(name: object) -> Change:
    return lambda content: content["config"].update(model=name)


def set_weight(name: str, value: torch.Tensor) -> Change:
    return lambda content: content["state_dict"].update({f"module.{name}": value})


def reorder(content: Content) -> None:
    content["state_dict"].move_to_end("module.mlp_rbf_h.linear.weight")


def shorten_average(content: Content) -> None:
    content["ema"]["shadow_params"].pop()


def no_size(content: Content) -> None:
    del options(content)["emb_size_rbf"]


def no_statistics(content: Content) -> None:
    content["normalizers"] = {"target": {"mean": "a", "std": torch.tensor(1.0)}}


WRONG: dict[str, tuple[Change, str]] = {
    "schnet": (model_is("schnet"), "a checkpoint of the model 'schnet'"),
    "gemnet_t": (model_is("gemnet_t"), "a checkpoint of the model 'gemnet_t'"),
    "a hydra of later versions": (model_is({"name": "hydra"}), "a checkpoint of the model 'hydra'"),
    "no configuration": (lambda content: content.pop("config"), "no configuration of a model"),
    "no weights": (lambda content: content.pop("state_dict"), "no weights in an entry state_dict"),
    "a layer is missing": (
        drop("int_blocks.0.dense_ca.linear.weight"),
        "int_blocks.0.dense_ca.linear.weight is missing",
    ),
    "no heads": (drop("out_energy.linear.weight"), "out_energy.linear.weight is missing"),
    "no embedding": (drop("atom_emb.embeddings.weight"), "atom_emb.embeddings.weight is missing"),
    "another shape": (set_weight("out_energy.linear.weight", torch.ones(1, 3)), r"has shape \(1, 3\)"),
    "not finite": (set_weight("radial_basis.rbf.offset", torch.full((16,), torch.nan)), "differs|not finite"),
    "a size is missing": (no_size, "no emb_size_rbf in the configuration"),
    "a size is a word": (option(emb_size_rbf="wide"), "emb_size_rbf|radial_width"),
    "a million blocks": (option(num_blocks=1_000_000), "blocks"),
    "a thousand blocks": (option(num_blocks=1000, num_before_skip=1000), "1000 blocks of"),
    "neighbours that are none": (option(max_neighbors="many"), "max_neighbo|invalid numbers of neighbours"),
    "other functions": (option(rbf={"name": "bernstein"}), "rbf: {'name': 'bernstein'}"),
    "other functions of angles": (option(rbf_spherical={"name": "spherical_bessel"}), "rbf_spherical"),
    "coupled forces": (option(forces_coupled=True), "forces_coupled: True"),
    "several cutoffs": (option(cutoff_qint=6.0), "cutoff_qint: 6.0"),
    "another envelope": (option(envelope={"name": "exponential"}), "envelope"),
    "averages in another order": (reorder, "in place of mlp_rbf_h.linear.weight"),
    "an average is missing": (shorten_average, "334 averaged weights for 335 named ones"),
    "statistics that are none": (no_statistics, "normaliser of energy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_an_error_in_four_parts(case: str, checkpoint: Callable[..., Path]) -> None:
    change, says = WRONG[case]
    with pytest.raises(EutecticError, match=says) as raised:
        read_fairchem_checkpoint(checkpoint("oc22", change))
    error = raised.value
    assert "oc22.pt" in error.where
    assert all((error.given, error.expected, error.fix))


def test_a_model_without_a_head_of_forces(checkpoint: Callable[..., Path], structures: list[Structure]) -> None:
    def scalar(content: Content) -> None:
        options(content).update(direct_forces=False)
        kinds = (".scale_rbf_F.", ".seq_forces.", ".dense_rbf_F.", "out_mlp_F.", "out_forces.")
        for name in list(content["state_dict"]):
            if any(kind in name for kind in kinds):
                del content["state_dict"][name]
        content["ema"] = None

    model, report = read_fairchem_checkpoint(checkpoint("oc22", scalar))
    assert list(model.tasks[0].targets) == ["energy"]
    assert "--conservative" in report.missing["forces"]
    predicted = predict(model, model.tasks[0].name, structures[:1], conservative=True)[0]
    assert np.isfinite(predicted["forces"]).all()


def test_checkpoints_of_jmp_are_told_apart(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=r"a checkpoint of JMP.*import-jmp"):
        read_fairchem_checkpoint(write_published(tmp_path / "jmp.pt"))


def test_a_file_that_is_not_whole(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    whole = checkpoint("oc20").read_bytes()
    path = tmp_path / "damaged.pt"
    for content in (b"", b"weights", whole[:1000], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(EutecticError, match=r"a complete file written by torch\.save"):
            read_fairchem_checkpoint(path)
    # A byte of a weight: the archive's own checksum finds it.
    with zipfile.ZipFile(tmp_path / "oc20.pt") as archive:
        weights = max(archive.infolist(), key=lambda record: "/data/" in record.filename and record.file_size)
        at = whole.index(archive.read(weights))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(EutecticError, match="Bad CRC-32"):
        read_fairchem_checkpoint(path)


class Hostile:
    """Makes a folder when it is unpickled as usual."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["config", "ema", "scale_dict", "anywhere"])
def test_a_hostile_file_runs_nothing(place: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    content = torch.load(checkpoint("oc20"), weights_only=True)
    content[place] = Hostile(ran)
    path = tmp_path / "hostile.pt"
    torch.save(content, path)
    try:
        _, report = read_fairchem_checkpoint(path)
    except EutecticError:
        assert place in ("config", "scale_dict")
    else:
        assert report.left["objects"].startswith("of 1 class")
    assert not ran.exists()
    scales = tmp_path / "scales.pt"
    torch.save({"int_blocks.0": Hostile(ran)}, scales)
    read_fairchem_checkpoint(checkpoint("oc20"), scales=scales)
    assert not ran.exists()
    # It would have run.
    pickle.loads(pickle.dumps(Hostile(ran)))
    assert ran.exists()
