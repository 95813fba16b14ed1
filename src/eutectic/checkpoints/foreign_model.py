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
    """What a published model is, as its package says."""

    trained_on: str
    level_of_theory: str
    licence: str


UNKNOWN = About("unknown data", "unknown: that of the data it was trained on", "unknown: that of the file")


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignModel:
    """A backbone with its weights, and the package's own energies.

    Attributes:
        backbone: features of edges have random weights.
        backbone_name: in the registry.
        readouts: name of a head or modality → energy.
        derivatives: the package's forces and stress are those of its energy; if not, they are not converted.
    """

    backbone: ForeignBackbone
    backbone_name: str
    readouts: Mapping[str, EnergyReadout]
    derivatives: bool = True


def copied(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, skip: tuple[str, ...]) -> None:
    """Copy the tensors of a file into the package's module of the same sizes.

    Buffers that the file does not have are constants that the package has computed.

    Args:
        module: the package's.
        state: tensors by name.
        path: of the file, for the error.
        skip: beginnings of names that the module has and the file need not have.

    Raises:
        EutecticError: names or shapes that do not fit.
    """
    expected = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    missing = [name for name in parameters if name not in state and not name.startswith(skip)]
    wrong = [name for name, value in state.items() if name in expected and value.shape != expected[name].shape]
    unknown = [name for name in state if name not in expected]
    for what, names in (("lacks", missing), ("has another shape of", wrong), ("has unknown", unknown)):
        if names:
            raise EutecticError(
                str(path),
                f"weights that do not fit its own sizes: it {what} {', '.join(sorted(names)[:3])}",
                "a file whose weights belong to its configuration",
                "download or copy the file again; the package of a newer version may have written it",
            )
    # In the precision of the file.
    floating = next((value.dtype for value in state.values() if value.is_floating_point()), None)
    if floating is not None:
        module.to(floating)
    module.load_state_dict({**module.state_dict(), **state})
