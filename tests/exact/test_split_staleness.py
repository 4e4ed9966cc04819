"""Clients that run a batch ahead of the server: their gradients are of weights one step old."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiny import (
    EXACT,
    Recorder,
    distance,
    federation,
    perturb,
    plain_loss,
    plain_model,
    round_batches,
    run_rounds,
    trained,
)
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.federation.client import Client
from trillium.federation.engine import Gathered, PostingEngine, Saved
from trillium.rng import scoped_rng
from trillium.wire.message import Message, decode
from variants import slow_but

AHEAD = "framework.staleness=1"
CLIP = 0.2
LIES = {"forward": "activations/hidden", "backward": "control/squared_norm"}
Turns = list[list[str]]


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    base = ("rounds=2", "training.local_steps=5", f"training.max_grad_norm={CLIP}")
    return perturb(federation(hub, "framework=split", *base, *words, **options))


def part_of(name: str, shape: str) -> str:
    """Where a parameter lies, read off its name: cut 1, and in the U shape the task head behind."""
    if ".h.0." in name or ".layer.0." in name:
        return "head"
    inside = ".h." in name or ".layer." in name
    return "body" if inside or shape == "two_part" else "tail"


class Called(nn.Module):
    """A module called with other parameters than its own."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["_other"] = (module, dict(parameters))

    def forward(self, **inputs: Tensor) -> Any:
        module, parameters = self.__dict__["_other"]
        return torch.func.functional_call(module, parameters, kwargs=inputs)


class Delayed:
    """Training with delayed gradients, written out: no messages and no cut.

    Every client has parameters of its own outside the body. A batch of the next turn is run with what
    its client has before the step of this turn; the gradients of its first block are of these weights.
    """

    def __init__(self, fed: Experiment, shape: str, *, clip: float | None, late: bool) -> None:
        self.fed, self.shape, self.clip, self.late = fed, shape, clip, late
        self.plain = plain_model(fed)
        start = {name: p.detach() for name, p in trained(self.plain).items()}
        self.names = {part: [n for n in start if part_of(n, shape) == part]
                      for part in ("head", "body", "tail")}  # fmt: skip
        self.body = {n: nn.Parameter(start[n].clone()) for n in self.names["body"]}
        self.own = {
            client.name: {
                n: nn.Parameter(start[n].clone()) for n in self.names["head"] + self.names["tail"]
            }
            for client in fed.clients
        }
        lr = fed.config.training.optimizer.lr
        self.optimizers = {
            key: torch.optim.AdamW(state.values(), lr=lr, weight_decay=0.0)
            for key, state in {"": self.body, **self.own}.items()
        }

    def round(self, number: int, turns: Turns) -> dict[str, Tensor]:
        """Train for a round, average the clients' parts, and return all parameters."""
        chunks = {
            client.name: deque(round_batches(self.fed, number, index))
            for index, client in enumerate(self.fed.clients)
        }
        ran: dict[str, deque[Any]] = defaultdict(deque)

        def run(clients: list[str]) -> None:
            for client in clients:
                copies = {n: self.own[client][n].detach().clone() for n in self.names["head"]}
                ran[client].append((copies, chunks[client].popleft()))

        for turn, clients in enumerate(turns):
            if turn == 0 or not self.late:
                run(clients)
            if self.late and turn + 1 < len(turns):
                run(turns[turn + 1])
            self._step({client: ran[client].popleft() for client in clients})
        assert not any(ran.values())
        assert not any(chunks.values())
        total = sum(client.weight for client in self.fed.clients)
        shares = {client.name: client.weight / total for client in self.fed.clients}
        with torch.no_grad():
            for name in self.names["head"] + self.names["tail"]:
                mean = sum(share * self.own[c][name] for c, share in shares.items())
                for own in self.own.values():
                    own[name].copy_(mean)  # type: ignore[arg-type]
        return {**self.body, **next(iter(self.own.values()))}

    def _step(self, ran: dict[str, Any]) -> None:
        task = self.fed.config.task
        sizes = {c: sum(task.num_targets(e) for e in chunk) for c, (_, chunk) in ran.items()}
        shares = {client: size / sum(sizes.values()) for client, size in sizes.items()}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for client, (copies, chunk) in ran.items():
            for copy in copies.values():
                copy.requires_grad_()
            tail = {n: self.own[client][n] for n in self.names["tail"]}
            called = Called(self.plain, {**copies, **tail, **self.body})
            loss = loss + shares[client] * plain_loss(called, chunk)
        loss.backward()  # type: ignore[no-untyped-call]
        for client, (copies, _) in ran.items():
            for name, own in self.own[client].items():
                grad = copies[name].grad if name in copies else own.grad
                assert grad is not None
                own.grad = grad / shares[client]
        stepped = [*self.body.values(), *(p for c in ran for p in self.own[c].values())]
        if self.clip is not None:
            assert len(ran) == 1
            assert nn.utils.clip_grad_norm_(stepped, self.clip) > self.clip
        for key in ("", *ran):
            self.optimizers[key].step()


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("model", "task", "shape", "late"),
    slow_but(
        [
            ("gpt2", "classification", "two_part", False),
            ("gpt2", "causal_lm", "two_part", True),
            ("bert", "classification", "u", True),
        ],
        [
            (model, task, shape, late)
            for model, task, shape in (
                ("gpt2", "classification", "two_part"),
                ("bert", "classification", "two_part"),
                ("gpt2", "causal_lm", "two_part"),
                ("gpt2", "classification", "u"),
                ("bert", "classification", "u"),
            )
            for late in (True, False)
        ],
    ),
)
def test_one_client_has_gradients_of_weights_one_step_old(
    hub: Path, model: str, task: str, shape: str, late: bool
) -> None:
    words = ("data.num_clients=1", f"framework.staleness={int(late)}", f"framework.shape={shape}")
    fed = split(hub, *words, model=model, task=task)
    right, wrong = (Delayed(fed, shape, clip=CLIP, late=value) for value in (late, not late))
    run_rounds(fed, 2)
    turns = [["client-0"]] * 5
    for number in (1, 2):
        expected, other = right.round(number, turns), wrong.round(number, turns)
    assert distance(dict(fed.server.state), expected) < EXACT[model]
    assert distance(dict(fed.server.state), other) > 1e-4


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("shape", ["two_part", "u"])
def test_clients_of_different_length_take_their_last_steps(hub: Path, shape: str) -> None:
    fed = split(
        hub,
        AHEAD,
        f"framework.shape={shape}",
        "data.partition={name: size_skewed, power: 1.0}",
        *("training.local_steps=null", "training.batch_size=4", "training.max_grad_norm=null"),
    )
    num_steps = {c.name: c.training.num_steps(len(c.examples)) for c in fed.clients}
    assert len({*num_steps.values()}) > 1
    turns = [
        [client for client in sorted(num_steps) if turn < num_steps[client]]
        for turn in range(max(num_steps.values()))
    ]
    right, wrong = (Delayed(fed, shape, clip=None, late=late) for late in (True, False))
    run_rounds(fed, 2)
    for number in (1, 2):
        expected, other = right.round(number, turns), wrong.round(number, turns)
    assert distance(dict(fed.server.state), expected) < EXACT["gpt2"]
    assert distance(dict(fed.server.state), other) > 1e-4


@pytest.mark.usefixtures("uncounted")
def test_in_turns_a_client_is_late_only_where_it_comes_twice_in_a_row(hub: Path) -> None:
    fed = split(hub, AHEAD, "framework.mode=splitfed_v2", "rounds=1", "training.local_steps=6")
    right, wrong = (Delayed(fed, "two_part", clip=CLIP, late=late) for late in (True, False))
    recorder = Recorder(fed)
    run_rounds(fed, 1)
    verbs = [(client, decode(request).verb) for client, request, _ in recorder.log]
    turns = [[client] for client, verb in verbs if verb == "forward"]
    assert any(one == other for one, other in pairwise(turns))
    assert any(one != other for one, other in pairwise(turns))
    assert distance(dict(fed.server.state), right.round(1, turns)) < EXACT["gpt2"]
    assert distance(dict(fed.server.state), wrong.round(1, turns)) > 1e-5


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("mode", ["relay", "splitfed_v1", "splitfed_v2"])
def test_with_one_client_all_modes_are_one(hub: Path, mode: str) -> None:
    states = []
    for chosen in (mode, "coalesced"):
        fed = split(hub, AHEAD, "data.num_clients=1", f"framework.mode={chosen}")
        run_rounds(fed, 2)
        states.append(dict(fed.server.state))
    assert distance(*states) < 1e-15


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("words", "same"),
    [
        (("framework.train=server", "model.dropout=0.1"), True),
        (("framework.train=server", "framework.cache=false"), True),
        (("framework.train=server", "framework.shape=u", "framework.cache=false"), True),
        (("framework.train=both",), False),
    ],
)
def test_where_the_first_blocks_are_frozen_nothing_is_late(
    hub: Path, words: tuple[str, ...], same: bool
) -> None:
    states = []
    for staleness in (0, 1):
        fed = split(hub, *words, f"framework.staleness={staleness}")
        with scoped_rng(0, "server"):  # as a run does
            figures = run_rounds(fed, 2)
        states.append((dict(fed.server.state), figures))
    (one, losses), (other, others) = states
    assert (distance(one, other) == 0.0) == same
    assert (losses == others) == same


@pytest.mark.usefixtures("uncounted")
def test_the_next_batch_is_asked_for_before_the_gradient_of_this_one_comes(hub: Path) -> None:
    for staleness, expected in ((0, "f b f b f b f b f b"), (1, "f f b f b f b f b b")):
        fed = split(hub, f"framework.staleness={staleness}", "rounds=1")
        recorder = Recorder(fed)
        run_rounds(fed, 1)
        verbs = [
            decode(request).verb for client, request, _ in recorder.log if client == "client-1"
        ]
        assert [*verbs[:2], verbs[-1]] == ["probe_part", "begin", "finish"]
        assert " ".join(verb[0] for verb in verbs[2:-1]) == expected


class Unhurried:
    """An engine whose clients do nothing before somebody waits for them."""

    def __init__(self, fed: Experiment) -> None:
        self._inner = fed.fleet.engine
        self._queues: dict[str, deque[tuple[bytes, list[bytes]]]] = defaultdict(deque)
        self.most = 0  # asks that a client had before it
        fed.fleet.engine = self

    @property
    def clients(self) -> list[str]:
        return list(self._inner.clients)

    def carry(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        yield from self.post(requests)

    def post(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        places: dict[str, list[bytes]] = {client: [] for client in requests}
        for client, data in requests.items():
            self._queues[client].append((data, places[client]))
            self.most = max(self.most, len(self._queues[client]))
        return self._replies(places)

    def _replies(self, places: Mapping[str, list[bytes]]) -> Iterator[tuple[str, bytes]]:
        for client in sorted(places, reverse=True):
            while not places[client]:
                data, place = self._queues[client].popleft()
                [(_, reply)] = self._inner.carry({client: data})
                assert isinstance(reply, bytes)
                place.append(reply)
            yield client, places[client].pop()

    def gather(self, need: int) -> Gathered:
        return self._inner.gather(need)

    def save(self, number: int) -> Saved | None:
        return self._inner.save(number)

    def restore(self, number: int, held: Mapping[str, int]) -> None:
        self._inner.restore(number, held)


@pytest.mark.parametrize("shape", ["two_part", "u"])
def test_it_comes_out_the_same_whenever_clients_work(hub: Path, shape: str) -> None:
    words = (AHEAD, "model.dropout=0.1", "model.dtype=float32", f"framework.shape={shape}")
    found = []
    for unhurried in (False, True):
        fed = split(hub, *words, "wire.up=[int8]", "framework.mode=coalesced")
        engine = Unhurried(fed) if unhurried else None
        assert isinstance(fed.fleet.engine, PostingEngine) == unhurried
        with scoped_rng(0, "server"):  # as a run does
            figures = run_rounds(fed, 2)
        sent = [
            (e.round, e.client, e.verb, e.direction, e.bytes, e.flops, e.peak_bytes)
            for e in fed.fleet.ledger.entries
        ]
        found.append((figures, sorted(sent), dict(fed.server.state)))
        assert engine is None or engine.most == 2
    (losses, sent, state), (others, also_sent, other) = found
    assert losses == others
    assert sent == also_sent
    assert distance(state, other) == 0.0


@pytest.mark.usefixtures("uncounted")
def test_changes_can_be_sent_ahead(hub: Path) -> None:
    states = []
    for words in ((), ("framework.delta={}",)):
        fed = split(hub, AHEAD, *words)
        run_rounds(fed, 2)
        states.append(dict(fed.server.state))
    assert distance(*states) < 1e-10


def test_a_second_batch_takes_memory(hub: Path) -> None:
    peaks = []
    for staleness in (0, 1):
        fed = split(hub, f"framework.staleness={staleness}", "training.batch_size=8")
        run_rounds(fed, 2)
        entries = fed.fleet.ledger.entries
        peaks.append(max(e.peak_bytes or 0 for e in entries if e.verb == "backward"))
    assert 1.1 * peaks[0] < peaks[1] < 2.0 * peaks[0]


def test_a_client_that_is_asked_for_too_much_refuses(hub: Path) -> None:
    fed = split(hub, "fleet.min_replies=1")
    framework = fed.config.framework
    later = framework.model_copy(update={"staleness": 1})
    later.start(fed.server, fed.fleet)
    fed.server.round = 1
    fed.fleet.begin_round(1)
    with pytest.raises(Exception, match="forward: 1 batches are under way"):
        later.round(fed.server, fed.fleet)


@pytest.mark.parametrize(
    "words",
    [
        ("framework.train=server", "framework.cache=true"),
        ("framework.train=server", "framework.local_rounds=1"),
        ("framework.train=server",),
        ("framework.train=server", "framework.shape=u"),
    ],
)
def test_where_it_cannot_work_it_is_refused(hub: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="staleness=1") as refused:  # noqa: PT012 - before or at start
        fed = split(hub, AHEAD, *words)
        fed.config.framework.start(fed.server, fed.fleet)
    assert "Leave framework.staleness out" in str(refused.value)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("verb", ["forward", "backward"])
def test_a_client_drops_out_with_a_batch_under_way(hub: Path, verb: str) -> None:
    fed = split(hub, AHEAD, "fleet.min_replies=2", "rounds=1")
    bad = fed.clients[1]
    honest, calls = bad.verbs[verb], []

    def lie(client: Client, message: Message) -> Message:
        calls.append(message)
        reply = honest(client, message)
        if len(calls) < 3:
            return reply
        return replace(reply, tensors={**reply.tensors, LIES[verb]: torch.full((1,), -1.0)})

    bad.verbs = {**bad.verbs, verb: lie}
    line = fed.run()[-1]
    assert set(line["missing"]) == {bad.name}
    assert line["train_loss"] > 0
    assert len(calls) <= 4, "one more may have been under way"
    assert all(bool(torch.isfinite(p).all()) for p in fed.server.state.values())
