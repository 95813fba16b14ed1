"""The backbones by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel

from eutectic.models.backbone import Backbone
from eutectic.models.gemnet_oc import GemNetOC, GemNetOCSettings
from eutectic.models.painn import PaiNN, PaiNNSettings


class BackboneEntry(NamedTuple):
    """Attributes:
    settings: its settings class.
    module: makes it from them.
    """

    settings: type[BaseModel]
    module: Callable[..., Backbone]


BACKBONES: dict[str, BackboneEntry] = {
    "gemnet_oc": BackboneEntry(GemNetOCSettings, GemNetOC),
    "painn": BackboneEntry(PaiNNSettings, PaiNN),
}
