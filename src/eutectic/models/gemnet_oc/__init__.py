"""GemNet-OC, the backbone of JMP."""

from eutectic.models.gemnet_oc.backbone import GemNetOC
from eutectic.models.gemnet_oc.scaling import fit_scale_factors
from eutectic.models.gemnet_oc.settings import GemNetOCSettings

__all__ = ["GemNetOC", "GemNetOCSettings", "fit_scale_factors"]
