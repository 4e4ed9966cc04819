"""Delta coding at the cut: both sides hold the same copies, and what is sent shrinks to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import EXACT, Recorder, distance, federation, perturb, run_round, run_rounds
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.frameworks.split.delta import Copies, Delta, compensated
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode
from trillium.wire.wire import Wire

pytestmark = pytest.mark.usefixtures("uncounted")

STILL = "training.optimizer={name: sgd, lr: 1.0e-30}"  # nothing moves, to the last bit
DELTA = "framework.delta={}"
CODED = ("model.dtype=float32", "wire.up=[{name: int4, kinds: [activations]}]")
ALL = "training.local_epochs=1"


def split(hub: Path, *words: str, **options: Any) -> Experiment:
    return perturb(federation(hub, "framework=split", *words, **options))


def copies(fed: Experiment) -> list[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]]:
    """The server's and the client's copies, client by client."""
    held = fed.server.store["copies"]
    return [(held[c.name]["rows"], c.store["copies"]["rows"]) for c in fed.clients]


def sent(log: Recorder, number: int) -> list[torch.Tensor]:
    replies = [decode(reply) for _, _, reply in log.log]
    return [
        reply.tensors["activations/hidden"]
        for reply in replies
        if reply.verb == "forward" and reply.meta["round"] == number
    ]


@pytest.mark.parametrize(
    ("model", "task", "shape", "mode"),
    [
        ("gpt2", "classification", "two_part", "coalesced"),
        ("gpt2", "classification", "u", "splitfed_v1"),
        ("llama", "causal_lm", "two_part", "relay"),
        ("bert", "classification", "u", "coalesced"),
    ],
)
def test_without_loss_it_is_the_plain_exchange(
    hub: Path, model: str, task: str, shape: str, mode: str
) -> None:
    words = (f"framework.shape={shape}", f"framework.mode={mode}")
    states, losses = [], []
    for more in ((), (DELTA,)):
        fed = split(hub, *words, *more, model=model, task=task)
        losses.append([figure["train_loss"] for figure in run_rounds(fed, 3)])
        states.append(fed.server.state)
    assert distance(*states) < EXACT[model]
    assert losses[0] == pytest.approx(losses[1], abs=EXACT[model])


def test_what_does_not_change_is_sent_as_zeros(hub: Path) -> None:
    fed = split(hub, DELTA, STILL, ALL, model="gpt2")
    log = Recorder(fed)
    run_rounds(fed, 2)
    assert all(float(change.abs().max()) > 0 for change in sent(log, 1))
    # Batches of other lengths may round otherwise in the last bit.
    assert all(float(change.abs().max()) < 1e-14 for change in sent(log, 2))


def test_few_bits_become_exact_as_training_settles(hub: Path) -> None:
    errors = []
    for rounds in (1, 2, 4):
        fed = split(hub, DELTA, STILL, ALL, *CODED)
        run_rounds(fed, rounds)
        exact = split(hub, DELTA, STILL, ALL, "model.dtype=float32")
        run_rounds(exact, 1)
        errors.append(
            max(
                float((rows[sample] - wanted[sample]).norm() / wanted[sample].norm())
                for (rows, _), (wanted, _) in zip(copies(fed), copies(exact), strict=True)
                for sample in wanted
            )
        )
    assert errors[0] > 0.02  # what int4 loses of the activations themselves: the control
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.01 * errors[0]


SOME = "{name: top_k, fraction: 0.3, kinds: [activations]}"


@pytest.mark.parametrize("codecs", ["[int4]", "[hadamard, int2]", f"[{SOME}]", "[]"])
def test_both_sides_hold_the_same_copies(hub: Path, codecs: str) -> None:
    fed = split(hub, DELTA, "model.dtype=float32", f"wire.up={codecs}", "wire.down=[int8]")
    run_rounds(fed, 3)
    for ours, theirs in copies(fed):
        assert ours.keys() == theirs.keys()
        assert ours
        assert all(torch.equal(ours[sample], theirs[sample]) for sample in ours)


def test_what_has_hardly_changed_is_not_sent(hub: Path) -> None:
    fed = split(hub, "framework.delta={skip: 0.1, max_skips: 2}", STILL, ALL)
    log = Recorder(fed)
    run_rounds(fed, 1)
    fed.server.store["losses"] = []
    rows = [sum(map(len, sent(log, 1)))]
    for number in range(2, 5):
        run_round(fed, number)
        fed.server.store["losses"] = []  # as if the loss fell
        rows.append(sum(map(len, sent(log, number))))
    assert rows == [rows[0], 0, 0, rows[0]]
    assert rows[0] > 0


def test_a_round_whose_loss_did_not_fall_is_followed_by_one_without_skips() -> None:
    delta = Delta(skip=0.3)
    losses = [([], 0.3), ([2.0], 0.3), ([2.0, 1.0], 0.3), ([1.0, 1.0], 0.0), ([1.0, 1.5], 0.0)]
    assert [delta.threshold(list(before)) for before, _ in losses] == [t for _, t in losses]


def test_skipping_can_be_told_from_not_skipping(hub: Path) -> None:
    states = []
    for skip in (0.0, 0.9):
        fed = split(hub, f"framework.delta={{skip: {skip}}}", "rounds=2", ALL)
        run_rounds(fed, 2)
        states.append(fed.server.state)
    assert distance(*states) > 1e-6


@pytest.mark.parametrize("who", ["client", "server"])
def test_copies_that_have_parted_are_given_up(hub: Path, who: str) -> None:
    fed = split(hub, DELTA, "fleet.min_replies=2", *CODED)
    run_rounds(fed, 1)
    client = fed.clients[1]
    if who == "server":
        fed.server.store["copies"][client.name] = {}
    else:
        client.store.clear()
    run_rounds(fed, 1)
    assert not fed.fleet.missing
    for ours, theirs in copies(fed):
        assert all(torch.equal(ours[sample], theirs[sample]) for sample in theirs)


def test_a_lost_reply_does_not_part_them_for_good(hub: Path) -> None:
    fed = split(hub, DELTA, "fleet.min_replies=2", *CODED)
    run_rounds(fed, 1)
    client = fed.clients[1]
    honest = client.verbs["forward"]

    def lose(*args: Any) -> Message:
        honest(*args)
        raise RuntimeError("the line is cut")

    client.verbs = {**client.verbs, "forward": lose}
    run_rounds(fed, 1)
    assert set(fed.fleet.missing) == {client.name}
    ours, theirs = copies(fed)[1]
    assert not all(torch.equal(ours[sample], theirs[sample]) for sample in theirs)
    client.verbs = {**client.verbs, "forward": honest}
    run_rounds(fed, 1)
    ours, theirs = copies(fed)[1]
    assert all(torch.equal(ours[sample], theirs[sample]) for sample in theirs)


def test_changes_without_a_copy_are_refused() -> None:
    wire, rows = Wire(), [torch.ones(3, 2)]
    client, server = Copies({}), Copies({})
    first = client.write(rows, [7], wire, 1, Delta(), 0.0)
    second = client.write(rows, [7], wire, 1, Delta(), 0.0)
    with pytest.raises(MessageError, match="sample 7 in form 1"):
        server.read(second, [3], 2)
    assert torch.equal(server.read(first, [3], 2), rows[0])
    assert torch.equal(server.read(second, [3], 2), rows[0])
    with pytest.raises(MessageError, match="sample 7"):
        server.read(second, [4], 2)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_what_was_sent_and_what_is_kept_add_up_to_the_gradients(share: float) -> None:
    draw = torch.Generator().manual_seed(3)
    wire = Wire.model_validate({"down": ["int2"]})
    store: dict[str, Any] = {}
    total = {sample: torch.zeros(4, 8) for sample in range(3)}
    seen = {sample: torch.zeros(4, 8) for sample in range(3)}
    for number in range(20):
        samples = torch.randperm(3, generator=draw)[:2].tolist()
        gradient = torch.randn(8, 8, generator=draw)
        sent = compensated(store, share, gradient, samples, [4, 4], wire, number)
        again = Message(sent.verb, sent.tensors, {"round": number})
        read = wire.preview(again, "down").seen.tensors["gradients/hidden"]
        for sample, wanted, found in zip(samples, gradient.chunk(2), read.chunk(2), strict=True):
            total[sample] += wanted
            seen[sample] += found
    kept = {sample: store.get(str(sample), torch.zeros(4, 8)) for sample in total}
    gaps = [float((total[s] - seen[s] - kept[s]).abs().max()) for s in total]
    assert (max(gaps) < 1e-4) == (share == 1.0)


def test_coded_gradients_come_down_with_feedback(hub: Path) -> None:
    words = ("model.dtype=float32", "wire.down=[{name: int4, kinds: [gradients]}]")
    fed = split(hub, DELTA, *words)
    run_rounds(fed, 2)
    assert all(fed.server.store["lost"][client.name] for client in fed.clients)
    fed = split(hub, "framework.delta={feedback: 0}", *words)
    run_rounds(fed, 2)
    assert not any(fed.server.store["lost"].values())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("framework.train=server",), "sent once"),
        (("wire.down=[{name: int2, rounding: stochastic}]",), "would grow"),
    ],
)
def test_what_makes_no_sense_is_refused(hub: Path, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        split(hub, DELTA, *words)


def test_dropout_is_refused(hub: Path) -> None:
    with pytest.raises(UserError, match="never become small"):
        run_rounds(split(hub, DELTA, "model.dropout=0.1"), 1)
