"""What a run is set to, as far as frameworks need to know it; `trillium.config` has the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trillium.clock.places import Places
from trillium.component import Choice, Component
from trillium.data.settings import DataConfig
from trillium.errors import UserError
from trillium.federation.cohort import FleetConfig
from trillium.federation.tiers import OwnModel, Tier, tier_of
from trillium.models.adapters import Adapter
from trillium.models.adapters.lora import Lora
from trillium.models.base import ModelConfig
from trillium.privacy import NoPrivacy, Privacy
from trillium.privacy.sums import Plain, Sums
from trillium.tasks import Task
from trillium.tasks.classification import Classification
from trillium.training.settings import Training
from trillium.wire.wire import Wire

PUBLIC = 256  # rows of a public set, where none are named


class Evaluation(BaseModel):
    """When, where and how the shipped model is measured on held-out data.

    Attributes:
        every: rounds from one evaluation to the next; the last round is always evaluated.
        where: on whose rows: those of the `server`; those of the `clients`, of which each measures the
            model on its own and tells counts and sums; or `both`, and it is the server's by which
            models are compared. With `clients` the server needs no test rows, and holds none back.
        held_back: share of its rows that a client without a test file never trains on, to measure on
            them; drawn by `data.split_seed` and the client's name.
        batch_tokens: tokens at once, with padding; a longer text is a batch of its own.
        keep: whether the model of the `last` round is shipped, or that of the `best` one: by accuracy;
            in language modelling by loss, or by exact match where answers are generated; of preferences
            by reward accuracy. The best is chosen by the rows that it is measured on.
        patience: ends the run when this many rounds have brought no gain; null runs all rounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(default=1, ge=1)
    where: Literal["server", "clients", "both"] = "server"
    held_back: float = Field(default=0.2, gt=0, lt=1)
    batch_tokens: int = Field(default=8192, ge=1)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, ge=1)


class Finetune(BaseModel):
    """What each client does for itself after the last round, with the model that is shipped.

    Attributes:
        local_steps: optimiser steps that it takes on its own rows; null for none. It is measured before
            and after, and what has come of it stays with the client.
        tensors: which move: `head`, a part of a name such as `lora_B`, or a whole name with `*`; the
            others stay as they are shipped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    local_steps: int | None = Field(default=None, ge=1)
    tensors: tuple[str, ...] = Field(default=("head",), min_length=1)


class Report(BaseModel):
    """Where else the measures of a run go, beside its folder.

    Attributes:
        track: trackers that get the settings, every evaluation, bytes by kind and direction, FLOPs and
            peaks of memory. Their packages, which have the same names, must be installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    track: tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...] = ()


class Setting(BaseModel):
    """One run.

    Attributes:
        seed: all randomness of the run follows from it.
        rounds: turns of the federation.
        framework: how the federation learns.
        head: start values of the task head.
        tiers: clients that differ from the others, by a label of your own.
        server: a model that only the server has.
        privacy: whose presence is hidden, and from whom.
        sums: whether the server sees what each client adds to a sum.
        plan: devices and links of the sides, which plans and reports tell times for. A simulation has a
            clock by them, and by that clients may be late.
        model, task, data, adapter, training, fleet, wire, evaluation, finetune, report: see their
            classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=4, ge=1)
    framework: Component  # which kinds of components these two are, rooms above this one say
    head: Component
    model: ModelConfig = ModelConfig()
    task: Choice[Task] = Classification()
    data: DataConfig = DataConfig()
    adapter: Choice[Adapter] = Lora()
    training: Training = Training()
    fleet: FleetConfig = FleetConfig()
    wire: Wire = Wire()
    tiers: dict[str, Tier] = {}
    server: OwnModel = OwnModel()
    evaluation: Evaluation = Evaluation()
    finetune: Finetune = Finetune()
    report: Report = Report()
    privacy: Choice[Privacy] = NoPrivacy()
    sums: Choice[Sums] = Plain()
    plan: Places = Places()

    @model_validator(mode="after")
    def _trainable_bases(self) -> Self:
        """Refuse to train what is quantised, and to round what is rounded already."""
        for own in (self.of(None), *(self._with(tier) for tier in self.tiers.values())):
            form = {"dtype": own.model.dtype, "quantize": own.model.quantize}
            if self.training.autocast and form != {"dtype": "float32", "quantize": "none"}:
                raise UserError(
                    f"training.autocast={self.training.autocast} with model={form}",
                    "it is for weights in float32, of which it rounds what is computed with them",
                    "Write model.dtype=float32 and model.quantize=none, or leave it out",
                )
            if own.model.quantize != "none" and not own.adapter.freezes:
                raise UserError(
                    f"adapter={own.adapter.name} with model.quantize={own.model.quantize}",
                    "it trains the base weights, and quantised ones cannot be trained",
                    "Write adapter=lora, or model.quantize=none",
                )
        return self

    def of(self, client: str | None) -> Self:
        """Return the same with model and adapter of one client, or of the server for `None`."""
        return self._with(self.server if client is None else tier_of(self.tiers, client))

    @property
    def public_size(self) -> int:
        """How many rows all sides hold: none where nothing needs them."""
        if not any(getattr(part, "needs_public", False) for part in (self.framework, self.head)):
            return 0
        return PUBLIC if self.data.public_size is None else self.data.public_size

    @property
    def late(self) -> str:
        """Which setting lets a round go on without some clients; empty where none does."""
        given = f"framework.asynchronous.buffer={self.buffer}"
        return given if self.buffer else self.fleet.late

    @property
    def buffer(self) -> int | None:
        """How many answers make a round, whichever round they were asked in; `None` for its own."""
        found: int | None = getattr(self.framework, "buffer", None)
        return found

    def with_length(self, tokens: int) -> Self:
        """Return the same with the most tokens of an example, if it names none."""
        if self.training.max_length is not None:
            return self
        training = self.training.model_copy(update={"max_length": tokens})
        return self.model_copy(update={"training": training})

    def _with(self, own: OwnModel) -> Self:
        changes = {"model": own.model or self.model, "adapter": own.adapter or self.adapter}
        return self.model_copy(update=changes)

    def wires(self) -> dict[str, Wire]:
        """Return the wires of the run and of its tiers, by where they are written."""
        own = {f"tiers.{label}": tier.wire(self.wire) for label, tier in self.tiers.items()}
        return {"wire": self.wire, **own}

    @property
    def has_other_models(self) -> bool:
        """Whether a tier, or the server, has a model or an adapter of its own."""
        return self.server.differs or any(tier.differs for tier in self.tiers.values())

    def groups(self, clients: Sequence[str]) -> list[list[str]]:
        """Return the clients by what model they have; those with the server's come first."""
        found: list[tuple[Setting, list[str]]] = [(self.of(None), [])]
        for client in clients:
            own = self.of(client)
            names = next((names for other, names in found if other == own), None)
            if names is None:
                found.append((own, names := []))
            names.append(client)
        return [names for _, names in found]
