"""Faults of structure files: what is left over, made up, counted wrongly, named oddly, or larger than it says."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from typer.testing import CliRunner

from drills import ENVIRONMENT, Outcome, assert_clear_error, assert_done
from drills import eutectic as in_a_process
from eutectic.atoms import EutecticError
from eutectic.cli.app import app
from eutectic.data.datasets import ase_files
from eutectic.data.store import Store

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FRAME = '2\nProperties=species:S:1:pos:R:3 energy=-{0}.5 pbc="F F F"\nC 0 0 0\nO 0 0 1.{0}{1}\n'
FRAMES = [FRAME.format(i % 9 + 1, i) for i in range(30)]


def case(name: str) -> Path:
    if not (CASES / name).exists():
        pytest.skip("the folder of cases is not beside the project")
    return CASES / name


def eutectic(*arguments: object) -> Outcome:
    """One command in this process: there are hundreds."""
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    error = result.exception
    if isinstance(error, EutecticError):
        # As the entry point prints it.
        words = f"error in {error.where}\ngiven {error.given}\nexpected {error.expected}\nwhat to do {error.fix}\n"
        return Outcome(1, result.stdout, result.stderr + words)
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Outcome(result.exit_code, result.stdout, result.stderr)


COMMANDS: dict[str, Callable[..., Outcome]] = {
    "prepare": lambda file, *more: eutectic(
        "data", "prepare", "ase", "--source", file, "--store", file.with_name("store"), *more
    ),
    "check": lambda file, *more: eutectic("data", "check", file, *more),
    "predict": lambda file, *more: eutectic(
        "predict", "eutectic-small", file, "--task", "molecules", "--out", file.with_name("out.xyz"), *more
    ),
    "finetune": lambda file, *more: eutectic(
        *("finetune", file, "-p", "energy", "--steps", 1, "--batch-size", 2, "--out", file.with_name("run"), *more)
    ),
}


def assert_reads_or_refuses(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.errors, outcome.errors[-3000:]
    assert outcome.code in (0, 1, 2, 3), outcome


@pytest.fixture(autouse=True)
def _data_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "EUTECTIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("EUTECTIC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")


# --- left over ---------------------------------------------------------------------------------------------

LEFT = {
    "blank between": "\n".join(FRAMES),
    "spaces between": " \t \n".join(FRAMES),
    "blank first": "\n\n" + "".join(FRAMES),
    "CRLF and blank": "\n".join(FRAMES).replace("\n", "\r\n"),
    "byte-order mark": "\ufeff" + "".join(FRAMES),
}
REFUSED = {
    "text after": "".join(FRAMES) + "# the end\n",
    "text after a blank": "".join(FRAMES) + "\n\n# the end\n",
    "text between": "".join(FRAMES[:10]) + "next run\n" + "".join(FRAMES[10:]),
    "one atom more": "".join(FRAMES[:10]) + "H 0 0 2\n" + "".join(FRAMES[10:]),
    "one atom less": "".join(FRAMES).replace("O 0 0 1.54\n", "", 1),
    "blank within": "".join(FRAMES).replace("O 0 0 1.5", "\nO 0 0 1.5", 1),
    "NUL after": "".join(FRAMES) + "\x00" * 100,
    "count of 1e11": "".join(FRAMES[:10]) + "99999999999\n\nC 0 0 0\n",
    "first count of 1e11": "99999999999\n\nC 0 0 0\n",
    "half a frame": "".join(FRAMES)[:-30],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_blank_lines(tmp_path: Path, command: str) -> None:
    """Empty lines between the frames of an xyz: all 30 are read."""
    for name, text in LEFT.items() if command == "predict" else [*LEFT.items()][:1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.xyz").write_bytes(text.encode())
        outcome = COMMANDS[command](tmp_path / name / "mine.xyz")
        assert_reads_or_refuses(outcome)
        if command == "predict":
            assert len(ase.io.read(tmp_path / name / "out.xyz", ":")) == 30
        elif command == "prepare":
            assert len(Store(tmp_path / name / "store")) == 30
        elif command == "check":
            assert "structures  30" in outcome.output


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("command", ["prepare", "check"])
def test_left_over(tmp_path: Path, command: str, fault: str) -> None:
    """Text after, between and within the frames of an xyz is said, in no time."""
    (tmp_path / "mine.xyz").write_bytes(REFUSED[fault].encode())
    outcome = COMMANDS[command](tmp_path / "mine.xyz")
    assert_reads_or_refuses(outcome)
    assert outcome.code != 0
    assert "line" in outcome.output + outcome.errors


@pytest.mark.parametrize("name", ["XDATCAR", "POSCAR", "mine.pdb", "mine.sdf", "mine.cif", "mine.traj", "mine.gro"])
@pytest.mark.parametrize("between", ["", "\n", "and so on\n"])
def test_one_after_the_other(tmp_path: Path, name: str, between: str) -> None:
    """Two files of any format in one: both are read, or the second is not passed over."""
    for i in (0, 1):
        atoms = bulk("Cu", cubic=True) if i else bulk("Au", cubic=True)
        if name == "mine.gro":
            atoms.set_array("atomtypes", np.array(["Cu1"] * 4 if i else ["Au1"] * 4))
            atoms.set_array("residuenames", np.array(["MOL"] * 4))
        ase.io.write(tmp_path / f"{i}{name}", atoms, format={"XDATCAR": "vasp-xdatcar", "POSCAR": "vasp"}.get(name))
    content = between.encode().join((tmp_path / f"{i}{name}").read_bytes() for i in (0, 1))
    (tmp_path / name).write_bytes(content)
    outcome = eutectic("predict", "eutectic-small", tmp_path / name, "--task", "bulk", "--out", tmp_path / "out.xyz")
    assert_reads_or_refuses(outcome)
    read = len(ase.io.read(tmp_path / "out.xyz", ":")) if (tmp_path / "out.xyz").exists() else 0
    assert read == 2 or outcome.code != 0


# --- made up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prepare", "check", "predict", "finetune"])
def test_types(tmp_path: Path, command: str) -> None:
    """LAMMPS types are no elements, until they are stated; a dump has no energy."""
    head = "ITEM: TIMESTEP\n{0}\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
    row = "ITEM: ATOMS id type x y z fx fy fz\n1 1 0 0 0 0 0 1\n2 2 0 0 1.{0} 0 0 -1\n"
    (tmp_path / "mine.dump").write_text("".join((head + row).format(i) for i in range(1, 9)))
    assert_clear_error(COMMANDS[command](tmp_path / "mine.dump"), "types without elements: 1, 2", "--elements")
    outcome = COMMANDS[command](tmp_path / "mine.dump", "--elements", "C,O")
    if command == "finetune":
        assert_clear_error(outcome)  # no energies to learn
        outcome = eutectic(
            *("finetune", tmp_path / "mine.dump", "-p", "forces", "--steps", 1, "--batch-size", 2),
            *("--out", tmp_path / "run", "--elements", "C,O"),
        )
    assert_reads_or_refuses(outcome)
    if command == "prepare":
        assert Store(tmp_path / "store").label_counts() == {"forces": 8}
    assert "energy (8)" not in outcome.output


@pytest.mark.parametrize("text", ["mine", "POSCAR file of three", "Unknown In", "Cubic"])
def test_vasp_4(tmp_path: Path, text: str) -> None:
    """A POSCAR without elements is not read by the words of its comment."""
    (tmp_path / "POSCAR").write_text(f"{text}\n1\n9 0 0\n0 9 0\n0 0 9\n1 1 1\nDirect\n0 0 0\n0 0 .2\n0 0 .4\n")
    outcome = eutectic("predict", "eutectic-small", tmp_path / "POSCAR", "--task", "bulk", "--json")
    assert_clear_error(outcome, "types without elements: 1, 2, 3")


# --- fixed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "db", "json"])
def test_fixed(tmp_path: Path, suffix: str) -> None:
    """Atoms fixed by constraints of any class, in any format."""
    kinds: list[list[object]] = [
        [FixAtoms([0, 1])],
        [FixCartesian([0, 1])],
        [FixAtoms([0]), FixCartesian([1], (True, True, True)), FixCartesian([2], (True, False, False))],
        *(
            []
            if suffix == "extxyz"
            else [[FixScaled([0, 1])], [FixedPlane([0, 1], (1, 1, 0)), FixedLine([0, 1], (1, 1, 0))]]
        ),
    ]
    images = []
    for kind in kinds:
        atoms = bulk("Cu", cubic=True)
        atoms.set_constraint(kind)
        images.append(atoms)
    ase.io.write(tmp_path / f"mine.{suffix}", images)
    for _, _, structure in ase_files.structures(tmp_path / f"mine.{suffix}"):
        assert structure.fixed.tolist() == [True, True, False, False]


def test_fixed_atoms_of_a_case() -> None:
    """Eight atoms are fixed in each frame of a constrained slab."""
    found = [int(row.structure.fixed.sum()) for row in ase_files.read(case("01-constrained-slab.extxyz"))]
    assert found == [8] * 30


# --- bad structures left out --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db"])
@pytest.mark.parametrize("bad", [0, 10, 58])
def test_skip_bad(tmp_path: Path, suffix: str, bad: int) -> None:
    """Labels behind a structure that is left out are kept, and counted."""
    images = []
    for i in range(60):
        atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1 + 0.01 * i]])
        forces = {"forces": np.zeros((2, 3))} if i > bad else {}
        atoms.calc = SinglePointCalculator(atoms, energy=np.nan if i == bad else -1.0 * i, **forces)
        images.append(atoms)
    ase.io.write(tmp_path / f"mine.{suffix}", images)
    outcome = COMMANDS["prepare"](tmp_path / f"mine.{suffix}", "--skip-bad")
    assert_done(outcome)
    store = Store(tmp_path / "store")
    assert store.label_counts() == {"energy": 59, "forces": 59 - bad}
    assert any(note.endswith("from 'energy': 59 structures") for note in store.card.notes)


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["my@1.xyz", "my@:.xyz", "my@x.xyz", "a@b@2.xyz", "postgres.xyz"])
def test_names_of_files(tmp_path: Path, command: str, name: str) -> None:
    """Names with @ are names; the file beside it is not read in its place."""
    (tmp_path / name).write_text("".join(FRAMES))
    for other in (name.partition("@")[0], name.rpartition("@")[0]):
        if other not in ("", name):
            ase.io.write(tmp_path / other, bulk("Cu"), format="extxyz")
    outcome = COMMANDS[command](tmp_path / name)
    assert_reads_or_refuses(outcome)
    assert "Cu" not in outcome.output
    if command == "predict":
        assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 30


@pytest.mark.parametrize("name", ["v1.2", "keys", "training", "items", "half", "a.b.c"])
def test_names_of_stores(tmp_path: Path, name: str) -> None:
    """A store of any name can be learned from, and its model used."""
    (tmp_path / "mine.xyz").write_text("".join(FRAMES))
    assert_done(eutectic("data", "prepare", "ase", "--source", tmp_path / "mine.xyz", "--store", tmp_path / name))
    outcome = eutectic("finetune", tmp_path / name, "-p", "energy", "--steps", 1, "--out", tmp_path / "run")
    assert_done(outcome)
    assert_done(eutectic("predict", tmp_path / "run" / "model", tmp_path / "mine.xyz", "--json"))


@pytest.mark.parametrize("command", ["prepare", "check", "finetune"])
def test_keys(command: str) -> None:
    """A key that nothing has is an error with the near name."""
    source = case("02-wrong-key.extxyz")
    options = ("--key", "energy=my_energy", "--key", "forces=my_force")
    if command == "check":
        outcome = eutectic("data", "check", source, *options)
    elif command == "prepare":
        outcome = eutectic("data", "prepare", "ase", "--source", source, "--store", "/nowhere/store", *options)
    else:
        outcome = eutectic("finetune", source, "-p", "energy", "--steps", 1, "--out", "/nowhere/run", *options)
    assert_clear_error(outcome)


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_keys_of_arrays(tmp_path: Path, suffix: str) -> None:
    """A key that no array has is an error with the near name."""
    arrays = {"R": np.arange(24.0).reshape(4, 2, 3), "z": np.array([6, 8]), "my_energy": np.arange(4.0)}
    if suffix == "npz":
        np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    else:
        with h5py.File(tmp_path / "mine.h5", "w") as file:
            for name, values in arrays.items():
                file[f"molecule/{name}"] = values
    outcome = eutectic("data", "check", tmp_path / f"mine.{suffix}", "--key", "energy=my_energi")
    assert_clear_error(outcome, "--key energy=my_energy")


# --- numbers and sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prepare", "check", "predict"])
@pytest.mark.parametrize("number", [200, 119, 0, -5, 10**12])
def test_numbers(tmp_path: Path, command: str, number: int) -> None:
    """Atomic numbers of no element."""
    (tmp_path / "mine.xyz").write_text(f"1\nProperties=Z:I:1:pos:R:3 energy=1.0\n{number} 0 0 0\n")
    outcome = COMMANDS[command](tmp_path / "mine.xyz")
    assert_reads_or_refuses(outcome)
    assert outcome.code != 0


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("content", ["zeros", "spaces", "frames", "one line"])
def test_bombs(tmp_path: Path, packed: str, content: str) -> None:
    """A file that unpacks to a thousand times its size."""
    frame = FRAMES[0].encode()
    made = {
        "zeros": bytes(1 << 26),
        "spaces": b" \n" * (1 << 25),
        "frames": frame * 600_000,
        "one line": b"1\n" + b"a" * (1 << 26),
    }
    (tmp_path / f"mine.xyz.{packed}").write_bytes(PACK[packed](made[content]))
    file = tmp_path / f"mine.xyz.{packed}"
    outcome = in_a_process("predict", "eutectic-small", file, "--task", "molecules", "--out", tmp_path / "out.xyz")
    assert outcome.code != 0
    assert_reads_or_refuses(outcome)


@pytest.mark.parametrize("packed", PACK)
def test_compressed(tmp_path: Path, packed: str) -> None:
    """A file that is compressed is read."""
    (tmp_path / f"mine.xyz.{packed}").write_bytes(PACK[packed]("\n".join(FRAMES).encode()))
    assert_done(COMMANDS["predict"](tmp_path / f"mine.xyz.{packed}"))
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 30


@pytest.mark.parametrize("reader", ["check", "records", "rmd17"])
def test_headers_that_lie(tmp_path: Path, reader: str) -> None:
    """An npz whose arrays declare more than they hold."""
    with zipfile.ZipFile(tmp_path / "rmd17_ethanol.npz", "w") as bundle:
        shapes = {"coords": (10**12, 9, 3), "forces": (10**12, 9, 3), "energies": (10**12,), "nuclear_charges": (9,)}
        for name, shape in shapes.items():
            with bundle.open(f"{name}.npy", "w") as handle:
                head = {"descr": "<f8", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(handle, head)
                handle.write(bytes(216))
    file = tmp_path / "rmd17_ethanol.npz"
    if reader == "check":
        outcome = eutectic("data", "check", file)
    else:
        name = "records" if reader == "records" else "rmd17:ethanol"
        outcome = eutectic("data", "prepare", name, "--source", file, "--store", tmp_path / "store")
    assert_clear_error(outcome, "declare")


@pytest.mark.parametrize("reader", ["check", "ani1x", "transition1x", "spice"])
def test_rows_that_were_never_written(tmp_path: Path, reader: str) -> None:
    """HDF5 arrays of 10^11 declared rows."""
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        group = file.create_group("data/C1O1/rxn0" if reader == "transition1x" else "C1O1")
        group["atomic_numbers"] = np.array([6, 8])
        for name, shape in {
            "coordinates": (2, 3),
            "positions": (2, 3),
            "wb97x_dz.energy": (),
            "wb97x_dz.forces": (2, 3),
        }.items():
            group.create_dataset(name, (10**11, *shape), "f8", chunks=(1000, *shape))
    if reader == "check":
        outcome = in_a_process("data", "check", tmp_path / "mine.h5", seconds=60)
    else:
        source = ("--source", tmp_path / "mine.h5", "--store", tmp_path / "store")
        outcome = in_a_process("data", "prepare", reader, *source, seconds=60)
    assert_clear_error(outcome)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "[" * 10**5 + "]" * 10**5])
@pytest.mark.parametrize("reader", ["ase", "records", "settings.json", "settings.yaml", "value", "xyz"])
def test_depth(tmp_path: Path, reader: str, text: str) -> None:
    """JSON and YAML of a hundred thousand brackets."""
    (tmp_path / "mine.json").write_text(text)
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "mine.xyz").write_text(f"1\na=_JSON{text}\nH 0 0 0\n")
    options = ("--store", tmp_path / "store")
    outcome = {
        "ase": lambda: eutectic("data", "prepare", "ase", "--source", tmp_path / "mine.json", *options),
        "records": lambda: eutectic("data", "prepare", "records", "--source", tmp_path / "mine.json", *options),
        "settings.json": lambda: eutectic("pretrain", tmp_path / "mine.json", "--out", tmp_path / "run"),
        "settings.yaml": lambda: eutectic("pretrain", tmp_path / "mine.yaml", "--out", tmp_path / "run"),
        "value": lambda: eutectic("pretrain", "demo", "--train.steps", text[:9999], "--out", tmp_path / "run"),
        "xyz": lambda: eutectic("data", "prepare", "ase", "--source", tmp_path / "mine.xyz", *options),
    }[reader]()
    assert_clear_error(outcome)


# --- records ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", ["energy", "forces", "positions", "numbers"])
@pytest.mark.parametrize("by", [-1, 1])
def test_arrays_of_other_lengths(tmp_path: Path, array: str, by: int) -> None:
    """Arrays of an npz with one row more or less."""
    n = 6
    arrays = {
        "positions": np.arange(6.0 * n).reshape(n, 2, 3),
        "numbers": np.full((n, 2), 6),
        "energy": np.arange(1.0 * n),
        "forces": np.zeros((n, 2, 3)),
    }
    arrays[array] = np.concatenate([arrays[array]] * 2)[: n + by]
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]
    units = ("--unit", "positions=angstrom", "--unit", "energy=eV", "--unit", "forces=eV/angstrom")
    source = ("--source", tmp_path / "mine.npz", "--store", tmp_path / "store")
    assert_clear_error(eutectic("data", "prepare", "records", *source, *units))


@pytest.mark.parametrize("rest", ["[]", "{", "\x00", "garbage"])
def test_json_after_the_end(tmp_path: Path, rest: str) -> None:
    """What follows the last bracket of JSON."""
    row = {"numbers": [6, 8], "positions": [[0, 0, 0], [0, 0, 1.1]], "energy": -1.0}
    (tmp_path / "mine.json").write_text(json.dumps([row] * 3) + rest)
    source = ("--source", tmp_path / "mine.json", "--store", tmp_path / "store")
    outcome = eutectic("data", "prepare", "records", *source, "--unit", "positions=angstrom", "--unit", "energy=eV")
    assert_clear_error(outcome)


# --- dialects ---------------------------------------------------------------------------------------------


def test_boolean_label(tmp_path: Path) -> None:
    """A boolean label is learned as a class."""
    source = case("18-boolean-label.extxyz")
    assert_done(eutectic("finetune", source, "-p", "is_metal", "--steps", 1, "--out", tmp_path / "run"))
    options = ("--key", "metallic=is_metal", "--define", "metallic=eV")
    outcome = eutectic("data", "prepare", "ase", "--source", source, "--store", tmp_path / "no", *options)
    assert_clear_error(outcome, "--define metallic=,class")


@pytest.mark.parametrize("key", ["id_prop", "band_gap"])
def test_tables(tmp_path: Path, key: str) -> None:
    """Labels in id_prop.csv, with a header or without, once property and unit are stated."""
    source = case("08-alignn-folder")
    options = ("--source", source, "--key", f"band_gap={key}", "--store", tmp_path / "store")
    assert_clear_error(eutectic("data", "prepare", "ase", *options), "--unit band_gap=eV")
    assert_done(eutectic("data", "prepare", "ase", *options, "--unit", "band_gap=eV"))
    store = Store(tmp_path / "store")
    assert store.label_counts() == {"band_gap": 20 if key == "id_prop" else 10}
