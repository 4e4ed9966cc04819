"""The gate of a node: what its policy does not allow is refused, and what has left is written down."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, Message

from tiny import experiment_config
from trillium.config.experiment import ExperimentConfig
from trillium.data.deployed import write_rows
from trillium.data.load import load_data
from trillium.engines import flower
from trillium.engines.journal import HEAD, LOG, forget, read, verify
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.policy import Forbidden, signed_text, weights_digest
from trillium.engines.roster import opening_record, outcome
from trillium.errors import UserError
from trillium.experiment.run import build
from trillium.federation.dispatch import ERROR_VERB
from trillium.federation.parts import Lost
from trillium.frameworks.private import foreseen
from trillium.privacy.account import FILE, Account, Release, read_account
from trillium.wire.message import Message as Asked
from trillium.wire.message import decode, encode


class Owner:
    """A data owner: rows, a policy and a place for state."""

    def __init__(self, hub: Path, folder: Path, *words: str) -> None:
        self.config = experiment_config(hub, "rounds=3", "training.max_length=16", *words)
        self.folder = folder
        data = load_data(self.config.data, "classification", 0, self.config.public_size)
        self.labels = list(data.labels)
        rows = data.clients["client-0"]
        write_rows(folder / "rows.jsonl", rows, data.labels, self.config.data.source)
        self.asks: list[bytes] = []  # of a simulation, one a round

    def node(self, policy: str = "", run: str = "run", signature: str = "") -> Node:
        (self.folder / "policy.toml").write_text(policy)
        found = Node(self.settings, self.opening(run, signature))
        found.restore(0)
        return found

    @property
    def settings(self) -> NodeConfig:
        own = {"name": "a", "data": "rows.jsonl", "state": "state", "policy": "policy.toml"}
        paths = {k: v if k == "name" else str(self.folder / v) for k, v in own.items()}
        return NodeConfig.read(paths)

    def ask(self, number: int) -> bytes:
        """Return what the server of a simulation asks a client in a round."""
        if not self.asks:
            fed = build(self.config)
            engine = fed.fleet.engine
            carry = engine.carry

            def noting(requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | Lost]]:
                self.asks.extend([*requests.values()][:1])
                yield from carry(requests)

            engine.carry = noting  # type: ignore[method-assign]
            fed.run()
        return self.asks[number - 1]

    def train(self, node: Node, number: int) -> Asked:
        """Let a node answer that."""
        return decode(node.handle(self.ask(number)))

    def opening(self, run: str = "run", signature: str = "") -> Opening:
        return Opening(run, self.config.tree(), self.labels, 0, signature)

    @property
    def state(self) -> Path:
        return self.folder / "state"


@pytest.fixture
def owner(hub: Path, tmp_path: Path) -> Owner:
    return Owner(hub, tmp_path, "wire.up=[int8]")


def reason(answer: Asked) -> str:
    assert answer.verb == ERROR_VERB
    return str(answer.meta["reason"])


ALLOWED = """
frameworks = ["fedllm", "kd"]
codecs = ["int8"]
rounds = 3
kinds = ["parameters"]
"""


def test_what_the_policy_allows_is_done(owner: Owner) -> None:
    assert owner.train(owner.node(ALLOWED), 1).verb == "train"


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ('frameworks = ["kd"]', "framework=fedllm"),
        ('models = ["minilm"]', "model.id="),
        ('codecs = ["topk"]', "updates through int8"),
        ("rounds = 2", "rounds=3"),
        ("min_clients = 3", "fleet.min_replies=None"),
        ('sums = "masked"', "sums=plain: they must be masked"),
        ("signers = []", "a recipe that nobody has signed whom it trusts"),
        ('models = ["sha256:0"]', "the weights of this model"),
    ],
)
def test_a_run_that_it_does_not_allow_is_refused(owner: Owner, policy: str, what: str) -> None:
    with pytest.raises(Forbidden, match="the policy of the node does not allow") as caught:
        owner.node(policy)
    assert what in str(caught.value)
    [line] = read(owner.state)
    assert line["refused"] == str(caught.value)
    assert "framework=fedllm" in line["asked"]
    assert verify(owner.state)[0] == 1


def test_both_sides_are_told_why(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flower, "log_to_screen", lambda *words: None)
    (owner.folder / "policy.toml").write_text("rounds = 2")
    record = opening_record(owner.opening(), address="127.0.0.1:1", token="t")
    asked = cast(Message, SimpleNamespace(content=record))
    own = {k: str(v) for k, v in owner.settings.model_dump(exclude_none=True).items()}
    context = cast(Context, SimpleNamespace(node_config=own))
    answers: list[Any] = []
    monkeypatch.setattr(flower, "Message", lambda content, reply_to: answers.append(content))
    flower._answer(asked, context, lambda settings, node: pytest.fail("it went on"))
    said = "the policy of the node does not allow rounds=3"
    assert outcome(answers[0]) == f"the node does not take part: {said}"
    assert said in caplog.text


def test_a_policy_that_cannot_be_read_lets_nothing_run(owner: Owner) -> None:
    with pytest.raises(UserError, match="round: Extra inputs are not permitted"):
        owner.node("round = 3")
    with pytest.raises(UserError, match="without it nothing may run"):
        owner.node("rounds = [")


def test_the_weights_that_are_shown_are_those_that_can_be_pinned(
    owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "trillium.engines.policy"):
        node = owner.node("models = []")
    found = f"sha256:{weights_digest(node.client.model)}"
    assert f"the frozen weights are {found}" in caplog.text
    owner.node(f'models = ["{found}"]')


def test_who_has_signed_counts(owner: Owner) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    policy = f'signers = ["{line} board"]'

    def signed(by: Ed25519PrivateKey, config: ExperimentConfig) -> str:
        return base64.b64encode(by.sign(signed_text(config))).decode()

    owner.node(policy, signature=signed(key, owner.config))
    changed = owner.config.model_copy(update={"rounds": 2})
    for wrong in (signed(other, owner.config), signed(key, changed), "", "?"):
        with pytest.raises(Forbidden, match="nobody has signed"):
            owner.node(policy, signature=wrong)


def test_kinds_and_bytes_that_may_not_leave_do_not(owner: Owner) -> None:
    answer = owner.train(owner.node('kinds = ["statistics"]'), 1)
    assert "does not allow parameters to leave" in reason(answer)
    size = len(encode(owner.train(owner.node(""), 1)))
    node = owner.node(f"bytes_per_round = {size + 200}", run="rounds")
    assert owner.train(node, 1).verb == "train"
    assert "to leave in a round" in reason(owner.train(node, 1))
    assert owner.train(node, 2).verb == "train"
    node = owner.node(f"bytes_per_run = {2 * size + 400}", run="all")
    assert [owner.train(node, number).verb for number in (1, 2)] == ["train", "train"]
    # Also by a process that was started anew: its log knows.
    node = owner.node(f"bytes_per_run = {2 * size + 400}", run="all")
    assert "to leave in a run" in reason(owner.train(node, 3))
    refused = [line for line in read(owner.state) if line["refused"]]
    assert all(line["bytes_up"] == 0 and line["sha256"] is None for line in refused)
    assert len(refused) == 3


def test_prompts_can_be_refused(owner: Owner) -> None:
    node = owner.node("prompts = false")
    with pytest.raises(Forbidden, match="does not allow prompts"):
        node.control(json.dumps(["prompts", [[1]]]).encode())


def test_the_log_has_what_left_and_shows_any_change(owner: Owner) -> None:
    import hashlib

    node = owner.node()
    left = []
    for number in (1, 2, 3):
        left.append(node.handle(owner.ask(number)))
        node.save(number)
    lines = [*read(owner.state)]
    assert [line["verb"] for line in lines] == ["opening", "train", "train", "train"]
    for line, data in zip(lines[1:], left, strict=True):
        assert line["sha256"] == hashlib.sha256(data).hexdigest()
        assert line["bytes_up"] == len(data) == sum(line["kinds"].values())
        assert set(line["kinds"]) == {"parameters", "control"}
    number, last = verify(owner.state)
    assert number == 4
    path = owner.state / LOG
    whole = path.read_bytes()
    rows = whole.splitlines(keepends=True)
    swapped = [rows[0], rows[2], rows[1], rows[3]]
    changed = [*rows[:2], rows[2].replace(b'"round": 2', b'"round": 1'), rows[3]]
    for wrong in (rows[1:], rows[:1] + rows[2:], rows[:3], swapped, changed, [rows[0], *rows]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(UserError, match=LOG):
            verify(owner.state)
    path.write_bytes(whole)
    assert verify(owner.state) == (4, last)
    (owner.state / HEAD).unlink()
    assert verify(owner.state) == (4, last)
    assert (path.stat().st_mode & 0o777) == 0o600


def test_old_lines_can_go_and_the_chain_still_holds(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = owner.node()
    for number in (1, 2, 3):
        owner.train(node, number)
    node.save(3)
    assert forget(owner.state, days=1) == 0
    assert forget(owner.state, days=0) == 3
    assert [line["number"] for line in read(owner.state)] == [4]
    assert verify(owner.state)[0] == 4
    owner.train(owner.node(), 3)
    assert verify(owner.state)[0] == 6
    path = owner.state / LOG
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="line 4 does not follow"):
        verify(owner.state)


PRIVATE = (
    "framework.weights=equal",
    "training.local_steps=1",
    "privacy={name: example, noise: 2.0, population: 12}",
)
CLIENT = (*PRIVATE[:2], "privacy={name: client, noise: 3.0, population: 3}")
OWN = 'privacy = {{unit = "{unit}", epsilon = {epsilon}}}'


def test_runs_together_spend_no_more_than_the_owner_allows(hub: Path, tmp_path: Path) -> None:
    owner = Owner(hub, tmp_path, *PRIVATE)
    planned = foreseen(owner.config, 1)["epsilon"]
    policy = OWN.format(unit="example", epsilon=1.01 * planned)
    node = owner.node(policy, "one")
    for number in (1, 2, 3):
        assert owner.train(node, number).verb == "train"
    [first, *_] = lines = read_account(owner.state / FILE)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert (first["what"], first["noise"], first["count"]) == ("one", 2.0, 1)
    # The server asks again for what it has had: a release more than was planned.
    assert owner.train(owner.node(policy, "one"), 1).verb == ERROR_VERB
    assert "all runs together to spend" in [*read(owner.state)][-1]["refused"]
    with pytest.raises(Forbidden, match="all runs together to spend ε"):
        owner.node(policy, "two")
    assert read_account(owner.state / FILE) == lines


def test_at_client_level_a_run_counts_from_its_beginning(hub: Path, tmp_path: Path) -> None:
    owner = Owner(hub, tmp_path, *CLIENT)
    planned = foreseen(owner.config, 1)["epsilon"]
    policy = OWN.format(unit="client", epsilon=1.01 * planned)
    owner.node(policy, "one")
    owner.node(policy, "one")  # it goes on
    [line] = read_account(owner.state / FILE)
    assert (line["noise"], line["count"]) == (3.0, 3)
    with pytest.raises(Forbidden, match="all runs together to spend ε"):
        owner.node(policy, "two")


@pytest.mark.parametrize("words", [(), CLIENT, (*PRIVATE[:2], PRIVATE[2].replace("2.0", "0.0"))])
def test_a_run_that_hides_too_little_is_refused(
    hub: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(Forbidden, match=r"it must hide each example|to spend ε=inf"):
        Owner(hub, tmp_path, *words).node(OWN.format(unit="example", epsilon=8))


def test_privacy_needs_a_place_for_its_account(hub: Path, tmp_path: Path) -> None:
    owner = Owner(hub, tmp_path, *PRIVATE)
    (tmp_path / "policy.toml").write_text(OWN.format(unit="example", epsilon=8))
    with pytest.raises(UserError, match="no place for an account"):
        Node(owner.settings.model_copy(update={"state": None}), owner.opening())


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / FILE
    Account(path).note(1, "run", Release(1.0))
    with path.open("a") as file:
        file.write('{"round": 2, "wh')
    Account(path).note(2, "run", Release(1.0))
    assert [line["round"] for line in read_account(path)] == [1, 2]
