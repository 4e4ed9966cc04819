"""Masked sums: the plain sum of whole numbers whoever is lost; and what a client refuses."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masked import ADD, FORM, Federation, made
from trillium.federation.circle import Circle
from trillium.federation.failed import RoundFailed
from trillium.privacy.integers import FIRST
from trillium.privacy.phases import KEYS, REVEAL, SHARES, SUM
from trillium.privacy.shamir import join, split
from trillium.privacy.streams import KEY, lanes, packed, unpacked
from trillium.privacy.sums import WIDE
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message

PHASES = (SHARES, ADD, REVEAL)


def plain(
    federation: Federation, inside: list[str], reach: float, levels: int
) -> dict[str, list[float]]:
    """Return the mean of whole numbers, added up in Python."""
    top, found = 2 ** (levels - 1) - 1, {}
    for name, like in federation.clients["c0"].adds.items():
        total = [0] * like.numel()
        for client in inside:
            for place, value in enumerate(federation.clients[client].adds[name].flatten().tolist()):
                total[place] += round(max(-1.0, min(1.0, value / reach)) * top)
        found[name] = [float(Fraction(entry)) / (len(inside) * top) * reach for entry in total]
    return found


def same(
    federation: Federation, found: object, inside: list[str], reach: float, levels: int
) -> None:
    expected = plain(federation, inside, reach, levels)
    tensors = found.tensors  # type: ignore[attr-defined]
    assert {
        n.removeprefix("parameters/"): t.flatten().tolist() for n, t in tensors.items()
    } == expected


def test_whoever_is_lost_in_whatever_phase_it_is_the_plain_sum_of_whole_numbers() -> None:
    """All ways to lose some of four clients; where too few are left nothing is revealed."""
    names = [f"c{n}" for n in range(4)]
    ways, ended = 0, Counter[str]()
    for when in itertools.product((*PHASES, None), repeat=len(names)):
        federation = made(4)
        lost = {p: {n for n, at in zip(names, when, strict=True) if at == p} for p in PHASES}
        federation.lost = lost
        shared = [n for n in names if n not in lost[SHARES]]
        inside = [n for n in shared if n not in lost[ADD]]
        revealed = [n for n in inside if n not in lost[REVEAL]]
        ways += 1
        if len(shared) >= 3 and len(inside) >= 3 and len(revealed) >= 3:
            same(federation, federation.total(need=3), inside, FIRST, WIDE)
            ended["sum"] += 1
            continue
        with pytest.raises(RoundFailed):
            federation.total(need=3)
        ended["failed"] += 1
        if len(inside) < 3 or len(shared) < 3:
            assert REVEAL not in federation.verbs()  # nothing of anybody's secrets was asked for
    assert ended == {"sum": 1 + 4 * 3, "failed": ways - 13}


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(3, 9),
    peers=st.sampled_from((2, 4, 6, 48)),
    bits=st.integers(4, 30),
    lost=st.lists(st.sampled_from(PHASES), max_size=2),
    seed=st.integers(0, 1000),
)
def test_with_a_graph_of_peers_it_is_the_plain_sum_or_none(
    count: int, peers: int, bits: int, lost: list[str], seed: int
) -> None:
    """Two sums: one of which nothing is known, and one of the bits that were asked for."""
    federation, names = made(count, peers, bits, seed=seed), [f"c{n}" for n in range(count)]
    need = max(count - len(lost), count // 2 + 1)
    same(federation, federation.total(), names, FIRST, WIDE)
    who = {phase: {f"c{n}" for n, p in enumerate(lost) if p == phase} for phase in PHASES}
    federation.lost = who
    inside = [n for n in names if n not in who[SHARES] | who[ADD]]
    ranges = dict(federation.server.side.store["sums"]["ranges"])
    try:
        found = federation.total(need=need)
    except RoundFailed:
        assert len(lost) > 0
        return
    for name in ("a", "b"):
        reach = ranges[f"parameters/{name}"]
        expected = plain(federation, inside, reach, bits)[name]
        assert found.tensors[f"parameters/{name}"].flatten().tolist() == expected


def test_ranges_follow_what_came() -> None:
    federation = made(5, bits=12)
    federation.total()
    for client in federation.clients.values():
        client.adds["b"] *= 0.01
    truth = torch.stack([c.adds["b"] for c in federation.clients.values()]).double().mean(0)
    errors = []
    for _ in range(2):
        found = federation.total().tensors["parameters/b"]
        errors.append(float((found - truth).norm() / truth.norm()))
        assert federation.server.told == {"beyond_range": 0.0}
    assert errors[1] < 0.002 < 0.02 < errors[0]  # the first has the range of before
    for client in federation.clients.values():
        client.adds["b"] *= 50
    federation.total()
    assert federation.server.told["beyond_range"] > 0.3
    federation.total()
    assert federation.server.told["beyond_range"] < 0.05


def test_a_tensor_that_rested_in_the_first_sum_is_not_lost() -> None:
    federation = made(4)
    for client in federation.clients.values():
        client.adds["a"].zero_()
    federation.total()
    for client in federation.clients.values():
        client.adds["a"] += 0.5
    found = federation.total().tensors["parameters/a"]
    assert torch.allclose(found, torch.full_like(found, 0.5), atol=0.02)


def test_who_rests_says_nothing_of_a_range() -> None:
    """Neither one client in the first sum, nor all of them in many sums."""
    federation = made(4, bits=12)
    own = federation.clients["c0"].adds
    rested, own["a"] = own["a"], torch.zeros_like(own["a"])
    federation.total()
    ranges = federation.server.side.store["sums"]["ranges"]
    assert 1 < ranges["parameters/a"] < 20
    own["a"] = rested
    for client in federation.clients.values():
        client.adds["b"] = torch.zeros_like(client.adds["b"])
    before = ranges["parameters/b"]
    for _ in range(3):
        federation.total()
    assert ranges["parameters/b"] == before


def test_what_leaves_is_even_and_never_the_same_twice() -> None:
    """Bytes of masked zeros: the chi-squared of 255 degrees is within five deviations."""
    federation, seen = made(3), []
    for client in federation.clients.values():
        client.adds = {"a": torch.zeros(2, 3), "b": torch.zeros(5)}
    for _ in range(60):
        federation.server.side.store.clear()  # so that every sum is one of the widest
        assert not federation.total().tensors["parameters/a"].any()
    for client in federation.clients.values():
        sent = [
            reply.tensors[SUM].numpy().tobytes() for _, reply in client.seen if reply.verb == ADD
        ]
        assert len({*sent}) == len(sent) == 60
        seen.append(b"".join(message[:-1] for message in sent))  # the last byte is not full
    counts = torch.bincount(
        torch.frombuffer(bytearray(b"".join(seen)), dtype=torch.uint8), minlength=256
    )
    expected = counts.sum() / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 255) < 5 * 510**0.5


def test_parts_of_a_secret() -> None:
    secret = bytes(range(64))
    parts = split(secret, 3, 6)
    for some in itertools.combinations(range(6), 3):
        assert join({place: parts[place] for place in some}) == secret
    for few in itertools.combinations(range(6), 2):
        assert join({place: parts[place] for place in few}) != secret
    # One part says nothing: over the coefficients it is even.
    firsts = Counter(split(b"\0", 2, 2)[0][0] for _ in range(5000))
    assert len(firsts) == 256
    most = split(bytes(64), 255, 255)
    assert join(dict(enumerate(most))) == bytes(64)


@given(st.integers(1, 64), st.integers(1, 70), st.randoms())
def test_bits_go_there_and_back(bits: int, count: int, draw: object) -> None:
    values = [draw.getrandbits(bits) for _ in range(count)]  # type: ignore[attr-defined]
    wide = np.array(values, lanes(bits))
    data = packed(wide, bits)
    assert len(data) == -(-count * bits // 8)
    whole = int.from_bytes(data.tobytes(), "big") >> (-count * bits % 8)
    assert whole == sum(v << bits * (count - 1 - place) for place, v in enumerate(values))
    assert unpacked(data, count, bits).tolist() == values


def test_a_circle_is_mutual_and_its_thresholds_are_above_half() -> None:
    names = [f"c{n:03}" for n in range(100)]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    for most, need in ((48, 51), (48, 90), (7, 100), (98, 60)):
        circle = Circle.drawn(names, most, need, order)
        assert {len(peers) for peers in circle.peers.values()} == {most // 2 * 2 + 1}
        for name, peers in circle.peers.items():
            assert name in peers
            assert all(name in circle.peers[peer] for peer in peers)
            assert len(peers) < 2 * circle.threshold <= 2 * len(peers)
    whole = Circle.drawn(names, 99, 70, order)
    assert whole.threshold == 70
    assert all(list(peers) == names for peers in whole.peers.values())


# What a client refuses


def reveal_again(federation: Federation, name: str, answered: dict[str, bool]) -> Message:
    """Ask a client as the server did, with others said to have answered."""
    client = federation.clients[name]
    [asked] = [m for m, _ in client.seen if m.verb == REVEAL]
    bits = torch.tensor([answered[n] for n in sorted(answered)], dtype=torch.uint8)
    changed = {**asked.tensors, "control/answered": bits}
    return client.handle(federation.bytes_of(Message(REVEAL, changed, asked.meta)))


def test_nobody_gives_both_secrets_of_a_client() -> None:
    """The attack that opens Flower's SecAgg+: name a client as one that answered, and as a lost one."""
    federation = made(5)
    federation.total(need=3)
    alive = {f"c{n}": True for n in range(5)}
    for name in federation.clients:
        with pytest.raises(MessageError, match="not any more"):
            reveal_again(federation, name, {**alive, "c1": False})


def test_who_is_told_different_things_cannot_be_made_to_give_both() -> None:
    """Some peers are told that a client was lost, others that it was not: too few shares of each."""
    federation, victim = made(5), "c2"
    shares: dict[bool, dict[int, bytes]] = {True: {}, False: {}}
    kept: dict[str, list[bytes]] = {}

    def split_view(name: str, message: Message) -> Message:
        if message.verb == REVEAL and name == victim:
            own = federation.clients[victim].masks._sum
            assert own is not None
            kept.update(seed=[own.seed], key=[own.private])
        if message.verb != REVEAL or name in ("c0", "c1", victim):
            return message
        bits = message.tensors["control/answered"].clone()
        bits[2] = 0
        return replace(message, tensors={**message.tensors, "control/answered": bits})

    federation.changed = split_view
    federation.total(need=3)
    for place, client in enumerate(federation.clients.values()):
        message, reply = client.seen[-1]
        told = bool(message.tensors["control/answered"][2])
        shares[told][place] = bytes(reply.tensors["control/shares"][2].numpy())
    assert (len(shares[True]), len(shares[False])) == (3, 2)  # of five, three bring a secret back
    [seed], [key] = kept["seed"], kept["key"]
    assert join(shares[True]) == seed
    assert join(shares[False]) != key


@pytest.mark.parametrize("bits", [[1, 1, 2, 1], [1, 1, 1, 0], [0, 0, 0, 1]])
def test_a_reveal_is_of_enough_and_says_one_thing_of_each(bits: list[int]) -> None:
    federation = made(4)

    def other(name: str, message: Message) -> Message:
        if message.verb != REVEAL:
            return message
        changed = torch.tensor(bits, dtype=torch.uint8)
        return replace(message, tensors={**message.tensors, "control/answered": changed})

    federation.changed = other
    with pytest.raises(RoundFailed, match="0 clients have given a share"):
        federation.total(need=4)
    assert len(federation.refused) == 4


def test_a_late_answer_stays_masked() -> None:
    """A client is taken for lost, its key is revealed, and then its answer comes: its seed hides it."""
    federation, late = made(4), "c3"
    held: list[Message] = []

    def delay(name: str, message: Message) -> Message:
        if message.verb == ADD and name == late:
            held.append(message)
        return message

    federation.changed, federation.lost = delay, {ADD: set()}
    answer: list[Message] = []
    handle = federation.clients[late].handle

    def slow(data: bytes) -> Message:
        reply = handle(data)
        if reply.verb == ADD:
            answer.append(reply)
            raise MessageError("no reply in time")
        return reply

    federation.clients[late].handle = slow  # type: ignore[method-assign]
    found = federation.total(need=3)
    same(federation, found, ["c0", "c1", "c2"], FIRST, WIDE)
    # The server now has the answer, and the key of the late one; of its seed it has no share at all.
    assert len(answer) == 1
    for name in ("c0", "c1", "c2"):
        message, reply = federation.clients[name].seen[-1]
        assert bytes(message.tensors["control/answered"].numpy()) == bytes([1, 1, 1, 0])
        assert reply.tensors["control/shares"].shape == (4, KEY)
        with pytest.raises(MessageError, match="not any more"):
            reveal_again(federation, name, dict.fromkeys(federation.clients, True))


def test_a_tampered_share_is_refused() -> None:
    federation = made(4)

    def tampered(name: str, message: Message) -> Message:
        if message.verb != REVEAL or name != "c0":
            return message
        boxes = message.tensors["control/boxes"].clone()
        boxes[1, 20] ^= 1
        return replace(message, tensors={**message.tensors, "control/boxes": boxes})

    federation.changed = tampered
    found = federation.total(need=3)
    assert federation.refused == {"c0": "the share of a secret of c2 is not as it was shut"}
    same(federation, found, ["c0", "c1", "c2", "c3"], FIRST, WIDE)  # three others bring it back


def test_boxes_cannot_change_places() -> None:
    federation = made(4)

    def swapped(name: str, message: Message) -> Message:
        if message.verb != REVEAL or name != "c0":
            return message
        boxes = message.tensors["control/boxes"].flip(0)
        return replace(message, tensors={**message.tensors, "control/boxes": boxes})

    federation.changed = swapped
    federation.total(need=3)
    assert federation.refused == {"c0": "the share of a secret of c1 is not as it was shut"}


def forged(place: int, key: bytes | None = None) -> object:
    """Return what puts a key of the server's own, or an old one, in the place of a client's."""

    def change(name: str, message: Message) -> Message:
        if message.verb != ADD or name != "c0":
            return message
        publics = message.tensors["control/publics"].clone()
        row = bytes(KEY) if key is None else key
        publics[place, : len(row)] = torch.tensor(list(row), dtype=torch.uint8)
        return replace(message, tensors={**message.tensors, "control/publics": publics})

    return change


def test_a_forged_key_is_refused_before_anything_leaves() -> None:
    federation = made(4)
    federation.changed = forged(1, bytes(range(KEY)))  # type: ignore[assignment]
    federation.total(need=3)
    assert federation.refused == {"c0": "the key of c1 for this sum is not its own"}
    assert [m.verb for m, _ in federation.clients["c0"].seen] == [KEYS, SHARES]


def test_a_key_of_an_earlier_sum_is_refused() -> None:
    """It is signed, and the server may have its other half: the sum before revealed it."""
    federation = made(4)
    federation.total(need=3)
    [old] = [m for m, _ in federation.clients["c0"].seen if m.verb == ADD]
    public = bytes(old.tensors["control/publics"][1].numpy())
    federation.changed = forged(1, public)  # type: ignore[assignment]
    federation.total(need=3)
    assert federation.refused == {"c0": "the key of c1 for this sum is not its own"}


def test_a_sum_is_begun_and_answered_once() -> None:
    federation = made(3)
    federation.total()
    client = federation.clients["c0"]
    for verb, why in ((SHARES, "has been before"), (ADD, "answered before")):
        [message] = [m for m, _ in client.seen if m.verb == verb]
        with pytest.raises(MessageError, match=why):
            client.handle(federation.bytes_of(Message(verb, dict(message.tensors), message.meta)))


def test_an_answer_is_not_given_twice_before_the_reveal() -> None:
    """Two answers under one mask would tell their difference."""
    federation = made(3)

    def twice(name: str, message: Message) -> Message:
        if message.verb == ADD:
            client = federation.clients[name]
            client.handle(federation.bytes_of(message))
            with pytest.raises(MessageError, match="answered before"):
                client.handle(federation.bytes_of(message))
        return message

    federation.changed = twice
    with pytest.raises(RoundFailed):
        federation.total()


def test_masks_of_clients_that_were_sent_different_states_do_not_cancel() -> None:
    federation = made(3)

    def other(name: str, message: Message) -> Message:
        if message.verb != ADD or name != "c0":
            return message
        return replace(message, tensors={**message.tensors, "parameters/state": torch.zeros(3)})

    federation.changed = other
    found = federation.total().tensors["parameters/a"]
    truth = torch.stack([c.adds["a"] for c in federation.clients.values()]).double().mean(0)
    assert float((found - truth).abs().max()) > 100


@pytest.mark.parametrize(
    ("least", "count", "changes", "why"),
    [
        (5, 4, {}, "4 peers"),
        (2, 4, {"threshold": 2}, "2 of 4 shares"),
        (2, 4, {"threshold": 5}, "5 of 4 shares"),
        (2, 4, {"peers": ["c0", "c1"]}, "2 peers"),
        (2, 4, {"peers": ["c1", "c2", "c3"]}, "3 peers"),
        (2, 4, {"peers": ["c0", "c1", "c1"]}, "no names"),
        (2, 4, {"peers": ["c0", "c1", "c2", "c3", "x"]}, "keys of x"),
    ],
)
def test_secrets_are_shared_with_enough(
    least: int, count: int, changes: dict[str, object], why: str
) -> None:
    federation = made(count, least=least)

    def other(name: str, message: Message) -> Message:
        if message.verb != SHARES or name != "c0":
            return message
        return replace(message, meta={**message.meta, **changes})

    federation.changed = other
    with pytest.raises(RoundFailed):
        federation.total(need=4)
    assert why in federation.refused["c0"]


def test_a_client_that_comes_back_without_its_keys_is_met_again() -> None:
    federation = made(4)
    federation.total(need=3)
    client = federation.clients["c1"]
    client.masks.side.store.clear()
    client.masks.side.lasting = lambda purpose: purpose.encode().ljust(KEY)  # type: ignore[method-assign]
    with pytest.raises(RoundFailed):
        federation.total(need=4)
    message = Message(ADD, {"parameters/state": torch.ones(3)})
    requests = dict.fromkeys(federation.clients, message)
    total = federation.server.total(requests, FORM, federation.ask, lambda m: b"", 4, ["c1"])
    assert total.weight == 1.0
    assert federation.refused.keys() == {"c1"}
