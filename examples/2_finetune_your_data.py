"""Check a file of structures, fine-tune a model on it, and use the model.

    python examples/2_finetune_your_data.py my.xyz

Without an argument, the script makes a small file from structures that come with the package.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

import eutectic

out = Path(mkdtemp(prefix="eutectic-"))


def small_file() -> Path:
    """120 frames of aspirin with energies and forces (GFN2-xTB), as extended xyz."""
    frames = []
    for row in list(eutectic.open_data("md_aspirin"))[:120]:
        atoms = row.structure.to_ase()
        atoms.calc = SinglePointCalculator(atoms, energy=float(row.labels["energy"]), forces=row.labels["forces"])
        frames.append(atoms)
    ase.io.write(out / "aspirin.xyz", frames)
    return out / "aspirin.xyz"


file = Path(sys.argv[1]) if len(sys.argv) > 1 else small_file()
print(eutectic.check_data(file).verdict)

result = eutectic.finetune(
    file, ["forces"], out=out / "run", model="eutectic-small", n_train=60, n_validation=20, n_test=20, steps=20
)
print(result)

model = eutectic.load(out / "run")
atoms = ase.io.read(file, index=0)
print("largest force", abs(model.predict(atoms)["forces"]).max().round(2), "eV/Å")
print("report:", out / "run" / "report.html")
