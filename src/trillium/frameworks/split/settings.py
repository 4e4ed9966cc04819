"""The settings of Split-FedLLM, and what of a model is whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from trillium.component import Choice
from trillium.errors import UserError
from trillium.federation.client import Client
from trillium.federation.tiers import Tier
from trillium.frameworks import Framework
from trillium.frameworks.split.defences import Defence, NoDefence
from trillium.frameworks.split.delta import Delta
from trillium.models.load import LanguageModel
from trillium.models.own import Ends
from trillium.models.parts import Parts
from trillium.tasks import Example, Task
from trillium.training.settings import Training

CACHE_BYTES = 16 * 1024**3


class SplitSettings(Framework):
    """Training across a cut.

    Attributes:
        cut: how many blocks the client runs before the server; a tier may have fewer. `trillium plan`
            proposes one for `auto`.
        shape: `two_part` sends labels to the server; `u` keeps them, and the last blocks, at the
            client.
        tail: first block of the client's last part in the U shape; by default that part
            holds only the final norm and the task head.
        mode: `relay`: clients train one after the other and hand their part on; `splitfed_v1`: in
            parallel, each with its copy of the server part, averaged per round; `splitfed_v2`: one
            server part takes the clients' batches in random turns; `coalesced`: the server takes the
            batches of all clients as one. Client parts are averaged per round in all but `relay`.
        train: whose adapter trains; a client that is frozen gets no gradients. The last part of the U
            shape, which holds the task head, always trains.
        cache: whether a client sends the activations of each sample once, and the server keeps them.
            By default it does so if it can: with `train=server`, if nothing in the client's blocks
            is random (dropout).
        cache_bytes: largest size of the file in which the server keeps activations.
        local_rounds: number of rounds at the beginning in which clients train their first blocks by
            themselves, with a small head of their own, and these are averaged; then they are
            frozen. For `train=server`.
        defence: what clients do to activations before these leave.
        leakage: whether the last evaluation says what activations give away: it attacks held-out texts,
            with the public set to train on.
        staleness: with 1, clients run their next batch while the server works on this one; the first
            blocks' gradients are then of weights one step old. If nothing trains at the client, it
            changes no result.
        delta: sends activations as changes to those of the same sample before, where the client's first
            blocks train; null sends them whole.
    """

    cuts_models: ClassVar[bool] = True

    cut: int = Field(default=1, ge=1)
    shape: Literal["two_part", "u"] = "two_part"
    tail: int | None = Field(default=None, ge=2)
    mode: Literal["relay", "splitfed_v1", "splitfed_v2", "coalesced"] = "coalesced"
    train: Literal["both", "server", "client"] = "both"
    cache: bool | None = None
    cache_bytes: int = Field(default=CACHE_BYTES, ge=1)
    local_rounds: int = Field(default=0, ge=0)
    defence: Choice[Defence] = NoDefence()
    leakage: bool = False
    staleness: int = Field(default=0, ge=0, le=1)
    delta: Delta | None = None

    @field_validator("cut", mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        if value == "auto":
            raise UserError(
                "framework.cut=auto",
                "a run needs a number of blocks for the clients",
                "Let `trillium plan` propose one that the clients can bear",
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tail is not None and self.shape == "two_part":
            raise UserError(
                f"tail={self.tail}",
                "two_part gives the client no last part",
                "Write shape=u, too",
            )
        return self

    @property
    def needs_public(self) -> bool:
        """For the attacker to learn from."""
        return self.leakage

    @property
    def hides(self) -> bool:
        """A defence may draw noise."""
        return self.defence.name != NoDefence.name

    def parts_of(self, client: Client) -> Parts:
        """Return the model as a client cuts it, which may hold fewer blocks than others."""
        return self.parts(client.model, client.examples, client.tier.cut)

    def parts(
        self, model: LanguageModel, examples: Sequence[Example], cut: int | None = None
    ) -> Parts:
        """Return the cut model; the first call in a process checks it on a few examples."""
        ends = Ends(cut or self.cut, self.shape == "u", self.tail)
        return model.parts(ends.cut, ends.tail_of(model.num_blocks), examples[:2])

    def ends(self, tier: Tier) -> Ends:
        """Return what a client of a tier holds: its first blocks, in the U shape also the last."""
        return Ends(tier.cut or self.cut, self.shape == "u", self.tail)

    def head_trains(self, parts: Parts, training: Training) -> bool:
        """Whether anything in the client's first blocks trains."""
        return self.train != "server" and bool(training.trained(parts.head.names))

    def sends_reference(self, task: Task, parts: Parts, training: Training) -> bool:
        """Whether activations without the adapter are others than those with it, and cross, too."""
        return task.compares and (self.head_trains(parts, training) or parts.head_is_random)

    def client_names(self, parts: Parts, training: Training) -> list[str]:
        """Return the names of the parameters that train at the clients, sorted."""
        head = parts.head.names if self.train != "server" else ()
        return sorted(training.trained({*head, *parts.tail.names}))

    def text_names(self, parts: Parts, training: Training) -> list[str]:
        """Return the names of the values that a client lacks after the run to write text, sorted."""
        learnt = self.train != "server" or self.local_rounds > 0
        return sorted(training.trained({*(parts.head.names if learnt else ()), *parts.tail.names}))

    def caches(self, parts: Parts) -> bool:
        """Whether activations are sent once."""
        if self.cache is not None:
            return self.cache
        return self.train == "server" and not parts.head_is_random
