"""A model of another package, read from its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from eutectic.atoms import EutecticError
from eutectic.models.foreign.adapter import EnergyReadout, ForeignBackbone


class About(NamedTuple):
    """Description of a published model, according to its package."""

    trained_on: str
    level_of_theory: str
    licence: str


UNKNOWN = About("unknown data", "unknown: that of its training data", "unknown: that of the file")


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignModel:
    """A backbone with its weights, and the package's own energy readouts.

    Attributes:
        backbone: the backbone; the layers for edge features have random weights.
        backbone_name: its name in the registry.
        readouts: name of a head or modality → energy readout.
        derivatives: whether the package's forces and stress are derivatives of its energy; if not, they are not
            converted.
    """

    backbone: ForeignBackbone
    backbone_name: str
    readouts: Mapping[str, EnergyReadout]
    derivatives: bool = True


def copied(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, skip: tuple[str, ...]) -> None:
    """Copy the tensors of a file into the package's module of the same sizes.

    Buffers missing from the file are constants that the package has computed.

    Args:
        module: module of the package.
        state: tensors by name.
        path: path of the file, for the error.
        skip: prefixes of names that the file may lack.

    Raises:
        EutecticError: names or shapes that do not fit.
    """
    expected = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    missing = [name for name in parameters if name not in state and not name.startswith(skip)]
    wrong = [name for name, value in state.items() if name in expected and value.shape != expected[name].shape]
    unknown = [name for name in state if name not in expected]
    for what, names in (("lacks", missing), ("has a different shape of", wrong), ("has unknown", unknown)):
        if names:
            raise EutecticError(
                str(path),
                f"weights that do not fit its own sizes: it {what} {', '.join(sorted(names)[:3])}",
                "a file whose weights belong to its configuration",
                "download or copy the file again; it may have been written by a newer version of the package",
            )
    # Use the file's precision.
    floating = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    if floating is not None:
        module.to(floating)
    module.load_state_dict({**module.state_dict(), **state})
