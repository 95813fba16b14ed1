"""The command line, as a user meets it."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

import eutectic
from eutectic import cli
from eutectic.atoms import EutecticError
from eutectic.cli import options
from eutectic.cli.app import PANELS, main
from eutectic.data.store import Store
from eutectic.train.settings import FinetuneSettings, merged

RUNNER = CliRunner()

COMMANDS = [
    ["pretrain"],
    ["plan"],
    ["report"],
    ["finetune"],
    ["compare"],
    ["benchmark"],
    ["demo"],
    ["import-jmp"],
    ["predict"],
    ["models"],
    ["data", "list"],
    ["data", "prepare"],
    ["data", "info"],
    ["data", "check"],
    ["data", "generate"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_examples(command: list[str]) -> None:
    result = RUNNER.invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"eutectic {' '.join(command)}" in result.output


def test_our_warnings_are_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_but_warnings() -> None:
        warnings.warn_explicit("an [old] model", UserWarning, eutectic.__file__, 1)
        warnings.warn_explicit("a slow tensor", UserWarning, torch.__file__, 1)

    monkeypatch.setattr(sys.modules["eutectic.cli.app"], "app", nothing_but_warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main()
    ours, theirs = capsys.readouterr().err.strip().split("\n", 1)
    assert ours == "warning an [old] model"
    assert theirs.startswith(torch.__file__)


def test_every_command_has_a_place_in_the_help() -> None:
    command = get_command(cli.app)
    assert isinstance(command, TyperGroup)
    names = [name for panel in PANELS.values() for name in panel]
    assert sorted(command.commands) == sorted(names)
    shown = RUNNER.invoke(cli.app, ["--help"]).output
    assert re.findall(r"^│ ([a-z][a-z-]*) ", shown, re.MULTILINE) == names


def test_settings_are_told_apart_from_names() -> None:
    words = ["qm9:gap", "--optimiser.weight_decay", "0", "rmd17", "--train.workers=0", "spice"]
    assert options.without_settings(words) == (
        ["qm9:gap", "rmd17", "spice"],
        ["--optimiser.weight_decay", "0", "--train.workers=0"],
    )
    assert options.without_settings([]) == ([], [])


def test_overrides_are_read_as_yaml() -> None:
    assert options.overrides(["--train.steps", "60", "--temperature=1", "--optimiser.learning-rate", "1e-3"]) == {
        "train": {"steps": 60},
        "temperature": 1,
        "optimiser": {"learning_rate": 1e-3},
    }
    with pytest.raises(EutecticError, match="section"):
        options.overrides(["steps", "3"])
    with pytest.raises(EutecticError, match="section"):
        options.overrides(["--train.steps"])
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def _error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["eutectic", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "demo", "--train.stps", "3", "--out", "OUT"], "did you mean 'steps'?"),
        (["pretrain", "jmp", "--out", "OUT"], "'jmp'"),
        (["pretrain", "absent.yaml", "--out", "OUT"], "absent.yaml"),
        (["finetune", "nowhere", "-p", "forces", "--from-scratch", "--out", "OUT"], "nowhere"),
        (
            ["finetune", "qm9_sample", "-p", "gapp", "--out", "OUT"],
            "did you mean 'gap'?",
        ),
        (["compare", "qm9_sample", "-p", "gap", "--start", "warm", "--out", "OUT"], "pretrained, scratch or both"),
        (["finetune", "qm9_sample", "-p", "gap", "--learning-rate", "-1", "--out", "OUT"], "greater than 0"),
        (["finetune", "qm9_sample", "-p", "gap", "--model", "OUT/none", "--out", "OUT"], "model.json"),
        (["data", "info", "molecule"], "molecules"),
    ],
)
def test_errors_have_four_parts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    text = _error(monkeypatch, capsys, *(a.replace("OUT", str(tmp_path / "out")) for a in arguments))
    for part in ("error in", "given", "expected", "what to do", says):
        assert part in text, text


def test_a_full_disk_anywhere_has_a_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "results.json"))

    monkeypatch.setattr("eutectic.data.catalogue.listing", full)
    text = _error(monkeypatch, capsys, "data", "list")
    for part in ("results.json", "No space left", "what to do", "finished work is kept"):
        assert part in text, text


def test_settings_can_be_shown_and_used(tmp_path: Path) -> None:
    shown = RUNNER.invoke(cli.app, ["pretrain", "demo", "--show-settings", "--out", "-"])
    assert shown.exit_code == 0
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    again = RUNNER.invoke(cli.app, ["pretrain", str(tmp_path / "mine.yaml"), "--show-settings", "--out", "-"])
    assert again.stdout == shown.stdout


def test_compare_sweeps_rates_and_repeats_seeds(molecules: Store, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [
        "compare",
        str(molecules.path),
        "-p",
        "energy",
        "--split",
        "random",
        "--train",
        "40",
        "--validation",
        "12",
        "--test",
        "12",
        "--start",
        "scratch",
        "--steps",
        "6",
        "--learning-rate",
        "1e-3",
        "--learning-rate",
        "3e-3",
        "--seeds",
        "2",
        "--workers",
        "1",
        "--out",
        str(out),
        "--backbone.name",
        "painn",
        "--backbone.settings",
        "{width: 16, layers: 1, cutoff: 4.0}",
        "--graph",
        "{cutoff: 4.0, max_neighbours: 10}",
    ]
    result = RUNNER.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((out / "results.json").read_text())
    assert len(written["tasks"][0]["runs"]) == 2
    assert len(written["tasks"][0]["trials"]) == 2
    assert "<html" in (out / "report.html").read_text()
    one = json.loads((out / "runs" / molecules.path.name / "scratch-0" / "result.json").read_text())
    assert one["test_error"] == written["tasks"][0]["runs"][0]["test_error"]


def test_finetuning_a_file_prepares_and_checks_it(
    molecules: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    frames = []
    for row in list(molecules)[:48]:
        atoms = row.structure.to_ase()
        atoms.calc = SinglePointCalculator(atoms, energy=float(row.labels["energy"]), forces=row.labels["forces"])
        frames.append(atoms)
    ase.io.write(tmp_path / "my.v2.xyz", frames)
    arguments = ["finetune", str(tmp_path / "my.v2.xyz"), "-p", "energy", "-p", "forces", "--from-scratch"]
    arguments += ["--n-train", "30", "--n-validation", "8", "--n-test", "8", "--steps", "4", "--batch-size", "6"]
    arguments += ["--backbone.name", "painn", "--backbone.settings", "{width: 16, layers: 1, cutoff: 4.0}"]
    arguments += ["--graph", "{cutoff: 4.0, max_neighbours: 10}", "--train.accelerator", "cpu"]
    result = RUNNER.invoke(cli.app, [*arguments, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "prepared and checked. Usable" in " ".join(result.output.split())
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (found["name"], found["trained_on"], found["tested_on"]) == ("my_v2", 30, 8)
    assert set(found["test_errors"]) == {"energy", "forces"}
    page = (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert RUNNER.invoke(cli.app, ["report", str(tmp_path / "run")]).exit_code == 0
    assert (tmp_path / "run" / "report.html").read_text() == page
    stores = list((tmp_path / "data" / "files").iterdir())
    again = RUNNER.invoke(cli.app, [*arguments, "--json", "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert list((tmp_path / "data" / "files").iterdir()) == stores
    assert json.loads(again.stdout)["test_errors"] == found["test_errors"]


def test_python_and_the_command_line_have_the_same_defaults() -> None:
    shown = RUNNER.invoke(cli.app, ["finetune", "qm9_sample", "-p", "gap", "--show-settings", "--out", "-"])
    assert shown.exit_code == 0, shown.output
    given = FinetuneSettings.model_validate({"data": "qm9_sample", "targets": ["gap"]})
    assert yaml.safe_load(shown.stdout) == given.model_dump(mode="json")


def test_data_list_for_people() -> None:
    shown = " ".join(RUNNER.invoke(cli.app, ["data", "list"]).stdout.split())
    for part in (
        "9,916 structures",
        "GFN2-xTB · CC0-1.0",
        "oc20 0 of 5 prepared oc20, oc20:total, oc20:free_energy",
        "rmd17:aspirin, rmd17:azobenzene",
        "PBE/def2-SVP",
        "and 6 more · crystals · level of theory differs",
        "licence not stated",
        "figshare",
    ):
        assert part in shown, shown


def test_data_prepare_finds_its_place_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "home"))
    for part, n in (("train", 4), ("test", 3)):
        arrays = {"coords": np.random.default_rng(n).normal(size=(n, 12, 3)), "energies": np.arange(n, dtype=float)}
        arrays["forces"] = np.full((n, 12, 3), np.nan if part == "test" else 0.5)
        charges = np.array([6] * 6 + [1] * 6)
        np.savez(tmp_path / f"rmd17_benzene_{part}_01.npz", nuclear_charges=charges, **arrays)
    command = ["data", "prepare", "rmd17:benzene", "--source", str(tmp_path)]
    refused = RUNNER.invoke(cli.app, command)
    assert isinstance(refused.exception, EutecticError)
    assert "benzene-000004" in str(refused.exception)
    assert "--skip-bad" in refused.exception.fix
    made = RUNNER.invoke(cli.app, [*command, "--skip-bad"])
    assert made.exit_code == 0, made.output
    assert "3 records could not be used" in " ".join(made.output.split())
    info = json.loads(RUNNER.invoke(cli.app, ["data", "info", "rmd17:benzene", "--json"]).stdout)
    assert (info["structures"], info["left_out"]["count"]) == (4, 3)
    assert "forces is not finite" in info["left_out"]["first"][0]


def test_data_list_and_info_as_json(molecules: Store) -> None:
    rows = json.loads(RUNNER.invoke(cli.app, ["data", "list", "--json"]).stdout)
    assert all(
        row["citation"] and row["source"] and row["default_split"]
        for row in rows
        if row["name"] not in ("ase", "records")
    )
    assert next(row for row in rows if row["name"] == "qm9")["files"][0]["checksum"].startswith("md5:")
    assert {"molecules", "metal_slabs", "oxide_slabs", "reactions"} <= {row["name"] for row in rows}
    info = json.loads(RUNNER.invoke(cli.app, ["data", "info", str(molecules.path), "--json"]).stdout)
    assert info["structures"] == len(molecules)


def test_data_check_tells_scripts_by_its_status(molecules: Store, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    good = RUNNER.invoke(cli.app, ["data", "check", str(molecules.path), "--json", "--html", str(page)])
    assert good.exit_code == 0, good.output
    assert json.loads(good.stdout)["ok"] is True
    assert "<html" in page.read_text()
    (tmp_path / "bare.xyz").write_text("1\n\nHe 0 0 0\n")
    bad = RUNNER.invoke(cli.app, ["data", "check", str(tmp_path / "bare.xyz")])
    assert bad.exit_code == 1
    assert "no labels were found" in bad.output
    for arguments in (["absent.xyz"], [str(molecules.path), "--model", "absent"], ["absent.xyz", "--key", "energy"]):
        assert RUNNER.invoke(cli.app, ["data", "check", *arguments]).exit_code == 2


@pytest.mark.parametrize(
    "command",
    [
        "predict m in.xyz --json --batch-size {}",
        "demo --steps {}",
        "demo --finetune-steps {}",
        "demo --seeds {}",
        "demo --workers {}",
        "compare molecules -p energy --out o --seeds {}",
        "compare molecules -p energy --out o --workers {}",
        "compare molecules -p energy --out o --steps {}",
        "compare molecules -p energy --out o --batch-size {}",
        "compare molecules -p energy --out o --learning-rate {}",
        "finetune molecules -p energy --out o --steps {}",
        "finetune molecules -p energy --out o --batch-size {}",
        "finetune molecules -p energy --out o --n-train {}",
        "finetune molecules -p energy --out o --n-validation {}",
        "finetune molecules -p energy --out o --learning-rate {}",
        "finetune molecules -p energy --out o --train.threads {}",
        "finetune molecules -p energy --out o --train.processes {}",
        "pretrain demo --out o --train.batch_size {}",
        "pretrain demo --out o --temperature {}",
        "plan demo --gpus {}",
        "plan demo --memory-gb {}",
        "plan demo --peak-tflops {}",
        "plan demo --efficiency {}",
        "plan demo --link-gb-s {}",
        "replay folder --rows {}",
        "data prepare qm9 --workers {}",
        "data generate molecules --out o --scale {}",
        "data generate molecules --out o --workers {}",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1"])
def test_numbers_out_of_range_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, command.format(value).split())
    assert result.exit_code == 2 or isinstance(result.exception, EutecticError), result.output
    assert "Invalid value" in result.output or value in str(result.exception)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "command",
    [
        "finetune molecules -p energy --out o --learning-rate {}",
        "compare molecules -p energy --out o --weight-decay {}",
        "pretrain demo --out o --temperature {}",
        "plan demo --price {}",
        "plan demo --size x=10,{}",
        "data generate molecules --out o --scale {}",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, command.format(value).split())
    assert isinstance(result.exception, EutecticError), result.output
    assert not list(tmp_path.rglob("*"))
