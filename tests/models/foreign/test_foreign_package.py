"""Packages that need not be installed: found, compared with what was tested, imported only when asked for."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from eutectic.atoms import EutecticError
from eutectic.models import BACKBONES, BackboneEntry, register_backbone
from eutectic.models.foreign import mace, orb, sevennet
from eutectic.models.foreign.mace import MACESettings
from eutectic.models.foreign.package import Package
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.models.registry import FOREIGN, backbone_entry

PACKAGES = [mace.PACKAGE, orb.PACKAGE, sevennet.PACKAGE]


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let distributions seem to be installed, and no others."""

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[key]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.module)
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    with pytest.raises(EutecticError) as error:
        package.load("anything")
    assert error.value.given == "not installed"
    assert f"pip install 'eutectic[{package.extra}]'" in error.value.fix
    assert "separate environment" in error.value.fix


@pytest.mark.parametrize(("version", "fits"), [("0.12.9", False), ("0.13", True), ("0.13.7", True), ("0.14.0", False)])
def test_versions_that_were_not_tested_are_refused(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, sevenn=version, e3nn="0.6.0")
    if fits:
        assert sevennet.PACKAGE.version() == version
    else:
        with pytest.raises(EutecticError, match=f"version {version}, which is untested; expected version 0.13"):
            sevennet.PACKAGE.version()


def test_an_e3nn_of_the_other_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"sevenn": "0.13.0", "mace_torch": "0.3.16"}
    installed(monkeypatch, e3nn="0.6.0", **both)
    assert sevennet.PACKAGE.version() == "0.13.0"
    with pytest.raises(EutecticError, match=r"e3nn 0\.6\.0; expected e3nn version 0\.4\.4"):
        mace.PACKAGE.version()
    installed(monkeypatch, e3nn="0.4.4", **both)
    assert mace.PACKAGE.version() == "0.3.16"
    with pytest.raises(EutecticError, match=r"e3nn 0\.4\.4; expected e3nn version 0\.5"):
        sevennet.PACKAGE.version()


def test_extras_install_what_the_adapters_accept() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for package in PACKAGES:
        lowest, below = package.versions
        assert any(f"{package.distribution}>={lowest},<{below}" in need for need in extras[package.extra])
    assert [{"extra": "mace"}, {"extra": "sevennet"}] in project["tool"]["uv"]["conflicts"]


def test_a_broken_package_is_told_and_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "upsetting").mkdir()
    (tmp_path / "upsetting" / "__init__.py").write_text(
        "import os\nos.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'\n"
    )
    (tmp_path / "upsetting" / "fine.py").write_text(
        "import os\nSEEN = os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD']\n"
    )
    (tmp_path / "upsetting" / "broken.py").write_text("raise AttributeError('of another version')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    installed(monkeypatch, upsetting="1.0")
    package = Package(distribution="upsetting", module="upsetting", extra="upsetting", versions=("1", "2"))
    (fine,) = package.load("fine")
    assert fine.SEEN == "1"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    with pytest.raises(EutecticError, match=r"cannot be imported \(AttributeError: of another version\)"):
        package.load("broken")


def test_nothing_of_them_is_imported_until_asked_for() -> None:
    code = (
        "import sys, eutectic, eutectic.checkpoints.foreign, eutectic.train.finetune, eutectic.recipes\n"
        "assert not {'mace', 'sevenn', 'orb_models', 'e3nn'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_they_are_found_by_name_but_not_among_our_own() -> None:
    assert set(FOREIGN) == {"mace", "orb", "sevennet"}
    assert not set(FOREIGN) & set(BACKBONES)
    assert backbone_entry("mace").settings is MACESettings
    with pytest.raises(EutecticError, match="already registered"):
        register_backbone("mace", BackboneEntry(PaiNNSettings, PaiNN))


def test_settings_know_their_elements_and_cutoff() -> None:
    settings = MACESettings(config={}, elements=(6, 1), cutoff=5.0)
    assert settings.edge_lists == ("main",)
    assert settings.known_cutoff == 5.0
    settings.check_elements([1, 6, 6], "here")
    with pytest.raises(EutecticError, match="here: element O, Au, which the backbone does not support; expected only"):
        settings.check_elements([8, 79, 6], "here")
    with pytest.raises(ValidationError, match="elements"):
        MACESettings(config={}, elements=(), cutoff=5.0)
    PaiNNSettings(cutoff=5.0).check_elements([8, 79], "here")
