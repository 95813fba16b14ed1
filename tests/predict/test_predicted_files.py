"""Predictions for a file: in constant memory, around what is broken, never over what must not be lost."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
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
from eutectic.predict.devices import predict_on
from eutectic.predict.files import Read, about_how_many, predict_file, read_each
from eutectic.predict.outputs import TableOutput, check_output, partial_path, partial_rows_path, writing_predictions
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
    assert "unseen in training: Cu (2 structures)" in result.stderr


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
        ("/dev/full", "not a regular file"),
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


# --- going on ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Structures, of which some cannot be read, predicted or were never seen, in 12 windows of 16."""
    path = tmp_path_factory.mktemp("many") / "many.xyz"
    bad = {5: BROKEN, 40: lines_of("Cu"), 41: BROKEN, 90: TOGETHER, 91: TOGETHER, 130: BROKEN}
    path.write_text("".join(bad.get(i) or lines_of(NAMES[i % 3]) for i in range(190)))
    return path


KILLED = """
import os, signal, sys
from eutectic import cli
from eutectic.predict import resume
from eutectic.predict.outputs import Output

resume.SAVE_EVERY = 0.0
writes, real = 0, Output.write

def killed(self, text, **options):
    global writes
    writes += 1
    if writes == last:
        os.write(self._file.fileno(), text[: len(text) // 2].encode())
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, text, **options)

if __name__ == "__main__":
    last, Output.write = int(sys.argv.pop(1)), killed
    cli.main()
"""
"""Dies in the middle of a line."""


def killed_at(write_number: int, folder: Path, *arguments: object) -> None:
    script = folder / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, script, write_number, "predict", *arguments]
    made = subprocess.run(
        list(map(str, command)), env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120
    )
    assert made.returncode == -signal.SIGKILL, made.stderr.decode()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill a process outright")
@pytest.mark.parametrize("suffix", [".xyz", ".json", ".parquet"])
def test_killed_and_gone_on_a_file_is_that_of_one_run(saved: Path, many: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "one").mkdir()
    expected, out = tmp_path / "one" / f"out{suffix}", tmp_path / f"out{suffix}"
    one = run(saved, many, "-o", expected, "--batch-size", 2)
    out.write_text("precious")
    for write_number in (101, 60):  # the second process is killed after 60 more
        killed_at(write_number, tmp_path, saved, many, "-o", out, "--batch-size", 2)
        assert out.read_text() == "precious"
    result = run(saved, many, "-o", out, "--batch-size", 2)
    assert result.exit_code == one.exit_code == 3
    said = re.search(r"resuming after (\d+) structures in (\S+)", result.stderr)
    assert said is not None
    assert 130 < int(said[1]) < 170
    assert said[2] == partial_rows_path(out).name
    assert out.read_bytes() == expected.read_bytes()
    rest = [line for line in result.stderr.splitlines() if "resuming" not in line]
    assert rest == one.stderr.splitlines()  # counts and reasons are those of the whole file
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["killed.py", "one", out.name])


@pytest.fixture
def stopped(saved: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run that was stopped after 100 structures."""
    from eutectic.predict import files

    real, out = files.predict_each, tmp_path / "out.xyz"

    def interrupted(*args: object, **kwargs: object) -> object:
        for n, one in enumerate(real(*args, **kwargs)):  # type: ignore[arg-type]
            if n == 100:
                raise Interrupted("stopped")
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(files, "predict_each", interrupted)
        with pytest.raises(Interrupted, match=re.escape("out.partial.xyz; the same command resumes from there")):
            run(saved, many, "-o", out, "--batch-size", 2)
    assert len(list(iread(partial_path(out)))) > 96
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model", "the model changed"),
        ("input", "the input changed"),
        ("option", "--conservative changed"),
        ("shorter", "is shorter than its record says"),
        ("record", "has no readable record"),
        ("nonsense", "has no readable record"),
        ("json", "predictions cannot be resumed"),
    ],
)
def test_what_was_made_otherwise_is_made_anew(
    saved: Path, many: Path, model: TrainedModel, stopped: Path, tmp_path: Path, change: str, says: str
) -> None:
    source, options, record = tmp_path / "in.xyz", ["--batch-size", 2], tmp_path / "out.partial.xyz.record.json"
    source.write_bytes(many.read_bytes())
    changed = tmp_path / "model"
    weights = copy.deepcopy(model.module)
    with torch.no_grad():
        next(weights.parameters()).add_(0.1 if change == "model" else 0.0)
    save_model(changed, replace(model, module=weights))
    if change == "input":
        source.write_bytes(many.read_bytes() + lines_of("H2O").encode())
    elif change == "option":
        options += ["--conservative"]
    elif change == "shorter":
        os.truncate(partial_path(stopped), 1000)
    elif change == "record":
        record.unlink()
    elif change == "nonsense":
        record.write_text('{"facts": {}, "bytes": [')
    elif change == "json":
        options += ["--json"]
    result = run(changed, source, "-o", stopped, *options)
    assert result.exit_code == 3
    assert "predicting from the start" in result.stderr
    assert says in result.stderr
    assert run(changed, source, "-o", tmp_path / "new.xyz", *options).exit_code == 3
    assert stopped.read_bytes() == (tmp_path / "new.xyz").read_bytes()
    assert not record.exists()


def test_a_record_is_gone_before_another_file_is_begun(saved: Path, many: Path, stopped: Path, tmp_path: Path) -> None:
    """Killed at once in a run of another model, the file is not taken for that of the first one afterwards."""
    killed_at(2, tmp_path, saved, many, "-o", stopped, "--batch-size", 2, "--conservative")
    result = run(saved, many, "-o", stopped, "--batch-size", 2)
    assert "predicting from the start" in result.stderr


def full(self: object) -> None:
    raise EutecticError("disk", "full", "room", "free some space")


def test_a_file_that_only_has_to_be_put_in_place(
    saved: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(TableOutput, "finish", full)
        assert isinstance(run(saved, many, "-o", out).exception, EutecticError)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr("eutectic.predict.files.predict_each", None)  # is not needed
        result = run(saved, many, "-o", out)
    assert result.exit_code == 3
    assert "resuming after 190 structures" in result.stderr
    assert pq.read_table(out)["structure"].to_pylist() == list(range(190))
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_store_is_gone_on_with(saved: Path, molecules: Store, tmp_path: Path) -> None:
    arguments = [saved, molecules.path, "-o"]
    killed_at(50, tmp_path, *arguments, tmp_path / "out.xyz", "--batch-size", 2)
    result = run(*arguments, tmp_path / "out.xyz", "--batch-size", 2)
    assert "resuming after 48 structures" in result.stderr
    assert run(*arguments, tmp_path / "one.xyz", "--batch-size", 2).exit_code == 0
    assert (tmp_path / "out.xyz").read_bytes() == (tmp_path / "one.xyz").read_bytes()


# --- devices -----------------------------------------------------------------------------------------------------


def test_two_devices_write_what_one_writes(saved: Path, many: Path, tmp_path: Path) -> None:
    """Windows and their order are the same; killed with two devices, a run goes on with one."""
    one = run(saved, many, "-o", tmp_path / "one.xyz", "--batch-size", 2)
    two = ["--batch-size", 2, "--device", "cpu", "--device", "cpu"]
    result = run(saved, many, "-o", tmp_path / "two.xyz", *two)
    assert result.exit_code == 3, result.exception
    assert result.stderr == one.stderr
    assert (tmp_path / "two.xyz").read_bytes() == (tmp_path / "one.xyz").read_bytes()
    killed_at(70, tmp_path, saved, many, "-o", tmp_path / "out.xyz", *two)
    assert "resuming after" in run(saved, many, "-o", tmp_path / "out.xyz", "--batch-size", 2).stderr
    assert (tmp_path / "out.xyz").read_bytes() == (tmp_path / "one.xyz").read_bytes()


def test_devices_that_are_not_there_are_refused(saved: Path, many: Path, tmp_path: Path) -> None:
    for name in ("cuda:99", "cpu:1", "gpu", "meta", ""):
        result = run(saved, many, "-o", tmp_path / "out.xyz", "--device", "cpu", "--device", name)
        assert isinstance(result.exception, EutecticError)
        assert "no such device here; expected one of cpu" in str(result.exception)


def test_a_process_of_a_device_that_dies_is_an_error_and_what_was_written_is_kept(
    saved: Path, many: Path, tmp_path: Path
) -> None:
    with pytest.raises(EutecticError, match=r"a worker process died.*fewer --device"):
        list(predict_on([torch.device("cpu")] * 2, saved, "mine", (_Deadly() for _ in range(3))))  # type: ignore[misc]


class _Deadly:
    """Kills the process to which it is sent."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_how_many_structures_a_file_has_is_estimated(tmp_path: Path) -> None:
    frame = "3\nProperties=species:S:1:pos:R:3\nO 0.0 0.0 0.1\nH 0.0 0.8 -0.5\nH 0.0 -0.8 -0.5\n"
    file = tmp_path / "many.xyz"
    file.write_text(frame * 30_000)  # more than the part that is read
    assert about_how_many(file) == 30_000
    file.write_text(frame * 2 + "3\ncut off\nO 0 0 0")
    assert about_how_many(file) == 2
    for text in ("", "no frames", "-1\n\n", "9" * 30 + "\n\n", "9" * 5000 + "\n\n"):
        file.write_text(text)
        assert about_how_many(file) is None
    assert about_how_many(tmp_path / "other.traj") is None
