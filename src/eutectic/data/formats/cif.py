"""Read crystals from CIF with ASE."""

from __future__ import annotations

import io
import warnings
from typing import Any

from ase import Atoms
from ase.io import read as ase_read

from eutectic.atoms import EutecticError, Structure


def structure(text: str, where: str, fix: str) -> Structure:
    """A periodic structure.

    Args:
        text: the CIF.
        where: location, for errors.
        fix: suggestion for a damaged CIF.

    Raises:
        EutecticError: a CIF that ASE cannot read; partially occupied sites; no cell.
    """
    try:
        with warnings.catch_warnings():
            # ASE warns about settings and dates that do not concern the atoms.
            warnings.simplefilter("ignore")
            atoms: Any = ase_read(io.StringIO(text), format="cif")
    except Exception as error:
        # ASE's CIF reader raises many kinds of exceptions.
        raise EutecticError(
            where, f"not a CIF that ASE reads ({type(error).__name__}: {error})", "a crystal structure", fix
        ) from error
    check_full(atoms, where)
    if atoms.cell.rank < 3:
        raise EutecticError(where, "no cell", "a crystal with its cell", fix)
    return Structure.from_ase(atoms)


def check_full(atoms: Atoms, where: str) -> None:
    """Refuse partial occupancy: ASE keeps the element with the largest share of a site.

    Raises:
        EutecticError: sites that are not fully occupied by one element.
    """
    shares = [s for site in atoms.info.get("occupancy", {}).values() for s in site.items()]
    if partly := [f"{symbol} {share:g}" for symbol, share in shares if abs(share - 1) > 1e-3]:
        raise EutecticError(
            where,
            f"partially occupied sites: {', '.join(partly[:5])}",
            "full occupancy",
            "leave this structure out, or order it first: a disordered crystal has no atoms to learn from",
        )
