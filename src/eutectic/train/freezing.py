"""Trained parts of a model: all of it, all but some frozen parts, or low-rank updates (LoRA) of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from eutectic.atoms import EutecticError
from eutectic.models.backbone import Backbone
from eutectic.models.frozen_features import FrozenFeatures
from eutectic.models.lora import add_low_rank, merge_low_rank, weight_matrices
from eutectic.models.multitask import MultitaskModel
from eutectic.models.parts import HEADS, part_names, part_of, parts_named
from eutectic.train.settings import FinetuneSettings


@dataclass(frozen=True)
class TrainedParts:
    """The trained parts.

    Attributes:
        frozen: parts that are not trained: parts of the backbone, and `heads`.
        rank: of low-rank updates that are trained instead of the backbone's weights; None trains the weights.
    """

    frozen: tuple[str, ...] = ()
    rank: int | None = None

    @classmethod
    def of(cls, settings: FinetuneSettings, backbone: Backbone) -> TrainedParts:
        """Trained parts according to the settings.

        Raises:
            EutecticError: unknown parts; nothing left to train; no weight matrices for low-rank updates.
        """
        chosen = cls(parts_named(backbone, settings.freeze, "freeze"), settings.lora)
        names = [name for name, _ in cast(nn.Module, backbone).named_parameters()]
        learned = [name for name in names if part_of(backbone, name) not in chosen.frozen]
        if not learned and HEADS in chosen.frozen:
            raise EutecticError(
                "freeze",
                f"{', '.join(settings.freeze)}: all of the model",
                f"something left to train; parts: {', '.join(part_names(backbone))}",
                "freeze less; `eutectic evaluate` tests a model as it is",
            )
        if chosen.rank is not None and not list(
            weight_matrices(backbone, lambda name: part_of(backbone, name) not in chosen.frozen)
        ):
            raise EutecticError(
                "lora",
                f"rank {chosen.rank}, for a {type(backbone).__name__}"
                + (f" with {', '.join(settings.freeze)} frozen" if settings.freeze else ""),
                "a backbone with weight matrices that are not frozen, for low-rank updates",
                "freeze less" if settings.freeze else "leave it out, or freeze parts instead",
            )
        return chosen

    def apply(self, model: MultitaskModel) -> None:
        """Freeze parts of a new model, in place, and add low-rank updates, initially zero."""
        backbone = cast(nn.Module, model.backbone)
        if self.rank is not None:
            add_low_rank(backbone, self.rank, lambda name: part_of(model.backbone, name) not in self.frozen)
        for name, parameter in backbone.named_parameters():
            if part_of(model.backbone, name) in self.frozen:
                parameter.requires_grad_(False)
        if HEADS in self.frozen:
            model.heads.requires_grad_(False)
        if not any(p.requires_grad for p in backbone.parameters()):
            model.frozen_features = FrozenFeatures()

    def in_words(self, model: MultitaskModel) -> str:
        """Describe the trained parts of a model to which this was applied."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        heads = "heads frozen" if HEADS in self.frozen else "heads"
        parts = {part_of(model.backbone, name) for name, _ in cast(nn.Module, model.backbone).named_parameters()}
        frozen = [part for part in self.frozen if part in parts]
        if self.rank is not None:
            n = sum(name.endswith(".weight.original") for name, _ in cast(nn.Module, model.backbone).named_parameters())
            what = f"low-rank updates (rank {self.rank}) of {n} weight matrices of the backbone"
        elif len(frozen) == len(parts):
            return f"heads only ({trained:,} of {total:,} parameters)"
        else:
            what = "backbone"
        if frozen:
            what += f" without {', '.join(frozen)}"
        return f"{what}, {heads} ({trained:,} of {total:,} parameters)"


def as_ordinary(model: MultitaskModel) -> MultitaskModel:
    """Turn a trained model into an ordinary one, in place: low-rank updates merged, nothing frozen or cached."""
    model.frozen_features = None
    merge_low_rank(cast(nn.Module, model.backbone))
    model.requires_grad_(True)
    return model
