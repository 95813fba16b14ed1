"""Files of structures: nothing in them is dropped, and no element or label is made up."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from eutectic.atoms import EutecticError
from eutectic.data.formats import archives, elements, structure_files

FRAME = '2\nProperties=species:S:1:pos:R:3 energy={} pbc="F F F"\nC 0 0 0\nO 0 0 1.{}\n'


def frames(n: int, between: str = "") -> str:
    return between.join(FRAME.format(-i, i + 1) for i in range(n))


def read(path: Path, text: str | bytes, stated: str | None = None, **options: int) -> list[object]:
    """Structures, and the given part of errors in the place of structures."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = structure_files.structures(path, stated=elements.parse(stated), **options)
    return [one.given if isinstance(one, EutecticError) else one[0] for one in found]


def lengths(found: list[object]) -> list[float | str]:
    """Distance between the first two atoms, or the error."""
    return [round(one.get_distance(0, 1), 3) if isinstance(one, Atoms) else str(one) for one in found]


@pytest.mark.parametrize(
    "text",
    [
        frames(3, "\n"),
        frames(3, " \t\n\n"),
        "\n\n" + frames(3),
        frames(3) + "\n\n \n",
        "\ufeff" + frames(3),
        frames(3, "\n").replace("\n", "\r\n"),
        frames(3).rstrip("\n"),
        frames(1) + "\n" + frames(2).replace("C 0 0 0\nO 0 0 1.1", "C 0 0 0\nO 0 0 1.2").replace("1.2\n2", "1.2\n2"),
    ],
)
def test_empty_lines_of_an_xyz_end_nothing(tmp_path: Path, text: str) -> None:
    assert len([one for one in read(tmp_path / "mine.xyz", text) if isinstance(one, Atoms)]) == 3


def test_ranges_of_an_xyz(tmp_path: Path) -> None:
    assert lengths(read(tmp_path / "mine.xyz", frames(5, "\n"), first=1, count=3)) == [1.2, 1.3, 1.4]
    assert lengths(read(tmp_path / "mine.xyz", frames(5, "\n"), first=4)) == [1.5]
    assert read(tmp_path / "mine.xyz", frames(5), first=5) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (frames(2) + "\nand so on\n" + frames(1), [1.1, 1.2, "line 10: 'and so on' where a frame begins", 1.1]),
        (frames(2) + "and so on\n" + frames(1), [1.1, "line 9: 'and so on' after the 2 atoms stated in line 5", 1.1]),
        (frames(2).replace("O 0 0 1.1\n", ""), ["line 1: 2 atoms stated, and 1 lines of atoms", 1.2]),
        (frames(2).replace("O 0 0 1.1\n", "\n"), ["line 1: 2 atoms stated, and 1 lines of atoms", 1.2]),
        (frames(2).replace("O 0 0 1.1\n", "O 0 0 1.1\nH 0 0 2\n"), ["line 5: 'H 0 0 2' after the 2 atoms", 1.2]),
        (frames(2)[:-11], [1.1, "line 5: 2 atoms stated, and 1 lines of atoms"]),
        (frames(1) + "99999999999\n\nC 0 0 0\n", [1.1, "line 5: 99999999999 atoms stated, and 1 lines of atoms"]),
        (frames(1) + "\x00" * 20, ["line 5: '\\x00"]),
        (frames(2).replace("O 0 0 1.1", "O 0 0 one"), ["line 1: could not be read (ValueError", 1.2]),
        (frames(1).replace("energy=0", "on=0").replace("pos:R:3", "pos:R:3:on:L:1").replace("1.1", "1.1 1"), ["line"]),
    ],
)
def test_what_is_left_in_an_xyz_is_said(tmp_path: Path, text: str, found: list[float | str]) -> None:
    for one, expected in zip(lengths(read(tmp_path / "mine.xyz", text)), found, strict=True):
        assert one == expected if isinstance(expected, float) else str(one).startswith(expected)


def test_columns_without_a_name_are_entries(tmp_path: Path) -> None:
    (tmp_path / "mine.xyz").write_text("2\n\nC 0 0 0 1 2 3\nO 0 0 1.1 4 5 6\n")
    ((_, entries),) = structure_files.structures(tmp_path / "mine.xyz")  # type: ignore[misc]
    np.testing.assert_array_equal(entries["columns 5 to 7"], [[1, 2, 3], [4, 5, 6]])


def dump(n: int, between: str = "", columns: str = "id type x y z", row: str = "{} {} {} 0 0") -> str:
    box = "ITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    made = []
    for i in range(n):
        rows = "".join(row.format(k + 1, k + 1, k * (1 + 0.1 * (i + 1))) + "\n" for k in range(2))
        made.append(f"ITEM: TIMESTEP\n{i}\nITEM: NUMBER OF ATOMS\n2\n{box}ITEM: ATOMS {columns}\n{rows}")
    return between.join(made)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (dump(3), [1.1, 1.2, 1.3]),
        (dump(3, "\n").replace("\n", "\r\n"), [1.1, 1.2, 1.3]),
        (dump(2) + "\nand so on\n", [1.1, "line 24: 'and so on' between two frames"]),
        (dump(2) + "3 1 5 0 0\n", [1.1, "line 12: 2 atoms stated, and 3 lines"]),
        (dump(2)[:-12], [1.1, "line 12: 2 atoms stated, and 1 lines"]),
        (dump(3).replace("ITEM: TIMESTEP\n1\n", "ITEM: TIMESTAMP\n1\n"), ["line 1", 1.3]),
        (dump(2).replace("ATOMS\n2", "ATOMS\n99999999999", 1), ["line 1: 99999999999 atoms stated, and 2", 1.2]),
        ("ITEM: UNITS\nnano\n" + dump(2), [11.0, 12.0]),
    ],
)
def test_what_is_left_in_a_dump_is_said(tmp_path: Path, text: str, found: list[float | str]) -> None:
    for one, expected in zip(lengths(read(tmp_path / "mine.dump", text, "Cu,Au")), found, strict=True):
        assert one == pytest.approx(expected) if isinstance(expected, float) else str(one).startswith(expected)


HEADER = "CuAu\n1.0\n9 0 0\n0 9 0\n0 0 9\nCu Au\n1 1\n"


def xdatcar(n: int, between: str = "", header: str = HEADER) -> str:
    made = [f"Direct configuration= {i:5d}\n0 0 0\n0 0 {(1 + 0.1 * i) / 9:.8f}\n" for i in range(1, n + 1)]
    return header + between.join(made)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (xdatcar(3), [1.1, 1.2, 1.3]),
        (xdatcar(3, "\n") + "\n\n", [1.1, 1.2, 1.3]),
        (xdatcar(3, HEADER), [1.1, 1.2, 1.3]),
        (xdatcar(2, "\n" + HEADER[4:]), [1.1, 1.2]),
        (xdatcar(2, header=HEADER[4:]), [1.1, 1.2]),
        (xdatcar(2, "and so on\n"), [1.1, "line 11: 'and so on' where a header"]),
        (xdatcar(2)[:-15], [1.1, "line 11: 2 atoms stated, and 1 lines of atoms"]),
        (xdatcar(1, header=HEADER.replace("1 1\n", "1 99999999999\n")), ["line 1: 100000000000 atoms stated"]),
    ],
)
def test_what_is_left_in_an_xdatcar_is_said(tmp_path: Path, text: str, found: list[float | str]) -> None:
    for one, expected in zip(lengths(read(tmp_path / "XDATCAR", text)), found, strict=True):
        assert one == pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected in str(one)


ATOM = "ATOM      1 {:<4s} MOL     1    {:8.3f}   0.000   0.000  1.00  0.00          {:>2s}\n"


def pdb(
    n: int, end: str = "ENDMDL\n", names: tuple[str, str] = ("C1", "O2"), columns: tuple[str, str] = ("C", "O")
) -> str:
    return end.join(
        "".join(ATOM.format(names[k], k * (1 + 0.1 * i), columns[k]) for k in range(2)) for i in range(1, n + 1)
    )


def test_models_of_a_pdb(tmp_path: Path) -> None:
    cell = "CRYST1    9.000    9.000    9.000  90.00  90.00  90.00 P 1\n"
    found = read(tmp_path / "mine.pdb", cell + pdb(3))
    assert lengths(found) == [1.1, 1.2, 1.3]
    assert all(isinstance(one, Atoms) and one.pbc.all() and one.cell.volume == pytest.approx(729) for one in found)
    assert lengths(read(tmp_path / "mine.pdb", pdb(2) + "ENDMDL\nEND\n")) == [1.1, 1.2]


MOL = "name\n  made by hand\n\n  2  0  0  0  0  0  0  0  0  0999 V2000\n    0.0 0.0 0.0 C\n    0.0 0.0 1.{} O\nM  END\n"


def test_molecules_of_an_sdf(tmp_path: Path) -> None:
    text = "".join(MOL.format(i) + f"> <energy>\n-{i}.5\n\n$$$$\n" for i in (1, 2, 3))
    assert lengths(read(tmp_path / "mine.sdf", text)) == [1.1, 1.2, 1.3]
    assert [one[1]["energy"] for one in structure_files.structures(tmp_path / "mine.sdf")] == [-1.5, -2.5, -3.5]  # type: ignore[index]
    assert lengths(read(tmp_path / "mine.mol", MOL.format(1) + MOL.format(2)))[0].startswith("line 1: 2 molecules")  # type: ignore[union-attr]
    cut = "".join(text.splitlines(keepends=True)[:5])
    assert "2 atoms stated, and 1 lines" in str(read(tmp_path / "mine.sdf", cut)[0])


def test_poscars_one_after_another_are_refused(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "POSCAR", bulk("Cu", cubic=True), format="vasp")
    text = (tmp_path / "POSCAR").read_text()
    assert len(read(tmp_path / "POSCAR", text)) == 1
    velocities = "\n" + 4 * "  0.1E-02 0.2 0.3\n" + "\n  1\n 0.1E+01\n" + 4 * " 0.0 0.0 0.0\n"
    assert isinstance(read(tmp_path / "POSCAR", text + velocities)[0], Atoms)
    assert "after the last atom" in str(read(tmp_path / "POSCAR", text + text)[0])
    assert "4 atoms stated, and 3" in str(read(tmp_path / "POSCAR", "".join(text.splitlines(keepends=True)[:-1]))[0])


def test_blocks_of_a_cif_without_atoms(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "mine.cif", [bulk("Cu"), bulk("Au")], format="cif")
    text = (tmp_path / "mine.cif").read_text()
    assert len(read(tmp_path / "mine.cif", "data_global\n_journal 'a'\n" + text)) == 2
    with pytest.raises(EutecticError, match="2 data blocks with a cell, of which 1 have atoms"):
        read(tmp_path / "mine.cif", text[: text.rindex("_atom_site_type_symbol")])
    with pytest.raises(EutecticError, match=r"partially occupied sites: Au 0\.5"):
        read(tmp_path / "mine.cif", text.replace("Au  Au1       1.0  0.0  0.0  0.0  1.0000", "Au Au1 1 0 0 0 0.5"))


def test_trajectories_one_after_another_are_refused(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "one.traj", [bulk("Cu"), bulk("Au")])
    content = (tmp_path / "one.traj").read_bytes()
    assert len(read(tmp_path / "one.traj", content)) == 2
    with pytest.raises(EutecticError, match="a second trajectory at byte"):
        read(tmp_path / "two.traj", content + content)


# --- elements ---------------------------------------------------------------------------------------------


def symbols(found: list[object]) -> list[str]:
    return ["".join(one.symbols) if isinstance(one, Atoms) else str(one) for one in found]


GRO = (
    "water\n 2\n    1SOL   {:>4s}    1   0.000   0.000   0.000\n"
    "    1SOL    {:>3s}    2   0.000   0.000   0.100\n 1 1 1\n"
)
VASP4 = "made by hand\n1.0\n9 0 0\n0 9 0\n0 0 9\n1 1\nDirect\n0 0 0\n0 0 0.1\n"
DATA = (
    "mine\n\n2 atoms\n2 atom types\n0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n\n{}"
    "Atoms # atomic\n\n1 1 0 0 0\n2 2 0 0 1.1\n"
)


@pytest.mark.parametrize(
    ("name", "text", "stated", "found"),
    [
        ("a.dump", dump(1), None, "types without elements: 1, 2"),
        ("a.dump", dump(1), "Cu", "types without elements: 2"),
        ("a.dump", dump(1), "Cu,Au", "CuAu"),
        ("a.dump", dump(1), "2=Cu,1=Au", "AuCu"),
        ("a.dump", dump(1, columns="id element x y z").replace("1 1 ", "1 Pt ").replace("2 2 ", "2 C "), None, "PtC"),
        (
            "a.dump",
            dump(1, columns="id element x y z").replace("1 1 ", "1 Pt ").replace("2 2 ", "2 C "),
            "Cu",
            "used with",
        ),
        ("a.dump", dump(1, columns="id type mass x y z", row="{} {} 63.55 {} 0 0"), None, "CuCu"),
        ("a.dump", dump(1, columns="id type mass x y z", row="{} {} 1.0 {} 0 0"), None, "types without elements: 1, 2"),
        ("a.xyz", "2\n\n1 0 0 0\n2 0 0 1.1\n", None, "types without elements: 1, 2"),
        ("a.xyz", "2\n\n1 0 0 0\n2 0 0 1.1\n", "Cu,Au", "CuAu"),
        ("a.xyz", "2\n\nOW 0 0 0\nH 0 0 1.1\n", "OW=O", "OH"),
        ("a.xyz", "2\n\nCL 0 0 0\nna 0 0 1.1\n", None, "ClNa"),
        ("a.xyz", "2\n\nC 0 0 0\nO 0 0 1.1\n", "Cu,Au", "used with"),
        ("POSCAR", VASP4, None, "types without elements: 1, 2"),
        ("POSCAR", VASP4.replace("made by hand", "POSCAR"), None, "types without elements: 1, 2"),
        ("POSCAR", VASP4.replace("made by hand", "Cu Au"), None, "CuAu"),
        ("POSCAR", VASP4, "Cu,Au", "CuAu"),
        ("a.pdb", pdb(1, columns=("", "")), None, "CO"),
        ("a.pdb", pdb(1, names=("CA", "CL"), columns=("", "")), None, "names without elements: CA, CL"),
        ("a.pdb", pdb(1, names=("CA", "CL"), columns=("", "")), "CA=C,CL=Cl", "CCl"),
        ("a.pdb", pdb(1, names=("CA", "CL"), columns=("C", "CL")), None, "CCl"),
        ("a.gro", GRO.format("O1", "H2"), None, "OH"),
        ("a.gro", GRO.format("CL", "NA"), None, "names without elements: CL, NA"),
        ("a.gro", GRO.format("CL", "NA"), "CL=Cl,NA=Na", "ClNa"),
        ("a.lmp", DATA.format(""), None, "types without elements: 1, 2"),
        ("a.lmp", DATA.format(""), "Cu,Au", "CuAu"),
        ("a.lmp", DATA.format("Masses\n\n1 63.55\n2 196.97\n\n"), None, "CuAu"),
        ("a.lmp", DATA.format("Masses\n\n1 1.0\n2 1.0\n\n"), None, "types without elements: 1, 2"),
        ("a.lmp", DATA.format("Masses\n\n1 1.0\n2 1.0\n\n"), "Cu,Au", "CuAu"),
        ("a.lmp", DATA.format("Atom Type Labels\n\n1 Pt\n2 C\n\n"), None, "PtC"),
        ("a.lmp", DATA.format("Atom Type Labels\n\n1 Pt\n2 C\n\nMasses\n\n1 1.0\n2 1.0\n\n"), None, "PtC"),
    ],
)
def test_elements_are_stated_or_in_the_file(
    tmp_path: Path, name: str, text: str, stated: str | None, found: str
) -> None:
    def read_all() -> Iterator[str]:
        try:
            yield from symbols(read(tmp_path / name, text, stated))
        except EutecticError as error:
            yield error.given

    assert next(read_all()).startswith(found)


def test_a_dump_has_no_energy(tmp_path: Path) -> None:
    text = dump(1, columns="id type x y z fx fy fz", row="{} {} {} 0 0 1 2 3")
    (atoms,) = read(tmp_path / "a.dump", text, "Cu,Au")
    assert isinstance(atoms, Atoms)
    assert set(atoms.calc.results) == {"forces"}


@pytest.mark.parametrize("text", ["Xx", "Cu,", "Cu,2=Au", "=Cu", "cu"])
def test_elements_that_are_none(text: str) -> None:
    with pytest.raises(EutecticError, match="--elements"):
        elements.parse(text)


def test_masses() -> None:
    assert elements.of_masses(np.array([58.69, 58.93, 208.98, 35.5])).tolist() == [28, 27, 83, 17]  # type: ignore[union-attr]
    assert elements.of_masses(np.array([40.0])) is None
    assert elements.of_masses(np.array([1.0, 1.0])) is None


# --- names and sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["my@1.xyz", "my@:.traj", "my@0.cif", "my@1.json", "my@1.db", "@.xyz", "postgres.xyz", "-.xyz"]
)
def test_names_that_mean_something_to_ase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write(tmp_path / f"plain{name[name.rindex('.') :]}", bulk("Cu"))
    (tmp_path / f"plain{name[name.rindex('.') :]}").rename(name)
    ase.io.write(tmp_path / "my", bulk("Au"), format="extxyz")
    found = structure_files.structures(Path(name))
    assert [str(one[0].symbols) for one in found] == ["Cu"]  # type: ignore[index]


def test_compressed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lengths(read(tmp_path / "mine.xyz.gz", gzip.compress(frames(3, "\n").encode()))) == [1.1, 1.2, 1.3]
    monkeypatch.setattr(archives, "ALWAYS_UNPACKED", 1 << 18)
    many = gzip.compress((frames(1) * 7000).encode())
    with pytest.raises(EutecticError, match="bytes that unpack to"):
        for _ in read(tmp_path / "bomb.xyz.gz", many, first=6999):
            pass


def test_a_line_without_end(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match="line 2 has more than"):
        read(tmp_path / "mine.xyz", "1\n" + 9_000_000 * "a")


def test_json_of_records_names_the_reader_of_records(tmp_path: Path) -> None:
    with pytest.raises(EutecticError) as error:
        read(tmp_path / "mine.json", '[{"matpes_id": "m-0", "structure": {"@class": "Structure"}}]')
    assert "eutectic data prepare records --source" in error.value.fix
