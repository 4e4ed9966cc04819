"""What first blocks make of a text, computed once: the same model for less, in every framework."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from resumed import assert_resumes
from tiny import EXACT, distance, experiment_config, perturb
from trillium.errors import UserError
from trillium.experiment.run import Experiment, build
from trillium.federation.client import Client
from trillium.models.blocks import find_blocks
from trillium.wire.records import Records

LAST = "adapter.layers=[2]"
KEPT, EACH = "training.cache_frozen=true", "training.cache_frozen=false"
CASES = [
    ("fedllm", "bert", "classification", ()),
    ("fedllm", "gpt2", "classification", ("adapter.dropout=0.2",)),
    ("fedllm", "llama", "causal_lm", ("framework.aggregator=stack",)),
    ("fedllm", "gpt2", "preference", ("training.micro_batch_size=2",)),
    ("fedllm", "bert", "token_classification", ("training.gradient_checkpointing=true",)),
    ("fedllm", "gpt2", "causal_lm", ("framework.upload=gradient", "rounds=4")),
    ("kd", "bert", "classification", ("head=ridge",)),
    ("kd", "gpt2", "causal_lm", ("framework={public_per_round: 7, cache_rounds: 2}", "rounds=4")),
    ("local_only", "gpt2", "classification", ("head=class_means", "fleet.clients_per_round=2")),
    ("centralised", "bert", "regression", ("training.local_steps=4",)),
    ("fedkseed", "llama", "causal_lm", ("training.local_steps=3",)),
    ("split", "bert", "classification", ()),
]  # fmt: skip


def run_of(hub: Path, framework: str, model: str, task: str, *words: str) -> Experiment:
    own = (f"framework={framework}", LAST, *words)
    fed = build(experiment_config(hub, *own, model=model, task=task))
    perturb(fed).run()
    return fed


def flops(fed: Experiment) -> float:
    """Of all sides, in training."""
    entries = fed.fleet.ledger.entries
    own = sum(entry.flops or 0 for entry in entries if entry.purpose != "evaluate")
    return own + fed.server.meter.read().flops


def furthest(one: Experiment, other: Experiment) -> float:
    """By how much the weights of two runs differ, and what was measured."""
    found = [distance(one.server.state, other.server.state)]
    for mine, theirs in zip(one.clients, other.clients, strict=True):
        if "tensors" in mine.store:
            found.append(distance(mine.store["tensors"], theirs.store["tensors"]))
    for seen, line in zip(one.history, other.history, strict=True):
        names = seen.keys() & {"loss", "train_loss", "distil_loss", "accuracy"}
        found += [abs(seen[name] - line[name]) for name in names]
    return max(found)


@pytest.mark.parametrize(("framework", "model", "task", "words"), CASES)
def test_kept_is_what_would_be_computed_each_time(
    hub: Path, framework: str, model: str, task: str, words: tuple[str, ...]
) -> None:
    """Equal but for rounding: texts stand in other batches when their first blocks are computed."""
    case = framework, model, task
    each, kept = (run_of(hub, *case, *words, choice) for choice in (EACH, KEPT))
    assert furthest(each, kept) < 100 * EXACT[model]
    assert kept.model.first is not None
    assert kept.model.first.number == 2
    traffic = [[(e.verb, e.bytes) for e in fed.fleet.ledger.entries] for fed in (each, kept)]
    assert traffic[0] == traffic[1]
    if framework == "split":  # whose clients have a cache of their own: it is for evaluation alone
        assert flops(kept) == flops(each)
    else:
        assert flops(kept) < 0.8 * flops(each)


def test_by_itself_it_is_kept_where_it_can_be(hub: Path) -> None:
    case = "fedllm", "bert", "classification"
    by_itself, kept = (run_of(hub, *case, *words) for words in ((), (KEPT,)))
    assert furthest(by_itself, kept) == 0.0
    assert flops(by_itself) == flops(kept)
    for words in (["adapter.layers=[0]"], ["model.dropout=0.1"], ["adapter=full"]):
        fed = build(experiment_config(hub, "framework=fedllm", LAST, *words, model="bert"))
        assert fed.model.first is None
        assert fed.server.known(fed.server.test)[0].known is None


def test_the_first_round_takes_one_pass_of_each_text_more(hub: Path) -> None:
    """By PyTorch's own counter: a client's texts in one batch, so that all rounds are alike."""
    words = ("training.batch_size=60", "rounds=3", "model.attention=eager", KEPT)
    fed = run_of(hub, "fedllm", "bert", "classification", *words)
    first = fed.model.first
    assert first is not None
    for client in fed.clients:
        spent = [e.flops or 0 for e in fed.fleet.ledger.entries if e.client == client.name]
        one, two, three = (spent for spent in spent if spent)
        log = client.store["known"]
        with FlopCounterMode(display=False) as count:
            for ids in log:
                first.run(ids.long())
        assert two == three
        assert one - two == count.get_total_flops() > 0
        once = sorted(own[own >= 0].tolist() for ids in log for own in ids)
        assert once == sorted(map(list, {tuple(e.input_ids.tolist()) for e in client.examples}))
        assert sum(map(len, once)) >= 0.8 * sum(ids.numel() for ids in log)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_coarser_precision_moves_results_a_little(hub: Path, precision: str) -> None:
    case = "fedllm", "bert", "classification"
    full, coarse = (
        run_of(hub, *case, *words) for words in ((), (f"training.cache_precision={precision}",))
    )
    assert 1e-6 < distance(full.server.state, coarse.server.state) < 0.1
    assert flops(full) == flops(coarse)
    sizes = [fed.model.first.records.end for fed in (full, coarse) if fed.model.first]
    assert sizes[1] < 0.3 * sizes[0]  # of float64


def num_kept(client: Client) -> int:
    """Tokens of which a client keeps something."""
    return sum(int((ids >= 0).sum()) for ids in client.store["known"])


def test_what_finds_no_room_is_computed_each_time(hub: Path) -> None:
    """A row of float64 states takes 96 bytes; here one text of each client has none, or all."""
    case = "fedllm", "bert", "classification"
    each, kept = (run_of(hub, *case, choice) for choice in (EACH, KEPT))
    most = min(map(num_kept, kept.clients))
    some, none = (
        run_of(hub, *case, KEPT, f"training.cache_bytes={bound}") for bound in (96 * most - 1, 95)
    )
    assert flops(kept) < flops(some) < flops(none) == flops(each)
    assert furthest(each, none) == 0.0
    assert furthest(each, some) < 1e-8
    for client in some.clients:
        assert 0 < num_kept(client) < most


RESUMED = {
    "fedllm": ("framework=fedllm",),
    "kd": ("framework={name: kd, public_per_round: 7}", "training.cache_precision=int8"),
    "a bound": ("framework=fedllm", "training.cache_bytes=10000", "training.local_steps=2"),
    "centralised": ("framework=centralised", "training.local_steps=2"),
}


@pytest.mark.parametrize("words", RESUMED.values(), ids=list(RESUMED))
def test_resumed_bit_by_bit(hub: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A run that was killed computes again what was in memory, and its ledger says nothing of it."""
    config = experiment_config(hub, *words, LAST, KEPT, "rounds=3", model="bert")
    assert_resumes(config, tmp_path)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((KEPT,), "^training.cache_frozen=true with Bert.*: .*first block trains.*later blocks"),
        ((LAST, KEPT, "model.dropout=0.1"), "random"),
        (("adapter={name: prompt, tokens: 3}", KEPT), "virtual tokens"),
        (("training.cache_precision=int8",), "first block trains"),
        ((LAST, EACH, "training.cache_precision=int8"), "nothing is kept"),
    ],
)
def test_what_cannot_be_kept_is_refused(hub: Path, words: tuple[str, ...], why: str) -> None:
    with pytest.raises((UserError, ValueError), match=why):
        build(experiment_config(hub, "framework=fedllm", *words, model="bert"))


def test_a_model_is_whole_when_a_forward_pass_has_failed(hub: Path) -> None:
    fed = run_of(hub, "fedllm", "bert", "classification", KEPT, "rounds=1")
    module, [example] = fed.model.mount(fed.server.state), fed.server.test[:1]
    inputs = {"input_ids": example.input_ids[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    before = module(**inputs).logits

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = find_blocks(module)[1][-1].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        module(**inputs, known=torch.zeros(1, example.num_tokens, 12, dtype=torch.float64))
    handle.remove()
    assert torch.equal(module(**inputs).logits, before)


def test_a_full_disk_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Records, "append", full)
    with pytest.raises(UserError, match=r"No space left on device.*TMPDIR"):
        run_of(hub, "fedllm", "bert", "classification", KEPT)
