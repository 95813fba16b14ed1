"""Steps that did not converge, and outputs that end early."""

from __future__ import annotations

from pathlib import Path

import pytest

from eutectic.atoms import EutecticError
from eutectic.check import check
from eutectic.data import catalogue
from eutectic.data.formats.convergence import NOTHING, of_entries, of_file
from eutectic.data.store import Store

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


HELIUM = (
    '<modeling><kpoints><varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray>'
    '</kpoints>\n<parameters><i type="int" name="NELM">3</i></parameters>\n'
    '<atominfo><array name="atoms"><set><rc><c>He</c><c>1</c></rc></set></array></atominfo>\n{initial}'
)
PLACE = (
    '<structure><crystal><varray name="basis"><v>3 0 0</v><v>0 3 0</v><v>0 0 3</v></varray></crystal>'
    '<varray name="positions"><v>0 0 0.{x}</v></varray></structure>'
)
CYCLE = '<scstep><energy><i name="e_fr_energy">-1.0</i><i name="e_0_energy">-1.0</i></energy></scstep>\n'
LABELS = (
    '<varray name="forces"><v>0 0 0.1</v></varray>'
    '<energy><i name="e_fr_energy">-1.{x}</i><i name="e_0_energy">-1.{x}</i></energy></calculation>\n'
)


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """Output of VASP with four steps, of which the second reached NELM = 3; and the same, cut within the fourth."""
    initial = PLACE.format(x=0).replace("<structure>", '<structure name="initialpos">')
    steps = [
        "<calculation>" + CYCLE * (3 if x == 2 else 2) + PLACE.format(x=x) + LABELS.format(x=x) for x in (1, 2, 3, 4)
    ]
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>\n' + HELIUM.format(initial=initial)
    whole, cut = tmp_path / "vasprun.xml", tmp_path / "cut-vasprun.xml"
    whole.write_text(head + "".join(steps) + "</modeling>\n")
    cut.write_text(head + "".join(steps[:3]) + steps[3][:60])
    return whole, cut


def test_steps_are_left_out_on_request(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    whole, cut = outputs
    for file, options, energies in (
        (whole, {}, [-1.1, -1.2, -1.3, -1.4]),
        (whole, {"skip_unconverged": True}, [-1.1, -1.3, -1.4]),
        (cut, {"skip_bad": True}, [-1.1, -1.2, -1.3]),
        (cut, {"skip_bad": True, "skip_unconverged": True}, [-1.1, -1.3]),
    ):
        made = catalogue.prepare("ase", file, tmp_path / "store", workers=1, overwrite=True, **options)  # type: ignore[arg-type]
        store = Store(made)
        assert [round(float(row.labels["energy"]), 6) for row in store] == energies
        assert any("1 structures did not converge" in note for note in store.card.notes)
        assert bool(store.left_out) == (file == cut)
    with pytest.raises(EutecticError, match=r"structure 3: the file ends within step 3, .*--skip-bad"):
        catalogue.prepare("ase", cut, tmp_path / "no", workers=1)
    codes = {finding.code: finding for finding in check(cut).findings}
    assert codes["unusable_structures"].numbers["count"] == 1
    assert "vasprun.xml#1: its electrons reached NELM = 3 cycles" in codes["not_converged"].message


def test_others(tmp_path: Path) -> None:
    assert of_file(tmp_path / "mine.xyz", "extxyz") == NOTHING
    for value, bad in ((False, True), ("F", True), (0, True), (True, False), ("yes", False), (1, False)):
        assert of_entries({"energy": 1.0, "SCF_converged": value}) == bad
    assert not of_entries({"energy": 0.0})
