"""Runs with masked sums: the weights of the plain integer sum, drop-outs in each phase, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from masked import Losing
from resumed import assert_resumes, trained
from tiny import Recorder, experiment_config, federation
from trillium.errors import UserError
from trillium.experiment.run import Experiment
from trillium.federation import circle as server_half
from trillium.federation.failed import RoundFailed
from trillium.privacy import masks as client_half
from trillium.privacy.phases import KEYS, REVEAL, SHARES
from trillium.wire.message import decode

EQUAL = "framework.weights=equal"
RUNS = {
    "fedllm": (EQUAL, "rounds=3"),
    "class sums": (EQUAL, "head=class_sums", "rounds=1"),
    "gradient": (EQUAL, "framework.upload=gradient", "wire.down=[int8]"),
    "tiers": (EQUAL, "tiers={slow: {clients: [client-0], local_steps: 1}}", "rounds=2"),
    "fedkseed": ("framework=fedkseed", "framework.lr=0.01", "sums.bits=24"),
    "kd": ("framework={name: kd, ensemble: mean}", "sums.bits=16", "rounds=2"),
    "kd, logits": ("framework={name: kd, ensemble: mean, average: logits}", "sums.bits=16"),
    "kd, votes": ("framework={name: kd, ensemble: vote, direction: server}", "sums.bits=4"),
    "kd, tokens": (
        *("framework={name: kd, ensemble: mean, public_per_round: 2}", "sums.bits=16"),
        *("task=causal_lm", "rounds=1", "training.local_steps=1"),
    ),
    "examples": (
        *(EQUAL, "privacy={name: example, noise: 0, population: 8}", "training.local_steps=2"),
        "training.max_length=24",
    ),
}


def made(hub: Path, *words: str) -> Experiment:
    task = "causal_lm" if "task=causal_lm" in words else "classification"
    return federation(hub, *words, task=task)


def masked(hub: Path, *words: str) -> Experiment:
    return made(hub, "sums=masked", *words)


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_the_weights_are_those_of_the_plain_integer_sum(
    hub: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit: with no mask at all, and to what the numbers are rounded to in the open run."""
    if "examples" in str(words):
        pytest.importorskip("dp_accounting")
    run = masked(hub, *words)
    run.run()
    none = lambda values, key, off=False: None  # noqa: E731
    monkeypatch.setattr(client_half, "mask", none)
    monkeypatch.setattr(server_half, "mask", none)
    plain = masked(hub, *words)
    plain.run()
    open_run = made(hub, *(word for word in words if not word.startswith("sums")))
    before = trained(open_run)
    open_run.run()
    moved, apart = 0.0, 0.0
    for name, tensor in trained(run).items():
        assert tensor.equal(trained(plain)[name])
        own = trained(open_run)[name]
        moved += float((own - before[name]).square().sum())
        apart += float((own - tensor).square().sum())
    assert moved > 0
    assert apart == 0 if "vote" in str(words) else 0 < apart < 0.05 * moved


def test_a_client_is_seen_in_no_reply(hub: Path) -> None:
    """A closed list: whole numbers without a pattern, public keys, boxes, and what it cost."""
    run = masked(hub, EQUAL, "data.partition={name: size_skewed, power: 2.0}")
    log = Recorder(run)
    run.run()
    lengths: dict[str, set[int]] = {}
    for _, _, reply in log.log:
        message = run.fleet.wire.unpack(reply, "up").message
        lengths.setdefault(f"{run.fleet.round} {message.verb} {message.meta}", set()).add(
            len(reply)
        )
        wanted = {
            KEYS: {"control/keys"},
            SHARES: {"control/public", "control/boxes"},
            "train": {"sums/flat"},
            REVEAL: {"control/shares"},
        }[message.verb]
        assert {*message.tensors} == {*wanted, "control/cost"}
        assert message.meta.keys() == {"round"}
    assert all(len(found) == 1 for found in lengths.values())
    assert "train_loss" not in run.history[-1]


@pytest.mark.parametrize("verb", [SHARES, "train", REVEAL, "teach"])
def test_who_is_lost_in_a_phase_is_missing_and_the_sum_is_that_of_the_others(
    hub: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "framework={name: kd, ensemble: mean}" if verb == "teach" else EQUAL
    words = ("data.num_clients=4", "fleet.min_replies=3", "rounds=3", kind)
    run = masked(hub, *words)
    Losing(run, {(2, verb): "client-1"})
    run.run()
    assert run.history[2]["missing"] == {"client-1": "the test loses it"}
    assert [line["missing"] for line in run.history if line["round"] != 2] == [{}, {}, {}]
    none = lambda values, key, off=False: None  # noqa: E731
    monkeypatch.setattr(client_half, "mask", none)
    monkeypatch.setattr(server_half, "mask", none)
    plain = masked(hub, *words)
    Losing(plain, {(2, verb): "client-1"})
    plain.run()
    for name, tensor in trained(run).items():
        assert tensor.equal(trained(plain)[name])


def test_a_run_that_is_killed_in_every_round_goes_on(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same weights, and the same ledger: who is known stays known. Streams are others."""
    monkeypatch.setattr("trillium.experiment.run.new_secret", lambda: bytes(32).hex())
    failures = ("data.num_clients=5", "fleet={failure_rate: 0.2, min_replies: 3}", "rounds=4")
    assert_resumes(experiment_config(hub, "sums=masked", EQUAL, *failures), tmp_path)


def test_with_too_few_nothing_is_revealed(hub: Path) -> None:
    run = masked(hub, EQUAL, "rounds=2")
    log = Losing(run, {(2, "train"): "client-1"})
    with pytest.raises(RoundFailed, match="2 of 3 clients are left"):
        run.run()
    verbs = [decode(request).verb for _, request, _ in log.log]
    assert verbs.count(REVEAL) == 3  # those of the first round


def test_a_deployment_of_two_has_no_masked_sum(hub: Path) -> None:
    """In a simulation it is refused at the start; who is there is known later elsewhere."""
    run = masked(hub, EQUAL)
    run.fleet.engine = Losing(run, {(1, KEYS): "client-0"})
    run.fleet.config = run.fleet.config.model_copy(update={"min_replies": 2})
    with pytest.raises(RoundFailed, match="2 clients are left, and a masked sum takes 3"):
        run.run()


BAD = {
    "framework=kd": "it weighs the opinion of each client",
    "framework={name: kd, ensemble: confidence}": "it weighs the opinion of each client",
    "framework={name: kd, ensemble: noisy_mean}": "it weighs the opinion of each client",
    "framework={name: kd, ensemble: mean, direction: client}": "measured one by one",
    "framework=local_only": "looked at one by one",
    "framework=split": "looked at one by one",
    "framework.aggregator=median": "the server sees their sum alone",
    "framework.aggregator=norm_clip": "the server sees their sum alone",
    "framework.aggregator=krum": "at least|the server sees their sum alone",
    "framework.aggregator=stack": "the server sees their sum alone",
    "framework.weights=targets": "a few steps of the whole numbers",
    "framework.upload=parameters": "values differ far less",
    "framework.download=change": "would not cancel",
    "framework.drift=scaffold": "a control variate of each client",
    "framework.local=[head]": "measured one by one",
    "head=ridge": "looked at one by one",
    "head=class_means": "looked at one by one",
    "wire.up=[int8]": "nothing is sent up in this run",
    "wire.up=[top_k]": "nothing is sent up in this run",
    "wire.up=[zstd]": "nothing is sent up in this run",
    "tiers={a: {clients: [client-0], rank: 2}}": "all must add to the whole",
    "tiers={a: {clients: [client-0], down: [int8]}}": "would not cancel",
    "data.num_clients=2": "a sum of so few",
    "fleet={min_replies: 1}": "both secrets of one",
    "privacy={name: client, noise: 1}": "how few may be in a sum",
    "sums={name: masked, bits: 3}": "at least 4",
}


@pytest.mark.parametrize(("word", "why"), BAD.items(), ids=BAD)
def test_what_cannot_be_had_of_a_sum_alone_is_refused(hub: Path, word: str, why: str) -> None:
    own = () if word.startswith(("framework=", "framework.weights")) else (EQUAL,)
    more = ("training.max_length=24",) if "privacy" in word else ()
    with pytest.raises(UserError, match=why):
        experiment_config(hub, "sums=masked", *own, *more, word)


def test_the_refusals_are_of_masks(hub: Path) -> None:
    """Without them each of these settings is fine, but for the last one, which is the masks' own."""
    for word in list(BAD)[:-1]:
        own = (EQUAL, "training.max_length=24") if "privacy" in word else ()
        if "krum" not in word and "rank" not in word:
            experiment_config(hub, *own, word)


def test_without_masks_the_server_would_see_each(hub: Path) -> None:
    """What a mask hides is there without it: the tests above look at the right place."""
    run = federation(hub, EQUAL, "rounds=1")
    log = Recorder(run)
    run.run()
    updates = [run.fleet.wire.unpack(reply, "up").message for _, _, reply in log.log]
    assert all("parameters/flat" in message.tensors for message in updates)
