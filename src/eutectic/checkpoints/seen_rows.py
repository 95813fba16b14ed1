"""Which rows of a store a model has learned from, as its provenance records it.

Provenance holds, for each data set under `pretrained_on`, a list `learned_rows` of records: the store's fingerprint and
the split whose training part was learned from. The rows themselves are computed again from the store: ten million of
them are no more than a name, a number and a seed.
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
        fingerprint: of the store (`Store.fingerprint`).
        split: its name.
        n_train, n_validation, n_test, seed, needs: as `split` takes them.
        rows: number of training rows.
        digest: hash of the training rows, to know whether they were computed again as they were.
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
        """Of `parts`, which `split(store, parts.name, …)` returned for the same arguments."""
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

    def again(self, store: Store) -> np.ndarray | None:
        """(rows,) the rows in the same store; None where this version divides it otherwise."""
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
    """The rows of a store that a model may have learned from, in its own training or in that of the models before it.

    Args:
        provenance: of the model.
        store: perhaps one of those it was trained on.

    Returns:
        Sorted rows, none where the model was trained on other data sets only. None where it is not known, with a
        warning in the log: the model was trained on a data set of this name, and either another version of it or
        without a record (models written by earlier versions, published checkpoints).
    """
    history = list(_records(provenance))
    fingerprint = store.fingerprint()
    if any(
        record is None or record.fingerprint != fingerprint
        for name, record in history
        if _related(store.card.name, name)
    ):
        log.warning(
            "%s: the model was trained on a data set of this name, and it is not known on which of these structures; "
            "errors on them may be too low",
            store.card.name,
        )
        return None
    found = [np.empty(0, dtype=np.int64)]
    for record in {r for _, r in history if r is not None and r.fingerprint == fingerprint}:
        rows = record.again(store)
        if rows is None:
            log.warning("%s: split %r of the model's training cannot be repeated", store.card.name, record.split)
            return None
        found.append(rows)
    return np.unique(np.concatenate(found))


def merged_records(before: Mapping[str, Any], record: LearnedRows) -> list[dict[str, Any]]:
    """`learned_rows` of a data set that a model goes on learning from.

    Args:
        before: the data set's entry in the earlier model's `pretrained_on`; empty for one that is new.
        record: of the training that goes on. An earlier one without records stays unknown, by the provenance of the
            model started from.
    """
    return [*(r for r in before.get("learned_rows", []) if r != record.to_dict()), record.to_dict()]


def _records(provenance: Mapping[str, Any]) -> Iterator[tuple[str, LearnedRows | None]]:
    """Name of the data set and record, of every training in the history of a model; None where it left none."""
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
    """Whether two data sets are the same, or one is part of the other ("spice" and "spice:dipeptides")."""
    return one == other or one.partition(":")[0] == other or one == other.partition(":")[0]


def _digest(rows: np.ndarray) -> str:
    return hashlib.blake2b(np.asarray(rows, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
