"""Check a data set before training: `check`.

Published labels have known problems: gradients called forces, forces in Hartree/bohr with energies in Hartree and
coordinates in Å, energies rounded to float32, cells of 1000 Å. The modules `contents`, `energies`, `geometry` and
`motion` collect statistics in a single pass over the structures, in bounded memory; `units` and `diagnosis` turn them
into findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from eutectic.atoms import EutecticError, LabelledStructure, Property
from eutectic.atoms.properties import define_all
from eutectic.check import diagnosis, raw_arrays, sizes
from eutectic.check.contents import Contents, leaks
from eutectic.check.energies import Energies
from eutectic.check.geometry import Geometry
from eutectic.check.motion import Motion
from eutectic.check.report import Finding, Plotted, Report, SlopeTest, Units
from eutectic.check.scales import spread
from eutectic.check.stresses import Stresses
from eutectic.check.units import judge
from eutectic.console import track
from eutectic.data import conditions, own_files
from eutectic.data.catalogue import embedded, open_store
from eutectic.data.datasets import ase_files
from eutectic.data.formats.elements import Elements
from eutectic.data.formats.elements import parse as parse_elements
from eutectic.data.store import Store, is_store

__all__ = ["Finding", "Report", "SlopeTest", "Units", "check"]

ORDER = ("error", "warning", "note")


@dataclass(eq=False)
class _Source:
    """The structures to check, and what is known about them in advance."""

    kind: str
    rows: Iterator[tuple[str, LabelledStructure]]
    total: int | None = None
    store: Store | None = None
    arrays: raw_arrays.Arrays = field(default_factory=raw_arrays.Arrays)


def check(
    store_or_file: str | Path,
    *,
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    define: Sequence[str] = (),
    elements: str | None = None,
    model_elements: Iterable[int] | None = None,
    progress: bool = False,
) -> Report:
    """Check every structure of a data set.

    Args:
        store_or_file: an embedded data set, a store, any file or folder that ASE reads, or an HDF5 or npz file of
            arrays, which is read as it is: no change of sign, no unpickling, and no conversion except by `units`.
        keys: property, or "virial", → key (or array) in the files, instead of the usual names.
        units: property, "virial", "positions" or "cell" → unit in the files, as for `eutectic.prepare_data`.
        define: custom properties, in the syntax of `eutectic.atoms.parse_definition`.
        elements: elements for files that have only atom types or labels, "Cu,Au" or "OW=O,HW=H".
        model_elements: atomic numbers in a model's training data; empty if its provenance does not list them.
        progress: show progress and time left when it takes more than a few seconds.

    Returns:
        The report; its `ok` is False if any finding is an error.

    Raises:
        EutecticError: nothing to check; an invalid definition, key or unit; units of a store.
    """
    defined = define_all(define)
    named = parse_elements(elements)
    source = _opened(store_or_file, keys, units, named)
    contents, energies, geometry, motion, stresses = Contents(), Energies(), Geometry(), Motion(), Stresses()
    bad: list[str] = []
    n_bad = n_structures = 0
    try:
        for where, row in track(source.rows, "Checking structures", source.total, enabled=progress):
            n_structures += 1
            try:
                row.check(where)
            except EutecticError as error:
                n_bad += 1
                bad += [str(error)] * (len(bad) < 10)
                continue
            contents.add(row)
            geometry.add(row)
            if "energy" in row.labels:
                energies.add(row.id, row.structure.numbers, float(row.labels["energy"]))
            motion.add(row)
            stresses.add(row)
    except EutecticError as error:
        # The rest of the file is unreadable; still report on the structures before it.
        if not n_structures:
            raise
        n_bad += 1
        bad.append(str(error))
    broken = {"count": n_bad, "first": bad}
    scanned = _scanned(source, store_or_file, keys, units, named, defined)
    declared = {role: unit for role, unit in source.arrays.declared.items() if role not in (units or {})}
    judged = judge(energies, geometry, motion, declared, raw=source.kind == "arrays")
    inferred = judged.units
    if energies.n:
        inferred = replace(inferred, residual_per_atom=spread(energies.residuals())[1])
    geometry_findings, force_outliers = diagnosis.of_geometry(geometry, inferred)
    differing = conditions.words(scanned.conditions)
    if source.store is not None:
        differing = conditions.from_notes(source.store.card.notes)
    split_leaks = leaks(source.store) if source.store is not None else []
    findings = [
        *diagnosis.of_contents(contents, n_structures, broken, scanned.ignored, differing),
        *diagnosis.of_file(scanned),
        *judged.findings,
        *diagnosis.of_energies(energies, inferred),
        *diagnosis.of_stresses(stresses),
        *sizes.of_energies(energies, inferred),
        *sizes.of_forces(geometry, inferred, judged.bonds),
        *sizes.of_stresses(stresses, judged.stress_test),
        *sizes.of_scalars(contents),
        *geometry_findings,
        *diagnosis.of_elements(contents, model_elements),
        *diagnosis.of_motion(motion, inferred),
        *diagnosis.of_splits(split_leaks),
    ]
    pairs = sorted(motion.pairs, key=lambda p: p.curvature / (abs(p.work) + 1e-300))
    pairs = pairs[: max(len(pairs) // 2, 200)]
    present = np.flatnonzero(contents.atoms_of)
    return Report(
        source=str(store_or_file),
        kind=source.kind,
        structures=n_structures,
        labels=dict(contents.labels),
        keys=scanned.counts,
        ignored=scanned.ignored,
        bad=broken,
        duplicates=contents.distinct.repeated(),
        force_outliers=force_outliers,
        largest_force=geometry.extreme_forces.items()[0][0] if len(geometry.largest) else None,
        units=inferred,
        force_test=judged.force_test,
        stress_test=judged.stress_test,
        bond_test={} if judged.bonds is None else _numbers(asdict(judged.bonds)),
        elements={
            chemical_symbols[z]: {"structures": int(contents.structures_with[z]), "atoms": int(contents.atoms_of[z])}
            for z in present
        },
        splits=tuple(asdict(leak) for leak in split_leaks),
        findings=tuple(sorted(findings, key=lambda f: ORDER.index(f.severity))),
        plotted=Plotted(
            residuals=tuple(energies.residuals().tolist()) if energies.n else (),
            forces=tuple(geometry.forces.kept),
            work=tuple(p.work for p in pairs),
            energy_change=tuple(p.energy_change for p in pairs),
            atoms_of={int(z): int(contents.atoms_of[z]) for z in present},
        ),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(v) if isinstance(v, np.floating) else v for k, v in values.items()}


def _opened(
    store_or_file: str | Path, keys: Mapping[str, str] | None, units: Mapping[str, str] | None, elements: Elements
) -> _Source:
    path = Path(store_or_file)
    if str(store_or_file) in embedded() or is_store(path) or not path.exists():
        if units:
            raise EutecticError(
                "--unit",
                f"used with {store_or_file}, which is already a store",
                "this option only with a file",
                "leave it out, or check the file itself",
            )
        store = open_store(store_or_file)
        for option, value in {"--key": keys, "--elements": elements}.items():
            if value:
                raise EutecticError(
                    option,
                    f"used with {store_or_file}, which is already a store",
                    "this option only with a file of structures",
                    "leave it out, or give the file itself",
                )
        rows = ((f"{store.path}, {row.id}", row) for row in store)
        return _Source(kind="store", rows=rows, total=len(store), store=store)
    if raw_arrays.is_arrays(path):
        own_files.check_keys(keys or {})
        for name in keys or ():
            if name not in ("energy", "forces"):
                raise EutecticError(
                    f"--key {name}",
                    f"used with {path}",
                    "energy or forces: nothing else is checked in files of arrays",
                    "prepare a store from it (`eutectic data prepare records`), and check the store",
                )
        arrays = raw_arrays.Arrays()
        return _Source(kind="arrays", rows=raw_arrays.rows(path, arrays, keys, units), arrays=arrays)
    if path.suffix.lower() in (".lmdb", ".pkl", ".pickle", ".pt"):
        raise EutecticError(
            str(path),
            "a pickle file",
            "a store, a file that ASE reads, HDF5 or npz",
            "pickles can run arbitrary code and are not opened here; convert it with `eutectic data prepare`, and "
            "check the store",
        )
    return _Source(kind="structures", rows=ase_files.rows(path, keys, units=units, elements=elements))


def _scanned(
    source: _Source,
    store_or_file: str | Path,
    keys: Mapping[str, str] | None,
    units: Mapping[str, str] | None,
    elements: Elements,
    defined: Sequence[Property],
) -> ase_files.LabelsFound:
    """Labels, keys that look like labels, and other information that a file gives about its structures."""
    if source.store is not None:
        counts = {name: {name: n} for name, n in source.store.label_counts().items()}
        return ase_files.LabelsFound(structures=len(source.store), files=0, counts=counts)
    if source.kind == "arrays":
        arrays, tried = source.arrays, {name: (key,) for name, key in (keys or {}).items()}
        own_files.check_matches(str(store_or_file), keys or {}, (), arrays.keys, [*arrays.seen], tried)
        return ase_files.LabelsFound(structures=0, files=1, counts=arrays.keys, ignored=arrays.ignored)
    try:
        return ase_files.scan(Path(store_or_file), keys, units=units, elements=elements, defined=defined, skip_bad=True)
    except EutecticError:
        if keys or defined:
            raise
        return ase_files.LabelsFound(structures=0, files=0)  # no labels: reported already
