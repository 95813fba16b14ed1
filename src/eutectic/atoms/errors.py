"""One kind of error for everything a user can put right, always in the same four parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EutecticError(Exception):
    """Something a user gave cannot be used: where; what was given; what was expected; what to do.

    Args:
        where: the file, setting, structure or command the trouble is in.
        given: what was found there.
        expected: what would have been accepted.
        fix: what the user can do now.
    """

    def __init__(self, where: str, given: str, expected: str, fix: str) -> None:
        self.where, self.given, self.expected, self.fix = where, given, expected, fix
        super().__init__(f"{where}: {given}; expected {expected}; {fix}")

    def __reduce__(self) -> tuple[type[EutecticError], tuple[str, str, str, str]]:
        # A worker process hands its error to its parent by pickling; Exception would keep one argument.
        return type(self), (self.where, self.given, self.expected, self.fix)


class Interrupted(Exception):
    """The user asked to stop (Ctrl-C, SIGTERM). What was done so far is saved; `resume` says how to go on."""

    def __init__(self, resume: str) -> None:
        self.resume = resume
        super().__init__(resume)


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a word, whatever the case; None if none is near."""
    names = {name.lower(): name for name in reversed(list(known))}
    near = difflib.get_close_matches(word.lower(), names, 1)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "name one of these") -> str:
    """How to put a wrong name right, for the last part of an error: the nearest known name, or else `otherwise`."""
    near = suggest(word, known)
    return otherwise if near is None else f"did you mean {near!r}?"
