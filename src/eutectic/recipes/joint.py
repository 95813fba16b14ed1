"""Joint Multi-domain Pre-training as published (Shoghi et al., "From Molecules to Materials", ICLR 2024)."""

from __future__ import annotations

from eutectic.data.datasets import ani1x, oc20, oc22, transition1x
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc import GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.tasks import TargetSettings
from eutectic.train.settings import BackboneChoice, OptimiserSettings, PretrainSettings, SetSettings, TrainSettings

FORCE_WEIGHTS = {
    "oc20": oc20.PUBLISHED_SIZE[1],
    "oc22": oc22.PUBLISHED_SIZE[1],
    "ani1x": ani1x.PUBLISHED_SIZE[1],
    "transition1x": transition1x.PUBLISHED_SIZE[1],
}
"""Force loss weight of each set: its mean number of atoms, as published."""

STORES = {"oc20": "oc20:total", "oc22": "oc22", "ani1x": "ani1x", "transition1x": "transition1x"}
"""Names of the four data sets for `eutectic data prepare`."""

PERIODIC = GraphSettings(cutoff=12.0, max_neighbours=30, symmetry="lower_source")
MOLECULAR = GraphSettings(cutoff=8.0, max_neighbours=30, symmetry="lower_source")
GRAPHS = {"oc20": PERIODIC, "oc22": PERIODIC, "ani1x": MOLECULAR, "transition1x": MOLECULAR}
"""Cutoffs, neighbour caps and symmetry rule of the main graph with which the published weights were trained."""


def jmp_s() -> PretrainSettings:
    """JMP-S: 44 million parameters with all heads, on OC20, OC22, ANI-1x and Transition-1x.

    Command: prepare the four sets (`eutectic data prepare oc20:total`, …), then `torchrun --nproc-per-node 8 …
    eutectic pretrain jmp_s --out runs/jmp-s`; on a smaller machine, adapt `--train.batch_size` and
    `--train.accumulate`. Estimate time and memory with `eutectic plan jmp_s --gpus 64`. Hardware and metric: the
    authors trained for two epochs of 120 million structures with their own code; with this program, only runs of a
    few steps were made.

    As published: sizes, graphs, temperature 2, loss weights, AdamW, warm-up and cosine, clipping, EMA, edge
    dropout, division of shared gradients. Different here: the global batch size (the published one is unknown),
    bfloat16 instead of float16, and scales and references fitted to the prepared stores.
    """
    return _jmp(GemNetOCSettings.small())


def jmp_l() -> PretrainSettings:
    """JMP-L: 234 million parameters with all heads; otherwise as `jmp_s`.

    Command: `torchrun … eutectic pretrain jmp_l --train.strategy fsdp --out runs/jmp-l`. The authors' training took
    about 34,400 GPU-hours (32 GB cards); see `eutectic plan jmp_l --gpus 128`.
    """
    return _jmp(GemNetOCSettings.large())


def _jmp(backbone: GemNetOCSettings) -> PretrainSettings:
    def targets(name: str) -> dict[str, TargetSettings]:
        forces = HeadSettings(kind="direct_forces", layers=4)
        return {
            "energy": TargetSettings(head=HeadSettings(layers=4)),
            "forces": TargetSettings(head=forces, weight=FORCE_WEIGHTS[name]),
        }

    return PretrainSettings(
        sets={
            name: SetSettings(store=store, targets=targets(name), graph=GRAPHS[name], validation=1000)
            for name, store in STORES.items()
        },
        backbone=BackboneChoice(name="gemnet_oc", settings=backbone.model_dump()),
        graph=PERIODIC,
        temperature=2.0,
        edge_dropout=0.1,
        optimiser=OptimiserSettings(
            learning_rate=3e-4,
            betas=(0.9, 0.95),
            weight_decay=0.1,
            warmup_steps=2000,
            warmup_lr_ratio=0.2,
            final_lr_ratio=0.1,
            clip_norm=1.0,
            ema_decay=0.99,
            scale_shared_gradients=True,
        ),
        # Two epochs of the mixture, each of 174 million draws at temperature 2.
        train=TrainSettings(
            steps=340_000, batch_size=1024, evaluate_every=5000, checkpoint_every=600.0, precision="bf16-mixed"
        ),
    )
