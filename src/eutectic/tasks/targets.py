"""Validation of targets against the property definitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.models.backbone import Backbone
from eutectic.models.heads import FROM_VECTORS, check_head, check_needs
from eutectic.tasks.task import TargetSettings


def check_targets(targets: Mapping[str, TargetSettings]) -> dict[str, TargetSettings]:
    """Validate targets and resolve their settings: default head, pooling and loss depend on the property.

    Args:
        targets: property → settings.

    Raises:
        EutecticError: an unknown property; a head or loss that does not fit its property; forces or stress as
            derivatives without an energy target.
    """
    resolved: dict[str, TargetSettings] = {}
    for name, target in targets.items():
        if name not in PROPERTIES:
            otherwise = f"choose one of these, or define a new one: --define {name}=UNIT"
            raise EutecticError(
                f"target {name!r}",
                "an unknown property",
                f"one of {', '.join(PROPERTIES)}",
                did_you_mean(name, PROPERTIES, otherwise),
            )
        resolved[name] = target.resolve(PROPERTIES[name])
        check_head(resolved[name].head, PROPERTIES[name])
        _check_loss(name, resolved[name])
    check_needs({name: target.head for name, target in resolved.items()}, None, where="targets")
    return resolved


Targets = Annotated[dict[str, TargetSettings], AfterValidator(check_targets)]
"""Type of a settings field: property → target, checked and resolved."""


def targets_for(targets: Mapping[str, TargetSettings], backbone: Backbone) -> dict[str, TargetSettings]:
    """Replace heads whose input features the backbone lacks.

    Without edge features, heads that take directions from edges are replaced by heads for the same properties that take
    them from the atoms' vectors; without vectors, the other way round.

    Args:
        targets: property → settings, resolved.
        backbone: backbone of the model.
    """
    if bool(backbone.edge_width) == bool(backbone.vector_width):
        return dict(targets)
    replacements = (
        FROM_VECTORS if backbone.vector_width else {vectors: edges for edges, vectors in FROM_VECTORS.items()}
    )
    replaced = {}
    for name, target in targets.items():
        kind = replacements.get(str(target.head.kind), target.head.kind)
        replaced[name] = target.model_copy(update={"head": target.head.model_copy(update={"kind": kind})})
    return replaced


def _check_loss(name: str, target: TargetSettings) -> None:
    classes = target.head.entry.categorical
    if (target.loss == "cross_entropy") != classes:
        raise EutecticError(
            f"target {name!r}",
            f"loss {target.loss!r} for {'classes' if classes else 'values that are not classes'}",
            "cross_entropy" if classes else "mae, mse or huber",
            "omit `loss`: the default depends on the property",
        )
