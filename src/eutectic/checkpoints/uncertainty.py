"""Uncertainties of predictions, stored beside the weights in `uncertainty.safetensors`.

The prediction of a scalar head is linear in the features f of its final layer. For such a layer, learned from features
f_1 … f_n, a Gaussian approximation of the posterior of its weights ("last-layer Laplace") gives the variance

    σ²(f) = α² fᵀ (Σ f_i f_iᵀ + ς² 1)⁻¹ f,

which is large if f points in directions that training structures do not cover. The same holds for a network trained as
a whole, with its final features (Bigi et al. 2024, Mach. Learn.: Sci. Technol. 5, 045018, arXiv:2403.02251: "LLPR").
α and ς are chosen on validation data (`eutectic.train.uncertainty`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.checkpoints.description import COPY, UNCERTAINTY, check_uncertainty, seal_model
from eutectic.files import writing_to
from eutectic.models.multitask import MultitaskModel

SUFFIX = "_uncertainty"
"""Suffix of the name of an uncertainty, as in `energy_uncertainty`."""


def of_uncertainty(name: str) -> str | None:
    """The property whose uncertainty is called `name`; None if `name` is a property itself."""
    return None if name in PROPERTIES or not name.endswith(SUFFIX) else name.removesuffix(SUFFIX)


def property_of(name: str) -> str:
    """The property called `name`, or the property whose uncertainty is called `name`."""
    return of_uncertainty(name) or name


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """The uncertainty of one property of one task.

    Attributes:
        factor: (width, width) float64 L, in the unit of the property: σ(f) = |L f|, so LᵀL = α² (Σ f fᵀ + ς² 1)⁻¹.
        facts: details of the calibration: `trained_on` and `calibrated_on`, numbers of structures; `alpha`; `ridge`,
            ς²; `typical`, the median σ of the calibration structures.
    """

    factor: Float[Tensor, "width width"]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """α, in the unit of the property: the standard deviation of a label around the last layer's prediction."""
        return float(self.facts["alpha"])

    @property
    def typical(self) -> float:
        """Median σ of the calibration structures."""
        return float(self.facts["typical"])

    def of(self, features: Float[Tensor, "structures width"] | np.ndarray) -> np.ndarray:
        """(n_structures,) standard deviations, in the property's unit, from features of the final layer."""
        return np.asarray(np.linalg.norm(self.directions(features), axis=1))

    def directions(self, features: Float[Tensor, "structures width"] | np.ndarray) -> np.ndarray:
        """(n_structures, width) L f; the inner product of two rows is the covariance of the structures' errors."""
        values = torch.as_tensor(features).detach().to("cpu", torch.float64)
        return (values @ self.factor.T).numpy()


Uncertainties = Mapping[str, Mapping[str, Uncertainty]]
"""Task → property → uncertainty."""


def write_uncertainties(folder: Path, values: Uncertainties, *, seal: bool = True) -> None:
    """Write uncertainties into a model's folder; `seal` renews its hashes.

    Raises:
        EutecticError: the file cannot be written.
    """
    flat = {f"{task}/{name}": value for task, by_name in values.items() for name, value in by_name.items()}
    tensors = {key: value.factor.contiguous() for key, value in flat.items()}
    facts = {key: dict(value.facts) for key, value in flat.items()}
    path = Path(folder) / UNCERTAINTY
    with writing_to(path, errors=(OSError, SafetensorError)):
        save_file(tensors, str(path), metadata={"facts": json.dumps(facts)})
    if seal:
        seal_model(folder)


def read_uncertainties(folder: Path, description: Mapping[str, Any], module: MultitaskModel) -> Uncertainties:
    """Read the uncertainties of a model folder; empty if it has none.

    Args:
        folder: model folder.
        description: contents of its `model.json`.
        module: the model, whose heads they must fit.

    Raises:
        EutecticError: a file that is damaged, was not written with the model, or does not fit its heads.
    """
    path = Path(folder) / UNCERTAINTY
    check_uncertainty(folder, description)
    if not path.is_file():
        return {}
    uncertainties: dict[str, dict[str, Uncertainty]] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                task, _, name = key.rpartition("/")
                factor, own = file.get_tensor(key), facts.get(key, {})
                _check(key, factor, own, task, name, module)
                uncertainties.setdefault(task, {})[name] = Uncertainty(factor.double(), own)
    except (OSError, SafetensorError, RuntimeError, ValueError, AttributeError, RecursionError) as error:
        raise EutecticError(
            str(path),
            f"uncertainties that cannot be read ({error})",
            "those written with the model",
            f"{COPY}, or delete the file and run `eutectic calibrate`",
        ) from error
    return uncertainties


def _check(key: str, factor: Tensor, facts: object, task: str, name: str, module: MultitaskModel) -> None:
    """
    Raises:
        ValueError: not for this model.
    """
    numbers = [facts.get(name) for name in ("alpha", "ridge", "typical")] if isinstance(facts, dict) else [None]
    if not all(isinstance(number, float) and 0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{key}: facts are missing or invalid")
    if task not in module.heads or not module.has_last_features(task, name):
        raise ValueError(f"{key}: no such head in this model")
    width = last_width(module, task, name)
    if factor.shape != (width, width) or not factor.is_floating_point() or not torch.isfinite(factor).all():
        raise ValueError(f"{key}: not a finite matrix of {width} × {width}")


def last_width(module: MultitaskModel, task: str, name: str) -> int:
    """Number of features of the final layer of a scalar head."""
    heads = cast(nn.ModuleDict, module.heads[task])
    perceptron = cast(nn.Sequential, heads[name].perceptron)
    return cast(nn.Linear, perceptron[-1]).in_features
