"""Settings of training runs, validated before a run starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.atoms.properties import define_all
from eutectic.data.catalogue import open_store
from eutectic.graph import GraphSettings
from eutectic.models.backbone import BackboneSettings
from eutectic.models.fewer_blocks import fewer_blocks
from eutectic.models.heads import HeadSettings
from eutectic.models.registry import BACKBONES, backbone_entry
from eutectic.tasks import Targets, TargetSettings


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, and values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Defining(Settings):
    """Settings that can define new properties, before the other fields are validated."""

    define: tuple[str, ...] = Field(
        default=(),
        description="new properties, each as NAME=UNIT[,atom][,vector|tensor|class][,extensive]; properties defined "
        "by a store or model need no definition here",
    )

    @model_validator(mode="before")
    @classmethod
    def _define(cls, values: Any) -> Any:
        given = values.get("define") if isinstance(values, Mapping) else None
        if isinstance(given, str):
            values, given = {**values, "define": (given,)}, (given,)
        if isinstance(given, list | tuple) and all(isinstance(text, str) for text in given):
            define_all(given)
        return values


class BackboneChoice(Settings):
    """A backbone and its settings, validated together; missing settings get their defaults."""

    name: str = Field(default="gemnet_oc", description="backbone: gemnet_oc, gotennet, painn, or a registered one")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="settings of the backbone; see its settings class"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_its_backbone(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name, given = values.get("name", cls.model_fields["name"].default), values.get("settings", {})
        if isinstance(given, BackboneSettings):
            given = given.model_dump()
        if not isinstance(name, str) or not isinstance(given, dict):
            return values
        return {**values, "settings": cls._checked(name, given)}

    @classmethod
    def _checked(cls, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """All settings of a backbone."""
        kind = backbone_entry(name).settings
        unknown = given.keys() - kind.model_fields.keys()
        for other, entry in BACKBONES.items():
            if unknown and unknown <= entry.settings.model_fields.keys():
                raise EutecticError(
                    "backbone.settings",
                    f"{', '.join(sorted(unknown))}: settings of {other}, not of {name}",
                    f"settings of {name}: {', '.join(kind.model_fields)}",
                    f"leave them out, or set backbone.name to {other}",
                )
        return parse(kind, given, "backbone.settings").model_dump(mode="json")

    def of_backbone(self) -> BackboneSettings:
        """The settings as the backbone's own class."""
        return backbone_entry(self.name).settings.model_validate(self.settings)

    def for_graphs(self, graphs: Iterable[GraphSettings]) -> BackboneChoice:
        """A copy with the cutoff of the graphs if it has none; see `BackboneSettings.for_graphs`."""
        return self._with(self.of_backbone().for_graphs(graphs))

    def with_blocks(self, keep: int) -> BackboneChoice:
        """A copy with only the first blocks."""
        return self._with(fewer_blocks(self.of_backbone(), keep, "keep_blocks"))

    def in_training(self, edge_dropout: float) -> BackboneChoice:
        """A copy with the settings used in training; see `BackboneSettings.in_training`."""
        return self._with(self.of_backbone().in_training(edge_dropout))

    def _with(self, settings: BackboneSettings) -> BackboneChoice:
        return BackboneChoice(name=self.name, settings=settings.model_dump())


Decay = Annotated[float, Field(ge=0, lt=1)]


def parse_duration(value: Any) -> Any:
    """Parse "90s", "30m", "1.5h" or "1h30m" to seconds; numbers are returned unchanged.

    Raises:
        ValueError: text in another format.
    """
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?", value.replace(" ", ""))
    try:
        if parts is None or not any(parts.groups()):
            return float(value)
        sizes = (86_400, 3600, 60, 1)
        return sum(size * float(part) for size, part in zip(sizes, parts.groups(), strict=True) if part)
    except ValueError:
        raise ValueError("a time such as 90s, 30m, 2h, 1h30m, or a number of seconds") from None


def duration(seconds: float) -> str:
    """Format a time as `parse_duration` reads it: 45s, 30m, 1h30m."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if number)


class OptimiserSettings(Settings):
    """AdamW with linear warm-up and cosine decay; defaults are JMP's for pre-training (Shoghi et al. 2024)."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw, or muon: orthogonalised updates for matrices (Jordan et al. 2024, scaled as in Liu et al. "
        "2025), and AdamW for other parameters",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="peak learning rate")
    backbone_lr_scale: float = Field(
        default=1.0, gt=0, description="learning rate of the backbone, relative to that of the heads"
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="learning rate of each block relative to the next block, from the embedding to the last block, "
        "which is relative to the heads",
    )
    part_rates: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(
        default_factory=dict,
        description="learning rates of parts of the backbone, relative to that of the heads: part (as in `freeze`) → "
        "factor, multiplied by those of `backbone_lr_scale` and `layer_decay`",
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="AdamW's β₁ and β₂")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW's weight decay, on all parameters")
    warmup_steps: int = Field(default=2000, ge=0, description="steps of linear warm-up")
    warmup_lr_ratio: float = Field(
        default=0.2, gt=0, le=1, description="learning rate at the start of warm-up, relative to the peak"
    )
    final_lr_ratio: float = Field(
        default=0.1, ge=0, le=1, description="learning rate at the end of the cosine decay, relative to the peak"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="gradient clipping: maximum global norm")
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="decay of the exponential moving average (EMA) of the weights"
    )
    scale_shared_gradients: bool = Field(
        default=False,
        description="divide the gradient of parameters shared by several blocks by the number of uses, as in JMP "
        "(GemNet-OC only)",
    )


class LoopSettings(Settings):
    """Batch size and use of the hardware."""

    batch_size: int = Field(default=32, ge=1, description="structures per batch, over all processes")
    checkpoint_every: float = Field(default=60.0, ge=0, description="seconds between checkpoints for resuming")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed")
    processes: int = Field(
        default=1, ge=1, description="training processes on this machine; on a CPU, faster than as many threads"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads per process; default: OMP_NUM_THREADS if set, otherwise cores / processes",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device to train on; auto: a GPU if available"
    )
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="single or double precision, or mixed precision with bfloat16 or float16"
    )
    max_nonfinite_steps: int = Field(
        default=20, ge=0, description="stop the run after more than this many steps with a non-finite loss or gradient"
    )
    keep_nonfinite_steps: int = Field(
        default=3, ge=0, description="number of such steps to save in the run's folder for `eutectic replay`"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="with several processes: replicate the model (ddp; also auto) or shard it (fsdp)",
    )
    accumulate: int = Field(
        default=1, ge=1, description="batches per optimiser step (gradient accumulation), equivalent to a larger batch"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute the activations of blocks in the backward pass: less memory, a third slower",
    )
    compile: bool = Field(
        default=False,
        description="use torch.compile, which takes one to three minutes at the start. Forces as derivatives of the "
        "energy: PaiNN and GotenNet; on a CPU, training steps take half and two thirds of the time. Direct forces: any "
        "backbone, with little gain on a CPU; parts that cannot be compiled run uncompiled",
    )
    out_of_memory: Literal["split", "stop"] = Field(
        default="split",
        description="split: halve a batch that does not fit into memory until it does (same gradient). stop: end the "
        "run; gradients are then reduced during the backward pass, which saves a little time with several processes "
        "(fsdp always does so)",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="background processes per training process that prepare batches; 0: none. Default: one with low "
        "priority on a CPU, up to eight with a GPU, none if less than 1 GiB of shared memory is free",
    )


class TrainSettings(LoopSettings):
    """Length of a pre-training, batch size, and use of the hardware."""

    steps: int = Field(default=1000, ge=1, description="optimiser steps")
    evaluate_every: int = Field(default=200, ge=1, description="steps between validations")


class Coefficients(Settings):
    """Cost of a structure, per atom, edge, triplet and quadruplet; only ratios matter."""

    atom: float = Field(default=0.0, ge=0, description="cost per atom")
    edge: float = Field(default=0.0, ge=0, description="cost per edge")
    triplet: float = Field(default=0.0, ge=0, description="cost per triplet")
    quadruplet: float = Field(default=0.0, ge=0, description="cost per quadruplet")

    @model_validator(mode="after")
    def _some(self) -> Coefficients:
        if not any(self.model_dump().values()):
            raise ValueError("all are zero; give at least one")
        return self


class BatchingSettings(Settings):
    """Grouping of structures into batches (docs/decisions/0006-batches-by-cost.md)."""

    by: Literal["count", "cost"] = Field(
        default="count",
        description="count: batches of `batch_size` structures; cost: batches of equal cost, `batch_size` on average",
    )
    atoms: int | None = Field(
        default=None, ge=1, description="with cost: mean number of atoms per batch; replaces batch_size"
    )
    edges: int | None = Field(
        default=None,
        ge=1,
        description="with cost: mean number of edges per batch; if `atoms` is also given, the stricter one applies",
    )
    window: int = Field(default=16, ge=1, description="with cost: number of consecutive batches cut together")
    coefficients: Coefficients | None = Field(
        default=None, description="with cost: cost model of a structure; default: measured when the run first starts"
    )

    @model_validator(mode="after")
    def _together(self) -> BatchingSettings:
        if self.by == "count" and (self.atoms or self.edges or self.coefficients):
            raise ValueError("atoms, edges and coefficients require `by: cost`; set it, or drop them")
        return self


class SetSettings(Defining):
    """A data set of a pre-training."""

    store: str = Field(description="name of an embedded data set, or path of a store")
    targets: Targets = Field(
        default_factory=lambda: {"energy": TargetSettings(), "forces": TargetSettings(weight_by_size=True)},
        validate_default=True,
        description="properties to learn: property → head, loss and weight",
    )
    graph: GraphSettings | None = Field(
        default=None, description="graph settings of this data set; default: those of the run"
    )
    split: str | None = Field(default=None, description="name of the split; default: the data set's")
    validation: int = Field(default=200, ge=1, description="number of validation structures")
    cap: int | None = Field(
        default=None, ge=1, description="maximum number of training structures; always the same ones"
    )
    max_share: float | None = Field(
        default=None, gt=0, le=1, description="maximum fraction of the drawn structures from this data set"
    )

    @model_validator(mode="before")
    @classmethod
    def _define_those_of_the_store(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            define_of_store(values.get("targets"), values.get("store"))
        return values


class PretrainSettings(Defining):
    """A joint pre-training."""

    sets: dict[str, SetSettings] = Field(min_length=1, description="data sets to train on: name → settings")
    backbone: BackboneChoice = Field(default_factory=BackboneChoice, description="backbone and its settings")
    graph: GraphSettings = Field(default=GraphSettings(), description="graph settings of data sets without their own")
    temperature: float = Field(
        default=2.0, gt=0, description="T of temperature sampling: data set i is drawn with p_i ∝ n_i^(1/T)"
    )
    weights: dict[str, float] | None = Field(
        default=None, description="sampling weights instead of the temperature: data set → relative weight"
    )
    edge_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of edges dropped at random whenever a structure is drawn (JMP: 0.1); GemNet-OC rescales "
        "its outputs accordingly",
    )
    batching: BatchingSettings = Field(default=BatchingSettings(), description="grouping of structures into batches")
    optimiser: OptimiserSettings = Field(default=OptimiserSettings(), description="optimiser and its schedule")
    train: TrainSettings = Field(default=TrainSettings(), description="length of the training, and use of the hardware")
    start: str | None = Field(
        default=None,
        description="folder of a trained model to add data sets to; its backbone, graphs, heads and references are "
        "kept. A new data set may have its own graph settings",
    )
    watch: dict[str, SetSettings] = Field(
        default_factory=dict,
        description="data sets of `start` to validate on without training; default: the data sets of its run",
    )
    loggers: tuple[str, ...] | None = Field(
        default=None, description="csv, tensorboard, wandb; default: csv, and tensorboard if it is installed"
    )

    @model_validator(mode="after")
    def _within_graphs(self) -> PretrainSettings:
        # With `start`, backbone and graph are those of the model.
        if self.start is None:
            self.backbone.for_graphs(self.graphs)
        return self

    @property
    def graphs(self) -> list[GraphSettings]:
        """Graph settings of each data set."""
        return [chosen.graph or self.graph for chosen in self.sets.values()]


class DataSettings(Defining):
    """The data of a fine-tuning."""

    store: str = Field(description="name of a data set, path of a store, or a file that ASE reads")
    split: str | None = Field(default=None, description="name of the split; default: the data set's")
    split_seed: int = Field(default=0, description="seed of the splits `group` and `random`")
    train: int | None = Field(
        default=None, ge=1, description="number of training structures; default: all in the split"
    )
    validation: int | None = Field(
        default=None, ge=1, description="number of validation structures; default: a tenth of the data"
    )
    test: int | None = Field(
        default=None, ge=0, description="number of test structures; 0: no test; default: a tenth of the data"
    )
    keys: dict[str, str] = Field(default_factory=dict, description="for a file: property → its key in the file")
    units: dict[str, str] = Field(default_factory=dict, description="for a file: property → its unit in the file")
    elements: str | None = Field(
        default=None, description="for a file with atom types or labels: their elements, e.g. Cu,Au or OW=O,HW=H"
    )
    level_of_theory: str = Field(default="not stated", description="for a file: level of theory of its labels")
    skip_unconverged: bool = Field(default=False, description="for a file: skip calculations that did not converge")
    test_file: str | None = Field(
        default=None,
        description="store or file to test on, read like the data; no test split is then taken from the data",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_test(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("test_file") is not None:
            if values.get("test"):
                raise ValueError("test and test_file are both given; drop test")
            return {**values, "test": 0}
        return values


class CompanionSettings(Defining):
    """A companion task of a fine-tuning with separate heads: other data, or predictions of the starting model."""

    store: str | None = Field(
        default=None,
        description="name of a data set, path of a store, or a file that ASE reads; null: the training structures, "
        "labelled with the predictions of the starting model",
    )
    targets: Targets | None = Field(
        default=None,
        min_length=1,
        description="properties to learn: property → head, loss and weight; default: those of the task whose heads "
        "are kept, otherwise the properties of the run with labels in this data",
    )
    head_from: str | None = Field(
        default="auto",
        description="task of the starting model whose heads are kept; auto: the task with the name of the companion or "
        "its data set; null: new heads",
    )
    ratio: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="companion structures per structure of the data in a batch; 0: only validated, to monitor "
        "forgetting",
    )
    judged: bool | None = Field(
        default=None,
        description="whether its error counts, as much as that of the data, in the choice of the best step; default: "
        "only if its heads are new",
    )
    split: str | None = Field(default=None, description="name of the split; default: the data set's")
    train: int | None = Field(default=None, ge=1, description="number of training structures; default: all")
    validation: int | None = Field(
        default=None, ge=1, description="number of validation structures; default: at most 64 from the split"
    )

    @model_validator(mode="before")
    @classmethod
    def _define_those_of_the_store(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            targets = values.get("targets")
            if isinstance(targets, list | tuple):
                values = {**values, "targets": {name: {} for name in targets}}
            define_of_store(values.get("targets"), values.get("store"))
        return values


KEPT_HEAD_FIRST_RATE = 0.01
"""Initial learning rate of the warm-up for kept heads, relative to the peak."""


class FinetuneOptimiserSettings(OptimiserSettings):
    """AdamW for runs of a few hundred steps, with a short EMA that does not lag behind (see docs/log.md)."""

    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay, on all parameters")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    clip_norm: float = Field(default=5.0, gt=0, description="gradient clipping: maximum global norm")
    ema_decay: float = Field(
        default=0.9, ge=0, lt=1, description="decay of the exponential moving average (EMA) of the weights"
    )
    kept_head_warmup: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="if heads are kept, which large first steps would spoil: fraction of the run over which the "
        "learning rate is at least warmed up, from a hundredth of the peak; 0: usual warm-up",
    )

    def gentle(self, steps: int) -> FinetuneOptimiserSettings:
        """These settings with the warm-up for kept heads, for a run of `steps` steps."""
        if not self.kept_head_warmup:
            return self
        warm = max(self.warmup_steps, round(self.kept_head_warmup * steps))
        return self.model_copy(
            update={"warmup_steps": warm, "warmup_lr_ratio": min(self.warmup_lr_ratio, KEPT_HEAD_FIRST_RATE)}
        )


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""Seconds, also given as "90s", "30m", "1.5h" or "1h30m"."""


class FinetuneTrainSettings(LoopSettings):
    """Length of a fine-tuning, batch size, and use of the hardware.

    The length is given by one of `steps`, `epochs`, `time` and `until_converged`; `until_converged` can be limited by
    `epochs` or `time`.
    """

    steps: int | None = Field(
        default=None, ge=1, description="length in optimiser steps; default: 500 if no other length is given"
    )
    epochs: float | None = Field(
        default=None, gt=0, le=1e9, description="length in epochs: how often each training structure is drawn"
    )
    time: Duration | None = Field(
        default=None,
        description="length in seconds, or as 90s, 30m, 1h30m; includes validations, but not reading data and testing",
    )
    until_converged: bool = Field(
        default=False,
        description="train at a constant learning rate, lower it when the validation error stops falling, and stop "
        "when that no longer helps",
    )
    patience: int = Field(
        default=5, ge=1, description="with until_converged: validations without improvement before the rate is lowered"
    )
    batch_size: int = Field(default=16, ge=1, description="structures per batch, over all processes")
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between validations; default: a tenth of the run; with until_converged, one epoch (25 to "
        "500 steps)",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = [name for name in ("steps", "epochs", "time") if values.get(name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both lengths of the run; give one of them")
        if values.get("until_converged") and "steps" in given:
            raise ValueError("steps and until_converged are both given; limit until_converged by epochs or time")
        values = dict(values)
        if not given and not values.get("until_converged"):
            given, values["steps"] = ["steps"], 500
        if values.get("evaluate_every") is None and given == ["steps"]:
            with suppress(TypeError, ValueError):
                values["evaluate_every"] = max(1, int(values["steps"]) // 10)
        return values

    @property
    def length(self) -> str:
        """The length as text."""
        words = [f"{self.steps:,} steps"] if self.steps is not None else []
        words += [f"{self.epochs:g} epochs"] if self.epochs is not None else []
        words += [duration(self.time)] if self.time is not None else []
        if self.until_converged:
            return "until converged" + (f", at most {words[0]}" if words else "")
        return words[0]


Effort = Literal["seconds", "minutes", "hour", "full"]


class FinetuneSettings(Defining):
    """A fine-tuning. The command line and Python share these defaults."""

    data: DataSettings = Field(description="data set, split, and how to read a file")
    targets: Targets = Field(
        min_length=1,
        description="properties to learn: property → head, loss and weight; or a list of properties, with defaults",
    )
    start: str = Field(default="eutectic-small", description="name or folder of a pre-trained model, or 'scratch'")
    architecture_from: str | None = Field(
        default=None, description="from scratch: model whose backbone and graph settings are used"
    )
    backbone: BackboneChoice | None = Field(
        default=None, description="from scratch, without `architecture_from`: backbone and its settings"
    )
    graph: GraphSettings | None = Field(
        default=None,
        description="graph settings; default: those of the starting model, with at least 12 neighbours and a smooth "
        "cap where forces are derivatives of the energy",
    )
    head_from: str | None = Field(
        default="auto",
        description="task of the pre-trained model whose heads are reused, so that a run starts from its predictions; "
        "auto: a task that beats the mean predictor, or halves its error at another level of theory; null: new heads",
    )
    companions: dict[str, CompanionSettings] = Field(
        default_factory=dict,
        description="companion tasks learned at the same time: task name → other data, or predictions of the starting "
        "model, so that it does not forget; their structures are added to the batches",
    )
    score_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="weight of each property in the score that selects the best step: the mean over properties of "
        "validation error / error of the mean predictor; default: 1 each",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts of the model that are not trained: backbone, heads, or parts of the backbone: embedding, "
        "basis, block_0, blocks, readout, … (an unknown name lists them)",
    )
    keep_blocks: int | None = Field(
        default=None,
        ge=1,
        description="keep only the first blocks of the backbone, this many; default: all",
    )
    lora: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="train low-rank updates (LoRA) of this rank instead of the backbone's weights; merged at the end",
    )
    energy_stage: float = Field(
        default=0.0, ge=0, lt=1, description="final fraction of the run with a larger weight of the energy; 0: none"
    )
    energy_stage_factor: float = Field(
        default=10.0, gt=0, description="factor by which the weight of the energy is multiplied in this stage"
    )
    effort: Effort | None = Field(
        default=None,
        description="instead of a length in `train`: a ladder of trainings, each longer and of more of the model, as "
        "long as the error improves, for about a minute (seconds), ten minutes (minutes), an hour (hour), or until "
        "each has converged (full); see docs/how-to/fine-tune.md",
    )
    name: str = Field(default="", description="name of the task in the model; default: name of the data")
    uncertainty: bool = Field(
        default=True,
        description="at the end, calibrate uncertainties of scalar properties on the validation structures, with a "
        "pass over at most 2,000 training structures",
    )
    batching: BatchingSettings = Field(default=BatchingSettings(), description="grouping of structures into batches")
    optimiser: FinetuneOptimiserSettings = Field(
        default=FinetuneOptimiserSettings(), description="optimiser and its schedule"
    )
    train: FinetuneTrainSettings = Field(
        default=FinetuneTrainSettings(), description="length of the training, and use of the hardware"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if isinstance(values.get("targets"), list | tuple):
            values["targets"] = {name: {} for name in values["targets"]}
        data = values.get("data")
        if isinstance(data, str | Path):
            data = values["data"] = {"store": str(data)}
        if not values.get("name"):
            store = data.store if isinstance(data, DataSettings) else dict(data or {}).get("store")
            values["name"] = task_name(str(store))
        return values

    @model_validator(mode="before")
    @classmethod
    def _define_those_of_the_store(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            data = values.get("data")
            store = data.get("store") if isinstance(data, Mapping) else getattr(data, "store", data)
            define_of_store(values.get("targets"), store)
        return values

    @model_validator(mode="after")
    def _known_weights(self) -> FinetuneSettings:
        unknown = [name for name in self.score_weights if name not in self.targets]
        if unknown:
            raise ValueError(
                f"score_weights of {', '.join(unknown)}, which are not learned; learned: {', '.join(self.targets)}"
            )
        if all(self.score_weights.get(name, 1.0) == 0 for name in self.targets):
            raise ValueError("score_weights are all 0; give at least one property a weight")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_part(cls, values: Any) -> Any:
        given = values.get("freeze") if isinstance(values, Mapping) else None
        if isinstance(given, str):
            return {**values, "freeze": [name.strip() for name in given.split(",") if name.strip()]}
        return values

    @model_validator(mode="after")
    def _energy_stage(self) -> FinetuneSettings:
        if self.energy_stage:
            if "energy" not in self.targets or len(self.targets) == 1:
                raise ValueError(
                    f"energy_stage raises the weight of the energy relative to other properties; learned: "
                    f"{', '.join(self.targets)}"
                )
            if self.train.until_converged or self.effort == "full":
                raise ValueError("energy_stage needs a length that is fixed beforehand; give steps, epochs or time")
        return self

    @model_validator(mode="after")
    def _names_of_companions(self) -> FinetuneSettings:
        if self.name in self.companions:
            raise ValueError(f"companions.{self.name} has the name of the run's own task; rename one of them")
        if self.companions and self.effort is not None:
            raise ValueError("effort does not support companions; leave them out, or give a length instead")
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> FinetuneSettings:
        from_scratch = self.start == "scratch"
        if self.lora is not None and from_scratch:
            raise ValueError("lora adapts a trained backbone, but this run starts from scratch; leave it out")
        if self.effort is not None:
            given = [name for name, value in (("freeze", self.freeze), ("lora", self.lora)) if value]
            if given:
                raise ValueError(f"effort decides what is trained; leave out {' and '.join(given)}")
            if from_scratch:
                raise ValueError("effort requires a trained backbone, but this run starts from scratch")
        return self

    @model_validator(mode="after")
    def _cutoff(self) -> FinetuneSettings:
        if self.backbone is not None:
            self.backbone.for_graphs([self.graph or GraphSettings()])
        return self


def task_name(store: str) -> str:
    """Name of a task from the name or path of its data: its stem, with only characters allowed in a module name."""
    return re.sub(r"\W+", "_", Path(store).stem if Path(store).is_file() else Path(store).name) or "finetuned"


CONSERVATIVE_FORCE_WEIGHT = 10.0
"""Loss weight of conservative forces (energy: 1); with 1, both errors are larger (docs/log.md)."""


def default_targets(properties: Sequence[str], *, conservative: bool = False) -> dict[str, TargetSettings]:
    """Targets with the default head of each property.

    Args:
        properties: names.
        conservative: predict forces as derivatives of the energy, which becomes a target too, with a smaller weight.
    """
    names = list(dict.fromkeys(properties))
    conservative = conservative and "forces" in names
    if conservative and "energy" not in names:
        names.append("energy")
    targets = {name: TargetSettings() for name in names}
    if conservative:
        head = HeadSettings(kind="gradient_forces")
        targets["forces"] = TargetSettings(head=head, weight=CONSERVATIVE_FORCE_WEIGHT)
    return targets


T = TypeVar("T", bound=BaseModel)


def define_of_store(targets: Any, store: Any) -> None:
    """Register the property definitions of a store if a target is not defined yet."""
    if isinstance(targets, Iterable) and any(name not in PROPERTIES for name in targets):
        # Targets that are still undefined, and a store that cannot be opened, are reported later.
        with suppress(EutecticError):
            open_store(str(store))


def parse(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Validate settings; pydantic's report becomes an `EutecticError`.

    Raises:
        EutecticError: unknown keys (with the nearest known name), wrong types, values out of range.
    """
    try:
        return kind.model_validate(values)
    except EutecticError as error:
        raise EutecticError(f"{where}, {error.where}", error.given, error.expected, error.fix) from error
    except ValidationError as error:
        problems, fixes = [], []
        for item in error.errors():
            path = ".".join(str(p) for p in item["loc"])
            if item["type"] == "extra_forbidden":
                known = _keys_at(kind, item["loc"][:-1])
                problems.append(f"unknown setting {path!r}")
                fixes.append(did_you_mean(str(item["loc"][-1]), known, f"known here: {', '.join(known)}"))
            else:
                # A check of several settings together has no single value to show.
                several = item["type"] in ("missing", "value_error") and isinstance(item.get("input"), Mapping)
                given = "" if several or item["type"] == "missing" else f" (given {item.get('input')!r})"
                message = item["msg"].removeprefix("Value error, ")
                problems.append(f"{path}: {message}{given}" if path else f"{message}{given}")
        raise EutecticError(
            where,
            "; ".join(problems),
            f"settings as in {kind.__name__}",
            " ".join(fixes) or "correct the value",
        ) from error


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` updated with `changes`, section by section."""
    result = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], change)
        else:
            result[key] = change
    return result


def _keys_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at a path in nested settings."""
    node: Any = kind
    for step in path:
        if isinstance(node, type) and issubclass(node, BaseModel):
            field = node.model_fields.get(str(step))
            node = field.annotation if field else None
        else:
            # A dict of settings, or optional settings: the last or first type argument.
            inner = [a for a in getattr(node, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            node = inner[-1] if inner else None
        options = [a for a in getattr(node, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if getattr(node, "__origin__", None) is not dict and options:
            node = options[0]
    return list(node.model_fields) if isinstance(node, type) and issubclass(node, BaseModel) else []
