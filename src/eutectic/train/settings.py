"""Everything a run can be told, validated whole before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eutectic.atoms import PROPERTIES, EutecticError
from eutectic.graph import GraphSettings
from eutectic.models.backbone import BackboneSettings
from eutectic.models.heads import HeadSettings
from eutectic.models.registry import BACKBONES, backbone_entry
from eutectic.tasks import TargetSettings


class Settings(BaseModel):
    """Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class SetSettings(Settings):
    """One data set of a pre-training."""

    store: str = Field(description="name of an embedded set, or path of a store")
    targets: dict[str, TargetSettings] = Field(
        default_factory=lambda: {
            "energy": TargetSettings(),
            "forces": TargetSettings(head=HeadSettings(kind="direct_forces"), weight_by_size=True),
        }
    )
    graph: GraphSettings | None = Field(default=None, description="this set's own; the run's if not given")
    split: str | None = Field(default=None, description="the data set's default if not given")
    validation: int = Field(default=200, ge=1, description="structures used to watch the training")
    cap: int | None = Field(default=None, ge=1, description="use at most so many structures, always the same")
    max_share: float | None = Field(default=None, gt=0, le=1, description="at most this part of what is drawn")

    @model_validator(mode="after")
    def _known(self) -> SetSettings:
        return _check_targets(self)


class PretrainSettings(Settings):
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


class DataSettings(Settings):
    """What to fine-tune on."""

    store: str = Field(description="name of an embedded set, or path of a store")
    split: str | None = Field(default=None, description="the data set's default if not given")
    split_seed: int = 0
    train: int | None = Field(default=None, ge=1, description="structures; all of the split's if not given")
    validation: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class FinetuneSettings(Settings):
    """One fine-tuning run."""

    data: DataSettings
    targets: dict[str, TargetSettings] = Field(min_length=1)
    start: str = Field(description="'scratch', or the folder of a pre-trained model")
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
    name: str = "finetuned"
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-3, warmup_steps=20, weight_decay=0.01)
    train: TrainSettings = TrainSettings(steps=500, batch_size=16, evaluate_every=50)

    @model_validator(mode="after")
    def _known(self) -> FinetuneSettings:
        if self.backbone is not None:
            self.backbone.for_graphs([self.graph or GraphSettings()])
        return _check_targets(self)


T = TypeVar("T", bound=BaseModel)


def _check_targets(settings: T) -> T:
    for name in settings.targets:  # type: ignore[attr-defined]
        if name not in PROPERTIES:
            near = difflib.get_close_matches(name, PROPERTIES, 1)
            raise ValueError(f"unknown property {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    return settings


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
                near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
                problems.append(f"unknown setting {path!r}")
                fixes.append(f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}")
            else:
                given = "" if item["type"] == "missing" else f" (given {item.get('input')!r})"
                problems.append(f"{path}: {item['msg']}{given}")
        raise EutecticError(
            where,
            "; ".join(problems),
            f"settings as in {kind.__name__}",
            " ".join(fixes) or "correct the value",
        ) from error


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
