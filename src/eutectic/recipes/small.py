"""Recipes of the models in the package, and of the molecular model that `eutectic-small` is compared with. Commands:

eutectic data generate molecules --scale 8 --out generated
eutectic data generate reactions --scale 3.5 --out generated
eutectic data generate metal_slabs --scale 2 --out generated
eutectic data generate oxide_slabs --scale 2 --out generated
eutectic data generate bulk --out generated
eutectic pretrain eutectic_small --out runs/eutectic-small
eutectic pretrain eutectic_fast --out runs/eutectic-fast
"""

from __future__ import annotations

from pathlib import Path

from eutectic.graph import GraphSettings
from eutectic.models.gotennet import GotenNetSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.painn import PaiNNSettings
from eutectic.tasks import TargetSettings
from eutectic.train.settings import BackboneChoice, OptimiserSettings, PretrainSettings, SetSettings, TrainSettings

MOLECULAR = ("molecules", "reactions")
MATERIALS = ("metal_slabs", "oxide_slabs", "bulk")

BACKBONE = BackboneChoice(name="gotennet", settings=GotenNetSettings(edge_width=0).model_dump())
GRAPH = GraphSettings(cutoff=5.0, max_neighbours=12, smooth_cap=0.5)
"""Smooth graph for conservative forces (`GraphSettings.for_derivatives`), which fine-tuning keeps."""


def eutectic_small() -> PretrainSettings:
    """Joint pre-training of GotenNet (0.38 million parameters) on the five generated sets.

    Command: see the top of this file; data sets are read from `generated` in the current folder. Hardware, time and
    metric: see the card of the shipped model, `eutectic models eutectic-small`.
    """
    return _small((*MATERIALS, *MOLECULAR))


def eutectic_fast() -> PretrainSettings:
    """As `eutectic_small`, with PaiNN (0.2 million parameters): 16 minutes on two CPU cores; metric: see its card.

    Command: `eutectic pretrain eutectic_fast --out runs/eutectic-fast`; data as for `eutectic_small`.
    """
    fast = BackboneChoice(name="painn", settings=PaiNNSettings(edge_width=0).model_dump())
    return eutectic_small().model_copy(update={"backbone": fast})


def eutectic_small_molecules() -> PretrainSettings:
    """The model of `eutectic_small`, trained only on the two molecular sets, to measure the gain from other domains.

    Command: `eutectic pretrain eutectic_small_molecules --out runs/eutectic-small-molecules`.
    """
    return _small(MOLECULAR)


def _small(names: tuple[str, ...], folder: Path = Path("generated")) -> PretrainSettings:
    return PretrainSettings(
        sets={
            name: SetSettings(
                store=str(folder / name),
                targets={
                    "energy": TargetSettings(head=HeadSettings(layers=1)),
                    "forces": TargetSettings(head=HeadSettings(kind="atom_vector", layers=1), weight_by_size=True),
                },
                validation=128,
            )
            for name in names
        },
        backbone=BACKBONE,
        graph=GRAPH,
        optimiser=OptimiserSettings(
            learning_rate=5e-3, warmup_steps=200, weight_decay=0.01, final_lr_ratio=0.02, clip_norm=5.0, ema_decay=0.998
        ),
        train=TrainSettings(steps=9500, batch_size=64, evaluate_every=950),
    )
