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
from typing import Annotated, ClassVar, Final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from trillium.errors import UserError
from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.side import Side
from trillium.frameworks.effects import Crossing, Crossings
from trillium.frameworks.heads import Head
from trillium.frameworks.heads.statistics import (
    Scaling,
    Solution,
    Statistics,
    encode_statistics,
    pool,
    pooled_scaling,
    read_statistics,
)
from trillium.models.heads import features, head_layer
from trillium.tasks import Batch
from trillium.tasks.batches import by_length, collate
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError, Tensors
from trillium.wire.message import Message, named, scalar
from trillium.wire.wire import Wire

BATCH = 32  # examples at once when features are computed; changes memory, not results
_OWN: Final = "0"  # the group of the clients that have the server's model
Scale = Annotated[float, Field(gt=0)]


class ClosedForm(Head):
    """A head solved from summed statistics of frozen features.

    Attributes:
        scales: what the logits may be multiplied by, for the cross-entropy; the clients try each on
            their own data, with each example's influence on the head taken out as far as means over
            the data allow, and the one best for all is used.
    """

    scales: tuple[Scale, ...] = Field(default=tuple(2.0**i for i in range(-6, 8)), min_length=1)

    runs_model: ClassVar[bool] = True
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

    def check(self, config: Setting) -> None:
        """Refuse tasks without classes."""
        if config.task.peft_task != "SEQ_CLS":
            raise UserError(
                f"head={self.name} with task={config.task.name}",
                "only the head of a classifier has a closed form",
                "Write head=random",
            )

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Collect statistics, solve the head, find its scale, hand it out."""
        names = _names(server)
        server.store["heads"], server.store["head_informed"] = {}, []
        for number, group in enumerate(server.groups):
            if clients := [client for client in fleet.cohort if client in group]:
                self._find(server, fleet, str(number), clients)
        own = server.store["heads"].get(_OWN)
        if own is not None:
            scaled = _scaled(own["unscaled"], own["scale"])
            server.store["head"] = {names[role]: tensor for role, tensor in scaled.items()}
            server.state = server.model.state(server.initial)

    def _find(self, server: Server, fleet: Fleet, group: str, clients: Sequence[str]) -> None:
        expected = _Form.of(server) if group == _OWN else None

        def read_moments(reply: Message) -> tuple[_Form, tuple[float, Tensor, Tensor]]:
            mean = reply.floats("control/mean", (None,))
            deviation = reply.tensor("control/deviation", mean.dtype, tuple(mean.shape)).double()
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
        names, like = _names(server), server.model.initial
        dtype = like[names["weight"]].dtype if group == _OWN else form.dtype
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
        head = _crossed(fleet, clients, head)
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

    def inform(self, server: Server, fleet: Fleet) -> None:
        """Give the head to clients that come late or have lost it."""
        informed = {*server.store["head_informed"]} - fleet.newcomers
        for number, group in enumerate(server.groups):
            late = [client for client in fleet.cohort if client in group and client not in informed]
            found = server.store["heads"].get(str(number))
            if late and found is not None:
                scale = scalar(found["scale"])
                tensors = {**named("snapshot", found["unscaled"]), "control/scale": scale}
                informed |= fleet.tell(dict.fromkeys(late, Message("use_head", tensors)))
        server.store["head_informed"] = sorted(informed)

    # The client

    @client_verb
    def feature_moments(self, client: Client, message: Message) -> Message:
        """Answer with count, mean and standard deviation of each feature."""
        found, _ = _features(client)
        deviation, mean = torch.std_mean(found.double(), dim=0, correction=0)
        return Message(
            "feature_moments",
            {
                "control/weight": scalar(len(found)),
                "control/mean": mean.to(_dtype(client)),
                "control/deviation": deviation.to(_dtype(client)),
                "control/intercept": torch.tensor("bias" in _names(client)),
            },
        )

    @client_verb
    def head_statistics(self, client: Client, message: Message) -> Message:
        """Answer with sums over the client's standardised features."""
        found, labels = _features(client)
        scaling = Scaling.read(message, found.shape[1], _dtype(client))
        basis = self.basis(client, found.shape[1])
        num_classes = client.model.num_classes
        with client.meter.measure(("head statistics", self.sends_products, *found.shape)):
            statistics = Statistics.of(
                scaling.apply(found, basis), labels, num_classes, self.sends_products
            )
        return Message("head_statistics", encode_statistics(statistics, _dtype(client)))

    @client_verb
    def receive_head(self, client: Client, message: Message) -> Message:
        """Answer with the summed cross-entropy of the head at each scale."""
        head = _received(client, message)
        scales = message.tensor("control/scales", torch.float64, (None,))
        penalty = message.tensor("control/penalty", torch.float64, (client.model.num_classes,))
        found, labels = _features(client)
        bias = head["bias"].double() if "bias" in head else None
        with client.meter.measure(("head logits", *found.shape, len(penalty))):
            logits = functional.linear(found.double(), head["weight"].double(), bias)
        logits *= message.positive("control/gain")
        logits[torch.arange(len(labels)), labels] -= penalty[labels]
        losses = [functional.cross_entropy(logits * s, labels, reduction="sum") for s in scales]
        client.scratch["unscaled_head"] = head
        return Message("receive_head", {"control/losses": torch.stack(losses)})

    @client_verb
    def use_head(self, client: Client, message: Message) -> Message:
        """Start from the head at the scale that was found."""
        client.scratch.pop("features", None)
        kept = client.scratch.pop("unscaled_head", None)
        head = _received(client, message) if message.group("snapshot") else kept
        if head is None:
            raise MessageError("use_head: this client has received no head")
        names, scaled = _names(client), _scaled(head, message.positive("control/scale"))
        client.store["head"] = {names[role]: tensor for role, tensor in scaled.items()}
        return Message("use_head")


def _names(side: Side) -> dict[str, str]:
    """Return the names of the head's parameters by `weight` and, if it has one, `bias`."""
    prefix, layer = head_layer(side.model.module)
    names = {own: f"{prefix}.{own}" for own, _ in layer.named_parameters()}
    frozen = sorted(set(names.values()) - side.model.initial.keys())
    if frozen:
        raise UserError(
            "a head in closed form",
            f"the adapter leaves the head as it is ({', '.join(frozen)} does not train)",
            "Write head=random, or an adapter that trains the head",
        )
    return names


def _received(client: Client, message: Message) -> Tensors:
    names = _names(client)
    return message.expect("snapshot", {role: client.model.initial[n] for role, n in names.items()})


@dataclass(frozen=True)
class _Form:
    """What the heads of one model have: features, whether a bias, and the dtype of statistics."""

    width: int
    intercept: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, side: Side) -> _Form:
        names = _names(side)
        width = side.model.initial[names["weight"]].shape[1]
        return cls(width, "bias" in names, _dtype(side))


def _crossed(fleet: Fleet, clients: Sequence[str], head: Tensors) -> Tensors:
    """Return the head as the codecs leave it, so that all sides start from equal bits."""
    wires: list[Wire] = []
    for client in clients:
        if fleet.wire_of(client) not in wires:
            wires.append(fleet.wire_of(client))

    def arrives(head: Tensors, wire: Wire, verb: str) -> Tensors:
        message = Message(verb, named("snapshot", head), {"round": fleet.round})
        return wire.preview(message, "down").seen.expect("snapshot", head)

    for wire in wires:
        head = arrives(head, wire, "receive_head")
    for wire in wires:
        for verb in ("receive_head", "use_head"):
            found = arrives(head, wire, verb)
            if any(not torch.equal(found[name], head[name]) for name in head):
                raise UserError(
                    f"the codecs of wire.down for snapshot, {[c.name for c in wire.down]}",
                    "they would change the head on its way, so that the sides start differently",
                    "Leave snapshot out of their kinds, or cast it to float16",
                )
    return head


def _scaled(head: Tensors, scale: float) -> Tensors:
    return {name: tensor * scale for name, tensor in head.items()}


def _dtype(side: Side) -> torch.dtype:
    """The dtype that statistics have before the codecs."""
    return torch.promote_types(side.model.dtype, torch.float32)


@torch.inference_mode()
def _features(client: Client) -> tuple[Tensor, Tensor]:
    """Return features `(rows, width)` and classes `(rows,)` of the client's data, on the CPU.

    Computed once in a round, on the model as it was loaded, without dropout.
    """
    if "features" not in client.scratch:
        model = client.model
        module = model.mount(model.state()).eval()
        found, labels = [], []
        with features(module):
            for chunk in by_length(client.examples, BATCH):
                batch = collate(chunk, model.tokenizer.pad_token_id, model.device)

                def look(batch: Batch = batch) -> Tensor:
                    rows: Tensor = module(**batch.inputs).logits
                    return rows.to(_dtype(client)).cpu()

                key = ("features", batch.layout)
                found.append(client.meter.run(key, look, lambda: resident_tensors(module)))
                labels.append(batch.labels.cpu())
        client.scratch["features"] = torch.cat(found), torch.cat(labels)
    kept: tuple[Tensor, Tensor] = client.scratch["features"]
    return kept
