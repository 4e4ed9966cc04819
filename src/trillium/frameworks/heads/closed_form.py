"""Heads in closed form: the pooled data's own solution, whatever the partition, in one exchange.

Fed3R (Fanì et al., 2024, ICML, arXiv 2406.01116), AFL (He et al., 2025, CVPR) and FedNCM (Legate et
al., 2023, NeurIPS): features of the frozen model enter a linear head's solution through sums alone,
and sums over owners are the sums over the pooled data.

The clients are asked four times, before the first round, and those with different models apart:
 feature_moments   up: count, mean and deviation of each feature, whether the head has a bias
 head_statistics   down: the pooled mean and deviation; up: of features standardised by them, class
                   counts, the mean of each class the client has, and for some heads the mean of
                   products of features (upper triangle)
 receive_head      down: the head and some scales; up: the cross-entropy at each scale
 use_head          down: the scale

Class means and products cross as `statistics`, of size about one thanks to the standardisation, which
a cast to float16 hardly alters. Never put fewer bits on the products, be it int8, int4 or bfloat16:
the solution divides by their small eigenvalues, down to those that are mere rounding. Class means
survive int8. The head crosses as a `snapshot`, which the codecs of `parameters` do not touch; it may be
cast to float16 too. The rest is control, and always exact. So the smallest wire is
`up: [{name: cast, dtype: float16, kinds: [statistics]}]`, and down the same of `snapshot`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.side import Side
from trillium.frameworks.effects import Crossing, Crossings
from trillium.frameworks.heads.solved import (
    OWN,
    Solved,
    crossed,
    dtype_of,
    features_of,
    names_of,
    received,
)
from trillium.frameworks.heads.statistics import (
    Scaling,
    Solution,
    Statistics,
    encode_statistics,
    pool,
    pooled_scaling,
    read_statistics,
)
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, named, scalar

Scale = Annotated[float, Field(gt=0)]


class ClosedForm(Solved):
    """A head solved from summed statistics of frozen features.

    Attributes:
        scales: what the logits may be multiplied by, for the cross-entropy; the clients try each on
            their own data, with each example's influence on the head taken out as far as means over
            the data allow, and the one best for all is used.
    """

    scales: tuple[Scale, ...] = Field(default=tuple(2.0**i for i in range(-6, 8)), min_length=1)

    sends_products: ClassVar[bool]

    def basis(self, side: Side, width: int) -> Tensor | None:
        """Return what standardised features are multiplied by, `(width, fewer)`, the same for all."""
        return None

    def solve(self, statistics: Statistics, intercept: bool) -> Solution:
        """Return the head on standardised features, which are centred only if it has an intercept."""
        raise NotImplementedError

    def crossings(self, config: Setting) -> Crossings:
        """Return that statistics go up, and the head comes down."""
        return {("up", "statistics"): Crossing("values"), ("down", "snapshot"): Crossing("values")}

    # The server

    def find(self, server: Server, fleet: Fleet, group: str, clients: Sequence[str]) -> None:
        """Collect statistics, solve the head, find its scale, hand it out."""
        expected = _Form.of(server) if group == OWN else None

        def read_moments(reply: Message) -> tuple[_Form, tuple[float, Tensor, Tensor]]:
            mean = reply.floats("control/mean", (None,))
            shape = tuple(mean.shape)
            deviation = reply.tensor("control/deviation", mean.dtype, shape, signed=False).double()
            intercept = bool(reply.tensor("control/intercept", torch.bool, ()))
            form = _Form(len(mean), intercept, mean.dtype)
            if expected is not None and form != expected:
                raise MessageError(f"feature_moments: {form}, expected {expected}")
            return form, (reply.positive("control/weight"), mean.double(), deviation)

        asks = dict.fromkeys(clients, Message("feature_moments"))
        moments = fleet.ask_all(asks, read_moments)
        form = Counter(form for form, _ in moments.values()).most_common(1)[0][0]
        for client in [c for c, (other, _) in moments.items() if other != form]:
            fleet.missing[client] = f"feature_moments: {moments.pop(client)[0]}, others {form}"
        scaling = pooled_scaling([own for _, own in moments.values()], form.intercept)

        basis = self.basis(server, form.width)
        fewer = form.width if basis is None else basis.shape[1]
        message = Message("head_statistics", scaling.to(form.dtype).tensors())

        def read(reply: Message) -> Statistics:
            return read_statistics(reply, server.model.num_classes, fewer, self.sends_products)

        found = fleet.ask_all(dict.fromkeys(moments, message), read)
        solution = self.solve(pool([*found.values()]), form.intercept)
        weight, bias = scaling.to(form.dtype).unfold(solution, basis)
        head = {"weight": weight} | ({"bias": bias} if form.intercept else {})
        names, like = names_of(server), server.model.initial
        dtype = like[names["weight"]].dtype if group == OWN else form.dtype
        head = {role: tensor.to(dtype) for role, tensor in head.items()}
        self._scale_and_use(server, fleet, group, [*found], head, solution)

    def _scale_and_use(
        self,
        server: Server,
        fleet: Fleet,
        group: str,
        clients: Sequence[str],
        head: Tensors,
        solution: Solution,
    ) -> None:
        """Let the clients try the head, then all of them use it at the best scale."""
        head = crossed(fleet, clients, head)
        tensors = {
            **named("snapshot", head),
            "control/scales": torch.tensor(self.scales, dtype=torch.float64),
            "control/gain": scalar(solution.gain),
            "control/penalty": solution.penalty,
        }
        message = Message("receive_head", tensors)

        def read(reply: Message) -> Tensor:
            return reply.tensor("control/losses", torch.float64, (len(self.scales),))

        losses = fleet.ask_all(dict.fromkeys(clients, message), read)
        best = int(torch.stack([*losses.values()]).sum(0).argmin())
        server.store["heads"][group] = {"unscaled": head, "scale": self.scales[best]}
        message = Message("use_head", {"control/scale": scalar(self.scales[best])})
        informed = fleet.tell(dict.fromkeys(losses, message))
        server.store["head_informed"] = sorted(informed.union(server.store["head_informed"]))

    # The client

    @client_verb
    def feature_moments(self, client: Client, message: Message) -> Message:
        """Answer with count, mean and standard deviation of each feature."""
        found, _ = features_of(client)
        deviation, mean = torch.std_mean(found.double(), dim=0, correction=0)
        return Message(
            "feature_moments",
            {
                "control/weight": scalar(len(found)),
                "control/mean": mean.to(dtype_of(client)),
                "control/deviation": deviation.to(dtype_of(client)),
                "control/intercept": torch.tensor("bias" in names_of(client)),
            },
        )

    @client_verb
    def head_statistics(self, client: Client, message: Message) -> Message:
        """Answer with sums over the client's standardised features."""
        found, labels = features_of(client)
        scaling = Scaling.read(message, found.shape[1], dtype_of(client))
        basis = self.basis(client, found.shape[1])
        num_classes = client.model.num_classes
        with client.meter.measure(("head statistics", self.sends_products, *found.shape)):
            statistics = Statistics.of(
                scaling.apply(found, basis), labels, num_classes, self.sends_products
            )
        return Message("head_statistics", encode_statistics(statistics, dtype_of(client)))

    @client_verb
    def receive_head(self, client: Client, message: Message) -> Message:
        """Answer with the summed cross-entropy of the head at each scale."""
        head = received(client, message)
        scales = message.tensor("control/scales", torch.float64, (None,))
        penalty = message.tensor("control/penalty", torch.float64, (client.model.num_classes,))
        found, labels = features_of(client)
        bias = head["bias"].double() if "bias" in head else None
        with client.meter.measure(("head logits", *found.shape, len(penalty))):
            logits = functional.linear(found.double(), head["weight"].double(), bias)
        logits *= message.positive("control/gain")
        logits[torch.arange(len(labels)), labels] -= penalty[labels]
        losses = [functional.cross_entropy(logits * s, labels, reduction="sum") for s in scales]
        client.scratch["unscaled_head"] = head
        return Message("receive_head", {"control/losses": torch.stack(losses)})


@dataclass(frozen=True)
class _Form:
    """What the heads of one model have: features, whether a bias, and the dtype of statistics."""

    width: int
    intercept: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, side: Side) -> _Form:
        names = names_of(side)
        width = side.model.initial[names["weight"]].shape[1]
        return cls(width, "bias" in names, dtype_of(side))
