"""`model.json`, the description of a model: read defensively, since any file may be in its place, and fully validated.

The entry `sha256` holds the hash of every file with weights, and of the description itself without this entry. Models
of older versions have none. After a deliberate change the entry must be removed (or renewed: `seal_model`).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from ase.data import atomic_numbers
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from eutectic.atoms import MAX_ATOMIC_NUMBER, EutecticError
from eutectic.files import write_atomically
from eutectic.graph import GraphSettings
from eutectic.tasks.task import TargetSettings

FORMAT = "eutectic-model-3"
OLDER_FORMATS = ("eutectic-model-1", "eutectic-model-2")
DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
UNCERTAINTY = "uncertainty.safetensors"

EXPECTED = "a model folder (model.json, model.safetensors)"
FIX = "give the folder …/model written by `eutectic pretrain` or `eutectic finetune`"
COPY = "copy the whole folder again from its origin"


def _element(symbol: str) -> str:
    if not 1 <= atomic_numbers.get(symbol, 0) <= MAX_ATOMIC_NUMBER:
        raise ValueError(f"{symbol!r} is not the symbol of an element")
    return symbol


Element = Annotated[str, AfterValidator(_element)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ReferencesEntry(_Entry):
    """Output of `References.to_dict`."""

    property: str
    values: dict[Element, float]


class NormaliserEntry(_Entry):
    """Output of `Normaliser.to_dict`."""

    references: ReferencesEntry | None
    mean: float
    scale: float = Field(gt=0)


class TargetEntry(_Entry):
    """A target in `Task.to_dict`; older models have neither unit nor property."""

    settings: TargetSettings
    normaliser: NormaliserEntry
    weight: float = Field(ge=0)
    unit: str | None = None
    property: dict[str, Any] | None = None


class TaskEntry(_Entry):
    """Output of `Task.to_dict`."""

    name: str = Field(min_length=1)
    level_of_theory: str
    graph: GraphSettings
    targets: dict[str, TargetEntry]


class BackboneChoice(_Entry):
    """Name and settings of the backbone; the settings are validated by its own class."""

    name: str
    settings: dict[str, Any]


class Description(_Entry):
    """The complete `model.json`."""

    format: str
    backbone: BackboneChoice
    graph: GraphSettings
    tasks: list[TaskEntry]
    provenance: dict[str, Any]
    sha256: dict[str, str] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks with the same name among {', '.join(names)}")
        for elements in element_lists(self.provenance):
            if not isinstance(elements, list) or not all(
                type(z) is int and 1 <= z <= MAX_ATOMIC_NUMBER for z in elements
            ):
                raise ValueError("elements in the provenance that are not atomic numbers")
        return self


def element_lists(provenance: Mapping[str, Any]) -> Iterator[Any]:
    """All entries `elements`, at any depth: a fine-tuned model's provenance contains that of the pre-trained model."""
    for name, value in provenance.items():
        if name == "elements":
            yield value
        elif isinstance(value, Mapping):
            yield from element_lists(value)


def read_description(folder: Path) -> dict[str, Any]:
    """The validated contents of a folder's `model.json`, checked against their hash and migrated to the current format.

    Raises:
        EutecticError: no such file; not JSON; another format; an entry that is missing, unknown or invalid; contents
            that do not match their hash.
    """
    values = _read(folder)
    version = values.get("format")
    if version != FORMAT and version not in OLDER_FORMATS:
        raise EutecticError(
            str(folder), f"format {version!r}", FORMAT, "train or import the model again with this version"
        )
    hashes = values.get("sha256")
    try:
        if isinstance(hashes, Mapping) and hashes.get(DESCRIPTION) != description_hash(values):
            raise _changed(folder / DESCRIPTION)
        values = values if version == FORMAT else migrate(values)
        described = Description.model_validate(values)
        values = as_it_was(values)
    except ValidationError as error:
        raise _invalid(folder, problems(error)) from error
    # Raised by `migrate` and the search of the provenance on arbitrary contents.
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _invalid(folder, f"{type(error).__name__}: {error}") from error
    if version != FORMAT and any(graph.smooth_cap for graph in (described.graph, *(t.graph for t in described.tasks))):
        warnings.warn(
            f"{folder}: this model learned with a smooth cap of an earlier version, whose edges ended elsewhere: its "
            "predictions differ from what they were, most where atoms have many neighbours; fine-tune it again",
            stacklevel=2,
        )
    return values


def _read(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    # Disk errors; also not JSON, not text, or nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        raise EutecticError(
            str(folder), f"no readable model.json ({type(error).__name__}: {error})", EXPECTED, FIX
        ) from error
    if not isinstance(values, dict):
        raise EutecticError(str(folder), f"a model.json that holds a {type(values).__name__}", EXPECTED, FIX)
    return values


def _invalid(folder: Path, what: str) -> EutecticError:
    return EutecticError(
        str(folder / DESCRIPTION),
        f"not the description of a model ({what})",
        "the file as written by `eutectic pretrain` or `eutectic finetune`",
        f"{COPY}; a model written by a newer version of eutectic needs that version",
    )


def _changed(path: Path) -> EutecticError:
    return EutecticError(
        str(path),
        "contents that do not match their SHA-256 in model.json: damaged, changed, or from another model",
        "model.json and the weights as they were written together",
        f"{COPY}; after a deliberate change, remove the entry sha256 from model.json",
    )


def problems(error: ValidationError) -> str:
    """The first three problems found by pydantic, as text."""
    items = error.errors(include_url=False)
    shown = [f"{'.'.join(map(str, item['loc'])) or 'as a whole'}: {item['msg']}" for item in items[:3]]
    return "; ".join([*shown, *([f"and {len(items) - 3} more"] if len(items) > 3 else [])])


def as_it_was(description: Mapping[str, Any]) -> dict[str, Any]:
    """Add settings that did not exist when a model was written, with the values that were fixed then."""
    backbone = dict(description["backbone"])
    missing = {"painn": {"rounding": 1e-4}}.get(backbone["name"], {})
    backbone["settings"] = {**missing, **backbone["settings"]}
    return {**description, "backbone": backbone}


def migrate(description: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a description of an older format to the current one: renamed settings and changed defaults.

    Format 2 has the entries of format 3. What changed is the meaning of `smooth_cap` (`eutectic.graph.smooth_cap`).
    """
    if description["format"] == "eutectic-model-2":
        return {**description, "format": FORMAT}
    backbone = dict(description["backbone"])
    renamed = {"sine_floor": "dihedral_epsilon"}
    # Format 1 could omit a cutoff with the default value.
    cutoff = {"gemnet_oc": {"radial_cutoff": 12.0}, "painn": {"cutoff": 5.0}}.get(backbone["name"], {})
    given = {renamed.get(name, name): value for name, value in backbone["settings"].items()}
    backbone["settings"] = {**cutoff, **given}
    tasks = [{"level_of_theory" if k == "theory" else k: v for k, v in task.items()} for task in description["tasks"]]
    return {**description, "format": FORMAT, "backbone": backbone, "tasks": tasks}


# --- hashes ----------------------------------------------------------------------------------------------------


def description_hash(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description's contents without the entry `sha256`; does not depend on the layout of the file."""
    rest = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_model(folder: Path) -> None:
    """Write the hashes of a model's files into its `model.json`, so that later changes are detected.

    Raises:
        EutecticError: no readable model.json, or it cannot be written.
    """
    folder = Path(folder)
    description = {name: value for name, value in _read(folder).items() if name != "sha256"}
    weights = {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))}
    description["sha256"] = weights | {DESCRIPTION: description_hash(description)}
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1, ensure_ascii=False))


def check_weights(folder: Path, description: Mapping[str, Any]) -> None:
    """Check that the weights belong to the description; older models have no hash to check.

    Raises:
        EutecticError: they do not, or cannot be read.
    """
    hashes = description.get("sha256")
    if hashes is None:
        return
    _check_hash(folder / WEIGHTS, hashes)


def check_uncertainty(folder: Path, description: Mapping[str, Any]) -> None:
    """Check that the uncertainties, if any, belong to the description.

    Raises:
        EutecticError: they do not, are missing, or cannot be read.
    """
    hashes, path = description.get("sha256"), folder / UNCERTAINTY
    if hashes is not None and (UNCERTAINTY in hashes or path.exists()):
        _check_hash(path, hashes)


def _check_hash(path: Path, hashes: Mapping[str, Any]) -> None:
    try:
        actual = file_hash(path)
    except OSError as error:
        raise EutecticError(str(path), f"not readable ({error})", EXPECTED, COPY) from error
    if hashes.get(path.name) != actual:
        raise _changed(path)
