"""Heads in closed form = the pooled data's own solution, whatever the partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from tiny import federation, plain_batch, plain_model
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.client import Client
from trillium.federation.engine import Gathered
from trillium.federation.parts import Lost
from trillium.frameworks.heads.class_means import ClassMeans
from trillium.frameworks.heads.closed_form import ClosedForm
from trillium.frameworks.heads.ridge import Ridge
from trillium.frameworks.heads.statistics import (
    Solution,
    Statistics,
    encode_statistics,
    pool,
    read_statistics,
)
from trillium.tasks import IGNORE
from trillium.wire.message import Message
from trillium.wire.wire import Wire

ZERO = "framework=zero_shot"
HALF = (
    "wire.up=[{name: cast, dtype: float16, kinds: [statistics]}]",
    "wire.down=[{name: cast, dtype: float16, kinds: [snapshot]}]",
)
PARTITIONS = [
    ("iid", 1),
    ("iid", 3),
    ("{name: dirichlet, alpha: 0.1}", 4),
    ("shard", 3),
    ("{name: size_skewed, power: 1.0}", 5),
]


def start(hub: Path, *words: str, model: str = "bert", task: str = "classification") -> Experiment:
    fed = federation(hub, ZERO, *words, model=model, task=task)
    fed.run()
    return fed


def head_of(fed: Experiment, *, scaled: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Return weight and bias of the server's head."""
    head = fed.server.store["head"] if scaled else fed.server.store["heads"]["0"]["unscaled"]
    parts = {name.rpartition(".")[2]: tensor.numpy() for name, tensor in head.items()}
    return parts["weight"], parts.get("bias")


def pooled_features(fed: Experiment, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the last layer of an ordinary PEFT module sees, and the classes."""
    module = plain_model(fed).eval()
    (head,) = (
        m for n, m in module.named_modules() if n.endswith(f"{layer}.modules_to_save.default")
    )
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    examples = [example for client in fed.clients for example in client.examples]
    with torch.no_grad():
        inputs, labels = plain_batch(examples)
        module(**inputs)
    features = seen[0]
    if features.dim() == 3:  # the head of a decoder sees all tokens, of which the last counts
        features = features[torch.arange(len(labels)), inputs["attention_mask"].sum(1) - 1]
    return features.numpy(), labels.numpy()


@pytest.mark.parametrize(("partition", "num_clients"), PARTITIONS)
def test_ridge_from_any_partition_is_that_of_the_pooled_data(
    hub: Path, partition: str, num_clients: int
) -> None:
    words = (f"data.partition={partition}", f"data.num_clients={num_clients}")
    fed = start(hub, "head={name: ridge, regularisation: 0.03}", *words)
    weight, bias = head_of(fed)
    raw, labels = pooled_features(fed, "classifier")
    mean, deviation = raw.mean(0), raw.std(0)
    features, targets = (raw - mean) / deviation, np.eye(3)[labels]
    sklearn = SklearnRidge(alpha=0.03 * len(raw)).fit(features, targets)
    assert np.abs(weight - sklearn.coef_ / deviation).max() < 1e-10
    assert bias is not None
    assert np.abs(bias - (sklearn.intercept_ - weight @ mean)).max() < 1e-10
    # The formula itself, with the constant feature and its zero penalty written out.
    extended = np.column_stack([features, np.ones(len(raw))])
    penalty = np.diag([*[0.03 * len(raw)] * raw.shape[1], 0.0])
    solved = np.linalg.solve(extended.T @ extended + penalty, extended.T @ targets)
    assert np.abs(weight - solved[:-1].T / deviation).max() < 1e-10


def test_ridge_over_tokens_is_that_of_all_words(hub: Path) -> None:
    fed = start(
        *(hub, "head={name: ridge, regularisation: 0.03}"),
        *("data.partition={name: size_skewed, power: 1.0}", "data.num_clients=4"),
        task="token_classification",
    )
    weight, bias = head_of(fed)
    module, seen, labels = plain_model(fed).eval(), list[Tensor](), list[int]()
    (head,) = (
        m for n, m in module.named_modules() if n.endswith("classifier.modules_to_save.default")
    )
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for example in (example for client in fed.clients for example in client.examples):
        with torch.no_grad():
            module(input_ids=example.input_ids[None])
        counted = example.labels != IGNORE
        seen[-1] = seen[-1][counted]
        labels += example.labels[counted].tolist()
    raw = torch.cat(seen).numpy()
    deviation = raw.std(0)
    sklearn = SklearnRidge(alpha=0.03 * len(raw))
    sklearn.fit((raw - raw.mean(0)) / deviation, np.eye(5)[labels])
    assert np.abs(weight - sklearn.coef_ / deviation).max() < 1e-10
    assert bias is not None
    assert np.abs(bias - (sklearn.intercept_ - weight @ raw.mean(0))).max() < 1e-10


def test_a_head_without_bias_is_solved_without_one(hub: Path) -> None:
    fed = start(hub, "head=ridge", model="gpt2")
    weight, bias = head_of(fed)
    assert bias is None
    raw, labels = pooled_features(fed, "score")
    deviation = np.sqrt((raw**2).mean(0))
    sklearn = SklearnRidge(alpha=0.01 * len(raw), fit_intercept=False)
    sklearn.fit(raw / deviation, np.eye(3)[labels])
    assert np.abs(weight - sklearn.coef_ / deviation).max() < 1e-10


def test_class_means_are_the_nearest_centroid(hub: Path) -> None:
    fed = start(hub, "head=class_means", "data.partition={name: dirichlet, alpha: 0.1}")
    weight, bias = head_of(fed)
    raw, labels = pooled_features(fed, "classifier")
    features = (raw - raw.mean(0)) / raw.std(0)
    centroids = NearestCentroid().fit(features, labels)
    logits = raw @ weight.T + bias
    assert (logits.argmax(1) == centroids.predict(features)).all()
    distances = ((features[:, None] - centroids.centroids_) ** 2).sum(2)
    differences = logits + distances / 2
    assert np.abs(differences - differences[:, :1]).max() < 1e-10


def test_a_projected_ridge_is_that_of_projected_features(hub: Path) -> None:
    fed = start(hub, "head={name: ridge, project: 5}")
    weight, _ = head_of(fed)
    head = fed.config.head
    assert isinstance(head, Ridge)
    basis = head.basis(fed.server, 12)
    assert basis is not None
    assert torch.equal(basis.abs() * 5**0.5, torch.ones(12, 5).double())
    raw, labels = pooled_features(fed, "classifier")
    features = (raw - raw.mean(0)) / raw.std(0) @ basis.numpy()
    alpha = 0.01 * (features**2).mean() * len(raw)
    sklearn = SklearnRidge(alpha=alpha).fit(features, np.eye(3)[labels])
    assert np.abs(weight - sklearn.coef_ @ basis.numpy().T / raw.std(0)).max() < 1e-10
    sent = [e.kinds["statistics"] for e in entries(fed, "head_statistics", "up")]
    assert sent == [8 * (15 + 3 * 5)] * 3


def rows(seed: int, num: int = 60, width: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (num,), generator=draw)
    centres = torch.randn(classes, width, generator=draw, dtype=torch.float64)
    noise = torch.randn(num, width, generator=draw, dtype=torch.float64)
    return centres[labels] + 1.5 * noise, labels


def solved(head: ClosedForm, features: Tensor, labels: Tensor, classes: int = 4) -> Solution:
    return head.solve(Statistics.of(features, labels, classes, head.sends_products), True)


@pytest.mark.parametrize("head", [Ridge(), ClassMeans()], ids=lambda head: head.name)
@settings(max_examples=30, deadline=None)
@given(owners=st.lists(st.integers(0, 4), min_size=60, max_size=60), seed=st.integers(0, 99))
def test_any_owner_of_any_row(head: ClosedForm, owners: list[int], seed: int) -> None:
    features, labels = rows(seed)
    owner = torch.tensor(owners)
    parts = [
        Statistics.of(features[owner == o], labels[owner == o], 4, head.sends_products)
        for o in sorted(set(owners))
    ]
    together = solved(head, features, labels)
    apart = head.solve(pool(parts), True)
    assert torch.allclose(apart.weight, together.weight, atol=1e-12, rtol=0)
    assert torch.allclose(apart.bias, together.bias, atol=1e-12, rtol=0)
    assert torch.allclose(apart.penalty, together.penalty, atol=1e-12, rtol=0)
    assert apart.gain == pytest.approx(together.gain, abs=1e-12)


@pytest.mark.parametrize("head", [Ridge(), ClassMeans()], ids=lambda head: head.name)
def test_renamed_classes_rename_the_head(head: ClosedForm) -> None:
    features, labels = rows(1)
    order = torch.tensor([2, 0, 3, 1])
    one, other = solved(head, features, labels), solved(head, features, order[labels])
    assert torch.allclose(other.weight[order], one.weight, atol=1e-12, rtol=0)
    assert torch.allclose(other.bias[order], one.bias, atol=1e-12, rtol=0)


def test_the_mean_of_heads_solved_apart_is_another_one() -> None:
    """The control: only sums are exact, also where every client has as many rows."""
    features, labels = rows(1)
    order = labels.argsort()
    parts = [Statistics.of(features[i], labels[i], 4, True) for i in order.chunk(3)]
    mean = torch.stack([Ridge().solve(part, True).weight for part in parts]).mean(0)
    together = solved(Ridge(), features, labels).weight
    assert float((Ridge().solve(pool(parts), True).weight - together).abs().max()) < 1e-12
    assert float((mean - together).norm() / together.norm()) > 0.5


@pytest.mark.parametrize("head", [Ridge(), ClassMeans()], ids=lambda head: head.name)
def test_a_class_that_nobody_has_never_wins(head: ClosedForm) -> None:
    features, labels = rows(2)
    kept = labels != 1
    features = features[kept] - features[kept].mean(0)
    found = solved(head, features, labels[kept])
    assert bool(torch.isfinite(found.bias).all())
    draw = torch.Generator().manual_seed(3)
    anywhere = torch.randn(20_000, 6, generator=draw, dtype=torch.float64)
    anywhere *= torch.logspace(-3, 3, 20_000).double()[:, None]
    winners = (anywhere @ found.weight.T + found.bias).argmax(1)
    assert set(winners.tolist()) == {0, 2, 3}


@pytest.mark.parametrize("head", [Ridge(), ClassMeans()], ids=lambda head: head.name)
def test_a_scale_is_judged_without_the_examples_own_influence(head: ClosedForm) -> None:
    """Close to leaving each row out and solving again, where judging on the same rows is far."""
    features, labels = rows(5, num=50, width=12)
    features = (features - features.mean(0)) / features.std(0)
    found, everyone = solved(head, features, labels), torch.arange(len(labels))
    plain = features @ found.weight.T + found.bias
    ours = plain * found.gain
    ours[everyone, labels] -= found.penalty[labels]
    truly = torch.empty_like(plain)
    for row in everyone:
        others = solved(head, features[everyone != row], labels[everyone != row])
        truly[row] = features[row] @ others.weight.T + others.bias

    def loss(logits: Tensor) -> float:
        scale = 4.0 if isinstance(head, Ridge) else 0.5
        return float(torch.nn.functional.cross_entropy(scale * logits, labels))

    assert abs(loss(ours) - loss(truly)) < 0.25 * (loss(truly) - loss(plain))


def through(codec: str, statistics: Statistics, dtype: str = "") -> Statistics:
    """Send statistics through a codec and back."""
    wire = Wire.model_validate({"up": [{"name": codec, "kinds": ["statistics"], **(
        {"dtype": dtype} if dtype else {})}]})  # fmt: skip
    message = Message("head_statistics", encode_statistics(statistics, torch.float32))
    classes, width = statistics.means.shape
    return read_statistics(
        wire.preview(message, "up").seen, classes, width, statistics.products is not None
    )


def test_few_bits_of_products_ruin_the_head_where_float16_does_not() -> None:
    """Features of which a few directions carry nearly all the variance, as language models' do."""
    draw = torch.Generator().manual_seed(4)
    inner, labels = rows(6, num=2000, width=24)
    mixing = torch.randn(24, 24, generator=draw, dtype=torch.float64)
    common = torch.randn(2000, 1, generator=draw, dtype=torch.float64)
    features = inner @ mixing * 0.02 + common * torch.ones(1, 24).double()
    features = (features - features.mean(0)) / features.std(0)

    def accuracy(head: ClosedForm, *codec: str) -> float:
        statistics = Statistics.of(features, labels, 4, head.sends_products)
        found = head.solve(through(codec[0], statistics, *codec[1:]) if codec else statistics, True)
        return float(((features @ found.weight.T + found.bias).argmax(1) == labels).double().mean())

    ridge, means = Ridge(regularisation=1e-3), ClassMeans()
    exact = accuracy(ridge)
    assert accuracy(ridge, "cast", "float16") > exact - 0.02
    assert accuracy(ridge, "cast", "bfloat16") < exact - 0.2
    assert accuracy(ridge, "int8") < exact - 0.2
    assert accuracy(means, "int8") > accuracy(means) - 0.02


def entries(fed: Experiment, verb: str, direction: str) -> list[Any]:
    return [e for e in fed.fleet.ledger.entries if (e.verb, e.direction) == (verb, direction)]


@pytest.mark.parametrize(("head", "numbers"), [("ridge", 12 * 13 // 2), ("class_means", 0)])
def test_bytes_are_as_documented_and_counted_as_training(
    hub: Path, head: str, numbers: int
) -> None:
    words = ("data.partition=shard", "model.dtype=float32")
    fed = start(hub, f"head={head}", *words, *HALF)
    ledger = fed.fleet.ledger.entries
    assert {(e.round, e.purpose) for e in ledger} == {(0, "train")}
    verbs = ["feature_moments", "head_statistics", "receive_head", "use_head"]
    assert [e.verb for e in ledger if e.client == "client-1" and e.direction == "up"] == verbs
    present = {c.name: len({int(e.labels) for e in c.examples}) for c in fed.clients}
    assert min(present.values()) < 3
    for entry in entries(fed, "head_statistics", "up"):
        assert entry.kinds["statistics"] == 2 * (numbers + 12 * present[entry.client])
    for entry in entries(fed, "receive_head", "down"):
        assert entry.kinds["snapshot"] == 2 * (12 * 3 + 3)
    small = [e for e in ledger if e.verb in ("feature_moments", "use_head")]
    assert all(e.kinds.keys() == {"control"} and e.bytes < 600 for e in small)
    assert all(e.flops for e in entries(fed, "feature_moments", "up"))


@pytest.mark.parametrize("head", ["ridge", "class_means"])
def test_a_float16_wire_is_close_and_leaves_all_sides_with_equal_bits(hub: Path, head: str) -> None:
    words = (f"head={head}", "data.partition={name: dirichlet, alpha: 0.1}", "model.dtype=float32")
    exact, half = start(hub, *words), start(hub, *words, *HALF)
    weight, wanted = head_of(half)[0], head_of(exact)[0]
    error = np.abs(weight - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 1e-2
    assert half.history[0]["accuracy"] == exact.history[0]["accuracy"]
    for fed in (exact, half):
        for side in (*fed.clients, fed.server):
            for name, tensor in fed.server.store["head"].items():
                assert torch.equal(side.initial[name], tensor)
                assert torch.equal(fed.server.state[name].cpu(), tensor)


@pytest.mark.parametrize("head", ["ridge", "class_means"])
@pytest.mark.parametrize("framework", ["fedllm", "kd", "local_only", "centralised", "zero_shot"])
def test_round_zero_shows_the_head_alone(hub: Path, framework: str, head: str) -> None:
    rounds = ("rounds=1",) * (framework != "zero_shot")
    words = ("data.partition={name: dirichlet, alpha: 0.1}", f"framework={framework}", *rounds)
    fed = federation(hub, *words, f"head={head}", model="bert")
    history = fed.run()
    chance = federation(hub, *words, model="bert").run()[0]
    assert history[0]["accuracy"] > 0.8 > 0.5 > chance["accuracy"]
    assert history[0]["loss"] < chance["loss"] / 2
    assert history[-1]["accuracy"] > 0.7


def test_the_scale_is_the_best_on_the_clients_rows(hub: Path) -> None:
    fed = start(hub, "head={name: ridge, scales: [0.5, 8.0, 64.0]}")
    assert fed.server.store["heads"]["0"]["scale"] == 8.0
    ours = fed.history[0]["loss"]
    for scale in (0.5, 64.0):
        other = start(hub, f"head={{name: ridge, scales: [{scale}]}}")
        assert other.history[0]["loss"] > ours
        assert other.history[0]["accuracy"] == fed.history[0]["accuracy"]


def lose(fed: Experiment, client: str, number: int) -> None:
    """Let a client be out of reach in one round."""
    engine: Any = fed.fleet.engine
    carry = engine.carry

    def losing(requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
        away = fed.fleet.round == number
        yield from carry({c: r for c, r in requests.items() if not (away and c == client)})
        if away and client in requests:
            yield client, Lost("it is away", sent=False)

    engine.carry = losing


@pytest.mark.parametrize("words", [(), HALF])
def test_a_late_joiner_gets_the_head(hub: Path, words: tuple[str, ...]) -> None:
    fed = federation(
        hub, "framework=local_only", "head=ridge", "fleet.min_replies=2", *words, model="bert"
    )
    lose(fed, "client-1", 0)
    fed.run()
    late = [e for e in entries(fed, "use_head", "down") if e.round > 0]
    assert [(e.client, e.round, e.purpose) for e in late] == [("client-1", 1, "train")]
    head = fed.server.store["head"]
    for client in fed.clients:
        assert all(torch.equal(client.store["head"][name], head[name]) for name in head)


def test_a_client_that_has_lost_everything_gets_the_head_again(hub: Path) -> None:
    fed = federation(hub, "framework=local_only", "head=class_means", model="bert")
    engine: Any = fed.fleet.engine

    def gather(need: int) -> Gathered:
        newcomers = {"client-2"} if fed.fleet.round == 2 else set()
        for client in fed.clients:
            if client.name in newcomers:
                client.store = {}
        return Gathered(set(engine.clients), newcomers)

    engine.gather = gather
    fed.run()
    late = [e for e in entries(fed, "use_head", "down") if e.round > 0]
    assert [(e.client, e.round) for e in late] == [("client-2", 2)]
    assert all("head" in client.store for client in fed.clients)


@pytest.mark.parametrize("head", ["ridge", "class_means"])
def test_clients_without_a_class_and_a_class_without_clients(hub: Path, head: str) -> None:
    fed = federation(hub, ZERO, f"head={head}", model="bert")
    for client in fed.clients:
        client.examples = [e for e in client.examples if int(e.labels) != 2]
    fed.clients[0].examples = [e for e in fed.clients[0].examples if int(e.labels) == 1]
    (line,) = fed.run()
    assert 0.5 < line["accuracy"] < 0.7  # a third of the texts are of the class that nobody has
    assert np.isfinite(line["loss"])


def test_a_run_killed_while_the_head_is_found_begins_anew(hub: Path, tmp_path: Path) -> None:
    """Later kills are among those of test_resume.py."""
    config = federation(hub, "framework=fedllm", "head=ridge", "rounds=1", model="bert").config
    whole = build(config, RunFolder(tmp_path / "whole", "whole"))
    whole.run()
    cut = build(config, RunFolder(tmp_path / "cut", "cut"))

    def fail(client: Client, message: Message) -> Message:
        raise RuntimeError("the power is out")

    cut.clients[1].verbs = {**cut.clients[1].verbs, "receive_head": fail}
    with pytest.raises(RuntimeError, match="power"):
        cut.run()
    again = build(config, RunFolder.reopen(tmp_path / "cut"))
    again.run()
    for name, tensor in whole.server.state.items():
        assert torch.equal(again.server.state[name], tensor)
    asked = (tmp_path / "cut" / "wire.jsonl").read_text()
    assert asked.count('"feature_moments"') == 2 * len(whole.clients)


@pytest.mark.parametrize("head", ["ridge", "class_means"])
def test_what_has_no_closed_form_is_refused(hub: Path, head: str) -> None:
    with pytest.raises(UserError, match=r"task=causal_lm.*head=random"):
        federation(hub, f"head={head}", task="causal_lm")
    dropping = "wire.down=[{name: random_k, kinds: [snapshot]}]"  # other entries in each message
    with pytest.raises(UserError, match="snapshot"):
        start(hub, f"head={head}", dropping)


WRONG: dict[str, tuple[str, str, Tensor]] = {
    "nan": ("head_statistics", "statistics/products", torch.full((78,), float("nan"))),
    "shape": ("head_statistics", "statistics/products", torch.ones(77)),
    "counts": ("head_statistics", "control/counts", torch.tensor([-1, 20, 3]).int()),
    "deviation": ("feature_moments", "control/deviation", torch.ones(3).double()),
    "squares": ("head_statistics", "statistics/products", torch.full((78,), -1.0)),
    "spread": ("feature_moments", "control/deviation", torch.full((12,), -1.0)),
    "weight": ("feature_moments", "control/weight", torch.tensor(0.0).double()),
    "losses": ("receive_head", "control/losses", torch.ones(1).double()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_statistics_that_are_none_drop_the_client(hub: Path, wrong: str) -> None:
    verb, name, tensor = WRONG[wrong]
    fed = federation(hub, ZERO, "head=ridge", "fleet.min_replies=2", model="bert")
    honest = fed.clients[1].verbs[verb]

    def lie(client: Client, message: Message) -> Message:
        reply = honest(client, message)
        assert name in reply.tensors
        return Message(reply.verb, {**reply.tensors, name: tensor}, reply.meta)

    fed.clients[1].verbs = {**fed.clients[1].verbs, verb: lie}
    (line,) = fed.run()
    assert line["accuracy"] > 0.7
    assert list(fed.fleet.missing) == ["client-1"]
