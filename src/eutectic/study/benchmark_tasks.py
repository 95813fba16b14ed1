"""The 40 fine-tuning tasks of JMP (Shoghi et al., ICLR 2024, arXiv:2310.16802): data, protocol and published errors.

The errors of JMP, of the same architecture trained from scratch (GemNet-OC, "GN-OC") and of earlier models are from the
tables in the README of the authors' code, which are images: single digits may have been misread, but the averages
stated by the authors are reproduced (see `eutectic.study.benchmark`). All are test mean absolute errors.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eutectic.atoms import EutecticError, did_you_mean

FAMILIES: dict[str, str] = {
    "qm9": "QM9",
    "rmd17": "rMD17",
    "md22": "MD22",
    "spice": "SPICE",
    "matbench": "Matbench",
    "qmof": "QMOF",
}
"""Family → its title."""

FOLDS = tuple(f"fold_{i}" for i in range(5))
"""The official folds of Matbench."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Published settings of a task.

    Attributes:
        batch_size: structures per step.
        cutoff: of the graph, Å.
        neighbours: maximum number of neighbours of an atom in the graph.
        half_precision: mixed precision with float16 (True) or float32 (False).
        forces: derivatives of the energy ("gradient"), or a separate head ("direct"); None: no forces.
        pooling: of atoms to a structure, for scalars.
        splits: one run per split; Matbench has five folds, all others the paper's split.
    """

    batch_size: int
    cutoff: float
    neighbours: int = 30
    half_precision: bool = True
    forces: Literal["gradient", "direct"] | None = None
    pooling: Literal["sum", "mean", "max"] = "sum"
    splits: tuple[str, ...] = ("paper",)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Published errors of a task, in its unit.

    Attributes:
        jmp_l, jmp_s: fine-tuned from JMP-L and JMP-S; None if not published.
        scratch_l, scratch_s: the same architectures from random weights.
        earlier: models published before JMP → their errors.
    """

    jmp_l: float
    jmp_s: float
    scratch_l: float | None = None
    scratch_s: float | None = None
    earlier: Mapping[str, float] = field(default_factory=dict)

    @property
    def best_before(self) -> float | None:
        """Lowest error of the models before JMP; None if there is none."""
        return min(self.earlier.values(), default=None)

    @property
    def best_before_by(self) -> str | None:
        """The models with the lowest error."""
        best = self.best_before
        return None if best is None else " and ".join(name for name, e in self.earlier.items() if e == best)


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """A task of the benchmark.

    Attributes:
        name: "qm9:gap", "rmd17:aspirin", …
        data: name of the data set, as in `eutectic data prepare`.
        property: to learn.
        unit: of all errors.
        protocol: published settings.
        published: errors on the paper's split; for Matbench on fold_0, the only fold with errors from scratch.
        five_folds: means over the five folds, for Matbench.
        best_known: lowest known error; None if lower errors are claimed whose values could not be checked.
        source: model and source of `best_known`, or why it is not known.
    """

    name: str
    data: str
    property: str
    unit: str
    protocol: Protocol
    published: Columns
    five_folds: Columns | None = None
    best_known: float | None = None
    source: str = ""

    @builtins.property
    def family(self) -> str:
        """The part of the name before the colon."""
        return self.name.partition(":")[0]

    @builtins.property
    def judged(self) -> Columns:
        """Errors used to count the best models: means over five folds if they are published."""
        return self.five_folds or self.published

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; for Matbench, `jmp_l` … `best_before` are for fold_0, and `five_folds` has means over folds."""
        return {
            "name": self.name,
            "family": self.family,
            "data": self.data,
            "property": self.property,
            "unit": self.unit,
            **_columns(self.published),
            "best_known": self.best_known,
            "source": self.source,
            "five_folds": None if self.five_folds is None else _columns(self.five_folds),
        }


def _columns(columns: Columns) -> dict[str, Any]:
    return {
        "jmp_l": columns.jmp_l,
        "jmp_s": columns.jmp_s,
        "scratch_l": columns.scratch_l,
        "scratch_s": columns.scratch_s,
        "best_before": columns.best_before,
        "best_before_by": columns.best_before_by,
    }


def _earlier(models: Sequence[str], errors: Sequence[float | None]) -> dict[str, float]:
    return {model: error for model, error in zip(models, errors, strict=True) if error is not None}


def _published(models: Sequence[str], errors: Sequence[float | None], ours: Sequence[float]) -> Columns:
    """Columns from a row of a table: earlier models, GN-OC-S, GN-OC-L, JMP-S, JMP-L."""
    scratch_s, scratch_l, jmp_s, jmp_l = ours
    return Columns(jmp_l=jmp_l, jmp_s=jmp_s, scratch_l=scratch_l, scratch_s=scratch_s, earlier=_earlier(models, errors))


_JMP = "JMP-L (Shoghi et al., arXiv:2310.16802)"
_NO_LATER = f"{_JMP}; no later error was found"
_QM9_UNREAD = "lower errors are claimed by GotenNet (ICLR 2025) and SCD (arXiv:2603.17196); not read"
_MD_UNREAD = "lower errors are claimed by GotenNet (ICLR 2025) and MD-ET (arXiv:2503.01431); not read"
_MD22_UNREAD = "lower errors are claimed by GotenNet (ICLR 2025); not read"
_MATTERTUNE = "MatterTune, examples/matbench/results.md (2025-03; fold not stated, one fold)"


def _qm9() -> Iterator[BenchmarkTask]:
    models = ("TorchMD-Net", "Equiformer", "MACE", "Allegro", "ET-OREO", "GNS+TAT+NN")
    for name, prop, unit, errors, ours in (
        ("mu", "dipole_moment", "D", (0.011, 0.011, 0.015, None, None, 0.016), (0.02, 0.023, 0.01, 0.008)),
        ("alpha", "polarizability", "a0³", (0.059, 0.046, 0.038, None, None, 0.04), (0.052, 0.056, 0.037, 0.032)),
        ("homo", "homo", "meV", (20.3, 15.0, 22.0, None, 16.8, 14.9), (21.8, 22.7, 11.1, 8.8)),
        ("lumo", "lumo", "meV", (18.6, 14.0, 19.0, None, 14.5, 14.7), (17.3, 18.6, 10.8, 8.6)),
        ("gap", "gap", "meV", (36.1, 30.0, 42.0, None, 26.4, 22.0), (38.5, 40.6, 23.1, 19.1)),
        ("r2", "electronic_spatial_extent", "a0²", (0.033, 0.251, 0.21, None, None, 0.44), (0.21, 0.171, 0.2, 0.163)),
        ("zpve", "zpve", "meV", (1.8, 1.3, 1.2, None, None, 1.0), (1.2, 1.2, 1.0, 0.9)),
        ("u0", "u0", "meV", (6.2, 6.6, 4.1, 4.7, None, 5.8), (7.2, 9.4, 3.3, 2.9)),
        ("u", "u", "meV", (6.4, 6.7, 4.1, 4.4, None, 5.8), (6.9, 9.7, 3.3, 2.8)),
        ("h", "h", "meV", (6.2, 6.6, 4.7, 4.4, None, 5.8), (7.3, 8.7, 3.3, 2.8)),
        ("g", "g", "meV", (8.3, 7.6, 5.5, 5.7, None, 6.9), (8.1, 9.2, 4.5, 4.3)),
        ("cv", "heat_capacity", "cal/(mol K)", (0.026, 0.023, 0.021, None, None, 0.02), (0.024, 0.024, 0.018, 0.017)),
    ):
        is_extent = name == "r2"
        yield BenchmarkTask(
            name=f"qm9:{name}",
            data="qm9",
            property=prop,
            unit=unit,
            protocol=Protocol(batch_size=48, cutoff=8.0),
            published=_published(models, errors, ours),
            best_known=0.033 if is_extent else None,
            source="TorchMD-Net, in the table of Shoghi et al." if is_extent else _QM9_UNREAD,
        )


def _rmd17() -> Iterator[BenchmarkTask]:
    for molecule, errors, ours, allegro in (
        ("aspirin", (6.6, 7.3), (24.3, 24.7, 6.7, 5.1), False),
        ("benzene", (0.3, 0.2), (1.0, 1.0, 0.7, 0.3), True),
        ("ethanol", (2.1, 2.1), (13.0, 13.3, 2.8, 2.0), False),
        ("malonaldehyde", (4.1, 4.1), (21.1, 25.7, 5.3, 4.0), False),
        ("naphthalene", (1.6, 0.9), (5.6, 5.7, 2.2, 1.4), True),
        ("salicylic", (3.1, 2.9), (14.7, 15.1, 4.6, 3.4), True),
        ("toluene", (1.5, 1.8), (6.8, 7.2, 2.3, 1.5), False),
        ("uracil", (2.1, 1.8), (12.0, 12.9, 4.0, 2.5), True),
        ("paracetamol", (4.8, 4.9), (17.3, 18.4, 5.3, 4.0), False),
        ("azobenzene", (3.0, 2.6), (11.1, 11.4, 4.5, 3.3), True),
    ):
        published = _published(("MACE", "Allegro"), errors, ours)
        if allegro:
            known, source = errors[1], "Allegro, in the table of Shoghi et al."
        elif molecule == "toluene":
            known, source = 1.5, "MACE and JMP-L, in the table of Shoghi et al."
        else:
            known, source = None, _MD_UNREAD
        yield BenchmarkTask(
            name=f"rmd17:{molecule}",
            data=f"rmd17:{molecule}",
            property="forces",
            unit="meV/Å",
            protocol=Protocol(batch_size=1, cutoff=7.0, neighbours=100, half_precision=False, forces="gradient"),
            published=published,
            best_known=known,
            source=source,
        )


def _md22() -> Iterator[BenchmarkTask]:
    models = ("sGDML", "MACE", "Allegro")
    for molecule, errors, ours, batch_size, forces, half in (
        ("Ac-Ala3-NHMe", (34.55, 3.8, 4.63), (5.07, 6.27, 2.64, 1.92), 2, "direct", True),
        ("DHA", (32.41, 2.8, 3.17), (2.87, 3.95, 2.01, 1.37), 1, "gradient", False),
        ("stachyose", (29.24, 3.8, 4.21), (2.22, 3.85, 2.69, 1.73), 1, "gradient", True),
        ("AT-AT", (29.97, 4.3, 4.13), (5.38, 5.96, 3.02, 1.98), 1, "gradient", True),
        ("AT-AT-CG-CG", (30.48, 5.0, 5.55), (5.8, 5.62, 3.28, 2.11), 1, "gradient", True),
        ("buckyball-catcher", (29.57, 3.7, None), (10.35, 8.2, 3.08, 2.26), 1, "gradient", True),
        ("double-walled_nanotube", (22.68, 12.0, None), (11.2, 9.61, 8.36, 6.17), 1, "direct", True),
    ):
        yield BenchmarkTask(
            name=f"md22:{molecule}",
            data=f"md22:{molecule}",
            property="forces",
            unit="meV/Å",
            protocol=Protocol(
                batch_size=batch_size,
                cutoff=12.0,
                half_precision=half,
                forces="direct" if forces == "direct" else "gradient",
            ),
            published=_published(models, errors, ours),
            source=_MD22_UNREAD,
        )


def _spice() -> Iterator[BenchmarkTask]:
    for subset, ours in (
        ("solvated_amino_acids", (22.14, 28.64, 5.71, 4.75)),
        ("dipeptides", (8.78, 10.68, 4.71, 3.64)),
    ):
        yield BenchmarkTask(
            name=f"spice:{subset}",
            data=f"spice:{subset}",
            property="forces",
            unit="meV/Å",
            protocol=Protocol(batch_size=2, cutoff=12.0, forces="gradient"),
            published=_published((), (), ours),
            best_known=ours[3],
            source=_NO_LATER,
        )


def _matbench() -> Iterator[BenchmarkTask]:
    # In pairs (MODNet, coGN, JMP-S, JMP-L), the first value is for fold_0, the second the mean over folds.
    for task, prop, unit, modnet, cogn, scratch, jmp_s, jmp_l, known, source in (
        (
            *("jdft2d", "exfoliation_energy", "meV/atom", (25.55, 33.20), (22.25, 37.17), (26.19, 25.34)),
            *((20.72, 30.16), (23.12, 29.94), 19.42, f"JMP-S in {_MATTERTUNE}"),
        ),
        (
            *("phonons", "last_phdos_peak", "1/cm", (34.77, 34.28), (32.12, 29.71), (93.45, 88.74)),
            *((26.6, 22.77), (21.28, 20.57), 21.28, _JMP),
        ),
        (
            *("dielectric", "refractive_index", "", (0.169, 0.271), (0.178, 0.309), (0.225, 0.211)),
            *((0.133, 0.252), (0.119, 0.249), 0.111, f"eqV2 in {_MATTERTUNE}"),
        ),
        (
            *("log_gvrh", "log10_shear_modulus", "log₁₀ GPa", (0.073, 0.073), (0.068, 0.069), (0.082, 0.082)),
            *((0.06, 0.062), (0.057, 0.059), 0.053, f"ORB in {_MATTERTUNE}"),
        ),
        (
            *("log_kvrh", "log10_bulk_modulus", "log₁₀ GPa", (0.054, 0.055), (0.052, 0.054), (0.061, 0.063)),
            *((0.044, 0.046), (0.045, 0.045), 0.033),
            f"JMP-S in {_MATTERTUNE}; doubtful, since its authors give 0.044 for the same model",
        ),
        (
            *("perovskites", "cell_formation_energy", "eV", (0.093, 0.091), (0.027, 0.027), (0.045, 0.045)),
            *((0.029, 0.028), (0.026, 0.026), 0.026, _JMP),
        ),
        (
            *("mp_gap", "band_gap", "eV", (0.215, 0.220), (0.153, 0.156), (0.228, 0.235)),
            *((0.119, 0.121), (0.089, 0.091), 0.089, _JMP),
        ),
        (
            *("mp_e_form", "formation_energy", "meV/atom", (40.2, 44.8), (17.4, 17.0), (31.4, 33.1)),
            *((13.6, 13.3), (10.3, 10.1), 9.4, f"ORB in {_MATTERTUNE}"),
        ),
    ):
        batch_size = {"jdft2d": 3, "mp_gap": 2, "mp_e_form": 6}.get(task, 8)
        yield BenchmarkTask(
            name=f"matbench:{task}",
            data=f"matbench:{task}",
            property=prop,
            unit=unit,
            protocol=Protocol(
                batch_size=batch_size,
                cutoff=12.0,
                half_precision=task not in ("jdft2d", "mp_gap"),
                pooling="max" if task == "phonons" else "mean",
                splits=FOLDS,
            ),
            published=_published(
                ("MODNet", "coGN"), (modnet[0], cogn[0]), (scratch[0], scratch[1], jmp_s[0], jmp_l[0])
            ),
            five_folds=Columns(jmp_l=jmp_l[1], jmp_s=jmp_s[1], earlier={"MODNet": modnet[1], "coGN": cogn[1]}),
            best_known=known,
            source=source,
        )


def _qmof() -> Iterator[BenchmarkTask]:
    yield BenchmarkTask(
        name="qmof:gap",
        data="qmof",
        property="band_gap",
        unit="eV",
        protocol=Protocol(batch_size=4, cutoff=12.0, pooling="mean"),
        published=_published(
            ("CGCNN, pre-trained", "MOFTransformer, pre-trained"), (0.28, 0.27), (0.25, 0.24, 0.18, 0.16)
        ),
        best_known=0.16,
        source=_NO_LATER,
    )


TASKS: dict[str, BenchmarkTask] = {
    task.name: task for task in (*_qm9(), *_rmd17(), *_md22(), *_spice(), *_matbench(), *_qmof())
}
"""All tasks by name, family by family."""


def chosen(names: Sequence[str]) -> list[BenchmarkTask]:
    """Tasks by name; the name of a family selects all its tasks, and "all" all tasks.

    Args:
        names: of tasks or families, case-insensitive; for QM9 also names of properties ("qm9:dipole_moment").

    Returns:
        The tasks in the order of `TASKS`, without duplicates.

    Raises:
        EutecticError: no names, or an unknown one.
    """
    aliases: dict[str, tuple[str, ...]] = {name.lower(): (name,) for name in TASKS}
    aliases |= {f"{task.family}:{task.property}": (task.name,) for task in TASKS.values() if task.family == "qm9"}
    aliases |= {family: tuple(n for n, t in TASKS.items() if t.family == family) for family in FAMILIES}
    aliases["all"] = tuple(TASKS)
    listed = "see `eutectic benchmark --list`"
    if not names:
        raise EutecticError("tasks", "none", f"tasks, families ({', '.join(FAMILIES)}), or all", listed)
    found: set[str] = set()
    for name in names:
        if name.lower() not in aliases:
            expected = f"a task such as qm9:gap, a family ({', '.join(FAMILIES)}), or all"
            raise EutecticError("tasks", repr(name), expected, did_you_mean(name, [*TASKS, *FAMILIES], listed))
        found.update(aliases[name.lower()])
    return [task for name, task in TASKS.items() if name in found]
