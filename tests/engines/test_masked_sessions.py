"""Masked sums over sessions: keys that certificates sign, nodes lost in each phase, forgeries."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deployed import Nodes, ledger, metrics, run_in_threads
from resumed import Killed
from tiny import experiment_config
from trillium.deploy.keys import make_keys
from trillium.engines.certified import Certified
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.session import Handler
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import build
from trillium.federation.failed import RoundFailed
from trillium.privacy.masks import Masks
from trillium.privacy.phases import REVEAL, SHARES
from trillium.wire.kinds import MessageError
from trillium.wire.message import decode

EQUAL = "framework.weights=equal"
MASKED = ("sums=masked", "data.num_clients=4", "fleet.min_replies=3")
FOUR = (*MASKED, EQUAL)
VOTES = ("framework={name: kd, ensemble: vote, direction: server}",)
KEYS = bytes(range(64))
PHASES = [
    ("train", 2),
    *(pytest.param(*at, marks=pytest.mark.slow) for at in ((SHARES, 2), (REVEAL, 2), ("train", 1))),
]


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words",
    [(EQUAL, "head=class_sums"), VOTES],
    ids=["fedllm", "kd"],
)
def test_sessions_give_the_weights_and_bytes_of_the_local_engine(
    hub: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """But for the certificates, which a node sends once, and each peer is sent once."""
    config = experiment_config(hub, *MASKED, *words)
    build(config, RunFolder(tmp_path / "local", "local")).run()
    run_in_threads(config, keys, RunFolder(tmp_path / "sessions", "sessions"), monkeypatch)
    assert adapter(tmp_path / "sessions") == adapter(tmp_path / "local")
    assert metrics(tmp_path / "sessions") == metrics(tmp_path / "local")
    local, found = ledger(tmp_path / "local"), ledger(tmp_path / "sessions")
    proofs = []
    for client, entries in local.items():
        assert len(entries) == len(found[client])
        for entry, other in zip(entries, found[client], strict=True):
            same = {k: v for k, v in entry.items() if not k.startswith(("bytes", "kinds", "peak"))}
            assert same.items() <= other.items()
            more = other["bytes_raw"] - entry["bytes_raw"]
            if more:
                proofs.append((entry["verb"], entry["direction"], entry["round"], more))
            else:
                assert entry["bytes"] == other["bytes"]
    sizes = {more for verb, *_, more in proofs if verb == "mask_keys"}
    first = min(number for *_, number, _ in proofs)
    assert {proof[:3] for proof in proofs} == {("mask_keys", "up", first), (SHARES, "down", first)}
    assert 400 < min(sizes) <= max(sizes) < 1000
    assert len(proofs) == 8


@pytest.mark.parametrize("words", [(EQUAL,), VOTES], ids=["fedllm", "kd votes"])
def test_over_sessions_clients_add_their_shares_of_the_noise(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Their own, so no two runs end alike; what is spent, and what is sent up, is the same."""
    private = ("privacy={name: client, noise: 1}", "training.max_length=24")
    config = experiment_config(hub, *MASKED, *private, *words)
    build(config, RunFolder(tmp_path / "local", "local")).run()
    run_in_threads(config, keys, RunFolder(tmp_path / "sessions", "sessions"), monkeypatch)
    assert adapter(tmp_path / "sessions") != adapter(tmp_path / "local")
    accounts = [(tmp_path / name / "privacy.jsonl").read_text() for name in ("local", "sessions")]
    assert accounts[0] == accounts[1]
    assert accounts[0].count("\n") == config.rounds
    (*_, local), (*_, found) = (metrics(tmp_path / name) for name in ("local", "sessions"))
    assert local["epsilon"] == found["epsilon"] > 0
    ups = [
        [(client, e["verb"], e["bytes"]) for client, entries in sorted(found.items())
         for e in entries if (e["verb"], e["direction"]) in (("train", "up"), ("teach", "up"))]
        for found in (ledger(tmp_path / "local"), ledger(tmp_path / "sessions"))
    ]  # fmt: skip
    assert ups[0] == ups[1] != []


@pytest.mark.parametrize(("verb", "number"), PHASES)
def test_a_node_that_is_killed_in_a_phase_is_not_in_the_sum_or_is(
    hub: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, number: int
) -> None:
    """The others go on, and it may come back with other keys. What came before the reveal counts."""
    killed: list[bool] = []
    lock = threading.Lock()

    def spoil(data: bytes, handler: Handler) -> bytes:
        message = decode(data)
        with lock:
            dies = not killed and message.meta["round"] == number and message.verb == verb
            killed.extend([True] * dies)
        if dies:
            raise Killed
        return handler(data)

    config = experiment_config(hub, *FOUR, "rounds=3")
    folder = RunFolder(tmp_path / "run", "run")
    run = run_in_threads(config, keys, folder, monkeypatch, spoil=spoil, seconds=(5.0, 60.0))
    assert killed
    lines = run.history
    assert len(lines) == 4
    missing = [len(line["missing"]) for line in lines[: number + 1]]
    assert missing == [0] * number + [1]
    entries = [
        e for each in ledger(tmp_path / "run").values() for e in each if e["round"] == number
    ]
    sums = [e for e in entries if e["verb"] == "train" and e["direction"] == "up"]
    assert len(sums) == (4 if verb == REVEAL else 3)
    assert max(line["loss"] for line in lines) == lines[0]["loss"]  # no mask was left in the state


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Certificates of another authority for the same names."""
    folder = tmp_path / "others"
    make_keys(folder, ["127.0.0.1"], [f"client-{n}" for n in range(4)])
    return folder


def certified(keys: Path, name: str, run: str = "run", peers: Path | None = None) -> Certified:
    own = keys / "nodes" / name
    return Certified.read(
        NodeConfig(
            authority=keys / "ca.crt",
            certificate=own / "client.crt",
            key=own / "client.key",
            peers=peers,
        ),
        run,
    )


def test_keys_are_those_of_the_node_of_a_name(keys: Path, others: Path) -> None:
    one, two = certified(keys, "client-0"), certified(keys, "client-1")
    proof = one.proof("client-0", KEYS)
    two.check("client-0", KEYS, proof)
    wrong: list[tuple[str, bytes, bytes, Certified, str]] = [
        ("client-0", KEYS[::-1], proof, two, "not signed by it"),
        ("client-1", KEYS, proof, two, "somebody else"),
        ("client-0", KEYS, b"", two, "not shown to be its own"),
        ("client-0", KEYS, proof[:64] + proof[65:], two, "not shown to be its own"),
        ("client-0", KEYS, two.proof("client-0", KEYS), two, "somebody else"),
        ("client-0", KEYS, two.proof("client-0", KEYS)[:64] + proof[64:], two, "not signed by it"),
        ("client-0", KEYS, certified(others, "client-0").proof("client-0", KEYS), two, "own"),
        ("client-0", KEYS, proof, certified(keys, "client-1", "another run"), "not signed by it"),
    ]
    server = certified_server(keys)
    wrong.append(("127.0.0.1", KEYS, server.proof("127.0.0.1", KEYS), two, "somebody else"))
    for name, own, shown, looks, why in wrong:
        with pytest.raises(MessageError, match=why):
            looks.check(name, own, shown)


def certified_server(keys: Path) -> Certified:
    """Return what the operator's own certificate could sign."""
    return Certified.read(
        NodeConfig(
            authority=keys / "ca.crt",
            certificate=keys / "server.crt",
            key=keys / "server.key",
        ),
        "run",
    )


def test_an_owner_pins_its_peers(keys: Path, tmp_path: Path) -> None:
    """Whoever has the authority's key can make a node of any name, and this one is not fooled."""
    peers = tmp_path / "peers.crt"
    names = ("client-0", "client-1")
    peers.write_bytes(b"".join((keys / "nodes" / n / "client.crt").read_bytes() for n in names))
    me = certified(keys, "client-1", peers=peers)
    me.check("client-0", KEYS, certified(keys, "client-0").proof("client-0", KEYS))
    with pytest.raises(MessageError, match="pinned"):
        me.check("client-2", KEYS, certified(keys, "client-2").proof("client-2", KEYS))
    with pytest.raises(UserError, match="cannot be used"):
        certified(keys, "client-1", peers=tmp_path / "none.crt")


def test_a_server_that_puts_its_own_keys_in_the_place_of_a_nodes_gets_nothing(
    hub: Path, keys: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that another authority has signed: all others refuse, and no vector leaves."""
    original: Callable[[Nodes, str, str], Certified] = Nodes.certified

    def forged(self: Nodes, name: str, run: str) -> Certified:
        found = original(self, name, run)
        if name == "client-2":
            other = certified(others, name, run)
            found.key, found.certificate = other.key, other.certificate
        return found

    monkeypatch.setattr(Nodes, "certified", forged)
    config = experiment_config(hub, *FOUR, "rounds=1")
    folder = RunFolder(tmp_path / "run", "run")
    with pytest.raises(RoundFailed, match="the keys of client-2 are not shown to be its own"):
        run_in_threads(config, keys, folder, monkeypatch)
    verbs = {e["verb"] for each in ledger(tmp_path / "run").values() for e in each}
    assert verbs == {"mask_keys", SHARES, "error"}


def test_a_node_signs_with_what_its_settings_name(hub: Path, keys: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, *FOUR, "training.max_length=24")
    rows, own = tmp_path / "rows.jsonl", tmp_path / "keys"
    shutil.copy(hub / "classification.jsonl", rows)
    shutil.copytree(keys / "nodes" / "client-0", own)
    shutil.copy(keys / "ca.crt", own)
    names = {"certificate": "client.crt", "key": "client.key", "authority": "ca.crt"}
    paths = {key: own / file for key, file in names.items()}
    settings = NodeConfig(name="client-0", data=rows, **paths)
    labels = [f"class {n}" for n in range(3)]
    node = Node(settings, Opening("run", config.tree(), labels, 0))
    assert isinstance(node.client.masks, Masks)
    assert isinstance(node.client.masks.vouching, Certified)
    assert node.client.masks.least == 3
    certified(keys, "client-1").check(
        "client-0", KEYS, node.client.masks.vouching.proof("client-0", KEYS)
    )
    (own / "client.key").unlink()
    with pytest.raises(UserError, match=r"client\.key"):
        Node(settings, Opening("run", config.tree(), labels, 0))
