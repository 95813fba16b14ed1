"""Predict energy and forces of a molecule with a model that comes with the package.

python examples/1_predict.py
"""

from ase.build import molecule

import eutectic

model = eutectic.load("eutectic-small")
print(model)

water = molecule("H2O")
prediction = model.predict(water, task="molecules")
print(f"energy {prediction['energy']:.3f} eV")
print("forces, eV/Å\n", prediction["forces"].round(3))

# Predict several structures at once, with forces as derivatives of the energy.
several = model.predict([water, molecule("CH3OH")], task="molecules", conservative=True)
print("mean |F|", [float(abs(one["forces"]).mean().round(3)) for one in several], "eV/Å")
