"""Models: backbones and heads that map a graph to predictions."""

from eutectic.models.backbone import Backbone, BackboneEntry, BackboneSettings, Features
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.models.registry import BACKBONES, register_backbone

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "BackboneSettings",
    "Features",
    "GemNetOC",
    "GemNetOCSettings",
    "PaiNN",
    "PaiNNSettings",
    "register_backbone",
]
