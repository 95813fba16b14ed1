"""Making data sets: the embedded ones, four to pre-train on and four to fine-tune to, and one that is not embedded.

`import eutectic.generate` needs none of the packages of the extra `generate`; making labels does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.generate import bulk, crystals, dynamics, metals, molecules, oxides, qm9_sample, reactions
from eutectic.generate.engine import Generator, run
from eutectic.generate.qm9 import reserved_for_finetuning

__all__ = [
    "FINETUNING",
    "GENERATORS",
    "NOT_EMBEDDED",
    "PRETRAINING",
    "Generator",
    "generate",
    "reserved_for_finetuning",
]

PRETRAINING = ("metal_slabs", "oxide_slabs", "molecules", "reactions")
"""The four embedded domains that are pre-trained on jointly."""

FINETUNING = ("md_aspirin", "md_alanine_dipeptide", "qm9_sample", "crystals")
"""What is fine-tuned to, and never pre-trained on."""

NOT_EMBEDDED = ("bulk",)
"""To pre-train on besides, made when asked for: the package would become too large with it."""

GENERATORS: dict[str, Generator] = {
    g.card.name: g
    for g in (
        metals.GENERATOR,
        oxides.GENERATOR,
        molecules.GENERATOR,
        reactions.GENERATOR,
        *dynamics.GENERATORS,
        qm9_sample.GENERATOR,
        crystals.GENERATOR,
        bulk.GENERATOR,
    )
}
"""Every data set that can be made here, by name."""


def generate(
    names: Sequence[str] | None,
    out: Path,
    *,
    scale: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Make data sets, one after another; an interrupted call goes on where it was when repeated.

    Args:
        names: which; None is all of them.
        out: a folder; each store becomes `out/<name>`.
        scale: share of each set's items; the items of a smaller scale are the first of a larger one, and are
            taken from the embedded store (if there is one), or a smaller one at the same place, rather than made again.
        seed: fixes every structure, whatever the number of workers.
        workers: processes, of one thread each; None is one per core.
        overwrite: replace stores that were made with another scale or seed.

    Returns:
        Name → number of structures in the store.

    Raises:
        EutecticError: an unknown name; a setting out of range; an extra that is not installed; a store of
            another kind in the way.
        Interrupted: Ctrl-C; finished work is kept.
    """
    names = list(GENERATORS) if names is None else list(dict.fromkeys(names))
    for name in names:
        if name not in GENERATORS:
            raise EutecticError(
                "data generate",
                f"no data set {name!r}",
                f"one of {', '.join(GENERATORS)}",
                did_you_mean(name, GENERATORS),
            )
    if scale <= 0:
        raise EutecticError(
            "data generate", f"scale {scale:g}", "a number above 0", "1 makes each set in its usual size"
        )
    if workers is not None and workers < 1:
        raise EutecticError("data generate", f"{workers} workers", "at least 1", "leave it out for one per core")
    for name in names:
        GENERATORS[name].check_extras()
    workers = workers or os.cpu_count() or 1
    return {
        name: run(GENERATORS[name], Path(out), scale=scale, seed=seed, workers=workers, overwrite=overwrite)
        for name in names
    }
