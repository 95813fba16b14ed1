"""Graph in, numbers out."""

from eutectic.models.backbone import Backbone, Features
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.painn import PaiNN, PaiNNSettings
from eutectic.models.registry import BACKBONES

__all__ = ["BACKBONES", "Backbone", "Features", "GemNetOC", "GemNetOCSettings", "PaiNN", "PaiNNSettings"]
