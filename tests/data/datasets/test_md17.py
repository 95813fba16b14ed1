"""MD17: both kinds of keys and names, units, coupled-cluster pairs, and wrong files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eutectic.atoms import EutecticError, LabelledStructure
from eutectic.data.dataset import Piece
from eutectic.data.datasets import md17
from eutectic.data.formats import sgdml

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8)
TOTAL = -97208.4  # kcal/mol
KCAL = 4184 / (6.022140857e23 * 1.6021766208e-19)  # CODATA 2014


def arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "R": random.normal(size=(n, 9, 3)),
        "E": TOTAL + random.normal(size=(n, 1)),
        "F": 20 * random.normal(size=(n, 9, 3)),
        "z": ETHANOL,
    }


def rows(source: Path, name: str = "md17:ethanol") -> list[LabelledStructure]:
    return [row for piece in md17.pieces(source, name) for row in md17.read(piece, name)]


def xyz(raw: dict[str, np.ndarray], comment: str) -> str:
    frames = []
    for r, e, f in zip(raw["R"], raw["E"].reshape(-1), raw["F"], strict=True):
        symbols = {1: "H", 6: "C", 8: "O"}
        lines = [
            f"{symbols[int(z)]} {' '.join(map(repr, [*map(float, a), *map(float, b)]))}"
            for z, a, b in zip(raw["z"], r, f, strict=True)
        ]
        frames.append("\n".join([str(len(r)), comment.format(repr(float(e))), *lines]))
    return "\n".join(frames) + "\n"


def test_units_ids_and_stretches(tmp_path: Path) -> None:
    raw = arrays(120)
    np.savez_compressed(tmp_path / "md17_ethanol.npz", **raw, name="ethanol", level_of_theory=b"unknown")
    found = rows(tmp_path)
    assert len(found) == 120
    for i, row in enumerate(found):
        row.check("here")
        assert row.id == f"ethanol-{i:06d}"
        assert row.group == f"ethanol-stretch-{i // 3:02d}"
        np.testing.assert_allclose(row.labels["energy"], raw["E"][i, 0] * KCAL, rtol=1e-8)
        np.testing.assert_allclose(row.labels["forces"], raw["F"][i] * KCAL, rtol=1e-8)
        np.testing.assert_array_equal(row.structure.positions, raw["R"][i])
        assert not row.structure.pbc.any()


def test_older_names_and_flat_energies(tmp_path: Path) -> None:
    raw = arrays(5)
    np.savez(tmp_path / "ethanol_dft.npz", **{**raw, "E": raw["E"][:, 0], "R": np.asfortranarray(raw["R"])})
    found = rows(tmp_path)
    np.testing.assert_allclose([r.labels["energy"] for r in found], raw["E"][:, 0] * KCAL, rtol=1e-8)
    np.testing.assert_array_equal(found[3].structure.positions, raw["R"][3])


def test_pieces_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = arrays(700)
    np.savez_compressed(tmp_path / "md17_ethanol.npz", **raw)
    whole = rows(tmp_path)
    monkeypatch.setattr(sgdml, "FRAMES_PER_PIECE", 300)
    assert [(p.first, p.count) for p in md17.pieces(tmp_path, "md17:ethanol")] == [(0, 300), (300, 300), (600, 100)]
    assert [r.id for r in rows(tmp_path)] == [r.id for r in whole]
    np.testing.assert_array_equal([r.structure.positions for r in rows(tmp_path)], raw["R"])


@pytest.mark.parametrize(
    ("energy", "length", "factor", "metre"),
    [("kcal/mol", "Ang", KCAL, 1.0), ("eV", "Angstrom", 1.0, 1.0), ("Hartree", "bohr", 27.21138602, 0.529177210670)],
)
def test_stated_units(tmp_path: Path, energy: str, length: str, factor: float, metre: float) -> None:
    raw = arrays(3)
    raw["E"] = raw["E"] * KCAL / factor
    np.savez(tmp_path / "md17_ethanol.npz", **raw, e_unit=energy, r_unit=length)
    row = rows(tmp_path)[0]
    np.testing.assert_allclose(row.labels["energy"], raw["E"][0, 0] * factor, rtol=1e-8)
    np.testing.assert_allclose(row.structure.positions, raw["R"][0] * metre, rtol=1e-8)
    np.testing.assert_allclose(row.labels["forces"], raw["F"][0] * factor / metre, rtol=1e-8)


def test_unknown_and_false_units(tmp_path: Path) -> None:
    raw = arrays(3)
    path = tmp_path / "md17_ethanol.npz"
    np.savez(path, **raw, e_unit="cm-1", r_unit="Ang")
    with pytest.raises(EutecticError, match="e_unit 'cm-1'"):
        rows(path)
    np.savez(path, **raw, e_unit="kcal/mol", r_unit="furlong")
    with pytest.raises(EutecticError, match="r_unit 'furlong'"):
        rows(path)
    np.savez(path, **raw, e_unit="eV", r_unit="Ang")
    with pytest.raises(EutecticError, match="in the unit it states"):
        rows(path)
    # Atomisation energies are total energies in no unit.
    np.savez(path, **{**raw, "E": raw["E"] - TOTAL - 760})
    with pytest.raises(EutecticError, match="a total energy"):
        rows(path)


def test_xyz_of_both_kinds(tmp_path: Path) -> None:
    raw = arrays(4)
    path = tmp_path / "md17_ethanol.xyz"
    path.write_text(xyz(raw, "{}"))
    legacy = rows(path)
    np.testing.assert_allclose([r.labels["energy"] for r in legacy], raw["E"][:, 0] * KCAL, rtol=1e-8)
    np.testing.assert_allclose(legacy[2].labels["forces"], raw["F"][2] * KCAL, rtol=1e-8)
    # The same in eV is noticed by its energies.
    raw["E"] = raw["E"] * KCAL
    path.write_text(xyz(raw, 'Properties=species:S:1:pos:R:3:forces:R:3 energy={} pbc="F F F"'))
    extended = rows(path)
    np.testing.assert_allclose([r.labels["energy"] for r in extended], raw["E"][:, 0], rtol=1e-12)
    np.testing.assert_allclose(extended[2].labels["forces"], raw["F"][2], rtol=1e-12)
    text = path.read_text()
    for broken in (text[:-40], text.replace("C ", "Qq ", 1), "99999999999\n", ""):
        path.write_text(broken)
        with pytest.raises(EutecticError, match="not readable"):
            rows(path)


@pytest.mark.parametrize("layout", ["zip", "npz", "xyz"])
def test_coupled_cluster(tmp_path: Path, layout: str) -> None:
    name = "md17_ccsd:ethanol"
    train, test = arrays(6, 1), arrays(4, 2)
    for part, raw in (("train", train), ("test", test)):
        if layout == "xyz":
            (tmp_path / f"ethanol_ccsd_t-{part}.xyz").write_text(xyz(raw, "{}"))
        else:
            np.savez(tmp_path / f"ethanol_ccsd_t-{part}.npz", **raw)
    if layout == "zip":
        with zipfile.ZipFile(tmp_path / "ethanol_ccsd_t.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
            for part in ("train", "test"):
                file = tmp_path / f"ethanol_ccsd_t-{part}.npz"
                bundle.write(file, file.name)
                file.unlink()
    found = rows(tmp_path, name)
    energies = np.concatenate([train["E"], test["E"]])[:, 0] * KCAL
    np.testing.assert_allclose([r.labels["energy"] for r in found], energies, rtol=1e-8)
    assert len({r.id for r in found}) == 10
    official = md17.published_splits(tmp_path, name)["official"]
    assert (official["train"].tolist(), official["test"].tolist()) == ([*range(6)], [*range(6, 10)])
    assert md17.card(name).default_split == "official"
    if layout == "npz":
        (tmp_path / "ethanol_ccsd_t-test.npz").unlink()
        with pytest.raises(EutecticError, match="no file of md17_ccsd:ethanol"):
            rows(tmp_path, name)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez_compressed(path, **arrays(40))
    with pytest.raises(EutecticError, match="data set 'md17:water'"):
        rows(path, "md17:water")
    with pytest.raises(EutecticError, match="C2H6O; expected C9H8O4"):
        rows(path, "md17:aspirin")
    with pytest.raises(EutecticError, match="does not exist"):
        rows(tmp_path / "absent")
    with pytest.raises(EutecticError, match="no file of md17:uracil"):
        rows(tmp_path, "md17:uracil")
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises(EutecticError, match="not readable"):
            rows(path)
    # Damaged within: the head is read, the frames are not.
    path.write_bytes(whole)
    piece = md17.pieces(path, "md17:ethanol")[0]
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    with pytest.raises(EutecticError, match="not readable"):
        list(md17.read(piece, "md17:ethanol"))


def test_other_arrays(tmp_path: Path) -> None:
    path = tmp_path / "md17_ethanol.npz"
    np.savez(path, **{**arrays(4), "F": np.zeros((3, 9, 3))})
    with pytest.raises(EutecticError, match=r"F \(3, 9, 3\)"):
        rows(path)
    np.savez(path, R=np.zeros((2, 9, 3)))
    with pytest.raises(EutecticError, match="not readable"):
        rows(path)
    raw = arrays(4)
    np.savez(path, coords=raw["R"], energies=raw["E"], forces=raw["F"], nuclear_charges=ETHANOL)
    with pytest.raises(EutecticError, match="prepare it as rmd17"):
        rows(path)


def test_not_a_number(tmp_path: Path) -> None:
    raw = arrays(3)
    raw["R"][1, 2, 0] = np.nan
    np.savez(tmp_path / "md17_ethanol.npz", **raw)
    found = rows(tmp_path)
    found[0].check("here")
    with pytest.raises(EutecticError, match="atom 2 has position"):
        found[1].check("here")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("key", ["E", "z", "e_unit"])
def test_a_pickle_is_never_opened(tmp_path: Path, key: str) -> None:
    bomb = np.empty((), dtype=object)
    bomb[()] = Bomb()
    held = io.BytesIO()
    np.savez(held, allow_pickle=True, **{**arrays(1), key: bomb})
    (tmp_path / "md17_ethanol.npz").write_bytes(held.getvalue())
    with pytest.raises(EutecticError, match="not readable"):
        rows(tmp_path)


def test_names_cards_and_files() -> None:
    for name in md17.names():
        assert md17.card(name).name == name
        (file,) = md17.files(name)
        assert file.url.endswith(file.name)
    assert md17.card("md17_ccsd:aspirin").level_of_theory == "CCSD/cc-pVDZ"


def test_forces_are_the_slope_of_the_energy(shared_data: Path) -> None:
    found = rows(shared_data / "md17" / "md17_ethanol_2000.npz")
    assert len(found) == 2000
    energy = np.array([r.labels["energy"] for r in found])
    forces = np.array([r.labels["forces"] for r in found])
    positions = np.array([r.structure.positions for r in found])
    # Consecutive frames: the work of the mean force is the change of energy.
    work = -((forces[1:] + forces[:-1]) / 2 * np.diff(positions, axis=0)).sum(axis=(1, 2))
    slope = np.polyfit(work, np.diff(energy), 1)[0]
    assert slope == pytest.approx(1, abs=0.01)
    assert np.corrcoef(work, np.diff(energy))[0, 1] > 0.999


def test_real_coupled_cluster(shared_data: Path) -> None:
    found = rows(shared_data / "md17", "md17_ccsd:aspirin")
    assert len(found) == 1500
    assert found[0].labels["energy"] == pytest.approx(-17592.018524364044)
    assert np.std([r.labels["forces"] for r in found]) == pytest.approx(1.27, rel=0.2)
    official = md17.published_splits(shared_data / "md17", "md17_ccsd:aspirin")["official"]
    assert [len(official[part]) for part in ("train", "test")] == [1000, 500]
    with pytest.raises(EutecticError, match="prepare it as rmd17"):
        md17.pieces(shared_data / "rmd17" / "rmd17_aspirin_train_01.npz", "md17:aspirin")


def test_piece_of_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="not readable"):
        list(md17.read(Piece(path=tmp_path / "gone.npz"), "md17:ethanol"))
