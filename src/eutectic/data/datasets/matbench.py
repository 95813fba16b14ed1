"""Matbench v0.1: the nine tasks on crystal structures.

Dunn et al., npj Comput. Mater. 6, 138 (2020), doi:10.1038/s41524-020-00406-3. A source is
`matbench_<task>.json.gz` (or unpacked), or a folder with it: {"index", "columns", "data"}, where data are rows of a
pymatgen structure and the target. The rows must stay in file order: the official folds are positions in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.card import Card
from eutectic.data.dataset import File, Piece
from eutectic.data.formats import pymatgen_json
from eutectic.data.formats.archives import damage_explained, unpacked

FOLDS = 5
SEED = 18012019
"""Seed of the official folds: `matbench_v0.1_validation.json` of the package matbench 0.6."""

TRAINING_SHARE = 0.9
"""JMP (arXiv:2310.16802) trains on nine tenths of a fold's training list, shuffled with seed 42, and validates on the
rest; Matbench itself does not define validation sets."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of Matbench.

    Attributes:
        column: name of the target in the file.
        label: property; no task needs a conversion.
        rows: number of structures in the published file.
        level_of_theory: level of theory of the target.
        sha256: checksum of the published file (matminer, dataset_metadata.json).
        citation: source of the data.
    """

    column: str
    label: str
    rows: int
    level_of_theory: str
    sha256: str
    citation: str


_MP = "Jain et al., APL Mater. 1, 011002 (2013)"
_ELASTIC = "de Jong et al., Sci. Data 2, 150009 (2015)"

TASKS: dict[str, Task] = {
    "jdft2d": Task(
        column="exfoliation_en",
        label="exfoliation_energy",
        rows=636,
        level_of_theory="optB88-vdW",
        sha256="26057dc4524e193e32abffb296ce819b58b6e11d1278cae329a2f97817a4eddf",
        citation="Choudhary et al., Sci. Rep. 7, 5179 (2017)",
    ),
    "phonons": Task(
        column="last phdos peak",
        label="last_phdos_peak",
        rows=1265,
        level_of_theory="PBEsol (DFPT)",
        sha256="4db551f21ec5f577e6202725f10e34dfc509aa7df3a6bdaac497da7f6dbbb9b3",
        citation="Petretto et al., Sci. Data 5, 180065 (2018)",
    ),
    "dielectric": Task(
        column="n",
        label="refractive_index",
        rows=4764,
        level_of_theory="PBE or PBE+U (DFPT)",
        sha256="83befa09bc2ec2f4b6143afc413157827a90e5e2e42c1eb507ccfa01bf26a1d6",
        citation="Petousis et al., Sci. Data 4, 160134 (2017)",
    ),
    "log_gvrh": Task(
        column="log10(G_VRH)",
        label="log10_shear_modulus",
        rows=10987,
        level_of_theory="PBE or PBE+U",
        sha256="098af941f4c663270f1fe21abf20ffad6fb85ecbfcba5786ceac03983ac29da7",
        citation=_ELASTIC,
    ),
    "log_kvrh": Task(
        column="log10(K_VRH)",
        label="log10_bulk_modulus",
        rows=10987,
        level_of_theory="PBE or PBE+U",
        sha256="44b113ddb7e23aa18731a62c74afa7e5aa654199e0db5f951c8248a00955c9cd",
        citation=_ELASTIC,
    ),
    "perovskites": Task(
        column="e_form",
        label="cell_formation_energy",
        rows=18928,
        level_of_theory="RPBE",
        sha256="4641e2417f8ec8b50096d2230864468dfa08278dc9d257c327f65d0305278483",
        citation="Castelli et al., Energy Environ. Sci. 5, 9034 (2012)",
    ),
    "mp_gap": Task(
        column="gap pbe",
        label="band_gap",
        rows=106113,
        level_of_theory="PBE or PBE+U",
        sha256="58b65746bd88329986ed66031a2ac1369c7c522f7bc9f9081528e07097c2c057",
        citation=_MP,
    ),
    "mp_is_metal": Task(
        column="is_metal",
        label="is_metal",
        rows=106113,
        level_of_theory="PBE or PBE+U",
        sha256="9a028ed5750a4c76ca36e9f3c8d48fe0bf3fb21b76ec2289e58ae7048d527919",
        citation=_MP,
    ),
    "mp_e_form": Task(
        column="e_form",
        label="formation_energy",
        rows=132752,
        level_of_theory="PBE or PBE+U",
        sha256="dedcb1d4ba2e3e50dbdd45ba5bc647a00e9c2bcf8f8bf556dc8e92caa39eb21f",
        citation=_MP,
    ),
}
"""By the name of the file, `matbench_<task>.json.gz`."""

_URL = "https://ml.materialsproject.org/projects/"
_FETCH = "fetch the file again (https://ml.materialsproject.org/projects/matbench_<task>.json.gz)"
_LAYOUT = "matbench_<task>.json.gz: an object of index, columns, data"


PAPER_SPLITS = {"matbench": "fold_0"}
"""JMP reports the first of the five official folds."""


def names() -> tuple[str, ...]:
    """`matbench:<task>`."""
    return tuple(f"matbench:{task}" for task in TASKS)


def card(name: str) -> Card:
    """Card of one task."""
    task = TASKS[_known(name)]
    return Card(
        name=name,
        title=f"Matbench v0.1, {_known(name)}: {task.label.replace('_', ' ')} of crystals",
        domain="crystals",
        properties=(task.label,),
        level_of_theory=task.level_of_theory,
        licence="MIT",
        citation=f"Dunn et al., npj Comput. Mater. 6, 138 (2020), doi:10.1038/s41524-020-00406-3; {task.citation}",
        source=f"{_URL}matbench_{_known(name)}.json.gz",
        notes=(
            "A group is a chemical formula: the official folds put polymorphs of one compound on both sides.",
            "fold_0 … fold_4: the official test lists; a tenth of each official training list, drawn as JMP did, is "
            "the validation list.",
        ),
    )


def files(name: str) -> tuple[File, ...]:
    """One file."""
    file = f"matbench_{_known(name)}.json.gz"
    return (File(name=file, url=_URL + file, checksum=f"sha256:{TASKS[_known(name)].sha256}"),)


def pieces(source: Path, name: str) -> list[Piece]:
    """One piece: a compressed file is read from its beginning."""
    path = _file(Path(source), name)
    for _ in _rows(path, name):
        break
    return [Piece(path=path)]


def read(piece: Piece, name: str) -> Iterator[LabelledStructure]:
    """The rows of a piece; a missing target (null) gives no label.

    Raises:
        EutecticError: damaged or truncated; no column of this task; a row that is not an ordered crystal with a number.
    """
    task, total = TASKS[_known(name)], 0
    stop = None if piece.count is None else piece.first + piece.count
    digits = len(str(task.rows))
    for i, (values, target) in enumerate(_rows(piece.path, name)):
        if stop is not None and i >= stop:
            return
        total = i + 1
        if i < piece.first:
            continue
        where = f"{piece.path}, row {i}"
        if not isinstance(values, Mapping):
            raise EutecticError(where, f"a {type(values).__name__}", "a structure of pymatgen", _FETCH)
        structure = pymatgen_json.structure(values, where)
        if target is not None and not isinstance(target, int | float):
            raise EutecticError(where, f"{task.column} {target!r}", "a number", _FETCH)
        yield LabelledStructure(
            structure=structure,
            labels={} if target is None else {task.label: np.asarray(float(target))},
            # Published ids start at 1.
            id=f"mb-{_known(name).replace('_', '-')}-{i + 1:0{digits}d}",
            group=Formula.from_list([chemical_symbols[z] for z in structure.numbers]).reduce()[0].format("hill"),
        )
    if not total:
        raise EutecticError(str(piece.path), "no rows", _LAYOUT, _FETCH)


def published_splits(source: Path, name: str) -> Mapping[str, Mapping[str, np.ndarray]]:
    """`fold_0` … `fold_4`; none if the number of rows is not that of the published file."""
    task = _known(name)
    path = _file(Path(source), name)
    classes = TASKS[task].label == "is_metal"
    # Folds of a classification depend on the targets; those of a regression on the number of rows.
    targets = [target for _, target in _rows(path, name)]
    if len(targets) != TASKS[task].rows:
        return {}
    fold_of = stratified_folds(np.array(targets, dtype=bool)) if classes else folds(len(targets))
    splits = {}
    for fold in range(FOLDS):
        train = np.flatnonzero(fold_of != fold)
        np.random.RandomState(42).shuffle(train)
        cut = int(TRAINING_SHARE * len(train))
        splits[f"fold_{fold}"] = {
            "train": train[:cut],
            "validation": train[cut:],
            "test": np.flatnonzero(fold_of == fold),
        }
    return splits


def folds(n: int) -> np.ndarray:
    """(n,) official test fold of each row: `KFold(5, shuffle=True, random_state=18012019)`."""
    order = np.arange(n)
    np.random.RandomState(SEED).shuffle(order)
    fold_of = np.empty(n, dtype=np.int64)
    for fold, rows in enumerate(np.array_split(order, FOLDS)):
        fold_of[rows] = fold
    return fold_of


def stratified_folds(classes: np.ndarray) -> np.ndarray:
    """(n,) official test fold of each row of a classification: `StratifiedKFold` of scikit-learn since 0.22.

    Sorted by class, rows are dealt to the folds in turn, which gives the number of each class in a fold; which rows
    these are is shuffled class by class, in order of first appearance.

    Args:
        classes: (n,) class of each row.
    """
    random = np.random.RandomState(SEED)
    by_appearance = list(dict.fromkeys(classes.tolist()))
    dealt = np.sort([by_appearance.index(c) for c in classes.tolist()])
    fold_of = np.empty(len(classes), dtype=np.int64)
    for k, value in enumerate(by_appearance):
        shares = [int((dealt[fold::FOLDS] == k).sum()) for fold in range(FOLDS)]
        of_class = np.arange(FOLDS).repeat(shares)
        random.shuffle(of_class)
        fold_of[classes == value] = of_class
    return fold_of


def _known(name: str) -> str:
    if name not in names():
        raise EutecticError("matbench", f"data set {name!r}", f"one of {', '.join(names())}", "choose one of these")
    return name.partition(":")[2]


def _file(source: Path, name: str) -> Path:
    if source.is_file():
        return source
    task = _known(name)
    for suffix in (".json.gz", ".json"):
        if (source / f"matbench_{task}{suffix}").is_file():
            return source / f"matbench_{task}{suffix}"
    raise EutecticError(
        str(source),
        f"no matbench_{task}.json.gz here" if source.exists() else "does not exist",
        f"matbench_{task}.json.gz, or a folder with it",
        f"check the path and the task (fetch: {files(name)[0].url})",
    )


def _rows(path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """Structure and target of each row, unchecked."""
    task = TASKS[_known(name)]
    columns: list[Any] = []
    with damage_explained(str(path), _LAYOUT, _FETCH), unpacked(path) as raw:
        for key, item in pymatgen_json.items(raw.read):
            if key == "columns":
                columns.append(item)
            elif key == "data":
                if "structure" not in columns or task.column not in columns:
                    raise EutecticError(
                        str(path),
                        f"columns {', '.join(map(str, columns)) or 'none before the data'}",
                        f"structure, {task.column}",
                        f"name the task that is in the file, or fetch the file of {name}",
                    )
                if not isinstance(item, list) or len(item) != len(columns):
                    raise ValueError(f"a row that does not have {len(columns)} entries")
                yield item[columns.index("structure")], item[columns.index(task.column)]
