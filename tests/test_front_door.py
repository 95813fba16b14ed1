"""The public names of the package: quick to import, complete, and as documented."""

from __future__ import annotations

import subprocess
import sys

import pytest

import eutectic


def test_importing_loads_no_torch() -> None:
    code = "import sys, eutectic; dir(eutectic); sys.exit('torch' in sys.modules or 'ase' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(eutectic.__all__))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(eutectic, name) is not None
    assert name in dir(eutectic)


def test_the_names_are_those_that_load() -> None:
    assert set(eutectic._PUBLIC) == set(eutectic.__all__) - {"__version__"}


def test_what_a_notebook_shows() -> None:
    store = eutectic.open_data("md_aspirin")
    assert repr(store) == "Store md_aspirin: 720 structures; energy (eV), forces (eV/Å); GFN2-xTB"
    report = repr(eutectic.check_data("crystals"))
    assert report.startswith("Report of crystals: 589 structures. ")
    assert "formation_energy (589)" in report


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="finetune"):
        eutectic.finetun  # noqa: B018
