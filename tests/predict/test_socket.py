"""The calculator behind a socket, as i-PI and other programs use it."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.socketio import SocketClient, SocketIOCalculator

import eutectic


@pytest.mark.parametrize("periodic", [False, True], ids=["molecule", "crystal"])
def test_energies_forces_and_stress_over_a_socket(periodic: bool) -> None:
    """The protocol is in atomic units, so that a wrong unit or sign on the way would show."""
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True) if periodic else molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    task = "bulk" if periodic else "molecules"
    model = eutectic.load("eutectic-small", device="cpu")
    atoms.calc = model.calculator(task=task, conservative=True, dtype="float64")
    expected = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress() if periodic else None

    name = f"eutectic-{uuid.uuid4().hex[:12]}"
    asking = atoms.copy()
    with SocketIOCalculator(unixsocket=name, timeout=120) as server:
        client_atoms = atoms.copy()
        client_atoms.calc = model.calculator(task=task, conservative=True, dtype="float64")
        client = threading.Thread(
            target=lambda: SocketClient(unixsocket=name, timeout=120).run(client_atoms, use_stress=periodic)
        )
        client.start()
        asking.calc = server
        energy, forces = asking.get_potential_energy(), asking.get_forces()
        if periodic:
            np.testing.assert_allclose(asking.get_stress(), stress, atol=1e-9)
        # A step of a dynamics: the client follows.
        asking.positions[0] += 0.02
        atoms.positions[0] += 0.02
        np.testing.assert_allclose(asking.get_forces(), atoms.get_forces(), atol=1e-8)
    client.join(timeout=60)
    assert not client.is_alive()
    assert energy == pytest.approx(expected[0], abs=1e-8)
    np.testing.assert_allclose(forces, expected[1], atol=1e-8)
