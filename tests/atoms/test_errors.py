"""Errors have four parts and survive the way back from a worker process."""

from __future__ import annotations

import pickle

from eutectic.atoms import EutecticError, Interrupted, did_you_mean, suggest


def test_four_parts_in_one_line() -> None:
    error = EutecticError("train.xyz", "no atoms", "at least one", "repair the file")
    assert str(error) == "train.xyz: no atoms; expected at least one; repair the file"


def test_pickles_whole() -> None:
    error = pickle.loads(pickle.dumps(EutecticError("a", "b", "c", "d")))
    assert (error.where, error.given, error.expected, error.fix) == ("a", "b", "c", "d")
    assert str(error) == "a: b; expected c; d"


def test_interrupted_says_how_to_go_on() -> None:
    error = pickle.loads(pickle.dumps(Interrupted("eutectic resume runs/one")))
    assert error.resume == "eutectic resume runs/one"


def test_the_nearest_name() -> None:
    assert suggest("Enrgy", ["forces", "energy"]) == "energy"
    assert suggest("energy", ["Energy", "forces"]) == "Energy"
    assert suggest("xyz", ["forces", "energy"]) is None
    assert did_you_mean("force", {"forces": 1, "energy": 2}) == "did you mean 'forces'?"
    assert did_you_mean("xyz", ["forces"]) == "name one of these"
    assert did_you_mean("xyz", ["forces"], "known: forces") == "known: forces"
