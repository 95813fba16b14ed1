"""Open data by name, store or file; a file is prepared, checked and cached by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from eutectic.atoms import EutecticError
from eutectic.check import Report, check
from eutectic.data import catalogue
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store, is_store
from eutectic.files import write_atomically

VERSION = 2
"""Version of the cache; changing it prepares files again."""


def open_data(
    data: str | Path,
    *,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    define: Sequence[str] = (),
    elements: str | None = None,
    level_of_theory: str = "not stated",
    skip_unconverged: bool = False,
    console: Console | None = None,
) -> Store:
    """Open a store by name or path, or a file or folder that ASE reads, which is first prepared and checked.

    A file is prepared once for each content and set of options, under `$EUTECTIC_DATA`; the findings of the check are
    kept beside the store.

    Args:
        data: name of an embedded or prepared data set, path of a store, or a file of structures.
        keys: for a file: property → name of the entry that holds it.
        units: for a file: property, "virial", "positions" or "cell" → unit in the file, instead of the one it states.
        define: for a file: custom properties, in the syntax of `eutectic.atoms.parse_definition`.
        elements: for a file that has only atom types or labels: their elements, "Cu,Au" or "OW=O,HW=H".
        level_of_theory: for a file: level of theory of its labels.
        skip_unconverged: for a file: leave out calculations that did not converge.
        console: where to report the preparation and the findings; silent if None.

    Raises:
        EutecticError: no such data; a file that cannot be read, or with errors found by the check; options for a file
            given for a store.
    """
    path = Path(data)
    if not is_of_files(data):
        given = {"--key": keys, "--unit": units, "--elements": elements, "--skip-unconverged": skip_unconverged}
        for option, value in given.items():
            if value:
                raise EutecticError(
                    option,
                    f"used with {data}, which is already a store",
                    "this option only with a file of structures",
                    "leave it out, or give the file itself",
                )
        return catalogue.open_store(data)
    cached = _cache_path(path, keys, units, define, elements, level_of_theory, skip_unconverged)
    verdict = cached.with_name(cached.name + ".check.json")
    if not (is_store(cached) and verdict.is_file()):
        catalogue.prepare(
            "ase",
            path,
            cached,
            keys=keys,
            units=units,
            define=define,
            elements=elements,
            level_of_theory=level_of_theory,
            skip_unconverged=skip_unconverged,
            overwrite=is_store(cached),
            progress=console is not None,
        )
        report = check(cached, progress=console is not None)
        write_atomically(verdict, json.dumps(_summary(report), indent=1, ensure_ascii=False))
    findings = json.loads(verdict.read_text())
    if console is not None:
        console.print(f"{path}: prepared and checked. {findings['verdict']}", highlight=False)
        for note in Store(cached).card.notes:
            console.print(f"  {note}", highlight=False, markup=False)
        if findings["findings"]:
            console.print(f"  for all findings: eutectic data check {path}", highlight=False)
    errors = [finding for finding in findings["findings"] if finding["severity"] == "error"]
    if errors:
        raise EutecticError(
            str(path),
            "; ".join(finding["message"] for finding in errors),
            "data without errors",
            f"{errors[0]['fix']}; to train on it anyway, prepare it first (`eutectic data prepare ase --source "
            f"{path} --store STORE`) and give the store",
        )
    return Store(cached)


def is_of_files(data: str | Path) -> bool:
    """Whether this is a file or folder of structures, and not a store or the name of one."""
    path = Path(data)
    if str(data) in catalogue.embedded() or is_store(path):
        return False
    return path.is_file() or (path.is_dir() and str(data) not in catalogue.native() and not any(path.glob("*.arrow")))


def _cache_path(
    path: Path,
    keys: Mapping[str, str] | None,
    units: Mapping[str, str] | None,
    define: Sequence[str],
    elements: str | None,
    level_of_theory: str,
    skip_unconverged: bool,
) -> Path:
    """Path of the cached store for the content of a file and these options."""
    content = hashlib.sha256()
    for member in ase_files.files_of(path):
        if not path.is_file():
            content.update(f"{member.relative_to(path).as_posix()} {member.stat().st_size} ".encode())
        with member.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    given = [sorted((keys or {}).items()), sorted((units or {}).items()), sorted(define), elements, level_of_theory]
    given += [True] if skip_unconverged else []
    options = json.dumps([VERSION, *given])
    content.update(f"{path.name} {options}".encode())
    return catalogue.data_folder() / "files" / content.hexdigest()[:24] / (path.stem or "structures")


def _summary(report: Report) -> dict[str, object]:
    return {
        "verdict": report.verdict,
        "findings": [
            {"severity": f.severity, "code": f.code, "message": f.message, "fix": f.fix} for f in report.findings
        ],
    }
