"""Everything a run can be told, validated whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eutectic.atoms import PROPERTIES, EutecticError, did_you_mean
from eutectic.atoms.properties import define_all
from eutectic.data.catalogue import open_store
from eutectic.graph import GraphSettings
from eutectic.models.backbone import BackboneSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.registry import BACKBONES, backbone_entry
from eutectic.tasks import Targets, TargetSettings


class Settings(BaseModel):
    """Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Defining(Settings):
    """Settings that may define properties of the user's own, before anything else in them is looked at."""

    define: tuple[str, ...] = Field(
        default=(),
        description="properties of your own, each as NAME=UNIT[,atom][,vector|tensor|class][,extensive]; stores and "
        "models that have such properties define them by themselves",
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
    """A backbone and its own settings, which are checked at once; those not given get their defaults."""

    name: str = Field(default="gemnet_oc", description="gemnet_oc, painn, or a registered one")
    settings: dict[str, Any] = Field(default_factory=dict, description="see the backbone's settings class")

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
        """All settings of that backbone."""
        kind = backbone_entry(name).settings
        unknown = given.keys() - kind.model_fields.keys()
        for other, entry in BACKBONES.items():
            if unknown and unknown <= entry.settings.model_fields.keys():
                raise EutecticError(
                    "backbone.settings",
                    f"{', '.join(sorted(unknown))}, known to {other} and not to {name}",
                    f"settings of {name}: {', '.join(kind.model_fields)}",
                    f"leave them out, or set backbone.name to {other}",
                )
        return parse(kind, given, "backbone.settings").model_dump(mode="json")

    def of_backbone(self) -> BackboneSettings:
        """The settings as the backbone's own class."""
        return BACKBONES[self.name].settings.model_validate(self.settings)

    def for_graphs(self, graphs: Iterable[GraphSettings]) -> BackboneChoice:
        """The same with the cutoff of the graphs where it has none of its own; see `BackboneSettings.for_graphs`."""
        return self._with(self.of_backbone().for_graphs(graphs))

    def in_training(self, edge_dropout: float) -> BackboneChoice:
        """The same as it is trained; see `BackboneSettings.in_training`."""
        return self._with(self.of_backbone().in_training(edge_dropout))

    def _with(self, settings: BackboneSettings) -> BackboneChoice:
        return BackboneChoice(name=self.name, settings=settings.model_dump())


class OptimiserSettings(Settings):
    """AdamW with warm-up and cosine; defaults are JMP's for pre-training (Shoghi et al. 2024)."""

    learning_rate: float = Field(default=3e-4, gt=0)
    backbone_lr_scale: float = Field(
        default=1.0, gt=0, description="learning rate of the backbone, relative to that of the heads"
    )
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0, description="on all parameters, the embedding included")
    warmup_steps: int = Field(default=2000, ge=0)
    warmup_lr_ratio: float = Field(default=0.2, gt=0, le=1, description="first learning rate, relative")
    final_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="last learning rate of the cosine, relative")
    clip_norm: float = Field(default=1.0, gt=0, description="global norm of the gradient")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="exponential moving average of the weights")
    scale_shared_gradients: bool = Field(
        default=False,
        description="divide the gradient of parameters that every block uses by the number of uses, as JMP does "
        "(GemNet-OC only)",
    )


class TrainSettings(Settings):
    """How long, how much at a time, on what."""

    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=32, ge=1, description="structures per batch, over all processes")
    evaluate_every: int = Field(default=200, ge=1, description="steps between validations")
    checkpoint_every: float = Field(default=60.0, ge=0, description="seconds between checkpoints for resuming")
    seed: int = 0
    processes: int = Field(default=1, ge=1, description="on this machine; on a CPU two processes beat two threads")
    threads: int | None = Field(default=None, description="per process; the cores shared out if not given")
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    max_nonfinite_steps: int = Field(default=20, ge=0, description="steps with a non-finite gradient before giving up")
    keep_nonfinite_steps: int = Field(
        default=3, ge=0, description="of those, how many are kept whole in the run's folder for `eutectic replay`"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="several processes: each with the whole model (ddp, also auto), or each with a share of it (fsdp)",
    )
    accumulate: int = Field(
        default=1, ge=1, description="batches added up to one step; the same step as with one batch as large as all"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute the inside of blocks twice instead of keeping it: less memory, a third slower",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile (a minute or more; little is gained on a CPU; direct forces only); what it cannot "
        "compile runs as ever",
    )
    out_of_memory: Literal["split", "stop"] = Field(
        default="split",
        description="a batch too large for the memory is halved until it fits, the step staying the same; or the run "
        "stops. 'stop' sends gradients while they are computed, which with several processes saves a little time "
        "(fsdp always does)",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="processes beside each training process that make batches ahead; 0 makes them in line. If not "
        "given: one on a CPU, which takes only time that nobody else wants, up to eight with a GPU; none where less "
        "than 1 GiB of shared memory is free",
    )


class Coefficients(Settings):
    """What one structure adds to the cost of a batch; only ratios matter to where batches are cut."""

    atom: float = Field(default=0.0, ge=0)
    edge: float = Field(default=0.0, ge=0)
    triplet: float = Field(default=0.0, ge=0)
    quadruplet: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Coefficients:
        if not any(self.model_dump().values()):
            raise ValueError("all are zero, so that no structure costs anything; give at least one")
        return self


class BatchingSettings(Settings):
    """Where the sequence of structures is cut into batches (docs/decisions/0006-batches-by-cost.md)."""

    by: Literal["count", "cost"] = Field(
        default="count", description="batches of equally many structures, or of equal cost and `batch_size` on average"
    )
    atoms: int | None = Field(
        default=None, ge=1, description="with 'cost': budget of a batch on average; replaces batch_size"
    )
    edges: int | None = Field(
        default=None, ge=1, description="with 'cost': budget of a batch on average; the tighter of the two counts"
    )
    window: int = Field(default=16, ge=1, description="with 'cost': batches that are cut together")
    coefficients: Coefficients | None = Field(
        default=None, description="with 'cost': measured on the device at the first start if not given"
    )

    @model_validator(mode="after")
    def _together(self) -> BatchingSettings:
        if self.by == "count" and (self.atoms or self.edges or self.coefficients):
            raise ValueError("atoms, edges and coefficients are for by: cost; set `by: cost` or drop them")
        return self


class SetSettings(Defining):
    """One data set of a pre-training."""

    store: str = Field(description="name of an embedded set, or path of a store")
    targets: Targets = Field(
        default_factory=lambda: {"energy": TargetSettings(), "forces": TargetSettings(weight_by_size=True)},
        validate_default=True,
    )
    graph: GraphSettings | None = Field(default=None, description="this set's own; the run's if not given")
    split: str | None = Field(default=None, description="the data set's default if not given")
    validation: int = Field(default=200, ge=1, description="structures used to watch the training")
    cap: int | None = Field(default=None, ge=1, description="use at most so many structures, always the same")
    max_share: float | None = Field(default=None, gt=0, le=1, description="at most this part of what is drawn")

    @model_validator(mode="before")
    @classmethod
    def _define_those_of_the_store(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            define_of_store(values.get("targets"), values.get("store"))
        return values


class PretrainSettings(Defining):
    """A joint pre-training."""

    sets: dict[str, SetSettings] = Field(min_length=1)
    backbone: BackboneChoice = Field(default_factory=BackboneChoice)
    graph: GraphSettings = GraphSettings()
    temperature: float = Field(default=2.0, gt=0, description="p_i ∝ n_i^(1/T)")
    weights: dict[str, float] | None = Field(
        default=None, description="set → share of what is drawn, instead of the temperature"
    )
    edge_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the edges left out at random, anew each time (JMP: 0.1); GemNet-OC makes up for it",
    )
    batching: BatchingSettings = BatchingSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    train: TrainSettings = TrainSettings()
    start: str | None = Field(
        default=None,
        description="folder of a finished model to add sets to: its backbone, graphs, heads and references stay; "
        "a new set may have a graph of its own",
    )
    watch: dict[str, SetSettings] = Field(
        default_factory=dict,
        description="sets of `start` that are not learned from but validated on; those of its run if not given",
    )
    loggers: tuple[str, ...] | None = Field(
        default=None, description="csv, tensorboard, wandb; csv and, where it is installed, tensorboard if not given"
    )

    @model_validator(mode="after")
    def _within_graphs(self) -> PretrainSettings:
        # With `start`, backbone and graph are the model's.
        if self.start is None:
            self.backbone.for_graphs(self.graphs)
        return self

    @property
    def graphs(self) -> list[GraphSettings]:
        """Of each set."""
        return [chosen.graph or self.graph for chosen in self.sets.values()]


class DataSettings(Defining):
    """The data of a fine-tuning."""

    store: str = Field(description="name of a data set, path of a store, or a file that ASE reads")
    split: str | None = Field(default=None, description="name of the split; the data set's default if not given")
    split_seed: int = Field(default=0, description="seed of the splits `group` and `random`")
    train: int | None = Field(default=None, ge=1, description="training structures; all of the split's if not given")
    validation: int | None = Field(
        default=None, ge=1, description="validation structures; a tenth of the data if not given"
    )
    test: int | None = Field(
        default=None, ge=0, description="test structures; a tenth of the data if not given, 0 for no test"
    )
    keys: dict[str, str] = Field(
        default_factory=dict, description="for a file: property → name of the entry that holds it"
    )
    units: dict[str, str] = Field(default_factory=dict, description="for a file: property → its unit there")
    level_of_theory: str = Field(default="not stated", description="for a file: level of theory of its labels")


class FinetuneOptimiserSettings(OptimiserSettings):
    """AdamW for runs of a few hundred steps: a short EMA, which does not lag behind (see docs/log.md)."""

    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="on all parameters, the embedding included")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up")
    clip_norm: float = Field(default=5.0, gt=0, description="largest global norm of the gradient")
    ema_decay: float = Field(default=0.9, ge=0, lt=1, description="decay of the exponential moving average (EMA)")


class FinetuneTrainSettings(TrainSettings):
    """Length of a fine-tuning, and how it uses the machine."""

    steps: int = Field(default=500, ge=1, description="updates of the weights")
    batch_size: int = Field(default=16, ge=1, description="structures per batch, over all processes")
    evaluate_every: int = Field(
        default=50, ge=1, description="steps between validations; a tenth of the steps if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _ten_validations(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("evaluate_every") is None and "steps" in values:
            with suppress(TypeError, ValueError):
                return {**values, "evaluate_every": max(1, int(values["steps"]) // 10)}
        return values


class FinetuneSettings(Defining):
    """One fine-tuning. These are the only defaults, for the command line and for Python alike."""

    data: DataSettings
    targets: Targets = Field(
        min_length=1, description="property → head, loss and weight; a list of properties takes the defaults of each"
    )
    start: str = Field(default="eutectic-small", description="'scratch', or the name or folder of a pre-trained model")
    architecture_from: str | None = Field(
        default=None,
        description="for a start from scratch: a model whose backbone and graph settings are taken",
    )
    backbone: BackboneChoice | None = Field(
        default=None, description="for a start from scratch without `architecture_from`"
    )
    graph: GraphSettings | None = Field(default=None, description="the start's if not given")
    head_from: str | None = Field(
        default=None,
        description="task of the start whose heads are kept, so that a run begins with its forces; fresh if none",
    )
    name: str = Field(default="", description="name of the task in the model; the data's if not given")
    batching: BatchingSettings = BatchingSettings()
    optimiser: FinetuneOptimiserSettings = FinetuneOptimiserSettings()
    train: FinetuneTrainSettings = FinetuneTrainSettings()

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
    def _cutoff(self) -> FinetuneSettings:
        if self.backbone is not None:
            self.backbone.for_graphs([self.graph or GraphSettings()])
        return self


def task_name(store: str) -> str:
    """A data set's name as a task's: the last part of a path without its ending, fit for the name of a module."""
    return re.sub(r"\W+", "_", Path(store).stem if Path(store).is_file() else Path(store).name) or "finetuned"


def targets_of(
    properties: Sequence[str], *, forces: Literal["direct", "gradient"] = "direct"
) -> dict[str, TargetSettings]:
    """Properties, each with the head that follows from it.

    Args:
        properties: names.
        forces: predicted directly, or as the gradient of the energy (which is then learned too).
    """
    names = list(dict.fromkeys(properties))
    gradient = forces == "gradient" and "forces" in names
    if gradient and "energy" not in names:
        names.append("energy")
    kinds = {"forces": "gradient_forces"} if gradient else {}
    return {name: TargetSettings(head=HeadSettings(kind=kinds.get(name))) for name in names}


T = TypeVar("T", bound=BaseModel)


def define_of_store(targets: Any, store: Any) -> None:
    """Learn the definitions of properties that a store brings along, where a target is not known yet."""
    if isinstance(targets, Iterable) and any(name not in PROPERTIES for name in targets):
        # A target that the store does not define either is refused when the targets are checked; a store that
        # cannot be opened, when it is used.
        with suppress(EutecticError):
            open_store(str(store))


def parse(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Validate settings, turning pydantic's report into one error a user can act on.

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
                # A rule about several settings has no single value to show.
                whole = item["type"] in ("missing", "value_error") and isinstance(item.get("input"), Mapping)
                given = "" if whole or item["type"] == "missing" else f" (given {item.get('input')!r})"
                said = item["msg"].removeprefix("Value error, ")
                problems.append(f"{path}: {said}{given}" if path else f"{said}{given}")
        raise EutecticError(
            where,
            "; ".join(problems),
            f"settings as in {kind.__name__}",
            " ".join(fixes) or "correct the value",
        ) from error


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `values`, section by section."""
    result = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], change)
        else:
            result[key] = change
    return result


def _keys_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at a place in a tree of settings."""
    here: Any = kind
    for step in path:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(step))
            here = field.annotation if field else None
        else:
            # A dict of settings or an optional one: what stands last or first among its arguments.
            inner = [a for a in getattr(here, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            here = inner[-1] if inner else None
        options = [a for a in getattr(here, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if getattr(here, "__origin__", None) is not dict and options:
            here = options[0]
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
