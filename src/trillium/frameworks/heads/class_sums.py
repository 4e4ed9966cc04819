"""The head from one sum for each class, which bears noise: made for private runs.

Cosine to the sum of a class's features, each of length one (nearest class mean as in FedNCM, Legate et
al., 2023, NeurIPS, arXiv 2302.08464). The features are standardised by public texts: what is common to
all of them would else be most of their length, and little of it would tell the class.

Down: mean and deviation of the public texts' features. Up: a sum for each class. Down: the head. No
counts, no moments and no losses of a client's data cross.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from trillium.errors import UserError
from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.sums import Form, Whole
from trillium.frameworks.effects import Crossing, Crossings
from trillium.frameworks.heads.solved import (
    Solved,
    crossed,
    dtype_of,
    features_of,
    look_at,
    names_of,
)
from trillium.frameworks.heads.statistics import Scaling, Solution, pooled_scaling
from trillium.wire.addend import Addend
from trillium.wire.message import Message

TINY = 1e-30


class ClassSums(Solved, name="class_sums"):
    """The nearest class by direction, from sums of features that public texts standardise.

    Attributes:
        bound: at client level, the largest l2 norm of a client's sums together; a text adds length 1.
        noise: in a private run, the noise of the sums over their bound, in units of that of a round.
        scale: the logit of a text that points where the sum of its class does.
    """

    bound: float = Field(default=3.0, gt=0)
    noise: float = Field(default=1.25, gt=0)
    scale: float = Field(default=10.0, gt=0)

    needs_public: ClassVar[bool] = True

    @property
    def whole(self) -> Whole:
        """One sum over all data."""
        return Whole(self.bound, self.noise)

    def crossings(self, config: Setting) -> Crossings:
        """Return that sums go up, and the head comes down."""
        return {("up", "statistics"): Crossing("values"), ("down", "snapshot"): Crossing("values")}

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return what says how the sums are hidden, where they are not."""
        unit, found = config.privacy.unit, {}
        if not unit:
            found["head.noise"] = "no noise is added, as privacy=none"
        if unit != "client":
            found["head.bound"] = "it bounds what a client adds, where clients are to be hidden"
        return found

    def check(self, config: Setting) -> None:
        """Refuse tasks without classes, several models, and runs without public texts."""
        super().check(config)
        if config.task.per_token:
            raise UserError(
                f"head=class_sums with task={config.task.name}",
                "a text would add a row for each of its words, and no bound on what it adds would hold",
                "Write head=ridge, class_means or random",
            )
        if config.has_other_models:
            raise UserError(
                "head=class_sums with server or tiers with model or adapter",
                "the server looks at the public texts with its own model",
                "Write head=ridge, or leave model and adapter out there",
            )
        if config.public_size == 0 or config.data.public.is_written:
            raise UserError(
                f"head=class_sums with data.public={config.data.public.name}, "
                f"public_size={config.public_size}",
                "features are standardised by public texts, which the server must have at the start",
                "Write data.public=rows and data.public_size=200 or more",
            )

    # The server

    def find(self, server: Server, fleet: Fleet, group: str, clients: Sequence[str]) -> None:
        """Ask for the sums, and hand out the directions that they have."""
        dtype, names = dtype_of(server), names_of(server)
        seen = look_at(server, server.public)[0].double()
        deviation, mean = torch.std_mean(seen, dim=0, correction=0)
        centred = "bias" in names
        scaling = pooled_scaling([(float(len(seen)), mean, deviation)], centred).to(dtype)
        width = seen.shape[1]
        form = Form(
            {"statistics": {"sums": seen.new_zeros(server.model.num_classes, width, dtype=dtype)}},
            whole=self.whole,
        )
        asks = dict.fromkeys(clients, Message("class_sums", scaling.tensors()))
        total = seen.new_zeros(server.model.num_classes, width)
        found = dict(fleet.addends(asks, dict.fromkeys(clients, form), form))
        for _, addend in sorted(found.items()):  # sums of floats depend on the order
            total += addend.tensors["statistics/sums"].double()
        ways = total / total.norm(dim=1, keepdim=True).clamp_min(TINY)
        none = ways.new_zeros(len(ways))
        solution = Solution(self.scale / width**0.5 * ways, none, 1.0, none)
        weight, bias = scaling.unfold(solution, None)
        head = {"weight": weight} | ({"bias": bias} if centred else {})
        like = server.model.initial
        head = {role: tensor.to(like[names[role]].dtype) for role, tensor in head.items()}
        head = crossed(fleet, clients, head)
        server.store["heads"][group] = {"unscaled": head, "scale": 1.0}
        self.inform(server, fleet)

    # The client

    @client_verb
    def class_sums(self, client: Client, message: Message) -> Message:
        """Answer with a sum of features of length one for each class."""
        found, labels = features_of(client)
        scaling = Scaling.read(message, found.shape[1], dtype_of(client))
        rows = scaling.apply(found, None)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY)
        sums = client.sum_rows(rows, labels, client.model.num_classes, self.noise)
        addend = Addend({"statistics/sums": sums.to(dtype_of(client))}, noise=self.noise)
        return Message("class_sums", summed=addend)
