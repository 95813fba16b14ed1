"""Validate an untrusted pickle before it is passed to Python's unpickler.

A restricted unpickler calls only allowed functions, but it trusts lengths: ten bytes that refer to memo index 2^32 make
CPython 3.11 allocate 64 GB. Readers of pickles (`pickled_lmdb`, and checkpoint archives) therefore call `pickle_end`
first, and replace all classes that a pickle names by stand-ins.
"""

from __future__ import annotations

import pickle
from typing import Any

_OPCODES = [-1] * 256
"""Opcode → number of argument bytes. Opcodes of protocols 0 and 1 and of the extension registry are missing and thus
refused: nothing written since Python 3.0 has them."""
for _width, _codes in {
    0: b"(.01N]ae}su)tRbQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94",
    1: b"Kh\x80",
    2: b"M",
    4: b"Jj",
    8: b"G\x95",
}.items():
    for _code in _codes:
        _OPCODES[_code] = _width
_COUNTED = {b"C"[0]: 1, b"B"[0]: 4, 0x8E: 8, 0x96: 8, 0x8C: 1, b"X"[0]: 4, 0x8D: 8, 0x8A: 1, 0x8B: 4}
"""Opcode → width in bytes of a length field, followed by that many bytes."""
_PLACES = {b"q"[0]: 1, b"r"[0]: 4}
"""Opcode → width in bytes of a memo index."""
_GLOBAL, _STOP = b"c."


class PlainDictionary(dict[Any, Any]):
    """Stand-in for `collections.OrderedDict`; drops attributes set by the pickle (torch's `_metadata`)."""

    def __setstate__(self, _state: object) -> None:
        pass


def pickle_end(data: bytes, start: int = 0) -> int:
    """End of the pickle that begins at `start`.

    Checks that its lengths are within `data` and that its memo is not larger than the pickle, so that the memory for
    reading it is proportional to its size.

    Raises:
        pickle.UnpicklingError: truncated; a memo larger than the pickle; an opcode of a protocol before 2.
    """
    at, size = start, len(data)
    while at < size:
        code = data[at]
        width = _OPCODES[code]
        at += 1
        if width >= 0:
            if code == _STOP:
                return at
            at += width
        elif code in _COUNTED:
            width = _COUNTED[code]
            at += width + int.from_bytes(data[at : at + width], "little")
        elif code in _PLACES:
            width = _PLACES[code]
            if int.from_bytes(data[at : at + width], "little") > size:
                raise pickle.UnpicklingError("a memo larger than the pickle")
            at += width
        elif code == _GLOBAL:
            newline = data.find(b"\n", data.find(b"\n", at) + 1)
            if newline < at:
                break
            at = newline + 1
        else:
            raise pickle.UnpicklingError(f"an instruction (byte {code}) that no writer since Python 3.0 uses")
    raise pickle.UnpicklingError("cut short")
