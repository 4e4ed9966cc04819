"""Each setting of FedLLM against what its method says: what crosses, what stays, what is exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from tiny import (
    Recorder,
    distance,
    federation,
    perturb,
    plain_batch,
    plain_loss,
    plain_steps,
    round_batches,
    run_rounds,
)
from trillium.errors import UserError
from trillium.experiment import Experiment
from trillium.fleet import Gathered
from trillium.message import Message
from trillium.models.slots import Tensors, values
from trillium.wire import Direction

SGD = ("training.optimizer={name: sgd, lr: 0.1}", "training.max_grad_norm=null")
SIGN = ("framework.download=change", "wire.up=[sign]", "wire.down=[sign]")
SMALL = "tiers={small: {clients: [client-0], rank: 1}, mid: {clients: [client-1], rank: 2}}"


def crossed(log: Recorder, fed: Experiment, direction: Direction) -> list[tuple[str, Message]]:
    """Return client and message of every ask, as the other side reads it."""
    data = [(name, up if direction == "up" else down) for name, down, up in log.log]
    return [(name, fed.fleet.wire_of(name).unpack(d, direction).message) for name, d in data]


def size(message: Message, kind: Any = "parameters") -> int:
    """Return how many numbers of a kind a message brings."""
    return sum(tensor.numel() for tensor in message.group(kind).values())


def numel(fed: Experiment, part: str) -> int:
    return sum(t.numel() for name, t in fed.model.initial.items() if part in name)


def change(fed: Experiment, tensors: Tensors, base: Tensors) -> dict[str, Tensor]:
    """Return what the adapted weights changed by, `(out, in)` by layer."""
    found = {}
    for layer in fed.model.factors:
        start = fed.model.base[layer.layer].double()
        folded = base.get(layer.layer, start).double() - start
        product = layer.scale * tensors[layer.b].double() @ tensors[layer.a].double()
        found[layer.layer] = product + (folded.T if layer.transposed else folded)
    return {name: tensor.detach() for name, tensor in found.items()}


def server_change(fed: Experiment) -> dict[str, Tensor]:
    return change(fed, values(fed.server.state), fed.server.base)


def client_changes(fed: Experiment, log: Recorder, like: Tensors) -> list[dict[str, Tensor]]:
    """Return what each client made of the state `like` that it received, with its own base."""
    found = []
    for client, (_, reply) in zip(fed.clients, crossed(log, fed, "up"), strict=True):
        update = reply.expect("parameters", like)
        reached = {name: like[name] + update[name] for name in like}
        found.append(change(fed, reached, client.base))
    return found


def mean(fed: Experiment, changes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    weights = [client.weight for client in fed.clients]
    return {
        name: sum((w * c[name] for w, c in zip(weights, changes, strict=True)), torch.zeros(()))
        / sum(weights)
        for name in changes[0]
    }


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


UNEQUAL = ("data.partition={name: size_skewed, power: 1.0}", "training.local_epochs=2")


@pytest.mark.parametrize("model", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize("aggregator", ["fedex", "stack", "{name: svd, fold_rest: true}"])
def test_folding_rules_give_the_mean_of_the_products(
    hub: Path, model: str, aggregator: str
) -> None:
    """In two rounds, so that clients train on a folded base; the plain mean is told apart."""
    words = (*UNEQUAL, f"framework.aggregator={aggregator}")
    fed = federation(hub, *words, model=model)
    run_rounds(fed, 1)
    log = Recorder(fed)
    like = fed.config.framework.known(side_of(fed, 2))  # type: ignore[attr-defined]
    if "stack" not in aggregator:
        like = values(fed.server.state)
    else:
        like = {**values(fed.server.state), **{n: t for n, t in like.items() if "lora_" in n}}
    fed.server.round = 1
    run_round(fed, 2)
    log.log = [entry for entry in log.log if verb(fed, entry[2]) == "train"]
    wanted = mean(fed, client_changes(fed, log, like))
    assert furthest(server_change(fed), wanted) < 1e-14
    for client in fed.clients:  # all sides fold the same numbers
        assert client.base.keys() <= fed.server.base.keys()
    plain = federation(hub, *UNEQUAL, model=model)
    run_rounds(plain, 2)
    assert furthest(server_change(plain), wanted) > 1e-5


def side_of(fed: Experiment, number: int) -> Any:
    fed.server.round = number
    return fed.server


def verb(fed: Experiment, reply: bytes) -> str:
    return fed.config.wire.unpack(reply, "up").message.verb


def run_round(fed: Experiment, number: int) -> None:
    fed.server.round = number
    fed.fleet.begin_round(number)
    fed.config.framework.round(fed.server, fed.fleet)


@pytest.mark.parametrize("model", ["gpt2", "bert"])
@pytest.mark.parametrize("aggregator", ["fedex", "stack"])
def test_an_adapter_with_folds_loads_with_peft(
    hub: Path, tmp_path: Path, model: str, aggregator: str
) -> None:
    fed = federation(hub, f"framework.aggregator={aggregator}", model=model)
    run_rounds(fed, 2)
    fed.model.save(fed.server.state, tmp_path / "adapter", fed.server.folds)
    inputs, _ = plain_batch(fed.server.test[:5])
    ours = fed.model.mount(fed.server.state, fed.server.base).eval()(**inputs).logits
    config = AutoConfig.from_pretrained(hub / model, num_labels=3)
    base = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64)
    source = fed.model.mount(fed.model.state())
    weights = source.get_base_model().state_dict()  # type: ignore[operator]
    base.load_state_dict(
        {
            name.replace(".base_layer", "").replace(".original_module", ""): tensor
            for name, tensor in weights.items()
            if "lora_" not in name and "modules_to_save" not in name
        }
    )
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(loaded(**inputs).logits, ours, atol=1e-6)
    without = fed.model.mount(fed.server.state).eval()(**inputs).logits
    assert not torch.allclose(without, ours, atol=1e-4)
    state = fed.model.load_state(tmp_path / "adapter")
    again = fed.model.mount(state).eval()(**inputs).logits
    assert torch.allclose(again, ours, atol=1e-6)


def test_ffa_never_sends_nor_trains_a(hub: Path) -> None:
    fed = federation(hub, "framework.mask=ffa", "adapter.init=orthonormal", *UNEQUAL, model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    expected = sum(t.numel() for t in fed.model.initial.values()) - numel(fed, "lora_A")
    assert {size(message) for _, message in crossed(log, fed, "up")} == {expected}
    assert {size(message) for _, message in crossed(log, fed, "down")} == {0, expected}
    for name, start in fed.model.initial.items():
        moved = float((fed.server.state[name] - start).abs().max()) > 0
        assert moved == ("lora_A" not in name)
        if "lora_A" in name:
            assert torch.allclose(start @ start.T, torch.eye(3, dtype=start.dtype), atol=1e-12)


@pytest.mark.parametrize("mask", ["ffa", "rolora"])
def test_the_mean_is_exact_where_one_factor_rests(hub: Path, mask: str) -> None:
    fed = federation(hub, f"framework.mask={mask}", *UNEQUAL, model="bert")
    for number in (1, 2):
        received, log = values(fed.server.state), Recorder(fed)
        run_round(fed, number)
        share = fed.config.framework.share(fed.server, fed.server.tiers["client-0"])  # type: ignore[attr-defined]
        changes = []
        for _, reply in crossed(log, fed, "up"):
            update = reply.expect("parameters", {n: received[n] for n in share.up})
            changes.append(
                change(fed, {n: t + update.get(n, 0.0) for n, t in received.items()}, {})
            )
        assert furthest(server_change(fed), mean(fed, changes)) < 1e-14


def test_rolora_trains_b_first_and_the_resting_factor_does_not_travel(hub: Path) -> None:
    fed = federation(hub, "framework.mask=rolora", "framework.download=change", model="bert")
    head = numel(fed, "modules_to_save")
    for number, moving, resting in ((1, "lora_B", "lora_A"), (2, "lora_A", "lora_B")):
        before, log = values(fed.server.state), Recorder(fed)
        run_round(fed, number)
        assert {size(m) for _, m in crossed(log, fed, "up")} == {numel(fed, moving) + head}
        came = {size(m) for _, m in crossed(log, fed, "down")}
        assert came == {0 if number == 1 else numel(fed, resting) + head}
        for name, parameter in fed.server.state.items():
            assert torch.equal(parameter, before[name]) == (resting in name)


def test_segments_take_turns(hub: Path) -> None:
    fed = federation(hub, "framework.mask={name: segments, num_segments: 3}", model="bert")
    layers = []
    for number in (1, 2, 3):
        before = values(fed.server.state)
        run_round(fed, number)
        moved = {n for n, p in fed.server.state.items() if not torch.equal(p, before[n])}
        assert any("classifier" in name for name in moved)
        layers.append({name.partition(".lora_")[0] for name in moved if "lora_" in name})
    assert all(layers)
    assert set.union(*layers) == {layer.a.partition(".lora_")[0] for layer in fed.model.factors}
    assert sum(map(len, layers)) == len(fed.model.factors)


def test_what_is_local_stays_with_its_client(hub: Path) -> None:
    """FedSA-LoRA: `A` is shared; `B` and the head are each client's own, and are not mixed up."""
    words = ("framework.local=[lora_B, head]", "data.num_clients=4", "fleet.clients_per_round=2")
    fed = federation(hub, *words, "rounds=4", model="bert")
    log = Recorder(fed)
    history = fed.run()
    assert {size(m) for _, m in crossed(log, fed, "up") if m.verb == "train"} == {
        numel(fed, "lora_A")
    }
    kept = [client.store["tensors"] for client in fed.clients if "tensors" in client.store]
    assert len(kept) == 4
    for name, start in fed.model.initial.items():
        if "lora_A" not in name:
            assert torch.equal(fed.server.state[name], start)
            assert len({float(own[name].abs().sum()) for own in kept}) == 4
    assert history[-1]["shipped"] == "mean of the clients' models"
    own = [line["accuracy"] for line in history[-1]["clients"].values()]
    assert history[-1]["accuracy"] == pytest.approx(sum(own) / 4)


def test_clients_of_lower_rank_hold_the_first_components(hub: Path) -> None:
    fed = federation(hub, "framework.aggregator=svd", SMALL, *UNEQUAL, model="bert")
    log = Recorder(fed)
    received = values(fed.server.state)
    run_round(fed, 1)
    head = numel(fed, "modules_to_save")
    lora = sum(t.numel() for t in fed.model.initial.values()) - head
    sizes = {name: size(message) for name, message in crossed(log, fed, "up")}
    assert sizes == {f"client-{k}": lora * (k + 1) // 3 + head for k in range(3)}
    changes = []
    for client, (_, reply) in zip(fed.clients, crossed(log, fed, "up"), strict=True):
        share = fed.config.framework.share(fed.server, client.tier)  # type: ignore[attr-defined]
        held = share.take(received, share.up)
        update = reply.expect("parameters", held)
        changes.append(change(fed, {n: held[n] + update[n] for n in held}, {}))
    exact, found = mean(fed, changes), server_change(fed)
    for name, wanted in exact.items():
        left, scales, right = torch.linalg.svd(wanted)
        best = left[:, :3] @ torch.diag(scales[:3]) @ right[:3]
        assert torch.allclose(found[name], best, atol=1e-13)


def test_a_tier_holds_its_layers_only(hub: Path) -> None:
    fed = federation(hub, "tiers={edge: {clients: [client-2], layers: [2]}}", model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    sizes = {name: size(message) for name, message in crossed(log, fed, "up")}
    assert sizes["client-2"] < sizes["client-0"] == sizes["client-1"]
    third = (sizes["client-0"] - numel(fed, "modules_to_save")) / 3
    assert sizes["client-2"] == third + numel(fed, "modules_to_save")


def test_a_tier_has_steps_and_codecs_of_its_own(hub: Path) -> None:
    tier = "tiers={slow: {clients: ['client-[01]'], local_steps: 1, up: [int4], link: {up: 1.0e6}}}"
    fed = federation(hub, tier, "training.local_epochs=3")
    fed.run()
    up = {e.client: e for e in fed.fleet.ledger.entries if e.direction == "up" and e.round == 1}
    slow, fast = up["client-1"].flops, up["client-2"].flops
    assert slow is not None
    assert fast is not None
    assert slow < fast
    assert up["client-1"].kinds["parameters"] * 5 < up["client-2"].kinds["parameters"]


@pytest.mark.parametrize("words", [SIGN, ("framework.download=change", "wire.down=[int4]"),
                                   ("framework.download=change",),
                                   ("wire.down=[int8]",)])  # fmt: skip
def test_both_sides_agree_on_what_the_client_holds(hub: Path, words: tuple[str, ...]) -> None:
    """In every round and bit for bit; with clients that are not asked in every round."""
    more = ("data.num_clients=4", "fleet.clients_per_round=3", "rounds=5")
    fed = federation(hub, *words, *more, "model.dtype=float32", model="bert")
    download = fed.config.framework.download  # type: ignore[attr-defined]
    sent: dict[str, Tensors] = {}
    seen = []
    receive = type(download).receive

    class Watched(type(download)):  # type: ignore[misc]
        def settle(self, store: Any, parcel: Any, found: Any, answered: bool) -> None:
            super().settle(store, parcel, found, answered)
            sent[parcel.client] = found.held

        def receive(self, *rest: Any) -> Tensors:
            found: Tensors = receive(self, *rest)
            seen.append(found)
            return found

    framework = fed.config.framework.model_copy(update={"download": Watched()})
    fed.config = fed.config.model_copy(update={"framework": framework})
    for client in fed.clients:
        client.verbs = {"train": framework.train}  # type: ignore[attr-defined]
    for number in range(1, 6):
        seen.clear()
        run_round(fed, number)
        assert len(seen) == 3
        for name, held in zip(sorted(fed.fleet.asked), seen, strict=True):
            for key, tensor in held.items():
                assert torch.equal(tensor, sent[name][key]), (number, name, key)
    far = distance({n: p for n, p in sent[fed.fleet.asked[0]].items()}, fed.model.initial)
    assert far > 1e-3


def test_a_late_joiner_gets_a_snapshot(hub: Path) -> None:
    fed = federation(hub, *SIGN, "data.num_clients=4", "rounds=3", "fleet.clients_per_round=3",
                     model="bert")  # fmt: skip
    engine: Any = fed.fleet.engine
    late = "client-3"
    engine.gather = lambda need: Gathered({c for c in engine.clients if c != late})
    run_rounds(fed, 2)
    engine.gather = lambda need: Gathered({*engine.clients} - {"client-0"}, {late})
    log, state = Recorder(fed), values(fed.server.state)
    run_round(fed, 3)
    messages = dict(crossed(log, fed, "down"))
    assert size(messages[late], "snapshot") == sum(t.numel() for t in state.values())
    assert size(messages[late]) == 0 < size(messages["client-1"])
    held = next(c for c in fed.clients if c.name == late).store["download"]["held"]
    for name, tensor in state.items():
        assert torch.equal(held[name], tensor)


def test_a_client_that_forgot_is_told_so_and_begins_anew(hub: Path) -> None:
    fed = federation(hub, *SIGN, "rounds=3", "fleet.min_replies=2", model="bert")
    run_rounds(fed, 1)
    fed.clients[0].store.clear()
    run_round(fed, 2)
    assert "holds nothing" in fed.fleet.missing["client-0"]
    log = Recorder(fed)
    run_round(fed, 3)
    assert not fed.fleet.missing
    assert size(dict(crossed(log, fed, "down"))["client-0"], "snapshot") > 0


def test_other_start_values_are_noticed(hub: Path) -> None:
    fed = federation(hub, "fleet.min_replies=2", model="bert")
    other = federation(hub, "seed=1", model="bert")
    fed.clients[1].model = other.model
    run_rounds(fed, 1)
    assert "the start values here are not those of the server" in fed.fleet.missing["client-1"]


@pytest.mark.parametrize("codec", ["sign", "int4", "{name: top_k, fraction: 0.1}"])
def test_nothing_is_lost_with_feedback(hub: Path, codec: str) -> None:
    """What a client sent in all, and what it still keeps, is what it wanted to send."""
    words = (f"wire.up=[{codec}]", "rounds=4", "data.num_clients=1")
    fed = federation(hub, *words, model="bert")
    wanted: Tensors = {}
    sent: Tensors = {}
    for number in range(1, 5):
        before, log = values(fed.server.state), Recorder(fed)
        kept = dict(fed.clients[0].store.get("lost", {}))
        run_round(fed, number)
        lost = fed.clients[0].store["lost"]
        update = crossed(log, fed, "up")[0][1].expect("parameters", before)
        for name, tensor in update.items():
            sent[name] = sent.get(name, 0.0) + tensor
            # The update itself: what was sent and lost, less what was left over before.
            own = tensor + lost[name] - kept.get(name, torch.zeros(()))
            wanted[name] = wanted.get(name, 0.0) + own
    for name in wanted:
        assert torch.allclose(sent[name] + fed.clients[0].store["lost"][name], wanted[name])
        assert float(fed.clients[0].store["lost"][name].abs().max()) > 0
    without = federation(hub, *words, "framework.feedback=0", model="bert")
    run_rounds(without, 2)
    assert "lost" not in without.clients[0].store or not without.clients[0].store["lost"]


def test_prox_adds_the_gradient_of_its_term(hub: Path) -> None:
    def final(*words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, "training.local_steps=3", *words))
        run_rounds(fed, 2)
        return values(fed.server.state)

    plain = final()
    assert distance(plain, final("framework.drift={name: prox, mu: 0}")) == 0.0
    fed = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=2",
                             "framework.drift={name: prox, mu: 0.5}"))  # fmt: skip
    start = values(fed.server.state)
    run_rounds(fed, 1)
    alone = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=2"))
    client = alone.clients[0]
    state = alone.model.state(start)
    module = alone.model.mount(state).train()
    optimizer = torch.optim.SGD(state.values(), lr=0.1)
    for chunk in round_batches(alone, 1):
        optimizer.zero_grad()
        far = sum((p - start[n]).square().sum() for n, p in state.items())
        (plain_loss(module, chunk) + 0.25 * far).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert client.name == "client-0"
    assert distance(fed.server.state, state) < 1e-12


def test_scaffold_is_federated_averaging_at_first_and_for_one_step(hub: Path) -> None:
    def final(rounds: int, *words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, *UNEQUAL, *words))
        run_rounds(fed, rounds)
        return values(fed.server.state)

    scaffold = "framework.drift=scaffold"
    assert distance(final(1), final(1, scaffold)) == 0.0
    assert distance(final(2), final(2, scaffold)) > 1e-6
    one = ("training.local_steps=1", "training.batch_size=64")
    # With one step of the whole data, c - c_k moves clients apart and their mean not at all.
    assert distance(final(2, *one), final(2, *one, scaffold)) < 1e-12


def test_scaffold_keeps_the_paper_s_variates(hub: Path) -> None:
    """`c_k - c + (x - y) / (K lr)` under plain SGD; and the server keeps their mean."""
    words = (*SGD, *UNEQUAL, "training.local_steps=3", "framework.drift=scaffold")
    fed = perturb(federation(hub, *words))
    run_rounds(fed, 1)
    before = [dict(c.store["drift"]["own"]) for c in fed.clients]
    common = dict(fed.server.store["drift"]["common"])
    received, log = values(fed.server.state), Recorder(fed)
    run_round(fed, 2)
    replies = [m.expect("parameters", received) for _, m in crossed(log, fed, "up")]
    weights = [client.weight for client in fed.clients]
    for name in received:
        kept = []
        for client, own, update in zip(fed.clients, before, replies, strict=True):
            wanted = own[name] - common[name] - update[name] / (3 * 0.1)
            assert torch.allclose(client.store["drift"]["own"][name], wanted, atol=1e-10)
            kept.append(client.store["drift"]["own"][name])
        expected = sum(w * k for w, k in zip(weights, kept, strict=True)) / sum(weights)
        found = fed.server.store["drift"]["common"][name]
        assert torch.allclose(found, torch.as_tensor(expected), atol=1e-10)


def test_a_frozen_head_neither_moves_nor_travels(hub: Path) -> None:
    fed = federation(hub, "training.lr_factors={head: 0}", model="bert")
    log = Recorder(fed)
    run_rounds(fed, 2)
    head = [n for n in fed.model.initial if "modules_to_save" in n]
    assert all(torch.equal(fed.server.state[n], fed.model.initial[n]) for n in head)
    lora = numel(fed, "lora_")
    assert {size(m) for _, m in crossed(log, fed, "up")} == {lora}
    assert {size(m) for _, m in crossed(log, fed, "down")} == {0, lora}


def test_learning_rates_differ_by_tensor(hub: Path) -> None:
    """One step of SGD: the change is the factor times what it is without."""

    def change_of(*words: str) -> Tensors:
        fed = perturb(federation(hub, *SGD, "data.num_clients=1", "training.local_steps=1", *words))
        start = values(fed.server.state)
        run_rounds(fed, 1)
        return {n: fed.server.state[n].detach() - start[n] for n in start}

    plain, scaled = change_of(), change_of("training.lr_factors={head: 0.1, lora_B: 4}")
    for name, tensor in plain.items():
        factor = 0.1 if "score" in name else 4.0 if "lora_B" in name else 1.0
        assert torch.allclose(scaled[name], factor * tensor, atol=1e-14)


def test_logit_adjustment_is_the_log_of_the_class_frequencies(hub: Path) -> None:
    fed = federation(hub, "task={name: classification, logit_adjustment: 2.0}",
                     "data.partition={name: dirichlet, alpha: 0.3}")  # fmt: skip
    examples = fed.clients[0].examples
    found = fed.config.task.adjustment(examples)
    assert found is not None
    counts = torch.tensor([sum(int(e.labels) == k for e in examples) for k in range(3)])
    prior = (counts + 0.5) / (counts + 0.5).sum()
    assert torch.allclose(found(torch.zeros(2, 3)), 2.0 * prior.log())
    moved = []
    for words in ((), ("task={name: classification, logit_adjustment: 2.0}",)):
        other = federation(hub, "data.partition={name: dirichlet, alpha: 0.3}", *words)
        run_rounds(other, 1)
        moved.append(values(other.server.state))
    assert distance(moved[0], moved[1]) > 1e-4


def test_fedsvd_is_ffa_with_orthonormal_a(hub: Path) -> None:
    """Under SGD the rotations of FedSVD (arXiv 2505.12805) change nothing: an independent run of it."""
    words = (*SGD, *UNEQUAL, "training.lr_factors={head: 0}", "training.local_steps=2")
    fed = federation(hub, *words, "framework.mask=ffa", "adapter.init=orthonormal", "rounds=6",
                     model="bert")  # fmt: skip
    factors, state = fed.model.factors, fed.model.state()
    for number in range(1, 7):
        run_round(fed, number)
        sums = {layer.b: torch.zeros(()) for layer in factors}
        total = sum(client.weight for client in fed.clients)
        for place, client in enumerate(fed.clients):
            own = fed.model.state(values(state))
            trained = [own[layer.b] for layer in factors]
            module = fed.model.mount(own).train()
            plain_steps(module, round_batches(fed, number, place), torch.optim.SGD(trained, lr=0.1))
            for layer in factors:
                sums[layer.b] = sums[layer.b] + own[layer.b].detach() * (client.weight / total)
        for layer in factors:  # the server's decomposition, which rotates both factors
            left, scales, right = torch.linalg.svd(sums[layer.b] @ state[layer.a].detach())
            rank = len(state[layer.a])
            state[layer.a] = torch.nn.Parameter(right[:rank])
            state[layer.b] = torch.nn.Parameter(left[:, :rank] * scales[:rank])
        assert furthest(server_change(fed), change(fed, values(state), {})) < 1e-12
    assert any(
        not torch.allclose(state[layer.a], fed.server.state[layer.a], atol=1e-3)
        for layer in factors
    )


def test_a_very_cautious_adam_steps_like_sgd(hub: Path) -> None:
    """`eps` far above all gradients: Adam's first step is proportional to SGD's, by `1 / eps`."""
    moved = []
    for words in (
        "{name: adam, lr: 1.0e9, eps: 1.0e9}",
        "{name: yogi, lr: 2.0e10, eps: 1.0e9}",
        None,
    ):
        option = () if words is None else (f"framework.server_optimizer={words}",)
        fed = perturb(federation(hub, *SGD, *option))
        start = values(fed.server.state)
        run_rounds(fed, 1)
        moved.append({n: p.detach() - start[n] for n, p in fed.server.state.items()})
    for name, step in moved[2].items():
        assert torch.allclose(moved[0][name], step, atol=1e-9)
        # Yogi starts at m = 0.1 g, uncorrected, and at sqrt(v) = eps, so that it divides by 2 eps.
        assert torch.allclose(moved[1][name], step, atol=1e-7)


def test_a_restart_does_not_change_the_model(hub: Path) -> None:
    fed = federation(hub, "framework.aggregator=stack", "rounds=3", model="bert")
    run_rounds(fed, 2)
    inputs, _ = plain_batch(fed.server.test[:4])
    before = fed.model.mount(fed.server.state, fed.server.base).eval()(**inputs).logits
    fed.server.round = 3
    known = fed.config.framework.known(fed.server)  # type: ignore[attr-defined]
    anew = {n: t for n, t in known.items() if "lora_" in n}
    assert any(not torch.equal(anew[n], fed.server.state[n]) for n in anew)
    state = fed.model.state({**values(fed.server.state), **anew})
    after = fed.model.mount(state, fed.server.base).eval()(**inputs).logits
    assert torch.allclose(before, after, atol=1e-12)


def test_the_error_of_averaging_factors_is_measured(hub: Path) -> None:
    fed = federation(hub, *UNEQUAL, "training.local_epochs=3", model="bert")
    received, log = values(fed.server.state), Recorder(fed)
    figures = fed.config.framework.round  # what a round reports
    fed.server.round = 1
    fed.fleet.begin_round(1)
    found = figures(fed.server, fed.fleet)["product_error"]
    exact = mean(fed, client_changes(fed, log, received))
    averaged = server_change(fed)
    off = sum(float((averaged[n] - exact[n]).square().sum()) for n in exact)
    size = sum(float(exact[n].square().sum()) for n in exact)
    assert found == pytest.approx((off / size) ** 0.5, rel=0.35)  # seen in 16 random directions
    assert found > 1e-3
    for words in ("framework.mask=ffa", "framework.aggregator=fedex"):
        assert "product_error" not in run_rounds(federation(hub, words, model="bert"), 1)[0]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework.aggregator=svd", "framework.upload=gradient"), "a gradient is none"),
        (("framework.aggregator=fedex", "framework.server_optimizer=adam"), "steps along changes"),
        (("framework.aggregator=stack", "adapter=full"), "factors of LoRA"),
        (("framework.aggregator=svd", "framework.local=[lora_B]"), "both factors"),
        (("framework.aggregator=stack", "framework.download=change"), "start anew"),
        ((SMALL,), "different ranks"),
        (("tiers={a: {rank: 9}}", "framework.aggregator=svd"), "no more than it has"),
        (("tiers={a: {rank: 2}}", "adapter=full"), "no rank"),
        (("tiers={a: {layers: [0]}}", "framework.aggregator=median"), "whole updates"),
        (("tiers={a: {rank: 2}}", "framework=kd"), "only fedllm"),
        (("wire.up=[sign]", "framework.upload=parameters"), "made for changes"),
        (("wire.down=[{name: top_k, fraction: 0.1}]",), "made for changes"),
        (("framework.drift=scaffold", "framework.upload=gradient"), "cannot drift"),
        (("framework.aggregator=fedex",
          "tiers={a: {down: [{name: int8, kinds: [snapshot]}]}}"), "same on all sides"),
        (("framework.aggregator=svd", "adapter.dora=true"), "not the product"),
        (("framework.mask=ffa", "adapter=full"), "factors of LoRA"),
        (("framework.aggregator={name: krum, num_byzantine: 1}",), "it needs at least 5"),
        (("wire.up=[{name: projection, fraction: 0.1}]",), "would grow"),
        (("wire.down=[{name: projection, fraction: 0.1}]", "framework.download=change"),
         "carries it over"),
        (("framework.aggregator=fedex",
          "wire.down=[{name: cast, kinds: [snapshot]}]"), "same on all sides"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    hub: Path, words: tuple[str, ...], why: str
) -> None:
    with pytest.raises(UserError) as caught:
        federation(hub, *words)
    assert why in caught.value.why
    assert caught.value.instead
