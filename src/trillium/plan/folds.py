"""Changes of base weights on paper: of which rank an aggregator folds in, and who lacks which."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trillium.federation.means import Contribution
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.shares import Share
from trillium.models.factors import Factors
from trillium.models.folds import Plain, pack_folds
from trillium.plan.cohorts import Cohort
from trillium.plan.federation import Federation
from trillium.plan.sizes import Weight
from trillium.plan.waves import Ask, Wave
from trillium.wire.message import Message


@dataclass(frozen=True)
class _Found:
    """What an aggregator does with the factors of one layer.

    Attributes:
        rank: of what it folds in; 0 for nothing.
        changed: names of the factors that are others afterwards.
    """

    rank: int
    changed: frozenset[str]


@dataclass
class Folds:
    """What an aggregator of products has folded into base weights, and who has received it.

    The rank of a change depends on the ranks that clients send, and on which factors they have changed.
    The aggregator itself tells it, from matrices at random that are large enough for all of them.

    Attributes:
        rule: the aggregator.
        federation: both sides.
    """

    rule: Aggregator
    federation: Federation
    _made: list[Plain] = field(default_factory=list)
    _held: dict[str, int] = field(default_factory=dict)  # how many a client has
    _known: dict[Hashable, tuple[int, bool, bool]] = field(default_factory=dict)
    _weights: dict[Hashable, tuple[Weight, Weight]] = field(default_factory=dict)

    def send(self, cohort: Cohort) -> tuple[Wave, Cohort]:
        """Return the message that brings base weights in step, and whom it has left in the cohort."""
        late = [name for name in cohort.asked if self._held.get(name, 0) < len(self._made)]
        asks = tuple(self._ask(name, name in cohort.lost) for name in late)
        gone = cohort.lost & set(late)
        for name in late:
            self._held[name] = 0 if name in gone else len(self._made)
        asked = tuple(name for name in cohort.asked if name not in gone)
        return Wave(asks), Cohort(asked, cohort.lost - gone)

    def add(self, shares: Mapping[str, Share], *, moves_a: bool) -> set[str]:
        """Note what the aggregator folds in after a round.

        Args:
            shares: what each client that has answered holds and sends.
            moves_a: whether training has changed LoRA's `A`.

        Returns:
            Names of the factors that the aggregator changes.
        """
        made: Plain = {}
        changed: set[str] = set()
        model, paper = self.federation.model, self.federation.paper
        for layer in model.factors:
            like = {name: model.initial[name] for name in (layer.a, layer.b)}
            holding = [share for _, share in sorted(shares.items()) if layer.a in share.down]
            if not holding:
                continue
            ranks = [len(share.take(like, [layer.a])[layer.a]) for share in holding]
            sent = {name for share in holding for name in share.up}
            found = self._found(layer, like, ranks, sent if moves_a else sent - {layer.a})
            changed |= found.changed
            if found.rank:
                dtype = torch.promote_types(model.base[layer.layer].dtype, torch.float32)
                made[layer.layer] = (
                    paper.empty(like[layer.b].shape[0], found.rank, dtype=dtype),
                    paper.empty(found.rank, like[layer.a].shape[1], dtype=dtype),
                )
        if made:
            self._made.append(made)
        return changed

    def _found(
        self, layer: Factors, like: Mapping[str, Tensor], ranks: Sequence[int], moved: Set[str]
    ) -> _Found:
        """Return what the aggregator does with a layer.

        Args:
            layer: its factors.
            like: the server's.
            ranks: of what each client sends.
            moved: names of those that clients have changed, each in its own way.
        """
        full, enough = len(like[layer.a]), sum(ranks) + 1
        width, out = min(like[layer.a].shape[1], enough), min(len(like[layer.b]), enough)
        moves = layer.a in moved, layer.b in moved
        key = (full, width, out, tuple(ranks), moves)
        if key not in self._known:
            draw = torch.Generator().manual_seed(0)

            def drawn(rows: int, columns: int) -> Tensor:
                # Of few digits, so that the mean of equal ones is none but them.
                return torch.randn(rows, columns, generator=draw).double()

            a, b = drawn(full, width), drawn(out, full)
            sent = [
                Contribution(
                    f"{index:06}",
                    1.0,
                    {
                        "a": (drawn(full, width) if moves[0] else a)[:rank],
                        "b": (drawn(out, full) if moves[1] else b)[:, :rank],
                    },
                )
                for index, rank in enumerate(ranks)
            ]
            named = replace(layer, layer="weight", a="a", b="b")
            aggregate = self.rule.aggregate(sent, {"a": a, "b": b}, [named])
            fold, state = aggregate.folds.get("weight"), aggregate.tensors
            self._known[key] = (
                0 if fold is None else fold.left.shape[1],
                "a" in state and not torch.equal(state["a"], a),
                "b" in state and not torch.equal(state["b"], b),
            )
        rank, changes_a, changes_b = self._known[key]
        pairs = ((layer.a, changes_a), (layer.b, changes_b))
        return _Found(rank, frozenset(name for name, changes in pairs if changes))

    def _ask(self, name: str, lost: bool) -> Ask:
        federation, first = self.federation, self._held.get(name, 0)
        client = federation.clients[name]
        key = (id(client.tier), first, len(self._made), len(str(client.round)))
        if key not in self._weights:
            message = pack_folds(self._made, first)
            self._weights[key] = (
                federation.down(name, message),
                federation.up(name, Message("fold")),
            )
        down, up = self._weights[key]
        return Ask(name, "fold", down, None if lost else up)
