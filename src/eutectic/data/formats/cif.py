"""Crystals as CIF, read by ASE."""

from __future__ import annotations

import io
import warnings
from typing import Any

from ase.io import read as ase_read

from eutectic.atoms import EutecticError, Structure


def structure(text: str, where: str, fix: str) -> Structure:
    """A periodic structure.

    Args:
        text: the CIF.
        where: names it in errors.
        fix: what to do about a damaged one.

    Raises:
        EutecticError: no CIF that ASE reads; sites partly occupied; no cell.
    """
    try:
        with warnings.catch_warnings():
            # ASE warns of settings and dates that say nothing of the atoms.
            warnings.simplefilter("ignore")
            atoms: Any = ase_read(io.StringIO(text), format="cif")
    except Exception as error:
        # ASE's CIF reader raises whatever the text leads it to.
        raise EutecticError(
            where, f"not a CIF that ASE reads ({type(error).__name__}: {error})", "a crystal structure", fix
        ) from error
    shares = [s for site in atoms.info.get("occupancy", {}).values() for s in site.items()]
    partly = [f"{symbol} {share:g}" for symbol, share in shares if abs(share - 1) > 1e-3]
    if partly:
        raise EutecticError(
            where,
            f"sites that are partly occupied: {', '.join(partly[:5])}",
            "whole atoms",
            "leave this structure out, or order it first: a disordered crystal has no atoms to learn from",
        )
    if atoms.cell.rank < 3:
        raise EutecticError(where, "no cell", "a crystal with its cell", fix)
    return Structure.from_ase(atoms)
