"""What every reader of strangers' pickles needs: a look at the whole of one before Python's own reader sees it.

That reader calls nothing that it is not given, but it trusts lengths: ten bytes that name place 2^32 of the memo make
CPython 3.11 set aside 64 GB. Who reads a pickle here (`pickled_lmdb`, and a checkpoint's archive) asks `pickle_end`
first, and gives the reader stand-ins for whatever the pickle names.
"""

from __future__ import annotations

import pickle
from typing import Any

_OPCODES = [-1] * 256
"""Opcode → bytes that follow it. Those of protocols 0 and 1 and of the registry of extensions are not here, and so are
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
"""Opcode → bytes of a length, which that many bytes follow."""
_PLACES = {b"q"[0]: 1, b"r"[0]: 4}
"""Opcode → bytes of a place in the memo."""
_GLOBAL, _STOP = b"c."


class PlainDictionary(dict[Any, Any]):
    """For `collections.OrderedDict`, which a pickle may give attributes (torch's `_metadata`): they are dropped."""

    def __setstate__(self, _state: object) -> None:
        pass


def pickle_end(data: bytes, start: int = 0) -> int:
    """Where the pickle that begins at `start` ends.

    Its lengths lie within `data`, and its memo is not larger than it is, so that reading it takes memory in proportion
    to its size.

    Raises:
        pickle.UnpicklingError: cut short; a memo larger than the pickle; an instruction of a protocol before 2.
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
