"""Temperature sampling of data sets of very different sizes, in constant memory.

As in JMP (Shoghi et al., ICLR 2024, arXiv:2310.16802), data set i has a share ∝ n_i^(1/T) of an epoch. The shares are
exact, not random: set i has ceil(n_i f_i) places, with f_i such that the least repeated set is seen once. Every place
is visited once, in a pseudo-random order computed from (seed, epoch, position) in constant memory, so that a run can
resume anywhere, on any number of processes.

Two options limit a set: `caps`, the number of its structures that are used (always the same ones, spread evenly over
the set), and `max_shares`, its share of the epoch (the ratios of the other sets are kept).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from eutectic.atoms import EutecticError

MAX_LENGTH = 2**40
ROUNDS = 6


class Mixture:
    """The order in which an epoch visits the rows of several data sets.

    Args:
        sizes: data set → number of training rows n_i.
        temperature: T of p_i ∝ n_i^(1/T): 1 is proportional, 2 is JMP's, infinity is uniform over data sets.
        weights: data set → relative share of the epoch, instead of the temperature.
        caps: data set → maximum number of its structures that are used.
        max_shares: data set → maximum share of an epoch, in (0, 1].

    Attributes:
        names: the data sets, in the order of `sizes`; `at` returns positions in it.
        sizes: data set → number of structures used.
        places: data set → places in one epoch, ceil(n_i f_i) ≥ n_i.
        length: places in one epoch.

    Raises:
        EutecticError: no data set, or an empty one; a temperature, weight or cap that is not positive; weights or caps
            of unknown data sets; shares that cannot fill an epoch; an epoch of more than 2^40 places.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        temperature: float | int = 2.0,
        weights: Mapping[str, float | int] | None = None,
        *,
        caps: Mapping[str, int] | None = None,
        max_shares: Mapping[str, float | int] | None = None,
    ) -> None:
        _check(sizes, temperature, weights)
        _check_limits(sizes, caps or {}, max_shares or {})
        self.names = tuple(sizes)
        self.sizes = {name: min(n, (caps or {}).get(name, n)) for name, n in sizes.items()}
        self.temperature, self.weights = temperature, weights and dict(weights)
        rows = np.array([self.sizes[name] for name in self.names], dtype=np.int64)
        if weights is not None:
            shares = np.array([weights[name] for name in self.names], dtype=np.float64)
        else:
            shares = (rows / rows.max()) ** (1.0 / temperature)
        if max_shares:
            shares = _limited(shares, np.array([max_shares.get(name, 1.0) for name in self.names]))
        factors = shares / rows
        factors /= factors.min()
        # Rounding: 10.000000001 must not become 11 places.
        places = [math.ceil(n * f * (1.0 - 1e-12)) for n, f in zip(rows.tolist(), factors, strict=True)]
        self.places = dict(zip(self.names, places, strict=True))
        self.length = sum(places)
        if self.length > MAX_LENGTH:
            raise EutecticError(
                "mixture",
                f"an epoch of {self.length:.3g} places",
                f"at most {MAX_LENGTH:.3g}",
                "raise the smallest weight or lower the temperature",
            )
        self._rows = rows
        self._ends = np.cumsum(places)
        self._capped = [(i, sizes[name]) for i, name in enumerate(self.names) if self.sizes[name] < sizes[name]]

    def at(
        self, seed: int, epoch: int, positions: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Data sets and rows at given positions of an epoch.

        Args:
            seed: of the run.
            epoch: from 0; each has its own order.
            positions: (n,) in [0, length).

        Returns:
            (n,) data set, as a position in `names`, and (n,) row in it. A set with more places than rows cycles
            through its rows: the numbers of visits of two rows differ by at most one.

        Raises:
            IndexError: a position outside the epoch.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and (positions.min() < 0 or positions.max() >= self.length):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of an epoch of {self.length} places")
        place = _permute(positions, self.length, f"{seed}/{epoch}")
        which = np.searchsorted(self._ends, place, side="right")
        offset = place - (self._ends[which] - np.array(list(self.places.values()))[which])
        row = offset % self._rows[which]
        for i, size in self._capped:
            # The structures used do not depend on the seed: a capped set is a fixed data set.
            of_set = np.flatnonzero(which == i)
            row[of_set] = _permute(row[of_set], size, f"cap/{self.names[i]}")
        return which.astype(np.int64), row


def _check(sizes: Mapping[str, int], temperature: float | int, weights: Mapping[str, float | int] | None) -> None:
    if not sizes:
        raise EutecticError("mixture", "no data set", "at least one", "name the data sets to train on")
    for name, size in sizes.items():
        if size < 1:
            raise EutecticError(
                f"mixture, {name}", f"{size} training rows", "at least one", "check its split and its filters"
            )
    if not temperature > 0:
        raise EutecticError(
            "mixture", f"temperature {temperature}", "a positive number", "use 2 (JMP) or 1 (proportional)"
        )
    if weights is None:
        return
    if set(weights) != set(sizes):
        raise EutecticError(
            "mixture",
            f"weights for {', '.join(weights)}",
            f"one weight for each of {', '.join(sizes)}",
            "name every data set once",
        )
    for name, weight in weights.items():
        if not 0 < weight < math.inf:
            raise EutecticError(
                f"mixture, {name}", f"weight {weight}", "a positive number", "leave the data set out instead"
            )


def _check_limits(sizes: Mapping[str, int], caps: Mapping[str, int], max_shares: Mapping[str, float | int]) -> None:
    for kind, limits in (("cap", caps), ("share", max_shares)):
        for name, value in limits.items():
            if name not in sizes:
                raise EutecticError(
                    "mixture", f"a {kind} for {name!r}", f"one of {', '.join(sizes)}", "choose a set of the mixture"
                )
            if not (1 <= value < math.inf if kind == "cap" else 0 < value <= 1):
                expected = "at least one structure" if kind == "cap" else "a share above 0 and at most 1"
                raise EutecticError(f"mixture, {name}", f"{kind} {value}", expected, "leave out the data set instead")


def _limited(shares: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Normalised shares, none above its limit; those below their limits keep their ratios to each other.

    Raises:
        EutecticError: the limits add up to less than an epoch.
    """
    if limits.sum() < 1.0 - 1e-12:
        raise EutecticError(
            "mixture",
            f"maximum shares that add up to {limits.sum():.3g}",
            "at least 1, since an epoch cannot be filled otherwise",
            "raise max_share of a data set, or leave it out for one of them",
        )
    shares = shares / shares.sum()
    held = np.zeros(len(shares), dtype=bool)
    while (over := (shares > limits) & ~held).any():
        held |= over
        shares = np.where(held, limits, shares)
        free = shares[~held].sum()
        if free > 0:
            shares[~held] *= (1.0 - limits[held].sum()) / free
    return shares


def _permute(values: np.ndarray, length: int, key: str) -> np.ndarray:
    """A keyed permutation of [0, length).

    A Feistel network permutes the 2^(2h) ≥ length numbers of 2h bits for any round function; values outside
    [0, length) are permuted again until they are inside ("cycle walking"; Black and Rogaway, CT-RSA 2002), which keeps
    it a permutation. Fewer than four passes are needed on average.
    """
    half = np.uint64(max(1, math.ceil((length - 1).bit_length() / 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype="<u8")

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (_scramble(right + round_key) & mask)
        return (left << half) | right

    result = network(values.astype(np.uint64))
    while (outside := np.flatnonzero(result >= np.uint64(length))).size:
        result[outside] = network(result[outside])
    return result.astype(np.int64)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
