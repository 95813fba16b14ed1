"""Units against numbers worked by hand from the printed CODATA 2014 tables.

Mohr, Newell, Taylor, "CODATA recommended values of the fundamental physical constants: 2014", Rev. Mod.
Phys. 88, 035009 (2016), tables XXXII and XXXIII.
"""

from __future__ import annotations

import pytest

from eutectic.atoms.units import BOHR, HARTREE, KCAL_PER_MOL


def test_hartree() -> None:
    assert pytest.approx(27.211_386_02, abs=2e-8) == HARTREE  # eV; uncertainty 0.000 000 17


def test_bohr() -> None:
    assert pytest.approx(0.529_177_210_67, abs=2e-10) == BOHR  # Å; uncertainty 0.000 000 000 12


def test_kcal_per_mol() -> None:
    # 4184 J / (6.022 140 857e23 · 1.602 176 620 8e-19 C) = 4184 / 96 485.332 89 eV
    assert pytest.approx(4184 / 96_485.332_89, rel=1e-9) == KCAL_PER_MOL
    assert pytest.approx(0.043_364_104, abs=1e-9) == KCAL_PER_MOL


def test_they_agree_with_each_other() -> None:
    # One hartree is 627.509 47 kcal/mol (the chemist's number).
    assert pytest.approx(627.509_47, abs=1e-4) == HARTREE / KCAL_PER_MOL


def test_forces_in_atomic_units() -> None:
    # 1 hartree/bohr = 27.211 386 02 / 0.529 177 210 67 = 51.422 067 eV/Å
    assert pytest.approx(51.422_067, abs=1e-5) == HARTREE / BOHR
