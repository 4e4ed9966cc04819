"""FedKSeed: full-parameter tuning for the memory of inference and a few kilobytes a round.

Qin et al. (2024, ICML, arXiv 2312.06353): all sides know K directions, each drawn from a seed, and
the model is at every time `theta = theta_0 + sum_k a_k z_k`. Clients estimate slopes along directions
from two forward passes (SPSA: Spall, 1992, IEEE TAC 37(3)), stepping in place as MeZO does (Malladi et
al., 2023, NeurIPS, arXiv 2305.17333), so that no gradient and no activation is ever kept.

Down: the accumulated scalars `a`. Up: by how much the client's steps changed them. Neither depends on
the size of the model: 4 bytes for each of the K, or 6 for each that is not zero where that is less.
They travel as control, which no codec alters, because replay needs their exact bits.

Why replay gives the same bits on every machine: `z_k` holds plus and minus one, drawn by NumPy's
counter-based Philox, whose raw stream is fixed for good, from a key made of seed and k; `a_k z_k` is
then exact, and is added in the order of k, with one rounding each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.means import RunningMean
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.federation.side import Metrics, Side
from trillium.federation.sums import Form, mean_loss
from trillium.frameworks import Framework
from trillium.frameworks.effects import Crossings
from trillium.models.slots import State
from trillium.rng import derive_seed
from trillium.tasks.batches import collate, in_order
from trillium.training.loop import losses, task_objective
from trillium.training.meters import resident_tensors
from trillium.wire.addend import Addend
from trillium.wire.kinds import MessageError, has_values
from trillium.wire.message import Message

CHUNK = 2**20  # entries of a direction drawn at once: bounds the memory that a step adds; 64 * n
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
SIGNS = torch.from_numpy(_BITS).float() * 2 - 1
"""The eight signs in each byte, `(256, 8)`."""


class FedKSeed(Framework, name="fedkseed"):
    """Exchange of scalars along seeded directions, found without backpropagation.

    Slow to learn, and meant for clients that can run the model but not train it. Local steps and
    batches are those of `training`; a step is plain descent along one direction: `-lr * (L(theta +
    epsilon z) - L(theta - epsilon z)) / (2 epsilon) * z`. Dropout is off. A client keeps nothing from
    round to round.

    Attributes:
        num_seeds: K, how many directions there are in the whole run. A round takes less than 9 KB both
            ways with 1024; less than 18 KB with 2048, or with 4096 and at most 150 local steps.
        epsilon: how far the two forward passes go along a direction.
        lr: learning rate of the local steps; the more parameters train, the smaller it must be.
    """

    num_seeds: int = Field(default=1024, ge=1, le=2**15)
    epsilon: float = Field(default=1e-3, gt=0)
    lr: float = Field(default=1e-5, gt=0)

    hides_units: ClassVar[frozenset[str]] = frozenset({"client"})
    only_adds: ClassVar[bool] = True
    takes_first: ClassVar[bool] = True

    def crossings(self, config: Setting) -> Crossings:
        """Nothing beside control."""
        return {}

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return what belongs to gradients."""
        step = "a step is plain descent along one direction, by framework.lr"
        off = "losses are measured without dropout, so that two of them differ by the step alone"
        kept = "nothing is kept for a way back"
        own = {f"training.{n}": step for n in ("optimizer", "max_grad_norm", "weight_decay")}
        return {
            **super().no_effect(config),
            **own,
            "training.gradient_checkpointing": kept,
            "model.dropout": off,
            "adapter.dropout": off,
        }

    def check(self, config: Setting) -> None:
        """Refuse what replay cannot reproduce."""
        super().check(config)
        if config.finetune.local_steps is not None:
            raise UserError(
                f"finetune.local_steps={config.finetune.local_steps} with framework=fedkseed",
                "its clients run the model, and need not be able to train it",
                "Leave it out, or write framework=fedllm",
            )
        training = config.training
        if training.schedule != "constant" or training.warmup:
            raise UserError(
                f"training.schedule={training.schedule}, warmup={training.warmup} with "
                "framework=fedkseed",
                "steps are summed over rounds and clients, so it is not known when they were taken",
                "Write training.schedule=constant, and leave training.warmup out",
            )
        if training.autocast:
            raise UserError(
                f"training.autocast={training.autocast} with framework=fedkseed",
                "two losses that differ by a small step are the same in 16 bits",
                "Leave it out",
            )
        factors = {name: f for name, f in training.lr_factors.items() if f not in (0.0, 1.0)}
        if factors:
            raise UserError(
                f"training.lr_factors={factors} with framework=fedkseed",
                "one step moves all parameters at once, by one learning rate",
                "Write 0 for tensors that are to stay, and leave the others out",
            )

    # The server

    def start(self, server: Server, fleet: Fleet) -> None:
        """Refuse parameters in which small steps are lost."""
        server.state = server.model.state(server.initial)
        half = [p.dtype for p in server.state.values() if p.dtype.itemsize < 4]
        if half:
            raise UserError(
                f"{len(half)} trainable tensors in {half[0]} with framework=fedkseed",
                "steps this small are lost when they are rounded to 16 bits",
                "Write model.dtype=float32, or an adapter whose parameters are float32 such as lora",
            )

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Send the scalars to the cohort, add the weighted mean of what comes back, replay."""
        scalars = server.store.get("scalars", torch.zeros(self.num_seeds))
        message = Message("walk", self._encode(scalars))

        form = Form(
            {"control": {"scalars": scalars}},
            figures=("loss",),
            unpack=lambda reply: Addend({"control/scalars": self._decode(reply)}),
        )
        asks, mean = dict.fromkeys(fleet.cohort, message), RunningMean()
        found = dict(fleet.addends(asks, dict.fromkeys(asks, form), form))
        for addend in found.values():
            mean.add("scalars", addend.tensors["control/scalars"], addend.weight)
        server.store["scalars"] = (scalars.double() + mean.result()["scalars"]).float()
        server.state = self.replay(server, server.store["scalars"]).state
        return mean_loss(found)

    # The client

    @client_verb
    def walk(self, client: Client, message: Message) -> Message:
        """Replay the model, step along random directions, answer with the sum of the steps."""
        training, model = client.training, client.model
        walker = self.replay(client, self._decode(message))
        objective = task_objective(client.task, client.examples)
        module = model.mount(walker.state).eval()
        chunks = client.batches()
        num_steps = training.num_steps(len(client.examples))
        # Seeded by the client's own name: clients that walked the same way would see less.
        draw = torch.randint(self.num_seeds, (num_steps,), generator=client.generator("directions"))
        change = torch.zeros(self.num_seeds, dtype=torch.float64)
        total, weight = 0.0, 0.0
        for k, chunk in zip(draw.tolist(), chunks, strict=True):
            parts = [
                collate(part, model.tokenizer.pad_token_id, model.device)
                for part in in_order(client.known(chunk), training.at_once)
            ]
            layouts, sizes = (part.layout for part in parts), (len(flat) for flat in walker.flat)
            key = ("walk", tuple(layouts), tuple(sizes))
            loss_of = partial(losses, objective, module, parts)
            step, loss, count = client.meter.run(
                key,
                partial(self._step, walker, client.seed, k, loss_of),
                lambda: resident_tensors(module),
                moves=walker.state.values(),
            )
            change[k] += step
            total, weight = total + loss * count, weight + count
        figures, packed = {"loss": total / max(weight, 1.0)}, self._encode(change.float())
        addend = Addend({"control/scalars": change.float()}, client.weight, figures, packed)
        return Message("walk", summed=addend)

    @torch.no_grad()
    def _step(
        self, walker: Walker, seed: int, k: int, loss: Callable[[], tuple[Tensor, int]]
    ) -> tuple[float, float, int]:
        """Step along a direction in place; return the step, the mean loss, the predictions.

        What is rounded away on the way there and back stays on the client, and ends with the round.
        """
        walker.move(seed, {k: self.epsilon})
        ahead, count = loss()
        walker.move(seed, {k: -2 * self.epsilon})
        behind, _ = loss()
        slope = float(ahead - behind) / max(count, 1) / (2 * self.epsilon)
        walker.move(seed, {k: self.epsilon - self.lr * slope})
        return -self.lr * slope, float(ahead + behind) / 2 / max(count, 1), count

    # Both

    def replay(self, side: Side, scalars: Tensor) -> Walker:
        """Return the model after the steps of all rounds, equal to the last bit on all sides."""
        walker = Walker.at_start(side)
        walker.move(side.seed, {int(k): float(scalars[k]) for k in scalars.nonzero()[:, 0]})
        return walker

    def _encode(self, scalars: Tensor) -> dict[str, Tensor]:
        """Return the scalars `(num_seeds,)` float32 as tensors, only those not zero if that is less."""
        (taken,) = scalars.nonzero(as_tuple=True)
        if 6 * len(taken) >= 4 * self.num_seeds:
            return {"control/scalars": scalars}
        return {"control/scalars": scalars[taken], "control/seeds": taken.to(torch.int16)}

    def _decode(self, message: Message) -> Tensor:
        """Return the scalars `(num_seeds,)` float32 of a message of the other side."""
        if "control/seeds" not in message.tensors:
            return message.tensor("control/scalars", torch.float32, (self.num_seeds,))
        seeds = message.tensor("control/seeds", torch.int16, (None,)).long()
        found = message.tensor("control/scalars", torch.float32, (len(seeds),))
        within = (seeds >= 0) & (seeds < self.num_seeds)
        if not bool(within.all()) or not bool((seeds.diff() > 0).all()):
            raise MessageError(f"seeds that do not rise from 0 to {self.num_seeds - 1}")
        return torch.zeros(self.num_seeds).index_put_((seeds,), found)


@dataclass(frozen=True)
class Walker:
    """A copy of the model that directions move in place.

    Attributes:
        state: the trainable parameters, of which those that move are views of one vector.
        flat: that vector; two, if there are parameters of two dtypes.
    """

    state: State
    flat: tuple[Tensor, ...]

    @classmethod
    def at_start(cls, side: Side) -> Walker:
        """Return the model as all sides know it before the first round."""
        state: State = {}
        groups: dict[torch.dtype, list[str]] = {}
        for name, tensor in side.initial.items():
            if side.training.factor(name) > 0:
                groups.setdefault(tensor.dtype, []).append(name)
            else:
                state |= side.model.state({name: tensor})
        flats = []
        for names in groups.values():
            parts = [side.initial[name] for name in names]
            flat = torch.cat([part.reshape(-1) for part in parts]).to(side.model.device)
            views = torch.split(flat, [part.numel() for part in parts])
            for name, part, view in zip(names, parts, views, strict=True):
                state[name] = nn.Parameter(view.view(part.shape))
            flats.append(flat)
        return cls({name: state[name] for name in side.initial}, tuple(flats))

    @torch.no_grad()
    def move(self, seed: int, steps: Mapping[int, float]) -> None:
        """Add directions, `steps` by number of the direction, in their order."""
        streams = {k: np.random.Philox(key=derive_seed(seed, "direction", k)) for k in steps}
        for flat in self.flat:
            parts = torch.split(flat, CHUNK)
            if not has_values(flat):  # one move of a part is like all others
                parts, steps = parts[:1], dict(list(steps.items())[:1])
            for part in parts:
                for k, step in steps.items():
                    part.add_(signs(streams[k], part), alpha=step)


def signs(stream: np.random.Philox, like: Tensor) -> Tensor:
    """Return the next entries of a direction, as many as there are in the vector `like`."""
    words = -(-len(like) // 64)
    if like.device.type == "cpu":
        # Made by PyTorch, so that the meter sees when it comes and goes.
        found, table = torch.empty(8 * words, SIGNS.shape[1]), SIGNS.numpy()
        if has_values(like):
            table.take(_bits(stream, words), axis=0, out=found.numpy(), mode="clip")
    else:  # packed, it is on its way for a 32nd of the time
        packed = torch.from_numpy(_bits(stream, words))
        found = SIGNS.to(like.device)[packed.to(like.device).int()]
    return found.view(-1)[: len(like)].to(like.dtype)


def _bits(stream: np.random.Philox, words: int) -> NDArray[np.uint8]:
    """Return the next words of a stream as bytes."""
    return stream.random_raw(words).astype("<u8", copy=False).view(np.uint8)
