"""Generating data sets, and the embedded stores."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eutectic import generate as generate_module
from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.atoms.units import HARTREE
from eutectic.data.store import Store
from eutectic.generate import (
    FINETUNING,
    GENERATORS,
    NOT_EMBEDDED,
    PRETRAINING,
    bulk,
    dynamics,
    engine,
    generate,
    labels,
    qm9,
    reserved_for_finetuning,
    slabs,
)
from eutectic.generate.crystals import TYPES, filled, formula_of, placed
from eutectic.generate.qm9_sample import FREE_ATOMS_U0

EMBEDDED = Path(str(files("eutectic.data"))) / "embedded"


def needs(name: str) -> None:
    """Skip where the packages that make a set are not installed."""
    for package in GENERATORS[name].needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'eutectic[generate]'")


@cache
def store(name: str) -> Store:
    return Store(EMBEDDED / name)


def same(one: LabelledStructure, other: LabelledStructure) -> None:
    """Two makings of one structure."""
    assert (one.id, one.group) == (other.id, other.group)
    np.testing.assert_array_equal(one.structure.numbers, other.structure.numbers)
    np.testing.assert_array_equal(one.structure.tags, other.structure.tags)
    np.testing.assert_allclose(one.structure.positions, other.structure.positions, atol=1e-4)
    assert one.labels.keys() == other.labels.keys()
    for label, value in one.labels.items():
        np.testing.assert_allclose(value, other.labels[label], atol=1e-3 if label == "forces" else 1e-4)


# The engine


def test_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="did you mean 'molecules'"):
        generate(["molecule"], tmp_path)


@pytest.mark.parametrize("setting", [{"scale": 0.0}, {"workers": 0}])
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: dict[str, float]) -> None:
    with pytest.raises(EutecticError):
        generate(["molecules"], tmp_path, **setting)


def test_missing_extra_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EutecticError, match=r"pip install 'eutectic\[generate\]'"):
        generate(["molecules"], tmp_path)


def test_import_needs_no_extra() -> None:
    code = (
        "import sys, eutectic.generate\n"
        "print([m for m in ('rdkit', 'tblite', 'chgnet', 'pymatgen', 'torch') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_kinds_take_turns_and_none_comes_twice() -> None:
    places = [engine.in_turn(item, (0, 1, 0, 2)) for item in range(8)]
    assert places == [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (0, 3), (2, 1)]


def test_failures_are_counted_and_not_fatal(tmp_path: Path) -> None:
    row = store("molecules")[0]

    def make(item: int, seed: int) -> list[LabelledStructure]:
        if item == 0:
            raise engine.Rejected("no conformer")
        if item == 1:
            raise RuntimeError("SCF not converged")
        if item == 2:
            while True:
                time.sleep(0.01)
        forces = np.full_like(row.labels["forces"], 1e3 if item == 3 else 0.0)
        return [
            LabelledStructure(structure=row.structure, labels={**row.labels, "forces": forces}, id=f"{item}", group="")
        ]

    card = GENERATORS["molecules"].card
    generator = engine.Generator(card=card, items=5, make=make, needs=(), seconds=0.1)
    report = engine.make_chunk(generator, 0, range(5), tmp_path / "chunk")
    assert report == {
        "no conformer": 1,
        "RuntimeError: SCF not converged": 1,
        "took longer than 0.1 s": 1,
        "a force of 50 eV/Å or more": 1,
    }
    assert [r.id for r in Store(tmp_path / "chunk")] == ["4"]
    assert json.loads((tmp_path / "chunk" / "report.json").read_text()) == report


def test_a_killed_run_goes_on_and_ends_with_what_two_workers_made(tmp_path: Path) -> None:
    needs("qm9_sample")
    script = tmp_path / "make.py"
    script.write_text(
        "from pathlib import Path\nfrom eutectic.generate import generate\n"
        f"if __name__ == '__main__':\n    generate(['qm9_sample'], Path({str(tmp_path)!r}), scale=0.2, workers=1)\n"
    )
    work, made = tmp_path / ".qm9_sample.work", tmp_path / "qm9_sample"
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(work.glob("chunk-*/report.json")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not made.exists()
    # A chunk that was being written when the run was killed has no report.
    (work / "chunk-0000100").mkdir(exist_ok=True)
    subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.DEVNULL)
    assert not work.exists()
    one, two = (
        pa.ipc.open_file(folder / "qm9_sample" / "shard-00000.arrow").read_all() for folder in (tmp_path, EMBEDDED)
    )
    assert one.equals(two.slice(0, 600))


def test_another_store_is_not_written_over(tmp_path: Path) -> None:
    needs("molecules")
    (tmp_path / "molecules").symlink_to(EMBEDDED / "molecules")
    assert generate(["molecules"], tmp_path) == {"molecules": len(store("molecules"))}
    with pytest.raises(EutecticError, match="--overwrite"):
        generate(["molecules"], tmp_path, seed=1)


def test_a_store_grows_by_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, made = store("molecules")[0], []

    def make(item: int, seed: int) -> list[LabelledStructure]:
        made.append(item)
        if item == 1:
            raise engine.Rejected("no conformer")
        return [LabelledStructure(structure=row.structure, labels=row.labels, id=f"{seed}/{item}", group="")]

    def here(generator: engine.Generator, seed: int, todo: dict[Path, range], n_items: int, workers: int) -> None:
        for folder, items in todo.items():
            engine.make_chunk(generator, seed, items, folder)

    monkeypatch.setattr(engine, "_make_all", here)
    monkeypatch.setattr(engine, "embedded", dict)
    generator = engine.Generator(card=GENERATORS["molecules"].card, items=10, make=make, needs=(), chunk=4)
    run = partial(engine.run, generator, seed=0, workers=1, overwrite=False)
    assert run(tmp_path / "grown", scale=1.0) == 9
    assert run(tmp_path / "grown", scale=2.0) == 19
    assert run(tmp_path / "grown", scale=3.0) == 29
    assert made == list(range(30))
    grown = Store(tmp_path / "grown" / "molecules")
    assert [r.id for r in grown] == [f"0/{item}" for item in range(30) if item != 1]
    assert grown.card.notes[-2:] == (
        "Made from 30 items with seed 0.",
        "Left out of items below 10: 1 × no conformer.",
    )
    # What is to be replaced is not taken over.
    assert engine.run(generator, tmp_path / "grown", scale=4.0, seed=0, workers=1, overwrite=True) == 39
    assert made == [*range(30), *range(40)]
    del made[30:]
    # The embedded store is a beginning too, of its own seed only; and a store never shrinks.
    monkeypatch.setattr(engine, "embedded", lambda: {"molecules": tmp_path / "grown" / "molecules"})
    assert run(tmp_path / "other", scale=5.0) == 49
    assert made == [*range(30), *range(40, 50)]
    assert run(tmp_path / "seed", scale=4.0, seed=1) == 39
    assert len(made) == 80
    with pytest.raises(EutecticError, match="--overwrite"):
        run(tmp_path / "grown", scale=1.0)


# The labels


def test_gfn2_forces_are_the_slope_of_the_energy() -> None:
    needs("molecules")
    for row in (store("molecules")[0], store("reactions")[3]):
        for atom, axis in ((0, 0), (2, 1)):
            energies = []
            for step in (2e-3, -2e-3):
                atoms = row.structure.to_ase()
                atoms.positions[atom, axis] += step
                atoms.calc = labels.gfn2(accuracy=0.1)
                energies.append(atoms.get_potential_energy())
            slope = (energies[0] - energies[1]) / 4e-3
            assert -slope == pytest.approx(row.labels["forces"][atom, axis], abs=2e-3)


def relabelled(name: str) -> None:
    """The labels of a store are those of the positions in it."""
    needs(name)
    for place in (0, len(store(name)) // 2, -1):
        row = store(name)[place]
        again = labels.labelled(row.structure.to_ase(), store(name).card.level_of_theory, id=row.id, group=row.group)
        np.testing.assert_array_equal(again.structure.positions, row.structure.positions)
        same(again, row)


@pytest.mark.parametrize("name", ["molecules", "reactions", "md_aspirin", "md_alanine_dipeptide"])
def test_gfn2_labels_belong_to_the_stored_positions(name: str) -> None:
    relabelled(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["metal_slabs", "oxide_slabs"])
def test_chgnet_labels_belong_to_the_stored_positions(name: str) -> None:
    relabelled(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_chgnet_forces_are_the_slope_of_the_energy() -> None:
    needs("metal_slabs")
    errors = []
    for name in ("metal_slabs", "oxide_slabs"):
        for place in (4, 100, 500, 1000):
            row, energies = store(name)[place], []
            atom = len(row.structure) - 1
            for step in (5e-3, -5e-3):
                atoms = row.structure.to_ase()
                atoms.positions[atom, 2] += step
                atoms.calc = labels.chgnet()
                energies.append(atoms.get_potential_energy())
            errors.append(-(energies[0] - energies[1]) / 1e-2 - row.labels["forces"][atom, 2])
    # The network's energy is coarse (float32) and steps a little where a neighbour crosses its cutoff, so that
    # single differences are off by up to 0.05 eV/Å.
    assert np.median(np.abs(errors)) < 5e-3
    assert np.abs(errors).max() < 0.1


# The structures


@pytest.mark.parametrize("name", list(slabs.ADSORBATES))
def test_adsorbates_are_whole_and_stand_on_their_first_atom(name: str) -> None:
    symbols, positions = slabs.ADSORBATES[name]
    assert positions[0] == (0, 0, 0)
    assert min(z for _, _, z in positions) >= 0
    if name in ("CO", "NO", "CN"):
        assert symbols[0] in "CN"
        assert positions[1][2] > 1
    from ase import Atoms

    atoms = Atoms(list(symbols), positions)
    radii = slabs.covalent_radii[atoms.numbers]
    ratio = atoms.get_all_distances() / (radii[:, None] + radii[None, :])
    bonded = (ratio < 1.25) & ~np.eye(len(atoms), dtype=bool)
    assert len(atoms) == 1 or bonded.any(axis=1).all()
    assert (ratio + np.eye(len(atoms)) > 0.75).all()


@pytest.mark.parametrize("name", list(TYPES))
def test_structure_types_are_filled_with_touching_atoms(name: str) -> None:
    species = ("Mg", "O", "Ti")[: len(TYPES[name][1])]
    atoms = filled(name, species)
    assert len(atoms) <= 12
    several = atoms.repeat(3)
    radii = slabs.covalent_radii[several.numbers]
    ratio = several.get_all_distances() / (radii[:, None] + radii[None, :])
    np.fill_diagonal(ratio, 9)
    assert ratio.min() == pytest.approx(1)


@pytest.mark.parametrize("name", ["metal_slabs", "oxide_slabs"])
def test_slabs_are_as_in_oc20(name: str) -> None:
    for place in range(0, len(store(name)), 7):
        row = store(name)[place]
        s = row.structure
        assert s.pbc.all()
        np.testing.assert_array_equal(s.fixed, s.tags == 0)
        z = s.positions[:, 2]
        assert (s.tags == 1).any()
        assert z[s.tags == 0].max(initial=-9) < z[s.tags == 1].max()
        # Vacuum: the cell is higher than what is in it.
        assert s.cell[2, 2] - np.ptp(z) > 8
        if (s.tags == 2).any():
            assert "+" in row.group
            assert z[s.tags == 2].mean() > z[s.tags == 1].max() - 0.8


# Bulk crystals, which are not embedded


def test_no_crystal_that_is_fine_tuned_to_is_pretrained_on() -> None:
    finetuned = set(store("crystals").column("group").tolist())
    assert bulk.held_out() == finetuned
    formulas = [formula_of(placed(*material)) for pool in bulk.candidates() for material in pool]
    assert not finetuned & set(formulas)
    # Composition is what counts, however a formula is written: crystals' own candidates lead to its own formulas.
    row = store("crystals")[0]
    assert formula_of(row.structure.to_ase()) == row.group
    kinds = [kind for pool in bulk.candidates() for kind, _ in pool]
    assert len(set(zip(formulas, kinds, strict=True))) == len(kinds)


def test_a_smaller_scale_of_bulk_is_the_beginning_of_a_larger_one() -> None:
    materials = [bulk.material(item, 0) for item in range(4 * bulk.GENERATOR.items // 5)]
    assert len(set(materials)) == len(materials)
    assert materials[:5] != [bulk.material(item, 1) for item in range(5)]


def test_bulk_frames_are_small_supercells_with_room_between_atoms() -> None:
    rng = np.random.default_rng(0)
    for name in TYPES:
        cell = filled(name, ("Mg", "O", "Ti")[: len(TYPES[name][1])])
        for _ in range(5):
            several = bulk.repeated(cell, rng)
            assert bulk.SIZES[0] <= len(several) <= bulk.SIZES[1]
            frame = bulk.strained(several, rng)
            assert abs(frame.get_volume() / several.get_volume() - 1) < bulk.VOLUME + 1e-6
            places = [a.cell.scaled_positions(a.positions) for a in (frame, several)]
            np.testing.assert_allclose(*places, atol=1e-9)
            assert not bulk.too_near(bulk.displaced(several, rng))
    squeezed = filled("fcc", ("Mg",))
    squeezed.set_cell(squeezed.cell.array * 0.6, scale_atoms=True)
    # Each atom meets its own image.
    assert bulk.too_near(squeezed)


@pytest.mark.filterwarnings("ignore")
def test_bulk_depends_on_item_and_seed_alone() -> None:
    needs("bulk")
    made = bulk.make(0, 0)
    bulk.make(1, 0)
    for row, again in zip(made, bulk.make(0, 0), strict=True):
        same(row, again)
    assert [row.id for row in bulk.make(0, 1)] != [row.id for row in made]
    assert len(made) == bulk.FRAMES
    for row in made:
        row.check(row.id)
        assert row.structure.pbc.all()
        assert bulk.SIZES[0] <= len(row.structure) <= bulk.SIZES[1]
        assert row.labels.keys() == {"energy", "forces"}
        assert row.group == formula_of(row.structure.to_ase())
        assert row.group not in bulk.held_out()


@pytest.mark.filterwarnings("ignore")
def test_bulk_forces_are_the_slope_of_the_energy() -> None:
    needs("bulk")
    row, errors = bulk.make(0, 0)[0], []
    for atom, axis in ((0, 0), (1, 1), (2, 2), (3, 0)):
        energies = []
        for step in (5e-3, -5e-3):
            atoms = row.structure.to_ase()
            atoms.positions[atom, axis] += step
            atoms.calc = labels.chgnet()
            energies.append(atoms.get_potential_energy())
        errors.append(-(energies[0] - energies[1]) / 1e-2 - row.labels["forces"][atom, axis])
    # As coarse as the network's energy is on slabs.
    assert np.median(np.abs(errors)) < 0.02
    assert np.abs(errors).max() < 0.1


def test_a_set_may_leave_out_smaller_forces() -> None:
    row = store("molecules")[0]
    row.labels["forces"][...] = 20.0
    assert engine.unusable(row) is None
    assert engine.unusable(row, bulk.GENERATOR.max_force) == "a force of 15 eV/Å or more"


# What is embedded


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING])
def test_embedded_store(name: str) -> None:
    generator, shipped = GENERATORS[name], store(name)
    made = shipped.card
    assert made.level_of_theory == generator.card.level_of_theory
    assert made.notes[: len(generator.card.notes)] == generator.card.notes
    assert engine.provenance(generator, 1.0, 0) in made.notes
    least = {"molecules": 9500, "reactions": 3000, "metal_slabs": 1400, "oxide_slabs": 1200, "qm9_sample": 3000}
    least |= {"md_aspirin": 700, "md_alanine_dipeptide": 700, "crystals": 450}
    assert len(shipped) >= least[name]
    assert len(set(shipped.column("id"))) == len(shipped)
    for place in range(0, len(shipped), 50):
        shipped[place].check(shipped[place].id)
    table = pa.ipc.open_file(EMBEDDED / name / "shard-00000.arrow").read_all()
    assert len(table) == len(shipped)
    for label in made.properties:
        assert table[label].null_count == 0
        values = table[label].combine_chunks()
        values = np.asarray(values.flatten() if pa.types.is_list(values.type) else values)
        assert np.isfinite(values).all()
        if label == "forces":
            assert np.abs(values).max() < engine.MAX_FORCE


def test_every_set_is_made_here_and_embedded_unless_it_is_said_not_to_be() -> None:
    shipped = {*PRETRAINING, *FINETUNING}
    assert set(GENERATORS) == {*shipped, *NOT_EMBEDDED}
    assert sum(store(name).bytes() for name in shipped) <= 12e6
    there = {p.name for p in EMBEDDED.iterdir()}
    assert there >= shipped
    assert not there & set(NOT_EMBEDDED)


def test_no_molecule_that_is_fine_tuned_to_is_pretrained_on() -> None:
    sample = {int(group.removeprefix("qm9-")) for group in store("qm9_sample").column("group")}
    assert all(reserved_for_finetuning(index) for index in sample)
    pretrained = [*store("molecules").column("id"), *store("reactions").column("id")]
    indices = {int(i.removeprefix("qm9-").split("/")[0].split(">>")[0]) for i in pretrained}
    assert not any(reserved_for_finetuning(index) for index in indices)


@pytest.mark.filterwarnings("ignore")
def test_no_molecule_of_a_benchmark_is_pretrained_on() -> None:
    needs("reactions")
    from rdkit import Chem

    def key(smiles: str) -> str:
        return qm9.without_stereochemistry(Chem.MolToInchi(Chem.MolFromSmiles(smiles)))

    reaction_ends = {
        part
        for group in set(store("reactions").column("group"))
        for end in group.split(">>")
        for part in end.split(".")
    }
    # Every third, since an InChI takes a millisecond.
    pretrained = {key(s) for s in sorted(reaction_ends | set(store("molecules").column("group")))[::3]}
    assert not pretrained & {key(s) for s in qm9.HELD_OUT.values()}
    assert not pretrained & qm9.forbidden_molecules()


def test_reserved_share_is_a_fifth() -> None:
    reserved = qm9.reserved(np.arange(1, 133_886))
    assert reserved.mean() == pytest.approx(0.2, abs=0.005)
    assert [reserved_for_finetuning(index) for index in range(1, 30)] == reserved[:29].tolist()


def test_reaction_ends_keep_to_one_composition() -> None:
    composition: dict[str, tuple[int, ...]] = {}
    for place in range(0, len(store("reactions")), 5):
        row = store("reactions")[place]
        numbers = tuple(sorted(row.structure.numbers.tolist()))
        assert composition.setdefault(row.group, numbers) == numbers


def test_trajectories_stay_one_molecule() -> None:
    for card in (dynamics.ASPIRIN, dynamics.ALANINE_DIPEPTIDE):
        assert len(set(store(card.name).column("group"))) == dynamics.TRAJECTORIES
        for place in range(0, len(store(card.name)), 10):
            apart = store(card.name)[place].structure.to_ase().get_all_distances()
            assert (np.sort(apart, axis=1)[:, 1] < 1.9).all()


def test_qm9_methane_atomises_at_its_known_energy() -> None:
    # U0 of gdb_1 in QM9's own file; -17.172 eV is what tabulations of its atomisation energy give.
    total = -40.47893
    assert HARTREE * (total - FREE_ATOMS_U0["C"] - 4 * FREE_ATOMS_U0["H"]) == pytest.approx(-17.172, abs=1e-3)
    gap, homo, lumo, u0 = (store("qm9_sample").column(label) for label in ("gap", "homo", "lumo", "u0"))
    np.testing.assert_allclose(gap, lumo - homo, atol=0.01)
    assert (u0 < 0).all()
    assert (u0 > -150).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "item"), [("molecules", 7), ("reactions", 1)])
def test_making_an_item_again_gives_what_is_embedded(name: str, item: int) -> None:
    needs(name)
    ids = store(name).column("id").tolist()
    made = GENERATORS[name].make(item, 0)
    assert made
    for row in made:
        same(row, store(name)[ids.index(row.id)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "item"), [("metal_slabs", 0), ("oxide_slabs", 1), ("crystals", 1)])
def test_making_a_surrogate_item_again_gives_what_is_embedded(name: str, item: int) -> None:
    test_making_an_item_again_gives_what_is_embedded(name, item)


def test_public_names() -> None:
    assert set(generate_module.__all__) >= {"GENERATORS", "generate", "reserved_for_finetuning"}
