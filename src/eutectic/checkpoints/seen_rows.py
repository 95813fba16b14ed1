"""The rows of a store that a model was trained on, from its provenance.

For each data set under `pretrained_on`, the provenance has a list `learned_rows` of records: the store's fingerprint
and the split whose training part was used. The rows themselves are recomputed from the store, so that a record is
small even for ten million rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.splits import Split, split
from eutectic.data.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LearnedRows:
    """The training part of one split of one store.

    Attributes:
        dataset: name on the store's card.
        fingerprint: fingerprint of the store (`Store.fingerprint`).
        split: name of the split.
        n_train, n_validation, n_test, seed, needs: arguments of `split`.
        rows: number of training rows.
        digest: hash of the training rows, to verify recomputed rows.
    """

    dataset: str
    fingerprint: str
    split: str
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    seed: int = 0
    needs: tuple[str, ...] = ()
    rows: int
    digest: str

    @classmethod
    def of(
        cls,
        store: Store,
        parts: Split,
        *,
        n_train: int | None = None,
        n_validation: int | None = None,
        n_test: int | None = None,
        seed: int = 0,
        needs: tuple[str, ...] = (),
    ) -> LearnedRows:
        """Record of `parts`, as returned by `split(store, parts.name, …)` with the same arguments."""
        return cls(
            dataset=store.card.name,
            fingerprint=store.fingerprint(),
            split=parts.name,
            n_train=n_train,
            n_validation=n_validation,
            n_test=n_test,
            seed=seed,
            needs=needs,
            rows=len(parts.train),
            digest=_digest(parts.train),
        )

    def recompute(self, store: Store) -> np.ndarray | None:
        """(rows,) the training rows of the same store; None if this version splits it differently."""
        try:
            parts = split(
                store,
                self.split,
                n_train=self.n_train,
                n_validation=self.n_validation,
                n_test=self.n_test,
                seed=self.seed,
                needs=self.needs,
            )
        except EutecticError:
            return None
        return parts.train if _digest(parts.train) == self.digest else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "needs": list(self.needs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearnedRows:
        """The inverse of `to_dict`."""
        return cls(**{**values, "needs": tuple(values["needs"])})


def seen_rows(provenance: Mapping[str, Any], store: Store) -> np.ndarray | None:
    """The rows of a store that a model was trained on, in its own training or that of the models it started from.

    Args:
        provenance: provenance of the model.
        store: any store.

    Returns:
        Sorted rows, empty if the model was trained only on other data sets. None if unknown, with a warning in the log:
        the model was trained on a data set with this name, but on another version of it or without a record (models
        written by earlier versions, published checkpoints).
    """
    history = list(_records(provenance))
    fingerprint = store.fingerprint()
    if any(
        record is None or record.fingerprint != fingerprint
        for name, record in history
        if _related(store.card.name, name)
    ):
        log.warning(
            "%s: the model was trained on a data set with this name, but it is unknown on which structures; errors may "
            "be too low",
            store.card.name,
        )
        return None
    seen = [np.empty(0, dtype=np.int64)]
    for record in {r for _, r in history if r is not None and r.fingerprint == fingerprint}:
        rows = record.recompute(store)
        if rows is None:
            log.warning("%s: split %r of the model's training cannot be reproduced", store.card.name, record.split)
            return None
        seen.append(rows)
    return np.unique(np.concatenate(seen))


def merged_records(before: Mapping[str, Any], record: LearnedRows) -> list[dict[str, Any]]:
    """`learned_rows` of a data set after further training.

    Args:
        before: the data set's entry in `pretrained_on` of the model started from; empty for a new data set.
        record: record of the further training. If the model started from has no records, its rows stay unknown, since
            its provenance is kept.
    """
    return [*(r for r in before.get("learned_rows", []) if r != record.to_dict()), record.to_dict()]


def _records(provenance: Mapping[str, Any]) -> Iterator[tuple[str, LearnedRows | None]]:
    """Data set name and record of every training in the history of a model; None for a missing record."""
    for name, entry in provenance.get("pretrained_on", {}).items():
        yield from _of_entry(name, entry)
    if "finetuned_on" in provenance:
        yield from _of_entry(str(provenance["finetuned_on"]), provenance)
    for value in provenance.values():
        if isinstance(value, Mapping):
            yield from _records(value)


def _of_entry(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, LearnedRows | None]]:
    if not entry.get("learned_rows"):
        yield name, None
    for values in entry.get("learned_rows", []):
        record = LearnedRows.from_dict(values)
        yield record.dataset, record


def _related(one: str, other: str) -> bool:
    """Whether two data sets are the same, or one is a subset of the other ("spice" and "spice:dipeptides")."""
    return one == other or one.partition(":")[0] == other or one == other.partition(":")[0]


def _digest(rows: np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(rows, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
