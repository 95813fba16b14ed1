"""Which steps of a calculation's output did not converge, and whether the output is complete.

ASE reads energies and forces of VASP, Quantum ESPRESSO and others whether or not the self-consistent cycle converged.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from eutectic.data.formats.archives import unpacked

ENTRIES = (
    "converged",
    "is_converged",
    "scf_converged",
    "scf_convergence",
    "electronic_converged",
    "converged_electronic",
)
"""Entries of structures that say whether their calculation converged."""


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """What an output says about its calculation.

    Attributes:
        unconverged: number of each step whose self-consistent cycle did not converge → reason.
        steps: number of complete steps.
        unfinished: why the file is incomplete; empty if it is complete.
    """

    unconverged: Mapping[int, str]
    steps: int = 0
    unfinished: str = ""


NOTHING = Convergence(unconverged={})


def of_file(path: Path, form: str) -> Convergence:
    """Convergence of every structure that ASE reads from a file, by its number.

    Args:
        path: the file, which may be compressed (.gz).
        form: ASE's name of its format; vasp-xml, vasp-out and espresso-out are supported.
    """
    read = {"vasp-xml": _vasprun, "vasp-out": _outcar, "espresso-out": _espresso}.get(form)
    if read is None:
        return NOTHING
    with unpacked(path) as raw, io.TextIOWrapper(cast(IO[bytes], raw), errors="replace") as lines:
        return read(lines)


def of_entries(entries: Mapping[str, object]) -> bool:
    """Whether an entry of the structure, such as `converged=F`, says that it did not converge."""
    for name, value in entries.items():
        if str(name).lower() in ENTRIES:
            if isinstance(value, str):
                return value.strip().lower() in ("f", "false", "no", "0", "none")
            with suppress(ValueError, TypeError):
                return not bool(value)
    return False


def note(number: int, first: str = "", *, left_out: bool) -> str:
    """Note for the card of a data set: structures that did not converge.

    Args:
        number: how many.
        first: the first, with the reason.
        left_out: whether they were left out.
    """
    done = ", and were left out" if left_out else "; --skip-unconverged leaves them out"
    return f"{number} structures did not converge{done}{f' (first: {first})' if first else ''}."


def _vasprun(lines: Iterable[str]) -> Convergence:
    """A step with NELM electronic cycles did not converge; the file ends with </modeling>."""
    unconverged: dict[int, str] = {}
    most, step, cycles, complete = 60, 0, 0, False  # 60 is VASP's default
    for line in lines:
        if 'name="NELM"' in line and (found := re.search(r'name="NELM">\s*(\d+)', line)):
            most = int(found[1])
        for tag in re.findall(r"<scstep>|</?calculation>|</modeling>", line):
            if tag == "<calculation>":
                cycles = 0
            elif tag == "<scstep>":
                cycles += 1
            elif tag == "</calculation>":
                if cycles >= most:
                    unconverged[step] = f"its electrons reached NELM = {most} cycles"
                step += 1
            else:
                complete = True
    return Convergence(
        unconverged=unconverged,
        steps=step,
        unfinished="" if complete else f"the file ends within step {step}, without </modeling>",
    )


def _outcar(lines: Iterable[str]) -> Convergence:
    unconverged: dict[int, str] = {}
    step, failed, complete, cycles, most = 0, "", False, 0, 0
    for line in lines:
        if "NELM" in line and (found := re.search(r"NELM\s*=\s*(\d+)", line)):
            most = int(found[1])
        elif "Iteration" in line and (found := re.search(r"Iteration\s+\d+\(\s*(\d+)\)", line)):
            cycles = int(found[1])
        elif "EDIFF was not reached" in line:
            failed = "its electrons did not reach EDIFF"
        elif "EDIFF is reached" in line:
            failed, cycles = "", -1
        elif "FREE ENERGIE OF THE ION-ELECTRON SYSTEM" in line:
            # VASP 5 prints no message about it.
            if not failed and most and cycles >= most:
                failed = f"its electrons reached NELM = {most} cycles"
            if failed:
                unconverged[step] = failed
            step, failed, cycles = step + 1, "", 0
        elif "General timing and accounting" in line:
            complete = True
    return Convergence(
        unconverged=unconverged,
        steps=step,
        unfinished="" if complete else f"the file ends after step {step}, without the timings",
    )


_RESULTS = (
    "!    total energy",
    "Forces acting on atoms",
    "total   stress",
    "Magnetic moment per site",
    "End of band structure calculation",
    "End of self-consistent calculation",
)
"""Lines of Quantum ESPRESSO's output by which ASE recognises a calculated configuration."""


def _espresso(lines: Iterable[str]) -> Convergence:
    """Steps in ASE's order: the configurations with results."""
    failed: list[bool] = []
    results = unconverged = complete = False
    for line in lines:
        if "Program PWSCF" in line or "ATOMIC_POSITIONS" in line:
            failed += [unconverged] * results
            results = unconverged = False
        results |= any(word in line for word in _RESULTS)
        unconverged |= "convergence NOT achieved" in line
        complete |= "JOB DONE" in line
    failed += [unconverged] * results
    return Convergence(
        unconverged={step: "convergence NOT achieved" for step, bad in enumerate(failed) if bad},
        steps=len(failed),
        unfinished="" if complete else "the file ends without JOB DONE",
    )
