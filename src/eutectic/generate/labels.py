"""The two calculators for labels (GFN2-xTB and CHGNet), relaxation, and labelling.

Positions and cells are first rounded to float32, as stored, and the label is computed for the rounded structure by a
new calculator without state from earlier structures.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from eutectic.atoms import LabelledStructure, Structure

GFN2 = "GFN2-xTB"
CHGNET = "CHGNet 0.3.0 (surrogate of Materials Project PBE/PBE+U)"
GFN2_CITATION = (
    "GFN2-xTB: Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652 (2019), "
    "doi:10.1021/acs.jctc.8b01176; computed with tblite (github.com/tblite/tblite)"
)
CHGNET_CITATION = "CHGNet: Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3"
SURROGATE_NOTE = (
    "Labels are predictions of a machine-learned surrogate trained on bulk crystals (MPtrj), not DFT: good "
    "for pre-training and for comparing methods, not for chemistry. Adsorption energies err by up to about "
    "0.5 eV."
)


def gfn2(accuracy: float = 1.0) -> Calculator:
    """A new GFN2-xTB calculator (closed shell, neutral).

    Args:
        accuracy: accuracy of tblite; 1 converges the energy to 1e-6 Hartree, smaller is tighter.
    """
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", accuracy=accuracy, max_iterations=150, verbosity=0)


@cache
def _chgnet_model() -> Any:
    from chgnet.model import CHGNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints even with verbose=False
        return CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)


class _CHGNet(Calculator):
    """CHGNet's energy and forces; stress only on request, since it doubles the cost."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's interface)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | tuple[str, ...] = ("energy", "forces"),
        system_changes: list[str] | tuple[str, ...] = tuple(all_changes),
    ) -> None:
        from ase.stress import full_3x3_to_voigt_6_stress
        from ase.units import GPa
        from pymatgen.core import Structure as PymatgenStructure

        super().calculate(atoms, properties, system_changes)
        atoms, model = self.atoms, _chgnet_model()
        lattice, species = atoms.cell.array, atoms.get_chemical_symbols()
        crystal = PymatgenStructure(lattice, species, atoms.positions, coords_are_cartesian=True)
        task = "efs" if "stress" in properties else "ef"
        prediction = model.predict_graph(model.graph_converter(crystal), task=task)
        # The network gives the energy per atom.
        energy = float(prediction["e"]) * len(atoms)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": np.asarray(prediction["f"], dtype=np.float64),
        }
        if task == "efs":
            stress = np.asarray(prediction["s"], dtype=np.float64) * GPa
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)


def chgnet() -> Calculator:
    """A new CHGNet 0.3.0 calculator (its weights come with the package; they are loaded once)."""
    return _CHGNet()


def relax(
    atoms: Any, *, fmax: float, steps: int, maxstep: float = 0.2, watch: Callable[[], object] | None = None
) -> bool:
    """Relax by LBFGS, in place.

    Args:
        atoms: atoms with a calculator, or an ASE cell filter of them.
        fmax: convergence threshold of the forces, eV/Å.
        steps: maximum number of steps.
        maxstep: maximum displacement of an atom per step, Å.
        watch: called at the start and after every step.

    Returns:
        Whether it has converged.
    """
    from ase.optimize import LBFGS

    optimiser = LBFGS(atoms, logfile=None, maxstep=maxstep)  # type: ignore[arg-type]
    if watch is not None:
        optimiser.attach(watch)
    return bool(optimiser.run(fmax=fmax, steps=steps))


def rounded(atoms: Atoms) -> Atoms:
    """A copy at the precision of the store, without calculator."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array.astype(np.float32).astype(np.float64), scale_atoms=False)
    copy.set_positions(atoms.positions.astype(np.float32).astype(np.float64), apply_constraint=False)
    return copy


def labelled(atoms: Atoms, level_of_theory: str, *, id: str, group: str) -> LabelledStructure:
    """Energy (eV) and forces (eV/Å) of a structure as it is stored.

    Args:
        atoms: the structure; constraints become `fixed`, but forces on fixed atoms are included.
        level_of_theory: `GFN2` or `CHGNET`.
        id: unique within the data set.
        group: group that a split must not divide.
    """
    atoms = rounded(atoms)
    atoms.calc = gfn2(accuracy=0.1) if level_of_theory == GFN2 else chgnet()
    labels = {
        "energy": np.asarray(atoms.get_potential_energy(), dtype=np.float64),
        "forces": np.asarray(atoms.get_forces(apply_constraint=False), dtype=np.float64),
    }
    return LabelledStructure(structure=Structure.from_ase(atoms), labels=labels, id=id, group=group)
