"""Joint multi-domain pre-training of atomistic models, and fine-tuning to any atomic property.

    import eutectic

    model = eutectic.load("eutectic-small")
    model.predict(atoms, task="molecules")["forces"]           # eV/Å

    eutectic.check_data("my.xyz")                               # units, signs, outliers, leaks
    eutectic.finetune("my.xyz", ["energy", "forces"], out="runs/mine")
    eutectic.load("runs/mine/model").predict(atoms)

Names are imported when they are first used: `import eutectic` alone loads no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from eutectic import recipes, testing
    from eutectic.atoms import PROPERTIES, EutecticError, LabelledStructure, Property, Structure
    from eutectic.atoms import define as define_property
    from eutectic.check import check as check_data
    from eutectic.check.files import open_data
    from eutectic.checkpoints.shipped import shipped_models as list_models
    from eutectic.data.catalogue import listing as list_data
    from eutectic.data.catalogue import prepare as prepare_data
    from eutectic.predict.model import Model, load
    from eutectic.train.settings import FinetuneSettings, PretrainSettings
    from eutectic.workflows import compare, evaluate, finetune, pretrain, write_report

_PUBLIC = {
    # what a model sees and predicts
    "Structure": "eutectic.atoms:Structure",
    "LabelledStructure": "eutectic.atoms:LabelledStructure",
    "Property": "eutectic.atoms:Property",
    "PROPERTIES": "eutectic.atoms:PROPERTIES",
    "define_property": "eutectic.atoms:define",
    "EutecticError": "eutectic.atoms:EutecticError",
    # data
    "list_data": "eutectic.data.catalogue:listing",
    "open_data": "eutectic.check.files:open_data",
    "prepare_data": "eutectic.data.catalogue:prepare",
    "check_data": "eutectic.check:check",
    # models
    "list_models": "eutectic.checkpoints.shipped:shipped_models",
    "load": "eutectic.predict.model:load",
    "Model": "eutectic.predict.model:Model",
    # runs
    "pretrain": "eutectic.workflows:pretrain",
    "finetune": "eutectic.workflows:finetune",
    "compare": "eutectic.workflows:compare",
    "evaluate": "eutectic.workflows:evaluate",
    "write_report": "eutectic.workflows:write_report",
    "PretrainSettings": "eutectic.train.settings:PretrainSettings",
    "FinetuneSettings": "eutectic.train.settings:FinetuneSettings",
    "recipes": "eutectic.recipes",
    "testing": "eutectic.testing",
}

__all__ = [
    "PROPERTIES",
    "EutecticError",
    "FinetuneSettings",
    "LabelledStructure",
    "Model",
    "PretrainSettings",
    "Property",
    "Structure",
    "__version__",
    "check_data",
    "compare",
    "define_property",
    "evaluate",
    "finetune",
    "list_data",
    "list_models",
    "load",
    "open_data",
    "prepare_data",
    "pretrain",
    "recipes",
    "testing",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eutectic' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
