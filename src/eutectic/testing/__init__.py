"""Conformance checks for backbones and data sets, and toy data sets with exact labels.

With pytest, one item per check:

    from eutectic.graph import GraphSettings
    from eutectic.testing import parametrize_backbone_checks

    @parametrize_backbone_checks(lambda: MyBackbone(width=32), GraphSettings(cutoff=5.0))
    def test_my_backbone(check):
        check()

Without pytest:

    from eutectic.testing import check_backbone
    for result in check_backbone(lambda: MyBackbone(width=32), GraphSettings(cutoff=5.0)):
        print(result)

`check_backbone` runs all checks and raises one `ConformanceError` that lists the failed ones; each check can also be
called separately. There are few, small structures, each chosen to expose a common error (see `STRUCTURES`). Checks run
in float64, and every tolerance is named and explained (see `Tolerances`).
"""

from eutectic.testing.backbone import (
    BACKBONE_CHECKS,
    Check,
    Deviation,
    check_backbone,
    check_batch,
    check_cell_choice,
    check_contract,
    check_cutoff,
    check_deterministic,
    check_finite,
    check_gradient,
    check_inversion,
    check_isolation,
    check_lattice_wrap,
    check_permutation,
    check_precision,
    check_rotation,
    check_second_derivative,
    check_sensitivity,
    check_separation,
    check_state_dict,
    check_straightening,
    check_supercell,
    check_translation,
    parametrize_backbone_checks,
)
from eutectic.testing.dataset import check_dataset
from eutectic.testing.observation import Observed, energy, observe
from eutectic.testing.results import DEFAULT_TOLERANCES, CheckResult, ConformanceError, Tolerances
from eutectic.testing.structures import GENERIC, STRUCTURES, Structures, generic_structures
from eutectic.testing.toy import DEPTH, PAIR_CUTOFF, Kind, RadialFunction, lennard_jones, morse, tiny_store

__all__ = [
    "BACKBONE_CHECKS",
    "DEFAULT_TOLERANCES",
    "DEPTH",
    "GENERIC",
    "PAIR_CUTOFF",
    "STRUCTURES",
    "Check",
    "CheckResult",
    "ConformanceError",
    "Deviation",
    "Kind",
    "Observed",
    "RadialFunction",
    "Structures",
    "Tolerances",
    "check_backbone",
    "check_batch",
    "check_cell_choice",
    "check_contract",
    "check_cutoff",
    "check_dataset",
    "check_deterministic",
    "check_finite",
    "check_gradient",
    "check_inversion",
    "check_isolation",
    "check_lattice_wrap",
    "check_permutation",
    "check_precision",
    "check_rotation",
    "check_second_derivative",
    "check_sensitivity",
    "check_separation",
    "check_state_dict",
    "check_straightening",
    "check_supercell",
    "check_translation",
    "energy",
    "generic_structures",
    "lennard_jones",
    "morse",
    "observe",
    "parametrize_backbone_checks",
    "tiny_store",
]
