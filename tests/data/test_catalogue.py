"""Catalogue: names, preparation, descriptions and checks."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from eutectic import console as console_module
from eutectic.atoms import EutecticError, LabelledStructure, Structure
from eutectic.data import catalogue
from eutectic.data.card import Card
from eutectic.data.dataset import File
from eutectic.data.datasets import rmd17
from eutectic.data.store import Store, write_store


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "home"))


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A package with one embedded data set."""
    card = Card(
        name="molecules",
        title="Molecules",
        domain="molecules",
        properties=("energy",),
        level_of_theory="GFN2-xTB",
        licence="CC0-1.0",
        citation="nobody",
        source="made",
    )
    water = Structure(numbers=np.array([8, 1, 1]), positions=np.eye(3))
    rows = [
        LabelledStructure(structure=water, labels={"energy": np.asarray(-1.0)}, id=str(i), group="H2O")
        for i in range(3)
    ]
    write_store(tmp_path / "package" / "molecules", card, rows)
    monkeypatch.setattr(catalogue, "embedded_folder", lambda: tmp_path / "package")
    return Store(tmp_path / "package" / "molecules")


def moving(n: int, *, energy: float = -1.0) -> list[Atoms]:
    made = []
    for i in range(n):
        atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1 + 0.01 * i]])
        forces = np.array([[0.0, 0.0, 1.0 + i], [0.0, 0.0, -1.0 - i]])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def rmd17_files(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 4)):
        np.savez(
            folder / f"rmd17_benzene_{part}_01.npz",
            nuclear_charges=np.array([6] * 6 + [1] * 6, dtype=np.uint8),
            coords=random.normal(size=(n, 12, 3)),
            energies=random.normal(size=n),
            forces=random.normal(size=(n, 12, 3)),
        )
    return folder


def test_open_by_name_and_by_path(embedded: Store) -> None:
    assert catalogue.open_store("molecules").path == embedded.path
    assert len(catalogue.open_store(embedded.path)) == 3


def test_names_that_are_not_there(embedded: Store) -> None:
    with pytest.raises(EutecticError, match="did you mean 'molecules'"):
        catalogue.open_store("molcules")
    with pytest.raises(EutecticError, match="eutectic data prepare qm9"):
        catalogue.open_store("qm9")
    with pytest.raises(EutecticError, match="did you mean 'rmd17:aspirin'"):
        catalogue.open_store("rmd17:asprin")


def test_listing(embedded: Store) -> None:
    rows = catalogue.listing()
    assert [r.name for r in rows] == ["molecules", *catalogue.native()]
    assert (rows[0].kind, rows[0].structures, rows[0].level_of_theory) == ("embedded", 3, "GFN2-xTB")
    assert rows[0].size_bytes == embedded.bytes() > 0
    assert all(r.kind == "native" and r.structures is None for r in rows[1:])
    aspirin = next(r for r in rows if r.name == "rmd17:aspirin")
    assert aspirin.files[0].url.startswith("https://")
    assert "Christensen" in aspirin.citation


def test_describe(embedded: Store) -> None:
    told = catalogue.describe(embedded)
    assert json.loads(json.dumps(told)) == told
    assert (told["structures"], told["atoms"], told["mean_atoms"], told["groups"]) == (3, 9, 3.0, 1)
    assert told["elements"] == {"H": 6, "O": 3}
    assert told["labels"] == {"energy": {"count": 3, "unit": "eV"}}


def test_prepare_rmd17(tmp_path: Path) -> None:
    source = rmd17_files(tmp_path)
    for name, molecule in (("rmd17:benzene", None), ("rmd17", "benzene")):
        path = catalogue.prepare(name, source, tmp_path / name.replace(":", "-"), molecule=molecule)
        store = Store(path)
        assert (len(store), store.card.name) == (10, "rmd17:benzene")
        assert store.published_splits()["official_01"]["test"].tolist() == [6, 7, 8, 9]


def test_what_is_prepared_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="eutectic data prepare rmd17:benzene"):
        catalogue.open_store("rmd17:benzene")
    with pytest.raises(EutecticError, match=r"rmd17:<aspirin \| azobenzene"):
        catalogue.open_store("rmd17")
    path = catalogue.prepare("rmd17:benzene", rmd17_files(tmp_path))
    assert path == tmp_path / "home" / "stores" / "rmd17" / "benzene"
    assert catalogue.open_store("rmd17:benzene").path == path
    (row,) = (r for r in catalogue.listing() if r.name == "rmd17:benzene")
    assert (row.structures, row.store) == (10, str(path))


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.data_folder() == tmp_path / "home"
    monkeypatch.delenv("EUTECTIC_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert catalogue.data_folder() == tmp_path / "xdg" / "eutectic"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert catalogue.data_folder() == Path.home() / ".local" / "share" / "eutectic"


def test_files_are_fetched_when_no_source_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(file: File, folder: Path, *, progress: bool) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / file.name, "w:bz2") as tar:
            (folder / "npz").mkdir()
            (npz,) = (p for p in rmd17_files(folder / "npz").iterdir() if "train" in p.name)
            tar.add(npz, "rmd17/npz_data/rmd17_benzene.npz")
        return folder / file.name

    monkeypatch.setattr(catalogue, "fetch", fetched)
    store = Store(catalogue.prepare("rmd17:benzene"))
    assert (len(store), store.card.default_split) == (6, "random")
    assert (tmp_path / "home" / "downloads" / "rmd17" / "rmd17.tar.bz2").exists()


def test_a_set_that_no_program_can_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rmd17, "files", lambda name: ())
    with pytest.raises(EutecticError, match=r"doi:10\.6084/m9\.figshare\.12672038.*--source"):
        catalogue.prepare("rmd17:benzene", None, tmp_path / "store")


def test_prepare_qm9(tmp_path: Path) -> None:
    text = (
        "2\ngdb 7\t1.\t1.\t1.\t0.\t5.\t-0.4\t0.1\t0.5\t3.\t0.01\t-1.17\t-1.16\t-1.15\t-1.18\t5.\n"
        "H\t0.\t0.\t0.\t0.\nH\t0.\t0.\t0.74\t0.\n4400.\n[H][H]\t[H][H]\nInChI=1S/H2/h1H\tInChI=1S/H2/h1H\n"
    )
    (tmp_path / "dsgdb9nsd_000007.xyz").write_text(text)
    store = Store(catalogue.prepare("qm9", tmp_path, tmp_path / "store"))
    assert [row.id for row in store] == ["qm9-000007"]
    assert float(store[0].labels["u0"]) == pytest.approx((-1.17 + 2 * 0.500273) * 27.21138602)


def test_prepare_ase(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "mine.xyz", moving(4))
    store = Store(catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "store", level_of_theory="PBE"))
    assert (len(store), store.card.level_of_theory) == (4, "PBE")
    assert store.label_counts() == {"energy": 4, "forces": 4}
    with pytest.raises(EutecticError, match="--overwrite"):
        catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "store")
    catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "store", overwrite=True)


def test_prepare_refusals(tmp_path: Path, embedded: Store) -> None:
    with pytest.raises(EutecticError, match="did you mean 'rmd17:ethanol'"):
        catalogue.prepare("rmd71:ethanol", tmp_path, tmp_path / "store")
    with pytest.raises(EutecticError, match="it is embedded"):
        catalogue.prepare("molecules", tmp_path, tmp_path / "store")
    (tmp_path / "mine.xyz").touch()
    with pytest.raises(EutecticError, match=r"eutectic data prepare ase --source \S+mine.xyz"):
        catalogue.prepare(str(tmp_path / "mine.xyz"))
    with pytest.raises(EutecticError, match="no source"):
        catalogue.prepare("ase", None, tmp_path / "store")
    with pytest.raises(EutecticError, match="--store"):
        catalogue.prepare("ase", tmp_path)
    with pytest.raises(EutecticError, match=r"name one: rmd17:<aspirin\|azobenzene"):
        catalogue.prepare("rmd17", tmp_path, tmp_path / "store")
    with pytest.raises(EutecticError, match="did you mean 'rmd17:benzene'"):
        catalogue.prepare("rmd17", tmp_path, tmp_path / "store", molecule="benzen")


def test_progress_is_shown_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ase.io.write(tmp_path / "mine.xyz", moving(101))
    catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "quick")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(console_module, "SHOW_AFTER", -1.0)
    catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "piped")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    catalogue.prepare("ase", tmp_path / "mine.xyz", tmp_path / "slow")
    shown = capsys.readouterr()
    for what in ("Counting structures and labels", "Scanning the files of ase", "Reading ase"):
        assert what in shown.err
    assert not shown.out


def test_what_is_embedded_is_whole() -> None:
    """Whatever stores lie in the package: they open, and are what they say."""
    for name, path in catalogue.embedded().items():
        store = Store(path)
        assert store.card.name == name
        store[0].check(name)
        assert set(store.label_counts()) == set(store.card.properties)
