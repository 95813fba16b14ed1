"""The backbones by name."""

from __future__ import annotations

import difflib

from eutectic.atoms import EutecticError
from eutectic.models.backbone import BackboneEntry
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.painn import PaiNN, PaiNNSettings

BACKBONES: dict[str, BackboneEntry] = {
    "gemnet_oc": BackboneEntry(GemNetOCSettings, GemNetOC),
    "painn": BackboneEntry(PaiNNSettings, PaiNN),
}
"""Name → backbone. A new one in this package needs a line here; one outside it calls `register_backbone`."""


def register_backbone(name: str, entry: BackboneEntry) -> None:
    """Make a backbone known by a name, so that settings can ask for it.

    Call it where a module is imported, not under `if __name__ == "__main__"`: the processes of a run import the
    program again, and must find the backbone too.

    Raises:
        EutecticError: the name is that of another backbone.
    """
    if BACKBONES.get(name, entry) != entry:
        raise EutecticError(
            "register_backbone", f"{name!r}, which is taken", "a name of its own", "choose another name"
        )
    BACKBONES[name] = entry


def backbone_entry(name: str) -> BackboneEntry:
    """The backbone of that name.

    Raises:
        EutecticError: there is none; the nearest name is in the error.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, 1)
    raise EutecticError(
        "backbone.name",
        repr(name),
        f"one of {', '.join(BACKBONES)}",
        f"did you mean {near[0]!r}?" if near else "name one of these, or register yours with `register_backbone`",
    )
