"""Prepare a store from a file, look at it, and check it.

python examples/4_prepare_data.py
"""

from pathlib import Path
from tempfile import mkdtemp

import ase.io
from ase.build import molecule
from ase.calculators.emt import EMT

import eutectic

out = Path(mkdtemp(prefix="eutectic-"))
frames = []
for stretch in range(24):
    atoms = molecule("CO")
    atoms.positions[1] *= 1 + 0.01 * stretch
    atoms.calc = EMT()
    atoms.get_forces()
    frames.append(atoms)
ase.io.write(out / "co.xyz", frames)

eutectic.prepare_data("ase", out / "co.xyz", out / "co", level_of_theory="EMT")
store = eutectic.open_data(out / "co")
print(store)
print(store[0].structure.to_ase(), store[0].labels["energy"])

report = eutectic.check_data(out / "co")
print(report)
