"""Predictions for a file: in constant memory, around what is broken, never over what must not be lost."""

from __future__ import annotations

import json
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import iread, read, write
from typer.testing import CliRunner, Result

from eutectic import cli
from eutectic.atoms import EutecticError, Interrupted, Structure
from eutectic.checkpoints.model import TrainedModel, build_backbone, save_model
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.predict.files import Read, check_output, partial_path, predict_file, read_each, writing_predictions
from eutectic.tasks import TargetSettings, fit_task

GRAPH = GraphSettings(cutoff=4.0, max_neighbours=12)
NAMES = ("H2O", "CH4", "NH3")


@pytest.fixture(scope="module")
def model(molecules: Store) -> TrainedModel:
    """Has references for the elements of molecules only."""
    targets = {
        "energy": TargetSettings(head=HeadSettings(layers=1)),
        "forces": TargetSettings(head=HeadSettings(kind="direct_forces", layers=1)),
    }
    task = fit_task("mine", molecules, np.arange(len(molecules)), targets, GRAPH)
    settings = {"width": 8, "layers": 1, "cutoff": 4.0}
    torch.manual_seed(0)
    module = MultitaskModel(build_backbone("painn", settings)[0], {"mine": task.heads}).eval()
    elements = {"pretrained_on": {"molecules": {"elements": [1, 6, 8]}}}
    return TrainedModel(module, (task,), "painn", settings, GRAPH, elements)


@pytest.fixture(scope="module")
def saved(model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, model)
    return folder


def lines_of(name: str) -> str:
    """One structure in extended xyz."""
    atoms = bulk("Cu", cubic=True) if name == "Cu" else molecule(name)
    rows = "".join(f"{a.symbol} {a.x:.6f} {a.y:.6f} {a.z:.6f}\n" for a in atoms)
    return f'{len(atoms)}\nname={name} pbc="F F F"\n{rows}'


BROKEN = "1\nname=broken\nH 0.0 nonsense 0.0\n"
TOGETHER = '2\nname=together pbc="F F F"\nH 0 0 0\nH 0 0 0\n'


def run(saved: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["predict", str(saved), *map(str, arguments)])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_what_cannot_be_predicted_is_reported_and_the_rest_is_kept(
    saved: Path, tmp_path: Path, batch_size: int
) -> None:
    bad = {2: lines_of("Cu"), 4: BROKEN, 5: BROKEN, 7: TOGETHER}
    good = {i: NAMES[i % 3] for i in range(10) if i not in bad}
    source, out = tmp_path / "in.xyz", tmp_path / "out.xyz"
    source.write_text("".join(bad.get(i) or lines_of(good[i]) for i in range(10)))
    result = run(saved, source, "-o", out, "--json", "--batch-size", batch_size)
    assert result.exit_code == 3
    assert "4 of 10 structures could not be predicted" in result.stderr
    for index, reason in ((2, "no reference"), (4, "nonsense"), (5, "nonsense"), (7, "same position")):
        assert any(f"structure {index}" in line and reason in line for line in result.stderr.splitlines()), index
    made = json.loads(result.stdout)
    assert [one["structure"] for one in made["not_predicted"]] == list(bad)
    assert made["complete"]
    assert [i for i, one in enumerate(made["predictions"]) if one is None] == list(bad)
    written = {atoms.info["name"] + str(i): atoms for i, atoms in enumerate(read(out, ":"))}
    assert len(written) == 8  # without those that could not be read
    assert [a.info["mine_not_predicted"] for a in written.values() if "mine_not_predicted" in a.info] == [
        made["not_predicted"][0]["reason"],
        made["not_predicted"][3]["reason"],
    ]
    energies = {name: [a.info["mine_energy"] for a in written.values() if a.info["name"] == name] for name in NAMES}
    for i, name in good.items():
        for energy in [*energies[name], made["predictions"][i]["energy"]]:
            assert energy == pytest.approx(energies[name][0], rel=1e-5)
    assert not partial_path(out).exists()


def test_elements_the_model_never_saw_are_named(saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.xyz"
    source.write_text(lines_of("H2O") + lines_of("Cu") + lines_of("Cu"))
    result = run(saved, source, "--json", "--normalised")
    assert result.exit_code == 0
    assert "never saw in training: Cu (2 structures)" in result.stderr


def test_where_nothing_can_be_predicted_nothing_is_written(saved: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.xyz", tmp_path / "out.xyz"
    out.write_text("precious")
    for content in (lines_of("Cu"), lines_of("Cu") * 3 + TOGETHER, BROKEN * 3, "", "nonsense\n"):
        source.write_text(content)
        result = run(saved, source, "-o", out, "--json")
        assert isinstance(result.exception, EutecticError), result.output
        assert result.stdout == ""
        assert out.read_text() == "precious"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]


@pytest.mark.parametrize("cut", [15, 40])
def test_a_file_that_ends_in_a_structure(saved: Path, tmp_path: Path, cut: int) -> None:
    source, out = tmp_path / "in.xyz", tmp_path / "out.xyz"
    source.write_text((lines_of("H2O") * 3)[:-cut])
    assert run(saved, source, "-o", out).exit_code == 3
    assert len(list(iread(out))) == 2


def test_other_formats_end_at_the_first_structure_that_cannot_be_read(tmp_path: Path) -> None:
    source = tmp_path / "in.pdb"
    write(source, [molecule("H2O")] * 3)
    source.write_text(source.read_text().replace("HETATM    2", "HETATM    2 nonsense", 1))
    reads = list(read_each(source))
    assert reads[-1].error is None or "nothing after it" in reads[-1].error.given


def test_memory_does_not_grow_with_the_file(model: TrainedModel, tmp_path: Path) -> None:
    """Neither the structures nor the predictions are kept."""
    source = tmp_path / "in.xyz"
    source.write_text(lines_of("CH4") * 600)
    kept: list[weakref.ref[Structure]] = []
    most = 0

    def count(one: Read, outcome: object) -> None:
        nonlocal most, kept
        assert one.structure is not None
        kept = [*(ref for ref in kept if ref() is not None), weakref.ref(one.structure)]
        most = max(most, len(kept))

    assert predict_file(model, "mine", source, [count], batch_size=4).predicted == 600
    assert most <= 8 * 4 + 1


# --- the output ----------------------------------------------------------------------------------------------------


def test_the_output_is_checked_before_anything_is_computed(tmp_path: Path) -> None:
    source = tmp_path / "in.xyz"
    source.write_text(lines_of("H2O"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.xyz").symlink_to(source)
    os.link(source, tmp_path / "other-name.xyz")
    partial = tmp_path / "new.partial.xyz"
    partial.symlink_to(source)
    for name, says in (
        ("folder", "is a folder"),
        ("in.xyz", "is the input"),
        ("link.xyz", "is the input"),
        ("other-name.xyz", "is the input"),
        ("new.xyz", r"new\.partial\.xyz is the input"),
        ("/dev/full", "not an ordinary file"),
    ):
        with pytest.raises(EutecticError, match=says):
            check_output(tmp_path / name, source)
    check_output(tmp_path / "missing" / "out.xyz", source)


def test_a_missing_folder_is_made_and_an_impossible_one_refused(saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.xyz"
    source.write_text(lines_of("H2O"))
    assert run(saved, source, "-o", tmp_path / "no" / "such" / "x.xyz").exit_code == 0
    result = run(saved, source, "-o", source / "x.xyz")
    assert isinstance(result.exception, EutecticError)
    assert "could not be written" in str(result.exception)


def test_an_older_file_is_replaced_only_by_a_whole_one(saved: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.xyz", tmp_path / "out.xyz"
    source.write_text(lines_of("H2O"))
    (tmp_path / "kept").mkdir()
    out.symlink_to(tmp_path / "kept" / "real.xyz")
    for _ in range(2):
        assert run(saved, source, "-o", out).exit_code == 0
    assert "an older file was replaced" in run(saved, source, "-o", out).output
    assert out.is_symlink()
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["real.xyz"]


@pytest.mark.parametrize("error", [EutecticError("a", "b", "c", "free some space"), Interrupted("stopped"), KeyError()])
def test_what_was_written_before_an_error_is_kept_apart(tmp_path: Path, error: Exception) -> None:
    out = tmp_path / "out.xyz"
    out.write_text("precious")

    def write_some() -> None:
        with writing_predictions(out) as stream:
            stream.write("whole\n")
            raise error

    with pytest.raises(type(error)) as caught:
        write_some()
    assert out.read_text() == "precious"
    assert partial_path(out).read_text() == "whole\n"
    assert isinstance(error, KeyError) or "out.partial.xyz" in str(caught.value)
    assert not list(tmp_path.glob("*.lock"))


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with writing_predictions(tmp_path / "out.xyz"), pytest.raises(EutecticError, match="another process"):  # noqa: SIM117
        with writing_predictions(tmp_path / "out.xyz"):
            pass


# --- other formats -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Water, copper that the model has no reference for, methane."""
    path = tmp_path / "mixed.xyz"
    path.write_text(lines_of("H2O") + lines_of("Cu") + lines_of("CH4"))
    return path


def test_parquet_holds_what_json_holds(saved: Path, mixed: Path, tmp_path: Path) -> None:
    table_file, json_file = tmp_path / "out.parquet", tmp_path / "out.json"
    assert run(saved, mixed, "-o", table_file).exit_code == 3
    result = run(saved, mixed, "-o", json_file)
    assert result.exit_code == 3
    assert "out.json" in result.stdout
    expected = json.loads(json_file.read_text())
    assert expected["complete"]
    table = pq.read_table(table_file)
    assert table["structure"].to_pylist() == [0, 1, 2]
    assert table["n_atoms"].to_pylist() == [3, 4, 5]
    assert table.schema.field("forces").metadata == {b"unit": "eV/Å".encode()}
    assert table.schema.metadata[b"task"] == b"mine"
    reasons = table["not_predicted"].to_pylist()
    assert reasons[0] is reasons[2] is None
    assert "no reference" in reasons[1]
    for i in (0, 2):
        row = expected["predictions"][i]
        assert table["energy"][i].as_py() == pytest.approx(row["energy"], rel=1e-6)
        np.testing.assert_allclose(table["forces"][i].as_py(), row["forces"], atol=1e-5)
    assert table["energy"][1].as_py() is None


def test_conservative_stress_in_parquet(saved: Path, tmp_path: Path, molecules: Store) -> None:
    result = run(saved, molecules.path, "-o", tmp_path / "out.parquet", "--conservative")
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out.parquet")
    assert len(table) == len(molecules)
    assert table["stress"].null_count == len(molecules)  # molecules have none
    assert [len(forces) for forces in table["forces"].to_pylist()] == table["n_atoms"].to_pylist()


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_an_interrupted_file_keeps_what_was_predicted(
    saved: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eutectic.predict import files

    source, out = tmp_path / "in.xyz", tmp_path / f"out{suffix}"
    source.write_text(lines_of("H2O") * 40)
    real = files.predict_each

    def interrupted(*args: object, **kwargs: object) -> object:
        for n, one in enumerate(real(*args, **kwargs)):  # type: ignore[arg-type]
            if n == 10:
                raise Interrupted("stopped")
            yield one

    monkeypatch.setattr(files, "predict_each", interrupted)
    partial = partial_path(out)
    with pytest.raises(Interrupted, match=re.escape(partial.name)):
        run(saved, source, "-o", out, "--batch-size", 2)
    assert not out.exists()
    if suffix == ".json":
        kept = json.loads(partial.read_text())
        assert not kept["complete"]
        assert len(kept["predictions"]) == 10
    else:
        assert pq.read_table(partial)["structure"].to_pylist() == list(range(10))
