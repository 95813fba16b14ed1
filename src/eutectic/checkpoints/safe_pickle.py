"""Read files written by `torch.save` without executing code in them.

Such a file is a zip archive with one pickle and one record of plain bytes per storage. Unpickling normally calls any
function that the pickle names. Here names are not resolved: a tensor becomes a reference to its data (`StoredTensor`),
an ordered dictionary becomes a dictionary, and every other class or function becomes a stand-in that can be called,
filled and given a state, but does nothing. Lengths and offsets in the pickle are first checked against its size
(`eutectic.data.formats.pickles`). Tensor data are read only on request, which is a quarter of a checkpoint with
optimiser states.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eutectic.atoms import EutecticError
from eutectic.data.formats.pickles import PlainDictionary, pickle_end

STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
"""Name of a storage class in `torch` → dtype."""


class Storage(NamedTuple):
    """A record of the archive: `length` values of one dtype."""

    key: str
    dtype: torch.dtype
    length: int


class StoredTensor(NamedTuple):
    """A tensor whose data are still in the file. A named tuple, since a pickle cannot modify it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Foreign:
    """Stand-in for any other name in a pickle, with one subclass per name. All operations on it do nothing."""

    origin = ""

    def __new__(cls, *_args: object, **_keywords: object) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_keywords: object) -> None:
        pass

    def __call__(self, *_args: object, **_keywords: object) -> Foreign:
        return self

    def __setstate__(self, _state: object) -> None:
        pass

    # Subclasses of dict, list and set are filled after construction.
    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        pass

    def extend(self, _values: object) -> None:
        pass

    def add(self, _value: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.origin}, not opened>"


class Kept(Foreign):
    """A stand-in that keeps its constructor arguments and its state.

    Attributes:
        arguments: constructor arguments.
        state: usually the dictionary of its attributes; None if it has none.
    """

    def __new__(cls, *arguments: object, **_keywords: object) -> Kept:
        kept = object.__new__(cls)
        kept.arguments, kept.state = arguments, None
        return kept

    arguments: tuple[object, ...]
    state: object

    def __setstate__(self, state: object) -> None:
        self.state = state


# Classes, not functions, since a pickle can set attributes on a function that it names, but cannot modify these.
class _Rebuilt:
    """For `torch._utils._rebuild_tensor_v2`."""

    def __new__(  # type: ignore[misc]
        cls, storage: object, offset: object, shape: object, strides: object, *_rest: object
    ) -> StoredTensor:
        if not isinstance(storage, Storage) or not all(_is_size(n) for n in (offset, *_tuple(shape), *_tuple(strides))):
            raise pickle.UnpicklingError("a tensor that is not built in PyTorch's way")
        return StoredTensor(storage, offset, _tuple(shape), _tuple(strides))  # type: ignore[arg-type]

    def __setstate__(self, _state: object) -> None:
        pass


class _Parameter:
    """For `torch._utils._rebuild_parameter`: returns the tensor."""

    def __new__(cls, tensor: object, *_rest: object) -> object:  # type: ignore[misc]
        return tensor

    def __setstate__(self, _state: object) -> None:
        pass


KNOWN = {
    ("collections", "OrderedDict"): PlainDictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuilt,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
}


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _tuple(value: object) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise pickle.UnpicklingError("a tensor whose shape is not a tuple")
    return value


class _Unpickler(pickle.Unpickler):
    """An unpickler that never imports, and thus never runs, what the pickle names."""

    def __init__(self, file: BytesIO, stand_in: type[Foreign]) -> None:
        super().__init__(file)
        self.stand_in = stand_in
        self.foreign: dict[str, type[Foreign]] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and global_name in STORAGES:
            return STORAGES[global_name]
        if (module_name, global_name) in KNOWN:
            return KNOWN[module_name, global_name]
        origin = f"{module_name}.{global_name}"
        if origin not in self.foreign:
            self.foreign[origin] = type(self.stand_in.__name__, (self.stand_in,), {"origin": origin})
        return self.foreign[origin]

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(length)) if length >= 0:
                return Storage(key, dtype, length)
        raise pickle.UnpicklingError("a reference to something other than a storage")


class Archive:
    """An open file.

    Args:
        path: file written by `torch.save` (PyTorch 1.6 or later).
        keep_objects: keep the attributes of objects, for a file that holds a whole module.

    Attributes:
        content: the saved object, with `StoredTensor` for tensors and `Foreign` (`Kept`, with `keep_objects`) for
            everything that is not plain data.
        foreign: names of classes and functions that were not opened, in order of first appearance.

    Raises:
        EutecticError: the file is missing, has another format, or is truncated or damaged.
    """

    def __init__(self, path: Path, *, keep_objects: bool = False) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise self._unreadable(error) from error
        try:
            pickles = [name for name in self._zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise self._unreadable(f"{len(pickles)} records named data.pkl")
            self._prefix = pickles[0].removesuffix("data.pkl")
            if f"{self._prefix}byteorder" in self._zip.namelist() and self._bytes("byteorder") != b"little":
                raise self._unreadable("numbers in big-endian order")
            data = self._bytes("data.pkl")
            unpickler = _Unpickler(BytesIO(data), Kept if keep_objects else Foreign)
            # A damaged pickle can raise any exception.
            try:
                pickle_end(data)
                self.content: object = unpickler.load()
            except Exception as error:
                raise self._unreadable(error) from error
            self.foreign = tuple(unpickler.foreign)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor's data into a new contiguous tensor.

        Raises:
            EutecticError: data are missing.
        """
        storage, offset, shape, strides = stored
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # The second condition prevents strides of zero from expanding a few bytes to a large tensor.
        if math.prod(shape) and (last >= storage.length or math.prod(shape) > storage.length):
            raise self._unreadable(f"a tensor of shape {shape} in a record of {storage.length} numbers")
        if not math.prod(shape):
            return torch.zeros(shape, dtype=storage.dtype)
        data = self._bytes(f"data/{storage.key}")
        if len(data) != storage.length * storage.dtype.itemsize:
            raise self._unreadable(f"record data/{storage.key} of {len(data)} bytes for {storage.length} numbers")
        return torch.frombuffer(bytearray(data), dtype=storage.dtype).as_strided(shape, strides, offset).clone()

    def _bytes(self, name: str) -> bytes:
        try:
            record = self._zip.getinfo(self._prefix + name)
            # PyTorch does not compress, so an honest record is never larger than the file.
            if record.compress_type != zipfile.ZIP_STORED:
                raise self._unreadable(f"record {name} is compressed")
            return self._zip.read(record)
        except (OSError, zipfile.BadZipFile, KeyError, EOFError, RuntimeError, NotImplementedError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, why: object) -> EutecticError:
        reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why)
        return EutecticError(
            str(self.path),
            f"cannot be read ({reason})",
            "a complete file written by torch.save of PyTorch 1.6 or later",
            "check the path and the file's size; if it is truncated, download or copy it again",
        )
