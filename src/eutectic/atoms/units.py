"""Units. Inside the library: eV, Å, e, and what follows from them; every reader converts once, on the way in.

Values are CODATA 2014 as ASE carries them (`ase.units`), so that numbers agree with ASE to the last digit.
"""

from __future__ import annotations

from ase import units as _ase

HARTREE = float(_ase.Hartree)
"""1 Hartree in eV (27.21138602 eV, CODATA 2014)."""

BOHR = float(_ase.Bohr)
"""1 bohr in Å (0.529177210670 Å, CODATA 2014)."""

KCAL_PER_MOL = float(_ase.kcal / _ase.mol)
"""1 kcal/mol in eV (0.0433641 eV; 1 kcal = 4184 J)."""
