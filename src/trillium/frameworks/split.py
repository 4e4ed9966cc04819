"""Split-FedLLM: the model is cut; clients run the first blocks (and the last), the server the rest.

Split learning (Vepakomma et al., 2018, arXiv 1812.00564), its parallel forms SplitFed v1 and v2
(Thapa et al., 2020, arXiv 2004.12088), with LoRA on either side as in SplitLoRA (Lin et al., 2024,
arXiv 2407.00952). The third of the three frameworks of Yan et al. (2025, arXiv 2501.04436).

Each batch, up: activations at the cut, with labels in two parts; down: their gradient. In the U
shape the server's output goes down to the client's last blocks, and its gradient comes up. Once a
round the client parts go up and, averaged, down. Where nothing in front of the cut trains or is
random, activations go up once; in two parts that is all. docs/split.md says which published method is
which setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trillium.client import Client, client_verb
from trillium.component import Choice
from trillium.defences import Defence
from trillium.defences.none import NoDefence
from trillium.errors import UserError
from trillium.fleet import Fleet
from trillium.frameworks import (
    Framework,
    split_cached,
    split_client,
    split_generate,
    split_local,
    weigh,
)
from trillium.frameworks.activation_cache import ActivationCache
from trillium.frameworks.split_checks import check_delta, check_split_settings, check_staleness
from trillium.frameworks.split_delta import Delta
from trillium.frameworks.split_exchange import Exchange
from trillium.frameworks.split_kept import KeptBatches
from trillium.frameworks.split_leakage import leakage
from trillium.message import Message
from trillium.models.auxiliary import Auxiliary
from trillium.models.load import LanguageModel
from trillium.models.parts import Parts
from trillium.server import Server
from trillium.side import Metrics, Side
from trillium.tasks import Example, Task

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig

CACHE_BYTES = 16 * 1024**3


class Split(Framework, name="split"):
    """Training across a cut.

    Attributes:
        cut: how many blocks the client runs before the server; a tier may have fewer. `trillium plan`
            proposes one for `auto`.
        shape: `two_part` sends labels to the server; `u` keeps them, and the last blocks, at the
            client.
        tail: first block of the client's last part in the U shape; where it is left out that part
            holds only the final norm and the task head.
        mode: `relay`: clients train one after the other and hand their part on; `splitfed_v1`: in
            parallel, each with its copy of the server part, averaged per round; `splitfed_v2`: one
            server part takes the clients' batches in random turns; `coalesced`: the server takes the
            batches of all clients as one. Client parts are averaged per round in all but `relay`.
        train: whose adapter trains; a client that is frozen gets no gradients. The last part of the U
            shape, which holds the task head, always trains.
        cache: whether a client sends the activations of each sample once, and the server keeps them.
            Left out, it does so where it can: with `train=server`, if nothing in the client's blocks is
            random (dropout).
        cache_bytes: the file in which the server keeps activations grows no longer.
        gradients: from where the client's first blocks learn: the `server` sends them the gradients of
            their activations; or `auxiliary`, a small head of their own, and nothing comes down.
        local_rounds: in so many rounds at the beginning clients train their first blocks by themselves,
            with a small head of their own, and these are averaged; then they are frozen. For
            `train=server`.
        defence: what clients do to activations before these leave.
        leakage: whether the last evaluation says what activations give away: it attacks held-out texts,
            with the public set to train on.
        staleness: with 1, clients run their next batch while the server works on this one; the first
            blocks' gradients are then of weights one step old. What trains nothing at the client loses
            nothing by it.
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
    gradients: Literal["server", "auxiliary"] = "server"
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
                "a run has a number of blocks at the clients",
                "Let `trillium plan` propose one: it knows what clients can bear",
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.tail is not None and self.shape == "two_part":
            raise UserError(
                f"tail={self.tail}",
                "two_part gives the client no last part",
                "Write shape=u beside it",
            )
        return self

    def check(self, config: ExperimentConfig) -> None:
        """Refuse settings that contradict each other."""
        super().check(config)
        check_split_settings(self, config)

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Cut the model and hold the cut against the whole."""
        parts = self.parts(server.model, server.test)
        cuts_differ = any(tier.cut is not None for tier in server.tiers.values())
        if self.cache or self.local_rounds or cuts_differ:
            self.check_fixed(parts)
        if self.delta is not None:
            check_delta(parts)
        if self.staleness:
            check_staleness(self, self.caches(parts))

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Train with the cohort, or on what the cohort has sent once."""
        parts = self.parts(server.model, server.test)
        if server.round <= self.local_rounds:
            return {"train_loss": split_local.train_first_blocks(server, fleet, parts)}
        kept, figures = None, dict[str, int]()
        if self.caches(parts):
            cache = self._cache(server)
            split_cached.collect(self, server, fleet, parts, cache)
            kept, figures = KeptBatches(self, server, cache), {"cache_bytes": cache.nbytes}
        if kept is not None and self.shape == "two_part" and self.mode == "coalesced":
            loss, count = split_cached.train(self, server, parts, kept.cache)
        else:
            exchange = Exchange(self, server, fleet, parts, server.generator("order"), kept)
            loss, count = exchange.run()
        mean = loss / max(count, 1)
        server.store["losses"] = [*server.store.get("losses", ())[-1:], mean]
        return {"train_loss": mean, **figures}

    def evaluate(self, server: Server, fleet: Fleet, batch_size: int, last: bool) -> Metrics:
        """Return the metrics of the assembled model; in the end also what activations give away."""
        found = super().evaluate(server, fleet, batch_size, last)
        if not last:
            return found
        parts, training = self.parts(server.model, server.test), server.training
        passes = server.num_rounds * (training.local_steps or training.local_epochs)
        num_releases = 1 if self.caches(parts) else passes
        found |= self.defence.epsilon(training.max_length, num_releases)
        if self.leakage:
            found["leakage"] = leakage(self, server, fleet, batch_size)
        return found

    def finish_run(self, server: Server) -> None:
        """Remove the activations."""
        if "cache" in server.scratch:
            server.scratch.pop("cache").close(remove=True)

    def _cache(self, server: Server) -> ActivationCache:
        if "cache" not in server.scratch:
            store = server.store.setdefault("cache", {})
            server.scratch["cache"] = ActivationCache(store, server.folder, self.cache_bytes)
        cache: ActivationCache = server.scratch["cache"]
        return cache

    # The client

    @client_verb
    def begin(self, client: Client, message: Message) -> Message:
        """Take the client part and prepare the batches of a round."""
        return split_client.begin(self, client, message)

    @client_verb
    def forward(self, client: Client, message: Message) -> Message:
        """Take the step that is due, then run the first blocks on the next batch."""
        return split_client.forward(self, client, message)

    @client_verb
    def finish_batch(self, client: Client, message: Message) -> Message:
        """Run the last blocks and the loss on the server's output; answer with its gradient."""
        return split_client.finish_batch(self, client, message)

    @client_verb
    def backward(self, client: Client, message: Message) -> Message:
        """Take the gradient of the activations through the first blocks."""
        return split_client.backward(self, client, message)

    @client_verb
    def finish(self, client: Client, message: Message) -> Message:
        """Take the last step and hand back the client part."""
        return split_client.finish(self, client, message)

    @client_verb
    def train_blocks(self, client: Client, message: Message) -> Message:
        """Train the first blocks and the small head for a round, and hand both back."""
        return split_local.train_blocks(self, client, message)

    @client_verb
    def list_samples(self, client: Client, message: Message) -> Message:
        """Answer with the digests of all samples, unless the server has just these."""
        return split_cached.list_samples(self, client, message)

    @client_verb
    def send_activations(self, client: Client, message: Message) -> Message:
        """Run the first blocks on some samples, and answer with what comes out and the labels."""
        return split_cached.send_activations(self, client, message)

    @client_verb
    def begin_texts(self, client: Client, message: Message) -> Message:
        """Take the trained values of the client's part and run its first blocks on the prompts."""
        return split_generate.begin_texts(self, client, message)

    @client_verb
    def next_tokens(self, client: Client, message: Message) -> Message:
        """Add a token to each text, and run the first blocks on those of the texts that go on."""
        return split_generate.next_tokens(self, client, message)

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return the weight of the frozen tensors of the client's parts."""
        split = self.parts(side.model, side.test).split
        client_parts = [split.head] if split.tail is None else [split.head, split.tail]
        return {"base_model": sum(weigh(part) for part in client_parts)}

    # Both

    def parts_of(self, client: Client) -> Parts:
        """Return the model as a client cuts it, which may hold fewer blocks than others."""
        return self.parts(client.model, client.examples, client.tier.cut)

    def parts(
        self, model: LanguageModel, examples: Sequence[Example], cut: int | None = None
    ) -> Parts:
        """Return the cut model; the first call in a process checks it on a few examples.

        Args:
            model: the whole one.
            examples: any.
            cut: of a client that differs.
        """
        tail = self.tail
        if self.shape == "u" and tail is None:
            tail = model.num_blocks
        return model.parts(cut or self.cut, tail, examples[:2])

    def head_trains(self, parts: Parts) -> bool:
        """Whether anything in the client's first blocks trains."""
        return self.train != "server" and bool(parts.head.names)

    def sends_gradients(self, parts: Parts) -> bool:
        """Whether the client's first blocks learn from the server."""
        return self.head_trains(parts) and self.gradients == "server"

    def auxiliary(self, parts: Parts, task: Task) -> Auxiliary | None:
        """Return the small head from which the client's first blocks learn, if they do."""
        learns = self.head_trains(parts) and self.gradients == "auxiliary"
        return Auxiliary(parts, task) if learns else None

    def client_names(self, parts: Parts, task: Task) -> list[str]:
        """Return the names of the parameters that train at the clients, sorted."""
        head = parts.head.names if self.head_trains(parts) else ()
        small = self.auxiliary(parts, task)
        return sorted({*head, *parts.tail.names, *(small.initial() if small else ())})

    def text_names(self, parts: Parts) -> list[str]:
        """Return the names of the values that a client lacks after the run to write text, sorted."""
        learnt = self.head_trains(parts) or self.local_rounds > 0
        return sorted({*(parts.head.names if learnt else ()), *parts.tail.names})

    def caches(self, parts: Parts) -> bool:
        """Whether activations are sent once."""
        if self.cache is not None:
            return self.cache
        return self.train == "server" and not parts.head_is_random

    def check_fixed(self, parts: Parts) -> None:
        """Refuse to send activations once that would be others the next time.

        Raises:
            UserError: something in the client's blocks is random, or trains.
        """
        if parts.head_is_random:
            raise UserError(
                "activations that are sent once, with dropout in the client's blocks",
                "the activations of a sample would be others each time",
                "Write model.dropout=0 and adapter.dropout=0, or leave framework.cache, "
                "framework.local_rounds and the cuts of tiers out",
            )
