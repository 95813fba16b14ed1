"""Units against numbers worked by hand from the printed CODATA 2014 tables.

Mohr, Newell, Taylor, "CODATA recommended values of the fundamental physical constants: 2014", Rev. Mod.
Phys. 88, 035009 (2016), tables XXXII and XXXIII.
"""

from __future__ import annotations

import pytest

from eutectic.atoms import PROPERTIES, EutecticError, units
from eutectic.atoms.units import BOHR, HARTREE, KCAL_PER_MOL, convert


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


E, N_A, H, K_B, C = 1.602_176_620_8e-19, 6.022_140_857e23, 6.626_070_040e-34, 1.380_648_52e-23, 299_792_458
"""Elementary charge (C), Avogadro's and Planck's constants (1/mol, J s), Boltzmann's (J/K), speed of light (m/s); the
same tables."""


@pytest.mark.parametrize(
    ("stated", "wanted", "factor"),
    [
        ("eV", "meV", 1000.0),
        ("kcal/mol", "eV", 4184 / (N_A * E)),
        ("kJ/mol", "eV", 1000 / (N_A * E)),
        ("kcal/mol", "kJ/mol", 4.184),
        ("rydberg", "eV", 13.605_693_009),  # table XXXII: R∞hc in eV
        ("hartree", "rydberg", 2.0),
        ("nm", "angstrom", 10.0),
        ("hartree/bohr", "eV/Å", 27.211_386_02 / 0.529_177_210_67),
        ("kcal/mol/Å", "eV/Å", 4184 / (N_A * E)),
        ("kcal/(mol Å)", "eV/Å", 4184 / (N_A * E)),
        # 1 GPa = 1e9 J/m³ = 1e9 / 1.602…e-19 eV / 1e30 Å³
        ("GPa", "eV/Å³", 1e-21 / E),
        ("kbar", "GPa", 0.1),
        ("hartree/bohr^3", "GPa", 4.359_744_650e-27 / 0.529_177_210_67e-10**3),  # 1 hartree in J, 1 bohr in m
        ("J/m²", "eV/Å²", 1e-20 / E),
        # 1 D = 1e-21/c C m² /s = 3.335 640 952e-30 C m
        ("D", "e Å", 1e-21 / C / E * 1e10),
        ("e bohr", "D", 2.541_746_5),
        # CODATA 2014, table XXXIII: 1 m⁻¹ is hc/e = 1.239 841 9739e-6 eV; 1 K is 8.617 3303e-5 eV; 1 Hz is h/e.
        ("cm⁻¹", "eV", 1.239_841_973_9e-4),
        ("K", "eV", 8.617_330_3e-5),
        ("THz", "meV", H * 1e12 / E * 1000),
        ("THz", "1/cm", 1e12 / (100 * C)),
        ("a0³", "Å³", 0.529_177_210_67**3),
        ("cal/(mol K)", "J/mol/K", 4.184),
        ("J/(mol*K)", "eV/K", 1 / (N_A * E)),
    ],
)
def test_by_hand(stated: str, wanted: str, factor: float) -> None:
    # ASE derives the hartree and the bohr from other constants of the same table: they differ in the ninth digit.
    assert convert(stated, wanted) == pytest.approx(factor, rel=2e-8)
    assert convert(wanted, stated, 3.0) == pytest.approx(3 / factor, rel=2e-8)


def test_boltzmann_and_planck_agree() -> None:
    # hc/k_B = 1.438 777 36 cm K, the second radiation constant (table XXXII: 1.438 777 36e-2 m K).
    assert convert("1/cm", "K") == pytest.approx(100 * H * C / K_B, rel=1e-8) == pytest.approx(1.438_777_36, rel=1e-8)


@pytest.mark.parametrize(
    "spellings",
    [
        ("eV/Å³", "ev/angstrom^3", "eV/A**3", "eV Å⁻³", "eV/Å/Å/Å", "eV/(Å*Å*Å)", " eV / Å^3 "),
        ("hartree", "Ha", "Hartree", "E_h"),
        ("1/cm", "cm⁻¹", "cm^-1", "invcm"),
        ("e Å", "e*angstrom", "e·Å", "Å*e"),
        ("D", "debye", "Debye"),
        ("kcal/mol", "kcal mol⁻¹", "KCAL/MOL"),
        ("log₁₀ GPa", "log10(GPa)", "log10 GPa"),
        ("a0³", "bohr^3", "Bohr³"),
        ("angstrom", "\N{ANGSTROM SIGN}", "Å"),
    ],
)
def test_spellings(spellings: tuple[str, ...]) -> None:
    assert len({units.unit(text) for text in spellings}) == 1
    assert len({units.spelling(text) for text in spellings[:-1]}) == 1


def test_how_the_library_writes_and_types_its_units() -> None:
    for prop in PROPERTIES.values():
        assert units.spelling(prop.unit) == prop.unit
        if prop.unit:
            assert units.unit(units.as_typed(prop.unit)) == units.unit(prop.unit)
            assert units.as_typed(prop.unit).isascii()


@pytest.mark.parametrize(
    ("stated", "wanted", "message"),
    [
        ("hartre", "eV", "unit 'hartre'; expected a unit such as eV, .*; did you mean 'hartree'"),
        ("kcal/mole/Ang", "eV/Å", ""),
        ("eV", "GPa", "two different quantities"),
        ("eV/atom", "eV", "two different quantities"),
        # A kilocalorie is of a mole: alone it would be 2.6e22 eV.
        ("kcal", "eV", "two different quantities"),
        ("log10(GPa)", "GPa", "two different quantities"),
        ("", "eV", "unit ''"),
        ("eV//Å", "eV/Å", "unit 'eV//Å'"),
        ("(eV", "eV", "unit"),
        ("2 eV", "eV", "unit '2 eV'"),
    ],
)
def test_what_cannot_be_converted(stated: str, wanted: str, message: str) -> None:
    if not message:
        assert convert(stated, wanted) == KCAL_PER_MOL
        return
    with pytest.raises(EutecticError, match=message):
        convert(stated, wanted)


def test_units_of_the_users_own() -> None:
    assert units.conversion("µB", "µB").factor == 1
    assert units.conversion("-µB", "µB").factor == -1
    with pytest.raises(EutecticError, match="only 'µB'"):
        units.conversion("eV", "µB")
    assert (units.spelling(" µB "), units.is_known("µB"), units.usual("µB")) == ("µB", False, ())


def test_energies_per_atom() -> None:
    whole = units.conversion("kcal/mol/atom", "eV", extensive=True)
    assert (whole.factor, whole.of_atoms) == (KCAL_PER_MOL, 1)
    each = units.conversion("hartree", "meV/atom")
    assert (each.factor, each.of_atoms) == (pytest.approx(1000 * HARTREE), -1)
    with pytest.raises(EutecticError, match="one of eV, meV, hartree"):
        units.conversion("eV/atom", "eV")
