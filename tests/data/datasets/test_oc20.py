"""OC20: all published layouts, and the kind of energy read from each."""

from __future__ import annotations

import lzma
import pickle
import re
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.geometry import find_mic
from pyg_records import (
    CELL,
    FIXED,
    FORCES,
    LAYOUTS,
    NUMBERS,
    POSITIONS,
    TAGS,
    frame,
    pickled,
    write_aselmdb,
    write_lmdb,
)

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.datasets import oc20
from eutectic.data.formats import open_catalyst

TOTAL, FREE, REFERENCE = -42.25, -42.5, -40.0


def rows(source: Path, name: str) -> list[LabelledStructure]:
    found = [row for piece in oc20.pieces(source, name) for row in oc20.read(piece, name)]
    for row in found:
        row.check(row.id)
    return found


def energies(source: Path, name: str) -> list[float]:
    return [float(row.labels["energy"]) for row in rows(source, name)]


def check_structure(row: LabelledStructure, tags: list[int] | None = None) -> None:
    structure = row.structure
    assert structure.numbers.tolist() == NUMBERS.tolist()
    assert structure.numbers.dtype == np.int64
    np.testing.assert_allclose(structure.positions, POSITIONS)
    np.testing.assert_allclose(structure.cell, CELL)
    assert structure.pbc.tolist() == [True] * 3
    assert structure.fixed.tolist() == FIXED.astype(bool).tolist()
    assert structure.tags.tolist() == (TAGS.tolist() if tags is None else tags)


def slab(total: float = TOTAL, free: float | None = FREE, tags: np.ndarray = TAGS) -> Atoms:
    atoms = Atoms(NUMBERS, POSITIONS, cell=CELL, pbc=True, tags=tags, constraint=FixAtoms(mask=FIXED.astype(bool)))
    results: dict[str, Any] = {"energy": total, "forces": FORCES}
    if free is not None:
        results["free_energy"] = free
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def write_pair(folder: Path, stem: str = "0", compressed: bool = True, lines: list[str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / f"{stem}.extxyz"
    ase.io.write(plain, [slab(), slab(TOTAL + 1, FREE + 1)])
    text = "\n".join(lines or [f"random77,frame4,{REFERENCE}", f"random5,frame0,{REFERENCE - 2}"]) + "\n"
    if compressed:
        (folder / f"{stem}.extxyz.xz").write_bytes(lzma.compress(plain.read_bytes()))
        (folder / f"{stem}.txt.xz").write_bytes(lzma.compress(text.encode()))
        plain.unlink()
    else:
        (folder / f"{stem}.txt").write_text(text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_s2ef_lmdb(tmp_path: Path, layout: str) -> None:
    write_lmdb(tmp_path / "data.0000.lmdb", [pickled(frame(fid=i), layout) for i in range(3)])
    write_lmdb(tmp_path / "data.0001.lmdb", [pickled(frame(sid=78, y=0.25), layout)])
    found = rows(tmp_path, "oc20")
    assert [row.id for row in found] == ["77-0", "77-1", "77-2", "78-0"]
    assert [row.group for row in found] == ["77", "77", "77", "78"]
    assert [float(row.labels["energy"]) for row in found] == [-1.5, -1.5, -1.5, 0.25]
    for row in found:
        check_structure(row)
        # On fixed atoms too.
        np.testing.assert_allclose(row.labels["forces"], FORCES)
        assert row.labels["forces"].dtype == np.float64
    assert len(rows(tmp_path / "data.0000.lmdb", "oc20")) == 3


def test_newer_field_names_and_types(tmp_path: Path) -> None:
    """fairchem renamed y and force, and each script wrote other types."""
    record = frame(
        y=None,
        force=None,
        energy=torch.tensor([-1.5]),
        forces=torch.tensor(FORCES),
        tags=torch.tensor(TAGS, dtype=torch.float32),
        fixed=torch.tensor(FIXED, dtype=torch.int32),
        cell=torch.tensor(CELL),
        sid=77,
        fid=np.int64(3),
    )
    (row,) = rows(write_lmdb(tmp_path / "data.lmdb", [pickled(record)]), "oc20")
    check_structure(row)
    assert (row.id, float(row.labels["energy"])) == ("77-3", -1.5)
    np.testing.assert_allclose(row.labels["forces"], FORCES)


def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a length has one entry more than records, and no structure is read twice or left out."""
    monkeypatch.setattr(open_catalyst, "PIECE", 2)
    for length in ("right", None):
        file = write_lmdb(tmp_path / f"{length}.lmdb", [pickled(frame(fid=i)) for i in range(5)], length)
        found = oc20.pieces(file, "oc20")
        assert [(p.first, p.count) for p in found] == [(0, 2), (2, 2), (4, 1)]
        assert [row.id for piece in found for row in oc20.read(piece, "oc20")] == [f"77-{i}" for i in range(5)]


@pytest.mark.parametrize("missing", [float("nan"), None, torch.tensor(float("inf"))])
def test_labels_that_are_not_known_are_absent(tmp_path: Path, missing: object) -> None:
    forces = torch.tensor(FORCES)
    forces[2, 1] = torch.nan
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame(y=missing)), pickled(frame(fid=1, force=forces))])
    first, second = rows(file, "oc20")
    assert set(first.labels) == {"forces"}
    assert set(second.labels) == {"energy"}


def test_test_files_have_structures_only(tmp_path: Path) -> None:
    (row,) = rows(write_lmdb(tmp_path / "data.lmdb", [pickled(frame(y=None, force=None))]), "oc20")
    assert row.labels == {}


def test_total_energies_from_lmdb(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "s2ef" / "train" / "data.lmdb", [pickled(frame()), pickled(frame(fid=1, y=None))])
    with pytest.raises(EutecticError, match=r"no reference energy of system 77; .*oc20_ref\.pkl"):
        rows(file, "oc20:total")
    for references in ({"random77": REFERENCE}, {"random77": np.float64(REFERENCE)}):
        (tmp_path / "oc20_ref.pkl").write_bytes(pickle.dumps(references))
        first, second = rows(file, "oc20:total")
        assert float(first.labels["energy"]) == REFERENCE - 1.5
        np.testing.assert_allclose(first.labels["forces"], FORCES)
        assert set(second.labels) == {"forces"}
    assert float(rows(file, "oc20")[0].labels["energy"]) == -1.5


def test_references_that_cannot_be_used(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame())])
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(ran)!r}, 'w')",)

    for content, why in (
        (pickle.dumps({"random1": -1.0}), "no reference energy of system 77"),
        (pickle.dumps({"random77": float("nan")}), "no reference energy of system 77"),
        (pickle.dumps([1]), "not a dictionary"),
        (pickle.dumps({"random77": Hostile()}), "imports 'builtins.eval'"),
        (pickle.dumps({"random77": -1.0})[:-4], "cannot be read"),
    ):
        oc20._reference_file.cache_clear()
        (tmp_path / "oc20_ref.pkl").write_bytes(content)
        with pytest.raises(EutecticError, match=why):
            rows(file, "oc20:total")
    assert not ran.exists()


def test_total_and_adsorption_energies_are_not_mistaken(tmp_path: Path) -> None:
    """fairchem's script writes total energies into LMDB files unless told --ref-energy."""
    total = write_lmdb(tmp_path / "data.lmdb", [pickled(frame(y=TOTAL, fid=i)) for i in range(4)])
    (tmp_path / "oc20_ref.pkl").write_bytes(pickle.dumps({"random77": REFERENCE}))
    for name in ("oc20", "oc20:total"):
        with pytest.raises(
            EutecticError, match=r"around -42\.25 eV, -10\.6 eV for each atom: total energies.*--ref-energy"
        ):
            rows(total, name)
    # One strange record among usual ones is left to the eye of the user.
    mixed = [pickled(frame(y=TOTAL if i == 2 else -1.0, fid=i)) for i in range(5)]
    assert energies(write_lmdb(tmp_path / "mixed.lmdb", mixed), "oc20") == [-1, -1, TOTAL, -1, -1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_is2re(tmp_path: Path, layout: str) -> None:
    relaxed = POSITIONS + np.array([0, 0, 0.5])
    record = frame(y=None, fid=None, y_init=3.0, y_relaxed=-2.0, pos_relaxed=torch.tensor(relaxed), sid=9)
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(record, layout)], None)
    (initial,), (final,) = rows(file, "oc20:is2re"), rows(file, "oc20:relaxed")
    check_structure(initial)
    np.testing.assert_allclose(final.structure.positions, relaxed)
    for name, row in (("oc20:is2re", initial), ("oc20:relaxed", final)):
        # `force` belongs to y_init.
        assert {k: float(v) for k, v in row.labels.items()} == {"energy": -2}
        assert (row.id, row.group) == ("9", "9")
        assert oc20.card(name).properties == ("energy",)
    with pytest.raises(EutecticError, match="name oc20:is2re"):
        rows(file, "oc20")
    with pytest.raises(EutecticError, match="expected one of IS2RE"):
        rows(write_lmdb(tmp_path / "s2ef" / "data.lmdb", [pickled(frame())]), "oc20:is2re")


@pytest.mark.parametrize("kind", ["compressed", "plain", "tar"])
def test_pairs(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "s2ef_train_200K" / "s2ef_train_200K"
    for stem in ("0", "1"):
        lines = None if stem == "0" else [f"random{i},frame9,{REFERENCE}" for i in (6, 8)]
        write_pair(folder, stem, kind != "plain", lines)
    (folder.parent / "README.md").write_text("# about these files")
    source = folder.parent
    if kind == "tar":
        source = tmp_path / "s2ef_train_200K.tar"
        with tarfile.open(source, "w") as archive:
            archive.add(folder.parent, folder.parent.name)
    assert len(oc20.pieces(source, "oc20")) == 2
    found = rows(source, "oc20")
    assert [row.id for row in found] == ["77-4", "5-0", "6-9", "8-9"]
    assert [row.group for row in found] == ["77", "5", "6", "8"]
    check_structure(found[0])
    np.testing.assert_allclose(found[0].labels["forces"], FORCES)
    assert energies(source, "oc20")[:2] == pytest.approx([TOTAL - REFERENCE, TOTAL + 1 - REFERENCE + 2])
    assert energies(source, "oc20:total")[:2] == [TOTAL, TOTAL + 1]
    assert energies(source, "oc20:free_energy")[:2] == [FREE, FREE + 1]


def test_more_than_nine_atoms(tmp_path: Path) -> None:
    write_pair(tmp_path)
    large = slab().repeat((3, 1, 1))
    large.calc = SinglePointCalculator(large, energy=3 * TOTAL, forces=np.tile(FORCES, (3, 1)))
    ase.io.write(tmp_path / "0.extxyz", [slab(), large])
    (tmp_path / "0.extxyz.xz").write_bytes(lzma.compress((tmp_path / "0.extxyz").read_bytes()))
    (tmp_path / "0.extxyz").unlink()
    assert [len(row.structure) for row in rows(tmp_path, "oc20:total")] == [4, 12]


def test_a_shard_that_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path)
    monkeypatch.setattr(oc20, "_LARGEST_SHARD", 500)
    with pytest.raises(EutecticError, match=r"0\.extxyz\.xz.*more than 500 bytes"):
        rows(tmp_path, "oc20")


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    line = f"random77,frame4,{REFERENCE}"
    for lines in ([line], [line] * 3, [line, "random77,frame4"], [line, "random77,frame4,words"]):
        write_pair(tmp_path, "0", True, lines)
        with pytest.raises(EutecticError, match=r"0\.extxyz\.xz.*as many structures as lines in 0\.txt\.xz"):
            rows(tmp_path, "oc20")
    write_pair(tmp_path)
    whole = (tmp_path / "0.extxyz.xz").read_bytes()
    (tmp_path / "0.extxyz.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EutecticError, match="could not be read"):
        rows(tmp_path, "oc20")
    (tmp_path / "0.extxyz.xz").write_bytes(whole)
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(EutecticError, match=r"no 0\.txt\.xz beside 0\.extxyz\.xz"):
        rows(tmp_path, "oc20")


@pytest.mark.parametrize("suffix", ["traj", "extxyz"])
def test_relaxations(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"random77.{suffix}"
    # VASP knows no tags: all are 0.
    ase.io.write(file, [slab(TOTAL + i, FREE + i, np.zeros(4, dtype=int)) for i in range(3)])
    found = rows(tmp_path, "oc20:total")
    assert [row.id for row in found] == ["77-0", "77-1", "77-2"]
    assert {row.group for row in found} == {"77"}
    assert [float(row.labels["energy"]) for row in found] == [TOTAL, TOTAL + 1, TOTAL + 2]
    for row in found:
        check_structure(row, tags=[0, 0, 1, 1])
        np.testing.assert_allclose(row.labels["forces"], FORCES)
    assert energies(file, "oc20:free_energy") == [FREE, FREE + 1, FREE + 2]
    with pytest.raises(EutecticError, match="no reference energy of system 77"):
        rows(file, "oc20")
    (tmp_path / "system.txt").write_text(f"random77,{REFERENCE}\n")
    assert energies(file, "oc20") == pytest.approx([TOTAL - REFERENCE + i for i in range(3)])


def test_a_relaxation_without_free_energy_or_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "random77.traj"
    ase.io.write(file, [slab(free=None), slab(free=None)])
    with pytest.raises(EutecticError, match=r"no free_energy.*name oc20:total"):
        rows(file, "oc20:free_energy")
    whole = file.read_bytes()
    for keep in (0, 20, 200, len(whole) // 2):
        file.write_bytes(whole[:keep])
        with pytest.raises(EutecticError, match=r"random77\.traj"):
            rows(file, "oc20:total")


def test_aselmdb(tmp_path: Path) -> None:
    def row(energy: float, **data: object) -> dict[str, Any]:
        return {
            "numbers": NUMBERS.tolist(),
            "positions": POSITIONS.tolist(),
            "cell": CELL.tolist(),
            "pbc": [True] * 3,
            "tags": TAGS.tolist(),
            "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [0, 1]}}],
            "energy": energy,
            "forces": FORCES.tolist(),
            "data": data,
        }

    adsorption = write_aselmdb(tmp_path / "a.aselmdb", [row(-1.5, sid=77, fid=i) for i in range(3)])
    found = rows(adsorption, "oc20")
    assert [r.id for r in found] == ["77-0", "77-1", "77-2"]
    check_structure(found[0])
    np.testing.assert_allclose(found[0].labels["forces"], FORCES)
    with pytest.raises(EutecticError, match="adsorption energies; expected total energies"):
        rows(adsorption, "oc20:total")
    total = write_aselmdb(tmp_path / "t.aselmdb", [row(TOTAL, sid=77, fid=0)])
    assert energies(total, "oc20:total") == [TOTAL]
    with pytest.raises(EutecticError, match="name oc20:total"):
        rows(total, "oc20")
    with pytest.raises(EutecticError, match="no entry sid"):
        rows(write_aselmdb(tmp_path / "n.aselmdb", [row(-1.0)]), "oc20")


def test_records_of_other_data_sets(tmp_path: Path) -> None:
    for record, why in (
        (frame(oc22=1), "name the data set oc22"),
        (frame(sid=None), "no field 'sid'"),
        (frame(pos=None), "no field 'pos'"),
        (frame(pos=torch.zeros((3, 3))), r"pos of shape \(3, 3\); expected shape \(4, 3\)"),
        (frame(force=torch.zeros((3, 4))), r"force of shape|forces of shape"),
        (frame(cell=torch.zeros((1, 9))), r"cell of shape \(1, 9\)"),
        (frame(y=torch.zeros(4)), "energy of shape"),
        (frame(atomic_numbers=torch.tensor([29.5, 29, 29, 8])), "atomic_numbers with fractions"),
        (frame(tags=torch.zeros(3)), "tags of shape"),
        (frame(sid="x" * 5, fid=0.5), "one whole number"),
        (frame(y="words"), "expected numbers"),
    ):
        file = write_lmdb(tmp_path / "data.lmdb", [pickled(record)])
        with pytest.raises(EutecticError, match=rf"data\.lmdb, record 0.*({why})"):
            rows(file, "oc20")


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="does not exist"):
        oc20.pieces(tmp_path / "absent", "oc20")
    with pytest.raises(EutecticError, match="none among 0 files"):
        oc20.pieces(tmp_path, "oc20")
    with tarfile.open(tmp_path / "trajectories.tar", "w") as archive:
        archive.add(__file__, "random1.traj")
    with pytest.raises(EutecticError, match=re.escape(f"tar -xf {tmp_path}/trajectories.tar -C {tmp_path})")):
        oc20.pieces(tmp_path, "oc20")
    (tmp_path / "trajectories.tar").rename(tmp_path / "lmdbs.tar.gz")
    with pytest.raises(EutecticError, match=re.escape(f"tar -xf {tmp_path}/lmdbs.tar.gz -C {tmp_path})")):
        oc20.pieces(tmp_path, "oc20:is2re")
    write_lmdb(tmp_path / "data.lmdb", [pickled(frame())])
    write_pair(tmp_path / "raw")
    with pytest.raises(EutecticError, match=r"several kinds: 1 \.extxyz\.xz, 1 \.lmdb"):
        oc20.pieces(tmp_path, "oc20")
    with pytest.raises(EutecticError, match="none among"):
        oc20.pieces(tmp_path / "raw", "oc20:relaxed")


def test_cards_and_files() -> None:
    for name in oc20.names():
        card = oc20.card(name)
        assert card.name == name
        (file,) = oc20.files(name)
        assert file.url.endswith(f"opencatalystproject/data/{file.name}")
        assert len(file.checksum.removeprefix("md5:")) == 32
        assert oc20.published_splits(Path("anywhere"), name) == {}
    assert len({oc20.card(name).title for name in oc20.names()}) == len(oc20.names())


REAL = {
    ("s2ef/val_20", "oc20"): (20, 1, {"energy", "forces"}),
    ("s2ef/cuco_emt", "oc20"): (101, 1, {"energy", "forces"}),
    ("is2re/val_20", "oc20:is2re"): (20, 20, {"energy"}),
    ("is2re/val_20", "oc20:relaxed"): (20, 20, {"energy"}),
    ("is2re/user_adslab", "oc20:is2re"): (68, 68, {"energy"}),
    ("trajs_small", "oc20:total"): (124, 3, {"energy", "forces"}),
}


@pytest.mark.parametrize(("folder", "name"), REAL)
def test_real_files(shared_data: Path, folder: str, name: str) -> None:
    count, groups, labels = REAL[folder, name]
    found = rows(shared_data / "oc20" / folder, name)
    assert len(found) == len({row.id for row in found}) == count
    assert len({row.group for row in found}) == groups
    assert all(set(row.labels) == labels for row in found)


def test_real_tags_and_fixed_atoms(shared_data: Path) -> None:
    """OC20 fixes what lies below the surface: by this rule `.traj` files get their tags."""
    for folder, name in (("s2ef/val_20", "oc20"), ("is2re/val_20", "oc20:is2re")):
        for row in rows(shared_data / "oc20" / folder, name):
            assert row.structure.fixed.tolist() == (row.structure.tags == 0).tolist()
            assert set(row.structure.tags.tolist()) == {0, 1, 2}


def test_real_relaxations(shared_data: Path, tmp_path: Path) -> None:
    """All 25 relaxations: energies fall by the work of the forces, −F·dx, over the small steps."""
    with tarfile.open(shared_data / "oc20" / "oc20_relax_trajs_25.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    count, work, change = 0, [], []
    for piece in oc20.pieces(tmp_path, "oc20:free_energy"):
        found = list(oc20.read(piece, "oc20:free_energy"))
        count += len(found)
        for before, after in pairwise(found):
            step = after.structure.positions - before.structure.positions
            step, lengths = find_mic(step, before.structure.cell, before.structure.pbc)
            if lengths.max() < 0.05:
                work.append(-0.5 * ((before.labels["forces"] + after.labels["forces"]) * step).sum())
                change.append(float(after.labels["energy"] - before.labels["energy"]))
    assert count == 4437
    slope = np.dot(work, change) / np.dot(work, work)
    assert len(work) > 3000
    assert slope == pytest.approx(1, abs=0.02)
    assert np.corrcoef(work, change)[0, 1] > 0.99
