"""GemNet-OC, the backbone of JMP (Gasteiger et al. 2022; Shoghi et al., ICLR 2024)."""

from eutectic.models.gemnet_oc.backbone import GemNetOC
from eutectic.models.gemnet_oc.scaling import fit_scale_factors
from eutectic.models.gemnet_oc.settings import GemNetOCSettings

__all__ = ["GemNetOC", "GemNetOCSettings", "fit_scale_factors"]
