"""Import the pre-training checkpoints of the original JMP (the layout of jmp-s.pt and jmp-l.pt).

Such a file, a Lightning checkpoint, holds `state_dict` with the raw weights under the original's names;
`optimizer_states[0]["ema"]` with their exponential moving average, without names, in the order of the parameters;
and `hyper_parameters`, instances of the original's own classes, which are not opened: all sizes are read from shapes.

It does not hold the label scales and the cutoffs of the graphs and of the radial basis, which are taken from the
publication (Shoghi et al., ICLR 2024) and its configuration. The per-element energies that were subtracted from the
labels were never published and are reported as missing. Predicted energies are therefore relative to them;
differences between structures of the same composition, and forces, do not depend on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

import eutectic
from eutectic.atoms import EutecticError
from eutectic.checkpoints.imported import ImportReport, check_finite, check_fit, check_order, named_averages
from eutectic.checkpoints.model import TrainedModel, build_backbone
from eutectic.checkpoints.safe_pickle import Archive, StoredTensor
from eutectic.data.datasets import ani1x, oc20, oc22, transition1x
from eutectic.graph import GraphSettings
from eutectic.models.gemnet_oc.published import EMBEDDING, from_published, has_omissions, published_names
from eutectic.models.gemnet_oc.settings import GemNetOCSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.multitask import MultitaskModel
from eutectic.tasks.task import Normaliser, Target, TargetSettings, Task

ENERGIES = (
    "relative: the per-element reference energies that were subtracted from the labels before this model was trained "
    "are not in its file (those of OC20 and OC22 were never published). An energy is off by a sum over the atoms, one "
    "unknown number per element; energy differences between structures of the same composition, and forces, are not"
)


@dataclass(frozen=True, kw_only=True)
class PublishedTask:
    """Published parameters of a task that are not in the file.

    Attributes:
        level_of_theory: level of theory of the labels.
        energy_scale: standard deviation of energies after subtracting references, eV; their mean was taken as 0.
        forces_scale: scale of force components, eV/Å.
        forces_weight: weight of forces in the loss: the data set's mean number of atoms.
        cutoff: cutoff of all four graphs, Å. The main graph has 30 neighbours per atom.
    """

    level_of_theory: str
    energy_scale: float
    forces_scale: float
    forces_weight: float
    cutoff: float

    @property
    def graph(self) -> GraphSettings:
        """Graph settings as published, which differ from the defaults (see `GraphSettings.symmetry`)."""
        return GraphSettings(cutoff=self.cutoff, max_neighbours=30, quadruplet_tags=(1, 2), symmetry="lower_source")


PUBLISHED_TASKS = {
    "oc20": PublishedTask(
        level_of_theory="RPBE",
        energy_scale=24.901469505465872,
        forces_scale=0.5111534595489502,
        forces_weight=oc20.PUBLISHED_SIZE[1],
        cutoff=12.0,
    ),
    "oc22": PublishedTask(
        level_of_theory="PBE+U",
        energy_scale=25.229595396538468,
        forces_scale=0.25678861141204834,
        forces_weight=oc22.PUBLISHED_SIZE[1],
        cutoff=12.0,
    ),
    "ani1x": PublishedTask(
        level_of_theory="ωB97X/6-31G(d)",
        energy_scale=2.8700712783472118,
        forces_scale=2.131422996520996,
        forces_weight=ani1x.PUBLISHED_SIZE[1],
        cutoff=8.0,
    ),
    "transition1x": PublishedTask(
        level_of_theory="ωB97X/6-31G(d)",
        energy_scale=1.787466168382901,
        forces_scale=0.3591422140598297,
        forces_weight=transition1x.PUBLISHED_SIZE[1],
        cutoff=8.0,
    ),
}
"""In the order of the published heads (JMP's pre-training configuration: normalisation, loss scales, graphs)."""

BUFFERS = ("rbf.offset", "rbf.temps", "scale_factor")
ALIAS = ".seq_energy_pre."
COUNTER = re.compile(r"task_steps\..*_typed_moduledict_(\w+)\.value")
HEADS = {"energy": "output.out_energy", "forces": "output.out_forces"}
ORIGINAL = "a pre-training checkpoint in the layout of jmp-s.pt and jmp-l.pt"


OTHER_SIZE = "a GemNet-OC that is neither JMP-S nor JMP-L"


def read_published_checkpoint(path: Path, *, raw: bool = False) -> tuple[TrainedModel, ImportReport]:
    """Read a checkpoint of the original, without executing code in it (see `eutectic.checkpoints.safe_pickle`).

    The original's loader keeps raw weights in a part of every output block, since it ignores the second name of a layer
    that has two; this one uses EMA weights throughout.

    Args:
        path: jmp-s.pt, jmp-l.pt, or a file with the same layout, of any size.
        raw: use the weights of the last step instead of the EMA.

    Raises:
        EutecticError: another kind of file; a file that is damaged, lacks EMA weights, or has inconsistent entries.
    """
    path = Path(path)
    with Archive(path) as archive:
        content = archive.content if isinstance(archive.content, dict) else {}
        entries = _entries(content, path)
        weights = entries if raw else entries | _averaged(content, entries, path)
        shapes = {name: entry.shape for name, entry in entries.items()}
        settings = settings_from_shapes(shapes, path)
        names = _task_names(entries)
        heads = {name: _heads(entries, index) for name, index in names.items()}
        # On the meta device, since initialising the weights takes minutes for JMP-L.
        with torch.device("meta"):
            backbone, _ = build_backbone("gemnet_oc", settings.model_dump())
            module = MultitaskModel(backbone, heads)
        our_names = {original: f"backbone.{name}" for original, name in published_names(settings).items()}
        our_names |= {
            f"{HEADS[prop]}.{index}.{rest}": f"heads.{name}.{prop}.perceptron.{rest}"
            for name, index in names.items()
            for prop in heads[name]
            for rest in _under(entries, f"{HEADS[prop]}.{index}.")
        }
        check_fit(shapes, our_names, module, path, ORIGINAL)
        if not raw:
            # The unnamed EMA weights are assigned to layers by their order.
            expected_order = [name for name in published_names(settings) if _is_parameter(name)]
            check_order(entries, expected_order, path, _RAW)
        tensors = {name: archive.tensor(weights[name]).float() for name in our_names}
        foreign = archive.foreign
    try:
        state = {f"backbone.{name}": value for name, value in from_published(tensors, settings).items()}
    except ValueError as error:
        raise EutecticError(str(path), str(error), ORIGINAL, "use the file as it was published") from error
    state |= {name: tensors[original] for original, name in our_names.items() if name.startswith("heads.")}
    module.load_state_dict(state, assign=True)
    check_finite(state, path)

    size = {GemNetOCSettings.small(): "JMP-S", GemNetOCSettings.large(): "JMP-L"}.get(settings, OTHER_SIZE)
    model = TrainedModel(
        module=module.eval(),
        tasks=tuple(_task(name, heads[name]) for name in names),
        backbone="gemnet_oc",
        backbone_settings=settings.model_dump(mode="json"),
        graph=PUBLISHED_TASKS["oc20"].graph,
        provenance={
            "eutectic": eutectic.__version__,
            "imported_from": path.name,
            "original": "JMP (Shoghi et al., ICLR 2024), pre-training checkpoint",
            "size": size,
            "weights": "raw" if raw else "averaged (EMA)",
            "epoch": _integer(content.get("epoch")),
            "steps": _integer(content.get("global_step")),
            "licence": "that of the imported file; the original's code is CC-BY-NC-4.0, its weights name none",
            "energies": ENERGIES,
            # The file does not record the elements in the training data.
            "pretrained_on": {
                name: {"level_of_theory": PUBLISHED_TASKS[name].level_of_theory, "elements": []} for name in names
            },
        },
    )
    parameters = sum(p.numel() for p in module.parameters())
    report = ImportReport(
        size=size,
        parameters=parameters,
        taken=_taken(settings, names, heads, tensors, raw),
        left=_left(content, entries, our_names, foreign, raw),
        missing=_missing(names, tensors),
    )
    return model, report


# --- reading ---------------------------------------------------------------------------------------------------


def _entries(content: Mapping[object, object], path: Path) -> dict[str, StoredTensor]:
    state = content.get("state_dict")
    entries = {
        name: value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(value, StoredTensor)
    }
    if EMBEDDING not in entries or not any(name.startswith("backbone.") for name in entries):
        present = ", ".join(list(entries)[:3] or [str(key) for key in list(content)[:5]]) or "nothing"
        raise EutecticError(
            str(path),
            f"no entries state_dict['{EMBEDDING}'] and state_dict['backbone.…']; it contains {present}",
            ORIGINAL,
            "give a pre-training checkpoint of the original; its fine-tuned models have another layout",
        )
    return entries


_RAW = "use the file as it was published, or the raw weights (--raw)"


def _is_parameter(name: str) -> bool:
    return not (name.endswith(BUFFERS) or ALIAS in name or name.startswith("task_steps."))


def _averaged(
    content: Mapping[object, object], entries: Mapping[str, StoredTensor], path: Path
) -> dict[str, StoredTensor]:
    """EMA weights by name; they are stored in the order of the parameters, the same as that of the named entries."""
    states = content.get("optimizer_states")
    first = states[0] if isinstance(states, list) and states else None
    averaged = first.get("ema") if isinstance(first, dict) else None
    if not isinstance(averaged, tuple | list):
        raise EutecticError(
            str(path),
            'no averaged weights (optimizer_states[0]["ema"])',
            "the moving average of every weight beside the raw weights",
            "use a file that has them, or the raw weights (--raw)",
        )
    names = [name for name in entries if _is_parameter(name)]
    return named_averages(averaged, names, entries, path, _RAW)


def _under(entries: Iterable[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in entries if name.startswith(prefix)]


def settings_from_shapes(shapes: Mapping[str, tuple[int, ...]], path: Path) -> GemNetOCSettings:
    """All sizes of a published model, from the names and shapes of its entries.

    Settings that no shape determines are those of JMP: a radial basis cutoff of 12 Å, regardless of the graphs' cutoff,
    and an envelope exponent of 5.

    Args:
        shapes: shapes by published name; other names are ignored.
        path: path of the file, for the error.

    Raises:
        EutecticError: an entry that determines a size is missing.
    """

    def size(name: str, axis: int) -> int:
        return shapes[f"backbone.{name}"][axis]

    def count(name: str) -> int:
        """Number of distinct indices that follow a name."""
        return len({rest.partition(".")[0] for rest in _under(shapes, f"backbone.{name}.")})

    def has(name: str) -> bool:
        return count(name) > 0

    block, output = "int_blocks.0", "out_blocks.0"
    # Not a residual layer; the published model has it only if the widths of edges and atoms differ.
    dense = f"backbone.{block}.atom_update.layers.0.linear.weight" in shapes
    try:
        sizes: dict[str, object] = {
            "blocks": count("int_blocks"),
            "num_elements": shapes[EMBEDDING][0],
            "atom_width": shapes[EMBEDDING][1],
            "edge_width": size(f"{block}.dense_ca.linear.weight", 0),
            "triplet_in": size(f"{block}.trip_interaction.down_projection.linear.weight", 0),
            "triplet_out": size(f"{block}.trip_interaction.up_projection_ca.linear.weight", 1),
            "num_radial": size("bases.radial_basis.rbf.offset", 0),
            "radial_width": size("bases.mlp_rbf_tint.linear.weight", 0),
            "num_spherical": size("bases.mlp_cbf_tint.weight", 1),
            "circular_width": size("bases.mlp_cbf_tint.weight", 2),
            "radial_cutoff": 12.0,
            "residuals_before_skip": count(f"{block}.layers_before_skip"),
            "residuals_after_skip": count(f"{block}.layers_after_skip"),
            "residuals_atom_skip": count(f"{block}.atom_emb_layers"),
            "residuals_concat": count(f"{block}.residual_m"),
            "residuals_atom": count(f"{block}.atom_update.layers") - dense,
            "residuals_output": count(f"{output}.seq_energy2"),
            "residuals_readout": count("out_mlp_E.out_mlp") - 1,
            "quadruplet": has(f"{block}.quad_interaction"),
            "atom_edge": has(f"{block}.atom_edge_interaction"),
            "edge_atom": has(f"{block}.edge_atom_interaction"),
            "atom_atom": has(f"{block}.atom_interaction"),
            "edge_features": has("out_mlp_F"),
        }
        if sizes["quadruplet"]:
            sizes["quadruplet_in"] = size(f"{block}.quad_interaction.down_projection.linear.weight", 0)
            sizes["quadruplet_out"] = size(f"{block}.quad_interaction.up_projection_ca.linear.weight", 1)
            sizes["spherical_width"] = size("bases.mlp_sbf_qint.weight", 2)
        if sizes["atom_atom"]:
            sizes["pair_in"] = size(f"{block}.atom_interaction.down_projection.linear.weight", 0)
            sizes["pair_out"] = size(f"{block}.atom_interaction.up_projection.linear.weight", 1)
        settings = GemNetOCSettings.model_validate(sizes)
        equal = settings.edge_width == settings.atom_width
        omissions = has_omissions(settings) and not (equal and dense)
        return settings.model_copy(update={"published_omissions": omissions})
    except (KeyError, IndexError, ValidationError) as error:
        raise EutecticError(
            str(path),
            f"sizes that cannot be read from the entries of state_dict ({type(error).__name__}: {error})",
            ORIGINAL,
            "use the file as it was published",
        ) from error


def _task_names(entries: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Known task → index of its heads. Step counters name the tasks in order; the default is the published order."""
    counted = [match[1] for name in entries if (match := COUNTER.fullmatch(name))]
    numbers = {rest.partition(".")[0] for prefix in HEADS.values() for rest in _under(entries, f"{prefix}.")}
    if not counted and len(numbers) == len(PUBLISHED_TASKS):
        counted = list(PUBLISHED_TASKS)
    return {name: i for i, name in enumerate(counted) if name in PUBLISHED_TASKS and str(i) in numbers}


def _heads(entries: Mapping[str, StoredTensor], index: int) -> dict[str, HeadSettings]:
    settings: dict[str, HeadSettings] = {}
    for prop, prefix in HEADS.items():
        layers = {rest.partition(".")[0] for rest in _under(entries, f"{prefix}.{index}.")}
        if layers:
            kind = "scalar" if prop == "energy" else "direct_forces"
            settings[prop] = HeadSettings(kind=kind, pooling="sum", layers=len(layers) - 1)
    return settings


def _task(name: str, heads: Mapping[str, HeadSettings]) -> Task:
    published = PUBLISHED_TASKS[name]
    scales = {"energy": published.energy_scale, "forces": published.forces_scale}
    return Task(
        name=name,
        level_of_theory=published.level_of_theory,
        targets={
            prop: Target(
                settings=TargetSettings(head=head, weight_by_size=prop == "forces"),
                normaliser=Normaliser(references=None, mean=0.0, scale=scales[prop]),
                weight=published.forces_weight if prop == "forces" else 1.0,
            )
            for prop, head in heads.items()
        },
        graph=published.graph,
    )


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


# --- report ----------------------------------------------------------------------------------------------------


def _taken(
    settings: GemNetOCSettings,
    names: Mapping[str, int],
    heads: Mapping[str, Mapping[str, HeadSettings]],
    tensors: Mapping[str, Tensor],
    raw: bool,
) -> dict[str, str]:
    factors = sum(name.endswith("scale_factor") for name in tensors)
    taken = {
        "weights": "raw, of the last step" if raw else "averaged (EMA)",
        "backbone": f"{settings.blocks} blocks, {settings.atom_width} features per atom, "
        f"{settings.edge_width} per edge",
        "scale factors": str(factors),
    }
    taken |= {f"task {name}": f"heads for {' and '.join(heads[name])}" for name in names}
    if names:
        taken["from the publication"] = "label scales, graph cutoffs (12 Å; molecules 8 Å), levels of theory"
    return taken


def _left(
    content: Mapping[object, object],
    entries: Mapping[str, StoredTensor],
    our_names: Mapping[str, str],
    foreign: tuple[str, ...],
    raw: bool,
) -> dict[str, str]:
    left: dict[str, str] = {}
    if not raw:
        left["raw weights"] = (
            f"{sum(map(_is_parameter, entries))} entries; the averaged weights are used (--raw for the raw ones)"
        )
    elif content.get("optimizer_states"):
        left["averaged weights"] = "if any; raw weights were requested"
    if content.get("optimizer_states"):
        left["optimiser"] = "optimiser state"
    aliases = sum(ALIAS in name for name in entries)
    if aliases:
        left["second names"] = f"{aliases} entries seq_energy_pre, which duplicate those of layers"
    counters = sum(name.startswith("task_steps.") for name in entries)
    if counters:
        left["step counters"] = f"{counters} entries"
    unknown = [n for n in entries if n not in our_names and ALIAS not in n and not n.startswith("task_steps.")]
    if unknown:
        left["other entries"] = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
    if foreign:
        packages = sorted({name.partition(".")[0] for name in foreign} - {"__builtin__", "builtins"})
        left["settings"] = f"objects of {len(foreign)} classes, not opened ({', '.join(packages[:6])})"
    return left


def _missing(names: Mapping[str, int], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    missing = {}
    if names:
        missing["reference energies"] = f"for every task; energies are {ENERGIES}"
    absent = [name for name in PUBLISHED_TASKS if name not in names]
    if absent:
        missing["tasks"] = f"no heads identified for {', '.join(absent)}"
    unfitted = sum(name.endswith("scale_factor") and float(value) == 0 for name, value in tensors.items())
    if unfitted:
        missing["scale factors"] = f"{unfitted} not fitted; set to 1, as in the original"
    return missing
