"""Import checkpoints of the Open Catalyst Project's GemNet-OC (Gasteiger et al., TMLR 2022), trained with fairchem.

Such a file (the layout of fairchem-core 1.10 and of earlier versions, then called ocp) holds:

* `state_dict`: weights, with a prefix "module." for every wrapper of the model in training;
* `ema`, in files from which training can be resumed: the moving average of every weight, without names, in the order
  of the parameters. fairchem predicts with it. In other files `state_dict` itself holds the average;
* `config`: `model` and `model_attributes` (or `model` alone), sizes and options of the model; `task` and `dataset`;
* `normalizers`: mean and standard deviation of `target` and `grad_target` (later `energy` and `forces`); may be empty;
* `scale_dict`: the scale factors, if they are not in `state_dict`. For early files they are in a separate file.

The reference of the energies follows from the training data (`TRAINING_DATA`), which the file reveals only indirectly.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers
from pydantic import ValidationError
from torch import Tensor

import eutectic
from eutectic.atoms import EutecticError, did_you_mean
from eutectic.checkpoints.description import file_hash, problems
from eutectic.checkpoints.imported import ImportReport, check_finite, check_fit, check_order, named_averages
from eutectic.checkpoints.model import TrainedModel, build_backbone
from eutectic.checkpoints.safe_pickle import Archive, StoredTensor
from eutectic.data.datasets import oc20, oc22
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc.published import (
    EMBEDDING,
    SETTINGS,
    fairchem_name,
    from_published,
    published_from_fairchem,
    published_names,
    settings_from_published,
)
from eutectic.models.gemnet_oc.settings import GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks.references import References
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task

PAGE = "https://github.com/FAIR-Chem/fairchem/blob/main/docs/core/model_checkpoints.md"
"""fairchem's list of its checkpoints, with their scale files and statements on licences."""

LICENCE = (
    "none is stated for the weights themselves: fairchem's page of checkpoints states CC BY 4.0 for the training data "
    "(OC20, OC22) and asks to cite it, and fairchem's code is under the MIT licence"
)

_OC20 = (
    "H B C N O Na Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn "
    "Sb Te Cs Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi"
)
_OC22 = (
    "H Li Be C N O Na Mg Al Si K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Rb Sr Y Zr Nb Mo Ru Rh Pd Ag Cd In Sn Sb "
    "Te Cs Ba Ce Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi"
)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Training data of a checkpoint.

    Attributes:
        level_of_theory: level of theory of the labels.
        energies: reference of the energies, as text.
        elements: symbols, separated by spaces; fairchem's lists for OC20 and OC22.
    """

    level_of_theory: str
    energies: str
    elements: str


_TOTAL = "total energies from VASP, without a reference subtracted"
TRAINING_DATA = {
    "oc20": TrainingData(
        level_of_theory=oc20.CARD.level_of_theory,
        energies="adsorption energies: relative to the clean surface and to molecules in the gas phase (OC20), so "
        "about 0 without an adsorbate",
        elements=_OC20,
    ),
    "oc22": TrainingData(level_of_theory=oc22.CARD.level_of_theory, energies=_TOTAL, elements=_OC22),
    "oc20+oc22": TrainingData(
        level_of_theory=f"{oc20.CARD.level_of_theory} (metals, OC20) and {oc22.CARD.level_of_theory} (oxides, OC22)",
        energies=_TOTAL,
        elements=" ".join(dict.fromkeys(f"{_OC20} {_OC22}".split())),
    ),
    "other": TrainingData(
        level_of_theory="not stated", energies="relative to the same reference as its training data", elements=""
    ),
}

DEFAULTS: dict[str, Any] = {
    "num_atom_emb_layers": 0,
    "num_global_out_layers": 2,
    "direct_forces": False,
    "cutoff": 6.0,
    "max_neighbors": 50,
    "enforce_max_neighbors_strictly": True,
    "use_pbc": True,
    "rbf": {"name": "gaussian"},
    "envelope": {"name": "polynomial", "exponent": 5},
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "spherical_harmonics"},
    "extensive": True,
    "forces_coupled": False,
    "activation": "silu",
    "quad_interaction": False,
    "atom_edge_interaction": False,
    "edge_atom_interaction": False,
    "atom_interaction": False,
    "scale_basis": False,
    "qint_tags": [0, 1, 2],
}
"""fairchem 1.10's defaults for options missing from a configuration."""

SIZES = [name for name in SETTINGS if name not in (*DEFAULTS, "absolute_rbf_cutoff", "num_elements")]
"""Required entries of a configuration."""

ONLY: dict[str, Any] = {
    "activation": "silu",
    "scale_basis": False,
    "forces_coupled": False,
    "use_pbc": True,
    "rbf": {"name": "gaussian"},
    "cbf": {"name": "spherical_harmonics"},
    "sbf": {"name": "legendre_outer"},
}
"""Options with only one supported value, which all published checkpoints have."""

CHECKPOINT = "a checkpoint of the Open Catalyst Project's GemNet-OC (model gemnet_oc of fairchem-core 1)"
USE_PUBLISHED = "use one of the checkpoints of GemNet-OC that `eutectic models` lists"
SCALE = ".scale_factor"
CENTRES = "rbf.offset"
TARGETS = {"energy": "target", "forces": "grad_target"}
"""Property → name of its normaliser and its statistics in files from before fairchem 1."""

OC20_STATISTICS = (-0.7554450631141663, 2.887317180633545)
"""eV, mean and standard deviation of OC20's adsorption energies in fairchem's configurations."""

ROWS = GemNetOCSettings().num_elements
"""Rows of an imported model's element embedding; fairchem's models have 83."""


def read_fairchem_checkpoint(
    path: Path, *, scales: Path | None = None, trained_on: str | None = None
) -> tuple[TrainedModel, ImportReport]:
    """Read a checkpoint of GemNet-OC, without executing code in it (see `eutectic.checkpoints.safe_pickle`).

    The model has one task with the checkpoint's own heads and normalisers, so that it predicts what fairchem predicts.

    Args:
        path: gemnet_oc_base_s2ef_all.pt, or another checkpoint of this model, of any size.
        scales: file with scale factors (.pt or .json), for a checkpoint without them.
        trained_on: one of `TRAINING_DATA`, for a checkpoint that does not reveal it.

    Raises:
        EutecticError: another kind of file or model, or a damaged one; an unsupported option; missing or contradictory
            scale factors; unknown training data.
    """
    path = Path(path)
    with Archive(path) as archive:
        content = _mapping(archive.content)
        entries = _entries(content, path)
        config = _mapping(content.get("config"))
        options = _options(config, path)
        settings = _settings(options, entries, path)
        heads = _heads(options)
        normalisers = {prop: _normaliser(archive, content, config, prop) for prop in heads}
        name = _training_data(config, normalisers["energy"], trained_on, path)
        our_names = _our_names(settings, name, heads)
        factors = _scale_factors(archive, content, entries, our_names, scales)
        for theirs in our_names:
            # Checked before the model is built, since a small file could describe a large model.
            if theirs not in entries and theirs not in factors:
                raise EutecticError(str(path), f"{theirs} is missing", CHECKPOINT, "use the file as it was published")
        with torch.device("meta"):
            backbone, _ = build_backbone("gemnet_oc", settings.model_dump())
            module = MultitaskModel(backbone, {name: heads})
        embedding = fairchem_name(EMBEDDING)
        rows, *width = entries[embedding].shape
        shapes = {theirs: entry.shape for theirs, entry in entries.items()}
        shapes |= {embedding: (max(rows, ROWS), *width), **dict.fromkeys(factors, ())}
        check_fit(shapes, our_names, module, path, CHECKPOINT, computed=["backbone.bases.radial.sharpness"])
        averaged = _averaged(content, entries, our_names, path)
        weights = entries | averaged
        tensors = {theirs: archive.tensor(weights[theirs]).float() for theirs in our_names if theirs not in factors}
        foreign = archive.foreign
    tensors |= {theirs: torch.tensor(value) for theirs, value in factors.items()}
    tensors[embedding] = _with_all_elements(tensors[embedding])
    try:
        state = from_published(published_from_fairchem(tensors, settings), settings)
    except ValueError as error:
        raise EutecticError(str(path), str(error), CHECKPOINT, "use the file as it was published") from error
    state = {f"backbone.{ours}": value for ours, value in state.items()}
    state |= {ours: tensors[theirs] for theirs, ours in our_names.items() if ours.startswith("heads.")}
    module.load_state_dict(state, assign=True)
    check_finite(state, path)

    data, graph = TRAINING_DATA[name], _graph(options, path)
    task = Task(
        name=name,
        level_of_theory=data.level_of_theory,
        targets={
            prop: Target(settings=TargetSettings(head=head), normaliser=normalisers[prop], weight=1.0)
            for prop, head in heads.items()
        },
        graph=graph,
    )
    size = {GemNetOCSettings.small(): "GemNet-OC", GemNetOCSettings.large(): "GemNet-OC-Large"}.get(
        settings, "a GemNet-OC with other sizes"
    )
    model = TrainedModel(
        module=module.eval(),
        tasks=(task,),
        backbone="gemnet_oc",
        backbone_settings=settings.model_dump(mode="json"),
        graph=graph,
        provenance={
            "eutectic": eutectic.__version__,
            "imported_from": path.name,
            "imported_sha256": file_hash(path),
            "original": "GemNet-OC of the Open Catalyst Project (Gasteiger et al., TMLR 2022)",
            "size": size,
            "weights": "averaged (EMA)" if averaged else "as stored",
            "epoch": _number(content.get("epoch"), None),
            "steps": _whole(content.get("step")),
            "licence": f"{LICENCE}: {PAGE}",
            "energies": data.energies,
            "pretrained_on": {
                name: {
                    "level_of_theory": data.level_of_theory,
                    "elements": sorted(atomic_numbers[symbol] for symbol in data.elements.split()),
                }
            },
        },
    )
    report = ImportReport(
        size=size,
        parameters=sum(p.numel() for p in module.parameters()),
        taken=_taken(model, bool(averaged), len(factors)),
        left=_left(content, entries, our_names, bool(averaged), foreign),
        missing=_missing(options, rows),
    )
    return model, report


# --- contents --------------------------------------------------------------------------------------------------


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _number(value: object, archive: Archive | None) -> float | None:
    """A number, or a tensor with a single one; None for anything else."""
    if isinstance(value, StoredTensor) and archive is not None and math.prod(value.shape) == 1:
        value = archive.tensor(value).item()
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if math.isfinite(number) else None


def _bare(name: str) -> str:
    """A name without the prefixes of wrappers."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _entries(content: Mapping[Any, Any], path: Path) -> dict[str, StoredTensor]:
    entries = {
        _bare(name): value
        for name, value in _mapping(content.get("state_dict")).items()
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if not entries:
        present = ", ".join([str(key) for key in content][:5]) or "nothing"
        given = f"no weights in an entry state_dict; it contains {present}"
        raise EutecticError(str(path), given, CHECKPOINT, USE_PUBLISHED)
    if EMBEDDING in entries:
        raise EutecticError(str(path), "a checkpoint of JMP", CHECKPOINT, "use `eutectic import-jmp`")
    return entries


def _options(config: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The model's configuration with fairchem's defaults, after checking that it is supported."""
    model = config.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    if name != "gemnet_oc":
        what = f"a checkpoint of the model {name!r}" if isinstance(name, str) else "no configuration of a model"
        raise EutecticError(str(path), what, CHECKPOINT, USE_PUBLISHED)
    given = _mapping(model) or _mapping(config.get("model_attributes"))
    if missing := [size for size in SIZES if size not in given]:
        raise EutecticError(
            str(path), f"no {missing[0]} in the configuration of the model", "all its sizes", USE_PUBLISHED
        )
    options = {**DEFAULTS, **given}
    wrong = [option for option, value in ONLY.items() if options[option] != value]
    if not options["quad_interaction"]:
        wrong = [option for option in wrong if option != "sbf"]
    if options.get("rbf_spherical") not in (None, {}, options["rbf"]):
        wrong.append("rbf_spherical")
    # Cutoffs of single graphs; by default the main cutoff.
    wrong += [
        option
        for option in ("cutoff_qint", "cutoff_aeaint", "cutoff_aint")
        if options.get(option) not in (None, options["cutoff"])
    ]
    if _mapping(options["envelope"]).get("name") != "polynomial":
        wrong.append("envelope")
    if wrong:
        expected = ONLY.get(wrong[0], "one cutoff, one radial basis and a polynomial envelope")
        raise EutecticError(
            str(path), f"{wrong[0]}: {options[wrong[0]]!r}", f"{expected}, as in the published models", USE_PUBLISHED
        )
    return options


def _settings(options: Mapping[str, Any], entries: Mapping[str, StoredTensor], path: Path) -> GemNetOCSettings:
    rows = entries.get(fairchem_name(EMBEDDING), StoredTensor(None, 0, (0,), (1,))).shape[0]  # type: ignore[arg-type]
    sizes = {name: options[name] for name in SETTINGS if name in options}
    sizes |= {"num_elements": max(rows, ROWS), "absolute_rbf_cutoff": options["cutoff"]}
    try:
        settings = settings_from_published(sizes)
        exponent = options["envelope"].get("exponent", 5)
        settings = GemNetOCSettings.model_validate({**settings.model_dump(), "envelope_exponent": exponent})
    except ValidationError as error:
        raise _invalid(path, error) from error
    # Each of these layers has two entries; a corrupted number must not generate millions of names.
    counts = {name: value for name, value in settings.model_dump().items() if name.startswith("residuals_")}
    last = counts.pop("residuals_readout")
    layers = sum(counts.values())
    if settings.blocks * max(1, layers) + last > len(entries):
        given = f"{settings.blocks} blocks of {layers} layers in the configuration, but {len(entries)} weights"
        raise EutecticError(str(path), given, CHECKPOINT, "use the file as it was published")
    return settings


def _invalid(path: Path, error: ValidationError) -> EutecticError:
    return EutecticError(
        f"{path}, configuration of the model", problems(error), CHECKPOINT, "use the file as it was published"
    )


def _heads(options: Mapping[str, Any]) -> dict[str, HeadSettings]:
    heads = {"energy": HeadSettings(kind="scalar", pooling="sum" if options["extensive"] else "mean", layers=0)}
    if options["direct_forces"]:
        heads["forces"] = HeadSettings(kind="direct_forces", layers=0)
    return heads


def _our_names(settings: GemNetOCSettings, task: str, heads: Iterable[str]) -> dict[str, str]:
    """Name in the file → name here, in fairchem's order of the parameters."""
    names = {
        fairchem_name(published): f"backbone.{ours}"
        for published, ours in published_names(settings).items()
        if not published.endswith("rbf.temps")
    }
    last = {prop: f"out_{prop}.linear.weight" for prop in heads}
    # Published names begin with the embedding of atoms; fairchem has it before the embedding of edges.
    embedding, ordered = fairchem_name(EMBEDDING), {}
    for theirs, ours in names.items():
        if theirs.startswith("edge_emb."):
            ordered[embedding] = names[embedding]
        if theirs.startswith("out_mlp_F."):
            ordered[last["energy"]] = ""
        if theirs != embedding:
            ordered[theirs] = ours
    return ordered | {theirs: f"heads.{task}.{prop}.perceptron.0.weight" for prop, theirs in last.items()}


def _graph(options: Mapping[str, Any], path: Path) -> GraphSettings:
    main = options["max_neighbors"]
    caps = {name: options.get(f"max_neighbors_{name}") or main for name in ("aeaint", "qint")}
    try:
        return GraphSettings(
            cutoff=options["cutoff"],
            max_neighbours=main,
            atom_edge_neighbours=caps["aeaint"],
            quadruplet_neighbours=caps["qint"],
            atom_atom_neighbours=options.get("max_neighbors_aint") or max(main, *caps.values()),
            quadruplet_tags=options["qint_tags"],
            symmetry="lower_source",
        )
    except ValidationError as error:
        raise _invalid(path, error) from error
    except TypeError as error:
        raise EutecticError(str(path), f"invalid numbers of neighbours ({error})", CHECKPOINT, USE_PUBLISHED) from error


def _dataset(config: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Configuration of the training data."""
    dataset = config.get("dataset")
    if isinstance(dataset, list) and dataset:
        dataset = dataset[0]
    return _mapping(_mapping(dataset).get("train")) or _mapping(dataset)


def _normaliser(archive: Archive, content: Mapping[Any, Any], config: Mapping[Any, Any], prop: str) -> Normaliser:
    """prediction = output · std + mean, with values from the file or, failing that, from its configuration."""
    stored, dataset, old = _mapping(content.get("normalizers")), _dataset(config), TARGETS[prop]
    values = _mapping(stored.get(prop)) or _mapping(stored.get(old))
    found = [(values.get("mean"), values.get("std", values.get("rmsd")))] if values else []
    if dataset.get("normalize_labels") is True:
        found.append((dataset.get(f"{old}_mean", 0.0), dataset.get(f"{old}_std", 1.0)))
    numbers = [(_number(mean, archive), _number(scale, archive)) for mean, scale in found or [(0.0, 1.0)]]
    usable = [(mean, scale) for mean, scale in numbers if mean is not None and scale is not None and scale > 0]
    if not usable:
        raise EutecticError(
            f"{archive.path}, normaliser of {prop}",
            f"mean {found[0][0]!r}, standard deviation {found[0][1]!r}",
            "two numbers, the second above 0",
            "use the file as it was published",
        )
    mean, scale = usable[0]
    references = _mapping(_mapping(content.get("elementrefs")).get(prop)).get("element_references")
    table = None
    if isinstance(references, StoredTensor):
        per_element = archive.tensor(references).flatten().tolist()[: ROWS - 1]
        table = References(property=prop, values=dict(list(enumerate(per_element))[1:]))
    return Normaliser(references=table, mean=mean, scale=scale)


def _training_data(config: Mapping[Any, Any], energy: Normaliser, trained_on: str | None, path: Path) -> str:
    if trained_on is not None:
        if trained_on not in TRAINING_DATA:
            raise EutecticError(
                "--trained-on",
                repr(trained_on),
                f"one of {', '.join(TRAINING_DATA)}",
                did_you_mean(trained_on, TRAINING_DATA),
            )
        return trained_on
    dataset = _dataset(config)
    kind = _mapping(config.get("task")).get("dataset", dataset.get("format"))
    if kind == "oc22_lmdb":
        # The file with OC20's reference energies, which turn its adsorption energies into total energies.
        return "oc20+oc22" if dataset.get("oc20_ref") else "oc22"
    # Stored as float32 in the file.
    if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip((energy.mean, energy.scale), OC20_STATISTICS, strict=True)):
        return "oc20"
    raise EutecticError(
        str(path),
        f"data of kind {kind!r}, with a mean energy of {energy.mean:g} eV and a standard deviation of "
        f"{energy.scale:g} eV",
        "the statistics of OC20, or data of OC22",
        f"state what it was trained on: --trained-on {', '.join(TRAINING_DATA)}",
    )


# --- scale factors ---------------------------------------------------------------------------------------------


def _scale_factors(
    archive: Archive,
    content: Mapping[Any, Any],
    entries: Mapping[str, StoredTensor],
    our_names: Iterable[str],
    scales: Path | None,
) -> dict[str, float]:
    """Every scale factor by its name in `state_dict`; taken from there, from `scale_dict` or from a file."""
    names = [name for name in our_names if name.endswith(SCALE)]
    stored = {name: entries[name] for name in names if name in entries}
    sources = [("state_dict", _numbers(stored, archive)), ("scale_dict", _numbers(content.get("scale_dict"), archive))]
    if scales is not None:
        sources.append((str(scales), _scale_file(Path(scales))))
    factors: dict[str, float] = {}
    for source, found in sources:
        for name in names:
            value = found.get(name, 0.0)
            if value and not math.isclose(factors.setdefault(name, value), value, rel_tol=1e-5):
                raise EutecticError(
                    f"{archive.path}, {name}",
                    f"{factors[name]:g}, and {value:g} in {source}",
                    "one value",
                    "use the scale file that belongs to this checkpoint, or none if the checkpoint has its factors",
                )
    # 0 means that a factor was not fitted.
    if absent := [name for name in names if name not in factors]:
        raise EutecticError(
            str(archive.path),
            f"{len(absent)} of {len(names)} scale factors are neither in it nor in "
            f"{'a scale file' if scales is None else scales}; the first is that of {absent[0].removesuffix(SCALE)}",
            "all scale factors: without them predictions are wrong",
            f"pass --scales FILE with the scale file of this checkpoint, listed beside it on {PAGE}",
        )
    return factors


def _numbers(values: object, archive: Archive | None) -> dict[str, float]:
    """Scale factors by their names in `state_dict`; values that are not numbers are skipped."""
    factors = {}
    for name, value in _mapping(values).items():
        number = _number(value, archive)
        if isinstance(name, str) and number is not None:
            factors[_bare(name).removesuffix(SCALE) + SCALE] = number
    return factors


def _scale_file(path: Path) -> dict[str, float]:
    """Read a file written by `torch.save`, or a JSON file: name → factor."""
    if zipfile.is_zipfile(path):
        with Archive(path) as archive:
            factors = _numbers(archive.content, archive)
    else:
        try:
            factors = _numbers(json.loads(path.read_text(encoding="utf-8")), None)
        except (OSError, ValueError, RecursionError) as error:
            raise EutecticError(
                str(path),
                f"cannot be read as scale factors ({type(error).__name__}: {error})",
                "a .pt or .json file with names and factors",
                f"check the path; {PAGE} has the scale file beside each checkpoint",
            ) from error
    return factors


# --- averaged weights ------------------------------------------------------------------------------------------


def _averaged(
    content: Mapping[Any, Any], entries: Mapping[str, StoredTensor], our_names: Iterable[str], path: Path
) -> dict[str, StoredTensor]:
    """The moving averages by name, if the file has them separately; they are stored in the order of the parameters."""
    averages = _mapping(content.get("ema")).get("shadow_params")
    if averages is None:
        return {}
    names = [name for name in our_names if not name.endswith((SCALE, CENTRES))]
    fix = "use the file as it was published"
    check_order(entries, names, path, fix)
    return named_averages(averages if isinstance(averages, list | tuple) else (), names, entries, path, fix)


def _with_all_elements(table: Tensor) -> Tensor:
    """The embedding with `ROWS` rows; new rows are random, like those of elements absent from training."""
    new = max(0, ROWS - len(table))
    return torch.cat([table, torch.randn(new, table.shape[1], generator=torch.Generator().manual_seed(0))])


# --- report ----------------------------------------------------------------------------------------------------


def _taken(model: TrainedModel, averaged: bool, factors: int) -> dict[str, str]:
    (task,), settings = model.tasks, model.backbone_settings
    scales = ", ".join(
        f"{prop}: mean {target.normaliser.mean:g}, standard deviation {target.normaliser.scale:g}"
        for prop, target in task.targets.items()
    )
    return {
        "weights": "averaged (EMA)" if averaged else "as stored",
        "backbone": f"{settings['blocks']} blocks, {settings['atom_width']} features per atom, "
        f"{settings['edge_width']} per edge",
        "scale factors": str(factors),
        f"task {task.name}": f"heads for {' and '.join(task.targets)} ({scales})",
        "energies": str(model.provenance["energies"]),
        "level of theory": task.level_of_theory,
    }


def _left(
    content: Mapping[Any, Any],
    entries: Mapping[str, StoredTensor],
    our_names: Mapping[str, str],
    averaged: bool,
    foreign: tuple[str, ...],
) -> dict[str, str]:
    left = {}
    if averaged:
        left["weights of the last step"] = "the averaged weights are used"
    parts = [part for part in ("optimizer", "scheduler", "amp") if content.get(part)]
    if parts:
        left["state of training"] = ", ".join(parts)
    other = [name for name in entries if name not in our_names and ".seq_energy_pre." not in name]
    if other:
        left["other entries"] = ", ".join(other[:4]) + (f" and {len(other) - 4} more" if len(other) > 4 else "")
    if foreign:
        left["objects"] = f"of {len(foreign)} classes, not opened"
    return left


def _missing(options: Mapping[str, Any], rows: int) -> dict[str, str]:
    missing = {}
    if rows < ROWS:
        missing["elements"] = f"the file has rows for elements 1 to {rows}; the others have random features"
    if not options["direct_forces"]:
        missing["forces"] = "no head; available as derivatives of the energy (predict … --conservative)"
    if not options["enforce_max_neighbors_strictly"]:
        missing["neighbours within 0.01 Å of the cap"] = "trained with them; here only exact ties are kept"
    return missing
