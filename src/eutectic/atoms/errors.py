"""One kind of error for everything a user can put right, always in the same four parts."""

from __future__ import annotations


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
