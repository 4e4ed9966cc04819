"""Client-level privacy: what leaves, what is added, what is released, and what would break it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from papers import booked, on_paper
from resumed import dies_in, trained
from tiny import Recorder, experiment_config, federation
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import Experiment, build
from trillium.privacy.account import FILE, Release, epsilon, read_account, releases_in
from trillium.privacy.client import BoundedSum
from trillium.privacy.clips import Adaptive
from trillium.wire.message import Message

pytest.importorskip("dp_accounting")

EQUAL = ("framework.weights=equal", "training.max_length=24")
OPEN = "privacy={name: client, noise: 0, clip: {name: fixed, norm: 1e9}}"
NOISY = "privacy={name: client, noise: 0.7, clip: {name: fixed, norm: 0.5}}"
VOTES = ("framework={name: kd, ensemble: vote}", "training.max_length=24")
NOISE = "privacy={name: client, noise: 0.7}"
SILENT = "privacy={name: client, noise: 0}"


def private(hub: Path, *words: str) -> Experiment:
    return federation(hub, *EQUAL, *words)


@pytest.mark.parametrize(
    ("words", "hidden", "atol"),
    [((*EQUAL, OPEN), "train_loss", 1e-14), ((*VOTES, SILENT), "clients", 1e-7)],
    ids=["fedllm", "votes"],
)
def test_without_noise_and_bound_it_is_the_open_run(
    hub: Path, words: tuple[str, ...], hidden: str, atol: float
) -> None:
    """The same weights to the last digits of what crosses; bytes apart, as less is said."""
    private_run, open_run = federation(hub, *words), federation(hub, *words[:-1])
    private_run.run(), open_run.run()
    for name, tensor in trained(open_run).items():
        assert torch.allclose(trained(private_run)[name], tensor, rtol=0, atol=atol)
    assert private_run.history[-1]["epsilon"] is None
    assert hidden in open_run.history[-1]
    assert hidden not in private_run.history[-1]


def test_a_reply_is_a_closed_list_of_one_length(hub: Path) -> None:
    """Clients of 2 and of 30 examples cannot be told apart by what they send but for its values."""
    run = private(hub, NOISY, "data.partition={name: size_skewed, power: 2.0}")
    assert len({len(client.examples) for client in run.clients}) > 1
    log = Recorder(run)
    run.run()
    replies = [reply for _, _, reply in log.log]
    assert len({len(reply) for reply in replies}) == 1
    for reply in replies:
        message = run.fleet.wire.unpack(reply, "up").message
        assert {*message.tensors} == {"parameters/flat", "control/cost"}
        assert message.tensors["control/cost"][:3].tolist() == [0, 0, 0]
        assert message.meta.keys() == {"round"}
        assert float(message.tensors["parameters/flat"].norm()) <= 0.5 * (1 + 1e-6)
    assert all(entry.flops is None for entry in run.fleet.ledger.entries)


def added_by(run: Experiment) -> list[torch.Tensor]:
    """Run, and return by how much each client has changed a sum."""
    added, add = list[torch.Tensor](), BoundedSum.add

    def noted(self: BoundedSum, tensors: Any, below: float | None = None) -> None:
        before = self._total.clone()
        add(self, tensors, below)
        added.append((self._total - before).double() * (self.deviation / 2**20))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedSum, "add", noted)
        run.run()
    return added


def test_votes_are_bounded_releases_that_are_accounted_for(hub: Path) -> None:
    """Clients of 2 and of 30 examples send as much, of one length, and nothing beside it."""
    words = ("data.partition={name: size_skewed, power: 2.0}", "fleet.clients_per_round=2")
    run = federation(hub, *VOTES, NOISE, *words, "rounds=4")
    log = Recorder(run)
    added = added_by(run)
    replies = [run.fleet.wire.unpack(r, "up").message for *_, r in log.log]
    votes = [reply for reply in replies if reply.verb == "teach"]
    assert len(votes) == len(added) > 0
    assert all({*vote.tensors} == {"logits/public", "control/cost"} for vote in votes)
    others = {name for r in replies if r.verb != "teach" for name in r.tensors}
    assert others == {"control/cost"}
    lengths = [float(change.norm()) for change in added]
    assert 0.999 < min(lengths) <= max(lengths) <= 1 + 1e-9  # twelve votes of one class each
    assert all(int((change.abs() > 1e-5).sum()) == 12 for change in added)
    assert run.history[-1]["epsilon"] == epsilon([Release(0.7, 2 / 3, 4)], 1e-5)


def test_noise_of_votes_is_that_of_their_length(hub: Path) -> None:
    """Nobody votes: what is released is noise alone, as large as twelve votes by the setting."""
    words = ("fleet.clients_per_round=1", "data.public_size=12", "rounds=1")
    privacy = "privacy={name: client, noise: 0.5, population: 1000000}"
    found: list[torch.Tensor] = []
    run = federation(hub, *VOTES, privacy, *words)
    release = BoundedSum.release

    def noted(self: BoundedSum, key: bytes, estimate: None) -> Any:
        tensors, count = release(self, key, estimate)
        found.extend(tensors.values())
        return tensors, count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedSum, "release", noted)
        run.run()
    assert run.history[-1]["asked"] == 0
    assert found[0].shape == (12, 3)
    assert float(found[0].std()) == pytest.approx(0.5, rel=0.4)


def test_a_client_that_fails_says_nothing_of_why(hub: Path) -> None:
    run = private(hub, NOISY, "fleet.min_replies=1")
    run.clients[0].examples[0] = None  # type: ignore[call-overload]
    run.run()
    assert run.history[-1]["missing"] == {"client-0": "it failed; the log of the client says why"}


@pytest.mark.parametrize(
    "codec", ["cast", "int8", "int2", "sign", "{name: random_k, fraction: 0.2}"]
)
def test_codecs_do_not_lengthen_what_one_client_adds(hub: Path, codec: str) -> None:
    """The change of the sum by one client is within the bound, whatever the codec makes of it."""
    run = private(hub, NOISY, f"wire.up=[{codec}]", "framework.feedback=0", "model.dtype=float32")
    added = added_by(run)
    assert len(added) == 6
    assert max(float(change.norm()) for change in added) <= 0.5 * (1 + 1e-9)


def test_noise_is_that_of_the_bound_and_of_a_fixed_number(hub: Path) -> None:
    like = {"parameters/a": torch.zeros(300, 300)}
    for clients in (0, 1, 5):
        total = BoundedSum(like, bound=2.0, noise=1.5)
        for _ in range(clients):
            total.add({"parameters/a": torch.full((300, 300), 1e-9)})
        found, _ = total.release(bytes([clients]) * 32)
        assert float(found["parameters/a"].std()) == pytest.approx(3.0, rel=0.02)


def test_cohorts_are_drawn_by_a_secret_coin_for_each_client(hub: Path) -> None:
    words = (NOISY, "data.num_clients=5", "fleet.clients_per_round=2")
    run, other = private(hub, *words), private(hub, *words)
    drawn: dict[int, list[list[str]]] = {}
    for place, fed in enumerate((run, other)):
        for number in range(1, 201):
            fed.server.round = number
            drawn.setdefault(place, []).append(fed.fleet.begin_round(number))
    assert drawn[0] != drawn[1]  # the seed says nothing of them
    sizes = torch.tensor([float(len(asked)) for asked in drawn[0]])
    assert float(sizes.mean()) == pytest.approx(2.0, abs=0.3)
    assert float(sizes.var()) == pytest.approx(5 * 0.4 * 0.6, rel=0.4)  # binomial, not always 2
    key = [*drawn[0]]
    run.server.round = 1
    assert run.fleet.begin_round(1) == key[0]  # nothing was released since: the same round
    run.fleet.guard.account.note(1, "round", Release(1.0))  # type: ignore[union-attr]
    again = []
    for number in range(1, 201):
        run.server.round = number
        again.append(run.fleet.begin_round(number))
    assert again != key  # after a release, a round that is run again is another one


def test_an_empty_cohort_releases_noise(hub: Path) -> None:
    words = "privacy={name: client, noise: 1, clip: {name: fixed, norm: 0.01}, population: 1000000}"
    run = private(hub, words, "fleet.clients_per_round=1", "rounds=1")
    before = trained(run)
    run.run()
    assert (run.history[-1]["asked"], run.history[-1]["missing"]) == (0, {})
    moved = torch.cat([(t - before[n]).flatten() for n, t in trained(run).items()])
    assert float(moved.std()) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("noise", [0.5, 0.0])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_an_adaptive_bound_finds_the_quantile(start: float, noise: float) -> None:
    """From a hundred times below and above; a change of length zero is within any bound."""
    norms = torch.linspace(0.0, 2.0, 200)
    clip, bound = Adaptive(start=start, quantile=0.5), start
    for number in range(70):
        total = BoundedSum({"parameters/a": torch.zeros(1)}, bound, *clip.split(noise, len(norms)))
        for norm in norms:
            total.add({"parameters/a": norm.clamp(max=bound)[None]}, float(norm <= bound))
        _, count = total.release(bytes([number]) * 32)
        bound = clip.following(bound, count / len(norms) + 0.5)
    assert 0.7 < bound < 1.4


def test_the_count_takes_its_part_of_the_noise() -> None:
    """Both together are one Gaussian release of the noise that is accounted for."""
    clip = Adaptive()
    for noise, cohort in ((0.7, 100.0), (2.0, 3.0)):
        own, count = clip.split(noise, cohort)
        assert (own**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(noise)
        assert own <= 1.04 * noise


def test_the_bound_that_clipped_is_the_one_of_the_noise(hub: Path) -> None:
    words = "privacy={name: client, noise: 0.7, clip: {name: adaptive, start: 3}}"
    run, seen = private(hub, words, "rounds=3"), []
    made = BoundedSum.__post_init__

    def noted(self: BoundedSum) -> None:
        seen.append(self.bound)
        made(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedSum, "__post_init__", noted)
        run.run()
    assert seen == [line["clip"] for line in run.history[1:]]
    assert len({*seen}) == 3


def test_a_release_stays_in_the_account_of_a_run_that_is_resumed(hub: Path, tmp_path: Path) -> None:
    """It was announced before it happened; the round that runs again is a release of its own."""
    config = experiment_config(hub, *EQUAL, NOISY, "rounds=2")
    whole = build(config, RunFolder(tmp_path / "whole", "whole"))
    whole.run()
    dies_in(build(config, RunFolder(tmp_path / "cut", "cut")), BoundedSum, "release")
    assert [line["round"] for line in read_account(tmp_path / "cut" / FILE)] == [1]
    again = build(config, RunFolder.reopen(tmp_path / "cut"))
    again.run()
    lines = read_account(tmp_path / "cut" / FILE)
    assert [line["round"] for line in lines] == [1, 1, 2]
    assert again.history[-1]["epsilon"] == epsilon(releases_in(lines), 1e-5)
    assert again.history[-1]["epsilon"] > whole.history[-1]["epsilon"]


@pytest.mark.parametrize(
    "words",
    [
        (NOISY,),
        (
            "privacy={name: client, noise: 1, clip: adaptive}",
            "wire.up=[int8]",
            "framework.feedback=0",
        ),
        ("privacy={name: client, noise: 0, clip: adaptive}",),
        ("framework=fedkseed", NOISY),
        (*VOTES, NOISE),
    ],
    ids=["fixed", "adaptive, int8", "adaptive, no noise", "fedkseed", "kd"],
)
def test_a_plan_has_the_bytes_of_the_ledger(hub: Path, words: tuple[str, ...]) -> None:
    own = EQUAL[1:] if "framework=" in words[0] else EQUAL
    run = federation(hub, *words, *own)
    paper = on_paper(run)
    run.run()
    told, found = booked(paper.course.entries), booked(run.fleet.ledger.entries)
    downs = run.config.framework.name == "fedkseed"  # the scalars come down sparse at first
    keep = [place for place, entry in enumerate(found) if not downs or entry[2] == "up"]
    assert [told[place] for place in keep] == [found[place] for place in keep]
    assert sum(entry.flops or 0 for entry in paper.course.entries) > 0


REFUSED = {
    "framework=kd": "it weighs the opinion of each client",
    "framework={name: kd, ensemble: mean}": "do not add up to their mean",
    "framework={name: kd, ensemble: vote, direction: client}": "measured one by one",
    "framework={name: kd, ensemble: vote}": "votes of all clients have one length",
    "framework=split": "what its clients send is not a sum",
    "framework=local_only": "what its clients send is not a sum",
    "framework.weights=targets": "how much data each client has",
    "framework.drift=scaffold": "control variates are gradients",
    "framework.local=[head]": "the figures leave them",
    "framework.aggregator=median": "looks at each update by itself",
    "framework.upload=parameters": "not where the state lies",
    "wire.up=[top_k]": "how many bytes it writes depends on the values",
    "wire.up=[zstd]": "how many bytes it writes depends on the values",
    "wire.up=[int8]": "beyond the bound of both",
    "head=ridge": "those of a client's own data",
    "training.max_length=null": "from the clients' texts",
    "tiers={a: {clients: [client-0], rank: 1}}": "that part tells that they are there",
    "privacy.population=1": "more cannot be drawn",
    "privacy.epsilon=8": "each of them follows from the other",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_would_break_the_guarantee_is_refused(hub: Path, word: str) -> None:
    weights = EQUAL if not word.startswith("framework=") else EQUAL[1:]
    with pytest.raises(UserError, match=REFUSED[word]):
        experiment_config(hub, NOISY, *weights, "fleet.clients_per_round=2", word)


def test_what_is_not_added_up_does_not_leave(hub: Path) -> None:
    """Whatever a framework answers: this is what the refusals would leak without the closed list."""
    run = private(hub, NOISY)
    leaky = Message("train", {"control/loss": torch.tensor(1.0)})
    with pytest.raises(UserError, match="only what is added up may leave"):
        run.config.privacy.closed(leaky, Message("train"))


def test_nobody_is_left_out_for_what_others_send(hub: Path) -> None:
    """Where clients are compared, whether one is missing would tell of another's data."""
    run = private(hub, "privacy={name: client, noise: 1e-3, clip: {name: fixed, norm: 1e6}}")
    honest = run.clients[0].verbs["train"]

    def huge(client: Any, message: Message) -> Message:
        reply: Message = honest(client, message)
        assert reply.summed is not None
        tensors = {name: 1e3 * tensor for name, tensor in reply.summed.tensors.items()}
        return replace(reply, summed=replace(reply.summed, tensors=tensors))

    run.clients[0].verbs = {**run.clients[0].verbs, "train": huge}
    run.server.round = 1
    run.config.framework.start(run.server, run.fleet)
    run.fleet.begin_round(1)
    run.config.framework.round(run.server, run.fleet)
    assert run.fleet.sizes.suspect() is None
