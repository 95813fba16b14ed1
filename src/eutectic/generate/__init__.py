"""Generate data sets: the embedded ones (four for pre-training, four for fine-tuning) and one that is not embedded.

`import eutectic.generate` does not need the packages of the extra `generate`; computing labels does.
"""

from __future__ import annotations

import math
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
"""The four embedded domains for joint pre-training."""

FINETUNING = ("md_aspirin", "md_alanine_dipeptide", "qm9_sample", "crystals")
"""The embedded data sets for fine-tuning, never used in pre-training."""

NOT_EMBEDDED = ("bulk",)
"""More pre-training data, generated on request: too large to ship in the package."""

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
"""All generators by name."""


def generate(
    names: Sequence[str] | None,
    out: Path,
    *,
    scale: float = 1.0,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Generate data sets, one after another. An interrupted call resumes when repeated.

    Args:
        names: data sets to generate; None is all of them.
        out: output folder; each store is written to `out/<name>`.
        scale: fraction of each set's items; the items of a smaller scale are the first of a larger one, and are copied
            from the embedded store (if there is one), or a smaller one in the same folder, rather than computed again.
        seed: random seed; structures do not depend on the number of workers.
        workers: number of processes, of one thread each; None is one per core.
        overwrite: replace stores made with another scale or seed.

    Returns:
        Name → number of structures in the store.

    Raises:
        EutecticError: unknown name; setting out of range; an extra that is not installed; a different store already
            at the output path.
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
    if not 0 < scale < math.inf:
        raise EutecticError(
            "data generate", f"scale {scale:g}", "a number above 0", "1 is the size of the embedded data sets"
        )
    if seed < 0:
        raise EutecticError("data generate", f"seed {seed}", "0 or more", "choose another seed")
    if workers is not None and workers < 1:
        raise EutecticError("data generate", f"{workers} workers", "at least 1", "leave it out for one per core")
    for name in names:
        GENERATORS[name].check_extras()
    workers = workers or os.cpu_count() or 1
    return {
        name: run(GENERATORS[name], Path(out), scale=scale, seed=seed, workers=workers, overwrite=overwrite)
        for name in names
    }
