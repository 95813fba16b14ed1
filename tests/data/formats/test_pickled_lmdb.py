"""Pickled records: every form of numbers, and malicious files."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from pyg_records import LAYOUTS, frame, pickled, write_aselmdb, write_lmdb

from eutectic.atoms import EutecticError
from eutectic.data.formats import ase_lmdb, pymatgen_json
from eutectic.data.formats.pickled_lmdb import (
    array,
    crystal,
    fields,
    read_keys,
    read_records,
    record_count,
    record_keys,
    unpickle,
)
from eutectic.data.formats.pickles import pickle_end

TENSORS = {
    "float32": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "float64": torch.tensor(-1234.567890123456789, dtype=torch.float64),
    "float16": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "int64": torch.tensor([[2**40, -1]]),
    "int32": torch.tensor([3, 4], dtype=torch.int32),
    "uint8": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part of a storage": torch.arange(10.0)[2:8:3],
    "every second column": torch.arange(12.0).reshape(3, 4)[:, ::2],
    "expanded": torch.tensor([7.0]).expand(1),
    "empty": torch.zeros((0, 3)),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", TENSORS)
def test_tensors(form: str, protocol: int) -> None:
    found = array(unpickle(pickle.dumps(TENSORS[form], protocol=protocol), "here"), "here")
    wanted = TENSORS[form].numpy()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.float64(-0.1),
        np.int32(7),
        np.zeros((0, 3)),
    ],
    ids=repr,
)
def test_arrays(value: Any, protocol: int) -> None:
    found = array(unpickle(pickle.dumps(value, protocol=protocol), "here"), "here")
    assert found.shape == np.shape(value)
    np.testing.assert_array_equal(found, value)


def test_older_names_of_the_same_arrays() -> None:
    """NumPy moved its modules in version 2, and torch had an older function."""
    modern = pickle.dumps(np.arange(3.0), protocol=4)
    for old, new in ((b"\x10numpy.core.numeric", b"numpy._core.numeric"), (b"numpy.core.multiarray",) * 2):
        other = modern.replace(b"numpy._core", b"numpy.core") if old != new else modern
        # The length before a name is one byte.
        other = other.replace(bytes([len(b"numpy._core.multiarray")]) + b"numpy.core", b"\x15numpy.core")
        other = _unframed(other)
        np.testing.assert_array_equal(array(unpickle(other, "here"), "here"), np.arange(3.0))
    tensor = pickle.dumps(torch.arange(3.0), protocol=2).replace(b"_rebuild_tensor_v2", b"_rebuild_tensor")
    np.testing.assert_array_equal(array(unpickle(tensor, "here"), "here"), np.arange(3.0))


def _unframed(data: bytes) -> bytes:
    """Without the length of the whole, which a change of names has made wrong."""
    return data[:2] + data[11:] if data[2:3] == b"\x95" else data


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts(tmp_path: Path, layout: str) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame(fid=i), layout) for i in range(12)])
    assert record_count(file) == 12
    records = list(read_records(file))
    # In the order of numbers: as text, "10" comes before "2".
    assert [int(array(r["fid"], w)) for w, r in records] == list(range(12))
    where, record = records[3]
    assert where == f"{file}, record 3"
    assert record["y"] == -1.5
    assert record["id"] == "0_0"
    assert array(record["pos"], where).shape == (4, 3)
    assert [int(array(r["fid"], w)) for w, r in read_records(file, 10, 2)] == [10, 11]


def test_dictionaries(tmp_path: Path) -> None:
    record = OrderedDict(energy=np.float64(-1.0), pos=torch.zeros((2, 3)), name="x", natoms=2)
    ((where, found),) = read_records(write_lmdb(tmp_path / "data.lmdb", [pickle.dumps(record)]))
    assert array(found["energy"], where) == -1
    assert array(found["natoms"], where) == 2
    with pytest.raises(EutecticError, match="a str; expected numbers"):
        array(found["name"], where)
    for other in ([1], {1: 2}):
        with pytest.raises(EutecticError, match="without named fields"):
            fields(unpickle(pickle.dumps(other), "here"), "here")


def test_a_file_may_be_open_twice(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame(fid=i)) for i in range(4)])
    pairs = list(zip(read_records(file), read_records(file, 2, 2), strict=False))
    assert [(a, b) for (a, _), (b, _) in pairs] == [(f"{file}, record {i}", f"{file}, record {i + 2}") for i in (0, 1)]


@pytest.mark.parametrize("length", [None, "right", np.int64(3), torch.tensor(3)], ids=str)
def test_length_is_no_record(tmp_path: Path, length: object) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame()) for _ in range(3)], length)
    assert record_count(file) == len(list(read_records(file))) == 3


@pytest.mark.parametrize("length", [0, 2, 4, -1, 10**30])
def test_a_wrong_length(tmp_path: Path, length: int) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame()) for _ in range(3)], length)
    with pytest.raises(EutecticError, match=r"data\.lmdb"):
        record_count(file)


class Hostile:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("echo ran > {ran}",), f"{os.system.__module__}.system"),
        (builtins.eval, ("open('{ran}', 'w')",), "builtins.eval|__builtin__.eval"),
        (builtins.open, ("{ran}", "w"), r"_?io.open"),
        (torch.load, ("{ran}",), "torch.serialization.load"),
        (np.load, ("{ran}",), "numpy.*load"),
    ],
)
def test_a_pickle_that_calls(
    tmp_path: Path, function: Any, arguments: tuple[str, ...], name: str, protocol: int
) -> None:
    ran = tmp_path / "ran"
    hostile = Hostile(function, *(a.format(ran=ran) for a in arguments))
    for record in (hostile, {"y": hostile}, frame(y=hostile)):
        file = write_lmdb(tmp_path / "data.lmdb", [pickle.dumps(record, protocol=protocol)], None)
        with pytest.raises(EutecticError, match=f"record 0: a pickle that imports '({name})'; .* none of it was run"):
            list(read_records(file))
    assert not ran.exists()


def test_a_hostile_pickle_within_a_tensor(tmp_path: Path) -> None:
    """`torch.storage._load_from_bytes` would hand these bytes to another unpickler."""
    ran = tmp_path / "ran"
    whole = pickle.dumps(torch.arange(3.0), protocol=4)
    hostile = pickle.dumps(Hostile(os.system, f"echo ran > {ran}"), protocol=2)
    buffer = io.BytesIO()
    torch.save(Hostile(os.system, f"echo ran > {ran}"), buffer, _use_new_zipfile_serialization=False)
    for blob in (hostile, buffer.getvalue()):
        inner = next(a for a in _byte_strings(whole))
        data = _unframed(whole).replace(
            b"B" + struct.pack("<I", len(inner)) + inner, b"B" + struct.pack("<I", len(blob)) + blob
        )
        assert blob in data
        tensor = unpickle(data, "here")
        with pytest.raises(EutecticError, match=r"imports '(posix|nt)\.system'"):
            array(tensor, "here")
    zipped = io.BytesIO()
    torch.save(torch.arange(3.0), zipped)
    inner = next(a for a in _byte_strings(whole))
    blob = zipped.getvalue()
    data = _unframed(whole).replace(
        b"B" + struct.pack("<I", len(inner)) + inner, b"B" + struct.pack("<I", len(blob)) + blob
    )
    with pytest.raises(EutecticError, match="cannot be read"):
        array(unpickle(data, "here"), "here")
    assert not ran.exists()


def _byte_strings(data: bytes) -> list[bytes]:
    import pickletools

    return [arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, bytes)]


class Huge:
    """A tensor or an array that claims to be larger than what is there."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def _tensor_of(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Huge:
    storage = torch.zeros(4)._typed_storage()
    return Huge(torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict()))


@pytest.mark.parametrize(
    "value",
    [
        _tensor_of((10**9, 10**3), (0, 0)),
        _tensor_of((5,), (1,)),
        _tensor_of((2, 2), (4, 1)),
        _tensor_of((4,), (1,), offset=1),
        _tensor_of((-1,), (1,)),
        _tensor_of((4,), (-1,)),
        Huge(np._core.numeric._frombuffer, (b"12345678", np.dtype("f8"), (10**12,), "C")),
        Huge(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (10**12,), np.dtype("f8"), False, b"")),
        Huge(np._core.multiarray._reconstruct, (np.ndarray, (10**14,), b"b")),
        np.array([None, "objects"], dtype=object),
    ],
)
def test_sizes_that_are_not_there(value: Any) -> None:
    with pytest.raises(EutecticError, match="here"):
        array(unpickle(pickle.dumps(value, protocol=5), "here"), "here")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        # Python's own reader would set aside 64 GB for a memo of this size.
        (b"\x80\x02Nr\xff\xff\xff\xff.", "memo"),
        (b"\x80\x02Nr\x00\x00\x00\x40.", "memo"),
        (b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "cut short"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00abc.", "cut short"),
        (b"\x80\x04\x95\xff\xff\xff\xff\x00\x00\x00\x00N.", "pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "instruction"),
        (b"(S'true'\nios\nsystem\n.", "instruction"),
        (b"\x80\x02\x82\x01.", "instruction"),
        (b"\x80\x02NQ.", "persistent"),
        (b"", "cut short"),
        (b"\x80\x04", "cut short"),
        (b"\x80\x02.", ""),
    ],
)
def test_pickles_made_by_hand(data: bytes, why: str) -> None:
    with pytest.raises(EutecticError, match=f"here: a record that cannot be read.*{why}"):
        unpickle(data, "here")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_end_of_a_pickle_is_where_python_finds_it(protocol: int) -> None:
    inner: list[Any] = []
    itself = (inner, {"x": 2**70, "y": -1.5, "z": b"bytes", "ä": None, "s": {1, 300, 70000}, "f": frozenset("ab")})
    inner.append(itself)  # a tuple within itself takes instructions of its own
    values = [itself, bytearray(9), "x" * 300, b"y" * 70_000, np.arange(5), Path, (1, 2, 3, 4), True]
    data = pickle.dumps(values, protocol=protocol)
    assert pickle_end(data + b"more") == len(data)
    assert pickle_end(b"before" + data, len(b"before")) == len(b"before") + len(data)


def test_a_list_of_lists_without_end() -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value] * 9
    with pytest.raises(EutecticError, match="a list; expected numbers"):
        array(unpickle(pickle.dumps(value), "here"), "here")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_record(tmp_path: Path, layout: str) -> None:
    whole = pickled(frame(), layout)
    rng = np.random.default_rng(0)
    for keep in (1, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(EutecticError):
            unpickle(whole[:keep], "here")
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        # Either an error of ours, or other numbers: never another exception.
        try:
            for value in fields(unpickle(bytes(data), "here"), "here").values():
                if not isinstance(value, str | None):
                    array(value, "here")
        except EutecticError:
            pass


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "data.lmdb", [pickled(frame()) for _ in range(50)])
    data = file.read_bytes()
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment:
        whole = (environment.info()["last_pgno"] + 1) * 4096
    for keep in (0, 100, 4096, 8192, whole // 2, whole - 1):
        file.write_bytes(data[:keep])
        with pytest.raises(EutecticError, match=r"data\.lmdb: it could not be read"):
            list(read_records(file))
    file.write_text("nothing of the kind " * 1000)
    with pytest.raises(EutecticError, match=r"data\.lmdb: it could not be read"):
        record_count(file)
    with pytest.raises(EutecticError, match="could not be read"):
        record_count(tmp_path / "absent.lmdb")


def test_aselmdb(tmp_path: Path) -> None:
    def row(energy: float) -> dict[str, Any]:
        return {
            "numbers": [6, 8],
            "positions": [[0, 0, 0], [0, 0, 1.1]],
            "cell": [[5, 0, 0], [0, 5, 0], [0, 0, 5]],
            "pbc": [True, True, False],
            "tags": [1, 2],
            "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [0]}}],
            "energy": energy,
            "forces": {"__ndarray__": [[2, 3], "float64", [0, 0, 1.5, 0, 0, -1.5]]},
            "stress": [1, 2, 3, 4, 5, 6],
            "data": {"sid": 5},
            "key_value_pairs": {"gap": 1.5},
        }

    file = write_aselmdb(tmp_path / "data.aselmdb", [row(-1.0), None, row(-3.0), row(-4.0)])
    assert ase_lmdb.row_count(file) == 3
    rows = list(ase_lmdb.read_rows(file))
    assert [info["row"] for _, info in rows] == [1, 3, 4]
    assert [info["row"] for _, info in ase_lmdb.read_rows(file, 1, 1)] == [3]
    atoms, info = rows[1]
    assert (atoms.get_potential_energy(), info["sid"], info["gap"]) == (-3, 5, 1.5)
    assert atoms.get_forces(apply_constraint=False)[0, 2] == 1.5
    assert atoms.get_forces()[0, 2] == 0
    assert atoms.get_stress().tolist() == [1, 2, 3, 4, 5, 6]
    assert (atoms.pbc.tolist(), atoms.get_tags().tolist()) == ([True, True, False], [1, 2])


@pytest.mark.parametrize(
    "bad",
    [
        {"numbers": [1]},
        {"numbers": [1], "positions": [[0, 0]]},
        {"numbers": [1], "positions": [[0, 0, 0]], "energy": "words"},
        {"numbers": [1], "positions": [[0, 0, 0]], "data": "words"},
        {"numbers": [1], "positions": {"__ndarray__": [[10**12, 3], "float64", [0]]}},
        {"numbers": [1], "positions": {"__ndarray__": [[1, 3], "O", [0, 0, 0]]}},
        {"numbers": [1], "positions": [[0, 0, 0]], "constraints": [{"kwargs": {}}]},
        [1, 2],
    ],
)
def test_aselmdb_rows_that_are_none(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(EutecticError, match=r"data\.aselmdb"):
        list(ase_lmdb.read_rows(write_aselmdb(tmp_path / "data.aselmdb", [bad])))


def test_aselmdb_files_that_are_none(tmp_path: Path) -> None:
    file = write_aselmdb(tmp_path / "data.aselmdb", [{"numbers": [1], "positions": [[0, 0, 0]]}])
    for key, value, why in (
        (b"nextid", zlib.compress(b"1000000000000000000"), "nextid"),
        (b"nextid", zlib.compress(b'"x"'), "nextid"),
        (b"nextid", b"not compressed", "record nextid"),
        (b"nextid", zlib.compress(json.dumps(2).encode())[:-5], "truncated"),
    ):
        with lmdb.open(str(file), subdir=False, lock=False, map_size=1 << 24) as env, env.begin(write=True) as t:
            t.put(key, value)
        with pytest.raises(EutecticError, match=why):
            ase_lmdb.row_count(file)
    pickled_records = write_lmdb(tmp_path / "other.aselmdb", [pickled(frame())])
    with pytest.raises(EutecticError, match=r"an \.aselmdb file"):
        ase_lmdb.row_count(pickled_records)


def test_a_row_that_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ase_lmdb, "LARGEST_ROW", 1000)
    row = {"numbers": [1], "positions": [[0, 0, 0]], "data": {"zeros": "0" * 10_000}}
    with pytest.raises(EutecticError, match="far too large for a structure"):
        list(ase_lmdb.read_rows(write_aselmdb(tmp_path / "data.aselmdb", [row])))


REAL = {
    "transition1x/horm_sample_100.lmdb": (100, {"pos", "energy", "forces", "hessian"}),
    "matsciml_devsets/lips_data.lmdb": (200, {"pos", "energy", "force", "cell"}),
    "matsciml_devsets/colabfit_data.lmdb": (262, {"pos", "force", "stress"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data: Path, name: str) -> None:
    count, some = REAL[name]
    records = list(read_records(shared_data / name))
    assert len(records) == record_count(shared_data / name) == count
    for where, record in records:
        for field in some:
            assert np.isfinite(array(record[field], where)).all()


def test_real_crystals_of_pymatgen(shared_data: Path) -> None:
    n = 0
    for where, record in read_records(shared_data / "matsciml_devsets" / "materials_project_data.lmdb"):
        pymatgen_json.structure(crystal(record["structure"], where), where).check(where)
        n += 1
    assert n == 200


def test_keys_may_be_missing(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "some.lmdb", [pickled({"y": i}) for i in range(12)], length=12)
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"3")
    keys = record_keys(path)
    assert keys == [0, 1, 2, *range(4, 12)]
    assert [fields["y"] for _, fields in read_keys(path, keys)] == keys


def test_crystals_that_are_none() -> None:
    many: Any = {"a": 1}
    for _ in range(40):
        many = {"a": many, "b": many}
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    for value in (many, deep, {"_lattice": 1}, 3):
        read = unpickle(pickle.dumps(many), "here") if value is many else value
        with pytest.raises(EutecticError, match=r"not a readable crystal|not a structure of pymatgen"):
            pymatgen_json.structure(crystal(read, "here"), "here")


def test_rows_and_no_long_ones() -> None:
    assert array([[1, 2, 3], [4, 5, 6]], "here").tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(EutecticError, match="a list; expected numbers"):
        array([[0.0] * 10] * 3, "here")
