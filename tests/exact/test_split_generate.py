"""A cut model writes what the whole one writes, and is saved as what is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from tiny import Recorder, experiment_config, federation, perturb, plain_batch, run_rounds
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.federation.client import Client
from trillium.frameworks.split.generate import give_prompts, texts_of, write_texts
from trillium.frameworks.split.session import PartSession
from trillium.tasks.writing import Writing, pad_left
from trillium.training.meters import Meter
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode
from variants import slow_but

NEW = 8
SHAPES = {
    "two parts": (),
    "two parts, cut 2": ("framework.cut=2",),
    "u": ("framework.shape=u",),
    "u, blocks in the tail": ("framework.shape=u", "framework.tail=2"),
}
PROMPTS = [[9, 30, 17], [5, 6, 7, 8, 9, 10, 11, 12, 13], [40, 4, 22, 23, 8, 19]]


def split_of(hub: Path, *words: str, model: str = "gpt2", dtype: str = "float32") -> Experiment:
    fixed = ("framework=split", f"model.dtype={dtype}", "model.dropout=0.0")
    return perturb(federation(hub, *fixed, *words, model=model, task="causal_lm"))


def written(fed: Experiment, given: dict[str, list[list[int]]], writing: Writing) -> Any:
    """Write across the wire; return what the server and what the clients know of the texts."""
    clients = {client.name: client for client in fed.clients}
    for name, prompts in given.items():
        give_prompts(clients[name], prompts)
    framework: Any = fed.config.framework
    known = write_texts(framework, fed.server, fed.fleet, list(given), writing)
    return known, {name: texts_of(clients[name]) for name in given}


def unsplit(fed: Experiment, prompts: list[list[int]], eos: int | None) -> list[list[int]]:
    """What Hugging Face's own `generate` makes of the whole model."""
    module: Any = fed.model.mount(fed.server.state).eval()
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    found = module.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=eos,
        use_cache=True,
    )[:, ids.shape[1] :].tolist()
    return [r[: r.index(eos) + 1] if eos in r else r for r in found]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("model", "shape"),
    slow_but(
        [
            ("gpt2", "two parts"),
            ("gpt2", "u, blocks in the tail"),
            ("llama", "two parts, cut 2"),
            ("llama", "u"),
        ],
        [(model, shape) for model in ("gpt2", "llama") for shape in SHAPES],
    ),
)
def test_the_cut_model_writes_what_the_whole_one_writes(hub: Path, model: str, shape: str) -> None:
    """In float32, on ragged prompts of two clients; a text that ends early leaves the batch."""
    words = SHAPES[shape]
    fed = split_of(hub, *words, model=model)
    fed.model.tokenizer.eos_token = None
    free = unsplit(fed, PROMPTS, None)
    given = {"client-0": PROMPTS[:2], "client-2": PROMPTS[2:]}
    known, own = written(fed, given, Writing(NEW))
    assert [*own["client-0"], *own["client-2"]] == free
    assert known == ({} if "framework.shape=u" in words else own)
    # A token that one text has early ends it there, and the others go on.
    eos = free[0][2]
    fed.model.tokenizer.eos_token = fed.model.tokenizer.convert_ids_to_tokens(eos)
    ended = unsplit(fed, PROMPTS, eos)
    assert len(ended[0]) < NEW == max(map(len, ended))
    _, own = written(fed, given, Writing(NEW))
    assert [*own["client-0"], *own["client-2"]] == ended
    assert all("texts" not in client.scratch for client in fed.clients)


def test_texts_that_have_ended_are_not_sent(hub: Path) -> None:
    for words in (SHAPES["two parts"], SHAPES["u"]):
        fed = split_of(hub, *words)
        free = unsplit(fed, PROMPTS, None)
        fed.model.tokenizer.eos_token = fed.model.tokenizer.convert_ids_to_tokens(free[0][2])
        recorder = Recorder(fed)
        _, own = written(fed, {"client-0": PROMPTS}, Writing(NEW))
        sizes = [
            len(message.tensors.get("activations/hidden", ()))
            for message in (decode(reply) for _, _, reply in recorder.log)
        ]
        longest = max(map(len, own["client-0"]))
        going = [sum(len(text) > n for text in own["client-0"]) for n in range(1, longest + 1)]
        assert sizes == [sum(map(len, PROMPTS)), *going]
        assert len(set(going)) > 1


def test_the_ledger_counts_what_crosses(hub: Path) -> None:
    """Width 12 in float32, and four bytes for the number of a token; nothing for padding."""
    for words in SHAPES.values():
        fed = split_of(hub, *words)
        fed.model.tokenizer.eos_token = None
        recorder = Recorder(fed)
        written(fed, {"client-1": PROMPTS}, Writing(NEW))
        entries = fed.fleet.ledger.entries
        assert {entry.purpose for entry in entries} == {"generate"}
        assert [e.bytes for e in entries] == [
            len(data) for _, ask, reply in recorder.log for data in (ask, reply)
        ]
        up = [entry.kinds.get("activations", 0) for entry in entries if entry.direction == "up"]
        tokens = sum(map(len, PROMPTS))
        assert up == [4 * 12 * tokens, *[4 * 12 * 3] * (NEW - 1), 0]
        down = [entry.kinds for entry in entries if entry.direction == "down"][1:]
        if "framework.shape=u" in words:
            first = tokens if "framework.tail=2" in words else 3
            assert [k["activations"] for k in down] == [
                4 * 12 * first, *[4 * 12 * 3] * (NEW - 1)
            ]  # fmt: skip
            assert not any("labels" in kinds for kinds in down)
        else:
            assert [kinds["labels"] for kinds in down] == [4 * 3] * NEW
            assert not any("activations" in kinds for kinds in down)
        assert all(e.flops for e in entries if e.direction == "up" and e.kinds.get("activations"))


def test_the_trained_part_goes_to_a_client_that_lacks_it(hub: Path) -> None:
    """Clients write with what the run has learnt, not with what they began with."""
    for words, kinds in ((SHAPES["two parts"], {"parameters", "control"}),
                         (("framework.train=server",), {"control"}),
                         (("framework.train=server", "framework.local_rounds=1"),
                          {"parameters", "control"})):  # fmt: skip
        fed = split_of(hub, *words)
        begun = fed.server.state
        moved = {n: t.detach() + 0.3 * torch.randn_like(t) for n, t in begun.items()}
        framework: Any = fed.config.framework
        if words == ("framework.train=server",):  # the clients' blocks are what they were
            names = framework.parts(fed.model, fed.server.test).body.names
            moved = {n: moved[n] if n in names else begun[n].detach() for n in begun}
        fed.server.state = fed.model.state(moved)
        _, own = written(fed, {"client-0": PROMPTS}, Writing(NEW))
        assert own["client-0"] == unsplit(fed, PROMPTS, 3)
        fed.server.state = begun
        assert own["client-0"] != unsplit(fed, PROMPTS, 3)
        assert fed.fleet.ledger.entries[0].kinds.keys() == kinds


def test_clients_with_other_cuts_write_the_same(hub: Path) -> None:
    words = ("framework.train=server", "framework.cut=2", "tiers.small.clients=[client-1]",
             "tiers.small.cut=1")  # fmt: skip
    fed = split_of(hub, *words)
    _, own = written(fed, {"client-0": PROMPTS, "client-1": PROMPTS}, Writing(NEW))
    assert own["client-0"] == own["client-1"] == unsplit(fed, PROMPTS, 3)


def test_codecs_and_defence_apply(hub: Path) -> None:
    codec = "wire.up=[{name: int4}]"
    for words in (("framework.defence={name: gaussian, noise: 5.0}",), (codec,), ("wire.down=[int2]",
                  "framework.shape=u")):  # fmt: skip
        fed = split_of(hub, *words)
        _, own = written(fed, {"client-0": PROMPTS}, Writing(NEW))
        assert own["client-0"] != unsplit(fed, PROMPTS, 3)
    fed = split_of(hub, codec)
    fed.model.tokenizer.eos_token = None
    written(fed, {"client-0": PROMPTS}, Writing(NEW))
    second = [e for e in fed.fleet.ledger.entries if e.direction == "up"][1]
    assert second.kinds["activations"] == 3 * (12 // 2 + 2)  # half a byte each, and a scale


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("words", [SHAPES["two parts"], SHAPES["u"]])
def test_drawn_tokens_follow_the_seed(hub: Path, words: tuple[str, ...]) -> None:
    rules = Writing(NEW, temperature=1.0, top_p=0.9)
    texts = [
        written(split_of(hub, *words, f"seed={seed}"), {"client-0": PROMPTS}, rules)[1]["client-0"]
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_tokens_are_drawn_from_the_nucleus() -> None:
    """Against the logits processors of Hugging Face."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 9, generator=draw)
    warped = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(1.3)(None, logits))
    expected = warped.softmax(-1)[0].double()
    writing = Writing(1, temperature=1.3, top_p=0.8)
    drawn = writing.choose(logits.expand(40_000, -1), draw)
    found = torch.bincount(drawn, minlength=9) / len(drawn)
    assert 0 < int((expected == 0).sum()) < 8
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, atol=0.015, rtol=0)
    assert int(Writing(1).choose(logits, draw)) == int(logits.argmax())


WRONG = [
    ("begin_texts", "control/lengths", torch.full((3,), 60).int(), "rows of 60"),
    ("begin_texts", "activations/hidden", torch.zeros(7, 5), "activations/hidden is"),
    ("next_tokens", "activations/hidden", torch.zeros(2, 12), "activations/hidden is"),
    (
        "next_tokens",
        "control/going",
        torch.ones(4, dtype=torch.uint8),
        "control/going does not fit",
    ),
    ("next_tokens", "control/going", torch.full((3,), 2, dtype=torch.uint8), "not 0 or 1"),
]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("verb", "name", "tensor", "reason"), WRONG)
def test_a_wrong_answer_drops_the_client_and_its_texts(
    hub: Path, verb: str, name: str, tensor: Tensor, reason: str
) -> None:
    fed = split_of(hub, "framework.shape=u", "fleet.min_replies=2")
    fed.model.tokenizer.eos_token = None
    bad = fed.clients[1]
    honest = bad.verbs[verb]

    def lie(client: Client, message: Message) -> Message:
        reply = honest(client, message)
        assert name in reply.tensors
        return replace(reply, tensors={**reply.tensors, name: tensor})

    bad.verbs = {**bad.verbs, verb: lie}
    given = {"client-0": PROMPTS[:1], "client-1": PROMPTS, "client-2": PROMPTS[1:]}
    _, own = written(fed, given, Writing(NEW))
    assert set(fed.fleet.missing) == {"client-1"}
    assert reason in fed.fleet.missing["client-1"]
    assert own["client-0"] + own["client-2"] == unsplit(fed, PROMPTS, None)


def test_a_text_that_does_not_stop_drops_its_client(hub: Path) -> None:
    fed = split_of(hub, "framework.shape=u", "fleet.min_replies=1")
    fed.model.tokenizer.eos_token = None
    [*_, bad] = fed.clients
    honest = bad.verbs["begin_texts"]

    def greedy(client: Client, message: Message) -> Message:
        tensors = {**message.tensors, "control/writing": torch.tensor([9.0, 0, 1]).double()}
        return honest(client, replace(message, tensors=tensors))

    bad.verbs = {**bad.verbs, "begin_texts": greedy}
    written(fed, {bad.name: PROMPTS}, Writing(2))
    assert "past its longest" in fed.fleet.missing[bad.name]


ASKS = [
    ({"control/writing": torch.tensor([0.0, 0, 1]).double()}, "no way to write"),
    ({"control/writing": torch.tensor([8.0, -1, 1]).double()}, "no way to write"),
    ({"control/writing": torch.tensor([60.0, 0, 1]).double()}, "69 tokens, the model has 64"),
    ({}, "control/writing is missing"),
]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("tensors", "reason"), ASKS)
def test_clients_refuse_to_begin_what_cannot_work(
    hub: Path, tensors: dict[str, Tensor], reason: str
) -> None:
    fed = split_of(hub, "framework.train=server")
    client = fed.clients[0]
    with pytest.raises(MessageError, match="no prompts"):
        client.verbs["begin_texts"](client, Message("begin_texts", tensors))
    give_prompts(client, PROMPTS)
    with pytest.raises(MessageError, match=reason):
        client.verbs["begin_texts"](client, Message("begin_texts", tensors))


TOKENS = [
    (torch.tensor([4, 5]).int(), "labels/tokens is"),
    (torch.tensor([4, 5, 6]), "labels/tokens is"),
    (torch.tensor([4, 5, 44]).int(), "does not have"),
    (torch.tensor([4, 5, -1]).int(), "does not have"),
]


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("tokens", "reason"), TOKENS)
def test_clients_refuse_tokens_that_cannot_be(hub: Path, tokens: Tensor, reason: str) -> None:
    fed = split_of(hub, "framework.train=server")
    client = fed.clients[0]
    with pytest.raises(MessageError, match="no text is being written"):
        client.verbs["next_tokens"](client, Message("next_tokens", {"labels/tokens": tokens}))
    give_prompts(client, PROMPTS)
    rules = torch.tensor([8.0, 0, 1]).double()
    client.verbs["begin_texts"](client, Message("begin_texts", {"control/writing": rules}))
    with pytest.raises(MessageError, match=reason):
        client.verbs["next_tokens"](client, Message("next_tokens", {"labels/tokens": tokens}))


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_positions_that_count_padding_would_be_told_apart(hub: Path, model: str) -> None:
    fed = split_of(hub, model=model)
    framework: Any = fed.config.framework
    parts = framework.parts(fed.model, fed.server.test)
    for slots in (parts.head, parts.body):
        slots.mount(fed.server.state)
    ids, mask = pad_left(PROMPTS, 0)
    first, second = (PartSession(part, mask, Meter({})) for part in parts.split.parts)
    right = second.step(first.step(ids))[:, -1]
    with torch.no_grad():
        hidden = parts.split.head(None, input_ids=ids, attention_mask=mask)
        wrong = parts.split.body(hidden, attention_mask=mask)[:, -1]
    torch.testing.assert_close(right[1], wrong[1])  # the longest one has no padding
    if model == "gpt2":  # rotary positions are relative: an offset is no difference
        assert not torch.allclose(right[0], wrong[0], atol=1e-3)


WORDS = {
    "cached": ("framework.train=server", "framework.cut=2"),
    "exchange": ("framework.mode=splitfed_v1",),
    "u": ("framework.shape=u", "framework.tail=2"),
    "local first": ("framework.train=server", "framework.local_rounds=1"),
}


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("task", "name"),
    slow_but(
        [("classification", "u"), ("causal_lm", "cached"), ("causal_lm", "local first")],
        [(task, name) for task in ("classification", "causal_lm") for name in WORDS],
    ),
)
def test_it_is_saved_as_one_adapter(hub: Path, tmp_path: Path, task: str, name: str) -> None:
    """PEFT alone reads the folder; its logits are those of the parts, one after the other."""
    config = experiment_config(hub, "framework=split", *WORDS[name], task=task)
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    fed.run()
    auto = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        hf = AutoConfig.from_pretrained(hub / "gpt2", num_labels=3)
        plain = auto.from_config(hf, dtype=torch.float64)
    plain.load_state_dict(_base(fed), strict=False)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    inputs, _ = plain_batch(fed.server.test[:6])
    framework: Any = fed.config.framework
    parts = framework.parts(fed.model, fed.server.test)
    for slots in (parts.head, parts.body, parts.tail):
        slots.mount(fed.server.state)
    with torch.no_grad():
        expected = loaded(**inputs).logits
        hidden = None
        for part in parts.split.parts:
            hidden = part.eval()(hidden, **inputs)
        start = fed.model.mount(fed.model.state()).eval()(**inputs).logits
    assert hidden is not None
    kept = ... if task == "classification" else inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[kept], expected[kept], atol=1e-10, rtol=1e-10)
    assert not torch.allclose(start[kept], expected[kept])


def _base(fed: Experiment) -> dict[str, Tensor]:
    """The frozen weights by the names of the plain model, and the head as it began."""
    module: Any = fed.model.mount(fed.model.state())
    plain = module.get_base_model().state_dict()
    return {
        name.replace(".base_layer", "").replace(".modules_to_save.default", ""): tensor
        for name, tensor in plain.items()
        if "lora_" not in name and ".original_module." not in name
    }


def test_the_file_of_activations_is_gone_when_the_run_has_finished(
    hub: Path, tmp_path: Path
) -> None:
    config = experiment_config(hub, "framework=split", "framework.train=server")
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    found: list[bool] = []
    fed.run(lambda _: found.append((tmp_path / "run/checkpoints/activations.bin").exists()))
    assert found == [False, True, True]
    assert not (tmp_path / "run" / "checkpoints").exists()
    run_rounds(federation(hub, "framework=split", "framework.train=server"), 1)
