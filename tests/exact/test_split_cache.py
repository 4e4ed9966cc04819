"""Cache-once: what is kept is what would be computed again, and training on it is training on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tiny import (
    EXACT,
    Recorder,
    distance,
    federation,
    perturb,
    plain_model,
    plain_steps,
    run_round,
    run_rounds,
    trained,
)
from trillium.component import known, resolve
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks.split.activation_cache import ActivationCache
from trillium.frameworks.split.protocol import Split
from trillium.rng import generator
from trillium.tasks import Example
from trillium.tasks.batches import collate, of_one_length
from trillium.training.loop import batches
from trillium.training.meters import Meter
from trillium.wire.codecs import Codec
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.message import decode
from trillium.wire.rows import EncodedRows, Layout

CASES = [("gpt2", "classification"), ("bert", "classification"), ("gpt2", "causal_lm"),
         ("llama", "causal_lm")]  # fmt: skip
CLIP, ROUNDS = 0.2, 2


def cached(hub: Path, *words: str, **options: Any) -> Experiment:
    own = (f"training.max_grad_norm={CLIP}", "framework=split", "framework.train=server")
    return perturb(federation(hub, *own, *words, **options))


def frozen_prefix(fed: Experiment) -> torch.nn.Module:
    """The unsplit model, without training in the blocks of the clients."""
    plain = plain_model(fed)
    for name, parameter in trained(plain).items():
        parameter.requires_grad_(not re.search(r"\.(?:h|layers?)\.0\.", name))
    return plain


def pooled(fed: Experiment) -> list[Example]:
    return [example for client in fed.clients for example in client.examples]


def store_of(fed: Experiment) -> ActivationCache:
    return cast(ActivationCache, fed.server.scratch["cache"])


@pytest.mark.parametrize(("model", "task"), CASES)
def test_it_is_training_the_unsplit_model_with_frozen_first_blocks(
    hub: Path, model: str, task: str
) -> None:
    fed = cached(hub, "training.local_epochs=2", model=model, task=task)
    plain = frozen_prefix(fed)
    figures = run_rounds(fed, ROUNDS)
    optimizer = torch.optim.AdamW(trained(plain).values(), lr=0.01, weight_decay=0.0)
    for number in range(1, ROUNDS + 1):
        draw = generator(fed.config.seed, "batches", "server", number)
        chunks = list(batches(pooled(fed), fed.config.training, draw))
        losses = plain_steps(plain, chunks, optimizer, CLIP)
        sizes = [sum(fed.config.task.num_targets(e) for e in chunk) for chunk in chunks]
        mean = sum(a * b for a, b in zip(losses, sizes, strict=True)) / sum(sizes)
        assert figures[number - 1]["train_loss"] == pytest.approx(mean, abs=EXACT[model])
    after = {name: p for name, p in plain.named_parameters() if name in fed.server.state}
    assert distance(fed.server.state, after) < EXACT[model]
    # The control: had the first blocks trained, the model would be another one.
    other = plain_model(fed)
    optimizer = torch.optim.AdamW(trained(other).values(), lr=0.01, weight_decay=0.0)
    for number in range(1, ROUNDS + 1):
        draw = generator(fed.config.seed, "batches", "server", number)
        plain_steps(other, batches(pooled(fed), fed.config.training, draw), optimizer, CLIP)
    assert distance(fed.server.state, trained(other)) > 1e-3


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("model", "task"), CASES)
def test_what_is_kept_is_what_would_be_computed_again(
    hub: Path, model: str, task: str, dtype: str
) -> None:
    """Bit for bit in the same batches, without padding; the server's random batches have some."""
    fed = cached(hub, f"model.dtype={dtype}", model=model, task=task)
    run_rounds(fed, 1)
    cache, framework = store_of(fed), cast(Split, fed.config.framework)
    parts = framework.parts(fed.model, fed.server.test)
    parts.head.mount(fed.model.state(fed.server.initial))
    pool = dict(zip(map(id, pooled(fed)), cache.pool(), strict=True))
    for client in fed.clients:
        for chunk in of_one_length(client.examples, fed.config.training.batch_size):
            batch = collate(chunk, 0, fed.model.device, exact=True)
            with torch.no_grad():
                again = parts.split.head.eval()(
                    None, input_ids=batch.input_ids, attention_mask=batch.attention_mask
                )
            own = [pool[id(example)] for example in chunk]
            kept = cache.batch(own, fed.config.task, num_outputs=fed.model.num_classes)
            assert bool(batch.attention_mask.all())
            padded = collate(chunk, 0, fed.model.device)
            assert torch.equal(kept.mask, padded.attention_mask)
            assert kept.hidden.dtype == again.dtype
            assert torch.equal(kept.hidden[kept.mask.bool()], again.flatten(0, 1))
            assert torch.equal(kept.labels, padded.labels)  # type: ignore[arg-type]


def test_activations_cross_once_and_without_padding(hub: Path) -> None:
    fed = cached(hub, "model.dtype=float32", "wire.up=[{name: int4, kinds: [activations]}]")
    log = Recorder(fed)
    run_rounds(fed, 3)
    tokens = sum(example.num_tokens for example in pooled(fed))
    entries = fed.fleet.ledger.entries
    crossed = sum(e.kinds.get("activations", 0) for e in entries)
    assert crossed == tokens * (12 // 2 + 2)  # 12 entries of 4 bits and a bfloat16 scale
    assert sum(e.kinds.get("labels", 0) for e in entries) == 4 * len(pooled(fed))
    assert {e.round for e in entries if "activations" in e.kinds} == {1}
    verbs = [decode(request).verb for _, request, _ in log.log]
    assert set(verbs) == {"probe_part", "list_samples", "send_activations"}
    later = [e for e in entries if e.round > 1]
    assert max(e.bytes for e in later) < 400
    assert not any(e.flops for e in later)
    assert store_of(fed).nbytes == crossed + 4 * len(pooled(fed))


def test_the_client_computes_nothing_for_padding(hub: Path) -> None:
    fed = cached(hub)
    run_rounds(fed, 1)
    entries = [entry for entry in fed.fleet.ledger.entries if entry.purpose == "train"]
    spent = sum(entry.flops or 0 for entry in entries)
    parts = cast(Split, fed.config.framework).parts(fed.model, fed.server.test)
    parts.head.mount(fed.model.state(fed.server.initial))
    alone, padded = Meter({}), Meter({})
    for example in pooled(fed):
        for meter, exact in ((alone, True), (padded, False)):
            batch = collate([example], 0, fed.model.device, exact=exact)
            with meter.measure(batch.layout), torch.no_grad():
                parts.split.head.eval()(
                    None, input_ids=batch.input_ids, attention_mask=batch.attention_mask
                )
    assert spent == alone.read().flops
    assert padded.read().flops > 1.1 * spent


def test_the_plain_exchange_sends_them_in_every_epoch(hub: Path) -> None:
    """The control of the test above."""
    fed = cached(hub, "framework.cache=false")
    run_rounds(fed, 3)
    rounds = {e.round for e in fed.fleet.ledger.entries if "activations" in e.kinds}
    assert rounds == {1, 2, 3}


def test_coded_activations_are_decoded_from_what_crossed(hub: Path) -> None:
    fed = cached(hub, "model.dtype=float32", "wire.up=[hadamard, int8]")
    plain = cached(hub, "model.dtype=float32")
    for each in (fed, plain):
        run_rounds(each, 1)
    coded, exact = (store_of(each).rows(store_of(each).pool()) for each in (fed, plain))
    assert 0 < float((coded - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_what_cannot_be_read_row_by_row_is_kept_decoded(hub: Path) -> None:
    fed = cached(hub, "model.dtype=float32", "wire.up=[{name: zstd, kinds: [activations]}]")
    plain = cached(hub, "model.dtype=float32")
    for each in (fed, plain):
        run_rounds(each, 2)
    assert distance(fed.server.state, plain.server.state) == 0


def test_new_and_changed_samples_extend_the_cache(hub: Path) -> None:
    fed = cached(hub)
    log = Recorder(fed)
    run_rounds(fed, 1)
    client, before = fed.clients[1], store_of(fed).pool()
    ids = client.examples[3].input_ids
    client.examples[3] = Example(3, ids.flip(0), client.examples[3].labels)
    client.examples.append(Example(99, torch.cat([ids, ids]), torch.tensor(1)))
    client.examples.append(client.examples[0])  # one that is there twice is sent once
    del client.examples[5]
    log.log.clear()
    run_round(fed, 2)
    asked = [
        (name, decode(request).tensors["control/positions"].tolist())
        for name, request, _ in log.log
        if decode(request).verb == "send_activations"
    ]
    assert asked == [(client.name, [3, len(client.examples) - 2])]
    after = store_of(fed).pool()
    assert [sample.num_tokens for sample in after] == [e.num_tokens for e in pooled(fed)]
    assert len(set(after) - set(before)) == 2
    assert len(set(before) - set(after)) == 2


def test_a_client_that_drops_out_leaves_what_it_has_sent(hub: Path) -> None:
    fed = cached(hub, "fleet.min_replies=2")
    client = fed.clients[1]
    honest = client.verbs["send_activations"]

    def break_down(*_: object) -> Any:
        raise RuntimeError("the disk is full")

    client.verbs = {**client.verbs, "send_activations": break_down}
    run_rounds(fed, 1)
    assert set(fed.fleet.missing) == {client.name}
    assert len(store_of(fed).pool()) == len(pooled(fed)) - len(client.examples)
    client.verbs = {**client.verbs, "send_activations": honest}
    run_rounds(fed, 1)
    assert len(store_of(fed).pool()) == len(pooled(fed))


@pytest.mark.parametrize("words", [(), ("framework.shape=u",), ("framework.mode=relay",)])
def test_what_would_change_is_refused_before_anything_is_loaded(
    hub: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=r"trains?, so the activations"):
        cached(hub, "framework.train=both", "framework.cache=true", *words)


@pytest.mark.parametrize("word", ["model.dropout=0.001", "adapter.dropout=0.2"])
def test_dropout_in_front_of_the_cut_is_refused_or_sends_every_batch(hub: Path, word: str) -> None:
    with pytest.raises(UserError, match="different each time"):
        cached(hub, word, "framework.cache=true")
    fed = cached(hub, word)
    run_rounds(fed, 1)
    assert "cache" not in fed.server.scratch


def test_more_than_there_is_room_for_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="would take at least"):
        run_rounds(cached(hub, "framework.cache_bytes=1000"), 1)


def test_a_file_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "activations.bin").write_bytes(b"12345")
    ActivationCache({"end": 5}, tmp_path, 100).close()
    with pytest.raises(UserError, match="it has 5 bytes, but had 6"):
        ActivationCache({"end": 6}, tmp_path, 100)


ROW_WISE = {n: c for n, c in known(Codec).items() if cast(type[Codec], c).row_wise}


@pytest.mark.parametrize("width", [12, 13, 130])
@pytest.mark.parametrize("name", ROW_WISE)
def test_rows_of_a_row_wise_codec_can_be_read_alone(name: str, width: int) -> None:
    codec = resolve(Codec, name)
    rows = torch.randn(9, width, generator=torch.Generator().manual_seed(1))
    written = EncodedRows((codec,), {k: v for k, v in _parts(codec, rows).items()}, 7)
    layout = Layout.from_json(written.layout.to_json())
    assert layout == written.layout
    records = written.records()
    assert records.shape == (9, layout.length)
    whole = codec.decode(codec.encode(rows, 7), 7)
    some = torch.tensor([8, 0, 0, 5])
    assert torch.equal(layout.decode(records[some], 7), whole[some])


def _parts(codec: Codec, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"0.{part}" if part else "": t for part, t in codec.encode(rows, 7).items()}


def test_codecs_that_look_at_several_rows_are_told_apart() -> None:
    others = set(known(Codec)) - set(ROW_WISE)
    rows = torch.randn(9, 40, generator=torch.Generator().manual_seed(1))
    for name in others:
        if issubclass(known(Codec)[name], RowCodec) or name in ("adaptive", "zstd"):
            continue
        parts = resolve(Codec, name).encode(rows, 7).values()
        assert not all(len(p) == 9 for p in parts if p.dim()), name
