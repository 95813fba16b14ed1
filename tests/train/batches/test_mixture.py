"""Mixtures: exact shares, every place once, any place at once."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.atoms import EutecticError
from eutectic.train.batches.mixture import Mixture, _permute

JMP = {"oc20": 100_000_000, "oc22": 8_000_000, "ani1x": 2_000_000, "transition1x": 10_000_000}


def test_the_sizes_of_jmp() -> None:
    mixture = Mixture(JMP)
    assert mixture.places["oc20"] == 100_000_000
    millions = {name: n / 1e6 for name, n in mixture.places.items()}
    assert millions == pytest.approx({"oc20": 100, "oc22": 28.28, "ani1x": 14.14, "transition1x": 31.62}, abs=0.005)
    assert mixture.length / 1e6 == pytest.approx(174.05, abs=0.005)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, math.inf])
def test_the_formula(temperature: float) -> None:
    sizes = {"a": 25, "b": 4, "c": 100}
    mixture = Mixture(sizes, temperature)
    shares = {k: n ** (1 / temperature) for k, n in sizes.items()}
    least = min(shares[k] / n for k, n in sizes.items())
    expected = {k: math.ceil(round(shares[k] / least, 9)) for k in sizes}
    assert mixture.places == expected
    assert mixture.length == sum(expected.values())


def test_square_roots_are_not_rounded_up() -> None:
    assert Mixture({"a": 4, "b": 25, "c": 100}).places == {"a": 20, "b": 50, "c": 100}
    assert Mixture({"a": 49, "b": 49}).places == {"a": 49, "b": 49}


def test_weights() -> None:
    mixture = Mixture({"a": 10, "b": 1000}, weights={"a": 1, "b": 1})
    assert mixture.places == {"a": 1000, "b": 1000}
    assert Mixture({"a": 10, "b": 10}, weights={"a": 3, "b": 1}).places == {"a": 30, "b": 10}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seed=st.integers(0, 2**62),
    epoch=st.integers(0, 9),
)
def test_an_epoch_visits_every_place_once(sizes: list[int], seed: int, epoch: int) -> None:
    mixture = Mixture({str(i): n for i, n in enumerate(sizes)})
    which, row = mixture.at(seed, epoch, np.arange(mixture.length))
    for i, n in enumerate(sizes):
        seen = np.bincount(row[which == i], minlength=n)
        places = mixture.places[str(i)]
        assert len(seen) == n
        assert seen.sum() == places
        # Repetition in turn: no row is seen twice more often than another.
        assert set(seen.tolist()) <= {places // n, -(-places // n)}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 64, 65, 1000, 4097])
def test_a_permutation(length: int) -> None:
    result = _permute(np.arange(length), length, "key")
    np.testing.assert_array_equal(np.sort(result), np.arange(length))


def test_the_same_question_has_the_same_answer_in_any_portions() -> None:
    mixture = Mixture({"a": 500, "b": 60})
    which, row = mixture.at(1, 2, np.arange(mixture.length))
    some = np.array([400, 3, 77, 3])
    again = mixture.at(1, 2, some)
    np.testing.assert_array_equal(again[0], which[some])
    np.testing.assert_array_equal(again[1], row[some])


def test_epochs_and_seeds_are_unrelated() -> None:
    n = 20_000
    orders = [_permute(np.arange(n), n, key) for key in ("0/0", "0/1", "1/0", "1/1")]
    for i, a in enumerate(orders):
        # The neighbours of an order, and any two orders: |r| of independent ones is about 1/√n = 0.007.
        assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.03
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.03
        for b in orders[i + 1 :]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
            assert (a == b).sum() < 10


def test_places_are_spread_evenly() -> None:
    n, parts = 100_000, 50
    first_tenth = _permute(np.arange(n // 10), n, "9/9")
    counts = np.bincount(first_tenth * parts // n, minlength=parts)
    # χ² of 49 degrees of freedom: 95 is beyond 1 in 10 000.
    assert ((counts - 200) ** 2 / 200).sum() < 95


def test_a_billion_structures_answer_at_once() -> None:
    start = time.perf_counter()
    mixture = Mixture({"huge": 10**9, "large": 10**8, "small": 1000})
    which, row = mixture.at(0, 7, np.linspace(0, mixture.length - 1, 1000).astype(np.int64))
    assert time.perf_counter() - start < 1
    assert np.bincount(which, minlength=3)[0] > 600
    assert row.max() < 10**9


def test_the_largest_epoch() -> None:
    mixture = Mixture({"a": 2**39, "b": 2**39}, temperature=1)
    which, row = mixture.at(0, 0, np.array([0, mixture.length - 1]))
    assert mixture.length == 2**40
    assert (row >= 0).all()
    assert set(which.tolist()) <= {0, 1}
    with pytest.raises(EutecticError, match="an epoch of"):
        Mixture({"a": 2**40, "b": 1})


@pytest.mark.parametrize(
    ("sizes", "temperature", "weights", "message"),
    [
        ({}, 2.0, None, "no data set"),
        ({"a": 0}, 2.0, None, "0 training rows"),
        ({"a": 1}, 0.0, None, "temperature 0"),
        ({"a": 1}, math.nan, None, "temperature nan"),
        ({"a": 1, "b": 1}, 2.0, {"a": 1.0}, "one weight for each"),
        ({"a": 1}, 2.0, {"a": -1.0}, "weight -1"),
    ],
)
def test_refusals(sizes: dict[str, int], temperature: float, weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(EutecticError, match=message):
        Mixture(sizes, temperature, weights)


def test_positions_outside() -> None:
    with pytest.raises(IndexError):
        Mixture({"a": 3}).at(0, 0, np.array([3]))


def _drawn(mixture: Mixture) -> np.ndarray:
    """(n_sets,) how often an epoch visits each set, by visiting it."""
    which, _ = mixture.at(5, 1, np.arange(mixture.length))
    return np.bincount(which, minlength=len(mixture.names))


def test_a_cap_makes_a_set_smaller() -> None:
    capped = Mixture({"a": 1000, "b": 100}, caps={"a": 400, "b": 5000})
    assert capped.places == Mixture({"a": 400, "b": 100}).places == {"a": 400, "b": 200}
    assert _drawn(capped).tolist() == [400, 200]
    used = []
    for seed, epoch in ((0, 0), (0, 1), (7, 0)):
        which, row = capped.at(seed, epoch, np.arange(capped.length))
        used.append(np.sort(row[which == 0]))
    # The same 400 of 1000 every time, each once, from all over the set.
    assert len(np.unique(used[0])) == 400
    for other in used[1:]:
        np.testing.assert_array_equal(used[0], other)
    tenths = np.bincount(used[0] // 100, minlength=10)
    assert (tenths > 20).all()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"a": 0.5}, [0.5, 0.375, 0.125]),  # b and c keep their 3 : 1
        ({"a": 0.5, "b": 0.3}, [0.5, 0.3, 0.2]),  # b is over its limit only once a has been held back
        ({"a": 0.9, "c": 1.0}, [0.6, 0.3, 0.1]),  # no limit reached
    ],
)
def test_a_largest_share(limits: dict[str, float], expected: list[float]) -> None:
    mixture = Mixture({"a": 600, "b": 300, "c": 100}, weights={"a": 6, "b": 3, "c": 1}, max_shares=limits)
    if "c" not in limits:
        mixture_of = Mixture({"a": 600, "b": 300, "c": 100}, 1.0, max_shares=limits)
        assert mixture_of.places == mixture.places
    assert _drawn(mixture) / mixture.length == pytest.approx(expected, abs=2 / mixture.length)
    least = min(n / size for n, size in zip(mixture.places.values(), mixture.sizes.values(), strict=True))
    assert 1 <= least < 1.02  # every structure of the set repeated least is seen once


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    weights=st.none() | st.lists(st.floats(0.2, 5), min_size=6, max_size=6),
    temperature=st.floats(0.5, 10),
    cap=st.integers(1, 150),
    share=st.floats(0.3, 1),
)
def test_the_exact_distribution_whatever_is_asked(
    sizes: list[int], weights: list[float] | None, temperature: float, cap: int, share: float
) -> None:
    names = [str(i) for i in range(len(sizes))]
    mixture = Mixture(
        dict(zip(names, sizes, strict=True)),
        temperature,
        None if weights is None else dict(zip(names, weights, strict=False)),
        caps={"0": cap},
        max_shares={"0": share} if len(sizes) > 1 else None,
    )
    assert _drawn(mixture).tolist() == list(mixture.places.values())
    assert mixture.sizes["0"] == min(cap, sizes[0])
    if len(sizes) > 1:
        # Places are rounded up to whole ones, of every set.
        assert mixture.places["0"] <= share * mixture.length + 1
    which, row = mixture.at(1, 0, np.arange(mixture.length))
    for i, name in enumerate(names):
        seen = np.bincount(row[which == i], minlength=sizes[i])
        assert (seen > 0).sum() == mixture.sizes[name]
        assert np.ptp(seen[seen > 0]) <= 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"caps": {"x": 3}}, "a cap for 'x'"),
        ({"caps": {"a": 0}}, "cap 0"),
        ({"max_shares": {"a": 1.5}}, "share 1.5"),
        ({"max_shares": {"a": 0.3, "b": 0.3}}, "add up to 0.6"),
    ],
)
def test_limits_that_are_refused(limits: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(EutecticError, match=message):
        Mixture({"a": 5, "b": 5}, **limits)  # type: ignore[arg-type]


def test_a_billion_structures_take_no_memory() -> None:
    """Four sets of 10^9, one of them capped: as a function, the order costs what is asked for and nothing else."""
    import tracemalloc

    tracemalloc.start()
    mixture = Mixture(dict.fromkeys("abcd", 10**9), caps={"d": 10**8})
    assert mixture.length == 3 * 10**9 + math.ceil(10**8 * math.sqrt(10))
    which, row = mixture.at(0, 3, mixture.length - 1 - np.arange(32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert row.max() < 10**9
    assert set(which.tolist()) <= {0, 1, 2, 3}
