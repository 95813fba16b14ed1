"""HDF5: links and external data refused, damage reported, every frame in exactly one piece."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eutectic.atoms import EutecticError
from eutectic.data.dataset import Piece
from eutectic.data.formats import hdf5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["group/values"] = np.ones(3)
    (tmp_path / "secret.txt").write_bytes(b"x" * 24)
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["own/values"] = np.arange(6.0).reshape(2, 3)
        file["own/letters"] = np.array([b"C", b"C"])
        file["own/text"] = ["CC"]
        file["own/outside"] = h5py.ExternalLink(str(secret), "/group/values")
        file["own/inside"] = h5py.SoftLink("/own/values")
        file["own/back"] = h5py.SoftLink("/outside/values")
        file["outside"] = h5py.ExternalLink(str(secret), "/group")
        file["own"].create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "secret.txt"), 0, 24)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "group/values", (3,))
        file["own"].create_virtual_dataset("virtual", layout)
    return tmp_path / "file.h5"


def open_(path: Path) -> h5py.File:
    return h5py.File(path, "r")


def test_what_lies_in_the_file_is_read(path: Path) -> None:
    with hdf5.opened(path, "it", "fetch it") as file:
        own = hdf5.subgroup(file, "own")
        values = hdf5.dataset(own, "values", None, 3)
        assert hdf5.numbers_in(values, 1).tolist() == [[3, 4, 5]]
        assert hdf5.text_in(hdf5.dataset(own, "letters", None)) == hdf5.text_in(hdf5.dataset(own, "text", 1)) == "CC"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own/outside", "'outside' is a link to another file"),
        ("outside", "'outside' is a link to another file"),
        ("outside/values", "'outside' is a link to another file"),
        ("own/inside", "'inside' is a link to '/own/values'"),
        ("own/back", "'back' is a link to '/outside/values'"),
        ("own/raw", "an array whose data is in other files"),
        ("own/virtual", "an array whose data is in other files"),
        ("own/absent", "no 'absent' here; there is back, inside"),
        ("own", "a group; expected an array"),
        ("own/values/more", "an array; expected a group with 'more'"),
        ("own/values", r"shape \(2, 3\); expected shape \(any, 4\)"),
    ],
)
def test_nothing_outside_the_file_is_opened(path: Path, name: str, message: str) -> None:
    with open_(path) as file, pytest.raises(EutecticError, match=message):
        hdf5.dataset(file, name, None, 4)


def test_entries_of_other_types(path: Path) -> None:
    with open_(path) as file:
        with pytest.raises(EutecticError, match=r"entries of type \|S1; expected numbers"):
            hdf5.numbers_in(hdf5.dataset(file, "own/letters", None))
        with pytest.raises(EutecticError, match="entries of type float64; expected text"):
            hdf5.text_in(hdf5.dataset(file, "own/values", None, None))
        with pytest.raises(EutecticError, match="an array; expected a group"):
            hdf5.subgroup(file, "own/values")


def test_a_header_that_asks_for_all_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("values", (10**6, 10**6, 3), "f8", chunks=(1000, 1000, 3))
    with open_(tmp_path / "bomb.h5") as file, pytest.raises(EutecticError, match="bytes that unpack to"):
        hdf5.numbers_in(hdf5.dataset(file, "values", None, None, 3))


def test_files_that_are_not_whole(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for content, message in (
        (b"", "an empty file; expected it; fetch it"),
        (b"5\nenergy=1\n", "not an HDF5 file; expected it; fetch it"),
        (whole[: len(whole) // 2], "not a readable HDF5 file"),
    ):
        path.write_bytes(content)
        with pytest.raises(EutecticError, match=message), hdf5.opened(path, "it", "fetch it"):
            pass
    with pytest.raises(EutecticError, match="does not exist"), hdf5.opened(tmp_path / "no.h5", "it", "fetch it"):
        pass


def test_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EutecticError, match=r"does not exist; expected a\.h5"):
        hdf5.files_of(tmp_path / "absent", "a.h5", "fetch it")
    with pytest.raises(EutecticError, match="no HDF5 file here"):
        hdf5.files_of(tmp_path, "a.h5", "fetch it")
    for name in ("c.hdf5", "b.h5", "readme.txt"):
        (tmp_path / name).write_bytes(b"")
    assert hdf5.files_of(tmp_path, "a.h5", "fetch it", several=True) == [tmp_path / "b.h5", tmp_path / "c.hdf5"]
    with pytest.raises(EutecticError, match=r"2 HDF5 files \(b.h5, c.hdf5\)"):
        hdf5.files_of(tmp_path, "a.h5", "fetch it")
    (tmp_path / "a.h5").write_bytes(b"")
    assert hdf5.files_of(tmp_path, "a.h5", "fetch it") == [tmp_path / "a.h5"]
    assert len(hdf5.files_of(tmp_path, "a.h5", "fetch it", several=True)) == 3


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 9))
def test_pieces_hold_every_frame_once(sizes: list[int], per_piece: int) -> None:
    size = {f"g{i}": n for i, n in enumerate(sizes)}
    groups = list(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "FRAMES_PER_PIECE", per_piece)
        cut = hdf5.pieces(Path("file.h5"), groups, size.__getitem__)
    assert all(piece.count == per_piece for piece in cut[:-1])
    frames = [
        (group, i)
        for piece in cut
        for group, first, last in hdf5.spans(piece, groups, size.__getitem__)
        for i in range(first, last)
    ]
    assert frames == [(group, i) for group, n in size.items() for i in range(n)]
    whole = hdf5.spans(Piece(path=Path("file.h5")), groups, size.__getitem__)
    assert sum(last - first for _, first, last in whole) == sum(sizes)


def test_a_file_that_changed_in_between() -> None:
    size = {"a": 3, "b": 2}
    for piece in (
        Piece(path=Path("f"), member="a", count=6),
        Piece(path=Path("f"), member="b", first=2, count=1),
        Piece(path=Path("f"), member="c", count=1),
    ):
        with pytest.raises(EutecticError, match="fewer structures than when the file was first scanned"):
            list(hdf5.spans(piece, list(size), size.__getitem__))
