"""Learning rate schedule, optimiser, and the exponential moving average of the weights (EMA)."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eutectic.atoms import EutecticError
from eutectic.models.backbone import Backbone
from eutectic.models.multitask import MultitaskModel
from eutectic.models.parts import BLOCKS, HEADS, REST, depth, part_names, part_of, parts_named
from eutectic.train.checkpoint import local_shard
from eutectic.train.muon import Muon, is_matrix
from eutectic.train.settings import OptimiserSettings


def learning_rate(settings: OptimiserSettings, step: int, steps: int) -> float:
    """Linear warm-up from `warmup_lr_ratio`, then cosine decay to `final_lr_ratio` (JMP, section 4.2).

    Args:
        step: 0 … steps − 1.
        steps: length of the run.
    """
    warm = min(settings.warmup_steps, steps)
    if step < warm:
        relative = warm_up(settings, step, warm)
    else:
        done = (step - warm) / max(steps - warm - 1, 1)
        relative = settings.final_lr_ratio + (1 - settings.final_lr_ratio) * 0.5 * (
            1 + math.cos(math.pi * min(done, 1.0))
        )
    return settings.learning_rate * relative


def warm_up(settings: OptimiserSettings, step: int, warm: int | None = None) -> float:
    """Warm-up factor of the learning rate at a step; `warm` replaces `settings.warmup_steps`."""
    warm = settings.warmup_steps if warm is None else warm
    if step >= warm:
        return 1.0
    return settings.warmup_lr_ratio + (1 - settings.warmup_lr_ratio) * step / max(warm - 1, 1)


def relative_rates(backbone: Backbone, settings: OptimiserSettings) -> dict[str, float]:
    """Part of a backbone → its learning rate, relative to that of the heads.

    Raises:
        EutecticError: unknown parts; layer decay for a backbone without blocks.
    """
    rates = dict.fromkeys([*backbone.parts, REST], settings.backbone_lr_scale)
    if settings.layer_decay < 1:
        if BLOCKS not in part_names(backbone):
            raise EutecticError(
                "optimiser.layer_decay",
                f"{settings.layer_decay:g}, for the backbone {type(backbone).__name__}, which has no named blocks",
                "a backbone with blocks (`Backbone.parts`)",
                "leave it out, or set optimiser.backbone_lr_scale",
            )
        rates = {part: rate * settings.layer_decay ** depth(backbone, part) for part, rate in rates.items()}
    # One by one, so that later names override earlier ones: {blocks: 0.5, block_0: 0.3}.
    factors: dict[str, float] = {}
    for name, factor in settings.part_rates.items():
        factors |= dict.fromkeys(parts_named(backbone, [name], "optimiser.part_rates"), factor)
    if HEADS in factors:
        raise EutecticError(
            "optimiser.part_rates",
            "a learning rate for the heads, to which all others are relative",
            f"parts of the backbone: {', '.join(name for name in part_names(backbone) if name != HEADS)}",
            "set optimiser.learning_rate",
        )
    return {part: rate * factors.get(part, 1.0) for part, rate in rates.items()}


def make_optimiser(model: MultitaskModel, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """Fused AdamW over all parameters, or Muon; `set_learning_rate` sets the learning rates of all parts.

    To use another optimiser, change only this function. It needs parameter groups with the key "relative", and a
    `state_dict` of tensors and plain values. An optimiser with support for `found_inf`, like torch's fused optimisers,
    skips non-finite steps on the device; with any other, the loop waits for the device once per step
    (`apply_gradient`).
    """
    rates = relative_rates(model.backbone, settings)
    muon = settings.name == "muon"
    by_rate: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for in_heads, module in ((False, cast(nn.Module, model.backbone)), (True, model.heads)):
        for name, parameter in module.named_parameters():
            rate = 1.0 if in_heads else rates[part_of(model.backbone, name)]
            by_rate.setdefault((rate, in_heads, muon and is_matrix(name, parameter)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": some, "relative": rate} | ({"matrices": matrices} if muon else {})
        for (rate, _, matrices), some in by_rate.items()
    ]
    if muon:
        return Muon(groups, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate: `rate` times the group's "relative"."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["relative"]


def apply_gradient(optimiser: _FabricOptimizer, finite: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Update the parameters if loss and gradient are finite, and clear the gradient.

    Args:
        optimiser: as set up by Fabric.
        finite: () 1 or 0, on the device.
        scaler: gradient scaler, if any; it checks for non-finite gradients itself.
    """
    inner: Any = optimiser.optimizer
    if scaler is None and getattr(inner, "_step_supports_amp_scaling", False):
        # As a gradient scaler does: a fused step does not change parameters and moments if found_inf is 1.
        inner.found_inf, inner.grad_scale = 1.0 - finite, None
        optimiser.step()
    elif scaler is not None or bool(finite):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def shared_gradients(model: MultitaskModel) -> list[tuple[nn.Parameter, int]]:
    """The parameters shared by several blocks, and their numbers of uses, by which JMP divides their gradients.

    Raises:
        EutecticError: a backbone without shared parameters.
    """
    backbone = model.backbone
    shared = backbone.shared_parameters()
    if not shared:
        raise EutecticError(
            "optimiser.scale_shared_gradients",
            f"on, for the backbone {type(backbone).__name__}",
            "a backbone whose blocks share parameters (`Backbone.shared_parameters`), like gemnet_oc",
            "turn it off",
        )
    return [(backbone.get_parameter(name), uses) for name, uses in shared.items()]


class EMA:
    """The exponential moving average (EMA) of a model's weights, updated without waiting for the device.

    The EMA of sharded parameters is sharded too.

    Args:
        model: on its device, not yet sharded.
        decay: weight of the old average in the new one.
    """

    def __init__(self, model: MultitaskModel, decay: float) -> None:
        self.module = copy.deepcopy(model)
        """The full model with EMA weights, for predictions; see `refresh`."""
        self.decay = decay
        device = next(self.module.parameters()).device
        self.updates = torch.zeros((), device=device)
        self._means: list[Tensor] = [p.detach() for p in self.module.parameters()]
        self._weights: list[Tensor] = []

    def follow(self, model: MultitaskModel) -> None:
        """Average the weights of this model, which is the same model set up for training (compiled, sharded)."""
        self._weights = list(model.parameters())
        if any(isinstance(p, DTensor) for p in self._weights):
            self._means = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Add the weights after a step.

        Args:
            finite: () 1, or 0 for a step that the optimiser skipped, which leaves the EMA unchanged.
        """
        # The first update copies the weights.
        share = torch.where(self.updates == 0, 1.0, 1.0 - self.decay) * finite
        means = [_local(m) for m in self._means]
        difference = torch._foreach_sub([_local(w) for w in self._weights], means)
        torch._foreach_mul_(difference, share.to(means[0].dtype))
        torch._foreach_add_(means, difference)
        self.updates += finite

    @torch.no_grad()
    def refresh(self) -> MultitaskModel:
        """`module` with the EMA weights. Every process must call this, since sharded tensors are gathered."""
        for parameter, mean in zip(self.module.parameters(), self._means, strict=True):
            if isinstance(mean, DTensor):
                parameter.copy_(mean.full_tensor())
        return self.module

    def state_dict(self) -> dict[str, Tensor]:
        """Full tensors; see `refresh`."""
        return {"updates": self.updates.clone()} | {f"module.{k}": v for k, v in self.refresh().state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.updates.copy_(state["updates"])
        self.module.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k != "updates"})
        for full, mean in zip(self.module.parameters(), self._means, strict=True):
            if isinstance(mean, DTensor):
                mean.copy_(local_shard(mean, full))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
