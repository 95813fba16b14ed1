"""Errors that a user can fix, always with the same four parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EutecticError(Exception):
    """An invalid input: where it is, what was given, what was expected, and how to fix it.

    Args:
        where: the file, setting, structure or command that has the problem.
        given: the invalid value.
        expected: valid values.
        fix: what the user can do.
    """

    def __init__(self, where: str, given: str, expected: str, fix: str) -> None:
        self.where, self.given, self.expected, self.fix = where, given, expected, fix
        super().__init__(f"{where}: {given}; expected {expected}; {fix}")

    def __reduce__(self) -> tuple[type[EutecticError], tuple[str, str, str, str]]:
        # Worker processes pickle their errors; Exception would keep only one argument.
        return type(self), (self.where, self.given, self.expected, self.fix)


class Interrupted(BaseException):
    """The user interrupted the program (Ctrl-C, SIGTERM). Progress is saved; `resume` says how to continue.

    Like KeyboardInterrupt, not an `Exception`: code that continues after any error, such as a reader that skips bad
    files, must not continue after this.
    """

    def __init__(self, resume: str) -> None:
        self.resume = resume
        super().__init__(resume)


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to a word, ignoring case; None if none is close."""
    names = {name.lower(): name for name in reversed(list(known))}
    near = difflib.get_close_matches(word.lower(), names, 1)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "name one of these") -> str:
    """The fix for a wrong name, as the last part of an error: the closest known name, or else `otherwise`."""
    near = suggest(word, known)
    return otherwise if near is None else f"did you mean {near!r}?"
