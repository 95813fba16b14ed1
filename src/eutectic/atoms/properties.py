"""What can be asked of a structure. A `Property` says level, rank, unit and extensivity, so that nothing is
ever guessed from the shape of an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["structure", "atom"]


@dataclass(frozen=True, kw_only=True)
class Property:
    """One physical quantity.

    Attributes:
        name: ASE's word where ASE has one.
        level: one value for the whole structure, or one for each atom.
        rank: 0 scalar, 1 vector (3,), 2 tensor (3, 3).
        unit: the unit inside the library and inside every store.
        extensive: whether two copies of a structure, far apart, have twice the value.
        categorical: whether a value is one of the classes 0, 1, …; a model then learns their probabilities.
        symbol: how a table or an axis writes it.
    """

    name: str
    level: Level
    unit: str
    rank: int = 0
    extensive: bool = False
    categorical: bool = False
    symbol: str = ""

    def shape(self, n_atoms: int) -> tuple[int, ...]:
        """Shape of one structure's value: (), (3,), (n_atoms,), (n_atoms, 3), …"""
        return ((n_atoms,) if self.level == "atom" else ()) + (3,) * self.rank


ENERGY = Property(name="energy", level="structure", unit="eV", extensive=True, symbol="E")
FORCES = Property(name="forces", level="atom", rank=1, unit="eV/Å", symbol="F")
STRESS = Property(name="stress", level="structure", rank=2, unit="eV/Å³", symbol="σ")
"""Positive stress is tension, as in ASE."""

PROPERTIES: dict[str, Property] = {
    p.name: p
    for p in (
        ENERGY,
        FORCES,
        STRESS,
        Property(name="dipole_moment", level="structure", unit="D", symbol="µ"),
        Property(name="polarizability", level="structure", unit="a0³", extensive=True, symbol="α"),
        Property(name="homo", level="structure", unit="eV", symbol="ε_HOMO"),
        Property(name="lumo", level="structure", unit="eV", symbol="ε_LUMO"),
        Property(name="gap", level="structure", unit="eV", symbol="Δε"),
        Property(name="electronic_spatial_extent", level="structure", unit="a0²", symbol="⟨R²⟩"),
        Property(name="zpve", level="structure", unit="eV", extensive=True, symbol="ZPVE"),
        Property(name="u0", level="structure", unit="eV", extensive=True, symbol="U₀"),
        Property(name="u", level="structure", unit="eV", extensive=True, symbol="U"),
        Property(name="h", level="structure", unit="eV", extensive=True, symbol="H"),
        Property(name="g", level="structure", unit="eV", extensive=True, symbol="G"),
        Property(name="heat_capacity", level="structure", unit="cal/(mol K)", extensive=True, symbol="c_v"),
        Property(name="formation_energy", level="structure", unit="eV/atom", symbol="E_f"),
        Property(name="charge", level="structure", unit="e", extensive=True, symbol="Q"),
        Property(name="charges", level="atom", unit="e", symbol="q"),
        Property(name="dipole", level="structure", rank=1, unit="e Å", symbol="µ"),
        Property(name="band_gap", level="structure", unit="eV", symbol="E_gap"),
        Property(name="is_metal", level="structure", unit="", categorical=True, symbol="metal"),
        Property(name="cell_formation_energy", level="structure", unit="eV", extensive=True, symbol="E_f"),
        Property(name="exfoliation_energy", level="structure", unit="meV/atom", symbol="E_exf"),
        Property(name="last_phdos_peak", level="structure", unit="1/cm", symbol="ω_max"),
        Property(name="refractive_index", level="structure", unit="", symbol="n"),
        Property(name="log10_bulk_modulus", level="structure", unit="log₁₀ GPa", symbol="log K"),
        Property(name="log10_shear_modulus", level="structure", unit="log₁₀ GPa", symbol="log G"),
    )
}
"""Every property the library knows, by name."""
