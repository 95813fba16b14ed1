"""Steps that did not converge, and outputs that end early."""

from __future__ import annotations

from pathlib import Path

import pytest

from eutectic.data.formats.convergence import NOTHING, of_entries, of_file

STEP = '<calculation>\n{}<energy><i name="e_fr_energy">-1.0</i></energy></calculation>\n'
VASPRUN = '<modeling>\n<parameters><i type="int" name="NELM">     3</i></parameters>\n{}'


def vasprun(*cycles: int, end: str = "</modeling>\n") -> str:
    return VASPRUN.format("".join(STEP.format("<scstep></scstep>\n" * n) for n in cycles)) + end


LOOP = "----- Iteration      {step}(  {cycle})  -----\n"
FREE = "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n"


def outcar(*cycles: int, words: bool, end: str = " General timing and accounting of this job\n") -> str:
    text = "   NELM   =      3;   NELMIN=  2\n"
    for step, n in enumerate(cycles, start=1):
        text += "".join(LOOP.format(step=step, cycle=cycle) for cycle in range(1, n + 1))
        if words:
            text += "------ aborting loop " + (
                "EDIFF was not reached (unconverged)" if n == 3 else "because EDIFF is reached"
            )
        text += "\n" + FREE
    return text + end


ENERGY = "!    total energy              =     -15.0 Ry\n"
START = "     Program PWSCF v.7.2 starts\n"
MOVED = "ATOMIC_POSITIONS (angstrom)\n"
FAILED = "     convergence NOT achieved after 100 iterations: stopping\n     Forces acting on atoms\n"


@pytest.mark.parametrize(
    ("form", "text", "unconverged", "finished"),
    [
        ("vasp-xml", vasprun(2, 3, 1), {1}, True),
        ("vasp-xml", vasprun(2, 2), set(), True),
        ("vasp-xml", vasprun(3, 2, end="<calculation>\n<scstep></scs"), {0}, False),
        ("vasp-out", outcar(2, 3, 1, words=True), {1}, True),
        ("vasp-out", outcar(2, 3, 1, words=False), {1}, True),
        ("vasp-out", outcar(2, 1, words=True, end=""), set(), False),
        ("espresso-out", START + ENERGY + MOVED + FAILED + MOVED + ENERGY + "JOB DONE.\n", {1}, True),
        ("espresso-out", START + ENERGY + MOVED + MOVED + FAILED, {1}, False),
    ],
)
def test_outputs(tmp_path: Path, form: str, text: str, unconverged: set[int], finished: bool) -> None:
    (tmp_path / "output").write_text(text)
    found = of_file(tmp_path / "output", form)
    assert set(found.unconverged) == unconverged
    assert (found.unfinished == "") == finished


def test_others(tmp_path: Path) -> None:
    assert of_file(tmp_path / "mine.xyz", "extxyz") == NOTHING
    for value, bad in ((False, True), ("F", True), (0, True), (True, False), ("yes", False), (1, False)):
        assert of_entries({"energy": 1.0, "SCF_converged": value}) == bad
    assert not of_entries({"energy": 0.0})
