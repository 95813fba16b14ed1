"""Every real data set of the folder `../shared/data`, and what has to come of it: prepared, checked, trained on.

Not a test itself: `test_shared_data` goes through it, and `benchmarks/data.py --table` makes a page of it.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.check import Report, check
from eutectic.data.catalogue import prepare
from eutectic.data.store import Store
from eutectic.graph import GraphSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.painn import PaiNNSettings
from eutectic.tasks import TargetSettings, fit_task
from eutectic.train.batches.sampler import BatchSampler, TaskDataset
from eutectic.train.loop import train
from eutectic.train.pretrain import initial_model
from eutectic.train.runtime.launch import make_fabric
from eutectic.train.schedule import StepSchedule
from eutectic.train.settings import LoopSettings, OptimiserSettings


@dataclass(frozen=True, kw_only=True)
class SharedSet:
    """One data set.

    Attributes:
        name: what `prepare` calls it.
        place: its files below the folder; empty for the package qm9pack.
        kind: of file.
        structures: how many its PROVENANCE.md says there are.
        labels: property → structures that have it; those that are not named are in all of them.
        findings: what the doctor has to say beyond notes, and is right about.
        splits: published ones.
        options: of `prepare`.
        unpack: `place` is an archive that has to be unpacked first.
        slow: takes more than a few seconds.
    """

    name: str
    place: str
    kind: str
    structures: int
    labels: Mapping[str, int] = field(default_factory=dict)
    findings: frozenset[str] = frozenset()
    splits: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    unpack: bool = False
    slow: bool = False

    @property
    def title(self) -> str:
        """For a table, and as the name of a test."""
        return f"{self.name} {self.place}".strip()


def records(
    place: str,
    kind: str,
    structures: int,
    *,
    units: str,
    keys: str = "",
    pbc: str | None = None,
    level_of_theory: str = "not stated",
    **more: Any,
) -> SharedSet:
    """Files of no layout of their own, with what the user has to say of them, as on the command line."""
    said = {name: dict(pair.split("=") for pair in text.split()) for name, text in (("keys", keys), ("units", units))}
    options = {**said, "pbc": pbc, "level_of_theory": level_of_theory}
    return SharedSet(name="records", place=place, kind=kind, structures=structures, options=options, **more)


EV = "positions=angstrom energy=eV forces=eV/angstrom"

RMD17 = ("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "salicylic", "toluene")

SETS: tuple[SharedSet, ...] = (
    SharedSet(name="oc20", place="oc20/s2ef/val_20", kind="pickled LMDB", structures=20),
    SharedSet(name="oc20", place="oc20/s2ef/cuco_emt", kind="pickled LMDB", structures=101),
    SharedSet(
        name="oc20:is2re",
        place="oc20/is2re/val_20",
        findings=frozenset({"elements_held_out"}),
        kind="pickled LMDB",
        structures=20,
    ),
    SharedSet(
        name="oc20:relaxed",
        place="oc20/is2re/val_20",
        findings=frozenset({"elements_held_out"}),
        kind="pickled LMDB",
        structures=20,
    ),
    SharedSet(
        name="oc20:is2re",
        place="oc20/is2re/user_adslab",
        findings=frozenset({"close_atoms", "elements_held_out"}),
        kind="pickled LMDB",
        structures=68,
    ),
    SharedSet(
        name="oc20:total",
        place="oc20/trajs_small",
        findings=frozenset({"elements_held_out", "energy_outliers", "force_outliers"}),
        kind="ASE .traj",
        structures=124,
    ),
    SharedSet(
        name="oc20:free_energy",
        place="oc20/trajs_small",
        findings=frozenset({"elements_held_out", "energy_outliers", "force_outliers"}),
        kind="ASE .traj",
        structures=124,
    ),
    SharedSet(
        name="oc20:free_energy",
        place="oc20/oc20_relax_trajs_25.tar.xz",
        findings=frozenset({"close_atoms", "duplicates", "elements_held_out", "energy_outliers", "force_outliers"}),
        kind="ASE .traj",
        structures=4437,
        unpack=True,
        slow=True,
    ),
    SharedSet(name="ase", place="oc22_like/oxides.db", kind="ASE database", structures=295),
    SharedSet(
        name="ase",
        place="oc22_like/bazro3_proton_val.db",
        findings=frozenset({"duplicates", "leaked_structures"}),
        kind="ASE database",
        structures=435,
        slow=True,
    ),
    SharedSet(
        name="ase",
        place="oc22_like/bazro3_proton_test.db",
        findings=frozenset({"duplicates", "leaked_structures"}),
        kind="ASE database",
        structures=434,
        slow=True,
    ),
    SharedSet(
        name="ani1x",
        place="ani1x/ani1x_release_n5.h5",
        labels={"dipole": 4, "charges": 4},
        findings=frozenset({"missing_labels"}),
        kind="HDF5",
        structures=8,
    ),
    SharedSet(name="comp6", place="ani1x/comp6_s66x8_wb97x6-31gd.h5", kind="HDF5", structures=528),
    SharedSet(
        name="alkane",
        place="ani1x/alkane_C2H6_DFT+Force_NMS.h5",
        findings=frozenset({"close_atoms", "duplicates", "energy_outliers", "force_outliers"}),
        kind="HDF5",
        structures=10080,
        slow=True,
    ),
    SharedSet(
        name="ani1",
        place="ani1x/ani1_gdb_s01.h5",
        findings=frozenset({"duplicates", "elements_held_out"}),
        kind="HDF5",
        structures=10800,
        slow=True,
    ),
    SharedSet(
        name="transition1x",
        place="transition1x/t1x_layout_from_horm.h5",
        kind="HDF5",
        structures=100,
        splits=("published",),
    ),
    SharedSet(
        name="spice",
        place="spice/SPICE-1.1.4_n2.hdf5",
        labels={"charges": 50},
        findings=frozenset({"missing_labels"}),
        kind="HDF5",
        structures=55,
    ),
    SharedSet(
        name="ase",
        place="spice/SPICE_small_with_charges.xyz",
        kind="extended xyz",
        structures=5,
    ),
    SharedSet(name="qm9", place="qm9/dsgdb9nsd_subset500.xyz.tar.bz2", kind="xyz in tar.bz2", structures=500),
    SharedSet(name="qm9", place="", kind="CSV of qm9pack", structures=130831, slow=True),
    *(
        SharedSet(
            name=f"rmd17:{molecule}",
            place="rmd17",
            kind="npz",
            structures=2000,
            splits=("official_01",),
            slow=molecule != "ethanol",
        )
        for molecule in RMD17
    ),
    SharedSet(name="rmd17:ethanol", place="rmd17/rmd17", kind="npz", structures=2000, splits=("official_01",)),
    SharedSet(name="md17:ethanol", place="md17/md17_ethanol_2000.npz", kind="npz", structures=2000),
    SharedSet(
        name="md17_ccsd:aspirin",
        place="md17",
        findings=frozenset({"duplicates"}),
        kind="xyz",
        structures=1500,
        splits=("official",),
        slow=True,
    ),
    SharedSet(name="ase", place="md22_like/3bpa_train_300K.xyz", kind="extended xyz", structures=500),
    SharedSet(name="ase", place="md22_like/3bpa_train_mixedT.xyz", kind="extended xyz", structures=500, slow=True),
    SharedSet(
        name="ase",
        place="md22_like/ECEMC.xyz",
        findings=frozenset({"missing_labels"}),
        kind="extended xyz",
        structures=203,
        labels={"forces": 200, "stress": 200},
        slow=True,
    ),
    SharedSet(
        name="matbench:jdft2d",
        place="matbench",
        findings=frozenset({"elements_held_out"}),
        kind="JSON.gz",
        structures=636,
        splits=tuple(f"fold_{k}" for k in range(5)),
    ),
    SharedSet(
        name="matbench:dielectric",
        place="matbench/substitute_dielectric_petousis.json.gz",
        kind="JSON.gz",
        structures=1056,
        slow=True,
    ),
    SharedSet(
        name="matbench:log_kvrh",
        place="matbench/substitute_log_kvrh_mpbinary.json.gz",
        findings=frozenset({"elements_held_out"}),
        kind="JSON.gz",
        structures=3953,
        slow=True,
    ),
    *(
        SharedSet(
            name=f"matbench:{task}",
            place="matbench/substitute_mp_devset200.json.gz",
            findings=frozenset({"elements_held_out"}),
            kind="JSON.gz",
            structures=200,
        )
        for task in ("mp_e_form", "mp_gap", "mp_is_metal")
    ),
    SharedSet(
        name="qmof",
        place="qmof_like/core_fsr_x_qmof_bandgap.csv",
        findings=frozenset({"elements_held_out"}),
        kind="CIF in tar.xz",
        structures=259,
        slow=True,
    ),
    SharedSet(
        name="ase",
        place="mptrj/mptrj-random-1k.xyz",
        findings=frozenset({"elements_held_out", "force_outliers"}),
        kind="extended xyz",
        structures=1000,
        slow=True,
    ),
    SharedSet(
        name="spice",
        place="spice/spice2-1000_429_md_0-1.hdf5",
        kind="HDF5 of mlip",
        structures=2,
        labels={"dipole": 0, "charges": 0},
    ),
    SharedSet(
        name="ase",
        place="md22_like/3bpa_iso_atoms.xyz",
        findings=frozenset({"elements_held_out"}),
        kind="extended xyz",
        structures=4,
    ),
    SharedSet(
        name="qmof",
        place="qmof_like/qmof_13058_bandgap_targets.csv",
        findings=frozenset({"elements_held_out"}),
        kind="CIF in tar.xz",
        structures=259,
        slow=True,
    ),
    SharedSet(name="horm", place="transition1x/horm_sample_100.lmdb", kind="pickled LMDB", structures=100),
    *(
        records(
            f"transition1x/t1x_{reaction}_energies.json",
            "JSON",
            n,
            keys="energy=wB97x.energy",
            units="positions=angstrom energy=eV",
            level_of_theory="ωB97X/6-31G(d)",
            findings=frozenset({"duplicates", "leaked_structures"}),
        )
        for reaction, n in (("rxn0103", 252), ("rxn1961", 133))
    ),
    # Clusters in a box, but a ninth of them are cut by its sides, so that they need it (forces turn them otherwise).
    records(
        "clusters_pt/pt_data_forces_500.json",
        "JSON",
        500,
        units=EV,
        pbc="true",
        level_of_theory="PBE",
        findings=frozenset({"duplicates", "force_outliers", "leaked_structures"}),
    ),
    records("md22_like/qm7x_250_small.npz", "padded npz", 2500, units=EV, level_of_theory="PBE0+MBD"),
    records("matsciml_devsets/lips_data.lmdb", "pickled LMDB", 200, units=EV, level_of_theory="PBE"),
    # Energies per atom of copper, near its cohesive energy whatever the size. The stresses are left out: the check
    # finds that their shear components are interchanged (48 of 67 symmetric structures break their symmetry).
    records(
        "matsciml_devsets/colabfit_data.lmdb",
        "pickled LMDB",
        262,
        keys="energy=potential-energy stress=",
        units="positions=angstrom energy=eV/atom forces=eV/angstrom",
        findings=frozenset({"two_populations"}),
    ),
    records(
        "matsciml_devsets/alexandria_data.lmdb",
        "pickled LMDB",
        98,
        keys="energy=targets.regression.energy_total formation_energy=targets.regression.e_form",
        units="energy=eV forces=eV/angstrom formation_energy=eV/atom",
        level_of_theory="PBE",
    ),
    # What it calls `cart_coords` are fractions of the cell, as its `sites` say.
    records(
        "matsciml_devsets/oqmd_data.lmdb",
        "pickled LMDB",
        200,
        keys="positions=cart_coords formation_energy=delta_e",
        units="positions=fractional cell=angstrom formation_energy=eV/atom band_gap=eV",
        pbc="true",
        labels={"band_gap": 199},
        findings=frozenset({"missing_labels"}),
    ),
    records(
        "matsciml_devsets/materials_project_data.lmdb",
        "pickled LMDB",
        200,
        keys="formation_energy=formation_energy_per_atom",
        units="formation_energy=eV/atom band_gap=eV",
        level_of_theory="PBE or PBE+U",
        findings=frozenset({"elements_held_out"}),
    ),
    records(
        "matbench/castelli_perov5_val_test.csv.gz",
        "CSV of CIFs",
        7572,
        keys="cell_formation_energy=heat_all",
        units="cell_formation_energy=eV",
        level_of_theory="RPBE",
        slow=True,
    ),
    records(
        "matbench/raw_data_exfoliation.json",
        "JSON",
        636,
        keys="exfoliation_energy=y",
        units="positions=angstrom exfoliation_energy=meV/atom",
        pbc="true",
        level_of_theory="optB88-vdW",
        findings=frozenset({"elements_held_out"}),
    ),
    records(
        "matbench/mp-binary-pbe-elasticity-2025.1.json.gz",
        "JSON.gz",
        3953,
        keys="log10_bulk_modulus=bulk_modulus_vrh log10_shear_modulus=shear_modulus_vrh",
        units="log10_bulk_modulus=GPa log10_shear_modulus=GPa",
        level_of_theory="PBE",
        slow=True,
    ),
    records(
        "qm9/qm9_full.npz",
        "npz of all atoms",
        130831,
        keys="gap=properties:7 u0=properties:10",
        units="positions=angstrom gap=hartree u0=hartree",
        level_of_theory="B3LYP/6-31G(2df,p)",
        slow=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class NotASet:
    """A file nothing can be learned from by itself.

    Attributes:
        place: the file.
        name: what a user would prepare it as.
        told: what `prepare` says, in part.
        why: in words.
    """

    place: str
    name: str
    told: str
    why: str


NOT_SETS: tuple[NotASet, ...] = (
    NotASet(
        place="matbench/substitute_log_gvrh_mpbinary.targets.json",
        name="records",
        told="numbers without structures cannot be learned from",
        why="shear moduli without structures; they are in `mp-binary-pbe-elasticity-2025.1.json.gz` with these",
    ),
    NotASet(
        place="matbench/matbench_v0.1_validation_subset.json.gz",
        name="records",
        told="an object with",
        why="the official folds, read beside `matbench_jdft2d.json.gz`",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a data set."""

    store: Store
    report: Report
    seconds: float
    losses: tuple[float, ...]


def go_through(which: SharedSet, shared: Path, folder: Path) -> Outcome:
    """Prepare, check, train two steps.

    Args:
        which: data set.
        shared: the folder of published files.
        folder: to work in, empty.
    """
    source = shared / which.place if which.place else None
    if which.unpack:
        assert source is not None
        with tarfile.open(source) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        source = folder / "unpacked"
    start = time.perf_counter()
    path = prepare(which.name, source, folder / "store", workers=1, progress=False, **which.options)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    store = Store(path)
    return Outcome(store=store, report=check(path), seconds=seconds, losses=two_steps(store))


def two_steps(store: Store) -> tuple[float, ...]:
    """The losses of two steps of a tiny model: energies and forces where there are both, else the first scalar."""
    counts = store.label_counts()
    if counts.get("forces"):
        heads = {"energy": HeadSettings(), "forces": HeadSettings(kind="direct_forces")}
    else:
        name = next(name for name in store.card.properties if counts[name])
        heads = {name: HeadSettings(pooling="sum" if name == "energy" else "mean")}
    targets = {name: TargetSettings(head=head) for name, head in heads.items()}
    rows = np.arange(len(store))
    task = fit_task("set", store, rows, targets, GraphSettings(cutoff=4.0, max_neighbours=6))
    source = BatchSampler([TaskDataset(0, task, store, rows)], 2, 1.0, 0)
    sizes = PaiNNSettings(width=8, layers=1, radial_functions=4, cutoff=4.0, edge_width=8)
    model = initial_model("painn", sizes.model_dump(), (task,), source, 0)
    settings, rates = LoopSettings(batch_size=2, threads=1), OptimiserSettings(learning_rate=1e-3, warmup_steps=1)
    losses: list[float] = []
    train(
        make_fabric(settings, alone=True),
        model,
        [task],
        source,
        settings,
        rates,
        schedule=StepSchedule(rates, 2, 200),
        on_step=lambda entry: losses.append(entry["loss"]),
    )
    return tuple(losses)
