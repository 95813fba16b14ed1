"""Published checkpoints by name, from a server that stands in for the public one."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_host import Host, serving
from typer.testing import CliRunner

from eutectic import cli
from eutectic.atoms import EutecticError, Structure
from eutectic.checkpoints import published
from eutectic.checkpoints.fairchem import TRAINING_DATA
from eutectic.checkpoints.model import load_model
from eutectic.checkpoints.published import PUBLISHED, published_model
from eutectic.checkpoints.shipped import model_folder
from eutectic.predict.model import load

CONTENT = lzma.decompress((Path(__file__).parent / "golden_fairchem" / "oc20.pt.xz").read_bytes())
NAME = "gemnet-oc-oc20-all-md"
WATER = Structure(numbers=np.array([8, 1, 1]), positions=np.array([(0.0, 0, 0.1), (0, 0.77, -0.46), (0, -0.76, -0.47)]))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    with serving(CONTENT, monkeypatch) as server:
        monkeypatch.setattr(published, "ADDRESS", server.url("/models/"))
        yield server


def test_addresses_and_names() -> None:
    files = [one.file for one in PUBLISHED.values()]
    assert len(set(files)) == len(files)
    assert PUBLISHED[NAME].file == "2023_03/s2ef/gemnet_oc_base_s2ef_all_md.pt"
    assert published.ADDRESS.startswith("https://dl.fbaipublicfiles.com/")
    assert {one.trained_on for one in PUBLISHED.values()} <= set(TRAINING_DATA)


def test_it_is_downloaded_once_and_its_licence_shown_before(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(f"fairchem:{NAME}")
    said = capfd.readouterr().err
    assert "CC BY 4.0" in said
    assert "model_checkpoints.md" in said
    assert PUBLISHED[NAME].file in said
    assert model.tasks[0].name == "oc20"
    folder = model_folder(f"fairchem:{NAME}")
    assert load(f"fairchem:{NAME}", device="cpu").predict(WATER.to_ase())["forces"].shape == (3, 3)
    assert len(host.asked) == 1
    assert not capfd.readouterr().err
    # Nothing is left of the download.
    assert [path.name for path in folder.parent.iterdir()] == [NAME]
    assert not [path for path in (folder.parents[2] / "downloads").rglob("*") if path.is_file()]
    card = (folder / "README.md").read_text()
    assert "Licence" in card
    assert "adsorption energies" in card
    assert str(model.provenance["imported_sha256"]) in card


def test_an_interrupted_download_goes_on(host: Host) -> None:
    host.break_after = [40_000, 0, 0]
    with pytest.raises(EutecticError, match=r"40,000 bytes received.*it resumes.*import-fairchem"):
        published_model(NAME)
    host.asked.clear()
    assert (published_model(NAME) / "model.safetensors").is_file()
    assert host.asked == ["bytes=40000-"]


def test_what_is_not_the_model_is_refused_and_can_be_asked_for_again(host: Host) -> None:
    host.content = CONTENT[:-100]
    with pytest.raises(EutecticError, match=r"cannot be read.*delete .*\.pt and run the same command again") as raised:
        published_model(NAME)
    Path(raised.value.where).unlink()
    host.content = CONTENT
    assert published_model(NAME).is_dir()


def test_no_such_file_or_name(host: Host) -> None:
    host.answer = 403
    with pytest.raises(EutecticError, match="the server answered 403"):
        published_model(NAME)
    with pytest.raises(EutecticError, match=r"no published model.*did you mean 'gemnet-oc-oc20-all-md'"):
        load_model("fairchem:gemnet-oc-oc20-all-mb")
    with pytest.raises(EutecticError, match="fairchem:NAME"):
        load_model("fairchemistry")


def test_the_commands_take_its_name(host: Host, tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["models"])
    assert all(name in listed.output for name in PUBLISHED)
    assert not host.asked
    told = runner.invoke(cli.app, ["models", f"fairchem:{NAME}"])
    assert "CC BY 4.0" in " ".join(told.output.split())
    out = tmp_path / "run"
    words = f"finetune md_aspirin -p forces --model fairchem:{NAME} --train 8 --validation 4 --test 4 --steps 2"
    result = runner.invoke(cli.app, [*words.split(), "--batch-size", "4", "--train.threads", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "result.json").read_text())["test_error"] > 0
    assert len(host.asked) == 1
