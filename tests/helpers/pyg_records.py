"""Files in the layout of the Open Catalyst Project, written without PyTorch Geometric."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

LAYOUTS = ("old", "new")


@contextmanager
def _torch_geometric() -> Iterator[dict[str, type]]:
    """Classes with the names of PyTorch Geometric's, importable while files are written."""
    classes: dict[str, type] = {}
    data = "torch_geometric.data"
    modules = {name: types.ModuleType(name) for name in ("torch_geometric", data, f"{data}.data", f"{data}.storage")}
    for name in ("Data", "DataEdgeAttr", "DataTensorAttr"):
        classes[name] = type(name, (), {"__module__": "torch_geometric.data.data"})
        setattr(modules["torch_geometric.data.data"], name, classes[name])
    classes["GlobalStorage"] = type("GlobalStorage", (), {"__module__": "torch_geometric.data.storage"})
    modules["torch_geometric.data.storage"].GlobalStorage = classes["GlobalStorage"]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def pickled(fields: dict[str, Any], layout: str = "new") -> bytes:
    """A `Data` with these fields, as PyTorch Geometric before ("old") or after 2.0 pickles it."""
    with _torch_geometric() as classes:
        data = classes["Data"]()
        if layout == "old":
            data.__dict__.update(x=None, edge_attr=None, normal=None, face=None, **fields)
        else:
            data._edge_attr_cls, data._tensor_attr_cls = classes["DataEdgeAttr"], classes["DataTensorAttr"]
            store = classes["GlobalStorage"]()
            store._mapping, store._parent = fields, data
            data._store = store
        return pickle.dumps(data, protocol=-1)


def write_lmdb(path: Path, records: Sequence[bytes], length: object = "right") -> Path:
    """Records under "0", "1", …, and their number under "length" (None: no such entry)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24)
    with environment, environment.begin(write=True) as transaction:
        for key, record in enumerate(records):
            transaction.put(str(key).encode(), record)
        if length is not None:
            number = len(records) if length == "right" else length
            transaction.put(b"length", pickle.dumps(number, protocol=-1))
    return path


def write_aselmdb(path: Path, rows: Sequence[dict[str, Any] | None]) -> Path:
    """Rows 1, 2, … (None: a row that was deleted)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deleted = [number for number, row in enumerate(rows, start=1) if row is None]
    environment = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 24)
    with environment, environment.begin(write=True) as transaction:
        for number, row in enumerate(rows, start=1):
            if row is not None:
                transaction.put(str(number).encode(), zlib.compress(json.dumps(row).encode()))
        transaction.put(b"nextid", zlib.compress(json.dumps(len(rows) + 1).encode()))
        if deleted:
            transaction.put(b"deleted_ids", zlib.compress(json.dumps(deleted).encode()))
    return path


NUMBERS = np.array([29, 29, 29, 8])
POSITIONS = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 2.5, 2.0], [1.0, 1.0, 4.0]])
CELL = np.array([[5.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.0, 0.0, 20.0]])
TAGS = np.array([0, 0, 1, 2])
FIXED = np.array([1, 1, 0, 0])
FORCES = np.array([[0.5, 0.0, 0.0], [0.0, -0.25, 0.0], [0.0, 0.0, 0.125], [-0.5, 0.25, -0.125]])


def frame(**changed: Any) -> dict[str, Any]:
    """Three Cu and an O, as fairchem's scripts write a structure of S2EF; None takes a field away."""
    fields = {
        "edge_index": torch.zeros((2, 50), dtype=torch.int64),
        "cell_offsets": torch.zeros((50, 3), dtype=torch.int64),
        "y": -1.5,
        "pos": torch.tensor(POSITIONS, dtype=torch.float32),
        "cell": torch.tensor(CELL, dtype=torch.float32).reshape(1, 3, 3),
        "atomic_numbers": torch.tensor(NUMBERS, dtype=torch.float32),
        "natoms": 4,
        "force": torch.tensor(FORCES, dtype=torch.float32),
        "fixed": torch.tensor(FIXED, dtype=torch.float32),
        "tags": torch.tensor(TAGS),
        "sid": torch.tensor([77]),
        "fid": torch.tensor([0]),
        "id": "0_0",
        **changed,
    }
    return {name: value for name, value in fields.items() if value is not None}
