"""The settings of FedLLM."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trillium.component import Choice
from trillium.federation.side import Side
from trillium.federation.tiers import Tier
from trillium.frameworks import CLIENT_MODELS, SERVER_MODEL, OwnModels
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.aggregators.mean import Mean
from trillium.frameworks.fedllm.asynchronous import Asynchronous
from trillium.frameworks.fedllm.downloads import Download
from trillium.frameworks.fedllm.downloads.state import StateDownload
from trillium.frameworks.fedllm.drifts import Drift, NoDrift
from trillium.frameworks.fedllm.masks import All, Mask
from trillium.frameworks.fedllm.shares import Share, restarted, share
from trillium.training.optimizers import Optimizer
from trillium.wire.kinds import Tensors


class FedLLMSettings(OwnModels):
    """Exchange of trainable parameters (adapter and task head).

    Attributes:
        upload: `update` (new minus received), `parameters` (new), or `gradient` (of the mean loss over
            the round's batches at the received parameters; the server takes the optimiser step).
        download: how the state reaches the clients.
        mask: which tensors train, and so are sent, in a round.
        local: patterns of tensors that stay with each client and are never averaged: `head`, a part of
            the name such as `lora_B` (FedSA-LoRA, 2024, arXiv 2410.01463), or one with `*`. Then
            there is no common model: the clients' own are measured.
        weights: the weight of a client in means: its supervised `targets` (examples, or tokens for
            language modelling), its `examples`, or all `equal`.
        feedback: how much of what the codecs lost is added to a client's next upload (error feedback,
            Seide et al., 2014; Karimireddy et al., 2019, arXiv 1901.09847); 0 is without.
        drift: how clients are kept from moving apart.
        aggregator: how the server combines what clients send.
        server_optimizer: steps along the aggregated change, as a negative gradient; by default plain
            SGD with learning rate 1, which is federated averaging. For `gradient` the default is
            the clients' optimiser with its schedule.
        asynchronous: rounds that do not wait for who is slow, but use what it sends when it comes.
    """

    upload: Literal["update", "parameters", "gradient"] = "update"
    download: Choice[Download] = StateDownload()
    mask: Choice[Mask] = All()
    local: tuple[str, ...] = ()
    weights: Literal["targets", "examples", "equal"] = "targets"
    feedback: float = Field(default=1.0, ge=0.0, le=1.0)
    drift: Choice[Drift] = NoDrift()
    aggregator: Choice[Aggregator] = Mean()
    server_optimizer: Optimizer | None = None
    asynchronous: Asynchronous | None = None

    slices_adapters: ClassVar[bool] = True

    @property
    def buffer(self) -> int | None:
        """How many answers make a round, whichever round they were asked in; `None` for its own."""
        return None if self.asynchronous is None else self.asynchronous.buffer

    @property
    def ships(self) -> str:
        """The server's model; the clients' own where they keep a part to themselves."""
        return CLIENT_MODELS if self.local else SERVER_MODEL

    def share(self, side: Side, tier: Tier) -> Share:
        """Return what a client of a tier holds, trains and sends in the current round."""
        names = list(side.model.initial)
        trained = {n for n in self.mask.trained(names, side.round) if side.training.factor(n) > 0}
        return share(side.model, tier, trained=trained, local=self.local)

    def known(self, side: Side) -> Tensors:
        """Return what all sides know of the trainable values without a message."""
        if not self.aggregator.restarts:
            return side.initial
        return restarted(side.initial, side.model.factors, side.seed, side.round)
