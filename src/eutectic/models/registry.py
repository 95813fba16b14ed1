"""Registry of backbones by name."""

from __future__ import annotations

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.models.backbone import BackboneEntry
from eutectic.models.foreign.mace import MACE, MACESettings
from eutectic.models.foreign.orb import Orb, OrbSettings
from eutectic.models.foreign.sevennet import SevenNet, SevenNetSettings
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.gotennet import GotenNet, GotenNetSettings
from eutectic.models.painn import PaiNN, PaiNNSettings

BACKBONES: dict[str, BackboneEntry] = {
    "gemnet_oc": BackboneEntry(GemNetOCSettings, GemNetOC),
    "gotennet": BackboneEntry(GotenNetSettings, GotenNet),
    "painn": BackboneEntry(PaiNNSettings, PaiNN),
}
"""Name → backbone. Backbones of this package are listed here; others call `register_backbone`."""

FOREIGN: dict[str, BackboneEntry] = {
    "mace": BackboneEntry(MACESettings, MACE),
    "orb": BackboneEntry(OrbSettings, Orb),
    "sevennet": BackboneEntry(SevenNetSettings, SevenNet),
}
"""Name → backbone of another package, which need not be installed. Settings come from one of the package's models."""


def register_backbone(name: str, entry: BackboneEntry) -> None:
    """Register a backbone under a name, so that settings can select it.

    Call it at import time, not under `if __name__ == "__main__"`: the worker processes of a run import the program
    again and need the backbone as well.

    Raises:
        EutecticError: another backbone is registered under this name.
    """
    if BACKBONES.get(name, entry) != entry or name in FOREIGN:
        raise EutecticError(
            "register_backbone", f"{name!r}, which is already registered", "an unused name", "choose another name"
        )
    BACKBONES[name] = entry


def backbone_entry(name: str) -> BackboneEntry:
    """The backbone registered under a name.

    Raises:
        EutecticError: no such backbone; the error gives the nearest name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name in FOREIGN:
        return FOREIGN[name]
    raise EutecticError(
        "backbone.name",
        repr(name),
        f"one of {', '.join(BACKBONES)}",
        did_you_mean(name, BACKBONES, "use one of these, or register yours with `register_backbone`"),
    )
