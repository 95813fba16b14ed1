"""The cases of a study: its folds and its numbers of training structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.atoms import EutecticError
from eutectic.data.splits import Split, folds_of
from eutectic.data.store import Store
from eutectic.train.finetune_preparation import split_of
from eutectic.train.settings import FinetuneSettings, parse


@dataclass(frozen=True)
class Case:
    """One fold and one number of training structures.

    Attributes:
        settings: of its runs, except start, seed and swept settings.
        split: the structures.
        size: number of training structures, if the study has several sizes.
        fold: number of the fold, if the study has folds.
    """

    settings: FinetuneSettings
    split: Split
    size: int | None = None
    fold: int | None = None

    @property
    def folder(self) -> str:
        """Part of the folder names of its runs; empty if there is only one case."""
        words = [f"{self.size}" if self.size else "", f"fold{self.fold}" if self.fold is not None else ""]
        return "-".join(word for word in words if word)


def cases_of(
    base: FinetuneSettings, store: Store, *, folds: int | None = None, sizes: Sequence[int] = ()
) -> list[Case]:
    """All cases, smallest size first.

    Args:
        base: settings of every run.
        store: the data.
        folds: of a cross-validation; None keeps the split of `base`.
        sizes: numbers of training structures; training sets are nested, and all have the same test structures.

    Raises:
        EutecticError: fewer than two folds; sizes that are not positive, or larger than the data; folds together with
            a test file; training sets that would not be nested.
    """
    if folds is not None and base.data.test_file is not None:
        raise EutecticError(
            "folds",
            "folds, and a file to test on",
            "only one of them: with folds, each structure is tested",
            "leave one out",
        )
    if sizes and base.data.train is not None:
        raise EutecticError(
            "sizes", f"sizes, and {base.data.train} training structures", "only one of them", "leave out --n-train"
        )
    if wrong := [size for size in sizes if size < 1]:
        raise EutecticError("sizes", f"{wrong[0]}", "positive numbers of training structures", "correct it")
    names = [base.data.split] if folds is None else folds_of(store, folds, base.data.split)
    found = []
    for fold, name in enumerate(names):
        parts: Split | None = None
        in_fold = _with(base, split=name)
        for size in sorted(set(sizes), reverse=True):
            # The largest size determines the numbers of validation and test structures.
            others = {"validation": len(parts.validation), "test": len(parts.test)} if parts is not None else {}
            settings = _with(in_fold, train=size, **others)
            smaller = split_of(store, settings)
            if parts is not None:
                _check_nested(parts, smaller, store)
            parts = smaller
            found.append(Case(settings, smaller, size, None if folds is None else fold))
        if not sizes:
            found.append(Case(in_fold, split_of(store, in_fold), None, None if folds is None else fold))
    return sorted(found, key=lambda case: (case.size or 0, case.fold or 0))


def _with(settings: FinetuneSettings, **data: object) -> FinetuneSettings:
    values = settings.model_dump(mode="json")
    if values["data"]["test_file"] is not None:
        data.pop("test", None)
    values["data"] |= data
    return parse(FinetuneSettings, values, settings.name)


def _check_nested(larger: Split, smaller: Split, store: Store) -> None:
    if np.isin(smaller.train, larger.train).all() and np.array_equal(smaller.test, larger.test):
        return
    raise EutecticError(
        f"sizes, split {larger.name!r} of {store.card.name}",
        f"training sets of {len(larger.train):,} and {len(smaller.train):,} structures that are not nested, or have "
        "different test structures",
        "nested training sets with the same test structures",
        "lower the largest size, or use the split 'random'",
    )
