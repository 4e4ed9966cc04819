"""FedLLM where products of factors matter: exact means, folds, ranks, adapters that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fedllm_help import (
    SGD,
    SKEWED,
    SMALL,
    UNEQUAL,
    change,
    client_changes,
    crossed,
    furthest,
    mean,
    numel,
    server_change,
    side_of,
    size,
    verb,
)
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from tiny import (
    Recorder,
    experiment_config,
    federation,
    plain_batch,
    plain_steps,
    round_batches,
    run_round,
    run_rounds,
)
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.experiment.trained import evaluate_run, export_run
from trillium.models.slots import values

pytestmark = pytest.mark.usefixtures("uncounted")


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


def test_fedsvd_is_ffa_with_orthonormal_a(hub: Path) -> None:
    """Under SGD the rotations of FedSVD (arXiv 2505.12805) change nothing: an independent run of it."""
    words = (*SGD, SKEWED, "training.lr_factors={head: 0}", "training.local_steps=2")
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


@pytest.mark.parametrize("aggregator", ["fedex", "stack"])
def test_a_run_with_folds_is_measured_again_and_exported(
    hub: Path, tmp_path: Path, aggregator: str
) -> None:
    words = (f"framework.aggregator={aggregator}", "model.dtype=float32")
    config = experiment_config(hub, *words, model="bert")
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    last = fed.run()[-1]
    again = evaluate_run(tmp_path / "run", {})
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)
    export_run(tmp_path / "run", tmp_path / "merged", merge=True)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    inputs, _ = plain_batch(fed.server.test[:5])
    ours = fed.model.mount(fed.server.state, fed.server.base).eval()(**inputs).logits
    assert torch.allclose(merged(**inputs).logits, ours, atol=1e-5)
